"""Mutations that a watcher's hints make possible: what a driver does with a register it knows.

Each takes (random numbers, operations, hints) and changes the operations in place, or does
nothing where there is no hint. ``touch`` reads or writes a telling register; ``modify`` reads it
and writes a value it has shown back with a bit changed; ``pair`` writes an index and uses the
data register beside it; ``answer`` gives a write a value that some register has returned.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from qemuglue.program.hints import Hints
from qemuglue.program.operation import Operation, Place
from qemuglue.program.values import SPECIAL
from qemuglue.program.verbs import ADDRESS_MASK, IO, MEMORY, PORT_MAX, Kind

_READS = {MEMORY: {1: "readb", 2: "readw", 4: "readl", 8: "readq"},
          IO: {1: "inb", 2: "inw", 4: "inl"}}
_WRITES = {MEMORY: {1: "writeb", 2: "writew", 4: "writel", 8: "writeq"},
           IO: {1: "outb", 2: "outw", 4: "outl"}}
#: Registers that belong together are this many bytes apart, by the size of the first.
_STRIDES = {1: (1, 2, 4), 2: (2, 1, 4), 4: (4, 8, 1), 8: (8, 4, 2)}
#: Most operations that one of these adds.
MAX_ADDED = 4

_Ops = list[Operation]
Hinted = Callable[[Random, _Ops, Hints], None]


def access(space: str, place: Place, size: int, value: int | None) -> Operation:
    """A sized read, or with ``value`` a write of its lowest bytes; a size that the space does
    not have becomes the largest."""
    verbs = (_READS if value is None else _WRITES)[space]
    size = size if size in verbs else max(verbs)
    mask = (1 << 8 * size) - 1
    return Operation(verbs[size], place, size, 0 if value is None else value & mask)


def near(rng: Random, value: int, size: int) -> int:
    """A value near ``value`` or a telling one, ``size`` bytes wide."""
    draw = rng.getrandbits(3)
    if draw < 3:
        value ^= 1 << rng.randrange(8 * size)
    elif draw < 5:
        value += rng.choice((-1, 1, -4, 4))
    elif draw < 6:
        value = rng.choice(SPECIAL)
    elif draw < 7:
        value = rng.getrandbits(8 * size)
    else:
        value = ~value
    return value & ((1 << 8 * size) - 1)


def some_value(rng: Random, hints: Hints, space: str, place: Place, size: int) -> int:
    """One that some register has shown, maybe with a bit changed; or small, one bit, telling."""
    seen = hints.value(rng, space, place) if rng.getrandbits(2) else None
    if seen is None:
        return rng.choice((rng.getrandbits(3), 1 << rng.randrange(8 * size),
                           rng.choice(SPECIAL), rng.getrandbits(8 * size)))
    return seen if not rng.getrandbits(2) else seen ^ 1 << rng.randrange(8 * size)


def _size(rng: Random, usual: int) -> int:
    return usual if rng.getrandbits(2) else rng.choice((1, 2, 4, 8))


def touch(rng: Random, ops: _Ops, hints: Hints) -> None:
    """One to MAX_ADDED accesses to telling registers, in one place."""
    at = rng.randint(0, len(ops))
    for _ in range(rng.randint(1, MAX_ADDED)):
        found = hints.register(rng)
        if found is None:
            return
        space, place, usual = found
        size = _size(rng, usual)
        value = some_value(rng, hints, space, place, size) if rng.random() < 0.7 else None
        ops.insert(at, access(space, place, size, value))
        at += 1


def modify(rng: Random, ops: _Ops, hints: Hints) -> None:
    """Read a register and write what it has shown with one bit changed."""
    found = hints.register(rng)
    if found is None:
        return
    space, place, size = found
    value = hints.value(rng, space, place) or 0
    at = rng.randint(0, len(ops))
    ops[at:at] = [access(space, place, size, None),
                  access(space, place, size, value ^ 1 << rng.randrange(8 * size))]


def pair(rng: Random, ops: _Ops, hints: Hints) -> None:
    """An index, and the data register beside it (before it, one time in four)."""
    found = hints.register(rng)
    if found is None:
        return
    space, place, size = found
    stride = rng.choice(_STRIDES.get(size, (size,)))
    offset = place.offset + (stride if rng.getrandbits(2) else -stride)
    limit = PORT_MAX if space == IO and place.region is None else ADDRESS_MASK
    data = Place(place.region, place.index, offset & limit, place.space)
    width = _size(rng, size)
    value = some_value(rng, hints, space, data, width) if rng.getrandbits(1) else None
    at = rng.randint(0, len(ops))
    ops[at:at] = [access(space, place, size, rng.getrandbits(rng.randint(1, 8))),
                  access(space, data, width, value)]


def answer(rng: Random, ops: _Ops, hints: Hints) -> None:
    """Another value for a write: one that a register has returned, or one near it."""
    writes = [at for at, op in enumerate(ops)
              if op.info.is_write and op.info.kind is not Kind.FILL and op.info.size is not None]
    if not writes:
        return
    at = rng.choice(writes)
    op = ops[at]
    if op.place is None or op.info.space is None:
        return
    value = hints.value(rng, op.info.space, op.place)
    if value is None:
        return
    mask = (1 << 8 * op.size) - 1
    value = value & mask if rng.getrandbits(1) else near(rng, value & mask, op.size)
    ops[at] = Operation(op.verb, op.place, op.size, value)


#: By name, with how often each is taken relative to the others.
HINTED: dict[str, tuple[Hinted, float]] = {
    "touch": (touch, 6.0), "modify": (modify, 4.0), "pair": (pair, 2.0), "answer": (answer, 3.0),
}
