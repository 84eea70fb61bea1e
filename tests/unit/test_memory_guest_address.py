"""Typed addresses: 64 bits, two types that are never mixed."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.errors import ModelError
from qemuglue.memory.endian import Le64
from qemuglue.memory.guest_address import Address, GuestAddress, MemoryRegionAddress

TOP = 1 << 64
TYPES: tuple[type[Address], ...] = (GuestAddress, MemoryRegionAddress)
NUMBERS = st.one_of(st.integers(0, TOP - 1), st.integers(0, 5), st.integers(TOP - 5, TOP - 1))


@pytest.mark.parametrize("cls", TYPES)
def test_64_bits(cls: type[Address]) -> None:
    assert cls().raw_value() == 0 and cls(TOP - 1).raw_value() == TOP - 1
    for wrong in (-1, TOP, 1.5, "16", None):
        with pytest.raises(ModelError, match=cls.__name__):
            cls(wrong)  # type: ignore[arg-type]
    assert repr(cls(0x1000)) == f"{cls.__name__}(0x1000)"


def test_a_typed_value_read_from_memory_may_become_an_address() -> None:
    address = GuestAddress(Le64(0x1000))
    assert address == GuestAddress(0x1000) and type(address.raw_value()) is int


def test_addresses_compare_within_their_type() -> None:
    low, high = GuestAddress(1), GuestAddress(2)
    assert low < high and max(high, low) is high and sorted([high, low]) == [low, high]
    assert {low, GuestAddress(1)} == {low}
    assert GuestAddress(1) != MemoryRegionAddress(1) and GuestAddress(1) != 1
    compare: Callable[[], object]
    for compare in (lambda: low < MemoryRegionAddress(2), lambda: low < 2):  # type: ignore
        with pytest.raises(TypeError):
            compare()


def test_addresses_do_not_change() -> None:
    with pytest.raises(AttributeError):
        GuestAddress(1).value = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        GuestAddress(1) + 1  # type: ignore[operator]


@given(NUMBERS, NUMBERS, st.sampled_from(TYPES))
def test_arithmetic_as_that_of_u64(one: int, other: int, cls: type[Address]) -> None:
    address = cls(one)
    total = one + other
    assert address.overflowing_add(other) == (cls(total % TOP), total >= TOP)
    assert address.checked_add(other) == (cls(total) if total < TOP else None)
    if total < TOP:
        assert address.unchecked_add(other) == cls(total)
        assert cls(total).checked_offset_from(address) == other
    else:
        with pytest.raises(ModelError, match="beyond"):
            address.unchecked_add(other)
    if other:
        assert address.checked_offset_from(cls(one)) == 0
    assert cls(one).checked_offset_from(cls(other)) == (one - other if one >= other else None)


def test_what_is_no_offset_is_refused() -> None:
    for wrong in (-1, TOP):
        for add in (GuestAddress(0).checked_add, GuestAddress(0).overflowing_add):
            with pytest.raises(ModelError):
                add(wrong)
    with pytest.raises(ModelError, match="means nothing"):
        GuestAddress(4).checked_offset_from(MemoryRegionAddress(1))  # type: ignore[arg-type]
