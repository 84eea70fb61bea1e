"""The e1000e's recipe: valid operations, the same for the same numbers, that do something."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, validate
from qemuglue.program.recipes import RECIPES
from qemuglue.program.recipes.e1000e import E1000eRecipe
from qemuglue.program.recipes.e1000e_packets import checksum, packet
from qemuglue.program.recipes.recipe import scratch_of
from qemuglue.program.verbs import IO, MEMORY

RAM = Range(0, 64 << 20, "pc.ram", 0, 0, "ram", MEMORY)
WINDOW = Range(0xE000_0000, 0x20000, "e1000e-mmio", 0, 0, "device", MEMORY)
PORTS = Range(0xC000, 0x20, "e1000e-io", 0, 0, "device", IO)


@pytest.fixture
def layout() -> Layout:
    return Layout({MEMORY: [RAM, WINDOW], IO: [PORTS]})


def drawn(layout: Layout, seed: int) -> list[Operation]:
    rng = Random(seed)
    scratch = scratch_of(layout, rng)
    assert scratch is not None
    return list(E1000eRecipe().operations(rng, layout, scratch))


def test_it_is_known_and_fits_where_the_device_is(layout: Layout) -> None:
    assert any(isinstance(each, E1000eRecipe) for each in RECIPES)
    assert E1000eRecipe().fits(layout)
    assert not E1000eRecipe().fits(Layout({MEMORY: [RAM]}))


def test_its_operations_are_valid_and_repeatable(layout: Layout) -> None:
    verbs: Counter[str] = Counter()
    for seed in range(300):
        ops = drawn(layout, seed)
        assert ops == drawn(layout, seed)
        assert len(ops) < 400
        for op in ops:
            validate(op)
            assert op.place is not None
            if op.place.region == "e1000e-mmio":
                assert op.place.offset < 0x20000
            verbs[op.verb] += 1
    assert {"writel", "write", "readl", "outl", "read"} <= set(verbs)


def test_most_of_them_kick_the_transmitter(layout: Layout) -> None:
    kicked = sum(
        any(op.verb == "writel" and op.place and op.place.offset in (0x3818, 0x3918, 0x438)
            and op.value for op in drawn(layout, seed))
        for seed in range(200)
    )
    assert kicked > 140


def test_packets_are_of_many_kinds() -> None:
    rng, kinds = Random(1), Counter[bytes]()
    right = 0
    for _ in range(1000):
        frame = packet(rng)
        assert 1 <= len(frame) < 5000
        kinds[frame[12:14]] += 1
        if frame[12:15] == b"\x08\x00\x45" and len(frame) > 34:
            right += checksum(frame[14:34]) == 0
    assert kinds[b"\x08\x00"] > 100 and kinds[b"\x86\xdd"] > 100 and kinds[b"\x81\x00"] > 100
    assert right > 30
