"""Programs that mix recipes with ordinary accesses, in a given share.

A :class:`Mix` draws as ``generate.Generator`` does (``operations(rng, n)``), so that engines need
not know which of the two they have. What it draws survives the byte codec: a ``write`` whose data
the codec would not keep is split into stretches that it does keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Protocol, Self

from qemuglue.errors import ProgramError
from qemuglue.program.generate import DEFAULT_WEIGHTS, Generator, Weights, swarm
from qemuglue.program.layout import Layout
from qemuglue.program.mutate import Draws
from qemuglue.program.operation import Operation, Place, validate
from qemuglue.program.recipes.recipe import Recipe, Scratch, as_sent, scratch_of
from qemuglue.program.values import repeated, stream
from qemuglue.program.verbs import ADDRESS_MASK, MAX_OPERATIONS

#: The codec keeps 8 bytes of a ``write``; a longer one becomes so many at most, and what is
#: behind them is what the codec makes of it (the bytes of a buffer, mostly).
MAX_SPLIT = 16
_KEPT = 8


class Wild(Draws, Protocol):
    """Draws operations, and has a wild kin."""

    def wild(self, rng: Random) -> Self:
        """The same with wild weights: some things left out, the rest far apart."""


@dataclass(frozen=True, slots=True)
class Share:
    """A recipe and how often it is taken, relative to the others."""

    recipe: Recipe
    weight: float = 1.0


class Mix:
    """Recipes that fit ``layout``, with ordinary accesses between them.

    ``share`` of the operations (0 to 1) are those of recipes, as far as there are any that fit;
    ordinary ones come in stretches of at most ``stretch``.
    """

    def __init__(
        self, layout: Layout, recipes: Sequence[Share], *, share: float = 0.6,
        weights: Weights = DEFAULT_WEIGHTS, ordinary: Wild | None = None, stretch: int = 6,
    ) -> None:
        self.layout = layout
        self.weights = weights
        self.recipes = tuple(
            each for each in recipes if each.weight > 0 and each.recipe.fits(layout))
        self.share = share if self.recipes else 0.0
        self.stretch = stretch
        self._sums = list(accumulate(each.weight for each in self.recipes))
        self._given = ordinary
        self._ordinary: Draws = ordinary or Generator(layout, weights)

    def wild(self, rng: Random) -> Mix:
        """The same with wild weights: about half of the recipes, the rest far apart."""
        kept = [each for each in self.recipes if rng.random() < 0.5] or list(self.recipes)
        drawn = [replace(each, weight=each.weight * 2.0 ** rng.uniform(-3, 3)) for each in kept]
        return Mix(
            self.layout, drawn, share=rng.uniform(0.3, 0.9) if drawn else 0.0,
            weights=swarm(rng, self.weights),
            ordinary=None if self._given is None else self._given.wild(rng),
            stretch=rng.choice((1, 4, 12)),
        )

    def operations(self, rng: Random, n: int) -> tuple[Operation, ...]:
        """``n`` valid operations; a recipe that does not fit into what is left is cut short."""
        assert 0 <= n <= MAX_OPERATIONS, n
        made: list[Operation] = []
        by_recipes = 0
        scratch = scratch_of(self.layout, rng)
        while len(made) < n:
            wanted = self.share * (len(made) + self.stretch * rng.random())
            if self.share and by_recipes < wanted:
                part = list(kept(self._recipe(rng, scratch)))
                by_recipes += len(part)
                made += part
                if not part:
                    by_recipes += 1  # so that a recipe of nothing cannot go on for ever
            else:
                made += self._ordinary.operations(rng, rng.randint(1, self.stretch))
        return tuple(made[:n])

    def _recipe(self, rng: Random, scratch: Scratch | None) -> Sequence[Operation]:
        recipe = rng.choices(self.recipes, cum_weights=self._sums)[0].recipe
        if scratch is None:
            scratch = Scratch(0, 0)
        if rng.random() < 0.5:
            scratch.used = 0  # half of the time what an earlier recipe used is used again
        try:
            return list(as_sent(self.layout, recipe.operations(rng, self.layout, scratch)))
        except ProgramError:
            scratch.used = 0  # there was no room left; the next begins anew
            return ()


def kept(operations: Iterable[Operation]) -> Iterator[Operation]:
    """The same operations in a form that the byte codec gives back: a ``write`` of more than 8
    bytes that are no repetition becomes several."""
    for op in operations:
        if op.verb != "write" or op.size <= _KEPT or op.place is None:
            yield validate(op)
            continue
        number = int.from_bytes(op.data[:_KEPT], "little")
        if op.data in (repeated(number, op.size), stream(number, op.size)):
            yield validate(op)
            continue
        yield from _split(op, op.place)


def _split(op: Operation, place: Place) -> Iterator[Operation]:
    at = 0
    for count in range(MAX_SPLIT):
        size = min(_KEPT, op.size - at) if count < MAX_SPLIT - 1 else op.size - at
        if size <= 0:
            return
        # Zeros are common in descriptors, and one operation can hold any number of them.
        zeros = _zeros(op.data, at)
        size = max(size, zeros)
        moved = replace(place, offset=(place.offset + at) & ADDRESS_MASK)
        yield validate(Operation("write", moved, size, 0, op.data[at:at + size]))
        at += size


def _zeros(data: bytes, at: int) -> int:
    return len(data) - at - len(data[at:].lstrip(b"\0"))
