"""Processes as /proc shows them."""

from __future__ import annotations

import time
from pathlib import Path


def gone(pid: int, timeout_s: float = 10.0) -> bool:
    """Whether a process ends in time; one that its new parent has not reaped has ended."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
