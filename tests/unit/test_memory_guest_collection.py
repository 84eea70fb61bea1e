"""Collections of regions: what makes one, and that none ever changes."""

from __future__ import annotations

import pytest
from guest_regions import Bare

from qemuglue.errors import ModelError
from qemuglue.memory import ByteBacking
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import GuestAddressOverflow, InvalidGuestAddress
from qemuglue.memory.guest_memory import (
    GuestRegion,
    GuestRegionCollection,
    GuestRegionCollectionError,
    MemoryRegionOverlap,
    NoMemoryRegion,
    UnsortedMemoryRegions,
)

TOP = 1 << 64
A = GuestAddress


def bare(*ranges: tuple[int, int]) -> GuestRegionCollection[Bare]:
    return GuestRegionCollection.from_regions([Bare(start, size) for start, size in ranges])


def ranges(mem: GuestRegionCollection[Bare]) -> list[tuple[int, int]]:
    return [(each.start_addr().raw_value(), each.len()) for each in mem.iter()]


# -- what makes a collection -------------------------------------------------------------------


@pytest.mark.parametrize("make", ["from_regions", "from_arc_regions"])
@pytest.mark.parametrize(
    ("given", "error"),
    [
        ((), NoMemoryRegion),
        (((0, 100), (99, 100)), MemoryRegionOverlap),
        (((0, 100), (0, 100)), MemoryRegionOverlap),
        (((5, 1), (5, 1)), MemoryRegionOverlap),
        (((100, 100), (0, 100)), UnsortedMemoryRegions),
        (((100, 100), (50, 100)), UnsortedMemoryRegions),
        (((0, 100), (99, 1), (5, 1)), MemoryRegionOverlap),
        (((0, 100), (100, 100), (99, 1)), UnsortedMemoryRegions),
    ],
)
def test_what_makes_no_collection(
    make: str, given: tuple[tuple[int, int], ...], error: type[GuestRegionCollectionError]
) -> None:
    with pytest.raises(error) as caught:
        getattr(GuestRegionCollection, make)([Bare(*each) for each in given])
    assert isinstance(caught.value, ModelError) and str(caught.value)


@pytest.mark.parametrize("make", ["from_regions", "from_arc_regions"])
def test_regions_side_by_side_make_one(make: str) -> None:
    assert GuestRegionCollection.new().num_regions() == 0
    mem = getattr(GuestRegionCollection, make)([Bare(0, 100), Bare(100, 100)])
    assert mem.num_regions() == 2 and mem.last_addr() == A(199)
    assert ranges(mem) == [(0, 100), (100, 100)]
    for start, _ in ranges(mem):
        assert mem.find_region(A(start)).start_addr() == A(start)


def test_an_empty_collection() -> None:
    mem: GuestRegionCollection[Bare] = GuestRegionCollection()
    assert mem.last_addr() == A(0) and list(mem) == [] and mem.find_region(A(0)) is None
    assert mem.check_range(A(0), 0) and not mem.check_range(A(0), 1)
    assert mem.write(b"", A(5)) == 0
    with pytest.raises(InvalidGuestAddress):
        mem.write(b"x", A(5))


def test_one_may_end_with_the_addresses() -> None:
    mem = bare((0, 1), (TOP - 1, 1))
    assert mem.last_addr() == A(TOP - 1)
    assert mem.find_region(A(TOP - 1)) is not None and mem.find_region(A(TOP - 2)) is None


# -- insert and remove -------------------------------------------------------------------------


def test_inserting_gives_another_collection_in_order() -> None:
    original = bare((0, 0x1000), (0x10_0000, 0x1000))
    mem = original
    for start in (0x8000, 0x4000, 0xC000):
        mem = mem.insert_region(Bare(start, 0x1000))
    for start, size in ((0xC000, 0x1000), (0xBFFF, 2), (0xCFFF, 1), (0, TOP)):
        with pytest.raises(MemoryRegionOverlap):
            mem.insert_region(Bare(start, size))
    assert original.num_regions() == 2
    assert [start for start, _ in ranges(mem)] == [0, 0x4000, 0x8000, 0xC000, 0x10_0000]
    assert next(iter(mem)) is next(iter(original)), "regions are shared, not copied"
    only = GuestRegionCollection[Bare]().insert_region(Bare(7, 1))
    assert ranges(only) == [(7, 1)]


