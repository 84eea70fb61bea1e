"""virtio devices: a queue set up as a driver would, requests put on it, and notifies.

The disk and the random numbers are known by what their registers are called; a legacy window does
not say what is behind it, so requests for a disk go there as well. About one use in five is wrong
on purpose: sizes of 0, chains that loop, rings where no RAM is, heads that are none. Sources: the
virtio 1.x specification; ``hw/virtio/virtio-pci.c``, ``virtio-mmio.c`` in QEMU.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.recipe import Scratch, ram_write
from qemuglue.program.recipes.virtio_requests import disk_requests, random_requests
from qemuglue.program.recipes.virtio_rings import Rings
from qemuglue.program.recipes.virtio_transport import (
    ACCESS_PLATFORM,
    EVENT_IDX,
    INDIRECT_DESC,
    VERSION_1,
    Legacy,
    Mmio,
    Modern,
    Transport,
)
from qemuglue.program.verbs import IO, MEMORY

COMMON, NOTIFY = "virtio-pci-common-", "virtio-pci-notify-"
LEGACY, MMIO = "virtio-pci", "virtio-mmio"

#: A legacy window of a disk is larger than that of random numbers, which have no configuration.
_SMALLEST_DISK = 0x40
_LARGEST_LEGACY = 0x100

#: Descriptors a queue has before anybody says another number.
_DISK_QUEUE, _RNG_QUEUE = 256, 8


class VirtioRecipe:
    """A disk or a source of random numbers, used through any of its transports."""

    name = "virtio: queues of a disk or of random numbers"

    def fits(self, layout: Layout) -> bool:
        return bool(_windows(layout))

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        transport, is_disk = _choose(rng, layout)
        return _Use(rng, scratch, transport, is_disk=is_disk, big=layout.big).operations()


class VirtioNotifyRecipe:
    """Notifies alone, of right and wrong sizes and values: ioeventfds take some of them."""

    name = "virtio: notifies"

    def fits(self, layout: Layout) -> bool:
        return bool(_windows(layout))

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        transport, _ = _choose(rng, layout)
        ops: list[Operation] = []
        if rng.random() < 0.7:
            ops += transport.status(rng.choice((4, 0xF, 7, 0, 0x4F)))
        for _ in range(rng.randint(1, 6)):
            ops += transport.wild_notify(rng)
        if rng.random() < 0.3:
            ops += transport.status(0)
        return ops


def _windows(layout: Layout) -> list[Range]:
    """Where registers of virtio devices are."""
    found = [
        each for each in layout.ranges(MEMORY)
        if each.region.startswith(COMMON) or each.region in (MMIO, LEGACY)
    ]
    if IO in layout.spaces:
        found += [each for each in layout.ranges(IO) if each.region == LEGACY]
    # What holds a device's modern registers has the name of its legacy ones.
    return [each for each in found if each.region != LEGACY or each.size <= _LARGEST_LEGACY]


def _choose(rng: Random, layout: Layout) -> tuple[Transport, bool]:
    """A transport, and whether a disk is, or may be, behind it."""
    windows = _windows(layout)
    mmio = [each for each in windows if each.region == MMIO]
    if mmio and rng.random() < 0.9:
        # Most windows have nothing behind them; boards fill them from one end.
        others = [each for each in windows if each.region != MMIO]
        window = rng.choice(others or [*mmio[:2], *mmio[-2:]])
    else:
        window = rng.choice(windows)
    if window.region == MMIO:
        return Mmio(window, modern=rng.random() < 0.5), rng.random() < 0.6
    if window.region == LEGACY:
        return Legacy(window), window.size >= _SMALLEST_DISK
    kind = window.region.removeprefix(COMMON)
    return Modern(window, NOTIFY + kind, 4), "rng" not in kind


class _Use:
    """One use of one device: reset, features, a queue, requests, looks at the result."""

    def __init__(
        self, rng: Random, scratch: Scratch, transport: Transport, *, is_disk: bool, big: bool
    ) -> None:
        self._big = big
        self._rng = rng
        self._scratch = scratch
        self._transport = transport
        self._is_disk = is_disk
        self._wrong = rng.random() < 0.2
        self._ops: list[Operation] = []

    def operations(self) -> list[Operation]:
        rng, transport = self._rng, self._transport
        rings = self._rings()
        features = VERSION_1 if rng.random() < 0.9 else 0
        if rng.random() < 0.8:
            features |= ACCESS_PLATFORM  # a device behind an IOMMU does nothing without
        features |= INDIRECT_DESC
        if rng.random() < 0.4:
            features |= EVENT_IDX
        rings.big = self._big and (transport.in_one_piece or not features & VERSION_1)
        self._ops += transport.start(features)
        if self._wrong and rng.random() < 0.2:
            rings.misplace(rng)
        early = rng.random() < 0.1
        if early:
            self._ops += transport.status(0xF)
        self._ops += transport.queue(0, rings)
        self._ops.append(ram_write(rings.avail, bytes(4)))
        self._ops.append(ram_write(rings.used, bytes(4)))
        if not early:
            self._ops += transport.status(0xF)
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._kick(rings)
        self._look(rings)
        return self._ops

    def _rings(self) -> Rings:
        rng = self._rng
        default = _DISK_QUEUE if self._is_disk else _RNG_QUEUE
        num = self._transport.size(rng, default)
        desc = self._scratch.take(16 * num, 4096)
        avail = self._scratch.take(6 + 2 * num, 2)
        used = self._scratch.take(6 + 8 * num, 4096)
        if not self._transport.in_one_piece and rng.random() < 0.3:
            avail, used = self._scratch.take(6 + 2 * num, 2), self._scratch.take(6 + 8 * num, 4)
        return Rings(desc, avail, used, num, devices=self._is_disk)

    def _kick(self, rings: Rings) -> None:
        rng = self._rng
        requests = disk_requests if self._is_disk else random_requests
        count = rng.choice((1, 1, 1, 2, 3))
        self._ops += requests(rng, self._scratch, rings, count, wrong=self._wrong)
        if rng.random() < 0.15:
            self._ops += self._transport.wild_notify(rng)
        self._ops += self._transport.notify(0)

    def _look(self, rings: Rings) -> None:
        rng = self._rng
        if rng.random() < 0.7:
            self._ops += self._transport.look()
        if rng.random() < 0.5:
            at = rings.used + 4 * rng.randint(0, 2)
            self._ops.append(Operation("readl", Place(None, 0, at & (1 << 64) - 1), 4))
