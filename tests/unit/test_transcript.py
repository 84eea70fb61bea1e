"""The transcript without QEMU: reading a growing file, and parsing hostile text."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.errors import QemuHang, ResourceError
from qemuglue.qemu import transcript as module
from qemuglue.qemu.events import TEXT_MAX_BYTES, Event, Kind, Reason, Refusal, describe, parse
from qemuglue.qemu.transcript import EVIDENCE_BYTES, RELEASE_STEP_BYTES, Transcript

READ = (b"memory_region_ops_read cpu -1 mr 0x55aa addr 0xfed00000 value 0x8086a201 "
        b"size 4 name 'hpet'\n")


def one(line: bytes) -> Event:
    (event,) = parse(line)
    return event


def event(kind: Kind, cpu: int = -1, mr: int = 0, address: int = 0, value: int = 0,
          size: int = 0, name: str | None = None, refusal: Refusal | None = None,
          text: str = "") -> Event:
    return Event(kind, cpu, mr, address, value, size, name, refusal, text)


# --- parsing --------------------------------------------------------------------------

@pytest.mark.parametrize(("line", "expected"), [
    (READ, event(Kind.READ, -1, 0x55AA, 0xFED00000, 0x8086A201, 4, "hpet")),
    (b"memory_region_ops_write cpu 12 mr 0x1 addr 0x0 value 0x0 size 1 name 'x'",
     event(Kind.WRITE, 12, 1, 0, 0, 1, "x")),
    # 7.2's hpet leaves bits above the size
    (b"memory_region_ops_read cpu -1 mr 0x1 addr 0x0 value 0x9896808086a201 size 4 name 'hpet'",
     event(Kind.READ, -1, 1, 0, 0x8086A201, 4, "hpet")),
    (b"memory_region_ops_read cpu -1 mr 0x1 addr 0x0 value 0xffffffffffffffff size 8 name ''",
     event(Kind.READ, -1, 1, 0, 2**64 - 1, 8, "")),
    (b"memory_region_ops_read cpu -1 mr (nil) addr 0x0 value 0x0 size 1 name 'a'",
     event(Kind.READ, -1, 0, 0, 0, 1, "a")),
    (b"memory_region_ops_read cpu -1 mr 0x1 addr 0x2 value 0x3 size 1 name 'it's a 'name''",
     event(Kind.READ, -1, 1, 2, 3, 1, "it's a 'name'")),
    (b"memory_region_ops_read cpu -1 mr 0x1 addr 0x2 value 0x3 size 1 name '\xff\n",
     event(Kind.OTHER, text="memory_region_ops_read cpu -1 mr 0x1 addr 0x2 value 0x3 size 1 "
                            "name '\\xff")),
    (b"memory_region_subpage_write cpu 0 mr 0x9 offset 0x10 value 0x1ff size 1\n",
     event(Kind.SUBPAGE_WRITE, 0, 9, 0x10, 0xFF, 1)),
    (b"memory_region_subpage_read cpu 0 mr 0x9 offset 0x10 value 0x1ff size 2\n",
     event(Kind.SUBPAGE_READ, 0, 9, 0x10, 0x1FF, 2)),
    (b"memory_region_ram_device_read cpu 0 mr 0x9 addr 0x10 value 0x1ff size 2\n",
     event(Kind.RAM_DEVICE_READ, 0, 9, 0x10, 0x1FF, 2)),
    (b"memory_region_ram_device_write cpu 0 mr 0x9 addr 0x10 value 0x1ff size 2\r\n",
     event(Kind.RAM_DEVICE_WRITE, 0, 9, 0x10, 0x1FF, 2)),
    (b"Invalid read at addr 0x82, size 2, region 'edu-mmio', reason: invalid size (min:4 max:8)\n",
     event(Kind.INVALID_READ, address=0x82, size=2, name="edu-mmio",
           refusal=Refusal(Reason.INVALID_SIZE, 4, 8))),
    (b"Invalid write at addr 0x3FFF0, size 4, region 'pc.bios', reason: rejected\n",
     event(Kind.INVALID_WRITE, address=0x3FFF0, size=4, name="pc.bios",
           refusal=Refusal(Reason.REJECTED, 0, 0))),
    (b"Invalid read at addr 0xE0000000000, size 4, region '(null)', reason: rejected\n",
     event(Kind.INVALID_READ, address=0xE0000000000, size=4, name=None,
           refusal=Refusal(Reason.REJECTED, 0, 0))),
    (b"Invalid read at addr 0x1, size 4, region 'a', reason: x', reason: unaligned\n",
     event(Kind.INVALID_READ, address=1, size=4, name="a', reason: x",
           refusal=Refusal(Reason.UNALIGNED, 0, 0))),
    (b"flatview_new 0x55c0 (root 0x55c1)\n",
     event(Kind.FLATVIEW_NEW, mr=0x55C1, address=0x55C0)),
    (b"edu: hello\n", event(Kind.OTHER, text="edu: hello")),
    (b"\n", event(Kind.OTHER)),
    (b"Invalid read at addr 0x1, size 4, region 'a', reason: because\n",
     event(Kind.OTHER, text="Invalid read at addr 0x1, size 4, region 'a', reason: because")),
    # one hex digit too many for a 64-bit number
    (b"memory_region_ops_read cpu -1 mr 0x1 addr 0x11111111111111111 value 0x0 size 1 name 'a'\n",
     event(Kind.OTHER, text="memory_region_ops_read cpu -1 mr 0x1 addr 0x11111111111111111 "
                            "value 0x0 size 1 name 'a'")),
])
def test_parse(line: bytes, expected: Event) -> None:
    assert one(line) == expected


@pytest.mark.parametrize("record", [
    READ,
    b"Invalid read at addr 0x82, size 2, region 'edu-mmio', reason: unaligned\n",
    b"flatview_new 0x55c0 (root 0x55c1)\n",
])
def test_a_message_without_newline_glued_in_front(record: bytes) -> None:
    glued = parse(b"ahci: odd value " + record + READ)
    assert [e.kind for e in glued] == [Kind.OTHER, one(record).kind, Kind.READ]
    assert glued[0].text == "ahci: odd value "
    assert glued[1] == one(record)


def test_long_garbage_is_cut_and_said_so() -> None:
    event_ = one(b"y" * 1_000_000 + b"\n")
    assert len(event_.text) < TEXT_MAX_BYTES + 50
    assert event_.text.endswith("1000000 bytes")


def test_many_names_are_cheap_in_memory() -> None:
    text = b"".join(READ.replace(b"hpet", b"n%d" % i) for i in range(40_000))
    assert [e.name for e in parse(text)] == [f"n{i}" for i in range(40_000)]


_PIECES = st.sampled_from([
    READ, READ[:-1], READ[5:40], b"Invalid read at addr 0x", b", size 4, region '", b"'\n", b"\n",
    b"', reason: rejected\n", b"flatview_new 0x1 (root 0x2)\n", b"flatview_new ", b"\x00\xff", b"'",
    b"Invalid write at addr 0xA, size 4, region 'x y', reason: rejected\n", b"name '", b"(null)",
])


@given(st.lists(st.one_of(_PIECES, st.binary(max_size=20)), max_size=12))
def test_parse_is_total(pieces: list[bytes]) -> None:
    """Any bytes parse, quickly, into at least one event a line, cut at any line the same."""
    text = b"".join(pieces)
    events = parse(text)
    lines = text.split(b"\n")
    assert len(events) >= len(lines) - 1
    assert events == [e for line in lines[:-1] for e in parse(line + b"\n")] + parse(lines[-1])
    for found in events:
        assert describe(found) is not None
        assert 0 <= found.value < 1 << 8 * max(found.size, 8)


def test_describe() -> None:
    assert describe(one(READ)) == "read of 4 at 0xfed00000 of 'hpet' -> 0x8086a201"
    assert describe(one(b"Invalid read at addr 0x82, size 2, region '(null)', reason: rejected\n")
                    ) == "refused read of 2 at 0x82 of unassigned memory: rejected"
    assert "allowed 4 to 8" in describe(one(
        b"Invalid write at addr 0x2, size 2, region 'a', reason: invalid size (min:4 max:8)\n"))
    assert describe(one(b"flatview_new 0x1 (root 0x2)\n")) == "memory map rebuilt"


# --- the growing file -----------------------------------------------------------------

@pytest.fixture
def log() -> Iterator[tuple[Transcript, int]]:
    """A transcript, and the descriptor through which its writer (QEMU) has it open."""
    transcript = Transcript(limit_bytes=64 << 20)
    path = Path(f"/proc/{os.getpid()}/fd/{transcript.fd}")
    writer = os.open(path, os.O_WRONLY | os.O_TRUNC)
    yield transcript, writer
    os.close(writer)
    transcript.close()
    transcript.close()


def test_whole_lines_only(log: tuple[Transcript, int]) -> None:
    transcript, writer = log
    assert transcript.read_new() == b""
    os.write(writer, b"one\ntw")
    assert transcript.read_new() == b"one\n"
    assert transcript.read_new() == b""
    os.write(writer, b"o\nthree")
    assert transcript.read_new() == b"two\n"
    assert transcript.size() == 13
    assert transcript.read_new(final=True) == b"three"


def test_what_was_read_is_given_back_and_the_writer_goes_on(log: tuple[Transcript, int]) -> None:
    transcript, writer = log
    released: list[int] = []
    transcript.on_release = released.append
    block = READ * 10_000
    for _ in range(40):
        os.write(writer, block)
        assert transcript.read_new() == block
    assert transcript.size() == 40 * len(block)
    assert released and released == sorted(released)
    held = os.fstat(transcript.fd).st_blocks * 512
    assert held <= RELEASE_STEP_BYTES + EVIDENCE_BYTES + len(block) + (1 << 16)
    assert transcript.tail(200) == block[-200:]
    assert len(transcript.tail()) == EVIDENCE_BYTES
    assert b"\x00" not in transcript.tail()


def test_a_flood_is_told_and_its_evidence_kept(log: tuple[Transcript, int]) -> None:
    transcript, writer = log
    transcript.limit_bytes = 1000
    os.write(writer, b"x" * 999 + b"\nend\n")
    with pytest.raises(ResourceError):
        transcript.read_new()
    assert transcript.tail(5) == b"\nend\n"


def test_wait_for(log: tuple[Transcript, int]) -> None:
    transcript, writer = log
    os.write(writer, b"first\nmark")  # not a whole line yet
    with pytest.raises(QemuHang):
        transcript.wait_for(b"mark", timeout_s=0.05)

    def later() -> None:
        time.sleep(0.05)
        os.write(writer, b"er\nrest")

    thread = threading.Thread(target=later)
    thread.start()
    assert transcript.wait_for(b"marker", timeout_s=5) == b"first\nmarker\n"
    thread.join()
    os.write(writer, b"\n")
    assert transcript.wait_for(lambda text: text.count(b"\n") == 1, timeout_s=5) == b"rest\n"


def test_log_arguments_follow_what_the_build_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    for known, expected in (({"invalid_mem", "guest_errors", "plugin"}, "invalid_mem,plugin"),
                            ({"guest_errors", "plugin"}, "guest_errors,plugin")):
        monkeypatch.setattr(module, "log_items", lambda *_, known=known: frozenset(known))
        words = module.log_arguments(None, "x86_64", "/dev/fd/7", plugin=True,  # type: ignore[arg-type]
                                     extra_trace=("edu_*",))
        assert words[words.index("-d") + 1] == expected
        assert words[-2:] == ["-D", "/dev/fd/7"]
        assert "edu_*" in words
