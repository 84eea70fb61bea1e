"""Mutations with hints: what a driver would do; always valid operations."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from qemuglue.program.hinted import HINTED, access, near
from qemuglue.program.layout import Layout, Range
from qemuglue.program.mutate import MutateOptions, Mutator, crossover
from qemuglue.program.operation import Operation, Place, Program, validate

LAYOUT = Layout({
    "memory": [Range(0, 0x10000, "pc.ram", 0, 0, "ram", "memory"),
               Range(0x20000, 0x1000, "nic", 0, 0, "device", "memory")],
    "io": [Range(0xCF8, 4, "idx", 0, 0, "device", "io")],
})


class Hints:
    """One register of memory, one of ports, one value."""

    def register(self, rng: Random) -> tuple[str, Place, int] | None:
        return rng.choice((("memory", Place("nic", 0, 0x10), 8), ("io", Place("idx", 0, 0), 4),
                           ("io", Place(None, 0, 0xFFFF), 1)))

    def value(self, rng: Random, space: str, place: Place) -> int | None:
        return 0x1_2345_6789


class NoHints:
    def register(self, rng: Random) -> tuple[str, Place, int] | None:
        return None

    def value(self, rng: Random, space: str, place: Place) -> int | None:
        return None


def program(*operations: Operation) -> Program:
    return Program("x86_64/q35", (), operations, "stopped", "")


START = (Operation("writel", Place("nic", 0, 4), 4, 1), Operation("inb", Place("idx", 0, 1), 1))


@pytest.mark.parametrize("name", HINTED)
def test_each_makes_valid_operations(name: str) -> None:
    mutation = HINTED[name][0]
    changed = 0
    for seed in range(300):
        ops = list(START)
        mutation(Random(seed), ops, Hints())
        assert [validate(op) for op in ops]
        changed += tuple(ops) != START
        mutation(Random(seed), [], Hints())
    assert changed > 150


@pytest.mark.parametrize("name", HINTED)
def test_without_hints_nothing_happens(name: str) -> None:
    ops = list(START)
    HINTED[name][0](Random(1), ops, NoHints())
    assert tuple(ops) == START


def test_modify_reads_and_writes_back_one_bit_changed() -> None:
    ops: list[Operation] = []
    HINTED["modify"][0](Random(3), ops, Hints())
    read, write = ops
    assert read.place == write.place and not read.info.is_write and write.info.is_write
    mask = (1 << 8 * write.size) - 1
    assert (write.value ^ 0x1_2345_6789 & mask).bit_count() == 1


def test_a_size_that_ports_lack_becomes_four() -> None:
    assert access("io", Place("idx", 0, 0), 8, 1 << 40).verb == "outl"
    assert access("io", Place("idx", 0, 0), 8, 1 << 40).value == 0


def test_near_fits_its_size() -> None:
    assert all(0 <= near(Random(seed), 0xFF, 1) <= 0xFF for seed in range(200))


def test_the_mutator_uses_hints_and_repeats() -> None:
    mutator = Mutator(LAYOUT, MutateOptions(max_ops=32), hints=Hints())
    at_register = 0
    for seed in range(400):
        mutant = mutator.mutate(Random(seed), program(*START))
        assert mutant == mutator.mutate(Random(seed), program(*START))
        at_register += any(op.place == Place("nic", 0, 0x10) for op in mutant.operations)
    assert at_register > 60


def test_moving_keeps_the_operations_and_retargeting_the_offsets() -> None:
    ops = [Operation("readb", Place("nic", 0, n), 1) for n in range(6)]
    ops.append(Operation("readb", Place("pc.ram", 0, 0), 1))
    moved = Mutator(LAYOUT, MutateOptions(weights={"move": 1.0}, more=0.0))
    mutants = [moved.mutate(Random(seed), program(*ops)).operations for seed in range(50)]
    assert all(sorted(map(repr, each)) == sorted(map(repr, ops)) for each in mutants)
    assert len(set(mutants)) > 10
    aimed = Mutator(LAYOUT, MutateOptions(weights={"retarget": 1.0}, more=0.0))
    mutants = [aimed.mutate(Random(seed), program(*ops)).operations for seed in range(100)]
    assert all([op.place.offset for op in each if op.place] == [0, 1, 2, 3, 4, 5, 0]
               for each in mutants)
    assert any(each.count(ops[6]) == 1 and len({op.place.region for op in each if op.place}) == 1
               for each in mutants) or any(each != tuple(ops) for each in mutants)


def test_crossing_joins_programs_at_a_region_that_both_touch() -> None:
    mine = program(*[Operation("readb", Place("pc.ram", 0, n), 1) for n in range(8)],
                   Operation("writel", Place("nic", 0, 0), 4, 1))
    other = program(*[Operation("readw", Place("pc.ram", 0, n), 2) for n in range(8)],
                    Operation("readl", Place("nic", 0, 8), 4))
    pairs = 0
    for seed in range(300):
        ops = crossover(Random(seed), mine, other, 64).operations
        pairs += any(a == mine.operations[8] and b == other.operations[8]
                     for a, b in pairwise(ops))
    assert pairs > 5
