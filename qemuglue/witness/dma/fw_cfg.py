"""What a device was told to write into guest memory, decoded from the program itself.

Only such ranges may be *adopted*: taken over from QEMU without a divergence. Two devices are
decoded: QEMU's firmware configuration (fw_cfg), whose DMA runs inside the register write, and
the bit-band of Arm's M profile, whose every write changes a bit elsewhere.
Sources: QEMU ``docs/specs/fw_cfg.rst`` and ``fw_cfg_dma_transfer``; ``bitband_write`` in
``hw/arm/armv7m.c``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MASK64, MemoryRegion

#: Regions whose writes start a DMA that is decoded here.
KICK_REGIONS = frozenset({"fwcfg.dma"})

#: Where each bit of a megabyte of memory is a word of its own.
BITBAND = "bitband"

#: Regions whose accesses their device passes on to another address space, where they leave lines
#: of their own: bit-bands, and the PCI ports of the PReP boards (``raven_io_read``).
_FORWARDERS = frozenset({BITBAND, "pci-io-non-contiguous", "pci-io"})

#: The page of the Jazz boards (``rtc_read`` in ``hw/mips/jazz.c``) that passes accesses on to the
#: clock's own two registers, which have the same name.
_JAZZ_CLOCK = ("rtc", 0x1000)

#: The bit-band lies so far behind the memory it shows.
_BITBAND_AWAY = 0x0200_0000

#: Bit 1 of the control word: copy from the configuration into guest memory.
_READ = 0x02
#: QEMU copies at most the length the guest gave, 32 bits; nothing here is longer than RAM.
_STRUCTURE = 16

#: Bytes of one transfer; the largest configuration item of a PC is a few hundred KiB.
LONGEST = 1 << 20


def forwards(region: MemoryRegion) -> bool:
    """Whether the region's device passes accesses on, so that they leave lines of others: before
    its own line for a read, after it for a write."""
    return region.name in _FORWARDERS or (region.name, region.size) == _JAZZ_CLOCK


@dataclass(frozen=True, slots=True)
class Kick:
    """One piece written to a kick region, as the device saw it."""

    region: MemoryRegion
    offset: int
    size: int
    value: int


class FwCfgDma:
    """The DMA address register: high half, then low half (which starts), or both at once."""

    def __init__(self) -> None:
        self.address = 0

    def write(self, kick: Kick) -> int | None:
        """The address of the control structure if this write starts a transfer."""
        if kick.size == 8 and kick.offset == 0:
            start = kick.value
        elif kick.size == 4 and kick.offset == 4:
            start = self.address | kick.value
        else:
            if kick.size == 4 and kick.offset == 0:
                self.address = kick.value << 32
            return None
        self.address = 0
        return start


def ranges(
    dma: FwCfgDma, kicks: list[Kick], memory: AddressSpace
) -> Iterator[tuple[MemoryRegion, int, int]]:
    """(region, offset, size) of RAM that the kicks allow QEMU to have changed.

    The structure is read from the model's RAM, so call this before anything else happens.
    """
    for kick in kicks:
        start = dma.write(kick)
        if start is None:
            continue
        header = _peek(memory, start, _STRUCTURE)
        yield from _ram(memory, start, 4)
        if header is None:
            continue
        control = int.from_bytes(header[0:4], "big")
        length = int.from_bytes(header[4:8], "big")
        if control & _READ:
            yield from _ram(memory, int.from_bytes(header[8:16], "big"), length)


def bitband_ranges(
    written: list[tuple[MemoryRegion, int, int]], memory: AddressSpace
) -> Iterator[tuple[MemoryRegion, int, int]]:
    """(region, offset, size) of RAM that writes of (bit-band, offset, size) changed: the bytes
    that hold the bit, read and written back as wide as the access was."""
    for region, offset, size in written:
        base = region.absolute() - _BITBAND_AWAY
        yield from _ram(memory, base + (offset >> 5) & -size & MASK64, size)


def floods(dma: FwCfgDma, memory: AddressSpace, offset: int, data: bytes) -> bool:
    """Whether writing ``data`` at ``offset`` of the register starts a transfer that is longer
    than ``LONGEST``, or may be because a device would tell its length (an empty PCI window reads
    as ones). QEMU would do it, 4 bytes and a line of transcript at a time."""
    last = offset + len(data)
    if offset > 4 or last < 8:
        return False
    low = int.from_bytes(data[4 - offset : 8 - offset], "big")
    high = int.from_bytes(data[:4], "big") << 32 if offset == 0 else dma.address
    start = (high | low) & MASK64
    header = _peek(memory, start, _STRUCTURE)
    if header is None:  # where nothing is the transfer fails at once
        return memory.view.lookup(start).assigned
    return int.from_bytes(header[4:8], "big") > LONGEST


def _peek(memory: AddressSpace, addr: int, size: int) -> bytes | None:
    """Bytes of the model's RAM; None where something else answers."""
    data = b""
    while len(data) < size:
        section = memory.view.lookup((addr + len(data)) & MASK64)
        backing = section.region.backing
        if backing is None or not memory.rules.direct_read(section.region):
            return None
        here = (addr + len(data)) & MASK64
        n = min(size - len(data), section.start + section.size - here)
        data += backing.read(here - section.start + section.offset, n)
    return data


def _ram(
    memory: AddressSpace, addr: int, size: int
) -> Iterator[tuple[MemoryRegion, int, int]]:
    while size > 0:
        section = memory.view.lookup(addr & MASK64)
        here = addr & MASK64
        n = min(size, section.start + section.size - here)
        if section.region.backing is not None and section.region.is_ram:
            yield section.region, here - section.start + section.offset, n
        addr += n
        size -= n
