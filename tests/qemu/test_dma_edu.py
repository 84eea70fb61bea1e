"""edu on real QEMU: its transfers predicted byte by byte, every defect of the model found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.memory.region import MASK64
from qemuglue.program.operation import Program
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.qtest import QtestDied, QtestHang
from qemuglue.witness import settling
from qemuglue.witness.dma import edu
from qemuglue.witness.dma.device import Port
from qemuglue.witness.judge import Judgement, Kind, Scene, prepare, replay
from qemuglue.witness.verdict import Kind as Row
from qemuglue.witness.verdict import Tally, Verdict

pytestmark = pytest.mark.qemu

#: 12 bytes in, 12 out again elsewhere at an address that the mask cuts; the registers are told
#: something else meanwhile where the clock stands still.
PROGRAM = """\
# qemuglue program 1
machine x86_64/q35
args -device edu
mode {mode}
setup dma
write pc.ram+0x2000 0x1122334455667788aabbccdd
writeq edu-mmio+0x80 0x2000
writel edu-mmio+0x88 0x40ff0
writel edu-mmio+0x90 0xc
writel edu-mmio+0x98 0x1
writeq edu-mmio+0x80 0x40ff0
writeq edu-mmio+0x88 0x10003000
writel edu-mmio+0x98 0x3
read pc.ram+0x3000 0x10
readq edu-mmio+0x98
"""


def program(mode: str) -> Program:
    return parse(PROGRAM.format(mode=mode))


@cache
def stage(build: str, machine: str, args: tuple[str, ...]) -> Scene:
    """What is learnt of a machine holds for all tests."""
    made = scene(Settings(
        build=build, machine=machine, qemu_args=args, mode="parked", setup="dma"))
    assert prepare(made) == []
    return made


def run(build: Build, text: Program, tally: Tally | None = None) -> Judgement:
    return replay(stage(build.name, text.machine, text.args), text, tally=tally)


def test_its_transfers_are_what_the_model_says(build: Build) -> None:
    tally = Tally()
    found = run(build, program("parked"), tally)
    assert found.kind is Kind.NONE, found
    assert tally.cells[Row.DMA, Verdict.MATCH] == 2


def test_stopped_nothing_lands(newest_build: Build) -> None:
    tally = Tally()
    text = program("stopped")
    parked = stage(newest_build.name, text.machine, text.args)
    stopped = replace(parked, config=replace(parked.config, mode=VmMode.STOPPED))
    found = replay(stopped, text, tally=tally)
    assert found.kind is Kind.NONE, found
    assert not tally.cells[Row.DMA, Verdict.MATCH]


def _shorter(device: edu.Edu, port: Port) -> None:
    device.registers[edu.CNT] -= 1
    _ACT(device, port)


def _unmasked(device: edu.Edu, port: Port) -> None:
    device.mask = MASK64
    _ACT(device, port)


def _swapped(device: edu.Edu, port: Port) -> None:
    registers = device.registers
    registers[edu.CMD] ^= edu.TO_RAM
    registers[edu.SRC], registers[edu.DST] = registers[edu.DST], registers[edu.SRC]
    _ACT(device, port)
    registers[edu.CMD] ^= edu.TO_RAM


def _stray(device: edu.Edu, port: Port) -> None:
    """The model writes a byte more than QEMU: seen from here, one of the two is astray."""
    command = device.registers[edu.CMD]
    _ACT(device, port)
    if command & edu.TO_RAM:
        port.write((device.registers[edu.DST] + 0x100) & device.mask, b"\x01")


def _never(device: edu.Edu, port: Port) -> None:
    """What QEMU then does by itself is a device write that nobody decoded."""
    device.registers[edu.CMD] &= ~edu.RUN


_ACT = edu.Edu.act


@pytest.mark.parametrize("defect", [_shorter, _unmasked, _swapped, _stray, _never])
def test_a_wrong_model_is_found(
    build: Build, monkeypatch: pytest.MonkeyPatch, defect: Callable[[edu.Edu, Port], None]
) -> None:
    monkeypatch.setattr(edu.Edu, "act", defect)
    monkeypatch.setattr(settling, "PATIENCE_S", 0.3)  # enough for a timer that has fired
    found = run(build, program("parked"))
    assert found.kind is Kind.DIVERGENCE
    assert found.suspicion is not None and found.suspicion.what in ("ram", "reply", "access")


def _tell(process: QemuProcess, source: int, target: int, count: int, command: int) -> int:
    """Map the device, start a transfer; where its registers are."""
    qtest, base = process.qtest, 0xFEB00000
    for register, value in ((0x10, base), (0x04, 6)):
        qtest.outl(0xCF8, 0x80002000 | register)
        qtest.outl(0xCFC, value)
    told = ((0x80, source), (0x88, target), (0x90, count), (0x98, command))
    for register, value in told:
        qtest.writeq(base + register, value)
    return base


def _parked(build: Build) -> QemuProcess:
    return QemuProcess(QemuConfig(
        build=build, target="x86_64", machine="q35", args=("-device", "edu,addr=4"),
        mode=VmMode.PARKED))


def test_why_a_transfer_that_leaves_its_memory_is_not_started(build: Build) -> None:
    """7.2 ends, 10.0 copies what lies behind the array, 11.1 nothing."""
    with _parked(build) as process:
        base = _tell(process, 0x40000 + 0xFF8, 0x200000, 0x100, 3)
        try:
            for _ in range(1000):
                if not process.qtest.readl(base + 0x98) & 1:
                    break
                time.sleep(0.01)
        except (QtestDied, QtestHang):
            assert build.version_tuple < (10,)
            assert "out of bounds" in process.stderr_tail()
            return
        landed = process.qtest.readq(0x200008)
        if build.version_tuple >= edu.HARMLESS_SINCE:
            assert landed == 0
        else:  # what lies behind its array in QEMU's own memory is the mask
            assert landed == edu.MASK


def test_why_hpet_is_not_told_everything(newest_build: Build) -> None:
    """A period of 1 and a counter of 2^59: the main loop does not come back."""
    with _parked(newest_build) as process:
        qtest, hpet = process.qtest, 0xFED00000
        for register, value in ((0xF4, 0x0C000000), (0x100, 0x4C), (0x108, 1), (0x10, 1)):
            qtest.writel(hpet + register, value)
        qtest.timeout_s = 2.0
        with pytest.raises(QtestHang):
            for _ in range(100):
                qtest.readl(hpet + 0xF0)
                time.sleep(0.01)
        process.kill()
