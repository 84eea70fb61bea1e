"""hpet: what its timers must not be told while the clock moves.

Two of its bits make a program's outcome unforeseeable, or QEMU's end, once timers fire:

A *periodic* timer whose comparator is far behind the counter is moved on by its period until it
has caught up (``hpet_timer``), one step at a time. With a period of 1 and a counter of 2^59 that
takes centuries, and QEMU's main loop waits for it.

An interrupt *by message* (``HPET_TN_FSB_ENABLE``) is a write of four bytes to an address the
guest chooses, whenever the timer fires: RAM changes at any time from then on.

Writes that set one of these bits are not performed in parked mode. Everything else is.
Source: QEMU ``hw/timer/hpet.c``.
"""

from __future__ import annotations

from typing import Final

from qemuglue.memory.region import MemoryRegion
from qemuglue.witness.dma.device import DmaDevice, Place, Port, When

REGION: Final = "hpet"

#: The registers of the timers (``hpet_ram_write``): the first, the one behind the last, and how
#: far they are apart. Each begins with its configuration.
FIRST, STOP, APART = 0x100, 0x400, 0x20

#: Bits of the configuration, as (byte, mask): periodic, and messages.
BITS: Final = ((0, 0x08), (1, 0x40))


class HpetTimers:
    """The timers (``device.DmaDevice``) of a machine whose clock moves. They are kept from DMA."""

    name = "hpet"
    hears_reads = False

    def __init__(self) -> None:
        self.lost = ""

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """Nothing that is written starts anything."""

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """Nor does a read."""

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether ``data`` sets one of the two bits of a timer."""
        return self.floods(region, offset, data)

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """The same: such a write is not performed. A bit is set only by the byte that holds it,
        whatever the size of the pieces."""
        if region.name != REGION:
            return False
        return any(
            FIRST <= offset + at < STOP and any(
                (offset + at) % APART == place and byte & mask for place, mask in BITS)
            for at, byte in enumerate(data)
        )

    def swallows(self, region: MemoryRegion, offset: int, size: int, value: int) -> bool:
        return False

    def when(self) -> When:
        return When.NEVER

    def act(self, port: Port) -> None:
        raise AssertionError("it never acts")

    def reset(self) -> None:
        """There is nothing to forget."""


def make(place: Place) -> DmaDevice | None:
    """The timers at ``place``, if there are any and they can fire."""
    return HpetTimers() if place.parked and REGION in place.regions else None
