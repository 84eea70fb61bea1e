"""Cases of vm-memory's own tests and examples of volatile memory that stand nowhere else.

``upstream_cases.toml`` says which; the others are in the tests of the modules they are about.
"""

from __future__ import annotations

import ctypes
import io

import pytest

from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.byte_valued import ByteStructure
from qemuglue.memory.endian import Le32
from qemuglue.memory.native import NativeU32
from qemuglue.memory.volatile import Overflow, VolatileSlice
from qemuglue.memory.volatile.error import compute_offset

USIZE_MAX = (1 << 64) - 1


class Pair128(ByteStructure, ctypes.LittleEndianStructure):
    """32 bytes without a hole."""

    _fields_ = (("low", ctypes.c_uint64 * 2), ("high", ctypes.c_uint64 * 2))


def test_an_offset_plus_an_offset() -> None:
    assert compute_offset(100, 8) == 108
    assert compute_offset(USIZE_MAX, 0) == compute_offset(0, USIZE_MAX) == USIZE_MAX
    with pytest.raises(Overflow) as caught:
        compute_offset(USIZE_MAX, 6)
    assert (caught.value.base, caught.value.offset) == (USIZE_MAX, 6)


def test_a_slice_behind_the_last_offset_overflows() -> None:
    mem = VolatileSlice(ByteBacking(1))
    for get in (mem.get_slice, mem.compute_end_offset):
        with pytest.raises(Overflow) as caught:
            get(USIZE_MAX, 1)
        assert (caught.value.base, caught.value.offset) == (USIZE_MAX, 1)


def test_a_buffer_takes_all_of_a_slice() -> None:
    mem = VolatileSlice(ByteBacking(5))
    mem.write_obj(NativeU32(0xFFFF_FFFF), 1)
    mem.get_slice(1, 4).read_exact_volatile_from(0, io.BytesIO(bytes(100)), 4)
    assert mem.read_obj(1, NativeU32) == 0
    mem.write_slice(b"abcde", 0)
    sink = bytearray(4)
    mem.get_slice(1, 4).write_all_volatile_to(0, memoryview(sink), 4)
    assert sink == b"bcde"


def test_a_stream_that_is_shorter_than_a_structure_gives_what_it_has() -> None:
    value = Pair128()
    room = value.as_bytes()
    assert room.len() == 32
    assert room.read_volatile_from(0, b"\1" * 20, room.len()) == 20
    assert value.raw == b"\1" * 20 + bytes(12), "and it is the structure that was filled"


def test_the_first_half_of_memory_over_the_second() -> None:
    mem = VolatileSlice(ByteBacking(bytearray(range(32))))
    mem.copy_to_volatile_slice(mem.get_slice(16, 16))
    assert bytes(mem.ptr_guard().as_ptr()) == bytes(range(16)) * 2


def test_copied_bytes_are_seen_through_references() -> None:
    mem = VolatileSlice(ByteBacking(32))
    mem.copy_from(b"\5" * 64)
    assert [mem.get_ref(at, Le32).load() for at in range(0, 32, 4)] == [0x05050505] * 8
