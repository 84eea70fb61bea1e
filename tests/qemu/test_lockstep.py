"""Small programs on real QEMU, judged in both ways: whole batches, and one operation at a time.

Both must say the same, operation for operation, and what they say is checked against what is
known of the machine from elsewhere. A test of programs that match proves something only with
``test_a_wrong_rule_is_seen_by_both``, where the same programs are judged by a broken model.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import pytest

from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.settings import Settings, scene
from qemuglue.errors import QemuFailure
from qemuglue.memory import Contract, RegionKind
from qemuglue.program.generate import Generator
from qemuglue.program.operation import Program
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build
from qemuglue.witness.judge import (
    Judgement,
    Kind,
    Scene,
    failure_judgement,
    judgement,
    prepare,
    replay,
    resolve,
)
from qemuglue.witness.lockstep import LockStep, RunEnd, Stop
from qemuglue.witness.session import Knowledge, Session
from qemuglue.witness.verdict import Kind as Row
from qemuglue.witness.verdict import Tally, Verdict

pytestmark = pytest.mark.qemu

DEVICES = ("edu", "pci-testdev")


@pytest.fixture(scope="module")
def stage(build: Build) -> Scene:
    """A PC with two PCI devices in place, its contracts known."""
    made = scene(Settings(devices=DEVICES, build=build.name))
    assert prepare(made) == []
    return made


#: A megabyte of flash below 4 GiB, in the place of the firmware's ROM; it needs no file.
FLASH_ARGS = ("-blockdev", "driver=null-co,node-name=flash,size=1048576,read-zeroes=on",
              "-machine", "pflash0=flash")


@pytest.fixture(scope="module")
def flash(build: Build) -> Scene:
    """A PC with flash, which QEMU has as a ROM device."""
    made = scene(Settings(build=build.name, setup="", qemu_args=FLASH_ARGS))
    assert prepare(made) == []
    return made


@dataclass(frozen=True)
class Said:
    """What judging a program came to."""

    kind: Kind
    signature: str
    index: int | None
    cells: Counter[tuple[Row, Verdict]]
    verbs: Counter[str]
    judgement: Judgement

    def of(self, verdict: Verdict) -> int:
        return sum(n for (_, seen), n in self.cells.items() if seen is verdict)


def said(found: Judgement, tally: Tally) -> Said:
    return Said(found.kind, found.signature, found.index, +tally.cells, +tally.verbs, found)


def program_of(stage: Scene, text: str) -> Program:
    head = f"# qemuglue program 1\nmachine {stage.config.full_name}\n"
    setup = f"setup {stage.setup}\n" if stage.setup else ""
    return parse(head + setup + text)


def judged_fast(stage: Scene, program: Program, *, batch: int = 256) -> Said:
    """In whole batches, as a campaign does."""
    tally = Tally()
    with stage.session() as session:
        lockstep = LockStep(session, tally=tally, batch=batch)
        try:
            end = lockstep.run(resolve(session.layout(), program.operations))
            if end.stop is Stop.DONE:
                suspicion = lockstep.check_ram(full=True)
                if suspicion is not None:
                    end = RunEnd(Stop.SUSPICION, end.done, suspicion)
        except QemuFailure as error:
            return said(failure_judgement(session, error), tally)
        return said(judgement(session, end, 0), tally)


def judged_slowly(stage: Scene, program: Program) -> Said:
    tally = Tally()
    return said(replay(stage, program, tally=tally), tally)


def both(stage: Scene, text: str) -> Said:
    """Judge in both ways, which must agree on every verdict."""
    program = program_of(stage, text)
    slow = judged_slowly(stage, program)
    if slow.of(Verdict.LEARNT):
        slow = judged_slowly(stage, program)  # by what the first time taught
    fast = judged_fast(stage, program)
    assert (fast.kind, fast.signature) == (slow.kind, slow.signature), (fast, slow)
    assert fast.cells == slow.cells
    assert fast.verbs == slow.verbs
    return slow


def matches(stage: Scene, text: str, **rows: int) -> Said:
    """Every operation matches; ``rows`` are the numbers by what was touched."""
    found = both(stage, text)
    count = len(program_of(stage, text).operations)
    assert found.kind is Kind.NONE, found.judgement
    assert found.cells.total() == found.of(Verdict.MATCH) == count, found.cells
    for name, number in rows.items():
        row = Row[name.upper()]
        assert found.cells[row, Verdict.MATCH] == number, (name, found.cells)
    return found


def replies(stage: Scene, text: str) -> list[str]:
    """QEMU's reply to each operation (without its OK), judged on the way."""
    seen: list[str] = []
    found = replay(stage, program_of(stage, text), on_step=lambda index, step, model, qemu:
                   seen.append(qemu[-1].removeprefix("reply OK").strip()))
    assert found.kind is Kind.NONE, found
    return seen


