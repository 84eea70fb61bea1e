"""What listeners hear, in which order. Expected orders are worked out by hand from QEMU's
``address_space_update_topology_pass`` and ``memory_region_transaction_commit``."""

from __future__ import annotations

from typing import Any

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    Contract,
    Endian,
    MemoryListener,
    MemoryRegion,
    MemoryRegionSection,
    Topology,
    register,
    unregister,
)
from qemuglue.memory.dirty import CODE, MIGRATION, VGA
from qemuglue.memory.topology import GLOBAL_DIRTY_DIRTY_RATE, GLOBAL_DIRTY_MIGRATION

TOP = 1 << 64
VGA_BIT, CODE_BIT, MIGRATION_BIT = 1 << VGA, 1 << CODE, 1 << MIGRATION
Log = list[tuple[Any, ...]]


class Maps(MemoryListener):
    """Writes down what it hears of the map, after its own name."""

    def __init__(self, log: Log, name: str = "", priority: int = 0) -> None:
        super().__init__(priority)
        self.log, self.name = log, name

    def _say(self, call: str, *what: object) -> None:
        self.log.append((self.name, call, *what) if self.name else (call, *what))

    def begin(self) -> None:
        self._say("begin")

    def commit(self) -> None:
        self._say("commit")

    def region_add(self, section: MemoryRegionSection) -> None:
        self._say("add", section.start, section.region.name)

    def region_del(self, section: MemoryRegionSection) -> None:
        self._say("del", section.start, section.region.name)

    def region_nop(self, section: MemoryRegionSection) -> None:
        self._say("nop", section.start, section.region.name)


class Logs(Maps):
    """The same, with logging of writes."""

    def log_start(self, section: MemoryRegionSection, old: int, new: int) -> None:
        self._say("log_start", section.start, old, new)

    def log_stop(self, section: MemoryRegionSection, old: int, new: int) -> None:
        self._say("log_stop", section.start, old, new)

    def log_global_start(self) -> None:
        self._say("global_start")

    def log_global_stop(self) -> None:
        self._say("global_stop")

    def log_global_after_sync(self) -> None:
        self._say("after_sync")

    def log_sync(self, section: MemoryRegionSection) -> None:
        self._say("sync", section.start, section.size)

    def log_clear(self, section: MemoryRegionSection) -> None:
        self._say("clear", section.start, section.size, section.offset)


class Events(Maps):
    def eventfd_add(
        self, section: MemoryRegionSection, match_data: bool, data: int, notifier: object
    ) -> None:
        self._say("fd+", section.start, section.size, match_data, data, notifier)

    def eventfd_del(
        self, section: MemoryRegionSection, match_data: bool, data: int, notifier: object
    ) -> None:
        self._say("fd-", section.start, section.size, match_data, data, notifier)


class Coalescing(Maps):
    def coalesced_io_add(self, section: MemoryRegionSection, start: int, size: int) -> None:
        self._say("co+", section.region.name, start, size)

    def coalesced_io_del(self, section: MemoryRegionSection, start: int, size: int) -> None:
        self._say("co-", section.region.name, start, size)


def machine(*names: str, tcg: bool = False) -> tuple[AddressSpace, list[MemoryRegion]]:
    root = MemoryRegion.container_of("system", TOP)
    regions = [MemoryRegion.ram(name, 0x1000) for name in names]
    for at, region in enumerate(regions):
        root.add_subregion(at * 0x1000, region)
    return AddressSpace("memory", root, topology=Topology(tcg=tcg)), regions


# -- the map ---------------------------------------------------------------------------------------


def test_registering_tells_the_present_map() -> None:
    space, _ = machine("a", "b")
    log: Log = []
    listener = Maps(log)
    register(listener, space)
    assert log == [("begin",), ("add", 0, "a"), ("add", 0x1000, "b"), ("commit",)]
    assert listener.space is space
    log.clear()
    unregister(listener)
    assert log == [("begin",), ("del", 0, "a"), ("del", 0x1000, "b"), ("commit",)]
    assert listener.space is None and not space.listeners and not space.topology.listeners
    log.clear()
    unregister(listener)
    space.root.set_enabled(False)
    assert log == []


