"""ByteValued: bytes that are a value, and values that are their bytes."""

from __future__ import annotations

import ctypes
import io

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import AtomicU64
from qemuglue.memory.byte_valued import (
    ByteCell,
    ByteStructure,
    ByteValuedType,
    align_of,
    flat,
    offset_in_owner,
)
from qemuglue.memory.endian import ENDIAN_TYPES, U8, Be32, EndianInt, Le16, Le32
from qemuglue.memory.guest_error import ErrorKind, GuestIOError
from qemuglue.memory.native import NATIVE_TYPES, NativeI128, NativeInt, NativeU32
from qemuglue.memory.volatile import VolatileSlice

INTEGERS = (*ENDIAN_TYPES, *NATIVE_TYPES)


class Pair(ByteStructure, ctypes.LittleEndianStructure):
    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint32))


class BigPair(ByteStructure, ctypes.BigEndianStructure):
    _fields_ = (("a", ctypes.c_uint16), ("b", ctypes.c_uint16))


class Packed(ByteStructure, ctypes.LittleEndianStructure):
    _pack_ = 1
    _fields_ = (("kind", ctypes.c_uint8), ("addr", ctypes.c_uint64))


ALL = (*INTEGERS, Pair, BigPair, Packed)


@pytest.mark.parametrize("cls", ALL)
def test_bytes_are_a_value_if_length_and_alignment_are_right(cls: type[ByteValuedType]) -> None:
    data = bytearray(range(1, 65))
    size, align = cls.size, align_of(cls)
    for at in range(17):
        part = memoryview(data)[at : at + size]
        for view in (part, part.toreadonly()):
            value = cls.from_slice(view)
            assert (value is None) == bool(at % align)
            if value is not None:
                assert type(value) is cls
                assert value.as_slice() == value.raw == bytes(part)
        cell = cls.from_mut_slice(part)
        assert (cell is None) == bool(at % align)
        if cell is not None:
            assert cell.value == cls.from_raw(bytes(part))
    for length in {0, size - 1, size + 1, 64} - {size}:
        assert cls.from_slice(memoryview(data)[:length]) is None
        assert cls.from_mut_slice(memoryview(data)[:length]) is None
    assert cls.from_slice(bytes(data)) is None
    assert cls.from_slice(bytes(data[:size])) is not None


@pytest.mark.parametrize("cls", ALL)
def test_a_mutable_slice_is_the_place_itself(cls: type[ByteValuedType]) -> None:
    data = bytearray(cls.size)
    cell = cls.from_mut_slice(data)
    assert cell is not None
    assert cell.value == cls.zeroed()
    cell.value = cls.from_raw(bytes(range(1, cls.size + 1)))
    assert data == bytes(range(1, cls.size + 1)) == cell.as_slice()
    data[0] = 0x55
    assert cell.value.raw[0] == 0x55
    cell.as_mut_slice()[0] = 0x33
    assert data[0] == 0x33


@pytest.mark.parametrize("cls", ALL)
def test_zeroed_is_all_zeroes(cls: type[ByteValuedType]) -> None:
    assert cls.zeroed().raw == bytes(cls.size)


@pytest.mark.parametrize("cls", INTEGERS)
def test_an_integer_does_not_change_but_a_cell_does(cls: type[NativeInt]) -> None:
    value = cls(5)
    for change in (value.as_mut_slice, value.as_bytes):
        with pytest.raises(ModelError, match="do not change"):
            change()
    cell = ByteCell.of(value)
    cell.as_bytes().write_slice(cls(6).raw, 0)
    assert (cell.value, value) == (6, 5)
    assert type(cell.value) is cls
    with pytest.raises(ModelError, match=f"holds {cls.__name__}"):
        cell.value = 7  # type: ignore[assignment]


@pytest.mark.parametrize("cls", INTEGERS)
def test_an_integer_is_aligned_to_its_size(cls: type[NativeInt]) -> None:
    assert align_of(cls) == cls.align == cls.size


def test_a_type_that_does_not_say_is_not_aligned() -> None:
    class Odd:
        size = 3

    class Method(Odd):
        def align(self) -> int:
            return 8

    assert align_of(Odd) == align_of(Method) == 1
    assert (align_of(Pair), align_of(BigPair), align_of(Packed)) == (4, 2, 1)


