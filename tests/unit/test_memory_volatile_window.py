"""How bytes move: one access is one access, and up to 8 bytes are copied in aligned units."""

from __future__ import annotations

import mmap
import sys

import pytest
from volatile_bench import Recording, Tape

from qemuglue.errors import ModelError
from qemuglue.memory.backing import ByteBacking, SparseBacking, ViewBacking
from qemuglue.memory.bytes import ByteValued
from qemuglue.memory.endian import U8, Be32, Le16, Le32, Le64
from qemuglue.memory.native import NativeU128
from qemuglue.memory.volatile import VolatileSlice
from qemuglue.memory.volatile.window import alignment, base_of, load_one, store_one, units


@pytest.mark.parametrize("addr, least", [(9, 1), (30, 2), (12, 4), (8, 8), (96, 32), (1 << 40, 8)])
def test_alignment_is_the_largest_power_of_two(addr: int, least: int) -> None:
    assert alignment(addr) >= least
    assert addr % alignment(addr) == 0
    assert addr % (alignment(addr) * 2) != 0


def test_address_0_is_aligned_like_a_page() -> None:
    assert alignment(0) == 0x1000


@pytest.mark.parametrize(
    "align, total, sizes",
    [
        (8, 8, [8]), (8, 7, [4, 2, 1]), (8, 5, [4, 1]), (8, 3, [2, 1]), (8, 1, [1]), (8, 0, []),
        (4, 8, [4, 4]), (4, 7, [4, 2, 1]), (2, 8, [2, 2, 2, 2]), (2, 7, [2, 2, 2, 1]),
        (1, 3, [1, 1, 1]), (1, 8, [1] * 8), (4096, 8, [8]), (4096, 6, [4, 2]),
    ],
)
def test_units_are_as_large_as_alignment_and_rest_allow(
    align: int, total: int, sizes: list[int]
) -> None:
    assert units(align, total) == sizes


@pytest.mark.parametrize("base", [None, 0x1000, 0x1001, 0x1002, 0x1004])
@pytest.mark.parametrize("skew", [0, 1, 2, 4])
def test_short_copies_go_in_units_of_the_less_aligned_side(base: int | None, skew: int) -> None:
    for size in range(1, 10):
        for at in range(9):
            tape = Tape(bytes(range(32)), host_address=base)
            mem = VolatileSlice(tape)
            align = min(alignment((base or 0) + at), alignment(skew))
            wanted = [size] if size > 8 else units(align, size)
            buf = memoryview(bytearray(64))[skew : skew + size]
            assert mem.read(buf, at) == size
            assert bytes(buf) == bytes(range(at, at + size))
            assert [n for _, _, n in tape.calls] == wanted
            starts = [at + sum(wanted[:i]) for i in range(len(wanted))]
            assert [offset for _, offset, _ in tape.calls] == starts
            tape.calls.clear()
            assert mem.write(buf, at) == size
            assert [(kind, n) for kind, _, n in tape.calls] == [("w", n) for n in wanted]
            assert tape.bytes == bytes(range(32))


def test_a_copy_that_is_cut_goes_in_units_of_what_is_left() -> None:
    tape = Tape(16)
    mem = VolatileSlice(tape)
    assert mem.write(bytes(20), 10) == 6
    assert mem.read(bytearray(20), 12) == 4
    assert tape.calls == [("w", 10, 2), ("w", 12, 2), ("w", 14, 2), ("r", 12, 4)]


def test_every_way_to_copy_goes_in_units() -> None:
    tape = Tape(16)
    mem = VolatileSlice(tape, 2)
    mem.copy_from(b"12345")
    mem.copy_to(bytearray(5))
    mem.write_slice(b"1234567", 2)
    mem.read_obj(2, Le64)
    mem.write_all_volatile_to(2, bytearray(), 3)
    mem.read_exact_volatile_from(0, b"123", 3)
    assert [(kind, size) for kind, _, size in tape.calls] == [
        ("w", 2), ("w", 2), ("w", 1), ("r", 2), ("r", 2), ("r", 1), ("w", 4), ("w", 2), ("w", 1),
        ("r", 4), ("r", 4), ("r", 2), ("r", 1), ("w", 2), ("w", 1),
    ]


