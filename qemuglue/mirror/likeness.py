"""What makes a printed line and a known region the same: how little has changed."""

from __future__ import annotations

from collections.abc import Callable

from qemuglue.memory import MemoryRegion
from qemuglue.mirror.identity import Spec

Likeness = Callable[[Spec, MemoryRegion, dict[Spec, MemoryRegion]], bool]


def fits(spec: Spec, region: MemoryRegion, _: object = None) -> bool:
    """Whether the two can be one region at all: RAM stays RAM, an alias an alias."""
    if spec.target is not None or region.alias is not None:
        return spec.target is not None and region.alias is not None
    return (spec.node.type in ("ram", "rom", "ramd")) == region.is_ram


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
