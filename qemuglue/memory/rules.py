"""The rules of an access, one method each, so that a rule can be read, tested and replaced.

``R`` numbers are the project's names for them; QEMU's functions are named in each method.
A ``Rules`` object is data for one range of QEMU versions: ``rules_for(version)``. A planted
defect (``campaign.defects``) is a subclass with one method wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from qemuglue.memory.attrs import MemTxAttrs
from qemuglue.memory.contract import Contract, Reason
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MemoryRegion, RegionKind


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

    def refusal(
        self, contract: Contract, offset: int, size: int, is_write: bool
    ) -> Reason | None:
        """R1 (``memory_region_access_valid``): None when the access is allowed.

        The device's own veto comes first, then alignment, then size; ``valid_min`` is not
        looked at while ``valid_max`` is 0.
        """
        if contract.accepts is not None and not contract.accepts(offset, size, is_write):
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

    def clamp(self, section: MemoryRegionSection, addr: int, length: int) -> int:
        """R7 (``address_space_translate_internal``): bytes of ``length`` that belong to this
        section. Only RAM is clamped: an access to a device may run over its end."""
        if section.region.is_ram:
            return min(length, section.start + section.size - addr)
        return length

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
        """R8 (``flatview_access_allowed``): a RAM-only transaction may touch nothing else."""
        return not attrs.memory or region.is_ram


RULES_7_2_UNGUARDED = Rules("7.2.0", reentrancy_guard=False, debug_writes_rom=False)
RULES_7_2 = Rules("7.2", unguarded_releases=True, debug_writes_rom=False)
RULES_8_1 = Rules("8.1", debug_writes_rom=False)
RULES_10_0 = Rules("10.0")
RULES_LATEST = Rules("11.1", ports_single_dispatch=True)


def rules_for(version: tuple[int, ...]) -> Rules:
    """The rule set of a QEMU version, ``(10, 0, 2)`` for example."""
    if version < (7, 2, 6) or (8,) <= version < (8, 1):
        return RULES_7_2_UNGUARDED
    if version < (8,):
        return RULES_7_2
    if version < (10,):
        return RULES_8_1
    if version < (11,):
        return RULES_10_0
    return RULES_LATEST
