"""An e1000e's DMA on real QEMU: drivers' set-ups with random parameters, judged byte for byte.

Bus mastering is on for the e1000e alone, so nothing else can be blamed for a difference in RAM.
Every rule of the model is broken once, to see that the same programs find it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.errors import QemuFailure
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.e1000e import E1000eRecipe
from qemuglue.program.recipes.recipe import scratch_of
from qemuglue.qemu.builds import Build
from qemuglue.qemu.qtest import QtestDied
from qemuglue.witness.dma import (
    e1000e_packet,
    e1000e_receive,
    e1000e_registers,
    e1000e_status,
    e1000e_transmit,
)
from qemuglue.witness.dma.e1000e_receive import Receiver
from qemuglue.witness.dma.e1000e_registers import Registers
from qemuglue.witness.dma.e1000e_status import Received
from qemuglue.witness.judge import Scene, prepare, resolve
from qemuglue.witness.lockstep import LockStep, RunEnd, Stop
from qemuglue.witness.session import Session
from qemuglue.witness.verdict import Kind, Tally, Verdict

pytestmark = pytest.mark.qemu

DEVICE = "e1000e,romfile=,addr=5"
COMMAND = 0x8000_2804
MASTER = tuple(
    (Operation("outl", Place(offset=port), 4, value), port)
    for port, value in ((0xCF8, COMMAND), (0xCFC, 7))
)

#: What the model may say of a program instead of following it to its end.
EXCUSES = (
    "it ran out of receive buffers", "it received an IPv6 packet that ends",
    "it needs the bounce buffer", "QEMU asserts", "it uses buffer addresses",
    "QEMU copies what lies behind",
)


@pytest.fixture(scope="module")
def stage(build: Build) -> Scene:
    return _stage(build)


@pytest.fixture(scope="module")
def newest(newest_build: Build) -> Scene:
    return _stage(newest_build)


def _stage(build: Build) -> Scene:
    made = scene(Settings(devices=(DEVICE,), build=build.name))
    assert prepare(made) == []
    return made


@dataclass
class Outcome:
    """What judging programs came to; it stops at the first that does not match."""

    tally: Tally = field(default_factory=Tally)
    lost: Counter[str] = field(default_factory=Counter)
    parted: RunEnd | None = None
    programs: int = 0


@contextmanager
def mastering(stage: Scene) -> Iterator[Session]:
    """A session in which the e1000e may do DMA."""
    with stage.session() as session:
        assert LockStep(session).run(MASTER).stop is Stop.DONE
        yield session


def judge(stage: Scene, seeds: range, *, slow: bool = False) -> Outcome:
    """A recipe a seed; a new QEMU after each that the model could not follow."""
    outcome, left = Outcome(), list(reversed(seeds))
    while left and outcome.parted is None:
        with mastering(stage) as session:
            lockstep = LockStep(session, tally=outcome.tally, slow=slow)
            _judge(session, lockstep, left, outcome)
    return outcome


def _judge(session: Session, lockstep: LockStep, left: list[int], outcome: Outcome) -> None:
    layout = session.layout()
    while left:
        rng = Random(left.pop())
        scratch = scratch_of(layout, rng)
        assert scratch is not None
        ops = tuple(E1000eRecipe().operations(rng, layout, scratch))
        end = lockstep.run(resolve(layout, ops))
        outcome.programs += 1
        if end.stop is Stop.DONE:
            suspicion = lockstep.check_ram(full=True)
            if suspicion is not None:
                end = RunEnd(Stop.SUSPICION, end.done, suspicion)
        if end.stop is not Stop.DONE:
            outcome.parted = end
            return
        lost = [each.device.lost for each in session.following.followers.values()]
        if any(lost):
            outcome.lost.update(filter(None, lost))
            return


def test_packets_sent_and_received(stage: Scene) -> None:
    outcome = judge(stage, range(70))
    assert outcome.parted is None, outcome.parted
    assert all(reason.startswith(EXCUSES) for reason in outcome.lost), outcome.lost
    assert outcome.lost.total() <= outcome.programs // 8
    cells = outcome.tally.cells
    assert cells[Kind.DMA, Verdict.MATCH] > 150
    assert cells[Kind.DMA, Verdict.ADOPTED] == 0


def test_one_operation_at_a_time(stage: Scene) -> None:
    outcome = judge(stage, range(200, 206), slow=True)
    assert outcome.parted is None, outcome.parted
    assert outcome.tally.cells[Kind.DMA, Verdict.MATCH] > 5


# -- and it can fail -------------------------------------------------------------------------------


def _done_bit_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(e1000e_transmit, "_DONE", 0)


def _length_off_by_one(patch: pytest.MonkeyPatch) -> None:
    true = e1000e_status.legacy
    patch.setattr(e1000e_receive, "legacy",
                  lambda regs, raw, length, got: true(regs, raw, length ^ 1, got))


def _one_byte_early(patch: pytest.MonkeyPatch) -> None:
    true = Receiver._payload
    patch.setattr(Receiver, "_payload",
                  lambda self, port, fill, data: true(self, port, fill, data[:-1]))


def _descriptors_backwards(patch: pytest.MonkeyPatch) -> None:
    true = Registers.base
    patch.setattr(Registers, "base", lambda self, ring: true(self, ring) + 16)


def _check_sequence_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Registers, "fcs", 0)


def _tag_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Receiver, "_strip", lambda self, packet, start: (packet, None))


def _checksum_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(e1000e_packet, "_fill_checksum", lambda *_: None)
    patch.setattr(Received, "fix_checksum", lambda self: None)


def _everything_wanted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Receiver, "_wanted", lambda self, start: True)


def _wrong_hash(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(e1000e_status, "toeplitz", lambda key, data: 0)


def _no_identification(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(e1000e_status, "_IP_ID", 0)


def _loopback_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Registers, "looped", False)


def _wraps_late(patch: pytest.MonkeyPatch) -> None:
    def advance(self: Registers, ring: e1000e_registers.Ring, count: int) -> None:
        head = self[ring.head] + count
        self[ring.head] = 0 if head * 16 > self[ring.length] else head

    patch.setattr(Registers, "advance", advance)


@pytest.mark.parametrize("defect", [
    _done_bit_dropped, _length_off_by_one, _one_byte_early, _descriptors_backwards,
    _check_sequence_forgotten, _tag_kept, _checksum_forgotten, _everything_wanted, _wrong_hash,
    _no_identification, _loopback_ignored, _wraps_late,
])
def test_a_wrong_rule_is_found(
    newest: Scene, monkeypatch: pytest.MonkeyPatch, defect: object
) -> None:
    assert callable(defect)
    defect(monkeypatch)
    outcome = judge(newest, range(100))
    assert outcome.parted is not None and outcome.parted.stop is Stop.SUSPICION


# -- what QEMU does otherwise than the device ------------------------------------------------------

TX, RX, PACKET, ROM = 0x20_0000, 0x21_0000, 0x30_0000, 0xFFFE_0000
EOP, RS, DATA, SEGMENT = 1 << 24, 1 << 27, 3 << 20 | 1 << 29, 1 << 26


class Guest:
    """A few lines of a driver, straight to QEMU."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.base = next(each.start for each in session.layout().ranges()
                         if each.region == "e1000e-mmio")

    def ask(self, line: str) -> str:
        return self.session.exchange(line.encode() + b"\n", 1)[0].decode()

    def put(self, addr: int, data: bytes) -> None:
        self.ask(f"write {addr:#x} {len(data)} 0x{data.hex()}")

    def get(self, addr: int, size: int) -> bytes:
        return bytes.fromhex(self.ask(f"read {addr:#x} {size}")[5:])

    def write(self, register: int, value: int) -> None:
        self.ask(f"writel {self.base + register:#x} {value:#x}")

    def read(self, register: int) -> int:
        return int(self.ask(f"readl {self.base + register:#x}")[3:], 16)

    def receive(self, rctl: int, ring: bytes, tail: int, rfctl: int = 0) -> None:
        self.put(RX, ring)
        for register, value in (
            (0x5008, rfctl), (0x2800, RX), (0x2804, 0), (0x2808, len(ring)), (0x2810, 0),
            (0x2818, tail), (0x100, rctl | 0x8042),
        ):
            self.write(register, value)

    def send(self, *descriptors: bytes) -> None:
        self.put(TX, b"".join(descriptors))
        for register, value in (
            (0x3800, TX), (0x3804, 0), (0x3808, 4096), (0x3810, 0), (0x400, 2),
            (0x3818, len(descriptors)),
        ):
            self.write(register, value)


