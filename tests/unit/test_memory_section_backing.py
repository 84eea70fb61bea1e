"""A section of a view as a Backing: RAM, ROM, ROM devices, devices, and what each refuses."""

from __future__ import annotations

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    Backing,
    Contract,
    Endian,
    HostMemory,
    MemoryRegion,
    OpsTable,
    SparseBacking,
)
from qemuglue.memory.attrs import ERROR, OK, MemTxAttrs
from qemuglue.memory.dirty import VGA
from qemuglue.memory.guest_error import InvalidBackendAddress
from qemuglue.memory.section_backing import SectionBacking, SectionMemory, section_backing

#: What the device was asked: (offset, size, value written or None).
Calls = list[tuple[int, int, int | None]]


class Machine:
    """RAM, an alias that shows it read-only, ROM, and devices, in one space."""

    def __init__(self, *, big: bool = False) -> None:
        self.calls: Calls = []
        self.root = MemoryRegion.container_of("system", 1 << 64)
        self.ram = MemoryRegion.ram("ram", 0x4000)
        self.rom = MemoryRegion.rom("rom", 0x1000)
        assert self.rom.backing is not None
        self.rom.backing.write(0, bytes(range(16)))
        ops = OpsTable(read_plain=self.read, write_plain=self.write)
        order = Endian.BIG if big else Endian.LITTLE
        self.device = MemoryRegion.io(
            "device", 0x100, Contract(valid_min=1, valid_max=4, impl_max=4, endian=order), ops)
        self.bytewise = MemoryRegion.io(
            "bytewise", 0x100, Contract(valid_min=1, valid_max=4, impl_max=1, endian=order), ops)
        self.flash = MemoryRegion.rom_device(
            "flash", 0x1000, Contract(valid_max=4, endian=order), ops)
        failing = OpsTable(read_with_attrs=self.fail_read, write_with_attrs=self.fail_write)
        self.failing = MemoryRegion.io(
            "failing", 0x100, Contract(valid_min=1, valid_max=4, endian=order), failing)
        self.root.add_subregion(0, self.ram)
        shown = MemoryRegion.alias_of("low", self.ram, 0x1000, 0x1000)
        shown.set_readonly(True)
        self.root.add_subregion(0x8000, shown)
        for addr, region in ((0x10000, self.rom), (0x20000, self.device),
                             (0x30000, self.bytewise), (0x40000, self.flash),
                             (0x50000, self.failing)):
            self.root.add_subregion(addr, region)
        self.space = AddressSpace("memory", self.root)

    def read(self, offset: int, size: int) -> int:
        self.calls.append((offset, size, None))
        return int.from_bytes(bytes(range(offset + 1, offset + 1 + size)), "little")

    def write(self, offset: int, value: int, size: int) -> None:
        self.calls.append((offset, size, value))

    def fail_read(self, offset: int, size: int, attrs: MemTxAttrs) -> tuple[int, int]:
        self.calls.append((offset, size, None))
        return (OK if offset < 4 else ERROR), 0

    def fail_write(self, offset: int, value: int, size: int, attrs: MemTxAttrs) -> int:
        self.calls.append((offset, size, value))
        return OK if offset < 4 else ERROR

    def at(self, addr: int) -> SectionBacking:
        return section_backing(self.space, self.space.view.lookup(addr))


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_ram_is_a_window_on_the_regions_own_bytes(machine: Machine) -> None:
    backing = machine.at(0)
    assert isinstance(backing, SectionMemory)
    assert isinstance(backing, Backing) and isinstance(backing, HostMemory)
    assert len(backing) == len(backing.data) == 0x4000
    backing.write(0x1FFE, b"abcd")
    assert machine.space.read(0x1FFE, 4) == (OK, b"abcd")
    backing.data[0x2000] = 0x7A
    assert backing.read(0x1FFE, 4) == b"abzd"
    assert not machine.calls


def test_an_alias_shows_its_part_and_is_written_though_it_is_read_only(machine: Machine) -> None:
    backing = machine.at(0x8000)
    assert backing.section.readonly and not backing.section.region.readonly
    assert isinstance(backing, SectionMemory) and len(backing.data) == 0x1000
    backing.write(1, b"xyz")
    assert machine.space.read(0x1001, 3) == (OK, b"xyz")
    backing.data[4] = 0x21
    assert machine.space.read(0x1004, 1) == (OK, b"!")


def test_it_ends_where_the_section_ends(machine: Machine) -> None:
    backing = machine.at(0x8000)
    assert backing.read(0xFFE, 8) == bytes(2)
    assert backing.read(0x1000, 1) == b"" == backing.read(0x2000, 4) == backing.read(0, 0)
    for offset, data in ((0xFFD, b"abcd"), (-1, b"a"), (0x1001, b"")):
        with pytest.raises(ModelError, match="do not fit a section"):
            backing.write(offset, data)
    for offset, size in ((-1, 4), (0, -1)):
        with pytest.raises(ModelError, match="no part"):
            backing.read(offset, size)
    backing.write(0xFFC, b"abcd")
    backing.write(0x1000, b"")
    assert machine.space.read(0x1FFC, 5) == (OK, b"abcd\0")


