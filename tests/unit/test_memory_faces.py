"""The faces by name: each on a space of the model, over the same bytes."""

from __future__ import annotations

import pytest

from qemuglue.errors import UsageError
from qemuglue.memory import AddressSpace, Be32, Contract, Le32, MemoryRegion, OpsTable
from qemuglue.memory import rust_binding as rust
from qemuglue.memory.aligned import AlignedAccess, AlignedGuestAddress
from qemuglue.memory.faces import FACES, find_face, put_on, sections_of
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidBackendAddress, InvalidGuestAddress
from qemuglue.memory.guest_memory.collection import GuestRegionCollection
from qemuglue.memory.memory_map import GuestMemory
from qemuglue.memory.region_accessor import RegionAccessor


@pytest.fixture
def space() -> AddressSpace:
    root = MemoryRegion.container_of("system", 1 << 64)
    root.add_subregion(0x1000, MemoryRegion.ram("ram", 0x2000))
    root.add_subregion(0x4000, MemoryRegion.rom("rom", 0x1000))
    ops = OpsTable(read_plain=lambda offset, size: 0x01020304, write_plain=lambda *_: None)
    root.add_subregion(0x8000, MemoryRegion.io("device", 0x100, Contract(valid_max=4), ops))
    root.add_subregion(0xA000, MemoryRegion.reservation("claimed", 0x100))
    return AddressSpace("memory", root)


def test_a_region_a_section_but_for_what_only_claims_addresses(space: AddressSpace) -> None:
    found = list(sections_of(space))
    assert [start for start, _ in found] == [0x1000, 0x4000, 0x8000]
    assert [len(backing) for _, backing in found] == [0x2000, 0x1000, 0x100]
    assert [backing.section.region.name for _, backing in found] == ["ram", "rom", "device"]
    assert all(backing.space is space for _, backing in found)


def test_each_name_is_its_interface(space: AddressSpace) -> None:
    kinds = {"vm-memory": GuestRegionCollection, "aligned": AlignedAccess,
             "memory-map": GuestMemory, "accessor": RegionAccessor, "rust": rust.AddressSpace}
    assert list(FACES) == list(kinds)
    for name, kind in kinds.items():
        assert isinstance(put_on(name, space), kind)
        assert find_face(name).name == name and find_face(name).summary
    with pytest.raises(UsageError, match=r"^no face 'c'; there are vm-memory, aligned, memory-map"):
        put_on("c", space)


def test_all_stand_on_the_same_bytes(space: AddressSpace) -> None:
    memory = put_on("vm-memory", space)
    memory.store(Le32(0x11223344), GuestAddress(0x1000))
    assert put_on("memory-map", space).read_obj(0x1000, Be32) == 0x44332211
    assert put_on("accessor", space).read_obj(0x1000, Le32) == 0x11223344
    assert put_on("rust", space).load(0x1000, Le32) == 0x11223344
    at = AlignedGuestAddress.of(0x1000, Le32)
    assert put_on("aligned", space).read_atomic(at) == 0x11223344
    assert space.load(0x1000, Le32) == (0, 0x11223344)


def test_a_device_is_there_and_rom_and_holes_refuse(space: AddressSpace) -> None:
    memory = put_on("vm-memory", space)
    assert memory.load(GuestAddress(0x8000), Le32) == 0x01020304
    with pytest.raises(InvalidBackendAddress):
        memory.store(Le32(1), GuestAddress(0x4000))
    for addr in (0xA000, 0x3000, 0):
        with pytest.raises(InvalidGuestAddress):
            memory.load(GuestAddress(addr), Le32)


def test_rust_follows_the_map_and_the_others_keep_theirs(space: AddressSpace) -> None:
    memory, following = put_on("vm-memory", space), put_on("rust", space)
    ram = space.view.find(0x1000)
    assert ram is not None
    ram.region.set_enabled(False)
    with pytest.raises(InvalidBackendAddress):
        following.load(0x1000, Le32)
    assert memory.load(GuestAddress(0x1000), Le32) == 0
