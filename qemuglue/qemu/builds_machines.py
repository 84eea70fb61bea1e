"""The machines a build offers and whether they start with nothing but a command line."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from qemuglue.errors import BuildError
from qemuglue.qemu.builds import Build

#: ``-machine help`` answers in 30 ms.
HELP_TIMEOUT_S = 60

#: A machine starts in 35 ms; the slowest seen (much RAM, loaded host) took two seconds.
START_TIMEOUT_S = 30

_VERSIONED = re.compile(r"-\d+\.\d+(\.\d+)?(-|$)")


@dataclass(frozen=True, slots=True)
class Machine:
    """One line of ``-machine help``. ``alias_of`` is "" for a name of its own."""

    target: str
    name: str
    description: str
    alias_of: str = ""
    default: bool = False
    deprecated: bool = False

    @property
    def full_name(self) -> str:
        """``TARGET/NAME``."""
        return f"{self.target}/{self.name}"

    @property
    def versioned(self) -> bool:
        """Whether the name pins the machine of one QEMU version (``pc-q35-9.1``)."""
        return bool(_VERSIONED.search(self.name))


@dataclass(frozen=True, slots=True)
class Start:
    """What came of starting a machine: ``ok``, or QEMU's own ``reason``."""

    ok: bool
    reason: str = ""


def machine_list(build: Build, target: str) -> list[Machine]:
    """The machines of ``target``, sorted by name, ``none`` included.

    :raise BuildError: the build has no such target, or does not answer in time.
    """
    try:
        done = subprocess.run(
            [*build.command(target), "-machine", "help"], capture_output=True, text=True,
            errors="replace", env=build.environment(), stdin=subprocess.DEVNULL,
            timeout=HELP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{build.name}: qemu-system-{target} -machine help did not answer "
                         f"within {HELP_TIMEOUT_S} s") from None
    except OSError as error:
        raise BuildError(f"{build.name}: qemu-system-{target} cannot be started: "
                         f"{error.strerror}") from None
    return sorted(parse_machine_help(target, done.stdout), key=lambda m: m.name)


def parse_machine_help(target: str, text: str) -> list[Machine]:
    """Machines in the text of ``-machine help``; lines that are none are passed over."""
    found: list[Machine] = []
    for line in text.splitlines():
        match = re.match(r"^([a-zA-Z0-9][\w.+-]*)\s{1,}(\S.*)$", line)
        if not match or line.startswith("Supported machines"):
            continue
        words = match[2].strip()
        alias = re.search(r"\(alias of ([^)\s]+)\)", words)
        found.append(Machine(
            target, match[1],
            re.sub(r"\s*\((alias of [^)]*|default|deprecated)\)", "", words).strip(),
            alias_of=alias[1] if alias else "",
            default="(default)" in words, deprecated="(deprecated)" in words))
    return found


def try_start(build: Build, target: str, name: str) -> Start:
    """Start a machine with ``-display none -S`` and ask it to quit.

    :raise BuildError: the build has no such target.
    """
    command = [*build.command(target), "-machine", name, "-display", "none", "-S",
               "-qmp", "stdio"]
    asked = '{"execute":"qmp_capabilities"}\n{"execute":"quit"}\n'
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True,
                              errors="replace", env=build.environment(), timeout=START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Start(False, f"did not answer within {START_TIMEOUT_S} s")
    except OSError as error:
        return Start(False, error.strerror or str(error))
    if done.returncode == 0:
        return Start(True)
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return Start(False, said[-1] if said else f"exited with {done.returncode}")
