"""Mapped guest memory: ranges, files, and every way in which a mapping is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import ByteBacking, Le32, SparseBacking
from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.backing import MAX_FLAT
from qemuglue.memory.bitmap import NO_BITMAP
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import ErrorKind, HostAddressNotAvailable
from qemuglue.memory.guest_memory import (
    BackingFile,
    FileOffset,
    FromRangesCollection,
    FromRangesError,
    FromRangesMmapRegion,
    GuestMemoryMmap,
    GuestRegionMmap,
    InvalidGuestRegion,
    InvalidPointer,
    MapFixed,
    MemoryRegionOverlap,
    Mmap,
    MmapRegion,
    MmapRegionBuilder,
    NoMemoryRegion,
    UnsortedMemoryRegions,
)
from qemuglue.memory.guest_memory.mmap import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAX_SIZE,
    PROT_READ,
    PROT_WRITE,
)
from qemuglue.qemu.backings import MappedBacking

TOP = 1 << 64
A = GuestAddress
RW = PROT_READ | PROT_WRITE


class DiskFile:
    """A file of this host, mapped for real."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        path.write_bytes(data)

    def map(self, start: int, size: int) -> MappedBacking:
        return MappedBacking(self.path, size, start)


# -- a mapping ---------------------------------------------------------------------------------


def test_anonymous_memory() -> None:
    region = MmapRegion.new(1024)
    assert region.size() == region.len() == 1024 and region.file_offset() is None
    assert region.prot() == RW and region.owned() and region.bitmap() is NO_BITMAP
    assert region.flags() == MAP_ANONYMOUS | MAP_NORESERVE | MAP_PRIVATE
    buf = bytearray(b"x" * 1024)
    assert region.as_volatile_slice().read(buf, 0) == 1024 and buf == bytes(1024)
    for size in (0, -1, MAX_SIZE + 1):
        with pytest.raises(Mmap) as caught:
            MmapRegion.new(size)
        assert caught.value.kind is ErrorKind.INVALID_INPUT
    large = MmapRegion.new(MAX_FLAT + 1)
    assert isinstance(large.backing, SparseBacking)
    with pytest.raises(HostAddressNotAvailable):
        large.as_ptr()


def test_hugetlbfs_is_told_as_it_was_said() -> None:
    region = MmapRegion.new(4096)
    assert region.is_hugetlbfs() is None
    for said in (False, True):
        region.set_hugetlbfs(said)
        assert region.is_hugetlbfs() is said
        assert MmapRegionBuilder.new(16).with_hugetlbfs(said).with_mmap_prot(RW).build(
        ).is_hugetlbfs() is said
    at = GuestRegionMmap.new(region, A(0x1000))
    assert at is not None and at.is_hugetlbfs() is True
    assert GuestRegionMmap.from_range(A(0x1000), 0x1000).is_hugetlbfs() is None


def test_a_file_is_shared(tmp_path: Path) -> None:
    file = DiskFile(tmp_path / "file", b"\1\2\3\4\5")
    region = MmapRegion.from_file(FileOffset(file, 0), 5)
    where = region.file_offset()
    assert region.size() == 5 and where is not None and where.start() == 0
    assert region.prot() == RW and region.flags() == MAP_NORESERVE | MAP_SHARED
    assert bytes(region.as_ptr()) == b"\1\2\3\4\5"
    region.as_volatile_slice().write(b"abc", 1)
    assert file.path.read_bytes() == b"\1abc\5"


def test_build(tmp_path: Path) -> None:
    file = DiskFile(tmp_path / "file", bytes(4096) + b"private" + bytes(10 * 1024 - 4103))
    flags = MAP_NORESERVE | MAP_PRIVATE
    for start, error in ((TOP - 1, Mmap), (TOP - 4096, Mmap), (4095, Mmap), (2048, Mmap),
                         (-4096, Mmap)):
        with pytest.raises(error) as caught:
            MmapRegion.build(FileOffset(file, start), 5000, RW, flags)
        assert caught.value.kind is ErrorKind.INVALID_INPUT
    with pytest.raises(MapFixed):
        MmapRegion.build(FileOffset(file, 4096), 1000, RW, flags | MAP_FIXED)
    region = MmapRegion.build(FileOffset(file, 4096), 1000, RW, flags)
    where = region.file_offset()
    assert region.size() == 1000 and where is not None and where.start() == 4096
    assert (region.prot(), region.flags(), region.owned()) == (RW, flags, True)
    assert bytes(region.as_ptr()[:7]) == b"private"
    region.as_volatile_slice().write(b"changed", 0)
    assert file.path.read_bytes()[4096:4103] == b"private", "what is private stays so"


