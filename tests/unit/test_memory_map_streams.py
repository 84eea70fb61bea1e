"""Streams of the first memory model: exactly the count, or an error that tells how much."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.endian import Le32
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.memory_map import (
    GuestMemory,
    InvalidAddress,
    InvalidGuestAddressRange,
    InvalidRange,
    MapBytes,
    MemoryAccess,
    MemoryMapping,
    ReadFromSource,
    WriteToDestination,
)
from qemuglue.memory.memory_map.mapping import STREAM_CHUNK

Step = bytes | int | OSError | None


class Script:
    """A file that does what its script says, one step a call: gives bytes, takes so many, or
    raises. At the end of the script it gives nothing more, or takes all."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.asked: list[int] = []
        self.taken = bytearray()

    def read(self, size: int) -> bytes | None:
        self.asked.append(size)
        step = self.steps.pop(0) if self.steps else b""
        if isinstance(step, OSError):
            raise step
        assert not isinstance(step, int)
        return step

    def write(self, data: bytes) -> int | None:
        self.asked.append(len(data))
        step = self.steps.pop(0) if self.steps else len(data)
        if isinstance(step, OSError):
            raise step
        assert not isinstance(step, bytes)
        if step is not None:
            self.taken += data[:step]
        return step


def mapping(size: int = 8) -> tuple[MemoryMapping, ByteBacking]:
    backing = ByteBacking(bytearray(range(size)))
    return MemoryMapping(backing), backing


def test_a_source_fills_memory_and_memory_a_destination() -> None:
    memory = GuestMemory.from_regions([(0x1000, ByteBacking(0x400))])
    memory.write_obj(Le32(0xFFFF_FFFF), 0x1010)
    memory.read_to_memory(GuestAddress(0x1010), BytesIO(bytes(8)), 4)
    assert memory.read_obj(0x1010, Le32) == 0
    memory.write_slice(b"abcd", 0x1010)
    sink = BytesIO()
    memory.write_from_memory(0x1010, sink, 4)
    assert sink.getvalue() == b"abcd"


def test_short_reads_are_made_again_until_the_count_is_there() -> None:
    target, backing = mapping()
    source = Script(b"ab", InterruptedError(), b"c", b"d", b"too much")
    target.read_to_memory(2, source, 4)
    assert backing.data == b"\0\1abcd\6\7"
    assert source.asked == [4, 2, 2, 1], "never more than is still to come"


def test_short_writes_are_made_again_until_the_count_is_gone() -> None:
    target, _ = mapping()
    sink = Script(1, InterruptedError(), 2)
    target.write_from_memory(2, sink, 5)
    assert sink.taken == b"\2\3\4\5\6"
    assert sink.asked == [5, 4, 4, 2]


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (b"", ErrorKind.UNEXPECTED_EOF), (OSError(5, "broken"), ErrorKind.OTHER),
        (None, ErrorKind.WOULD_BLOCK),
    ],
)
def test_a_source_that_ends_tells_how_much_came(end: Step, kind: ErrorKind) -> None:
    target, backing = mapping()
    with pytest.raises(ReadFromSource) as caught:
        target.read_to_memory(1, Script(b"ab", b"c", end), 5)
    error = caught.value
    assert (error.kind, error.expected, error.completed) == (kind, 5, 3)
    assert backing.data == b"\0abc\4\5\6\7", "what came stays"
    assert str(error).endswith(", after 3 bytes of 5")


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (0, ErrorKind.WRITE_ZERO), (OSError(28, "full"), ErrorKind.OTHER),
        (BrokenPipeError(), ErrorKind.BROKEN_PIPE), (None, ErrorKind.WOULD_BLOCK),
    ],
)
def test_a_destination_that_is_full_tells_how_much_went(end: Step, kind: ErrorKind) -> None:
    target, _ = mapping()
    sink = Script(2, 1, end)
    with pytest.raises(WriteToDestination) as caught:
        target.write_from_memory(1, sink, 5)
    error = caught.value
    assert (error.kind, error.expected, error.completed) == (kind, 5, 3)
    assert sink.taken == b"\1\2\3"


