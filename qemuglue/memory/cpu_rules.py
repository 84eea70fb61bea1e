"""The rules of an access by a guest's CPU, one method each, as ``rules`` has those of the host.

=== ==========================================================================================
C1  The map is looked up once a page, at the page's first byte. A page that does not belong to
    one section as a whole is reached through a *subpage* container (R16).
C2  RAM, RAM devices and ROM devices in ROMD mode are loaded from memory directly.
C3  Stores go to memory directly only in RAM. Where the *section* is read-only they vanish
    without any result; the host's path asks the region instead (R9). A ROM device is called.
C4  An access over the end of a page is done in parts, each by its own page's section.
C5  Everything else is a dispatch. An aligned access is one dispatch of the whole size, and
    ``valid_max`` does not cut it as R6 would. For an unaligned one see ``CpuRules.pieces``.
C6  The subpage container accepts what ``access_valid`` (R13) accepts, and then does a range
    read or write of up to 8 bytes (R6, R8). A read that fails gives 0.
C7  A dispatch that fails is told to the CPU. Where that raises an exception, nothing further
    of this access is done; where it does not (x86), refused bytes are 0 and the rest goes on.
C8  A device that is given wider pieces than the dispatch has bytes (``impl_min``, R3) lets more
    bytes through than were asked for: they end up in their neighbours' place, in the device as
    in the guest's register. The host's path cuts them off.
C9  A store to memory marks it dirty for display and migration, whoever logs the region; the
    host's path marks it for those who do (R19).
=== ==========================================================================================

Source: QEMU ``accel/tcg/cputlb.c`` (``tlb_set_page_full``, the load and store helpers) and
``system/physmem.c`` (the subpage). Real QEMU shows all of it on x86_64 and aarch64
(``tests/qemu/test_cpu_path_real.py``) but C9, a failing device in a shared page (C6), 7.2's
``odd_memory``, and IOMMUs. A ``CpuRules`` object is data for one range of versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qemuglue.memory import dirty
from qemuglue.memory.attrs import OK, MemTxAttrs
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.region import MASK64, MemoryRegion, RegionKind

if TYPE_CHECKING:
    from qemuglue.memory.address_space import AddressSpace, ByteOrder

#: (address, size) of a part of an access.
Part = tuple[int, int]


@dataclass(frozen=True)
class CpuRules:
    """The rules as QEMU has them since 8.1; the fields say what older ones do otherwise.

    Measured on 7.2.22, 10.0.2 and 11.1.3. That the change came with 8.1 is told by the dates
    of the commits only (190aba803fbc and f7eaf9d702ef, August 2023); nothing between 7.2 and
    10.0 was run.
    """

    name: str = "8.1"
    #: An unaligned load of a device, and every load over the end of a page, is two aligned
    #: loads of the whole size that are put together (7.2).
    loads_combine: bool = False
    #: Such a store is done byte by byte (7.2).
    stores_bytewise: bool = False
    #: Each part looks its page up when its turn comes, so that a part may see the map as an
    #: earlier one has changed it (7.2). Later versions look both pages up first.
    lazy_lookup: bool = False
    #: A load that was not put together leaves in the guest's register all that the device
    #: gave, up to 8 bytes (7.2).
    loads_spill: bool = False
    #: Memory may lie at an odd offset in its page (7.2). Later versions abort on such a page.
    odd_memory: bool = False

    def shared(self, section: MemoryRegionSection, page: int, page_size: int) -> bool:
        """C1 (``flatview_add_to_dispatch``): whether the page at ``page`` is more than
        ``section``, which answers at its first byte; holes count."""
        return section.start > page or section.last < page + page_size - 1

    def odd(self, section: MemoryRegionSection, page_size: int) -> bool:
        """C1 (``tlb_set_page_full``): whether a page of ``section`` cannot be told apart.

        The TLB keeps one number for a page: its offset in the region, with the number of the
        section in the low bits. Where the two lie at odds (a region of a page and more that
        does not start at a page, say) the sum names another section, or none: QEMU answers
        from there, or aborts.
        """
        at_odds = bool((section.offset - section.start) % page_size)
        return at_odds and not (self.odd_memory and self.direct_store(section))

    def direct_load(self, section: MemoryRegionSection) -> bool:
        """C2 (``tlb_set_page_full``): whether loads copy memory."""
        region = section.region
        if region.kind is RegionKind.ROM_DEVICE:
            return region.romd
        return region.is_ram

    def direct_store(self, section: MemoryRegionSection) -> bool:
        """C3: whether stores go to memory, or to nowhere."""
        return section.region.is_ram

    def discards(self, section: MemoryRegionSection) -> bool:
        """C3 (``TLB_DISCARD_WRITE``): whether stores to memory vanish. The section's flag
        counts, so a read-only alias protects RAM, and ROM is protected by its own."""
        return section.readonly

    def loads(self, addr: int, size: int, page_size: int, direct: bool) -> tuple[Part, ...]:
        """C4, C5 (7.2: ``load_helper``): what a load is made of, none of it over a page's
        end. ``direct`` is the first page's. The parts may cover more than was asked for."""
        crossing = addr % page_size + size > page_size
        if not self.loads_combine:
            return self._split(addr, size, page_size)
        if addr % size == 0 or (direct and not crossing):
            return ((addr, size),)
        first = addr & -size
        return (first, size), ((first + size) & MASK64, size)

    def stores(self, addr: int, size: int, page_size: int, direct: bool) -> tuple[Part, ...]:
        """C4, C5 (7.2: ``store_helper_unaligned``): what a store is made of."""
        crossing = addr % page_size + size > page_size
        if not self.stores_bytewise:
            return self._split(addr, size, page_size)
        if addr % size == 0 or (direct and not crossing):
            return ((addr, size),)
        return tuple(((addr + i) & MASK64, 1) for i in range(size))

    @staticmethod
    def _split(addr: int, size: int, page_size: int) -> tuple[Part, ...]:
        """At the end of the page (``mmu_lookup``)."""
        here = page_size - addr % page_size
        if here >= size:
            return ((addr, size),)
        return (addr, here), ((addr + here) & MASK64, size - here)

    def pieces(self, addr: int, size: int) -> tuple[Part, ...]:
        """C5 (``int_ld_mmio_beN``, ``int_st_mmio_leN``): the dispatches of one part.

        Each is the largest power of two up to 8 that divides both the address and what is
        left: 8 bytes at 4 are 4 + 4, but 8 bytes at 2 are 2 + 2 + 2 + 2 and 8 at 1 are bytes,
        since then the rest is odd. Parts are aligned already in versions before.
        """
        found: list[Part] = []
        while size:
            bits = size | addr | 8
            n = bits & -bits
            found.append((addr, n))
            addr = (addr + n) & MASK64
            size -= n
        return tuple(found)

    def subpage_valid(
        self, space: AddressSpace, view: FlatView, addr: int, size: int, is_write: bool,
        attrs: MemTxAttrs,
    ) -> bool:
        """C6 (``subpage_accepts``): whether the flat view allows the access."""
        return space.access_valid_in(view, addr, size, is_write, attrs)

    def refused_bytes(self, result: int, data: bytes) -> bytes:
        """C6 (``subpage_read``): what a subpage gives of a range read with ``result``."""
        return bytes(len(data)) if result != OK else data

    def stops(self, faults: bool) -> bool:
        """C7 (``io_failed``): whether a failure ends the access."""
        return faults

    def swapped(self, value: int, size: int, swap: bool) -> int:
        """C8 (``adjust_endianness``): a value in the other byte order. Only turning it round
        cuts it to its size, and a single byte is not turned round."""
        if not swap or size == 1:
            return value
        return int.from_bytes((value & ((1 << size * 8) - 1)).to_bytes(size, "big"), "little")

    def appended(self, before: int, value: int, size: int) -> int:
        """C8 (``int_ld_mmio_beN``): ``value`` behind what was loaded, both big-endian. What it
        has beyond ``size`` is laid over the bytes before."""
        return (before << size * 8 | value) & MASK64

    def joined(self, first: int, second: int, size: int, skip: int, order: ByteOrder) -> int:
        """C5, C8 (7.2: ``load_helper``): ``size`` bytes of two aligned loads, from byte ``skip``
        of the first on."""
        shift, rest = skip * 8, (size - skip) * 8
        both = first << shift | second >> rest if order == "big" else (
            first >> shift | second << rest)
        return both & ((1 << size * 8) - 1)

    def carried(self, data: bytes, done: int, size: int) -> bytes:
        """C8 (``int_st_mmio_leN``): the bytes that a dispatch of ``size`` is given of those to
        be stored, ``done`` of them before: all that are left."""
        return data[done:]

    def dirty_mask(self, region: MemoryRegion) -> int:
        """C9 (``notdirty_write``): for whom a store marks memory dirty."""
        return 1 << dirty.VGA | 1 << dirty.MIGRATION


CPU_RULES_7_2: Final = CpuRules(
    "7.2", loads_combine=True, stores_bytewise=True, lazy_lookup=True, loads_spill=True,
    odd_memory=True,
)
CPU_RULES_8_1: Final = CpuRules("8.1")


def cpu_rules_for(version: tuple[int, ...]) -> CpuRules:
    """The rules of the CPU's path in a QEMU version, ``(10, 0, 2)`` for example."""
    return CPU_RULES_7_2 if version < (8, 1) else CPU_RULES_8_1
