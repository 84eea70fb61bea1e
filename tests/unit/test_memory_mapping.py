"""R12 to R15 and R19: fill, loading ROMs, asking beforehand, mapping, caching, dirty pages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from rule_checks import ANY, Device, invalids, io, ram, reads, space_of

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    Be32,
    ByteBacking,
    Contract,
    Endian,
    Le16,
    Le32,
    MemoryRegion,
    MemoryRegionCache,
    MemTxAttrs,
    Rules,
    SparseBacking,
    Topology,
    ViewBacking,
)
from qemuglue.memory.dirty import CODE, MIGRATION, VGA
from qemuglue.memory.ranges import FILL_SIZE
from qemuglue.memory.rules import RULES_7_2, RULES_9_0, RULES_9_2, RULES_10_0

TOP = 1 << 64
ONLY_MEMORY = MemTxAttrs(memory=True)
WORDS = Contract(valid_min=2, valid_max=2)


# -- set -------------------------------------------------------------------------------------------


def test_set_fills_in_pieces_of_512() -> None:
    dev = io(Contract(valid_max=8, impl_max=8, impl_unaligned=True, valid_unaligned=True),
             size=0x1000)
    space, device = space_of(RULES_10_0, (0x1000, dev))
    assert space.set(0x1001, 0xAB, FILL_SIZE + 3) == 0
    written = [event[2:4] for event in device.log]
    # 512 = 64 x 8 at one offset, then 3 bytes: 2 and 1. The cut starts anew.
    assert written == [(1 + 8 * at, 8) for at in range(64)] + [(513, 2), (515, 1)]
    assert {event[4] for event in device.log[:64]} == {0xABABABABABABABAB}
    assert device.log[-1][4] == 0xAB


def test_set_ors_results_and_goes_on() -> None:
    memory = ram(0x100)
    space, _ = space_of(RULES_10_0, (0x1000, memory))
    assert space.set(0xF80, 7, 0x280) == 2
    assert memory.backing is not None and memory.backing.read(0, 0x100) == b"\7" * 0x100
    assert space.set(0x1000, 8, 0) == 0 and memory.backing.read(0, 1) == b"\7"
    assert space.set(0x1000, 9, 1, ONLY_MEMORY) == 0
    assert space.set(0x2000, 9, 2 * FILL_SIZE, ONLY_MEMORY) == 4
    assert space.set(TOP - 1, 9, 1) == 2


# -- access_valid ----------------------------------------------------------------------------------


def test_access_valid_asks_without_doing() -> None:
    memory, rom = ram(0x100), MemoryRegion.rom("rom", 0x100)
    space, device = space_of(
        RULES_10_0, (0, memory), (0x100, rom), (0x200, io(WORDS)), (0x300, io(ANY))
    )
    cases = [
        (0, 0x200, False, True), (0, 0x100, True, True), (0, 0x101, True, False),
        (0x200, 0x100, False, True), (0x200, 1, False, False), (0x201, 2, False, False),
        (0x200, 3, True, False), (0x1F0, 0x20, False, True), (0x300, 7, True, True),
        (0x3FF, 2, True, True), (0x400, 1, False, False), (0x500, 0, True, True),
    ]
    for addr, length, is_write, valid in cases:
        device.log.clear()
        assert space.access_valid(addr, length, is_write) is valid, hex(addr)
        assert all(event[0] == "invalid" for event in device.log)
        assert len(device.log) == (not valid), "it stops at the first refusal"
    assert space.access_valid(0x200, 2, False, ONLY_MEMORY), "QEMU does not look at memory"


def test_access_valid_cuts_by_the_address_and_asks_by_the_offset() -> None:
    """R13's quirk: the region at an odd address is cut otherwise than an access would be."""
    dev = io(Contract(valid_min=4, valid_max=4))
    space, device = space_of(RULES_10_0, (0x1002, dev))
    assert space.read(0x1002, 4)[0] == 0 and reads(device.log) == [(0, 4)]
    device.log.clear()
    assert not space.access_valid(0x1002, 4, False)
    assert invalids(device.log) == [(0, 2, False, "invalid size")]
    narrow = io(Contract(valid_min=1, valid_max=2), "narrow")
    space, device = space_of(RULES_10_0, (0x1001, narrow))
    assert space.access_valid(0x1001, 2, False), "1 + 1, by the address"
    assert space.read(0x1001, 2)[0] == 0 and reads(device.log) == [(0, 2)]


