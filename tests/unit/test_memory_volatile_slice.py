"""VolatileSlice: its bounds, its parts, and what it says of an offset that is none."""

from __future__ import annotations

import pytest
from volatile_bench import Marks, Tape

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import AtomicU32
from qemuglue.memory.backing import ByteBacking, SparseBacking
from qemuglue.memory.bitmap import NoBitmap
from qemuglue.memory.byte_valued import offset_in_owner
from qemuglue.memory.endian import U8, Le16, Le32
from qemuglue.memory.guest_error import HostAddressNotAvailable
from qemuglue.memory.volatile import (
    Misaligned,
    OutOfBounds,
    Overflow,
    VolatileMemory,
    VolatileSlice,
)

USIZE_MAX = (1 << 64) - 1


def hundred(data: bytes = bytes(100)) -> VolatileSlice:
    return VolatileSlice(ByteBacking(bytearray(data)))


# -- making one ------------------------------------------------------------------------------


def test_it_is_all_of_its_backing_or_a_window_of_it() -> None:
    backing = ByteBacking(bytearray(range(100)))
    assert VolatileSlice(backing).len() == len(VolatileSlice(backing)) == 100
    rest = VolatileSlice(backing, 30)
    assert (rest.len(), rest.offset_in_backing, rest.backing) == (70, 30, backing)
    part = VolatileSlice(backing, 30, 7)
    assert part.len() == 7
    assert part.read_obj(0, U8) == 30
    assert VolatileSlice(backing, 100).is_empty()
    assert VolatileSlice(backing, 100, 0).is_empty()


@pytest.mark.parametrize("offset, size", [(101, None), (0, 101), (99, 2), (101, 0), (0, -1)])
def test_a_window_that_the_backing_does_not_have_is_refused(offset: int, size: int | None) -> None:
    with pytest.raises(ModelError, match="of 0x64 bytes has no"):
        VolatileSlice(ByteBacking(100), offset, size)


@pytest.mark.parametrize("offset", [-1, 1 << 64, Le16(1), "1", 1.0])
def test_what_is_no_offset_is_refused(offset: object) -> None:
    with pytest.raises(ModelError, match="offset"):
        VolatileSlice(ByteBacking(100), offset)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="offset"):
        hundred().subslice(offset, 1)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="offset"):
        hundred().offset(offset)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="offset"):
        hundred().write(b"1", offset)  # type: ignore[arg-type]


def test_a_slice_of_a_buffer_is_that_buffer() -> None:
    buf = bytearray(5)
    VolatileSlice.from_buffer(buf).write_slice(b"ab", 1)
    assert buf == b"\0ab\0\0"
    VolatileSlice.from_buffer(memoryview(buf)[2:]).write_slice(b"xyz", 0)
    assert buf == b"\0axyz"
    with pytest.raises(ModelError, match="writable"):
        VolatileSlice.from_buffer(memoryview(b"read-only"))


def test_memory_is_empty_when_it_has_no_bytes() -> None:
    assert not hundred().is_empty()
    assert VolatileSlice.from_buffer(bytearray()).is_empty()


def test_without_a_bitmap_nothing_is_remembered() -> None:
    assert hundred().bitmap() == NoBitmap()


def test_replace_bitmap_keeps_the_bytes() -> None:
    old, new = Marks(), Marks()
    part = VolatileSlice(ByteBacking(100), bitmap=old).subslice(10, 20)
    other = part.replace_bitmap(new)
    other.write(b"abc", 1)
    assert (old.told, new.told) == ([], [(1, 3)])
    assert part.read_obj(1, U8) == ord("a")
    assert (other.len(), other.offset_in_backing) == (20, 10)


# -- parts -----------------------------------------------------------------------------------


