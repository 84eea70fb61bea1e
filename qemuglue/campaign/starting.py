"""Starting a machine with RAM that is shared and small, as far as the machine lets us.

Some boards refuse every size but their own, some take no memory backend, some want an image to
start at all (``qemu/ways.py``). What starts is found out by starting it; QEMU's messages only
say which image it asks for.
"""

from __future__ import annotations

from dataclasses import replace

from qemuglue.errors import LaunchError
from qemuglue.memory.region import RegionKind
from qemuglue.mirror import Mirror
from qemuglue.qemu import ways
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess

#: A main memory beyond this is not shared: its model would be as large.
MAX_SHARED = 4 << 30


def start_machine(config: QemuConfig) -> tuple[QemuConfig, Mirror]:
    """The configuration that starts, and the mirror of that machine as it was switched on.

    Tried in turn: ``config`` itself; the machine's own RAM size, shared; its own size as it is;
    that with the image QEMU asks for. One process is started and ended for each.

    :raise LaunchError: not even the last starts; the reason is QEMU's.
    :raise QemuFailure: it starts and then fails, or its map is no map.
    """
    if config.ram is not None:
        try:
            return config, _mirror(config)
        except LaunchError:
            pass
    mirror, plain, way = ways.start(replace(config, ram=None, ram_id=None), _mirror)
    if way and config.ram is not None:
        # The image was all that was missing.
        wanted = replace(config, args=plain.args)
        try:
            return wanted, _mirror(wanted)
        except LaunchError:
            pass
    size = _main_memory(mirror, config.ram_id)
    if not 0 < size <= MAX_SHARED:
        return plain, mirror
    shared = replace(config, ram=f"{size}B", args=plain.args)
    try:
        return shared, _mirror(shared)
    except LaunchError:
        return plain, mirror


def _mirror(config: QemuConfig) -> Mirror:
    with QemuProcess(replace(config, transcript=False)) as process:
        mirror = Mirror.take(process.monitor.hmp)
        process.kill()
        return mirror


def _main_memory(mirror: Mirror, ram_id: str | None) -> int:
    """Size of the region that QEMU named after the machine's main memory; 0: there is none."""
    return next(
        (region.size for region in mirror.regions
         if region.name == ram_id and region.kind is RegionKind.RAM), 0,
    )
