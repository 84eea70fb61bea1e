"""Bytes: the contract of everything that can be read and written at an address.

One contract for guest memory (address: ``GuestAddress``), a region of it
(``MemoryRegionAddress``) and whatever else holds bytes. Names, argument order and rules are those
of vm-memory 0.18 (``src/bytes.rs``):

- ``write`` and ``read`` move as many bytes as they can and return how many. An empty buffer is 0,
  whatever the address. If not even the first byte can be moved they raise; if a later one cannot,
  the count is short.
- ``write_slice`` and ``read_slice`` move all or raise: what ``write`` or ``read`` raised, or
  PartialBuffer. What was moved before the error stays moved.
- ``write_obj`` and ``read_obj`` do that with a value's bytes.
- ``read_volatile_from`` and ``write_volatile_to`` move up to ``count`` bytes from a stream into
  memory and from memory to a stream, and return how many; the ``exact`` and ``all`` forms move
  all or raise. What streams are, ``streams`` says.
- ``store`` and ``load`` are one access of the value's size, never cut.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.byte_valued import ByteValuedType
from qemuglue.memory.endian import untyped
from qemuglue.memory.guest_error import PartialBuffer
from qemuglue.memory.streams import MAX_TRANSFER, reader, retry_eintr, writer

Readable = bytes | bytearray | memoryview
Writable = bytearray | memoryview


class ByteValued(Protocol):
    """A value that is a fixed number of bytes in memory, all of which are its own: any such
    bytes are a value. ``endian``'s integers are."""

    #: Bytes in memory.
    size: ClassVar[int]

    @property
    def raw(self) -> bytes:
        """The ``size`` bytes as they stand in memory."""

    @classmethod
    def from_raw(cls, data: bytes | bytearray | memoryview) -> Self:
        """The value whose bytes are ``data``, exactly ``size`` of them."""


A = TypeVar("A", contravariant=True)
B = TypeVar("B", bound=ByteValued)
V = TypeVar("V", bound=ByteValued)


class Ordering(enum.Enum):
    """``std::sync::atomic::Ordering``: how an atomic access is ordered with others."""

    RELAXED = "relaxed"
    RELEASE = "release"
    ACQUIRE = "acquire"
    ACQ_REL = "acquire-release"
    SEQ_CST = "sequentially consistent"


