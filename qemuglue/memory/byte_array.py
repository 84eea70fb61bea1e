"""Values in a row as one value: Rust's ``[T; N]``.

``array_of(Le16, 4)`` is a type of values, each of four ``Le16``::

    quad = array_of(Le16, 4)
    mem.write_obj(quad([1, 2, 3, 4]), addr)      # elements are made of what is given
    mem.read_obj(addr, quad)[2]                  # Le16(3)

In vm-memory 0.18 (``src/bytes.rs``) the integers have them, up to 32 long. Here every type has, the
endian ones and structures too, as long as they may be. To change one element in memory use a
``VolatileArrayRef``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, ClassVar, Self

from qemuglue.errors import ModelError
from qemuglue.memory.byte_valued import ByteValuedType, Readable, align_of
from qemuglue.memory.bytes import ByteValued, size_of
from qemuglue.memory.volatile.error import ISIZE_MAX


class ByteArray(ByteValuedType):
    """The base of the types that ``array_of`` makes. Two are equal if their elements are."""

    __slots__ = ("_raw",)

    #: The type of the elements.
    element: ClassVar[type[Any]]
    #: How many there are.
    count: ClassVar[int] = 0

    def __init__(self, values: Iterable[Any] = ()) -> None:
        made = [
            value if isinstance(value, self.element) else self.element(value) for value in values
        ]
        if len(made) != self.count:
            raise ModelError(f"{type(self).__name__} has {self.count} elements, got {len(made)}")
        self._raw = b"".join(value.raw for value in made)

    @property
    def raw(self) -> bytes:
        """The bytes as they stand in memory."""
        return self._raw

    @classmethod
    def from_raw(cls, data: Readable) -> Self:
        """The array whose bytes are ``data``. Raises ModelError unless there are exactly
        ``size`` of them."""
        if len(data) != cls.size:
            raise ModelError(f"{cls.__name__} is {cls.size} bytes in memory, got {len(data)}")
        array = cls.__new__(cls)
        array._raw = bytes(data)
        return array

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not -self.count <= index < self.count:
            raise IndexError(f"{type(self).__name__} has {self.count} elements, none at {index}")
        size = self.element.size
        at = index % self.count * size
        return self.element.from_raw(self._raw[at : at + size])

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(self.count))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._raw == other._raw

    def __hash__(self) -> int:
        return hash((type(self), self._raw))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[*self]!r})"


def array_of(cls: type[ByteValued], count: int) -> type[ByteArray]:
    """The type of ``count`` values of type ``cls`` in a row; the same type each time. Raises
    ModelError for a type that does not say its size, and for more than 2^63-1 bytes."""
    size = size_of(cls)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ModelError(f"an array has 0 elements or more, got {count!r}")
    if size * count > ISIZE_MAX:
        raise ModelError(f"{count} times {cls.__name__} is more than 2^63-1 bytes")
    return _made(cls, count)


@cache
def _made(cls: type[ByteValued], count: int) -> type[ByteArray]:
    fields = {
        "__slots__": (), "element": cls, "count": count,
        "size": size_of(cls) * count, "align": align_of(cls),
    }
    return type(f"{cls.__name__}x{count}", (ByteArray,), fields)
