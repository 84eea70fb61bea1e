"""Which offsets a device refuses by its own rule: asked all over a simulated region."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from witness_events import Simulated, device, space_of

from qemuglue.memory import Contract
from qemuglue.witness.contract_table import AcceptedRange, Accepts
from qemuglue.witness.probing import Ask, Place, Probe, own_lines
from qemuglue.witness.vetoes import DENSE_BYTES, learn_veto

BASE = 0x10_0000
Rule = Callable[[int, int, bool], bool]


class Asked:
    """A region of ``size`` bytes with a rule of its own; ``hidden`` is covered by another."""

    def __init__(
        self, rule: Rule, size: int, *, contract: Contract | None = None,
        hidden: tuple[int, int] | None = None,
    ) -> None:
        declared = contract or Contract()
        self.region = device("dev", size, Contract(
            declared.valid_min, declared.valid_max, declared.valid_unaligned, declared.impl_min,
            declared.impl_max, declared.impl_unaligned, accepts=rule,
        ))
        placed = [(BASE, self.region)]
        if hidden is not None:
            placed.append((BASE + hidden[0], device("other", hidden[1])))
        self.space = space_of(*placed)
        self.simulated = Simulated.seeded(self.space, Random(1))
        sections = tuple(s for s in self.space.view.sections if s.region is self.region)
        self.place = Place(self.region, "memory", False, sections)
        self.asked = 0

    def ask(self, asks: Iterable[Ask]) -> list[Probe]:
        probes = []
        for one in asks:
            step = self.place.step(one)
            assert step is not None, one
            self.asked += 1
            (_, addr), stop = step
            if one.is_write:
                self.space.write(addr, bytes(one.size))
            else:
                self.space.read(addr, one.size)
            seen = tuple(own_lines(self.simulated.take(), self.region, BASE, one, stop))
            probes.append(Probe(one.offset, one.size, stop, one.is_write, seen, b""))
        return probes

    def learn(self, *, is_write: bool = False) -> Accepts:
        return learn_veto(self.place, self.region.contract, self.ask, is_write=is_write)


def registers(*offsets: int) -> Rule:
    return lambda offset, size, is_write: offset in offsets


def test_registers_like_those_of_dino() -> None:
    """Any size at some offsets, and nothing between them (dino_chip_mem_valid)."""
    veto = Asked(registers(4, 12, 16, 20, 24, 0x800), 0x1000).learn()
    assert veto.complete and veto.asked == ((0, 0xFFF),) and not veto.dynamic
    assert veto.ranges == (
        AcceptedRange(1, 4, 4, 1), AcceptedRange(1, 12, 24, 4), AcceptedRange(1, 0x800, 0x800, 1),
        AcceptedRange(2, 4, 4, 2), AcceptedRange(2, 12, 24, 4), AcceptedRange(2, 0x800, 0x800, 2),
        AcceptedRange(4, 4, 4, 4), AcceptedRange(4, 12, 24, 4), AcceptedRange(4, 0x800, 0x800, 4),
    )
    assert veto(12, 2) and not veto(14, 2) and veto(24, 1) and not veto(28, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**32), st.booleans(), st.sampled_from([0, 1, 2, 4, 8]))
def test_small_regions_are_known_to_the_byte(
    size: int, seed: int, is_write: bool, valid_max: int
) -> None:
    rng = Random(seed)
    takes = {
        (offset, n) for offset in range(size) for n in (1, 2, 4, 8) if rng.random() < 0.5
    }
    asked = Asked(
        lambda offset, n, write: write != is_write or (offset, n) in takes, size,
        contract=Contract(valid_max=valid_max),
    )
    veto = asked.learn(is_write=is_write)
    assert veto.complete
    for n in (1, 2, 4, 8):
        for offset in range(0, size, n):
            if n <= (valid_max or 4) and offset + n <= size:
                assert veto.sure(offset, n)
                assert veto(offset, n) == ((offset, n) in takes), (offset, n)
            assert not veto.sure(offset + 1, 4) or (offset + 1) % 4 == 0


def test_what_is_hidden_is_not_asked() -> None:
    veto = Asked(registers(0, 0x6C), 0x100, hidden=(0x64, 8)).learn()
    assert veto.complete and veto.asked == ((0, 0x63), (0x6C, 0xFF))
    assert veto.sure(0x60, 4) and not veto.sure(0x64, 4) and veto(0x6C, 4)


def test_in_large_regions_edges_are_searched_for() -> None:
    size = 1 << 20
    edge = 0x5E5E8
    asked = Asked(lambda offset, n, write: offset < edge, size)
    veto = asked.learn()
    assert not veto.complete and asked.asked < 60_000
    for n in (1, 2, 4):
        [found] = [each for each in veto.ranges if each.size == n]
        assert (found.start, found.step) == (0, n)
        assert found.last == (edge - 1) // n * n
    assert not veto.sure(edge, 1), "a guess, however good"
    assert veto.sure(0, 4) and veto.sure(size - 4, 4)


def test_islands_at_pages_are_found_in_large_regions() -> None:
    """lasi of hppa: a register at the start of some pages."""
    veto = Asked(registers(0x2000, 0x9000, 0xC000), 1 << 20).learn()
    assert [each.start for each in veto.ranges if each.size == 4] == [0x2000, 0x9000, 0xC000]


def test_an_answer_that_changes_is_no_fact() -> None:
    calls = [0]  # the first round has 32 + 16 + 8

    def rule(offset: int, size: int, is_write: bool) -> bool:
        calls[0] += 1
        return offset < 8 or (offset == 8 and calls[0] <= 56)

    veto = Asked(rule, 32).learn()
    assert [(each.size, each.start) for each in veto.dynamic] == [(1, 8), (2, 8), (4, 8)]
    assert not veto.sure(8, 4) and veto.sure(4, 4) and veto.sure(12, 4)


def test_a_refusal_for_size_was_accepted_by_the_device() -> None:
    asked = Asked(registers(0), 8, contract=Contract(valid_min=4, valid_max=4))
    veto = asked.learn()
    assert veto(0, 1) and veto(0, 4) and not veto(4, 4)


def test_dense_and_sparse_meet() -> None:
    """The largest region that is asked everywhere, and the smallest that is not."""
    dense = Asked(registers(), DENSE_BYTES)
    assert dense.learn() == Accepts((), True, ((0, DENSE_BYTES - 1),))
    sparse = Asked(registers(), DENSE_BYTES + 1)
    veto = sparse.learn()
    assert not veto.complete and not veto.ranges and sparse.asked < dense.asked


def test_what_was_not_answered_is_not_known() -> None:
    """QEMU died of an access at 0x10: eight bytes are left out."""
    asked = Asked(registers(0, 0x10, 0x20), 0x40)

    def ask(asks: list[Ask]) -> list[Probe]:
        return asked.ask(one for one in asks if one.offset >> 3 != 2)

    veto = learn_veto(asked.place, asked.region.contract, ask)
    assert not veto.complete and veto.asked == ((0, 0xF), (0x18, 0x3F))
    assert veto.sure(0x20, 4) and veto(0x20, 4) and not veto.sure(0x10, 4)
    nothing = learn_veto(asked.place, asked.region.contract, lambda asks: [])
    assert nothing == Accepts((), False, ())