def test_all_deletions_come_first_then_everything_in_address_order() -> None:
    space, (a, b, _c) = machine("a", "b", "c")
    log: Log = []
    register(Maps(log), space)
    log.clear()
    with space.topology.transaction():
        space.root.del_subregion(a)
        b.set_readonly(True)
        space.root.add_subregion(0x800, MemoryRegion.ram("d", 0x800))
        space.root.add_subregion(0x8000, MemoryRegion.ram("e", 0x800))
    assert log == [
        ("begin",), ("del", 0, "a"), ("del", 0x1000, "b"),
        ("add", 0x800, "d"), ("add", 0x1000, "b"), ("nop", 0x2000, "c"), ("add", 0x8000, "e"),
        ("commit",),
    ]


def test_a_section_that_grows_is_deleted_and_added() -> None:
    space, (a,) = machine("a")
    log: Log = []
    register(Maps(log), space)
    for change in (
        lambda: a.set_size(0x800), lambda: a.set_nonvolatile(True), lambda: a.set_unmergeable(True),
        lambda: a.set_readonly(True),
    ):
        log.clear()
        change()
        assert log == [("begin",), ("del", 0, "a"), ("add", 0, "a"), ("commit",)]


def test_romd_mode_is_a_change() -> None:
    root = MemoryRegion.container_of("system", TOP)
    flash = MemoryRegion.rom_device("flash", 0x1000, Contract())
    root.add_subregion(0, flash)
    space = AddressSpace("memory", root)
    log: Log = []
    register(Maps(log), space)
    log.clear()
    flash.set_romd(False)
    assert log == [("begin",), ("del", 0, "flash"), ("add", 0, "flash"), ("commit",)]


def test_priorities_and_directions() -> None:
    space, (a,) = machine("a")
    log: Log = []
    for name, priority in (("late", 10), ("first", -1), ("later", 10), ("middle", 0)):
        register(Maps(log, name, priority), space)
    log.clear()
    with space.topology.transaction():
        a.set_address(0x5000)
    order = ["first", "middle", "late", "later"]
    assert log == [
        *[(name, "begin") for name in order],
        *[(name, "del", 0, "a") for name in reversed(order)],
        *[(name, "add", 0x5000, "a") for name in order],
        *[(name, "commit") for name in order],
    ]


def test_every_space_in_turn_between_one_begin_and_one_commit() -> None:
    space, (a,) = machine("a")
    root = MemoryRegion.container_of("bus", TOP)
    root.add_subregion(0x10000, MemoryRegion.alias_of("alias", a, 0, 0x1000))
    root.add_subregion(0x20000, MemoryRegion.ram("own", 0x1000))
    other = AddressSpace("bus", root, topology=space.topology)
    log: Log = []
    register(Maps(log, "m", 1), space)
    register(Maps(log, "b", 0), other)
    log.clear()
    a.set_readonly(True)
    assert log == [
        ("b", "begin"), ("m", "begin"),
        ("m", "del", 0, "a"), ("m", "add", 0, "a"),
        ("b", "del", 0x10000, "a"), ("b", "add", 0x10000, "a"), ("b", "nop", 0x20000, "own"),
        ("b", "commit"), ("m", "commit"),
    ]


def test_while_it_is_told_the_space_still_shows_the_old_map() -> None:
    space, (a,) = machine("a")
    seen: list[tuple[str, int]] = []

    class Looks(MemoryListener):
        def region_del(self, section: MemoryRegionSection) -> None:
            seen.append(("del", space.read(0, 1)[0]))

        def region_add(self, section: MemoryRegionSection) -> None:
            seen.append(("add", space.read(0, 1)[0]))

        def commit(self) -> None:
            seen.append(("commit", space.read(0, 1)[0]))

    register(Looks(), space)
    seen.clear()
    a.set_address(0x4000)
    assert seen == [("del", 0), ("add", 0), ("commit", 2)]


