"""MemoryMapping: some bytes, addressed by offset."""

from __future__ import annotations

from qemuglue.errors import ModelError
from qemuglue.memory.backing import Backing, HostMemory
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
from qemuglue.memory.guest_address import ADDRESS_END
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestIOError,
    GuestMemoryError,
    HostAddressNotAvailable,
    PartialBuffer,
)
from qemuglue.memory.memory_map.contract import MapBytes
from qemuglue.memory.memory_map.error import (
    InvalidAddress,
    InvalidRange,
    MemoryMappingFailed,
    ReadFromSource,
    WriteToDestination,
)
from qemuglue.memory.plain_number import plain_number
from qemuglue.memory.streams import reader, retry_eintr, writer
from qemuglue.memory.volatile import VolatileMemoryError, VolatileSlice, guest_error_of

#: A stream goes through pieces of this many bytes, so that one of gigabytes needs little memory.
STREAM_CHUNK = 1 << 20


class MemoryMapping(MapBytes[int]):
    """``size`` bytes of ``backing`` from ``offset`` on; by default all of it. Offsets of accesses
    count from 0 to ``size() - 1``.

    The first model mapped anonymous memory; here the bytes are any Backing's: a bytearray, memory
    shared with QEMU, another process's, a device. Raises MemoryMappingFailed for a part that the
    backing does not have, and for no bytes at all (``mmap`` refuses 0 as well).

    ``write``, ``read``, ``write_slice`` and ``read_slice`` are ``Bytes``'s. The first model had
    only one of each pair, named ``write_slice`` and ``read_slice``, and it did what ``write`` and
    ``read`` do: it gave a count and refused an empty buffer behind the end (InvalidAddress).
    Its objects and streams are kept: they are moved whole, or not at all.
    """

    __slots__ = ("_backing", "_offset", "_size")

    def __init__(self, backing: Backing, offset: int = 0, size: int | None = None) -> None:
        whole = len(backing)
        size = whole - offset if size is None else size
        if offset < 0 or size <= 0 or size > whole - offset:
            raise MemoryMappingFailed(
                f"a mapping is at least one byte of its backing of {whole:#x}, "
                f"not {size:#x} bytes from {offset:#x} on"
            )
        self._backing = backing
        self._offset = offset
        self._size = size

    @property
    def backing(self) -> Backing:
        """Where the bytes are."""
        return self._backing

    @property
    def offset_in_backing(self) -> int:
        """Where in the backing offset 0 is."""
        return self._offset

    def size(self) -> int:
        """Bytes, at least 1."""
        return self._size

    # -- bytes -------------------------------------------------------------------------------

    def write(self, buf: Readable, addr: int) -> int:
        """Write what fits, in one write of the backing; how many bytes. Raises InvalidAddress
        where not even one fits."""
        data = readable(buf)
        if not data:
            return 0
        at, room = self._room(addr, len(data))
        self._backing.write(at, data[:room])
        return min(len(data), room)

    def read(self, buf: Writable, addr: int) -> int:
        """Read what there is, in one read of the backing; how many bytes. Raises InvalidAddress
        where there is not even one."""
        view = writable(buf)
        if not view:
            return 0
        at, room = self._room(addr, len(view))
        data = self._backing.read(at, min(len(view), room))
        if not data:
            raise InvalidAddress(addr, len(view))
        view[: len(data)] = data
        return len(data)

    def write_obj(self, value: ByteValued, addr: int) -> None:
        """Write all bytes of ``value``. Raises InvalidAddress if they do not all fit: nothing is
        written then."""
        raw = byte_valued(value).raw
        self._backing.write(self._whole(addr, len(raw)), raw)

    def read_obj(self, addr: int, cls: type[V]) -> V:
        """A value of type ``cls``. Raises InvalidAddress if it is not all in the mapping."""
        size = size_of(cls)
        data = self._backing.read(self._whole(addr, size), size)
        if len(data) != size:
            raise PartialBuffer(size, len(data))
        return cls.from_raw(data)

    def store(self, value: ByteValued, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        """Write ``value`` in one access, as VolatileSlice does. The first model had no such
        method. Raises InvalidBackendAddress where it is misaligned or not all in the mapping."""
        offset = _number(addr)
        try:
            self._slice().store(value, offset, order)
        except VolatileMemoryError as error:
            raise guest_error_of(error) from error

    def load(self, addr: int, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        """Read a value of type ``cls`` in one access. Raises as ``store`` does."""
        offset = _number(addr)
        try:
            return self._slice().load(offset, cls, order)
        except VolatileMemoryError as error:
            raise guest_error_of(error) from error

    # -- streams -----------------------------------------------------------------------------

    def read_to_memory(self, addr: int, src: object, count: int) -> None:
        """Read exactly ``count`` bytes from ``src`` into memory. Raises InvalidRange if they do
        not all fit (also for a count of 0 behind the end) and then takes none from ``src``; and
        ReadFromSource, which tells how many came before ``src`` ended or failed."""
        at = self._stream(addr, count)
        source = reader(src)
        done = 0
        while done < count:
            want = min(count - done, STREAM_CHUNK)
            try:
                data = retry_eintr(lambda want=want: source.read_volatile(want))  # type: ignore[misc]
            except GuestIOError as error:
                raise ReadFromSource(error.kind, error.text, count, done) from error
            if not data:
                raise ReadFromSource(ErrorKind.UNEXPECTED_EOF, "", count, done)
            try:
                self._backing.write(at + done, data)
            except GuestMemoryError as error:
                _part_done(count, done, error)
                raise
            done += len(data)

    def write_from_memory(self, addr: int, dst: object, count: int) -> None:
        """Write exactly ``count`` bytes of memory to ``dst``. Raises InvalidRange as
        ``read_to_memory`` does; and WriteToDestination, which tells how many ``dst`` took."""
        at = self._stream(addr, count)
        sink = writer(dst)
        done = 0
        while done < count:
            try:
                data = self._backing.read(at + done, min(count - done, STREAM_CHUNK))
            except GuestMemoryError as error:
                _part_done(count, done, error)
                raise
            if not data:
                raise PartialBuffer(count, done)
            while data:
                try:
                    n = retry_eintr(lambda data=data: sink.write_volatile(data))  # type: ignore[misc]
                except GuestIOError as error:
                    raise WriteToDestination(error.kind, error.text, count, done) from error
                if not n:
                    raise WriteToDestination(ErrorKind.WRITE_ZERO, "", count, done)
                done += n
                data = data[n:]

    def room_at(self, addr: int) -> int:
        """Bytes from ``addr`` to the end. Raises InvalidAddress behind it."""
        return self._room(addr, 1)[1]

    # -- pointers ----------------------------------------------------------------------------

    def get_host_address(self, offset: int = 0) -> memoryview:
        """The bytes from ``offset`` on, as they lie in this process: what Python has for a
        pointer (first model: ``as_ptr``). Raises InvalidAddress, and HostAddressNotAvailable
        where they do not lie here."""
        at = self._whole(offset, 1)
        if not isinstance(self._backing, HostMemory):
            raise HostAddressNotAvailable
        data = memoryview(self._backing.data).cast("B")
        return data[at : self._offset + self._size]

    # -- inside ------------------------------------------------------------------------------

    def _room(self, offset: int, size: int) -> tuple[int, int]:
        """Where in the backing ``offset`` is, and the bytes from there to the end."""
        offset = _number(offset)
        if offset >= self._size:
            raise InvalidAddress(offset, size)
        return self._offset + offset, self._size - offset

    def _whole(self, offset: int, size: int) -> int:
        """Where in the backing ``size`` bytes at ``offset`` are."""
        offset = _number(offset)
        if size > self._size - offset:
            raise InvalidAddress(offset, size)
        return self._offset + offset

    def _stream(self, offset: int, count: int) -> int:
        offset = _number(offset)
        if count < 0:
            raise ModelError(f"a stream has a count of 0 or more, got {count}")
        if count > self._size - offset:
            raise InvalidRange(offset, count)
        return self._offset + offset

    def _slice(self) -> VolatileSlice:
        return VolatileSlice(self._backing, self._offset, self._size)

    def __repr__(self) -> str:
        return f"<MemoryMapping of {self._size:#x} bytes>"


def _part_done(count: int, done: int, error: GuestMemoryError) -> None:
    """Raise PartialBuffer for a backing's ``error`` if bytes were moved before it."""
    if done:
        raise PartialBuffer(count, done) from error


def _number(offset: int) -> int:
    """The offset. Raises ModelError for what is none."""
    number = plain_number(offset, "an offset here is a plain number")
    if not 0 <= number < ADDRESS_END:
        raise ModelError(f"an offset is 0 to 2^64-1, got {number:#x}")
    return number