# -- map and unmap ---------------------------------------------------------------------------------


def test_mapped_memory_is_the_memory() -> None:
    memory = ram(0x100)
    space, _ = space_of(RULES_10_0, (0x1000, memory))
    mapped = space.map(0x1010, 0x20, True)
    assert mapped is not None and len(mapped) == 0x20 and not mapped.bounced
    mapped.buffer[:4] = b"data"
    assert space.read(0x1010, 4) == (0, b"data")
    space.unmap(mapped, 4)
    assert not mapped.mapped
    with pytest.raises(ModelError, match="unmapped already"):
        space.unmap(mapped, 0)
    with pytest.raises(ValueError, match="released"):
        mapped.buffer[0] = 1
    assert space.map(0x1000, 0, True) is None


def test_a_mapping_for_reading_cannot_be_written() -> None:
    space, _ = space_of(RULES_10_0, (0x1000, ram(0x100)))
    mapped = space.map(0x1000, 0x10, False)
    assert mapped is not None
    with pytest.raises(TypeError):
        mapped.buffer[0] = 1
    space.unmap(mapped, 0x10)


def test_a_mapping_ends_with_its_region_but_not_with_its_section() -> None:
    memory, other = ram(0x1000), ram(0x1000, "other")
    space, _ = space_of(
        RULES_10_0, (0x2000, other),
        (0x0, MemoryRegion.alias_of("first", memory, 0, 0x800)),
        (0x800, MemoryRegion.alias_of("second", memory, 0x800, 0x800)),
    )
    space.root.subregions[0].set_unmergeable(True)
    assert len(space.view.lookup(0).region.name) and space.view.lookup(0).size == 0x800
    for addr, length in ((0, 0x1000), (0x7F0, 0x810), (0x2800, 0x800)):
        mapped = space.map(addr, 0x1800, False)
        assert mapped is not None and len(mapped) == length, hex(addr)
        space.unmap(mapped, 0)
    space.root.subregions[0].set_alias_offset(0x700)  # no longer contiguous
    mapped = space.map(0x7F0, 0x100, False)
    assert mapped is not None and len(mapped) == 0x10
    space.unmap(mapped, 0)


def test_a_rom_device_is_mapped_to_the_end_of_its_memory() -> None:
    # R7 does not clamp it, qemu_ram_ptr_length does.
    flash = MemoryRegion.rom_device("flash", 0x100, ANY, backing=ByteBacking(0x100))
    space, device = space_of(RULES_10_0, (0, flash))
    mapped = space.map(0xF0, 0x40, False)
    assert mapped is not None and len(mapped) == 0x10 and not mapped.bounced
    space.unmap(mapped, 0)
    mapped = space.map(0xF0, 4, True)
    assert mapped is not None and mapped.bounced and device.log == []
    space.unmap(mapped, 0)


def test_a_bounce_buffer_is_read_before_and_written_after() -> None:
    space, device = space_of(RULES_10_0, (0, io(ANY)))
    mapped = space.map(0x10, 4, False)
    assert mapped is not None and mapped.bounced
    assert bytes(mapped.buffer) == bytes([0x11, 0x12, 0x13, 0x14])
    device.log.clear()
    space.unmap(mapped, 4)
    assert device.log == [], "for reading nothing is written back"
    mapped = space.map(0x10, 8, True)
    assert mapped is not None and device.log == [], "for writing nothing is read"
    assert bytes(mapped.buffer) == bytes(8)
    mapped.buffer[:] = bytes(range(1, 9))
    space.unmap(mapped, 5)
    assert [event[2:] for event in device.log] == [(0x10, 4, 0x04030201), (0x14, 1, 5)]
    assert space.bounce_buffer_size == 0


def test_unmap_says_who_asks_no_more() -> None:
    """The attributes of map are not those of the write that unmap does."""
    seen: list[MemTxAttrs] = []

    class Ops:
        def read(self, region, offset, size, attrs):  # type: ignore[no-untyped-def]
            seen.append(attrs)
            return 1, 0

        def write(self, region, offset, value, size, attrs):  # type: ignore[no-untyped-def]
            seen.append(attrs)
            return 1

    space, _ = space_of(RULES_10_0, (0, MemoryRegion.io("dev", 0x100, ANY, Ops())))
    asked = MemTxAttrs(requester_id=7)
    for is_write in (False, True):
        mapped = space.map(0, 1, is_write, asked)
        assert mapped is not None
        space.unmap(mapped, 1)
    assert [attrs.requester_id for attrs in seen] == [7, 0]
    assert seen[1].unspecified


