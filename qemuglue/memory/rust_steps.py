"""What a view and a section of the Rust face share: how an access in steps is told, and what
stands for an address.

``Stepped`` is ``Bytes`` over two functions that move what they can and say what ended it.

Over RAM all of it does what vm-memory 0.18 does over its regions, but for this, all of it tested
side by side with what the crate did:

- A hole is InvalidBackendAddress, as everything that QEMU refuses; vm-memory's is
  InvalidGuestAddress. (Slices, of which a hole has none, know both.)
- ``store`` and ``load`` need not be aligned.
- Streams of a section are moved as those of a view that ends with it; those of vm-memory's region
  are its slice's: what does not fit whole is not begun, and the end is no error.
- A short read of a stream leaves no gap (``GuestMemory`` tells of that).
- A buffer that could not be filled may be changed behind what was read.
"""

from __future__ import annotations

from abc import abstractmethod

from qemuglue.errors import ModelError
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.memory.bytes import A, Bytes, Readable, Writable, readable, writable
from qemuglue.memory.guest_address import Address, GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    GuestMemoryError,
    PartialBuffer,
    all_or_error,
    some_or_error,
)
from qemuglue.memory.plain_number import plain_number
from qemuglue.memory.streams import CHUNK, reader, retry_eintr, writer

#: Where in guest memory: an address, a plain number standing for one, or either with the
#: attributes of the transaction (otherwise MEMTXATTRS_UNSPECIFIED).
Place = GuestAddress | int | tuple[GuestAddress | int, MemTxAttrs]
#: Where in a section, likewise.
Offset = MemoryRegionAddress | int | tuple[MemoryRegionAddress | int, MemTxAttrs]


class Stepped(Bytes[A]):
    """Bytes that are moved in steps: what became of them is told in one way."""

    __slots__ = ()

    @abstractmethod
    def _write(self, data: bytes, addr: A) -> tuple[int, GuestMemoryError | None]:
        """(bytes written, what ended it early)."""

    @abstractmethod
    def _read(self, buf: memoryview, addr: A) -> tuple[int, GuestMemoryError | None]:
        """(bytes read, what ended it early)."""

    @abstractmethod
    def _ahead(self, addr: A, done: int) -> tuple[A, int]:
        """Where the access goes on ``done`` bytes behind ``addr``, and the bytes from there to the
        end of the section. Raises GuestMemoryError where there is none to go on in."""

    def write(self, buf: Readable, addr: A) -> int:
        """As ``flatview_write``, up to the first error; how many bytes were written before it.
        Raises it if there are none. The step that fails may have reached a device in part."""
        return some_or_error(*self._write(readable(buf), addr))

    def read(self, buf: Writable, addr: A) -> int:
        """As ``flatview_read``, up to the first error; how many bytes were read before it.
        Raises it if there are none. The step that fails leaves in ``buf`` what C leaves there:
        0 where the access was refused, what the device said where it failed."""
        return some_or_error(*self._read(writable(buf), addr))

    def write_slice(self, buf: Readable, addr: A) -> None:
        """Write all of ``buf``. Raises the error if nothing was written before it; else
        PartialBuffer, with the error as ``__cause__``."""
        data = readable(buf)
        all_or_error(len(data), *self._write(data, addr))

    def read_slice(self, buf: Writable, addr: A) -> None:
        """Fill all of ``buf``. Raises as ``write_slice`` does."""
        data = writable(buf)
        all_or_error(len(data), *self._read(data, addr))

    def read_volatile_from(self, addr: A, src: object, count: int) -> int:
        """As ``Bytes``, section by section: the stream is not touched where there is no section
        at ``addr``. Bytes that a device then refuses are lost, and so is the count where the
        stream fails."""
        source = reader(src)
        done = 0
        while done < count:
            try:
                at, room = self._ahead(addr, done)
            except GuestMemoryError:
                if not done:
                    raise
                break
            wanted = min(room, count - done, CHUNK)
            data = retry_eintr(lambda: source.read_volatile(wanted))  # noqa: B023
            written, refused = self._write(data, at)
            done += written
            if refused is not None and not done:
                raise refused
            if refused is not None or len(data) < wanted:
                break
        return done

    def read_exact_volatile_from(self, addr: A, src: object, count: int) -> None:
        """``read_volatile_from``, and PartialBuffer unless that was all."""
        done = self.read_volatile_from(addr, src, count)
        if done != count:
            raise PartialBuffer(count, done)

    def write_volatile_to(self, addr: A, dst: object, count: int) -> int:
        """As ``Bytes``, section by section. The count is lost where the stream fails."""
        sink = writer(dst)
        done = 0
        while done < count:
            try:
                at, room = self._ahead(addr, done)
            except GuestMemoryError:
                if not done:
                    raise
                break
            buf = bytearray(min(room, count - done, CHUNK))
            n, refused = self._read(memoryview(buf), at)
            sink.write_all_volatile(bytes(buf[:n]))
            done += n
            if refused is not None and not done:
                raise refused
            if refused is not None:
                break
        return done

    def write_all_volatile_to(self, addr: A, dst: object, count: int) -> None:
        """``write_volatile_to``, and PartialBuffer unless that was all."""
        done = self.write_volatile_to(addr, dst, count)
        if done != count:
            raise PartialBuffer(count, done)


def place_of(addr: Place) -> tuple[int, MemTxAttrs]:
    """Number and attributes. Raises ModelError for what is no place."""
    where, attrs = addr if isinstance(addr, tuple) else (addr, UNSPECIFIED)
    if not isinstance(attrs, MemTxAttrs):
        raise ModelError(f"an address goes with MemTxAttrs, got {attrs!r}")
    return address_of(where), attrs


def address_of(addr: GuestAddress | int) -> int:
    """The number. Raises ModelError for what is no guest address."""
    return addr.value if isinstance(addr, GuestAddress) else _number(addr, GuestAddress)


def offset_of(addr: MemoryRegionAddress | int) -> int:
    """The number. Raises ModelError for what is no offset in a region."""
    if isinstance(addr, MemoryRegionAddress):
        return addr.value
    return _number(addr, MemoryRegionAddress)


def _number(addr: int, cls: type[Address]) -> int:
    return cls(plain_number(addr, f"an address here is {cls.__name__}(…) or a plain number")).value
