"""VolatileSlice as Bytes: partial, empty and refused moves, single accesses, streams."""

from __future__ import annotations

import io
import tempfile
from typing import Any

import pytest
from volatile_bench import Marks, Refusing, Tape

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import AtomicU64
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.bytes import ByteValued, Ordering
from qemuglue.memory.endian import U8, Be16, Be64, Le16, Le32, Le64, LeSize
from qemuglue.memory.guest_error import ErrorKind, GuestIOError, InvalidBackendAddress
from qemuglue.memory.native import NATIVE_TYPES, NativeI32, NativeU128
from qemuglue.memory.streams import WriteVolatile
from qemuglue.memory.volatile import (
    Misaligned,
    OutOfBounds,
    Overflow,
    VolatileIOError,
    VolatilePartialBuffer,
    VolatileSlice,
)

USIZE_MAX = (1 << 64) - 1


def five(data: bytes = bytes(5)) -> VolatileSlice:
    return VolatileSlice(ByteBacking(bytearray(data)))


def inside(mem: VolatileSlice) -> bytes:
    return bytes(mem.ptr_guard().as_ptr())


# -- what fits -------------------------------------------------------------------------------


def test_write_and_read_move_what_fits() -> None:
    mem = five()
    assert mem.write(b"\1\2\3\4\5\6", 0) == 5
    assert mem.write(b"\7\7\7", 3) == 2
    assert inside(mem) == b"\1\2\3\7\7"
    buf = bytearray(b"\xee" * 4)
    assert mem.read(buf, 3) == 2
    assert buf == b"\7\7\xee\xee"
    big = VolatileSlice(ByteBacking(1024))
    assert big.write(b"\1\2\3\4\5", 1020) == 4
    assert big.read(bytearray(16), 1010) == 14


@pytest.mark.parametrize("addr", [5, 6, 100, USIZE_MAX])
def test_where_the_first_byte_is_outside_nothing_moves(addr: int) -> None:
    mem, buf = five(), bytearray(b"unchanged")
    for call in (mem.write, mem.write_slice, mem.read, mem.read_slice):
        with pytest.raises(OutOfBounds) as caught:
            call(buf, addr)  # type: ignore[operator]
        assert caught.value.addr == addr
    assert (inside(mem), buf) == (bytes(5), b"unchanged")


@pytest.mark.parametrize("addr", [0, 4, 5, 100, USIZE_MAX])
def test_no_bytes_are_moved_anywhere(addr: int) -> None:
    for mem in (five(), VolatileSlice(ByteBacking(0))):
        assert mem.write(b"", addr) == 0
        assert mem.read(bytearray(), addr) == 0
        mem.write_slice(b"", addr)
        mem.read_slice(bytearray(), addr)


def test_empty_memory_takes_no_byte() -> None:
    with pytest.raises(OutOfBounds) as caught:
        VolatileSlice(ByteBacking(0)).write(b"1", 0)
    assert caught.value.addr == 0


def test_slices_move_all_or_tell_how_much() -> None:
    mem, buf = five(), bytearray(3)
    mem.write_slice(b"abc", 2)
    mem.read_slice(buf, 2)
    assert buf == b"abc"
    with pytest.raises(VolatilePartialBuffer) as short:
        mem.write_slice(b"wxyz", 3)
    assert (short.value.expected, short.value.completed) == (4, 2)
    assert inside(mem) == b"\0\0awx"
    buf = bytearray(b"\xee" * 6)
    with pytest.raises(VolatilePartialBuffer) as partial:
        mem.read_slice(buf, 1)
    assert (partial.value.expected, partial.value.completed) == (6, 4)
    assert buf == b"\0awx\xee\xee"


