"""Guest memory of regions: ranges, slices, and the callback that came before them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from guest_regions import Bare, Remote

from qemuglue.errors import ModelError
from qemuglue.memory import ByteBacking, Le32
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    CallbackOutOfRange,
    GuestAddressOverflow,
    HostAddressNotAvailable,
    InvalidBackendAddress,
    InvalidGuestAddress,
)
from qemuglue.memory.guest_memory import (
    GuestMemory,
    GuestMemoryBackend,
    GuestRegion,
    GuestRegionCollection,
    Permissions,
)
from qemuglue.memory.volatile import VolatileSlice

TOP = 1 << 64
A = GuestAddress
Mem = GuestRegionCollection[GuestRegion]


def memory(*ranges: tuple[int, int]) -> Mem:
    return GuestRegionCollection.from_regions(
        [GuestRegion(start, ByteBacking(size)) for start, size in ranges]
    )


class Plain(GuestMemoryBackend[GuestRegion]):
    """The least a backend can be: its regions, in any order."""

    def __init__(self, *regions: GuestRegion) -> None:
        self.regions = regions

    def iter(self) -> Iterator[GuestRegion]:
        return iter(self.regions)


def test_a_backend_is_its_regions() -> None:
    mem = Plain(GuestRegion(0x800, ByteBacking(0x400)), GuestRegion(0, ByteBacking(0x400)))
    assert isinstance(mem, GuestMemory) and mem.physical_memory() is mem and mem.memory() is mem
    assert mem.num_regions() == 2 and mem.last_addr() == A(0xBFF)
    assert mem.find_region(A(0x3FF)) is mem.regions[1] and mem.find_region(A(0x400)) is None
    assert mem.find_region(A(0x800)) is mem.regions[0] and mem.find_region(A(0xC00)) is None
    assert mem.write(b"abcd", A(0x802)) == 4 and mem.regions[0].backing.read(2, 4) == b"abcd"
    assert Plain().last_addr() == A(0) and Plain().num_regions() == 0
    with mem as same:
        assert same is mem
    with pytest.raises(TypeError, match=r"abstract method '?iter"):
        type("Incomplete", (GuestMemoryBackend,), {})()


def test_to_region_addr() -> None:
    mem = memory((0, 0x400), (0x800, 0x400))
    assert mem.to_region_addr(A(0x600)) is None
    first, second = mem.to_region_addr(A(0x800)), mem.to_region_addr(A(0xA00))
    assert first is not None and second is not None and first[0] is second[0]
    assert (first[1], second[1]) == (MemoryRegionAddress(0), MemoryRegionAddress(0x200))


def test_get_host_address() -> None:
    mem = memory((0, 0x400), (0x800, 0x400))
    with pytest.raises(InvalidGuestAddress) as caught:
        mem.get_host_address(A(0x600))
    assert caught.value.addr == A(0x600)
    one, other = mem.get_host_address(A(0x800)), mem.get_host_address(A(0xA00))
    one[0x200] = 7
    assert other[0] == 7 and len(one) == 0x400 and len(other) == 0x200
    far = Plain(GuestRegion(0, Remote(4)))
    with pytest.raises(HostAddressNotAvailable):
        far.get_host_address(A(0))


def test_check_range() -> None:
    mem = memory((0, 0x400), (0x800, 0x400), (0xC00, 0x400))
    for length in (0, 0x200, 0x400):
        assert mem.check_range(A(0), length)
    assert not mem.check_range(A(0), 0x401) and not mem.check_range(A(0), 0xA00)
    assert mem.check_range(A(0x800), 0x7FF) and mem.check_range(A(0x800), 0x800)
    assert not mem.check_range(A(0x800), 0x801) and not mem.check_range(A(0x800), 0xC00)
    assert not mem.check_range(A(0), TOP - 1) and mem.check_range(A(0x500), 0)
    for access in Permissions:
        assert mem.check_range(A(0), 0x400, access) and not mem.check_range(A(0x3FF), 2, access)


def test_a_range_goes_on_at_0_behind_the_last_address() -> None:
    mem = memory((0, 4), (TOP - 4, 4))
    assert mem.check_range(A(TOP - 4), 4) and mem.check_range(A(TOP - 4), 8)
    assert not mem.check_range(A(TOP - 4), 9)
    assert mem.write(b"abcdefgh", A(TOP - 4)) == 8
    buf = bytearray(4)
    assert mem.read(buf, A(0)) == 4 and buf == b"efgh"
    alone = memory((TOP - 4, 4))
    assert alone.check_range(A(TOP - 4), 4) and not alone.check_range(A(TOP - 4), 5)
    assert alone.write(b"abcdefgh", A(TOP - 4)) == 4


def test_get_slice_is_of_one_region() -> None:
    mem = memory((0, 0x400), (0x400, 0x400), (0x800, 0x400))
    assert mem.get_slice(A(0x100), 0x200).len() == 0x200
    assert mem.get_slice(A(0x800), 0x400).len() == 0x400
    assert mem.get_slice(A(0x900), 0).is_empty()
    with pytest.raises(InvalidBackendAddress):
        mem.get_slice(A(0), 0x401)
    for addr, count in ((0xC00, 0x100), (0xC00, 0)):
        with pytest.raises(InvalidGuestAddress) as caught:
            mem.get_slice(A(addr), count)
        assert caught.value.addr == A(addr)


# -- get_slices --------------------------------------------------------------------------------


def taken(pieces: Iterator[VolatileSlice]) -> list[int | type[Exception] | GuestAddress]:
    """Lengths up to the end, the error that came instead with its data; and that it has ended."""
    found: list[int | type[Exception] | GuestAddress] = []
    try:
        for piece in pieces:
            found.append(piece.len())
    except InvalidGuestAddress as error:
        found.append(error.addr)
    except ModelError as error:
        found.append(type(error))
    assert list(pieces) == [], "nothing is behind the end, or an error"
    return found


def test_get_slices() -> None:
    mem = memory((0, 0x400), (0x800, 0x400), (0xC00, 0x400))
    assert taken(mem.get_slices(A(0x100), 0x200)) == [0x200]
    assert taken(mem.get_slices(A(0x800), 0x400)) == [0x400]
    assert taken(mem.get_slices(A(0x900), 0)) == taken(mem.get_slices(A(0x500), 0)) == []
    assert taken(mem.get_slices(A(0), 0x500)) == [0x400, A(0x400)]
    assert taken(mem.get_slices(A(0x600), 0x100)) == [A(0x600)]
    assert taken(mem.get_slices(A(0x1000), 0x100)) == [A(0x1000)]
    assert taken(mem.get_slices(A(0xA00), 0x400)) == [0x200, 0x200]
    assert taken(mem.get_slices(A(0xA00), 0x400, Permissions.No)) == [0x200, 0x200]
    for wrong in (-1, 1.5, None):
        with pytest.raises(ModelError, match="a count of bytes"):
            mem.get_slices(A(0), wrong)  # type: ignore[arg-type]


def test_slices_at_the_end_of_the_addresses() -> None:
    mem = memory((0, 4), (TOP - 4, 4))
    assert taken(mem.get_slices(A(TOP - 2), 2)) == [2]
    assert taken(mem.get_slices(A(TOP - 2), 4)) == [2, 2]
    assert taken(mem.get_slices(A(TOP - 2), 7)) == [2, 4, A(4)]
    malformed = GuestRegionCollection.from_regions([Bare(TOP - 4, 6)])
    assert taken(malformed.get_slices(A(TOP - 4), 5)) == [GuestAddressOverflow]
    assert taken(malformed.get_slices(A(TOP - 4), 4)) == [HostAddressNotAvailable]


def test_a_region_must_give_what_it_is_asked_for() -> None:
    class Short(GuestRegion):
        __slots__ = ()

        def get_slice(self, offset: MemoryRegionAddress, count: int) -> VolatileSlice:
            return super().get_slice(offset, count - 1)

    with pytest.raises(ModelError, match="gave 3 bytes where 4"):
        next(Plain(Short(0, ByteBacking(8))).get_slices(A(0), 4))


def test_stopping_on_an_error_raises_the_first_and_hides_the_others() -> None:
    mem = memory((0, 0x400), (0x800, 0x400))
    assert [s.len() for s in mem.get_slices(A(0x3FE), 4).stop_on_error()] == [2]
    assert [s.len() for s in mem.get_slices(A(0x7FE), 0).stop_on_error()] == []
    with pytest.raises(InvalidGuestAddress) as caught:
        mem.get_slices(A(0x7FE), 4).stop_on_error()
    assert caught.value.addr == A(0x7FE)
    assert [s.len() for s in mem.get_slices(A(0x800), 0x400).stop_on_error()] == [0x400]


# -- try_access --------------------------------------------------------------------------------


class Calls:
    """A callback that notes what it is told, and says it moved what it was told to say."""

    def __init__(self, *moved: int | Exception) -> None:
        self.moved = list(moved)
        self.told: list[tuple[int, int, int, int]] = []

    def __call__(
        self, done: int, size: int, at: MemoryRegionAddress, region: GuestRegion
    ) -> int:
        self.told.append((done, size, at.raw_value(), region.start_addr().raw_value()))
        moved = self.moved.pop(0) if self.moved else size
        if isinstance(moved, Exception):
            raise moved
        return moved


def tried(mem: Mem, count: int, addr: int, f: Calls) -> int:
    with pytest.warns(DeprecationWarning, match="get_slices"):
        return mem.try_access(count, A(addr), f)


def test_try_access_calls_once_a_region() -> None:
    mem = memory((0, 0x400), (0x400, 0x400), (0xA00, 0x100))
    f = Calls()
    assert tried(mem, 0x500, 0x300, f) == 0x500
    assert f.told == [(0, 0x100, 0x300, 0), (0x100, 0x400, 0, 0x400)]
    f = Calls()
    assert tried(mem, 0x600, 0x300, f) == 0x500, "up to the hole"
    f = Calls()
    assert tried(mem, 0x10, 0, f) == 0x10 and f.told == [(0, 0x10, 0, 0)]


def test_try_access_in_a_hole_and_for_nothing() -> None:
    mem = memory((0, 4))
    for count in (0, 1):
        with pytest.raises(InvalidGuestAddress) as caught:
            tried(mem, count, 4, Calls())
        assert caught.value.addr == A(4)
    f = Calls()
    assert tried(mem, 0, 1, f) == 0 and f.told == [(0, 0, 1, 0)], "it is called for no bytes"


def test_try_access_goes_on_where_the_callback_stopped() -> None:
    mem = memory((0, 8))
    f = Calls(3, 2)
    assert tried(mem, 8, 0, f) == 8
    assert f.told == [(0, 8, 0, 0), (3, 5, 3, 0), (5, 3, 5, 0)]
    f = Calls(3, 0)
    assert tried(mem, 8, 0, f) == 3, "which moved no more"
    assert tried(mem, 8, 0, Calls(0)) == 0


def test_try_access_with_a_callback_that_says_too_much() -> None:
    mem = memory((0, 8), (8, 8))
    for moved in (9, TOP, -1):
        with pytest.raises(CallbackOutOfRange):
            tried(mem, 8, 0, Calls(moved))
    with pytest.raises(CallbackOutOfRange):
        tried(mem, 8, 0, Calls(4, 5))
    f = Calls(10)
    assert tried(mem, 12, 0, f) == 12, "more than offered, and not more than all"
    assert f.told == [(0, 8, 0, 0), (10, 2, 2, 8)]


def test_what_the_callback_raises_goes_through() -> None:
    mem = memory((0, 4), (4, 4))
    with pytest.raises(InvalidBackendAddress):
        tried(mem, 8, 0, Calls(4, InvalidBackendAddress()))


def test_try_access_at_the_end_of_the_addresses() -> None:
    mem = memory((0, 4), (TOP - 4, 4))
    f = Calls()
    assert tried(mem, 6, TOP - 4, f) == 6
    assert f.told == [(0, 4, 0, TOP - 4), (4, 2, 0, 0)], "it goes on at 0"
    assert tried(mem, 4, TOP - 4, Calls()) == 4
    with pytest.raises(GuestAddressOverflow):
        tried(mem, 6, TOP - 4, Calls(5))
    assert tried(mem, 5, TOP - 4, Calls(5)) == 5, "all is moved: nobody looks where that ended"


def test_objects_over_two_regions() -> None:
    mem = memory((0, 0x400), (0x400, 0x400))
    mem.write_obj(Le32(0x44332211), A(0x3FE))
    assert mem.read_obj(A(0x3FE), Le32) == 0x44332211