# -- every verb everywhere -------------------------------------------------------------------

WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}


def every_verb(start: int) -> str:
    """Every memory verb around an address, at every alignment."""
    lines = []
    for delta in range(-7, 9):
        addr = (start + delta) % (1 << 64)
        for letter, size in WIDTHS.items():
            value = (0x1122334455667788 + delta) % (1 << 8 * size)
            lines.append(f"write{letter} @{addr:#x} {value:#x}")
            lines.append(f"read{letter} @{addr:#x}")
    addr = (start - 5) % (1 << 64)
    lines += [f"read @{addr:#x} {size:#x}" for size in (1, 3, 7, 16, 33)]
    lines += [f"write @{addr:#x} 0x{bytes(range(1, size + 1)).hex()}" for size in (1, 3, 7, 16, 33)]
    lines += [f"memset @{addr:#x} {size:#x} 0xa5" for size in (1, 3, 7, 16, 33)]
    return "\n".join([*lines, f"read @{addr:#x} 0x20", ""])


def every_port_verb(port: int) -> str:
    lines = []
    for delta in range(-5, 5):
        at = port + delta
        if 0 <= at <= 0xFFFF:
            lines += [f"out{letter} {at:#x} {0x5A5A5A5A % (1 << 8 * WIDTHS[letter]):#x}\n"
                      f"in{letter} {at:#x}" for letter in "bwl"]
    return "\n".join([*lines, ""])


INSIDE = {
    0x8000: "ram", 0xE8000: "rom", 0x4000_0000: "unassigned", 0xFED0_0100: "device",  # hpet
    0xE000_0010: "device",  # edu
    0xE010_0020: "device",  # pci-testdev
    0xFEC0_0010: "device",  # ioapic
}


def test_every_verb_inside(stage: Scene) -> None:
    texts = {start: every_verb(start) for start in INSIDE}
    counts: Counter[str] = Counter()
    for start, row in INSIDE.items():
        counts[row] += texts[start].count("\n")
    matches(stage, "".join(texts.values()), **counts)


BOUNDARIES = {
    0x400_0000: "RAM ends, nothing follows",
    0xBFFFE: "RAM to ROM",
    0xE0000: "ROM to ROM",
    0x100000: "ROM to RAM",
    0xFED0_0400: "a device ends",
    0xE010_0000: "one device to the next",
    0xFED0_0000: "nothing to a device",
    0x1_0000_0000: "ROM ends at 4 GiB",
    0: "over 2^64 into RAM",
}


def test_every_verb_over_a_boundary(stage: Scene) -> None:
    found = matches(stage, "".join(map(every_verb, BOUNDARIES)))
    assert found.cells[Row.CROSSING, Verdict.MATCH] > 30 * len(BOUNDARIES)


PORTS = (0x71, 0x40, 0x64, 0x86, 0x4D1, 0x50E, 0xCD8, 0xC000, 0x9000, 0xFFFF)


