"""Parked mode: the virtual clock runs, the guest's CPUs do not.

With ``-S`` the virtual clock stands still, so what a device does by a timer never happens.
Parked, the machine runs and its CPUs are asleep for good: they make no access, write no RAM,
and nothing that a program can do to a device wakes them.

Most CPUs are simply made powered off (``start-powered-off`` of QEMU's ``TYPE_CPU``, which
``cpu_common_reset`` makes ``halted``), and no code is needed. Boards that power their CPUs on
by themselves cannot be parked. An x86 PC always does (``x86_cpu_reset``), so it gets a firmware
image, ``halt-x86-SIZE``: it switches off *every* interrupt, NMI and SMI included, by CLGI of
AMD's SVM, and halts. Without that an MSI of delivery mode SMI, which is one write of four bytes,
makes the CPU save its state into RAM and run what it finds. Only INIT is left, which starts the
image anew. The image has the size of the firmware it replaces, so the memory map is the same in
both modes.

Boards of Freescale's PowerPC (``ppce500_cpu_reset``) get an ELF file in place of their firmware,
``elf-ppc``, whose few instructions put the CPU into its wait state with external interrupts off.

Whether the CPUs really sleep is asked of the kernel after every start (:func:`verify`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from qemuglue.errors import EnvironmentFailure
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.images import PREFIX
from qemuglue.qemu.monitor import Monitor
from qemuglue.qemu.transcript import Transcript

#: Targets whose CPU starts whatever it is told, and whose boards take firmware for a PC.
X86: Final = ("x86_64", "i386")

#: Boards whose CPU starts whatever it is told, and runs an ELF file in place of firmware.
E500: Final = ("ppce500", "mpc8544ds")

#: Machines of which it is known that they can be parked, on three builds; many others can.
PARKED: Final = frozenset((
    *(f"{target}/{name}" for target in X86 for name in ("q35", "pc", "isapc", "microvm")),
    "aarch64/virt", "arm/virt", "loongarch64/virt", "m68k/virt", "mips/malta", "or1k/virt",
    "ppc/40p", "ppc/g3beige", "ppc/mac99", "ppc/ppce500", "ppc64/mac99", "ppc64/ppce500",
    "riscv64/virt", "sparc64/sun4u",
))

#: How long the CPUs may take to fall asleep: milliseconds, for three instructions of firmware.
SLEEP_TIMEOUT_S: Final = 2.0

#: So many looks, one after the other, must find every CPU asleep.
LOOKS: Final = 3

_PAUSE_S = 0.0005

#: microvm's firmware grew from 64 to 128 KiB.
_MICROVM_128K = (8, 0)

#: What a caller supplies who brings a halt loop of his own.
_FIRMWARE = frozenset({"-bios", "--bios", "-kernel", "--kernel"})

#: A line of the transcript of what a vCPU did (the main loop and its timers are ``cpu -1``).
_BY_A_CPU = re.compile(rb"^\w*memory_region_\w+ cpu \d", re.MULTILINE)


def arguments(config: QemuConfig) -> list[str]:
    """The words that park the machine; none where ``config.args`` bring firmware of their own,
    which is then the caller's halt loop."""
    if _FIRMWARE.intersection(config.args):
        return []
    if config.machine in E500:
        return ["-bios", f"{PREFIX}elf-ppc"]
    if config.target not in X86:
        return ["-global", "cpu.start-powered-off=on"]
    size = "256K"
    if config.machine == "isapc":
        size = "128K"
    elif config.machine == "microvm":
        size = "128K" if config.build.version_tuple >= _MICROVM_128K else "64K"
    return ["-bios", f"{PREFIX}halt-x86-{size}", "-global", f"{config.target}-cpu.svm=on"]


def verify(name: str, pid: int, monitor: Monitor, transcript: Transcript) -> None:
    """Return once the CPUs of a started QEMU sleep.

    :raise EnvironmentFailure: they run all the time, or made accesses before they slept.
    """
    cpus = monitor.execute("query-cpus-fast")
    asleep(name, pid, {int(each["thread-id"]) for each in cpus})
    silent(name, transcript.tail())


def asleep(
    name: str, pid: int, threads: Iterable[int], *,
    clock: Callable[[], float] = time.monotonic, proc: Path = Path("/proc"),
) -> None:
    """Return once the vCPU ``threads`` of process ``pid`` sleep.

    A thread that only waits for a busy host is runnable, so the host's load makes no difference.

    :raise EnvironmentFailure: one runs all the time, so ``name`` (``TARGET/NAME``) is not parked.
    """
    deadline = clock() + SLEEP_TIMEOUT_S
    files = [proc / str(pid) / "task" / str(thread) / "stat" for thread in threads]
    looks = 0
    while looks < LOOKS:
        try:
            asleep = all(_state(file) == b"S" for file in files)
        except OSError:  # QEMU has ended; whoever talks to it next finds out how
            return
        looks = looks + 1 if asleep else 0
        if clock() > deadline:
            raise EnvironmentFailure(
                f"{name} cannot be parked: its CPU runs from the start, whatever QEMU is told; "
                "use mode stopped"
            )
        time.sleep(_PAUSE_S)


def silent(name: str, transcript: bytes) -> None:
    """A sleeping CPU may have run before: its accesses of devices name it (``cpu 0``).

    :raise EnvironmentFailure: one did.
    """
    if _BY_A_CPU.search(transcript):
        raise EnvironmentFailure(
            f"{name} cannot be parked: its CPU ran firmware before it slept; use mode stopped"
        )


def _state(stat: Path) -> bytes:
    """The letter behind the thread's name, which may hold any byte."""
    with stat.open("rb") as file:
        text = os.read(file.fileno(), 4096)
    return text[text.rindex(b")") + 2 :][:1]
