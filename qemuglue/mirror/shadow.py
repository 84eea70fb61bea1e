"""What of each region can be seen, and what hides the rest.

A view is the outcome of a contest; here is who lost it. A region counts as seen wherever the
view shows it or anything below it, aliases included.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from qemuglue.memory import AddressSpace, FlatView, MemoryRegion

#: Names of hiding regions that are told; a row of a table takes no more.
MAX_HIDERS = 3


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A region where it stands in a space's tree, ``depth`` levels below its root.

    ``start`` and ``last`` (inclusive) are addresses in the space, before anything clips them.
    ``state`` is ``shown``, ``partly``, ``hidden``, ``disabled``, ``empty`` (nothing in it
    answers) or ``outside`` (of its container). ``hidden_by`` names what is seen in its place.
    """

    region: MemoryRegion
    depth: int
    start: int
    last: int
    state: str
    hidden_by: tuple[str, ...] = ()


def occurrences(space: AddressSpace) -> Iterator[Occurrence]:
    """Every region of a space's tree in QEMU's order of resolution. What an alias shows is
    not gone into: it stands in its own place."""
    below: dict[MemoryRegion, frozenset[MemoryRegion]] = {}
    view = space.view

    def visit(
        region: MemoryRegion, base: int, low: int, high: int, depth: int, enabled: bool
    ) -> Iterator[Occurrence]:
        base += region.addr
        low, high = max(low, base), min(high, base + region.size)
        enabled = enabled and region.enabled
        state: tuple[str, tuple[str, ...]] = ("disabled", ())
        if enabled:
            state = _seen(view, low, high, _below(region, below))
        yield Occurrence(region, depth, base, base + max(region.size, 1) - 1, *state)
        for child in region.subregions:
            yield from visit(child, base, low, high, depth + 1, enabled)

    yield from visit(space.root, 0, 0, 1 << 64, 0, True)


def _below(
    region: MemoryRegion, known: dict[MemoryRegion, frozenset[MemoryRegion]]
) -> frozenset[MemoryRegion]:
    """The regions that answer somewhere in ``region``, itself included."""
    found = known.get(region)
    if found is None:
        known[region] = frozenset()  # ends a cycle, should there be one
        parts = {region} if region.terminates else set()
        for other in (region.alias, *region.subregions):
            if other is not None and other.enabled:
                parts |= _below(other, known)
        found = known[region] = frozenset(parts)
    return found


def _seen(
    view: FlatView, low: int, high: int, mine: frozenset[MemoryRegion]
) -> tuple[str, tuple[str, ...]]:
    if not mine:
        return "empty", ()
    if low >= high:
        return "outside", ()
    shown = False
    hiders: dict[str, None] = {}
    for section in view.cover[bisect_right(view.starts, low) - 1:]:
        if section.start >= high:
            break
        if section.region in mine:
            shown = True
        elif section.assigned:
            hiders[section.region.name] = None
    names = tuple(hiders)
    if len(names) > MAX_HIDERS:
        names = (*names[:MAX_HIDERS], f"{len(names) - MAX_HIDERS} more")
    if not shown:
        return ("hidden", names) if names else ("empty", ())
    return ("partly", names) if names else ("shown", ())