def test_rom_is_read_and_not_written(machine: Machine) -> None:
    backing = machine.at(0x10000)
    assert not isinstance(backing, HostMemory)
    assert backing.read(3, 4) == bytes((3, 4, 5, 6))
    for data in (b"a", b"abcd", b"abcde", bytes(300)):
        with pytest.raises(InvalidBackendAddress):
            backing.write(3, data)
    assert backing.read(0, 16) == bytes(range(16))


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_device_is_asked_once(big: bool, size: int) -> None:
    machine = Machine(big=big)
    backing = machine.at(0x20000)
    told = backing.read(8, size)
    assert machine.calls == [(8, size, None)]
    expected = bytes(range(9, 9 + size))
    assert told == (expected[::-1] if big else expected)
    assert told == machine.space.read(0x20008, size)[1]
    machine.calls.clear()
    data = bytes(range(0xA0, 0xA0 + size))
    backing.write(8, data)
    assert machine.calls == [(8, size, int.from_bytes(data, "big" if big else "little"))]


def test_eight_bytes_are_not_cut_for_a_device_that_takes_four(machine: Machine) -> None:
    """Where ``address_space_read`` asks twice, one access of this size is refused."""
    backing = machine.at(0x20000)
    with pytest.raises(InvalidBackendAddress):
        backing.read(0, 8)
    with pytest.raises(InvalidBackendAddress):
        backing.write(0, bytes(8))
    with pytest.raises(InvalidBackendAddress):
        backing.read(1, 4)  # unaligned: refused too, where a byte range is cut into 1, 2 and 1
    assert not machine.calls
    assert machine.space.read(0x20000, 8)[0] == OK
    assert machine.calls == [(0, 4, None), (4, 4, None)]


def test_other_numbers_of_bytes_are_cut_as_the_device_likes_it(machine: Machine) -> None:
    backing = machine.at(0x20000)
    assert backing.read(1, 7) == bytes(range(2, 9))
    assert machine.calls == [(1, 1, None), (2, 2, None), (4, 4, None)]
    machine.calls.clear()
    backing.write(2, bytes(range(6)))
    assert machine.calls == [(2, 2, 0x0100), (4, 4, 0x05040302)]
    machine.calls.clear()
    machine.at(0x30000).write(0, b"\1\2\3\4")
    assert machine.calls == [(n, 1, n + 1) for n in range(4)], "one access, in the device's pieces"


def test_a_device_that_fails_ends_it_at_the_first_access(machine: Machine) -> None:
    backing = machine.at(0x50000)
    assert backing.read(0, 4) == bytes(4)
    backing.write(0, b"abc")
    machine.calls.clear()
    with pytest.raises(InvalidBackendAddress):
        backing.read(0, 12)
    assert machine.calls == [(0, 4, None), (4, 4, None)]
    machine.calls.clear()
    with pytest.raises(InvalidBackendAddress):
        backing.write(0, bytes(12))
    assert [call[:2] for call in machine.calls] == [(0, 4), (4, 4)]
    for size in (1, 2, 4):
        with pytest.raises(InvalidBackendAddress):
            backing.read(4, size)
        with pytest.raises(InvalidBackendAddress):
            backing.write(4, bytes(size))


def test_a_rom_device_is_read_from_memory_only_in_its_mode(machine: Machine) -> None:
    assert machine.flash.backing is not None
    machine.flash.backing.write(0, b"flash")
    backing = machine.at(0x40000)
    assert not isinstance(backing, HostMemory)
    assert backing.read(0, 5) == b"flash" and not machine.calls
    backing.write(0, b"\x40")
    assert machine.calls == [(0, 1, 0x40)]
    machine.flash.set_romd(False)
    machine.calls.clear()
    assert backing.read(0, 4) == b"\1\2\3\4", "the region's mode of now counts"
    assert machine.calls == [(0, 4, None)]


def test_ram_that_cannot_be_pointed_at_is_a_backing_all_the_same() -> None:
    root = MemoryRegion.container_of("system", 1 << 64)
    root.add_subregion(0x1000, MemoryRegion.ram("ram", 0x2000, SparseBacking(0x2000)))
    space = AddressSpace("memory", root)
    backing = section_backing(space, space.view.sections[0])
    assert not isinstance(backing, HostMemory)
    backing.write(0x1FFF, b"a")
    assert backing.read(0x1FFE, 9) == b"\0a"


def test_what_it_writes_to_ram_is_noted_as_dirty(machine: Machine) -> None:
    machine.ram.set_log(True)
    dirty = machine.space.topology.dirty
    backing = machine.at(0x8000)
    dirty.test_and_clear(machine.ram, 0, 0x4000, VGA)
    backing.write(0x10, b"abc")
    assert [dirty.get(machine.ram, page << 12, 1, VGA) for page in range(4)] == [
        False, True, False, False]


def test_a_hole_has_no_backing_and_a_huge_section_has_a_length(machine: Machine) -> None:
    with pytest.raises(ModelError, match="a hole has no bytes"):
        machine.at(0x60000)
    root = MemoryRegion.io("all", 1 << 64)
    space = AddressSpace("all", root)
    assert len(section_backing(space, space.view.sections[0])) == (1 << 63) - 1
    assert repr(machine.at(0x8000)) == "<SectionMemory 'ram' 0x8000>"