def descriptor(addr: int, size: int, command: int, options: int = 0) -> bytes:
    return (addr.to_bytes(8, "little") + (size | command).to_bytes(4, "little")
            + options.to_bytes(4, "little"))


def datagram(size: int) -> bytes:
    """An Ethernet frame to everybody, with a UDP datagram."""
    udp = bytes([1, 2, 3, 4]) + (8 + size).to_bytes(2, "big") + bytes(2) + bytes(range(size))
    ip = (b"\x45\0" + (20 + len(udp)).to_bytes(2, "big") + bytes(4) + bytes([64, 17, 0, 0])
          + bytes([10, 0, 0, 1, 10, 0, 0, 2]))
    return b"\xff" * 6 + bytes(6) + b"\x08\0" + ip + udp


def reworked(build: Build) -> bool:
    version = build.version_tuple
    return version[:2] != (10, 0)


def test_the_check_sequence_takes_a_descriptor(build: Build, stage: Scene) -> None:
    """Since the receiver's bounds were reworked (7.2.22, 10.2)."""
    with mastering(stage) as session:
        guest = Guest(session)
        ring = b"".join(descriptor(0x40_0000 + 0x1000 * i, 0, 0) for i in range(8))
        guest.put(PACKET, datagram(60))
        guest.receive(0, ring, 7)
        guest.send(descriptor(PACKET, 102, EOP | RS))
        lengths = [int.from_bytes(guest.get(RX + 8 + 16 * i, 2), "little") for i in range(2)]
        assert lengths == ([102, 4] if reworked(build) else [106, 0])


