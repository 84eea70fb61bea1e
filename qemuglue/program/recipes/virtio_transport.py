"""The registers of a virtio device as a driver writes them: modern PCI, legacy PCI, MMIO."""

from __future__ import annotations

from random import Random
from typing import Protocol

from qemuglue.program.layout import Range
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.recipe import register_read, register_write
from qemuglue.program.recipes.virtio_rings import Rings
from qemuglue.program.verbs import IO

VERSION_1, EVENT_IDX, INDIRECT_DESC, ACCESS_PLATFORM = 1 << 32, 1 << 29, 1 << 28, 1 << 33

_LOW = 0xFFFF_FFFF
_DRIVER = 3
_FEATURES_OK = 8


class Transport(Protocol):
    """One device's registers."""

    #: Whether a queue's parts follow one another in memory, so that one address tells of all.
    in_one_piece: bool

    def size(self, rng: Random, default: int) -> int:
        """Descriptors of the queue to be set up."""

    def start(self, features: int) -> list[Operation]:
        """Reset it and choose features."""

    def queue(self, index: int, rings: Rings) -> list[Operation]:
        """Set a queue up."""

    def status(self, value: int) -> list[Operation]:
        """Write the status."""

    def notify(self, index: int) -> list[Operation]:
        """Notify a queue as one should."""

    def wild_notify(self, rng: Random) -> list[Operation]:
        """Notify some queue somehow."""

    def look(self) -> list[Operation]:
        """Read the status, and why there was an interrupt."""


def _chosen(rng: Random) -> int:
    return rng.choice((4, 8, 8, 16, 16, 64, 256))


class Modern:
    """Common configuration and notifies in a memory BAR; ``apart`` bytes between notifies."""

    in_one_piece = False

    def __init__(self, common: Range, notify: str, apart: int) -> None:
        self._name = common.region
        self._index = common.index
        self._notify = notify
        self._apart = apart

    def size(self, rng: Random, default: int) -> int:
        return _chosen(rng)

    def start(self, features: int) -> list[Operation]:
        ops = [self._write(0x14, 1, 0), self._write(0x14, 1, _DRIVER)]
        for half in range(2):
            ops.append(self._write(0x08, 4, half))
            ops.append(self._write(0x0C, 4, features >> 32 * half & _LOW))
        return [*ops, self._write(0x14, 1, _DRIVER | _FEATURES_OK)]

    def queue(self, index: int, rings: Rings) -> list[Operation]:
        ops = [self._write(0x16, 2, index), self._write(0x18, 2, rings.num)]
        for offset, addr in ((0x20, rings.desc), (0x28, rings.avail), (0x30, rings.used)):
            ops.append(self._write(offset, 4, addr & _LOW))
            ops.append(self._write(offset + 4, 4, addr >> 32))
        return [*ops, self._write(0x1C, 2, 1)]

    def status(self, value: int) -> list[Operation]:
        return [self._write(0x14, 1, value)]

    def notify(self, index: int) -> list[Operation]:
        return [register_write(self._notify, self._apart * index, 2, index, self._index)]

    def wild_notify(self, rng: Random) -> list[Operation]:
        size = rng.choice((1, 2, 2, 4, 8))
        offset = rng.choice((0, 0, 0, 2, 4, 8, rng.randrange(64)))
        value = rng.choice((0, 0, 1, 0xFFFF, 0x10000)) & (1 << 8 * size) - 1
        return [register_write(self._notify, offset, size, value, self._index)]

    def look(self) -> list[Operation]:
        return [register_read(self._name, 0x14, 1, self._index)]

    def _write(self, offset: int, size: int, value: int) -> Operation:
        return register_write(self._name, offset, size, value, self._index)


_OUT = {1: "outb", 2: "outw", 4: "outl"}


class Legacy:
    """The registers of before virtio 1.0, in an I/O BAR: ports, or where a board shows them in
    memory."""

    in_one_piece = True

    def __init__(self, window: Range) -> None:
        self._name = window.region
        self._index = window.index
        self._ports = window.space == IO

    def size(self, rng: Random, default: int) -> int:
        return default

    def start(self, features: int) -> list[Operation]:
        return [self._out(18, 1, 0), self._out(18, 1, 1), self._out(4, 4, features & _LOW)]

    def queue(self, index: int, rings: Rings) -> list[Operation]:
        return [self._out(14, 2, index), self._out(8, 4, rings.desc >> 12 & _LOW)]

    def status(self, value: int) -> list[Operation]:
        return [self._out(18, 1, value & 0xFF)]

    def notify(self, index: int) -> list[Operation]:
        return [self._out(16, 2, index)]

    def wild_notify(self, rng: Random) -> list[Operation]:
        size = rng.choice((1, 2, 2, 4))
        value = rng.choice((0, 0, 1, 0xFFFF, 0x10000)) & (1 << 8 * size) - 1
        return [self._out(rng.choice((16, 16, 17)), size, value)]

    def look(self) -> list[Operation]:
        if not self._ports:
            return [register_read(self._name, at, 1, self._index) for at in (18, 19)]
        return [Operation("inb", Place(self._name, self._index, at), 1) for at in (18, 19)]

    def _out(self, offset: int, size: int, value: int) -> Operation:
        if not self._ports:
            return register_write(self._name, offset, size, value, self._index)
        return Operation(_OUT[size], Place(self._name, self._index, offset), size, value)


class Mmio:
    """A window of 512 bytes. What it is, legacy or modern, only the device knows."""

    def __init__(self, window: Range, *, modern: bool) -> None:
        self._name = window.region
        self._index = window.index
        self._modern = modern
        self.in_one_piece = not modern

    def size(self, rng: Random, default: int) -> int:
        return _chosen(rng)

    def start(self, features: int) -> list[Operation]:
        ops = [self._write(0x70, 0), self._write(0x70, _DRIVER)]
        if not self._modern:
            return [*ops, self._write(0x24, 0), self._write(0x20, features & _LOW),
                    self._write(0x28, 4096)]
        for half in range(2):
            ops.append(self._write(0x24, half))
            ops.append(self._write(0x20, features >> 32 * half & _LOW))
        return [*ops, self._write(0x70, _DRIVER | _FEATURES_OK)]

    def queue(self, index: int, rings: Rings) -> list[Operation]:
        ops = [self._write(0x30, index), self._write(0x38, rings.num)]
        if not self._modern:
            return [*ops, self._write(0x3C, 4096), self._write(0x40, rings.desc >> 12 & _LOW)]
        for offset, addr in ((0x80, rings.desc), (0x90, rings.avail), (0xA0, rings.used)):
            ops.append(self._write(offset, addr & _LOW))
            ops.append(self._write(offset + 4, addr >> 32))
        return [*ops, self._write(0x44, 1)]

    def status(self, value: int) -> list[Operation]:
        return [self._write(0x70, value)]

    def notify(self, index: int) -> list[Operation]:
        return [self._write(0x50, index)]

    def wild_notify(self, rng: Random) -> list[Operation]:
        size = rng.choice((1, 2, 4, 4, 4))
        value = rng.choice((0, 0, 1, 0xFFFF, 0x10000)) & (1 << 8 * size) - 1
        offset = rng.choice((0x50, 0x50, 0x52))
        return [register_write(self._name, offset, size, value, self._index)]

    def look(self) -> list[Operation]:
        return [register_read(self._name, at, 4, self._index) for at in (0x70, 0x60)]

    def _write(self, offset: int, value: int) -> Operation:
        return register_write(self._name, offset, 4, value, self._index)
