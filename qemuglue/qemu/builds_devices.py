"""The devices a build can be given with ``-device``, as it lists them itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qemuglue.errors import plain
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_help import help_text

#: The list of a build with every module is 60 KB; no line of it is longer than 200.
MAX_HELP = 1 << 20
MAX_LINE = 1000

_LINE = re.compile(
    r'name "([A-Za-z0-9][\w.,+-]*)"(?:, bus ([\w./-]+))?(?:, alias "[^"]*")?(?:, desc "(.*)")?')


@dataclass(frozen=True, slots=True)
class Device:
    """One line of ``-device help``. ``bus`` is the sort of bus it plugs into, "" for none;
    ``sort`` the heading it stands under ("Network devices")."""

    name: str
    bus: str
    description: str
    sort: str


def device_list(build: Build, target: str) -> list[Device]:
    """The devices of ``target`` in QEMU's order.

    :raise BuildError: the build has no such target, or does not answer in time.
    """
    return parse_device_help(help_text(build, target, "-device"))


def parse_device_help(text: str) -> list[Device]:
    """Devices in the text of ``-device help``; lines that are none are passed over."""
    found: list[Device] = []
    sort = ""
    for line in text[:MAX_HELP].splitlines():
        if len(line) > MAX_LINE:
            continue
        match = _LINE.match(line)
        if match is not None:
            found.append(Device(match[1], match[2] or "", plain(match[3] or ""), sort))
        elif line.endswith(":") and '"' not in line:
            sort = plain(line[:-1].strip())
    return found
