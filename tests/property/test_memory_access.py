"""Accesses against the byte-wise oracle, and what must hold of any access at all."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, Recorder, build, compare_accesses, random_contract, random_map

from qemuglue.memory import AddressSpace, Contract, Endian
from qemuglue.memory.rules import RULES_10_0, RULES_LATEST

RANDOMS = st.randoms(use_true_random=False)
SIZES = st.sampled_from([0, 1, 2, 4, 8])
RULES = RULES_10_0


@settings(max_examples=200, deadline=None)
@given(RANDOMS)
def test_random_accesses_to_random_maps(rng: Random) -> None:
    compare_accesses(rng, rng.choice((RULES_10_0, RULES_LATEST)), accesses=10)


@settings(max_examples=200, deadline=None)
@given(RANDOMS, st.integers(0, 1 << 20), st.integers(1, 200))
def test_chunks_are_the_greedy_cut(rng: Random, offset: int, length: int) -> None:
    """R6 as counting: the widest aligned size that fits, tried from the widest down."""
    contract = random_contract(rng)
    at = 0
    while at < length:
        n = RULES.chunk(contract, length - at, offset + at)
        for wider in (64, 32, 16, 8, 4, 2, 1):
            if (wider <= (contract.valid_max or 4) and wider <= length - at
                    and (contract.impl_unaligned or (offset + at) % wider == 0)):
                assert n == wider
                break
        at += n
    assert at == length


@settings(max_examples=200, deadline=None)
@given(SIZES, SIZES, st.sampled_from([1, 2, 4, 8]), st.sampled_from([Endian.LITTLE, Endian.BIG]),
       st.binary(min_size=16, max_size=16))
def test_pieces_assemble_the_devices_own_bytes(
    least: int, most: int, size: int, endian: Endian, image: bytes
) -> None:
    """R3 without shifts: whatever the pieces, the value is the device's first bytes."""
    order = endian.value
    contract = Contract(impl_min=least, impl_max=most)
    value = covered = 0
    for piece in RULES.pieces(contract, size, endian is Endian.BIG):
        assert piece.delta == covered, "in order, without gaps"
        covered += piece.size
        part = int.from_bytes(image[piece.delta : piece.delta + piece.size], order)
        value |= part << piece.shift if piece.shift >= 0 else part >> -piece.shift
    assert covered >= size
    assert value % (1 << 8 * size) == int.from_bytes(image[:size], order)


@settings(max_examples=60, deadline=None)
@given(RANDOMS, st.integers(0, 60), st.integers(0, 40))
def test_reads_change_nothing_and_repeat(rng: Random, skip: int, length: int) -> None:
    root, base = random_map(rng)
    region, _ = build(root)
    space = AddressSpace("memory", region, rules=RULES)
    space.ops = space.observer = recorder = Recorder()
    address = (base + skip) % TOP
    first, log = space.read(address, length), list(recorder.log)
    recorder.log.clear()
    assert space.read(address, length) == first
    assert recorder.log == log
    assert len(first[1]) == length and 0 <= first[0] < 8


@settings(max_examples=60, deadline=None)
@given(RANDOMS, st.integers(0, 40), st.binary(max_size=40), st.integers(0, 40))
def test_memory_written_in_two_parts_is_the_same(
    rng: Random, skip: int, data: bytes, cut: int
) -> None:
    """Where a write touches no device, where it is cut does not show in memory."""
    root, base = random_map(rng)
    address = (base + skip) % TOP
    states = []
    for parts in ((data,), (data[:cut], data[cut:])):
        region, made = build(root)
        space = AddressSpace("memory", region, rules=RULES)
        at = address
        for part in parts:
            space.write(at % TOP, part)
            at += len(part)
        states.append([
            made[node].backing.read(0, node.size)  # type: ignore[union-attr]
            for node in made if made[node].backing is not None
        ])
    assert states[0] == states[1]