def test_a_redraw_that_changes_nothing_tells_nops() -> None:
    space, (a, _) = machine("a", "b")
    log: Log = []
    register(Maps(log), space)
    log.clear()
    with space.topology.transaction():
        a.set_address(0x9000)
        a.set_address(0)
    assert log == [("begin",), ("nop", 0, "a"), ("nop", 0x1000, "b"), ("commit",)]


def test_listening_twice_or_in_two_ways_is_refused() -> None:
    space, _ = machine("a")
    listener = Maps([])
    register(listener, space)
    with pytest.raises(ModelError, match="unregister it first"):
        register(listener, space)

    class Both(MemoryListener):
        def log_sync(self, section: MemoryRegionSection) -> None: ...

        def log_sync_global(self, last_stage: bool) -> None: ...

    with pytest.raises(ModelError, match="not both"):
        register(Both(), space)
    with pytest.raises(ModelError, match="still has a listener"):
        space.destroy()


def test_a_listener_may_leave_while_it_is_told() -> None:
    space, (a,) = machine("a")
    log: Log = []

    class Leaves(Maps):
        leaving = False

        def commit(self) -> None:
            if self.leaving:
                self.leaving = False
                unregister(self)

    leaving = Leaves(log, "x", 0)
    staying = Maps([], "y", 1)
    register(leaving, space)
    register(staying, space)
    leaving.leaving = True
    a.set_address(0x3000)
    assert staying.log[-1] == ("y", "commit") and leaving.space is None
    assert space.listeners == [staying]


# -- logging of writes -----------------------------------------------------------------------------


def test_display_logging_starts_and_stops_without_a_new_section() -> None:
    space, (a, _) = machine("a", "b")
    log: Log = []
    register(Logs(log, "1"), space)
    register(Logs(log, "2", 5), space)
    log.clear()
    a.set_log(True)
    assert [entry for entry in log if "log" in entry[1]] == [
        ("1", "log_start", 0, 0, VGA_BIT), ("2", "log_start", 0, 0, VGA_BIT),
    ]
    assert ("1", "nop", 0, "a") in log and not any(entry[1] == "del" for entry in log)
    log.clear()
    a.set_log(True)  # a second user
    a.set_log(False)
    assert log == []
    a.set_log(False)
    assert [entry for entry in log if "log" in entry[1]] == [
        ("2", "log_stop", 0, VGA_BIT, 0), ("1", "log_stop", 0, VGA_BIT, 0),
    ]
    with pytest.raises(ModelError, match="not logged"):
        a.set_log(False)


def test_under_tcg_all_memory_is_logged_for_code() -> None:
    space, (_a,) = machine("a", tcg=True)
    space.root.add_subregion(0x1000, MemoryRegion.io("io", 0x1000))
    log: Log = []
    register(Logs(log), space)
    assert log == [
        ("begin",), ("add", 0, "a"), ("log_start", 0, 0, CODE_BIT), ("add", 0x1000, "io"),
        ("commit",),
    ]


