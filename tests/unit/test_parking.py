"""Parked mode: what it adds to the command line, its firmware, how it looks whether it holds."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from qemuglue.errors import EnvironmentFailure
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode
from qemuglue.qemu.images import bring, halt_x86
from qemuglue.qemu.parked import arguments, asleep, silent
from qemuglue.qemu.process import machine_arguments


def build(version: str, target: str) -> Build:
    return Build("fake", version, None, ((target, Path("/bin/true")),))


def config(target: str, machine: str, *args: str, version: str = "10.0.2") -> QemuConfig:
    return QemuConfig(build=build(version, target), target=target, machine=machine, args=args,
                      mode=VmMode.PARKED)


@pytest.mark.parametrize(("machine", "version", "image"), [
    ("q35", "7.2.22", "halt-x86-256K"), ("pc", "11.1.3", "halt-x86-256K"),
    ("isapc", "7.2.22", "halt-x86-128K"), ("microvm", "7.2.22", "halt-x86-64K"),
    ("microvm", "10.0.2", "halt-x86-128K"),
])
def test_a_pc_gets_firmware_of_the_size_of_its_own(
    machine: str, version: str, image: str
) -> None:
    words = arguments(config("i386", machine, version=version))
    assert words == ["-bios", f"qemuglue-image:{image}", "-global", "i386-cpu.svm=on"]
    with contextlib.ExitStack() as keep:
        _, [fd] = bring(words, keep)
        size = Path(f"/proc/self/fd/{fd}").stat().st_size
    assert size == int(image.split("-")[2][:-1]) << 10


def test_other_cpus_are_made_powered_off() -> None:
    words = machine_arguments(config("aarch64", "virt"))
    assert words[words.index("-global") + 1] == "cpu.start-powered-off=on"
    assert "-S" not in words


def test_firmware_of_the_callers_own_is_left_alone() -> None:
    assert arguments(config("x86_64", "q35", "-bios", "mine")) == []
    assert arguments(config("arm", "virt", "-kernel", "mine")) == []


def test_the_reset_vector_leads_to_the_loop() -> None:
    image = halt_x86(64 << 10)
    assert len(image) == 64 << 10 and image[-16] == 0xE9
    start = len(image) - 16 + 3 + int.from_bytes(image[-15:-13], "little", signed=True)
    code = image[start:]
    assert code[0] == 0xFA
    halt = code.index(0xF4)
    assert code[halt - 3 : halt] == b"\x0f\x01\xdd", "CLGI comes right before HLT"
    assert code[halt + 1] == 0xEB and code[halt + 2] == 0x100 - 3, "which is a loop of its own"


def _thread(proc: Path, thread: int, state: str) -> None:
    folder = proc / "7" / "task" / str(thread)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{thread} (CPU {thread}/T) R) {state} 1 2 3\n")


def test_threads_that_sleep_are_parked(tmp_path: Path) -> None:
    _thread(tmp_path, 1, "S")
    _thread(tmp_path, 2, "S")
    asleep("arm/virt", 7, (1, 2), proc=tmp_path)
    asleep("arm/virt", 7, (1, 9), proc=tmp_path)  # it has ended: others tell how


def test_a_thread_that_runs_is_not(tmp_path: Path) -> None:
    _thread(tmp_path, 1, "S")
    _thread(tmp_path, 2, "R")
    times = iter(range(100))
    with pytest.raises(EnvironmentFailure, match="arm/raspi2b cannot be parked: its CPU runs"):
        asleep("arm/raspi2b", 7, (1, 2), proc=tmp_path, clock=lambda: float(next(times)))


def test_a_cpu_that_has_run_is_told() -> None:
    quiet = b"memory_region_ops_write cpu -1 mr 0x5 addr 0x1 value 0x2 size 4 name 'x cpu 0'\n"
    silent("x86_64/q35", quiet)
    loud = quiet + b"memory_region_ops_read cpu 0 mr 0x5 addr 0x1 value 0x2 size 4 name 'y'\n"
    with pytest.raises(EnvironmentFailure, match="ran firmware"):
        silent("x86_64/q35", loud)