def test_a_structure_is_its_fields() -> None:
    pair = Pair(0, 0)
    pair.as_bytes().copy_from(b"\0\0\0\0\1\1\1\1")
    assert (pair.a, pair.b) == (0, 0x01010101)
    pair.as_mut_slice()[0] = 5
    assert pair.a == 5
    assert Pair.from_raw(b"\1\0\0\0\2\0\0\0") == Pair(1, 2)
    assert BigPair(1, 2).raw == b"\0\1\0\2"
    assert Packed(1, 2).raw == b"\1\2" + bytes(7)
    assert (Pair.size, BigPair.size, Packed.size) == (8, 4, 9)
    assert repr(pair) == "Pair(a=5, b=16843009)"
    assert isinstance(pair.as_bytes(), VolatileSlice)


def test_structures_are_equal_if_their_bytes_are() -> None:
    assert Pair(1, 2) == Pair(1, 2) != Pair(2, 1)
    assert Pair(1, 2) != 1
    assert BigPair(1, 2) != Pair(1, 2)
    with pytest.raises(TypeError):
        hash(Pair(1, 2))


def test_a_structure_in_a_cell_is_the_place() -> None:
    data = bytearray(8)
    cell = Pair.from_mut_slice(data)
    assert cell is not None
    cell.value.b = 0x0A0B0C0D
    assert data == b"\0\0\0\0\x0d\x0c\x0b\x0a"
    copy = Pair.from_slice(data)
    assert copy is not None
    copy.a = 9
    assert data[0] == 0
    read_only = ByteCell(Pair, memoryview(bytes(8)))
    assert read_only.value == Pair(0, 0)
    for change in (read_only.as_mut_slice, read_only.as_bytes):
        with pytest.raises(ModelError, match="only be read"):
            change()


def test_a_structure_with_holes_is_no_value() -> None:
    class Tail(ByteStructure, ctypes.LittleEndianStructure):
        _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint8))

    class Gap(ByteStructure, ctypes.LittleEndianStructure):
        _fields_ = (("a", ctypes.c_uint8), ("b", ctypes.c_uint32))

    class Bits(ByteStructure, ctypes.LittleEndianStructure):
        _fields_ = (("a", ctypes.c_uint16, 4), ("b", ctypes.c_uint16, 12), ("c", ctypes.c_uint16))

    with pytest.raises(ModelError, match="bytes behind its last field"):
        Tail.from_raw(bytes(8))
    with pytest.raises(ModelError, match="bytes before b"):
        Gap.zeroed()
    with pytest.raises(ModelError, match="not one of ctypes"):
        _ = ByteStructure.size
    assert Bits.size == 4
    assert Bits(1, 2, 3).raw == b"\x21\0\3\0"


@pytest.mark.parametrize("name", ["size", "raw", "align", "from_raw", "as_bytes"])
def test_a_field_cannot_be_named_as_a_method(name: str) -> None:
    with pytest.raises(ModelError, match=f"named '{name}'"):
        type("Bad", (ByteStructure, ctypes.LittleEndianStructure),
             {"_fields_": ((name, ctypes.c_uint8),)})


@pytest.mark.parametrize("cls", ALL)
def test_the_wrong_number_of_bytes_is_no_value(cls: type[ByteValuedType]) -> None:
    for length in (0, cls.size - 1, cls.size + 1):
        if length != cls.size:
            with pytest.raises(ModelError, match="bytes in memory"):
                cls.from_raw(bytes(length))
            with pytest.raises(ModelError, match="bytes in memory"):
                ByteCell(cls, memoryview(bytearray(length)))


@pytest.mark.parametrize("cls", [EndianInt, NativeInt])
def test_the_bases_have_no_values(cls: type[NativeInt]) -> None:
    with pytest.raises(ModelError):
        cls(1)
    with pytest.raises(ModelError):
        cls.from_raw(b"")


# -- streams ---------------------------------------------------------------------------------