def test_every_port_verb(stage: Scene) -> None:
    found = matches(stage, "".join(map(every_port_verb, PORTS)))
    assert found.verbs.keys() == {"inb", "inw", "inl", "outb", "outw", "outl"}
    assert found.cells[Row.PORT, Verdict.MATCH] > 100
    assert found.cells[Row.IO_ROOT, Verdict.MATCH] > 100
    assert found.cells[Row.CROSSING, Verdict.MATCH] > 50


def test_the_root_of_the_ports_reads_ones(stage: Scene) -> None:
    assert replies(stage, "inb 0x9000\ninw 0x9000\ninl 0x9000\noutl 0x9000 0x1\ninl 0x9000\n") == [
        "0x00ff", "0xffff", "0xffffffff", "", "0xffffffff"]
    matches(stage, "inb 0x9000\ninw 0x9000\ninl 0x9000\noutl 0x9000 0x1\n", io_root=4)


def test_the_last_port(stage: Scene) -> None:
    """Behind it nothing is. An access over it is cut, or from 11 on refused whole."""
    single = stage.config.build.version_tuple >= (11,)
    assert replies(stage, "inb 0xffff\ninw 0xffff\ninl 0xfffe\n") == [
        "0x00ff", "0x0000" if single else "0x00ff", "0x0000" if single else "0xffff"]


def test_a_wrap_reads_on_at_zero(stage: Scene) -> None:
    seen = replies(stage, "writel @0x0 0x44332211\nread @0xfffffffffffffffc 0x8\n"
                          "writeq @0xfffffffffffffffe 0x1122334455667788\nreadl @0x0\n")
    assert seen[1] == "0x0000000011223344"
    assert seen[3] == "0x0000000033445566"


# -- facts that differ by version ------------------------------------------------------------


def contract_of(stage: Scene, name: str) -> Contract:
    with stage.session() as session:
        region = next(each for each in session.device_regions() if each.name == name)
        learned = stage.knowledge.contracts.get(session.contract_key(region))
    assert learned is not None, f"{name} was not learnt"
    return learned.contract


def pieces(stage: Scene, text: str) -> list[list[str]]:
    """What QEMU says of each operation, its reply left out."""
    seen: list[list[str]] = []
    found = replay(stage, program_of(stage, text), on_step=lambda index, step, model, qemu:
                   seen.append(list(qemu[:-1])))
    assert found.kind is Kind.NONE, found
    return seen


def test_how_the_hpet_takes_eight_bytes(stage: Scene) -> None:
    [calls] = pieces(stage, "readq hpet+0x0\n")
    sizes = [int(call.split()[2]) for call in calls]
    old = stage.config.build.version_tuple < (8,)
    assert sizes == ([4, 4] if old else [8])
    # valid.max is 8 on both; what changed is what the callback can do.
    assert (contract_of(stage, "hpet").impl_max or 4) == (4 if old else 8)


def test_ports_are_one_dispatch_from_11_on(stage: Scene) -> None:
    single = stage.config.build.version_tuple >= (11,)
    assert stage.session().rules.ports_single_dispatch is single
    [word, quad] = pieces(stage, "inw 0x21\ninl 0x4d0\n")
    if single:
        assert word == ["refused read of 2 at 0x1 of 'pic': unaligned"]
        assert [call.split()[4] for call in quad] == ["0x4d0", "0x4d1", "0x4d2", "0x4d3"]
        assert len({call.split(" of ")[2].split()[0] for call in quad}) == 1
    else:
        assert [call.split()[2] for call in word] == ["1", "1"]
        assert len(quad) == 4
    matches(stage, "inw 0x4d1\ninl 0x4d0\ninl 0x21\ninw 0x21\ninl 0x22\noutw 0x21 0xffff\n")


def test_edu_wants_four_or_eight_bytes(stage: Scene) -> None:
    """A contract known from the device's source: valid and impl 4 to 8."""
    contract = contract_of(stage, "edu-mmio")
    assert (contract.valid_min, contract.valid_max, contract.impl_max) == (4, 8, 8)
    refused, taken, cut = pieces(
        stage, "readb edu-mmio+0x0\nreadl edu-mmio+0x0\nread edu-mmio+0x4 0x6\n")
    assert [call.split(":")[-1] for call in refused] == [" invalid size (allowed 4 to 8)"]
    assert len(taken) == 1 and "-> 0x10000ed" in taken[0], "edu's identification"
    assert len(cut) == 2 and "refused" not in cut[0] and "refused read of 2" in cut[1]


