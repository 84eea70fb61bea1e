"""VolatileRef: a place in memory that holds a value (``src/volatile_memory.rs``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from qemuglue.errors import ModelError
from qemuglue.memory.bitmap import Bitmap
from qemuglue.memory.bytes import V, size_of
from qemuglue.memory.volatile.guard import PtrGuard, PtrGuardMut

if TYPE_CHECKING:
    from qemuglue.memory.volatile.slice import VolatileSlice


class VolatileRef(Generic[V]):
    """The value of type ``cls`` whose bytes ``part`` is, aligned or not.

    Raises ModelError unless the slice has exactly as many bytes. Get one from
    ``VolatileMemory.get_ref``.
    """

    __slots__ = ("_cls", "_part")

    def __init__(self, part: VolatileSlice, cls: type[V]) -> None:
        if part.len() != size_of(cls):
            raise ModelError(f"{cls.__name__} is {size_of(cls)} bytes, the slice {part.len()}")
        self._part = part
        self._cls = cls

    def len(self) -> int:
        """Bytes of the value."""
        return self._part.len()

    def bitmap(self) -> Bitmap:
        """What is told of writes; it begins where the value does."""
        return self._part.bitmap()

    def store(self, value: V) -> None:
        """Write a value, in one access, and mark its bytes dirty. Raises ModelError for a value
        of another type."""
        if not isinstance(value, self._cls):
            raise ModelError(f"this place holds {self._cls.__name__}, got {value!r}")
        self._part._store(0, value.raw)

    def load(self) -> V:
        """Read the value, in one access."""
        return self._cls.from_raw(self._part._load(0, self._part.len()))

    def to_slice(self) -> VolatileSlice:
        """Its bytes."""
        return self._part

    def ptr_guard(self) -> PtrGuard:
        """Its bytes to look at. Raises HostAddressNotAvailable."""
        return self._part.ptr_guard()

    def ptr_guard_mut(self) -> PtrGuardMut:
        """Its bytes to change; no bitmap is told. Raises HostAddressNotAvailable."""
        return self._part.ptr_guard_mut()

    def __repr__(self) -> str:
        return f"<VolatileRef to {self._cls.__name__} in {self._part!r}>"
