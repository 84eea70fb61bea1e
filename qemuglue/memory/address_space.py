"""AddressSpace: accesses over a view, by QEMU's rules (the C face of the model).

``read``/``write`` are ``address_space_read``/``address_space_write``: byte ranges, cut into
dispatches (R6), that go on after an error. ``load``/``store`` are ``address_space_ldl_le`` and
its kin: one sized access, one dispatch (R10). Addresses are 0 to 2^64-1 and wrap. Every access
is one RCU section: it sees one view from its beginning to its end, whatever changes meanwhile.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from qemuglue.errors import ModelError
from qemuglue.memory import iommu, mapping
from qemuglue.memory.attrs import ACCESS_ERROR, OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.backing import ByteBacking, ViewBacking
from qemuglue.memory.dispatch import Dispatcher
from qemuglue.memory.endian import EndianInt, typed_class, typed_value
from qemuglue.memory.flatview import FlatView, FlatViewRefGuard, MemoryRegionSection
from qemuglue.memory.listener import MemoryListener, update
from qemuglue.memory.rcu import RcuCell, RcuGuard, RcuRef
from qemuglue.memory.region import MAX_SIZE, IoEventFd, MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules
from qemuglue.memory.topology import Topology

if TYPE_CHECKING:
    from qemuglue.memory.iommu import IommuTlbEntry
    from qemuglue.memory.mapping import Mapping

MASK64 = MAX_SIZE - 1

#: ``address_space_set`` writes pieces of this size, each with a translation of its own.
FILL_SIZE = 512

ByteOrder = Literal["little", "big"]

#: A stretch of plain memory: its first address, its end, its bytes. False: there is none.
_Plain = tuple[int, int, "bytearray | memoryview"] | Literal[False] | None


class _Current:
    """A view with what is known of its sections, filled as they are used."""

    __slots__ = ("loads", "starts", "stores", "view")

    def __init__(self, view: FlatView) -> None:
        self.view = view
        self.starts = view.starts
        self.loads: list[_Plain] = [None] * len(view.starts)
        self.stores: list[_Plain] = [None] * len(view.starts)


class AddressSpace(Dispatcher):
    """A name, a root region, and the view drawn from it.

    ``topology`` is the machine it belongs to; without one it takes the root's, or makes one.
    ``rules``, ``target_big`` and ``engaged`` are the topology's unless given: see there. ``ops``
    serves every device region that has no callbacks of its own; ``observer`` hears of refused
    accesses. ``max_bounce_buffer_size`` bounds what ``map`` may copy, in bytes.
    """

    #: Whether changes of the regions it shows redraw it.
    FOLLOWS = True

    def __init__(
        self, name: str, root: MemoryRegion, *, topology: Topology | None = None,
        rules: Rules | None = None, target_big: bool | None = None,
        engaged: set[object] | None = None,
    ) -> None:
        if topology is None:
            topology = root.topology or Topology(target_big=bool(target_big))
            if rules is not None and root.topology is None:
                topology.rules = rules
        super().__init__(
            rules=topology.rules if rules is None else rules,
            target_big=topology.target_big if target_big is None else target_big,
            engaged=topology.engaged if engaged is None else engaged,
        )
        self.name = name
        self.root = root
        self.topology = topology
        #: Counts the views; every judged access belongs to one.
        self.generation = 0
        #: In the order they are called.
        self.listeners: list[MemoryListener] = []
        #: The ioeventfds that the view shows, at addresses of the space, as last told.
        self.ioeventfds: tuple[IoEventFd, ...] = ()
        self.max_bounce_buffer_size = mapping.DEFAULT_MAX_BOUNCE_BUFFER_SIZE
        self.bounce_buffer_size = 0
        self.map_clients: list[Callable[[], None]] = []
        self._local = topology.rcu._local
        self._current: _Current | None = None
        if self.FOLLOWS:
            topology.adopt(root)
        topology.add_space(self)
        if self.FOLLOWS:
            self._draw()

    # -- the view --------------------------------------------------------------------------

    @property
    def view(self) -> FlatView:
        """The current view, not counted: good until the next change."""
        return (self._current or self._draw()).view

    def _draw(self) -> _Current:
        with self.topology.lock:
            if self._current is None:
                self.switch(self.topology.draw(self))
            assert self._current is not None, "switch makes it"
            return self._current

    def switch(self, view: FlatView) -> None:
        """Show ``view`` from now on (``address_space_set_flatview``); the listeners hear what
        is different while accesses still see the old one. Under the topology's lock."""
        old = self._current
        if old is not None and old.view is view:
            return
        if not view.ref():
            raise ModelError(f"space {self.name!r}: the view to be shown has no reference")
        if self.listeners:
            update(self, () if old is None else old.view.sections, view)
        self._current = _Current(view)
        if old is not None:
            self.generation += 1
            old.view.unref()

    def _rules_changed(self) -> None:
        if self._current is not None:
            self._current = _Current(self._current.view)

    def update(self) -> FlatView:
        """Draw all views of the topology again; needed only where a region was changed by its
        attributes, past its methods."""
        with self.topology.change(True):
            pass
        return self.view

    def get_flatview(self, guard: RcuGuard) -> RcuRef[FlatView]:
        """The current view, bounded by the caller's RCU section: nothing is counted."""
        guard.check()
        view = RcuCell(self.view, self.topology.rcu).get(guard)
        assert view is not None, "a space always has a view"
        return view

    def memory(self) -> FlatViewRefGuard:
        """The current view with a reference counted (``address_space_get_flatview``,
        ``GuestAddressSpace::memory``). It takes an RCU section of its own, and looks again
        where somebody replaced the view and dropped it meanwhile."""
        reader = self._local.reader
        while True:
            reader.lock()
            try:
                view = self.view
                if view.ref():
                    return FlatViewRefGuard(view)
            finally:
                reader.unlock()

    def memory_find(self, addr: int, size: int) -> MemoryRegionSection | None:
        """The first section within ``size`` bytes at ``addr``, clipped to them; None where
        nothing lies there (``memory_region_find`` from the space's root)."""
        with self.memory() as view:
            return view.find_range(addr, size)

    def destroy(self) -> None:
        """Give up the space; its view goes after the RCU grace period
        (``address_space_destroy``). Raises ModelError while a listener or a bounce buffer is
        left."""
        if self.listeners:
            raise ModelError(f"space {self.name!r} still has a listener; unregister it first")
        if self.bounce_buffer_size or self.map_clients:
            raise ModelError(f"space {self.name!r} still has a mapping or a waiting client")
        self.topology.remove_space(self)
        current, self._current = self._current, None
        if current is not None:
            self.topology.rcu.call(current.view.unref)

    # -- where an address leads --------------------------------------------------------------

    def translate(
        self, addr: int, length: int, is_write: bool = False, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[MemoryRegionSection, int, int]:
        """(section, offset in its region, bytes of ``length`` that can be done at once); behind
        an IOMMU the section is one of the target space (``address_space_translate``)."""
        return self.translate_in(self.view, addr, length, is_write, attrs)

    def section_in(
        self, view: FlatView, addr: int, length: int
    ) -> tuple[MemoryRegionSection, int, int]:
        """R7 on one view, without asking an IOMMU (``address_space_translate_internal``)."""
        section = view.cover[bisect_right(view.starts, addr) - 1]
        rules = self.rules
        return section, rules.region_offset(section, addr), rules.clamp(section, addr, length)

    def translate_section(
        self, addr: int, length: int
    ) -> tuple[MemoryRegionSection, int, int]:
        """``section_in`` the current view."""
        return self.section_in(self.view, addr, length)

    def translate_in(
        self, view: FlatView, addr: int, length: int, is_write: bool, attrs: MemTxAttrs
    ) -> tuple[MemoryRegionSection, int, int]:
        """``translate`` on one view (``flatview_translate``)."""
        found = self.section_in(view, addr, length)
        region = found[0].region
        if region.kind is not RegionKind.IOMMU:
            return found
        behind = iommu.translate(region, found[1], found[2], is_write, attrs)
        return behind.section, behind.offset, behind.length

    def get_iotlb_entry(
        self, addr: int, is_write: bool, attrs: MemTxAttrs = UNSPECIFIED
    ) -> IommuTlbEntry | None:
        """The page that ``addr`` leads to, None where to none
        (``address_space_get_iotlb_entry``, which answers an empty entry)."""
        section, offset, length = self.translate_section(addr, MASK64)
        space, page_mask = self, (1 << self.topology.page_bits) - 1
        if section.region.kind is RegionKind.IOMMU:
            found = iommu.translate(section.region, offset, length, is_write, attrs)
            section, offset, page_mask = found.section, found.offset, found.page_mask
            space = found.space or self
        if not section.assigned:
            return None
        target = offset - section.offset + section.start
        return iommu.IommuTlbEntry(
            space, addr & ~page_mask, target & ~page_mask, page_mask, iommu.IommuAccess.RW
        )

    def is_direct(self, region: MemoryRegion, is_write: bool, attrs: MemTxAttrs) -> bool:
        """R9: whether an access copies memory (``memory_access_is_direct``)."""
        if region.backing is None:
            return False
        if is_write:
            return self.rules.direct_write(region, attrs)
        return self.rules.direct_read(region)

    def access_valid(
        self, addr: int, length: int, is_write: bool, attrs: MemTxAttrs = UNSPECIFIED
    ) -> bool:
        """Whether the range would be accepted, without doing it (R13).

        As in QEMU (``flatview_access_valid``) pieces are cut by the *space's* address, while
        the region is asked by its own offset, so that the answer can differ from what an access
        meets; ``attrs.memory`` is not looked at.
        """
        _check_address(addr)
        with self.memory() as view:
            return self.access_valid_in(view, addr, length, is_write, attrs)

    def access_valid_in(
        self, view: FlatView, addr: int, length: int, is_write: bool, attrs: MemTxAttrs
    ) -> bool:
        rules = self.rules
        done = 0
        while done < length:
            here = (addr + done) & MASK64
            section, offset, n = self.translate_in(view, here, length - done, is_write, attrs)
            region = section.region
            if not self.is_direct(region, is_write, attrs):
                n = rules.chunk(region.contract, n, here)
                reason = rules.refusal(region.contract, offset, n, is_write, attrs)
                if reason is not None:
                    if self.observer is not None:
                        self.observer.invalid(region, offset, n, is_write, reason)
                    return False
            done += n
        return True

    # -- byte ranges -----------------------------------------------------------------------

    def read(
        self, addr: int, length: int, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, bytes]:
        """(result, ``length`` bytes). Refused bytes are 0. Length 0 is OK and does nothing."""
        _check_address(addr)
        reader = self._local.reader
        reader.lock()
        try:
            view = self.view
            section, offset, n = self.translate_in(view, addr, length, False, attrs)
            region = section.region
            if (
                n == length and region.is_ram and self.is_direct(region, False, attrs)
                and self.rules.allowed(region, attrs)
            ):
                assert region.backing is not None, "is_direct says so"
                data = region.backing.read(offset, n)
                if len(data) == length:
                    return OK, data
            buffer = bytearray(length)
            return self.read_view(view, addr, buffer, attrs), bytes(buffer)
        finally:
            reader.unlock()

    def read_into(
        self, addr: int, buffer: bytearray | memoryview, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """``address_space_read`` into ``buffer``; bytes denied by ``attrs.memory`` stay."""
        _check_address(addr)
        reader = self._local.reader
        reader.lock()
        try:
            return self.read_view(self.view, addr, buffer, attrs)
        finally:
            reader.unlock()

    def write(
        self, addr: int, data: bytes | bytearray | memoryview, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """``address_space_write``: the ORed result; what is refused is dropped."""
        _check_address(addr)
        if type(data) is not bytes:
            data = bytes(data)
        reader = self._local.reader
        reader.lock()
        try:
            return self.write_view(self.view, addr, data, attrs)
        finally:
            reader.unlock()

    def set(
        self, addr: int, byte: int, length: int, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """Fill with ``byte``: writes of ``FILL_SIZE`` bytes one after the other, results ORed
        (``address_space_set``, R12). The map may change between two of them."""
        _check_address(addr)
        fill = bytes([byte]) * min(length, FILL_SIZE)
        result = OK
        for done in range(0, length, FILL_SIZE):
            part = fill[: min(FILL_SIZE, length - done)]
            result |= self.write((addr + done) & MASK64, part, attrs)
        return result

    def write_rom(
        self, addr: int, data: bytes | bytearray | memoryview, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """Write to RAM and ROM, and pass over everything else by the steps of R6; always OK
        (``address_space_write_rom``, R12: how firmware is loaded)."""
        _check_address(addr)
        with self.memory() as view:
            done = 0
            while done < len(data):
                section, offset, n = self.translate_in(
                    view, (addr + done) & MASK64, len(data) - done, True, attrs
                )
                region = section.region
                if region.backing is None or not self.rules.rom_writable(region):
                    n = self.rules.chunk(region.contract, n, offset)
                else:
                    n = _inside(region, offset, n)
                    region.backing.write(offset, bytes(data[done : done + n]))
                    self.mark_dirty(region, offset, n)
                done += n
        return OK

    def read_view(
        self, view: FlatView, addr: int, buffer: bytearray | memoryview, attrs: MemTxAttrs
    ) -> int:
        """``flatview_read``: only the first region is asked up front whether it is allowed."""
        rules = self.rules
        at, length, result = 0, len(buffer), OK
        while at < length:
            section, offset, n = self.translate_in(
                view, (addr + at) & MASK64, length - at, False, attrs
            )
            n, piece = self.read_step(section.region, offset, buffer, at, n, attrs)
            result = rules.combine(result, piece)
            if not at and piece == ACCESS_ERROR and not rules.allowed(section.region, attrs):
                break
            if not rules.goes_on(result):
                break
            at += n
        return result

    def write_view(
        self, view: FlatView, addr: int, data: bytes, attrs: MemTxAttrs
    ) -> int:
        """``flatview_write``."""
        rules = self.rules
        at, length, result = 0, len(data), OK
        while at < length:
            section, offset, n = self.translate_in(
                view, (addr + at) & MASK64, length - at, True, attrs
            )
            n, piece = self.write_step(section.region, offset, data, at, n, attrs)
            result = rules.combine(result, piece)
            if not at and piece == ACCESS_ERROR and not rules.allowed(section.region, attrs):
                break
            if not rules.goes_on(result):
                break
            at += n
        return result

    def read_step(
        self, region: MemoryRegion, offset: int, buffer: bytearray | memoryview, at: int, n: int,
        attrs: MemTxAttrs,
    ) -> tuple[int, int]:
        """(bytes done, result) of at most ``n`` bytes of one region into ``buffer`` from ``at``
        on (``flatview_read_continue_step``). Denied bytes count as done."""
        rules = self.rules
        if not rules.allowed(region, attrs):
            return n, ACCESS_ERROR
        if rules.direct_read(region) and region.backing is not None:
            data = region.backing.read(offset, n)
            n = len(data)
            if not n:
                raise ModelError(f"region {region.name!r} has no byte {offset:#x}")
            buffer[at : at + n] = data
            return n, OK
        n = rules.chunk(region.contract, n, offset)
        result, value = self.dispatch_read(region, offset, n, attrs)
        big = rules.big(region.contract, self.target_big)
        buffer[at : at + n] = value.to_bytes(n, "big" if big else "little")
        return n, result

    def write_step(
        self, region: MemoryRegion, offset: int, data: bytes, at: int, n: int,
        attrs: MemTxAttrs,
    ) -> tuple[int, int]:
        """(bytes done, result) of at most ``n`` bytes of ``data`` from ``at`` on
        (``flatview_write_continue_step``)."""
        rules = self.rules
        if not rules.allowed(region, attrs):
            return n, ACCESS_ERROR
        if rules.direct_write(region, attrs) and region.backing is not None:
            n = _inside(region, offset, n)
            region.backing.write(offset, data if n == len(data) else data[at : at + n])
            self.mark_dirty(region, offset, n)
            return n, OK
        n = rules.chunk(region.contract, n, offset)
        big = rules.big(region.contract, self.target_big)
        value = int.from_bytes(data[at : at + n], "big" if big else "little")
        return n, self.dispatch_write(region, offset, value, n, attrs)

    def mark_dirty(self, region: MemoryRegion, offset: int, length: int) -> None:
        """R19: memory was written (``invalidate_and_set_dirty``)."""
        dirty = self.topology.dirty
        if dirty.watched:
            dirty.set(region, offset, length, region.dirty_log_mask)

    # -- single accesses ---------------------------------------------------------------------

    def load(
        self, addr: int, kind: type[EndianInt], attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, int]:
        """(result, value): ``load(addr, Le32)`` is ``address_space_ldl_le``, R10."""
        known = _UNPACK.get(kind) or _unpacker(kind)
        reader = self._local.reader
        reader.lock()
        try:
            current = self._current or self._draw()
            at = bisect_right(current.starts, addr) - 1
            plain = current.loads[at]
            if plain is None:
                plain = current.loads[at] = self._plain(current.view.cover[at], False)
            if plain and plain[0] <= addr and addr + known[0] <= plain[1]:
                return OK, known[1](plain[2], addr - plain[0])[0]
            return self._load(current.view, addr, kind.size, kind.order, attrs)
        finally:
            reader.unlock()

    def store(
        self, addr: int, value: EndianInt, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """The result: ``store(addr, Le32(42))`` is ``address_space_stl_le``, R10."""
        kind = type(value)
        known = _PACK.get(kind) or _packer(value)
        reader = self._local.reader
        reader.lock()
        try:
            current = self._current or self._draw()
            at = bisect_right(current.starts, addr) - 1
            plain = current.stores[at]
            if plain is None:
                plain = current.stores[at] = self._plain(current.view.cover[at], True)
            if plain and plain[0] <= addr and addr + known[0] <= plain[1]:
                known[1](plain[2], addr - plain[0], value)
                return OK
            return self._store(current.view, addr, value, kind.size, kind.order, attrs)
        finally:
            reader.unlock()

    def load_target(
        self, addr: int, size: int, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, int]:
        """(result, value) in the target's byte order: ``address_space_ldl`` and its kin without
        a suffix, which only a CPU and qtest should use. ``size`` is 1, 2, 4 or 8."""
        return self.load_sized(addr, size, "big" if self.target_big else "little", attrs)

    def store_target(
        self, addr: int, value: int, size: int, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """The result; ``value`` is in the target's byte order (``address_space_stl``)."""
        return self.store_sized(addr, value, size, "big" if self.target_big else "little", attrs)

    def load_sized(
        self, addr: int, size: int, order: ByteOrder, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, int]:
        """(result, value) of ``size`` bytes (1, 2, 4 or 8), R10."""
        _check_size(size)
        reader = self._local.reader
        reader.lock()
        try:
            return self._load(self.view, addr, size, order, attrs)
        finally:
            reader.unlock()

    def store_sized(
        self, addr: int, value: int, size: int, order: ByteOrder,
        attrs: MemTxAttrs = UNSPECIFIED,
    ) -> int:
        """The result, R10. Raises ModelError for a value that is not ``size`` bytes wide."""
        _check_size(size)
        if not 0 <= value < 1 << size * 8:
            raise ModelError(f"{value:#x} is not a value of {size} bytes")
        reader = self._local.reader
        reader.lock()
        try:
            return self._store(self.view, addr, value, size, order, attrs)
        finally:
            reader.unlock()

    def _load(
        self, view: FlatView, addr: int, size: int, order: ByteOrder, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        _check_address(addr)
        section, offset, n = self.translate_in(view, addr, size, False, attrs)
        region = section.region
        if (
            n >= size and self.rules.direct_read(region) and region.backing is not None
            and self._in_one_part(section, region, offset, size)
        ):
            data = region.backing.read(offset, size)
            if len(data) < size:
                raise ModelError(
                    f"region {region.name!r} ends inside the access: QEMU reads beyond its memory"
                )
            return OK, int.from_bytes(data, order)
        return self.load_region(region, offset, size, order, attrs)

    def _store(
        self, view: FlatView, addr: int, value: int, size: int, order: ByteOrder,
        attrs: MemTxAttrs,
    ) -> int:
        _check_address(addr)
        section, offset, n = self.translate_in(view, addr, size, True, attrs)
        region = section.region
        if (
            n >= size and self.rules.direct_write(region, attrs) and region.backing is not None
            and self._in_one_part(section, region, offset, size)
        ):
            region.backing.write(offset, value.to_bytes(size, order))
            self.mark_dirty(region, offset, size)
            return OK
        return self.store_region(region, offset, value, size, order, attrs)

    def _in_one_part(
        self, section: MemoryRegionSection, region: MemoryRegion, offset: int, size: int
    ) -> bool:
        """R10: RAM's sections are dispatched in parts that end with pages; a single access over
        the end of one is no memory access."""
        if not region.is_ram:
            return True
        addr = section.start + offset - section.offset
        end = self.rules.dispatch_end(section, addr, self.topology.page_bits)
        return addr + size <= end

    def load_region(
        self, region: MemoryRegion, offset: int, size: int, order: ByteOrder, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        """(result, value) of one dispatch to the region, the value in ``order``."""
        result, value = self.dispatch_read(region, offset, size, attrs)
        return result, self._reorder(region, value, size, order)

    def store_region(
        self, region: MemoryRegion, offset: int, value: int, size: int, order: ByteOrder,
        attrs: MemTxAttrs,
    ) -> int:
        """The result of one dispatch to the region; the value is in ``order``."""
        value = self._reorder(region, value, size, order)
        return self.dispatch_write(region, offset, value, size, attrs)

    def _reorder(self, region: MemoryRegion, value: int, size: int, order: ByteOrder) -> int:
        big = self.rules.big(region.contract, self.target_big)
        if big == (order == "big"):
            return value
        return int.from_bytes(value.to_bytes(size, "big"), "little")

    def _plain(self, section: MemoryRegionSection, is_write: bool) -> _Plain:
        """Whether single accesses to the section need nothing but its bytes: RAM in whole
        pages, in memory of ours, that nobody logs."""
        region, backing = section.region, section.region.backing
        page = (1 << self.topology.page_bits) - 1
        end = section.start + section.size
        if (
            not isinstance(backing, (ByteBacking, ViewBacking)) or not region.is_ram
            or not self.is_direct(region, is_write, UNSPECIFIED)
            or (section.start | end) & page
            or self.rules.clamp(section, section.start, section.size + 1) != section.size
        ):
            return False
        if is_write and (
            type(backing).write is not ByteBacking.write  # one that watches its writes
            or region.vga_logging or self.topology.global_dirty_tracking
        ):
            return False
        first = self.rules.region_offset(section, section.start)
        if first < 0 or first + section.size > len(backing):
            return False
        data = backing.data
        if first or section.size != len(data):
            data = memoryview(data)[first : first + section.size]
        return section.start, end, data

    # -- mappings ------------------------------------------------------------------------------

    def map(
        self, addr: int, length: int, is_write: bool, attrs: MemTxAttrs = UNSPECIFIED
    ) -> Mapping | None:
        """Guest memory as a buffer (``address_space_map``, R14): at most ``length`` bytes, all
        of one region. None for length 0 and while bounce buffers are used up."""
        _check_address(addr)
        if not length:
            return None
        with self.memory() as view:
            return mapping.map_memory(self, view, addr, length, is_write, attrs)

    def unmap(self, mapped: Mapping, access_length: int) -> None:
        """End a mapping; ``access_length`` bytes of it were really accessed
        (``address_space_unmap``). A bounce buffer is written back with unspecified attributes
        and without looking at the result. Raises ModelError the second time."""
        mapping.unmap_memory(self, mapped, access_length)

    def register_map_client(self, callback: Callable[[], None]) -> None:
        """Call back once when ``map`` may find a bounce buffer again; at once if it does now
        (``address_space_register_map_client``)."""
        mapping.register_client(self, callback)

    def unregister_map_client(self, callback: Callable[[], None]) -> None:
        mapping.unregister_client(self, callback)

    def __repr__(self) -> str:
        return f"<AddressSpace {self.name!r} over {self.root.name!r}>"


_UNPACK: dict[type[EndianInt], tuple[int, Callable[..., tuple[int, ...]]]] = {}
_PACK: dict[type[EndianInt], tuple[int, Callable[..., None]]] = {}


def _unpacker(kind: type[EndianInt]) -> tuple[int, Callable[..., tuple[int, ...]]]:
    kind = typed_class(kind)
    known = _UNPACK[kind] = kind.size, kind.struct.unpack_from
    return known


def _packer(value: EndianInt) -> tuple[int, Callable[..., None]]:
    kind = type(typed_value(value))
    known = _PACK[kind] = kind.size, kind.struct.pack_into
    return known


def _inside(region: MemoryRegion, offset: int, n: int) -> int:
    """``n``, cut at the end of the region's memory (``qemu_ram_ptr_length``)."""
    assert region.backing is not None, "only memory has an end"
    n = min(n, len(region.backing) - offset)
    if n <= 0:
        raise ModelError(f"region {region.name!r} has no byte {offset:#x}")
    return n


def _check_address(addr: int) -> None:
    if not 0 <= addr <= MASK64:
        raise ModelError(f"address {addr:#x} is not in 0..2^64-1")


def _check_size(size: int) -> None:
    if size not in (1, 2, 4, 8):
        raise ModelError(f"a single access is 1, 2, 4 or 8 bytes, got {size}")
