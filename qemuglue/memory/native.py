"""Integers in the byte order of this host: Rust's ``u8`` ... ``u128``, ``i8`` ... ``i128``,
``usize`` and ``isize``.

vm-memory's own examples store a plain ``u32``. Here a plain integer has no size, so its name says
which: ``NativeU32(5)``. For a value that a guest reads, say its byte order instead (``endian``):
these stand for what the host's own code would keep in memory.
"""

from __future__ import annotations

import sys
from operator import index
from typing import ClassVar, Self, SupportsIndex

from qemuglue.errors import ModelError
from qemuglue.memory.byte_valued import ByteValuedType, Readable


class NativeInt(ByteValuedType, int):
    """An integer of a fixed size in this host's byte order; the base of the types below.

    It is the number: it compares, hashes and formats as one; arithmetic gives a plain ``int``.
    Raises ModelError for what is not an integer or does not fit.
    """

    __slots__ = ()

    #: Whether it holds negative numbers, as two's complement.
    signed: ClassVar[bool] = False

    def __init_subclass__(cls, *, size: int, signed: bool) -> None:
        super().__init_subclass__()
        cls.size = cls.align = size
        cls.signed = signed

    def __new__(cls, value: SupportsIndex = 0) -> Self:
        try:
            number = index(value)
        except TypeError:
            raise ModelError(f"{cls.__name__} takes an integer, got {value!r}") from None
        if not cls.size:
            raise ModelError("NativeInt itself has no size; use NativeU32, NativeI64, ...")
        if not cls.min() <= number <= cls.max():
            raise ModelError(f"{cls.__name__} holds {cls.min()} to {cls.max():#x}, got {number}")
        return int.__new__(cls, number)

    @classmethod
    def min(cls) -> int:
        """The smallest number it holds."""
        return -(1 << cls.size * 8 - 1) if cls.signed else 0

    @classmethod
    def max(cls) -> int:
        """The largest number it holds."""
        return (1 << cls.size * 8 - cls.signed) - 1

    @property
    def raw(self) -> bytes:
        """The ``size`` bytes as they stand in memory."""
        return self.to_bytes(self.size, sys.byteorder, signed=self.signed)

    @classmethod
    def from_raw(cls, data: Readable) -> Self:
        """The value whose bytes are ``data``. Raises ModelError unless there are exactly
        ``size`` of them."""
        if not cls.size or len(data) != cls.size:
            raise ModelError(f"{cls.__name__} is {cls.size} bytes in memory, got {len(data)}")
        return int.__new__(cls, int.from_bytes(data, sys.byteorder, signed=cls.signed))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int.__repr__(self)})"

    def __str__(self) -> str:
        return int.__repr__(self)


class NativeU8(NativeInt, size=1, signed=False):
    """``u8``."""

    __slots__ = ()


class NativeU16(NativeInt, size=2, signed=False):
    """``u16``."""

    __slots__ = ()


class NativeU32(NativeInt, size=4, signed=False):
    """``u32``."""

    __slots__ = ()


class NativeU64(NativeInt, size=8, signed=False):
    """``u64``."""

    __slots__ = ()


class NativeU128(NativeInt, size=16, signed=False):
    """``u128``: no atomic access."""

    __slots__ = ()


class NativeUsize(NativeInt, size=8, signed=False):
    """``usize``: 64 bits, the only hosts vm-memory 0.18 builds for."""

    __slots__ = ()


class NativeI8(NativeInt, size=1, signed=True):
    """``i8``."""

    __slots__ = ()


class NativeI16(NativeInt, size=2, signed=True):
    """``i16``."""

    __slots__ = ()


class NativeI32(NativeInt, size=4, signed=True):
    """``i32``."""

    __slots__ = ()


class NativeI64(NativeInt, size=8, signed=True):
    """``i64``."""

    __slots__ = ()


class NativeI128(NativeInt, size=16, signed=True):
    """``i128``: no atomic access."""

    __slots__ = ()


class NativeIsize(NativeInt, size=8, signed=True):
    """``isize``: 64 bits, the only hosts vm-memory 0.18 builds for."""

    __slots__ = ()


#: Every one of them.
NATIVE_TYPES: tuple[type[NativeInt], ...] = (
    NativeU8, NativeU16, NativeU32, NativeU64, NativeU128, NativeUsize,
    NativeI8, NativeI16, NativeI32, NativeI64, NativeI128, NativeIsize,
)
