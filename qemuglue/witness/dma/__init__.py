"""What devices do with guest memory by themselves, decoded from what the program told them.

``device``     the contract between a decoded device and the lock step
``makers``     all decoded devices
``following``  those of one running QEMU: found, told, let act
``port``       how they reach guest memory
``quiet``      devices known to do nothing of the kind
``fw_cfg``     QEMU's firmware configuration; ``items`` is what it holds
``bitband``    devices that pass accesses on
"""

from __future__ import annotations

from qemuglue.witness.dma.bitband import BITBAND, forwards
from qemuglue.witness.dma.following import BUS_MASTER, Act, Follower, Following, owner_of
from qemuglue.witness.dma.fw_cfg import KICK_REGIONS, LONGEST
from qemuglue.witness.dma.makers import MAKERS
from qemuglue.witness.dma.port import Unknown
from qemuglue.witness.dma.quiet import QUIET

__all__ = [
    "BITBAND",
    "BUS_MASTER",
    "KICK_REGIONS",
    "LONGEST",
    "MAKERS",
    "QUIET",
    "Act",
    "Follower",
    "Following",
    "Unknown",
    "forwards",
    "owner_of",
]
