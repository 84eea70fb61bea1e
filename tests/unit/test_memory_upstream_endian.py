"""vm-memory's eight endian types, as its own tests see them: one integer, two byte orders.

The cases are those of ``src/endian.rs`` in vm-memory 0.18; ``upstream_cases.toml`` names them.
"""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.memory.bytes import size_of
from qemuglue.memory.endian import Be16, Be32, Be64, BeSize, EndianInt, Le16, Le32, Le64, LeSize

#: Type, its integer's letter in the struct module (native size and alignment), little-endian.
TYPES: list[tuple[type[EndianInt], str, bool]] = [
    (Le16, "H", True), (Le32, "I", True), (Le64, "Q", True), (LeSize, "N", True),
    (Be16, "H", False), (Be32, "I", False), (Be64, "Q", False), (BeSize, "N", False),
]
PAIRS: list[tuple[type[EndianInt], type[EndianInt]]] = [
    (Le16, Be16), (Le32, Be32), (Le64, Be64), (LeSize, BeSize),
]
NUMBER = 0x0123_4567_89AB_CDEF


@pytest.mark.parametrize(("cls", "letter", "little"), TYPES)
def test_a_type_is_its_integer_in_its_own_order(
    cls: type[EndianInt], letter: str, little: bool
) -> None:
    size = struct.calcsize(f"@{letter}")
    number = NUMBER & ((1 << 8 * size) - 1)
    value = cls(number)
    # In memory: a host of the same order finds the number itself, another one its bytes swapped.
    (found,) = struct.unpack(f"@{letter}", value.raw)
    swapped = int.from_bytes(number.to_bytes(size, "little"), "big")
    assert found == (number if little == (sys.byteorder == "little") else swapped)
    assert size_of(cls) == len(value.raw) == size
    # Both ways, and compared either way round.
    assert value.to_native() == int(value) == number and type(value.to_native()) is int
    assert number == value and value == number
    assert swapped != value and value != swapped
    assert not (number != value or value != number)
    assert cls(value.to_native()).raw == value.raw
    assert cls() == 0 and cls().raw == bytes(size), "the default"


def test_the_same_number_differs_in_memory() -> None:
    for little, big in PAIRS:
        one, other = little(3), big(3)
        assert one.to_native() == other.to_native() == 3 == one == other
        assert one.raw != other.raw and one.raw == other.raw[::-1] and one.raw[0] == 3


@given(st.sampled_from(PAIRS), st.data())
def test_one_order_is_the_other_backwards(
    pair: tuple[type[EndianInt], type[EndianInt]], data: st.DataObject
) -> None:
    little, big = pair
    number = data.draw(st.integers(0, (1 << 8 * little.size) - 1))
    assert little(number).raw == big(number).raw[::-1]
    assert little.from_raw(big(number).raw) == int.from_bytes(big(number).raw, "little")
    assert little(big(number)).raw == little(number).raw, "the number is converted, not its bytes"


def test_unlike_upstream_the_two_orders_compare_with_each_other() -> None:
    """There ``Le16`` and ``Be16`` have no ``==``; here both are integers and the number counts."""
    for little, big in PAIRS:
        assert little(0x1234) == big(0x1234) and hash(little(5)) == hash(big(5)) == hash(5)
        assert little(0x1234) != big(0x3412)
