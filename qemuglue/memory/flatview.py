"""FlatView: the map a tree of regions draws, as disjoint sections in address order.

How it is drawn (QEMU ``render_memory_region``, rule R17): disabled regions are skipped; every
region is clipped by its containers; an alias shifts its target; children are drawn before
their parent, highest priority first, and whoever was drawn first keeps the address. Then
neighbours that continue each other are merged (``flatview_simplify``).

Spaces that show the same root share a view. Who uses one counts a reference (``ref``,
``unref``, or a ``FlatViewRefGuard``); without any it is reclaimed at the end of the RCU grace
period, and then every use of it raises RcuError.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from types import TracebackType
from typing import NoReturn

from qemuglue.errors import ModelError
from qemuglue.memory.rcu import RCU, Rcu, RcuError
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
    #: The clients its region was logged for when it was drawn.
    dirty_log_mask: int = field(default=0, repr=False)

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
            and self.dirty_log_mask == other.dirty_log_mask
            and self.readonly == other.readonly
            and self.romd == other.romd
            and self.nonvolatile == other.nonvolatile
            and not self.unmergeable
            and not other.unmergeable
        )

    def equals(self, other: MemoryRegionSection) -> bool:
        """Whether a listener need not be told: all is equal but, perhaps, who logs writes
        (``flatrange_equal``)."""
        return self is other or (
            self.region is other.region
            and self.start == other.start
            and self.size == other.size
            and self.offset == other.offset
            and self.romd == other.romd
            and self.readonly == other.readonly
            and self.nonvolatile == other.nonvolatile
            and self.unmergeable == other.unmergeable
        )

    def part_of_region(self, offset: int, length: int) -> MemoryRegionSection | None:
        """The part of this section that shows ``length`` bytes at ``offset`` of the region;
        None where it shows none of them."""
        low = max(offset, self.offset)
        high = min(offset + length, self.offset + self.size)
        if low >= high:
            return None
        return replace(self, start=self.start + low - self.offset, offset=low, size=high - low)

    def clipped(self, start: int, size: int) -> MemoryRegionSection | None:
        """The part of this section in ``size`` bytes at the address ``start``, or None."""
        return self.part_of_region(start - self.start + self.offset, size)


class FlatView:
    """An immutable map. ``sections`` are sorted, disjoint, at least one byte long. ``root`` is
    the region that was drawn (``view_root``), None for an empty view.

    ``cover`` is the same with the holes as sections of ``UNASSIGNED`` (offset = address), so
    that every address of the 64-bit space has exactly one; ``starts`` are its start addresses.
    It is made with one reference, its maker's.
    """

    __slots__ = (
        "__weakref__", "_count", "_lock", "_rcu", "cover", "root", "sections", "starts",
    )

    def __init__(
        self, root: MemoryRegion | None, sections: list[MemoryRegionSection], *, rcu: Rcu = RCU
    ) -> None:
        self.root = root
        self.sections = tuple(sections)
        self.cover = tuple(_fill(sections))
        self.starts = [section.start for section in self.cover]
        self._count = 1
        # Reentrant, since a finalizer of the same thread may give a reference back anywhere.
        self._lock = threading.RLock()
        self._rcu = rcu

    def lookup(self, addr: int) -> MemoryRegionSection:
        """The section that answers at ``addr`` (0 to 2^64-1); a hole gives an unassigned one."""
        return self.cover[bisect_right(self.starts, addr) - 1]

    def find(self, addr: int) -> MemoryRegionSection | None:
        """Like ``lookup``, but None in a hole."""
        section = self.lookup(addr)
        return section if section.assigned else None

    def find_range(self, addr: int, size: int) -> MemoryRegionSection | None:
        """The first section within ``size`` bytes at ``addr``, clipped to them, or None."""
        if size <= 0:
            return None
        at = bisect_right(self.starts, addr) - 1
        for section in self.cover[at : at + 2]:
            if section.assigned:
                return section.clipped(addr, size)
        return None

    def __iter__(self) -> Iterator[MemoryRegionSection]:
        return iter(self.sections)

    def __len__(self) -> int:
        return len(self.sections)

    # -- references ------------------------------------------------------------------------

    def ref(self) -> bool:
        """Count one more user; False, and nothing counted, where there is none any more
        (``flatview_ref``: somebody replaced the view meanwhile)."""
        with self._lock:
            if self._count:
                self._count += 1
                return True
            return False

    def unref(self, *, finalizer: bool = False) -> None:
        """One user less; the last one's leaving has the view reclaimed when all RCU sections
        of now have ended (``flatview_unref``). In a ``finalizer`` nothing is reclaimed at once.
        Raises ModelError where nobody uses it."""
        with self._lock:
            if not self._count:
                raise ModelError("the view has no reference left to give back")
            self._count -= 1
            last = not self._count
        if last:
            (self._rcu.defer if finalizer else self._rcu.call)(self._reclaim)

    @property
    def references(self) -> int:
        """How many use it now."""
        return self._count

    @property
    def reclaimed(self) -> bool:
        return type(self) is not FlatView

    def _reclaim(self) -> None:
        """``flatview_destroy``. The regions stay; the view forgets them, and any use of it
        from now on is a use after free."""
        del self.sections, self.cover, self.starts, self.root
        self.__class__ = _ReclaimedView


class _ReclaimedView(FlatView):
    """What a view becomes when it is reclaimed."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        raise RcuError(f"use after free: the view was reclaimed before its {name} was asked for")

    def ref(self) -> bool:
        raise RcuError("use after free: the view was reclaimed")

    def unref(self, *, finalizer: bool = False) -> None:
        raise RcuError("use after free: the view was reclaimed")


