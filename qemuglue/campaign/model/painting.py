"""A map drawn naively: who answers at one address, asked again and again.

A map is a tree of plain ``Node``s. ``spot`` walks down the tree for one address; ``paint`` asks
that for every address where anything can change. Nothing here reads the model's rules, views or
dispatch; the model's tree is only built (``build``), from the same nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from qemuglue.memory import ByteBacking, Contract, MemoryRegion, RegionKind

TOP = 1 << 64
MEMORY = (RegionKind.RAM, RegionKind.ROM)


@dataclass(eq=False)
class Node:
    """A region, described. ``children`` are (offset, priority, node) in order of addition."""

    name: str
    size: int
    kind: RegionKind
    children: list[tuple[int, int, Node]] = field(default_factory=list)
    target: Node | None = None
    target_offset: int = 0
    enabled: bool = True
    readonly: bool = False
    nonvolatile: bool = False
    unmergeable: bool = False
    romd: bool = True
    contract: Contract = field(default_factory=Contract)
    addr: int = 0

    def add(self, addr: int, priority: int, child: Node) -> None:
        self.children.append((addr, priority, child))
        child.addr = addr

    @property
    def terminates(self) -> bool:
        return self.kind not in (RegionKind.CONTAINER, RegionKind.ALIAS)


@dataclass(frozen=True)
class Spot:
    """Who answers at one address: ``leaf``, at ``offset`` in it, reached along ``path``."""

    leaf: Node
    offset: int
    readonly: bool
    nonvolatile: bool
    unmergeable: bool
    path: tuple[Node, ...]

    def carried_on_by(self, later: Spot, distance: int) -> bool:
        """Whether ``later``, so many bytes on, belongs to the same section."""
        return (
            self.leaf is later.leaf
            and later.offset == self.offset + distance
            and self.readonly == later.readonly
            and self.nonvolatile == later.nonvolatile
            and (
                self.path == later.path
                or not (self.unmergeable or later.unmergeable)
            )
        )


def _spot(
    node: Node, offset: int, readonly: bool, nonvolatile: bool, unmergeable: bool,
    path: tuple[Node, ...],
) -> Spot | None:
    if not node.enabled or not 0 <= offset < node.size:
        return None
    readonly |= node.readonly or node.kind is RegionKind.ROM
    nonvolatile |= node.nonvolatile
    unmergeable |= node.unmergeable
    path = (*path, node)
    if node.target is not None:
        return _spot(
            node.target, offset + node.target_offset, readonly, nonvolatile, unmergeable, path
        )
    newest_first = list(reversed(node.children))
    for addr, _, child in sorted(newest_first, key=lambda entry: -entry[1]):
        found = _spot(child, offset - addr, readonly, nonvolatile, unmergeable, path)
        if found is not None:
            return found
    if not node.terminates:
        return None
    return Spot(node, offset, readonly, nonvolatile, unmergeable, path)


def top_of(root: Node) -> Node:
    """The node whose map is drawn for a space over ``root``: whole aliases and containers of
    one thing are looked through."""
    while root.enabled:
        shown = [entry for entry in root.children if entry[2].enabled]
        if root.target is not None and root.target_offset == 0 and root.target.size <= root.size:
            root = root.target
        elif (root.kind is RegionKind.CONTAINER and len(shown) == 1
              and shown[0][0] == 0 and shown[0][2].size <= root.size):
            root = shown[0][2]
        else:
            break
    return root


def spot(root: Node, address: int) -> Spot | None:
    top = top_of(root)
    return _spot(top, address - top.addr, False, False, False, ())


def edges_of(node: Node, base: int) -> Iterator[int]:
    yield from (base, base + node.size)
    if node.target is not None:
        yield from edges_of(node.target, base - node.target_offset)
    for addr, _, child in node.children:
        yield from edges_of(child, base + addr)


#: (start, size, name, offset, readonly, nonvolatile)
Painted = tuple[int, int, str, int, bool, bool]


def paint(root: Node, *, every: int = 0) -> list[Painted]:
    """The map as sections. ``every`` asks at each address below it and nowhere else;
    otherwise once between any two addresses where a node starts or ends."""
    top = top_of(root)
    cuts = range(every + 1) if every else sorted(
        {0, TOP} | {edge for edge in edges_of(top, top.addr) if 0 < edge < TOP}
    )
    sections: list[list[tuple[int, int, Spot]]] = []
    for start, stop in pairwise(cuts):
        here = spot(root, start)
        if here is None:
            continue
        if sections:
            before, size, last = sections[-1][-1]
            if before + size == start and last.carried_on_by(here, start - before):
                sections[-1].append((start, stop - start, here))
                continue
        sections.append([(start, stop - start, here)])
    return [
        (parts[0][0], sum(size for _, size, _ in parts), first.leaf.name, first.offset,
         first.readonly, first.nonvolatile)
        for parts in sections for first in [parts[0][2]]
    ]


# -- the same map as the model's regions ---------------------------------------------------


def build(root: Node) -> tuple[MemoryRegion, dict[Node, MemoryRegion]]:
    """The model's tree for ``root``, and the region of each node."""
    made: dict[Node, MemoryRegion] = {}
    return _build(root, made), made


