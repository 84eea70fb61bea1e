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
from qemuglue.memory.attrs import OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.backing import ByteBacking, ViewBacking
from qemuglue.memory.endian import EndianInt, typed_class, typed_value
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.ranges import Ranges, check_address
from qemuglue.memory.region import MASK64, MemoryRegion, RegionKind
from qemuglue.memory.space_view import Plain

if TYPE_CHECKING:
    from qemuglue.memory.iommu import IommuTlbEntry
    from qemuglue.memory.mapping import Mapping

ByteOrder = Literal["little", "big"]


class AddressSpace(Ranges):
    """A name, a root region, and the view drawn from it; see ``SpaceView`` for how it is made.

    ``ops`` serves every device region that has no callbacks of its own; ``observer`` hears of
    refused accesses.
    """

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
                plain = current.loads[at] = self._plain(current.view, at, False)
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
                plain = current.stores[at] = self._plain(current.view, at, True)
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
        check_address(addr)
        found = self.translate_in(view, addr, size, False, attrs)
        return self.load_found(found, size, order, attrs)

    def load_found(
        self, found: tuple[MemoryRegionSection, int, int], size: int, order: ByteOrder,
        attrs: MemTxAttrs,
    ) -> tuple[int, int]:
        """R10 where ``translate`` led: (result, value in ``order``). Where fewer than ``size``
        bytes of RAM are left the whole access is dispatched, and RAM refuses it."""
        section, offset, n = found
        region = section.region
        if n >= size and self._rules.direct_read(region) and region.backing is not None:
            data = region.backing.read(offset, size)
            if len(data) < size:
                raise ModelError(
                    f"region {region.name!r} ends inside the access: QEMU reads beyond its memory"
                )
            return OK, int.from_bytes(data, order)
        result, value = self.dispatch_read(region, offset, size, attrs)
        return result, self._reorder(region, value, size, order)

    def _store(
        self, view: FlatView, addr: int, value: int, size: int, order: ByteOrder,
        attrs: MemTxAttrs,
    ) -> int:
        check_address(addr)
        found = self.translate_in(view, addr, size, True, attrs)
        return self.store_found(found, value, size, order, attrs)

    def store_found(
        self, found: tuple[MemoryRegionSection, int, int], value: int, size: int,
        order: ByteOrder, attrs: MemTxAttrs,
    ) -> int:
        """R10 where ``translate`` led: the result; ``value`` is in ``order``."""
        section, offset, n = found
        region = section.region
        if n >= size and self._rules.direct_write(region, attrs) and region.backing is not None:
            region.backing.write(offset, value.to_bytes(size, order))
            self.mark_dirty(region, offset, size)
            return OK
        value = self._reorder(region, value, size, order)
        return self.dispatch_write(region, offset, value, size, attrs)

    def _reorder(self, region: MemoryRegion, value: int, size: int, order: ByteOrder) -> int:
        big = self._rules.big(region.contract, self.target_big)
        if big == (order == "big"):
            return value
        return int.from_bytes(value.to_bytes(size, "big"), "little")

    def _plain(self, view: FlatView, at: int, is_write: bool) -> Plain:
        """Whether single accesses to the section need nothing but its bytes: RAM in whole
        pages, in memory of ours, that nobody logs."""
        section = view.cover[at]
        region, backing = section.region, section.region.backing
        end = section.start + section.size
        if (
            not isinstance(backing, (ByteBacking, ViewBacking)) or not region.is_ram
            or not self.is_direct(region, is_write, UNSPECIFIED)
            or (section.start | end) & ((1 << self.page_bits) - 1)
            or self.section_in(view, section.start, section.size + 1)[2] != section.size
        ):
            return False
        if is_write and (
            type(backing).write is not ByteBacking.write  # one that watches its writes
            or region.vga_logging or self.topology.global_dirty_tracking
        ):
            return False
        first = self._rules.region_offset(section, section.start)
        if first < 0 or first + section.size > len(backing):
            return False
        data = backing.data
        if first or section.size != len(data):
            data = memoryview(data)[first : first + section.size]
        return section.start, end, data

    # -- behind an IOMMU ---------------------------------------------------------------------

    def get_iotlb_entry(
        self, addr: int, is_write: bool, attrs: MemTxAttrs = UNSPECIFIED
    ) -> IommuTlbEntry | None:
        """The page that ``addr`` leads to, None where to none
        (``address_space_get_iotlb_entry``, which answers an empty entry)."""
        section, offset, length = self.translate_section(addr, MASK64)
        space: AddressSpace = self
        page_mask = (1 << self.topology.page_bits) - 1
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

    # -- mappings ------------------------------------------------------------------------------

    def map(
        self, addr: int, length: int, is_write: bool, attrs: MemTxAttrs = UNSPECIFIED
    ) -> Mapping | None:
        """Guest memory as a buffer (``address_space_map``, R14): at most ``length`` bytes, all
        of one region. None for length 0 and while bounce buffers are used up."""
        check_address(addr)
        if not length:
            return None
        reader = self._local.reader
        reader.lock()
        try:
            return mapping.map_memory(self, self.view, addr, length, is_write, attrs)
        finally:
            reader.unlock()

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


def _check_size(size: int) -> None:
    if size not in (1, 2, 4, 8):
        raise ModelError(f"a single access is 1, 2, 4 or 8 bytes, got {size}")
