"""The first memory model: a map, a mapping, and guest memory of both."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.bytes import Bytes
from qemuglue.memory.endian import Be16, Be32, Le16, Le32, Le64
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import (
    CallbackOutOfRange,
    GuestMemoryError,
    HostAddressNotAvailable,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.memory_map import (
    GuestMemory,
    InvalidAddress,
    InvalidGuestAddressRange,
    LinearLookup,
    MapBytes,
    MemoryAccess,
    MemoryMap,
    MemoryMapError,
    MemoryMapping,
    MemoryMappingFailed,
    MemoryRegionOverlap,
    NoMemoryRegions,
    RadixLookup,
    RegionMap,
)

LAST = ADDRESS_END - 1


class Refusing:
    """A backing that is not in this process, and refuses from offset 4 on."""

    def __init__(self, size: int = 8) -> None:
        self.bytes = bytearray(range(size))
        self.log: list[tuple[str, int, int]] = []

    def __len__(self) -> int:
        return len(self.bytes)

    def read(self, offset: int, size: int) -> bytes:
        self.log.append(("read", offset, size))
        if offset + size > 4:
            raise InvalidBackendAddress
        return bytes(self.bytes[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.log.append(("write", offset, len(data)))
        if offset + len(data) > 4:
            raise InvalidBackendAddress
        self.bytes[offset : offset + len(data)] = data


def filled(size: int, first: int = 0) -> ByteBacking:
    return ByteBacking(bytearray((first + i) % 256 for i in range(size)))


def two() -> tuple[GuestMemory, ByteBacking, ByteBacking]:
    """Two regions that adjoin, a hole behind them."""
    low, high = filled(0x10), filled(0x10, 0x80)
    return GuestMemory.from_regions([(0x1000, low), (0x1010, high)]), low, high


# -- mapping ---------------------------------------------------------------------------------


def test_a_mapping_is_all_of_its_backing_or_a_part() -> None:
    backing = filled(16)
    assert MemoryMapping(backing).size() == 16
    assert MemoryMapping(backing, 4).size() == 12
    part = MemoryMapping(backing, 4, 3)
    assert (part.size(), part.offset_in_backing, part.backing) == (3, 4, backing)
    buf = bytearray(8)
    assert part.read(buf, 0) == 3 and buf == b"\4\5\6\0\0\0\0\0"
    assert part.write(b"xyz!", 1) == 2 and backing.data[4:8] == b"\4xy\7"


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 0), (0, 17), (16, None), (-1, 1), (9, 8), (3, -1)]
)
def test_a_mapping_needs_bytes_that_are_there(offset: int, size: int | None) -> None:
    with pytest.raises(MemoryMappingFailed, match="of its backing of 0x10"):
        MemoryMapping(ByteBacking(16), offset, size)


def test_writing_past_the_end_is_short() -> None:
    mapping = MemoryMapping(ByteBacking(5))
    assert mapping.write(b"\1\2\3\4\5\6", 0) == 5
    assert mapping.write(b"\7\7", 4) == 1
    assert mapping.backing.read(0, 5) == b"\1\2\3\4\7"


def test_slices_of_a_mapping() -> None:
    mapping = MemoryMapping(ByteBacking(5))
    mapping.write_slice(b"\1\2\3", 2)
    buf = bytearray(3)
    mapping.read_slice(buf, 2)
    assert buf == b"\1\2\3"
    for access in (mapping.write_slice, mapping.read_slice, mapping.write, mapping.read):
        with pytest.raises(InvalidAddress) as caught:
            access(bytearray(3), 5)
        assert (caught.value.offset, caught.value.size) == (5, 3)
    with pytest.raises(PartialBuffer) as partial:
        mapping.write_slice(b"abc", 3)
    assert (partial.value.expected, partial.value.completed) == (3, 2)
    assert mapping.backing.read(0, 5) == b"\0\0\1ab"
    with pytest.raises(PartialBuffer) as partial:
        mapping.read_slice(buf, 3)
    assert (partial.value.expected, partial.value.completed) == (3, 2)


def test_an_empty_buffer_is_done_anywhere_as_bytes_says() -> None:
    mapping = MemoryMapping(ByteBacking(5))
    assert mapping.write(b"", 5) == mapping.write(b"", LAST) == mapping.read(bytearray(), 99) == 0
    mapping.write_slice(b"", 77)


def test_an_object_is_moved_whole_or_not_at_all() -> None:
    backing = filled(5)
    mapping = MemoryMapping(backing)
    for offset in (4, 5, LAST):
        with pytest.raises(InvalidAddress) as caught:
            mapping.write_obj(Le16(55), offset)
        assert (caught.value.offset, caught.value.size) == (offset, 2)
        with pytest.raises(InvalidAddress):
            mapping.read_obj(offset, Le16)
    assert backing.data == bytes(range(5)), "nothing of it was written"
    mapping.write_obj(Le16(55), 3)
    mapping.write_obj(Be16(55), 1)
    assert (mapping.read_obj(3, Le16), mapping.read_obj(1, Be16)) == (55, 55)
    assert backing.data == b"\0\0\x37\x37\0"


def test_an_object_is_one_write_and_one_read_of_the_backing() -> None:
    backing = Refusing()
    mapping = MemoryMapping(backing)
    mapping.write_obj(Le32(1), 0)
    assert mapping.read_obj(0, Le32) == 1
    assert backing.log == [("write", 0, 4), ("read", 0, 4)]


def test_one_access_is_aligned_and_in_the_mapping() -> None:
    mapping = MemoryMapping(filled(16), 4)
    mapping.store(Le32(0x01020304), 4)
    assert mapping.load(4, Be32) == 0x04030201
    for offset in (2, 12, 10, LAST - 3):
        with pytest.raises(InvalidBackendAddress):
            mapping.store(Le32(1), offset)
        with pytest.raises(InvalidBackendAddress):
            mapping.load(offset, Le32)


@pytest.mark.parametrize("offset", [-1, ADDRESS_END, "0", Le32(0), None, 1.0])
def test_an_offset_is_a_plain_number(offset: int) -> None:
    mapping = MemoryMapping(ByteBacking(8))
    calls: list[Callable[[], object]] = [
        lambda: mapping.write(b"x", offset), lambda: mapping.read(bytearray(1), offset),
        lambda: mapping.write_obj(Le16(1), offset), lambda: mapping.read_obj(offset, Le16),
        lambda: mapping.store(Le16(1), offset), lambda: mapping.load(offset, Le16),
        lambda: mapping.read_to_memory(offset, b"", 0),
    ]
    for call in calls:
        with pytest.raises(ModelError) as caught:
            call()
        assert not isinstance(caught.value, GuestMemoryError)


def test_a_pointer_needs_bytes_in_this_process() -> None:
    backing = filled(8)
    mapping = MemoryMapping(backing, 2, 4)
    view = mapping.get_host_address(1)
    assert bytes(view) == b"\3\4\5"
    view[0] = 0xFF
    assert backing.data[3] == 0xFF
    with pytest.raises(InvalidAddress):
        mapping.get_host_address(4)
    with pytest.raises(HostAddressNotAvailable):
        MemoryMapping(Refusing()).get_host_address()


def test_a_backing_that_gives_nothing_is_an_error_not_a_count() -> None:
    class Shrunk(Refusing):
        def read(self, offset: int, size: int) -> bytes:
            return b""

    mapping = MemoryMapping(Shrunk())
    with pytest.raises(InvalidAddress):
        mapping.read(bytearray(2), 0)
    with pytest.raises(PartialBuffer) as caught:
        mapping.read_obj(0, Le16)
    assert (caught.value.expected, caught.value.completed) == (2, 0)


# -- map -------------------------------------------------------------------------------------


def test_a_map_needs_regions_sorted_and_apart() -> None:
    with pytest.raises(NoMemoryRegions, match="no memory regions"):
        RegionMap([])
    for second in (0x1FFF, 0x1000, 0x800):
        with pytest.raises(MemoryRegionOverlap, match=f"at {second:#x} begins") as caught:
            RegionMap([(0x1000, ByteBacking(0x1000)), (second, ByteBacking(0x1000))])
        assert caught.value.addr == GuestAddress(second)
    assert RegionMap([(0x1000, ByteBacking(0x1000)), (0x2000, ByteBacking(1))]).num_regions() == 2


def test_a_region_ends_with_the_address_space_at_most() -> None:
    regions = RegionMap([(LAST - 3, ByteBacking(4))])
    assert regions.last_addr() == GuestAddress(LAST)
    assert regions.do_in_region(LAST, 1, lambda mapping, offset: offset) == 3
    with pytest.raises(ModelError, match="beyond 2\\^64-1"):
        regions.end_addr()
    with pytest.raises(MemoryMappingFailed, match="go beyond 2\\^64-1"):
        RegionMap([(LAST - 3, ByteBacking(5))])
    with pytest.raises(MemoryRegionOverlap):
        RegionMap([(LAST - 3, ByteBacking(4)), (0, ByteBacking(4))])


def test_what_a_map_holds() -> None:
    regions = RegionMap([(0, ByteBacking(0x400)), (GuestAddress(0x800), ByteBacking(0x400))])
    assert regions.num_regions() == 2
    assert [regions.address_in_range(at) for at in (0x200, 0x600, 0xA00, 0xC00)] == [
        True, False, True, False
    ]
    assert (regions.last_addr(), regions.end_addr()) == (GuestAddress(0xBFF), GuestAddress(0xC00))
    assert regions.checked_offset(0, 0x900) == GuestAddress(0x900)
    assert regions.checked_offset(0, 0x700) is None
    assert regions.checked_offset(0x600, 0x200) == GuestAddress(0x800)
    assert regions.checked_offset(0x800, LAST) is None
    found = regions.find_region(0x8FF)
    assert found is not None and found.guest_base == GuestAddress(0x800)
    assert regions.find_region(0x7FF) is None


def test_all_regions_one_by_one() -> None:
    regions = RegionMap([(0, ByteBacking(1024)), (0x400, ByteBacking(2048))])
    seen: list[tuple[int, GuestAddress, int, MemoryMapping]] = []
    regions.with_regions(lambda *each: seen.append(each))
    mappings = [region.mapping for region in regions]
    assert seen == [
        (0, GuestAddress(0), 1024, mappings[0]), (1, GuestAddress(0x400), 2048, mappings[1])
    ]
    kib = regions.map_and_fold(1, lambda pair: pair[1].size() // 1024, lambda a, b: a * 10 + b)
    assert kib == 112, "by address, from the given value on"
    with pytest.raises(KeyError):
        regions.with_regions(lambda *each: {}[each[0]])


def test_do_in_region_wants_all_of_it_in_one_region() -> None:
    regions = RegionMap([(0x1000, ByteBacking(0x10)), (0x1010, ByteBacking(0x10))])
    first, second = (region.mapping for region in regions)
    assert regions.do_in_region(0x1000, 0x10, lambda *place: place) == (first, 0)
    assert regions.do_in_region(GuestAddress(0x101F), 1, lambda *place: place) == (second, 15)
    assert regions.do_in_region(0x1008, 0, lambda *place: place) == (first, 8)
    called: list[int] = []
    places = ((0x1000, 0x11), (0x100F, 2), (0xFFF, 2), (0xFFF, 0), (0x1020, 1), (0x101F, 2))
    for addr, size in places:
        with pytest.raises(InvalidGuestAddressRange) as caught:
            regions.do_in_region(addr, size, lambda mapping, offset: called.append(offset))
        assert (caught.value.addr, caught.value.size) == (GuestAddress(addr), size)
    assert not called
    with pytest.raises(ModelError, match="0 or more"):
        regions.do_in_region(0x1000, -1, lambda *place: place)


def test_do_in_region_partial_ends_with_its_region() -> None:
    regions = RegionMap([(0x1000, ByteBacking(0x10)), (0x1010, ByteBacking(0x10))])
    first = next(iter(regions)).mapping
    places: list[tuple[MemoryMapping, int]] = []

    def two_bytes(mapping: MemoryMapping, offset: int) -> int:
        places.append((mapping, offset))
        return 2

    assert regions.do_in_region_partial(0x100E, two_bytes) == 2
    assert places == [(first, 14)]
    for moved in (-1, 3):
        with pytest.raises(CallbackOutOfRange):
            regions.do_in_region_partial(0x100E, lambda mapping, offset, n=moved: n)
    with pytest.raises(InvalidGuestAddress) as caught:
        regions.do_in_region_partial(0x1020, two_bytes)
    assert caught.value.addr == GuestAddress(0x1020)
    assert len(places) == 1


def test_what_the_callback_raises_passes_through() -> None:
    regions = RegionMap([(0, ByteBacking(4))])
    with pytest.raises(ZeroDivisionError):
        regions.do_in_region(0, 1, lambda mapping, offset: 1 // offset)
    with pytest.raises(ZeroDivisionError):
        regions.do_in_region_partial(0, lambda mapping, offset: 1 // offset)


@pytest.mark.parametrize("addr", [-1, ADDRESS_END, "0", Le64(0), None])
def test_an_address_is_a_guest_address_or_a_number(addr: int) -> None:
    memory, _, _ = two()
    for call in (
        lambda: memory.write(b"x", addr), lambda: memory.read_obj(addr, Le16),
        lambda: memory.map.do_in_region(addr, 1, lambda *place: place),
        lambda: RegionMap([(addr, ByteBacking(4))]),
    ):
        with pytest.raises(ModelError) as caught:
            call()
        assert not isinstance(caught.value, GuestMemoryError)


# -- guest memory ----------------------------------------------------------------------------


def test_one_contract_for_offsets_and_addresses() -> None:
    """The same code runs on a mapping and on guest memory."""

    def greet(memory: MapBytes[int], at: int) -> bytes:
        memory.write_slice(b"hello", at)
        memory.write_obj(Le32(0x21), at + 5)
        sink = BytesIO()
        memory.write_from_memory(at, sink, 6)
        assert memory.read_obj(at + 5, Le32) == 0x21
        return sink.getvalue()

    backing = ByteBacking(0x40)
    assert greet(MemoryMapping(backing), 0x10) == b"hello!"
    assert greet(GuestMemory.from_regions([(0x5000, backing)]), 0x5010) == b"hello!"
    assert isinstance(MemoryMapping(backing), Bytes)


def test_a_typed_value_says_its_byte_order() -> None:
    memory, low, _ = two()
    memory.write_obj(Le32(0x11223344), GuestAddress(0x1004))
    assert low.data[4:8] == b"\x44\x33\x22\x11"
    assert memory.read_obj(GuestAddress(0x1004), Be32) == 0x44332211
    assert type(memory.read_obj(0x1004, Le32)) is Le32


def test_writes_and_reads_end_with_the_region() -> None:
    memory, low, high = two()
    assert memory.write(b"abcd", 0x100E) == 2
    assert (low.data[14:], high.data[:2]) == (b"ab", b"\x80\x81"), "the next region is untouched"
    buf = bytearray(b"....")
    assert memory.read(buf, 0x100E) == 2 and buf == b"ab.."
    with pytest.raises(PartialBuffer) as caught:
        memory.write_slice(b"ABCD", 0x100F)
    assert (caught.value.expected, caught.value.completed) == (4, 1)
    assert (low.data[15:], high.data[:2]) == (b"A", b"\x80\x81")
    for access in (memory.write, memory.read, memory.write_slice, memory.read_slice):
        with pytest.raises(InvalidGuestAddress) as invalid:
            access(bytearray(1), 0x1020)
        assert invalid.value.addr == GuestAddress(0x1020)
    assert memory.write(b"", 0x1020) == memory.read(bytearray(), 0) == 0


def test_an_object_in_two_regions_is_refused_whole() -> None:
    memory, low, high = two()
    before = bytes(low.data), bytes(high.data)
    for addr in (0x100D, 0x101D, 0x2000):
        for call in (
            lambda at: memory.write_obj(Le32(1), at), lambda at: memory.read_obj(at, Le32),
            lambda at: memory.store(Le32(1), at), lambda at: memory.load(at, Le32),
            lambda at: memory.write_obj_at_addr(Le32(1), at),
            lambda at: memory.read_obj_from_addr(at, Le32),
        ):
            with pytest.raises(InvalidGuestAddressRange) as caught:
                call(addr)
            assert (caught.value.addr, caught.value.size) == (GuestAddress(addr), 4)
    assert (low.data, high.data) == before


def test_old_spellings_do_what_they_did() -> None:
    memory, low, _ = two()
    assert memory.write_slice_at_addr(b"\1\2\3\4\5", 0x1000) == 5
    buf = bytearray(5)
    assert memory.read_slice_at_addr(buf, 0x1000) == 5 and buf == b"\1\2\3\4\5"
    assert memory.write_slice_at_addr(b"\7\2\3", 0x100F) == 1, "a count, where write_slice raises"
    assert memory.read_slice_at_addr(buf, 0x100F) == 1 and buf[0] == 7
    assert low.data[15] == 7
    memory.write_obj_at_addr(Le64(0xAA55), 0x1008)
    assert memory.read_obj_from_addr(GuestAddress(0x1008), Le64) == 0xAA55
    for call in (memory.write_slice_at_addr, memory.read_slice_at_addr):
        with pytest.raises(InvalidGuestAddress):
            call(bytearray(), 0x1020)
        assert call(bytearray(), 0x101F) == 0


def test_a_misaligned_single_access_tells_where() -> None:
    memory, _, _ = two()
    memory.store(Le32(7), 0x1004)
    assert memory.load(0x1004, Le32) == 7
    with pytest.raises(MemoryAccess) as caught:
        memory.load(0x1002, Le32)
    assert caught.value.addr == GuestAddress(0x1002)
    assert isinstance(caught.value.error, InvalidBackendAddress)
    assert caught.value.__cause__ is caught.value.error
    assert str(caught.value) == "access at 0x1002: invalid backend address"


def test_a_backing_that_refuses_is_told_with_the_address() -> None:
    memory = GuestMemory.from_regions([(0x1000, Refusing())])
    memory.write_slice(b"abcd", 0x1000)
    for call in (
        lambda: memory.write(b"x", 0x1004), lambda: memory.read(bytearray(1), 0x1004),
        lambda: memory.write_obj(Le16(1), 0x1004), lambda: memory.read_obj(0x1004, Le16),
        lambda: memory.store(Le16(1), 0x1004), lambda: memory.load(0x1004, Le16),
    ):
        with pytest.raises(MemoryAccess) as caught:
            call()
        assert (caught.value.addr, caught.value.completed) == (GuestAddress(0x1004), 0)
        assert isinstance(caught.value.error, InvalidBackendAddress)
    with pytest.raises(MemoryAccess) as caught:
        memory.get_host_address(0x1000)
    assert isinstance(caught.value.error, HostAddressNotAvailable)


def test_a_pointer_leads_where_the_map_does() -> None:
    memory, low, high = two()
    memory.get_host_address(0x100F)[0] = 0xEE
    memory.get_host_address(GuestAddress(0x1010))[0] = 0xDD
    assert (low.data[15], high.data[0]) == (0xEE, 0xDD)
    assert len(memory.get_host_address(0x1018)) == 8
    with pytest.raises(InvalidGuestAddressRange) as caught:
        memory.get_host_address(0x12_3456)
    assert (caught.value.addr, caught.value.size) == (GuestAddress(0x12_3456), 1)


def test_another_map_is_all_that_guest_memory_needs() -> None:
    """A map of one's own: every address twice, as a bus without its top line has it."""

    class Mirrored(RegionMap):
        def do_in_region(self, guest_addr, size, cb):  # type: ignore[no-untyped-def]
            return super().do_in_region(guest_addr & 0xFFF, size, cb)

        def do_in_region_partial(self, guest_addr, cb):  # type: ignore[no-untyped-def]
            return super().do_in_region_partial(guest_addr & 0xFFF, cb)

    memory = GuestMemory(Mirrored([(0, ByteBacking(0x100))], LinearLookup))
    memory.write_obj(Le32(77), 0x1010)
    assert memory.read_obj(0x10, Le32) == memory.read_obj(0x5010, Le32) == 77


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (MapBytes, "read_to_memory"), (MapBytes, "write_from_memory"), (MapBytes, "room_at"),
        (MemoryMap, "do_in_region"), (MemoryMap, "do_in_region_partial"),
    ],
)
def test_what_an_implementation_must_have(cls: type, name: str) -> None:
    assert name in cls.__abstractmethods__  # type: ignore[attr-defined]


def test_names_for_people() -> None:
    memory, _, _ = two()
    assert repr(memory) == "<GuestMemory over <RegionMap of 2 regions>>"
    assert repr(MemoryMapping(ByteBacking(16))) == "<MemoryMapping of 0x10 bytes>"
    assert str(InvalidGuestAddressRange(GuestAddress(0x10), 4)) == (
        "no region holds all 4 bytes from 0x10 on"
    )
    assert str(InvalidAddress(0x10, 4)) == "4 bytes at offset 0x10 are not in the mapping"
    assert issubclass(MemoryMapError, GuestMemoryError)


def test_the_lookup_is_chosen_by_whoever_makes_the_map() -> None:
    asked: list[int] = []

    class Telling(RadixLookup):
        def find(self, addr: int) -> int | None:
            asked.append(addr)
            return super().find(addr)

    memory = GuestMemory.from_regions([(0x1000, ByteBacking(4))], Telling)
    memory.write_slice(b"abcd", 0x1000)
    with pytest.raises(InvalidGuestAddress):
        memory.write(b"x", 0x999)
    assert asked == [0x1000, 0x999]
