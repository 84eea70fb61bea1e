"""GuestMemoryRegion: one stretch of guest memory, and what it is kept in."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.backing import Backing, HostMemory
from qemuglue.memory.bitmap import NO_BITMAP, Bitmap
from qemuglue.memory.bytes import Bytes, ByteValued, Ordering, Readable, V, Writable
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import HostAddressNotAvailable, InvalidBackendAddress
from qemuglue.memory.guest_memory.file_offset import FileOffset
from qemuglue.memory.volatile import VolatileMemoryError, VolatileSlice, guest_error_of

T = TypeVar("T")


class GuestMemoryRegion(Bytes[MemoryRegionAddress]):
    """One stretch of guest memory (``src/region.rs``).

    ``len``, ``start_addr``, ``bitmap`` and the four accesses of ``Bytes`` must be written;
    ``GuestMemoryRegionBytes`` has the accesses for memory that is plain bytes.
    """

    __slots__ = ()

    @abstractmethod
    def len(self) -> int:
        """Bytes, at least 1."""

    @abstractmethod
    def start_addr(self) -> GuestAddress:
        """The first guest address."""

    @abstractmethod
    def bitmap(self) -> Bitmap:
        """Where writes are noted, from the start of the region on."""

    def last_addr(self) -> GuestAddress:
        """The last guest address (inclusive). Raises ModelError for a region of no bytes or one
        that goes on beyond 2^64-1, as debug builds of the crate panic."""
        if not self.len():
            raise ModelError("a region of no bytes has no last address")
        return self.start_addr().unchecked_add(self.len() - 1)

    def address_in_range(self, addr: MemoryRegionAddress) -> bool:
        """Whether ``addr`` lies in the region."""
        return addr.raw_value() < self.len()

    def check_address(self, addr: MemoryRegionAddress) -> MemoryRegionAddress | None:
        """``addr`` if it lies in the region."""
        return addr if self.address_in_range(addr) else None

    def checked_offset(
        self, base: MemoryRegionAddress, offset: int
    ) -> MemoryRegionAddress | None:
        """``base`` plus ``offset`` if that lies in the region."""
        addr = base.checked_add(offset)
        return None if addr is None else self.check_address(addr)

    def to_region_addr(self, addr: GuestAddress) -> MemoryRegionAddress | None:
        """Where in the region a guest address is; None outside."""
        offset = addr.checked_offset_from(self.start_addr())
        return None if offset is None else self.check_address(MemoryRegionAddress(offset))

    def get_host_address(self, addr: MemoryRegionAddress) -> memoryview:
        """The bytes of the region from ``addr`` on, as they lie in this process: what Python has
        for a pointer. Writes through it are noted in no bitmap. Raises HostAddressNotAvailable
        where they do not lie here."""
        raise HostAddressNotAvailable

    def file_offset(self) -> FileOffset | None:
        """The file that the region is mapped from, where there is one."""
        return None

    def get_slice(self, offset: MemoryRegionAddress, count: int) -> VolatileSlice:
        """``count`` bytes from ``offset`` on. Raises HostAddressNotAvailable for a region that
        has no slices."""
        raise HostAddressNotAvailable

    def as_volatile_slice(self) -> VolatileSlice:
        """The whole region. Raises as ``get_slice`` does."""
        return self.get_slice(MemoryRegionAddress(0), self.len())

    def is_hugetlbfs(self) -> bool | None:
        """Whether huge pages back the region; None where that is not known."""
        return None


class GuestMemoryRegionBytes(GuestMemoryRegion):
    """A region whose accesses are those of its slice: memory that is plain bytes.

    Errors are VolatileSlice's as GuestMemoryErrors: an access that begins outside is
    InvalidBackendAddress, and so is a ``store`` or ``load`` that does not fit or is misaligned.
    Empty accesses need a slice too: a region that has none refuses them, as in the crate.
    """

    __slots__ = ()

    def write(self, buf: Readable, addr: MemoryRegionAddress) -> int:
        return self._done(lambda s: s.write(buf, addr.raw_value()))

    def read(self, buf: Writable, addr: MemoryRegionAddress) -> int:
        return self._done(lambda s: s.read(buf, addr.raw_value()))

    def write_slice(self, buf: Readable, addr: MemoryRegionAddress) -> None:
        self._done(lambda s: s.write_slice(buf, addr.raw_value()))

    def read_slice(self, buf: Writable, addr: MemoryRegionAddress) -> None:
        self._done(lambda s: s.read_slice(buf, addr.raw_value()))

    def read_volatile_from(self, addr: MemoryRegionAddress, src: object, count: int) -> int:
        return self._done(lambda s: s.read_volatile_from(addr.raw_value(), src, count))

    def read_exact_volatile_from(
        self, addr: MemoryRegionAddress, src: object, count: int
    ) -> None:
        self._done(lambda s: s.read_exact_volatile_from(addr.raw_value(), src, count))

    def write_volatile_to(self, addr: MemoryRegionAddress, dst: object, count: int) -> int:
        return self._done(lambda s: s.write_volatile_to(addr.raw_value(), dst, count))

    def write_all_volatile_to(self, addr: MemoryRegionAddress, dst: object, count: int) -> None:
        self._done(lambda s: s.write_all_volatile_to(addr.raw_value(), dst, count))

    def store(
        self, value: ByteValued, addr: MemoryRegionAddress, order: Ordering = Ordering.RELAXED
    ) -> None:
        self._done(lambda s: s.store(value, addr.raw_value(), order))

    def load(
        self, addr: MemoryRegionAddress, cls: type[V], order: Ordering = Ordering.RELAXED
    ) -> V:
        return self._done(lambda s: s.load(addr.raw_value(), cls, order))

    def _done(self, access: Callable[[VolatileSlice], T]) -> T:
        try:
            return access(self.as_volatile_slice())
        except VolatileMemoryError as error:
            raise guest_error_of(error) from error


class GuestRegion(GuestMemoryRegionBytes):
    """A region over a backing: a bytearray, mapped memory, another process's, a device.

    ``bitmap`` notes writes, from the region's start on. ``file_offset`` is told on request and
    means nothing here. ``size`` takes the first bytes of a longer backing. Raises ModelError for
    no bytes, and for a region that would go on beyond 2^64-1; ending exactly there is allowed
    (differs from ``GuestRegionMmap``).
    """

    __slots__ = ("_backing", "_bitmap", "_file_offset", "_size", "_start")

    def __init__(
        self, start: GuestAddress | int, backing: Backing, *, bitmap: Bitmap | None = None,
        file_offset: FileOffset | None = None, size: int | None = None,
    ) -> None:
        self._start = start if isinstance(start, GuestAddress) else GuestAddress(start)
        self._backing = backing
        self._size = len(backing) if size is None else size
        self._bitmap: Bitmap = NO_BITMAP if bitmap is None else bitmap
        self._file_offset = file_offset
        if not 0 < self._size <= len(backing):
            raise ModelError(f"a region has at least one byte, and no more than its backing: "
                             f"{self._size:#x} of {len(backing):#x}")
        if self._start.raw_value() + self._size > ADDRESS_END:
            raise ModelError(f"{self._size:#x} bytes at {self._start!r} go beyond 2^64-1")

    @property
    def backing(self) -> Backing:
        """Where the bytes are."""
        return self._backing

    def len(self) -> int:
        return self._size

    def start_addr(self) -> GuestAddress:
        return self._start

    def bitmap(self) -> Bitmap:
        return self._bitmap.slice_at(0)

    def get_host_address(self, addr: MemoryRegionAddress) -> memoryview:
        """As ``GuestMemoryRegion``; InvalidBackendAddress outside the region."""
        if not self.address_in_range(addr):
            raise InvalidBackendAddress
        if not isinstance(self._backing, HostMemory):
            raise HostAddressNotAvailable
        return memoryview(self._backing.data).cast("B")[addr.raw_value() : self._size]

    def file_offset(self) -> FileOffset | None:
        return self._file_offset

    def get_slice(self, offset: MemoryRegionAddress, count: int) -> VolatileSlice:
        """As ``GuestMemoryRegion``; InvalidBackendAddress where it does not lie in the region.
        No bytes lie also at its end."""
        try:
            whole = VolatileSlice(self._backing, 0, self._size, bitmap=self._bitmap)
            return whole.get_slice(offset.raw_value(), count)
        except VolatileMemoryError as error:
            raise guest_error_of(error) from error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._start.raw_value():#x}+{self._size:#x}>"
