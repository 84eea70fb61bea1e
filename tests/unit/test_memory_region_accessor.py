"""The accessor over regions, its limits, and the whole-area limit of axaddrspace 0.3.0."""

from __future__ import annotations

from typing import Any

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion, SparseBacking
from qemuglue.memory.accessor import InvalidInput, LimitTooLarge, PhysAddr
from qemuglue.memory.endian import U8, Be32, Le16, Le32, Le64
from qemuglue.memory.flatview import FlatView
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import HostAddressNotAvailable
from qemuglue.memory.guest_memory import GuestRegion, GuestRegionCollection
from qemuglue.memory.region_accessor import AccessorRegion, RegionAccessor


def counting(size: int, first: int = 0) -> ByteBacking:
    return ByteBacking(bytearray((first + i) & 0xFF for i in range(size)))


def two() -> tuple[RegionAccessor, ByteBacking, ByteBacking]:
    """Regions at 0x1000 and 0x1010, and a hole from 0x1020 on."""
    low, high = counting(16), counting(16, 0x80)
    return RegionAccessor([(0x1010, high), (GuestAddress(0x1000), low)]), low, high


def test_the_limit_is_what_is_left_of_the_region() -> None:
    accessor, low, high = two()
    assert accessor.translate_and_get_limit(0x1000) == (PhysAddr(low, 0), 16)
    assert accessor.translate_and_get_limit(0x100F) == (PhysAddr(low, 15), 1)
    assert accessor.translate_and_get_limit(GuestAddress(0x1010)) == (PhysAddr(high, 0), 16)
    assert accessor.translate_and_get_limit(0x101A) == (PhysAddr(high, 10), 6)
    assert accessor.bytes_left(GuestAddress(0x101A)) == 6
    for outside in (0, 0xFFF, 0x1020, (1 << 64) - 1):
        assert accessor.translate_and_get_limit(outside) is None
        assert accessor.translate(outside) is None
        assert accessor.bytes_left(GuestAddress(outside)) is None
    assert accessor.translate(0x1012) == PhysAddr(high, 2)


def test_a_linear_mapping_translates_by_its_offset() -> None:
    host = ByteBacking(0x20000)
    accessor = RegionAccessor([AccessorRegion(0x18000, 0x8000, host, 0x10000)])
    assert accessor.translate(0x18000) == PhysAddr(host, 0x10000)
    assert accessor.translate(0x19000) == PhysAddr(host, 0x11000)
    assert accessor.translate(0x1FFFF) == PhysAddr(host, 0x17FFF)
    assert accessor.translate(0x17FFF) is accessor.translate(0x20000) is None


def test_a_buffer_spans_contiguous_regions_and_an_object_does_not() -> None:
    accessor, low, high = two()
    buffer = bytearray(6)
    accessor.read_buffer(0x100D, buffer)
    assert buffer == bytes([13, 14, 15, 0x80, 0x81, 0x82])
    accessor.write_buffer(0x100E, b"abcd")
    assert low.data[13:] == b"\rab" and high.data[:3] == b"cd\x82"
    with pytest.raises(InvalidInput):
        accessor.read_obj(0x100E, Le32)
    assert accessor.read_obj(0x100E, Le16) == int.from_bytes(b"ab", "little")
    assert accessor.read_obj(0x1010, Be32) == int.from_bytes(b"cd\x82\x83", "big")
    with pytest.raises(InvalidInput) as caught:
        accessor.write_buffer(0x101F, b"xy")
    assert (caught.value.guest_addr, caught.value.moved) == (GuestAddress(0x1020), 1)
    assert high.data[15] == ord("x")


def test_regions_may_end_at_the_last_address() -> None:
    accessor = RegionAccessor([((1 << 64) - 16, counting(16)), (0, counting(16, 0x80))])
    assert accessor.read_obj((1 << 64) - 8, Le64) == int.from_bytes(range(8, 16), "little")
    with pytest.raises(InvalidInput):
        accessor.read_obj((1 << 64) - 7, Le64)
    assert accessor.translate_and_get_limit((1 << 64) - 1) == (
        PhysAddr(accessor.regions[1].backing, 15), 1,
    )


