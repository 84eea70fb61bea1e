"""CpuPath: how an access by a guest's CPU gets into the memory model.

QEMU has two ways in. ``AddressSpace`` is the host's (DMA, qtest, ``xp``): byte ranges, cut by
what the device declares valid. A CPU that TCG runs goes through its TLB instead
(``accel/tcg/cputlb.c``), page by page, and by rules of its own:

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
=== ==========================================================================================

Addresses are physical, as if the guest mapped all memory one to one. What the CPU itself checks
before (permissions, alignment that the architecture demands) is not here: AArch64 with its MMU
off, for example, traps every unaligned access to a device since QEMU 8.1 at the latest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qemuglue.errors import ModelError
from qemuglue.memory.address_space import MASK64, AddressSpace, ByteOrder
from qemuglue.memory.attrs import OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.backing import Backing
from qemuglue.memory.contract import Contract
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.region import MemoryRegion, RegionKind

#: (address, size) of a part of an access.
Part = tuple[int, int]

SIZES: Final = (1, 2, 4, 8)

#: Whether a failed dispatch raises an exception in the CPU (``do_transaction_failed`` of the
#: target's ``TCGCPUOps``). Measured on x86_64 and aarch64; arm shares aarch64's function, i386
#: x86_64's lack of one. Elsewhere it can depend on the CPU model, so there it is the caller's
#: to say. Boards with ``ignore_memory_transaction_failures`` (many old ARM ones) never fault.
FAULTS: Final = {"x86_64": False, "i386": False, "aarch64": True, "arm": True}


@dataclass(frozen=True, slots=True)
class CpuFailure:
    """A dispatch that failed, as QEMU tells the CPU of it. ``addr`` is where the failed piece
    began, which need not be where the access did; ``result`` holds MemTxResult bits."""

    addr: int
    size: int
    is_write: bool
    result: int


@dataclass(frozen=True, slots=True)
class CpuOutcome:
    """What an access came to.

    ``value`` is what a load gives the guest, in the order it was loaded in; None for a store
    and for a load that raised an exception. ``failures`` are all dispatches that failed, in
    order; with ``faulted`` the last of them raised an exception and ended the access.
    """

    value: int | None
    failures: tuple[CpuFailure, ...] = ()
    faulted: bool = False

    @property
    def fault(self) -> CpuFailure | None:
        """The failure that raised the exception."""
        return self.failures[-1] if self.faulted else None

    @property
    def result(self) -> int:
        """The MemTxResult bits of all failures."""
        result = OK
        for failure in self.failures:
            result |= failure.result
        return result


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

    def subpage_valid(self, space: AddressSpace, addr: int, size: int, is_write: bool) -> bool:
        """C6 (``subpage_accepts``): whether the flat view allows the access."""
        return access_valid(space, addr, size, is_write)

    def refused_bytes(self, result: int, data: bytes) -> bytes:
        """C6 (``subpage_read``): what a subpage gives of a range read with ``result``."""
        return bytes(len(data)) if result != OK else data

    def stops(self, faults: bool) -> bool:
        """C7 (``io_failed``): whether a failure ends the access."""
        return faults


CPU_RULES_7_2: Final = CpuRules(
    "7.2", loads_combine=True, stores_bytewise=True, lazy_lookup=True, odd_memory=True
)
CPU_RULES_8_1: Final = CpuRules("8.1")


def cpu_rules_for(version: tuple[int, ...]) -> CpuRules:
    """The rules of the CPU's path in a QEMU version, ``(10, 0, 2)`` for example."""
    return CPU_RULES_7_2 if version < (8, 1) else CPU_RULES_8_1


def access_valid(
    space: AddressSpace, addr: int, size: int, is_write: bool, attrs: MemTxAttrs = UNSPECIFIED
) -> bool:
    """R13 (``flatview_access_valid``): steps are as long as the *address* allows, while what
    is judged is the offset in the region. A refusal is told to the space's observer."""
    rules, at = space.rules, 0
    while at < size:
        section, offset, n = space.translate((addr + at) & MASK64, size - at)
        region = section.region
        direct = (
            rules.direct_write(region, attrs) if is_write else rules.direct_read(region)
        )
        if not direct:
            n = rules.chunk(region.contract, n, addr + at)
            reason = rules.refusal(region.contract, offset, n, is_write)
            if reason is not None:
                if space.observer is not None:
                    space.observer.invalid(region, offset, n, is_write, reason)
                return False
        at += n
    return True


