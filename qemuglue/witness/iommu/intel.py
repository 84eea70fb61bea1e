"""QEMU's intel-iommu: what its registers and tables make of a device's addresses.

The caches are modelled as QEMU keeps them, so a translation that the guest forgot to invalidate
is as stale here as there: one context entry a requester, and up to 1024 pages found by requester,
page and level, all forgotten together when there would be more. A page found in the cache is
checked for nothing but its permissions, and a fault is recorded by a walk only.

Scalable mode is not modelled: as soon as it is switched on the device is ``lost``.
Source: ``hw/i386/intel_iommu.c``, 7.2 and 10.0; 11.1 by measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.contract import Contract, Endian
from qemuglue.memory.iommu import IommuAccess, IommuTlbEntry
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.witness.dma.device import Place, Port, When
from qemuglue.witness.iommu import intel_faults as faults
from qemuglue.witness.iommu import intel_registers as reg
from qemuglue.witness.iommu.intel_queue import (
    FUNCTION_MASKS,
    MAX_PAGES_LOG,
    WAIT,
    Act,
    Order,
    decode,
)
from qemuglue.witness.iommu.intel_walk import (
    PASS_THROUGH,
    QUALIFIED,
    Context,
    Fault,
    Features,
    find_context,
    walk,
)
from qemuglue.witness.iommu.tables import (
    PAGE,
    Bindings,
    bits,
    functions,
    nowhere,
    on_bus_zero,
    through,
)

#: Name of the register page.
REGION = "intel_iommu"

#: Pages that the cache holds (``VTD_IOTLB_MAX_SIZE``).
CACHED_PAGES = 1024

#: Versions whose page invalidation keeps 8 bits of the address mask only, so that it forgets
#: more pages than it was asked to. Fixed in 9.1.
NARROW_MASK = ((0,), (9, 1))

#: Before this version a fault in the tables recorded "no PASID", 16 bits of ones, as a PASID.
#: Measured: 7.2.22 and 10.0.2 do, 11.1.3 does not.
NO_PASID_SINCE = (11,)
_NO_PASID = 0xFFFF << 40

#: Where interrupt messages go (``vtd_mem_ir_ops``). No qtest command reaches it, so that its
#: contract cannot be probed.
_MESSAGES = "vtd-ir"
_MESSAGES_CONTRACT = Contract(
    valid_min=4, valid_max=4, impl_min=4, impl_max=4, endian=Endian.LITTLE)


@dataclass(frozen=True, slots=True)
class CachedPage:
    """One translation that QEMU remembers."""

    domain: int
    frame: int
    entry: int
    mask: int
    perm: IommuAccess


class IntelIommu:
    """The device, and the translation of every requester behind it."""

    name = "intel-iommu"

    def __init__(
        self, memory: AddressSpace, features: Features | None = None,
        version: tuple[int, ...] = (10, 0), narrow_mask: bool | None = None,
    ) -> None:
        self.memory = memory
        self.features = features or Features()
        self.version = version
        low, high = NARROW_MASK
        self._mask_bits = 8 if (low <= version < high if narrow_mask is None else narrow_mask) \
            else 64
        self.lost = ""
        self.registers = reg.Registers()
        self.pages: dict[tuple[int, int, int], CachedPage] = {}
        self.contexts: dict[int, Context] = {}
        self._bindings = Bindings()
        self.reset()

    def reset(self) -> None:
        """The machine was reset (``vtd_init``)."""
        self.lost = ""
        self.registers.reset()
        self.root = self._head = self._tail = self._queue = self._entries = 0
        self.enabled = self._queued = self._remaps_interrupts = False
        self._last = 0
        self._wide = False
        self._fetch = False
        self._forget()

    # -- what the guest tells it -----------------------------------------------------------------

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """A register was written."""
        if region.name != REGION or offset + size > reg.SIZE or size not in (4, 8):
            return
        registers = self.registers
        if offset in reg.NARROW:
            size, value = 4, value & 0xFFFF_FFFF
        registers.write(offset, size, value)
        upper = size == 8
        if offset == reg.GCMD:
            self._command(registers.get(reg.GCMD, 4))
        elif offset in (reg.CCMD, reg.CCMD + 4) and (upper or offset != reg.CCMD):
            self._context_command(registers.get(reg.CCMD))
        elif offset in (reg.IOTLB, reg.IOTLB + 4) and (upper or offset != reg.IOTLB):
            self._page_command(registers.get(reg.IOTLB))
        elif offset == reg.FSTS:
            clear = registers.get(reg.FSTS, 4) & (reg.PFO | reg.PPF | reg.IQE)
            self._unpend(reg.FECTL, not clear)
        elif offset == reg.FECTL or offset == reg.IECTL:
            self._unpend(offset, not registers.get(offset, 4) & reg.MASKED)
        elif offset == reg.ICS:
            self._unpend(reg.IECTL, not registers.get(reg.ICS, 4) & 1)
        elif offset == reg.IQT:
            self._moved_tail(registers.get(reg.IQT))
        elif offset == reg.IQA:
            self._wide = self.features.scalable and bool(registers.get(reg.IQA) & 0x800)
        elif offset in (reg.FRCD + 8, reg.FRCD + 12) and (upper or offset != reg.FRCD + 8):
            faults.pend(registers)

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """A register was read: what it says is a witness of every fault and invalidation."""
        if region.name != REGION or self.lost:
            return
        known = self.known(offset, size)
        if known is not None and known != value:
            self.lost = (f"{REGION}+{offset:#x} reads {value:#x} where {known:#x} was expected: "
                         "what it translates is not known")

    def known(self, offset: int, size: int) -> int | None:
        """What a read of a register gives; None for those that are not modelled, and for faults
        once interrupts are remapped, as those have faults of their own."""
        if size not in (4, 8) or offset + size > reg.SIZE or offset < reg.GCMD:
            return None
        if self._remaps_interrupts and (offset in (reg.FSTS, reg.FECTL) or offset >= reg.FRCD):
            return None
        if offset in (reg.IQA, reg.IQA + 4):
            low = 0x807 if self.version >= (9, 2) else 7
            value = self._queue | self.registers.get(reg.IQA) & low
            if offset != reg.IQA:
                return self._queue >> 32
            return value & (1 << 8 * size) - 1
        if 0x100 <= offset < reg.FRCD or 0xC0 <= offset < reg.IVA or 0x60 <= offset < reg.IQH:
            return None  # page requests and performance counters of later versions
        return self.registers.shown(offset, size)

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """What the queue does is done when the write is, but devices may get another map: when
        translation is switched, and when contexts are looked at again while it is on."""
        if region.name != REGION:
            return False
        last = offset + len(data) - 1
        commands = (reg.GCMD,) if not self.enabled else (reg.GCMD, reg.CCMD + 4, reg.IQT)
        return any(offset <= at + 3 and at <= last for at in commands)

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """The queue ends after 32,768 descriptors."""
        return False

    def when(self) -> When:
        return When.NOW if self._fetch else When.NEVER

    # -- commands --------------------------------------------------------------------------------

    def _command(self, command: int) -> None:
        registers = self.registers
        changed = registers.get(reg.GSTS, 4) ^ command
        if changed & reg.TE and self.features.translation:
            enable = bool(command & reg.TE)
            if enable != self.enabled:
                self.enabled = enable
                registers.change(reg.GSTS, 4, reg.TE, command & reg.TE)
                self._forget()
        if command & reg.SRTP:
            address = registers.get(reg.RTADDR)
            self.root = address & -PAGE & self.features.address_mask
            if self.features.scalable and address & 0x400:
                self.lost = "scalable mode of intel-iommu is not modelled"
            registers.change(reg.GSTS, 4, 0, reg.SRTP)
            self._forget()
        if changed & reg.QIE:
            self._enable_queue(bool(command & reg.QIE))
        if command & reg.SIRTP:
            registers.change(reg.GSTS, 4, 0, reg.SIRTP)
        if changed & reg.IRE:
            self._remaps_interrupts = self._remaps_interrupts or bool(command & reg.IRE)
            if self._has_remapping:
                registers.change(reg.GSTS, 4, reg.IRE, command & reg.IRE)

    #: Whether ``intremap`` is on; the maker says.
    _has_remapping = False

    def _enable_queue(self, enable: bool) -> None:
        registers = self.registers
        if enable:
            address = registers.get(reg.IQA)
            self._queue = address & -PAGE & self.features.address_mask
            self._entries = 1 << (address & 7) + 8 - self._wide
            self._queued = True
            registers.change(reg.GSTS, 4, 0, reg.QIE)
            self._fetch = bool(self._tail) and not registers.get(reg.FSTS, 4) & reg.IQE
        elif self._queued and self._tail == self._head and self._last == WAIT:
            registers.put(reg.IQH, 8, 0)
            self._head, self._queued = 0, False
            registers.change(reg.GSTS, 4, reg.QIE, 0)

    def _context_command(self, command: int) -> None:
        if not command >> 63 or self._queued:
            return
        grain = bits(command, 61, 2)
        if grain == 3:
            self._forget_context(bits(command, 16, 16), FUNCTION_MASKS[bits(command, 32, 2)])
        elif grain:
            self.contexts.clear()
        actual = {0: 0, 1: 1, 2: 1, 3: 3}[grain]
        self.registers.change(reg.CCMD, 8, 1 << 63 | 3 << 59, actual << 59)

    def _page_command(self, command: int) -> None:
        if not command >> 63 or self._queued:
            return
        grain, domain = bits(command, 60, 2), bits(command, 32, 16)
        if grain == 1:
            self.pages.clear()
        elif grain == 2:
            self._forget_pages(domain)
        elif grain == 3:
            address = self.registers.get(reg.IVA)
            if address & 0x3F > MAX_PAGES_LOG:
                grain = 0
            else:
                self._forget_pages(domain, address & -PAGE, address & 0x3F)
        self.registers.change(reg.IOTLB, 8, 1 << 63 | 3 << 57, grain << 57)

    def _unpend(self, control: int, condition: bool) -> None:
        if condition and self.registers.get(control, 4) & reg.PENDING:
            self.registers.change(control, 4, reg.PENDING, 0)

    # -- the invalidation queue --------------------------------------------------------------------

    def _moved_tail(self, value: int) -> None:
        if self._wide and value & 0x10:
            self._queue_error()
            return
        self._tail = bits(value, 5, 14) if self._wide else bits(value, 4, 15)
        self._fetch = self._queued and not self.registers.get(reg.FSTS, 4) & reg.IQE

    def act(self, port: Port) -> None:
        """Run the queue (``vtd_fetch_inv_desc``); its wait descriptors write memory."""
        self._fetch = False
        if self._wide and not self.lost:
            self.lost = "descriptors of 256 bits of intel-iommu are not modelled"
        if self.lost:
            return
        if self._tail >= self._entries:
            self._queue_error()
            return
        while self._head != self._tail:
            if not self._descriptor(port):
                self._queue_error()
                return
            self._head = (self._head + 1) % self._entries
            self.registers.put(reg.IQH, 8, self._head << 4 & 0x7_FFF0)

    def _descriptor(self, port: Port) -> bool:
        data = port.read((self._queue + 16 * self._head) & MASK64, 16)
        if data is None:
            self._last = 0
            return False
        low, high = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
        order = decode(low, high, self.version, self.features.scalable)
        self._last = order.type
        if order.act is Act.STATUS:
            written = port.write(order.addr, order.value.to_bytes(4, "little"))
            if written and order.interrupts:
                self._complete()
            return written
        self._perform(order)
        return order.act is not Act.ERROR

    def _perform(self, order: Order) -> None:
        if order.act is Act.ALL_CONTEXTS:
            self.contexts.clear()
        elif order.act is Act.CONTEXT:
            self._forget_context(order.requester, order.mask)
        elif order.act is Act.ALL_PAGES:
            self.pages.clear()
        elif order.act is Act.DOMAIN:
            self._forget_pages(order.domain)
        elif order.act is Act.PAGES:
            self._forget_pages(order.domain, order.addr, order.pages_log)
        elif order.act is Act.INTERRUPT:
            self._complete()

    def _complete(self) -> None:
        """``vtd_generate_completion_event``."""
        if not self.registers.get(reg.ICS, 4) & 1:
            self.registers.change(reg.ICS, 4, 0, 1)
            if self.registers.get(reg.IECTL, 4) & reg.MASKED:
                self.registers.change(reg.IECTL, 4, 0, reg.PENDING)

    def _queue_error(self) -> None:
        before = self.registers.get(reg.FSTS, 4)
        self.registers.change(reg.FSTS, 4, 0, reg.IQE)
        faults.event(self.registers, before)

    # -- caches ------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self.pages.clear()
        self.contexts.clear()

    def _forget_context(self, requester: int, mask: int) -> None:
        for known in [each for each in self.contexts if not (each ^ requester) & ~mask]:
            del self.contexts[known]

    def _forget_pages(
        self, domain: int, addr: int | None = None, pages_log: int = 0
    ) -> None:
        """A domain's pages; with ``addr`` those of 2^``pages_log`` pages there only."""
        for key, page in list(self.pages.items()):
            if page.domain == domain and (addr is None or self._covers(page, addr, pages_log)):
                del self.pages[key]

    def _covers(self, page: CachedPage, addr: int, pages_log: int) -> bool:
        """``vtd_hash_remove_by_page``."""
        mask = -(1 << pages_log) & ((1 << self._mask_bits) - 1)
        return page.frame & mask == addr >> 12 & mask or page.frame == (addr & ~page.mask) >> 12

    # -- translation -------------------------------------------------------------------------------

    def bind(self, regions: Iterable[MemoryRegion], buses: object) -> None:
        """After every change of the map: the regions that translate do so from now on. ``buses``
        is the answer to QMP ``query-pci``, which tells who is behind a bridge."""
        found, regions = functions(buses), list(regions)
        for region in regions:
            if region.name == _MESSAGES and region.alias is None:
                region.contract = _MESSAGES_CONTRACT
        for region, devfn in regions_of(regions):
            requester = on_bus_zero(found, devfn)
            if requester is None:
                self._bindings.bind(
                    region, lambda addr, _: nowhere(self.memory, addr),
                    lambda: "which of two functions behind bridges it serves is not known")
            else:
                self._bindings.bind(
                    region, partial(self.translate, requester), lambda: self.lost)

    def unbind(self) -> None:
        """Before the mirror looks at the map again."""
        self._bindings.unbind()

    def translate(self, requester: int, addr: int, access: IommuAccess) -> IommuTlbEntry:
        """Where an access of a device leads (``vtd_iommu_translate``)."""
        if not self.enabled:
            return through(self.memory, addr)
        is_write = bool(access & IommuAccess.WO)
        page = self._cached(requester, addr)
        if page is None:
            context = self._context(requester, addr, is_write)
            if context is None:
                return nowhere(self.memory)
            if context.type == PASS_THROUGH:
                return through(self.memory, addr)
            page = self._walk(requester, context, addr, is_write)
            if page is None:
                return nowhere(self.memory)
        start = page.entry & -PAGE & self.features.address_mask & ~page.mask
        return IommuTlbEntry(self.memory, addr & ~page.mask, start, page.mask, page.perm)

    def _cached(self, requester: int, addr: int) -> CachedPage | None:
        for level in (1, 2, 3):
            frame = addr >> 12 & -(1 << 9 * (level - 1))
            found = self.pages.get((requester, level, frame))
            if found is not None:
                return found
        return None

    def _context(self, requester: int, addr: int, is_write: bool) -> Context | None:
        found = self.contexts.get(requester)
        if found is not None:
            return found
        fresh = find_context(self.memory, self.root, requester, self.features)
        if isinstance(fresh, Fault):
            if not (fresh.silenced and fresh.reason in QUALIFIED):
                self._record(requester, addr, fresh.reason, is_write)
            return None
        self.contexts[requester] = fresh
        return fresh

    def _walk(
        self, requester: int, context: Context, addr: int, is_write: bool
    ) -> CachedPage | None:
        leaf = walk(self.memory, context, addr, is_write, self.features)
        if isinstance(leaf, Fault):
            if not (context.silences and leaf.reason in QUALIFIED):
                pasid = _NO_PASID if self.version < NO_PASID_SINCE else 0
                self._record(requester, addr, leaf.reason, is_write, pasid)
            return None
        perm = IommuAccess.RO * leaf.reads | IommuAccess.WO * leaf.writes
        frame = addr >> 12 & -(1 << 9 * (leaf.level - 1))
        page = CachedPage(context.domain, frame, leaf.entry, leaf.mask, IommuAccess(perm))
        if len(self.pages) >= CACHED_PAGES:
            self.pages.clear()
        self.pages[requester, leaf.level, frame] = page
        return page

    def _record(
        self, requester: int, addr: int, reason: int, is_write: bool, pasid: int = 0
    ) -> None:
        faults.record(self.registers, requester, addr, reason, is_write, pasid)