def test_objects_move_whole_aligned_or_not() -> None:
    mem = five()
    for addr in range(4):
        mem.write_obj(Le16(55 + addr), addr)
        assert mem.read_obj(addr, Le16) == 55 + addr
    for addr, expected, completed in ((4, 2, 1),):
        for call in (lambda at: mem.write_obj(Le16(1), at), lambda at: mem.read_obj(at, Le16)):
            with pytest.raises(VolatilePartialBuffer) as short:
                call(addr)
            assert (short.value.expected, short.value.completed) == (expected, completed)
            with pytest.raises(OutOfBounds) as outside:
                call(USIZE_MAX)
            assert outside.value.addr == USIZE_MAX


def test_a_range_that_wraps_is_cut_for_slices_and_overflows_for_single_accesses() -> None:
    # Two errors for one place: a slice looks at its first byte, an access at its end.
    with pytest.raises(OutOfBounds) as outside:
        five().read_obj(USIZE_MAX, Le16)
    assert outside.value.addr == USIZE_MAX
    with pytest.raises(Overflow) as overflow:
        five().load(USIZE_MAX, Le16)
    assert (overflow.value.base, overflow.value.offset) == (USIZE_MAX, 2)


@pytest.mark.parametrize("size", [1, 8, 9])
def test_any_flat_buffer_will_do(size: int) -> None:
    mem = VolatileSlice(ByteBacking(64))
    data = bytes(range(1, size + 1))
    for buf in (data, bytearray(data), memoryview(data), memoryview(b"x" + data)[1:]):
        mem.write_slice(bytes(size), 3)
        mem.write_slice(buf, 3)
        assert inside(mem)[3 : 3 + size] == data
    target = bytearray(size + 1)
    mem.read_slice(memoryview(target)[1:], 3)
    assert target[1:] == data
    with pytest.raises(ModelError, match="writable"):
        mem.read(memoryview(data), 0)


# -- one access ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [U8(7), Le16(7), Be16(7), Le32(7), Be64(7), LeSize(7), NativeI32(-7)]
)
def test_what_is_stored_is_loaded(value: ByteValued) -> None:
    for backing in (ByteBacking(32), Tape(32)):
        mem = VolatileSlice(backing)
        assert mem.load(16, type(value)) == 0
        mem.store(value, 16)
        assert mem.load(16, type(value)) == value
        assert backing.read(16, value.size) == value.raw
        assert backing.read(16 + value.size, 8) == bytes(8)


@pytest.mark.parametrize("addr, end", [(0x1000, 0x1004), (0xFFC + 1, 0x1001), (0x2000, 0x2004)])
def test_an_access_that_does_not_fit_is_out_of_bounds_at_its_end(addr: int, end: int) -> None:
    mem = VolatileSlice(ByteBacking(0x1000))
    for call in (lambda: mem.load(addr, Le32), lambda: mem.store(Le32(1), addr)):
        with pytest.raises(OutOfBounds) as caught:
            call()
        assert caught.value.addr == end


@pytest.mark.parametrize("cls", [Le16, Le32, Le64, Be64])
def test_an_access_is_aligned_to_its_size(cls: type[Any]) -> None:
    mem = VolatileSlice(Tape(64, host_address=0x4000), 8)
    for addr in range(1, cls.size):
        for call in (lambda at: mem.load(at, cls), lambda at: mem.store(cls(1), at)):
            with pytest.raises(Misaligned) as caught:
                call(addr)
            assert (caught.value.addr, caught.value.alignment) == (0x4008 + addr, cls.size)
    mem.store(cls(1), cls.size)


def test_alignment_is_the_hosts_not_the_offsets() -> None:
    mem = VolatileSlice(Tape(64, host_address=0x4003))
    mem.store(Le32(1), 1)
    with pytest.raises(Misaligned) as caught:
        mem.store(Le32(1), 0)
    assert caught.value.addr == 0x4003


def test_bounds_are_judged_before_alignment() -> None:
    with pytest.raises(OutOfBounds):
        five().load(3, Le32)
    with pytest.raises(Misaligned):
        five().load(1, Le32)


