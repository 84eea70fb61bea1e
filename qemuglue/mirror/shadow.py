"""What of each region can be seen, and what hides the rest.

A view is the outcome of a contest; here is who lost it. A region counts as seen wherever the
view shows it or anything below it, aliases included. ``occurrences`` tells it by the tree,
``claims`` by the addresses: who would answer there, topmost first.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, FlatView, MemoryRegion

#: Names of hiding regions that are told; a row of a table takes no more.
MAX_HIDERS = 3
#: Claims of one view. Aliases of aliases can be exponential; the largest real machine (a board
#: with 837 devices) has about 4,000.
MAX_CLAIMS = 100_000
#: Containers and aliases inside each other, as ``memory.flatview`` has it.
MAX_DEPTH = 200

_TOP = 1 << 64


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


# Section: by address


@dataclass(frozen=True, slots=True)
class Claim:
    """A region where it stands in a view, clipped by all that holds it, and not by what lies
    over it. ``start`` and ``last`` (inclusive) are addresses of the space, ``offset`` is where
    in the region the first one leads. ``path`` goes from the drawn root to the region, aliases
    included; a region that does not ``answer`` is a pure container."""

    path: tuple[MemoryRegion, ...]
    start: int
    last: int
    offset: int
    readonly: bool
    nonvolatile: bool

    @property
    def region(self) -> MemoryRegion:
        return self.path[-1]

    @property
    def answers(self) -> bool:
        return self.region.terminates

    @property
    def aliases(self) -> tuple[MemoryRegion, ...]:
        """The aliases it is seen through, outermost first."""
        return tuple(region for region in self.path if region.alias is not None)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Addresses ``start`` to ``last`` (inclusive) over which the same regions lie: numbers of
    claims that answer, topmost first. The first one is what the view shows."""

    start: int
    last: int
    stack: tuple[int, ...]


def claims(root: MemoryRegion | None) -> list[Claim]:
    """Every enabled region that is no alias wherever a view of ``root`` (``FlatView.root``) has
    it, in the order of resolution: of two over one address the earlier wins (QEMU
    ``render_memory_region``). Raises ModelError where they are absurdly many."""
    found: list[Claim] = []

    def visit(
        region: MemoryRegion, base: int, low: int, high: int, path: tuple[MemoryRegion, ...],
        readonly: bool, nonvolatile: bool,
    ) -> None:
        if not region.enabled:
            return
        base += region.addr
        low, high = max(low, base), min(high, base + region.size)
        if low >= high:
            return
        if len(path) > MAX_DEPTH or len(found) > MAX_CLAIMS:
            raise ModelError(f"region {region.name!r}: more than {MAX_CLAIMS} regions to draw, "
                             f"or more than {MAX_DEPTH} inside each other")
        path = (*path, region)
        readonly = readonly or region.readonly
        nonvolatile = nonvolatile or region.nonvolatile
        if region.alias is not None:
            visit(region.alias, base - region.alias.addr - region.alias_offset, low, high, path,
                  readonly, nonvolatile)
            return
        for child in region.subregions:
            visit(child, base, low, high, path, readonly, nonvolatile)
        found.append(Claim(path, low, high - 1, low - base, readonly, nonvolatile))

    if root is not None:
        visit(root, 0, 0, _TOP, (), False, False)
    return found


def stretches(found: Sequence[Claim], leave_out: int | None = None) -> list[Stretch]:
    """The whole space, 0 to 2^64 - 1, cut wherever a claim that answers begins or ends. The
    claim of number ``leave_out`` is passed over: one that lies beneath everything, say."""
    answering = [number for number, claim in enumerate(found)
                 if claim.answers and number != leave_out]
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for number in answering:
        begins.setdefault(found[number].start, []).append(number)
        ends.setdefault(found[number].last + 1, []).append(number)
    edges = sorted({0, _TOP, *begins, *ends})
    active: list[int] = []
    cut: list[Stretch] = []
    for start, stop in pairwise(edges):
        for number in ends.get(start, ()):
            del active[bisect_left(active, number)]
        for number in begins.get(start, ()):
            insort(active, number)
        cut.append(Stretch(start, stop - 1, tuple(active)))
    return cut
