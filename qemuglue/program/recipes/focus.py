"""Accesses to one device: its regions, its ports and its configuration space.

A :class:`Focus` says what of a machine belongs to the device; a :class:`Focused` draws like
``generate.Generator`` and leaves that only for a few in a hundred operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from qemuglue.program.aim import Aim
from qemuglue.program.generate import DEFAULT_WEIGHTS, Generator, Weights, swarm
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation
from qemuglue.program.recipes.pci import COMMAND, Config, Function
from qemuglue.program.verbs import IO, MEMORY, VERBS

#: Operations in a hundred that may go anywhere: what surrounds a device matters as well.
ELSEWHERE = 4
#: Operations in a hundred on configuration space, where the device has one.
CONFIGURING = 8
#: The first 64 bytes hold the base addresses: writes there take the device away, so they are few.
_HEADER = 0x40
_DECODE = 3


@dataclass(frozen=True, slots=True)
class Focus:
    """``starts`` are (space, first address) of the device's ranges in the layout; ``function``
    its place on PCI, None where it has none."""

    starts: frozenset[tuple[str, int]] = frozenset()
    function: Function | None = None

    def __bool__(self) -> bool:
        return bool(self.starts or self.function)


class Focused:
    """Weights and a focus worked out for one layout."""

    def __init__(self, layout: Layout, focus: Focus, weights: Weights = DEFAULT_WEIGHTS) -> None:
        self.layout = layout
        self.focus = focus
        self.weights = weights
        self._anywhere = Generator(layout, weights)
        self._config = Config(layout)
        self._inside: list[tuple[Generator, float]] = []
        for space in (MEMORY, IO):
            starts = frozenset(start for name, start in focus.starts if name == space)
            made = _weights(weights, space) if starts else None
            if made is not None:
                generator = Generator(layout, made, only=starts)
                self._inside.append((generator, float(len(starts))))

    def wild(self, rng: Random) -> Focused:
        """The same with wild weights."""
        weights = swarm(rng, self.weights)
        return Focused(self.layout, self.focus, replace(weights, kinds=self.weights.kinds))

    def operations(self, rng: Random, n: int) -> tuple[Operation, ...]:
        """``n`` valid operations."""
        made: list[Operation] = []
        generators = [each for each, _ in self._inside]
        sums = [weight for _, weight in self._inside]
        while len(made) < n:
            draw = rng.randrange(100)
            if self.focus.function is not None and self._config and (
                    draw < CONFIGURING or not generators):
                made += self._configure(rng, self.focus.function)
            elif draw >= 100 - ELSEWHERE or not generators:
                made += self._anywhere.operations(rng, 1)
            else:
                generator = rng.choices(generators, sums)[0]
                made += generator.operations(rng, rng.randint(1, 8))
        return tuple(made[:n])

    def _configure(self, rng: Random, function: Function) -> Iterator[Operation]:
        """Registers of configuration space, read more often than written; what was switched off
        there is switched on again, or nothing of the device would be seen any more."""
        register = rng.choice((rng.randrange(0x100), rng.randrange(0x100) & 0xFC))
        size = rng.choice((1, 2, 4))
        register &= -size
        yield from self._config.select(function, register)
        write = rng.random() < (0.1 if register < _HEADER else 0.4)
        if not write:
            yield self._config.read(function, register, size)
            return
        value = rng.choice((0, rng.getrandbits(8 * size), 1 << rng.randrange(8 * size)))
        yield self._config.write(function, register, size, value)
        yield self._config.read(function, register, size)
        if register < _HEADER:
            yield from self._restore(function)

    def _restore(self, function: Function) -> Iterator[Operation]:
        for bar in function.bars:
            if bar.address >= 0:
                register = bar.register(function.is_bridge)
                yield from self._config.select(function, register)
                yield self._config.write(function, register, 4, bar.address & 0xFFFF_FFFF)
        yield from self._config.select(function, COMMAND)
        yield self._config.write(function, COMMAND, 2, _DECODE)


def _weights(weights: Weights, space: str) -> Weights | None:
    """The same for one space alone, with no address that is nobody's; None if that leaves no
    verb."""
    verbs = {verb: weight if VERBS[verb].space == space else 0.0
             for verb, weight in weights.verbs.items()}
    aims = {aim: 0.0 if aim == Aim.ABSOLUTE else weight for aim, weight in weights.aims.items()}
    if not any(verbs.values()):
        return None
    if not any(aims.values()):
        aims[Aim.UNIFORM] = 1.0
    return replace(weights, verbs=verbs, aims=aims, other_kind=max(weights.other_kind, 1.0))
