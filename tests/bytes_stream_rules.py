"""The rules of ``Bytes``' stream forms. ``bytes_conformance`` runs them."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from bytes_subject import Contract, Probe, Streams, other, rule, short

from qemuglue.memory.guest_error import ErrorKind


class Source:
    """A binary file whose reads give what they are told to: some bytes, fewer if fewer are asked
    for, or an error. At the end of the list the file is at its end."""

    def __init__(self, *script: bytes | OSError) -> None:
        self.script = list(script)
        #: Bytes given so far.
        self.given = 0
        self.reads = 0

    def read(self, count: int) -> bytes:
        self.reads += 1
        if not self.script:
            return b""
        step = self.script.pop(0)
        if isinstance(step, OSError):
            raise step
        if len(step) > count:
            self.script.insert(0, step[count:])
        self.given += min(len(step), count)
        return step[:count]


class Sink:
    """A binary file whose writes take as much as they are told to, or raise; everything once the
    list is at its end."""

    def __init__(self, *script: int | OSError) -> None:
        self.script = list(script)
        self.taken = bytearray()
        self.writes = 0

    def write(self, data: bytes) -> int:
        self.writes += 1
        step = self.script.pop(0) if self.script else len(data)
        if isinstance(step, OSError):
            raise step
        self.taken += data[:step]
        return min(step, len(data))


def streams(contract: Contract) -> bool:
    return contract.streams is not None


def source_rules(contract: Contract) -> bool:
    """Rules of filling memory from a stream."""
    return streams(contract) and contract.read_only is None


def _failed(probe: Probe, call: Any, kind: ErrorKind, what: str) -> None:
    """``call`` must raise what the stream raised."""
    error: Any = probe.refused(call, probe.contract.io_error, what)
    assert error.kind is kind, f"{what}: {error!r} is not {kind}"


def _outside(probe: Probe) -> Any:
    """An address that no form takes: the end itself may be one of no bytes."""
    return probe.at(probe.length + 1)


# -- from a stream ---------------------------------------------------------------------------


@rule("a stream fills count bytes, and no more is read of it", source_rules)
def filling(probe: Probe) -> None:
    for count in (1, 7, 8, 20, probe.length):
        data = other(probe.have(0, count))
        src = Source(data + b"rest")
        probe.put(0, data)
        assert probe.bytes.read_volatile_from(probe.at(0), src, count) == count
        probe.settle(f"{count} bytes from a stream")
        assert src.given == count, f"{src.given} bytes were read of which {count} were wanted"
    offset = probe.length - 5
    data = other(probe.have(offset, 5))
    probe.put(offset, data)
    probe.bytes.read_exact_volatile_from(probe.at(offset), BytesIO(data), 5)
    probe.settle("5 bytes up to the end, from a BytesIO")


@rule("what a stream gives less is not filled, and not counted", source_rules)
def ending_source(probe: Probe) -> None:
    data = other(probe.have(3, 6))
    probe.put(3, data)
    src = Source(data)
    assert probe.bytes.read_volatile_from(probe.at(3), src, 20) == 6
    probe.settle("a stream that gives 6 bytes of 20")
    assert probe.bytes.read_volatile_from(probe.at(3), src, 20) == 0
    probe.settle("a stream at its end")


@rule("a stream is read once where it gives less than a region holds", source_rules)
def short_source(probe: Probe) -> None:
    data = other(probe.have(0, 4))
    probe.put(0, data)
    src = Source(data, b"more of it")
    got = probe.bytes.read_volatile_from(probe.at(0), src, probe.length)
    assert got == 4, f"{got} bytes of a read that gave 4"
    probe.settle("a read that gave 4 bytes")
    assert src.reads == 1


@rule("a stream that is interrupted is asked again", source_rules)
def interrupted_source(probe: Probe) -> None:
    data = other(probe.have(8, 8))
    probe.put(8, data)
    src = Source(InterruptedError(), InterruptedError(), data)
    assert probe.bytes.read_volatile_from(probe.at(8), src, 8) == 8
    probe.settle("a stream interrupted twice")
    again = Source(InterruptedError(), other(data))
    probe.put(8, other(data))
    probe.bytes.read_exact_volatile_from(probe.at(8), again, 8)
    probe.settle("an exact stream interrupted once")


@rule("another error of the stream is raised, and nothing is filled", source_rules)
def failing_source(probe: Probe) -> None:
    for call in (probe.bytes.read_volatile_from, probe.bytes.read_exact_volatile_from):
        src = Source(OSError(5, "the disk is gone"), b"12345678")
        _failed(probe, lambda c=call, s=src: c(probe.at(0), s, 8), ErrorKind.OTHER, "an OSError")
        probe.settle("a stream that failed")
        assert src.reads == 1, "it was read again"


@rule("filling is short at the end of the memory", lambda c: source_rules(c) and short(c))
def filling_at_the_end(probe: Probe) -> None:
    offset = probe.length - 5
    data = other(probe.have(offset, 5))
    probe.put(offset, data)
    src = Source(data + b"no room")
    assert probe.bytes.read_volatile_from(probe.at(offset), src, 12) == 5
    probe.settle("filling 5 bytes of 12")
    if probe.contract.streams is not Streams.PLAIN:
        assert src.given == 5, "bytes were read that have no place"


@rule("filling outside is refused, and the stream keeps its bytes", source_rules)
def filling_outside(probe: Probe) -> None:
    for call in (probe.bytes.read_volatile_from, probe.bytes.read_exact_volatile_from):
        src = Source(b"12345678")
        probe.refused(
            lambda c=call, s=src: c(_outside(probe), s, 8), probe.contract.outside, "outside")
        if probe.contract.streams is not Streams.PLAIN:
            assert src.reads == 0, "the stream was read"
    probe.settle("filling outside")


@rule("the exact form fills all, from a stream that gives it at once", source_rules)
def exact(probe: Probe) -> None:
    for count in (0, 1, 8, probe.length):
        data = other(probe.have(0, count))
        probe.put(0, data)
        src = Source(data + b"rest") if data else Source()
        assert probe.bytes.read_exact_volatile_from(probe.at(0), src, count) is None
        probe.settle(f"exactly {count} bytes")
        assert src.given == count


@rule("the exact form reads on where the stream gives less", lambda c: (
    source_rules(c) and c.streams is not Streams.MEMORY))
def exact_in_pieces(probe: Probe) -> None:
    data = other(probe.have(0, 12))
    probe.put(0, data)
    src = Source(data[:5], data[5:6], InterruptedError(), data[6:])
    probe.bytes.read_exact_volatile_from(probe.at(0), src, 12)
    probe.settle("12 bytes in three pieces")


@rule("the exact form ends with a read that gives less, and says so", lambda c: (
    source_rules(c) and c.streams is Streams.MEMORY))
def exact_is_read_once(probe: Probe) -> None:
    data = other(probe.have(0, 12))
    probe.put(0, data[:5])
    error: Any = probe.refused(
        lambda: probe.bytes.read_exact_volatile_from(probe.at(0), Source(data[:5], data[5:]), 12),
        probe.contract.partial, "a read that gave 5 bytes of 12",
    )
    assert (error.expected, error.completed) == (12, 5), repr(error)
    probe.settle("5 bytes of 12")


@rule("the exact form raises where the stream ends early; what it gave is there", source_rules)
def exact_from_a_short_stream(probe: Probe) -> None:
    data = other(probe.have(0, 6))
    probe.put(0, data)
    what = "a stream of 6 bytes of 9"
    src = Source(data)

    def call() -> None:
        probe.bytes.read_exact_volatile_from(probe.at(0), src, 9)

    if probe.contract.streams is Streams.SLICE:
        _failed(probe, call, ErrorKind.UNEXPECTED_EOF, what)
    else:
        error: Any = probe.refused(call, probe.contract.partial, what)
        assert (error.expected, error.completed) == (9, 6), repr(error)
    probe.settle(what)


@rule("the exact form takes nothing from bytes that are known to be too few", lambda c: (
    source_rules(c) and c.streams is Streams.SLICE))
def exact_from_too_few_bytes(probe: Probe) -> None:
    src = BytesIO(b"only six")
    src.seek(2)
    _failed(probe, lambda: probe.bytes.read_exact_volatile_from(probe.at(0), src, 9),
            ErrorKind.UNEXPECTED_EOF, "6 bytes of 9")
    assert src.tell() == 2, "some of them were taken"
    probe.settle("6 bytes of 9")


@rule("the exact form raises where the memory ends early", source_rules)
def exact_into_short_memory(probe: Probe) -> None:
    offset = probe.length - 6
    data = other(probe.have(offset, 6))
    src = Source(data + b"end")
    what = "exactly 9 bytes where 6 have room"

    def call() -> None:
        probe.bytes.read_exact_volatile_from(probe.at(offset), src, 9)

    whole = probe.contract.never_short
    if whole is not None or probe.contract.streams is Streams.SLICE:
        probe.refused(call, whole or probe.contract.outside, what)
        assert src.reads == 0, f"{what}: the stream was read"
    else:
        probe.put(offset, data)
        error: Any = probe.refused(call, probe.contract.partial, what)
        assert (error.expected, error.completed) == (9, 6), repr(error)
    probe.settle(what)


@rule("filling goes on in the next region, and leaves no gap", lambda c: (
    source_rules(c) and bool(c.seam)))
def filling_across_the_seam(probe: Probe) -> None:
    seam = probe.contract.seam
    assert seam is not None
    offset = seam - 6
    data = other(probe.have(offset, 12))
    probe.put(offset, data)
    assert probe.bytes.read_volatile_from(probe.at(offset), Source(data), 12) == 12
    probe.settle("12 bytes across the seam")
    fresh = other(data)
    probe.put(offset, fresh[:4])
    assert probe.bytes.read_volatile_from(probe.at(offset), Source(fresh[:4], fresh[4:]), 12) == 4
    probe.settle("a read that gave 4 bytes, before the seam")
    probe.put(offset, data)
    probe.bytes.read_exact_volatile_from(probe.at(offset), Source(data + b"rest"), 12)
    probe.settle("exactly 12 bytes across the seam")


# -- to a stream -----------------------------------------------------------------------------


@rule("a stream gets count bytes, in order", streams)
def emptying(probe: Probe) -> None:
    for offset, count in ((0, 1), (3, 8), (0, probe.length), (probe.length - 5, 5), (0, 0)):
        for call, want in (
            (probe.bytes.write_volatile_to, count), (probe.bytes.write_all_volatile_to, None),
        ):
            dst = Sink()
            assert call(probe.at(offset), dst, count) == want
            assert dst.taken == probe.have(offset, count), f"{count} bytes at {offset:#x}"
    probe.settle("emptying")


@rule("a stream gets what there is at the end of the memory, or nothing", streams)
def emptying_at_the_end(probe: Probe) -> None:
    offset = probe.length - 5
    dst = Sink()
    whole = probe.contract.never_short
    if whole is None:
        assert probe.bytes.write_volatile_to(probe.at(offset), dst, 12) == 5
        assert dst.taken == probe.have(offset, 5)
    else:
        probe.refused(
            lambda: probe.bytes.write_volatile_to(probe.at(offset), dst, 12), whole, "12 bytes")
    dst = Sink()
    what = "all of 12 bytes where 5 are there"

    def call() -> None:
        probe.bytes.write_all_volatile_to(probe.at(offset), dst, 12)

    if whole is not None or probe.contract.streams is Streams.SLICE:
        probe.refused(call, whole or probe.contract.outside, what)
        assert dst.writes == 0, f"{what}: the stream got some"
    else:
        error: Any = probe.refused(call, probe.contract.partial, what)
        assert (error.expected, error.completed) == (12, 5), repr(error)
        assert dst.taken == probe.have(offset, 5)
    probe.settle("emptying at the end")


@rule("emptying outside is refused, and the stream gets nothing", streams)
def emptying_outside(probe: Probe) -> None:
    for call in (probe.bytes.write_volatile_to, probe.bytes.write_all_volatile_to):
        dst = Sink()
        probe.refused(
            lambda c=call, d=dst: c(_outside(probe), d, 8), probe.contract.outside, "outside")
        assert dst.writes == 0, "the stream got something"
    probe.settle("emptying outside")


@rule("one write is told as it was", lambda c: c.streams is Streams.SLICE)
def short_sink(probe: Probe) -> None:
    dst = Sink(3)
    assert probe.bytes.write_volatile_to(probe.at(0), dst, 8) == 3
    assert dst.taken == probe.have(0, 3) and dst.writes == 1
    assert probe.bytes.write_volatile_to(probe.at(0), Sink(0), 8) == 0
    probe.settle("a stream that takes less")


@rule("a stream that takes less is given the rest", streams)
def sink_in_pieces(probe: Probe) -> None:
    calls = [probe.bytes.write_all_volatile_to]
    if probe.contract.streams is not Streams.SLICE:
        calls.append(probe.bytes.write_volatile_to)
    for call in calls:
        dst = Sink(3, InterruptedError(), 1)
        call(probe.at(2), dst, 9)
        assert dst.taken == probe.have(2, 9), f"{bytes(dst.taken)!r} in {dst.writes} writes"
    probe.settle("a stream that takes less")


@rule("a stream that takes nothing any more is an error, and keeps what it got", streams)
def full_sink(probe: Probe) -> None:
    calls = [probe.bytes.write_all_volatile_to]
    if probe.contract.streams is not Streams.SLICE:
        calls.append(probe.bytes.write_volatile_to)
    for call in calls:
        dst = Sink(3, 0)
        _failed(probe, lambda c=call, d=dst: c(probe.at(0), d, 9), ErrorKind.WRITE_ZERO, "full")
        assert dst.taken == probe.have(0, 3)
    probe.settle("a stream that is full")


@rule("a sink that is interrupted is asked again", streams)
def interrupted_sink(probe: Probe) -> None:
    for call in (probe.bytes.write_volatile_to, probe.bytes.write_all_volatile_to):
        dst = Sink(InterruptedError(), InterruptedError())
        call(probe.at(1), dst, 8)
        assert dst.taken == probe.have(1, 8) and dst.writes == 3
    probe.settle("a sink interrupted twice")


@rule("another error of the sink is raised", streams)
def failing_sink(probe: Probe) -> None:
    for call in (probe.bytes.write_volatile_to, probe.bytes.write_all_volatile_to):
        dst = Sink(OSError(5, "the disk is gone"))
        _failed(probe, lambda c=call, d=dst: c(probe.at(0), d, 8), ErrorKind.OTHER, "an OSError")
        assert dst.writes == 1, "it was written again"
    probe.settle("a sink that failed")


@rule("emptying goes on in the next region", lambda c: streams(c) and bool(c.seam))
def emptying_across_the_seam(probe: Probe) -> None:
    seam = probe.contract.seam
    assert seam is not None
    for call in (probe.bytes.write_volatile_to, probe.bytes.write_all_volatile_to):
        dst = Sink()
        call(probe.at(seam - 5), dst, 12)
        assert dst.taken == probe.have(seam - 5, 12)
    probe.settle("emptying across the seam")


@rule("no bytes are moved by a count of 0, and the stream is not touched", streams)
def no_count(probe: Probe) -> None:
    src, dst = Source(b"abc"), Sink()
    for offset in (0, probe.length - 1, probe.length):
        where = probe.at(offset)
        if probe.contract.read_only is None:
            assert probe.bytes.read_volatile_from(where, src, 0) == 0
            assert probe.bytes.read_exact_volatile_from(where, src, 0) is None
        assert probe.bytes.write_volatile_to(where, dst, 0) == 0
        assert probe.bytes.write_all_volatile_to(where, dst, 0) is None
    assert src.given == 0 and not dst.taken
    probe.settle("counts of 0")
