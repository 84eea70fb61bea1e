"""What makes a printed line and a known region the same: how little has changed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from qemuglue.memory import MemoryRegion
from qemuglue.mirror.identity import Spec

#: Namesakes (printed ones times known ones) that are told apart one by one, about 1 s. More than
#: these are taken in print order: no device makes a thousand equal regions.
MAX_COMPARED = 1_000_000

Likeness = Callable[[Spec, MemoryRegion, dict[Spec, MemoryRegion]], bool]


def fits(spec: Spec, region: MemoryRegion, _: object = None) -> bool:
    """Whether the two can be one region at all: RAM stays RAM, an alias an alias."""
    return _sort_of(spec) == ("alias" if region.alias is not None else region.is_ram)


def _sort_of(spec: Spec) -> object:
    return "alias" if spec.target is not None else spec.node.type in ("ram", "rom", "ramd")


def in_order(
    specs: Iterable[Spec], regions: Iterable[MemoryRegion]
) -> Iterable[tuple[Spec, MemoryRegion]]:
    """Pair those that can be one region at all, first with first."""
    free: defaultdict[object, list[MemoryRegion]] = defaultdict(list)
    for region in regions:
        free["alias" if region.alias is not None else region.is_ram].append(region)
    left = {sort: iter(group) for sort, group in free.items()}
    for spec in specs:
        found = next(left.get(_sort_of(spec), iter(())), None)
        if found is not None:
            yield spec, found


def _alike(spec: Spec, region: MemoryRegion, matched: dict[Spec, MemoryRegion]) -> bool:
    """Nothing changed but the address."""
    node = spec.node
    container = matched.get(spec.parent) if spec.parent is not None else None
    return (
        fits(spec, region)
        and container is region.container
        and node.size == max(region.size, 1)
        and node.priority == region.priority
        and (
            spec.target is None
            or (matched.get(spec.target) is region.alias
                and node.target_offset == region.alias_offset)
        )
    )


def _unmoved(spec: Spec, region: MemoryRegion, matched: dict[Spec, MemoryRegion]) -> bool:
    return spec.node.addr == region.addr and _alike(spec, region, matched)


def _same_size(spec: Spec, region: MemoryRegion, matched: dict[Spec, MemoryRegion]) -> bool:
    return fits(spec, region) and spec.node.size == max(region.size, 1)


#: What makes two equals the same, sharpest first.
LIKENESS: tuple[Likeness, ...] = (_unmoved, _alike, _same_size, fits)
