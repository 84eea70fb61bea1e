"""What devices do with guest memory by themselves, decoded from what the program told them.

``device``   the contract between a decoded device and the lock step
``fw_cfg``   QEMU's firmware configuration, and devices that pass accesses on
"""

from __future__ import annotations

from qemuglue.witness.dma.fw_cfg import (
    BITBAND,
    KICK_REGIONS,
    LONGEST,
    FwCfgDma,
    Kick,
    bitband_ranges,
    floods,
    forwards,
    ranges,
)

__all__ = [
    "BITBAND",
    "KICK_REGIONS",
    "LONGEST",
    "FwCfgDma",
    "Kick",
    "bitband_ranges",
    "floods",
    "forwards",
    "ranges",
]
