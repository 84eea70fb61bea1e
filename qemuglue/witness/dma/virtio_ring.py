"""A split virtqueue as QEMU's devices walk it: every access in QEMU's order.

The rings are cached ranges of guest memory (``MemoryRegionCache``), buffers are mappings of it
(``address_space_map``), so rings and buffers may lie in device registers, across the end of RAM
or nowhere, and what follows from that is the memory model's own doing. Source: QEMU 10.0.2
``hw/virtio/virtio.c`` (``virtqueue_split_pop``, ``_fill``, ``_flush``, ``virtio_queue_empty``,
``virtio_init_region_cache``), and 7.2 where it differs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MASK64
from qemuglue.witness.dma.virtio_buffers import (
    Segment,
    Unfollowed,
    Window,
    bounce_doubt,
    gather,
)

NO_VECTOR = 0xFFFF

#: Descriptors of one chain (``VIRTQUEUE_MAX_SIZE``).
LONGEST_CHAIN = 1024

NEXT, WRITE, INDIRECT = 1, 2, 4
_NO_NOTIFY, _NO_INTERRUPT = 1, 1

#: Feature bits that change how queues work.
NOTIFY_ON_EMPTY, EVENT_IDX, VERSION_1 = 1 << 24, 1 << 29, 1 << 32
ACCESS_PLATFORM, PACKED, IN_ORDER, NOTIFICATION_DATA = 1 << 33, 1 << 34, 1 << 35, 1 << 38

#: Where a ring's parts are: (address, bytes) of descriptors, available and used ring.
Caches = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

#: (address, bytes, flags, next).
Descriptor = tuple[int, int, int, int]


class Broken(Exception):
    """``virtio_error``: the device does nothing more until it is reset. The text is QEMU's."""


@dataclass(slots=True)
class Queue:
    """One virtqueue. ``num`` counts descriptors; 0 is a queue that does not exist."""

    index: int
    default: int
    num: int = 0
    align: int = 4096
    desc: int = 0
    avail: int = 0
    used: int = 0
    #: What is cached, with the sizes of when it was; None while nothing is.
    caches: Caches | None = None
    last_avail: int = 0
    shadow_avail: int = 0
    used_index: int = 0
    signalled: int = 0
    signalled_valid: bool = False
    notification: bool = True
    in_use: int = 0
    vector: int = NO_VECTOR

    def __post_init__(self) -> None:
        self.num = self.default

    def reset(self) -> None:
        """``__virtio_queue_reset``; the alignment stays."""
        self.num = self.default
        self.desc = self.avail = self.used = 0
        self.caches = None
        self.last_avail = self.shadow_avail = self.used_index = self.signalled = self.in_use = 0
        self.signalled_valid = False
        self.notification = True
        self.vector = NO_VECTOR


class Host(Protocol):
    """What a ring asks of its device."""

    #: The space its rings and buffers lie in.
    memory: AddressSpace
    #: Features the driver chose.
    features: int
    version: tuple[int, ...]

    @property
    def big(self) -> bool:
        """Whether rings are big-endian (legacy devices of big-endian targets)."""

    @property
    def idle(self) -> bool:
        """Whether the device may not touch its queues (``virtio_device_disabled``)."""


@dataclass(slots=True)
class Chain:
    """The buffers of one request: those the device reads, then those it writes."""

    head: int
    outs: list[Segment] = field(default_factory=list)
    ins: list[Segment] = field(default_factory=list)

    def out_bytes(self, start: int, size: int) -> bytes:
        """``iov_to_buf`` of what the device reads."""
        return gather(self.outs, start, size)