def test_a_checksum_is_written_into_rom(build: Build, stage: Scene) -> None:
    """A buffer is mapped for reading, and the checksum goes into the mapping: ROM as well."""
    with mastering(stage) as session:
        guest = Guest(session)
        before = guest.get(ROM, 16)
        guest.put(PACKET, datagram(20)[:34])
        guest.send(descriptor(PACKET, 34, DATA, 0x200), descriptor(ROM, 28, DATA | EOP, 0x200))
        after = guest.get(ROM, 16)
        assert (after == before) == (build.version_tuple < (8,))
        assert after[:6] + after[8:] == before[:6] + before[8:]


def test_a_packet_is_not_sent_in_two_kicks(build: Build, stage: Scene) -> None:
    """What one kick leaves without its end is forgotten (8.0 and later)."""
    with mastering(stage) as session:
        guest = Guest(session)
        ring = b"".join(descriptor(0x40_0000 + 0x1000 * i, 0, 0) for i in range(8))
        guest.put(PACKET, b"\xff" * 120)
        guest.receive(0, ring, 7)
        guest.send(descriptor(PACKET, 50, RS))
        guest.put(TX + 16, descriptor(PACKET + 50, 70, EOP | RS))
        guest.write(0x3818, 2)
        length = int.from_bytes(guest.get(RX + 8, 2), "little")
        whole, half = (120, 70) if reworked(build) else (124, 74)
        assert length == (whole if build.version_tuple < (8,) else half)


def test_fragments_may_end_qemu(build: Build, stage: Scene) -> None:
    """61 buffers of one byte make a fragment whose end is no multiple of 8 (8.1 and later)."""
    with mastering(stage) as session:
        guest = Guest(session)
        guest.put(PACKET, datagram(200))
        context = bytes(8) + (SEGMENT | 1 << 29).to_bytes(4, "little") + bytes([0, 42, 128, 0])
        parts = [descriptor(PACKET + 42 + i, 1, DATA | SEGMENT | (EOP if i == 62 else 0))
                 for i in range(63)]
        head = descriptor(PACKET, 42, DATA | SEGMENT)
        if build.version_tuple < (8,):
            guest.send(context, head, *parts)
            assert guest.read(0x3810) == 65
            return
        with pytest.raises((QtestDied, QemuFailure)):
            guest.send(context, head, *parts)
        assert "frag" in str(session.process.stderr_tail())