def test_refused_reads_are_zeros(stage: Scene) -> None:
    assert replies(stage, "readb edu-mmio+0x0\nreadl edu-mmio+0x0\n") == [
        "0x0000000000000000", "0x00000000010000ed"]


def test_regions_have_the_same_key_in_every_process(build: Build) -> None:
    """What was learnt in one process is looked up in the next; two regions of virtio-rng have
    one name, and QEMU prints them in another order in every run."""
    made = scene(Settings(devices=("virtio-rng-pci",), build=build.name))
    assert prepare(made) == []
    sizes: dict[object, set[int]] = {}
    for _ in range(10):
        with made.session() as session:
            assert session.missing_contracts() == []
            for region in session.mirror.regions:
                sizes.setdefault(region.key, set()).add(region.size)
    assert {key: found for key, found in sizes.items() if len(found) > 1} == {}


# -- the map changes ---------------------------------------------------------------------------

#: Memory at 0xc0000: ROM at first; then RAM that may only be read; then RAM; then ROM again.
SHADOW = """
writel @0xc0000 0x99
outl 0xcf8 0x80000090
outb 0xcfd 0x11
readl @0xc0000
writel @0xc0000 0x12345678
readl @0xc0000
write @0xbfffe 0x0102030405060708
read @0xbfffe 0x8
writeq @0xc3ffc 0x1122334455667788
readq @0xc3ffc
memset @0xc0010 0x20 0x5a
readw @0xc002f
outl 0xcf8 0x80000090
outb 0xcfd 0x33
writel @0xc0000 0x1
readl @0xc0000
outl 0xcf8 0x80000090
outb 0xcfd 0x0
readl @0xc0000
writel @0xc0000 0x77
"""


def test_a_read_only_alias_of_ram_is_written(stage: Scene) -> None:
    """R9: the region's own flag counts, not the section's."""
    found = matches(stage, SHADOW)
    assert found.cells[Row.RO_ALIAS, Verdict.MATCH] >= 5
    assert found.cells[Row.ROM, Verdict.MATCH] == 3
    seen = replies(stage, SHADOW)
    assert seen[5] == "0x0000000012345678", "written through the read-only alias"
    assert seen[15] == "0x0000000000000001"
    assert seen[18] == seen[3] == "0x0000000000000000" or seen[18] != "0x0000000000000001"


#: edu's registers move, and are switched off and on.
MOVES = """
readl @0xe0000000
readl @0xe8000000
outl 0xcf8 0x80000810
outl 0xcfc 0xe8000000
readl @0xe8000000
readl @0xe0000000
writel @0xe8000004 0x55
readl @0xe8000004
outl 0xcf8 0x80000804
outb 0xcfc 0x0
readl @0xe8000000
writel @0xe8000004 0x55
outl 0xcf8 0x80000804
outb 0xcfc 0x2
readl @0xe8000004
"""


def test_a_device_that_moves_is_followed(stage: Scene) -> None:
    found = matches(stage, MOVES, unassigned=4, device=5)
    assert found.verbs["outl"] == 4
    seen = replies(stage, MOVES)
    assert seen[0] == seen[4] == "0x00000000010000ed"
    assert seen[1] == seen[5] == seen[10] == "0x0000000000000000"
    assert seen[7] == seen[14] == "0x00000000ffffffaa", "edu inverts what is written there"


