"""CpuPath: how an access by a guest's CPU gets into the memory model.

QEMU has two ways in. ``AddressSpace`` is the host's (DMA, qtest, ``xp``): byte ranges, cut by
what the device declares valid. A CPU that TCG runs goes through its TLB instead
(``accel/tcg/cputlb.c``), page by page, and by rules of its own, which ``cpu_rules`` lists.

Addresses are physical, as if the guest mapped all memory one to one. What the CPU itself checks
before (permissions, alignment that the architecture demands) is not here: AArch64 with its MMU
off, for example, traps every unaligned access on 10.0.2, and none on 7.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qemuglue.errors import ModelError
from qemuglue.memory.address_space import AddressSpace, ByteOrder
from qemuglue.memory.attrs import OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.backing import Backing
from qemuglue.memory.contract import Contract
from qemuglue.memory.cpu_rules import CPU_RULES_7_2, CPU_RULES_8_1, CpuRules, Part, cpu_rules_for
from qemuglue.memory.flatview import UNASSIGNED, FlatView, MemoryRegionSection
from qemuglue.memory.iommu import MAX_NESTING, IommuAccess
from qemuglue.memory.rcu import RcuGuard
from qemuglue.memory.region import MASK64, MemoryRegion, RegionKind

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
    and for a load that raised an exception. On 7.2 it can be wider than the load (C8).
    ``failures`` are all dispatches that failed, in order; with ``faulted`` the last of them
    raised an exception and ended the access.
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


__all__ = [
    "CPU_RULES_7_2", "CPU_RULES_8_1", "FAULTS", "CpuFailure", "CpuOutcome", "CpuPath", "CpuRules",
    "SubpageOps", "cpu_rules_for",
]


class SubpageOps:
    """The callbacks of a page that several sections share (``subpage_ops``).

    ``page`` is the address of its first byte in ``view``. Values are in the target's order.
    """

    def __init__(
        self, space: AddressSpace, rules: CpuRules, view: FlatView, page: int
    ) -> None:
        self.space = space
        self.rules = rules
        self.view = view
        self.page = page
        self.order: ByteOrder = "big" if space.target_big else "little"

    def accepts(self, offset: int, size: int, is_write: bool, attrs: MemTxAttrs) -> bool:
        """``valid.accepts``."""
        return self.rules.subpage_valid(
            self.space, self.view, self.page + offset, size, is_write, attrs)

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        buffer = bytearray(size)
        result = self.space.read_view(self.view, self.page + offset, buffer, attrs)
        data = self.rules.refused_bytes(result, bytes(buffer))
        return result, int.from_bytes(data, self.order)

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        data = value.to_bytes(size, self.order)
        return self.space.write_view(self.view, self.page + offset, data, attrs)


@dataclass(slots=True)
class _Page:
    """What the TLB knows of a page. ``delta`` added to an address gives the region's offset;
    ``perm`` is what IOMMUs before it allow."""

    region: MemoryRegion
    delta: int
    load_direct: bool = False
    store_direct: bool = False
    discards: bool = False
    perm: IommuAccess = IommuAccess.RW


class _Fault(Exception):
    """Ends an access; never leaves this module."""


class CpuPath:
    """The accesses of one CPU to ``space``.

    ``page_bits`` is the target's page size for this machine (``TARGET_PAGE_BITS``: 12 on x86
    and on most ARM machines, 10 on some old ones), by default the topology's. ``faults`` says
    whether a failed dispatch raises an exception, see ``FAULTS``. The map is looked up again
    whenever the space has a new view, as a commit flushes every TLB; what an IOMMU says is
    asked for at every access. An access is an RCU read section.
    """

    def __init__(
        self, space: AddressSpace, *, rules: CpuRules = CPU_RULES_8_1,
        page_bits: int | None = None, faults: bool = False,
    ) -> None:
        bits = space.topology.page_bits if page_bits is None else page_bits
        if not 3 <= bits < 64:
            raise ModelError(f"pages are 2^3 to 2^63 bytes, not 2^{bits}")
        self.space = space
        self.rules = rules
        self.page_size = 1 << bits
        self.faults = faults
        self._view: FlatView | None = None
        self._pages: dict[int, _Page] = {}

    def load(
        self, addr: int, size: int, order: ByteOrder, attrs: MemTxAttrs = UNSPECIFIED
    ) -> CpuOutcome:
        """A load of 1, 2, 4 or 8 bytes at 0 to 2^64-1; the value is in ``order``.

        A failure is part of the outcome. Raises ModelError for another size or address, where
        memory has no backing, where an IOMMU lets the other direction through only, and in a
        page that QEMU's TLB cannot hold (``CpuRules.odd``).
        """
        self._check(addr, size)
        failures: list[CpuFailure] = []
        load = self._load_aligned if self.rules.loads_combine else self._load_pieces
        with RcuGuard(self.space.topology.rcu):
            self._catch_up()
            try:
                return CpuOutcome(load(addr, size, order, attrs, failures), tuple(failures))
            except _Fault:
                return CpuOutcome(None, tuple(failures), True)

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
        with RcuGuard(self.space.topology.rcu):
            self._catch_up()
            first = self._page(addr, attrs)
            parts = self.rules.stores(addr, size, self.page_size, first.store_direct)
            pages = self._pages_of(parts, attrs)
            # Only what is longer than two bytes goes on with the rest of itself (C8).
            whole = not self.rules.stores_bytewise and (size > 2 or len(parts) == 1)
            try:
                for number, (at, n) in enumerate(parts):
                    page = self._page(at, attrs) if pages is None else pages[number]
                    skip = (at - addr) & MASK64
                    rest = data[skip:] if whole else data[skip : skip + n]
                    self._store(page, at, rest, n, attrs, failures)
            except _Fault:
                return CpuOutcome(None, tuple(failures), True)
        return CpuOutcome(None, tuple(failures))

    # -- loads -------------------------------------------------------------------------------

    def _load_pieces(
        self, addr: int, size: int, order: ByteOrder, attrs: MemTxAttrs,
        failures: list[CpuFailure],
    ) -> int:
        """Since 8.1: the bytes are lined up in memory's order, that is big-endian."""
        rules = self.rules
        parts = rules.loads(addr, size, self.page_size, self._page(addr, attrs).load_direct)
        pages = self._pages_of(parts, attrs)
        value = 0
        for number, (at, n) in enumerate(parts):
            page = self._page(at, attrs) if pages is None else pages[number]
            if page.load_direct:
                value = rules.appended(value, self._memory(page, at, n, "big"), n)
                continue
            for piece, width in rules.pieces(at, n):
                part = self._dispatch_read(page, piece, width, "big", attrs, failures)
                if size == 2 and len(parts) == 2:
                    part &= 0xFF
                value = rules.appended(value, part, width)
        value &= (1 << size * 8) - 1
        return value if order == "big" else int.from_bytes(value.to_bytes(size, "big"), "little")

    def _load_aligned(
        self, addr: int, size: int, order: ByteOrder, attrs: MemTxAttrs,
        failures: list[CpuFailure],
    ) -> int:
        """7.2: one load, or two aligned ones put together, in the guest's order."""
        rules = self.rules
        parts = rules.loads(addr, size, self.page_size, self._page(addr, attrs).load_direct)
        pages = self._pages_of(parts, attrs)
        values: list[int] = []
        for number, (at, n) in enumerate(parts):
            page = self._page(at, attrs) if pages is None else pages[number]
            if page.load_direct:
                values.append(self._memory(page, at, n, order))
            else:
                values.append(self._dispatch_read(page, at, n, order, attrs, failures))
        if len(values) == 1:
            return values[0] if rules.loads_spill else values[0] & ((1 << size * 8) - 1)
        return rules.joined(values[0], values[1], size, (addr - parts[0][0]) & MASK64, order)

    def _memory(self, page: _Page, addr: int, size: int, order: ByteOrder) -> int:
        self._permit(page, IommuAccess.RO, addr)
        offset = addr + page.delta
        return int.from_bytes(_backing(page.region, offset, size).read(offset, size), order)

    def _dispatch_read(
        self, page: _Page, addr: int, size: int, order: ByteOrder, attrs: MemTxAttrs,
        failures: list[CpuFailure],
    ) -> int:
        """One dispatch. The value is in ``order``, and with more bytes than ``size`` where the
        device gave more (C8)."""
        self._permit(page, IommuAccess.RO, addr)
        region, space = page.region, self.space
        big = space.rules.big(region.contract, space.target_big)
        result, value = space.dispatch_read(
            region, addr + page.delta, size, attrs, wide=not big
        )
        if result != OK:
            self._failed(CpuFailure(addr, size, False, result), failures)
        return self.rules.swapped(value, size, big != (order == "big"))

    # -- stores ------------------------------------------------------------------------------

    def _store(
        self, page: _Page, addr: int, data: bytes, size: int, attrs: MemTxAttrs,
        failures: list[CpuFailure],
    ) -> None:
        """Store the first ``size`` bytes of ``data``, none of them beyond ``page``."""
        self._permit(page, IommuAccess.WO, addr)
        region, space, rules = page.region, self.space, self.rules
        if page.store_direct:
            offset = addr + page.delta
            if not page.discards:
                _backing(region, offset, size).write(offset, data[:size])
                if space.topology.dirty.watched:
                    space.topology.dirty.set(region, offset, size, rules.dirty_mask(region))
            return
        big = space.rules.big(region.contract, space.target_big)
        for at, n in rules.pieces(addr, size):
            given = rules.carried(data, (at - addr) & MASK64, n)
            value = rules.swapped(int.from_bytes(given, "little"), n, big)
            if isinstance(region.ops, SubpageOps):
                value &= (1 << n * 8) - 1  # it would be, on the way
            result = space.dispatch_write(region, at + page.delta, value, n, attrs)
            if result != OK:
                self._failed(CpuFailure(at, n, True, result), failures)

    def _failed(self, failure: CpuFailure, failures: list[CpuFailure]) -> None:
        """C7."""
        failures.append(failure)
        if self.rules.stops(self.faults):
            raise _Fault

    # -- pages -------------------------------------------------------------------------------

    def shares_page(self, addr: int) -> bool:
        """Whether ``addr`` lies in a page that several sections share."""
        with RcuGuard(self.space.topology.rcu):
            self._catch_up()
            return isinstance(self._page(addr, UNSPECIFIED).region.ops, SubpageOps)

    def _catch_up(self) -> None:
        """Take the space's present view (``tcg_commit``). Since 8.1 at the latest a CPU gets a
        new one between two accesses only; on 7.2 the next part of an access goes by it."""
        view = self.space.view
        if view is not self._view:
            self._view = view
            self._pages.clear()

    def _pages_of(self, parts: tuple[Part, ...], attrs: MemTxAttrs) -> list[_Page] | None:
        """The pages of all parts, where they are looked up before anything is done."""
        return None if self.rules.lazy_lookup else [self._page(at, attrs) for at, _ in parts]

    def _page(self, addr: int, attrs: MemTxAttrs) -> _Page:
        """C1. What the TLB would hold for the page of ``addr``."""
        if self.rules.lazy_lookup:
            self._catch_up()
        view = self._view
        assert view is not None, "every access begins with the current one"
        base = addr & -self.page_size
        page = self._pages.get(base)
        if page is None:
            section = view.lookup(base)
            if section.region.kind is RegionKind.IOMMU and not self._shared(section, base):
                return self._behind(section, base, attrs)
            page = self._pages[base] = self._look_up(view, base, 0)
        return page

    def _shared(self, section: MemoryRegionSection, base: int) -> bool:
        return self.rules.shared(section, base, self.page_size)

    def _look_up(self, view: FlatView, base: int, moved: int) -> _Page:
        """The page at ``base`` in ``view``, which the CPU sees ``moved`` bytes before."""
        rules, section = self.rules, view.lookup(base)
        if self._shared(section, base):
            return _Page(self._subpage(view, base), moved - base)
        if rules.odd(section, self.page_size):
            raise ModelError(
                f"QEMU's TLB cannot hold the page {base:#x} of {section.region.name!r}: its "
                f"offset {base - section.start + section.offset:#x} is not a multiple of the page"
            )
        store_direct = rules.direct_store(section)
        return _Page(
            section.region, section.offset - section.start + moved, rules.direct_load(section),
            store_direct, store_direct and rules.discards(section),
        )

    def _behind(self, section: MemoryRegionSection, base: int, attrs: MemTxAttrs) -> _Page:
        """C1 (``address_space_translate_for_iotlb``): follow IOMMUs, with no access in mind."""
        addr, perm = base, IommuAccess.RW
        for _ in range(MAX_NESTING):
            region, offset = section.region, addr - section.start + section.offset
            ops = region.iommu_ops
            if ops is None:
                return _Page(UNASSIGNED, 0)
            entry = ops.translate(
                region, offset, IommuAccess.NONE, ops.attrs_to_index(region, attrs))
            perm &= entry.perm
            if not perm:
                return _Page(UNASSIGNED, 0)
            addr = (entry.translated_addr & ~entry.addr_mask | offset & entry.addr_mask) & MASK64
            view = entry.target.view
            section = view.lookup(addr)
            if section.region.kind is not RegionKind.IOMMU or self._shared(section, addr):
                page = self._look_up(view, addr, addr - base)
                page.perm = perm
                return page
        raise ModelError(f"more than {MAX_NESTING} IOMMUs behind each other, at {base:#x}")

    @staticmethod
    def _permit(page: _Page, wanted: IommuAccess, addr: int) -> None:
        if not page.perm & wanted:
            raise ModelError(f"what becomes of this access at {addr:#x}, which only the IOMMU "
                             f"forbids, is not modelled")

    def _subpage(self, view: FlatView, base: int) -> MemoryRegion:
        """``subpage_init``. It has no owner, so nothing guards it against re-entry."""
        ops = SubpageOps(self.space, self.rules, view, base)
        contract = Contract(
            valid_min=1, valid_max=8, impl_min=1, impl_max=8, accepts_attrs=ops.accepts
        )
        return MemoryRegion.io("", self.page_size, contract, ops)

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
