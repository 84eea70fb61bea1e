"""Table walks of QEMU's SMMUv3: both stages, one through the other, and the cache in front.

The cache is QEMU's: entries by address space and machine id, address, granule and level, 256 of
them, all forgotten when there would be one more. A cached page is looked at for permission to
write only. Source: ``smmu_translate``, ``smmu_ptw_64_s1``, ``smmu_ptw_64_s2`` and the
``smmu_iotlb_*`` functions in ``hw/arm/smmu-common.c``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.iommu import IommuAccess
from qemuglue.memory.region import MASK64
from qemuglue.witness.iommu.smmu_decode import (
    ACCESS,
    ADDRESS_SIZE,
    NESTED,
    PERMISSION,
    STAGE_1,
    STAGE_2,
    TRANSLATION,
    WALK_ABORT,
    Features,
    Stream,
    Tables,
    shift_of,
    start_level,
)
from qemuglue.witness.iommu.tables import bits, word

#: Entries of the cache (``SMMU_IOTLB_MAX_SIZE``).
CACHED = 256

_R, _W = IommuAccess.RO, IommuAccess.WO


@dataclass(frozen=True, slots=True)
class Entry:
    """A translation: ``mask`` has the low bits of its page. ``parent`` is what the second stage
    allows, ``perm`` the first's."""

    iova: int
    translated: int
    mask: int
    perm: IommuAccess
    parent: IommuAccess
    level: int
    granule: int

    def address(self, addr: int) -> int:
        return (self.translated + (addr & self.mask)) & MASK64


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no translation: an event type, the stage that failed, the address it names,
    and whether a table of the first stage was sought through the second."""

    type: int
    stage: int
    addr: int = 0
    descriptor: bool = False


Key = tuple[int, int, int, int, int]


@dataclass(slots=True)
class Walker:
    """``memory`` holds the tables."""

    memory: AddressSpace
    features: Features
    cache: dict[Key, Entry] = field(default_factory=dict)

    def translate(self, stream: Stream, addr: int, access: IommuAccess) -> Entry | Fault:
        """``smmu_translate``."""
        if stream.stage == STAGE_2:
            granule, size = stream.second.granule, stream.second.size
        else:
            tables = self.select(stream, addr)
            if tables is None:
                return Fault(TRANSLATION, STAGE_1)
            granule, size = tables.granule, tables.size
        found = self._cached(stream, addr, granule, size)
        if found is not None:
            if access & _W and not found.perm & found.parent & _W:
                return Fault(PERMISSION, STAGE_2 if found.perm & _W else STAGE_1)
            return found
        fresh = self._walk(stream, addr, access)
        if isinstance(fresh, Entry):
            if len(self.cache) >= CACHED:
                self.cache.clear()
            key = (stream.asid, stream.second.vmid, fresh.iova, (fresh.granule - 10) // 2,
                   fresh.level)
            self.cache[key] = fresh
        return fresh

    # -- the cache -------------------------------------------------------------------------------

    def _cached(self, stream: Stream, addr: int, granule: int, size: int) -> Entry | None:
        found = self._at_any_level(stream, addr, granule, size)
        other = stream.second.granule
        if found is None and stream.stage == NESTED and other != granule:
            found = self._at_any_level(stream, addr, other, size)
        return found

    def _at_any_level(self, stream: Stream, addr: int, granule: int, size: int) -> Entry | None:
        if not granule:  # a range that is disabled
            return None
        first = 4 - (64 - size - 4) // (granule - 3)
        for level in range(first if first >= 0 else 4, 4):  # in C it is unsigned
            page = addr >> shift_of(level, granule) << shift_of(level, granule)
            found = self.cache.get(
                (stream.asid, stream.second.vmid, page, (granule - 10) // 2, level))
            if found is not None:
                return found
        return None

    def forget(self, asid: int | None = None, vmid: int | None = None) -> None:
        """The entries of an address space, or of a machine; of all where None."""
        self.cache = {
            key: entry for key, entry in self.cache.items()
            if (asid is not None and key[0] != asid) or (vmid is not None and key[1] != vmid)
        }

    def forget_stage1(self, vmid: int) -> None:
        """``smmu_iotlb_inv_vmid_s1``."""
        self.cache = {
            key: entry for key, entry in self.cache.items() if key[1] != vmid or key[0] < 0}

    def forget_pages(
        self, addr: int, granule_code: int, pages: int, level: int, *, asid: int, vmid: int,
        second: bool,
    ) -> None:
        """``smmu_iotlb_inv_iova``, or for ``second`` ``smmu_iotlb_inv_ipa``. ``asid`` and
        ``vmid`` of -1 stand for all of the first stage's."""
        exact = (asid, vmid, addr, granule_code, level)
        single = level and pages == 1 and (asid >= 0 or second)
        if single and self.cache.pop(exact, None) is not None:
            return
        granule = granule_code * 2 + 10 if granule_code else 12
        mask = (pages << granule) - 1 & MASK64

        def meant(key: Key, entry: Entry) -> bool:
            if second:
                if key[0] >= 0 or key[1] != vmid:
                    return False
            elif (asid >= 0 and key[0] != asid) or (vmid >= 0 and key[1] != vmid):
                return False
            return addr & ~entry.mask == entry.iova or entry.iova & ~mask == addr

        for key in [key for key, entry in self.cache.items() if meant(key, entry)]:
            del self.cache[key]

    # -- walks -------------------------------------------------------------------------------------

    def select(self, stream: Stream, addr: int) -> Tables | None:
        """Which of the two ranges an address is in (``select_tt``). The bit that says whether the
        top byte counts is the lower range's for both: QEMU's macro for the upper one has its
        brackets in the wrong place."""
        ignored = 8 * (stream.top_byte & 1)
        lower, upper = stream.tables

        def top(tables: Tables) -> tuple[int, int]:
            count = tables.size - ignored
            return bits(addr, 64 - tables.size, count), (1 << count) - 1

        if lower.size and not top(lower)[0]:
            return lower
        if upper.size:
            value, ones = top(upper)
            if value == (0 if self.features.old else ones):
                return upper
        if not lower.size:
            return lower
        return upper if not upper.size else None

    def _walk(self, stream: Stream, addr: int, access: IommuAccess) -> Entry | Fault:
        """``smmu_ptw``."""
        if stream.stage == STAGE_1:
            return self._first(stream, addr, access)
        if stream.stage == STAGE_2:
            if addr >> stream.output:
                return Fault(ADDRESS_SIZE, STAGE_1)
            return self._second(stream, addr, access)
        first = self._first(stream, addr, access)
        if isinstance(first, Fault):
            return first
        second = self._second(stream, first.address(addr), access)
        if isinstance(second, Fault):
            return second
        if second.mask < first.mask:
            first = replace(
                first, mask=second.mask, granule=second.granule, level=second.level)
        return replace(
            first, translated=second.address(first.translated),
            iova=addr & ~first.mask, parent=second.perm)

    def _first(self, stream: Stream, addr: int, access: IommuAccess) -> Entry | Fault:
        tables = self.select(stream, addr)
        if tables is None or tables.disabled:
            return Fault(TRANSLATION, STAGE_1)
        granule, size = tables.granule, 64 - tables.size
        stride = granule - 3
        level = 4 - (size - 4) // stride
        kept = 48 if self.features.old else stream.output
        base = bits(tables.base, 0, kept) & -(1 << size - stride * (4 - level))
        while True:
            at = base + 8 * _index(addr, size, level, granule)
            entry = word(self.memory, at)
            if entry is None:
                return Fault(WALK_ABORT, STAGE_1, at)
            if not entry & 1 or (level == 3 and entry & 3 == 1):
                return Fault(TRANSLATION, STAGE_1)
            if level == 3 or entry & 3 == 1:
                break
            if access & _W and bits(entry, 61, 2) & 2 and not tables.flat:
                return Fault(PERMISSION, STAGE_1)
            base = _output(entry, granule)
            if stream.stage == NESTED:
                found = self.translate(replace(stream, stage=STAGE_2, asid=-1), base, _R)
                if isinstance(found, Fault):
                    # QEMU forgets on the way out that the second stage failed.
                    return Fault(found.type, STAGE_1, base, descriptor=True)
                base = found.address(base)
            level += 1
        shift = shift_of(level, granule)
        to, perms = _output(entry, shift), bits(entry, 6, 2)
        if not self.features.old and not bits(entry, 10, 1) and not stream.no_access_faults:
            return Fault(ACCESS, STAGE_1)
        if access & _W and perms & 2:
            return Fault(PERMISSION, STAGE_1)
        if not self.features.old and to >> stream.output:
            return Fault(ADDRESS_SIZE, STAGE_1)
        perm = _R if perms & 2 else _R | _W
        mask = (1 << shift) - 1
        return Entry(addr & ~mask, to, mask, perm, perm, level, granule)

    def _second(self, stream: Stream, addr: int, access: IommuAccess) -> Entry | Fault:
        config = stream.second
        granule, size = config.granule, 64 - config.size
        level, stride = start_level(config.start, granule), granule - 3
        base = bits(config.base, 0, config.output)
        base += (addr >> shift_of(level - 1, granule)) * 8 << stride
        # QEMU's mask takes the number of a concatenated table away again: the first serves all.
        base &= -(1 << (size - stride * (4 - level) & 63)) & MASK64
        if addr >> size:
            return Fault(TRANSLATION, STAGE_2, addr)
        while True:
            at = base + 8 * _index(addr, size, level, granule)
            entry = word(self.memory, at)
            if entry is None:
                return Fault(WALK_ABORT, STAGE_2, at)
            if not entry & 1 or (level == 3 and entry & 3 == 1):
                return Fault(TRANSLATION, STAGE_2, addr)
            if level == 3 or entry & 3 == 1:
                break
            base, level = _output(entry, granule), level + 1
        shift = shift_of(level, granule)
        to, perm = _output(entry, shift), IommuAccess(bits(entry, 6, 2))
        if not bits(entry, 10, 1) and not config.no_access_faults:
            return Fault(ACCESS, STAGE_2, addr)
        if perm & access != access:
            return Fault(PERMISSION, STAGE_2, addr)
        if to >> config.output:
            return Fault(ADDRESS_SIZE, STAGE_2, addr)
        mask = (1 << shift) - 1
        return Entry(addr & ~mask, to, mask, perm, perm, level, granule)


def _index(addr: int, size: int, level: int, granule: int) -> int:
    return bits(addr & (1 << size) - 1, shift_of(level, granule), granule - 3)


def _output(entry: int, shift: int) -> int:
    """The address in an entry, of which the low ``shift`` bits are none."""
    return entry & (1 << 48) - 1 & -(1 << shift)
