"""MemoryListener: told what changes in an address space, in QEMU's order.

A commit that redraws calls, over all spaces of the machine: ``begin`` of every listener; then
for each space first ``region_del`` for every section that is gone, then, in address order,
``region_add`` for what is new and ``region_nop`` (and ``log_start``/``log_stop``) for what
stayed; then the ioeventfds; and at the end ``commit`` of every listener. Deletions and
``log_stop`` and ``eventfd_add`` go in reverse order of the listeners, everything else forward.
A section whose flags changed is deleted and added.

Source, by line of QEMU 10.0.2's ``system/memory.c``: ``address_space_update_topology_pass`` 976,
``address_space_add_del_ioeventfds`` 779, ``flat_range_coalesced_io_notify`` 897,
``memory_listener_register`` 3163. Additions and commits are shown by a vhost-user device's trace;
deletions, priorities, ioeventfds and coalescing leave no trace in a stock QEMU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qemuglue.errors import ModelError
from qemuglue.memory.flatview import UNASSIGNED, FlatView, MemoryRegionSection
from qemuglue.memory.region import IoEventFd

if TYPE_CHECKING:
    from qemuglue.memory.space_view import SpaceView


class MemoryListener:
    """Override what you want to hear of. Lower ``priority`` is called first; in the calls that
    undo something, last. Called with the topology's lock held: do not wait for other threads.
    """

    def __init__(self, priority: int = 0) -> None:
        self.priority = priority
        #: The space it is registered with.
        self.space: SpaceView | None = None

    def begin(self) -> None:
        """A redraw begins; the views are the old ones."""

    def commit(self) -> None:
        """A redraw ended; all spaces have their new views."""

    def region_add(self, section: MemoryRegionSection) -> None: ...

    def region_del(self, section: MemoryRegionSection) -> None: ...

    def region_nop(self, section: MemoryRegionSection) -> None:
        """The section is in the old view and in the new one."""

    def log_start(self, section: MemoryRegionSection, old: int, new: int) -> None:
        """Logging of writes began for some client; ``old`` and ``new`` are dirty log masks."""

    def log_stop(self, section: MemoryRegionSection, old: int, new: int) -> None: ...

    def log_sync(self, section: MemoryRegionSection) -> None:
        """Bring what you know of written pages into the dirty bitmaps."""

    def log_sync_global(self, last_stage: bool) -> None:
        """The same for a listener that can only do all at once; not together with
        ``log_sync``."""

    def log_clear(self, section: MemoryRegionSection) -> None: ...

    def log_global_start(self) -> None:
        """All writes are logged from now on; an exception refuses."""

    def log_global_stop(self) -> None: ...

    def log_global_after_sync(self) -> None: ...

    def eventfd_add(
        self, section: MemoryRegionSection, match_data: bool, data: int, notifier: object
    ) -> None:
        """``section`` says where, and names no region (its region is ``UNASSIGNED``); its size
        is that of the write, 0 for any."""

    def eventfd_del(
        self, section: MemoryRegionSection, match_data: bool, data: int, notifier: object
    ) -> None: ...

    def coalesced_io_add(self, section: MemoryRegionSection, start: int, size: int) -> None:
        """Writes to ``size`` bytes at the address ``start`` may be collected."""

    def coalesced_io_del(self, section: MemoryRegionSection, start: int, size: int) -> None: ...

    def hears(self, call: str) -> bool:
        """Whether it does anything at that call: in C, whether the pointer is set."""
        return getattr(type(self), call) is not getattr(MemoryListener, call)


def register(listener: MemoryListener, space: SpaceView) -> None:
    """Begin to listen; the present map is told at once (``memory_listener_register``).

    Raises ModelError for one that is registered already, or that has both forms of ``log_sync``.
    """
    if listener.space is not None:
        raise ModelError("the listener is registered already; unregister it first")
    if listener.hears("log_sync") and listener.hears("log_sync_global"):
        raise ModelError("a listener has log_sync or log_sync_global, not both")
    topology = space.topology
    with topology.lock:
        listener.space = space
        for listeners in (topology.listeners, space.listeners):
            listeners.append(listener)
            listeners.sort(key=lambda one: one.priority)
        listener.begin()
        if topology.global_dirty_tracking:
            listener.log_global_start()
        with space.memory() as view:
            for section in view:
                listener.region_add(section)
                _coalescing_of(listener, section, add=True)
                if section.dirty_log_mask:
                    listener.log_start(section, 0, section.dirty_log_mask)
        for fd in space.ioeventfds:
            listener.eventfd_add(_where(fd), fd.data is not None, fd.data or 0, fd.notifier)
        listener.commit()


def unregister(listener: MemoryListener) -> None:
    """Stop listening; the present map is told as deleted (``memory_listener_unregister``).
    Nothing happens for one that is not registered."""
    space = listener.space
    if space is None:
        return
    topology = space.topology
    with topology.lock:
        listener.begin()
        with space.memory() as view:
            for section in view:
                if section.dirty_log_mask:
                    listener.log_stop(section, section.dirty_log_mask, 0)
                _coalescing_of(listener, section, add=False)
                listener.region_del(section)
        for fd in space.ioeventfds:
            listener.eventfd_del(_where(fd), fd.data is not None, fd.data or 0, fd.notifier)
        listener.commit()
        topology.listeners.remove(listener)
        space.listeners.remove(listener)
        listener.space = None


def update(space: SpaceView, old: Sequence[MemoryRegionSection], new: FlatView) -> None:
    """Tell a space's listeners what is different: all deletions, then everything else."""
    listeners = tuple(space.listeners)
    for adding in (False, True):
        gone, here = 0, 0
        sections = new.sections
        while gone < len(old) or here < len(sections):
            before = old[gone] if gone < len(old) else None
            after = sections[here] if here < len(sections) else None
            if before is not None and after is not None and before.equals(after):
                if adding:
                    _stayed(listeners, before.dirty_log_mask, after)
                gone += 1
                here += 1
            elif before is not None and (after is None or before.start <= after.start):
                if not adding:
                    for part in before.region.coalesced:
                        notify_coalescing(space, before, part, add=False)
                    for listener in reversed(listeners):
                        listener.region_del(before)
                gone += 1
            else:
                assert after is not None, "one of the two lists goes on"
                if adding:
                    for listener in listeners:
                        listener.region_add(after)
                    for part in after.region.coalesced:
                        notify_coalescing(space, after, part, add=True)
                here += 1


