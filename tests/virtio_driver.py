"""A guest driver for virtio-blk in a few lines, spoken over qtest.

One kick makes QEMU use most of its own memory API: the rings are read and written through
``MemoryRegionCache``, the buffers are mapped with ``address_space_map``, and the interrupt is
a 4-byte ``address_space_stl_le`` to whatever address the guest wrote into the MSI-X table. With
``ioeventfd=off`` all of it happens inside the register write, so it works under ``-S``.
Source: the virtio 1.x specification (split queues); QEMU ``hw/virtio/virtio.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from qemuglue.mirror import Mirror
from qemuglue.qemu.qtest import Qtest

#: ``-device``; GET_ID answers with the serial number.
SERIAL = b"0123456789abcdefghi"
DEVICE = f"virtio-blk-pci,id=blk,drive=d,ioeventfd=off,disable-legacy=on,serial={SERIAL.decode()}"
DRIVE = ("-blockdev", "driver=null-co,node-name=d,size=1048576")

_PCI_ID = 0x1042_1AF4
_MSIX = 0x11
_ACKNOWLEDGE, _DRIVER, _DRIVER_OK, _FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 0x40

NEXT, WRITE, INDIRECT = 1, 2, 4
GET_ID = struct.pack("<IIQ", 8, 0, 0)


@dataclass(frozen=True)
class Buffer:
    """One descriptor: guest address, bytes, and whether the device writes it."""

    addr: int
    size: int
    write: bool = False


@dataclass(frozen=True)
class Rings:
    """Where the three parts of the queue are, and its size (a power of two)."""

    desc: int = 0x20_0000
    avail: int = 0x20_2000
    used: int = 0x20_4000
    num: int = 8

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of descriptors, available and used ring, as QEMU maps them."""
        return 16 * self.num, 4 + 2 * self.num, 4 + 8 * self.num


class VirtioBlk:
    """The device of a q35 whose BARs are assigned (``setup pci``)."""

    def __init__(self, qtest: Qtest, mirror: Mirror) -> None:
        self.qtest = qtest
        where = {
            section.region.name: section.start for section in mirror.memory.view.sections
        }
        self.common = where["virtio-pci-common-virtio-blk"]
        self.notify = where["virtio-pci-notify-virtio-blk"]
        self.table = where["msix-table"]
        self.slot = next(slot for slot in range(32) if self.config_read(slot, 0) == _PCI_ID)

    # -- PCI -----------------------------------------------------------------------------------

    def _select(self, slot: int, register: int) -> None:
        self.qtest.outl(0xCF8, 0x8000_0000 | slot << 11 | register)

    def config_read(self, slot: int, register: int) -> int:
        self._select(slot, register)
        return self.qtest.inl(0xCFC)

    def master(self) -> None:
        """Let the device do DMA, and signal by MSI-X. The map changes."""
        self._select(self.slot, 4)
        self.qtest.outw(0xCFC, 7)
        at = self.config_read(self.slot, 0x34) & 0xFF
        while (found := self.config_read(self.slot, at)) & 0xFF != _MSIX:
            at = found >> 8 & 0xFF
        self._select(self.slot, at)
        self.qtest.outw(0xCFC + 2, 0x8000)

    def move_table(self, addr: int) -> None:
        """Put the message table, with the pending bits behind it, elsewhere. The map changes."""
        self._select(self.slot, 0x14)
        self.qtest.outl(0xCFC, addr)
        self.table = addr

    def message(self, addr: int, data: int) -> None:
        """The message that vector 0 sends: a 4-byte little-endian store."""
        for offset, value in enumerate((addr & 0xFFFF_FFFF, addr >> 32, data, 0)):
            self.qtest.writel(self.table + 4 * offset, value)

    # -- the device ----------------------------------------------------------------------------

    def start(self, rings: Rings, *, iommu: bool = False, vector: bool = True) -> bool:
        """Reset, and enable queue 0 over ``rings``; whether QEMU could map them."""
        q, common = self.qtest, self.common
        q.writeb(common + 0x14, 0)
        q.writeb(common + 0x14, _ACKNOWLEDGE | _DRIVER)
        q.writel(common + 0x08, 1)
        q.writel(common + 0x0C, 3 if iommu else 1)
        q.writeb(common + 0x14, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK)
        q.writew(common + 0x16, 0)
        q.writew(common + 0x18, rings.num)
        if vector:
            q.writew(common + 0x1A, 0)
        for offset, addr in ((0x20, rings.desc), (0x28, rings.avail), (0x30, rings.used)):
            q.writel(common + offset, addr & 0xFFFF_FFFF)
            q.writel(common + offset + 4, addr >> 32)
        q.writew(common + 0x1C, 1)
        if self.broken:
            return False
        q.writeb(common + 0x14, _ACKNOWLEDGE | _DRIVER | _FEATURES_OK | _DRIVER_OK)
        return not self.broken

    @property
    def broken(self) -> bool:
        """Whether QEMU has given up on the device."""
        return bool(self.qtest.readb(self.common + 0x14) & NEEDS_RESET)

    def kick(self) -> None:
        self.qtest.writew(self.notify, 0)


def table(buffers: Sequence[Buffer]) -> bytes:
    """The descriptors of one chain."""
    last = len(buffers) - 1
    return b"".join(
        struct.pack("<QIHH", b.addr, b.size, NEXT * (i < last) | WRITE * b.write, i + 1)
        for i, b in enumerate(buffers)
    )