class FlatViewRefGuard:
    """A counted reference to a view, given back once: at the end of ``with``, by ``release``,
    or when Python collects it. Source: QEMU ``address_space_get_flatview``; the Rust bindings'
    type of that name.
    """

    __slots__ = ("_view",)

    def __init__(self, view: FlatView) -> None:
        """Take over a reference that was counted for this guard already."""
        self._view: FlatView | None = view

    @property
    def view(self) -> FlatView:
        """The view. Raises RcuError after the reference was given back."""
        if self._view is None:
            raise RcuError("the reference to the view was given back already")
        return self._view

    def clone(self) -> FlatViewRefGuard:
        """A second reference to the same view."""
        view = self.view
        if not view.ref():
            raise RcuError("the view has no reference left, though this guard holds one")
        return FlatViewRefGuard(view)

    def release(self) -> None:
        """Give the reference back. Raises RcuError the second time."""
        view, self._view = self.view, None
        view.unref()

    def __enter__(self) -> FlatView:
        return self.view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        view = getattr(self, "_view", None)
        if view is not None:
            self._view = None
            view.unref(finalizer=True)


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


def render(root: MemoryRegion | None, *, rcu: Rcu = RCU) -> FlatView:
    """Draw ``root``'s tree; None draws nothing. The caller owns the view's one reference.

    Raises ModelError where the tree is too deep or too large.
    """
    painter = _Painter()
    drawn = None if root is None else view_root(root)
    if drawn is not None:
        painter.paint(drawn, 0, 0, MAX_SIZE, False, False, False, 0)
    painter.drawn.sort(key=attrgetter("start"))
    return FlatView(drawn, _simplify(painter.drawn), rcu=rcu)


def _simplify(drawn: list[MemoryRegionSection]) -> list[MemoryRegionSection]:
    merged: list[MemoryRegionSection] = []
    for section in drawn:
        if merged and merged[-1].continues(section):
            first = merged.pop()
            section = MemoryRegionSection(
                first.start, first.size + section.size, first.region, first.offset,
                first.readonly, first.romd, first.nonvolatile, first.unmergeable,
                first.dirty_log_mask,
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
            self._fill(
                region, base, low, high,
                (readonly, region.romd, nonvolatile, unmergeable, region.dirty_log_mask),
            )

    def _fill(
        self, region: MemoryRegion, base: int, low: int, high: int,
        flags: tuple[bool, bool, bool, bool, int],
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
        flags: tuple[bool, bool, bool, bool, int],
    ) -> None:
        self.drawn.append(MemoryRegionSection(low, high - low, region, low - base, *flags))