def test_compute_end_offset_takes_every_range_inside_and_none_outside() -> None:
    mem = hundred(bytes(5))
    for length in range(6):
        for base in range(6 - length):
            assert mem.compute_end_offset(base, length) == base + length
    for base, length, end in ((5, 1, 6), (6, 0, 6), (0, 6, 6), (2, 4, 6)):
        with pytest.raises(OutOfBounds) as caught:
            mem.compute_end_offset(base, length)
        assert caught.value.addr == end
    with pytest.raises(Overflow) as overflow:
        mem.compute_end_offset(USIZE_MAX, 1)
    assert (overflow.value.base, overflow.value.offset) == (USIZE_MAX, 1)


def test_slices_of_slices_have_their_length() -> None:
    mem = hundred(bytes(range(100)))
    assert mem.get_slice(0, 27).len() == 27
    second = mem.get_slice(34, 27)
    assert second.len() == 27
    third = second.get_slice(20, 5)
    assert (third.len(), third.read_obj(0, U8)) == (5, 54)
    assert not third.is_empty()
    assert mem.get_slice(34, 0).is_empty()
    assert mem.get_slice(100, 0).is_empty()
    assert mem.as_volatile_slice().len() == 100


@pytest.mark.parametrize(
    "offset, count, addr", [(0, 101, 101), (99, 2, 101), (100, 1, 101), (101, 0, 101),
                            (101, 1, 102), (55, 50, 105), (USIZE_MAX, 0, USIZE_MAX)],
)
def test_a_part_outside_is_out_of_bounds_at_its_end(offset: int, count: int, addr: int) -> None:
    for get in (hundred().subslice, hundred().get_slice):
        with pytest.raises(OutOfBounds) as caught:
            get(offset, count)
        assert caught.value.addr == addr


@pytest.mark.parametrize("offset, count", [(0, 0), (99, 0), (99, 1), (100, 0), (0, 100), (50, 50)])
def test_a_part_that_ends_with_the_slice_is_one(offset: int, count: int) -> None:
    assert hundred().subslice(offset, count).len() == count


@pytest.mark.parametrize("offset, count", [(USIZE_MAX, 1), (USIZE_MAX, 2), (2, USIZE_MAX)])
def test_a_part_whose_end_has_no_number_overflows(offset: int, count: int) -> None:
    with pytest.raises(Overflow) as caught:
        hundred().subslice(offset, count)
    assert (caught.value.base, caught.value.offset) == (offset, count)


def test_a_part_sees_what_the_whole_was_given() -> None:
    mem = hundred()
    mem.write(b"\x01" * 80, 10)
    part = mem.subslice(10, 80)
    buf = bytearray(80)
    assert part.read(buf, 0) == 80
    assert buf == b"\x01" * 80


def test_offset_is_all_but_the_first_bytes() -> None:
    mem = hundred()
    mem.write(b"\x01" * 80, 10)
    rest = mem.offset(10)
    assert rest.len() == 90
    buf = bytearray(90)
    rest.read(buf, 0)
    assert buf == b"\x01" * 80 + bytes(10)
    assert mem.offset(100).is_empty()
    assert mem.offset(0).len() == 100


def test_offset_speaks_of_host_addresses_where_subslice_counts_from_the_start() -> None:
    placed = VolatileSlice(Tape(200, host_address=0x7000), 16, 100)
    with pytest.raises(OutOfBounds) as caught:
        placed.offset(101)
    assert caught.value.addr == 0x7000 + 16 + 101
    with pytest.raises(OutOfBounds) as counted:
        placed.subslice(101, 0)
    assert counted.value.addr == 101
    with pytest.raises(Overflow) as overflow:
        placed.offset(USIZE_MAX - 0x7000)
    assert (overflow.value.base, overflow.value.offset) == (0x7010, USIZE_MAX - 0x7000)
    with pytest.raises(OutOfBounds):
        placed.offset(USIZE_MAX - 0x7010)