class SubpageOps:
    """The callbacks of a page that several sections share (``subpage_ops``).

    ``page`` is the address of its first byte. Values are in the target's order.
    """

    def __init__(self, space: AddressSpace, rules: CpuRules, page: int) -> None:
        self.space = space
        self.rules = rules
        self.page = page
        self.order: ByteOrder = "big" if space.target_big else "little"

    def accepts(self, offset: int, size: int, is_write: bool) -> bool:
        """``valid.accepts``. Attributes make a difference to debugging accesses only."""
        return self.rules.subpage_valid(self.space, self.page + offset, size, is_write)

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        result, data = self.space.read(self.page + offset, size, attrs)
        return result, int.from_bytes(self.rules.refused_bytes(result, data), self.order)

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        return self.space.write(self.page + offset, value.to_bytes(size, self.order), attrs)


class _Page:
    """What the TLB knows of a page. ``delta`` added to an address gives the region's offset."""

    __slots__ = ("delta", "discards", "load_direct", "region", "store_direct")

    def __init__(
        self, region: MemoryRegion, delta: int, load_direct: bool = False,
        store_direct: bool = False, discards: bool = False,
    ) -> None:
        self.region = region
        self.delta = delta
        self.load_direct = load_direct
        self.store_direct = store_direct
        self.discards = discards


class _Fault(Exception):
    """Ends an access; never leaves this module."""


