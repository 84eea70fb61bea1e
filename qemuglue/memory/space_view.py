"""SpaceView: the view an address space shows, how it is replaced and how it is held on to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from qemuglue.errors import ModelError
from qemuglue.memory import mapping
from qemuglue.memory.dispatch import Dispatcher
from qemuglue.memory.flatview import FlatView, FlatViewRefGuard, MemoryRegionSection
from qemuglue.memory.listener import MemoryListener, update
from qemuglue.memory.rcu import RcuCell, RcuGuard, RcuRef
from qemuglue.memory.region import IoEventFd, MemoryRegion
from qemuglue.memory.rules import Rules
from qemuglue.memory.topology import Topology

#: A stretch of plain memory: its first address, its end, its bytes. False: there is none.
Plain = tuple[int, int, "bytearray | memoryview"] | Literal[False] | None


class Current:
    """A view with what is known of its sections, filled as they are used."""

    __slots__ = ("loads", "starts", "stores", "view")

    def __init__(self, view: FlatView) -> None:
        self.view = view
        self.starts = view.starts
        self.loads: list[Plain] = [None] * len(view.starts)
        self.stores: list[Plain] = [None] * len(view.starts)


class SpaceView(Dispatcher):
    """A name, a root region, and the view drawn from it.

    ``topology`` is the machine it belongs to; without one it takes the root's, or makes one.
    ``rules``, ``target_big`` and ``engaged`` are the topology's unless given: see there. ``ops``
    serves every device region that has no callbacks of its own; ``observer`` hears of refused
    accesses. ``max_bounce_buffer_size`` bounds what ``map`` may copy, in bytes.
    """

    #: Whether changes of the regions it shows redraw it.
    FOLLOWS = True

    def __init__(
        self, name: str, root: MemoryRegion, *, topology: Topology | None = None,
        rules: Rules | None = None, target_big: bool | None = None,
        engaged: set[object] | None = None,
    ) -> None:
        if topology is None:
            topology = root.topology or Topology(target_big=bool(target_big))
            if rules is not None and root.topology is None:
                topology.rules = rules
        super().__init__(
            rules=topology.rules if rules is None else rules,
            target_big=topology.target_big if target_big is None else target_big,
            engaged=topology.engaged if engaged is None else engaged,
        )
        self.name = name
        self.root = root
        self.topology = topology
        self.page_bits = topology.page_bits
        #: Counts the views; every judged access belongs to one.
        self.generation = 0
        #: In the order they are called.
        self.listeners: list[MemoryListener] = []
        #: The ioeventfds that the view shows, at addresses of the space, as last told.
        self.ioeventfds: tuple[IoEventFd, ...] = ()
        self.max_bounce_buffer_size = mapping.DEFAULT_MAX_BOUNCE_BUFFER_SIZE
        self.bounce_buffer_size = 0
        self.map_clients: list[Callable[[], None]] = []
        self._local = topology.rcu._local
        self._dirty = topology.dirty
        self._current: Current | None = None
        if self.FOLLOWS:
            topology.adopt(root)
        topology.add_space(self)
        if self.FOLLOWS:
            self._draw()

    # -- the view --------------------------------------------------------------------------

    @property
    def view(self) -> FlatView:
        """The current view, not counted: good until the next change."""
        return (self._current or self._draw()).view

    def _draw(self) -> Current:
        with self.topology.lock:
            if self._current is None:
                self.switch(self.topology.draw(self))
            assert self._current is not None, "switch makes it"
            return self._current

    def switch(self, view: FlatView) -> None:
        """Show ``view`` from now on (``address_space_set_flatview``); the listeners hear what
        is different while accesses still see the old one. Under the topology's lock."""
        old = self._current
        if old is not None and old.view is view:
            return
        if not view.ref():
            raise ModelError(f"space {self.name!r}: the view to be shown has no reference")
        if self.listeners:
            update(self, () if old is None else old.view.sections, view)
        self._current = Current(view)
        if old is not None:
            self.generation += 1
            old.view.unref()

    def _rules_changed(self) -> None:
        with self.topology.lock:
            if self._current is not None:
                self._current = Current(self._current.view)

    def update(self) -> FlatView:
        """Draw all views of the topology again; needed only where a region was changed by its
        attributes, past its methods."""
        with self.topology.change(True):
            pass
        return self.view

    def get_flatview(self, guard: RcuGuard) -> RcuRef[FlatView]:
        """The current view, bounded by the caller's RCU section: nothing is counted."""
        guard.check()
        view = RcuCell(self.view, self.topology.rcu).get(guard)
        assert view is not None, "a space always has a view"
        return view

    def memory(self) -> FlatViewRefGuard:
        """The current view with a reference counted (``address_space_get_flatview``,
        ``GuestAddressSpace::memory``). It takes an RCU section of its own, and looks again
        where somebody replaced the view and dropped it meanwhile."""
        reader = self._local.reader
        while True:
            reader.lock()
            try:
                view = self.view
                if view.ref():
                    return FlatViewRefGuard(view)
            finally:
                reader.unlock()

    def memory_find(self, addr: int, size: int) -> MemoryRegionSection | None:
        """The first section within ``size`` bytes at ``addr``, clipped to them; None where
        nothing lies there (``memory_region_find`` from the space's root)."""
        with self.memory() as view:
            return view.find_range(addr, size)

    def destroy(self) -> None:
        """Give up the space; its view goes after the RCU grace period
        (``address_space_destroy``). Raises ModelError while a listener or a bounce buffer is
        left."""
        if self.listeners:
            raise ModelError(f"space {self.name!r} still has a listener; unregister it first")
        if self.bounce_buffer_size or self.map_clients:
            raise ModelError(f"space {self.name!r} still has a mapping or a waiting client")
        self.topology.remove_space(self)
        current, self._current = self._current, None
        if current is not None:
            self.topology.rcu.call(current.view.unref)
