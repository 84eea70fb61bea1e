"""Transactions, shared views, references, and the questions a region answers about its place."""

from __future__ import annotations

import gc
import threading

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    FlatView,
    Le32,
    MemoryRegion,
    Rcu,
    RcuError,
    RcuGuard,
    Topology,
)
from qemuglue.memory.rules import RULES_7_2

TOP = 1 << 64


def system() -> MemoryRegion:
    root = MemoryRegion.container_of("system", TOP)
    # A second child: a root with one is looked through.
    root.add_subregion(1 << 40, MemoryRegion.ram("far", 0x1000))
    return root


def shown(space: AddressSpace) -> list[tuple[int, str]]:
    return [(s.start, s.region.name) for s in space.view if s.region.name != "far"]


# -- transactions ----------------------------------------------------------------------------------


def test_a_change_outside_a_transaction_shows_at_once() -> None:
    root = system()
    space = AddressSpace("memory", root)
    assert shown(space) == []
    ram = MemoryRegion.ram("ram", 0x1000)
    root.add_subregion(0x1000, ram)
    assert shown(space) == [(0x1000, "ram")]
    ram.set_address(0x4000)
    assert shown(space) == [(0x4000, "ram")]
    ram.set_enabled(False)
    assert shown(space) == []
    ram.set_enabled(True)
    ram.set_size(0x800)
    assert space.view.lookup(0x4000).size == 0x800
    ram.set_readonly(True)
    assert space.view.lookup(0x4000).readonly
    ram.set_nonvolatile(True)
    assert space.view.lookup(0x4000).nonvolatile
    ram.set_unmergeable(True)
    assert space.view.lookup(0x4000).unmergeable
    root.del_subregion(ram)
    assert shown(space) == []


def test_only_the_outermost_commit_redraws() -> None:
    root = system()
    space = AddressSpace("memory", root)
    first = space.view
    topology = space.topology
    with topology.transaction():
        root.add_subregion(0, MemoryRegion.ram("one", 0x1000))
        with topology.transaction():
            root.add_subregion(0x1000, MemoryRegion.ram("two", 0x1000))
            assert topology.depth == 2
        assert topology.depth == 1 and space.view is first
        root.add_subregion(0x2000, MemoryRegion.ram("three", 0x1000))
        assert space.view is first and space.generation == 0
    assert topology.depth == 0 and space.generation == 1
    assert shown(space) == [(0, "one"), (0x1000, "two"), (0x2000, "three")]


def test_a_transaction_without_a_change_redraws_nothing() -> None:
    root = system()
    ram = MemoryRegion.ram("ram", 0x1000)
    root.add_subregion(0, ram)
    space = AddressSpace("memory", root)
    view = space.view
    with space.topology.transaction():
        pass
    for same in (lambda: ram.set_enabled(True), lambda: ram.set_address(0),
                 lambda: ram.set_size(0x1000), lambda: ram.set_readonly(False),
                 lambda: ram.set_nonvolatile(False), lambda: ram.set_unmergeable(False)):
        same()
        assert space.view is view


def test_what_a_disabled_region_changes_waits_for_its_turn() -> None:
    # QEMU marks an update only while the region is enabled (memory_region_set_readonly &c).
    root = system()
    ram = MemoryRegion.ram("ram", 0x1000)
    root.add_subregion(0, ram)
    space = AddressSpace("memory", root)
    ram.set_enabled(False)
    view = space.view
    ram.set_readonly(True)
    ram.set_nonvolatile(True)
    ram.set_address(0x1000)
    assert space.view is view
    ram.set_enabled(True)
    section = space.view.lookup(0x1000)
    assert section.region is ram and section.readonly and section.nonvolatile


def test_an_error_inside_still_commits() -> None:
    root = system()
    space = AddressSpace("memory", root)
    assert shown(space) == []
    with pytest.raises(ZeroDivisionError), space.topology.transaction():
        root.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
        raise ZeroDivisionError
    assert shown(space) == [(0, "ram")] and space.topology.depth == 0


def test_commit_needs_begin() -> None:
    topology = Topology()
    with pytest.raises(ModelError, match="begin before it"):
        topology.commit()
    topology.begin()
    topology.commit()


def test_a_tree_that_cannot_be_drawn_leaves_every_view() -> None:
    root = system()
    alias = MemoryRegion.alias_of("alias", root.subregions[0], 0, 0x1000)
    root.add_subregion(0, alias)
    space, other = AddressSpace("memory", root), AddressSpace("other", root)
    before = space.view
    assert other.view is before
    alias.alias = root  # past the methods: a cycle
    with pytest.raises(ModelError, match="levels deep"):
        alias.set_size(0x2000)
    assert space.view is before and other.view is before and not before.reclaimed
    alias.alias = root.subregions[-1]
    with space.topology.transaction():
        pass
    assert space.view is not before, "the next commit tries again"