def test_regions_are_checked() -> None:
    backing = ByteBacking(16)
    for start, size, offset in (
        (0, 0, 0), (0, -1, 0), ((1 << 64) - 8, 9, 0), (0, 17, 0), (0, 9, 8), (0, 8, -1),
        (-1, 4, 0),
    ):
        with pytest.raises(ModelError):
            AccessorRegion(start, size, backing, offset)
    with pytest.raises(ModelError, match=r"overlap: 0x0\.\.0xf and 0xf\.\.0x1e"):
        RegionAccessor([(15, backing), (0, ByteBacking(16))])
    with pytest.raises(ModelError, match="overlap"):
        RegionAccessor([(4, ByteBacking(2)), (0, ByteBacking(16))])
    byte: Any = AccessorRegion(4, 1, backing, 15)
    assert (byte.start, byte.last) == (4, 4) and not hasattr(byte, "__dict__")
    with pytest.raises(AttributeError):
        byte.start = 5
    assert AccessorRegion((1 << 64) - 8, 8, backing, 8).last == (1 << 64) - 1
    assert RegionAccessor([]).translate(0) is None
    assert repr(RegionAccessor([])) == "<RegionAccessor of nothing>"
    assert repr(two()[0]) == "<RegionAccessor 0x1000..0x100f, 0x1010..0x101f>"


# -- the whole-area limit --------------------------------------------------------------------


def area(*, whole_area_limit: bool) -> tuple[RegionAccessor, ByteBacking]:
    """An area of 16 bytes at 0x1000, with 16 more bytes behind it that are the host's own."""
    host = ByteBacking(32)
    host.data[:] = b"the guest's areaand the host's!!"
    region = AccessorRegion(0x1000, 16, host)
    return RegionAccessor([region], whole_area_limit=whole_area_limit), host


def test_the_whole_area_limit_does_not_depend_on_the_address() -> None:
    accessor, host = area(whole_area_limit=True)
    for inside in (0, 1, 15):
        assert accessor.translate_and_get_limit(0x1000 + inside) == (PhysAddr(host, inside), 16)
    for outside in (0xFFF, 0x1010):
        assert accessor.translate_and_get_limit(outside) is None


def test_the_whole_area_limit_is_asked_for_by_its_name() -> None:
    makers = (
        lambda *args: RegionAccessor([], *args),
        lambda *args: RegionAccessor.from_collection(GuestRegionCollection.new(), *args),
        lambda *args: RegionAccessor.from_view(FlatView(None, []), *args),
    )
    for make in makers:
        assert not make().whole_area_limit
        with pytest.raises(TypeError):
            make(True)


def test_the_whole_area_limit_reads_and_writes_what_is_not_the_guest_s() -> None:
    accessor, host = area(whole_area_limit=True)
    buffer = bytearray(8)
    accessor.read_buffer(0x100C, buffer)
    assert buffer == b"areaand "
    assert accessor.read_obj(0x100F, Le16) == int.from_bytes(b"aa", "little")
    accessor.write_buffer(0x100E, b"XYZ")
    assert host.data == b"the guest's arXYZnd the host's!!"


def test_code_that_relies_on_it_is_shown_wrong() -> None:
    accessor, host = area(whole_area_limit=False)
    buffer = bytearray(8)
    with pytest.raises(InvalidInput) as caught:
        accessor.read_buffer(0x100C, buffer)
    assert buffer == b"area\0\0\0\0"
    assert (caught.value.guest_addr, caught.value.moved) == (GuestAddress(0x1010), 4)
    with pytest.raises(InvalidInput):
        accessor.read_obj(0x100F, Le16)
    with pytest.raises(InvalidInput):
        accessor.write_buffer(0x100E, b"XYZ")
    assert host.data == b"the guest's arXYand the host's!!"


def test_the_whole_area_limit_leaves_contiguous_regions_out() -> None:
    low = ByteBacking(bytearray(b"low memoryBEHIND"))
    high = ByteBacking(bytearray(b"high"))
    regions = (AccessorRegion(0, 10, low), AccessorRegion(10, 4, high))
    buffer = bytearray(8)
    RegionAccessor(regions).read_buffer(4, buffer)
    assert buffer == b"memory" b"hi"
    RegionAccessor(regions, whole_area_limit=True).read_buffer(4, buffer)
    assert buffer == b"memory" b"BE"


def test_at_the_end_of_the_host_s_memory_the_whole_area_limit_is_refused() -> None:
    accessor = RegionAccessor([(0, counting(16))], whole_area_limit=True)
    buffer = bytearray(8)
    accessor.read_buffer(8, buffer)
    assert buffer == bytes(range(8, 16))
    for touch in (
        lambda: accessor.read_buffer(9, bytearray(8)), lambda: accessor.write_obj(9, Le64(0)),
    ):
        with pytest.raises(LimitTooLarge) as caught:
            touch()
        assert (caught.value.limit, caught.value.left) == (16, 7)


class WholeArea(RegionAccessor):
    """Somebody's accessor that passes AddrSpace's answer on."""

    def translate_and_get_limit(self, guest_addr):  # type: ignore[no-untyped-def]
        found = super().translate_and_get_limit(guest_addr)
        return found and (found[0], 16)


