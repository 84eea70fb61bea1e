"""Mappings: a device's pointer into guest memory (R14, ``address_space_map``/``_unmap``).

Memory that can be accessed directly is handed out itself; anything else is copied into a bounce
buffer and, if it is to be written, copied back by ``unmap``. A mapping may be shorter than what
was asked for, and there may be none while bounce buffers are used up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qemuglue.errors import ModelError
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.memory.flatview import FlatView
from qemuglue.memory.region import MASK64, MemoryRegion

if TYPE_CHECKING:
    from qemuglue.memory.address_space import AddressSpace

#: ``DEFAULT_MAX_BOUNCE_BUFFER_SIZE``: bytes of bounce buffers of one space.
DEFAULT_MAX_BOUNCE_BUFFER_SIZE = 4096


class Mapping:
    """Mapped memory. ``buffer`` is it: read-only where it was mapped for reading.

    ``addr`` and ``len(mapping)`` say what is mapped; ``bounced``: it is a copy.
    """

    __slots__ = ("_length", "addr", "bounced", "buffer", "is_write", "offset", "region")

    def __init__(
        self, addr: int, buffer: memoryview, region: MemoryRegion, offset: int, *,
        is_write: bool, bounced: bool,
    ) -> None:
        self.addr = addr
        self.buffer = buffer if is_write else buffer.toreadonly()
        self.region = region
        self.offset = offset
        self.is_write = is_write
        self.bounced = bounced
        self._length = len(buffer)

    def __len__(self) -> int:
        return self._length

    @property
    def mapped(self) -> bool:
        """Whether it has not been unmapped yet."""
        return bool(self._length)

    def _end(self) -> None:
        self.buffer.release()
        self._length = 0


def map_memory(
    space: AddressSpace, view: FlatView, addr: int, length: int, is_write: bool,
    attrs: MemTxAttrs,
) -> Mapping | None:
    """``AddressSpace.map`` over one view."""
    section, offset, n = space.translate_in(view, addr, length, is_write, attrs)
    region = section.region
    if space.is_direct(region, is_write, attrs):
        n = extend(space, view, addr, length, region, offset, n, is_write, attrs)
        return Mapping(
            addr, host_memory(region, offset, n), region, offset, is_write=is_write, bounced=False
        )
    n = _take_bounce(space, n)
    if not n:
        return None
    bounce = bytearray(n)
    if not is_write:
        space.read_view(view, addr, bounce, attrs)
    return Mapping(addr, memoryview(bounce), region, offset, is_write=is_write, bounced=True)


def unmap_memory(space: AddressSpace, mapping: Mapping, access_length: int) -> None:
    """``AddressSpace.unmap``."""
    length = len(mapping)
    if not mapping.mapped:
        raise ModelError(f"the mapping at {mapping.addr:#x} was unmapped already")
    if not 0 <= access_length <= length:
        raise ModelError(f"{access_length} of the {length} mapped bytes cannot have been accessed")
    if not mapping.bounced:
        if mapping.is_write:
            space.mark_dirty(mapping.region, mapping.offset, access_length)
        mapping._end()
        return
    data = bytes(mapping.buffer[:access_length])
    mapping._end()
    if mapping.is_write:
        space.write(mapping.addr, data, UNSPECIFIED)
    _give_bounce(space, length)


def extend(
    space: AddressSpace, view: FlatView, addr: int, wanted: int, region: MemoryRegion,
    base: int, length: int, is_write: bool, attrs: MemTxAttrs,
) -> int:
    """Bytes from ``addr`` on that lie in ``region`` one after the other, over several sections
    (``flatview_extend_translation``)."""
    done = length
    while done < wanted:
        section, offset, n = space.translate_in(
            view, (addr + done) & MASK64, wanted - done, is_write, attrs
        )
        if section.region is not region or offset != base + done:
            break
        done += n
    return done


def host_memory(region: MemoryRegion, offset: int, length: int) -> memoryview:
    """The bytes themselves, cut at the end of the region's memory (``qemu_ram_ptr_length``).
    Raises ModelError where the region's backing has none that could be pointed at."""
    data = getattr(region.backing, "data", None)
    if data is None:
        raise ModelError(f"region {region.name!r} has no memory that can be mapped")
    return memoryview(data)[offset : offset + length]


def register_client(space: AddressSpace, callback: Callable[[], None]) -> None:
    """``AddressSpace.register_map_client`` (QEMU 10.0.2 ``system/physmem.c:3277``; the newest
    client is called first)."""
    clients = _clients(space)
    clients.insert(0, callback)
    if _bounce_left(space):
        _notify(clients)


def unregister_client(space: AddressSpace, callback: Callable[[], None]) -> None:
    clients = _clients(space)
    if callback in clients:
        clients.remove(callback)


def _clients(space: AddressSpace) -> list[Callable[[], None]]:
    return space.map_clients if space.rules.bounce_budget else space.topology.map_clients


def _notify(clients: list[Callable[[], None]]) -> None:
    """Each is called once and then forgotten."""
    while clients:
        clients.pop(0)()


def _bounce_left(space: AddressSpace) -> bool:
    if space.rules.bounce_budget:
        return space.bounce_buffer_size < space.max_bounce_buffer_size
    return not space.topology.bounce_in_use


def _take_bounce(space: AddressSpace, wanted: int) -> int:
    """Bytes granted of ``wanted``; 0 if there are none left."""
    topology = space.topology
    with topology.bounce_lock:
        if space.rules.bounce_budget:
            n = min(space.max_bounce_buffer_size - space.bounce_buffer_size, wanted)
            space.bounce_buffer_size += n
            return n
        if topology.bounce_in_use:
            return 0
        topology.bounce_in_use = True
        return min(wanted, 1 << topology.page_bits)


def _give_bounce(space: AddressSpace, length: int) -> None:
    topology = space.topology
    with topology.bounce_lock:
        if space.rules.bounce_budget:
            space.bounce_buffer_size -= length
        else:
            topology.bounce_in_use = False
    _notify(_clients(space))