def _build(node: Node, made: dict[Node, MemoryRegion]) -> MemoryRegion:
    if node in made:
        return made[node]
    holds_bytes = node.kind in (*MEMORY, RegionKind.ROM_DEVICE) and node.size <= 1 << 16
    region = MemoryRegion(
        node.name, node.size, node.kind,
        backing=ByteBacking(bytearray(contents(node))) if holds_bytes else None,
        alias=None if node.target is None else _build(node.target, made),
        alias_offset=node.target_offset,
    )
    made[node] = region
    if node.kind in (RegionKind.IO, RegionKind.ROM_DEVICE):
        region.contract = node.contract
    if node.kind is RegionKind.ROM_DEVICE:
        region.set_romd(node.romd)
    if node.readonly:
        region.set_readonly(True)
    region.set_nonvolatile(node.nonvolatile)
    region.unmergeable = node.unmergeable
    region.set_enabled(node.enabled)
    for addr, priority, child in node.children:
        region.add_subregion_overlap(addr, _build(child, made), priority)
    return region


def contents(node: Node) -> bytes:
    """What a node's memory holds at first: bytes that tell the node and the offset."""
    seed = sum(node.name.encode())
    return bytes((seed * 31 + offset * 7 + 1) & 0xFF for offset in range(node.size))


# -- random maps -----------------------------------------------------------------------------------


def random_tree(rng: Random, *, room: int, nodes: int) -> Node:
    """A tree of up to ``nodes`` nodes over ``room`` bytes: overlaps, aliases, all flags."""
    free: list[Node] = []
    made: list[Node] = []
    leaves = (RegionKind.RAM, RegionKind.ROM, RegionKind.IO, RegionKind.RESERVATION)
    for index in range(nodes):
        name = f"n{index}"
        kind = rng.choice((*leaves, RegionKind.CONTAINER, RegionKind.CONTAINER, RegionKind.ALIAS))
        size = rng.choice((rng.randrange(0, room // 2 + 2), room // 4 + 1, room))
        if kind is RegionKind.ALIAS and made:
            target = rng.choice(made)
            node = Node(name, size, kind, target=target, target_offset=rng.choice(
                (0, rng.randrange(0, target.size + 2), rng.randrange(0, room))))
        else:
            node = Node(name, size, RegionKind.RAM if kind is RegionKind.ALIAS else kind)
            for child in list(free):
                if rng.random() < 0.4:
                    node.add(rng.choice((0, rng.randrange(0, room))), rng.randrange(-1, 3), child)
                    free.remove(child)
        node.enabled = rng.random() < 0.9
        node.readonly = rng.random() < 0.15
        node.nonvolatile = rng.random() < 0.1
        node.unmergeable = rng.random() < 0.1
        free.append(node)
        made.append(node)
    root = Node("root", rng.choice((room, TOP)), RegionKind.CONTAINER)
    for child in free:
        root.add(rng.choice((0, rng.randrange(0, room))), rng.randrange(-1, 2), child)
    return root
