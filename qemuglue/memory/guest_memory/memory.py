"""GuestMemory: memory at guest addresses, whatever lies between them and its bytes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qemuglue.errors import ModelError
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
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import (
    GuestMemoryError,
    PartialBuffer,
    all_or_error,
    some_or_error,
)
from qemuglue.memory.guest_memory.address_space import GuestAddressSpace
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.streams import reader, writer
from qemuglue.memory.volatile import VolatileMemoryError, VolatileSlice, guest_error_of

if TYPE_CHECKING:
    from qemuglue.memory.guest_memory.backend import GuestMemoryBackend


class GuestMemory(Bytes[GuestAddress], GuestAddressSpace[Any]):
    """Memory that is accessed at guest addresses: physical ones, or an IOMMU's.

    ``Bytes`` is done here once, over ``get_slices``. An access that the map ends early is short;
    one that it does not even begin raises. Where a slice's own backing refuses (a device, say)
    it is the same. Known here as in the crate:

    - A range whose end is exactly 2^64 goes on at 0, if anything is there.
    - ``store`` and ``load`` are one access in the first slice, and InvalidBackendAddress where
      the value does not lie in it whole and aligned.

    Different from the crate: a stream that gives less than a slice holds ends
    ``read_volatile_from``. vm-memory 0.18 goes on with the next slice, so that bytes read
    after a short read lie behind a gap, and the count it returns says nothing of that.
    """

    __slots__ = ()

    @abstractmethod
    def check_range(self, addr: GuestAddress, count: int, access: Permissions) -> bool:
        """Whether ``count`` bytes from ``addr`` on may be accessed like that."""

    @abstractmethod
    def get_slices(
        self, addr: GuestAddress, count: int, access: Permissions
    ) -> Iterator[VolatileSlice]:
        """The pieces of memory that ``count`` bytes from ``addr`` on are, in order. Taken to the
        end they are ``count`` bytes together. Where there is none, ``next`` raises
        GuestMemoryError, after which the iterator has ended. No bytes are no pieces."""

    def physical_memory(self) -> GuestMemoryBackend[Any] | None:
        """The memory itself if nothing lies between it and these addresses; else None."""
        return None

    def memory(self) -> Self:
        """This memory: a map that never changes is its own snapshot."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    # -- Bytes -------------------------------------------------------------------------------

    def write(self, buf: Readable, addr: GuestAddress) -> int:
        """As ``Bytes.write``: raises what the first slice raises, and is short where a later one
        does."""
        return some_or_error(*self._write(readable(buf), addr))

    def read(self, buf: Writable, addr: GuestAddress) -> int:
        """As ``Bytes.read``: raises what the first slice raises, and is short where a later one
        does."""
        return some_or_error(*self._read(writable(buf), addr))

    def write_slice(self, buf: Readable, addr: GuestAddress) -> None:
        """As ``Bytes.write_slice``; what stopped it is the ``__cause__`` of PartialBuffer."""
        data = readable(buf)
        all_or_error(len(data), *self._write(data, addr))

    def read_slice(self, buf: Writable, addr: GuestAddress) -> None:
        """As ``Bytes.read_slice``; what stopped it is the ``__cause__`` of PartialBuffer."""
        view = writable(buf)
        all_or_error(len(view), *self._read(view, addr))

    def read_volatile_from(self, addr: GuestAddress, src: object, count: int) -> int:
        """As ``Bytes``: the stream is not touched where nothing can be written at ``addr``, and
        read once a slice. Its error is raised, and the count so far is lost, as in the crate."""
        source = reader(src)
        done = 0
        for piece in stop_on_error(self.get_slices(addr, count, Permissions.Write)):
            try:
                n = piece.read_volatile_from(0, source, piece.len())
            except VolatileMemoryError as error:
                raise guest_error_of(error) from error.__cause__
            except GuestMemoryError:
                if not done:
                    raise
                break
            done += n
            if n < piece.len():
                break
        return done

    def read_exact_volatile_from(self, addr: GuestAddress, src: object, count: int) -> None:
        """As ``read_volatile_from``, and PartialBuffer unless that was all: as in the crate a
        stream that gives less is not asked again, which a VolatileSlice would do."""
        done = self.read_volatile_from(addr, src, count)
        if done != count:
            raise PartialBuffer(count, done)

    def write_volatile_to(self, addr: GuestAddress, dst: object, count: int) -> int:
        """As ``Bytes``: every slice is written whole. The stream's error is raised, and the count
        so far is lost, as in the crate."""
        sink = writer(dst)
        done = 0
        for piece in stop_on_error(self.get_slices(addr, count, Permissions.Read)):
            try:
                piece.write_all_volatile_to(0, sink, piece.len())
            except VolatileMemoryError as error:
                raise guest_error_of(error) from error.__cause__
            except GuestMemoryError:
                if not done:
                    raise
                break
            done += piece.len()
        return done

    def store(
        self, value: ByteValued, addr: GuestAddress, order: Ordering = Ordering.RELAXED
    ) -> None:
        """One access in the first slice. Raises what ``get_slices`` raises for it, and
        InvalidBackendAddress where ``value`` does not lie in it whole and aligned."""
        size = len(byte_valued(value).raw)
        piece = self._first(addr, size, Permissions.Write)
        try:
            piece.store(value, 0, order)
        except VolatileMemoryError as error:
            raise guest_error_of(error) from error

    def load(self, addr: GuestAddress, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        """One access in the first slice. Raises as ``store`` does."""
        piece = self._first(addr, size_of(cls), Permissions.Read)
        try:
            return piece.load(0, cls, order)
        except VolatileMemoryError as error:
            raise guest_error_of(error) from error

    # -- inside ------------------------------------------------------------------------------

    def _first(self, addr: GuestAddress, size: int, access: Permissions) -> VolatileSlice:
        piece = next(iter(self.get_slices(addr, size, access)), None)
        if piece is None:
            raise ModelError("a value of no bytes is no single access")
        return piece

    def _write(self, data: bytes, addr: GuestAddress) -> tuple[int, GuestMemoryError | None]:
        return self._moved(
            addr, len(data), Permissions.Write,
            lambda piece, at: piece.write(data[at : at + piece.len()], 0))

    def _read(self, view: memoryview, addr: GuestAddress) -> tuple[int, GuestMemoryError | None]:
        return self._moved(
            addr, len(view), Permissions.Read,
            lambda piece, at: piece.read(view[at : at + piece.len()], 0))

    def _moved(
        self, addr: GuestAddress, count: int, access: Permissions,
        move: Callable[[VolatileSlice, int], int],
    ) -> tuple[int, GuestMemoryError | None]:
        """(bytes moved, what ended it early). ``move(piece, at)`` moves what it can of a piece
        that is ``at`` bytes into the access; a piece that is moved in part ends it."""
        done = 0
        try:
            for piece in self.get_slices(addr, count, access):
                n = move(piece, done)
                done += n
                if n < piece.len():
                    break
        except VolatileMemoryError as error:
            return done, guest_error_of(error)
        except GuestMemoryError as error:
            return done, error
        return done, None


def stop_on_error(pieces: Iterable[VolatileSlice]) -> Iterator[VolatileSlice]:
    """``pieces`` up to the first error, which ends them in silence; but where already the first
    one is an error, raise it, here and now (``GuestMemorySliceIterator::stop_on_error``)."""
    rest = iter(pieces)
    first = next(rest, None)
    return iter(()) if first is None else _until_error(first, rest)


def _until_error(
    first: VolatileSlice, rest: Iterator[VolatileSlice]
) -> Iterator[VolatileSlice]:
    yield first
    while True:
        try:
            piece = next(rest, None)
        except GuestMemoryError:
            return
        if piece is None:
            return
        yield piece
