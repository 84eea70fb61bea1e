"""Which views a change can have touched, so that only those are drawn again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from qemuglue.memory import MemoryRegion

Look = tuple[object, ...]


def looks(regions: Iterable[MemoryRegion]) -> dict[MemoryRegion, Look]:
    """All of each region that decides what is drawn of it, of its children only which they are
    and in what order."""
    return {
        region: (
            region.addr, region.size, region.enabled, region.terminates, region.readonly,
            region.romd, region.nonvolatile, region.unmergeable, region.alias,
            region.alias_offset, region.dirty_log_mask, region.subregions,
        )
        for region in regions
    }


def touched(
    before: Mapping[MemoryRegion, Look], now: Mapping[MemoryRegion, Look]
) -> set[MemoryRegion]:
    """The regions of ``now`` whose drawing may be another: those that look different, what
    contains them, and the aliases that show any of it."""
    shown_by: defaultdict[MemoryRegion, list[MemoryRegion]] = defaultdict(list)
    for region in now:
        if region.alias is not None:
            shown_by[region.alias].append(region)
    waiting = [region for region, look in now.items() if before.get(region) != look]
    found: set[MemoryRegion] = set()
    while waiting:
        region = waiting.pop()
        if region in found:
            continue
        found.add(region)
        waiting += shown_by[region]
        if region.container is not None:
            waiting.append(region.container)
    return found
