"""Topology: everything of one machine that changes together when its map does.

A transaction is a group of changes: ``begin``, changes, ``commit``; transactions nest and only
the outermost commit redraws (QEMU ``memory_region_transaction_begin``/``_commit``, rule R17).
The redraw makes one view for each root that spaces really show (``view_root``), so spaces can
share views, then switches every space to its new view and tells the listeners. Readers are not
held up: each goes on with the view it began with, and a view nobody uses any more is reclaimed
by RCU.

QEMU has one such state in a process, under its big lock. Here every machine has its own, and
``lock`` is that lock: it is held from the outermost ``begin`` to its ``commit``.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from qemuglue.errors import ModelError
from qemuglue.memory.dirty import CODE, MIGRATION, DirtyMemory, DirtySnapshot
from qemuglue.memory.flatview import FlatView, render, view_root
from qemuglue.memory.listener import MemoryListener, notify_coalescing, update_ioeventfds
from qemuglue.memory.rcu import RCU, Rcu
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.memory.rules import RULES_10_0, Rules

if TYPE_CHECKING:
    from qemuglue.memory.space_view import SpaceView

#: Flags of ``dirty_log_start``: who wants all writes logged (``GLOBAL_DIRTY_*``).
GLOBAL_DIRTY_MIGRATION = 1
GLOBAL_DIRTY_DIRTY_RATE = 2
GLOBAL_DIRTY_LIMIT = 4
_GLOBAL_DIRTY_MASK = 7


class Change:
    """One open transaction; leave it with ``with``."""

    __slots__ = ("_topology",)

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def __enter__(self) -> None:
        self._topology.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._topology.commit()


class _Marked(Change):
    """A transaction that has something to redraw."""

    __slots__ = ("_eventfds", "_redraw")

    def __init__(self, topology: Topology, redraw: bool, eventfds: bool) -> None:
        super().__init__(topology)
        self._redraw = redraw
        self._eventfds = eventfds

    def __enter__(self) -> None:
        self._topology.begin(redraw=self._redraw, eventfds=self._eventfds)


class Topology:
    """The spaces, listeners and pending changes of one machine.

    ``rules``, ``target_big`` and ``page_bits`` are what its spaces have unless they are given
    others; ``tcg``: code is translated from RAM, so RAM is always logged for that client.
    """

    def __init__(
        self, *, rules: Rules = RULES_10_0, target_big: bool = False, page_bits: int = 12,
        tcg: bool = True, rcu: Rcu = RCU,
    ) -> None:
        self.rules = rules
        self.target_big = target_big
        self.page_bits = page_bits
        self.tcg = tcg
        self.rcu = rcu
        self.lock = threading.RLock()
        #: Owners that are handling an access just now (R4).
        self.engaged: set[object] = set()
        self.dirty = DirtyMemory(1 << page_bits)
        #: In order of priority, the lowest first; among equals the oldest first.
        self.listeners: list[MemoryListener] = []
        #: ``GLOBAL_DIRTY_*`` bits of who has all writes logged.
        self.global_dirty_tracking = 0
        #: Before 9.2 one bounce buffer served every space (R14): whether it is taken, and who
        #: waits for it.
        self.bounce_in_use = False
        #: Whether something nobody follows may hold it; set and looked at by the witnesses.
        self.bounce_doubt = False
        self.bounce_lock = threading.Lock()
        self.map_clients: list[Callable[[], None]] = []
        self._spaces: list[weakref.ref[SpaceView]] = []
        self._depth = 0
        self._redraw = False
        self._eventfds = False
        self._views: dict[MemoryRegion | None, FlatView] = {}

    # -- transactions ----------------------------------------------------------------------

    def transaction(self) -> Change:
        """``with topology.transaction():`` changes in it show at its end, at once."""
        return Change(self)

    def change(self, redraw: bool, *, eventfds: bool = False) -> Change:
        """A transaction whose commit has to redraw, or to look at the ioeventfds again."""
        return _Marked(self, redraw, eventfds)

    def begin(self, *, redraw: bool = False, eventfds: bool = False) -> None:
        """Open a transaction; another thread's is waited for."""
        self.lock.acquire()
        self._depth += 1
        self._redraw |= redraw
        self._eventfds |= eventfds

    def commit(self) -> None:
        """Close a transaction; the outermost one makes its changes visible.

        Raises ModelError without an open one, and where the tree cannot be drawn: then all
        spaces keep their views, and the next commit tries again.
        """
        if not self._depth:
            raise ModelError("no transaction is open: commit needs a begin before it")
        self._depth -= 1
        try:
            if not self._depth:
                if self._redraw:
                    self._commit_views()
                elif self._eventfds:
                    for space in self.spaces:
                        update_ioeventfds(space)
                    self._eventfds = False
        finally:
            self.lock.release()

    @property
    def depth(self) -> int:
        """How many transactions are open inside each other."""
        return self._depth

    def _commit_views(self) -> None:
        spaces = self.spaces
        views: dict[MemoryRegion | None, FlatView] = {}
        drawn = [(space, self._view_of(space, views)) for space in spaces]
        old, self._views = self._views, views
        for view in old.values():
            view.unref()
        with self.announced():
            for space, view in drawn:
                space.switch(view)
                update_ioeventfds(space)
            self._redraw = self._eventfds = False

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Spaces are switched to other views in here: every listener hears of the beginning
        and of the end."""
        with self.lock:
            for listener in tuple(self.listeners):
                listener.begin()
            yield
            for listener in tuple(self.listeners):
                listener.commit()

    def _view_of(
        self, space: SpaceView, views: dict[MemoryRegion | None, FlatView]
    ) -> FlatView:
        root = view_root(space.root)
        view = views.get(root)
        if view is None:
            view = views[root] = render(root, rcu=self.rcu)
        return view

    def draw(self, space: SpaceView) -> FlatView:
        """A view for a space that has none yet; shared with others that show the same root."""
        with self.lock:
            return self._view_of(space, self._views)

    # -- spaces and regions ----------------------------------------------------------------

    @property
    def spaces(self) -> list[SpaceView]:
        """The spaces in the order they were made."""
        return [space for ref in self._spaces if (space := ref()) is not None]

    def add_space(self, space: SpaceView) -> None:
        with self.lock:
            self._spaces = [ref for ref in self._spaces if ref() is not None]
            self._spaces.append(weakref.ref(space))

    def remove_space(self, space: SpaceView) -> None:
        with self.lock:
            self._spaces = [ref for ref in self._spaces if ref() not in (None, space)]

    def space_over(self, root: MemoryRegion) -> SpaceView | None:
        """The oldest space whose root is this region (``memory_region_to_address_space``)."""
        return next((space for space in self.spaces if space.root is root), None)

    def adopt(self, region: MemoryRegion) -> None:
        """From now on changes of ``region``, and of all it contains or shows, redraw the views.

        Raises ModelError for a region of another topology: one that two machines show.
        """
        waiting = [region]
        found: set[MemoryRegion] = set()
        while waiting:
            here = waiting.pop()
            if here.topology is self or here in found:
                continue
            if here.topology is not None and here.topology.spaces:
                raise ModelError(
                    f"region {here.name!r} belongs to another topology; make both address "
                    "spaces with the same topology="
                )
            found.add(here)
            waiting += here.subregions
            if here.alias is not None:
                waiting.append(here.alias)
        for here in found:
            here.topology = self

    # -- dirty logging ---------------------------------------------------------------------

    def log_mask(self, region: MemoryRegion) -> int:
        """Clients that every region of its kind is logged for."""
        mask = 0
        has_memory = region.is_ram or region.kind is RegionKind.ROM_DEVICE
        if self.global_dirty_tracking and (has_memory or region.kind is RegionKind.IOMMU):
            mask |= 1 << MIGRATION
        if self.tcg and has_memory:
            mask |= 1 << CODE
        return mask

    def dirty_log_start(self, flags: int = GLOBAL_DIRTY_MIGRATION) -> None:
        """Log all writes (``memory_global_dirty_log_start``). The first user's start is told to
        the listeners and redraws; later ones only add their flag."""
        _check_flags(flags)
        with self.lock:
            old = self.global_dirty_tracking
            self.global_dirty_tracking |= flags
            if old or not flags:
                return
            started: list[MemoryListener] = []
            try:
                for listener in tuple(self.listeners):
                    listener.log_global_start()
                    started.append(listener)
            except BaseException:
                self.global_dirty_tracking = old
                for listener in reversed(started):
                    listener.log_global_stop()
                raise
            with self.change(True):
                pass

    def dirty_log_stop(self, flags: int = GLOBAL_DIRTY_MIGRATION) -> None:
        """Log no more for these users (``memory_global_dirty_log_stop`` of a running machine)."""
        _check_flags(flags)
        with self.lock:
            if self.global_dirty_tracking & flags != flags:
                raise ModelError("dirty logging was not started for all of these flags")
            self.global_dirty_tracking &= ~flags
            if self.global_dirty_tracking:
                return
            with self.change(True):
                pass
            for listener in reversed(tuple(self.listeners)):
                listener.log_global_stop()

    def dirty_log_sync(self, region: MemoryRegion | None = None, last_stage: bool = False) -> None:
        """Have the listeners bring in what they know of written pages: of one region, or of all
        (``memory_region_sync_dirty_bitmap``)."""
        for listener in tuple(self.listeners):
            space = listener.space
            if space is not None and listener.hears("log_sync"):
                with space.memory() as view:
                    for section in view:
                        if section.dirty_log_mask and region in (None, section.region):
                            listener.log_sync(section)
            elif listener.hears("log_sync_global"):
                listener.log_sync_global(last_stage)

    def dirty_log_clear(self, region: MemoryRegion, start: int, length: int) -> None:
        """Tell the listeners that ``length`` bytes of ``region`` from ``start`` on are clean
        now (``memory_region_clear_dirty_bitmap``)."""
        for listener in tuple(self.listeners):
            space = listener.space
            if space is None or not listener.hears("log_clear"):
                continue
            with space.memory() as view:
                for section in view:
                    if not section.dirty_log_mask or section.region is not region:
                        continue
                    part = section.part_of_region(start, length)
                    if part is not None:
                        listener.log_clear(part)

    def snapshot_and_clear_dirty(
        self, region: MemoryRegion, offset: int, length: int, client: int
    ) -> DirtySnapshot:
        """The dirty pages around a range of ``region``; they are clean after it
        (``memory_region_snapshot_and_clear_dirty``)."""
        self.dirty_log_sync(region)
        snapshot = self.dirty.snapshot_and_clear(region, offset, length, client)
        self.dirty_log_clear(region, offset, length)
        for listener in tuple(self.listeners):
            listener.log_global_after_sync()
        return snapshot

    def reset_dirty(self, region: MemoryRegion, offset: int, length: int, client: int) -> bool:
        """Make the pages clean; whether any was dirty (``memory_region_reset_dirty``)."""
        dirty = self.dirty.test_and_clear(region, offset, length, client)
        if length > 0:
            size = self.dirty.page_size
            first = offset - offset % size
            self.dirty_log_clear(region, first, -(-(offset + length) // size) * size - first)
        return dirty

    def set_dirty(self, region: MemoryRegion, offset: int, length: int) -> None:
        """As if the range had been written (``memory_region_set_dirty``)."""
        self.dirty.set(region, offset, length, region.dirty_log_mask)

    def coalescing(self, region: MemoryRegion, part: tuple[int, int], *, add: bool) -> None:
        """Tell the listeners of every space that shows ``region``."""
        for space in self.spaces:
            with space.memory() as view:
                for section in view:
                    if section.region is region:
                        notify_coalescing(space, section, part, add=add)


def _check_flags(flags: int) -> None:
    if not flags or flags & ~_GLOBAL_DIRTY_MASK:
        raise ModelError(f"dirty logging flags must be bits of {_GLOBAL_DIRTY_MASK}, got {flags}")