class CpuPath:
    """The accesses of one CPU to ``space``.

    ``page_bits`` is the target's page size for this machine (``TARGET_PAGE_BITS``: 12 on x86
    and on most ARM machines, 10 on some old ones). ``faults`` says whether a failed dispatch
    raises an exception, see ``FAULTS``. The map is looked up again whenever the space has a
    new view, as a commit flushes every TLB.
    """

    def __init__(
        self, space: AddressSpace, *, rules: CpuRules = CPU_RULES_8_1, page_bits: int = 12,
        faults: bool = False,
    ) -> None:
        if not 3 <= page_bits < 64:
            raise ModelError(f"pages are 2^3 to 2^63 bytes, not 2^{page_bits}")
        self.space = space
        self.rules = rules
        self.page_size = 1 << page_bits
        self.faults = faults
        self._view: FlatView | None = None
        self._pages: dict[int, _Page] = {}

    def load(
        self, addr: int, size: int, order: ByteOrder, attrs: MemTxAttrs = UNSPECIFIED
    ) -> CpuOutcome:
        """A load of 1, 2, 4 or 8 bytes at 0 to 2^64-1; the value is in ``order``.

        A failure is part of the outcome. Raises ModelError for another size or address, where
        memory has no backing or stands behind an IOMMU, and in a page that QEMU's TLB cannot
        hold (``CpuRules.odd``).
        """
        self._check(addr, size)
        failures: list[CpuFailure] = []
        parts = self.rules.loads(addr, size, self.page_size, self._page(addr).load_direct)
        pages = None if self.rules.lazy_lookup else [self._page(at) for at, _ in parts]
        data = b""
        try:
            for number, (at, n) in enumerate(parts):
                page = self._page(at) if pages is None else pages[number]
                data += self._load(page, at, n, attrs, failures)
        except _Fault:
            return CpuOutcome(None, tuple(failures), True)
        skip = (addr - parts[0][0]) & MASK64
        return CpuOutcome(int.from_bytes(data[skip : skip + size], order), tuple(failures))

    def store(
        self, addr: int, value: int, size: int, order: ByteOrder,
        attrs: MemTxAttrs = UNSPECIFIED,
    ) -> CpuOutcome:
        """A store of 1, 2, 4 or 8 bytes: the low ones of ``value``, laid out in ``order``.

        What was done before a fault stays done. Raises as ``load`` does.
        """
        self._check(addr, size)
        data = (value & ((1 << size * 8) - 1)).to_bytes(size, order)
        failures: list[CpuFailure] = []
        parts = self.rules.stores(addr, size, self.page_size, self._page(addr).store_direct)
        pages = None if self.rules.lazy_lookup else [self._page(at) for at, _ in parts]
        try:
            for number, (at, n) in enumerate(parts):
                page = self._page(at) if pages is None else pages[number]
                skip = (at - addr) & MASK64
                self._store(page, at, data[skip : skip + n], attrs, failures)
        except _Fault:
            return CpuOutcome(None, tuple(failures), True)
        return CpuOutcome(None, tuple(failures))

    # -- pages -------------------------------------------------------------------------------

    def shares_page(self, addr: int) -> bool:
        """Whether ``addr`` lies in a page that several sections share."""
        return isinstance(self._page(addr).region.ops, SubpageOps)

    def _page(self, addr: int) -> _Page:
        """C1. What the TLB would hold for the page of ``addr``."""
        view = self.space.view
        if view is not self._view:
            self._view = view
            self._pages.clear()
        base = addr & -self.page_size
        page = self._pages.get(base)
        if page is None:
            page = self._pages[base] = self._look_up(view, base)
        return page

    def _look_up(self, view: FlatView, base: int) -> _Page:
        rules, section = self.rules, view.lookup(base)
        if rules.shared(section, base, self.page_size):
            return _Page(self._subpage(base), -base)
        region = section.region
        if region.kind is RegionKind.IOMMU:
            raise ModelError(f"{base:#x} stands behind the IOMMU {region.name!r}")
        if rules.odd(section, self.page_size):
            raise ModelError(
                f"QEMU's TLB cannot hold the page {base:#x} of {region.name!r}: its offset "
                f"{base - section.start + section.offset:#x} is not a multiple of the page"
            )
        store_direct = rules.direct_store(section)
        return _Page(
            region, section.offset - section.start, rules.direct_load(section), store_direct,
            store_direct and rules.discards(section),
        )

    def _subpage(self, base: int) -> MemoryRegion:
        """``subpage_init``. It has no owner, so nothing guards it against re-entry."""
        ops = SubpageOps(self.space, self.rules, base)
        contract = Contract(
            valid_min=1, valid_max=8, impl_min=1, impl_max=8, accepts=ops.accepts
        )
        return MemoryRegion.io("", self.page_size, contract, ops)

    # -- parts -------------------------------------------------------------------------------

    def _load(
        self, page: _Page, addr: int, size: int, attrs: MemTxAttrs, failures: list[CpuFailure]
    ) -> bytes:
        """The bytes of a part that does not leave ``page``."""
        region = page.region
        if page.load_direct:
            return _backing(region, addr + page.delta, size).read(addr + page.delta, size)
        order = self._device_order(region)
        data = b""
        for at, n in self.rules.pieces(addr, size):
            result, value = self.space.dispatch_read(region, at + page.delta, n, attrs)
            if result != OK:
                self._failed(CpuFailure(at, n, False, result), failures)
            data += value.to_bytes(n, order)
        return data

    def _store(
        self, page: _Page, addr: int, data: bytes, attrs: MemTxAttrs,
        failures: list[CpuFailure],
    ) -> None:
        """Put bytes where they do not leave ``page``."""
        region = page.region
        if page.store_direct:
            if not page.discards:
                offset = addr + page.delta
                _backing(region, offset, len(data)).write(offset, data)
            return
        order = self._device_order(region)
        for at, n in self.rules.pieces(addr, len(data)):
            skip = (at - addr) & MASK64
            value = int.from_bytes(data[skip : skip + n], order)
            result = self.space.dispatch_write(region, at + page.delta, value, n, attrs)
            if result != OK:
                self._failed(CpuFailure(at, n, True, result), failures)

    def _failed(self, failure: CpuFailure, failures: list[CpuFailure]) -> None:
        """C7."""
        failures.append(failure)
        if self.rules.stops(self.faults):
            raise _Fault

    def _device_order(self, region: MemoryRegion) -> ByteOrder:
        """R5: the order in which a device's value lies in memory."""
        big = self.space.rules.big(region.contract, self.space.target_big)
        return "big" if big else "little"

    @staticmethod
    def _check(addr: int, size: int) -> None:
        if size not in SIZES:
            raise ModelError(f"a CPU's access has 1, 2, 4 or 8 bytes here, not {size}")
        if not 0 <= addr <= MASK64:
            raise ModelError(f"address {addr:#x} is not in 0..2^64-1")


def _backing(region: MemoryRegion, offset: int, size: int) -> Backing:
    backing = region.backing
    if backing is None or not 0 <= offset <= len(backing) - size:
        raise ModelError(f"region {region.name!r} has no {size} bytes at {offset:#x}")
    return backing
