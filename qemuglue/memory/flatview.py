"""FlatView: the map a tree of regions draws, as disjoint sections in address order.

How it is drawn (QEMU ``render_memory_region``, rule R17): disabled regions are skipped; every
region is clipped by its containers; an alias shifts its target; children are drawn before
their parent, highest priority first, and whoever was drawn first keeps the address. Then
neighbours that continue each other are merged (``flatview_simplify``).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from qemuglue.errors import ModelError
from qemuglue.memory.region import MAX_SIZE, MemoryRegion, RegionKind

#: Regions visited in one rendering. A tree of aliases can be exponential; the largest real
#: machine (a board with 837 devices) needs about 12,000.
MAX_VISITS = 2_000_000
#: Containers and aliases inside each other; Python's own stack is the harder limit.
MAX_DEPTH = 200

#: ``io_mem_unassigned``: what answers where nothing is mapped. QEMU gives it no name.
UNASSIGNED = MemoryRegion("", MAX_SIZE, RegionKind.RESERVATION)


@dataclass(frozen=True, slots=True, eq=False)
class MemoryRegionSection:
    """``size`` bytes of an address space from ``start`` on, answered by ``region`` from
    ``offset`` on. ``readonly`` is the section's flag, inherited from every container and
    alias above; the region has one of its own."""

    start: int
    size: int
    region: MemoryRegion
    offset: int
    readonly: bool = False
    romd: bool = False
    nonvolatile: bool = False
    unmergeable: bool = field(default=False, repr=False)

    @property
    def last(self) -> int:
        """The last address, inclusive."""
        return self.start + self.size - 1

    @property
    def assigned(self) -> bool:
        return self.region is not UNASSIGNED

    def continues(self, other: MemoryRegionSection) -> bool:
        """Whether ``other`` carries on where this ends (``can_merge``)."""
        return (
            self.start + self.size == other.start
            and self.region is other.region
            and self.offset + self.size == other.offset
            and self.readonly == other.readonly
            and self.romd == other.romd
            and self.nonvolatile == other.nonvolatile
            and not self.unmergeable
            and not other.unmergeable
        )


class FlatView:
    """An immutable map. ``sections`` are sorted, disjoint, at least one byte long. ``root`` is
    the region that was drawn (``view_root``), None for an empty view.

    ``cover`` is the same with the holes as sections of ``UNASSIGNED`` (offset = address), so
    that every address of the 64-bit space has exactly one; ``starts`` are its start addresses.
    """

    __slots__ = ("cover", "root", "sections", "starts")

    def __init__(self, root: MemoryRegion | None, sections: list[MemoryRegionSection]) -> None:
        self.root = root
        self.sections = tuple(sections)
        self.cover = tuple(_fill(sections))
        self.starts = [section.start for section in self.cover]

    def lookup(self, addr: int) -> MemoryRegionSection:
        """The section that answers at ``addr`` (0 to 2^64-1); a hole gives an unassigned one."""
        return self.cover[bisect_right(self.starts, addr) - 1]

    def find(self, addr: int) -> MemoryRegionSection | None:
        """Like ``lookup``, but None in a hole."""
        section = self.lookup(addr)
        return section if section.assigned else None

    def __iter__(self) -> Iterator[MemoryRegionSection]:
        return iter(self.sections)

    def __len__(self) -> int:
        return len(self.sections)


def _fill(sections: list[MemoryRegionSection]) -> Iterator[MemoryRegionSection]:
    at = 0
    for section in sections:
        assert section.size > 0, f"empty section of {section.region.name!r}"
        assert section.start >= at, f"{section.region.name!r} at {section.start:#x} overlaps"
        if section.start > at:
            yield MemoryRegionSection(at, section.start - at, UNASSIGNED, at)
        yield section
        at = section.start + section.size
    assert at <= MAX_SIZE, f"the view ends beyond 2^64: {at:#x}"
    if at < MAX_SIZE:
        yield MemoryRegionSection(at, MAX_SIZE - at, UNASSIGNED, at)


def view_root(root: MemoryRegion) -> MemoryRegion | None:
    """The region QEMU really draws for a space over ``root``, so that spaces can share views
    (``memory_region_get_flatview_root``); None where nothing would show.

    A root alias of the whole of another region, and a container whose only enabled child
    starts at 0 and fits, are passed over. Their flags are lost, and the target of a passed
    alias is drawn at its own ``addr``. Raises ModelError where the chain never ends.
    """
    region = root
    for _ in range(MAX_DEPTH):
        if not region.enabled:
            return None
        below: MemoryRegion | None = None
        if region.alias is not None:
            if region.alias_offset == 0 and region.size >= region.alias.size:
                below = region.alias
        elif not region.terminates:
            enabled = [child for child in region._children if child.enabled]
            if not enabled:
                return None
            child = enabled[0]
            if len(enabled) == 1 and child.addr == 0 and region.size >= child.size:
                below = child
        if below is None:
            return region
        region = below
    raise ModelError(f"region {root.name!r} is more than {MAX_DEPTH} levels deep")


def render(root: MemoryRegion) -> FlatView:
    """Draw ``root``'s tree. Raises ModelError where the tree is too deep or too large."""
    painter = _Painter()
    drawn = view_root(root)
    if drawn is not None:
        painter.paint(drawn, 0, 0, MAX_SIZE, False, False, False, 0)
    painter.drawn.sort(key=attrgetter("start"))
    return FlatView(drawn, _simplify(painter.drawn))