def test_bounce_buffers_are_a_budget_of_each_space() -> None:
    space, _ = space_of(RULES_10_0, (0, io(ANY, size=0x10000)))
    other = AddressSpace("other", space.root)
    other.ops = space.ops
    first = space.map(0, 3000, True)
    second = space.map(0, 3000, True)
    assert first is not None and second is not None
    assert len(first) == 3000 and len(second) == 1096
    assert space.map(0, 1, True) is None
    theirs = other.map(0, 5000, True)
    assert theirs is not None and len(theirs) == 4096
    space.max_bounce_buffer_size = 5000
    third = space.map(0, 2000, True)
    assert third is not None and len(third) == 904
    for mapped in (first, second, third):
        space.unmap(mapped, 0)
    assert space.bounce_buffer_size == 0 and other.bounce_buffer_size == 4096
    with pytest.raises(ModelError, match="mapping"):
        other.destroy()


@pytest.mark.parametrize("rules", [RULES_7_2, RULES_9_0], ids=lambda rules: rules.name)
def test_before_9_2_one_bounce_buffer_serves_all_spaces(rules: Rules) -> None:
    space, _ = space_of(rules, (0, io(ANY, size=0x10000)))
    other = AddressSpace("other", space.root, rules=rules)
    other.ops = space.ops
    mapped = space.map(0, 0x3000, True)
    assert mapped is not None and len(mapped) == 0x1000, "a page at most"
    assert other.map(0, 1, True) is None and space.map(0, 1, True) is None
    called: list[str] = []
    other.register_map_client(lambda: called.append("other"))
    space.unmap(mapped, 0)
    assert called == ["other"]
    again = other.map(0, 1, True)
    assert again is not None
    other.unmap(again, 0)


@pytest.mark.parametrize("rules", [RULES_7_2, RULES_9_2, RULES_10_0], ids=lambda rules: rules.name)
def test_map_clients_are_called_once_when_there_is_room(rules: Rules) -> None:
    space, _ = space_of(rules, (0, io(ANY, size=0x10000)))
    called: list[str] = []

    def client(name: str) -> Callable[[], None]:
        return lambda: called.append(name)

    space.register_map_client(client("at once"))
    assert called == ["at once"]
    mapped = space.map(0, 0x10000, True)
    assert mapped is not None and space.map(0, 1, True) is None
    leaving = client("gone")
    for each in (client("first"), leaving, client("last")):
        space.register_map_client(each)
    space.unregister_map_client(leaving)
    space.unregister_map_client(leaving)
    assert called == ["at once"]
    space.unmap(mapped, 0)
    assert called == ["at once", "last", "first"]
    mapped = space.map(0, 1, True)
    assert mapped is not None
    space.unmap(mapped, 0)
    assert called == ["at once", "last", "first"]


def test_what_map_refuses() -> None:
    space, _ = space_of(RULES_10_0, (0, MemoryRegion.ram("ram", 0x100, SparseBacking(0x100))))
    with pytest.raises(ModelError, match="no memory that can be mapped"):
        space.map(0, 1, True)
    with pytest.raises(ModelError, match="is not in"):
        space.map(TOP, 1, True)
    mapped = space.map(0x200, 8, True)
    assert mapped is not None and mapped.bounced
    for length in (-1, 9):
        with pytest.raises(ModelError, match="cannot have been accessed"):
            space.unmap(mapped, length)
    space.unmap(mapped, 8)


def test_a_mapped_memoryview_is_the_owners_memory() -> None:
    owner = bytearray(0x100)
    space, _ = space_of(
        RULES_10_0, (0, MemoryRegion.ram("ram", 0x100, ViewBacking(memoryview(owner)))))
    mapped = space.map(0x10, 2, True)
    assert mapped is not None
    mapped.buffer[:] = b"hi"
    space.unmap(mapped, 2)
    assert owner[0x10:0x12] == b"hi"
    assert space.store(0x20, Le32(5)) == 0 and space.load(0x20, Le32) == (0, 5)
    assert owner[0x20] == 5
    for view in (memoryview(b"ro"), memoryview(owner)[::2]):
        with pytest.raises(ModelError, match="writable, contiguous"):
            ViewBacking(view)
    words = memoryview(bytearray(8)).cast("I")
    backing = ViewBacking(words)
    backing.write(0, b"\1\0\0\0")
    assert len(backing) == 8 and words[0] == 1 and backing.read(6, 10) == b"\0\0"