def make(place: Place) -> IntelIommu | None:
    """The model of the intel-iommu at ``place``."""
    if REGION not in place.regions:
        return None

    def says(name: str, default: bool) -> bool:
        value = place.qom_get(place.owner, name)
        return default if value is None else bool(value)

    width = place.qom_get(place.owner, "aw-bits")
    has_tlb, stale = says("device-iotlb", False), place.qom_get(place.owner, "stale-tm")
    features = Features(
        width=width if isinstance(width, int) else 39, pass_through=says("pt", True),
        device_tlb=has_tlb, snoop=says("snoop-control", False),
        transient=has_tlb and (stale is None or bool(stale)),
        scalable=says("x-scalable-mode", False), translation=says("dma-translation", True),
    )
    made = IntelIommu(place.memory, features, place.version)
    made._has_remapping = place.qom_get(place.owner, "intremap") in ("on", True)
    return made


def regions_of(regions: Iterable[MemoryRegion]) -> list[tuple[MemoryRegion, int]]:
    """The regions that translate, with slot and function of their requester. ``vtd_find_add_as``
    names them; which bus it is on they do not say."""
    found = []
    for region in regions:
        head, _, tail = region.name.partition("-")
        place, _, kind = tail.partition("-")
        if head == "vtd" and kind == "dmar":
            slot, _, function = place.partition(".")
            try:
                found.append((region, int(slot, 16) << 3 | int(function, 16)))
            except ValueError:
                continue
    return found
