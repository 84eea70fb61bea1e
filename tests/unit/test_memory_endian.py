"""Typed integers: what they hold, how they stand in memory, and what is refused."""

import copy
import pickle
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.errors import ModelError
from qemuglue.memory.endian import (
    ENDIAN_TYPES,
    U8,
    Be16,
    Be32,
    Be64,
    BeSize,
    EndianInt,
    Le16,
    Le32,
    Le64,
    LeSize,
    endian_class,
    typed_class,
    typed_value,
)

SHAPES = {
    U8: (1, "little"), Le16: (2, "little"), Le32: (4, "little"), Le64: (8, "little"),
    LeSize: (8, "little"), Be16: (2, "big"), Be32: (4, "big"), Be64: (8, "big"),
    BeSize: (8, "big"),
}


def test_every_type_has_its_size_and_order() -> None:
    assert set(ENDIAN_TYPES) == set(SHAPES)
    for cls, (size, order) in SHAPES.items():
        assert (cls.size, cls.order, cls.struct.size) == (size, order, size)


@pytest.mark.parametrize(("value", "raw"), [
    (U8(0xAB), b"\xab"),
    (Le16(0x1122), b"\x22\x11"), (Be16(0x1122), b"\x11\x22"),
    (Le32(0x11223344), b"\x44\x33\x22\x11"), (Be32(0x11223344), b"\x11\x22\x33\x44"),
    (Le64(0x1122334455667788), bytes.fromhex("8877665544332211")),
    (Be64(0x1122334455667788), bytes.fromhex("1122334455667788")),
    (LeSize(0x1122334455667788), bytes.fromhex("8877665544332211")),
    (BeSize(0x1122334455667788), bytes.fromhex("1122334455667788")),
])
def test_bytes_in_memory(value: EndianInt, raw: bytes) -> None:
    assert value.raw == raw
    back = type(value).from_raw(raw)
    assert back == value and type(back) is type(value)


@given(st.sampled_from(ENDIAN_TYPES), st.data())
def test_raw_round_trip(cls: type[EndianInt], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, (1 << 8 * cls.size) - 1))
    value = cls(number)
    assert value.raw == number.to_bytes(cls.size, cls.order)
    assert cls.from_raw(memoryview(value.raw)) == number
    assert value == number == value.to_native() and hash(value) == hash(number)
    assert type(value.to_native()) is int


@pytest.mark.parametrize("cls", ENDIAN_TYPES)
def test_range(cls: type[EndianInt]) -> None:
    top = (1 << 8 * cls.size) - 1
    assert cls(0) == 0 and cls(top) == top and cls() == 0
    for wrong in (-1, top + 1, -(1 << 70), 1 << 70):
        with pytest.raises(ModelError) as caught:
            cls(wrong)
        assert str(caught.value) == f"{cls.__name__} holds 0 to {top:#x}, got {wrong:#x}"


@pytest.mark.parametrize("wrong", ["42", 4.0, b"\x2a", None, Fraction(1)])
def test_only_integers(wrong: object) -> None:
    with pytest.raises(ModelError, match="takes an integer"):
        Le32(wrong)  # type: ignore[arg-type]


def test_from_raw_takes_exactly_its_size() -> None:
    for wrong in (b"", b"\1", b"\1\2\3"):
        with pytest.raises(ModelError, match="2 bytes"):
            Le16.from_raw(wrong)
    with pytest.raises(ModelError):
        EndianInt.from_raw(b"")


def test_the_base_has_no_values() -> None:
    with pytest.raises(ModelError, match="no size"):
        EndianInt(1)


def test_it_is_the_number() -> None:
    value = Be32(42)
    assert value == 42 and value == Le32(42) and value < 43 and value in {42}
    assert str(value) == "42" and f"{value:#x}" == "0x2a" and f"{value}" == "42"
    assert repr(value) == "Be32(0x2a)"
    assert Le16(Be16(7)).raw == b"\7\0"


def test_arithmetic_gives_an_untyped_integer() -> None:
    for computed in (Le32(1) + 1, 1 + Le32(1), Le32(1) | 2, Le32(8) >> 1, -Le32(1), ~Le32(1)):
        assert type(computed) is int
        with pytest.raises(ModelError):
            typed_value(computed)  # type: ignore[type-var]


def test_an_untyped_integer_is_refused_in_one_sentence_that_says_why() -> None:
    with pytest.raises(ModelError) as caught:
        typed_value(42)  # type: ignore[type-var]
    text = str(caught.value)
    assert text.startswith("42 does not say")
    assert "target endianness" in text and "Le32(42)" in text and "store_target" in text
    assert "\n" not in text and ". " not in text
    for wrong in (True, 1.5, "x", Le32, None):
        with pytest.raises(ModelError):
            typed_value(wrong)  # type: ignore[type-var]
    assert typed_value(Le32(42)).size == 4


def test_an_untyped_class_is_refused() -> None:
    for wrong, name in ((int, "int"), (EndianInt, "EndianInt"), (4, "4"), (Le32(1), "Le32")):
        with pytest.raises(ModelError, match=f"^{name}.*target endianness"):
            typed_class(wrong)  # type: ignore[type-var]
    assert typed_class(Be16) is Be16


def test_endian_class() -> None:
    for cls, (size, order) in SHAPES.items():
        if cls not in (LeSize, BeSize):
            assert endian_class(size, order) is cls  # type: ignore[arg-type]
    assert endian_class(1, "big") is endian_class(1, "little") is U8
    for size, order in ((3, "big"), (16, "little"), (0, "little"), (4, "middle")):
        with pytest.raises(ModelError):
            endian_class(size, order)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", ENDIAN_TYPES)
def test_copies_keep_the_type(cls: type[EndianInt]) -> None:
    value = cls(0x5A)
    for again in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert type(again) is cls and again == value
    with pytest.raises(AttributeError):
        value.note = 1  # type: ignore[attr-defined]