@pytest.mark.parametrize("value", [U8(1), Le16(2), Be32(3), Le64(4), NativeU128(5)])
def test_a_ref_and_an_array_make_one_access_of_each_value(value: ByteValued) -> None:
    size, cls = value.size, type(value)
    for offset in (0, 1, 3):
        tape = Tape(64)
        ref = VolatileSlice(tape).get_ref(offset, cls)
        ref.store(value)
        assert ref.load() == value
        assert tape.calls == [("w", offset, size), ("r", offset, size)]
    tape = Tape(64)
    array = VolatileSlice(tape).get_array_ref(1, 3, cls)
    array.store(2, value)
    array.load(1)
    assert tape.calls == [("w", 1 + 2 * size, size), ("r", 1 + size, size)]
    tape.calls.clear()
    array.copy_from([value] * 3)
    array.copy_to([value] * 2)
    places = [("w", 1 + i * size, size) for i in range(3)] + [
        ("r", 1 + i * size, size) for i in range(2)
    ]
    # Single bytes move as a slice's do: in units, here of 1 for the odd place.
    assert tape.calls == places


def test_an_array_of_bytes_moves_as_a_slice_does() -> None:
    tape = Tape(64)
    array = VolatileSlice(tape).get_array_ref(0, 40, U8)
    array.copy_from([U8(1)] * 8)
    array.copy_from([U8(1)] * 40)
    array.copy_to([U8(1)] * 12)
    assert tape.calls == [("w", 0, 8), ("w", 0, 40), ("r", 0, 12)]


@pytest.mark.parametrize("value", [U8(1), Le16(2), Be32(3), Le64(4)])
def test_a_store_and_a_load_are_one_access(value: ByteValued) -> None:
    tape = Tape(32)
    mem = VolatileSlice(tape)
    mem.store(value, 8)
    mem.load(8, type(value))
    assert tape.calls == [("w", 8, value.size), ("r", 8, value.size)]


def test_memory_that_can_be_pointed_at_is_accessed_directly() -> None:
    backing = Recording(bytearray(range(64)))
    mem = VolatileSlice(backing)
    mem.store(Le32(0x0A0B0C0D), 4)
    mem.write(b"\xff\xfe", 9)
    mem.get_ref(17, Le16).store(Le16(1))
    assert (mem.load(4, Le32), mem.get_ref(4, Be32).load()) == (0x0A0B0C0D, 0x0D0C0B0A)
    mem.read(bytearray(8), 0)
    assert backing.calls == []
    assert backing.data[4:8] == b"\x0d\x0c\x0b\x0a"
    assert backing.data[8:12] == b"\x08\xff\xfe\x0b"
    mem.get_ref(16, NativeU128).load()
    mem.write(bytes(9), 0)
    mem.read(bytearray(20), 0)
    assert backing.calls == [("r", 16, 16), ("w", 0, 9), ("r", 0, 20)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 16])
def test_one_access_anywhere_moves_the_bytes_as_they_lie(size: int) -> None:
    data = bytes(range(1, size + 1))
    for at in range(4):
        with mmap.mmap(-1, 0x1000) as mapped:
            view = ViewBacking(memoryview(mapped))
            for backing in (ByteBacking(32), SparseBacking(32), Tape(32), view):
                store_one(backing, at, data)
                assert load_one(backing, at, size) == data
                assert backing.read(0, at + size + 1) == bytes(at) + data + b"\0"
            view.data.release()


def test_a_backing_that_gives_too_little_is_told() -> None:
    class Short(Tape):
        def read(self, offset: int, size: int) -> bytes:
            return super().read(offset, size)[:-1]

    mem = VolatileSlice(Short(32))
    with pytest.raises(ModelError, match="gave 3 bytes of 4 at 0x4"):
        mem.load(4, Le32)
    buf = bytearray(b"\xee" * 12)
    assert mem.read(buf, 0) == 11
    assert buf == bytes(11) + b"\xee"


def test_a_backing_may_have_an_address() -> None:
    class Late(Tape):
        host_address = None

    assert base_of(ByteBacking(1)) == base_of(Late(1)) == 0
    assert base_of(Tape(1, host_address=0x7F00_0000_0000)) == 0x7F00_0000_0000


def test_numbers_of_this_host() -> None:
    backing = ByteBacking(8)
    store_one(backing, 0, (1).to_bytes(8, sys.byteorder))
    assert memoryview(backing.data).cast("Q")[0] == 1
