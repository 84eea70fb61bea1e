"""QEMU's firmware configuration (fw_cfg): a table of items that the guest reads, by DMA too.

An item is selected by its key, then read byte by byte at the data port or copied by a DMA that
runs inside the write of the DMA register. What the items hold is learnt once in a process that
is thrown away (``items``) and binding from then on; the few that QEMU makes anew when they are
first selected after a reset are learnt when they are first read.
Sources: QEMU ``docs/specs/fw_cfg.rst``, ``hw/nvram/fw_cfg.c``.
"""

from __future__ import annotations

from functools import partial

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.witness.dma.device import DmaDevice, Place, Port, When
from qemuglue.witness.dma.items import Item, Items

#: The register that a transfer is started with: address of its control structure, big-endian.
DMA_REGION = "fwcfg.dma"

#: Its regions: the port pair of a PC, the registers of other machines.
COMBINED, CONTROL, DATA = "fwcfg", "fwcfg.ctl", "fwcfg.data"

#: Regions whose writes start a DMA.
KICK_REGIONS = frozenset({DMA_REGION})

#: Bits of the control word (``FW_CFG_DMA_CTL_*``).
ERROR, READ, SKIP, SELECT, WRITE = 0x01, 0x02, 0x04, 0x08, 0x10

#: What the DMA register reads as.
SIGNATURE = int.from_bytes(b"QEMU CFG", "big")

#: The control structure: control, length, address, big-endian.
STRUCTURE = 16

#: Keys: without the bits for a write channel (gone) and for items of the architecture.
ENTRY_MASK, ARCH_LOCAL = 0x3FFF, 0x8000
#: What is selected after a key beyond the table.
INVALID = 0xFFFF
#: Keys of files begin here, after those with fixed meanings.
FILE_FIRST = 0x20
#: Files there is room for, unless the property says otherwise.
FILE_SLOTS = 0x20

#: Bytes of one transfer; the largest configuration item of a PC is a few hundred KiB.
LONGEST = 1 << 20