def test_only_what_one_access_can_be_is_stored() -> None:
    mem = VolatileSlice(ByteBacking(64))
    with pytest.raises(ModelError, match="cannot be loaded or stored in one access"):
        mem.store(NativeU128(1), 0)
    with pytest.raises(ModelError, match="cannot be loaded or stored in one access"):
        mem.load(0, NativeU128)
    with pytest.raises(ModelError, match="size and byte order"):
        mem.store(5, 0)  # type: ignore[type-var]
    with pytest.raises(ModelError, match="size and byte order"):
        mem.load(0, int)  # type: ignore[type-var]
    for cls in NATIVE_TYPES:
        if cls.size <= 8:
            mem.store(cls(1), 8)
            assert mem.load(8, cls) == 1


def test_a_type_of_ones_own_says_what_it_is_loaded_as() -> None:
    class Tag(Le64, size=8, order="little"):
        A = AtomicU64

    mem = VolatileSlice(ByteBacking(16))
    mem.store(Tag(3), 8)
    assert mem.load(8, Tag) == 3


@pytest.mark.parametrize("order", list(Ordering))
def test_orders_that_rust_panics_for_are_refused(order: Ordering) -> None:
    mem = VolatileSlice(ByteBacking(16))
    if order in (Ordering.ACQUIRE, Ordering.ACQ_REL):
        with pytest.raises(ModelError, match=f"no {order.value} store"):
            mem.store(Le32(1), 0, order)
        assert inside(mem) == bytes(16)
    else:
        mem.store(Le32(1), 0, order)
    if order in (Ordering.RELEASE, Ordering.ACQ_REL):
        with pytest.raises(ModelError, match=f"no {order.value} load"):
            mem.load(0, Le32, order)
    else:
        mem.load(0, Le32, order)


# -- a backing that refuses ----------------------------------------------------------------------


def test_a_refusal_at_the_first_byte_goes_through() -> None:
    mem = VolatileSlice(Refusing(64, range(16, 20)))
    for call in (
        lambda: mem.write(b"1234", 16), lambda: mem.write(b"x" * 40, 0),
        lambda: mem.read(bytearray(40), 0), lambda: mem.read_slice(bytearray(2), 18),
        lambda: mem.load(16, Le32), lambda: mem.store(Le32(1), 16),
        lambda: mem.copy_to(bytearray(64)), lambda: mem.copy_from(b"x" * 64),
        lambda: mem.write_all_volatile_to(0, bytearray(), 64),
        lambda: mem.write_volatile_to(16, bytearray(), 4),
        lambda: mem.read_volatile_from(16, b"1234", 4),
        lambda: mem.read_exact_volatile_from(16, b"1234", 4),
        lambda: mem.copy_to_volatile_slice(VolatileSlice(ByteBacking(20))),
        lambda: five(b"12345").copy_to_volatile_slice(mem.offset(16)),
    ):
        with pytest.raises(InvalidBackendAddress):
            call()


def test_a_refusal_later_ends_the_access_as_its_end_would() -> None:
    mem = VolatileSlice(Refusing(64, range(19, 20)))
    assert mem.write(b"123456", 14) == 4
    buf = bytearray(6)
    assert mem.read(buf, 14) == 4
    assert buf == b"1234\0\0"
    for call in (lambda: mem.write_slice(b"123456", 14), lambda: mem.read_slice(buf, 14)):
        with pytest.raises(VolatilePartialBuffer) as caught:
            call()
        assert (caught.value.expected, caught.value.completed) == (6, 4)
        assert isinstance(caught.value.__cause__, InvalidBackendAddress)
    assert mem.read_volatile_from(14, b"abcdef", 6) == 4
    with pytest.raises(InvalidBackendAddress):
        mem.read_exact_volatile_from(14, b"abcdef", 6)
    out = bytearray()
    assert mem.write_volatile_to(14, out, 6) == 4
    assert out == b"abcd"
    with pytest.raises(InvalidBackendAddress):
        mem.write_all_volatile_to(14, out, 6)
    assert out == b"abcd", "nothing goes out of what is cut"


# -- streams ---------------------------------------------------------------------------------


