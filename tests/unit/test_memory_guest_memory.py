"""Bytes over guest memory: what one access does across regions, holes and refusals."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
from guest_regions import Remote

from qemuglue.errors import ModelError
from qemuglue.memory import ByteBacking, Le32
from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.bytes import Bytes, Readable
from qemuglue.memory.endian import U8, Be64, Le16, Le64
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestIOError,
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import (
    GuestMemory,
    GuestRegion,
    GuestRegionCollection,
    Permissions,
    stop_on_error,
)
from qemuglue.memory.streams import ReadVolatile, SliceReader, SliceWriter
from qemuglue.memory.volatile import VolatileSlice

TOP = 1 << 64
A = GuestAddress
Mem = GuestRegionCollection[GuestRegion]


def memory(*ranges: tuple[int, int]) -> Mem:
    return GuestRegionCollection.from_regions(
        [GuestRegion(start, ByteBacking(size)) for start, size in ranges]
    )


def seen(mem: Mem, addr: int, size: int) -> bytes:
    buf = bytearray(size)
    assert mem.read(buf, A(addr)) == size
    return bytes(buf)


class Nothing:
    """A value of no bytes."""

    size: ClassVar[int] = 0
    raw = b""

    @classmethod
    def from_raw(cls, data: Readable) -> Nothing:
        assert not data
        return cls()


# -- read and write ----------------------------------------------------------------------------


def test_write_and_read() -> None:
    mem = memory((0x1000, 0x400))
    assert mem.write(b"\1\2\3\4\5", A(0x1000)) == 5 and seen(mem, 0x1000, 5) == b"\1\2\3\4\5"
    assert mem.write(b"\7\2\3\4\5", A(0x13FF)) == 1
    buf = bytearray(5)
    assert mem.read(buf, A(0x13FF)) == 1 and buf == b"\7\0\0\0\0"
    assert isinstance(mem, Bytes)


def test_an_access_over_two_regions() -> None:
    mem = memory((0, 0x1000), (0x1000, 0x1000))
    assert mem.write(b"\1\2\3\4\5", A(0xFFC)) == 5 and seen(mem, 0xFFC, 5) == b"\1\2\3\4\5"
    region = mem.find_region(A(0x1000))
    assert region is not None and region.backing.read(0, 2) == b"\5\0"
    assert mem.write(bytes(0x2000), A(0)) == 0x2000


def test_what_is_written_is_what_a_slice_of_the_region_shows() -> None:
    mem = memory((0, 0x400))
    assert mem.write(b"\1\2\3\4\5", A(0)) == 5
    region = mem.find_region(A(0))
    assert region is not None
    buf = bytearray(5)
    assert region.as_volatile_slice().read(buf, 0) == 5 and buf == b"\1\2\3\4\5"


def test_the_first_byte_decides_between_an_error_and_a_short_count() -> None:
    mem = memory((0, 0x1000), (0x1000, 0x1000))
    for addr in (0x2000, 0x2001, TOP - 1):
        for access in (lambda at: mem.write(b"12345678", at), lambda at: mem.read(bytearray(8), at),
                       lambda at: mem.write_obj(Le64(1), at), lambda at: mem.read_obj(at, Le64)):
            with pytest.raises(InvalidGuestAddress) as caught:
                access(A(addr))
            assert caught.value.addr == A(addr)
    assert mem.write(b"12345678", A(0x1FFC)) == 4
    for whole in (lambda at: mem.write_obj(Le64(1), at), lambda at: mem.read_obj(at, Le64)):
        with pytest.raises(PartialBuffer) as short:
            whole(A(0x1FFC))
        assert (short.value.expected, short.value.completed) == (8, 4)
        cause = short.value.__cause__
        assert isinstance(cause, InvalidGuestAddress) and cause.addr == A(0x2000)
    assert seen(mem, 0x1FFC, 4) == b"\1\0\0\0", "what was moved stays moved"


def test_objects() -> None:
    mem = memory((0, 0x1000), (0x1000, 0x1000))
    mem.write_obj(Le64(0xAA55AA55AA55AA55), A(0x500))
    mem.write_obj(Be64(0x55AA55AA55AA55AA), A(0x1020))
    assert mem.read_obj(A(0x500), Le64) == 0xAA55AA55AA55AA55
    assert mem.read_obj(A(0x1020), Be64) == 0x55AA55AA55AA55AA
    mem.write_obj(Le32(0x44332211), A(0xFFE))
    assert mem.read_obj(A(0xFFE), Le32) == 0x44332211 and mem.read_obj(A(0x1000), Le16) == 0x4433


@pytest.mark.parametrize("addr", [0x1000, 0x5000, TOP - 1])
def test_no_bytes_are_moved_anywhere(addr: int) -> None:
    mem, at = memory((0x1000, 0x1000)), A(addr)
    image = SliceReader(bytes(range(0x80)))
    assert mem.write(b"", at) == mem.read(bytearray(), at) == 0
    mem.write_slice(b"", at)
    mem.read_slice(bytearray(), at)
    mem.write_obj(Nothing(), at)
    assert isinstance(mem.read_obj(at, Nothing), Nothing)
    assert mem.read_volatile_from(at, image, 0) == 0
    mem.read_exact_volatile_from(at, image, 0)
    sink = bytearray()
    assert mem.write_volatile_to(at, sink, 0) == 0
    mem.write_all_volatile_to(at, sink, 0)
    assert sink == b"" and image.left() == 0x80
    with pytest.raises(ModelError, match="no single access"):
        mem.store(Nothing(), at)


# -- store and load ----------------------------------------------------------------------------


def test_atomic_accesses() -> None:
    mem = memory((0x1000, 0x1000))
    assert mem.load(A(0x1000), Le32) == 0
    mem.store(Le32(100), A(0x1000))
    assert mem.load(A(0x1000), Le32) == 100
    for use in (lambda: mem.load(A(0x2000), Le32), lambda: mem.store(Le32(100), A(0x2000))):
        with pytest.raises(InvalidGuestAddress):
            use()


def test_a_single_access_is_in_the_first_slice_and_aligned() -> None:
    mem = memory((0, 0x1002), (0x1002, 0x1000))
    for addr in (0x1000, 0x1001, 0xFFF, 1, 2):
        with pytest.raises(InvalidBackendAddress):
            mem.store(Le32(1), A(addr))
        with pytest.raises(InvalidBackendAddress):
            mem.load(A(addr), Le32)
    assert seen(mem, 0xFFC, 16) == bytes(16)
    mem.store(Le32(7), A(0x1002))
    assert mem.load(A(0x1002), Le32) == 7, "aligned where it lies, not in guest addresses"
    mem.store(Le16(9), A(0x1000))
    assert mem.load(A(0x1000), Le16) == 9 and mem.load(A(0x1000), U8) == 9


# -- streams -----------------------------------------------------------------------------------


def test_memory_is_filled_from_an_image() -> None:
    mem = memory((0, 64), (0x40, 64))
    image = SliceReader(bytes(range(0x80)))
    assert mem.read_volatile_from(A(0x30), image, 0x20) == 0x20
    assert seen(mem, 0x30, 0x20) == bytes(range(0x20)) and image.left() == 0x60


def test_from_a_file_and_to_a_buffer() -> None:
    mem = memory((0x1000, 0x400))
    mem.write_obj(Le32(0xFFFFFFFF), A(0x1010))
    with open(os.devnull.replace("null", "zero"), "rb", 0) as zeros:  # noqa: PTH123
        mem.read_exact_volatile_from(A(0x1010), zeros, 4)
    assert mem.read_obj(A(0x1010), Le32) == 0
    mem.write_obj(Le32(0x04030201), A(0x1010))
    sink = bytearray(4)
    mem.write_all_volatile_to(A(0x1010), memoryview(sink), 4)
    assert sink == b"\1\2\3\4"


def test_a_stream_is_not_touched_where_nothing_can_be_written() -> None:
    mem = memory((0x1000, 4))
    image, sink = SliceReader(b"abcd"), SliceWriter(bytearray(4))
    uses: list[Callable[[], object]] = [
        lambda: mem.read_volatile_from(A(0), image, 4),
        lambda: mem.read_exact_volatile_from(A(0xFFE), image, 4),
        lambda: mem.write_volatile_to(A(0x1004), sink, 4),
        lambda: mem.write_all_volatile_to(A(0xFFF), sink, 4),
    ]
    for use in uses:
        with pytest.raises(InvalidGuestAddress):
            use()
    assert image.left() == 4 and sink.room == 4


def test_a_stream_that_ends_and_memory_that_ends() -> None:
    mem = memory((0, 4), (4, 4))
    assert mem.read_volatile_from(A(2), io.BytesIO(b"abc"), 6) == 3
    assert mem.read_volatile_from(A(6), io.BytesIO(b"12345"), 5) == 2
    assert seen(mem, 0, 8) == b"\0\0abc\x0012"
    assert mem.read_volatile_from(A(0), io.BytesIO(b""), 5) == 0
    for addr, source, size, done in ((0, b"xyz", 4, 3), (0, b"", 1, 0), (6, b"1234", 4, 2)):
        with pytest.raises(PartialBuffer) as caught:
            mem.read_exact_volatile_from(A(addr), io.BytesIO(source), size)
        assert (caught.value.expected, caught.value.completed) == (size, done)
    sink = bytearray()
    assert mem.write_volatile_to(A(5), sink, 99) == 3 and sink == seen(mem, 5, 3)
    with pytest.raises(PartialBuffer) as caught:
        mem.write_all_volatile_to(A(5), sink, 4)
    assert (caught.value.expected, caught.value.completed) == (4, 3)


class Dribble(ReadVolatile):
    """Gives what it holds piece by piece; errors between."""

    def __init__(self, *steps: bytes | ErrorKind) -> None:
        self.steps = list(steps)

    def read_volatile(self, count: int) -> bytes:
        step = self.steps.pop(0) if self.steps else b""
        if isinstance(step, ErrorKind):
            raise GuestIOError(step)
        return step[:count]


def test_a_short_read_ends_the_access_and_leaves_no_gap() -> None:
    """Differs from vm-memory 0.18, which would put "cd" at 4 and say that 4 bytes were read."""
    mem = memory((0, 4), (4, 4))
    assert mem.read_volatile_from(A(0), Dribble(b"ab", b"cd"), 8) == 2
    assert seen(mem, 0, 8) == b"ab\0\0\0\0\0\0"
    assert mem.read_volatile_from(A(0), Dribble(b"abcd", b"ef", b"gh"), 8) == 6
    assert seen(mem, 0, 8) == b"abcdef\0\0"


def test_exactly_is_not_asked_for_again_but_by_a_slice() -> None:
    """As in the crate: guest memory reads once a slice, a slice until it is full."""
    mem = memory((0, 8))
    with pytest.raises(PartialBuffer) as caught:
        mem.read_exact_volatile_from(A(0), Dribble(b"ab", b"cd"), 4)
    assert caught.value.completed == 2
    mem.get_slice(A(0), 4).read_exact_volatile_from(0, Dribble(b"ab", b"cd"), 4)
    assert seen(mem, 0, 4) == b"abcd"


def test_an_interrupted_stream_is_asked_again_and_another_error_is_raised() -> None:
    mem = memory((0, 4), (4, 4))
    again = Dribble(ErrorKind.INTERRUPTED, b"abcd", ErrorKind.INTERRUPTED, b"efgh")
    assert mem.read_volatile_from(A(0), again, 8) == 8 and seen(mem, 0, 8) == b"abcdefgh"
    broken = Dribble(b"ABCD", ErrorKind.OTHER)
    with pytest.raises(GuestIOError) as caught:
        mem.read_volatile_from(A(0), broken, 8)
    assert caught.value.kind is ErrorKind.OTHER
    assert seen(mem, 0, 8) == b"ABCDefgh", "what came before is there, though nobody counts it"
    with pytest.raises(GuestIOError) as caught:
        mem.write_volatile_to(A(0), memoryview(buf := bytearray(6)), 8)
    assert caught.value.kind is ErrorKind.WRITE_ZERO and buf == b"ABCDef"


# -- a backing that refuses ----------------------------------------------------------------------


def test_a_refusal_in_the_first_slice_is_raised_and_later_it_is_a_short_count() -> None:
    mem = GuestRegionCollection.from_regions(
        [GuestRegion(0, ByteBacking(4)), GuestRegion(4, Remote(4, refused=0))]
    )
    sink = bytearray()
    assert mem.write(b"12345678", A(2)) == 2 and mem.read(bytearray(8), A(2)) == 2
    assert mem.read_volatile_from(A(2), b"12345678", 6) == 2
    assert mem.write_volatile_to(A(2), sink, 6) == 2 and sink == b"12"
    uses: list[Callable[[], object]] = [
        lambda: mem.write(b"1", A(4)), lambda: mem.read(bytearray(1), A(4)),
        lambda: mem.read_volatile_from(A(4), b"1", 1), lambda: mem.load(A(4), Le32),
        lambda: mem.write_volatile_to(A(4), sink, 1), lambda: mem.store(Le32(1), A(4)),
    ]
    for use in uses:
        with pytest.raises(InvalidBackendAddress):
            use()
    with pytest.raises(PartialBuffer) as caught:
        mem.write_slice(b"123456", A(2))
    assert caught.value.completed == 2
    assert isinstance(caught.value.__cause__, InvalidBackendAddress)


def test_a_slice_moved_in_part_ends_the_access() -> None:
    """A copy of up to 8 bytes is made of aligned units; here the second one is refused."""
    mem = GuestRegionCollection.from_regions(
        [GuestRegion(0, Remote(6, refused=5)), GuestRegion(6, ByteBacking(4))]
    )
    done = mem.write(b"12345678", A(0))
    assert done < 6 and seen(mem, 6, 4) == bytes(4)
    assert seen(mem, 0, done) == b"12345678"[:done]


# -- memory of another kind ----------------------------------------------------------------------


class Fragments(GuestMemory):
    """Memory of given pieces, an error or a permission for each."""

    def __init__(self, *pieces: VolatileSlice | GuestMemoryError) -> None:
        self.pieces = pieces
        self.asked: list[tuple[int, int, Permissions]] = []

    def check_range(self, addr: GuestAddress, count: int, access: Permissions) -> bool:
        return False

    def get_slices(
        self, addr: GuestAddress, count: int, access: Permissions
    ) -> Iterator[VolatileSlice]:
        self.asked.append((addr.raw_value(), count, access))
        for piece in self.pieces:
            if isinstance(piece, GuestMemoryError):
                raise piece
            yield piece


def piece(size: int, fill: int = 0) -> VolatileSlice:
    return VolatileSlice(ByteBacking(bytearray([fill]) * size))


def test_every_access_says_what_it_is_about_to_do() -> None:
    mem = Fragments(piece(4))
    mem.write(b"abcd", A(1))
    mem.read(bytearray(4), A(2))
    mem.read_volatile_from(A(3), b"abcd", 4)
    mem.write_volatile_to(A(4), bytearray(), 4)
    mem.store(Le32(1), A(5))
    mem.load(A(6), Le32)
    read, write = Permissions.Read, Permissions.Write
    assert mem.asked == [(1, 4, write), (2, 4, read), (3, 4, write), (4, 4, read), (5, 4, write),
                         (6, 4, read)]
    assert mem.physical_memory() is None and mem.memory() is mem and mem.clone() is mem


def test_stop_on_error() -> None:
    refused = InvalidGuestAddress(A(5))

    def sizes(mem: Fragments) -> list[int]:
        return [each.len() for each in stop_on_error(mem.get_slices(A(0), 9, Permissions.Read))]

    assert sizes(Fragments()) == []
    assert sizes(Fragments(piece(2), piece(3))) == [2, 3]
    assert sizes(Fragments(piece(2), refused, piece(3))) == [2]
    with pytest.raises(InvalidGuestAddress):
        stop_on_error(Fragments(refused, piece(3)).get_slices(A(0), 9, Permissions.Read))


def test_dirty_tracking_through_memory_and_region() -> None:
    def fresh() -> tuple[Mem, AtomicBitmap]:
        bitmap = AtomicBitmap(0x10000, 0x1000)
        return GuestRegionCollection.from_regions(
            [GuestRegion(0, ByteBacking(0x10000), bitmap=bitmap)]
        ), bitmap

    mem, bitmap = fresh()
    (whole,) = mem.get_slices(A(0x1000), 8)
    assert not whole.bitmap().dirty_at(0)
    mem.write_obj(Le64(123), A(0x1000))
    assert whole.bitmap().dirty_at(0) and bitmap.dirty_at(0x1000) and not bitmap.dirty_at(0x2000)
    mem, bitmap = fresh()
    writes: list[Callable[[GuestAddress], object]] = [
        lambda at: mem.write(bytes(0x400), at), lambda at: mem.write_slice(bytes(0x400), at),
        lambda at: mem.write_obj(Le64(1), at), lambda at: mem.store(Le64(1), at),
        lambda at: mem.read_volatile_from(at, bytes(4), 4),
    ]
    for page, write in enumerate(writes, 1):
        mem.read(bytearray(0x1000), A(page << 12))
        assert not bitmap.dirty_at(page << 12)
        write(A(page << 12))
        assert [bitmap.dirty_at(n << 12) for n in range(16)] == [1 <= n <= page for n in range(16)]