def _stayed(
    listeners: Sequence[MemoryListener], old: int, section: MemoryRegionSection
) -> None:
    new = section.dirty_log_mask
    for listener in listeners:
        listener.region_nop(section)
    if new & ~old:
        for listener in listeners:
            listener.log_start(section, old, new)
    if old & ~new:
        for listener in reversed(listeners):
            listener.log_stop(section, old, new)


def update_ioeventfds(space: SpaceView) -> None:
    """Find the ioeventfds that the view shows and tell what changed; nothing is done while no
    listener hears of them (``address_space_update_ioeventfds``)."""
    if not any(one.hears("eventfd_add") or one.hears("eventfd_del") for one in space.listeners):
        return
    shown: list[IoEventFd] = []
    with space.memory() as view:
        for section in view:
            for fd in section.region.ioeventfds:
                start = fd.addr - section.offset + section.start
                if (
                    section.start <= start <= section.last
                    or start <= section.start < start + fd.size
                ):
                    shown.append(IoEventFd(start, fd.size, fd.data, fd.notifier))
    old, space.ioeventfds = space.ioeventfds, tuple(shown)
    gone = here = 0
    while gone < len(old) or here < len(shown):
        before = old[gone] if gone < len(old) else None
        after = shown[here] if here < len(shown) else None
        if before is not None and (after is None or before.order() < after.order()):
            for listener in tuple(space.listeners):
                listener.eventfd_del(
                    _where(before), before.data is not None, before.data or 0, before.notifier
                )
            gone += 1
        elif after is not None and (before is None or after.order() < before.order()):
            for listener in reversed(tuple(space.listeners)):
                listener.eventfd_add(
                    _where(after), after.data is not None, after.data or 0, after.notifier
                )
            here += 1
        else:
            gone += 1
            here += 1


def notify_coalescing(
    space: SpaceView, section: MemoryRegionSection, part: tuple[int, int], *, add: bool
) -> None:
    """Tell the space's listeners of a range of the region as far as ``section`` shows it."""
    shown = section.part_of_region(*part)
    if shown is None:
        return
    listeners = tuple(space.listeners)
    for listener in listeners if add else reversed(listeners):
        call = listener.coalesced_io_add if add else listener.coalesced_io_del
        call(section, shown.start, shown.size)


def _coalescing_of(listener: MemoryListener, section: MemoryRegionSection, *, add: bool) -> None:
    for part in section.region.coalesced:
        shown = section.part_of_region(*part)
        if shown is None:
            # QEMU ends the loop at the first range that the section does not show.
            return
        call = listener.coalesced_io_add if add else listener.coalesced_io_del
        call(section, shown.start, shown.size)


def _where(fd: IoEventFd) -> MemoryRegionSection:
    return MemoryRegionSection(fd.addr, fd.size, UNASSIGNED, 0)
