"""New inputs of old ones: always inputs, never longer than asked, the same for the same seed."""

from __future__ import annotations

from random import Random

import pytest

from qemuglue.campaign.breeding import BYTES, Breeder, wild_weights
from qemuglue.campaign.settings import Settings
from qemuglue.program.codec import RECORD_SIZE, decode, encode
from qemuglue.program.generate import Generator
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Program

SETTINGS = Settings(operations=16)
LAYOUT = Layout({
    "memory": [Range(0, 0x10000, "pc.ram", 0, 0, "ram", "memory"),
               Range(0x20000, 0x1000, "hpet", 0, 0, "device", "memory")],
    "io": [Range(0x70, 2, "rtc", 0, 0, "device", "io")],
})


def meaning(data: bytes) -> Program:
    return decode(data, LAYOUT, SETTINGS.machine, (), SETTINGS.operations)


def breeder() -> Breeder:
    return Breeder(SETTINGS, LAYOUT, meaning, lambda data, size: data[::-1] + b"!")


def test_mutants_fit_and_decode_and_repeat() -> None:
    data = b"\x01"
    for seed in range(300):
        size = Random(seed).choice((1, 2, 24, 25, 26, 200, 400))
        mutant = breeder().mutate(data, size, seed)
        assert mutant == breeder().mutate(data, size, seed)
        assert len(mutant) <= size
        meaning(mutant).validate()
        data = breeder().mutate(data, 1 + RECORD_SIZE * SETTINGS.operations, seed)


def test_all_three_ways_are_taken() -> None:
    program = SETTINGS.program(Generator(LAYOUT).operations(Random(1), 16))
    data = encode(program, LAYOUT)
    mutants = [breeder().mutate(data, 4096, seed) for seed in range(400)]
    by_bytes = sum(mutant == data[::-1] + b"!" for mutant in mutants)
    assert abs(by_bytes / 4 - BYTES) < 10
    kept = [len(set(meaning(mutant).operations) & set(meaning(data).operations))
            for mutant in mutants if mutant != data[::-1] + b"!"]
    assert sum(n >= 8 for n in kept) > 50, "some keep most of the program"
    assert sum(1 <= n <= 8 for n in kept) > 80, "some begin with a part of it and go on"
    assert sum(n == 0 for n in kept) > 80, "some are drawn anew"


def test_crossing_takes_of_both() -> None:
    first, second = (
        encode(SETTINGS.program(Generator(LAYOUT).operations(Random(seed), 16)), LAYOUT)
        for seed in (1, 2)
    )
    mine, other = (set(meaning(data).operations) for data in (first, second))
    mixed = [set(meaning(breeder().cross(first, second, 4096, seed)).operations)
             for seed in range(50)]
    assert any(operations <= mine | other for operations in mixed), "some are of both alone"
    assert any(operations & mine and operations & other for operations in mixed)


@pytest.mark.parametrize("seed", range(5))
def test_wild_mixes_mostly_reach_devices(seed: int) -> None:
    rng = Random(seed)
    shares = []
    for _ in range(100):
        kinds = wild_weights(rng).kinds
        shares.append(kinds["device"] / (sum(kinds.values()) or 1.0))
    assert sum(share >= 0.3 for share in shares) > 70
    assert any(share == 0 for share in shares), "and some do without"
