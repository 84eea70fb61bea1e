"""Getting a machine back into its first state: three ways, none of which is trusted.

==============  ==========================================================================
``fresh``       another process
``snapshot``    ``savevm`` once, ``loadvm`` before each program; devices that save nothing
                keep what they have, boards may not be able to save at all
``reset``       ``system_reset``; RAM stays, and so does what a device's reset forgets
==============  ==========================================================================

Which of them is clean on a machine is measured (``clean.py``), never assumed. A set-up (PCI
devices mapped) is part of the first state.
"""

from __future__ import annotations

import contextlib
import enum
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from qemuglue.errors import EnvironmentFailure, QemuHang
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.monitor import Monitor
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.face import encode_all
from qemuglue.witness.session import Step

#: The snapshot's name, and that of the disk it is kept on: no device has it.
TAG: Final = "qemuglue-clean"
_FILE, _DISK = "qemuglue-clean-file", "qemuglue-clean-disk"

#: Size of the disk as its guest would see it; a snapshot lies behind that and may be larger.
_DISK_SIZE = 1 << 20

#: Making an image of 200 KiB takes milliseconds.
JOB_TIMEOUT_S: Final = 20.0

#: Saving and loading write and read RAM that is not zero.
SNAPSHOT_TIMEOUT_S: Final = 60.0

#: A reset is carried out by the main loop.
RESET_TIMEOUT_S: Final = 10.0


class Method(enum.Enum):
    """How the first state is brought back; the values are the words of the command line."""

    FRESH = "fresh"
    SNAPSHOT = "snapshot"
    RESET = "reset"


class Stand:
    """Holds one machine and gives it in its first state, again and again.

    A context manager. ``setup`` are the operations, already resolved, that belong to the first
    state. ``fresh`` counts processes, ``restored`` the times one was used again.
    """

    def __init__(self, config: QemuConfig, setup: Sequence[Step], method: Method) -> None:
        self.config = config
        self.method = method
        self.fresh = self.restored = 0
        self._setup = b"".join(encode_all(setup))
        self._setup_count = len(setup)
        self._process: QemuProcess | None = None
        self._keep = contextlib.ExitStack()

    def __enter__(self) -> Stand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.drop()

    def drop(self) -> None:
        """End the process: what it was used for is not to be undone (it died, say)."""
        if self._process is not None:
            self._process.close(soft=False)
            self._process = None
        self._keep.close()

    def current(self) -> QemuProcess:
        """The process as it stands."""
        assert self._process is not None, "there is one after clean()"
        return self._process

    def clean(self) -> QemuProcess:
        """The machine in its first state, its transcript and events read away.

        :raise EnvironmentFailure: this machine cannot be saved or loaded; says QEMU's reason.
        :raise QemuFailure: QEMU fails on the way.
        """
        process = self._process
        if process is None or self.method is Method.FRESH:
            self.drop()
            process = self._process = QemuProcess(self.config).launch()
            self.fresh += 1
            self._set_up(process)
            if self.method is Method.SNAPSHOT:
                folder = self._keep.enter_context(
                    tempfile.TemporaryDirectory(prefix="qemuglue-"))
                _add_disk(process.monitor, Path(folder) / "clean.qcow2")
                _snapshot(process.monitor, "savevm")
        else:
            self.restored += 1
            if self.method is Method.SNAPSHOT:
                _snapshot(process.monitor, "loadvm")
            else:
                _reset(process)
                self._set_up(process)
        process.monitor.round_trip()
        process.monitor.events()
        process.transcript.read_new()
        return process

    def _set_up(self, process: QemuProcess) -> None:
        if self._setup_count:
            process.channel.exchange(self._setup, self._setup_count)
        process.channel.exchange(b"endianness\n", 1)


def _snapshot(monitor: Monitor, command: str) -> None:
    said = monitor.hmp(f"{command} {TAG}", timeout_s=SNAPSHOT_TIMEOUT_S).strip()
    if said:
        reason = said.removeprefix("Error: ").splitlines()[0]
        raise EnvironmentFailure(f"QEMU refuses {command}: {reason}")


def _reset(process: QemuProcess) -> None:
    process.monitor.execute("system_reset")
    deadline = time.monotonic() + RESET_TIMEOUT_S
    while True:
        process.channel.exchange(b"endianness\n", 1)
        if any(event.name == "RESET" for event in process.monitor.events()):
            return
        if time.monotonic() > deadline:
            raise QemuHang(channel="QMP", timeout_s=RESET_TIMEOUT_S)
        time.sleep(0.0005)


def _add_disk(monitor: Monitor, path: Path) -> None:
    """A disk that no device has: only QEMU's snapshots use it. ``qemu-img`` is not needed."""
    path.touch()
    file = {"driver": "file", "filename": str(path), "node-name": _FILE}
    monitor.execute("blockdev-add", file)
    options: Mapping[str, object] = {"driver": "qcow2", "file": _FILE, "size": _DISK_SIZE}
    monitor.execute("blockdev-create", {"job-id": TAG, "options": options})
    deadline = time.monotonic() + JOB_TIMEOUT_S
    while True:
        job = next(each for each in monitor.execute("query-jobs") if each["id"] == TAG)
        if job["status"] == "concluded":
            break
        if time.monotonic() > deadline:
            raise QemuHang(channel="QMP", timeout_s=JOB_TIMEOUT_S)
        time.sleep(0.001)
    monitor.execute("job-dismiss", {"id": TAG})
    if job.get("error"):
        raise EnvironmentFailure(f"QEMU cannot make a disk for snapshots: {job['error']}")
    monitor.execute(
        "blockdev-add", {"driver": "qcow2", "file": _FILE, "node-name": _DISK})
