"""Who would answer at an address: told by claims, judged by the view and by an address at a
time."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, build, random_tree

from qemuglue.memory import render
from qemuglue.mirror.layers import layers
from qemuglue.mirror.shadow import claims, stretches

RANDOMS = st.randoms(use_true_random=False)
ROOMS = st.sampled_from([24, 1 << 20, (1 << 63) + 5, TOP])


@settings(max_examples=120, deadline=None)
@given(RANDOMS, ROOMS, st.integers(1, 14))
def test_on_top_is_what_the_view_shows(rng: Random, room: int, nodes: int) -> None:
    view = render(build(random_tree(rng, room=room, nodes=nodes))[0])
    found = claims(view.root)
    cut = stretches(found)
    assert cut[0].start == 0 and cut[-1].last == TOP - 1
    assert all(one.last + 1 == two.start for one, two in pairwise(cut))
    for stretch in cut:
        for address in (stretch.start, stretch.last):
            section = view.lookup(address)
            assert section.assigned == bool(stretch.stack)
            if stretch.stack:
                claim = found[stretch.stack[0]]
                assert claim.region is section.region
                assert claim.offset - claim.start == section.offset - section.start
                assert claim.readonly == section.readonly
                assert claim.nonvolatile == section.nonvolatile


@settings(max_examples=120, deadline=None)
@given(RANDOMS, ROOMS, st.integers(1, 14))
def test_beneath_is_what_lies_there(rng: Random, room: int, nodes: int) -> None:
    view = render(build(random_tree(rng, room=room, nodes=nodes))[0])
    found = claims(view.root)
    for stretch in stretches(found):
        for address in (stretch.start, stretch.last):
            here = [] if view.root is None else layers(view.root, address)
            told = [claim for claim in found if claim.start <= address <= claim.last]
            assert [(claim.path, claim.offset + address - claim.start) for claim in told] == [
                (layer.path, layer.offset) for layer in here
            ]
            assert [found[number] for number in stretch.stack] == [c for c in told if c.answers]


def test_what_is_left_out_lies_nowhere() -> None:
    rng = Random(5)
    root = build(random_tree(rng, room=1 << 20, nodes=14))[0]
    found = claims(render(root).root)
    answering = [number for number, claim in enumerate(found) if claim.answers]
    assert answering
    for number in answering:
        assert all(number not in stretch.stack for stretch in stretches(found, number))
