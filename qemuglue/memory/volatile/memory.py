"""VolatileMemory: whatever gives slices of memory by offset (``src/volatile_memory.rs``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import AtomicInteger
from qemuglue.memory.byte_valued import ByteCell, align_of
from qemuglue.memory.bytes import V, size_of
from qemuglue.memory.volatile.array_ref import VolatileArrayRef
from qemuglue.memory.volatile.error import ISIZE_MAX, OutOfBounds, TooBig, compute_offset, usize
from qemuglue.memory.volatile.ref import VolatileRef

if TYPE_CHECKING:
    from qemuglue.memory.volatile.slice import VolatileSlice

I = TypeVar("I", bound=AtomicInteger[Any])  # noqa: E741


class VolatileMemory(ABC):
    """Memory at offsets from 0, counted in bytes.

    ``get_ref(offset, cls)`` and its kin take the type last, where Rust has it in ``::<T>``. Each
    raises OutOfBounds (the end of what was asked for) and Overflow.
    """

    __slots__ = ()

    @abstractmethod
    def len(self) -> int:
        """Bytes."""

    @abstractmethod
    def get_slice(self, offset: int, count: int) -> VolatileSlice:
        """``count`` bytes from ``offset`` on; none are there up to the end (inclusive)."""

    def is_empty(self) -> bool:
        """Whether there are no bytes."""
        return self.len() == 0

    def as_volatile_slice(self) -> VolatileSlice:
        """All of it."""
        return self.get_slice(0, self.len())

    def get_ref(self, offset: int, cls: type[V]) -> VolatileRef[V]:
        """The value at ``offset``, aligned or not."""
        return VolatileRef(self._exactly(offset, size_of(cls)), cls)

    def get_array_ref(self, offset: int, n: int, cls: type[V]) -> VolatileArrayRef[V]:
        """``n`` values from ``offset`` on. Raises TooBig if they are more than 2^63-1 bytes."""
        size = size_of(cls)
        if usize(n) * size > ISIZE_MAX:
            raise TooBig(n, size)
        return VolatileArrayRef(self._exactly(offset, n * size), cls)

    def aligned_as_ref(self, offset: int, cls: type[V]) -> ByteCell[V]:
        """The place at ``offset``, to look at as long as nobody else uses it. Raises Misaligned,
        and HostAddressNotAvailable where there is nothing to point at."""
        part = self._exactly(offset, size_of(cls))
        part.check_alignment(align_of(cls))
        return ByteCell(cls, part.ptr_guard().as_ptr())

    def aligned_as_mut(self, offset: int, cls: type[V]) -> ByteCell[V]:
        """The place at ``offset``, to change as long as nobody else uses it. No bitmap is told
        of that. Raises as ``aligned_as_ref``."""
        part = self._exactly(offset, size_of(cls))
        part.check_alignment(align_of(cls))
        return ByteCell(cls, part.ptr_guard_mut().as_ptr())

    def get_atomic_ref(self, offset: int, cls: type[I]) -> I:
        """The AtomicInteger at ``offset``. No bitmap is told of what is stored in it. Raises as
        ``aligned_as_ref``."""
        part = self._exactly(offset, cls.size)
        part.check_alignment(cls.size)
        return cls(part.ptr_guard_mut().as_ptr())

    def compute_end_offset(self, base: int, offset: int) -> int:
        """``base`` plus ``offset``, if ``offset`` bytes from ``base`` on are there: none are at
        the very end, too. Raises OutOfBounds (with that sum) and Overflow."""
        end = compute_offset(base, offset)
        if end > self.len():
            raise OutOfBounds(end)
        return end

    def _exactly(self, offset: int, count: int) -> VolatileSlice:
        part = self.get_slice(offset, count)
        # Somebody else's get_slice may do otherwise; in the crate this panics.
        if part.len() != count:
            raise ModelError(f"get_slice gave {part.len()} bytes where {count} were asked for")
        return part
