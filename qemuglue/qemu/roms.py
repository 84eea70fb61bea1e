"""What QEMU puts back into guest memory at every reset, from HMP ``info roms``.

Firmware, device trees and kernels are blobs that ``rom_reset`` copies to their addresses; those
in ROM are not copied again, those in RAM are.
"""

from __future__ import annotations

import re

_LINE = re.compile(r"addr=([0-9a-f]{1,16}) size=0x([0-9a-f]{1,16}) mem=ram\b")


def restored(text: str) -> list[tuple[int, int]]:
    """(address, bytes) of every blob in RAM that ``info roms`` lists. Lines that are none of its
    are skipped: a name may hold anything."""
    found = map(_LINE.match, text.splitlines())
    return [(int(line[1], 16), int(line[2], 16)) for line in found if line is not None]