def test_removing_wants_exactly_the_base_and_the_size() -> None:
    original = bare((0, 0x1000), (0x10_0000, 0x1000))
    for base, size in ((0, 128), (0x4000, 128), (0, 0x1001), (1, 0xFFF), (0x10_0000, 0xFFF),
                       (0xF_FFFF, 0x1000), (0x10_0001, 0x1000)):
        with pytest.raises(NoMemoryRegion):
            original.remove_region(A(base), size)
    mem, region = original.remove_region(A(0x10_0000), 0x1000)
    assert original.num_regions() == 2 and ranges(mem) == [(0, 0x1000)]
    assert region.start_addr() == A(0x10_0000) and region is list(original)[1]
    empty, _ = mem.remove_region(A(0), 0x1000)
    assert empty.num_regions() == 0, "the last one may go"
    with pytest.raises(NoMemoryRegion):
        empty.remove_region(A(0), 0x1000)


def test_bytes_are_shared_by_the_old_and_the_new_collection() -> None:
    old = GuestRegionCollection.from_regions([GuestRegion(0, ByteBacking(4))])
    new = old.insert_region(GuestRegion(8, ByteBacking(4)))
    new.write(b"abcd", A(0))
    buf = bytearray(4)
    assert old.read(buf, A(0)) == 4 and buf == b"abcd"


def test_a_subclass_stays_one() -> None:
    class Mine(GuestRegionCollection[Bare]):
        __slots__ = ()

    mine = Mine.from_regions([Bare(0, 1)])
    assert type(mine.insert_region(Bare(1, 1))) is Mine
    assert type(mine.remove_region(A(0), 1)[0]) is Mine and mine.clone() is mine


# -- looking up --------------------------------------------------------------------------------


def test_iter() -> None:
    mem = bare((0, 0x400), (0x1000, 0x400))
    assert all(region.len() == 0x400 for region in mem)
    assert ranges(mem) == [(0, 0x400), (0x1000, 0x400)] and len(list(mem.iter())) == 2
    assert repr(mem).startswith("<GuestRegionCollection [")


def test_address_in_range_and_check_address() -> None:
    mem = bare((0, 0x400), (0x800, 0x400))
    for addr, there in ((0x200, True), (0x600, False), (0xA00, True), (0xC00, False),
                        (0x3FF, True), (0x400, False), (0x7FF, False), (0x800, True)):
        assert mem.address_in_range(A(addr)) is there
        assert mem.check_address(A(addr)) == (A(addr) if there else None)


def test_checked_offset() -> None:
    mem = bare((0, 0x400), (0x800, 0x400), (0xC00, 0x400))
    assert mem.checked_offset(A(0), 0x200) == A(0x200)
    assert mem.checked_offset(A(0), 0xA00) == A(0xA00), "over a hole"
    assert mem.checked_offset(A(0x800), 0x7FF) == A(0xFFF)
    assert mem.checked_offset(A(0x800), 0xC00) is None
    assert mem.checked_offset(A(0), TOP - 1) is None
    assert mem.checked_offset(A(0x800), TOP - 1) is None, "no address, nor one of the hole below"
    assert mem.checked_offset(A(0), 0x400) is None
    assert mem.checked_offset(A(0), 0x3FF) == A(0x3FF)


def test_a_region_is_believed_to_hold_its_first_address() -> None:
    """Malformed regions, as the crate takes them: what overflows is told, and nothing wraps."""
    mem = bare((TOP - 4, 8))
    assert mem.find_region(A(TOP - 4)) is not None
    with pytest.raises(GuestAddressOverflow):
        mem.write(b"12345678", A(TOP - 4))
    empty = bare((4, 0))
    with pytest.raises(ModelError, match="does not hold it"):
        empty.to_region_addr(A(4))
    assert empty.find_region(A(3)) is None
    assert bare((0, 4)).to_region_addr(A(2))[1] == MemoryRegionAddress(2)  # type: ignore[index]
