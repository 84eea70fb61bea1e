"""edu: bytes into the device, out of it again somewhere else, and what else its registers take.

Sources: QEMU ``hw/misc/edu.c``, ``docs/specs/edu.rst``.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.recipe import Scratch, ram_write, register_read, register_write
from qemuglue.program.values import stream

REGION: Final = "edu-mmio"

_SRC, _DST, _CNT, _CMD = 0x80, 0x88, 0x90, 0x98
_RUN, _TO_RAM, _IRQ = 0x1, 0x2, 0x4
#: The device's own memory, and how much of the address it passes on.
_START, _SIZE, _MASK = 0x40000, 0x1000, (1 << 28) - 1
#: Factorial, status, interrupt status, raise, acknowledge.
_FACTORIAL, _STATUS, _RAISED, _RAISE, _LOWER = 0x08, 0x20, 0x24, 0x60, 0x64

#: Of all transfers, so many are wrong on purpose.
WRONG: Final = 0.2


class EduRecipe:
    """RAM to the device, then the device to RAM, each with parameters of its own."""

    name = "edu: RAM copied through the device"

    def fits(self, layout: Layout) -> bool:
        """Whether the machine shows its registers."""
        return any(each.region == REGION for each in layout.ranges())

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        """A buffer, one or two transfers each way, and a look at what came of them."""
        shown = [each for each in layout.ranges() if each.region == REGION]
        index = rng.choice(shown).index
        buffer = scratch.take(2 * _SIZE, 8)
        size = _length(rng)
        data = stream(rng.getrandbits(64), min(size, 64) or 1)
        ops = [ram_write(buffer + rng.randrange(8), data)]
        for _ in range(rng.randint(1, 2)):
            at = rng.randint(0, max(0, _SIZE - size - 1))
            ops += self._transfer(
                rng, layout, index, (buffer, _START + at, size, _RUN))
            other = rng.choice((buffer + _SIZE, buffer + rng.randrange(64)))
            ops += self._transfer(
                rng, layout, index, (_START + at, other, size, _RUN | _TO_RAM))
            ops.append(Operation("read", Place(None, 0, other), max(1, min(size, 64))))
        if rng.random() < 0.4:
            ops += _others(rng, index)
        return ops

    def _transfer(
        self, rng: Random, layout: Layout, index: int, told: tuple[int, int, int, int]
    ) -> list[Operation]:
        """Source, destination, count and command, in this order or any other; sometimes one of
        them once more while the device is busy."""
        values = dict(zip((_SRC, _DST, _CNT, _CMD), told, strict=True))
        if rng.random() < WRONG:
            _spoil(rng, layout, values)
        if rng.random() < 0.2:
            values[_CMD] |= _IRQ
        order = [_SRC, _DST, _CNT]
        rng.shuffle(order)
        ops = [_write(rng, index, each, values[each]) for each in (*order, _CMD)]
        if rng.random() < 0.3:
            again = rng.choice((*order, _CMD))
            ops.append(_write(rng, index, again, rng.choice((_START, 0, 1, 5, values[again] + 8))))
        if rng.random() < 0.3:
            ops.append(register_read(REGION, rng.choice((_SRC, _DST, _CNT, _CMD)), 8, index))
        return ops


def _length(rng: Random) -> int:
    """Short ones, whole ones and those at the borders."""
    return rng.choice((1, 4, 8, rng.randint(1, 64), rng.randint(1, _SIZE - 1), _SIZE - 1))


def _spoil(rng: Random, layout: Layout, values: dict[int, int]) -> None:
    """One thing wrong: the length, the device's own address, the other one, or the direction."""
    own, other = (_SRC, _DST) if values[_CMD] & _TO_RAM else (_DST, _SRC)
    what = rng.randrange(6)
    if what == 0:
        values[_CNT] = rng.choice((0, _SIZE, _SIZE + 1, 1 << 31, (1 << 64) - 1))
    elif what == 1:
        values[own] = rng.choice((0, _START - 1, _START + _SIZE, (1 << 64) - 1))
    elif what == 2:  # into ROM, a device or a hole
        place: Range = rng.choice(layout.ranges())
        values[other] = (place.start + rng.randrange(place.size)) & (1 << 64) - 1
    elif what == 3:  # what the mask takes away
        values[other] |= rng.choice((1 << 28, 1 << 40, (_MASK + 1) * rng.randint(1, 7)))
    elif what == 4:
        values[_CMD] ^= _TO_RAM
    else:
        values[_CMD] &= ~_RUN


def _write(rng: Random, index: int, register: int, value: int) -> Operation:
    """Most registers take 4 bytes, too; what does not fit into them is lost then."""
    size = 4 if value < 1 << 32 and rng.random() < 0.6 else 8
    return register_write(REGION, register, size, value & ((1 << 8 * size) - 1), index)


def _others(rng: Random, index: int) -> list[Operation]:
    """The registers that have nothing to do with transfers."""
    ops = []
    for _ in range(rng.randint(1, 4)):
        register = rng.choice((0, 4, _FACTORIAL, _STATUS, _RAISED, _RAISE, _LOWER))
        if rng.random() < 0.5:
            ops.append(register_read(REGION, register, 4, index))
        else:
            value = rng.choice((0, 1, 5, 0x80, 0x100, 0x181))
            ops.append(register_write(REGION, register, 4, value, index))
    return ops