def test_ram_that_a_device_hides_is_there_again(stage: Scene) -> None:
    """A BAR put over RAM: which of them wins is QEMU's map, not a guess."""
    found = matches(stage, """
writel @0x2000000 0x11111111
outl 0xcf8 0x80000810
outl 0xcfc 0x2000000
readl @0x2000000
writel @0x2000004 0x22222222
readl @0x2000004
outl 0xcf8 0x80000810
outl 0xcfc 0xe0000000
readl @0x2000000
readl @0x2000004
readl @0xe0000000
""")
    assert found.cells[Row.DEVICE, Verdict.MATCH] >= 1


# -- resets and ends ----------------------------------------------------------------------------


@pytest.mark.parametrize("line", [
    "outb 0xcf9 0x6", "outb 0x92 0x1", "outb 0x64 0xfe", "outl 0x92 0x5060708",
])
def test_a_reset_that_the_guest_asks_for(stage: Scene, line: str) -> None:
    found = both(stage, f"""
writel pc.ram+0x100 0x1234
readl @0xe0000000
{line}
readl @0xe0000000
readl pc.ram+0x100
inb 0x64
""")
    assert found.kind is Kind.NONE
    assert found.of(Verdict.RESET) == 1 and found.of(Verdict.MATCH) == 5, found.cells
    assert found.cells[Row.UNASSIGNED, Verdict.MATCH] == 1, "after a reset edu has no place"


@pytest.mark.parametrize("line", [
    "outb 0xcf9 0x2", "outb 0x92 0x2", "outb 0x64 0xaa", "outl 0x92 0x4060208",
])
def test_what_resets_nothing(stage: Scene, line: str) -> None:
    matches(stage, f"readl @0xe0000000\n{line}\nreadl @0xe0000000\n", device=2)


def test_the_reset_verb(stage: Scene) -> None:
    found = both(stage, "writel pc.ram+0x0 0x5\nreset\nreadl pc.ram+0x0\nreadl @0xe0000000\n")
    assert found.kind is Kind.NONE
    assert found.cells == Counter({
        (Row.RAM, Verdict.MATCH): 2, (Row.EVENT, Verdict.RESET): 1,
        (Row.UNASSIGNED, Verdict.MATCH): 1})


#: The power management block at ports 0x600, then a write of SLP_EN with type 0 (soft off).
POWER_OFF = """
outl 0xcf8 0x8000f840
outl 0xcfc 0x601
outl 0xcf8 0x8000f844
outb 0xcfc 0x80
outw 0x604 0x2000
readl pc.ram+0x0
readl pc.ram+0x0
"""


def test_a_guest_may_switch_itself_off(stage: Scene) -> None:
    found = both(stage, POWER_OFF)
    assert (found.kind, found.signature) == (Kind.SHUTDOWN, "shutdown")
    assert judged_slowly(stage, program_of(stage, POWER_OFF)).index == 4


@contextmanager
def disturbed(
    stage: Scene, monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]
) -> Iterator[Session]:
    """A session in which ``act`` is done to QEMU's process when the third batch is sent."""
    with stage.session() as session:
        sent = session.process.channel.send
        count = 0

        def send(request: bytes, replies: int) -> None:
            nonlocal count
            count += 1
            if count == 3:
                act(session.process.pid)
            sent(request, replies)

        monkeypatch.setattr(session.process.channel, "send", send)
        yield session


def run_to_its_end(session: Session, text: str, stage: Scene, *, batch: int) -> Judgement:
    lockstep = LockStep(session, batch=batch)
    try:
        end = lockstep.run(resolve(session.layout(), program_of(stage, text).operations))
    except QemuFailure as error:
        return failure_judgement(session, error)
    return judgement(session, end, 0)


MANY = "readl hpet+0x0\nwriteq pc.ram+0x0 0x1\n" * 32


