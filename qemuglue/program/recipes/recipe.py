"""What a recipe is, and the guest RAM that one may use.

A recipe is pure: layout and random numbers in, operations out. It names device registers as
``REGION+OFFSET`` (so a program moves with the BARs) and RAM by absolute address (so that the
numbers written into descriptors are those of the operations that fill the buffers).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

from qemuglue.errors import ProgramError
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Place
from qemuglue.program.verbs import ADDRESS_MASK

#: RAM below this belongs to a PC's firmware; a board's RAM may begin anywhere.
LOWEST = 0x10_0000


@dataclass(slots=True)
class Scratch:
    """Guest RAM to take buffers from: ``size`` bytes from ``start``, used from the beginning.

    What is taken twice by two recipes overlaps only if their scratches do.
    """

    start: int
    size: int
    used: int = field(default=0)

    def take(self, size: int, align: int = 1) -> int:
        """The address of ``size`` fresh bytes, a multiple of ``align`` (a power of two).

        :raise ProgramError: there is not so much left.
        """
        at = (self.start + self.used + align - 1) & -align
        if at + size > self.start + self.size:
            raise ProgramError(f"{size:#x} bytes do not fit into the RAM a recipe may use")
        self.used = at + size - self.start
        return at


class Recipe(Protocol):
    """One way to use one kind of device."""

    #: Words for a person: "edu: copy RAM to RAM through the device".
    name: str

    def fits(self, layout: Layout) -> bool:
        """Whether the machine shows the device (bus mastering and BARs may still be off)."""

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        """The operations, in order, all valid on ``layout``. Some draws are wrong on purpose
        (lengths of 0, addresses where nothing is, a ring that loops): that is fuzzing."""


def scratch_of(layout: Layout, rng: Random, size: int = 1 << 20) -> Scratch | None:
    """Part of the largest range of RAM, from a random page on; None where there is no RAM."""
    ram = [each for each in layout.ranges() if each.kind == "ram"]
    if not ram:
        return None
    largest = max(ram, key=lambda each: each.size)
    start = max(largest.start, LOWEST) if largest.last > LOWEST + size else largest.start
    room = largest.last + 1 - start
    size = min(size, room)
    pages = (room - size) >> 12
    return Scratch(start + (rng.randint(0, pages) << 12), size)


_WRITES = {1: "writeb", 2: "writew", 4: "writel", 8: "writeq"}
_SIZED = frozenset(_WRITES.values())
_READS = {1: "readb", 2: "readw", 4: "readl", 8: "readq"}


def register_write(region: str, offset: int, size: int, value: int, index: int = 0) -> Operation:
    """``value`` (a number) to a device register of 1, 2, 4 or 8 bytes."""
    return Operation(_WRITES[size], Place(region, index, offset), size, value)


def register_read(region: str, offset: int, size: int, index: int = 0) -> Operation:
    """A read of a device register of 1, 2, 4 or 8 bytes."""
    return Operation(_READS[size], Place(region, index, offset), size)


def as_sent(layout: Layout, operations: Iterable[Operation]) -> Iterator[Operation]:
    """The same with the numbers that named registers get turned round where the device's byte
    order is not the target's: recipes speak of the device's numbers."""
    for op in operations:
        if op.verb in _SIZED and op.place is not None and op.place.region is not None:
            op = replace(op, value=layout.number(op.place.region, op.value, op.size))
        yield op


def ram_write(addr: int, data: bytes) -> Operation:
    """Bytes into guest RAM at an absolute address, at least one. A sum that leaves the 64 bits
    goes on at 0, as the access itself would."""
    return Operation("write", Place(None, 0, addr & ADDRESS_MASK), len(data), 0, data)
