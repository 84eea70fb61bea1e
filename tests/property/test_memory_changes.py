"""The algebra of changes: whatever is changed, in whatever transactions, each outermost commit
shows what painting the tree anew shows, and listeners can follow by what they are told alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, Node, build, paint, random_tree

from qemuglue.memory import (
    AddressSpace,
    FlatView,
    MemoryListener,
    MemoryRegion,
    MemoryRegionSection,
    RegionKind,
    Topology,
    register,
)

RANDOMS = st.randoms(use_true_random=False)
Shown = tuple[int, int, str, int, bool, bool]
#: All that makes a section another one for a listener.
Told = tuple[int, int, MemoryRegion, int, bool, bool, bool, bool]


def shown(view: FlatView) -> list[Shown]:
    return [(s.start, s.size, s.region.name, s.offset, s.readonly, s.nonvolatile) for s in view]


def told(s: MemoryRegionSection) -> Told:
    return (s.start, s.size, s.region, s.offset, s.romd, s.readonly, s.nonvolatile, s.unmergeable)


class Follower(MemoryListener):
    """Keeps a map by ``region_add`` and ``region_del`` alone, and notes the order of calls."""

    def __init__(self, calls: list[str], name: str) -> None:
        super().__init__(priority=ord(name))
        self.map: dict[int, Told] = {}
        self.calls, self.name = calls, name
        self.said: list[tuple[str, Told]] = []

    def begin(self) -> None:
        self.calls.append(f"{self.name} begin")
        self.said.clear()

    def commit(self) -> None:
        self.calls.append(f"{self.name} commit")

    def region_del(self, section: MemoryRegionSection) -> None:
        self.calls.append(f"{self.name} del")
        self.said.append(("del", told(section)))
        assert self.map.pop(section.start) == told(section)

    def region_add(self, section: MemoryRegionSection) -> None:
        self.calls.append(f"{self.name} add")
        self.said.append(("add", told(section)))
        assert not any(
            start <= section.last and section.start < start + entry[1]
            for start, entry in self.map.items()
        ), "what was there is deleted before"
        self.map[section.start] = told(section)

    def region_nop(self, section: MemoryRegionSection) -> None:
        self.calls.append(f"{self.name} nop")
        self.said.append(("nop", told(section)))
        assert self.map[section.start] == told(section)


@dataclass
class World:
    """A tree twice: as plain nodes, and as regions shown by some spaces."""

    rng: Random
    root: Node
    regions: dict[Node, MemoryRegion]
    made: int = 0

    def parents(self) -> dict[Node, Node]:
        return {
            child: node for node in self.regions for _, _, child in node.children
        }

    def change(self) -> None:
        """One random change, done to both."""
        rng = self.rng
        node = rng.choice(list(self.regions))
        region, parent = self.regions[node], self.parents().get(node)
        change: Callable[[], None] = rng.choice([
            lambda: self.enable(node, region), lambda: self.resize(node, region),
            lambda: self.flag(node, region), lambda: self.move(node, region, parent),
            lambda: self.add(node, region), lambda: self.remove(node, region, parent),
            lambda: self.slide(node, region),
        ])
        change()

    def enable(self, node: Node, region: MemoryRegion) -> None:
        node.enabled = not node.enabled
        region.set_enabled(node.enabled)

    def resize(self, node: Node, region: MemoryRegion) -> None:
        node.size = self.rng.choice((0, 1, 7, 24, 40))
        region.set_size(node.size)

    def flag(self, node: Node, region: MemoryRegion) -> None:
        which = self.rng.randrange(3)
        if which == 0 and node.kind is not RegionKind.ROM:
            node.readonly = not node.readonly
            region.set_readonly(node.readonly)
        elif which == 1:
            node.nonvolatile = not node.nonvolatile
            region.set_nonvolatile(node.nonvolatile)
        else:
            node.unmergeable = not node.unmergeable
            region.set_unmergeable(node.unmergeable)

    def move(self, node: Node, region: MemoryRegion, parent: Node | None) -> None:
        addr = self.rng.randrange(24)
        if parent is None or addr == node.addr:
            return
        [entry] = [e for e in parent.children if e[2] is node]
        parent.children.remove(entry)
        parent.add(addr, entry[1], node)
        region.set_address(addr)

    def slide(self, node: Node, region: MemoryRegion) -> None:
        if node.target is not None:
            node.target_offset = self.rng.randrange(24)
            region.set_alias_offset(node.target_offset)

    def add(self, node: Node, region: MemoryRegion) -> None:
        if node.target is not None:
            return
        self.made += 1
        fresh = Node(f"new{self.made}", self.rng.randrange(1, 24), RegionKind.RAM)
        addr, priority = self.rng.randrange(24), self.rng.randrange(-1, 2)
        node.add(addr, priority, fresh)
        self.regions[fresh] = MemoryRegion(fresh.name, fresh.size, fresh.kind)
        region.add_subregion_overlap(addr, self.regions[fresh], priority)

    def remove(self, node: Node, region: MemoryRegion, parent: Node | None) -> None:
        if parent is None or region.container is None or node.children:
            return
        parent.children = [entry for entry in parent.children if entry[2] is not node]
        region.container.del_subregion(region)


def world(rng: Random, nodes: int) -> World:
    root = random_tree(rng, room=24, nodes=nodes)
    region, made = build(root)
    assert made[root] is region
    return World(rng, root, made)


def spaces_of(here: World) -> list[tuple[AddressSpace, Node]]:
    """A space over the root, one through an alias, one over something inside."""
    alias = Node("whole", TOP, RegionKind.ALIAS, target=here.root)
    window = Node("window", 20, RegionKind.ALIAS, target=here.root, target_offset=3)
    topology = Topology(tcg=False)
    spaces = []
    for node in (here.root, alias, window):
        region = here.regions.get(node) or MemoryRegion.alias_of(
            node.name, here.regions[here.root], node.target_offset, node.size
        )
        spaces.append((AddressSpace(node.name, region, topology=topology), node))
    return spaces


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
