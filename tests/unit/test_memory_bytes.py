"""The Bytes contract where an implementation gives only the four accesses."""

from __future__ import annotations

from array import array
from typing import ClassVar

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.bytes import (
    Bytes,
    ByteValued,
    Ordering,
    Readable,
    V,
    Writable,
    readable,
    size_of,
    writable,
)
from qemuglue.memory.endian import Be16, EndianInt, Le32
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestIOError,
    InvalidBackendAddress,
    PartialBuffer,
)
from qemuglue.memory.streams import ReadVolatile, SliceReader


class Tape(Bytes[int]):
    """Ten bytes, the least a container can do."""

    def __init__(self) -> None:
        self.data = bytearray(range(10))
        self.orders: list[Ordering] = []

    def write(self, buf: Readable, addr: int) -> int:
        data = readable(buf)[: max(10 - addr, 0)]
        if buf and not data:
            raise InvalidBackendAddress
        self.data[addr : addr + len(data)] = data
        return len(data)

    def read(self, buf: Writable, addr: int) -> int:
        view = writable(buf)
        data = self.data[addr : addr + len(view)]
        if view and not data:
            raise InvalidBackendAddress
        view[: len(data)] = data
        return len(data)

    def store(self, value: ByteValued, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        self.orders.append(order)
        self.write_obj(value, addr)

    def load(self, addr: int, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        self.orders.append(order)
        return self.read_obj(addr, cls)


class Pair:
    """A value of three bytes that is no integer."""

    size: ClassVar[int] = 3

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def from_raw(cls, data: bytes | bytearray | memoryview) -> Pair:
        return cls(bytes(data))


def test_slices_are_all_or_an_error() -> None:
    tape = Tape()
    tape.write_slice(b"ab", 8)
    buf = bytearray(3)
    tape.read_slice(buf, 7)
    assert buf == b"\7ab"
    with pytest.raises(PartialBuffer) as caught:
        tape.write_slice(b"xyz", 8)
    assert (caught.value.expected, caught.value.completed) == (3, 2)
    assert tape.data[8:] == b"xy", "what was moved stays moved"
    with pytest.raises(PartialBuffer) as caught:
        tape.read_slice(buf, 9)
    assert (caught.value.expected, caught.value.completed) == (3, 1) and buf[0] == ord("y")
    with pytest.raises(InvalidBackendAddress):
        tape.write_slice(b"x", 10)
    tape.write_slice(b"", 99)
    tape.read_slice(bytearray(), 99)


def test_a_slice_is_counted_in_bytes() -> None:
    wide = array("I", [1, 2])
    Tape().write_slice(memoryview(wide), 0)
    with pytest.raises(PartialBuffer) as caught:
        Tape().write_slice(memoryview(wide), 6)
    assert (caught.value.expected, caught.value.completed) == (8, 4)
    Tape().read_slice(memoryview(wide), 1)
    assert wide.tobytes() == bytes(range(1, 9))


def test_objects_are_their_bytes() -> None:
    tape = Tape()
    tape.write_obj(Be16(0x1122), 1)
    tape.write_obj(Pair(b"abc"), 3)
    assert tape.data == b"\0\x11\x22abc\6\7\x08\x09"
    assert tape.read_obj(1, Be16) == 0x1122 and tape.read_obj(1, Le32) == 0x62612211
    assert type(tape.read_obj(1, Be16)) is Be16 and tape.read_obj(3, Pair).raw == b"abc"
    with pytest.raises(PartialBuffer):
        tape.write_obj(Pair(b"abc"), 8)
    with pytest.raises(PartialBuffer):
        tape.read_obj(8, Le32)


@pytest.mark.parametrize("wrong", [42, True, b"raw", 1.5, None, Le32, Pair])
def test_what_has_no_bytes_is_refused(wrong: ByteValued) -> None:
    with pytest.raises(ModelError, match="does not say its size"):
        Tape().write_obj(wrong, 0)


@pytest.mark.parametrize("wrong", [int, bytes, EndianInt, Le32(1), 4, Pair(b"abc")])
def test_a_class_without_a_size_is_refused(wrong: type[ByteValued]) -> None:
    with pytest.raises(ModelError, match="does not say its size"):
        Tape().read_obj(0, wrong)
    assert (size_of(Le32), size_of(Pair)) == (4, 3)


def test_buffers() -> None:
    data = bytearray(b"abcdef")
    assert readable(data) == readable(memoryview(data)) == b"abcdef"
    assert readable(memoryview(data)[::2]) == b"ace"
    view = writable(memoryview(data)[1:3])
    view[:] = b"XY"
    assert data == b"aXYdef" and len(writable(memoryview(array("H", [1, 2])))) == 4
    for read_only in (b"abc", memoryview(b"abc"), memoryview(data).toreadonly()):
        with pytest.raises(ModelError, match="writable"):
            writable(read_only)  # type: ignore[arg-type]
    square = memoryview(data)[:4].cast("B", shape=[2, 2])
    assert readable(square) == b"aXYd" and writable(square).shape == (4,)
    for wrong in ("abc", 3, [1, 2], None, memoryview(array("H", [1, 2, 3]))[::2]):
        with pytest.raises(ModelError, match="a buffer is"):
            readable(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["read", "write", "load", "store"])
def test_bytes_cannot_be_made_without_one_of_its_four_accesses(missing: str) -> None:
    methods = {name: getattr(Tape, name) for name in ("read", "write", "load", "store")}
    del methods[missing]
    with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
        type("Incomplete", (Bytes,), methods)()


def test_a_long_slice_is_complete() -> None:
    class Well(Tape):
        def write(self, buf: Readable, addr: int) -> int:
            return len(bytes(buf))

        def read(self, buf: Writable, addr: int) -> int:
            return len(bytes(buf))

    Well().write_slice(bytes(5000), 0)
    Well().read_slice(bytearray(5000), 0)


# -- streams, where nothing is written for them ----------------------------------------------------


def test_streams_are_done_with_read_and_write() -> None:
    tape = Tape()
    source = SliceReader(b"abcdef")
    assert tape.read_volatile_from(2, source, 4) == 4 and tape.data == b"\0\1abcd\6\7\x08\x09"
    assert source.remaining == b"ef"
    assert tape.read_volatile_from(0, source, 9) == 2, "the stream ends"
    assert tape.read_volatile_from(0, source, 9) == 0
    assert tape.read_volatile_from(9, b"xyz", 3) == 1, "the container ends"
    sink = bytearray()
    assert tape.write_volatile_to(8, sink, 9) == 2 and sink == b"\x08x"
    tape.write_all_volatile_to(0, sink, 2)
    assert sink == b"\x08xef"
    for access in (lambda: tape.read_volatile_from(10, b"x", 1),
                   lambda: tape.write_volatile_to(10, sink, 1),
                   lambda: tape.read_exact_volatile_from(10, b"x", 1),
                   lambda: tape.write_all_volatile_to(10, sink, 1)):
        with pytest.raises(InvalidBackendAddress):
            access()
    assert tape.read_volatile_from(10, b"x", 0) == tape.write_volatile_to(10, sink, 0) == 0


class Dribble(ReadVolatile):
    """Gives what it holds piece by piece; None is an interrupted call."""

    def __init__(self, *steps: bytes | None) -> None:
        self.steps = list(steps)
        self.asked: list[int] = []

    def read_volatile(self, count: int) -> bytes:
        self.asked.append(count)
        step = self.steps.pop(0) if self.steps else b""
        if step is None:
            raise GuestIOError(ErrorKind.INTERRUPTED)
        return step


def test_one_read_and_as_many_as_it_takes() -> None:
    tape = Tape()
    source = Dribble(None, b"ab", b"cd")
    assert tape.read_volatile_from(0, source, 4) == 2 and source.asked == [4, 4]
    source = Dribble(b"AB", None, b"C", b"D")
    tape.read_exact_volatile_from(4, source, 4)
    assert tape.data == b"ab\2\3ABCD\x08\x09" and source.asked == [4, 2, 2, 1]
    for source, at, done in ((Dribble(b"x"), 0, 1), (Dribble(), 0, 0), (Dribble(b"1234"), 8, 2)):
        with pytest.raises(PartialBuffer) as caught:
            tape.read_exact_volatile_from(at, source, 4)
        assert (caught.value.expected, caught.value.completed) == (4, done)
    assert tape.data == b"xb\2\3ABCD12"


def test_all_that_was_read_is_written_or_an_error() -> None:
    tape = Tape()
    with pytest.raises(GuestIOError) as caught:
        tape.write_volatile_to(0, memoryview(buf := bytearray(3)), 5)
    assert caught.value.kind is ErrorKind.WRITE_ZERO and buf == b"\0\1\2"
    with pytest.raises(PartialBuffer) as short:
        tape.write_all_volatile_to(7, bytearray(), 4)
    assert (short.value.expected, short.value.completed) == (4, 3)
    for wrong in (-1, 1.5, None):
        for access in (tape.read_volatile_from, tape.read_exact_volatile_from):
            with pytest.raises(ModelError, match="a count of bytes"):
                access(0, b"x", wrong)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="a count of bytes"):
            tape.write_volatile_to(0, bytearray(), wrong)  # type: ignore[arg-type]


def test_a_structure_of_no_bytes_is_one() -> None:
    class Nothing:
        size: ClassVar[int] = 0
        raw = b""

        @classmethod
        def from_raw(cls, data: bytes | bytearray | memoryview) -> Nothing:
            return cls()

    tape = Tape()
    tape.write_obj(Nothing(), 99)
    assert isinstance(tape.read_obj(99, Nothing), Nothing) and size_of(Nothing) == 0
