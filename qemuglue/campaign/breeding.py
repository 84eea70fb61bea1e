"""How the Atheris engine makes a new input of an old one: by operations more than by bytes.

libFuzzer's own mutations change bytes, and inserting one shifts every record behind it. Most
new inputs are therefore made on the program: operations inserted, moved, aimed elsewhere, given
other values. Some are libFuzzer's (it knows the values that were compared), some are drawn
anew. The same seed, bytes and layout give the same input.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from qemuglue.campaign.drawing import Plain
from qemuglue.campaign.drawing import wild_weights as wild_weights
from qemuglue.campaign.guide import Guide
from qemuglue.campaign.guided import Guided
from qemuglue.campaign.settings import Settings
from qemuglue.program.codec import RECORD_SIZE, encode
from qemuglue.program.layout import Layout
from qemuglue.program.mutate import MutateOptions, Mutator, crossover
from qemuglue.program.operation import Operation, Program
from qemuglue.program.recipes.mix import Wild

#: Chances in a hundred: a mutation of libFuzzer's own; a program drawn anew; a part of an old one
#: with new operations behind it. An execution that mostly repeats what its parent did shows
#: nothing, so what is not drawn anew begins with an old program's state and goes on from there.
BYTES, ANEW, GOING_ON = 10, 35, 35

#: The same for crossing.
CROSSED_GOING_ON = 80

#: Mutations stacked on one program at most; each itself stacks two on average.
MAX_STACKED = 4

#: libFuzzer's own mutation: (data, largest size) -> data.
MutateBytes = Callable[[bytes, int], bytes]


class Breeder:
    """``mutate`` and ``cross`` have the forms that ``atheris.Setup`` takes as
    ``custom_mutator`` and ``custom_crossover``."""

    def __init__(
        self, settings: Settings, layout: Layout, decode: Callable[[bytes], Program],
        mutate_bytes: MutateBytes, drawing: Wild | None = None,
        guide: Guide | None = None,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._decode = decode
        self._mutate_bytes = mutate_bytes
        self._drawing: Wild = drawing or Plain(layout)
        if guide is not None:
            self._drawing = Guided(layout, self._drawing, guide)
        self._mutator = Mutator(layout, MutateOptions(max_ops=settings.operations),
                                self._drawing, guide)

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A new input of at most ``max_size`` bytes."""
        rng = Random(seed)
        draw = rng.randrange(100)
        if draw < BYTES:
            return self._mutate_bytes(data, max_size)[:max_size]
        if draw < BYTES + ANEW:
            program = self._settings.program(self._draw(rng, self._settings.operations))
        elif draw < BYTES + ANEW + GOING_ON:
            program = self._go_on(rng, self._decode(data))
        else:
            program = self._decode(data)
            for _ in range(rng.randint(1, MAX_STACKED)):
                program = self._mutator.mutate(rng, program)
        return self._bytes(program, max_size)

    def _draw(self, rng: Random, count: int) -> tuple[Operation, ...]:
        """Operations drawn anew, half of the time with wild weights."""
        drawing = self._drawing.wild(rng) if rng.getrandbits(1) else self._drawing
        return drawing.operations(rng, count)

    def _go_on(self, rng: Random, program: Program) -> Program:
        """A stretch of at most half a program's length, then new operations up to its limit."""
        old, limit = program.operations, self._settings.operations
        length = rng.randint(0, min(len(old), limit // 2))
        start = rng.randint(0, len(old) - length)
        new = self._draw(rng, limit - length)
        return program.replace(operations=(*old[start:start + length], *new))

    def cross(self, first: bytes, second: bytes, max_size: int, seed: int) -> bytes:
        """An input with a stretch of each. libFuzzer makes every other input so; most of them
        go on with operations drawn anew, for the reason that :data:`GOING_ON` gives."""
        rng, limit = Random(seed), self._settings.operations
        mixed = crossover(rng, self._decode(first), self._decode(second), limit)
        if rng.randrange(100) < CROSSED_GOING_ON:
            mixed = self._go_on(rng, mixed)
        return self._bytes(mixed, max_size)

    def _bytes(self, program: Program, max_size: int) -> bytes:
        data = encode(program, self._layout)
        whole = 1 + max(0, max_size - 1) // RECORD_SIZE * RECORD_SIZE
        return data[:min(whole, max_size)]
