"""DMA on boards that are no PC: PCI behind a window in memory or behind two registers there, ports
shown in memory, and targets that are big-endian, whose legacy virtio is so too."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from random import Random

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.campaign.targets import DISK
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Program
from qemuglue.program.recipes import RECIPES
from qemuglue.program.recipes.mix import Mix, Share
from qemuglue.program.recipes.recipe import Scratch, as_sent, ram_write, scratch_of
from qemuglue.program.recipes.virtio_rings import Buffer, Rings
from qemuglue.program.recipes.virtio_transport import INDIRECT_DESC, Legacy
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build
from qemuglue.witness import settling
from qemuglue.witness.dma import edu
from qemuglue.witness.dma.device import Port
from qemuglue.witness.dma.virtio_device import VirtioDevice
from qemuglue.witness.judge import Kind, Scene, prepare, replay, resolve
from qemuglue.witness.lockstep import LockStep, Stop
from qemuglue.witness.session import Session
from qemuglue.witness.verdict import Kind as Row
from qemuglue.witness.verdict import Tally, Verdict

pytestmark = pytest.mark.qemu

SERIAL = "bytes in order"
BLK = f"virtio-blk-pci,drive=disk,serial={SERIAL}"
EDU, RNG, NET = "edu", "virtio-rng-pci", "e1000e"

#: Machine, words, devices. A Mac has no MSI, which edu needs.
BOARDS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "virt": ("aarch64/virt", (), (EDU, BLK, RNG, NET)),
    "virt, all below 4 GiB": ("aarch64/virt", ("-machine", "highmem=off"), (EDU, BLK, RNG, NET)),
    "g3beige": ("ppc/g3beige", (), (BLK, RNG, NET)),
    "mac99": ("ppc/mac99", (), (BLK, RNG, NET)),
    "ppce500": ("ppc/ppce500", (), (EDU, BLK, RNG, NET)),
    "microvm": ("x86_64/microvm", ("-machine", "pcie=on"), (EDU, BLK)),
    "pc": ("x86_64/pc", (), (EDU, BLK)),
}


@cache
def stage(build: Build, name: str) -> Scene:
    """What is learnt of a machine holds for all tests."""
    machine, words, devices = BOARDS[name]
    made = scene(Settings(
        build=build.name, machine=machine, devices=devices, qemu_args=(*DISK, *words),
        mode="parked", setup="dma"))
    assert prepare(made) == []
    return made


def there(build: Build, name: str) -> Scene:
    target = BOARDS[name][0].split("/")[0]
    if target not in build.targets():
        pytest.skip(f"{build.name} has no {target}")
    return stage(build, name)


@pytest.mark.parametrize("name", [each for each in BOARDS if each != "pc"])
def test_programs_on_a_board(newest_build: Build, name: str) -> None:
    """Recipes among ordinary accesses: every device acts, nothing parts."""
    tally, rng = Tally(), Random(name)
    acted = set[str]()
    with there(newest_build, name).session() as session:
        session.following.telling = True
        run = LockStep(session, tally=tally)
        layout = session.layout()
        mix = Mix(layout, [Share(each) for each in RECIPES], share=0.9)
        names = {each.device.name for each in session.following.followers.values()}
        assert {"edu" if each == EDU else each.split(",")[0] for each in BOARDS[name][2]} <= names
        for _ in range(3):
            seen = len(session.journal)
            end = run.run(resolve(layout, mix.operations(rng, 128)))
            assert end.stop is Stop.DONE, (end, session.journal[seen:][-3:])
            acted |= {each.device.name for each in session.following.followers.values()
                      if each.device.name in session.following.names()}
    assert tally.cells[Row.DMA, Verdict.MATCH] > 10
    assert len(acted) >= 2, acted


# -- a big-endian target --------------------------------------------------------------------------

#: On every build, and on the newest one alone.
BIG, BIG_TOO = ("mac99",), ("g3beige", "ppce500")


def asked(layout: Layout, scratch: Scratch, *, big: bool = True) -> tuple[list[Operation], Rings]:
    """A legacy driver asks the disk for its serial number; the answer lands behind the header."""
    [window] = [each for each in layout.ranges() if each.region == "virtio-pci"
                and 0x40 <= each.size <= 0x100]
    transport = Legacy(window)
    at = scratch.take(0x3000, 0x1000)
    rings = Rings(at, at + 16 * 256, at + 0x2000, 256, big=big)
    ops = [*transport.start(INDIRECT_DESC), *transport.queue(0, rings)]
    ops += [ram_write(rings.avail, bytes(4)), ram_write(rings.used, bytes(4))]
    ops += transport.status(7)
    header = scratch.take(64, 64)
    ops += [ram_write(header, rings.pack("IIQ", 8, 0, 0)[:8]), ram_write(header + 8, bytes(8))]
    ops += rings.chain(scratch, [
        Buffer(header, 16), Buffer(header + 16, 20, True), Buffer(header + 48, 1, True),
    ], indirect=False)
    return [*ops, rings.publish(), *transport.notify(0)], rings


def perform(session: Session, tally: Tally) -> tuple[Stop, bytes, bytes]:
    """How it ended; the used ring and the buffer afterwards."""
    layout = session.layout()
    scratch = scratch_of(layout, Random(1))
    assert scratch is not None
    ops, rings = asked(layout, scratch)
    end = LockStep(session, tally=tally).run(resolve(layout, list(as_sent(layout, ops))))
    qtest = session.process.qtest
    header = rings.desc + 0x3000
    return end.stop, qtest.read_bytes(rings.used, 12), qtest.read_bytes(header + 16, 33)


@pytest.mark.parametrize("name", BIG)
def test_a_legacy_disk_of_a_big_endian_target(build: Build, name: str) -> None:
    """Rings and requests have the target's byte order, and so they are judged."""
    judged(build, name)