class SplitRing:
    """The queues of one device. Raises Broken where QEMU gives the device up."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._windows: dict[tuple[int, int], Window] = {}

    # -- caches --------------------------------------------------------------------------------

    def sizes(self, queue: Queue) -> tuple[int, int, int]:
        """Bytes of descriptors, available and used ring (``virtio_queue_get_*_size``)."""
        event = 2 if self.host.features & EVENT_IDX else 0
        return 16 * queue.num, 4 + 2 * queue.num + event, 4 + 8 * queue.num + event

    def cache(self, queue: Queue) -> None:
        """``virtio_init_region_cache``: try to cache the rings whole."""
        queue.caches = None
        if not queue.desc:
            return
        desc, avail, used = self.sizes(queue)
        for name, addr, size, is_write in (
            ("desc", queue.desc, desc, False), ("used", queue.used, used, True),
            ("avail", queue.avail, avail, False),
        ):
            window = Window(self.host.memory, addr, size, is_write)
            window.close()
            if window.length < size:
                raise Broken(f"Cannot map {name}")
        queue.caches = (queue.desc, desc), (queue.avail, avail), (queue.used, used)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Rings are looked up once while this is open; nothing changes the map meanwhile."""
        outer, self._windows = self._windows, {}
        try:
            yield
        finally:
            for window in self._windows.values():
                window.close()
            self._windows = outer

    def _part(self, queue: Queue, number: int) -> Window | None:
        if queue.caches is None:
            return None
        window = self._windows.get((queue.index, number))
        if window is None:
            addr, size = queue.caches[number]
            window = Window(self.host.memory, addr, size, number == 2)
            self._windows[queue.index, number] = window
        return window

    def _load(self, queue: Queue, part: int, offset: int) -> int:
        """A 16-bit field; 0 where nothing is cached."""
        window = self._part(queue, part)
        return window.load16(offset, self.host.big) if window is not None else 0

    # -- notification --------------------------------------------------------------------------

    def set_notification(self, queue: Queue, enable: bool) -> None:
        """``virtio_queue_set_notification``: ask the driver for notifies, or for none."""
        queue.notification = enable
        if not queue.desc:
            return
        used = self._part(queue, 2)
        if self.host.features & EVENT_IDX:
            index = self._avail_index(queue)
            if enable and used is not None:
                used.store16(4 + 8 * queue.num, index, self.host.big)
        elif used is not None:
            flags = used.load16(0, self.host.big)
            flags = flags & ~_NO_NOTIFY if enable else flags | _NO_NOTIFY
            used.store16(0, flags, self.host.big)

    def _avail_index(self, queue: Queue) -> int:
        """``vring_avail_idx``."""
        if queue.caches is None:
            return 0
        queue.shadow_avail = self._load(queue, 1, 2)
        return queue.shadow_avail

    def empty(self, queue: Queue) -> bool:
        """``virtio_queue_empty``."""
        if self.host.idle or not queue.avail:
            return True
        if queue.shadow_avail != queue.last_avail:
            return False
        return self._avail_index(queue) == queue.last_avail

    def should_notify(self, queue: Queue) -> bool:
        """``virtio_split_should_notify``: whether the driver wants an interrupt."""
        features = self.host.features
        if features & NOTIFY_ON_EMPTY and not queue.in_use and self.empty(queue):
            return True
        if not features & EVENT_IDX:
            return not self._load(queue, 1, 0) & _NO_INTERRUPT
        valid, queue.signalled_valid = queue.signalled_valid, True
        old, new = queue.signalled, queue.used_index
        queue.signalled = new
        if not valid:
            return True
        event = self._load(queue, 1, 4 + 2 * queue.num)
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    # -- taking requests -----------------------------------------------------------------------

    def pop(self, queue: Queue) -> Chain | None:
        """``virtqueue_split_pop``: the next request, its buffers mapped."""
        if self.empty(queue):
            return None
        if queue.in_use >= queue.num:
            raise Broken("Virtqueue size exceeded")
        head = self._head(queue, queue.last_avail)
        queue.last_avail = (queue.last_avail + 1) & 0xFFFF
        if head >= queue.num:
            raise Broken(f"Guest says index {head} is available")
        if self.host.features & EVENT_IDX and queue.notification:
            used = self._part(queue, 2)
            if used is not None:
                used.store16(4 + 8 * queue.num, queue.last_avail, self.host.big)
        chain = Chain(head)
        with self._table(queue, head) as (window, first, most):
            try:
                self._collect(chain, window, first, most)
            except Broken:
                for segment in (*chain.outs, *chain.ins):
                    segment.unmap(0)
                raise
        queue.in_use += 1
        return chain

    def _head(self, queue: Queue, index: int) -> int:
        return self._load(queue, 1, 4 + 2 * (index % queue.num))

    @contextmanager
    def _table(self, queue: Queue, head: int) -> Iterator[tuple[Window, Descriptor, int]]:
        """(descriptors, the first one, how many there are): the ring's, or a table that the
        first one points at."""
        window = self._part(queue, 0)
        if window is None:
            raise Broken("Region caches not initialized")
        if window.length < 16 * queue.num:
            raise Broken("Cannot map descriptor ring")
        first = self._descriptor(window, head)
        addr, size, flags, _ = first
        if not flags & INDIRECT:
            yield window, first, queue.num
            return
        if not size or size % 16:
            raise Broken("Invalid size for indirect buffer table")
        table = Window(self.host.memory, addr, size, False)
        try:
            if table.length < size:
                raise Broken("Cannot map indirect buffer")
            yield table, self._descriptor(table, 0), size // 16
        finally:
            table.close()

    def _descriptor(self, window: Window, index: int) -> Descriptor:
        raw = window.read(16 * index, 16)
        found: Descriptor = struct.unpack(">QIHH" if self.host.big else "<QIHH", raw)
        return found

    def _collect(
        self, chain: Chain, window: Window, descriptor: Descriptor, most: int
    ) -> None:
        """Map the buffers of a chain, each before the next descriptor is read."""
        count = 0
        while True:
            addr, size, flags, index = descriptor
            if flags & WRITE:
                self._map(chain.ins, addr, size, True, LONGEST_CHAIN - len(chain.outs))
            elif chain.ins:
                raise Broken("Incorrect order for descriptors")
            else:
                self._map(chain.outs, addr, size, False, LONGEST_CHAIN)
            count += 1
            if count > most:
                raise Broken("Looped descriptor")
            if not flags & NEXT:
                return
            if index >= most:
                raise Broken(f"Desc next is {index}")
            descriptor = self._descriptor(window, index)

    def _map(
        self, segments: list[Segment], addr: int, size: int, is_write: bool, most: int
    ) -> None:
        """``virtqueue_map_desc``."""
        if not size:
            raise Broken("virtio: zero sized buffers are not allowed")
        while size:
            if len(segments) == most:
                raise Broken("virtio: too many write descriptors in indirect table")
            if bounce_doubt(self.host.memory, addr & MASK64, is_write):
                raise Unfollowed("it needs the bounce buffer that another device may hold")
            mapping = self.host.memory.map(addr & MASK64, size, is_write)
            if mapping is None:
                raise Broken("virtio: bogus descriptor or out of resources")
            segments.append(Segment(self.host.memory, mapping))
            addr += len(mapping)
            size -= len(mapping)

    # -- giving them back ----------------------------------------------------------------------

    def detach(self, queue: Queue, chain: Chain, size: int) -> None:
        """``virtqueue_detach_element``: the driver hears nothing of it."""
        queue.in_use -= 1
        self._unmap(chain, size)

    def push(self, queue: Queue, chain: Chain, size: int) -> None:
        """``virtqueue_push``: ``size`` bytes were written."""
        self._unmap(chain, size)
        if self.host.idle:
            queue.in_use -= 1
            return
        if not queue.used:
            return
        used = self._part(queue, 2)
        if used is not None:
            at = 4 + 8 * (queue.used_index % queue.num)
            used.write(at, struct.pack(
                ">II" if self.host.big else "<II", chain.head, size & 0xFFFF_FFFF))
        old, new = queue.used_index, (queue.used_index + 1) & 0xFFFF
        if used is not None:
            used.store16(2, new, self.host.big)
        queue.used_index = new
        queue.in_use -= 1
        ahead = (new - queue.signalled) & 0xFFFF
        if (ahead ^ 0x8000) - 0x8000 < (new - old) & 0xFFFF:
            queue.signalled_valid = False

    def _unmap(self, chain: Chain, size: int) -> None:
        """``virtqueue_unmap_sg``."""
        for segment in chain.ins:
            n = min(size, len(segment))
            segment.unmap(n)
            size -= n
        for segment in chain.outs:
            segment.unmap(len(segment))

    # -- looking ahead -------------------------------------------------------------------------

    def available(self, queue: Queue, most_in: int, most_out: int) -> int:
        """Bytes the driver offers to be written, counted until ``most_in`` and ``most_out`` are
        reached (``virtqueue_get_avail_bytes``)."""
        window = self._part(queue, 0) if queue.desc else None
        if window is None:
            return 0
        if window.length < 16 * queue.num:
            raise Broken("Cannot map descriptor ring")
        ins = outs = total = 0
        index = queue.last_avail
        while self._heads(queue, index):
            head = self._head(queue, index)
            if head >= queue.num:
                raise Broken(f"Guest says index {head} is available")
            index = (index + 1) & 0xFFFF
            with self._table(queue, head) as (table, descriptor, most):
                count = total
                if table is not window:
                    if total >= queue.num:
                        raise Broken("Looped descriptor")
                    count = 0
                while True:
                    _, size, flags, after = descriptor
                    count += 1
                    if count > most:
                        raise Broken("Looped descriptor")
                    if flags & WRITE:
                        ins = (ins + size) & 0xFFFF_FFFF
                    else:
                        outs = (outs + size) & 0xFFFF_FFFF
                    if ins >= most_in and outs >= most_out:
                        return ins
                    if not flags & NEXT:
                        break
                    if after >= most:
                        raise Broken(f"Desc next is {after}")
                    descriptor = self._descriptor(table, after)
                total = total + 1 if table is not window else count
        return ins

    def _heads(self, queue: Queue, index: int) -> int:
        """``virtqueue_num_heads``: requests waiting from ``index`` on."""
        if self.host.version < (8,) or queue.shadow_avail == index:
            self._avail_index(queue)
        count = (queue.shadow_avail - index) & 0xFFFF
        if count > queue.num:
            raise Broken(f"Guest moved used index from {index} to {queue.shadow_avail}")
        return count