def test_the_cause_says_what_the_stream_raised() -> None:
    target, _ = mapping()
    with pytest.raises(ReadFromSource) as caught:
        target.read_to_memory(0, Script(OSError(5, "broken cable")), 1)
    assert "broken cable" in caught.value.text
    assert "other error: " in str(caught.value) and "broken cable" in str(caught.value)
    with pytest.raises(ReadFromSource) as caught:
        target.read_to_memory(0, Script(), 1)
    assert str(caught.value) == "unexpected end of file, after 0 bytes of 1"


@pytest.mark.parametrize(
    ("offset", "count"), [(8, 1), (0, 9), (5, 4), (9, 0), (ADDRESS_END - 1, 4)]
)
def test_a_stream_that_leaves_the_mapping_is_not_begun(offset: int, count: int) -> None:
    target, backing = mapping()
    stream = Script()
    for call in (target.read_to_memory, target.write_from_memory):
        with pytest.raises(InvalidRange) as caught:
            call(offset, stream, count)
        assert (caught.value.offset, caught.value.count) == (offset, count)
        assert str(caught.value).endswith("leaves the mapping")
    assert not stream.asked and backing.data == bytes(range(8))


def test_no_bytes_are_a_stream_up_to_the_end() -> None:
    target, _ = mapping()
    stream = Script()
    for offset in (0, 7, 8):
        target.read_to_memory(offset, stream, 0)
        target.write_from_memory(offset, stream, 0)
    assert not stream.asked
    for call in (target.read_to_memory, target.write_from_memory):
        with pytest.raises(ModelError, match="count of 0 or more"):
            call(0, stream, -1)


def test_a_stream_ends_exactly_with_the_mapping() -> None:
    target, backing = mapping()
    target.read_to_memory(4, BytesIO(b"wxyz!"), 4)
    assert backing.data == b"\0\1\2\3wxyz"
    sink = BytesIO()
    target.write_from_memory(6, sink, 2)
    assert sink.getvalue() == b"yz"


def test_a_long_stream_goes_in_chunks() -> None:
    assert STREAM_CHUNK == 1 << 20, "a MiB"
    size = STREAM_CHUNK + 3
    backing = ByteBacking(size + 9)
    source, sink = Script(bytes([1]) * STREAM_CHUNK, b"abc"), Script()
    target = MemoryMapping(backing)
    target.read_to_memory(1, source, size)
    assert source.asked == [STREAM_CHUNK, 3]
    assert (backing.data[:2], backing.data[size - 3 :]) == (b"\0\1", b"\1abc" + bytes(8))
    target.write_from_memory(1, sink, size)
    assert sink.asked == [STREAM_CHUNK, 3] and sink.taken == backing.data[1 : 1 + size]


def test_guest_memory_takes_a_stream_within_one_region() -> None:
    first, second = ByteBacking(8), ByteBacking(8)
    memory = GuestMemory.from_regions([(0x1000, first), (0x1008, second)])
    stream = Script()
    for addr, count in ((0x1004, 5), (0x1010, 1), (0x100C, 8), (0x2000, 0)):
        for call in (memory.read_to_memory, memory.write_from_memory):
            with pytest.raises(InvalidGuestAddressRange) as caught:
                call(addr, stream, count)
            assert (caught.value.addr, caught.value.size) == (GuestAddress(addr), count)
    assert not stream.asked, "nothing is taken from a source that cannot be put anywhere"
    memory.read_to_memory(0x1008, BytesIO(b"12345678"), 8)
    assert (first.data, second.data) == (bytes(8), b"12345678")


def test_guest_memory_tells_address_and_count_of_a_stream_that_failed() -> None:
    memory = GuestMemory.from_regions([(0x1000, ByteBacking(8))])
    with pytest.raises(MemoryAccess) as caught:
        memory.read_to_memory(0x1002, Script(b"ab"), 4)
    assert (caught.value.addr, caught.value.completed) == (GuestAddress(0x1002), 2)
    assert isinstance(caught.value.error, ReadFromSource)
    assert memory.map.do_in_region(0x1002, 2, lambda m, at: m.backing.read(at, 2)) == b"ab"
    with pytest.raises(MemoryAccess) as caught:
        memory.write_from_memory(0x1002, Script(3, 0), 4)
    assert caught.value.completed == 3
    assert isinstance(caught.value.error, WriteToDestination)


