"""A virtio device without its transport: status, features, queues, interrupts, ioeventfds.

A *transport* (PCI, MMIO) turns registers into the calls here, which carry the names of QEMU's
functions; a *function* (disk, random numbers) does what a notified queue asks for. Source: QEMU
``hw/virtio/virtio.c``, ``virtio-bus.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from qemuglue.errors import ModelError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.witness.dma.device import Port, When
from qemuglue.witness.dma.virtio_buffers import Unfollowed
from qemuglue.witness.dma.virtio_ring import (
    ACCESS_PLATFORM,
    EVENT_IDX,
    IN_ORDER,
    LONGEST_CHAIN,
    NO_VECTOR,
    NOTIFICATION_DATA,
    PACKED,
    VERSION_1,
    Broken,
    Queue,
    SplitRing,
)

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 0x40

#: Queues a device may have (``VIRTIO_QUEUE_MAX``).
QUEUE_MAX = 1024

#: Since when ioeventfds need no KVM: MMIO transports have them, modern notifies of any size are
#: taken, and a queue's rings are cached again when its size is written.
RESIZES = (8, 2)

#: Builds of which it is known that a queue may not grow (11.1.3 does so, 10.0.2 does not).
_LIMITS_SIZE = (10, 1)

#: Ways to lay a queue out that are not modelled.
_OTHER_RINGS = PACKED | IN_ORDER | NOTIFICATION_DATA


@dataclass(frozen=True, slots=True)
class Traits:
    """What a device is, as it was made."""

    name: str
    version: tuple[int, ...]
    #: Descriptors of each queue.
    queues: tuple[int, ...]
    #: Features offered; bits of the device's own kind may be missing.
    offered: int
    #: Whether notifies may be taken by ioeventfds.
    ioeventfd: bool
    #: Whether the target is big-endian.
    target_big: bool = False
    #: Whether the guest's clock moves.
    parked: bool = False


class Function(Protocol):
    """What a device does with its queues."""

    #: Whether it is decoded at all; if not, a notify that reaches it loses the device.
    known: bool
    #: Whether a notify before DRIVER_OK starts the ioeventfds (virtio-blk).
    starts_early: bool

    def bind(self, device: VirtioDevice) -> None:
        """Called once."""

    def handle(self, queue: Queue) -> None:
        """``handle_output``: the queue was notified."""

    def set_status(self, status: int) -> None:
        """The driver writes ``status``; the device still has its old one."""

    def reset(self) -> None:
        """``VirtioDeviceClass.reset``."""


class Transport(Protocol):
    """What a device asks of its transport."""

    def interrupt(self, vector: int) -> None:
        """``VirtioBusClass.notify``."""

    def eventfds(self, started: bool) -> None:
        """Let ioeventfds take notifies, or no more (``ioeventfd_assign`` of every queue)."""


@dataclass(slots=True)
class _Work:
    when: When
    action: Callable[[], None]


@dataclass(slots=True)
class _Todo:
    items: list[_Work] = field(default_factory=list)

    def when(self) -> When:
        if not self.items:
            return When.NEVER
        now = any(work.when is When.NOW for work in self.items)
        return When.NOW if now else self.items[0].when

    def take(self) -> Callable[[], None]:
        when = self.when()
        for at, work in enumerate(self.items):
            if work.when is when:
                return self.items.pop(at).action
        raise AssertionError("nothing is due")


class VirtioDevice:
    """The model of one device. ``memory`` is the space of rings and buffers.

    It is ``disabled`` while QEMU lets it touch nothing (no bus mastering), ``broken`` after an
    error of the driver, both until a reset.
    """

    def __init__(self, traits: Traits, function: Function, memory: AddressSpace) -> None:
        self.traits = traits
        self.function = function
        self.memory = memory
        self.version = traits.version
        self.transport: Transport
        self.queues = [Queue(index, size) for index, size in enumerate(traits.queues)]
        self.ring = SplitRing(self)
        self.features = 0
        self.status = 0
        self.queue_sel = 0
        self.isr = 0
        self.config_vector = NO_VECTOR
        self.disabled = False
        self.broken = False
        #: Why it was given up last, in QEMU's words.
        self.error = ""
        self.ioeventfd_started = False
        self.lost = ""
        self.port: Port | None = None
        self._todo = _Todo()
        #: Queues whose eventfd is set.
        self._signalled: set[int] = set()
        function.bind(self)

    # -- for the rings ---------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return self.disabled or self.broken

    @property
    def big(self) -> bool:
        return self.traits.target_big and not self.features & VERSION_1

    # -- what is due -----------------------------------------------------------------------------

    def later(self, when: When, action: Callable[[], None]) -> None:
        """Do it then. What is due at one time is done in order."""
        self._todo.items.append(_Work(when, action))

    def when(self) -> When:
        return self._todo.when()

    def act(self, port: Port) -> None:
        """Do the first thing that is due."""
        self.port = port
        self.guarded(self._todo.take())

    def guarded(self, action: Callable[[], None]) -> None:
        """Do it; where it cannot be told what QEMU does the device is lost."""
        try:
            with self.ring.acting():
                action()
        except Broken as error:
            self.fail(str(error))
        except Unfollowed as error:
            self.lose(str(error))
        except ModelError as error:
            self.lose(f"QEMU goes beyond what it checks: {error}")

    def lose(self, why: str) -> None:
        """Nobody can tell what it does from here on, nor which notifies reach it."""
        self.lost = self.lost or why
        self._forget()
        self.stop_ioeventfd()

    def _forget(self) -> None:
        self._todo.items.clear()
        self._signalled.clear()

    # -- status and features ---------------------------------------------------------------------

    def set_status(self, value: int) -> None:
        """``virtio_set_status``."""
        starting = value & FEATURES_OK and not self.status & FEATURES_OK
        refused = self.traits.offered & ACCESS_PLATFORM and not self.features & ACCESS_PLATFORM
        if self.features & VERSION_1 and starting and refused:
            return
        self.function.set_status(value)
        self.status = value

    def set_features(self, value: int) -> None:
        """``virtio_set_features``."""
        if self.status & FEATURES_OK:
            return
        self.features = value & self.traits.offered
        if self.features & _OTHER_RINGS:
            self.lose("its queues are of a kind that is not modelled")
        if self.features & EVENT_IDX:
            self.recache()

    def recache(self) -> None:
        """Cache the rings of every queue again; the map or their sizes changed."""
        for queue in self.queues:
            self.cache(queue)

    def cache(self, queue: Queue) -> None:
        """``virtio_init_region_cache``."""
        try:
            self.ring.cache(queue)
        except Broken as error:
            self.fail(str(error))

    def reset(self) -> None:
        """``virtio_bus_reset``: by the driver, or with the machine."""
        self.stop_ioeventfd()
        self.set_status(0)
        self.function.reset()
        self._forget()
        self.broken = self.disabled = False
        self.features = self.queue_sel = self.status = self.isr = 0
        self.config_vector = NO_VECTOR
        for queue in self.queues:
            queue.reset()

    # -- queues ----------------------------------------------------------------------------------

    def queue(self, index: int) -> Queue | None:
        """The queue of that number, if the device has it."""
        return self.queues[index] if index < len(self.queues) else None

    def selected(self) -> Queue | None:
        return self.queue(self.queue_sel)

    def set_num(self, queue: Queue, num: int) -> None:
        """``virtio_queue_set_num``. Newer builds give up where it is more than there were."""
        if not 0 < num <= LONGEST_CHAIN:
            return
        if num > queue.default and self.version >= _LIMITS_SIZE:
            self.fail(f"virtio: queue {queue.index} size {num} exceeds max size {queue.default}")
            return
        queue.num = num

    def resize(self, queue: Queue, num: int) -> None:
        """The driver writes the size of a queue. Rings that are cached already are cached anew
        by newer builds only; older ones then go by a size that their caches do not have."""
        old = queue.num
        self.set_num(queue, num)
        if self.version >= RESIZES:
            self.cache(queue)
        elif queue.caches is not None and queue.num != old:
            self.lose("a queue that is in use got another size")

    def set_rings(self, queue: Queue, desc: int, avail: int, used: int) -> None:
        """``virtio_queue_set_rings``."""
        queue.desc, queue.avail, queue.used = desc, avail, used
        self.cache(queue)

    def set_addr(self, queue: Queue, addr: int) -> None:
        """``virtio_queue_set_addr``: a legacy queue in one piece."""
        queue.desc = addr
        self.update_rings(queue)

    def update_rings(self, queue: Queue) -> None:
        """``virtio_queue_update_rings``."""
        if not queue.desc or not queue.align:
            return
        queue.avail = queue.desc + 16 * queue.num
        end = queue.avail + 4 + 2 * queue.num
        end = (end + queue.align - 1) & MASK64
        queue.used = end // queue.align * queue.align
        self.cache(queue)

    # -- notifies --------------------------------------------------------------------------------

    def notify(self, index: int) -> None:
        """``virtio_queue_notify``: a write that reached the device."""
        queue = self.queue(index)
        if queue is None or not queue.desc or self.broken:
            return
        if self.ioeventfd_started:
            self.signalled(index)
        else:
            self.later(When.NOW, lambda: self.handle(queue))

    def signalled(self, index: int) -> None:
        """A write that an ioeventfd took. The queue is looked at once, however often it was
        signalled until then (``virtio_queue_host_notifier_read``)."""
        if index not in self._signalled:
            self._signalled.add(index)
            self.later(When.SOON, lambda: self._look(index))

    def _look(self, index: int) -> None:
        self._signalled.discard(index)
        self.handle(self.queues[index])

    def handle(self, queue: Queue) -> None:
        """``virtio_queue_notify_vq``."""
        if not queue.desc or self.broken:
            return
        if not self.function.known:
            raise Unfollowed("what it does with its queues is not modelled")
        if self.function.starts_early and self.traits.ioeventfd and not self.ioeventfd_started:
            self.start_ioeventfd()
            return
        self.function.handle(queue)

    def start_ioeventfd(self) -> None:
        """``virtio_bus_start_ioeventfd``: every queue is looked at once."""
        if not self.traits.ioeventfd or self.ioeventfd_started:
            return
        self.ioeventfd_started = True
        self.transport.eventfds(True)
        for queue in self.queues:
            self.signalled(queue.index)

    def stop_ioeventfd(self) -> None:
        """``virtio_bus_stop_ioeventfd``: what is pending is done first."""
        if not self.ioeventfd_started:
            return
        self.ioeventfd_started = False
        self.transport.eventfds(False)

    # -- interrupts ------------------------------------------------------------------------------

    def interrupt(self, queue: Queue) -> None:
        """``virtio_notify``."""
        if self.ring.should_notify(queue):
            self.isr |= 1
            if not self.idle:
                self.transport.interrupt(queue.vector)

    def fail(self, error: str) -> None:
        """``virtio_error``."""
        self.error = error
        if self.features & VERSION_1:
            self.status |= NEEDS_RESET
            if self.status & DRIVER_OK:
                self.isr |= 3
                if not self.idle:
                    self.transport.interrupt(self.config_vector)
        self.broken = True


def eventfd(
    region: MemoryRegion, offset: int, size: int, data: int | None,
    signal: Callable[[], None],
) -> Callable[[], None]:
    """Let writes there be taken by an ioeventfd; the result takes it away again."""
    region.add_eventfd(offset, size, data, signal)

    def gone() -> None:
        region.del_eventfd(offset, size, data, signal)

    return gone
