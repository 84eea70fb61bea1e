"""Aligned and atomic access: the interface proposed for vm-memory in its issue #102 (2020).

Whether ``read_obj`` is atomic was never said, and devices relied on it: descriptor indexes of
virtio were torn where ``memcpy`` went byte by byte (#93, #95). The proposal gives each promise a
name of its own:

===========================================  =====================  ==========================
method                                       address                promise
===========================================  =====================  ==========================
``read_atomic``, ``write_atomic``            AlignedGuestAddress    one access, or refused
``read_obj``, ``write_obj``                  AlignedGuestAddress    all bytes, perhaps in pieces
``read_obj_unaligned``, its ``write``        any                    all bytes, perhaps in pieces
===========================================  =====================  ==========================

``AlignedAccess(memory)`` has these methods over any ``Bytes`` of guest addresses. An
``AlignedGuestAddress`` exists only where it was checked, so the check is made once, where the
address enters, and nowhere after::

    mem = AlignedAccess(memory)
    index = AlignedGuestAddress.of(avail.unchecked_add(2), Le16)
    now = mem.read_atomic(index)          # a Le16: the address knows the type

What counts as aligned for a type is its ``align``: the size for integers, what a structure
declares, 1 for a type that declares nothing (a packed one). It is the guest's address that is
checked; where the host has the bytes elsewhere is seen only in the access (``one_access``).

From vm-memory, which took ``load`` and ``store`` instead (PR #104 became #115), this differs:

- ``read_atomic`` is refused (NotOneAccess) where ``load`` would go on although the access is not
  one: a device whose contract cuts it, a backing that copies as it likes. ``load`` is refused only
  where the value does not lie in one region aligned (InvalidBackendAddress).
- ``read_obj`` at an odd address cannot be written; vm-memory does it.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Generic, NoReturn, Self, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import atomic_of
from qemuglue.memory.byte_valued import align_of
from qemuglue.memory.bytes import Bytes, ByteValued, Ordering, byte_valued, size_of
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import GuestMemoryError
from qemuglue.memory.one_access import NotOneAccess, WhyNot, why_not_one
from qemuglue.memory.plain_number import plain_number

T = TypeVar("T", bound=ByteValued)
U = TypeVar("U", bound=ByteValued)

#: An address that need not be aligned, or a plain number that stands for one.
Place = GuestAddress | int


class MisalignedGuestAddress(GuestMemoryError):
    """``addr`` is no multiple of ``alignment``."""

    def __init__(self, addr: GuestAddress, alignment: int) -> None:
        self.addr = addr
        self.alignment = alignment
        super().__init__(addr, alignment)

    def __str__(self) -> str:
        return f"guest address {self.addr.raw_value():#x} is not a multiple of {self.alignment}"


@dataclass(frozen=True, slots=True, init=False, repr=False)
class AlignedGuestAddress(Generic[T]):
    """A guest address that is aligned for values of type ``cls``.

    Made by ``new`` and ``of`` alone. Two are equal if address and type are. Steps are counted in
    values, so that an address stays aligned; ``to_guest_address()`` and ``int()`` give the
    address back, for steps in bytes.
    """

    _addr: GuestAddress
    _cls: type[T]

    def __init__(self, *_: object, **__: object) -> None:
        raise ModelError(
            "an AlignedGuestAddress is checked where it is made: "
            "AlignedGuestAddress.new(addr, cls) gives None for another, .of(addr, cls) raises"
        )

    @classmethod
    def new(cls, addr: Place | AlignedGuestAddress[U], value: type[T]) -> Self | None:
        """``addr`` as an address of values of type ``value``; None if it is not aligned for it.
        Raises ModelError for what is no address or no such type."""
        at = _address(addr)
        if at.raw_value() % _alignment(value):
            return None
        made = object.__new__(cls)
        object.__setattr__(made, "_addr", at)
        object.__setattr__(made, "_cls", value)
        return made

    @classmethod
    def of(cls, addr: Place | AlignedGuestAddress[U], value: type[T]) -> Self:
        """As ``new``; raises MisalignedGuestAddress where that gives None."""
        made = cls.new(addr, value)
        if made is None:
            raise MisalignedGuestAddress(_address(addr), _alignment(value))
        return made

    # -- back --------------------------------------------------------------------------------

    def to_guest_address(self) -> GuestAddress:
        """The same address, of nothing in particular."""
        return self._addr

    def raw_value(self) -> int:
        """The address as a plain number."""
        return self._addr.raw_value()

    def __index__(self) -> int:
        return self._addr.raw_value()

    # -- what it is an address of ------------------------------------------------------------

    @property
    def cls(self) -> type[T]:
        """The type of the value there."""
        return self._cls

    @property
    def alignment(self) -> int:
        """Bytes that the address is a multiple of: a power of two."""
        return _alignment(self._cls)

    # -- steps -------------------------------------------------------------------------------

    def checked_add(self, count: int) -> Self | None:
        """``count`` values further on (each ``size`` bytes); None beyond 2^64-1."""
        return self._at(self.raw_value() + _count(count) * size_of(self._cls))

    def checked_sub(self, count: int) -> Self | None:
        """``count`` values back; None before 0."""
        return self._at(self.raw_value() - _count(count) * size_of(self._cls))

    def unchecked_add(self, count: int) -> Self:
        """As ``checked_add``; raises ModelError where that gives None."""
        return self._or_raise(self.checked_add(count), count, "behind")

    def unchecked_sub(self, count: int) -> Self:
        """As ``checked_sub``; raises ModelError where that gives None."""
        return self._or_raise(self.checked_sub(count), count, "before")

    def checked_offset_from(self, base: AlignedGuestAddress[T]) -> int | None:
        """Values from ``base`` to here; None if ``base`` is further on or it is no whole number
        of them. Raises ModelError for an address of another type."""
        if not isinstance(base, AlignedGuestAddress) or base.cls is not self._cls:
            raise ModelError(f"an offset from {base!r} to {self!r} means nothing")
        offset, size = self.raw_value() - base.raw_value(), size_of(self._cls)
        if not offset:
            return 0
        return offset // size if offset > 0 and size and offset % size == 0 else None

    def field(self, offset: int, value: type[U]) -> AlignedGuestAddress[U]:
        """The value of type ``value`` that lies ``offset`` bytes behind here, such as a field of
        a structure. Raises MisalignedGuestAddress, and ModelError beyond 2^64-1."""
        return AlignedGuestAddress.of(self._addr.unchecked_add(offset), value)

    # -- inside ------------------------------------------------------------------------------

    def _at(self, addr: int) -> Self | None:
        return type(self).of(addr, self._cls) if 0 <= addr < ADDRESS_END else None

    def _or_raise(self, made: Self | None, count: int, where: str) -> Self:
        if made is None:
            raise ModelError(f"there is no address {count} values {where} {self!r}")
        return made

    def __reduce__(self) -> tuple[object, ...]:
        # Copies and pickles are made as any other is: checked.
        return type(self).of, (self._addr, self._cls)

    def __repr__(self) -> str:
        return f"AlignedGuestAddress({self.raw_value():#x}, {self._cls.__name__})"


class AlignedAccess:
    """A memory with the methods of the proposal.

    ``memory`` is any ``Bytes`` of guest addresses: a GuestRegionCollection, IommuMemory, the
    FlatView of ``rust_binding``, the first model's GuestMemory. The methods raise what it raises.
    It is not a ``Bytes`` itself: ``read_obj`` means something else there.
    """

    __slots__ = ("_memory",)

    def __init__(self, memory: Bytes[GuestAddress]) -> None:
        self._memory = memory

    @property
    def memory(self) -> Bytes[GuestAddress]:
        """What the accesses are made to."""
        return self._memory

    # -- one access --------------------------------------------------------------------------

    def read_atomic(self, addr: AlignedGuestAddress[T]) -> T:
        """The value at ``addr``, read in one access. Raises NotOneAccess where it cannot be one,
        and then nothing was touched. The proposal names no order: it is the strongest."""
        at, cls = _aligned(addr)
        self._must_be_one(at, cls, None)
        return self._memory.load(at, cls, Ordering.SEQ_CST)

    def write_atomic(self, value: T, addr: AlignedGuestAddress[T]) -> None:
        """Write ``value`` at ``addr`` in one access. Raises as ``read_atomic`` does."""
        at, cls = _aligned(addr)
        self._must_be_one(at, cls, _fitting(value, addr).raw)
        self._memory.store(value, at, Ordering.SEQ_CST)

    # -- all bytes ---------------------------------------------------------------------------

    def read_obj(self, addr: AlignedGuestAddress[T]) -> T:
        """The value at ``addr``, perhaps read in pieces: it may be part one value, part another
        that somebody writes meanwhile."""
        at, cls = _aligned(addr)
        return self._memory.read_obj(at, cls)

    def write_obj(self, value: T, addr: AlignedGuestAddress[T]) -> None:
        """Write ``value`` at ``addr``, perhaps in pieces: somebody who reads meanwhile may see a
        part of it."""
        at, _ = _aligned(addr)
        self._memory.write_obj(_fitting(value, addr), at)

    def read_obj_unaligned(self, addr: Place, cls: type[T]) -> T:
        """As ``read_obj``, at any address."""
        return self._memory.read_obj(_address(addr), cls)

    def write_obj_unaligned(self, value: ByteValued, addr: Place) -> None:
        """As ``write_obj``, at any address."""
        self._memory.write_obj(byte_valued(value), _address(addr))

    # -- inside ------------------------------------------------------------------------------

    def _must_be_one(self, addr: GuestAddress, cls: type[T], raw: bytes | None) -> None:
        size = size_of(cls)
        try:
            atomic_of(cls)
        except ModelError as error:
            raise NotOneAccess(addr, size, WhyNot.TYPE) from error
        why = why_not_one(self._memory, addr, size, raw)
        if why is not None:
            raise NotOneAccess(addr, size, why)

    def __repr__(self) -> str:
        return f"AlignedAccess({self._memory!r})"


def _aligned(addr: AlignedGuestAddress[T]) -> tuple[GuestAddress, type[T]]:
    if not isinstance(addr, AlignedGuestAddress):
        _refuse_unchecked(addr)
    return addr.to_guest_address(), addr.cls


def _refuse_unchecked(addr: object) -> NoReturn:
    raise ModelError(
        f"an AlignedGuestAddress is needed here, got {addr!r}; "
        "AlignedGuestAddress.of(addr, cls) makes one, the _unaligned methods take any address"
    )


def _fitting(value: T, addr: AlignedGuestAddress[T]) -> T:
    """``value`` if it is of the type that ``addr`` is an address of."""
    if type(byte_valued(value)) is not addr.cls:
        raise ModelError(f"{addr!r} takes a {addr.cls.__name__}, got {value!r}")
    return value


def _address(addr: object) -> GuestAddress:
    """``addr`` as a GuestAddress. Raises ModelError for what is none."""
    if isinstance(addr, GuestAddress):
        return addr
    if isinstance(addr, AlignedGuestAddress):
        return addr.to_guest_address()
    return GuestAddress(
        plain_number(addr, "an address here is GuestAddress(…) or a plain number"))


def _alignment(cls: type[ByteValued]) -> int:
    """What an address of a ``cls`` is a multiple of. Raises ModelError for a class that is no
    ByteValued, and for one whose array would not be aligned throughout (Rust has none)."""
    size, align = size_of(cls), align_of(cls)
    if align <= 0 or align & (align - 1) or size % align:
        raise ModelError(
            f"{cls.__name__} is {size} bytes with an alignment of {align}: an alignment is a power "
            "of two that divides the size"
        )
    return align


def _count(count: int) -> int:
    number = index(count)
    if number < 0:
        raise ModelError(f"a count of values is 0 or more, got {number}")
    return number
