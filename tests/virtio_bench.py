"""A virtio device's model over a small memory, driven as a driver would, without QEMU."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from witness_events import device, space_of

from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion
from qemuglue.witness.dma.device import When
from qemuglue.witness.dma.port import ModelPort
from qemuglue.witness.dma.virtio_blk import Blk, Disk
from qemuglue.witness.dma.virtio_device import Function, Traits, VirtioDevice
from qemuglue.witness.dma.virtio_medium import Null
from qemuglue.witness.dma.virtio_pci import VirtioPci

RAM = 0x10000
DESC, AVAIL, USED = 0x1000, 0x2000, 0x3000
NEXT, WRITE, INDIRECT = 1, 2, 4
VERSION_1, EVENT_IDX = 1 << 32, 1 << 29


class Bench:
    """RAM of 64 KiB at 0, the device's registers far above; bus mastering is on."""

    def __init__(
        self, function: Function | None = None, *, queues: tuple[int, ...] = (8,),
        ioeventfd: bool = False, version: tuple[int, ...] = (10, 0, 2), parked: bool = False,
    ) -> None:
        self.ram = MemoryRegion.ram("ram", RAM, ByteBacking(RAM))
        self.common = device("virtio-pci-common-virtio-blk", 0x1000)
        self.notify = device("virtio-pci-notify-virtio-blk", 0x1000)
        self.space: AddressSpace = space_of(
            (0, self.ram), (0x100000, self.common), (0x101000, self.notify))
        if function is None:
            function = Blk(Disk(Null(1 << 20, zeroes=True), b"serial"))
        traits = Traits(
            "virtio", version, queues, (1 << 64) - 1 & ~(7 << 33), ioeventfd, parked=parked)
        self.device = VirtioDevice(traits, function, self.space)
        self.pci = VirtioPci(
            self.device, {each.name: each for each in (self.common, self.notify)}, self.space,
            vectors=2, page_per_queue=False, any_size=True,
        )
        self.port = ModelPort(self.space)
        self.index = 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A write to the common configuration; what is due inside it is done."""
        self.pci.wrote(self.common, offset, size, value)
        self.act(When.NOW)

    def start(self, features: int = VERSION_1, num: int = 8, **rings: int) -> None:
        """Reset, features, queue 0, DRIVER_OK."""
        for value in (0, 3):
            self.write(0x14, 1, value)
        for half in range(2):
            self.write(0x08, 4, half)
            self.write(0x0C, 4, features >> 32 * half & 0xFFFFFFFF)
        self.write(0x14, 1, 0xB)
        self.write(0x18, 2, num)
        for offset, name, addr in (
            (0x20, "desc", DESC), (0x28, "avail", AVAIL), (0x30, "used", USED)
        ):
            addr = rings.get(name, addr)
            self.write(offset, 4, addr & 0xFFFFFFFF)
            self.write(offset + 4, 4, addr >> 32)
        self.write(0x1C, 2, 1)
        self.write(0x14, 1, 0xF)
        self.act(When.SOON)

    def kick(self, size: int = 2) -> None:
        """Notify queue 0 as the machine would: an ioeventfd may take the write."""
        if self.space.store_sized(0x101000, 0, size, "little") != 0:
            raise AssertionError("the notify was refused")
        if not self.device.ioeventfd_started:
            self.pci.wrote(self.notify, 0, size, 0)
        self.act(When.NOW)
        self.act(When.SOON)

    def act(self, when: When) -> None:
        while self.pci.when() is when:
            self.pci.act(self.port)

    def put(self, addr: int, data: bytes) -> None:
        assert self.ram.backing is not None
        self.ram.backing.write(addr, data)

    def get(self, addr: int, size: int) -> bytes:
        assert self.ram.backing is not None
        return self.ram.backing.read(addr, size)

    def chain(self, buffers: Sequence[tuple[int, int, bool]], first: int = 0) -> None:
        """Make a request of (address, size, is_write) available."""
        last = len(buffers) - 1
        for i, (addr, size, is_write) in enumerate(buffers):
            flags = NEXT * (i < last) | WRITE * is_write
            index = first + i
            self.put(DESC + 16 * index, struct.pack("<QIHH", addr, size, flags, index + 1))
        self.put(AVAIL + 4 + 2 * (self.index % 8), struct.pack("<H", first))
        self.index += 1
        self.put(AVAIL + 2, struct.pack("<H", self.index))

    def request(self, kind: int, sector: int = 0, at: int = 0x4000) -> tuple[int, int, bool]:
        """A disk's header in RAM, as a buffer."""
        self.put(at, struct.pack("<IIQ", kind, 0, sector))
        return at, 16, False

    @property
    def used(self) -> list[tuple[int, int]]:
        """(head, bytes) of what was given back."""
        count = int.from_bytes(self.get(USED + 2, 2), "little")
        found: list[tuple[int, int]] = [
            struct.unpack("<II", self.get(USED + 4 + 8 * i, 8)) for i in range(count)]
        return found
