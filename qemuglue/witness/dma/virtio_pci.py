"""virtio over PCI: the modern registers in a memory BAR, and the legacy ones in an I/O BAR.

A transitional device has both at once, over one state. Registers are decoded by exact offset, as
QEMU does whatever the size of the write. Source: QEMU ``hw/virtio/virtio-pci.c``
(``virtio_pci_common_write``, ``virtio_ioport_write``, ``virtio_pci_ioeventfd_assign``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.witness.dma.device import Stretches, When
from qemuglue.witness.dma.virtio_device import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    QUEUE_MAX,
    VirtioDevice,
    eventfd,
)
from qemuglue.witness.dma.virtio_msix import MsixTable
from qemuglue.witness.dma.virtio_ring import NO_VECTOR, Broken, Queue
from qemuglue.witness.dma.virtio_transport import Transport

COMMON, NOTIFY, NOTIFY_PIO = "virtio-pci-common-", "virtio-pci-notify-", "virtio-pci-notify-pio-"
LEGACY, MSIX_TABLE = "virtio-pci", "msix-table"

#: The common configuration's registers (``VIRTIO_PCI_COMMON_*``).
_GFSELECT, _GF, _MSIX, _STATUS, _Q_SELECT, _Q_SIZE, _Q_MSIX, _Q_ENABLE = (
    0x08, 0x0C, 0x10, 0x14, 0x16, 0x18, 0x1A, 0x1C)
_RINGS = {0x20: (0, 0), 0x24: (0, 1), 0x28: (1, 0), 0x2C: (1, 1), 0x30: (2, 0), 0x34: (2, 1)}
_Q_RESET = 0x3A

#: The legacy ones (``VIRTIO_PCI_*``); where MSI-X is on there are two more.
_L_FEATURES, _L_PFN, _L_SELECT, _L_NOTIFY, _L_STATUS, _L_MSIX, _L_Q_MSIX = 4, 8, 14, 16, 18, 20, 22
_PAGE_BITS = 12

#: The command register of configuration space, and its bit for bus mastering.
_COMMAND, _MASTER = 4, 4

#: Bit 30 of the features, which no driver sets (``VIRTIO_F_BAD_FEATURE``).
_BAD_FEATURE = 1 << 30


@dataclass(slots=True)
class Shown:
    """What the driver wrote of one queue and the device has not taken yet."""

    num: int = 0
    #: Halves of the addresses of descriptors, available and used ring.
    halves: list[list[int]] = field(default_factory=lambda: [[0, 0], [0, 0], [0, 0]])

    def address(self, part: int) -> int:
        low, high = self.halves[part]
        return high << 32 | low


class VirtioPci(Transport):
    """One virtio PCI function as a decoded device. ``bus`` is the function's own space."""

    def __init__(
        self, device: VirtioDevice, regions: Mapping[str, MemoryRegion], bus: AddressSpace, *,
        vectors: int, page_per_queue: bool, any_size: bool, bdf: int | None = None,
        msix_at: int | None = None,
    ) -> None:
        super().__init__(device)
        self.bus = bus
        self.vectors = vectors
        self.msix = MsixTable(vectors)
        #: Bus, device and function; None where they are not known.
        self.bdf = bdf
        #: Where in configuration space MSI-X is controlled; None where that is not known.
        self._msix_at = msix_at
        #: Bytes between the notify registers of two queues.
        self.apart = 0x1000 if page_per_queue else 4
        #: Size of the modern notifies that ioeventfds take; 0 is any (since 8.x).
        self.notify_size = 0 if any_size else 2
        self.shown: defaultdict[int, Shown] = defaultdict(Shown)
        self.gfselect = 0
        self.guest_features = [0, 0]
        self._regions: dict[str, MemoryRegion] = {}
        self._eventfds: list[Callable[[], None]] = []
        self._mastering: bool | None = None
        device.transport = self
        self.mapped(regions)

    # -- the contract of a decoded device ----------------------------------------------------------

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        """Notifies, and the status, which may start the queues or end them."""
        last = offset + len(data) - 1
        if region.name.startswith(NOTIFY):
            return True
        if region.name.startswith(COMMON):
            return offset <= _STATUS <= last
        if region.name == LEGACY:
            return any(offset <= at <= last for at in (_L_PFN, _L_NOTIFY, _L_STATUS))
        return region.name == MSIX_TABLE

    def heeds(self, region: MemoryRegion) -> Stretches | None:
        """The common registers; all of notifies, legacy registers and MSI-X; nothing of what the
        decoded kinds keep for themselves, which no DMA depends on."""
        name = region.name
        if name.startswith(COMMON):
            return ((0, _Q_RESET + 8),)
        return None if name.startswith(NOTIFY) or name in (LEGACY, MSIX_TABLE) else ()

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        name = region.name
        if name.startswith(COMMON):
            self.device.guarded(lambda: self._common(offset, value))
        elif name.startswith(NOTIFY_PIO):
            if value < QUEUE_MAX:
                self.device.notify(value)
        elif name.startswith(NOTIFY):
            self.device.notify(offset // self.apart)
        elif name == LEGACY and region.kind is RegionKind.IO:
            self.device.guarded(lambda: self._legacy(offset, value))
        elif name == MSIX_TABLE:
            for vector in self.msix.write(offset, size, value):
                self.device.later(When.NOW, partial(self._send, vector))

    def reset(self) -> None:
        """The machine was reset."""
        self._reset()
        self.msix.reset()

    # -- the map -------------------------------------------------------------------------------

    def mapped(self, regions: Mapping[str, MemoryRegion]) -> None:
        """The map changed: other regions, bus mastering, and every ring is cached anew
        (``virtio_memory_listener_commit``)."""
        fresh = dict(regions)
        if fresh != self._regions:
            started = self.device.ioeventfd_started
            self.eventfds(False)
            self._regions = fresh
            self.eventfds(started)
        self.device.recache()
        mastering = any(section.assigned for section in self.bus.view.sections)
        if mastering is not self._mastering:
            self._mastering = mastering
            self.command(mastering)

    def configured(self, register: int, size: int, value: int) -> None:
        """A write to configuration space: bus mastering, and whether messages are on."""
        last = register + size
        if register <= _COMMAND < last:
            self._mastering = bool(value >> 8 * (_COMMAND - register) & _MASTER)
            self.command(self._mastering)
        if self._msix_at is None or register < 0x40 or not self.vectors:
            return
        control = self._msix_at + 3
        if register <= control < last:
            flags = value >> 8 * (control - register)
            for vector in self.msix.configure(bool(flags & 0x80), bool(flags & 0x40)):
                self.device.later(When.NOW, partial(self._send, vector))

    def command(self, mastering: bool) -> None:
        """The command register of the configuration space was written
        (``virtio_write_config``)."""
        self.device.disabled = not mastering
        if not mastering:
            self.device.stop_ioeventfd()
            self.device.guarded(
                lambda: self.device.set_status(self.device.status & ~DRIVER_OK))

    # -- registers ---------------------------------------------------------------------------------

    def _common(self, offset: int, value: int) -> None:
        device = self.device
        queue = device.selected()
        shown = self.shown[device.queue_sel]
        if offset == _GFSELECT:
            self.gfselect = value & 0xFFFF_FFFF
        elif offset == _GF and self.gfselect < 2:
            self.guest_features[self.gfselect] = value & 0xFFFF_FFFF
            device.set_features(self.guest_features[1] << 32 | self.guest_features[0])
        elif offset == _MSIX:
            device.config_vector = self._vector(value)
        elif offset == _STATUS:
            self._status(value)
        elif offset == _Q_SELECT and value < QUEUE_MAX:
            device.queue_sel = value
        elif offset == _Q_SIZE:
            shown.num = value & 0xFFFF
            if queue is not None:
                device.resize(queue, shown.num)
        elif offset == _Q_MSIX and queue is not None:
            queue.vector = self._vector(value)
        elif offset == _Q_ENABLE:
            self._enable(queue, shown, value)
        elif offset in _RINGS:
            part, half = _RINGS[offset]
            shown.halves[part][half] = value & 0xFFFF_FFFF
        elif offset == _Q_RESET and value == 1 and queue is not None:
            queue.reset()

    def _enable(self, queue: Queue | None, shown: Shown, value: int) -> None:
        if value != 1:
            raise Broken(f"wrong value for queue_enable {value:x}")
        if queue is not None:
            self.device.set_num(queue, shown.num)
            self.device.set_rings(queue, *map(shown.address, range(3)))

    def _legacy(self, offset: int, value: int) -> None:
        device = self.device
        queue = device.selected()
        if offset == _L_FEATURES:
            if value & _BAD_FEATURE:
                value = 0  # ``bad_features`` of the kinds that are decoded
            device.set_features(value)
        elif offset == _L_PFN:
            if not value:
                self._reset()
            elif queue is not None:
                device.set_addr(queue, value << _PAGE_BITS)
        elif offset == _L_SELECT and value < QUEUE_MAX:
            device.queue_sel = value
        elif offset == _L_NOTIFY:
            device.notify(value & 0xFFFF if device.version >= (8,) else value)
        elif offset == _L_STATUS:
            self._status(value)
            if value == ACKNOWLEDGE | DRIVER and not self._mastering:
                device.lose("a legacy driver makes it the master of its bus")
        elif self.msix.enabled and offset == _L_MSIX:
            device.config_vector = self._vector(value)
        elif self.msix.enabled and offset == _L_Q_MSIX and queue is not None:
            queue.vector = self._vector(value)

    def _status(self, value: int) -> None:
        device = self.device
        if not value & DRIVER_OK:
            device.stop_ioeventfd()
        device.set_status(value & 0xFF)
        if value & DRIVER_OK:
            device.start_ioeventfd()
        if not device.status:
            self._reset()

    def _reset(self) -> None:
        """``virtio_pci_reset``."""
        self.device.guarded(self.device.reset)
        self.shown.clear()

    def _vector(self, value: int) -> int:
        return value if value < self.vectors else NO_VECTOR

    # -- the transport of a device -----------------------------------------------------------------

    def eventfds(self, started: bool) -> None:
        """``virtio_pci_ioeventfd_assign`` of every queue."""
        while self._eventfds:
            self._eventfds.pop()()
        if not started:
            return
        for region in self._regions.values():
            for queue in self.device.queues:
                signal = partial(self.device.signalled, queue.index)
                if region.name.startswith(NOTIFY_PIO):
                    self._eventfds.append(eventfd(region, 0, 2, queue.index, signal))
                elif region.name.startswith(NOTIFY):
                    self._eventfds.append(
                        eventfd(region, self.apart * queue.index, self.notify_size, None, signal))
                elif region.name == LEGACY and region.kind is RegionKind.IO:
                    self._eventfds.append(eventfd(region, _L_NOTIFY, 2, queue.index, signal))

    def interrupt(self, vector: int) -> None:
        if vector != NO_VECTOR and self.msix.raised(vector):
            self._send(vector)

    def _send(self, vector: int) -> None:
        """The message of a vector: a store of 4 bytes. A device that takes messages logs it, and
        QEMU tells of it when it likes; to memory it is a write like any other."""
        if not self._mastering:
            return
        addr, data = self.msix.message(vector)
        section = self.bus.view.lookup(addr)
        if section.region.is_ram and self.device.port is not None:
            self.device.port.write(addr, data.to_bytes(4, "little"))
