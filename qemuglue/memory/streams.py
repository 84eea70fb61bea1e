"""Streams that memory is filled from or emptied into: vm-memory's ReadVolatile and WriteVolatile.

``Bytes.read_volatile_from`` and its three kin take

====================  ==================================  ===================================
object                as a source                         as a sink
====================  ==================================  ===================================
binary file, raw or   one ``read1`` (else ``read``)       one ``write``
buffered, ``BytesIO``
socket                one ``recv``                        one ``send``
bytes, memoryview     from its start (``SliceReader``)    over it (``SliceWriter``; writable)
bytearray             from its start                      appended to it, as Rust's Vec is
``ReadVolatile``      itself                              ``WriteVolatile``: itself
====================  ==================================  ===================================

One call moves what one ``read`` or ``write`` of the operating system would: perhaps less than
asked for. An interrupted call (InterruptedError) is made again. Other OSErrors are GuestIOError,
with the OSError as ``__cause__``; so is a non-blocking file that has nothing (WOULD_BLOCK).

From the crate (``src/io.rs``, 0.18) this differs in one way: a stream gives and takes bytes, not
the slice itself, so that nothing of the memory is touched (or marked dirty) by a read that
fails. The crate hands the operating system a pointer and must take all of it for dirty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from io import BytesIO
from typing import Any, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.guest_error import ErrorKind, GuestIOError

Readable = bytes | bytearray | memoryview

#: One call moves no more than this: what Linux moves at most in one ``read``.
MAX_TRANSFER = 0x7FFFF000

#: A file is asked for this much at a time, and again while it gives all of it: Python allocates
#: what is asked for before it looks what there is. No pipe or socket gives so much at once, so
#: that nothing that could wait is asked twice.
CHUNK = 16 << 20

T = TypeVar("T")


class ReadVolatile(ABC):
    """A source of bytes."""

    __slots__ = ()

    @abstractmethod
    def read_volatile(self, count: int) -> bytes:
        """The next bytes, at most ``count``, as one read gives them; none at the end.
        Raises GuestIOError, INTERRUPTED included: who calls tries again (``retry_eintr``)."""

    def left(self) -> int | None:
        """How many bytes there still are, where the source knows: it is then not read for an
        exact count that it does not hold."""
        return None


class WriteVolatile(ABC):
    """A sink of bytes."""

    __slots__ = ()

    @abstractmethod
    def write_volatile(self, data: bytes) -> int:
        """Take the first bytes of ``data``, as many as one write takes; how many.
        Raises GuestIOError, INTERRUPTED included."""

    def write_all_volatile(self, data: bytes) -> None:
        """Take all of ``data`` in as many writes as that needs. Raises GuestIOError, WRITE_ZERO
        when the sink takes no more; what it took before that stays taken."""
        while data:
            rest = data
            done = retry_eintr(lambda: self.write_volatile(rest))  # noqa: B023
            if not done:
                raise GuestIOError(ErrorKind.WRITE_ZERO, "failed to write whole buffer")
            data = data[done:]


class SliceReader(ReadVolatile):
    """Bytes read from their start to their end: Rust's ``&[u8]``."""

    __slots__ = ("_view",)

    def __init__(self, data: Readable) -> None:
        self._view = _flat(data)

    @property
    def remaining(self) -> bytes:
        """What was not read yet."""
        return bytes(self._view)

    def read_volatile(self, count: int) -> bytes:
        data = bytes(self._view[:count])
        self._view = self._view[len(data) :]
        return data

    def left(self) -> int:
        return len(self._view)


class SliceWriter(WriteVolatile):
    """A buffer of fixed size written from its start on: Rust's ``&mut [u8]``."""

    __slots__ = ("_view",)

    def __init__(self, buf: bytearray | memoryview) -> None:
        self._view = _flat(buf)
        if self._view.readonly:
            raise ModelError("a buffer to write to must be writable: a bytearray, say")

    @property
    def room(self) -> int:
        """Bytes it still takes."""
        return len(self._view)

    def write_volatile(self, data: bytes) -> int:
        n = min(len(data), len(self._view))
        self._view[:n] = data[:n]
        self._view = self._view[n:]
        return n


