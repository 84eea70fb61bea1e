"""Integers that say their byte order: ``Le32(42)``, ``Be16(7)``, ``U8(1)``.

A value read from or written to guest memory has a size and a byte order. These types carry both,
so ``store(addr, Le32(42))`` and ``load(addr, Be16)`` leave nothing to guess, and an untyped integer
is refused (``typed_value``, ``typed_class``).

They are vm-memory's endian types (``src/endian.rs``, 0.18: Le16, Le32, Le64, LeSize and the four
Be ones), which Paolo Bonzini asked for in QEMU's Rust bindings (qemu-devel 2025-08-07, reply to
[RFC 24/26] rust/memory): ``store(addr, Le32(42))``, never ``store(addr, 42)``. ``U8`` is ours:
one byte has no order and vm-memory stores a plain ``u8``.

One difference: vm-memory's ``Le16`` and ``Be16`` cannot be compared with each other; ours are
integers, so ``Le16(5) == Be16(5) == 5``: the number is compared, not its bytes.
"""

from __future__ import annotations

import struct as _struct
from operator import index
from typing import ClassVar, Literal, Self, SupportsIndex, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.byte_valued import ByteValuedType

ByteOrder = Literal["little", "big"]

_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}

_WHY = (
    "QEMU is getting rid of target endianness: say Le32(42) or Be32(42) (8 bits: U8), "
    "or use store_target/load_target for the target's own order"
)


class EndianInt(ByteValuedType, int):
    """An unsigned integer of a fixed size and byte order; the base of the types below.

    It is the number: it compares, hashes and formats as one. Arithmetic gives a plain ``int``,
    which ``store`` refuses, so a computed value is typed again by whoever stores it.
    Raises ModelError for what is not an integer or does not fit in ``size`` bytes.
    """

    __slots__ = ()

    #: Bytes in memory: 1, 2, 4 or 8; 0 in this base class, which has no values.
    size: ClassVar[int] = 0
    #: Byte order in memory.
    order: ClassVar[ByteOrder]
    #: Packs and unpacks exactly this size and order, unsigned.
    struct: ClassVar[_struct.Struct]

    def __init_subclass__(cls, *, size: int, order: ByteOrder) -> None:
        super().__init_subclass__()
        cls.size = cls.align = size
        cls.order = order
        cls.struct = _struct.Struct(("<" if order == "little" else ">") + _FORMATS[size])

    def __new__(cls, value: SupportsIndex = 0) -> Self:
        try:
            number = index(value)
        except TypeError:
            raise ModelError(f"{cls.__name__} takes an integer, got {value!r}") from None
        if not cls.size:
            raise ModelError("EndianInt itself has no size and order; use Le16, Be32, U8, …")
        if number >> cls.size * 8:  # of a negative number never 0
            raise ModelError(
                f"{cls.__name__} holds 0 to {(1 << cls.size * 8) - 1:#x}, got {number:#x}"
            )
        return int.__new__(cls, number)

    def to_native(self) -> int:
        """The number as a plain ``int`` (vm-memory's ``to_native``)."""
        return int(self)

    @property
    def raw(self) -> bytes:
        """The ``size`` bytes as they stand in memory."""
        return self.struct.pack(self)

    @classmethod
    def from_raw(cls, data: bytes | bytearray | memoryview) -> Self:
        """The value whose bytes in memory are ``data``. Raises ModelError unless there are
        exactly ``size`` of them."""
        if not cls.size or len(data) != cls.size:
            raise ModelError(f"{cls.__name__} is {cls.size} bytes in memory, got {len(data)}")
        number: int = cls.struct.unpack(data)[0]
        return int.__new__(cls, number)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self):#x})"

    def __str__(self) -> str:
        return int.__repr__(self)


E = TypeVar("E", bound=EndianInt)


class U8(EndianInt, size=1, order="little"):
    """One byte. It has no order; "little" by convention."""

    __slots__ = ()


class Le16(EndianInt, size=2, order="little"):
    """16 bits, little-endian."""

    __slots__ = ()


class Le32(EndianInt, size=4, order="little"):
    """32 bits, little-endian."""

    __slots__ = ()


class Le64(EndianInt, size=8, order="little"):
    """64 bits, little-endian."""

    __slots__ = ()


class LeSize(EndianInt, size=8, order="little"):
    """A host's ``usize``, little-endian: 64 bits, the only hosts vm-memory 0.18 builds for."""

    __slots__ = ()


class Be16(EndianInt, size=2, order="big"):
    """16 bits, big-endian."""

    __slots__ = ()


class Be32(EndianInt, size=4, order="big"):
    """32 bits, big-endian."""

    __slots__ = ()


class Be64(EndianInt, size=8, order="big"):
    """64 bits, big-endian."""

    __slots__ = ()


class BeSize(EndianInt, size=8, order="big"):
    """A host's ``usize``, big-endian: 64 bits, the only hosts vm-memory 0.18 builds for."""

    __slots__ = ()


#: Every type a value may have, smallest first.
ENDIAN_TYPES: tuple[type[EndianInt], ...] = (
    U8, Le16, Be16, Le32, Be32, Le64, Be64, LeSize, BeSize,
)

_BY_SHAPE: dict[tuple[int, ByteOrder], type[EndianInt]] = {
    (1, "little"): U8, (2, "little"): Le16, (4, "little"): Le32, (8, "little"): Le64,
    (1, "big"): U8, (2, "big"): Be16, (4, "big"): Be32, (8, "big"): Be64,
}


def endian_class(size: int, order: ByteOrder) -> type[EndianInt]:
    """The type of ``size`` bytes in ``order``: ``endian_class(4, "big")`` is Be32.
    Raises ModelError for a size that has no type."""
    try:
        return _BY_SHAPE[size, order]
    except KeyError:
        raise ModelError(f"no typed integer has {size} bytes in {order!r} order") from None


def typed_class(cls: type[E]) -> type[E]:
    """``cls`` itself where it says size and byte order; else ModelError in one sentence that
    tells why that is asked for."""
    if isinstance(cls, type) and issubclass(cls, EndianInt) and cls.size:
        return cls
    raise untyped(cls)


def typed_value(value: E) -> E:
    """``value`` itself where it says size and byte order; else ModelError in one sentence that
    tells why that is asked for. A class is no value."""
    if isinstance(value, EndianInt):
        return value
    raise untyped(value)


def untyped(what: object) -> ModelError:
    """The error for a value or class that does not say its size and byte order."""
    name = what.__name__ if isinstance(what, type) else repr(what)
    return ModelError(f"{name} does not say its size and byte order, and {_WHY}")