class Interrupted:
    """A stream that is interrupted before every move, and moves ``step`` bytes at a time."""

    def __init__(self, data: bytes = b"", step: int = 3) -> None:
        self.data, self.step = data, step
        self.interrupted = False
        self.calls = 0

    def _tried(self) -> None:
        self.calls += 1
        self.interrupted = not self.interrupted
        if self.interrupted:
            raise InterruptedError

    def read(self, size: int) -> bytes:
        self._tried()
        part, self.data = self.data[: min(size, self.step)], self.data[min(size, self.step) :]
        return part

    def write(self, data: bytes) -> int:
        self._tried()
        part = data[: self.step]
        self.data += part
        return len(part)


def test_from_a_stream_comes_what_one_read_gives() -> None:
    mem = VolatileSlice(ByteBacking(16))
    assert mem.read_volatile_from(2, io.BytesIO(b"abcdef"), 4) == 4
    assert mem.read_volatile_from(14, io.BytesIO(b"xyz"), 3) == 2
    assert inside(mem) == b"\0\0abcd" + bytes(8) + b"xy"
    stream = Interrupted(b"12345")
    assert mem.read_volatile_from(0, stream, 5) == 3
    assert (stream.calls, inside(mem)[:6]) == (2, b"123bcd")
    assert mem.read_volatile_from(0, io.BytesIO(b""), 5) == 0
    assert mem.read_volatile_from(16, io.BytesIO(b"abc"), 5) == 0
    assert mem.read_volatile_from(0, io.BytesIO(b"abc"), 0) == 0


def test_a_source_that_has_less_than_asked_for_gives_what_it_has() -> None:
    mem = VolatileSlice(ByteBacking(32))
    assert mem.read_volatile_from(0, b"\1" * 20, 32) == 20
    assert inside(mem) == b"\1" * 20 + bytes(12)


def test_to_a_stream_goes_what_one_write_takes() -> None:
    mem = VolatileSlice(ByteBacking(bytearray(b"abcdefgh")))
    out = io.BytesIO()
    assert mem.write_volatile_to(2, out, 3) == 3
    assert mem.write_volatile_to(6, out, 3) == 2
    assert out.getvalue() == b"cdegh"
    stream = Interrupted()
    assert mem.write_volatile_to(0, stream, 8) == 3
    assert (stream.calls, stream.data) == (2, b"abc")
    assert mem.write_volatile_to(8, out, 1) == 0


def test_an_exact_count_takes_as_many_moves_as_it_needs() -> None:
    mem = VolatileSlice(ByteBacking(bytearray(b"abcdefgh")))
    sink = Interrupted()
    mem.write_all_volatile_to(0, sink, 8)
    assert (sink.data, sink.calls) == (b"abcdefgh", 6)
    source = Interrupted(b"12345678")
    mem.read_exact_volatile_from(1, source, 7)
    assert (inside(mem), source.data) == (b"a1234567", b"8")
    mem.read_exact_volatile_from(8, source, 0)


def test_a_stream_that_ends_early_is_an_unexpected_end() -> None:
    mem = VolatileSlice(ByteBacking(16))
    with pytest.raises(VolatileIOError) as caught:
        mem.read_exact_volatile_from(0, Interrupted(b"12345"), 8)
    assert caught.value.kind is ErrorKind.UNEXPECTED_EOF
    assert inside(mem)[:6] == b"12345\0", "what came stays"
    # Bytes know beforehand that they are too few, as Rust's slices do: nothing is moved.
    with pytest.raises(VolatileIOError) as known:
        mem.read_exact_volatile_from(8, b"12345", 8)
    assert known.value.kind is ErrorKind.UNEXPECTED_EOF
    assert inside(mem)[8:] == bytes(8)
    mem.read_exact_volatile_from(8, b"12345678", 8)
    assert inside(mem)[8:] == b"12345678"


