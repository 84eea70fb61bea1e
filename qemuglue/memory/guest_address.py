"""Typed addresses: where in guest memory, and where in one region of it.

``GuestAddress`` is absolute, ``MemoryRegionAddress`` counts from the start of a region. They are
different types so that one is never taken for the other; both are unsigned 64-bit numbers. Names
and meaning are vm-memory's (``src/address.rs``, ``src/guest_memory.rs``, 0.18). Operators other
than ``&`` and ``|`` are left out there on purpose, and so here: a sum says by its name what it does
at the end of the addresses.

======================  ==============================================================
``checked_…``           None where the result is no address
``overflowing_…``       the result modulo 2^64, and whether it had to be
``unchecked_…``         ModelError, where Rust panics in debug builds (and wraps in others)
======================  ==============================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import Self

from qemuglue.errors import ModelError

#: Addresses are below this: they are 64 bits wide and wrap to 0.
ADDRESS_END = 1 << 64


@dataclass(frozen=True, slots=True, order=True, repr=False)
class Address:
    """An unsigned 64-bit address; the base of the two types below. Only addresses of one type
    compare. Raises ModelError for what is not an integer of 0 to 2^64-1."""

    value: int = 0

    def __post_init__(self) -> None:
        try:
            value = index(self.value)
        except TypeError:
            raise ModelError(
                f"{type(self).__name__} takes an integer, got {self.value!r}"
            ) from None
        if not 0 <= value < ADDRESS_END:
            raise ModelError(f"{type(self).__name__} holds 0 to 2^64-1, got {value:#x}")
        object.__setattr__(self, "value", value)

    @classmethod
    def new(cls, value: int) -> Self:
        """The constructor."""
        return cls(value)

    def raw_value(self) -> int:
        """The address as a plain number."""
        return self.value

    def mask(self, mask: int) -> int:
        """The bits of the address that ``mask`` has, as a plain number."""
        return self.value & _offset(mask)

    def __and__(self, other: int) -> Self:
        """The bits that ``other``, a plain number, has too."""
        return type(self)(self.value & _offset(other)) if _is_number(other) else NotImplemented

    def __or__(self, other: int) -> Self:
        """The bits that the address or ``other``, a plain number, has."""
        return type(self)(self.value | _offset(other)) if _is_number(other) else NotImplemented

    def checked_add(self, other: int) -> Self | None:
        """``other`` bytes further on; None beyond 2^64-1."""
        total = self.value + _offset(other)
        return type(self)(total) if total < ADDRESS_END else None

    def overflowing_add(self, other: int) -> tuple[Self, bool]:
        """``other`` bytes further on modulo 2^64, and whether that went beyond 2^64-1."""
        total = self.value + _offset(other)
        return type(self)(total % ADDRESS_END), total >= ADDRESS_END

    def unchecked_add(self, offset: int) -> Self:
        """``offset`` bytes further on, for a caller who knows that there are so many. Raises
        ModelError beyond 2^64-1, where Rust panics in debug builds (and wraps in others)."""
        total = self.checked_add(offset)
        if total is None:
            raise ModelError(f"{self!r} plus {offset:#x} is beyond 2^64-1")
        return total

    def checked_sub(self, other: int) -> Self | None:
        """``other`` bytes back; None below 0."""
        rest = self.value - _offset(other)
        return type(self)(rest) if rest >= 0 else None

    def overflowing_sub(self, other: int) -> tuple[Self, bool]:
        """``other`` bytes back modulo 2^64, and whether that went below 0."""
        rest = self.value - _offset(other)
        return type(self)(rest % ADDRESS_END), rest < 0

    def unchecked_sub(self, other: int) -> Self:
        """``other`` bytes back, for a caller who knows that there are so many. Raises ModelError
        below 0."""
        rest = self.checked_sub(other)
        if rest is None:
            raise ModelError(f"{self!r} minus {other:#x} is below 0")
        return rest

    def checked_align_up(self, power_of_two: int) -> Self | None:
        """The next multiple of ``power_of_two`` from here on, this address included; None beyond
        2^64-1. Raises ModelError for what is no power of two, where Rust panics in all builds."""
        rest = _offset(power_of_two) - 1
        if rest < 0 or power_of_two & rest:
            raise ModelError(f"an alignment is a power of two, got {power_of_two:#x}")
        total = self.checked_add(rest)
        return None if total is None else type(self)(total.value & ~rest)

    def unchecked_align_up(self, power_of_two: int) -> Self:
        """The same for a caller who knows that there is one. Raises ModelError beyond 2^64-1, and
        for 0. As in the crate it is not looked whether ``power_of_two`` is one: bits of
        ``power_of_two - 1`` are added and taken away, whatever they are."""
        rest = _offset(power_of_two) - 1
        if rest < 0:
            raise ModelError("an alignment is a power of two, got 0")
        return type(self)(self.unchecked_add(rest).value & ~rest)

    def checked_offset_from(self, base: Self) -> int | None:
        """Bytes from ``base`` to here; None if ``base`` is further on."""
        if type(base) is not type(self):
            raise ModelError(f"an offset from {base!r} to {self!r} means nothing")
        return self.value - base.value if self.value >= base.value else None

    def unchecked_offset_from(self, base: Self) -> int:
        """Bytes from ``base`` to here, for a caller who knows that ``base`` is not further on.
        Raises ModelError if it is."""
        offset = self.checked_offset_from(base)
        if offset is None:
            raise ModelError(f"{base!r} is beyond {self!r}")
        return offset

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value:#x})"


class GuestAddress(Address):
    """An address in an address space."""

    __slots__ = ()


class MemoryRegionAddress(Address):
    """An offset in a region. In QEMU's Rust bindings, and so in ``rust_binding``, the region is
    a *section* of a flat view: where QEMU's C functions count from the start of the
    MemoryRegion, this counts from the start of the part of it that the view shows."""

    __slots__ = ()


def _is_number(other: object) -> bool:
    return isinstance(other, int)


def _offset(number: int) -> int:
    if not 0 <= number < ADDRESS_END:
        raise ModelError(f"an offset is 0 to 2^64-1, got {number:#x}")
    return number