class _Appender(WriteVolatile):
    """A bytearray that grows: Rust's ``Vec<u8>``."""

    __slots__ = ("_data",)

    def __init__(self, data: bytearray) -> None:
        self._data = data

    def write_volatile(self, data: bytes) -> int:
        self._data += data
        return len(data)


class _FileReader(ReadVolatile):
    """A file or socket."""

    __slots__ = ("_file", "_read")

    def __init__(self, file: object, read: Callable[[int], Any]) -> None:
        self._file = file
        self._read = read

    def read_volatile(self, count: int) -> bytes:
        if not count:
            return b""
        count = min(count, MAX_TRANSFER)
        data = self._chunk(min(count, CHUNK))
        if len(data) < CHUNK or len(data) == count:
            return data
        parts = bytearray(data)
        while len(data) == CHUNK and len(parts) < count:
            try:
                data = self._chunk(min(count - len(parts), CHUNK))
            except GuestIOError:
                break  # who asks for more will hear it
            parts += data
        return bytes(parts)

    def _chunk(self, count: int) -> bytes:
        data = _asked(self._read, count)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ModelError(f"a stream here is one of bytes; it gave {type(data).__name__}")
        if len(data) > count:
            raise ModelError(f"the stream gave {len(data)} bytes where {count} were asked for")
        return bytes(data)

    def left(self) -> int | None:
        if not isinstance(self._file, BytesIO):
            return None
        return max(self._file.getbuffer().nbytes - self._file.tell(), 0)


class _FileWriter(WriteVolatile):
    """A file or socket."""

    __slots__ = ("_write",)

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write

    def write_volatile(self, data: bytes) -> int:
        if not data:
            return 0
        n = _asked(self._write, data)
        if not isinstance(n, int) or not 0 <= n <= len(data):
            raise ModelError(f"the stream says it took {n!r} bytes of {len(data)}")
        return n


def reader(src: object) -> ReadVolatile:
    """``src`` as a source: see the module's table. Raises ModelError for what is none."""
    if isinstance(src, ReadVolatile):
        return src
    if isinstance(src, bytes | bytearray | memoryview):
        return SliceReader(src)
    for name in ("recv", "read1", "read"):
        read = getattr(src, name, None)
        if callable(read):
            return _FileReader(src, read)
    raise ModelError(f"a source is a binary file, a socket or bytes, not {type(src).__name__}")


def writer(dst: object) -> WriteVolatile:
    """``dst`` as a sink: see the module's table. Raises ModelError for what is none."""
    if isinstance(dst, WriteVolatile):
        return dst
    if isinstance(dst, bytearray):
        return _Appender(dst)
    if isinstance(dst, memoryview):
        return SliceWriter(dst)
    for name in ("send", "write"):
        write = getattr(dst, name, None)
        if callable(write):
            return _FileWriter(write)
    raise ModelError(
        f"a sink is a binary file, a socket or a writable buffer, not {type(dst).__name__}"
    )


def retry_eintr(call: Callable[[], T]) -> T:
    """What ``call`` gives, which is called again for as long as it is interrupted."""
    while True:
        try:
            return call()
        except GuestIOError as error:
            if error.kind is not ErrorKind.INTERRUPTED:
                raise


def _asked(call: Callable[[Any], Any], what: int | bytes) -> Any:
    try:
        answer = call(what)
    except OSError as error:
        raise GuestIOError(_kind(error), str(error)) from error
    if answer is None:
        raise GuestIOError(ErrorKind.WOULD_BLOCK, "the stream has nothing to give or room to take")
    return answer


def _kind(error: OSError) -> ErrorKind:
    if isinstance(error, InterruptedError):
        return ErrorKind.INTERRUPTED
    if isinstance(error, BlockingIOError):
        return ErrorKind.WOULD_BLOCK
    if isinstance(error, BrokenPipeError):
        return ErrorKind.BROKEN_PIPE
    return ErrorKind.OTHER


def _flat(data: Readable) -> memoryview:
    view = memoryview(data)
    if not view.c_contiguous:
        raise ModelError("a buffer here is contiguous")
    return view.cast("B")
