"""VolatileArrayRef: a place in memory that holds values in a row (``src/volatile_memory.rs``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic

from qemuglue.errors import ModelError
from qemuglue.memory.bitmap import Bitmap
from qemuglue.memory.bytes import V, size_of
from qemuglue.memory.native import NativeU8
from qemuglue.memory.volatile.error import usize
from qemuglue.memory.volatile.guard import PtrGuard, PtrGuardMut
from qemuglue.memory.volatile.ref import VolatileRef

if TYPE_CHECKING:
    from qemuglue.memory.volatile.slice import VolatileSlice


class VolatileArrayRef(Generic[V]):
    """The values of type ``cls`` that lie in ``part`` one after the other, aligned or not.

    Raises ModelError unless the slice is a whole number of them, and for a type of no bytes. Get
    one from ``VolatileMemory.get_array_ref``. An index that is not below ``len`` raises ModelError
    (Rust panics).
    """

    __slots__ = ("_cls", "_n", "_part", "_size")

    def __init__(self, part: VolatileSlice, cls: type[V]) -> None:
        self._size = size_of(cls)
        if not self._size:
            raise ModelError(f"a {cls.__name__} has no bytes, so many of them are nowhere")
        if part.len() % self._size:
            raise ModelError(f"{part.len()} bytes are no whole number of {cls.__name__}")
        self._n = part.len() // self._size
        self._part = part
        self._cls = cls

    @staticmethod
    def from_slice(part: VolatileSlice) -> VolatileArrayRef[NativeU8]:
        """The bytes of a slice (Rust: ``From<VolatileSlice>``)."""
        return VolatileArrayRef(part, NativeU8)

    def len(self) -> int:
        """Values."""
        return self._n

    def is_empty(self) -> bool:
        """Whether there are none."""
        return not self._n

    def element_size(self) -> int:
        """Bytes of each."""
        return self._size

    def bitmap(self) -> Bitmap:
        """What is told of writes; it begins where the first value does."""
        return self._part.bitmap()

    def ref_at(self, index: int) -> VolatileRef[V]:
        """The value at ``index``."""
        return VolatileRef(self._part.subslice(self._at(index), self._size), self._cls)

    def load(self, index: int) -> V:
        """Read the value at ``index``, in one access."""
        return self._cls.from_raw(self._part._load(self._at(index), self._size))

    def store(self, index: int, value: V) -> None:
        """Write the value at ``index``, in one access, and mark its bytes dirty. Raises
        ModelError for a value of another type."""
        self._part._store(self._at(index), self._raw(value))

    def copy_to(self, buf: list[V]) -> int:
        """Read into ``buf`` as many values as there are in both, the first first, each in one
        access; how many. (Single bytes move as a slice's do.)"""
        n = min(len(buf), self._n)
        if self._size == 1:
            data = bytearray(n)
            self._part.copy_to(data)
            buf[:n] = [self._cls.from_raw(data[i : i + 1]) for i in range(n)]
        else:
            for i in range(n):
                buf[i] = self.load(i)
        return n

    def copy_from(self, buf: Sequence[V]) -> None:
        """Write as many values of ``buf`` as there is room for, the first first, each in one
        access, and mark their bytes dirty. (Single bytes move as a slice's do.) Raises
        ModelError, before anything is written, if one of them is of another type."""
        raw = [self._raw(value) for value in buf[: self._n]]
        if self._size == 1:
            self._part.copy_from(b"".join(raw))
        else:
            self._part._store_each(raw)

    def copy_to_volatile_slice(self, dst: VolatileSlice) -> None:
        """Copy as many bytes as both have, in one piece; ``dst``'s are marked dirty."""
        self._part.copy_to_volatile_slice(dst)

    def to_slice(self) -> VolatileSlice:
        """Their bytes."""
        return self._part

    def ptr_guard(self) -> PtrGuard:
        """Their bytes to look at. Raises HostAddressNotAvailable.

        Differs from the crate: its guard says that it is as many bytes long as there are
        *values*, though the pointer in it is to all of them."""
        return self._part.ptr_guard()

    def ptr_guard_mut(self) -> PtrGuardMut:
        """Their bytes to change; no bitmap is told. Raises HostAddressNotAvailable. Differs
        from the crate as ``ptr_guard`` does."""
        return self._part.ptr_guard_mut()

    def _at(self, index: int) -> int:
        if usize(index) >= self._n:
            raise ModelError(f"there are {self._n} values, none at index {index}")
        return index * self._size

    def _raw(self, value: V) -> bytes:
        if not isinstance(value, self._cls):
            raise ModelError(f"this array holds {self._cls.__name__}, got {value!r}")
        return value.raw

    def __repr__(self) -> str:
        return f"<VolatileArrayRef to {self._n} {self._cls.__name__} in {self._part!r}>"
