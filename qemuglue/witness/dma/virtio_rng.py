"""virtio-rng: random numbers for whoever offers buffers.

How many bytes land where is known, their values are not. While the machine stands still nothing
is delivered, but the queue is looked at, and a bad one breaks the device. Source: QEMU
``hw/virtio/virtio-rng.c``, ``backends/rng-builtin.c``.
"""

from __future__ import annotations

from qemuglue.witness.dma.device import When
from qemuglue.witness.dma.virtio_buffers import Unfollowed
from qemuglue.witness.dma.virtio_device import DRIVER_OK, VirtioDevice
from qemuglue.witness.dma.virtio_ring import Broken, Queue

_QUOTA = 0xFFFF_FFFF


class Rng:
    """The function of a virtio-rng. ``builtin``: fed by QEMU itself, without a limit."""

    known = True
    starts_early = False

    def __init__(self, *, builtin: bool) -> None:
        self.builtin = builtin
        self.device: VirtioDevice

    def bind(self, device: VirtioDevice) -> None:
        self.device = device

    def handle(self, queue: Queue) -> None:
        self._process()

    def set_status(self, status: int) -> None:
        """``virtio_rng_set_status``: a running machine tries at once."""
        if self.device.traits.parked:
            self.device.status = status
            self._process()

    def reset(self) -> None:
        """What was asked for of the backend is still delivered, to a queue that is not ready."""

    def _process(self) -> None:
        """``virtio_rng_process``."""
        device = self.device
        queue = device.queues[0]
        if not (queue.avail and device.status & DRIVER_OK):
            return
        try:
            size = device.ring.available(queue, _QUOTA, 0)
        except Broken as error:
            device.fail(str(error))
            return
        if not size or not device.traits.parked:
            return
        if not self.builtin:
            raise Unfollowed("its backend delivers when it likes")
        device.later(When.SOON, lambda: self._deliver(size))

    def _deliver(self, size: int) -> None:
        """``chr_read``."""
        device, ring = self.device, self.device.ring
        queue = device.queues[0]
        if not (queue.avail and device.status & DRIVER_OK):
            return
        done = 0
        while done < size:
            try:
                chain = ring.pop(queue)
            except Broken as error:
                device.fail(str(error))
                break
            if chain is None:
                break
            length = 0
            for segment in chain.ins:
                n = min(size - done - length, len(segment))
                if n and segment.told:
                    raise Unfollowed("random numbers go to a device")
                if n and not segment.bounced:
                    assert device.port is not None
                    device.port.unknown(segment.addr, n)
                length += n
            done += length
            ring.push(queue, chain, length)
        device.interrupt(queue)
        if not ring.empty(queue):
            self._process()
