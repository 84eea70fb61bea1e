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


# -- vm-memory's own cases, for each of the two types --------------------------------------------


@pytest.mark.parametrize("cls", TYPES)
def test_new_equality_and_order(cls: type[Address]) -> None:
    assert cls.new(0) == cls(0) == cls() and cls.new(TOP - 1) == cls(TOP - 1)
    assert type(cls.new(1)) is cls
    one, same, other = cls(0x300), cls(0x300), cls(0x301)
    assert one == cls(one.raw_value()) and one == same and same == one
    assert one != other and other != one and one < other


@pytest.mark.parametrize("cls", TYPES)
def test_offset_from(cls: type[Address]) -> None:
    base, addr = cls(0x100), cls(0x150)
    assert addr.unchecked_offset_from(base) == addr.checked_offset_from(base) == 0x50
    assert base.checked_offset_from(addr) is None
    with pytest.raises(ModelError, match="beyond"):
        base.unchecked_offset_from(addr)
    assert addr.unchecked_offset_from(addr) == 0


@pytest.mark.parametrize("cls", TYPES)
def test_align_up(cls: type[Address]) -> None:
    for align in (cls(0x128).checked_align_up, cls(0x128).unchecked_align_up):
        assert align(1) == align(8) == cls(0x128) and align(16) == cls(0x130)
        assert align(1 << 63) == cls(1 << 63)
    assert cls(0).checked_align_up(1 << 63) == cls(0)
    high = cls(TOP - 0x4000)
    assert high.checked_align_up(0x4000) == high and high.checked_align_up(0x10000) is None
    with pytest.raises(ModelError, match="beyond"):
        high.unchecked_align_up(0x10000)


@pytest.mark.parametrize("wrong", [0, 3, 12, TOP - 1])
def test_align_up_to_what_is_no_power_of_two(wrong: int) -> None:
    """Rust panics for each in ``checked_align_up``, for 0 alone in ``unchecked_align_up``."""
    with pytest.raises(ModelError, match="power of two"):
        GuestAddress(0x128).checked_align_up(wrong)
    if not wrong:
        with pytest.raises(ModelError, match="power of two"):
            GuestAddress(0x128).unchecked_align_up(wrong)
    elif wrong == 12:
        assert GuestAddress(0x128).unchecked_align_up(12) == GuestAddress(0x130)


@pytest.mark.parametrize("cls", TYPES)
def test_mask_and_bits(cls: type[Address]) -> None:
    addr = cls(0x5050)
    assert addr & 0xFF00 == cls(0x5000) and addr | 0x0005 == cls(0x5055)
    assert addr.mask(0xFF00) == 0x5000 and type(addr.mask(0xFF00)) is int
    assert cls(0x0FF0) & 0xF00F == cls(0) and cls(0x0FF0) | 0xF00F == cls(0xFFFF)
    for wrong in (-1, TOP):
        for use in (addr.mask, addr.__and__, addr.__or__):
            with pytest.raises(ModelError):
                use(wrong)
    for both in (lambda: addr & addr, lambda: addr | addr):  # type: ignore[operator]
        with pytest.raises(TypeError):
            both()


@pytest.mark.parametrize(
    ("one", "other", "over", "total"),
    [(10, 10, False, 20), (TOP - 2, 1, False, TOP - 1), (TOP - 1, 1, True, 0)],
)
def test_add(one: int, other: int, over: bool, total: int) -> None:
    addr = GuestAddress(one)
    assert addr.overflowing_add(other) == (GuestAddress(total), over)
    assert addr.checked_add(other) == (None if over else GuestAddress(total))
    if over:
        with pytest.raises(ModelError, match="beyond"):
            addr.unchecked_add(other)
    else:
        assert addr.unchecked_add(other) == GuestAddress(total)


@pytest.mark.parametrize(
    ("one", "other", "under", "rest"),
    [(20, 10, False, 10), (1, 1, False, 0), (0, 1, True, TOP - 1)],
)
def test_sub(one: int, other: int, under: bool, rest: int) -> None:
    addr = GuestAddress(one)
    assert addr.overflowing_sub(other) == (GuestAddress(rest), under)
    assert addr.checked_sub(other) == (None if under else GuestAddress(rest))
    assert addr.checked_offset_from(GuestAddress(other)) == (None if under else rest)
    if under:
        with pytest.raises(ModelError, match="below 0"):
            addr.unchecked_sub(other)
    else:
        assert addr.unchecked_sub(other) == GuestAddress(rest)


@given(NUMBERS, NUMBERS, st.integers(0, 63), st.sampled_from(TYPES))
def test_the_rest_of_the_arithmetic_as_that_of_u64(
    one: int, other: int, bit: int, cls: type[Address]
) -> None:
    addr, rest = cls(one), one - other
    assert addr.overflowing_sub(other) == (cls(rest % TOP), rest < 0)
    assert addr.checked_sub(other) == (cls(rest) if rest >= 0 else None)
    assert (addr & other, addr | other) == (cls(one & other), cls(one | other))
    assert addr.mask(other) == one & other
    up = -(-one >> bit) << bit
    assert addr.checked_align_up(1 << bit) == (cls(up) if one + (1 << bit) <= TOP else None)