def test_global_logging() -> None:
    space, (_a,) = machine("a")
    space.root.add_subregion(0x1000, MemoryRegion.io("io", 0x1000))
    space.root.add_subregion(0x2000, MemoryRegion.iommu("iommu", 0x1000))
    log: Log = []
    register(Logs(log, "1"), space)
    register(Logs(log, "2", 1), space)
    log.clear()
    topology = space.topology
    topology.dirty_log_start(GLOBAL_DIRTY_MIGRATION)
    said = [entry for entry in log if entry[1] not in ("nop", "begin", "commit")]
    assert said == [
        ("1", "global_start"), ("2", "global_start"),
        ("1", "log_start", 0, 0, MIGRATION_BIT), ("2", "log_start", 0, 0, MIGRATION_BIT),
        ("1", "log_start", 0x2000, 0, MIGRATION_BIT), ("2", "log_start", 0x2000, 0, MIGRATION_BIT),
    ]
    log.clear()
    topology.dirty_log_start(GLOBAL_DIRTY_DIRTY_RATE)
    topology.dirty_log_stop(GLOBAL_DIRTY_MIGRATION)
    assert log == [] and topology.global_dirty_tracking == GLOBAL_DIRTY_DIRTY_RATE
    topology.dirty_log_stop(GLOBAL_DIRTY_DIRTY_RATE)
    said = [entry for entry in log if entry[1] not in ("nop", "begin", "commit")]
    assert said == [
        ("2", "log_stop", 0, MIGRATION_BIT, 0), ("1", "log_stop", 0, MIGRATION_BIT, 0),
        ("2", "log_stop", 0x2000, MIGRATION_BIT, 0), ("1", "log_stop", 0x2000, MIGRATION_BIT, 0),
        ("2", "global_stop"), ("1", "global_stop"),
    ]
    with pytest.raises(ModelError, match="not started"):
        topology.dirty_log_stop(GLOBAL_DIRTY_MIGRATION)
    for flags in (0, 8):
        with pytest.raises(ModelError, match="must be bits of 7"):
            topology.dirty_log_start(flags)


def test_a_listener_that_cannot_start_stops_the_others() -> None:
    space, _ = machine("a")
    log: Log = []

    class Refuses(Logs):
        def log_global_start(self) -> None:
            raise OSError("no")

    for number, kind in enumerate((Logs, Logs, Refuses, Logs)):
        register(kind(log, str(number), number), space)
    log.clear()
    with pytest.raises(OSError, match="no"):
        space.topology.dirty_log_start()
    assert log == [
        ("0", "global_start"), ("1", "global_start"), ("1", "global_stop"), ("0", "global_stop"),
    ]
    assert not space.topology.global_dirty_tracking


def test_who_comes_late_hears_of_global_logging() -> None:
    space, _ = machine("a")
    space.topology.dirty_log_start()
    log: Log = []
    register(Logs(log), space)
    assert log == [
        ("begin",), ("global_start",), ("add", 0, "a"), ("log_start", 0, 0, MIGRATION_BIT),
        ("commit",),
    ]
    log.clear()
    unregister(space.listeners[0])
    assert log == [
        ("begin",), ("log_stop", 0, MIGRATION_BIT, 0), ("del", 0, "a"), ("commit",),
    ]


def test_sync_and_clear_name_the_logged_sections() -> None:
    space, (a, b) = machine("a", "b")
    space.root.add_subregion(0x10000, MemoryRegion.alias_of("half", a, 0x800, 0x800))
    log: Log = []
    register(Logs(log), space)
    a.set_log(True)
    log.clear()
    space.topology.dirty_log_sync(a)
    assert log == [("sync", 0, 0x1000), ("sync", 0x10000, 0x800)]
    log.clear()
    space.topology.dirty_log_sync()
    assert log == [("sync", 0, 0x1000), ("sync", 0x10000, 0x800)], "b is not logged"
    log.clear()
    space.topology.dirty_log_sync(b)
    assert log == []
    space.topology.dirty_log_clear(a, 0x700, 0x200)
    assert log == [("clear", 0x700, 0x200, 0x700), ("clear", 0x10000, 0x100, 0x800)]
    log.clear()
    space.topology.dirty_log_clear(a, 0x100, 0x100)
    assert log == [("clear", 0x100, 0x100, 0x100)]