def test_another_thread_waits_for_the_commit() -> None:
    root = system()
    space = AddressSpace("memory", root)
    done = threading.Event()

    def add() -> None:
        root.add_subregion(0x1000, MemoryRegion.ram("theirs", 0x1000))
        done.set()

    thread = threading.Thread(target=add)
    with space.topology.transaction():
        thread.start()
        root.add_subregion(0, MemoryRegion.ram("ours", 0x1000))
        assert not done.wait(0.05)
        assert shown(space) == []
    thread.join(10)
    assert shown(space) == [(0, "ours"), (0x1000, "theirs")]


def test_regions_no_space_shows_are_changed_without_a_redraw() -> None:
    root = system()
    space = AddressSpace("memory", root)
    view = space.view
    away = MemoryRegion.container_of("away", 0x1000)
    away.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
    away.set_enabled(False)
    assert space.view is view and away.topology is None
    root.add_subregion(0, away)
    assert away.topology is space.topology is away.subregions[0].topology
    away.set_enabled(True)
    assert shown(space) == [(0, "ram")]


def test_a_region_behind_an_alias_redraws_too() -> None:
    target = MemoryRegion.container_of("target", 0x1000)
    root = system()
    root.add_subregion(0x1000, MemoryRegion.alias_of("alias", target, 0, 0x1000))
    space = AddressSpace("memory", root)
    assert shown(space) == []
    target.add_subregion(0x10, MemoryRegion.ram("ram", 0x10))
    assert shown(space) == [(0x1010, "ram")]
    alias = root.subregions[0]
    alias.set_alias_offset(0x10)
    assert shown(space) == [(0x1000, "ram")]


def test_two_machines_cannot_show_one_region() -> None:
    one, other = system(), system()
    first, second = AddressSpace("one", one), AddressSpace("other", other)
    ram = MemoryRegion.ram("ram", 0x1000)
    one.add_subregion(0, ram)
    alias = MemoryRegion.alias_of("alias", ram, 0, 0x1000)
    with pytest.raises(ModelError, match="same topology="):
        other.add_subregion(0, alias)
    third = AddressSpace("third", system(), topology=first.topology)
    third.root.add_subregion(0, MemoryRegion.alias_of("alias", ram, 0, 0x1000))
    assert shown(third) == [(0, "ram")] and shown(second) == []


def test_a_region_outlives_its_machine() -> None:
    one = system()
    space = AddressSpace("one", one)
    assert one.topology is space.topology
    del space
    gc.collect()
    again = AddressSpace("again", one, topology=Topology(rules=RULES_7_2, target_big=True))
    assert one.topology is again.topology
    assert again.rules is RULES_7_2 and again.target_big


# -- shared views ----------------------------------------------------------------------------------


def test_spaces_over_one_root_share_a_view() -> None:
    root = system()
    whole = MemoryRegion.alias_of("whole", root, 0, TOP)
    lone = MemoryRegion.container_of("bus", TOP)
    lone.add_subregion(0, whole)
    topology = Topology()
    memory, cpu, bus = (
        AddressSpace(name, region, topology=topology)
        for name, region in (("memory", root), ("cpu", whole), ("bus", lone))
    )
    assert memory.view is cpu.view is bus.view
    assert memory.view.root is root
    assert memory.view.references == 4, "three spaces and the topology"
    lone.set_enabled(False)
    assert bus.view is not memory.view and len(bus.view) == 0 and bus.view.root is None
    assert memory.view is cpu.view
    lone.set_enabled(True)
    assert bus.view is memory.view


def test_a_space_made_later_shares_what_is_drawn() -> None:
    root = system()
    first = AddressSpace("first", root)
    view = first.view
    assert AddressSpace("second", root).view is view


def test_a_space_that_is_gone_is_not_drawn() -> None:
    root = system()
    kept, gone = AddressSpace("kept", root), AddressSpace("gone", root)
    topology = kept.topology
    assert [space.name for space in topology.spaces] == ["kept", "gone"]
    del gone
    gc.collect()
    assert [space.name for space in topology.spaces] == ["kept"]


# -- references and reclamation --------------------------------------------------------------------


def test_a_view_is_reclaimed_when_nobody_uses_it() -> None:
    root = system()
    space = AddressSpace("memory", root)
    old = space.view
    root.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
    assert old.reclaimed and not space.view.reclaimed
    for use in (lambda: old.lookup(0), lambda: old.find(0), lambda: list(old), lambda: len(old),
                lambda: old.root, lambda: old.sections, old.ref, old.unref):
        with pytest.raises(RcuError, match="use after free"):
            use()


