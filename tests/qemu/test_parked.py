"""Parked mode on real QEMU: timers fire, CPUs sleep whatever a program does, nothing moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.errors import EnvironmentFailure
from qemuglue.qemu import images
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode
from qemuglue.qemu.parked import PARKED
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu

MACHINES = ("x86_64/q35", "x86_64/isapc", "i386/microvm", "aarch64/virt", "ppc/mac99")

#: Delivery modes of an interrupt message that x86 CPUs hear although interrupts are off: SMI,
#: NMI, INIT, start-up, and two that they do not.
MESSAGES = (0x0200, 0x0400, 0x0500, 0x0610, 0x0033, 0x0700)

#: Where the registers of ``edu`` are put, and where the clock of ``virt`` is.
EDU, PL031 = 0xFEB00000, 0x09010000

WAIT_S = 10.0


def config(build: Build, name: str, mode: VmMode, *args: str, ram: bool = False) -> QemuConfig:
    target, machine = name.split("/")
    return QemuConfig(
        build=build, target=target, machine=machine, args=args, mode=mode,
        ram="64M" if ram else None, ram_id="pc.ram" if ram else None)


def until(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("name", MACHINES)
def test_the_map_is_that_of_the_stopped_machine(build: Build, name: str) -> None:
    if name.split("/")[0] not in build.targets():
        pytest.skip(f"{build.name} has no {name.split('/')[0]}")
    maps = []
    for mode in VmMode:
        with QemuProcess(config(build, name, mode)) as process:
            maps.append(sorted(process.monitor.hmp("info mtree -D").splitlines()))
            status = process.monitor.execute("query-status")["status"]
            assert status == ("running" if mode is VmMode.PARKED else "prelaunch")
    assert maps[0] == maps[1]


@pytest.mark.parametrize("name", sorted(PARKED))
def test_what_is_known_to_park_does(newest_build: Build, name: str) -> None:
    target = name.split("/")[0]
    if target not in newest_build.targets():
        pytest.skip(f"{newest_build.name} has no {target}")
    made = scene(Settings(build=newest_build.name, machine=name, mode="parked"))
    with QemuProcess(made.config) as process:
        assert process.monitor.execute("query-status")["status"] == "running"


def test_an_embedded_powerpc_that_runs_on_is_refused(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted defect: code that does not put the CPU to sleep."""
    if "ppc" not in newest_build.targets():
        pytest.skip(f"{newest_build.name} has no ppc")
    machine, big, code = images._ELFS["elf-ppc"]
    awake = code.replace(bytes.fromhex("7c800124"), bytes.fromhex("60000000"))
    monkeypatch.setitem(images._ELFS, "elf-ppc", (machine, big, awake))
    with (
        pytest.raises(EnvironmentFailure, match="its CPU runs from the start"),
        QemuProcess(config(newest_build, "ppc/ppce500", VmMode.PARKED)),
    ):
        pass


def _messages(process: QemuProcess) -> bool:
    """Whether messages to every CPU left RAM and the transcript without a trace of one."""
    assert process.ram is not None
    before = bytes(process.ram.view)
    for message in MESSAGES:
        for address in (0xFEE00000, 0xFEEFF000):
            process.qtest.writel(address, message)
        time.sleep(0.02)
    return bytes(process.ram.view) == before and b" cpu 0 " not in process.transcript.tail()


def test_no_interrupt_wakes_a_pc(build: Build) -> None:
    with QemuProcess(config(build, "x86_64/q35", VmMode.PARKED, ram=True)) as process:
        assert _messages(process)
        assert "HLT=1" in process.monitor.hmp("info registers")
        process.monitor.execute("system_reset")
        assert until(lambda: "HLT=1" in process.monitor.hmp("info registers"))
        assert _messages(process)


def test_without_clgi_one_would(newest_build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted defect: firmware that only clears the interrupt flag."""
    whole = images.halt_x86
    monkeypatch.setattr(
        images, "halt_x86", lambda size: whole(size).replace(b"\x0f\x01\xdd", b"\x90" * 3))
    with QemuProcess(config(newest_build, "x86_64/q35", VmMode.PARKED, ram=True)) as process:
        assert not _messages(process)


def test_timers_fire_on_a_pc(build: Build) -> None:
    """The transfer of ``edu`` takes 100 ms of the virtual clock."""
    with_edu = config(build, "x86_64/q35", VmMode.PARKED, "-device", "edu,addr=4")
    with QemuProcess(with_edu) as process:
        qtest = process.qtest
        for register, value in ((0x10, EDU), (0x04, 6)):
            qtest.outl(0xCF8, 0x80002000 | register)
            qtest.outl(0xCFC, value)
        for register, value in ((0x80, 0x100000), (0x88, 0x40000), (0x90, 4), (0x98, 1)):
            qtest.writel(EDU + register, value)
        assert qtest.readl(EDU + 0x98) == 1
        assert until(lambda: not qtest.readl(EDU + 0x98) & 1)


def test_clocks_move_on_a_board(build: Build) -> None:
    if "aarch64" not in build.targets():
        pytest.skip(f"{build.name} has no aarch64")
    with QemuProcess(config(build, "aarch64/virt", VmMode.PARKED)) as process:
        first = process.qtest.readl(PL031)
        assert until(lambda: process.qtest.readl(PL031) != first)


def test_a_board_that_powers_its_cpus_on_is_refused(newest_build: Build) -> None:
    if "arm" not in newest_build.targets():
        pytest.skip(f"{newest_build.name} has no arm")
    with (
        pytest.raises(EnvironmentFailure, match="arm/raspi2b cannot be parked: its CPU runs"),
        QemuProcess(config(newest_build, "arm/raspi2b", VmMode.PARKED)),
    ):
        pass


def test_a_halt_loop_of_the_callers_own(newest_build: Build, tmp_path: Path) -> None:
    image = tmp_path / "loop.bin"
    image.write_bytes(images.halt_x86(64 << 10))
    own = config(newest_build, "x86_64/q35", VmMode.PARKED, "-bios", str(image))
    with QemuProcess(own) as process:
        assert process.command.count("-bios") == 1
