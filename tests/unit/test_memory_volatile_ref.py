"""Typed places in memory: refs, arrays, aligned places, atomic integers."""

from __future__ import annotations

import ctypes
import threading

import pytest
from volatile_bench import Tape

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import AtomicU8, AtomicU32, AtomicU64, AtomicUsize
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.byte_valued import ByteStructure
from qemuglue.memory.bytes import ByteValued, Ordering
from qemuglue.memory.endian import U8, Be32, Le16, Le32, Le64
from qemuglue.memory.guest_error import HostAddressNotAvailable
from qemuglue.memory.native import NativeU8, NativeU16, NativeU128, NativeUsize
from qemuglue.memory.volatile import (
    Misaligned,
    OutOfBounds,
    Overflow,
    TooBig,
    VolatileArrayRef,
    VolatileRef,
    VolatileSlice,
)

USIZE_MAX = (1 << 64) - 1


class Descriptor(ByteStructure, ctypes.LittleEndianStructure):
    _fields_ = (("addr", ctypes.c_uint64), ("len", ctypes.c_uint32), ("flags", ctypes.c_uint32))


def memory(data: bytes | int) -> VolatileSlice:
    return VolatileSlice(ByteBacking(bytearray(data)))


def inside(mem: VolatileSlice) -> bytes:
    return bytes(mem.ptr_guard().as_ptr())


# -- VolatileRef -----------------------------------------------------------------------------


def test_a_ref_stores_into_memory() -> None:
    mem = memory(5)
    mem.get_ref(0, U8).store(U8(2))
    mem.get_ref(2, Le16).store(Le16(9))
    assert inside(mem) == b"\2\0\x09\0\0"
    assert mem.as_volatile_slice().read_obj(2, Le16) == 9


def test_a_ref_loads_what_is_there_now_and_outlives_its_slice() -> None:
    buf = bytearray(b"\5")
    ref = VolatileSlice.from_buffer(buf).subslice(0, 1).get_ref(0, U8)
    assert ref.load() == 5
    buf[0] = 6
    assert ref.load() == 6
    assert type(ref.load()) is U8


def test_a_ref_and_its_slice_are_the_same_place() -> None:
    mem = memory(5)
    ref = mem.get_ref(1, Be32)
    ref.store(Be32(0x12345678))
    part = ref.to_slice()
    assert (part.offset_in_backing, part.len(), ref.len()) == (1, 4, 4)
    assert not part.is_empty()
    assert inside(part) == b"\x12\x34\x56\x78"
    with ref.ptr_guard_mut() as guard:
        guard.as_ptr()[0] = 0xFF
    assert ref.load() == 0xFF345678
    with ref.ptr_guard() as guard:
        assert bytes(guard.as_ptr()) == b"\xff\x34\x56\x78"


@pytest.mark.parametrize("size, cls", [(1, U8), (4, Le32), (16, NativeU128), (16, Descriptor)])
def test_a_ref_is_as_long_as_its_type(size: int, cls: type[ByteValued]) -> None:
    assert VolatileRef(memory(size), cls).len() == size


def test_a_ref_holds_one_type() -> None:
    mem = memory(8)
    with pytest.raises(ModelError, match="holds Le32"):
        mem.get_ref(0, Le32).store(Be32(1))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="holds Le32"):
        mem.get_ref(0, Le32).store(1)  # type: ignore[arg-type]
    for size in (3, 8):
        with pytest.raises(ModelError, match=f"4 bytes, the slice {size}"):
            VolatileRef(mem.subslice(0, size), Le32)
    with pytest.raises(ModelError, match="size and byte order"):
        mem.get_ref(0, int)  # type: ignore[type-var]
    assert inside(mem) == bytes(8)


def test_an_unaligned_ref_is_as_good() -> None:
    mem = memory(b"\1\2\xaa\xaa\xaa\xaa\4")
    ref = mem.get_ref(2, Le32)
    assert ref.load() == 0xAAAAAAAA
    mem.get_ref(1, Le32).load()
    ref.store(Le32(0x55555555))
    assert inside(mem) == b"\1\2\x55\x55\x55\x55\4"


def test_a_ref_to_a_structure() -> None:
    mem = memory(bytes(range(20)))
    ref = mem.get_ref(3, Descriptor)
    assert ref.load().len == 0x0E0D0C0B
    ref.store(Descriptor(1, 2, 3))
    assert inside(mem)[3:19] == Descriptor(1, 2, 3).raw


@pytest.mark.parametrize(
    "offset, cls, addr", [(99, Le16, 101), (100, U8, 101), (97, Le32, 101), (0, NativeU128, None)]
)
def test_a_ref_that_does_not_fit_is_out_of_bounds_at_its_end(
    offset: int, cls: type[ByteValued], addr: int | None
) -> None:
    mem = memory(100)
    mem.get_ref(99, U8)
    if addr is None:
        mem.get_ref(offset, cls)
        return
    with pytest.raises(OutOfBounds) as caught:
        mem.get_ref(offset, cls)
    assert caught.value.addr == addr