def test_without_a_host_address_a_backing_begins_at_0() -> None:
    mem = VolatileSlice(ByteBacking(200), 16, 100)
    assert mem.host_addr == 16
    with pytest.raises(OutOfBounds) as caught:
        mem.offset(101)
    assert caught.value.addr == 117
    mem.subslice(16, 4).check_alignment(32)


def test_split_at_gives_both_sides() -> None:
    mem = hundred(bytes(range(32)))
    for mid in (0, 8, 31, 32):
        first, rest = mem.split_at(mid)
        assert (first.len(), rest.len()) == (mid, 32 - mid)
        assert (first.offset_in_backing, rest.offset_in_backing) == (0, mid)
    with pytest.raises(OutOfBounds) as caught:
        mem.split_at(33)
    assert caught.value.addr == 33


def test_check_alignment_judges_the_host_address() -> None:
    placed = VolatileSlice(Tape(64, host_address=0x1002), 2)
    placed.check_alignment(4)
    with pytest.raises(Misaligned) as caught:
        placed.check_alignment(8)
    assert (caught.value.addr, caught.value.alignment) == (0x1004, 8)
    with pytest.raises(Misaligned) as unaligned:
        VolatileSlice(ByteBacking(64), 3).check_alignment(2)
    assert unaligned.value.addr == 3


def test_a_part_of_a_buffer_knows_how_far_into_it_it_begins() -> None:
    buf = bytearray(64)
    assert VolatileSlice.from_buffer(memoryview(buf)[3:]).host_addr == 3
    assert VolatileSlice.from_buffer(memoryview(buf)[8:]).offset(8).host_addr == 16
    assert offset_in_owner(memoryview(bytes(64))[5:][2:]) == 7


# -- copies ----------------------------------------------------------------------------------


def test_copy_to_bytes_moves_what_both_have() -> None:
    mem = hundred(bytes((2, 4, 6, 8, 10)))
    short, long = bytearray(4), bytearray(6)
    assert mem.copy_to(short) == 4
    assert mem.copy_to(long) == 5
    assert short == bytes((2, 4, 6, 8))
    assert long == bytes((2, 4, 6, 8, 10, 0))
    assert mem.copy_to(bytearray()) == 0


def test_copy_to_values_moves_whole_ones() -> None:
    mem = hundred(b"".join(Le16(n).raw for n in (1, 2, 3, 4, 5))[:9])
    short, long = [Le16(0)] * 4, [Le16(0)] * 6
    assert mem.copy_to(short, Le16) == 4
    assert mem.copy_to(long, Le16) == 4
    assert short == [1, 2, 3, 4]
    assert long == [1, 2, 3, 4, 0, 0]
    one = [U8(0)] * 2
    assert mem.copy_to(one, U8) == 2
    assert one == [1, 0]


def test_copy_from_bytes_moves_what_both_have() -> None:
    short, long = hundred(bytes(4)), hundred(bytes(6))
    for mem in (short, long):
        mem.copy_from(bytes((2, 4, 6, 8, 10)))
    assert bytes(short.ptr_guard().as_ptr()) == bytes((2, 4, 6, 8))
    assert bytes(long.ptr_guard().as_ptr()) == bytes((2, 4, 6, 8, 10, 0))


def test_copy_from_values_moves_whole_ones() -> None:
    values = [Le16(n) for n in (2, 4, 6, 8, 10)]
    even, odd = hundred(bytes(8)), hundred(bytes(9))
    even.copy_from(values)
    odd.copy_from(values)
    wanted = b"".join(value.raw for value in values[:4])
    assert bytes(even.ptr_guard().as_ptr()) == wanted
    assert bytes(odd.ptr_guard().as_ptr()) == wanted + b"\0"
    even.copy_from([])
    even.copy_from([U8(9)])
    assert even.read_obj(0, Le16) == 9


def test_copy_needs_to_know_what_the_values_are() -> None:
    with pytest.raises(ModelError, match="what type"):
        hundred().copy_to([Le16(0)])
    with pytest.raises(ModelError, match="go to a list"):
        hundred().copy_to(bytearray(4), Le16)
    with pytest.raises(ModelError, match="size and byte order"):
        hundred().copy_from([1, 2])  # type: ignore[list-item]


