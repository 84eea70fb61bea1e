"""The machines a build offers and whether they start: as they are, or with a generated image."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qemuglue.errors import LaunchError, QemuFailure, plain
from qemuglue.qemu import ways
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_help import help_text
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess

#: A machine starts in 35 ms; the slowest seen (much RAM, loaded host) took two seconds.
START_TIMEOUT_S = 30

#: A list of machines is 20 KB; no line of it is longer than 150.
MAX_HELP = 1 << 20
MAX_LINE = 1000

_ASIDE = re.compile(r"(?<!\s)\s*\((?:alias of [^()]*|default|deprecated)\)")
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
    """What came of starting a machine: ``ok``, or QEMU's own ``reason``. ``started_with`` is
    the generated image it wanted ("a blank 16 KiB -bios"), "" for none."""

    ok: bool
    reason: str = ""
    started_with: str = ""


def machine_list(build: Build, target: str) -> list[Machine]:
    """The machines of ``target``, sorted by name, ``none`` included.

    :raise BuildError: the build has no such target, or does not answer in time.
    """
    found = parse_machine_help(target, help_text(build, target, "-machine"))
    return sorted(found, key=lambda m: m.name)


def parse_machine_help(target: str, text: str) -> list[Machine]:
    """Machines in the text of ``-machine help``; lines that are none are passed over, and so
    is what goes on for longer than any list of machines. Descriptions are ``plain``."""
    found: list[Machine] = []
    for line in text[:MAX_HELP].splitlines():
        if len(line) > MAX_LINE:
            continue
        match = re.match(r"^([a-zA-Z0-9][\w.+-]*)\s{1,}(\S.*)$", line)
        if not match or line.startswith("Supported machines"):
            continue
        words = plain(match[2].strip())
        alias = re.search(r"\(alias of ([^)\s]+)\)", words)
        found.append(Machine(
            target, match[1],
            _ASIDE.sub("", words).strip(),
            alias_of=alias[1] if alias else "",
            default="(default)" in words, deprecated="(deprecated)" in words))
    return found


def try_start(build: Build, target: str, name: str) -> Start:
    """Start a machine with nothing but ``-display none -S``, or with the generated image that
    it asks for, and end it. Call it from a thread that lives as long as the call.

    :raise BuildError: the build has no such target.
    """
    config = QemuConfig(
        build=build, target=target, machine=name, nodefaults=False, transcript=False
    )

    def attempt(tried: QemuConfig) -> None:
        with QemuProcess(tried, launch_timeout_s=START_TIMEOUT_S) as process:
            process.kill()

    try:
        return Start(True, started_with=ways.start(config, attempt)[2])
    except LaunchError as error:
        # QEMU's own words follow the program's.
        said = str(error)
        return Start(False, plain(said.partition(f"qemu-system-{target}: ")[2] or said))
    except QemuFailure as error:
        return Start(False, plain(str(error)))
