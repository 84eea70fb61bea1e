"""What is told of two maps of one machine."""

from __future__ import annotations

import pytest
from fake_mtree import FakeMtree

from qemuglue.memory import MemoryRegion
from qemuglue.mirror import Mirror
from qemuglue.mirror.changes import changes, views_of


@pytest.fixture
def machine() -> tuple[MemoryRegion, MemoryRegion, FakeMtree, Mirror]:
    system = MemoryRegion.container_of("system", 1 << 32)
    system.add_subregion(0, MemoryRegion.ram("ram", 0x1000))
    bar = MemoryRegion.io("bar", 0x100)
    system.add_subregion_overlap(0x800, bar, 1)
    fake = FakeMtree([("memory", system), ("cpu", system)])
    return system, bar, fake, Mirror.take(fake.hmp)


def told(mirror: Mirror, fake: FakeMtree) -> list[str]:
    before = views_of(mirror)
    mirror.refresh(fake.hmp)
    return [f"{' '.join(each.spaces)}: {each.what}{', '.join(map(str, each.changes))}"
            for each in changes(before, mirror)]


def test_nothing(machine: tuple[MemoryRegion, MemoryRegion, FakeMtree, Mirror]) -> None:
    _, _, fake, mirror = machine
    assert told(mirror, fake) == []


def test_a_region_that_moves_is_one_change_and_what_it_hid_shows_again(
    machine: tuple[MemoryRegion, MemoryRegion, FakeMtree, Mirror]
) -> None:
    _, bar, fake, mirror = machine
    bar.set_address(0x4000)
    assert told(mirror, fake) == [
        "memory cpu: 0x800-0x8ff bar -> ram+0x800, 0x4000-0x40ff nothing -> bar"]
    bar.set_address(0x5000)
    assert told(mirror, fake) == ["memory cpu: bar moved 0x4000-0x40ff -> 0x5000-0x50ff"]


def test_what_comes_and_goes(
    machine: tuple[MemoryRegion, MemoryRegion, FakeMtree, Mirror]
) -> None:
    system, bar, fake, mirror = machine
    bar.set_enabled(False)
    assert told(mirror, fake) == ["memory cpu: 0x800-0x8ff bar -> ram+0x800"]
    system.add_subregion(0x2000, MemoryRegion.rom("rom", 0x10))
    assert told(mirror, fake) == ["memory cpu: 0x2000-0x200f nothing -> rom (read-only)"]


def test_spaces_come_and_go(
    machine: tuple[MemoryRegion, MemoryRegion, FakeMtree, Mirror]
) -> None:
    system, _, fake, mirror = machine
    fake.spaces.append(("late", system))
    assert told(mirror, fake) == ["late: new"]
    fake.spaces.remove(("cpu", system))
    assert told(mirror, fake) == ["cpu: gone"]


def test_two_equal_parts_are_no_move(
    machine: tuple[MemoryRegion, MemoryRegion, FakeMtree, Mirror]
) -> None:
    """Where a part shows twice afterwards, none of the two is where it went."""
    system, bar, fake, mirror = machine
    bar.set_address(0x4000)
    told(mirror, fake)
    bar.set_address(0x6000)
    system.add_subregion(0x7000, MemoryRegion.alias_of("again", bar, 0, 0x100))
    assert told(mirror, fake) == [
        "memory cpu: 0x4000-0x40ff bar -> nothing, 0x6000-0x60ff nothing -> bar, "
        "0x7000-0x70ff nothing -> bar"]