def test_copy_to_a_slice_moves_what_both_have() -> None:
    first, second = hundred(bytes((2, 4, 6, 8, 10))), hundred(bytes(4))
    first.copy_to_volatile_slice(second)
    assert bytes(second.ptr_guard().as_ptr()) == bytes((2, 4, 6, 8))
    second.subslice(0, 2).copy_to_volatile_slice(first.offset(3))
    assert bytes(first.ptr_guard().as_ptr()) == bytes((2, 4, 6, 2, 4))


def test_copy_to_a_slice_that_overlaps_moves_what_was_there() -> None:
    mem = hundred(bytes(range(10)))
    mem.subslice(0, 8).copy_to_volatile_slice(mem.offset(2))
    assert bytes(mem.ptr_guard().as_ptr()) == bytes((0, 1, 0, 1, 2, 3, 4, 5, 6, 7))


def test_copy_to_a_slice_of_other_memory_is_one_read_and_one_write() -> None:
    src, dst = Tape(bytes(range(40))), Tape(64)
    VolatileSlice(src, 4, 30).copy_to_volatile_slice(VolatileSlice(dst, 8))
    assert (src.calls, dst.calls) == ([("r", 4, 30)], [("w", 8, 30)])
    assert dst.bytes[8:38] == bytes(range(4, 34))
    src.calls.clear()
    VolatileSlice(src).copy_to_volatile_slice(VolatileSlice(dst, 64))
    assert src.calls == []


# -- pointers --------------------------------------------------------------------------------


def test_a_guard_gives_the_bytes_while_it_is_held() -> None:
    buf = bytearray(b"abcdef")
    mem = VolatileSlice(ByteBacking(buf), 1, 4)
    with mem.ptr_guard() as guard:
        assert (bytes(guard.as_ptr()), guard.len(), len(guard)) == (b"bcde", 4, 4)
        assert guard.as_ptr().readonly
        with pytest.raises(BufferError):
            buf.append(0)
    with pytest.raises(ValueError, match="released"):
        bytes(guard.as_ptr())
    buf.append(0)
    with mem.ptr_guard_mut() as writable:
        writable.as_ptr()[0] = ord("x")
    assert buf == b"axcdef\0"


def test_only_memory_of_this_process_can_be_pointed_at() -> None:
    for backing in (Tape(16), SparseBacking(16)):
        mem = VolatileSlice(backing)
        for point in (mem.ptr_guard, mem.ptr_guard_mut):
            with pytest.raises(HostAddressNotAvailable):
                point()
        for typed in (mem.aligned_as_ref, mem.aligned_as_mut):
            with pytest.raises(HostAddressNotAvailable):
                typed(0, Le32)
        with pytest.raises(HostAddressNotAvailable):
            mem.get_atomic_ref(0, AtomicU32)


def test_somebody_elses_memory_must_give_the_slice_that_was_asked_for() -> None:
    class Short(VolatileMemory):
        def len(self) -> int:
            return 16

        def get_slice(self, offset: int, count: int) -> VolatileSlice:
            return hundred(bytes(16)).subslice(offset, count - 1 if count else 0)

    with pytest.raises(ModelError, match="3 bytes where 4"):
        Short().get_ref(0, Le32)
    with pytest.raises(ModelError, match="7 bytes where 8"):
        Short().get_array_ref(0, 2, Le32)
    assert Short().compute_end_offset(16, 0) == 16
    assert VolatileMemory.__abstractmethods__ == {"len", "get_slice"}


def test_it_shows_where_it_lies() -> None:
    text = repr(VolatileSlice(ByteBacking(64), 16, 32))
    assert text.startswith("<VolatileSlice of 0x20 bytes at 0x10 of ")