@pytest.mark.parametrize("by_address", [False, True])
def test_the_stream_forms_of_bytes_take_nothing_that_has_no_room(by_address: bool) -> None:
    backing = ByteBacking(8)
    memory: MapBytes[int] = (
        GuestMemory.from_regions([(0x1000, backing), (0x1008, ByteBacking(8))])
        if by_address else MemoryMapping(backing)
    )
    base = 0x1000 if by_address else 0
    source = BytesIO(b"abcdefghijkl")
    assert memory.read_volatile_from(base + 6, source, 5) == 2
    assert (source.tell(), backing.data[6:]) == (2, b"ab")
    with pytest.raises(PartialBuffer) as caught:
        memory.read_exact_volatile_from(base + 5, source, 4)
    assert (caught.value.expected, caught.value.completed) == (4, 3)
    assert (source.tell(), backing.data[5:]) == (5, b"cde")
    memory.read_exact_volatile_from(base, source, 4)
    assert (source.tell(), backing.data[:5]) == (9, b"fghi\0")
    outside = 0x1010 if by_address else 8
    for call in (memory.read_volatile_from, memory.read_exact_volatile_from):
        with pytest.raises((InvalidAddress, InvalidGuestAddress)):
            call(outside, source, 1)
        call(outside, source, 0)
    assert source.tell() == 9
    with pytest.raises(PartialBuffer) as caught:
        memory.read_exact_volatile_from(base, BytesIO(b"12"), 9)
    assert (caught.value.completed, backing.data[:3]) == (2, b"12h")
    script = Script(b"AB", InterruptedError(), b"C")
    with pytest.raises(PartialBuffer) as caught:
        memory.read_exact_volatile_from(base, script, 9)
    assert script.asked == [8, 6, 6, 5], "never more than there is room for"
    assert (caught.value.completed, backing.data[:4]) == (3, b"ABCi")


def test_how_much_room_there_is() -> None:
    memory = GuestMemory.from_regions([(0x1000, ByteBacking(8)), (0x1008, ByteBacking(2))])
    assert [memory.room_at(at) for at in (0x1000, 0x1007, 0x1008, 0x1009)] == [8, 1, 2, 1]
    with pytest.raises(InvalidGuestAddress):
        memory.room_at(0x100A)
    mapping = MemoryMapping(ByteBacking(8), 2)
    assert (mapping.room_at(0), mapping.room_at(5)) == (6, 1)
    with pytest.raises(InvalidAddress):
        mapping.room_at(6)


class Half:
    """A backing of two chunks whose second refuses."""

    def __len__(self) -> int:
        return 2 * STREAM_CHUNK

    def read(self, offset: int, size: int) -> bytes:
        if offset >= STREAM_CHUNK:
            raise InvalidBackendAddress
        return bytes(size)

    def write(self, offset: int, data: bytes) -> None:
        if offset >= STREAM_CHUNK:
            raise InvalidBackendAddress


def test_a_backing_that_refuses_within_a_stream() -> None:
    target = MemoryMapping(Half())
    calls: list[tuple[Callable[[int, object, int], None], object]] = [
        (target.read_to_memory, BytesIO(bytes(2 * STREAM_CHUNK))),
        (target.write_from_memory, BytesIO()),
    ]
    for call, stream in calls:
        with pytest.raises(PartialBuffer) as caught:
            call(0, stream, STREAM_CHUNK + 7)
        assert (caught.value.expected, caught.value.completed) == (STREAM_CHUNK + 7, STREAM_CHUNK)
        assert isinstance(caught.value.__cause__, InvalidBackendAddress)
        with pytest.raises(GuestMemoryError) as first:
            call(STREAM_CHUNK, stream, 1)
        assert isinstance(first.value, InvalidBackendAddress) and first.value.__cause__ is None


def test_a_backing_that_gives_too_little_ends_a_stream() -> None:
    class Shrunk(Half):
        def read(self, offset: int, size: int) -> bytes:
            return bytes(max(min(size, 3 - offset), 0))

    sink = BytesIO()
    with pytest.raises(PartialBuffer) as caught:
        MemoryMapping(Shrunk()).write_from_memory(0, sink, 5)
    assert (caught.value.expected, caught.value.completed) == (5, 3)
    assert sink.getvalue() == bytes(3)
