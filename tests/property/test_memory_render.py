"""Drawing against painting: one address at a time, or once between any two edges."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, build, paint, random_tree, spot

from qemuglue.campaign.model.laws import drop_disabled
from qemuglue.memory import FlatView, render

RANDOMS = st.randoms(use_true_random=False)


def sections(view: FlatView) -> list[tuple[int, int, str, int, bool, bool]]:
    return [
        (s.start, s.size, s.region.name, s.offset, s.readonly, s.nonvolatile) for s in view
    ]


@settings(max_examples=150, deadline=None)
@given(RANDOMS, st.integers(1, 14))
def test_small_trees_are_painted_address_by_address(rng: Random, nodes: int) -> None:
    root = random_tree(rng, room=24, nodes=nodes)
    drawn = sections(render(build(root)[0]))
    # Nothing reaches past this: offsets and sizes are at most 24, at most 15 levels deep.
    assert all(start + size <= 400 for start, size, *_ in drawn)
    assert drawn == paint(root, every=400)


@settings(max_examples=150, deadline=None)
@given(RANDOMS, st.sampled_from([1 << 20, (1 << 63) + 5, TOP]), st.integers(1, 14))
def test_large_trees_are_painted_between_edges(rng: Random, room: int, nodes: int) -> None:
    root = random_tree(rng, room=room, nodes=nodes)
    assert sections(render(build(root)[0])) == paint(root)


@settings(max_examples=60, deadline=None)
@given(RANDOMS, st.lists(st.integers(0, TOP - 1), min_size=1, max_size=20))
def test_every_address_has_one_section(rng: Random, anywhere: list[int]) -> None:
    root = random_tree(rng, room=rng.choice((64, TOP)), nodes=8)
    view = render(build(root)[0])
    assert view.starts == [section.start for section in view.cover]
    at = 0
    for section in view.cover:
        assert section.start == at and section.size > 0
        at += section.size
    assert at == TOP
    edges = [edge for s in view.cover for edge in (s.start, s.last)]
    for address in edges + anywhere:
        section, want = view.lookup(address), spot(root, address)
        assert section.start <= address <= section.last
        assert section.assigned == (want is not None)
        if want is not None:
            assert section.region.name == want.leaf.name
            assert section.offset + address - section.start == want.offset
        else:
            assert section.offset + address - section.start == address


@settings(max_examples=60, deadline=None)
@given(RANDOMS)
def test_what_is_disabled_is_as_if_it_were_not_there(rng: Random) -> None:
    root = random_tree(rng, room=48, nodes=10)
    before = sections(render(build(root)[0]))
    drop_disabled(root, set())
    assert sections(render(build(root)[0])) == before
