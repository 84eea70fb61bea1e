"""Accesses that no single rule covers: crossings, the 64-bit wrap, limits of the model."""

from __future__ import annotations

import pytest
from rule_checks import ANY, invalids, io, ram, reads, space_of

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, ByteBacking, Contract, Endian, MemoryRegion
from qemuglue.memory.rules import RULES_10_0

TOP = 1 << 64


def test_an_access_goes_on_at_0_behind_the_last_address() -> None:
    first, last = ram(0x10, "first"), ram(0x10, "last")
    space, device = space_of(RULES_10_0, (0, first), (TOP - 0x10, last))
    data = bytes(range(1, 0x11))
    assert space.write(TOP - 8, data) == 0
    assert space.read(TOP - 8, 0x10) == (0, data)
    assert last.backing is not None and first.backing is not None
    assert last.backing.read(8, 8) + first.backing.read(0, 8) == data
    assert space.read(TOP - 1, 1) == (0, b"\x08") and device.log == []


def test_unassigned_pieces_around_the_wrap() -> None:
    space, device = space_of(RULES_10_0, (0, ram(2)))
    assert space.read(TOP - 3, 8) == (2, bytes(8))
    assert invalids(device.log) == [
        (TOP - 3, 1, False, "rejected"), (TOP - 2, 2, False, "rejected"),
        (2, 2, False, "rejected"), (4, 1, False, "rejected"),
    ]


def test_a_device_at_the_top_is_accessed_beyond_the_space() -> None:
    space, device = space_of(RULES_10_0, (TOP - 2, io(ANY, size=2)), (0, ram(0x10)))
    assert space.read(TOP - 2, 4) == (0, bytes([1, 2, 3, 4]))
    assert reads(device.log) == [(0, 4)]


def test_a_single_access_takes_one_dispatch_where_a_range_is_cut() -> None:
    contract = Contract(valid_min=4, valid_max=4)
    space, device = space_of(RULES_10_0, (0, io(contract)))
    assert space.read(8, 8) == (0, bytes(range(9, 17)))
    device.log.clear()
    assert space.load_sized(8, 8, "little") == (2, 0)
    assert space.store_sized(8, 0, 8, "little") == 2
    assert device.log == [
        ("invalid", "dev", 8, 8, False, "invalid size"),
        ("invalid", "dev", 8, 8, True, "invalid size"),
    ]


def test_a_single_access_is_not_stopped_by_memory_only() -> None:
    # address_space_ldl and its kin never ask flatview_access_allowed.
    from qemuglue.memory import MemTxAttrs
    space, _ = space_of(RULES_10_0, (0, io(Contract())))
    attrs = MemTxAttrs(memory=True)
    assert space.load_sized(0, 4, "little", attrs) == (0, 0x04030201)
    assert space.store_sized(0, 1, 4, "little", attrs) == 0


@pytest.mark.parametrize("endian", [Endian.LITTLE, Endian.BIG])
def test_a_single_access_has_the_callers_order(endian: Endian) -> None:
    contract = Contract(valid_max=8, impl_max=8, endian=endian)
    space, device = space_of(RULES_10_0, (0, io(contract)), (0x100, ram()))
    for address in (0, 0x100):
        space.write(0x100, bytes(range(1, 9)))
        assert space.load_sized(address, 8, "big") == (0, 0x0102030405060708)
        assert space.load_sized(address, 4, "little") == (0, 0x04030201)
    device.log.clear()
    space.store_sized(0, 0x0102, 2, "big")
    value = 0x0102 if endian is Endian.BIG else 0x0201
    assert device.log == [("write", "dev", 0, 2, value)]
    space.store_sized(0x100, 0x0102, 2, "big")
    assert space.read(0x100, 2) == (0, b"\x01\x02")


def test_a_rom_device_is_read_on_behind_what_lies_on_top() -> None:
    # R7 clamps RAM only: the copy runs on inside the ROM device's memory.
    flash = MemoryRegion.rom_device("flash", 0x20, ANY, backing=ByteBacking(
        bytearray(range(0x20))))
    space, device = space_of(RULES_10_0, (0, flash))
    space.root.add_subregion_overlap(8, io(ANY, "top", 8), 1)
    assert space.read(4, 8) == (0, bytes(range(4, 12)))
    assert device.log == []
    assert space.read(8, 4) == (0, bytes([1, 2, 3, 4]))


def test_a_change_of_attributes_shows_on_update_only() -> None:
    space, _ = space_of(RULES_10_0)
    memory = ram()
    assert space.read(0, 1) == (2, b"\0")
    space.root.add_subregion(0, memory)
    assert space.read(0, 1) == (0, b"\0")
    assert space.generation == 1
    memory.enabled = False
    assert space.read(0, 1) == (0, b"\0")
    assert space.generation == 1
    assert space.update() is space.view
    assert space.read(0, 1) == (2, b"\0")
    assert space.generation == 2


def test_device_without_callbacks_answers_0_and_is_still_checked() -> None:
    root = MemoryRegion.container_of("system", TOP)
    root.add_subregion(0, io(Contract(valid_min=4, valid_max=4)))
    space = AddressSpace("memory", root)
    assert space.read(0, 4) == (0, bytes(4)) and space.write(0, bytes(4)) == 0
    assert space.read(0, 2) == (2, bytes(2)) and space.write(0, b"a") == 2


def test_a_region_may_have_callbacks_of_its_own() -> None:
    space, shared = space_of(RULES_10_0, (0, io(ANY, "one")), (0x100, io(ANY, "two")))
    own = type(shared)()
    space.view.lookup(0).region.ops = own
    space.read(0, 1)
    space.read(0x100, 1)
    assert [event[1] for event in own.log] == ["one"]
    assert [event[1] for event in shared.log] == ["two"]


def test_a_backing_shorter_than_its_region_is_an_error_not_a_loop() -> None:
    space, _ = space_of(RULES_10_0, (0, MemoryRegion.ram("ram", 0x20, ByteBacking(0x10))))
    assert space.read(0, 0x10)[0] == space.write(0, bytes(0x10)) == 0
    for act in (lambda: space.read(0xC, 8), lambda: space.write(0xC, bytes(8)),
                lambda: space.write(0x18, b"a")):
        with pytest.raises(ModelError, match="has no byte"):
            act()


@pytest.mark.parametrize("address", [-1, TOP])
def test_addresses_are_64_bits_wide(address: int) -> None:
    space, _ = space_of(RULES_10_0)
    for act in (lambda: space.read(address, 1), lambda: space.write(address, b"a"),
                lambda: space.load_sized(address, 1, "little"),
                lambda: space.store_sized(address, 0, 1, "little")):
        with pytest.raises(ModelError, match="is not in"):
            act()
