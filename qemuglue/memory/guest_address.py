"""Typed addresses: where in guest memory, and where in one region of it.

``GuestAddress`` is absolute, ``MemoryRegionAddress`` counts from the start of a region. They are
different types so that one is never taken for the other; both are unsigned 64-bit numbers. Names
and meaning are vm-memory's (``src/address.rs``, ``src/guest_memory.rs``, 0.18).
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

    def raw_value(self) -> int:
        """The address as a plain number."""
        return self.value

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

    def checked_offset_from(self, base: Self) -> int | None:
        """Bytes from ``base`` to here; None if ``base`` is further on."""
        if type(base) is not type(self):
            raise ModelError(f"an offset from {base!r} to {self!r} means nothing")
        return self.value - base.value if self.value >= base.value else None

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


def _offset(number: int) -> int:
    if not 0 <= number < ADDRESS_END:
        raise ModelError(f"an offset is 0 to 2^64-1, got {number:#x}")
    return number
