"""Changes of a tree, made to plain nodes and to the model's regions alike, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from qemuglue.campaign.inputs.faults import Fault
from qemuglue.campaign.model.painting import TOP, Node, build, random_tree
from qemuglue.memory import (
    AddressSpace,
    FlatView,
    MemoryListener,
    MemoryRegion,
    MemoryRegionSection,
    RegionKind,
    Topology,
)

Shown = tuple[int, int, str, int, bool, bool]
#: All that makes a section another one for a listener.
Told = tuple[int, int, MemoryRegion, int, bool, bool, bool, bool]


def shown(view: FlatView) -> list[Shown]:
    return [(s.start, s.size, s.region.name, s.offset, s.readonly, s.nonvolatile) for s in view]


def told(s: MemoryRegionSection) -> Told:
    return (s.start, s.size, s.region, s.offset, s.romd, s.readonly, s.nonvolatile, s.unmergeable)


def hold(condition: bool, what: str) -> None:
    """:raise Fault: what must hold does not."""
    if not condition:
        raise Fault("listener", what)


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
        hold(self.map.pop(section.start, None) == told(section), "what is deleted was there")

    def region_add(self, section: MemoryRegionSection) -> None:
        self.calls.append(f"{self.name} add")
        self.said.append(("add", told(section)))
        hold(not any(
            start <= section.last and section.start < start + entry[1]
            for start, entry in self.map.items()
        ), "what was there is deleted before")
        self.map[section.start] = told(section)

    def region_nop(self, section: MemoryRegionSection) -> None:
        self.calls.append(f"{self.name} nop")
        self.said.append(("nop", told(section)))
        hold(self.map.get(section.start) == told(section), "what stays was there")


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