def test_sparse_memory() -> None:
    page = SparseBacking.PAGE
    backing = SparseBacking(TOP)
    assert backing.read(page - 2, 4) == bytes(4)
    backing.write(page - 2, b"abcd")
    assert backing.read(page - 3, 6) == b"\0abcd\0"
    assert backing.read(TOP - 2, 4) == bytes(2) and backing.read(TOP, 1) == b""
    assert len(backing) == (1 << 63) - 1 and len(SparseBacking(5)) == 5
    for offset, data in ((-1, b"a"), (TOP - 1, b"ab")):
        with pytest.raises(ModelError, match="do not fit"):
            backing.write(offset, data)
    large = MemoryRegion.ram("large", 1 << 40)
    space, _ = space_of(RULES_10_0, (0, large))
    assert space.write((1 << 39) - 1, b"xy") == 0
    assert space.read((1 << 39) - 2, 4) == (0, b"\0xy\0")
    assert space.load(1 << 39, Le16) == (0, ord("y"))


# -- cached access ---------------------------------------------------------------------------------


def test_a_cache_of_memory_copies() -> None:
    memory = ram(0x3000)
    space, _ = space_of(RULES_10_0, (0x1000, memory))
    with MemoryRegionCache(space, 0x1800, 0x10000, True) as cache:
        assert cache.length == 0x2800 and cache.direct
        assert cache.write(0x10, b"data") == 0 and cache.read(0x10, 4) == (0, b"data")
        assert space.read(0x1810, 4) == (0, b"data")
        assert cache.store(0x20, Be32(0x01020304)) == 0 and cache.load(0x20, Be32) == (
            0, 0x01020304)
        assert cache.load(0x20, Le32) == (0, 0x04030201)
        assert cache.read(0x27FF, 1) == (0, b"\0")
        for offset, length in ((0x2800, 0), (0x27FF, 2), (-1, 1), (0, -1)):
            with pytest.raises(ModelError, match="not inside a cache"):
                cache.read(offset, length)
        with pytest.raises(ModelError, match="byte order"):
            cache.load(0, int)  # type: ignore[type-var]
    with pytest.raises(ModelError, match="destroyed"):
        cache.read(0, 1)
    cache.destroy()


def test_a_cache_holds_on_to_its_view_and_memory() -> None:
    memory = ram(0x1000)
    space, device = space_of(RULES_10_0, (0, memory), (0x1000, io(ANY)))
    of_memory = MemoryRegionCache(space, 0, 0x100, True)
    of_device = MemoryRegionCache(space, 0x1000, 0x100, True)
    view = space.view
    with space.topology.transaction():
        for region in space.root.subregions:
            space.root.del_subregion(region)
    assert not view.reclaimed and space.read(0, 1) == (2, b"\0")
    of_memory.write(0, b"x")
    assert memory.backing is not None and memory.backing.read(0, 1) == b"x"
    assert of_device.read(4, 2) == (0, bytes([5, 6])) and reads(device.log) == [(4, 2)]
    of_memory.destroy()
    assert not view.reclaimed
    of_device.destroy()
    assert view.reclaimed


def test_a_cache_of_a_device_stays_in_its_region() -> None:
    """From 9.0 on the slow path steps inside the region it began in."""
    dev = io(Contract(valid_max=4, impl_max=4), size=0x100)
    space, device = space_of(RULES_10_0, (0x1000, dev))
    with MemoryRegionCache(space, 0x1080, 0x1000, True) as cache:
        assert cache.length == 0x80 and not cache.direct
        assert cache.read(0x10, 8)[1] == bytes(range(0x91, 0x99))
        assert cache.write(0x11, bytes(3)) == 0
        assert [event[2:4] for event in device.log] == [
            (0x90, 4), (0x94, 4), (0x91, 1), (0x92, 2),
        ]
        device.log.clear()
        assert cache.load(0x10, Le32) == (0, 0x94939291)
        assert cache.store(0x10, Be32(1)) == 0
        assert device.log[-1] == ("write", "dev", 0x90, 4, 0x01000000)
        assert cache.load(0x11, Le32) == (2, 0), "one dispatch: unaligned"


