"""The transcript on real QEMU: nothing lost, in order, there before the reply."""

from __future__ import annotations

import random
import time

import pytest

from qemuglue.qemu import qtest
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.events import Kind, Reason, parse
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.transcript import log_items

pytestmark = pytest.mark.qemu

HPET = 0xFED00000
NOWHERE = 0xE0000000000


def q35(build: Build, *args: str) -> QemuConfig:
    return QemuConfig(build=build, target="x86_64", machine="q35", ram="64M", args=args)


def test_every_line_is_there_when_its_reply_is(build: Build) -> None:
    """200,000 accesses in batches of odd sizes: all lines, their order, their values."""
    rng = random.Random(1)
    with QemuProcess(q35(build)) as process:
        process.transcript.read_new()
        left = 200_000
        while left:
            count = min(left, rng.choice((1, 2, 7, 100, 999, 4096, 20_000)))
            left -= count
            places = [HPET + 8 * rng.randrange(32) for _ in range(count)]
            batch = b"".join(map(qtest.readl, places))
            reply = process.channel.exchange(batch, count)
            text = process.transcript.read_new()
            assert text.count(b"\n") == count
            events = parse(text)
            assert [e.address for e in events] == places
            assert {(e.kind, e.cpu, e.size, e.name) for e in events} == {
                (Kind.READ, -1, 4, "hpet")}
            assert [e.value for e in events] == [
                qtest.parse_value(line) for line in reply.split(b"\n")[:-1]]
        assert process.transcript.unread() == 0


def test_a_reader_that_stalls_stalls_nobody(newest_build: Build) -> None:
    with QemuProcess(q35(newest_build)) as process:
        process.transcript.read_new()
        batch = qtest.readl(HPET) * 10_000
        for _ in range(40):  # 34 MB unread; a FIFO would have stalled at 64 KiB
            process.channel.exchange(batch, 10_000, timeout_s=5)
        time.sleep(0.2)
        process.monitor.round_trip(timeout_s=2)
        assert process.transcript.read_new().count(b"'hpet'\n") == 400_000


def test_what_is_told_of_refused_accesses(build: Build) -> None:
    with QemuProcess(q35(build, "-device", "edu,addr=4")) as process:
        client = process.qtest
        client.outl(0xCF8, 0x80002010)
        client.outl(0xCFC, 0xE0000000)
        client.outl(0xCF8, 0x80002004)
        client.outw(0xCFC, 2)
        process.transcript.read_new()
        assert client.readl(0xE0000000) == 0x010000ED
        client.readw(0xE0000080)           # edu takes 4 bytes at least, except below 0x80
        client.writel(NOWHERE, 1)
        client.writel(0xFFFFFFF0, 1)       # the BIOS, a ROM
        events = parse(process.transcript.read_new())
    assert [(e.kind, e.size, e.name) for e in events] == [
        (Kind.READ, 4, "edu-mmio"), (Kind.INVALID_READ, 2, "edu-mmio"),
        (Kind.INVALID_WRITE, 4, None), (Kind.INVALID_WRITE, 4, "pc.bios")]
    ok, size, nowhere, rom = events
    assert (ok.address, ok.value) == (0xE0000000, 0x010000ED)
    assert size.address == 0x80
    assert size.refusal is not None and size.refusal.reason is Reason.INVALID_SIZE
    assert (size.refusal.size_min, size.refusal.size_max) == (4, 8)
    assert nowhere.address == NOWHERE
    assert nowhere.refusal is not None and nowhere.refusal.reason is Reason.REJECTED
    assert rom.refusal is not None and rom.refusal.reason is Reason.REJECTED


def test_a_moved_bar_shows_as_a_new_map(build: Build) -> None:
    with QemuProcess(q35(build, "-device", "edu,addr=4")) as process:
        client = process.qtest
        process.transcript.read_new()
        client.outl(0xCF8, 0x80002010)
        client.outl(0xCFC, 0xE0000000)
        assert Kind.FLATVIEW_NEW not in {
            e.kind for e in parse(process.transcript.read_new())}
        client.outl(0xCF8, 0x80002004)
        client.outw(0xCFC, 2)
        assert Kind.FLATVIEW_NEW in {e.kind for e in parse(process.transcript.read_new())}


def test_markers_come_in_order(build: Build) -> None:
    """A byte read of a known hole whose low bits count up marks a place in the text."""
    with QemuProcess(q35(build)) as process:
        process.transcript.read_new()
        batch = b"".join(qtest.readl(HPET) + qtest.readb(NOWHERE + i) for i in range(500))
        process.channel.exchange(batch, 1000)
        text = process.transcript.wait_for(b"addr 0x%X," % (NOWHERE + 499), timeout_s=5)
        events = parse(text)
        assert [e.address for e in events if e.kind is Kind.INVALID_READ] == [
            NOWHERE + i for i in range(500)]
        assert [e.kind for e in events] == [Kind.READ, Kind.INVALID_READ] * 500


def test_log_items_are_found_by_asking(build: Build) -> None:
    items = log_items(build, "x86_64")
    assert "guest_errors" in items
    assert ("invalid_mem" in items) == (build.version_tuple >= (8, 0))


def test_the_evidence_of_a_killed_qemu_stays(newest_build: Build) -> None:
    with QemuProcess(q35(newest_build)) as process:
        process.qtest.readl(HPET)
        process.transcript.read_new()
        process.kill()
        assert process.transcript.read_new(final=True) == b""
        assert process.transcript.tail().endswith(b"name 'hpet'\n")
