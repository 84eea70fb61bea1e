"""The three parts of a split virtqueue in guest RAM, as a driver fills them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from qemuglue.program.operation import Operation
from qemuglue.program.recipes.recipe import Scratch, ram_write

NEXT, WRITE, INDIRECT = 1, 2, 4

#: Where no RAM is on most machines, or only the last of it, or a device.
NOWHERE = (0xFFFF_FFFF_FFFF_F000, 0x8_0000_0000_0000, 0xFED0_0000, 0xFEE0_0000, 0xA_0000, 1)


@dataclass(frozen=True, slots=True)
class Buffer:
    """One buffer of a request; ``write`` is one that the device fills."""

    addr: int
    size: int
    write: bool = False


@dataclass(slots=True)
class Rings:
    """A queue of ``num`` descriptors; ``index`` counts what was made available."""

    desc: int
    avail: int
    used: int
    num: int
    index: int = 0
    next: int = 0
    #: Wrong addresses may be those of devices.
    devices: bool = True
    #: Numbers in memory are big-endian: those of a device of before virtio 1.0 on such a target.
    big: bool = False

    def pack(self, form: str, *values: int) -> bytes:
        """``struct.pack`` in the byte order of this queue; ``form`` names none."""
        return struct.pack((">" if self.big else "<") + form, *values)

    @property
    def nowhere(self) -> Sequence[int]:
        """Addresses for buffers that are wrong."""
        return NOWHERE if self.devices else NOWHERE[:2]

    def misplace(self, rng: Random) -> None:
        """Put one of the parts where it cannot work."""
        part = rng.choice(("desc", "avail", "used"))
        setattr(self, part, rng.choice((*NOWHERE, getattr(self, part) + 1)))

    def chain(self, scratch: Scratch, buffers: Sequence[Buffer], *, indirect: bool,
              twist: Random | None = None) -> list[Operation]:
        """Make a request of these buffers available. A ``twist`` spoils something of it."""
        count = 1 if indirect else len(buffers)
        first = self.next % self.num if self.next % self.num + count <= self.num else 0
        self.next = first + count
        ops: list[Operation] = []
        if indirect:
            table = scratch.take(16 * max(1, len(buffers)), 16)
            ops += self._table(table, buffers, 0, twist)
            size = 16 * len(buffers)
            if twist is not None and twist.random() < 0.3:
                size = twist.choice((0, 8, size + 16, size - 16, 1 << 31)) & 0xFFFF_FFFF
            ops.append(ram_write(
                self.desc + 16 * first, self.pack("QIHH", table, size, INDIRECT, 0)))
        else:
            ops += self._table(self.desc, buffers, first, twist)
        head = first
        if twist is not None and twist.random() < 0.15:
            head = twist.choice((self.num, 0xFFFF, self.num - 1, 0))
        slot = self.avail + 4 + 2 * (self.index % self.num)
        ops.append(ram_write(slot, self.pack("H", head)))
        self.index = (self.index + 1) & 0xFFFF
        return ops

    def publish(self, flags: int = 0, ahead: int = 0) -> Operation:
        """Tell the device of what was made available; ``ahead`` of the truth."""
        index = (self.index + ahead) & 0xFFFF
        return ram_write(self.avail, self.pack("HH", flags, index))

    def _table(
        self, at: int, buffers: Sequence[Buffer], first: int, twist: Random | None
    ) -> list[Operation]:
        """Descriptors of one chain, from number ``first`` of a table at ``at``."""
        ops: list[Operation] = []
        for number, buffer in enumerate(buffers):
            index = first + number
            is_last = number == len(buffers) - 1
            flags = (0 if is_last else NEXT) | (WRITE if buffer.write else 0)
            addr, size, after = buffer.addr, buffer.size, index + 1
            if twist is not None and twist.random() < 0.15:
                addr = twist.choice((*self.nowhere, addr + 1))
            if twist is not None and twist.random() < 0.1:
                size = twist.choice((0, 1, size + 1, 0x10000))
            if twist is not None and twist.random() < 0.1:
                flags ^= twist.choice((NEXT, WRITE, INDIRECT))
            if twist is not None and twist.random() < 0.1:
                after = twist.choice((first, index, 0xFFFF))
            ops.append(ram_write(
                at + 16 * index, self.pack("QIHH", addr & (1 << 64) - 1, size, flags, after)))
        return ops
