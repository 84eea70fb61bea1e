"""The processes that a campaign's engines run in, each in a session of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import qemuglue
from qemuglue.qemu import libc


def start_engine(command: Sequence[str], log: Path, status_fd: int) -> subprocess.Popen[bytes]:
    """Start it; what it says is appended to ``log``, and ``status_fd`` stays open in it. It ends
    with the thread that calls this, however that ends.

    :raise OSError: it cannot be started, or the log cannot be written.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            pass_fds=[status_fd], env=_environment(), start_new_session=True,
            preexec_fn=partial(libc.die_with_parent, os.getpid()),
        )


def _environment() -> dict[str, str]:
    """Ours, and the package can be imported as it was here."""
    home = str(Path(qemuglue.__file__).resolve().parent.parent)
    path = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
