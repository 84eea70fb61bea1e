"""Values in a row as one value."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.byte_array import ByteArray, array_of
from qemuglue.memory.byte_valued import ByteCell, ByteStructure, align_of
from qemuglue.memory.endian import U8, Be16, Le16, Le32
from qemuglue.memory.native import NATIVE_TYPES
from qemuglue.memory.volatile import VolatilePartialBuffer, VolatileSlice


class Pair(ByteStructure, ctypes.LittleEndianStructure):
    _fields_ = (("a", ctypes.c_uint16), ("b", ctypes.c_uint16))


def test_it_is_its_elements_in_a_row() -> None:
    quad = array_of(Be16, 4)
    value = quad([1, Be16(2), 3, 0x405])
    assert value.raw == b"\0\1\0\2\0\3\4\5"
    assert (quad.size, quad.count, align_of(quad), len(value)) == (8, 4, 2, 4)
    assert quad.from_raw(value.raw) == value
    assert list(value) == [1, 2, 3, 0x405]
    assert all(type(element) is Be16 for element in value)
    assert (value[0], value[3], value[-1], value[-4]) == (1, 0x405, 0x405, 1)
    for index in (4, -5):
        with pytest.raises(IndexError):
            value[index]
    assert repr(value) == "Be16x4([Be16(0x1), Be16(0x2), Be16(0x3), Be16(0x405)])"


@pytest.mark.parametrize("cls", NATIVE_TYPES)
def test_every_integer_has_arrays_of_up_to_32_and_more(cls: type[U8]) -> None:
    for count in (0, 1, 32, 40):
        made = array_of(cls, count)
        assert made.size == count * cls.size
        assert list(made.zeroed()) == [0] * count
        assert made.from_slice(bytes(made.size)) == made([0] * count)
        assert made.from_slice(bytes(made.size + 1)) is None


def test_it_is_a_value_as_any_other() -> None:
    mem = VolatileSlice(ByteBacking(16))
    triple = array_of(Le16, 3)
    mem.write_obj(triple([1, 2, 3]), 5)
    assert mem.read_obj(5, triple) == triple([1, 2, 3])
    assert mem.get_ref(7, array_of(Le16, 2)).load() == array_of(Le16, 2)([2, 3])
    with pytest.raises(VolatilePartialBuffer) as caught:
        mem.write_obj(triple([1, 2, 3]), 12)
    assert (caught.value.expected, caught.value.completed) == (6, 4)
    with pytest.raises(ModelError, match="cannot be loaded or stored"):
        mem.store(array_of(U8, 4)([1, 2, 3, 4]), 0)
    cell = ByteCell.of(triple([1, 2, 3]))
    cell.value = triple([4, 5, 6])
    assert cell.as_slice() == triple([4, 5, 6]).raw
    with pytest.raises(ModelError, match="do not change"):
        triple([1, 2, 3]).as_mut_slice()


def test_arrays_of_arrays_and_of_structures() -> None:
    grid = array_of(array_of(U8, 2), 3)
    assert grid([[1, 2], [3, 4], [5, 6]]).raw == bytes((1, 2, 3, 4, 5, 6))
    assert list(grid.from_raw(bytes(range(6)))[1]) == [2, 3]
    pairs = array_of(Pair, 2)([Pair(1, 2), Pair(3, 4)])
    assert (pairs.raw, pairs[1].b) == (b"\1\0\2\0\3\0\4\0", 4)


def test_one_type_for_one_shape() -> None:
    assert array_of(Le16, 2) is array_of(Le16, 2)
    assert array_of(Le16, 2) is not array_of(Be16, 2)
    pair = array_of(Le16, 2)([1, 2])
    assert pair == array_of(Le16, 2)([1, 2]) != array_of(Le16, 2)([2, 1])
    assert pair != array_of(Be16, 2)([1, 2])
    assert pair != [1, 2]
    assert hash(pair) == hash(array_of(Le16, 2)([1, 2]))


@pytest.mark.parametrize(
    "make",
    [lambda: array_of(int, 2), lambda: array_of(Le16, -1), lambda: array_of(Le16, 1.0),
     lambda: array_of(Le32, 1 << 61), lambda: array_of(Le16, True),
     lambda: array_of(Le16, 2)([1]), lambda: array_of(Le16, 2)([1, 2, 3]),
     lambda: array_of(Le16, 2)([1, 1 << 16]), lambda: array_of(Le16, 2).from_raw(bytes(3))],
)
def test_what_is_no_array_is_refused(make: Callable[[], object]) -> None:
    array_of(Le16, 1)
    with pytest.raises(ModelError):
        make()


def test_the_longest_array_that_an_object_can_be() -> None:
    assert array_of(U8, (1 << 63) - 1).size == (1 << 63) - 1
    with pytest.raises(ModelError, match="more than 2"):
        array_of(U8, 1 << 63)
    assert issubclass(array_of(U8, 2), ByteArray)