def test_before_9_0_a_cache_of_a_device_goes_astray() -> None:
    """cached_slow took its offset for an address when it looked for the second piece."""
    dev = io(Contract(valid_max=4, impl_max=4), size=0x100)
    memory = ram(0x100)
    assert memory.backing is not None
    memory.backing.write(0, bytes(range(0x40, 0x80)))
    space, device = space_of(RULES_7_2, (0x1000, dev), (0, memory))
    with MemoryRegionCache(space, 0x1080, 0x80, True) as cache:
        assert cache.read(0x10, 8) == (0, bytes([0x91, 0x92, 0x93, 0x94, 0x54, 0x55, 0x56, 0x57]))
        assert reads(device.log) == [(0x90, 4)]
        assert cache.write(0x20, b"abcdefgh") == 0
        assert memory.backing.read(0x24, 4) == b"efgh"


def test_a_cache_marks_dirty_only_when_told() -> None:
    memory = ram(0x4000)
    space, _ = space_of(RULES_10_0, (0x1000, memory))
    memory.set_log(True)
    dirty = space.topology.dirty
    with MemoryRegionCache(space, 0x2000, 0x2000, True) as cache:
        dirty.test_and_clear(memory, 0, 0x4000, VGA)
        cache.write(0x10, b"x")
        cache.store(0x20, Le32(1))
        assert not dirty.get(memory, 0, 0x4000, VGA)
        cache.invalidate(0x10, 0x1000)
        assert [dirty.get(memory, at * 0x1000, 1, VGA) for at in range(4)] == [
            False, True, True, False,
        ]
    with MemoryRegionCache(space, 0x2000, 0x10, False) as cache, pytest.raises(
        ModelError, match="not for writing"
    ):
        cache.invalidate(0, 1)
    with pytest.raises(ModelError, match="at least one byte"):
        MemoryRegionCache(space, 0, 0, False)


# -- dirty pages -----------------------------------------------------------------------------------


def logged(size: int = 0x4000) -> tuple[AddressSpace, MemoryRegion]:
    memory = ram(size)
    space, _ = space_of(RULES_10_0, (0x10000, memory))
    memory.set_log(True)
    space.topology.dirty.test_and_clear(memory, 0, size, VGA)
    return space, memory