@pytest.mark.parametrize(
    ("flags", "kind"),
    [(MAP_SHARED | MAP_PRIVATE | MAP_ANONYMOUS, ErrorKind.INVALID_INPUT),
     (MAP_ANONYMOUS, ErrorKind.INVALID_INPUT), (0, ErrorKind.INVALID_INPUT),
     (MAP_SHARED, ErrorKind.OTHER), (MAP_PRIVATE, ErrorKind.OTHER)],
)
def test_flags_that_the_kernel_refuses_without_a_file(flags: int, kind: ErrorKind) -> None:
    with pytest.raises(Mmap) as caught:
        MmapRegion.build(None, 0x1000, RW, flags)
    assert caught.value.kind is kind and str(caught.value).startswith(kind.value)


def test_memory_that_may_not_be_used_is_not_modelled() -> None:
    for prot in (0, PROT_READ, PROT_WRITE, 7):
        with pytest.raises(ModelError, match="not modelled"):
            MmapRegion.build(None, 0x1000, prot, MAP_ANONYMOUS | MAP_PRIVATE)
    with pytest.raises(ModelError, match="not modelled"):
        MmapRegionBuilder.new(0x1000).build()
    assert MmapRegionBuilder(16).with_mmap_prot(RW).build().flags() == MAP_ANONYMOUS | MAP_PRIVATE


class Placed(ByteBacking):
    """Memory that says where it is."""

    __slots__ = ("host_address",)

    def __init__(self, size: int, host_address: int) -> None:
        super().__init__(size)
        self.host_address = host_address


def test_memory_that_is_there_already_is_taken_over() -> None:
    flags = MAP_NORESERVE | MAP_PRIVATE
    for wrong in (1, 0xFFF, 0x1001):
        with pytest.raises(InvalidPointer):
            MmapRegion.build_raw(Placed(0x1000, wrong), 0x1000, RW, flags)
    there = Placed(0x1000, 0x7000)
    region = MmapRegion.build_raw(there, 0x800, RW, flags)
    assert region.size() == 0x800 and region.backing is there and not region.owned()
    assert (region.prot(), region.flags()) == (RW, flags) and len(region.as_ptr()) == 0x800
    for size in (0, 0x1001):
        with pytest.raises(ModelError, match="take over"):
            MmapRegion.build_raw(there, size, RW, flags)
    assert MmapRegion.build_raw(ByteBacking(4), 4, RW, flags).size() == 4


def test_fds_overlap() -> None:
    file, other = BackingFile(ByteBacking(10 * 1024)), BackingFile(ByteBacking(10 * 1024))

    def mapped(start: int, size: int, source: object = file) -> MmapRegion:
        return MmapRegion.from_file(FileOffset(source, start), size)

    second = mapped(4096, 4096)
    assert not mapped(0, 4096).fds_overlap(second) and not second.fds_overlap(mapped(0, 4096))
    assert mapped(0, 5000).fds_overlap(second) and second.fds_overlap(mapped(0, 5000))
    assert mapped(0, 5000).fds_overlap(mapped(0, 1000))
    assert not mapped(0, 5000).fds_overlap(mapped(0, 5000, other)), "another file"
    assert not mapped(0, 5000).fds_overlap(MmapRegion.new(5000)), "no file"
    assert not MmapRegion.new(5000).fds_overlap(mapped(0, 5000))


def test_dirty_tracking_of_a_mapping_and_of_what_it_is_put_into() -> None:
    region = MmapRegion.new(0x10000, bitmap=AtomicBitmap.with_len)
    region.as_volatile_slice().write(b"xy", 0x1FFF)
    bitmap = region.bitmap()
    assert [n for n in range(16) if bitmap.dirty_at(n << 12)] == [1, 2]
    built = MmapRegionBuilder.new_with_bitmap(0x4000, AtomicBitmap.with_len(0x4000))
    assert isinstance(built.with_mmap_prot(RW).build().bitmap(), AtomicBitmap)
    mem = GuestMemoryMmap.from_ranges([(A(0), 0x10000)], bitmap=AtomicBitmap.with_len)
    mem.write(b"x", A(0x3000))
    (at,) = mem.iter()
    assert [n for n in range(16) if at.bitmap().dirty_at(n << 12)] == [3]
    assert at.get_mmap().bitmap().dirty_at(0x3000)


# -- regions and memory ------------------------------------------------------------------------


def test_a_region_is_a_mapping_at_an_address() -> None:
    mapping = MmapRegion.new(0x400)
    region = GuestRegionMmap.with_arc(mapping, A(0x1000))
    assert region is not None and region.get_mmap() is mapping and region.len() == 0x400
    assert region.start_addr() == A(0x1000) and region.last_addr() == A(0x13FF)
    pointer = region.get_slice(MemoryRegionAddress(2), 3).ptr_guard().as_ptr()
    mapping.as_ptr()[2] = 9
    assert pointer[0] == 9
    assert "GuestRegionMmap 0x1000" in repr(region)


