"""The rules of an access, one method each, so that a rule can be read, tested and replaced.

``R`` numbers are the project's names for them; QEMU's functions are named in each method.
A ``Rules`` object is data for one range of QEMU versions: ``rules_for(version)``. A planted
defect (``campaign.defects``) is a subclass with one method wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.memory.contract import Contract, Reason
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MAX_SIZE, MemoryRegion, RegionKind


@dataclass(frozen=True)
class Piece:
    """One call into a device: ``delta`` bytes into the access, ``shift`` bits into its value
    (negative: the other way)."""

    delta: int
    size: int
    shift: int


@lru_cache(maxsize=4096)
def _split(size: int, impl_min: int, impl_max: int, big: bool) -> tuple[Piece, ...]:
    access = max(min(size, impl_max or 4), impl_min or 1)
    if big:
        return tuple(Piece(i, access, (size - access - i) * 8) for i in range(0, size, access))
    return tuple(Piece(i, access, i * 8) for i in range(0, size, access))


@lru_cache(maxsize=65536)
def _chunk(length: int, low_bits: int, valid_max: int, impl_unaligned: bool) -> int:
    cap = valid_max or 4
    if not impl_unaligned and low_bits:
        cap = min(cap, low_bits & -low_bits)
    return 1 << (min(length, cap).bit_length() - 1)


@dataclass(frozen=True)
class Rules:
    """The rules as QEMU 10.0 has them; the fields say what other versions do otherwise."""

    name: str = "10.0"
    #: A device that is already handling an access may not be entered again (8.1, and 7.2.6).
    reentrancy_guard: bool = True
    #: The end of any access to a device's regions, guarded or not, lifts its guard (7.2).
    unguarded_releases: bool = False
    #: There is a debug attribute, and it lets a write reach ROM (10.0).
    debug_writes_rom: bool = True

    #: ``cpu_inw`` and its kin are one dispatch (R10), not a byte range cut by R6. Measured on
    #: 11.1.3; the sources of 10.0.2 and 10.2.2 still cut.
    ports_single_dispatch: bool = False
    #: Bounce buffers are counted by bytes in each space (9.2); before, one of a page served all
    #: spaces (R14).
    bounce_budget: bool = True
    #: A cached access to a device takes its second and later pieces from the map, at the offset
    #: in the cache (R15; a bug of QEMU's, 4.0 to 8.2).
    cached_slow_relative: bool = False
    #: ``address_space_write_rom`` reaches RAM devices, and ROM devices only in ROMD mode; from
    #: 10.0 on it asks what a read may copy (R12).
    rom_write_by_kind: bool = False

    def refusal(
        self, contract: Contract, offset: int, size: int, is_write: bool,
        attrs: MemTxAttrs = UNSPECIFIED,
    ) -> Reason | None:
        """R1 (``memory_region_access_valid``): None when the access is allowed.

        The device's own veto comes first, then alignment, then size; ``valid_min`` is not
        looked at while ``valid_max`` is 0.
        """
        if contract.accepts is not None and not contract.accepts(offset, size, is_write):
            return Reason.REJECTED
        veto = contract.accepts_attrs
        if veto is not None and not veto(offset, size, is_write, attrs):
            return Reason.REJECTED
        if not contract.valid_unaligned and offset & (size - 1):
            return Reason.UNALIGNED
        if contract.valid_max and not contract.valid_min <= size <= contract.valid_max:
            return Reason.INVALID_SIZE
        return None

    def refused_value(self, size: int) -> int:
        """R2 (``memory_region_dispatch_read``): what a refused read of ``size`` bytes gives."""
        return 0

    def swallowed(self, region: MemoryRegion, offset: int, size: int, value: int) -> bool:
        """R2 (``memory_region_dispatch_write_eventfds``): an exact match of address and size,
        and of the data where the eventfd asks for it, keeps the write from the device. One of
        size 0 matches any write at its address (``memory_region_ioeventfd_equal``)."""
        return any(
            fd.addr == offset
            and (fd.size == 0 or (fd.size == size and fd.data in (None, value)))
            for fd in region.ioeventfds
        )

    def port_root_value(self, size: int) -> int:
        """R11 (``unassigned_io_read``): a port nobody claims reads all-ones, with result OK."""
        return (1 << size * 8) - 1

    def pieces(self, contract: Contract, size: int, big: bool) -> tuple[Piece, ...]:
        """R3 (``access_with_adjusted_size``): the calls an accepted access is made of.

        ``impl_unaligned`` plays no part, though QEMU's documentation says it does, and a
        widened piece is done at the unrounded address.
        """
        return _split(size, contract.impl_min, contract.impl_max, big)

    def guarded(self, region: MemoryRegion) -> bool:
        """R4: whether an access to ``region`` engages its owner: not where the device opted
        out, and never for memory, ROM devices and read-only regions."""
        return (
            self.reentrancy_guard
            and region.guarded
            and not region.readonly
            and not region.is_ram
            and region.kind is not RegionKind.ROM_DEVICE
        )

    def blocked(self, engaged: bool) -> bool:
        """R4 (``access_with_adjusted_size``): whether a device already in I/O is refused."""
        return self.reentrancy_guard and engaged

    def big(self, contract: Contract, target_big: bool) -> bool:
        """R5 (``memory_region_big_endian``): the order in which the bytes of a device's value
        stand in the caller's buffer."""
        return contract.big(target_big)

    def chunk(self, contract: Contract, length: int, offset: int) -> int:
        """R6 (``memory_access_size``): bytes of the next dispatch, ``length`` > 0 remaining.

        The largest power of two within ``valid_max`` (4 where that is 0), the remaining
        length, and, unless ``impl_unaligned``, the alignment of the offset in the region.
        """
        return _chunk(
            length if length < 64 else 64, offset & 63, contract.valid_max,
            contract.impl_unaligned,
        )

    def region_offset(self, section: MemoryRegionSection, addr: int) -> int:
        """R7: where in its region an address of ``section`` lies; behind an alias the section
        starts somewhere inside the region."""
        return addr - section.start + section.offset

    def clamp(
        self, section: MemoryRegionSection, addr: int, length: int, page_bits: int = 12
    ) -> int:
        """R7 (``address_space_translate_internal``): bytes of ``length`` that are dispatched
        with this address. Only RAM is clamped: an access to a device may run over its end."""
        if not section.region.is_ram:
            return length
        end = section.start + section.size
        if (section.start | end) & ((1 << page_bits) - 1):
            end = self.dispatch_end(section, addr, page_bits)
        return length if length <= end - addr else end - addr

    def dispatch_end(self, section: MemoryRegionSection, addr: int, page_bits: int) -> int:
        """R7 (``flatview_add_to_dispatch``): where the part of ``section`` ends that ``addr``
        is dispatched with. A section is cut into a first part up to a page boundary, all its
        whole pages, and a last part. Memory nobody claims never ends."""
        if not section.assigned:
            return MAX_SIZE
        page = 1 << page_bits
        end = section.start + section.size
        first = -(-section.start // page) * page
        last = end // page * page
        if addr < first:
            return min(first, end)
        return last if addr < last else end

    def rom_writable(self, region: MemoryRegion) -> bool:
        """R12 (``address_space_write_rom_internal``): whether loading firmware writes to it."""
        if self.rom_write_by_kind:
            return region.is_ram or (region.kind is RegionKind.ROM_DEVICE and region.romd)
        return self.direct_read(region)

    def combine(self, result: int, piece: int) -> int:
        """R8 (``flatview_read_continue``): results are ORed and the loop goes on."""
        return result | piece

    def goes_on(self, result: int) -> bool:
        """R8: whether the loop goes on with the next bytes after ``result``; C always does."""
        return True

    def direct_read(self, region: MemoryRegion) -> bool:
        """R9 (``memory_access_is_direct``): whether a read copies memory."""
        if region.kind is RegionKind.ROM_DEVICE:
            return region.romd
        return region.is_ram and region.kind is not RegionKind.RAM_DEVICE

    def direct_write(self, region: MemoryRegion, attrs: MemTxAttrs) -> bool:
        """R9: whether a write copies memory. The region's own ``readonly`` counts, never the
        section's: through a read-only alias RAM is written all the same. A debug write goes
        to ROM as well."""
        if attrs.debug and self.debug_writes_rom:
            return self.direct_read(region)
        return (
            region.is_ram and region.kind is not RegionKind.RAM_DEVICE and not region.readonly
        )

    def allowed(self, region: MemoryRegion, attrs: MemTxAttrs) -> bool:
        """R8 (``flatview_access_allowed``, QEMU 10.0.2 ``system/physmem.c:2904``): a RAM-only
        transaction may touch nothing else. Nothing that a host can drive sets that attribute."""
        return not attrs.memory or region.is_ram


_OLD: dict[str, bool] = {
    "bounce_budget": False, "cached_slow_relative": True, "rom_write_by_kind": True,
}
RULES_7_2_UNGUARDED = Rules("7.2.0", reentrancy_guard=False, debug_writes_rom=False, **_OLD)
RULES_7_2 = Rules("7.2", unguarded_releases=True, debug_writes_rom=False, **_OLD)
RULES_8_1 = Rules("8.1", debug_writes_rom=False, **_OLD)
RULES_9_0 = replace(RULES_8_1, name="9.0", cached_slow_relative=False)
RULES_9_2 = replace(RULES_9_0, name="9.2", bounce_budget=True)
RULES_10_0 = Rules("10.0")
RULES_LATEST = Rules("11.1", ports_single_dispatch=True)


def rules_for(version: tuple[int, ...]) -> Rules:
    """The rule set of a QEMU version, ``(10, 0, 2)`` for example.

    Measured on 7.2.22, 10.0.2 and 11.1.3; where a rule changed between those, by the release
    that QEMU's history names.
    """
    if version < (7, 2, 6) or (8,) <= version < (8, 1):
        return RULES_7_2_UNGUARDED
    since = (
        ((8,), RULES_7_2), ((9,), RULES_8_1), ((9, 2), RULES_9_0), ((10,), RULES_9_2),
        ((11,), RULES_10_0),
    )
    return next((rules for end, rules in since if version < end), RULES_LATEST)
