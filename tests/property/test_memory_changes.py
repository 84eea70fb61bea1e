"""The algebra of changes: whatever is changed, in whatever transactions, each outermost commit
shows what painting the tree anew shows, and listeners can follow by what they are told alone."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, paint

from qemuglue.campaign.model.changes import Follower, shown, spaces_of, told, world
from qemuglue.memory import register

RANDOMS = st.randoms(use_true_random=False)
@settings(max_examples=150, deadline=None)
@given(RANDOMS, st.integers(1, 10), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_commits_show_what_painting_shows(rng: Random, nodes: int, shape: list[int]) -> None:
    here = world(rng, nodes)
    spaces = spaces_of(here)
    topology = spaces[0][0].topology
    for depth in shape:
        views = [space.view for space, _ in spaces]
        if not depth:
            here.change()
        else:
            for level in range(depth):
                topology.begin()
                assert topology.depth == level + 1
                here.change()
            for _ in range(depth):
                assert [space.view for space, _ in spaces] == views, "nothing shows before"
                assert not any(view.reclaimed for view in views)
                topology.commit()
        for space, node in spaces:
            assert shown(space.view) == paint(node, every=200)
        alive = {space.view for space, _ in spaces}
        assert all(view.reclaimed for view in views if view not in alive)


@settings(max_examples=100, deadline=None)
@given(RANDOMS, st.integers(1, 10), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_listeners_can_follow(rng: Random, nodes: int, shape: list[int]) -> None:
    here = world(rng, nodes)
    spaces = spaces_of(here)
    topology = spaces[0][0].topology
    calls: list[str] = []
    names = "adbec"
    followers = [Follower(calls, name) for name in names]
    for number, follower in enumerate(followers):
        register(follower, spaces[number % len(spaces)][0])
    for changes in shape:
        calls.clear()
        before = [[told(s) for s in follower.space.view] for follower in followers
                  if follower.space is not None]
        with topology.transaction():
            for _ in range(changes):
                here.change()
                assert calls == []
        for follower, old in zip(followers, before, strict=True):
            assert follower.space is not None
            new = [told(s) for s in follower.space.view]
            assert sorted(follower.map.values(), key=lambda entry: entry[0]) == new
            if not calls:
                assert old == new
                continue
            assert follower.said == [
                *[("del", entry) for entry in old if entry not in new],
                *[("nop" if entry in old else "add", entry) for entry in new],
            ]
        ordered = sorted(names)
        if calls:
            assert calls[:5] == [f"{name} begin" for name in ordered]
            assert calls[-5:] == [f"{name} commit" for name in ordered]
            assert not any("begin" in call or "commit" in call for call in calls[5:-5])


@settings(max_examples=60, deadline=None)
@given(RANDOMS, st.integers(2, 10), st.integers(0, 6))
def test_how_changes_are_grouped_does_not_matter(rng: Random, nodes: int, changes: int) -> None:
    seed = rng.randrange(1 << 30)
    results = []
    for grouping in range(3):
        again = Random(seed)
        here = world(again, nodes)
        spaces = spaces_of(here)
        topology = spaces[0][0].topology
        grouped = Random(grouping)
        for _ in range(changes):
            if grouping and topology.depth < 3 and grouped.random() < 0.6:
                topology.begin()
            here.change()
            if topology.depth and grouped.random() < 0.4:
                topology.commit()
        while topology.depth:
            topology.commit()
        results.append([shown(space.view) for space, _ in spaces])
    assert results[0] == results[1] == results[2]


@settings(max_examples=60, deadline=None)
@given(RANDOMS, st.integers(1, 10))
def test_there_and_back_is_a_nop(rng: Random, nodes: int) -> None:
    """A change and its inverse in one transaction tell nothing but nops. Moving is no such
    change: it makes the region the newest among its equals."""
    here = world(rng, nodes)
    space = spaces_of(here)[0][0]
    follower = Follower([], "x")
    register(follower, space)
    node = rng.choice(list(here.regions))
    region = here.regions[node]
    before = shown(space.view)
    with space.topology.transaction():
        region.set_enabled(not region.enabled)
        size = region.size
        region.set_size(size + 1 if size < TOP else 1)
        region.set_nonvolatile(not region.nonvolatile)
        region.set_nonvolatile(not region.nonvolatile)
        region.set_size(size)
        region.set_enabled(not region.enabled)
    assert shown(space.view) == before
    assert {call for call, _ in follower.said} <= {"nop"}