def test_a_counted_reference_keeps_a_view() -> None:
    root = system()
    space = AddressSpace("memory", root)
    guard = space.memory()
    old = guard.view
    again = guard.clone()
    root.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
    assert [s.region.name for s in old] == ["far"]
    guard.release()
    assert not old.reclaimed
    with pytest.raises(RcuError, match="given back"):
        guard.release()
    with pytest.raises(RcuError, match="given back"):
        _ = guard.view
    with again as view:
        assert view is old
    assert old.reclaimed


def test_a_guard_that_is_dropped_gives_its_reference_back() -> None:
    space = AddressSpace("memory", system())
    before = space.view.references
    guard = space.memory()
    assert space.view.references == before + 1
    del guard
    gc.collect()
    assert space.view.references == before


def test_a_finalizer_reclaims_nothing_itself() -> None:
    rcu = Rcu()
    root = system()
    space = AddressSpace("memory", root, topology=Topology(rcu=rcu))
    guard = space.memory()
    old = guard.view
    root.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
    ran: list[str] = []
    with RcuGuard(rcu):
        rcu.call(lambda: ran.append("somebody else's"))
        del guard
        gc.collect()
        assert old.references == 0 and rcu.pending == 2
    assert old.reclaimed and ran == ["somebody else's"]
    guard = space.memory()
    old = guard.view
    root.set_enabled(False)
    del guard
    gc.collect()
    assert not old.reclaimed and rcu.pending == 1, "due, but not run by the finalizer"
    with RcuGuard(rcu):
        pass
    assert old.reclaimed


def test_memory_looks_again_where_the_view_is_gone_already() -> None:
    """The window of flatview_ref: the view was read, then replaced and dropped."""
    root = system()
    space = AddressSpace("memory", root)
    refused: list[FlatView] = []
    real = FlatView.ref

    def late(view: FlatView) -> bool:
        if not refused:
            refused.append(view)
            with RcuGuard():  # so that the view is dead, but not reclaimed
                root.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
                assert not real(view) and view.references == 0
                return False
        return real(view)

    assert space.view
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlatView, "ref", late)
        with space.memory() as view:
            assert view is space.view and view is not refused[0]
    assert [s.region.name for s in space.view] == ["ram", "far"]


def test_an_rcu_section_keeps_a_view_without_a_reference() -> None:
    rcu = Rcu()
    root = system()
    space = AddressSpace("memory", root, topology=Topology(rcu=rcu))
    with RcuGuard(rcu) as guard:
        reference = space.get_flatview(guard)
        raw = reference.deref()
        root.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
        assert raw.references == 0 and not raw.reclaimed
        assert [s.region.name for s in reference] == ["far"]
        assert rcu.pending == 1
        newer = space.get_flatview(guard)
        assert newer.deref() is space.view
    assert raw.reclaimed and rcu.pending == 0
    with pytest.raises(RcuError):
        reference.lookup(0)
    with pytest.raises(RcuError):
        space.get_flatview(guard)


def test_get_flatview_wants_a_guard_of_its_domain() -> None:
    space = AddressSpace("memory", system(), topology=Topology(rcu=Rcu()))
    with RcuGuard() as guard, pytest.raises(RcuError, match="another domain"):
        space.get_flatview(guard)


def test_a_device_may_change_the_map_in_the_middle_of_an_access() -> None:
    """The whole write goes by the view it began with (RCU), whatever its first bytes did."""
    root = system()

    class Remapper:
        def read(self, region, offset, size, attrs):  # type: ignore[no-untyped-def]
            return 0, 0

        def write(self, region, offset, value, size, attrs):  # type: ignore[no-untyped-def]
            root.del_subregion(ram)
            return 0

    device = MemoryRegion.io("device", 4, ops=Remapper())
    ram = MemoryRegion.ram("ram", 0x1000)
    root.add_subregion(0, device)
    root.add_subregion(4, ram)
    space = AddressSpace("memory", root)
    assert space.write(0, bytes(range(1, 13))) == 0
    assert ram.backing is not None and ram.backing.read(0, 8) == bytes(range(5, 13))
    assert space.write(4, b"late") == 2
    assert ram.backing.read(0, 8) == bytes(range(5, 13))


def test_an_unbalanced_reference_is_an_error() -> None:
    view = FlatView(None, [])
    view.unref()
    with pytest.raises(RcuError, match="use after free"):
        view.unref()
    view = FlatView(None, [])
    with RcuGuard():
        view.unref()
        assert not view.ref()
        with pytest.raises(ModelError, match="no reference left"):
            view.unref()
    assert view.reclaimed


def test_destroy() -> None:
    root = system()
    space, other = AddressSpace("memory", root), AddressSpace("other", root)
    view = space.view
    assert other.view is view
    count = view.references
    space.destroy()
    assert view.references == count - 1 and not view.reclaimed
    assert other.topology.spaces == [other]
    root.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
    assert view.reclaimed