@pytest.mark.parametrize("name", BIG_TOO)
def test_a_legacy_disk_of_other_boards(newest_build: Build, name: str) -> None:
    judged(newest_build, name)


def judged(build: Build, name: str) -> None:
    tally = Tally()
    with there(build, name).session() as session:
        assert session.layout().big
        stop, used, answer = perform(session, tally)
        assert not any(each.device.lost for each in session.following.followers.values())
    assert stop is Stop.DONE
    assert used == struct.pack(">HHII", 0, 1, 0, 21)
    assert answer == SERIAL.encode().ljust(20, b"\0") + bytes(12) + b"\0"
    assert tally.cells[Row.DMA, Verdict.MATCH] > 1, "when it starts, and when notified"


@pytest.mark.parametrize("name", (*BIG, *BIG_TOO))
def test_a_model_that_is_little_endian_is_found(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    there(newest_build, name)
    monkeypatch.setattr(VirtioDevice, "big", property(lambda self: False))
    monkeypatch.setattr(settling, "PATIENCE_S", 0.3)
    with there(newest_build, name).session() as session:
        stop, used, _ = perform(session, Tally())
    assert stop is not Stop.DONE and used[:4] == b"\0\0\0\1"


# -- timers --------------------------------------------------------------------------------------

PROGRAM = """\
# qemuglue program 1
machine {machine}
args {words}
mode parked
setup dma
write @{ram:#x} 0x1122334455667788aabbccdd
writeq edu-mmio+0x80 {source:#x}
writeq edu-mmio+0x88 {own:#x}
writeq edu-mmio+0x90 {size:#x}
writeq edu-mmio+0x98 {into:#x}
writeq edu-mmio+0x80 {own:#x}
writeq edu-mmio+0x88 {target:#x}
writeq edu-mmio+0x98 {out:#x}
read @{landing:#x} 0x10
"""

#: Boards with edu, and where their RAM is: on one beyond the 28 bits that the device passes on if
#: it is told nothing else.
TIMED = {"virt": 0x4000_0000, "ppce500": 0x0, "pc": 0x0, "microvm": 0x0}


def edu_program(session: Session, name: str) -> Program:
    """12 bytes into the device and out again."""
    layout, ram = session.layout(), TIMED[name] + 0x20_0000

    def sent(value: int) -> int:
        return layout.number(edu.REGION, value, 8)

    return parse(PROGRAM.format(
        machine=BOARDS[name][0], words=" ".join(session.config.args), ram=ram,
        landing=ram + 0x1000, source=sent(ram),
        target=sent(ram + 0x1000), own=sent(edu.START + 0x10), size=sent(12), into=sent(1),
        out=sent(3)))


@cache
def masked(build: Build, name: str) -> Scene:
    made = scene(Settings(
        build=build.name, machine=BOARDS[name][0], devices=("edu,dma_mask=0xffffffff",),
        qemu_args=BOARDS[name][1], mode="parked", setup="dma"))
    assert prepare(made) == []
    return made


def _shorter(device: edu.Edu, port: Port) -> None:
    device.registers[edu.CNT] -= 1
    _ACT(device, port)


_ACT = edu.Edu.act


@pytest.mark.parametrize("defect", [None, _shorter])
def test_a_timer_fires_on_a_parked_board(
    build: Build, monkeypatch: pytest.MonkeyPatch, defect: Callable[..., None] | None
) -> None:
    """edu's transfers come 100 ms later; one that is wrong in the model is found."""
    timed(build, monkeypatch, "ppce500", defect)


@pytest.mark.parametrize("name", ["virt", "pc", "microvm"])
def test_a_timer_fires_on_other_parked_machines(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    timed(newest_build, monkeypatch, name, None)


def timed(
    build: Build, monkeypatch: pytest.MonkeyPatch, name: str, defect: Callable[..., None] | None
) -> None:
    if BOARDS[name][0].split("/")[0] not in build.targets():
        pytest.skip(f"{build.name} cannot run {BOARDS[name][0]}")
    machine = masked(build, name)
    with machine.session() as session:
        program = edu_program(session, name)
    if defect is not None:
        monkeypatch.setattr(edu.Edu, "act", defect)
        monkeypatch.setattr(settling, "PATIENCE_S", 0.3)
    tally = Tally()
    found = replay(machine, program, tally=tally)
    assert found.kind is (Kind.NONE if defect is None else Kind.DIVERGENCE), found
    if defect is None:
        assert tally.cells[Row.DMA, Verdict.MATCH] == 2
