"""What ``check --all --ops 0`` costs beside launching the same QEMUs and reading the two texts.

In one run and in turns, so that the ratio holds while absolute times drift with the host:

- *launch and read*: each machine is started as ``check`` starts it (those that want an image
  twice, as there), ``info mtree`` is read as a tree and as flat views, and QEMU is ended; in the
  same number of worker processes, by the same QemuProcess;
- *check*: the command itself as a process of its own, its own start, the list of machines, the
  mirroring, the comparison and the report included.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from qemuglue.campaign.schedule import Memory, run_jobs
from qemuglue.errors import EnvironmentFailure, LaunchError, QemuFailure
from qemuglue.qemu import libc, ways
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, machine_name
from qemuglue.qemu.mtree import FLAT_COMMAND, TREE_COMMAND
from qemuglue.qemu.process import QemuProcess

#: One machine, launched and read, hang included.
READ_TIMEOUT_S = 600.0

#: The whole command: an hour for what takes half a minute.
COMMAND_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of a clock, and the most memory in bytes of the harness and its workers."""

    read_s: float
    check_s: float
    memory: int
    qemus: int


@dataclass(frozen=True, slots=True)
class Cost:
    """``machines`` were launched, ``started`` of them gave both texts and ``exact`` is what the
    check said of its machines: all views exact."""

    build: str
    version: str
    machines: int
    started: int
    exact: int
    workers: int
    rounds: tuple[Round, ...]

    @property
    def ratio(self) -> float:
        """Check over launch and read: the median of the rounds' own ratios."""
        return median(each.check_s / each.read_s for each in self.rounds)

    @property
    def memory(self) -> int:
        """Bytes, at the worst."""
        return max(each.memory for each in self.rounds)


def measure(
    build: Build, machines: Sequence[str], check: Sequence[str], *, workers: int, rounds: int,
    on_round: Callable[[Round], None] = lambda each: None,
) -> Cost:
    """Measure ``rounds`` times. ``check`` are the words of a command line behind ``qemuglue``
    that checks just these machines with ``--json``.

    :raise EnvironmentFailure: the command fails, or checks other machines than were launched.
    """
    made: list[Round] = []
    started = exact = 0
    for _ in range(rounds):
        memory = Memory()
        start = time.monotonic()
        started = 0
        with contextlib.closing(run_jobs(
            machines, partial(launch_and_read, build), workers=workers,
            timeout_s=READ_TIMEOUT_S, memory=memory,
        )) as ended:
            for done in ended:
                started += bool(done.result)
        middle = time.monotonic()
        found = _check(check)
        end = time.monotonic()
        names = {each["machine"] for each in found["results"]}
        if names != set(machines):
            raise EnvironmentFailure(
                f"the check was of {len(names)} machines, launched were {len(machines)}")
        exact = sum(each["views"]["exact"] == each["views"]["total"] > 0
                    for each in found["results"])
        peak = found["summary"]["peak_memory"]
        made.append(Round(middle - start, end - middle, peak["harness"], peak["qemus"]))
        on_round(made[-1])
    return Cost(build.name, build.version, len(machines), started, exact, workers, tuple(made))


def launch_and_read(build: Build, machine: str) -> bool:
    """Start a machine as a check does, read both texts, end it. False: it did not start."""
    target, name = machine_name(machine)
    config = QemuConfig(build=build, target=target, machine=name, nodefaults=False,
                        transcript=False)

    def read(tried: QemuConfig) -> int:
        with QemuProcess(tried) as process:
            size = sum(len(process.monitor.hmp(text)) for text in (TREE_COMMAND, FLAT_COMMAND))
            process.kill()
            return size

    try:
        return ways.start(config, read)[0] > 0
    except (LaunchError, QemuFailure):
        return False


def _check(words: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "qemuglue.cli.main", *words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=COMMAND_TIMEOUT_S, preexec_fn=partial(libc.die_with_parent, os.getpid()),
    )
    if done.returncode not in (0, 1):
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise EnvironmentFailure(f"qemuglue {' '.join(words)}: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
