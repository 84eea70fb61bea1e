"""The Rust face by itself: guards, one view an access, sections, what is refused as misuse."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from oracle import OK
from rule_checks import ANY, Device, io, ram, space_of

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    ByteBacking,
    Contract,
    MemoryRegion,
    MemTxAttrs,
    RegionKind,
)
from qemuglue.memory.bytes import Bytes
from qemuglue.memory.dirty import VGA
from qemuglue.memory.endian import U8, Be16, Be32, Le16, Le32, Le64
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    HostAddressNotAvailable,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.iommu import IommuAccess, IommuTlbEntry
from qemuglue.memory.rcu import RCU, RcuError
from qemuglue.memory.rules import RULES_10_0
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.rust_binding import FlatView, FlatViewRefGuard, MemoryRegionSection

TOP = 1 << 64


def rust_over(*placed: tuple[int, MemoryRegion]) -> tuple[RustSpace, AddressSpace]:
    space, _ = space_of(RULES_10_0, *placed)
    return RustSpace(space), space


# -- the guard ---------------------------------------------------------------------------------


def test_a_guard_counts_one_reference_and_gives_it_back_once() -> None:
    rust, space = rust_over((0, ram()))
    before = space.view.references
    guard = rust.memory()
    assert isinstance(guard, FlatViewRefGuard) and space.view.references == before + 1
    assert isinstance(guard.view, FlatView) and isinstance(guard.view, Bytes)
    guard.release()
    assert space.view.references == before
    with pytest.raises(RcuError):
        guard.release()
    assert space.view.references == before


def test_a_released_view_is_of_no_use() -> None:
    rust, _ = rust_over((0, ram()))
    with rust.memory() as view:
        section = view.find_region(0)
        assert section is not None
    uses: list[Callable[[], object]] = [
        lambda: view.read(bytearray(1), 0), lambda: view.write(b"x", 0),
        lambda: view.load(0, Le32), lambda: view.store(Le32(1), 0), view.num_regions,
        lambda: list(view), lambda: view.find_region(0), lambda: view.check_range(0, 1),
        lambda: section.load(0, Le32), lambda: section.write(b"x", 0),
    ]
    for use in uses:
        with pytest.raises(RcuError, match="given back"):
            use()


def test_a_clone_lives_on_its_own() -> None:
    rust, space = rust_over((0, ram()))
    before = space.view.references
    guard = rust.memory()
    clone = guard.clone()
    assert space.view.references == before + 2
    guard.release()
    assert clone.view.load(0, Le32) == 0
    clone.release()
    assert space.view.references == before
    with pytest.raises(RcuError):
        clone.clone()


def test_a_forgotten_guard_gives_back_its_reference_when_it_is_collected() -> None:
    rust, space = rust_over((0, ram()))
    before = space.view.references
    view = rust.memory().view
    section = view.find_region(0)
    assert section is not None
    del view
    assert section.load(0, Le32) == 0, "a section keeps its view"
    assert space.view.references == before + 1
    del section
    gc.collect()
    assert space.view.references == before


def test_no_access_leaves_a_reference_behind() -> None:
    rust, space = rust_over((0, ram()))
    before = space.view.references
    rust.store(0, Le32(1))
    rust.load(0, Le32)
    rust.write(b"x", 0)
    rust.read(bytearray(1), 0)
    tries: list[Callable[[], object]] = [
        lambda: rust.load(0x200, Le32), lambda: rust.write(b"x", 0x200),
        lambda: rust.store(0, 42),  # type: ignore[type-var]
    ]
    for attempt in tries:
        with pytest.raises(ModelError):
            attempt()
    gc.collect()
    assert space.view.references == before


def test_a_view_outlives_the_map_and_is_reclaimed_with_its_last_guard() -> None:
    rust, space = rust_over((0, MemoryRegion.container_of("bus", TOP)))
    memory = ram()
    bus = space.root.subregions[0]
    bus.add_subregion(0x100, memory)
    guard = rust.memory()
    old = space.view
    memory.set_address(0x800)
    assert guard.view.find_region(0x100) is not None and guard.view.load(0x100, U8) == 0
    with rust.memory() as now:
        assert now.find_region(0x100) is None and now.find_region(0x800) is not None
    guard.release()
    RCU.drain()
    assert old.reclaimed


# -- one view an access --------------------------------------------------------------------------


class Remapper(Device):
    """Takes ``region`` out of the map while it is being accessed."""

    def __init__(self, region: MemoryRegion) -> None:
        super().__init__()
        self.region = region

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        self.region.set_enabled(False)
        return super().write(region, offset, value, size, attrs)

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        self.region.set_enabled(False)
        return super().read(region, offset, size, attrs)


def test_a_whole_access_sees_one_view_though_a_device_changes_the_map() -> None:
    memory = ram()
    rust, space = rust_over((0, io(ANY, size=8)), (8, memory))
    space.ops = Remapper(memory)
    assert rust.write(b"devdevdeRAM", 0) == 11
    assert memory.backing is not None and memory.backing.read(0, 3) == b"RAM"
    with pytest.raises(InvalidBackendAddress):
        rust.load(8, U8)
    memory.set_enabled(True)
    buf = bytearray(11)
    assert rust.read(buf, 0) == 11 and buf[8:] == b"RAM"


# -- bytes --------------------------------------------------------------------------------


def test_addresses_may_be_typed_plain_or_with_attributes() -> None:
    rust, _ = rust_over((0, ram()))
    attrs = MemTxAttrs(memory=True)
    with rust.memory() as view:
        places = (0x10, GuestAddress(0x10), (0x10, attrs), (GuestAddress(0x10), attrs))
        for number, place in enumerate(places, 1):
            view.store(Le32(number), place)
            assert view.load(place, Le32) == number
            assert view.read_obj(place, Le32) == number
            view.write_obj(Be16(number), place)
            assert view.read_obj(place, Be16) == number
            assert rust.load(place, Be16) == number
            assert rust.write(b"xy", place) == 2


WRONG_PLACES: list[object] = [
    MemoryRegionAddress(0), "0x10", 1.5, None, Le64(0x10), -1, TOP, (0x10, None),
    (MemoryRegionAddress(0), MemTxAttrs()), (0x10, {"memory": True}),
]


@pytest.mark.parametrize("wrong", WRONG_PLACES, ids=repr)
def test_what_is_no_guest_address_is_refused(wrong: object) -> None:
    rust, space = rust_over((0, ram()))
    uses: list[Callable[[], object]] = [
        lambda: rust.load(wrong, Le32), lambda: rust.store(wrong, Le32(1)),  # type: ignore
        lambda: rust.read(bytearray(1), wrong), lambda: rust.write(b"x", wrong),  # type: ignore
    ]
    for use in uses:
        with pytest.raises(ModelError):
            use()
    assert space.read(0, 0x20) == (OK, bytes(0x20))


def test_arguments_the_wrong_way_round_are_refused() -> None:
    """``AddressSpace.store(addr, value)`` but ``Bytes.store(value, addr)``, as in Rust."""
    rust, space = rust_over((0, ram()))
    with rust.memory() as view:
        for attempt in (
            lambda: rust.store(Le32(1), GuestAddress(0)),  # type: ignore
            lambda: rust.store(Le32(1), 0),  # type: ignore
            lambda: view.store(GuestAddress(0), Le32(1)),  # type: ignore
            lambda: view.store(0, Le32(1)),  # type: ignore
            lambda: view.load(Le32, 0),  # type: ignore
            lambda: rust.read(0, bytearray(1)),  # type: ignore
            lambda: rust.write(0, b"x"),  # type: ignore
        ):
            with pytest.raises(ModelError):
                attempt()
    assert space.read(0, 8) == (OK, bytes(8))


def test_buffers_of_any_kind() -> None:
    rust, space = rust_over((0, ram()))
    for data in (b"abcd", bytearray(b"efgh"), memoryview(b"ijkl"), memoryview(b"m.n.o.p.")[::2]):
        assert rust.write(data, 0) == 4
        assert space.read(0, 4) == (OK, bytes(data))
        view = memoryview(whole := bytearray(6))[1:5]
        assert rust.read(view, 0) == 4 and whole == b"\0" + bytes(data) + b"\0"
    for wrong in (b"abcd", memoryview(b"abcd")):
        with pytest.raises(ModelError, match="writable"):
            rust.read(wrong, 0)  # type: ignore[arg-type]


def test_a_ram_device_is_accessed_in_pieces() -> None:
    region = MemoryRegion.ram_device("vfio", 0x100, ByteBacking(0x100))
    rust, space = rust_over((0, region))
    rust.store(1, Le32(0x44332211))
    assert rust.load(1, Be32) == 0x11223344 and space.read(1, 4) == (OK, b"\x11\x22\x33\x44")
    assert rust.write(b"abcdefghi", 0x10) == 9
    buf = bytearray(9)
    assert rust.read(buf, 0x10) == 9 and buf == b"abcdefghi"
    with pytest.raises(InvalidBackendAddress):
        rust.load(0xFE, Le32)


def test_a_rom_device_is_read_from_memory_and_written_through_its_device() -> None:
    region = MemoryRegion.rom_device("flash", 0x10, ANY, backing=ByteBacking(bytearray(range(16))))
    rust, space = rust_over((0, region))
    device = space.ops
    assert isinstance(device, Device)
    assert rust.load(4, Be32) == 0x04050607 and device.log == []
    rust.store(4, Le32(1))
    assert device.log == [("write", "flash", 4, 4, 1)]
    buf = bytearray(0x12)
    assert rust.read(buf, 0) == 0x10, "behind the memory is a hole"
    with pytest.raises(ModelError, match="ends inside"):
        rust.load(0xE, Le32)
    region.set_romd(False)
    assert rust.load(4, Be32) == 0x05060708


def test_writes_to_ram_are_dirty_and_reads_are_not() -> None:
    memory = ram(0x3000)
    rust, space = rust_over((0, memory))
    memory.set_log(True)
    dirty = space.topology.dirty

    def pages() -> list[int]:
        found = [at for at in range(3) if dirty.get(memory, at << 12, 1, VGA)]
        dirty.test_and_clear(memory, 0, 0x3000, VGA)
        return found

    pages()
    rust.read(bytearray(0x3000), 0)
    rust.load(0, Le32)
    assert pages() == []
    rust.write(bytes(2), 0x1FFF)
    assert pages() == [1, 2]
    rust.store(0x10, Le32(1))
    assert pages() == [0]
    with rust.memory() as view:
        section = view.find_region(0)
        assert section is not None
        section.write(b"x", 0x1000)
    assert pages() == [1]


class Shifting:
    """An IOMMU with pages of 16 bytes: page n leads to page n + 1, and page 3 may not be
    written."""

    def __init__(self) -> None:
        self.target: AddressSpace | None = None

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        assert self.target is not None
        perm = IommuAccess.RO if addr >> 4 == 3 else IommuAccess.RW
        return IommuTlbEntry(self.target, addr & ~0xF, (addr & ~0xF) + 0x10, 0xF, perm)

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        return 0


def test_behind_an_iommu() -> None:
    system, target = rust_over((0, ram()))
    shifting = Shifting()
    shifting.target = target
    rust, _ = rust_over((0, MemoryRegion.iommu("iommu", 0x100, shifting)))
    assert rust.write(bytes(range(0x20)), 0x10) == 0x20
    assert target.read(0x20, 0x20) == (OK, bytes(range(0x20)))
    assert rust.load(0x14, Le32) == system.load(0x24, Le32) == 0x07060504
    with pytest.raises(InvalidBackendAddress):
        rust.load(0x1E, Le32)
    assert rust.write(b"12345678", 0x2C) == 4, "page 3 is read-only"
    assert rust.read(bytearray(8), 0x2C) == 8
    with pytest.raises(InvalidBackendAddress):
        rust.store(0x30, Le32(1))
    assert rust.load(0x30, Le32) == target.load(0x40, Le32)[1]
    with rust.memory() as view:
        section = view.find_region(0x10)
        assert section is not None and section.section.region.kind is RegionKind.IOMMU
        assert section.load(0x14, Le32) == 0x07060504


# -- sections -----------------------------------------------------------------------------------


def test_sections_as_guest_memory_regions() -> None:
    rust, _ = rust_over((0x100, ram(0x40)), (TOP - 0x10, ram(0x10, "last")))
    with rust.memory() as view:
        first, last = view
        assert isinstance(first, MemoryRegionSection) and isinstance(first, Bytes)
        assert (first.len(), first.start_addr(), first.last_addr()) == (
            0x40, GuestAddress(0x100), GuestAddress(0x13F))
        assert last.last_addr() == view.last_addr() == GuestAddress(TOP - 1)
        assert first.address_in_range(0x3F) and not first.address_in_range(0x40)
        assert first.check_address(0x3F) == MemoryRegionAddress(0x3F)
        assert first.checked_offset(0x3E, 1) == MemoryRegionAddress(0x3F)
        assert first.checked_offset(0x3E, 2) is None
        assert first.checked_offset(1, TOP - 1) is None
        assert first.to_region_addr(0x100) == MemoryRegionAddress(0)
        assert first.to_region_addr(GuestAddress(0x13F)) == MemoryRegionAddress(0x3F)
        odd = view.find_region(TOP - 1)
        assert odd is not None and odd.to_region_addr(TOP - 1) == MemoryRegionAddress(0xF)
        assert first.to_region_addr(0xFF) is None and first.to_region_addr(0x140) is None
        for wrong in (GuestAddress(0), Le32(0), -1, "0"):
            with pytest.raises(ModelError):
                first.check_address(wrong)  # type: ignore[arg-type]
            with pytest.raises(ModelError):
                first.load(wrong, Le32)  # type: ignore[arg-type]
        assert "ram" in repr(first) and "0x100" in repr(first)


def test_a_section_of_the_whole_space() -> None:
    space = AddressSpace("all", MemoryRegion.io("all", TOP, ANY))
    space.ops = Device()
    with RustSpace(space).memory() as view:
        (section,) = view
        assert section.len() == TOP and section.last_addr() == GuestAddress(TOP - 1)
        assert section.check_address(TOP - 1) is not None
        assert view.check_range(0, TOP) and not view.check_range(0, TOP + 1)
        buf = bytearray(4)
        assert section.read(buf, MemoryRegionAddress(TOP - 2)) == 2, "it ends at its end"


def test_an_access_to_a_section_ends_with_it() -> None:
    rust, space = rust_over((0x100, ram(0x10)), (0x110, ram(0x10, "next")))
    with rust.memory() as view:
        section = view.find_region(0x100)
        assert section is not None
        assert section.write(b"12345678", 0xC) == 4
        assert space.read(0x10C, 8) == (OK, b"1234" + bytes(4))
        buf = bytearray(8)
        assert section.read(buf, 0xC) == 4 and buf[:4] == b"1234"
        for access in (lambda: section.write_slice(b"abcdefgh", 0xC),
                       lambda: section.read_slice(buf, 0xC)):
            with pytest.raises(PartialBuffer) as caught:
                access()
            assert (caught.value.expected, caught.value.completed) == (8, 4)
            assert isinstance(caught.value.__cause__, InvalidBackendAddress)
        for behind in (0x10, 0x11, TOP - 1):
            with pytest.raises(InvalidBackendAddress):
                section.write(b"x", behind)
            with pytest.raises(InvalidBackendAddress):
                section.read(bytearray(1), MemoryRegionAddress(behind))
            with pytest.raises(InvalidBackendAddress):
                section.load(behind, U8)
            assert section.write(b"", behind) == section.read(bytearray(), behind) == 0
        section.store(Le32(5), 0xC)
        assert section.load(MemoryRegionAddress(0xC), Le32) == 5
        for access in (lambda: section.store(Le32(5), 0xD), lambda: section.load(0xD, Le32)):
            with pytest.raises(InvalidBackendAddress):
                access()
        section.write_obj(Le16(0x4142), 0xE)
        assert section.read_obj((0xE, MemTxAttrs()), Le16) == 0x4142


def test_a_section_anywhere_moves_all_of_it() -> None:
    rust, space = rust_over((0x130, ram(0x1800)))
    with rust.memory() as view:
        (section,) = view
        assert section.to_region_addr(0x1F1) == MemoryRegionAddress(0xC1)
        data = bytes(range(256)) * 0x18
        section.write_slice(data, 0)
        section.read_slice(buf := bytearray(len(data)), 0)
    assert buf == data and space.read(0x130, len(data)) == (OK, data)


def test_a_device_section_ends_with_it_where_the_view_runs_on() -> None:
    rust, space = rust_over((0, io(ANY, size=4)))
    device = space.ops
    assert isinstance(device, Device)
    with rust.memory() as view:
        (section,) = view
        buf = bytearray(4)
        assert section.read(buf, 2) == 2 and device.log == [("read", "dev", 2, 2)]
        assert view.read(buf, 2) == 4 and device.log[1:] == [("read", "dev", 2, 4)]
        with pytest.raises(InvalidBackendAddress):
            section.load(2, Le32)
        assert view.load(2, Le32) == 0x06050403


def test_attributes_of_a_section_access() -> None:
    rust, _ = rust_over((0x100, io(Contract())))
    only = MemTxAttrs(memory=True)
    with rust.memory() as view:
        (section,) = view
        for access in (lambda: section.load((0, only), Le32),
                       lambda: section.write(b"x", (MemoryRegionAddress(0), only))):
            with pytest.raises(InvalidGuestAddress) as caught:
                access()
            assert caught.value.addr == GuestAddress(0x100)


def test_nothing_can_be_pointed_at() -> None:
    rust, _ = rust_over((0x100, ram(0x10)))
    with rust.memory() as view:
        (section,) = view
        with pytest.raises(HostAddressNotAvailable):
            view.get_host_address(0x104)
        with pytest.raises(HostAddressNotAvailable):
            section.get_host_address(4)
        with pytest.raises(InvalidGuestAddress):
            view.get_host_address(0x110)
        with pytest.raises(InvalidBackendAddress):
            section.get_host_address(0x10)


def test_an_empty_view() -> None:
    rust, _ = rust_over()
    with rust.memory() as view:
        assert view.num_regions() == 0 and list(view.iter()) == []
        assert view.last_addr() == GuestAddress(0) and view.find_region(0) is None
        assert view.check_range(0, 0) and not view.check_range(0, 1)
        for none in (-1, 1.0, "1", Le32(1)):
            with pytest.raises(ModelError, match=r"^a length is "):
                view.check_range(0, none)  # type: ignore[arg-type]
        assert view.check_address(0) is None and not view.address_in_range(0)


def test_ranges() -> None:
    rust, _ = rust_over((0, ram(0x10)), (0x10, ram(0x10, "b")), (TOP - 4, ram(4, "c")))
    with rust.memory() as view:
        assert view.last_addr() == GuestAddress(TOP - 1)
        assert view.check_range(4, 0x1C) and not view.check_range(4, 0x1D)
        assert view.check_range(TOP - 4, 4) and view.check_range(TOP - 4, 0x24)
        assert not view.check_range(TOP - 4, 0x25) and not view.check_range(0x20, 1)
        assert view.checked_offset(0, 0x1F) == GuestAddress(0x1F)
        assert view.checked_offset(0, 0x20) is None
        assert view.checked_offset(TOP - 1, 1) is None


def test_it_says_what_it_is() -> None:
    rust, space = rust_over((0, ram()))
    assert repr(rust) == "<AddressSpace 'memory', Rust face>" and rust.space is space
    with rust.memory() as view:
        assert repr(view) == "<FlatView of 'memory'>"
