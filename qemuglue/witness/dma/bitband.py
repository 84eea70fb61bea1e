"""Devices that pass accesses on to other memory, and the bit-band of Arm's M profile.

A bit-band shows a megabyte of memory with a word for each of its bits: a read of one is a read of
the bytes that hold the bit, as wide as itself; a write changes the bit and writes them back.
Sources: ``bitband_read``, ``bitband_write`` in ``hw/arm/armv7m.c``, ``raven_io_read`` in
``hw/pci-host/raven.c``, ``rtc_read`` in ``hw/mips/jazz.c``.
"""

from __future__ import annotations

from qemuglue.memory.region import MemoryRegion
from qemuglue.witness.dma.device import DmaDevice, Place, Port, When

#: Where each bit of a megabyte of memory is a word of its own.
BITBAND = "bitband"

#: Regions whose accesses their device passes on to another address space, where they leave lines
#: of their own: bit-bands, and the PCI ports of the PReP boards (``raven_io_read``).
_FORWARDERS = frozenset({BITBAND, "pci-io-non-contiguous", "pci-io"})

#: The page of the Jazz boards (``rtc_read`` in ``hw/mips/jazz.c``) that passes accesses on to the
#: clock's own two registers, which have the same name.
_JAZZ_CLOCK = ("rtc", 0x1000)

#: The bit-band lies so far behind the memory it shows.
_AWAY = 0x0200_0000
#: It is so large: this many bytes times eight bits in words of four.
_MASK = 0x01FF_FFFF


def forwards(region: MemoryRegion) -> bool:
    """Whether the region's device passes accesses on, so that they leave lines of others: before
    its own line for a read, after it for a write."""
    return region.name in _FORWARDERS or (region.name, region.size) == _JAZZ_CLOCK


class BitBand:
    """One bit-band (``device.DmaDevice``)."""

    def __init__(self, base: int) -> None:
        self.name = BITBAND
        self.lost = ""
        #: Where the memory begins that it shows.
        self.base = base
        self._write: tuple[int, int, int] | None = None

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        self._write = offset, size, value

    def reading(self, region: MemoryRegion, offset: int, size: int, port: Port) -> int | None:
        """``bitband_read``; where the memory cannot be read QEMU answers 0."""
        at, position = self._place(offset, size)
        data = port.read(at, size)
        return 0 if data is None else data[position >> 3] >> (position & 7) & 1

    def _place(self, offset: int, size: int) -> tuple[int, int]:
        """Where the bytes are that hold the bit, and which of their bits it is."""
        return (self.base | (offset & _MASK) >> 5) & -size, offset >> 2 & (8 * size - 1)

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """A read changes nothing."""

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """All is done inside the write, and all of it is known."""
        return False

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        return False

    def when(self) -> When:
        return When.NEVER if self._write is None else When.NOW

    def act(self, port: Port) -> None:
        """``bitband_write``."""
        assert self._write is not None, "act is called when a write is due"
        (offset, size, value), self._write = self._write, None
        at, position = self._place(offset, size)
        data = port.read(at, size)
        if data is None:
            return
        changed = bytearray(data)
        bit = 1 << (position & 7)
        if value & 1:
            changed[position >> 3] |= bit
        else:
            changed[position >> 3] &= ~bit
        port.write(at, bytes(changed))

    def reset(self) -> None:
        """It has nothing to forget."""
        self._write = None


def make(place: Place) -> DmaDevice | None:
    """The maker."""
    region = place.regions.get(BITBAND)
    if region is None or len(place.regions) > 1:
        return None
    base = place.qom_get(place.owner, "base")
    return BitBand(base if isinstance(base, int) else region.absolute() - _AWAY)
