"""What the transports of virtio have in common as decoded devices: the device behind acts."""

from __future__ import annotations

from qemuglue.memory.region import MemoryRegion
from qemuglue.witness.dma.device import Port, When
from qemuglue.witness.dma.virtio_device import VirtioDevice


class Transport:
    """Registers in front of ``device``; a transport says what they are and which writes kick."""

    hears_reads = False

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        self.name = device.traits.name

    @property
    def lost(self) -> str:
        return self.device.lost

    @lost.setter
    def lost(self, why: str) -> None:
        self.device.lost = why

    def when(self) -> When:
        return self.device.when()

    def act(self, port: Port) -> None:
        self.device.act(port)

    def was_read(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """Reads have no effect on memory."""

    def floods(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        return False