def test_a_ref_larger_than_all_memory() -> None:
    with pytest.raises(OutOfBounds) as caught:
        memory(3).get_ref(0, Le32)
    assert caught.value.addr == 4


def test_a_ref_behind_the_last_offset_overflows() -> None:
    with pytest.raises(Overflow) as caught:
        memory(1).get_ref(USIZE_MAX, U8)
    assert (caught.value.base, caught.value.offset) == (USIZE_MAX, 1)


def test_what_another_thread_stores_is_seen() -> None:
    mem = memory(1)
    ref = mem.get_ref(0, U8)
    ref.store(U8(99))
    start, ready = threading.Event(), threading.Event()

    def other() -> None:
        start.wait()
        mem.get_ref(0, U8).store(U8(0))
        ready.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert ref.load() == 99
    start.set()
    ready.wait()
    assert ref.load() == 0
    thread.join()


# -- VolatileArrayRef --------------------------------------------------------------------------


def test_the_bytes_of_a_slice_are_an_array() -> None:
    data = bytes((2, 4, 6, 8, 10))
    array = VolatileArrayRef.from_slice(memory(data))
    assert [array.load(i) for i in range(array.len())] == list(data)
    assert type(array.load(0)) is NativeU8
    assert array.from_slice(memory(3)).len() == 3


def test_an_array_stores_and_loads_by_index() -> None:
    mem = memory(10)
    array = mem.get_array_ref(1, 4, Le16)
    for index, number in ((1, 0x0202), (2, 0x0404), (3, 0x0606)):
        array.store(index, Le16(number))
    assert inside(mem) == b"\0\0\0\2\2\4\4\6\6\0"
    assert [array.load(i) for i in range(4)] == [0, 0x0202, 0x0404, 0x0606]
    assert array.ref_at(2).load() == 0x0404
    array.ref_at(0).store(Le16(1))
    assert inside(mem)[1:3] == b"\1\0"


def test_an_array_outlives_its_slice() -> None:
    buf = bytearray((0, 0, 2, 3, 10))
    array = VolatileSlice.from_buffer(buf).get_array_ref(1, 4, U8)
    assert [array.load(i) for i in (1, 2, 3)] == [2, 3, 10]
    assert array.load(0) == 0


def test_an_array_knows_its_sizes() -> None:
    array = memory(100).get_array_ref(0, 25, Le32)
    assert (array.len(), array.element_size(), array.is_empty()) == (25, 4, False)
    assert array.to_slice().len() == 100
    none = memory(100).get_array_ref(100, 0, Le32)
    assert (none.len(), none.element_size(), none.is_empty()) == (0, 4, True)
    with pytest.raises(ModelError, match="no whole number of Le32"):
        VolatileArrayRef(memory(9), Le32)


def test_values_of_no_bytes_are_no_array() -> None:
    class Nothing(ByteStructure, ctypes.LittleEndianStructure):
        _fields_ = ()

    mem = memory(8)
    assert mem.get_ref(3, Nothing).load() == Nothing()
    for call in (lambda: mem.get_array_ref(0, 2, Nothing), lambda: mem.copy_from([Nothing()]),
                 lambda: mem.copy_to([Nothing()], Nothing)):
        with pytest.raises(ModelError, match="has no bytes"):
            call()


@pytest.mark.parametrize("index", [4, 5, USIZE_MAX, -1])
def test_an_index_outside_an_array_is_refused(index: int) -> None:
    array = memory(10).get_array_ref(1, 4, Le16)
    for call in (array.load, array.ref_at, lambda at: array.store(at, Le16(1))):
        with pytest.raises(ModelError):
            call(index)