def pages(space: AddressSpace, memory: MemoryRegion, client: int = VGA) -> list[int]:
    return [at for at in range(memory.size // 0x1000)
            if space.topology.dirty.get(memory, at * 0x1000, 0x1000, client)]


def test_new_memory_is_dirty_for_everybody() -> None:
    memory = ram(0x2000)
    space, _ = space_of(RULES_10_0, (0, memory))
    for client in (VGA, CODE, MIGRATION):
        assert space.topology.dirty.get(memory, 0, 1, client)
        assert space.topology.reset_dirty(memory, 0, 0x1001, client)
        assert not space.topology.reset_dirty(memory, 0, 0x2000, client)
    assert not space.topology.dirty.get(memory, 0, 0, VGA)
    assert not space.topology.reset_dirty(memory, 0, 0, VGA)


@pytest.mark.parametrize(("write", "expected"), [
    (lambda s: s.write(0x10000, b"x"), [0]),
    (lambda s: s.write(0x10FFF, b"xy"), [0, 1]),
    (lambda s: s.write(0x11000, bytes(0x1000)), [1]),
    (lambda s: s.write(0xFFF0, bytes(0x20)), [0]),
    (lambda s: s.write(0x13FFF, b"xy"), [3]),
    (lambda s: s.store(0x12010, Le32(1)), [2]),
    (lambda s: s.store_target(0x11FFC, 1, 4), [1]),
    (lambda s: s.set(0x11000, 1, 0x1001), [1, 2]),
    (lambda s: s.write_rom(0x12FFF, b"xy"), [2, 3]),
    (lambda s: s.read(0x10000, 0x4000), []),
    (lambda s: s.load(0x10000, Le32), []),
    (lambda s: s.unmap(s.map(0x11000, 0x2000, True), 1), [1]),
    (lambda s: s.unmap(s.map(0x11000, 0x2000, True), 0), []),
    (lambda s: s.unmap(s.map(0x11000, 0x2000, False), 1), []),
    (lambda s: s.topology.set_dirty(s.view.lookup(0x10000).region, 0x1800, 0x1000), [1, 2]),
])
def test_every_way_to_write_marks_its_pages(
    write: Callable[[AddressSpace], object], expected: list[int]
) -> None:
    space, memory = logged()
    write(space)
    assert pages(space, memory) == expected


def test_only_clients_that_log_are_told() -> None:
    space, memory = logged()
    dirty = space.topology.dirty
    dirty.test_and_clear(memory, 0, 0x4000, MIGRATION)
    space.write(0x10000, b"x")
    assert pages(space, memory) == [0] and pages(space, memory, MIGRATION) == []
    space.topology.dirty_log_start()
    space.store(0x11000, Le32(1))
    assert pages(space, memory) == [0, 1] and pages(space, memory, MIGRATION) == [1]
    memory.set_log(False)
    space.write(0x12000, b"x")
    assert pages(space, memory) == [0, 1] and pages(space, memory, MIGRATION) == [1, 2]
    space.topology.dirty_log_stop()
    space.store(0x13000, Le32(1))
    assert pages(space, memory, MIGRATION) == [1, 2]


def test_a_snapshot_takes_groups_of_64_pages() -> None:
    space, memory = logged(0x100000)
    topology = space.topology
    for page in (0, 63, 64, 100, 200):
        space.write(0x10000 + page * 0x1000, b"x")
    snapshot = topology.snapshot_and_clear_dirty(memory, 70 * 0x1000, 0x1000, VGA)
    assert [page for page in range(64, 128) if snapshot.dirty(page * 0x1000, 1)] == [64, 100]
    assert not snapshot.dirty(65 * 0x1000, 35 * 0x1000)
    assert snapshot.dirty(65 * 0x1000, 35 * 0x1000 + 1)
    assert pages(space, memory) == [0, 63, 200], "more than was asked for is clean now"
    for offset, length in ((63 * 0x1000, 1), (127 * 0x1000, 0x1001)):
        with pytest.raises(ModelError, match="does not cover"):
            snapshot.dirty(offset, length)


def test_the_end_of_a_region_is_no_page_boundary() -> None:
    memory = ram(0x1800)
    space, _ = space_of(RULES_10_0, (0, memory))
    memory.set_log(True)
    dirty = space.topology.dirty
    assert dirty.test_and_clear(memory, 0, 0x1800, VGA)
    space.write(0x17FF, b"x")
    assert not dirty.get(memory, 0, 0x1000, VGA) and dirty.get(memory, 0x1000, 1, VGA)
    snapshot = dirty.snapshot_and_clear(memory, 0, 0x1800, VGA)
    assert snapshot.dirty(0x1000, 0x800) and not dirty.get(memory, 0, 0x1800, VGA)


def test_what_dirty_memory_refuses() -> None:
    space, memory = logged()
    with pytest.raises(ModelError, match="clients 0 to 2"):
        space.topology.dirty.test_and_clear(memory, 0, 1, 3)
    huge = MemoryRegion.ram("huge", 1 << 50)
    with pytest.raises(ModelError, match="too many pages"):
        space.topology.dirty.test_and_clear(huge, 0, 1, VGA)


def test_a_machine_with_other_pages() -> None:
    root = MemoryRegion.container_of("system", TOP)
    memory = ram(0x10000)
    root.add_subregion(0, memory)
    space = AddressSpace("memory", root, topology=Topology(page_bits=16))
    memory.set_log(True)
    dirty = space.topology.dirty
    dirty.test_and_clear(memory, 0, 0x10000, VGA)
    space.write(0x10, b"x")
    assert dirty.get(memory, 0xFFFF, 1, VGA)


def test_little_things_of_the_c_face() -> None:
    dev = Device()
    assert isinstance(dev, Device)
    space, _ = space_of(RULES_10_0, (0, ram(0x10)), target_big=True)
    assert space.store_target(0, 0x0102, 2) == 0 and space.read(0, 2) == (0, b"\1\2")
    assert space.load_target(0, 2) == (0, 0x0102)
    space.target_big = False
    assert space.load_target(0, 2) == (0, 0x0201)
    for size in (0, 3, 16):
        with pytest.raises(ModelError, match="1, 2, 4 or 8 bytes"):
            space.load_target(0, size)
    for value in (-1, 0x100):
        with pytest.raises(ModelError, match="not a value of 1 bytes"):
            space.store_target(0, value, 1)
    with pytest.raises(ModelError, match=r"store_target"):
        space.store(0, 42)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"load_target"):
        space.load(0, int)  # type: ignore[arg-type]
    buffer = bytearray(b"....")
    assert space.read_into(0, buffer) == 0 and buffer == b"\1\2\0\0"
    assert space.write(0, memoryview(b"ab")) == 0 and space.write(2, bytearray(b"cd")) == 0
    assert space.read(0, 4) == (0, b"abcd")
    assert Endian.BIG.value == "big"
