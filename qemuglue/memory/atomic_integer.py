"""AtomicInteger: numbers that are read and written in one access.

vm-memory's two traits for that (``src/atomic_integer.rs``, ``src/bytes.rs``, 0.18). An
``AtomicInteger`` is a place: ``AtomicU32.new(5)`` makes one, ``VolatileMemory.get_atomic_ref``
gives one that lies in memory. ``AtomicAccess`` says of a type of values which of them stands for
it; ``atomic_of`` asks that.

In the crate ``AtomicAccess`` is implemented for ``u8`` ... ``u64``, ``usize`` and their signed kin
and for no other type: a ``Le32`` is stored as its ``u32``. Here an ``EndianInt`` may be stored as
it is, as the review of QEMU's bindings asks (``store::<Le32>``); its bytes are the same.
"""

from __future__ import annotations

import sys
from typing import ClassVar, Generic, Literal, Self, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.byte_valued import Writable, flat, offset_in_owner
from qemuglue.memory.bytes import ByteValued, Ordering, size_of
from qemuglue.memory.endian import EndianInt
from qemuglue.memory.native import (
    NativeI8,
    NativeI16,
    NativeI32,
    NativeI64,
    NativeInt,
    NativeIsize,
    NativeU8,
    NativeU16,
    NativeU32,
    NativeU64,
    NativeUsize,
)

N = TypeVar("N", bound=NativeInt)

#: What a memoryview calls an unsigned integer of so many bytes in the host's order.
FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}

#: Rust panics for the others.
LOAD_ORDERS = frozenset((Ordering.RELAXED, Ordering.ACQUIRE, Ordering.SEQ_CST))
STORE_ORDERS = frozenset((Ordering.RELAXED, Ordering.RELEASE, Ordering.SEQ_CST))


def load_order(order: Ordering) -> None:
    """Raises ModelError for an order that a load cannot have (in Rust it panics)."""
    if order not in LOAD_ORDERS:
        raise ModelError(f"there is no {_name(order)} load")


def store_order(order: Ordering) -> None:
    """Raises ModelError for an order that a store cannot have (in Rust it panics)."""
    if order not in STORE_ORDERS:
        raise ModelError(f"there is no {_name(order)} store")


class AtomicInteger(Generic[N]):
    """A place that holds a number of type ``V``; the base of the types below.

    A load or store is one machine instruction of that width, whoever else shares the memory.
    All orders are the same here: Python gives no way to ask for less than the strongest that
    the interpreter's own locking brings.
    """

    __slots__ = ("_cell",)

    #: The type of its values.
    V: ClassVar[type[NativeInt]]
    #: Bytes, which is also its alignment.
    size: ClassVar[int] = 0

    def __init_subclass__(cls, *, value: type[NativeInt]) -> None:
        super().__init_subclass__()
        cls.V = value
        cls.size = value.size

    def __init__(self, place: Writable) -> None:
        view = flat(place)
        if not self.size:
            raise ModelError("AtomicInteger itself holds nothing; use AtomicU32, AtomicI64, ...")
        if view.readonly or len(view) != self.size or offset_in_owner(view) % self.size:
            raise ModelError(f"{type(self).__name__} takes {self.size} aligned writable bytes")
        # An item of a cast memoryview is copied with a memcpy of constant size: one load or
        # store. Slices and struct's "<" and ">" formats may go byte by byte.
        self._cell = view.cast(FORMATS[self.size])

    @classmethod
    def new(cls, value: int) -> Self:
        """A new place that holds ``value``. Raises ModelError if it does not fit."""
        place = cls(bytearray(cls.size))
        place.store(cls.V(value))
        return place

    def load(self, order: Ordering = Ordering.RELAXED) -> N:
        """The number. Raises ModelError for an order that a load cannot have."""
        load_order(order)
        raw: bytes = self._cell[0].to_bytes(self.size, sys.byteorder)
        return self.V.from_raw(raw)  # type: ignore[return-value]

    def store(self, value: N | int, order: Ordering = Ordering.RELAXED) -> None:
        """Put ``value`` there. Raises ModelError if it does not fit, and for an order that a
        store cannot have."""
        store_order(order)
        self._cell[0] = int.from_bytes(self.V(value).raw, sys.byteorder)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({int(self.load())})"


class AtomicU8(AtomicInteger[NativeU8], value=NativeU8):
    """A ``u8``."""

    __slots__ = ()


class AtomicU16(AtomicInteger[NativeU16], value=NativeU16):
    """A ``u16``."""

    __slots__ = ()


class AtomicU32(AtomicInteger[NativeU32], value=NativeU32):
    """A ``u32``."""

    __slots__ = ()


class AtomicU64(AtomicInteger[NativeU64], value=NativeU64):
    """A ``u64``."""

    __slots__ = ()


class AtomicUsize(AtomicInteger[NativeUsize], value=NativeUsize):
    """A ``usize``."""

    __slots__ = ()


class AtomicI8(AtomicInteger[NativeI8], value=NativeI8):
    """An ``i8``."""

    __slots__ = ()


class AtomicI16(AtomicInteger[NativeI16], value=NativeI16):
    """An ``i16``."""

    __slots__ = ()


class AtomicI32(AtomicInteger[NativeI32], value=NativeI32):
    """An ``i32``."""

    __slots__ = ()


class AtomicI64(AtomicInteger[NativeI64], value=NativeI64):
    """An ``i64``."""

    __slots__ = ()


class AtomicIsize(AtomicInteger[NativeIsize], value=NativeIsize):
    """An ``isize``."""

    __slots__ = ()


_ATOMICS: tuple[type[AtomicInteger[NativeInt]], ...] = (  # type: ignore[assignment]
    AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize,
)
_BY_VALUE: dict[type, type[AtomicInteger[NativeInt]]] = {
    atomic.V: atomic for atomic in _ATOMICS
}
_BY_SIZE: dict[int, type[AtomicInteger[NativeInt]]] = {
    1: _ATOMICS[0], 2: _ATOMICS[1], 4: _ATOMICS[2], 8: _ATOMICS[3],
}


def atomic_of(cls: type[ByteValued]) -> type[AtomicInteger[NativeInt]]:
    """The AtomicInteger that stands for values of type ``cls`` (``AtomicAccess::A``). A type of
    one's own names it in an attribute ``A``. Raises ModelError for a type that has none."""
    size = size_of(cls)
    atomic = _BY_VALUE.get(cls) or getattr(cls, "A", None)
    if atomic is None and issubclass(cls, EndianInt):
        atomic = _BY_SIZE.get(size)
    if not (isinstance(atomic, type) and issubclass(atomic, AtomicInteger)):
        raise ModelError(f"a {cls.__name__} cannot be loaded or stored in one access")
    if atomic.size != size:
        raise ModelError(f"{cls.__name__} is {size} bytes, {atomic.__name__} is {atomic.size}")
    return atomic


def _name(order: object) -> str:
    return order.value if isinstance(order, Ordering) else repr(order)