def test_somebody_s_whole_area_limit_is_found_by_the_regions_it_stands_on() -> None:
    accessor = WholeArea([AccessorRegion(0x1000, 16, counting(32))])
    assert accessor.read_obj(0x1000, U8) == 0
    with pytest.raises(LimitTooLarge) as caught:
        accessor.read_obj(0x1001, U8)
    assert (caught.value.limit, caught.value.left) == (16, 15)


# -- views of the bytes ----------------------------------------------------------------------


def test_a_byte_buffer_is_the_memory_itself() -> None:
    accessor, low, high = two()
    pieces = accessor.translated_byte_buffer(0x1004, 8)
    assert pieces is not None and [bytes(p) for p in pieces] == [bytes(range(4, 12))]
    pieces[0][:2] = b"ab"
    assert low.data[3:7] == b"\x03ab\x06"
    pieces = accessor.translated_byte_buffer(0x100C, 16)
    assert pieces is not None and [len(p) for p in pieces] == [4, 12]
    pieces[1][11] = 7
    assert high.data[11] == 7
    assert accessor.translated_byte_buffer(0x1000, 0) == []


def test_a_byte_buffer_is_none_outside_and_beyond_an_area_s_size() -> None:
    accessor, _, _ = two()
    assert accessor.translated_byte_buffer(0x1000, 17) is None
    assert accessor.translated_byte_buffer(0xFFF, 1) is None
    assert accessor.translated_byte_buffer(0x1020, 0) is None
    with pytest.raises(InvalidInput):
        accessor.translated_byte_buffer(0x1018, 16)
    sparse = RegionAccessor([(0, SparseBacking(1 << 40))])
    with pytest.raises(HostAddressNotAvailable):
        sparse.translated_byte_buffer(0, 1)
    sparse.write_obj((1 << 40) - 8, Le64(5))
    assert sparse.read_obj((1 << 40) - 8, Le64) == 5


# -- over other layouts ----------------------------------------------------------------------


def test_over_vm_memory_s_regions() -> None:
    low, high = counting(16), counting(8, 0x80)
    vm = GuestRegionCollection.from_regions([GuestRegion(0x1000, low), GuestRegion(0x2000, high)])
    accessor = RegionAccessor.from_collection(vm)
    assert accessor.regions == (
        AccessorRegion(0x1000, 16, low), AccessorRegion(0x2000, 8, high),
    )
    assert accessor.read_obj(0x2004, Be32) == 0x84858687
    whole = RegionAccessor.from_collection(vm, whole_area_limit=True)
    assert whole.translate_and_get_limit(0x2004) == (PhysAddr(high, 4), 8)


def test_over_a_view_it_reaches_the_ram_and_nothing_else() -> None:
    root = MemoryRegion.container_of("system", 1 << 64)
    ram = MemoryRegion.ram("ram", 0x3000, counting(0x3000))
    root.add_subregion(0x1000, MemoryRegion.alias_of("low", ram, 0x2000, 0x1000))
    root.add_subregion(0x2000, ram)
    root.add_subregion(0x5000, MemoryRegion.rom("rom", 0x1000))
    root.add_subregion(0x6000, MemoryRegion.io("dev", 0x1000))
    root.add_subregion(0x7000, MemoryRegion.ram_device("vfio", 0x1000))
    locked = MemoryRegion.ram("locked", 0x1000)
    locked.set_readonly(True)
    root.add_subregion(0x8000, locked)
    space = AddressSpace("memory", root)
    accessor = RegionAccessor.from_view(space.view)
    assert [(r.start, r.size, r.offset) for r in accessor.regions] == [
        (0x1000, 0x1000, 0x2000), (0x2000, 0x3000, 0),
    ]
    accessor.write_buffer(0x1FFE, b"abcd")
    assert space.read(0x1FFE, 4) == (0, b"abcd") and space.read(0x4FFE, 2) == (0, b"ab")
    for at in (0xFFE, 0x5000, 0x6000, 0x7000, 0x8000):
        with pytest.raises(InvalidInput):
            accessor.read_obj(at, Le32)
    space.destroy()


def test_over_a_view_the_whole_area_limit_can_be_had_too() -> None:
    root = MemoryRegion.container_of("system", 1 << 64)
    ram = MemoryRegion.ram("ram", 0x2000)
    root.add_subregion(0, MemoryRegion.alias_of("half", ram, 0, 0x1000))
    space = AddressSpace("memory", root)
    accessor = RegionAccessor.from_view(space.view, whole_area_limit=True)
    accessor.write_buffer(0xFFE, b"abcd")
    assert ram.backing is not None and ram.backing.read(0xFFE, 4) == b"abcd"
    assert not RegionAccessor.from_view(space.view).whole_area_limit
    with pytest.raises(InvalidInput):
        RegionAccessor.from_view(space.view).write_buffer(0xFFE, b"abcd")
    space.destroy()