def test_a_global_sync_is_asked_whatever_the_region() -> None:
    space, (a,) = machine("a")
    said: list[bool] = []

    class Global(MemoryListener):
        def log_sync_global(self, last_stage: bool) -> None:
            said.append(last_stage)

    register(Global(), space)
    space.topology.dirty_log_sync(a)
    space.topology.dirty_log_sync(last_stage=True)
    assert said == [False, True]


def test_a_snapshot_syncs_clears_and_says_so() -> None:
    space, (a,) = machine("a")
    log: Log = []
    register(Logs(log), space)
    a.set_log(True)
    log.clear()
    snapshot = space.topology.snapshot_and_clear_dirty(a, 0, 0x1000, VGA)
    assert snapshot.dirty(0, 1)
    assert log == [("sync", 0, 0x1000), ("clear", 0, 0x1000, 0), ("after_sync",)]


# -- ioeventfds ------------------------------------------------------------------------------------


def doorbell() -> tuple[AddressSpace, MemoryRegion, Log]:
    root = MemoryRegion.container_of("system", TOP)
    io = MemoryRegion.io("bell", 0x100, Contract(endian=Endian.LITTLE))
    root.add_subregion(0x1000, io)
    root.add_subregion(0x9000, MemoryRegion.ram("ram", 0x1000))
    return AddressSpace("memory", root), io, []


def test_eventfds_come_and_go_with_their_sections() -> None:
    space, bell, log = doorbell()
    register(Events(log), space)
    log.clear()
    bell.add_eventfd(0x10, 2, 7, "e")
    assert log == [("fd+", 0x1010, 2, True, 7, "e")]
    log.clear()
    bell.set_address(0x4000)
    assert log == [
        ("begin",), ("del", 0x1000, "bell"), ("add", 0x4000, "bell"), ("nop", 0x9000, "ram"),
        ("fd-", 0x1010, 2, True, 7, "e"), ("fd+", 0x4010, 2, True, 7, "e"), ("commit",),
    ]
    log.clear()
    bell.del_eventfd(0x10, 2, 7, "e")
    assert log == [("fd-", 0x4010, 2, True, 7, "e")]
    with pytest.raises(ModelError, match="no such ioeventfd"):
        bell.del_eventfd(0x10, 2, 7, "e")


def test_eventfds_of_one_transaction_are_told_at_its_end() -> None:
    space, bell, log = doorbell()
    register(Events(log), space)
    log.clear()
    with space.topology.transaction():
        bell.add_eventfd(0x20, 4, None, "second")
        bell.add_eventfd(0x10, 0, None, "first")
        assert log == []
    assert log == [
        ("fd+", 0x1010, 0, False, 0, "first"), ("fd+", 0x1020, 4, False, 0, "second"),
    ]


def test_eventfd_adds_go_backwards_through_the_listeners() -> None:
    # The one call of address_space_add_del_ioeventfds in either direction: del forward, add back.
    space, bell, log = doorbell()
    for name in ("1", "2"):
        register(Events(log, name), space)
    log.clear()
    bell.add_eventfd(0, 1)
    bell.del_eventfd(0, 1)
    assert [entry[:2] for entry in log] == [("2", "fd+"), ("1", "fd+"), ("1", "fd-"), ("2", "fd-")]


def test_the_first_to_listen_for_eventfds_hears_of_old_ones_at_the_next_commit() -> None:
    # QEMU keeps the list of a space only while somebody listens (ioeventfd_notifiers).
    space, bell, log = doorbell()
    bell.add_eventfd(0x10, 2, None, "e")
    register(Events(log, "1"), space)
    assert not any(entry[1] == "fd+" for entry in log)
    with space.topology.change(False, eventfds=True):
        pass
    assert log[-1] == ("1", "fd+", 0x1010, 2, False, 0, "e")
    late: Log = []
    register(Events(late, "2"), space)
    assert ("2", "fd+", 0x1010, 2, False, 0, "e") in late
    late.clear()
    unregister(space.listeners[-1])
    assert ("2", "fd-", 0x1010, 2, False, 0, "e") in late


