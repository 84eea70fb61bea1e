"""Mutation and crossover that keep a program a program. Seeded; every result is validated.

One mutation does one thing to one operation or stretch of operations; :func:`mutate` stacks a
few. Structure-blind byte mutation is libFuzzer's and works on ``codec``; this is for engines
and tools that hold programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from random import Random
from types import MappingProxyType
from typing import Protocol

from qemuglue.program.generate import DEFAULT_WEIGHTS, Generator, Weights
from qemuglue.program.hinted import HINTED, Hinted, near
from qemuglue.program.hints import Hints
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Place, Program, recast
from qemuglue.program.verbs import ADDRESS_MASK, IO, MAX_LENGTH, PORT_MAX, VERBS, Kind

#: Operations a mutated program keeps at most, unless the caller says otherwise.
DEFAULT_MAX_OPS = 256
#: Longest stretch one mutation inserts, deletes or copies.
MAX_STRETCH = 8

_WEIGHTS = MappingProxyType({
    "insert": 4.0, "delete": 3.0, "duplicate": 2.0, "swap": 2.0, "place": 3.0, "verb": 2.0,
    "value": 4.0, "size": 2.0, "nudge": 4.0, "move": 2.0, "retarget": 1.0,
})

#: The verbs an operation may turn into: the others of its space.
_VERBS_OF = {
    space: tuple(name for name, info in VERBS.items() if info.space == space)
    for space in {info.space for info in VERBS.values()} - {None}
}


@dataclass(frozen=True, eq=False)
class MutateOptions:
    """How a mutator goes about it. ``weights`` are relative, by name of the mutation."""

    weights: Mapping[str, float] = field(default_factory=lambda: _WEIGHTS)
    max_ops: int = DEFAULT_MAX_OPS
    #: Chance that another mutation follows; 0.5 stacks two on average.
    more: float = 0.5
    #: What inserted operations and new places are drawn with.
    generate: Weights = DEFAULT_WEIGHTS
    #: Weight of all hinted mutations (``hinted``) against all others, where there are hints.
    hinted: float = 1.0


class Draws(Protocol):
    """What operations are drawn from: a generator, or recipes."""

    def operations(self, rng: Random, n: int) -> tuple[Operation, ...]:
        """``n`` valid operations."""


DEFAULT_OPTIONS = MutateOptions()
_Ops = list[Operation]


def mutate(
    rng: Random, program: Program, layout: Layout, options: MutateOptions = DEFAULT_OPTIONS,
) -> Program:
    """One mutant, valid and of at most ``max_ops`` operations; it may equal the original."""
    return Mutator(layout, options).mutate(rng, program)


def crossover(
    rng: Random, first: Program, second: Program, max_ops: int = DEFAULT_MAX_OPS,
) -> Program:
    """A stretch of ``second`` in place of a stretch of ``first``, at most ``max_ops`` long.

    Half of the time both are cut at operations on the same region, if there is one that both
    have: what one program did to a device then meets what the other does to it. Machine, args,
    mode and setup are the first's.
    """
    mine, other = first.operations, second.operations
    joint = _joint(rng, mine, other) if rng.getrandbits(1) else None
    if joint is not None:
        at, to = joint
        stop = rng.randint(to, min(len(other), to + max_ops))
        operations = mine[:at + 1] + other[to:stop] + mine[at + 1:]
        return first.replace(operations=operations[:max_ops]).validate()
    low, high = sorted(rng.randint(0, len(mine)) for _ in range(2))
    start, stop = sorted(rng.randint(0, len(other)) for _ in range(2))
    operations = mine[:low] + other[start:stop] + mine[high:]
    return first.replace(operations=operations[:max_ops]).validate()


def _joint(
    rng: Random, mine: Sequence[Operation], other: Sequence[Operation]
) -> tuple[int, int] | None:
    """Where both programs touch the same region, at random."""
    there: dict[str, list[int]] = {}
    for at, op in enumerate(other):
        if op.place is not None and op.place.region is not None:
            there.setdefault(op.place.region, []).append(at)
    both = [(at, op.place.region) for at, op in enumerate(mine)
            if op.place is not None and op.place.region in there]
    if not both:
        return None
    at, region = rng.choice(both)
    return at, rng.choice(there[region or ""])


class Mutator:
    """Options worked out for one layout; make it once, mutate many times. Inserted operations
    and new places are drawn from ``drawer`` if there is one. With ``hints`` some mutations are
    what a driver would do with a register that showed something new."""

    def __init__(
        self, layout: Layout, options: MutateOptions = DEFAULT_OPTIONS,
        drawer: Draws | None = None, hints: Hints | None = None,
    ) -> None:
        self.layout = layout
        self.options = options
        self._hints = hints
        self._generator: Draws = drawer or Generator(layout, options.generate)
        table: dict[str, Callable[[Random, _Ops], None]] = {
            "insert": self._insert, "delete": self._delete, "duplicate": self._duplicate,
            "swap": self._swap, "place": self._place, "verb": self._verb, "value": self._value,
            "size": self._size, "nudge": self._nudge, "move": self._move,
            "retarget": self._retarget,
        }
        self._steps = [table[name] for name in options.weights]
        weights = list(options.weights.values())
        if hints is not None:
            share = options.hinted * sum(weights) / sum(weight for _, weight in HINTED.values())
            for hinted, weight in HINTED.values():
                self._steps.append(partial(_with_hints, hinted, hints))
                weights.append(weight * share)
        self._sums = list(accumulate(weights))

    def mutate(self, rng: Random, program: Program) -> Program:
        """As the function of the same name."""
        ops = list(program.operations)
        while True:
            step = rng.choices(self._steps, cum_weights=self._sums)[0]
            (step if ops else self._insert)(rng, ops)
            if rng.random() >= self.options.more:
                break
        return program.replace(operations=tuple(ops[:self.options.max_ops])).validate()

    def _insert(self, rng: Random, ops: _Ops) -> None:
        at = rng.randint(0, len(ops))
        ops[at:at] = self._generator.operations(rng, rng.randint(1, MAX_STRETCH // 2))

    def _delete(self, rng: Random, ops: _Ops) -> None:
        at = rng.randrange(len(ops))
        del ops[at:at + rng.randint(1, MAX_STRETCH)]

    def _duplicate(self, rng: Random, ops: _Ops) -> None:
        at, to = rng.randrange(len(ops)), rng.randint(0, len(ops))
        ops[to:to] = ops[at:at + rng.randint(1, MAX_STRETCH)]

    def _move(self, rng: Random, ops: _Ops) -> None:
        """A stretch to another place: what came before now comes after."""
        at = rng.randrange(len(ops))
        stretch = ops[at:at + rng.randint(1, MAX_STRETCH)]
        del ops[at:at + len(stretch)]
        to = rng.randint(0, len(ops))
        ops[to:to] = stretch

    def _retarget(self, rng: Random, ops: _Ops) -> None:
        """What a stretch does to one region is done to another of the program, at the same
        offsets: the second of two like devices, the same registers by port and by memory."""
        at = rng.randrange(len(ops))
        found, giver = ops[at].place, rng.choice(ops)
        to = giver.place
        if (found is None or to is None or found.region is None or to.region is None
                or found.region == to.region or giver.info.space != ops[at].info.space):
            return
        for index in range(at, min(len(ops), at + MAX_STRETCH)):
            op = ops[index]
            if op.place is not None and op.place.region == found.region:
                place = Place(to.region, to.index, op.place.offset, to.space)
                ops[index] = Operation(op.verb, place, op.size, op.value, op.data)

    def _swap(self, rng: Random, ops: _Ops) -> None:
        a, b = rng.randrange(len(ops)), rng.randrange(len(ops))
        ops[a], ops[b] = ops[b], ops[a]

    def _place(self, rng: Random, ops: _Ops) -> None:
        """The place of another operation of the program, or a fresh one, of the same space."""
        at = rng.randrange(len(ops))
        op = ops[at]
        givers = (rng.choice(ops), *self._generator.operations(rng, MAX_STRETCH))
        for giver in givers:
            if op.place and giver.place and giver.info.space == op.info.space \
                    and giver.place != op.place:
                ops[at] = Operation(op.verb, giver.place, op.size, op.value, op.data)
                return

    def _verb(self, rng: Random, ops: _Ops) -> None:
        at = rng.randrange(len(ops))
        if ops[at].place is not None:
            ops[at] = recast(ops[at], rng.choice(_VERBS_OF[ops[at].info.space]))

    def _value(self, rng: Random, ops: _Ops) -> None:
        at = rng.randrange(len(ops))
        op = ops[at]
        if op.data:
            number = int.from_bytes(op.data, "little")
            data = near(rng, number, op.size).to_bytes(op.size, "little")
            ops[at] = Operation(op.verb, op.place, op.size, 0, data)
        elif op.info.is_write:
            size = 1 if op.info.kind is Kind.FILL else op.size
            ops[at] = Operation(op.verb, op.place, op.size, near(rng, op.value, size))

    def _size(self, rng: Random, ops: _Ops) -> None:
        """Another length for a byte string; another width for a sized verb."""
        at = rng.randrange(len(ops))
        op = ops[at]
        if op.place is None:
            return
        if op.info.size is not None:
            alike = [name for name in _VERBS_OF[op.info.space]
                     if VERBS[name].kind is op.info.kind
                     and VERBS[name].is_write is op.info.is_write]
            ops[at] = recast(op, rng.choice(alike))
            return
        size = rng.choice((op.size - 1, op.size + 1, op.size // 2, op.size * 2,
                           1 + rng.getrandbits(6), 1 + rng.randrange(MAX_LENGTH)))
        ops[at] = recast(op, op.verb, size)

    def _nudge(self, rng: Random, ops: _Ops) -> None:
        """Move an access a few bytes, or to straddle an edge of the range it starts in."""
        at = rng.randrange(len(ops))
        op, space = ops[at], ops[at].info.space
        address = self.layout.address_of(op, strict=False)
        if address is None or space is None:
            return
        if rng.getrandbits(1):
            address += rng.choice((-8, -4, -2, -1, 1, 2, 4, 8))
        else:
            found = self.layout.range_at(address, space)
            address = rng.choice((found.start, found.start + found.size))
            address -= rng.randint(0, min(op.size, 16))
        address &= PORT_MAX if space == IO else ADDRESS_MASK
        place = self.layout.place_of(address, space)
        ops[at] = Operation(op.verb, place, op.size, op.value, op.data)


def _with_hints(hinted: Hinted, hints: Hints, rng: Random, ops: _Ops) -> None:
    hinted(rng, ops, hints)