# -- find, present, is_mapped ----------------------------------------------------------------------


def machine() -> tuple[AddressSpace, dict[str, MemoryRegion]]:
    root = system()
    regions = {
        "bus": MemoryRegion.container_of("bus", 0x10000),
        "ram": MemoryRegion.ram("ram", 0x1000),
        "io": MemoryRegion.io("io", 0x100),
    }
    root.add_subregion(0x8000, regions["bus"])
    regions["bus"].add_subregion(0x1000, regions["ram"])
    regions["bus"].add_subregion_overlap(0x1800, regions["io"], 1)
    return AddressSpace("memory", root), regions


def test_find_gives_the_first_section_clipped() -> None:
    space, r = machine()
    found = r["bus"].find(0x1000, 0x10)
    assert found is not None
    assert (found.region, found.start, found.size, found.offset) == (r["ram"], 0x9000, 0x10, 0)
    found = r["bus"].find(0xFF0, 0x20)
    assert found is not None
    assert (found.region, found.start, found.size, found.offset) == (r["ram"], 0x9000, 0x10, 0)
    found = r["ram"].find(0x7F0, 0x1000)
    assert found is not None
    assert (found.region, found.start, found.size, found.offset) == (r["ram"], 0x97F0, 0x10, 0x7F0)
    found = r["ram"].find(0x800, 0x1000)
    assert found is not None
    assert (found.region, found.start, found.size, found.offset) == (r["io"], 0x9800, 0x100, 0)
    assert r["bus"].find(0, 0x1000) is None and r["bus"].find(0, 0x1001) is not None
    assert r["bus"].find(0x1000, 0) is None
    assert space.memory_find(0x9000, 1) is not None and space.memory_find(0x8FFF, 1) is None


def test_find_needs_a_space_over_the_root() -> None:
    space, r = machine()
    root = space.root
    alone = MemoryRegion.container_of("alone", 0x1000)
    assert alone.find(0, 1) is None
    # The root of the containers must be the space's own root, not one that is behind an alias.
    behind = MemoryRegion.container_of("behind", 0x1000)
    behind.add_subregion(0, MemoryRegion.ram("hidden", 0x1000))
    root.add_subregion(0x100000, MemoryRegion.alias_of("alias", behind, 0, 0x1000))
    assert space.memory_find(0x100000, 1) is not None and behind.find(0, 1) is None
    space.destroy()
    assert r["ram"].find(0, 1) is None


def test_present_means_somebody_else() -> None:
    _, r = machine()
    assert r["bus"].present(0x1000) and r["bus"].present(0x1800) and not r["bus"].present(0)
    assert r["ram"].present(0x800) and not r["ram"].present(0x7FF)
    r["io"].set_enabled(False)
    assert not r["ram"].present(0x800)


def test_is_mapped_by_a_container_or_a_mapped_alias() -> None:
    root = MemoryRegion.container_of("root", TOP)
    ram = MemoryRegion.ram("ram", 0x1000)
    inner = MemoryRegion.alias_of("inner", ram, 0, 0x1000)
    outer = MemoryRegion.alias_of("outer", inner, 0, 0x1000)
    second = MemoryRegion.alias_of("second", ram, 0, 0x1000)
    assert not any(region.is_mapped for region in (root, ram, inner, outer))
    root.add_subregion(0, outer)
    assert outer.is_mapped and inner.is_mapped and ram.is_mapped
    root.add_subregion(0x1000, second)
    root.del_subregion(outer)
    assert ram.is_mapped and not inner.is_mapped and not outer.is_mapped
    second.set_address(0x3000)
    assert ram.is_mapped
    root.del_subregion(second)
    assert not ram.is_mapped and not second.is_mapped
    root.add_subregion(0, ram)
    assert ram.is_mapped and not root.is_mapped


def test_a_single_access_follows_the_map() -> None:
    """The stretches of plain memory that load and store remember are the view's."""
    root = system()
    one, two = MemoryRegion.ram("one", 0x1000), MemoryRegion.ram("two", 0x1000)
    root.add_subregion(0, one)
    space = AddressSpace("memory", root)
    assert space.store(0, Le32(1)) == 0 and space.load(0, Le32) == (0, 1)
    with space.topology.transaction():
        root.del_subregion(one)
        root.add_subregion(0, two)
    assert space.load(0, Le32) == (0, 0)
    assert space.store(0, Le32(2)) == 0
    assert one.backing is not None and one.backing.read(0, 4) == b"\1\0\0\0"
    two.set_readonly(True)
    assert space.store(0, Le32(3)) == 2 and space.load(0, Le32) == (0, 2)
    two.set_readonly(False)
    root.set_enabled(False)
    assert space.load(0, Le32) == (2, 0)