def test_a_killed_qemu_is_a_crash_with_its_place(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disturbed(stage, monkeypatch, lambda pid: os.kill(pid, signal.SIGKILL)) as session:
        found = run_to_its_end(session, MANY, stage, batch=8)
    assert (found.kind, found.signature) == (Kind.CRASH, "crash:signal:SIGKILL")
    assert found.index is not None and 8 <= found.index <= 16, "the batch that was under way"
    assert found.command and "SIGKILL" in found.error


def test_a_killed_qemu_is_a_crash_for_the_slow_judge(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = program_of(stage, MANY)
    pids: list[int] = []
    made = Scene.session

    def session(self: Scene) -> Session:
        session = made(self)
        pids.append(0)
        return session

    monkeypatch.setattr(Scene, "session", session)
    started = Session._start

    def start(self: Session) -> None:
        started(self)
        pids[-1] = self.process.pid

    monkeypatch.setattr(Session, "_start", start)

    def kill(index: int, *rest: object) -> None:
        if index == 10:
            os.kill(pids[-1], signal.SIGKILL)

    found = replay(stage, program, on_step=kill)
    assert (found.kind, found.signature, found.index) == (Kind.CRASH, "crash:signal:SIGKILL", 11)


def test_a_qemu_that_stops_is_a_hang(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with disturbed(stage, monkeypatch, lambda pid: os.kill(pid, signal.SIGSTOP)) as session:
        collect = session.process.channel.collect
        monkeypatch.setattr(session.process.channel, "collect",
                            lambda replies: collect(replies, timeout_s=0.5))
        found = run_to_its_end(session, MANY, stage, batch=8)
        os.kill(session.process.pid, signal.SIGCONT)
    assert (found.kind, found.signature) == (Kind.HANG, "hang:qtest")
    assert found.index is not None and 8 <= found.index <= 24


def test_a_qemu_that_stops_for_a_moment_is_none(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGCONT)).start()

    with disturbed(stage, monkeypatch, pause) as session:
        assert run_to_its_end(session, MANY, stage, batch=8).kind is Kind.NONE


# -- flash -----------------------------------------------------------------------------------------


def test_flash_is_read_as_memory_and_written_as_a_device(flash: Scene) -> None:
    with flash.session() as session:
        kinds = {section.region.kind for section in session.mirror.memory.view.sections
                 if section.region.name == "system.flash0"}
    assert kinds == {RegionKind.ROM_DEVICE}
    write, read = pieces(flash, "writel @0xfff00000 0x0\nreadl @0xfff00000\n")
    assert write == ["write of 4 at 0xfff00000 of 'system.flash0' <- 0x0"]
    assert read == [], "no call, it is memory"
    lines = every_verb(0xFFFF_0000).splitlines(keepends=True)
    reads = "".join(line for line in lines if line.startswith("read"))
    matches(flash, reads, romd=reads.count("\n"))


#: Intel's commands: 0x90 shows what the chip is, 0x40 and a value programs it, 0xff makes it
#: memory again. The first two turn it from memory into a device.
COMMANDS = """
readl @0xfff00000
writeb @0xfff00000 0x90
readl @0xfff00000
readw @0xfff00002
writeb @0xfff00000 0xff
readl @0xfff00000
writeb @0xfff00100 0x40
writeb @0xfff00100 0x78
readl @0xfff00100
writeb @0xfff00000 0xff
readl @0xfff00100
read @0xfff000f0 0x20
write @0xffeffffe 0x01020304
read @0xffeffffc 0x10
"""


def test_flash_commands_change_the_map(flash: Scene) -> None:
    found = both(flash, COMMANDS)
    assert found.kind is Kind.NONE, found.judgement
    assert found.of(Verdict.ADOPTED) == 1, "one write programmed it"
    assert found.of(Verdict.MATCH) == found.cells.total() - 1 == COMMANDS.count("\n") - 1
    seen = replies(flash, COMMANDS)
    assert seen[8] == "0x0000000000800080", "while it is a device it tells its status"
    assert seen[10] == "0x0000000000000078", "then what was programmed"
    read = pieces(flash, COMMANDS)
    assert read[2] and read[3] and read[8], "calls into the device"
    assert not read[0] and not read[5] and not read[10] and not read[11]


def test_the_flash_of_an_arm_board(newest_build: Build) -> None:
    made = scene(Settings(machine="aarch64/virt", build=newest_build.name, setup=""))
    prepare(made)
    found = judged_fast(made, program_of(made, """
readl virt.flash0+0x0
writel virt.flash0+0x0 0xff00ff
readq virt.flash0+0x3
writel mach-virt.ram+0x0 0x1
readl mach-virt.ram+0x0
"""))
    assert found.kind is Kind.NONE
    assert found.cells[Row.ROMD, Verdict.MATCH] == 3 and found.of(Verdict.MATCH) == 5


# -- many ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_a_thousand_random_operations_without_a_suspicion(stage: Scene, seed: int) -> None:
    tally = Tally()
    with stage.session() as session:
        operations = Generator(session.layout()).operations(Random(seed), 1000)
        lockstep = LockStep(session, tally=tally)
        end = lockstep.run(resolve(session.layout(), operations))
        assert (end.stop, end.suspicion) == (Stop.DONE, None)
        assert lockstep.check_ram(full=True) is None
    assert end.done == len(operations)
    assert tally.of(Verdict.DIVERGED) == 0
    assert sum(tally.verbs.values()) == len(operations)
    assert tally.of(Verdict.MATCH) > 0.9 * len(operations), tally.to_json()


def test_batches_of_any_length_say_the_same(stage: Scene) -> None:
    with stage.session() as session:
        operations = Generator(session.layout()).operations(Random(7), 200)
    program = program_of(stage, "").replace(operations=tuple(operations))
    found = [judged_fast(stage, program, batch=batch) for batch in (1, 7, 256)]
    assert {each.kind for each in found} == {Kind.NONE}
    assert len({each.verbs.total() for each in found}) == 1
    assert found[0].cells.total() == found[1].cells.total() == found[2].cells.total()


# -- and it can fail -----------------------------------------------------------------------------

#: Which program above shows which broken rule.
SHOWN_BY = {
    "accepts-rejected": every_verb(0x4000_0000),
    "refused-ones": "readl @0x40000000\n",
    "pieces-backwards": "inl 0x4d0\n",
    "guard-inverted": "readl edu-mmio+0x0\n",
    "order-swapped": "readl edu-mmio+0x0\n",
    "alignment-ignored": every_verb(0xFED0_0100),
    "clamp-off-by-one": "writel @0xffffe 0x1\n",
    "no-clamp": "writew @0xbffff 0x8000\n",
    "alias-offset-dropped": SHADOW,
    "stops-at-error": "writel @0x0 0x44332211\nread @0xfffffffffffffff0 0x20\n",
    "rom-writable": "writel @0xe8000 0x1\nreadl @0xe8000\n",
    "ports-read-zero": "inb 0x9000\n",
    "values-backwards": "writel @0x3fffffe 0x11223344\nreadw @0x3fffffe\n",
    "fill-short": "memset pc.ram+0x0 0x10 0x77\nread pc.ram+0x0 0x10\n",
}


def test_every_defect_has_a_program() -> None:
    assert set(SHOWN_BY) == set(DEFECTS)


@pytest.fixture(scope="module")
def known(newest_build: Build) -> Knowledge:
    """Contracts are learnt by the true rules, so one probe serves every defect."""
    made = scene(Settings(devices=DEVICES, build=newest_build.name))
    assert prepare(made) == []
    return made.knowledge


@pytest.mark.parametrize("name", DEFECTS)
def test_a_wrong_rule_is_seen_by_both(
    newest_build: Build, known: Knowledge, name: str
) -> None:
    settings = Settings(devices=DEVICES, build=newest_build.name)
    true, wrong = scene(settings, known), scene(settings.replace(defect=name), known)
    program = program_of(true, SHOWN_BY[name])
    for judged in (judged_slowly, judged_fast):
        found = judged(wrong, program)
        assert found.kind is Kind.DIVERGENCE, (judged, found)
        assert found.judgement.suspicion is not None
        assert found.judgement.suspicion.model != found.judgement.suspicion.qemu
        assert judged(true, program).kind is Kind.NONE
