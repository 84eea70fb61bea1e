"""Which regions were added anew, and so lie over their equals.

QEMU puts a region that is added, or added again, before all of its priority
(``memory_region_update_container_subregions``). The text shows most of it: another address or
priority, another order of equals. What it shows only in part is told by what is known of the
device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from qemuglue.memory import MemoryRegion
from qemuglue.mirror.identity import Spec
from qemuglue.mirror.known import BUILT_TOGETHER

_TURN = {name: turn for turn, name in enumerate(BUILT_TOGETHER)}


def is_moved(spec: Spec, matched: dict[Spec, MemoryRegion]) -> bool:
    """Whether the region is elsewhere in the tree than it was, or has another priority."""
    region = matched[spec]
    container = matched[spec.parent] if spec.parent is not None else None
    return (
        region.container is not container
        or region.addr != spec.node.addr
        or region.priority != spec.node.priority
    )


def overtaking(
    specs: Iterable[Spec], matched: Mapping[Spec, MemoryRegion],
    printed: Mapping[MemoryRegion, tuple[MemoryRegion, ...]], moved: set[MemoryRegion],
) -> set[MemoryRegion]:
    """Regions added again where they were. Those of one address and priority print newest
    first, so one that stands before another it stood behind has been away. ``printed`` is the
    order of each container's children before."""
    found: set[MemoryRegion] = set()
    for spec in specs:
        if not spec.children:
            continue
        children = tuple(matched[child] for child in spec.children)
        old = printed.get(matched[spec], ())
        if children == old:
            continue
        rank = {region: number for number, region in enumerate(old)}
        equals: defaultdict[tuple[int, int], list[MemoryRegion]] = defaultdict(list)
        for child in spec.children:
            region = matched[child]
            if region in rank and region not in moved:
                equals[child.node.addr, child.node.priority].append(region)
        for group in equals.values():
            at = len(group) - 1
            while at > 0 and rank[group[at - 1]] < rank[group[at]]:
                at -= 1
            found.update(group[:at])
    return found


def rebuilt(
    matched: Mapping[Spec, MemoryRegion], before: set[MemoryRegion], moved: set[MemoryRegion]
) -> set[MemoryRegion]:
    """Windows that were added anew together with one that has changed. To be asked while the
    regions are still as they were ``before``."""
    changed = {region.key.owner for region in before.difference(matched.values())
               if region.name in _TURN}
    windows = [(spec, region) for spec, region in matched.items()
               if region.name in _TURN and region.alias is not None]
    for spec, region in windows:
        node = spec.node
        if region in moved or (
            (max(region.size, 1), region.alias_offset) != (node.size, node.target_offset)
        ):
            changed.add(region.key.owner)
    return {region for _, region in windows if region.key.owner in changed}


def in_turn(newest_first: Sequence[MemoryRegion]) -> list[MemoryRegion]:
    """The same regions, those of one bridge in the order they were added: the last on top."""
    order = list(newest_first)
    owners = {region.key.owner for region in order if region.name in _TURN}
    for owner in owners:
        places = [n for n, region in enumerate(order)
                  if region.name in _TURN and region.key.owner == owner]
        group = sorted((order[n] for n in places), key=lambda region: -_TURN[region.name])
        for place, region in zip(places, group, strict=True):
            order[place] = region
    return order


def guess(
    children: list[MemoryRegion], addresses: dict[MemoryRegion, tuple[int, int]]
) -> list[MemoryRegion]:
    """The order of regions nothing is known about. Boards add regions by and large in address
    order, and the newest lies on top: the higher address first. What is switched off belongs
    to devices that a guest sets up, and those are added after the board's own. (Stable: equal
    addresses keep the print order, which is true.)"""
    return sorted(children, key=lambda child: (child.enabled, -addresses[child][0]))