class Bytes(ABC, Generic[A]):
    """Something that holds bytes, accessed at addresses of type ``A``."""

    __slots__ = ()

    @abstractmethod
    def write(self, buf: Readable, addr: A) -> int:
        """Write ``buf`` at ``addr``; the number of bytes written, at least 1 unless ``buf`` is
        empty. Raises GuestMemoryError if not even the first can be written."""

    @abstractmethod
    def read(self, buf: Writable, addr: A) -> int:
        """Fill ``buf`` from ``addr``; the number of bytes read, at least 1 unless ``buf`` is
        empty. What lies in ``buf`` behind them is undefined. Raises GuestMemoryError if not
        even the first can be read."""

    def write_slice(self, buf: Readable, addr: A) -> None:
        """Write all of ``buf``. Raises what ``write`` does, and PartialBuffer."""
        done = self.write(buf, addr)
        size = memoryview(buf).nbytes
        if done != size:
            raise PartialBuffer(size, done)

    def read_slice(self, buf: Writable, addr: A) -> None:
        """Fill all of ``buf``. Raises what ``read`` does, and PartialBuffer."""
        done = self.read(buf, addr)
        size = memoryview(buf).nbytes
        if done != size:
            raise PartialBuffer(size, done)

    def write_obj(self, value: ByteValued, addr: A) -> None:
        """Write the bytes of ``value``, as ``write_slice`` does: perhaps in several accesses.
        Raises ModelError for a value that has none, such as a plain integer."""
        self.write_slice(byte_valued(value).raw, addr)

    def read_obj(self, addr: A, cls: type[V]) -> V:
        """A value of type ``cls``, read as ``read_slice`` does: perhaps in several accesses."""
        buf = bytearray(size_of(cls))
        self.read_slice(buf, addr)
        return cls.from_raw(buf)

    def read_volatile_from(self, addr: A, src: object, count: int) -> int:
        """Read up to ``count`` bytes from ``src``, once, and write them at ``addr``; how many were
        written, which is 0 at the end of ``src``. Raises GuestIOError for what the stream raises
        (it is asked again where it was interrupted), and what ``write`` raises. Bytes that were
        read and could not be written are lost."""
        source = reader(src)
        wanted = min(_count(count), MAX_TRANSFER)
        return self.write(retry_eintr(lambda: source.read_volatile(wanted)), addr)

    def read_exact_volatile_from(self, addr: A, src: object, count: int) -> None:
        """Read exactly ``count`` bytes from ``src`` and write them at ``addr``. Raises as
        ``read_volatile_from`` does, and PartialBuffer with the number of bytes written."""
        source = reader(src)
        data = bytearray()
        while len(data) < _count(count):
            wanted = count - len(data)
            part = retry_eintr(lambda: source.read_volatile(wanted))  # noqa: B023
            if not part:
                break
            data += part
        done = self.write(data, addr)
        if done != count:
            raise PartialBuffer(count, done)

    def write_volatile_to(self, addr: A, dst: object, count: int) -> int:
        """Read up to ``count`` bytes at ``addr`` and write them to ``dst``; how many. All that
        was read is written, for a second read of a device might give something else: a stream
        that takes less is GuestIOError (WRITE_ZERO). Raises what ``read`` raises."""
        sink = writer(dst)
        buf = bytearray(min(_count(count), MAX_TRANSFER))
        done = self.read(buf, addr)
        sink.write_all_volatile(bytes(buf[:done]))
        return done

    def write_all_volatile_to(self, addr: A, dst: object, count: int) -> None:
        """Read exactly ``count`` bytes at ``addr`` and write them to ``dst``. Raises as
        ``write_volatile_to`` does, and PartialBuffer with the number of bytes moved."""
        done = self.write_volatile_to(addr, dst, count)
        if done != count:
            raise PartialBuffer(count, done)

    @abstractmethod
    def store(self, value: ByteValued, addr: A, order: Ordering = Ordering.RELAXED) -> None:
        """Write ``value`` in one access. Raises GuestMemoryError if that cannot be done, and
        ModelError for a value that does not say its size and byte order."""

    @abstractmethod
    def load(self, addr: A, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        """Read a value of type ``cls`` in one access. Raises as ``store`` does."""


def byte_valued(value: B) -> B:
    """``value`` itself if it has bytes; else ModelError that tells why a plain integer has none."""
    if isinstance(value, ByteValuedType) or (
        not isinstance(value, int | type) and isinstance(getattr(value, "raw", None), bytes)
    ):
        return value
    raise untyped(value)


def size_of(cls: type[ByteValued]) -> int:
    """Bytes that a value of ``cls`` is in memory; a structure may have none. Raises ModelError
    for other classes."""
    size = getattr(cls, "size", None)
    if (
        isinstance(cls, type) and isinstance(size, int) and hasattr(cls, "from_raw")
        and (size or not issubclass(cls, int))
    ):
        return size
    raise untyped(cls)


def _count(count: int) -> int:
    if not isinstance(count, int) or count < 0:
        raise ModelError(f"a count of bytes is 0 or more, got {count!r}")
    return count


def readable(buf: Readable) -> bytes:
    """What is in ``buf`` now. Raises ModelError for what holds no bytes."""
    return buf if isinstance(buf, bytes) else bytes(_view(buf))


def writable(buf: Writable) -> memoryview:
    """``buf`` as single bytes that can be filled. Raises ModelError for what cannot."""
    view = _view(buf)
    if view.readonly:
        raise ModelError("a buffer to read into must be writable: a bytearray, say")
    return view


def _view(buf: Readable) -> memoryview:
    try:
        view = memoryview(buf)
        return view if view.format == "B" and view.ndim == 1 else view.cast("B")
    except TypeError:
        raise ModelError(
            f"a buffer is bytes, a bytearray or a contiguous memoryview, not {type(buf).__name__}"
        ) from None