def test_a_sink_that_is_full_is_a_write_of_nothing() -> None:
    mem, full = VolatileSlice(ByteBacking(bytearray(b"abcdefgh"))), bytearray(5)
    with pytest.raises(VolatileIOError) as caught:
        mem.write_all_volatile_to(0, memoryview(full), 8)
    assert caught.value.kind is ErrorKind.WRITE_ZERO
    assert full == b"abcde"
    assert mem.write_volatile_to(0, memoryview(full)[:2], 8) == 2


def test_streams_and_bounds() -> None:
    mem = VolatileSlice(Tape(16, host_address=0x1000))
    # The forms that move what fits name the host's address (they begin with ``offset``); those
    # that move all name the end in the slice.
    for call in (lambda: mem.read_volatile_from(17, b"abc", 1),
                 lambda: mem.write_volatile_to(17, bytearray(), 1)):
        with pytest.raises(OutOfBounds) as caught:
            call()
        assert caught.value.addr == 0x1011
    for call in (lambda: mem.read_exact_volatile_from(14, b"abc", 3),
                 lambda: mem.write_all_volatile_to(14, bytearray(), 3)):
        with pytest.raises(OutOfBounds) as exact:
            call()
        assert exact.value.addr == 17
    with pytest.raises(Overflow):
        mem.read_exact_volatile_from(2, b"", USIZE_MAX)


def test_a_sink_that_writes_all_in_its_own_way_is_asked_once() -> None:
    class Own(WriteVolatile):
        calls = 0

        def write_volatile(self, data: bytes) -> int:
            raise AssertionError(data)

        def write_all_volatile(self, data: bytes) -> None:
            self.calls += 1
            raise GuestIOError(ErrorKind.INTERRUPTED)

    own = Own()
    with pytest.raises(VolatileIOError) as caught:
        VolatileSlice(ByteBacking(32)).write_all_volatile_to(0, own, 8)
    assert (caught.value.kind, own.calls) == (ErrorKind.INTERRUPTED, 1)


def test_files_fill_memory_and_take_it() -> None:
    mem = VolatileSlice(ByteBacking(bytearray(b"\xff" * 5)))
    with open("/dev/zero", "rb", buffering=0) as zero:  # noqa: PTH123
        mem.read_exact_volatile_from(1, zero, 4)
    assert inside(mem) == b"\xff\0\0\0\0"
    with tempfile.TemporaryFile(buffering=0) as file:
        with pytest.raises(VolatileIOError) as caught:
            mem.read_exact_volatile_from(1, file, 4)
        assert caught.value.kind is ErrorKind.UNEXPECTED_EOF
        mem.write_all_volatile_to(0, file, 5)
        file.seek(0)
        assert file.read() == b"\xff\0\0\0\0"
        file.seek(0)
        assert mem.read_volatile_from(0, file, 2) == 2


def test_what_a_stream_raises_is_an_io_error() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise OSError(5, "no such luck")

        def write(self, data: bytes) -> int:
            raise BlockingIOError

    mem = VolatileSlice(ByteBacking(16), bitmap=(marks := Marks()))
    for call in (lambda: mem.read_volatile_from(0, Broken(), 4),
                 lambda: mem.read_exact_volatile_from(0, Broken(), 4)):
        with pytest.raises(VolatileIOError, match="no such luck") as caught:
            call()
        assert caught.value.kind is ErrorKind.OTHER
    for call in (lambda: mem.write_volatile_to(0, Broken(), 4),
                 lambda: mem.write_all_volatile_to(0, Broken(), 4)):
        with pytest.raises(VolatileIOError) as blocked:
            call()
        assert blocked.value.kind is ErrorKind.WOULD_BLOCK
    assert marks.told == []


def test_a_buffer_may_skip_bytes() -> None:
    mem = VolatileSlice(ByteBacking(16))
    mem.write_slice(memoryview(b"a-b-c-")[::2], 1)
    assert inside(mem)[:5] == b"\0abc\0"
    target = bytearray(b"------")
    mem.read_slice(memoryview(target)[1::2], 1)
    assert target == b"-a-b-c"
