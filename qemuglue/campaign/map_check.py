"""The map of one machine as a plain command line gives it: one QEMU, two texts, one comparison.

Nothing is left out of the machine (no ``-nodefaults``), nothing is asked of its RAM, no trace is
written. With ``qom`` the object model is asked as well, a second source for every region; that
takes several times as long as the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qemuglue.campaign.check_result import MapResult, map_result
from qemuglue.errors import QemuHang
from qemuglue.mirror import Mirror
from qemuglue.qemu import ways
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, machine_name
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.quirks import prints_owners
from qemuglue.witness.account import Account
from qemuglue.witness.qom import check_qom


@dataclass(frozen=True, slots=True)
class MapCheck:
    """What came of it. ``config`` is what started, a generated image included; ``qom`` is None
    where it was not asked. A map that is not exact says so in ``result``."""

    config: QemuConfig
    mirror: Mirror
    result: MapResult
    qom: Account | None = None
    notes: tuple[str, ...] = ()


def check_map(
    build: Build, machine: str, *, args: Sequence[str] = (), qom: bool = False
) -> MapCheck:
    """Start ``TARGET/NAME`` with nothing but ``-display none -S`` and ``args``, mirror it and
    compare it with its own flat views. A machine that wants an image is given one.

    :raise UsageError: no machine could be called that.
    :raise BuildError: the build has no binary for the target.
    :raise LaunchError: it does not start; the reason is QEMU's.
    :raise QemuFailure: it starts and then fails, or its map is no map.
    """
    target, name = machine_name(machine)
    config = QemuConfig(
        build=build, target=target, machine=name, args=tuple(args), nodefaults=False,
        transcript=False,
    )

    def take(tried: QemuConfig) -> tuple[Mirror, Account | None]:
        with QemuProcess(tried) as process:
            mirror = Mirror.take(process.monitor.hmp)
            account = check_qom(process.monitor, mirror, build.version_tuple) if qom else None
            # It has nothing to save: SIGKILL takes a tenth of the time of `quit`.
            process.kill()
            return mirror, account

    notes: list[str] = []
    try:
        (mirror, account), started, way = ways.start(config, take)
    except QemuHang:
        if not prints_owners(config):
            raise
        # QEMU can be caught in the owners of its regions (qemu/quirks.py).
        config = replace(config, owners=False)
        (mirror, account), started, way = ways.start(config, take)
    if not prints_owners(started):
        notes.append("mirrored without the owners of regions: QEMU does not come to an end "
                     "when it prints them")
    return MapCheck(
        started, mirror, replace(map_result(mirror), started_with=way), account, tuple(notes)
    )
