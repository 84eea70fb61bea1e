"""virtio over memory-mapped registers, legacy and modern: a window of 512 bytes.

Source: QEMU ``hw/virtio/virtio-mmio.c``. Registers take 4 bytes and nothing else; what lies
behind 0x100 is the device's own configuration.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial

from qemuglue.memory.region import MemoryRegion
from qemuglue.witness.dma.virtio_device import (
    DRIVER_OK,
    FEATURES_OK,
    QUEUE_MAX,
    VirtioDevice,
    eventfd,
)
from qemuglue.witness.dma.virtio_pci import Shown
from qemuglue.witness.dma.virtio_ring import VERSION_1
from qemuglue.witness.dma.virtio_transport import Transport

REGION = "virtio-mmio"

_FEATURES, _FEATURES_SEL, _PAGE_SIZE, _Q_SEL, _Q_NUM, _Q_ALIGN, _Q_PFN, _Q_READY = (
    0x20, 0x24, 0x28, 0x30, 0x38, 0x3C, 0x40, 0x44)
_Q_NOTIFY, _ACK, _STATUS = 0x50, 0x64, 0x70
_RINGS = {0x80: (0, 0), 0x84: (0, 1), 0x90: (1, 0), 0x94: (1, 1), 0xA0: (2, 0), 0xA4: (2, 1)}


class VirtioMmio(Transport):
    """One window as a decoded device. ``legacy``: the registers of before virtio 1.0."""

    def __init__(
        self, device: VirtioDevice, regions: Mapping[str, MemoryRegion], *, legacy: bool
    ) -> None:
        super().__init__(device)
        self.legacy = legacy
        self.shown: defaultdict[int, Shown] = defaultdict(Shown)
        self.features_sel = 0
        self.guest_features = [0, 0]
        self.page_shift = 0
        self._regions: dict[str, MemoryRegion] = {}
        self._eventfds: list[Callable[[], None]] = []
        device.transport = self
        self.mapped(regions)

    def kicks(self, region: MemoryRegion, offset: int, data: bytes) -> bool:
        last = offset + len(data) - 1
        return any(offset <= at <= last for at in (_Q_PFN, _Q_NOTIFY, _STATUS))

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        if size == 4 and offset < 0x100:
            self.device.guarded(lambda: self._register(offset, value))

    def reset(self) -> None:
        """The machine was reset (``virtio_mmio_reset``)."""
        self._reset()
        self.features_sel = self.page_shift = 0
        if not self.legacy:
            self.guest_features = [0, 0]
            self.shown.clear()

    def mapped(self, regions: Mapping[str, MemoryRegion]) -> None:
        """The map changed: every ring is cached anew (``virtio_memory_listener_commit``)."""
        fresh = dict(regions)
        if fresh != self._regions:
            started = self.device.ioeventfd_started
            self.eventfds(False)
            self._regions = fresh
            self.eventfds(started)
        self.device.recache()

    # -- registers ---------------------------------------------------------------------------------

    def _register(self, offset: int, value: int) -> None:
        device = self.device
        queue = device.selected()
        if offset == _FEATURES_SEL:
            self.features_sel = int(bool(value))
        elif offset == _FEATURES:
            if not self.legacy:
                self.guest_features[self.features_sel] = value
            elif not self.features_sel:
                device.set_features(value)
        elif offset == _Q_SEL and value < QUEUE_MAX:
            device.queue_sel = value
        elif offset == _Q_NUM:
            self._num(value)
        elif offset == _Q_NOTIFY:
            device.notify(value & 0xFFFF if device.version >= (8,) else value)
        elif offset == _ACK:
            device.isr &= ~value
        elif offset == _STATUS:
            self._status(value)
        elif self.legacy:
            self._legacy(offset, value)
        elif offset == _Q_READY:
            shown = self.shown[device.queue_sel]
            if value and queue is not None:
                device.set_num(queue, shown.num)
                device.set_rings(queue, *map(shown.address, range(3)))
        elif offset in _RINGS:
            part, half = _RINGS[offset]
            self.shown[device.queue_sel].halves[part][half] = value

    def _num(self, value: int) -> None:
        device = self.device
        queue = device.selected()
        if queue is not None:
            num = value if value < 1 << 31 else 0
            if self.legacy:
                device.set_num(queue, num)
                device.update_rings(queue)
            else:
                device.resize(queue, num)
        if not self.legacy:
            self.shown[device.queue_sel].num = value & 0xFFFF

    def _legacy(self, offset: int, value: int) -> None:
        device = self.device
        queue = device.selected()
        if offset == _PAGE_SIZE:
            self.page_shift = (value & -value).bit_length() - 1 if value else 0
        elif offset == _Q_ALIGN:
            if value and queue is not None and not device.features & VERSION_1:
                queue.align = value
                device.update_rings(queue)
        elif offset == _Q_PFN:
            if not value:
                self._reset()
            elif queue is not None:
                device.set_addr(queue, value << self.page_shift)

    def _status(self, value: int) -> None:
        device = self.device
        if not value & DRIVER_OK:
            device.stop_ioeventfd()
        if not self.legacy and value & FEATURES_OK:
            device.set_features(self.guest_features[1] << 32 | self.guest_features[0])
        device.set_status(value & 0xFF)
        if value & DRIVER_OK:
            device.start_ioeventfd()
        if not device.status:
            self._reset()

    def _reset(self) -> None:
        """``virtio_mmio_soft_reset``; what was written of the queues stays."""
        self.device.guarded(self.device.reset)

    # -- the transport of a device -----------------------------------------------------------------

    def eventfds(self, started: bool) -> None:
        """``virtio_mmio_ioeventfd_assign`` of every queue."""
        while self._eventfds:
            self._eventfds.pop()()
        for region in self._regions.values() if started else ():
            for queue in self.device.queues:
                signal = partial(self.device.signalled, queue.index)
                self._eventfds.append(eventfd(region, _Q_NOTIFY, 4, queue.index, signal))

    def interrupt(self, vector: int) -> None:
        """A line; memory hears nothing of it."""
