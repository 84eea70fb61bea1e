"""Small things that only a wrong line would show: ends, bounds, what a change of rules forgets."""

from __future__ import annotations

from typing import Any

import pytest
from rule_checks import ANY, Device, io, ram, space_of

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    Le16,
    Le32,
    MemoryListener,
    MemoryRegion,
    MemoryRegionCache,
    MemoryRegionSection,
    Rules,
    register,
)
from qemuglue.memory.dirty import VGA
from qemuglue.memory.rules import RULES_10_0

TOP = 1 << 64


def test_a_cache_ends_for_single_accesses_too() -> None:
    space, device = space_of(RULES_10_0, (0, ram(0x100)), (0x1000, io(ANY)))
    for address in (0x10, 0x1010):
        with MemoryRegionCache(space, address, 8, True) as cache:
            assert cache.load(4, Le32)[0] == cache.store(4, Le32(0)) == 0
            device.log.clear()
            for offset in (5, 8, -1):
                with pytest.raises(ModelError, match="not inside a cache"):
                    cache.load(offset, Le32)
                with pytest.raises(ModelError, match="not inside a cache"):
                    cache.store(offset, Le32(0))
            assert device.log == []


def test_resetting_dirty_pages_tells_whole_pages() -> None:
    memory = ram(0x8000)
    space, _ = space_of(RULES_10_0, (0x10000, memory))
    memory.set_log(True)
    told: list[tuple[int, int]] = []

    class Clears(MemoryListener):
        def log_clear(self, section: MemoryRegionSection) -> None:
            told.append((section.offset, section.size))

    register(Clears(), space)
    for offset, length, expected in (
        (0x1800, 0x10, (0x1000, 0x1000)), (0x1FFF, 2, (0x1000, 0x2000)),
        (0x2000, 0x1000, (0x2000, 0x1000)), (0x2001, 0x1000, (0x2000, 0x2000)),
        (0, 0x8000, (0, 0x8000)),
    ):
        told.clear()
        space.topology.reset_dirty(memory, offset, length, VGA)
        assert told == [expected]
    told.clear()
    space.topology.reset_dirty(memory, 0x1800, 0, VGA)
    assert told == []


class _Indirect(Rules):
    def direct_read(self, region: MemoryRegion) -> bool:
        return False

    def direct_write(self, region: MemoryRegion, attrs: Any) -> bool:
        return False


def test_new_rules_forget_what_followed_from_the_old() -> None:
    memory = ram(0x1000)
    space, _ = space_of(RULES_10_0, (0, memory))
    assert space.store(0, Le32(5)) == 0 and space.load(0, Le32) == (0, 5)
    view = space.view
    space.rules = _Indirect()
    assert space.view is view
    assert space.load(0, Le32) == (2, 0) and space.store(0, Le32(6)) == 2
    space.rules = RULES_10_0
    assert space.load(0, Le32) == (0, 5)


def test_a_device_of_the_whole_space_has_a_last_byte() -> None:
    root = MemoryRegion.container_of("system", TOP)
    whole = MemoryRegion.io("whole", TOP, ANY)
    root.add_subregion_overlap(0, whole, -1)
    root.add_subregion(0, ram(0x10))
    space = AddressSpace("memory", root)
    space.ops = device = Device()
    assert space.read(TOP - 1, 1)[0] == space.write(TOP - 1, b"x") == 0
    assert [event[2] for event in device.log] == [TOP - 1, TOP - 1]
    device.log.clear()
    assert space.load(TOP - 1, Le16)[0] == 0
    assert [event[2:4] for event in device.log] == [(TOP - 1, 2)]
    narrow = MemoryRegion.io("narrow", TOP)
    with space.topology.transaction():
        root.del_subregion(whole)
        narrow.contract = type(ANY)(valid_unaligned=True, impl_max=1)
        root.add_subregion_overlap(0, narrow, -1)
    device.log.clear()
    space.load(TOP - 1, Le16)
    space.store(TOP - 1, Le16(0x0201))
    assert [event[2:] for event in device.log] == [
        (TOP - 1, 1), (0, 1), (TOP - 1, 1, 1), (0, 1, 2),
    ]