def test_an_eventfd_outside_the_section_is_not_shown() -> None:
    root = MemoryRegion.container_of("system", TOP)
    io = MemoryRegion.io("bell", 0x100)
    root.add_subregion(0x1000, MemoryRegion.alias_of("part", io, 0x40, 0x40))
    root.add_subregion(0x9000, MemoryRegion.ram("ram", 0x1000))
    space = AddressSpace("memory", root)
    log: Log = []
    register(Events(log), space)
    log.clear()
    with space.topology.transaction():
        for addr, size in ((0x3C, 4), (0x3E, 4), (0x40, 0), (0x7F, 1), (0x80, 4), (0x80, 0)):
            io.add_eventfd(addr, size)
    assert [entry[1:3] for entry in log] == [(0xFFE, 4), (0x1000, 0), (0x103F, 1)]


@pytest.mark.parametrize(("endian", "target_big", "stored"), [
    (Endian.LITTLE, False, 0x0102), (Endian.BIG, False, 0x0201), (Endian.NATIVE, False, 0x0102),
    (Endian.LITTLE, True, 0x0201), (Endian.BIG, True, 0x0102), (Endian.NATIVE, True, 0x0102),
])
def test_eventfd_data_is_given_in_target_order(
    endian: Endian, target_big: bool, stored: int
) -> None:
    root = MemoryRegion.container_of("system", TOP)
    io = MemoryRegion.io("bell", 0x100, Contract(endian=endian))
    root.add_subregion(0, io)
    space = AddressSpace("memory", root, topology=Topology(target_big=target_big))
    assert io.add_eventfd(0, 2, 0x0102).data == stored
    # A store of that value in target order rings the bell.
    calls: list[int] = []

    class Ops:
        def read(self, region, offset, size, attrs):  # type: ignore[no-untyped-def]
            return 0, 0

        def write(self, region, offset, value, size, attrs):  # type: ignore[no-untyped-def]
            calls.append(value)
            return 0

    space.ops = Ops()
    assert space.store_target(0, 0x0102, 2) == 0 and calls == []
    assert space.store_target(0, 0x0201, 2) == 0 and len(calls) == 1
    io.del_eventfd(0, 2, 0x0102)
    assert space.store_target(0, 0x0102, 2) == 0 and len(calls) == 2


# -- coalescing ------------------------------------------------------------------------------------


def test_coalesced_ranges_come_and_go_with_their_sections() -> None:
    root = MemoryRegion.container_of("system", TOP)
    io = MemoryRegion.io("io", 0x100)
    root.add_subregion(0x1000, io)
    space = AddressSpace("memory", root)
    log: Log = []
    register(Coalescing(log), space)
    log.clear()
    io.add_coalescing(0x10, 8)
    io.add_coalescing(0xF0, 0x20)
    assert log == [("co+", "io", 0x1010, 8), ("co+", "io", 0x10F0, 0x10)]
    log.clear()
    io.set_address(0x3000)
    assert log == [
        ("begin",), ("co-", "io", 0x1010, 8), ("co-", "io", 0x10F0, 0x10), ("del", 0x1000, "io"),
        ("add", 0x3000, "io"), ("co+", "io", 0x3010, 8), ("co+", "io", 0x30F0, 0x10), ("commit",),
    ]
    late: Log = []
    register(Coalescing(late), space)
    assert [entry for entry in late if entry[0] == "co+"] == [
        ("co+", "io", 0x3010, 8), ("co+", "io", 0x30F0, 0x10),
    ]
    log.clear()
    io.set_coalescing()
    assert log == [
        ("co-", "io", 0x3010, 8), ("co-", "io", 0x30F0, 0x10), ("co+", "io", 0x3000, 0x100),
    ]
    log.clear()
    io.clear_coalescing()
    io.clear_coalescing()
    assert log == [("co-", "io", 0x3000, 0x100)]