def test_a_region_may_not_reach_the_last_address() -> None:
    """Unlike ``GuestRegion``, and as in the crate: base plus length must be an address too."""
    mapping = MmapRegion.new(0x10)
    for new in (GuestRegionMmap.new, GuestRegionMmap.with_arc):
        assert new(mapping, A(TOP - 0x10)) is None and new(mapping, A(TOP - 1)) is None
        assert new(mapping, A(TOP - 0x11)) is not None
    with pytest.raises(InvalidGuestRegion):
        GuestRegionMmap.from_range(A(TOP - 0x10), 0x10)


def test_a_region_of_a_file_is_read(tmp_path: Path) -> None:
    file = DiskFile(tmp_path / "file", b"\1\2\3\4\5")
    region = GuestRegionMmap.from_range(A(0), 5, FileOffset(file, 0))
    buf = bytearray(16)
    assert region.as_volatile_slice().read(buf, 0) == 5 and buf[:5] == b"\1\2\3\4\5"


def with_and_without_files(*ranges: tuple[int, int]) -> list[GuestMemoryMmap]:
    plain = [(A(start), size) for start, size in ranges]
    files = [(*each, FileOffset(ByteBacking(each[1]), 0)) for each in plain]
    return [GuestMemoryMmap.from_ranges(plain), GuestMemoryMmap.from_ranges_with_files(files)]


def test_memory_with_and_without_files_is_the_same() -> None:
    for mem in with_and_without_files((0, 0x1000), (0x1000, 0x1000)):
        assert mem.num_regions() == 2 and mem.write(b"\1\2\3\4\5", A(0xFFC)) == 5
        buf = bytearray(5)
        assert mem.read(buf, A(0xFFC)) == 5 and buf == b"\1\2\3\4\5"
        found = mem.to_region_addr(A(0x1004))
        assert found is not None and found[1] == MemoryRegionAddress(4)
        one, other = mem.get_host_address(A(0x1000)), mem.get_host_address(A(0x1002))
        other[0] = 7
        assert one[2] == 7
        mem.store(Le32(7), A(0x1FFC))
        assert mem.load(A(0x1FFC), Le32) == 7


def test_the_file_of_a_region_and_where_in_it() -> None:
    plain, _ = with_and_without_files((0, 0x400))
    assert next(plain.iter()).file_offset() is None
    file = ByteBacking(0x1400)
    mem = GuestMemoryMmap.from_ranges_with_files([(A(0), 0x400, FileOffset(file, 0x1000))])
    where = next(mem.iter()).file_offset()
    assert where is not None and where.start() == 0x1000 and where.file() is file
    mem.write(b"x", A(1))
    assert file.read(0x1001, 1) == b"x"


def test_a_region_is_put_at_another_address() -> None:
    mem = GuestMemoryMmap.from_ranges([(A(0x1000), 0x1000)])
    mem.write(b"kept", A(0x1000))
    empty, region = mem.remove_region(A(0x1000), 0x1000)
    assert empty.find_region(A(0x1000)) is None and empty.find_region(A(0x2000)) is None
    moved = GuestRegionMmap.with_arc(region.get_mmap(), A(0x2000))
    assert moved is not None
    mem = empty.insert_region(moved)
    assert isinstance(mem, GuestMemoryMmap) and mem.find_region(A(0x1000)) is None
    buf = bytearray(4)
    assert mem.read(buf, A(0x2000)) == 4 and buf == b"kept"


@pytest.mark.parametrize(
    ("ranges", "error", "inner"),
    [
        ([], FromRangesCollection, NoMemoryRegion),
        ([(A(0), 100), (A(99), 100)], FromRangesCollection, MemoryRegionOverlap),
        ([(A(100), 100), (A(0), 100)], FromRangesCollection, UnsortedMemoryRegions),
        ([(A(0), 0)], FromRangesMmapRegion, Mmap),
        ([(A(TOP - 4), 4)], InvalidGuestRegion, None),
        ([(A(9), 9), (A(0), 0)], FromRangesMmapRegion, Mmap),
    ],
)
def test_ranges_that_make_no_memory(
    ranges: list[tuple[GuestAddress, int]], error: type[FromRangesError], inner: Any
) -> None:
    with pytest.raises(error) as caught:
        GuestMemoryMmap.from_ranges(ranges)
    assert isinstance(caught.value, FromRangesError) and str(caught.value)
    if inner is not None:
        held = caught.value.error  # type: ignore[attr-defined]
        assert type(held) is inner and str(held) in str(caught.value)
        assert caught.value.__cause__ is held