class FwCfg:
    """The device (``device.DmaDevice``): what is selected, how far it was read."""

    name = "fw_cfg"
    hears_reads = True

    def __init__(self, memory: AddressSpace, items: Items, file_slots: int = FILE_SLOTS) -> None:
        self.lost = ""
        self._memory = memory
        self._items = items
        #: Keys from 0 that may have an item.
        self.keys = FILE_FIRST + file_slots
        self._transfer: int | None = None
        #: The upper half of the address register; None if nobody knows it.
        self.address: int | None = 0
        self.selected = 0
        self.offset = 0

    def reset(self) -> None:
        """``fw_cfg_reset`` selects the signature; the DMA register keeps what was written."""
        self._transfer = None
        self._items.reset()
        self._select(0)

    # -- registers -----------------------------------------------------------------------------

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        value &= (1 << 8 * size) - 1
        if region.name == DMA_REGION:
            self._transfer = self._dma_register(offset, size, value)
        elif size == 2 and region.name in (COMBINED, CONTROL):
            self._select(value)

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """A read of the data port moves on. (The combined port answers any read with data.)"""
        if region.name in (COMBINED, DATA):
            self.offset = self.offset + size  # behind the end it does not matter

    def reading(self, region: MemoryRegion, offset: int, size: int, port: Port) -> int | None:
        """What the data port answers (``fw_cfg_data_read``: a piece of the string, big-endian),
        or the signature that the DMA register shows."""
        if region.name == DMA_REGION:
            return SIGNATURE >> 8 * (8 - offset - size) & (1 << 8 * size) - 1
        if region.name not in (COMBINED, DATA):
            return None
        item = None if self.selected == INVALID else self._items.get(self._key())
        if item is None or self.offset >= item.size:
            return 0
        n = min(size, item.size - self.offset)
        data = item.get(self.offset, n)
        return None if data is None else int.from_bytes(data, "big") << 8 * (size - n)

    def revived(self, why: str) -> None:
        """The upper half of an address that was written meanwhile is still there."""
        self.address = None

    def _dma_register(self, offset: int, size: int, value: int) -> int | None:
        """The address of the control structure if this write starts a transfer."""
        if size == 8 and offset == 0:
            start = value
        elif size == 4 and offset == 4:
            if self.address is None:
                self.lost = "the upper half of its address register is not known"
                return None
            start = self.address | value
        else:
            if size == 4 and offset == 0:
                self.address = value << 32
            return None
        self.address = 0
        return start

    def _select(self, key: int) -> None:
        self.offset = 0
        self.selected = key if key & ENTRY_MASK < self.keys else INVALID
        if self.selected != INVALID:
            self._items.selected(self._key())

    def _key(self) -> int:
        return self.selected & (ENTRY_MASK | ARCH_LOCAL)

    # -- what the lock step asks ---------------------------------------------------------------

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether the low half of the register is written."""
        return region.name == DMA_REGION and offset < 8 and offset + len(data) > 4

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Whether writing ``data`` at ``offset`` of the register starts a transfer that is longer
        than ``LONGEST``, or may be because a device would tell its length (an empty PCI window
        reads as ones). QEMU would do it, 4 bytes and a line of transcript at a time."""
        last = offset + len(data)
        if offset > 4 or last < 8:
            return False
        low = int.from_bytes(data[4 - offset : 8 - offset], "big")
        high = int.from_bytes(data[:4], "big") << 32 if offset == 0 else self.address
        if high is None:
            return True
        start = (high | low) & MASK64
        header = peek(self._memory, start, STRUCTURE)
        if header is None:  # where nothing is the transfer fails at once
            return self._memory.view.lookup(start).assigned
        return int.from_bytes(header[4:8], "big") > LONGEST

    def when(self) -> When:
        return When.NEVER if self._transfer is None else When.NOW

    # -- a transfer ----------------------------------------------------------------------------

    def act(self, port: Port) -> None:
        """``fw_cfg_dma_transfer``."""
        start, self._transfer = self._transfer, None
        assert start is not None, "act is called when a transfer is due"
        header = port.read(start, STRUCTURE)
        if header is None:
            port.write(start, ERROR.to_bytes(4, "big"))
            return
        control = int.from_bytes(header[0:4], "big")
        length = int.from_bytes(header[4:8], "big")
        address = int.from_bytes(header[8:16], "big")
        if control & SELECT:
            self._select(control >> 16)
        if not control & (READ | WRITE | SKIP):
            length = 0
        move = self._skip
        if control & READ:
            move = self._read
        elif control & WRITE:
            move = self._write
        result = 0
        while length > 0 and not result:
            item = None if self.selected == INVALID else self._items.get(self._key())
            n = length
            if item is not None and self.offset < item.size:
                n = min(length, item.size - self.offset)
                result = move(port, address, n, length, item)
                self.offset += n
            elif control & READ:
                result = 0 if _fill(port, address, n) else ERROR
            elif control & WRITE:
                result = ERROR
            address = (address + n) & MASK64
            length -= n
        port.write(start, result.to_bytes(4, "big"))

    def _skip(self, port: Port, address: int, n: int, length: int, item: Item) -> int:
        return 0

    def _read(self, port: Port, address: int, n: int, length: int, item: Item) -> int:
        """Copy out of the item; QEMU does it in one write."""
        data = item.get(self.offset, n)
        if data is None:
            done = port.unknown(address, n, learnt=partial(item.learn, self.offset))
        else:
            done = port.write(address, data)
        return 0 if done else ERROR

    def _write(self, port: Port, address: int, n: int, length: int, item: Item) -> int:
        """Copy into the item, if it may be written and nothing is beyond it."""
        if not item.writable or n != length:
            return ERROR
        data = port.read(address, n)
        if data is None:
            item.forget(self.offset, n)  # what could be read was copied
            return ERROR
        item.learn(self.offset, data)
        return 0


def _fill(port: Port, address: int, size: int) -> bool:
    """``dma_memory_set`` to 0."""
    return port.space.set(address & MASK64, 0, size) == 0


def make(place: Place) -> DmaDevice | None:
    """The maker."""
    if DMA_REGION not in place.regions:
        return None
    slots = place.qom_get(place.owner, "x-file-slots")
    return FwCfg(
        place.memory, Items(place.known), slots if isinstance(slots, int) else FILE_SLOTS)


def peek(memory: AddressSpace, addr: int, size: int) -> bytes | None:
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
