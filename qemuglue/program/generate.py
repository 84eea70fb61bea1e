"""Seeded generation of operations: which verbs, where, with what values, in which mix.

The mix is data (:class:`Weights`). The default reaches device regions and ports with at least
35 % of operations, straddles an edge between two ranges with at least 8 %, and uses every verb
but ``reset``. :func:`swarm` draws wild weights instead: random subsets of verbs and kinds left
out and the rest far apart, which finds what an even mix dilutes.

Nothing here knows what an access does; the same seed, layout and weights give the same
operations.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from types import MappingProxyType
from typing import TypeVar

from qemuglue.errors import ProgramError
from qemuglue.program.aim import Aim, place_at, reach
from qemuglue.program.layout import Layout, Row
from qemuglue.program.operation import Operation, Place
from qemuglue.program.values import SPECIAL, pointer
from qemuglue.program.verbs import ADDRESS_MASK, IO, VERBS, Kind

#: An operation and its address on the layout it was made for; None for events.
Resolved = tuple[Operation, int | None]
_Key = TypeVar("_Key")
_ABSOLUTE = int(Aim.ABSOLUTE)

_VERB_WEIGHTS = MappingProxyType({
    "readb": 7.0, "writeb": 7.0, "readw": 8.0, "writew": 8.0, "readl": 11.0, "writel": 11.0,
    "readq": 8.0, "writeq": 8.0, "read": 6.0, "write": 6.0, "memset": 4.0,
    "inb": 3.0, "outb": 3.0, "inw": 2.5, "outw": 2.5, "inl": 2.5, "outl": 2.5,
    # Costs a machine a round trip and ends its batch: a campaign that wants it says so.
    "reset": 0.0,
})
_AIM_WEIGHTS = MappingProxyType({
    Aim.UNIFORM: 14.0, Aim.ALIGNED: 20.0, Aim.REGISTER: 20.0, Aim.NEAR_START: 12.0,
    Aim.NEAR_LAST: 9.0, Aim.CROSS_LAST: 11.0, Aim.CROSS_START: 9.0, Aim.ABSOLUTE: 5.0,
})
_KIND_WEIGHTS = MappingProxyType({
    "device": 46.0, "ram": 22.0, "rom": 9.0, "romd": 6.0, "ramd": 4.0, "container-io": 5.0,
    "unassigned": 8.0,
})
#: Bits of (length - 1) of byte strings: most fit two cache lines, a few cross pages. On a
#: device every four bytes are an access of their own, so a long one costs a thousand short ones.
_LENGTH_BITS = (1, 2, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6) * 5 + (7, 7, 8, 12)


@dataclass(frozen=True, eq=False)
class Weights:
    """What a generator prefers; every weight is relative to its table and at least 0.

    ``kinds`` are kinds of ranges; a kind that a space lacks drops out, one that is not listed
    weighs ``other_kind``. Within a kind, every range is as likely as every other.
    """

    verbs: Mapping[str, float] = field(default_factory=lambda: _VERB_WEIGHTS)
    aims: Mapping[Aim, float] = field(default_factory=lambda: _AIM_WEIGHTS)
    kinds: Mapping[str, float] = field(default_factory=lambda: _KIND_WEIGHTS)
    other_kind: float = 4.0
    #: Chance that an operation acts at the place of the previous one in its space: a write that
    #: is read back, two widths of the same register.
    again: float = 0.12

    def __post_init__(self) -> None:
        numbers = (*self.verbs.values(), *self.aims.values(), *self.kinds.values(),
                   self.other_kind, self.again)
        unknown = [verb for verb in self.verbs if verb not in VERBS]
        if unknown or any(number < 0 for number in numbers) or self.again > 1:
            raise ProgramError(f"bad weights {unknown or ''}; use known verbs, numbers from 0, "
                               "and a chance of at most 1")
        if sum(self.verbs.values()) <= 0 or sum(self.aims.values()) <= 0:
            raise ProgramError("weights leave nothing to do; give a verb and an aim a weight")


DEFAULT_WEIGHTS = Weights()


def swarm(rng: Random, base: Weights = DEFAULT_WEIGHTS) -> Weights:
    """Wild weights: about half of the verbs, aims and kinds of ``base``, scaled by 1/8 to 8.

    What weighs 0 in ``base`` stays out.
    """
    return Weights(
        verbs=_wild(rng, base.verbs), aims=_wild(rng, base.aims), kinds=_wild(rng, base.kinds),
        other_kind=base.other_kind, again=rng.choice((0.0, 0.1, 0.3, 0.6)),
    )


def _wild(rng: Random, weights: Mapping[_Key, float]) -> dict[_Key, float]:
    alive = [key for key, weight in weights.items() if weight > 0]
    if not alive:
        return dict(weights)
    kept = {key for key in alive if rng.random() < 0.5} or {rng.choice(alive)}
    return {key: weight * 2.0 ** rng.uniform(-3, 3) if key in kept else 0.0
            for key, weight in weights.items()}


class Generator:
    """Weights worked out for one layout; make it once, draw many times. ``only`` are the first
    addresses of the ranges to aim at; all are aimed at without it."""

    def __init__(
        self, layout: Layout, weights: Weights = DEFAULT_WEIGHTS,
        only: Container[int] | None = None,
    ) -> None:
        self.layout = layout
        self.weights = weights
        self._only = only
        self._verbs = [VERBS[verb] for verb in weights.verbs]
        self._verb_sums = list(accumulate(weights.verbs.values()))
        self._aims = [int(aim) for aim in weights.aims]
        self._aim_sums = list(accumulate(weights.aims.values()))
        self._rows, self._row_sums = self._table(layout.rows)
        self._ports, self._port_sums = self._table(layout.port_rows)

    def _table(self, rows: tuple[Row, ...]) -> tuple[list[Row], list[float]]:
        """Each distinct row, and running sums of its share of its kind's weight."""
        distinct = list(dict.fromkeys(rows))
        if self._only is not None:
            distinct = [row for row in distinct if row.start in self._only] or distinct
        count: dict[str, int] = {}
        for row in distinct:
            count[row.kind] = count.get(row.kind, 0) + 1
        kinds, other = self.weights.kinds, self.weights.other_kind
        shares = [kinds.get(row.kind, other) / count[row.kind] for row in distinct]
        if not any(shares):  # every kind of this space is switched off: aim at anything
            shares = [1.0] * len(distinct)
        return distinct, list(accumulate(shares))

    def operations(self, rng: Random, n: int) -> tuple[Operation, ...]:
        """``n`` valid operations."""
        return tuple([op for op, _ in self.resolved(rng, n)])

    def resolved(self, rng: Random, n: int) -> list[Resolved]:
        """The same with their addresses, which the generator knows anyway."""
        infos = rng.choices(self._verbs, cum_weights=self._verb_sums, k=n)
        aims = rng.choices(self._aims, cum_weights=self._aim_sums, k=n)
        rows = rng.choices(self._rows, cum_weights=self._row_sums, k=n)
        bits, random, again = rng.getrandbits, rng.random, self.weights.again
        last: dict[str, tuple[Place, int]] = {}
        made: list[Resolved] = []
        for info, aim, row in zip(infos, aims, rows, strict=True):
            space = info.space
            if space is None:
                made.append((Operation(info.name, None, 0), None))
                continue
            size = info.size or 1 + bits(_LENGTH_BITS[bits(4)])
            if again and random() < again and space in last:
                place, address = last[space]
            elif aim == _ABSOLUTE:
                address = bits(16) if space == IO else self._anywhere(rng)
                place = Place(None, 0, address, None)
                last[space] = place, address
            else:
                if space == IO:
                    row = rng.choices(self._ports, cum_weights=self._port_sums)[0]
                last[space] = place, address = place_at(
                    self.layout, row, reach(aim, row[1], size, bits(64)), space)
            if not info.is_write:
                made.append((Operation(info.name, place, size), address))
            elif info.kind is Kind.FILL:
                made.append((Operation(info.name, place, size, bits(8)), address))
            elif info.size is None:
                made.append((Operation(info.name, place, size, 0, rng.randbytes(size)), address))
            else:
                made.append((Operation(info.name, place, size, self.value(rng, size)), address))
        return made

    def operation(self, rng: Random) -> Operation:
        """One operation; ``operations`` is quicker for many."""
        return self.resolved(rng, 1)[0][0]

    def value(self, rng: Random, size: int) -> int:
        """A value of ``size`` bytes: random, small, one bit, telling, or a pointer into RAM."""
        draw = rng.getrandbits(4)
        if draw < 6:
            return rng.getrandbits(8 * size)
        if draw < 9:
            return rng.getrandbits(4)
        if draw < 11:
            return 1 << int(rng.random() * 8 * size)
        if draw < 14:
            return SPECIAL[rng.getrandbits(4)] & ((1 << 8 * size) - 1)
        return pointer(self.layout.pointers, rng.getrandbits(64)) & ((1 << 8 * size) - 1)

    @staticmethod
    def _anywhere(rng: Random) -> int:
        """Any address, small ones as likely as large ones; one in eight just below the wrap."""
        if not rng.getrandbits(3):
            return ADDRESS_MASK - rng.getrandbits(5)
        return rng.getrandbits(rng.getrandbits(6) + 1)


def generate(
    rng: Random, layout: Layout, n: int, weights: Weights = DEFAULT_WEIGHTS,
) -> tuple[Operation, ...]:
    """``n`` valid operations for a machine. For many programs keep a :class:`Generator`."""
    return Generator(layout, weights).operations(rng, n)


def generate_resolved(
    rng: Random, layout: Layout, n: int, weights: Weights = DEFAULT_WEIGHTS,
) -> list[Resolved]:
    """As :func:`generate`, each operation with its address."""
    return Generator(layout, weights).resolved(rng, n)


def crosses(layout: Layout, op: Operation, address: int) -> bool:
    """Whether an access covers bytes of more than one range, or wraps at the end of its space."""
    space = op.info.space
    if space is None:
        return False
    found = layout.range_at(address, space)
    return address + op.size - 1 > found.last