class Drip:
    """A stream that moves one byte at a time, interrupted before each, and holds ``room``."""

    def __init__(self, data: bytes = b"", room: int = 100) -> None:
        self.data, self.room = data, room
        self.tries = 0

    def read(self, size: int) -> bytes:
        self.tries += 1
        if self.tries % 2:
            raise InterruptedError
        part, self.data = self.data[:1], self.data[1:]
        return part[:size]

    def write(self, data: bytes) -> int:
        self.tries += 1
        if self.tries % 2:
            raise InterruptedError
        n = min(1, self.room - len(self.data))
        self.data += data[:n]
        return n


@pytest.mark.parametrize("cls", ALL)
def test_a_value_goes_through_streams(cls: type[ByteValuedType]) -> None:
    raw = bytes(range(1, cls.size + 1))
    value = cls.read_exact_from(io.BytesIO(raw + b"more"))
    assert value.raw == raw
    out = io.BytesIO()
    value.write_all_to(out)
    assert out.getvalue() == raw
    drip = Drip()
    value.write_all_to(drip)
    assert drip.data == raw
    assert cls.read_exact_from(drip) == value
    assert drip.data == b""


def test_a_stream_that_ends_early_or_is_full() -> None:
    for source in (io.BytesIO(bytes(7)), Drip(bytes(7)), io.BytesIO()):
        with pytest.raises(GuestIOError) as short:
            Pair.read_exact_from(source)
        assert short.value.kind is ErrorKind.UNEXPECTED_EOF
    full = Drip(room=7)
    with pytest.raises(GuestIOError) as caught:
        Pair(1, 2).write_all_to(full)
    assert caught.value.kind is ErrorKind.WRITE_ZERO
    assert full.data == Pair(1, 2).raw[:7]


# -- buffers ---------------------------------------------------------------------------------


def test_where_in_its_owner_a_buffer_begins() -> None:
    for owner in (bytes(64), bytearray(64), (ctypes.c_uint8 * 64)()):
        assert offset_in_owner(owner) == 0  # type: ignore[arg-type]
        view = memoryview(owner).cast("B")
        assert [offset_in_owner(view[at:]) for at in (0, 1, 7, 63)] == [0, 1, 7, 63]
        assert offset_in_owner(view[3:][4:]) == 7
        assert offset_in_owner(view[64:]) == 0
        assert offset_in_owner(view[5::3]) == 5


def test_a_buffer_is_taken_as_single_bytes() -> None:
    words = memoryview(bytearray(8)).cast("I")
    assert (flat(words).format, len(flat(words))) == ("B", 8)
    assert NativeU32.from_slice(words[1:]) == 0
    array = (ctypes.c_uint8 * 4)(1, 2, 3, 4)
    assert (memoryview(array).format, flat(array).format) == ("<B", "B")  # type: ignore[arg-type]
    assert Le32.from_slice(array) == 0x04030201  # type: ignore[arg-type]
    for wrong in ("text", 5, memoryview(bytes(8))[::2]):
        with pytest.raises(ModelError, match="a buffer is bytes"):
            flat(wrong)  # type: ignore[arg-type]


def test_cells_and_integers_show_what_they_hold() -> None:
    assert repr(ByteCell.of(Le32(5))) == "ByteCell(Le32(0x5))"
    assert ByteCell.of(NativeI128(-5)).value == -5
    with pytest.raises(NotImplementedError):
        ByteValuedType.from_raw(b"")
    with pytest.raises(NotImplementedError):
        _ = ByteValuedType().raw
    assert (U8.align, Le16.align, Be32.align) == (1, 2, 4)


class Point(ByteStructure, ctypes.LittleEndianStructure):
    _fields_ = (("x", ctypes.c_uint16), ("y", ctypes.c_uint16))


def test_a_type_checker_follows_structures_and_atomics() -> None:
    """The annotations are what is tested: the linter reads this file too."""
    mem = VolatileSlice.from_buffer(bytearray(b"\x01\x00\x02\x00" + bytes(4)))
    point: Point = mem.read_obj(0, Point)
    place: AtomicU64 = mem.get_atomic_ref(0, AtomicU64)
    assert (point.x, point.y, int(place.load())) == (1, 2, 0x20001)
