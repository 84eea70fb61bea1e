"""Every error qemuglue raises on purpose, under one root.

::

    QemuglueError
    ├── UsageError            the caller's input is wrong: a command line, a name, a file
    │   ├── ProgramError      a program text or program bytes cannot be read (line, text)
    │   ├── FindingError      a finding folder is incomplete or unreadable (path)
    │   └── ModelError        the memory model is asked for something it does not allow
    ├── EnvironmentFailure    this host lacks something: a build, a tool, a permission
    │   ├── BuildError        no such build, or its install failed
    │   └── LaunchError       QEMU refused to start (command, exit_code, stderr)
    └── QemuFailure           QEMU was running and something went wrong; often a finding
        ├── QemuDied          it ended on its own (exit_code, signal, stderr)
        ├── QemuHang          it did not answer in time (channel, timeout_s)
        ├── ProtocolError     it answered what its protocol does not allow (channel, text)
        └── ResourceError     it flooded a limit (what, limit)

The command line turns the first two families into one sentence and exit code 2.
The third is caught by the campaign, which records a finding and starts a fresh QEMU.
Inside the comparison (the witness room) outcomes are values, not exceptions.
"""

from __future__ import annotations

import re
import signal as _signal
from collections.abc import Sequence

#: A sentence about an answer is not longer; the answer itself is in ``text``.
MAX_MESSAGE = 800


def plain(text: str) -> str:
    """``text`` with nothing in it that a terminal would obey: what is not printable, newlines
    and tabs apart, as ``\\xNN``. QEMU's words end up in messages, and QEMU is not trusted."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


class QemuglueError(Exception):
    """Root of the tree; never raised itself. Its message is ``plain``."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(plain(arg) if isinstance(arg, str) else arg for arg in args))


class UsageError(QemuglueError):
    """The caller's input is wrong; the message says what and what to do instead."""


class ProgramError(UsageError):
    """A program cannot be read. ``line`` counts from 1; 0 means the whole file."""

    def __init__(self, message: str, *, line: int = 0, text: str = "") -> None:
        self.line = line
        self.text = text
        super().__init__(f"line {line}: {message}" if line else message)


class FindingError(UsageError):
    """A finding folder is incomplete or unreadable."""

    def __init__(self, message: str, *, path: str) -> None:
        self.path = path
        super().__init__(f"{path}: {message}")


class ModelError(UsageError):
    """The model is asked for something QEMU's memory API does not allow."""


class EnvironmentFailure(QemuglueError):
    """This host lacks something; the message says what and how to get it."""


class BuildError(EnvironmentFailure):
    """A QEMU build is not there, or bringing it failed."""


class LaunchError(EnvironmentFailure):
    """QEMU refused to start. ``stderr`` is its own message, whole."""

    def __init__(
        self, message: str, *, command: Sequence[str] = (), exit_code: int | None = None,
        stderr: str = "",
    ) -> None:
        self.command = tuple(command)
        self.exit_code = exit_code
        self.stderr = stderr
        super().__init__(message + _next_step(stderr))


#: What QEMU says of a command line that a person can mend, and how.
_NEXT_STEPS = (
    (re.compile(r"drive property not set|\.drive' can't find value '([^']*)'"),
     "give it a disk: drive={0} in --device, and --qemu-args='-blockdev "
     "null-co,node-name={0},size=1048576,read-zeroes=on'"),
    (re.compile(r"MSI is not supported by interrupt controller"),
     "this machine has no MSI, which the device needs: another machine, or without the device"),
)


def _next_step(said: str) -> str:
    """What to do about it, where that is known: the end of a sentence."""
    for pattern, step in _NEXT_STEPS:
        found = pattern.search(said)
        if found is not None:
            names = found.groups(default="disk")
            return "; " + step.format(*map(plain, names))
    return ""


class QemuFailure(QemuglueError):
    """QEMU was running and then something went wrong."""


class QemuDied(QemuFailure):
    """QEMU ended on its own. Exactly one of ``exit_code`` and ``signal`` is set."""

    def __init__(
        self, *, exit_code: int | None = None, signal: int | None = None, stderr: str = "",
    ) -> None:
        self.exit_code = exit_code
        self.signal = signal
        self.stderr = stderr
        if signal is not None:
            try:
                how = f"was ended by {_signal.Signals(signal).name}"
            except ValueError:
                how = f"was ended by signal {signal}"
        else:
            how = f"exited with code {exit_code}"
        super().__init__(f"QEMU {how}")


class QemuHang(QemuFailure):
    """QEMU did not answer on ``channel`` within ``timeout_s`` seconds."""

    def __init__(self, *, channel: str, timeout_s: float) -> None:
        self.channel = channel
        self.timeout_s = timeout_s
        super().__init__(f"QEMU did not answer on {channel} within {timeout_s:g} s")


class ProtocolError(QemuFailure):
    """QEMU answered what the protocol of ``channel`` does not allow."""

    def __init__(self, message: str, *, channel: str, text: str = "") -> None:
        self.channel = channel
        self.text = text
        # One sentence, whatever QEMU's words in it are.
        super().__init__(" ".join(f"{channel}: {message[:MAX_MESSAGE]}".split()))


class ResourceError(QemuFailure):
    """QEMU (or what it writes) grew over a limit."""

    def __init__(self, *, what: str, limit: int, unit: str = "bytes") -> None:
        self.what = what
        self.limit = limit
        super().__init__(f"{what} grew over its limit of {limit} {unit}")
