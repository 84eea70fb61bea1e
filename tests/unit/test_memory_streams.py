"""Streams: what one call moves, what ends it, and which objects are streams at all."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import ByteBacking, streams
from qemuglue.memory.guest_error import ErrorKind, GuestIOError
from qemuglue.memory.streams import (
    ReadVolatile,
    SliceReader,
    SliceWriter,
    WriteVolatile,
    reader,
    retry_eintr,
    writer,
)
from qemuglue.memory.volatile import VolatileIOError, VolatileSlice


class Script(ReadVolatile, WriteVolatile):
    """Gives, or takes, what its steps say: bytes, a number of bytes, or an error."""

    def __init__(self, *steps: bytes | int | ErrorKind) -> None:
        self.steps = list(steps)
        self.asked: list[int] = []
        self.taken = b""

    def read_volatile(self, count: int) -> bytes:
        self.asked.append(count)
        step = self._next(b"")
        assert isinstance(step, bytes) and len(step) <= count
        return step

    def write_volatile(self, data: bytes) -> int:
        self.asked.append(len(data))
        step = self._next(0)
        assert isinstance(step, int)
        self.taken += data[:step]
        return min(step, len(data))

    def _next(self, last: bytes | int) -> bytes | int:
        step = self.steps.pop(0) if self.steps else last
        if isinstance(step, ErrorKind):
            raise GuestIOError(step)
        return step


# -- sources and sinks in this process ---------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "first"), [(b"\1\2", b"\1\2"), (b"\1\2\3\4", b"\1\2\3\4"), (b"\5\6\7\x08\x09",
    b"\5\6\7\x08")],
)
def test_a_slice_or_file_gives_what_it_has_up_to_what_is_asked(
    given: bytes, first: bytes, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(given)
    with (tmp_path / "file").open("rb") as file, (tmp_path / "file").open("rb", 0) as raw:
        for source in (given, bytearray(given), memoryview(given), io.BytesIO(given), file, raw):
            one = reader(source)
            assert one.read_volatile(0) == b""
            assert one.read_volatile(4) == first
            assert one.read_volatile(4) == given[4:]
            assert one.read_volatile(4) == b""


@pytest.mark.parametrize("given", [b"\1\2", b"\1\2\3\4", b"\5\6\7\x08\x09"])
def test_a_buffer_of_four_takes_four_and_a_file_takes_all(given: bytes, tmp_path: Path) -> None:
    whole = bytearray(5)
    sink = SliceWriter(memoryview(whole)[:4])
    assert sink.write_volatile(given) == min(len(given), 4)
    assert whole == given[:4].ljust(5, b"\0") and sink.room == 4 - min(len(given), 4)
    for mode in (-1, 0):
        with (tmp_path / "file").open("wb", mode) as file:
            assert writer(file).write_volatile(given) == len(given)
        assert (tmp_path / "file").read_bytes() == given


def test_all_of_a_buffer_too_large_is_an_error_after_what_fits() -> None:
    whole = bytearray(5)
    with pytest.raises(GuestIOError) as caught:
        writer(memoryview(whole)[:4]).write_all_volatile(b"\5\6\7\x08\x09")
    assert caught.value.kind is ErrorKind.WRITE_ZERO and whole == b"\5\6\7\x08\0"
    writer(memoryview(whole)[:4]).write_all_volatile(b"abcd")
    assert whole == b"abcd\0"


def test_slices_are_read_and_written_on() -> None:
    source = SliceReader(b"abcdef")
    assert (source.read_volatile(2), source.left(), source.remaining) == (b"ab", 4, b"cdef")
    assert reader(source) is source
    buf = bytearray(4)
    sink = SliceWriter(buf)
    assert sink.write_volatile(b"abc") == 3 and sink.write_volatile(b"def") == 1
    assert buf == b"abcd" and sink.write_volatile(b"x") == 0
    assert writer(sink) is sink
    with pytest.raises(ModelError, match="writable"):
        SliceWriter(memoryview(b"abc"))
    with pytest.raises(ModelError, match="contiguous"):
        SliceReader(memoryview(b"abcd")[::2])


def test_a_bytearray_grows_as_a_sink() -> None:
    vec = bytearray(b"ab")
    assert writer(vec).write_volatile(b"cdef") == 4
    assert vec == b"abcdef"


def test_what_a_source_knows_of_its_end() -> None:
    memory = io.BytesIO(b"abcdef")
    one = reader(memory)
    assert one.left() == 6
    memory.seek(4)
    assert one.left() == 2 and one.read_volatile(4) == b"ef"
    memory.seek(99)
    assert one.left() == 0 and one.read_volatile(1) == b""
    assert reader(io.BufferedReader(io.BytesIO(b"ab"))).left() is None
    assert Script().left() is None


# -- through a slice of memory -----------------------------------------------------------------


def test_a_cursor_is_read_on_and_not_moved_by_what_it_cannot_fill() -> None:
    cursor = io.BytesIO(bytes(range(1, 8)))
    output = bytearray(5)
    piece = VolatileSlice(ByteBacking(output), 0, 4)
    assert piece.read_volatile_from(0, cursor, 4) == 4 and output == b"\1\2\3\4\0"
    assert piece.read_volatile_from(0, cursor, 4) == 3 and output == b"\5\6\7\4\0"
    cursor.seek(0)
    piece.read_exact_volatile_from(0, cursor, 4)
    assert output == b"\1\2\3\4\0"
    with pytest.raises(VolatileIOError) as caught:
        piece.read_exact_volatile_from(0, cursor, 4)
    assert caught.value.kind is ErrorKind.UNEXPECTED_EOF
    assert output == b"\1\2\3\4\0" and cursor.tell() == 4


def test_a_file_that_ends_early_leaves_what_it_had(tmp_path: Path) -> None:
    """As in the crate: a slice that is too short is not read at all, a file is."""
    (tmp_path / "file").write_bytes(b"\1\2")
    output = bytearray(5)
    piece = VolatileSlice(ByteBacking(output), 0, 4)
    with (tmp_path / "file").open("rb", 0) as file, pytest.raises(VolatileIOError):
        piece.read_exact_volatile_from(0, file, 4)
    assert output == b"\1\2\0\0\0"
    output[:] = bytes(5)
    with pytest.raises(VolatileIOError):
        piece.read_exact_volatile_from(0, b"\1\2", 4)
    assert output == bytes(5)


def test_a_cursor_of_fixed_size_takes_what_fits() -> None:
    buf = bytearray(7)
    sink = SliceWriter(buf)
    piece = VolatileSlice(ByteBacking(bytearray(b"\1\2\3\4")))
    assert piece.write_volatile_to(0, sink, 4) == 4 and buf == b"\1\2\3\4\0\0\0"
    assert piece.write_volatile_to(0, sink, 4) == 3 and buf == b"\1\2\3\4\1\2\3"


def test_memory_is_appended_to_a_growing_buffer() -> None:
    vec = bytearray()
    assert VolatileSlice(ByteBacking(bytearray(b"\1\2\3\4"))).write_volatile_to(0, vec, 4) == 4
    assert vec == b"\1\2\3\4"


# -- sockets, pipes and other files ------------------------------------------------------------


def test_a_socket_gives_what_has_come_and_takes_what_has_room() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"abc")
        assert reader(other).read_volatile(10) == b"abc"
        assert writer(other).write_volatile(b"defg") == 4 and one.recv(10) == b"defg"
        other.setblocking(False)
        with pytest.raises(GuestIOError) as caught:
            reader(other).read_volatile(1)
        assert caught.value.kind is ErrorKind.WOULD_BLOCK
        assert isinstance(caught.value.__cause__, BlockingIOError)
        one.close()
        assert reader(other).read_volatile(1) == b""


def test_a_pipe_does_not_wait_for_more_than_it_has() -> None:
    for buffering in (0, -1):
        read, write = os.pipe()
        with open(read, "rb", buffering) as source, open(write, "wb", 0) as sink:  # noqa: PTH123
            assert writer(sink).write_volatile(b"abcd") == 4
            assert reader(source).read_volatile(100) == b"abcd"


def test_a_file_that_has_nothing_now_would_block() -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    with (
        open(read, "rb", 0) as source, open(write, "wb", 0),  # noqa: PTH123
        pytest.raises(GuestIOError) as caught,
    ):
        reader(source).read_volatile(1)
    assert caught.value.kind is ErrorKind.WOULD_BLOCK


@pytest.mark.parametrize(
    ("error", "kind"),
    [(InterruptedError, ErrorKind.INTERRUPTED), (BlockingIOError, ErrorKind.WOULD_BLOCK),
     (BrokenPipeError, ErrorKind.BROKEN_PIPE), (PermissionError, ErrorKind.OTHER)],
)
def test_what_the_system_refuses(error: type[OSError], kind: ErrorKind) -> None:
    class Refusing:
        def read(self, count: int) -> bytes:
            raise error(5, "no")

        def write(self, data: bytes) -> int:
            raise error(5, "no")

    calls: list[Callable[[], object]] = [
        lambda: reader(Refusing()).read_volatile(1), lambda: writer(Refusing()).write_volatile(b"x")
    ]
    for call in calls:
        with pytest.raises(GuestIOError, match="no") as caught:
            call()
        assert caught.value.kind is kind and isinstance(caught.value.__cause__, error)
    assert reader(Refusing()).read_volatile(0) == b"", "nothing is asked for nothing"
    assert writer(Refusing()).write_volatile(b"") == 0


def test_interrupted_calls_are_made_again_and_others_are_not() -> None:
    steps = iter([ErrorKind.INTERRUPTED, ErrorKind.INTERRUPTED, None])

    def call() -> str:
        kind = next(steps)
        if kind is not None:
            raise GuestIOError(kind)
        return "done"

    assert retry_eintr(call) == "done"
    with pytest.raises(GuestIOError):
        retry_eintr(lambda: Script(ErrorKind.OTHER).read_volatile(1))


def test_all_is_written_in_as_many_writes_as_that_needs() -> None:
    sink = Script(2, ErrorKind.INTERRUPTED, 1, 9)
    sink.write_all_volatile(b"abcdef")
    assert sink.taken == b"abcdef" and sink.asked == [6, 4, 4, 3]
    sink = Script(2, ErrorKind.BROKEN_PIPE)
    with pytest.raises(GuestIOError) as caught:
        sink.write_all_volatile(b"abcdef")
    assert caught.value.kind is ErrorKind.BROKEN_PIPE and sink.taken == b"ab"
    Script().write_all_volatile(b"")


def test_large_reads_go_on_while_chunks_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "CHUNK", 4)

    class File:
        def __init__(self, *parts: bytes) -> None:
            self.parts = list(parts)
            self.asked: list[int] = []

        def read(self, count: int) -> bytes | None:
            self.asked.append(count)
            return self.parts.pop(0) if self.parts else None

    file = File(b"abcd", b"efgh", b"ij")
    assert reader(file).read_volatile(100) == b"abcdefghij" and file.asked == [4, 4, 4]
    file = File(b"abcd", b"ef")
    assert reader(file).read_volatile(6) == b"abcdef" and file.asked == [4, 2]
    file = File(b"abcd", b"x")
    assert reader(file).read_volatile(4) == b"abcd" and file.asked == [4]
    file = File(b"ab", b"x")
    assert reader(file).read_volatile(100) == b"ab" and file.asked == [4]
    file = File(b"abcd")
    assert reader(file).read_volatile(100) == b"abcd", "the error is for who asks again"
    with pytest.raises(GuestIOError):
        reader(file).read_volatile(1)
    monkeypatch.setattr(streams, "MAX_TRANSFER", 8)
    file = File(b"abcd", b"efgh", b"ijkl")
    assert reader(file).read_volatile(100) == b"abcdefgh"


def test_what_is_no_stream_is_refused() -> None:
    for wrong in (None, 5, "text", object(), [b"x"]):
        with pytest.raises(ModelError, match="a source is"):
            reader(wrong)
        with pytest.raises(ModelError, match="a sink is"):
            writer(wrong)
    with pytest.raises(ModelError, match="a sink is"):
        writer(b"bytes do not change")
    with pytest.raises(ModelError, match="one of bytes"):
        reader(io.StringIO("text")).read_volatile(1)

    class Liar:
        def read(self, count: int) -> bytes:
            return bytes(count + 1)

        def write(self, data: bytes) -> int:
            return len(data) + 1

    with pytest.raises(ModelError, match="asked for"):
        reader(Liar()).read_volatile(3)
    with pytest.raises(ModelError, match="took 4 bytes of 3"):
        writer(Liar()).write_volatile(b"abc")
