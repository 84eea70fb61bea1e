"""GuestMemory of the first model: a map's mappings as one memory, addressed by guest address."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from qemuglue.memory.backing import Backing
from qemuglue.memory.bytes import (
    ByteValued,
    Ordering,
    Readable,
    V,
    Writable,
    byte_valued,
    readable,
    size_of,
    writable,
)
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import GuestMemoryError
from qemuglue.memory.memory_map.bisected import BisectLookup
from qemuglue.memory.memory_map.contract import MapBytes
from qemuglue.memory.memory_map.error import MemoryAccess
from qemuglue.memory.memory_map.lookup import LookupMaker
from qemuglue.memory.memory_map.mapping import MemoryMapping
from qemuglue.memory.memory_map.region_map import MemoryMap, Place, RegionMap, number_of

T = TypeVar("T")


class GuestMemory(MapBytes[Place]):
    """The bytes of a ``MemoryMap``. Not vm-memory 0.18's class of this name: the package tells
    what is different.

    No access goes on in another region. What moves as much as it can ends with the region; what
    is moved whole must lie in one. What a mapping raises is MemoryAccess, with the address.
    """

    __slots__ = ("_map",)

    def __init__(self, memory_map: MemoryMap) -> None:
        self._map = memory_map

    @classmethod
    def from_regions(
        cls, regions: Iterable[tuple[Place, MemoryMapping | Backing]],
        lookup: LookupMaker = BisectLookup,
    ) -> GuestMemory:
        """The memory of a ``RegionMap`` made of ``regions``; raises as that does."""
        return cls(RegionMap(regions, lookup))

    @property
    def map(self) -> MemoryMap:
        """Where each address leads."""
        return self._map

    # -- bytes -------------------------------------------------------------------------------

    def write(self, buf: Readable, addr: Place) -> int:
        """Write what fits into the region at ``addr``; how many bytes. Raises InvalidGuestAddress
        in a hole."""
        data = readable(buf)
        return self.write_slice_at_addr(data, addr) if data else 0

    def read(self, buf: Writable, addr: Place) -> int:
        """Read what there is in the region at ``addr``; how many bytes. Raises
        InvalidGuestAddress in a hole."""
        view = writable(buf)
        return self.read_slice_at_addr(view, addr) if view else 0

    def write_obj(self, value: ByteValued, addr: Place) -> None:
        """Write all bytes of ``value``. Raises InvalidGuestAddressRange unless one region holds
        them all: nothing is written then."""
        size = len(byte_valued(value).raw)
        self._whole(addr, size, lambda mapping, offset: mapping.write_obj(value, offset))

    def read_obj(self, addr: Place, cls: type[V]) -> V:
        """A value of type ``cls``. Raises InvalidGuestAddressRange unless one region holds it.

        The seed writes ``let x: LE<u32> = mem.read_obj(ofs)``: there the type is inferred from
        what is assigned. Here it is the second argument, ``x = mem.read_obj(ofs, Le32)``.
        """
        size = size_of(cls)
        return self._whole(addr, size, lambda mapping, offset: mapping.read_obj(offset, cls))

    def store(self, value: ByteValued, addr: Place, order: Ordering = Ordering.RELAXED) -> None:
        """Write ``value`` in one access. Raises InvalidGuestAddressRange unless one region holds
        it, and MemoryAccess where it is misaligned."""
        size = len(byte_valued(value).raw)
        self._whole(addr, size, lambda mapping, offset: mapping.store(value, offset, order))

    def load(self, addr: Place, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        """Read a value of type ``cls`` in one access. Raises as ``store`` does."""
        size = size_of(cls)
        return self._whole(addr, size, lambda mapping, offset: mapping.load(offset, cls, order))

    # -- streams -----------------------------------------------------------------------------

    def read_to_memory(self, addr: Place, src: object, count: int) -> None:
        """Read exactly ``count`` bytes from ``src`` into memory. Raises InvalidGuestAddressRange
        unless one region holds them all (also for a count of 0 in a hole) and then takes none
        from ``src``; and MemoryAccess around a mapping's ReadFromSource."""
        self._whole(
            addr, count, lambda mapping, offset: mapping.read_to_memory(offset, src, count)
        )

    def write_from_memory(self, addr: Place, dst: object, count: int) -> None:
        """Write exactly ``count`` bytes of memory to ``dst``. Raises InvalidGuestAddressRange as
        ``read_to_memory`` does, and MemoryAccess around a mapping's WriteToDestination."""
        self._whole(
            addr, count, lambda mapping, offset: mapping.write_from_memory(offset, dst, count)
        )

    def room_at(self, addr: Place) -> int:
        """Bytes from ``addr`` to the end of its region. Raises InvalidGuestAddress in a hole."""
        rooms: list[int] = []

        def note(mapping: MemoryMapping, offset: int) -> int:
            rooms.append(mapping.room_at(offset))
            return 0

        self._map.do_in_region_partial(addr, note)
        return rooms[0]

    # -- old spellings -----------------------------------------------------------------------

    def write_slice_at_addr(self, buf: Readable, guest_addr: Place) -> int:
        """``write`` as it was spelt before ``Bytes``: short at the end of the region. An empty
        buffer is refused in a hole, as any other is."""
        return self._partial(guest_addr, lambda mapping, offset: mapping.write(buf, offset))

    def read_slice_at_addr(self, buf: Writable, guest_addr: Place) -> int:
        """``read`` as it was spelt; see ``write_slice_at_addr``."""
        return self._partial(guest_addr, lambda mapping, offset: mapping.read(buf, offset))

    def write_obj_at_addr(self, value: ByteValued, guest_addr: Place) -> None:
        """``write_obj`` as it was spelt before ``Bytes``."""
        self.write_obj(value, guest_addr)

    def read_obj_from_addr(self, guest_addr: Place, cls: type[V]) -> V:
        """``read_obj`` as it was spelt before ``Bytes``."""
        return self.read_obj(guest_addr, cls)

    # -- pointers ----------------------------------------------------------------------------

    def get_host_address(self, guest_addr: Place) -> memoryview:
        """The bytes from ``guest_addr`` to the end of its region, as they lie in this process.
        Raises InvalidGuestAddressRange in a hole, and MemoryAccess around
        HostAddressNotAvailable."""
        return self._whole(
            guest_addr, 1, lambda mapping, offset: mapping.get_host_address(offset)
        )

    # -- inside ------------------------------------------------------------------------------

    def _whole(self, addr: Place, size: int, cb: Callable[[MemoryMapping, int], T]) -> T:
        return self._map.do_in_region(addr, size, _told(addr, cb))

    def _partial(self, addr: Place, cb: Callable[[MemoryMapping, int], int]) -> int:
        return self._map.do_in_region_partial(addr, _told(addr, cb))

    def __repr__(self) -> str:
        return f"<GuestMemory over {self._map!r}>"


def _told(addr: Place, cb: Callable[[MemoryMapping, int], T]) -> Callable[[MemoryMapping, int], T]:
    """``cb``, whose errors become MemoryAccess at ``addr``."""

    def call(mapping: MemoryMapping, offset: int) -> T:
        try:
            return cb(mapping, offset)
        except GuestMemoryError as error:
            raise MemoryAccess(GuestAddress(number_of(addr)), error) from error

    return call
