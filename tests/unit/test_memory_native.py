"""Integers in this host's byte order."""

from __future__ import annotations

import ctypes
import sys

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.bytes import byte_valued, size_of
from qemuglue.memory.endian import Le32
from qemuglue.memory.native import (
    NATIVE_TYPES,
    NativeI8,
    NativeI16,
    NativeI32,
    NativeI64,
    NativeI128,
    NativeInt,
    NativeIsize,
    NativeU8,
    NativeU16,
    NativeU32,
    NativeU64,
    NativeU128,
    NativeUsize,
)

TWINS = {
    NativeU8: ctypes.c_uint8, NativeU16: ctypes.c_uint16, NativeU32: ctypes.c_uint32,
    NativeU64: ctypes.c_uint64, NativeI8: ctypes.c_int8, NativeI16: ctypes.c_int16,
    NativeI32: ctypes.c_int32, NativeI64: ctypes.c_int64,
}


@pytest.mark.parametrize("cls", NATIVE_TYPES)
def test_it_holds_what_its_name_says(cls: type[NativeInt]) -> None:
    bits = cls.size * 8
    if cls.signed:
        low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    else:
        low, high = 0, (1 << bits) - 1
    assert (cls.min(), cls.max()) == (low, high)
    for number in (low, 0, 1, high):
        value = cls(number)
        assert value == number
        assert value.raw == number.to_bytes(cls.size, sys.byteorder, signed=cls.signed)
        assert cls.from_raw(value.raw) == value
        assert type(cls.from_raw(bytearray(value.raw))) is cls
    for number in (low - 1, high + 1):
        with pytest.raises(ModelError, match=f"{cls.__name__} holds"):
            cls(number)


def test_names_and_sizes() -> None:
    assert {cls.__name__: (cls.size, cls.signed) for cls in NATIVE_TYPES} == {
        "NativeU8": (1, False), "NativeU16": (2, False), "NativeU32": (4, False),
        "NativeU64": (8, False), "NativeU128": (16, False), "NativeUsize": (8, False),
        "NativeI8": (1, True), "NativeI16": (2, True), "NativeI32": (4, True),
        "NativeI64": (8, True), "NativeI128": (16, True), "NativeIsize": (8, True),
    }
    assert {NativeU128, NativeI128, NativeUsize, NativeIsize} | set(TWINS) == set(NATIVE_TYPES)


@pytest.mark.parametrize("cls", list(TWINS))
def test_its_bytes_are_the_c_compilers(cls: type[NativeInt]) -> None:
    for number in (cls.max(), cls.min(), 5):
        assert cls(number).raw == bytes(TWINS[cls](number))


def test_it_is_the_number() -> None:
    value = NativeI32(-5)
    assert value == -5 and hash(value) == hash(-5) and value + 1 == -4
    assert type(value + 1) is int
    assert (str(value), repr(value), f"{value}") == ("-5", "NativeI32(-5)", "-5")
    assert NativeI32() == 0
    assert NativeU32(NativeU8(3)) == Le32(3) == 3


def test_it_says_its_size_where_a_plain_integer_does_not() -> None:
    assert byte_valued(NativeU32(5)).raw == NativeU32(5).raw
    assert size_of(NativeU128) == 16
    with pytest.raises(ModelError, match="size and byte order"):
        byte_valued(5)  # type: ignore[type-var]
    with pytest.raises(ModelError, match="size and byte order"):
        size_of(NativeInt)
    with pytest.raises(ModelError, match="size and byte order"):
        byte_valued(NativeU32)  # type: ignore[type-var]


def test_what_is_no_integer_is_refused() -> None:
    with pytest.raises(ModelError, match="takes an integer"):
        NativeU32("5")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="has no size"):
        NativeInt(5)
    with pytest.raises(ModelError, match="4 bytes in memory, got 3"):
        NativeU32.from_raw(b"123")
