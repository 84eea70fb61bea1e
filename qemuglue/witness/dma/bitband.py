"""Devices that pass accesses on to other memory, and the bit-band of Arm's M profile.

Sources: ``bitband_write`` in ``hw/arm/armv7m.c``, ``raven_io_read`` in ``hw/pci-host/raven.c``,
``rtc_read`` in ``hw/mips/jazz.c``.
"""

from __future__ import annotations

from collections.abc import Iterator

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MASK64, MemoryRegion

#: Where each bit of a megabyte of memory is a word of its own.
BITBAND = "bitband"

#: Regions whose accesses their device passes on to another address space, where they leave lines
#: of their own: bit-bands, the PCI ports of the PReP boards (``raven_io_read``), and the window of
#: POWER9 onto its LPC bus (``pnv_lpc_mmio_read``).
_FORWARDERS = frozenset({BITBAND, "pci-io-non-contiguous", "pci-io", "lpcm"})

#: The page of the Jazz boards (``rtc_read`` in ``hw/mips/jazz.c``) that passes accesses on to the
#: clock's own two registers, which have the same name.
_JAZZ_CLOCK = ("rtc", 0x1000)

#: The bit-band lies so far behind the memory it shows.
_BITBAND_AWAY = 0x0200_0000


def forwards(region: MemoryRegion) -> bool:
    """Whether the region's device passes accesses on, so that they leave lines of others: before
    its own line for a read, after it for a write."""
    return region.name in _FORWARDERS or (region.name, region.size) == _JAZZ_CLOCK


def bitband_ranges(
    written: list[tuple[MemoryRegion, int, int]], memory: AddressSpace
) -> Iterator[tuple[MemoryRegion, int, int]]:
    """(region, offset, size) of RAM that writes of (bit-band, offset, size) changed: the bytes
    that hold the bit, read and written back as wide as the access was."""
    for region, offset, size in written:
        base = region.absolute() - _BITBAND_AWAY
        yield from ram_ranges(memory, base + (offset >> 5) & -size & MASK64, size)


def ram_ranges(
    memory: AddressSpace, addr: int, size: int
) -> Iterator[tuple[MemoryRegion, int, int]]:
    """(region, offset, size) of the memory in a range of addresses, which wraps at 2^64."""
    while size > 0:
        section = memory.view.lookup(addr & MASK64)
        here = addr & MASK64
        n = min(size, section.start + section.size - here)
        if section.region.backing is not None and section.region.is_ram:
            yield section.region, here - section.start + section.offset, n
        addr += n
        size -= n
