"""VolatileSlice: a window onto memory that others use at the same time.

vm-memory's (``src/volatile_memory.rs``, 0.18), over any ``Backing``: the bytes of this process,
shared memory, another process's, a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import atomic_of, load_order, store_order
from qemuglue.memory.backing import Backing
from qemuglue.memory.bitmap import NO_BITMAP, Bitmap
from qemuglue.memory.byte_valued import offset_in_owner
from qemuglue.memory.bytes import (
    Bytes,
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
from qemuglue.memory.guest_error import ErrorKind, GuestIOError, GuestMemoryError
from qemuglue.memory.streams import reader, retry_eintr, writer
from qemuglue.memory.volatile.array_ref import VolatileArrayRef
from qemuglue.memory.volatile.error import (
    Misaligned,
    OutOfBounds,
    VolatileIOError,
    VolatilePartialBuffer,
    compute_offset,
    usize,
)
from qemuglue.memory.volatile.guard import PtrGuard, PtrGuardMut
from qemuglue.memory.volatile.memory import VolatileMemory
from qemuglue.memory.volatile.window import (
    MAX_UNIT,
    PAGE,
    PlacedView,
    alignment,
    base_of,
    host_view,
    load_one,
    store_one,
    units,
)

T = TypeVar("T")


class VolatileSlice(VolatileMemory, Bytes[int]):
    """``size`` bytes of ``backing`` from ``offset`` on (all the rest of it without a size).

    Offsets in it are plain numbers from 0. ``bitmap`` begins where the slice does (give it
    ``bitmap.slice_at(offset)`` of a region's); it is told of every write, never of a read, after
    the bytes are there. Raises ModelError for a window that the backing does not have.

    As Bytes it raises VolatileMemoryErrors:

    - ``write`` and ``read`` move what fits; OutOfBounds with the offset if not one byte does. An
      empty buffer is 0 wherever it is.
    - the ``_slice`` and ``_obj`` forms move all or raise VolatilePartialBuffer. It does not matter
      to them how the value lies.
    - ``store`` and ``load`` are one access: OutOfBounds with its *end*, Overflow, Misaligned.
    - A stream's error is VolatileIOError.

    Up to 8 bytes are copied in units of 8, 4, 2 and 1 as large as both sides are aligned to,
    each one access; more than that is one copy. What a backing raises (a device refused: a
    GuestMemoryError) goes through where nothing was moved before, and otherwise ends the access
    as its end would. Bytes that a backing refused count as dirty: nobody knows how many of them
    arrived. (The crate takes the same view of a failed ``read`` system call.)

    Addresses are the host's where the backing has a ``host_address``; see ``host_addr``.
    """

    __slots__ = ("_backing", "_bitmap", "_offset", "_size")

    def __init__(
        self, backing: Backing, offset: int = 0, size: int | None = None, *,
        bitmap: Bitmap | None = None,
    ) -> None:
        have = len(backing)
        if size is None:
            size = have - usize(offset)
        if usize(offset) + size > have or size < 0:
            raise ModelError(
                f"a backing of {have:#x} bytes has no {size:#x} bytes at {offset:#x}"
            )
        self._backing = backing
        self._offset = offset
        self._size = usize(size)
        self._bitmap = NO_BITMAP if bitmap is None else bitmap

    @classmethod
    def from_buffer(cls, buf: Writable) -> VolatileSlice:
        """All of a bytearray or writable memoryview (Rust: ``From<&mut [u8]>``)."""
        return cls(PlacedView(memoryview(buf), offset_in_owner(buf)))

    # -- what it is --------------------------------------------------------------------------

    @property
    def backing(self) -> Backing:
        """What the bytes live in."""
        return self._backing

    @property
    def offset_in_backing(self) -> int:
        """Where in it the slice begins."""
        return self._offset

    @property
    def host_addr(self) -> int:
        """The address of the first byte, by which alignment is judged: the backing's
        ``host_address`` plus the offset in it. A backing that has none counts from 0: it is
        taken to begin at a page."""
        return base_of(self._backing) + self._offset

    def len(self) -> int:
        """Bytes."""
        return self._size

    def __len__(self) -> int:
        return self._size

    def bitmap(self) -> Bitmap:
        """What is told of writes; it begins where the slice does."""
        return self._bitmap

    def replace_bitmap(self, bitmap: Bitmap) -> VolatileSlice:
        """The same bytes with another bitmap, which begins where the slice does."""
        return self._part(0, self._size, bitmap)

    # -- parts -------------------------------------------------------------------------------

    def get_slice(self, offset: int, count: int) -> VolatileSlice:
        """``subslice``."""
        return self.subslice(offset, count)

    def subslice(self, offset: int, count: int) -> VolatileSlice:
        """``count`` bytes from ``offset`` on. Raises OutOfBounds (with their end) and
        Overflow."""
        self.compute_end_offset(offset, count)
        return self._part(offset, count, self._bitmap.slice_at(offset))

    def offset(self, count: int) -> VolatileSlice:
        """All but the first ``count`` bytes. Raises OutOfBounds and Overflow with addresses of
        the host (``host_addr``), where all else here counts from the slice's start."""
        addr = compute_offset(self.host_addr, count)
        if count > self._size:
            raise OutOfBounds(addr)
        return self._part(count, self._size - count, self._bitmap.slice_at(count))

    def split_at(self, mid: int) -> tuple[VolatileSlice, VolatileSlice]:
        """The first ``mid`` bytes, and the rest. Raises as ``offset``."""
        rest = self.offset(mid)
        return self._part(0, mid, self._bitmap), rest

    def ptr_guard(self) -> PtrGuard:
        """The bytes to look at. Raises HostAddressNotAvailable where there are none here."""
        return PtrGuard(host_view(self._backing, self._offset, self._size))

    def ptr_guard_mut(self) -> PtrGuardMut:
        """The bytes to change; the bitmap is not told. Raises HostAddressNotAvailable."""
        return PtrGuardMut(host_view(self._backing, self._offset, self._size))

    def check_alignment(self, align: int) -> None:
        """Raises Misaligned unless ``host_addr`` is a multiple of ``align``."""
        addr = self.host_addr
        if addr % align:
            raise Misaligned(addr, align)

    # -- copies ------------------------------------------------------------------------------

    def copy_to(self, buf: Writable | list[V], cls: type[V] | None = None) -> int:
        """Read into ``buf`` as much as there is in both; how many. With a type, ``buf`` is a
        list of values (``VolatileArrayRef.copy_to``), otherwise it is bytes."""
        if cls is not None:
            if not isinstance(buf, list):
                raise ModelError(f"{cls.__name__} values go to a list, got {type(buf).__name__}")
            return self._array(cls).copy_to(buf)
        if isinstance(buf, list):
            raise ModelError("say what type of values the list holds")
        view = writable(buf)[: self._size]
        done, error = self._get(0, view, _alignment_of(buf, len(view)))
        if error is not None:
            raise error
        return done

    def copy_from(self, buf: Readable | Sequence[V]) -> None:
        """Write as much of ``buf``, bytes or values of one type, as there is room for."""
        if not isinstance(buf, bytes | bytearray | memoryview):
            if len(buf):
                self._array(type(byte_valued(buf[0]))).copy_from(buf)
            return
        data = readable(buf)[: self._size]
        _, error = self._put(0, data, _alignment_of(buf, len(data)))
        if error is not None:
            raise error

    def copy_to_volatile_slice(self, dst: VolatileSlice) -> None:
        """Copy as many bytes as both have, in one piece; ``dst``'s are marked dirty. They may
        overlap."""
        count = min(self._size, dst._size)
        if not count:
            return
        data = self._backing.read(self._offset, count)
        try:
            dst._backing.write(dst._offset, data)
        finally:
            dst._bitmap.mark_dirty(0, count)

    # -- Bytes -------------------------------------------------------------------------------

    def write(self, buf: Readable, addr: int) -> int:
        """As much of ``buf`` as there is room for from ``addr`` on; how many bytes. Raises
        OutOfBounds if there is none for the first."""
        done, error = self._write(buf, addr)
        if error is not None and not done:
            raise error
        return done

    def read(self, buf: Writable, addr: int) -> int:
        """As many bytes as there are from ``addr`` on into ``buf``; how many. Raises
        OutOfBounds if there is not one."""
        done, error = self._read(buf, addr)
        if error is not None and not done:
            raise error
        return done

    def write_slice(self, buf: Readable, addr: int) -> None:
        """All of ``buf``. Raises as ``write``, and VolatilePartialBuffer."""
        _all(memoryview(buf).nbytes, *self._write(buf, addr))

    def read_slice(self, buf: Writable, addr: int) -> None:
        """All of ``buf``. Raises as ``read``, and VolatilePartialBuffer."""
        _all(memoryview(buf).nbytes, *self._read(buf, addr))

    def read_volatile_from(self, addr: int, src: object, count: int) -> int:
        """One read of up to ``count`` bytes from the stream ``src``, as many as there is room
        for from ``addr`` on; how many came. Raises as ``offset`` (so none at the very end is 0),
        and VolatileIOError."""
        room = min(self.offset(addr).len(), usize(count))
        source = reader(src)
        data = _streamed(lambda: retry_eintr(lambda: source.read_volatile(room)))
        done, error = self._put(addr, data, PAGE)
        if error is not None and not done:
            raise error
        return done

    def read_exact_volatile_from(self, addr: int, src: object, count: int) -> None:
        """``count`` bytes from the stream ``src``, in as many reads as that needs. Raises as
        ``subslice``, and VolatileIOError: UNEXPECTED_EOF where the stream ends before. What
        came before that stays written; nothing is read of bytes that are too few."""
        part = self.subslice(addr, count)
        source = reader(src)
        left = source.left()
        done = 0
        while done < count:
            data = b""
            if left is None or left >= count:
                rest = count - done
                data = _streamed(lambda: retry_eintr(lambda: source.read_volatile(rest)))  # noqa: B023
            if not data:
                raise VolatileIOError(ErrorKind.UNEXPECTED_EOF, "failed to fill whole buffer")
            n, error = part._put(done, data, PAGE)
            if error is not None:
                raise error
            done += n

    def write_volatile_to(self, addr: int, dst: object, count: int) -> int:
        """One write of up to ``count`` bytes, as many as there are from ``addr`` on, to the
        stream ``dst``; how many it took. Raises as ``read_volatile_from``."""
        part = self.offset(addr)
        sink = writer(dst)
        buf = memoryview(bytearray(min(part._size, usize(count))))
        done, error = part._get(0, buf, PAGE)
        if error is not None and not done:
            raise error
        data = bytes(buf[:done])
        return _streamed(lambda: retry_eintr(lambda: sink.write_volatile(data)))

    def write_all_volatile_to(self, addr: int, dst: object, count: int) -> None:
        """``count`` bytes to the stream ``dst``, in as many writes as that needs. Raises as
        ``subslice``, VolatileIOError: WRITE_ZERO where the stream takes no more, and what the
        backing raises where it gives less than all of them: then the stream gets none."""
        part = self.subslice(addr, count)
        sink = writer(dst)
        buf = bytearray(count)
        _, error = part._get(0, memoryview(buf), PAGE)
        if error is not None:
            raise error
        data = bytes(buf)
        _streamed(lambda: sink.write_all_volatile(data))

    def store(self, value: ByteValued, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        """Write ``value`` in one access. Raises OutOfBounds (its end), Overflow, Misaligned;
        ModelError for values that no access is as large as (``atomic_of``)."""
        cls = type(byte_valued(value))
        part = self.subslice(addr, atomic_of(cls).size)
        part.check_alignment(part._size)
        store_order(order)
        part._store(0, value.raw)

    def load(self, addr: int, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        """Read a value of type ``cls`` in one access. Raises as ``store``."""
        part = self.subslice(addr, atomic_of(cls).size)
        part.check_alignment(part._size)
        load_order(order)
        return cls.from_raw(part._load(0, part._size))

    # -- inside: offsets here were checked -----------------------------------------------------

    def _part(self, offset: int, size: int, bitmap: Bitmap) -> VolatileSlice:
        part = VolatileSlice.__new__(VolatileSlice)
        part._backing = self._backing
        part._offset = self._offset + offset
        part._size = size
        part._bitmap = bitmap
        return part

    def _array(self, cls: type[V]) -> VolatileArrayRef[V]:
        """As many values of type ``cls`` as there is room for."""
        return self.get_array_ref(0, self._size // (size_of(cls) or 1), cls)

    def _load(self, at: int, size: int) -> bytes:
        """``size`` bytes in one access."""
        return load_one(self._backing, self._offset + at, size)

    def _store(self, at: int, raw: bytes) -> None:
        """``raw`` in one access."""
        try:
            store_one(self._backing, self._offset + at, raw)
        finally:
            self._bitmap.mark_dirty(at, len(raw))

    def _store_each(self, raws: Sequence[bytes]) -> None:
        """``raws`` one behind the other, in one access each."""
        at = 0
        try:
            for raw in raws:
                at += len(raw)
                store_one(self._backing, self._offset + at - len(raw), raw)
        finally:
            self._bitmap.mark_dirty(0, at)

    def _write(self, buf: Readable, addr: int) -> tuple[int, Exception | None]:
        """(bytes written, what ended it early)."""
        data = readable(buf)
        if not data:
            return 0, None
        room = self._size - usize(addr)
        if room <= 0:
            return 0, OutOfBounds(addr)
        data = data[:room]
        return self._put(addr, data, _alignment_of(buf, len(data)))

    def _read(self, buf: Writable, addr: int) -> tuple[int, Exception | None]:
        """(bytes read, what ended it early)."""
        view = writable(buf)
        if not view.nbytes:
            return 0, None
        room = self._size - usize(addr)
        if room <= 0:
            return 0, OutOfBounds(addr)
        view = view[:room]
        return self._get(addr, view, _alignment_of(buf, len(view)))

    def _put(self, at: int, data: bytes, align: int) -> tuple[int, Exception | None]:
        """Copy ``data``, which lies in a buffer aligned to ``align``, to ``at``."""
        start, total = self._offset + at, len(data)
        done = reached = 0
        try:
            if total > MAX_UNIT:
                reached = total
                self._backing.write(start, data)
                done = total
            else:
                align = min(align, alignment(self.host_addr + at))
                for unit in units(align, total):
                    reached = done + unit
                    store_one(self._backing, start + done, data[done:reached])
                    done = reached
        except GuestMemoryError as error:
            return done, error
        finally:
            if reached:
                self._bitmap.mark_dirty(at, reached)
        return done, None

    def _get(self, at: int, view: memoryview, align: int) -> tuple[int, Exception | None]:
        """Fill ``view``, which lies in a buffer aligned to ``align``, from ``at`` on."""
        start, total = self._offset + at, len(view)
        done = 0
        try:
            if total > MAX_UNIT:
                data = self._backing.read(start, total)
                view[: len(data)] = data
                return len(data), None
            align = min(align, alignment(self.host_addr + at))
            for unit in units(align, total):
                view[done : done + unit] = load_one(self._backing, start + done, unit)
                done += unit
        except GuestMemoryError as error:
            return done, error
        return done, None

    def __repr__(self) -> str:
        return f"<VolatileSlice of {self._size:#x} bytes at {self._offset:#x} of {self._backing!r}>"


def _alignment_of(buf: Readable, used: int) -> int:
    """What the caller's buffer is aligned to, where that matters."""
    return alignment(offset_in_owner(buf)) if used <= MAX_UNIT else PAGE


def _all(expected: int, done: int, error: Exception | None) -> None:
    if error is not None and not done:
        raise error
    if done != expected:
        raise VolatilePartialBuffer(expected, done) from error


def _streamed(call: Callable[[], T]) -> T:
    """What a stream answers. Raises VolatileIOError for its GuestIOError."""
    try:
        return call()
    except GuestIOError as error:
        raise VolatileIOError(error.kind, error.text) from error
