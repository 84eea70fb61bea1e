"""The first memory model and vm-memory 0.18 side by side: the same regions, the same request, and
what each makes of it. These are the differences that ``memory_map`` lists, and the agreements
that one might doubt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.bytes import Bytes
from qemuglue.memory.endian import Le32
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import (
    GuestMemoryError,
    HostAddressNotAvailable,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import (
    GuestRegion,
    GuestRegionCollection,
    UnsortedMemoryRegions,
)
from qemuglue.memory.guest_memory import MemoryRegionOverlap as OverlapOf018
from qemuglue.memory.memory_map import (
    GuestMemory,
    InvalidGuestAddressRange,
    MemoryAccess,
    MemoryRegionOverlap,
    ReadFromSource,
    RegionMap,
)

#: Two regions that adjoin, a hole behind them, and one up to the last address.
STARTS = (0x1000, 0x1008, ADDRESS_END - 8)


@dataclass
class Side:
    """One of the two, with the bytes of its regions."""

    memory: Bytes[GuestAddress]
    backings: list[ByteBacking]

    def data(self) -> bytes:
        return b"".join(bytes(backing.data) for backing in self.backings)


def both() -> tuple[Side, Side]:
    """(first model, vm-memory 0.18) over regions of their own with the same bytes."""
    mine, theirs = (
        [ByteBacking(bytearray(range(16 * i, 16 * i + 8))) for i in range(3)] for _ in range(2)
    )
    first = GuestMemory.from_regions(list(zip(STARTS, mine, strict=True)))
    regions = [GuestRegion(start, each) for start, each in zip(STARTS, theirs, strict=True)]
    return Side(first, mine), Side(GuestRegionCollection.from_regions(regions), theirs)


def raised(kind: type[GuestMemoryError], call: Callable[[], object]) -> GuestMemoryError:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return caught.value


def at(addr: int) -> GuestAddress:
    return GuestAddress(addr)


def test_across_two_regions_a_write_is_short_here_and_whole_there() -> None:
    first, new = both()
    assert first.memory.write(b"abcd", at(0x1006)) == 2
    assert new.memory.write(b"abcd", at(0x1006)) == 4
    assert first.data()[6:10] == b"ab\x10\x11" and new.data()[6:10] == b"abcd"


def test_across_two_regions_a_read_is_short_here_and_whole_there() -> None:
    first, new = both()
    buf = bytearray(4)
    assert first.memory.read(buf, at(0x1006)) == 2 and buf == b"\6\7\0\0"
    assert new.memory.read(buf, at(0x1006)) == 4 and buf == b"\6\7\x10\x11"


def test_across_two_regions_a_slice_is_partial_here_and_done_there() -> None:
    first, new = both()
    for side, call in ((first, first.memory.write_slice), (first, first.memory.read_slice)):
        error = raised(PartialBuffer, lambda call=call: call(bytearray(b"abcd"), at(0x1006)))
        assert isinstance(error, PartialBuffer) and (error.expected, error.completed) == (4, 2)
        assert side.data()[8:10] == b"\x10\x11"
    new.memory.write_slice(b"abcd", at(0x1006))
    assert new.data()[6:10] == b"abcd"


def test_across_two_regions_an_object_is_refused_here_and_done_there() -> None:
    first, new = both()
    before = first.data()
    raised(InvalidGuestAddressRange, lambda: first.memory.write_obj(Le32(1), at(0x1006)))
    raised(InvalidGuestAddressRange, lambda: first.memory.read_obj(at(0x1006), Le32))
    assert first.data() == before
    new.memory.write_obj(Le32(0x04030201), at(0x1006))
    assert new.memory.read_obj(at(0x1006), Le32) == 0x04030201
    assert new.data()[6:10] == b"\1\2\3\4"


def test_into_a_hole_an_object_moves_nothing_here_and_a_part_there() -> None:
    first, new = both()
    before = first.data()
    error = raised(InvalidGuestAddressRange, lambda: first.memory.write_obj(Le32(1), at(0x100E)))
    assert isinstance(error, InvalidGuestAddressRange)
    assert (error.addr, error.size) == (at(0x100E), 4)
    assert first.data() == before
    told = raised(PartialBuffer, lambda: new.memory.write_obj(Le32(0x0201), at(0x100E)))
    assert isinstance(told, PartialBuffer) and (told.expected, told.completed) == (4, 2)
    assert new.data()[14:16] == b"\1\2", "vm-memory leaves the part that it wrote"


def test_where_nothing_is_an_object_has_another_error() -> None:
    first, new = both()
    raised(InvalidGuestAddressRange, lambda: first.memory.read_obj(at(0x5000), Le32))
    raised(InvalidGuestAddress, lambda: new.memory.read_obj(at(0x5000), Le32))
    for side in (first, new):
        raised(InvalidGuestAddress, lambda side=side: side.memory.write(b"x", at(0x5000)))


def test_one_access_across_two_regions_is_refused_by_both_in_their_words() -> None:
    first, new = both()
    raised(InvalidGuestAddressRange, lambda: first.memory.load(at(0x1006), Le32))
    raised(InvalidBackendAddress, lambda: new.memory.load(at(0x1006), Le32))
    raised(InvalidGuestAddressRange, lambda: first.memory.load(at(0x5000), Le32))
    raised(InvalidGuestAddress, lambda: new.memory.load(at(0x5000), Le32))


def test_one_access_that_is_misaligned_tells_the_address_here() -> None:
    first, new = both()
    error = raised(MemoryAccess, lambda: first.memory.store(Le32(1), at(0x1002)))
    assert isinstance(error, MemoryAccess) and error.addr == at(0x1002)
    assert isinstance(error.error, InvalidBackendAddress)
    raised(InvalidBackendAddress, lambda: new.memory.store(Le32(1), at(0x1002)))


def test_an_exact_stream_across_two_regions() -> None:
    first, new = both()
    assert isinstance(first.memory, GuestMemory)
    source = BytesIO(b"abcd")
    raised(
        InvalidGuestAddressRange, lambda: first.memory.read_to_memory(at(0x1006), source, 4)
    )
    assert source.tell() == 0, "nothing was taken"
    new.memory.read_exact_volatile_from(at(0x1006), source, 4)
    assert new.data()[6:10] == b"abcd"
    sink = BytesIO()
    raised(
        InvalidGuestAddressRange, lambda: first.memory.write_from_memory(at(0x1006), sink, 4)
    )
    assert sink.getvalue() == b""
    new.memory.write_all_volatile_to(at(0x1006), sink, 4)
    assert sink.getvalue() == b"abcd"


def test_an_exact_stream_into_a_hole() -> None:
    first, new = both()
    assert isinstance(first.memory, GuestMemory)
    source = BytesIO(b"abcd")
    raised(
        InvalidGuestAddressRange, lambda: first.memory.read_to_memory(at(0x100E), source, 4)
    )
    assert source.tell() == 0
    error = raised(
        PartialBuffer, lambda: new.memory.read_exact_volatile_from(at(0x100E), source, 4)
    )
    assert isinstance(error, PartialBuffer) and error.completed == 2
    assert source.tell() == 2 and new.data()[14:16] == b"ab"


def test_an_exact_stream_that_ends_early() -> None:
    first, new = both()
    assert isinstance(first.memory, GuestMemory)
    mine = raised(
        MemoryAccess, lambda: first.memory.read_to_memory(at(0x1000), BytesIO(b"ab"), 4)
    )
    assert isinstance(mine, MemoryAccess) and isinstance(mine.error, ReadFromSource)
    assert mine.completed == 2
    theirs = raised(
        PartialBuffer,
        lambda: new.memory.read_exact_volatile_from(at(0x1000), BytesIO(b"ab"), 4),
    )
    assert isinstance(theirs, PartialBuffer) and theirs.completed == 2
    assert first.data()[:4] == new.data()[:4] == b"ab\2\3", "both keep what came"


def test_a_stream_of_nothing_where_nothing_is() -> None:
    first, new = both()
    assert isinstance(first.memory, GuestMemory)
    raised(
        InvalidGuestAddressRange, lambda: first.memory.read_to_memory(at(0x5000), BytesIO(), 0)
    )
    new.memory.read_exact_volatile_from(at(0x5000), BytesIO(), 0)
    raised(InvalidGuestAddress, lambda: first.memory.write_slice_at_addr(b"", at(0x5000)))
    for side in (first, new):
        assert side.memory.write(b"", at(0x5000)) == 0
        side.memory.write_slice(b"", at(0x5000))


def test_regions_that_are_not_sorted() -> None:
    regions = [(0x2000, ByteBacking(8)), (0x1000, ByteBacking(8))]
    error = raised(MemoryRegionOverlap, lambda: RegionMap(regions))
    assert isinstance(error, MemoryRegionOverlap) and error.addr == at(0x1000)
    with pytest.raises(UnsortedMemoryRegions):
        GuestRegionCollection.from_regions([GuestRegion(*each) for each in regions])
    regions[1] = (0x2007, ByteBacking(8))
    raised(MemoryRegionOverlap, lambda: RegionMap(regions))
    with pytest.raises(OverlapOf018):
        GuestRegionCollection.from_regions([GuestRegion(*each) for each in regions])


def test_what_a_backing_refuses_is_told_with_the_address_here() -> None:
    class Closed:
        def __len__(self) -> int:
            return 8

        def read(self, offset: int, size: int) -> bytes:
            raise InvalidBackendAddress

        def write(self, offset: int, data: bytes) -> None:
            raise InvalidBackendAddress

    first = GuestMemory.from_regions([(0x1000, Closed())])
    new = GuestRegionCollection.from_regions([GuestRegion(0x1000, Closed())])
    error = raised(MemoryAccess, lambda: first.write(b"x", at(0x1004)))
    assert isinstance(error, MemoryAccess) and error.addr == at(0x1004)
    assert isinstance(error.error, InvalidBackendAddress)
    raised(InvalidBackendAddress, lambda: new.write(b"x", at(0x1004)))
    error = raised(MemoryAccess, lambda: first.get_host_address(at(0x1004)))
    assert isinstance(error, MemoryAccess) and isinstance(error.error, HostAddressNotAvailable)
    raised(HostAddressNotAvailable, lambda: new.get_host_address(at(0x1004)))


# -- agreements --------------------------------------------------------------------------------


@pytest.mark.parametrize("addr", [0x1000, 0x1007, 0x1008, 0x100F, STARTS[2], ADDRESS_END - 1])
def test_within_one_region_both_do_the_same(addr: int) -> None:
    first, new = both()
    for side in (first, new):
        assert side.memory.write(b"z", at(addr)) == 1
    assert first.data() == new.data()
    got = []
    for side in (first, new):
        buf = bytearray(3)
        got.append(bytes(buf[: side.memory.read(buf, at(addr & ~3))]))
    assert got[0] == got[1]


def test_the_last_address_is_reached_and_passed_by_both_alike() -> None:
    first, new = both()
    for side in (first, new):
        assert side.memory.write(b"abcd", at(ADDRESS_END - 2)) == 2
        error = raised(
            PartialBuffer, lambda side=side: side.memory.write_slice(b"abc", at(ADDRESS_END - 2))
        )
        assert isinstance(error, PartialBuffer) and error.completed == 2
    assert first.data() == new.data()


def test_at_the_last_address_vm_memory_goes_on_at_zero() -> None:
    """With a region at 0, a range that passes 2^64 goes on there in 0.18, as QEMU's does."""
    def regions() -> list[tuple[int, ByteBacking]]:
        return [(0, ByteBacking(8)), (ADDRESS_END - 8, ByteBacking(8))]

    mine, theirs = regions(), regions()
    first = GuestMemory.from_regions(mine)
    new = GuestRegionCollection.from_regions([GuestRegion(*each) for each in theirs])
    assert first.write(b"abcd", at(ADDRESS_END - 2)) == 2
    assert new.write(b"abcd", at(ADDRESS_END - 2)) == 4
    assert mine[0][1].data[:2] == b"\0\0" and theirs[0][1].data[:2] == b"cd"


def test_a_plain_number_is_an_address_here() -> None:
    first, _ = both()
    assert isinstance(first.memory, GuestMemory)
    assert first.memory.write(b"x", 0x1000) == 1
    with pytest.raises(ModelError):
        first.memory.write(b"x", -1)