@pytest.mark.parametrize(
    "n, cls",
    [(USIZE_MAX, Le32), ((1 << 63) // 4, Le32), (1 << 63, U8), ((1 << 63) // 16, Descriptor)],
)
def test_an_array_that_no_object_could_be_is_too_big(n: int, cls: type[ByteValued]) -> None:
    with pytest.raises(TooBig) as caught:
        memory(5).get_array_ref(4, n, cls)
    assert (caught.value.nelements, caught.value.size) == (n, cls.size)


def test_the_largest_array_that_could_be_is_only_out_of_bounds() -> None:
    n = (1 << 63) // 4 - 1
    with pytest.raises(OutOfBounds) as caught:
        memory(5).get_array_ref(4, n, Le32)
    assert caught.value.addr == 4 + 4 * n
    with pytest.raises(OutOfBounds):
        memory(5).get_array_ref(4, (1 << 63) - 1, U8)
    with pytest.raises(Overflow):
        memory(5).get_array_ref(USIZE_MAX, 1, Le32)


def test_an_array_copies_as_many_values_as_both_have() -> None:
    mem = memory(b"".join(Be32(n).raw for n in range(1, 6)))
    array = mem.get_array_ref(0, 5, Be32)
    short, long = [Be32(0)] * 3, [Be32(0)] * 7
    assert array.copy_to(short) == 3
    assert array.copy_to(long) == 5
    assert (short, long) == ([1, 2, 3], [1, 2, 3, 4, 5, 0, 0])
    array.copy_from([Be32(9)])
    assert [array.load(i) for i in range(5)] == [9, 2, 3, 4, 5]
    array.copy_from([Be32(n) for n in range(10, 20)])
    assert [array.load(i) for i in range(5)] == [10, 11, 12, 13, 14]
    array.copy_from([])
    with pytest.raises(ModelError, match="holds Be32"):
        array.copy_from([Be32(0), Le32(1)])  # type: ignore[list-item]
    assert array.load(0) == 10


@pytest.mark.parametrize("n", [3, 32, 40])
def test_an_array_of_bytes_copies_too(n: int) -> None:
    array = memory(32).get_array_ref(0, 32, U8)
    array.copy_from([U8(5)] * n)
    assert inside(array.to_slice()) == (b"\5" * n)[:32].ljust(32, b"\0")
    buf = [U8(7)] * n
    assert array.copy_to(buf) == min(n, 32)
    assert buf == [5] * min(n, 32) + [7] * (n - min(n, 32))
    assert all(type(value) is U8 for value in buf)


def test_an_array_copies_to_a_slice() -> None:
    source, target = memory(bytes(range(32))), memory(b"\5" * 16)
    source.get_array_ref(8, 6, Le32).copy_to_volatile_slice(target)
    assert inside(target) == bytes(range(8, 24))
    source.get_array_ref(0, 2, Le16).copy_to_volatile_slice(target.offset(1))
    assert inside(target)[:6] == b"\x08\0\1\2\3\x0d"


def test_an_arrays_guard_is_to_all_of_its_bytes() -> None:
    # Differs from the crate, whose guard says the number of values.
    array = memory(16).get_array_ref(4, 3, Le32)
    for guard in (array.ptr_guard(), array.ptr_guard_mut()):
        with guard:
            assert guard.len() == 12
    with array.ptr_guard_mut() as guard:
        guard.as_ptr()[11] = 1
    assert array.load(2) == 1 << 24


def test_places_say_what_they_are() -> None:
    mem = memory(16)
    assert repr(mem.get_ref(0, Le32)).startswith("<VolatileRef to Le32 in <VolatileSlice of 0x4 ")
    assert repr(mem.get_array_ref(0, 3, Le32)).startswith("<VolatileArrayRef to 3 Le32 in ")


# -- aligned places, atomic integers -----------------------------------------------------------


def test_only_an_aligned_place_can_be_pointed_at() -> None:
    mem = memory(3)
    for get in (mem.aligned_as_ref, mem.aligned_as_mut):
        get(0, NativeU16)
        with pytest.raises(Misaligned) as caught:
            get(1, NativeU16)
        assert (caught.value.addr, caught.value.alignment) == (1, 2)
        with pytest.raises(OutOfBounds):
            get(2, NativeU16)
        get(1, U8)


def test_an_aligned_place_is_the_memory_itself() -> None:
    mem = memory(bytes(range(32)))
    look, change = mem.aligned_as_ref(8, Le64), mem.aligned_as_mut(8, Le64)
    assert look.value == change.value == 0x0F0E0D0C0B0A0908
    change.value = Le64(5)
    assert look.value == 5
    with pytest.raises(ModelError, match="only be read"):
        look.value = Le64(6)
    place = mem.aligned_as_mut(16, Descriptor).value
    place.len = 7
    assert mem.read_obj(24, Le32) == 7
    with pytest.raises(Misaligned):
        mem.aligned_as_mut(4, Descriptor)


def test_an_atomic_integer_lies_in_the_memory() -> None:
    mem = memory(NativeUsize(5).raw)
    atomic = mem.get_atomic_ref(0, AtomicUsize)
    assert atomic.load(Ordering.RELAXED) == 5
    atomic.store(2, Ordering.SEQ_CST)
    assert inside(mem) == NativeUsize(2).raw
    mem.write_obj(NativeUsize(9), 0)
    del mem
    assert atomic.load(Ordering.ACQUIRE) == 9


def test_an_atomic_integer_that_does_not_fit_or_is_not_aligned() -> None:
    mem = memory(16)
    mem.get_atomic_ref(8, AtomicU64)
    with pytest.raises(OutOfBounds) as outside:
        mem.subslice(0, 8).get_atomic_ref(1, AtomicU64)
    assert outside.value.addr == 9, "where it ends is judged first"
    with pytest.raises(Misaligned) as caught:
        mem.get_atomic_ref(2, AtomicU32)
    assert (caught.value.addr, caught.value.alignment) == (2, 4)
    mem.get_atomic_ref(3, AtomicU8)
    with pytest.raises(HostAddressNotAvailable):
        VolatileSlice(Tape(8)).get_atomic_ref(0, AtomicU64)
