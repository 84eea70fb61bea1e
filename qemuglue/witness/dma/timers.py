"""What the timers of a PC must not be told while its clock moves.

Once timers fire, a few values make a program's outcome unforeseeable, or QEMU's end:

``hpet``  A *periodic* timer whose comparator is far behind the counter is moved on by its period
          until it has caught up (``hpet_timer``), one step at a time. With a period of 1 and a
          counter of 2^59 that takes centuries, and QEMU's main loop waits for it.
          An interrupt *by message* (``HPET_TN_FSB_ENABLE``) is a write of four bytes to an
          address the guest chooses, whenever the timer fires: RAM changes at any time.
``pit``   A short count of the first channel fires up to a million times a second (``i8254.c``
          knows no least period). Each one interrupts: QEMU does little else, and on a busy host
          takes seconds for an answer.

Writes that set such a value are not performed in parked mode. Everything else is.
Sources: QEMU ``hw/timer/hpet.c``, ``hw/timer/i8254.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from qemuglue.memory.region import MemoryRegion
from qemuglue.witness.dma.device import DmaDevice, Place, Silent

#: The registers of hpet's timers (``hpet_ram_write``): the first, the one behind the last, and
#: how far they are apart. Each begins with its configuration.
HPET_FIRST, HPET_STOP, HPET_APART = 0x100, 0x400, 0x20

#: Bits of the configuration by byte: periodic, and messages.
HPET_BITS: Final = {0: 0x08, 1: 0x40}

#: The least count of the first channel, at 1.19 MHz: 9,300 interrupts a second. A byte of a count
#: may be its lower half, its upper one or all of it, so none may be smaller, but for 0: where
#: both are, that is 65,536, and a lower half of 0 makes what the upper one says.
PIT_LEAST: Final = 0x80


def _hpet(offset: int, byte: int) -> bool:
    if not HPET_FIRST <= offset < HPET_STOP:
        return False
    return bool(byte & HPET_BITS.get(offset % HPET_APART, 0))


def _pit(offset: int, byte: int) -> bool:
    return offset == 0 and 0 < byte < PIT_LEAST


#: Region to whether writing a byte at an offset is left out. What a byte sets does not depend on
#: the size of the access that it is a part of.
LEFT_OUT: Final[dict[str, Callable[[int, int], bool]]] = {"hpet": _hpet, "pit": _pit}


class Timers(Silent):
    """The timers of one device (``device.DmaDevice``). They are kept from DMA."""


    def __init__(self, name: str) -> None:
        self.name = name
        self.lost = ""

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """Nothing that is written starts anything."""

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether ``data`` sets what must not be set."""
        return self.floods(region, offset, data)

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """The same: such a write is not performed."""
        left_out = LEFT_OUT.get(region.name)
        if left_out is None:
            return False
        return any(left_out(offset + at, byte) for at, byte in enumerate(data))

    def reset(self) -> None:
        """There is nothing to forget."""


def make(place: Place) -> DmaDevice | None:
    """The timers at ``place``, if there are any and they can fire."""
    found = LEFT_OUT.keys() & place.regions.keys()
    return Timers(min(found)) if place.parked and found else None