def _simplify(drawn: list[MemoryRegionSection]) -> list[MemoryRegionSection]:
    merged: list[MemoryRegionSection] = []
    for section in drawn:
        if merged and merged[-1].continues(section):
            first = merged.pop()
            section = MemoryRegionSection(
                first.start, first.size + section.size, first.region, first.offset,
                first.readonly, first.romd, first.nonvolatile, first.unmergeable,
            )
        merged.append(section)
    return merged


class _Painter:
    """Draws sections, in no order; whoever comes first keeps the address.

    What is taken is kept as runs [lows[i], highs[i]), sorted and never touching. Each drawing
    makes the runs it meets one, so a run is walked over once in its life: a region that lies
    below much else costs no more than one that does not.
    """

    def __init__(self) -> None:
        self.drawn: list[MemoryRegionSection] = []
        self.lows: list[int] = []
        self.highs: list[int] = []
        self.visits = 0

    def paint(
        self, region: MemoryRegion, base: int, low: int, high: int, readonly: bool,
        nonvolatile: bool, unmergeable: bool, depth: int,
    ) -> None:
        """Draw ``region`` whose container starts at ``base``, clipped to [low, high)."""
        if not region.enabled:
            return
        self.visits += 1
        if depth > MAX_DEPTH:
            raise ModelError(f"region {region.name!r} is more than {MAX_DEPTH} levels deep")
        if self.visits > MAX_VISITS:
            raise ModelError(f"the tree shows more than {MAX_VISITS} regions")
        base += region.addr
        readonly = readonly or region.readonly
        nonvolatile = nonvolatile or region.nonvolatile
        unmergeable = unmergeable or region.unmergeable
        low = max(low, base)
        high = min(high, base + region.size)
        if low >= high:
            return
        if region.alias is not None:
            self.paint(
                region.alias, base - region.alias.addr - region.alias_offset, low, high,
                readonly, nonvolatile, unmergeable, depth + 1,
            )
            return
        for child in region._children:
            self.paint(child, base, low, high, readonly, nonvolatile, unmergeable, depth + 1)
        if region.terminates:
            self._fill(region, base, low, high, (readonly, region.romd, nonvolatile, unmergeable))

    def _fill(
        self, region: MemoryRegion, base: int, low: int, high: int,
        flags: tuple[bool, bool, bool, bool],
    ) -> None:
        """Draw ``region`` wherever [low, high) is still free."""
        lows, highs = self.lows, self.highs
        first = bisect_left(highs, low)
        stop = bisect_right(lows, high)
        at = low
        for taken_low, taken_high in zip(lows[first:stop], highs[first:stop], strict=True):
            if taken_low > at:
                self._draw(region, at, taken_low, base, flags)
            at = taken_high
        if at < high:
            self._draw(region, at, high, base, flags)
        if first < stop:
            low, high = min(low, lows[first]), max(high, highs[stop - 1])
        lows[first:stop] = [low]
        highs[first:stop] = [high]

    def _draw(
        self, region: MemoryRegion, low: int, high: int, base: int,
        flags: tuple[bool, bool, bool, bool],
    ) -> None:
        self.drawn.append(MemoryRegionSection(low, high - low, region, low - base, *flags))
