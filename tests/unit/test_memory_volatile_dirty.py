"""Every write through a slice, a ref or an array marks its bitmap, and nothing else does."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from volatile_bench import Marks, Refusing, Tape

from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.atomic_integer import AtomicU64
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.bitmap import Bitmap
from qemuglue.memory.endian import U8, Le16, Le32, Le64
from qemuglue.memory.guest_error import InvalidBackendAddress
from qemuglue.memory.volatile import (
    OutOfBounds,
    VolatileIOError,
    VolatilePartialBuffer,
    VolatileRef,
    VolatileSlice,
)

PAGE = 0x1000


def marked(bitmap: Bitmap, start: int, length: int) -> bool:
    return all(bitmap.dirty_at(at) for at in range(start, start + length))


def clean(bitmap: Bitmap, start: int, length: int) -> bool:
    return not any(bitmap.dirty_at(at) for at in range(start, start + length))


def paged(length: int = 0x10000) -> VolatileSlice:
    return VolatileSlice(ByteBacking(length), bitmap=AtomicBitmap(length, PAGE).slice_at(0))


WRITES: list[tuple[Callable[[VolatileSlice], object], list[tuple[int, int]]]] = [
    (lambda m: m.write(b"abc", 5), [(5, 3)]),
    (lambda m: m.write(bytes(20), 60), [(60, 4)]),
    (lambda m: m.write(bytes(20), 5), [(5, 20)]),
    (lambda m: m.write_slice(b"ab", 0), [(0, 2)]),
    (lambda m: m.write_obj(Le32(1), 3), [(3, 4)]),
    (lambda m: m.store(Le64(1), 8), [(8, 8)]),
    (lambda m: m.store(U8(1), 9), [(9, 1)]),
    (lambda m: m.copy_from(b"12345"), [(0, 5)]),
    (lambda m: m.copy_from(bytes(100)), [(0, 64)]),
    (lambda m: m.copy_from([Le16(1)] * 3), [(0, 6)]),
    (lambda m: m.get_ref(7, Le32).store(Le32(1)), [(7, 4)]),
    (lambda m: m.get_array_ref(4, 5, Le16).store(3, Le16(1)), [(10, 2)]),
    (lambda m: m.get_array_ref(4, 5, Le16).ref_at(4).store(Le16(1)), [(12, 2)]),
    (lambda m: m.get_array_ref(4, 5, Le16).copy_from([Le16(1)] * 9), [(4, 10)]),
    (lambda m: m.get_array_ref(4, 5, U8).copy_from([U8(1)] * 2), [(4, 2)]),
    (lambda m: VolatileSlice(Tape(9)).copy_to_volatile_slice(m.offset(60)), [(60, 4)]),
    (lambda m: m.get_array_ref(0, 4, Le16).copy_to_volatile_slice(m.offset(9)), [(9, 8)]),
    (lambda m: m.read_volatile_from(6, io.BytesIO(b"abc"), 8), [(6, 3)]),
    (lambda m: m.read_exact_volatile_from(6, io.BytesIO(b"abcd"), 4), [(6, 4)]),
    (lambda m: m.subslice(16, 8).offset(2).split_at(1)[1].write(b"x", 3), [(22, 1)]),
    (lambda m: m.split_at(8)[0].write(b"x", 3), [(3, 1)]),
]


@pytest.mark.parametrize("number", range(len(WRITES)))
@pytest.mark.parametrize("kind", [ByteBacking, Tape])
def test_every_write_marks_what_it_wrote(number: int, kind: type[ByteBacking]) -> None:
    write, told = WRITES[number]
    marks = Marks()
    write(VolatileSlice(kind(64), bitmap=marks))
    assert marks.told == told


def test_a_window_of_a_backing_has_its_own_bitmap_from_its_start() -> None:
    marks = Marks()
    VolatileSlice(ByteBacking(64), 32, bitmap=marks.slice_at(32)).write(b"abc", 4)
    assert marks.told == [(36, 3)]


def test_nothing_else_marks_anything() -> None:
    marks = Marks()
    mem = VolatileSlice(ByteBacking(64), bitmap=marks)
    mem.read(bytearray(70), 3)
    mem.read_slice(bytearray(7), 3)
    mem.read_obj(3, Le32)
    mem.load(8, Le32)
    mem.copy_to(bytearray(64))
    mem.copy_to([Le16(0)] * 40, Le16)
    mem.copy_to_volatile_slice(VolatileSlice(ByteBacking(64)))
    mem.get_ref(3, Le32).load()
    array = mem.get_array_ref(3, 5, Le32)
    array.load(1)
    array.copy_to([Le32(0)] * 9)
    array.copy_to_volatile_slice(VolatileSlice(ByteBacking(8)))
    mem.write_volatile_to(0, bytearray(), 8)
    mem.write_all_volatile_to(0, bytearray(), 8)
    mem.write(b"", 3)
    mem.write_slice(b"", 300)
    mem.copy_from(b"")
    mem.copy_from([])
    VolatileSlice(ByteBacking(0)).copy_to_volatile_slice(mem)
    mem.read_volatile_from(0, b"", 8)
    with pytest.raises(OutOfBounds):
        mem.write(b"1", 64)
    with pytest.raises(VolatileIOError):
        mem.read_exact_volatile_from(0, b"123", 8)
    assert marks.dirty == set()


def test_what_is_changed_by_pointer_is_for_the_caller_to_mark() -> None:
    marks = Marks()
    mem = VolatileSlice(ByteBacking(64), bitmap=marks)
    mem.get_atomic_ref(8, AtomicU64).store(1)
    mem.aligned_as_mut(16, Le64).value = Le64(1)
    with mem.ptr_guard_mut() as guard:
        guard.as_ptr()[0] = 1
    assert (marks.told, mem.read_obj(8, Le64), mem.read_obj(16, Le64)) == ([], 1, 1)


def test_a_short_write_marks_what_was_written() -> None:
    marks = Marks()
    mem = VolatileSlice(ByteBacking(64), bitmap=marks)
    with pytest.raises(VolatilePartialBuffer):
        mem.write_slice(b"12345", 61)
    with pytest.raises(VolatileIOError):
        class Three:
            def __init__(self) -> None:
                self.left = b"123"

            def read(self, size: int) -> bytes:
                part, self.left = self.left[:2], self.left[2:]
                return part

        mem.read_exact_volatile_from(8, Three(), 8)
    assert marks.told == [(61, 3), (8, 2), (10, 1)]


def test_bytes_that_a_backing_refused_may_have_arrived() -> None:
    def told(write: Callable[[VolatileSlice], object]) -> list[tuple[int, int]]:
        marks = Marks()
        try:
            write(VolatileSlice(Refusing(64, range(20, 21)), bitmap=marks))
        except (InvalidBackendAddress, VolatilePartialBuffer):
            return marks.told
        return [*marks.told, (-1, 0)]

    assert told(lambda m: m.write_slice(b"123456", 16)) == [(16, 6)]
    assert told(lambda m: m.write_slice(b"1234567", 14)) == [(14, 7)]
    assert told(lambda m: m.write_slice(b"1" * 7, 17)) == [(17, 4)]
    assert told(lambda m: m.write(b"1" * 20, 12)) == [(12, 20)]
    assert told(lambda m: m.store(Le32(1), 20)) == [(20, 4)]
    assert told(lambda m: m.get_ref(19, Le32).store(Le32(1))) == [(19, 4)]
    assert told(lambda m: m.get_array_ref(8, 9, Le32).copy_from([Le32(1)] * 9)) == [(8, 16)]
    assert told(lambda m: VolatileSlice(Tape(64)).copy_to_volatile_slice(m)) == [(0, 64)]
    assert told(lambda m: m.write_slice(b"1234", 16)) == [(16, 4), (-1, 0)], "not refused"


def test_marks_come_after_the_bytes() -> None:
    seen = []

    class Late(Marks):
        def mark_dirty(self, offset: int, length: int) -> None:
            seen.append(backing.read(self.base + offset, length))

        def slice_at(self, offset: int) -> Late:
            return Late(self.base + offset)

    backing = ByteBacking(32)
    mem = VolatileSlice(backing, bitmap=Late())
    mem.write(b"abc", 0)
    mem.write(b"0123456789", 0)
    mem.store(Le16(0x4141), 2)
    assert seen == [b"abc", b"0123456789", b"AA"]


# -- over an AtomicBitmap, by pages ---------------------------------------------------------------


def test_writes_of_each_kind_mark_their_pages() -> None:
    mem = paged()
    at = PAGE
    for write in (
        lambda at: mem.write(b"\1" * 1024, at), lambda at: mem.write_slice(b"\1" * 1024, at),
        lambda at: mem.write_obj(Le64(1), at), lambda at: mem.store(Le64(1), at),
        lambda at: mem.get_ref(at, Le64).store(Le64(1)),
        lambda at: mem.get_array_ref(at, 1, Le64).store(0, Le64(1)),
    ):
        assert clean(mem.bitmap(), at, PAGE)
        write(at)
        assert marked(mem.bitmap(), at, PAGE)
        at += PAGE
    assert clean(mem.bitmap(), 0, PAGE)
    assert clean(mem.bitmap(), at, PAGE)


def test_parts_share_the_pages_of_the_whole() -> None:
    mem = paged()
    part = mem.get_slice(PAGE, 8)
    assert clean(part.bitmap(), 0, 8)
    mem.write_obj(Le64(123), PAGE)
    first, rest = mem.split_at(PAGE)
    assert clean(first.bitmap(), 0, first.len())
    for other in (part, rest, mem.subslice(PAGE, 8), mem.offset(PAGE)):
        assert marked(other.bitmap(), 0, 8)
    assert clean(rest.bitmap(), PAGE, 8)


def test_a_copied_slice_marks_the_other_ones_pages() -> None:
    mem, other = paged(), paged()
    mem.copy_to_volatile_slice(other)
    assert marked(other.bitmap(), 0, other.len())
    assert clean(mem.bitmap(), 0, mem.len())


@pytest.mark.parametrize("cls", [U8, Le32])
def test_copied_values_mark_their_pages(cls: type[U8]) -> None:
    mem = paged()
    mem.copy_from([cls(1)] * (PAGE // cls.size))
    assert marked(mem.bitmap(), 0, PAGE)
    assert clean(mem.bitmap(), PAGE, PAGE)


def test_a_ref_marks_its_own_bitmap() -> None:
    bitmap = AtomicBitmap(8, PAGE)
    ref = VolatileRef(VolatileSlice(ByteBacking(8), bitmap=bitmap.slice_at(0)), Le64)
    assert clean(ref.bitmap(), 0, ref.len())
    ref.store(Le64(123))
    assert marked(ref.bitmap(), 0, ref.len())


def test_an_array_marks_the_pages_of_its_values() -> None:
    for cls in (U8, Le64):
        size, index = cls.size, PAGE
        for write in (lambda a, v: a.ref_at(PAGE).store(v), lambda a, v: a.store(PAGE, v)):
            array = paged((index + 1) * size).get_array_ref(0, index + 1, cls)
            assert clean(array.to_slice().bitmap(), 0, array.to_slice().len())
            write(array, cls(123))
            assert marked(array.bitmap(), size * index, size)
            assert clean(array.bitmap(), 0, size * index)
        array = paged((index + 1) * size).get_array_ref(0, index + 1, cls)
        array.copy_from([cls(123)] * (index + 1))
        assert marked(array.bitmap(), 0, (index + 1) * size)
