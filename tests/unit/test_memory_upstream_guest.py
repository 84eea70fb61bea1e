"""vm-memory's own cases over guest memory of each kind: anonymous, over a backing, over a file.

Its tests in ``src/mmap/mod.rs`` and ``src/guest_memory.rs`` run over memory with and without
files; so do these. ``upstream_cases.toml`` names them; what its tests cover apart from that
stands in the tests of the modules.
"""

from __future__ import annotations

import ctypes
import io
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from volatile_bench import Tape

from qemuglue.memory import ByteBacking
from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.bitmap import Bitmap
from qemuglue.memory.byte_valued import ByteStructure
from qemuglue.memory.endian import Le32, Le64
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import InvalidBackendAddress, InvalidGuestAddress, PartialBuffer
from qemuglue.memory.guest_memory import (
    BackingFile,
    FileOffset,
    GuestAddressSpace,
    GuestMemoryAtomic,
    GuestMemoryMmap,
    GuestRegion,
    GuestRegionCollection,
    MmapRegion,
)
from qemuglue.qemu.backings import MappedBacking

A = GuestAddress
PAGE = 0x1000
SAMPLE = b"\1\2\3\4\5"
#: No thread of a test is waited for longer: it hangs.
LIMIT_S = 30

Ranges = list[tuple[int, int]]
Make = Callable[[Ranges], GuestMemoryMmap]


class DiskFile:
    """A file of this host, mapped for real."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.write_bytes(bytes(size))

    def map(self, start: int, size: int) -> MappedBacking:
        return MappedBacking(self.path, size, start)


@pytest.fixture(params=["anonymous", "backing", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes memory of (start, size) ranges."""

    def made(ranges: Ranges) -> GuestMemoryMmap:
        if request.param == "anonymous":
            return GuestMemoryMmap.from_ranges([(A(start), size) for start, size in ranges])
        files: list[object] = [
            BackingFile(ByteBacking(size)) if request.param == "backing"
            else DiskFile(tmp_path / f"{start:x}", size) for start, size in ranges
        ]
        return GuestMemoryMmap.from_ranges_with_files(
            [(A(start), size, FileOffset(file, 0))
             for (start, size), file in zip(ranges, files, strict=True)])

    return made


# -- the same over each kind -------------------------------------------------------------------


def test_an_address_is_an_offset_in_its_region(make: Make) -> None:
    mem = make([(0, 0x400), (0x800, 0x400)])
    assert mem.to_region_addr(A(0x600)) is None
    first, second = mem.to_region_addr(A(0x800)), mem.to_region_addr(A(0xA00))
    assert first is not None and second is not None and first[0] is second[0]
    assert first[0] is not mem.find_region(A(0))
    assert (first[1], second[1]) == (MemoryRegionAddress(0), MemoryRegionAddress(0x200))


def test_host_addresses_differ_as_guest_addresses_do(make: Make) -> None:
    mem = make([(0, 0x400), (0x800, 0x400)])
    with pytest.raises(InvalidGuestAddress) as caught:
        mem.get_host_address(A(0x600))
    assert caught.value.addr == A(0x600)
    one, other = mem.get_host_address(A(0x800)), mem.get_host_address(A(0xA00))
    region = mem.find_region(A(0x800))
    assert region is not None
    one[0x200], other[1] = 7, 8
    assert bytes(region.get_mmap().as_ptr()[0x200:0x202]) == b"\7\x08" == bytes(other[:2])


def test_what_is_written_to_memory_is_read_through_a_slice(make: Make) -> None:
    mem = make([(0, 0x400)])
    assert mem.write(SAMPLE, A(0)) == 5
    region, buf = mem.find_region(A(0)), bytearray(5)
    assert region is not None
    assert region.as_volatile_slice().read(buf, 0) == 5 and buf == SAMPLE


def test_objects_inside_across_and_behind(make: Make) -> None:
    mem = make([(0, PAGE), (PAGE, PAGE)])
    with pytest.raises(InvalidGuestAddress) as nowhere:
        mem.write_obj(Le64(1), A(0x2001))
    assert nowhere.value.addr == A(0x2001)
    with pytest.raises(PartialBuffer) as partial:
        mem.write_obj(Le64(1), A(0x1FFC))
    assert (partial.value.expected, partial.value.completed) == (8, 0x2000 - 0x1FFC)
    one, other = Le64(0xAA55_AA55_AA55_AA55), Le64(0x55AA_55AA_55AA_55AA)
    mem.write_obj(one, A(0x500))
    mem.write_obj(other, A(PAGE + 32))
    assert mem.read_obj(A(0x500), Le64) == one and mem.read_obj(A(PAGE + 32), Le64) == other


def test_whole_inside_and_one_byte_at_the_end(make: Make) -> None:
    mem, buf = make([(0x1000, 0x400)]), bytearray(5)
    assert mem.write(SAMPLE, A(0x1000)) == mem.read(buf, A(0x1000)) == 5 and buf == SAMPLE
    mem.write_slice(b"whole", A(0x1000))
    mem.read_slice(buf, A(0x1000))
    assert buf == b"whole"
    assert mem.write(SAMPLE, A(0x13FF)) == mem.read(buf, A(0x13FF)) == 1 and buf[0] == SAMPLE[0]


def test_from_a_stream_and_to_a_buffer(make: Make) -> None:
    mem = make([(0x1000, 0x400)])
    mem.write_obj(Le32(0xFFFF_FFFF), A(0x1010))
    with Path("/dev/zero").open("rb", buffering=0) as zeros:
        mem.read_exact_volatile_from(A(0x1010), zeros, 4)
    assert mem.read_obj(A(0x1010), Le32) == 0
    mem.read_exact_volatile_from(A(0x1010), io.BytesIO(b"abcdefgh"), 4)
    sink = bytearray(4)
    mem.write_all_volatile_to(A(0x1010), memoryview(sink), 4)
    assert sink == b"abcd"


def test_a_random_device_fills_memory(make: Make) -> None:
    mem = make([(0x1000, 0x400)])
    with Path("/dev/urandom").open("rb", buffering=0) as device:
        assert mem.read_volatile_from(A(0x1010), device, 128) == 128
    buf = bytearray(0x400)
    mem.read_slice(buf, A(0x1000))
    # All 128 bytes 0 would be no luck but a defect.
    assert any(buf[0x10:0x90]) and not any(buf[:0x10] + buf[0x90:])
    assert mem.read_obj(A(0x1018), Le32).raw == buf[0x18:0x1C]


def test_across_the_seam_of_two_regions(make: Make) -> None:
    mem, buf = make([(0, PAGE), (PAGE, PAGE)]), bytearray(5)
    assert mem.write(SAMPLE, A(0xFFC)) == mem.read(buf, A(0xFFC)) == 5 and buf == SAMPLE
    second = mem.find_region(A(PAGE))
    assert second is not None and second.get_mmap().as_ptr()[0] == SAMPLE[4]


def test_a_slice_lies_in_one_region(make: Make) -> None:
    mem = make([(0, 0x400), (0x800, 0x400)])
    assert mem.get_slice(A(0x100), 0x200).len() == 0x200
    assert mem.get_slice(A(0x800), 0x400).len() == 0x400
    assert mem.get_slice(A(0x900), 0).is_empty()
    with pytest.raises(InvalidBackendAddress):
        mem.get_slice(A(0), 0x500)
    for addr in (0x600, 0xC00):
        with pytest.raises(InvalidGuestAddress) as caught:
            mem.get_slice(A(addr), 0x100)
        assert caught.value.addr == A(addr)


def test_the_regions_add_up_and_end_inclusively(make: Make) -> None:
    mem = make([(0, 1024), (0x400, 2048)])
    assert sum(region.len() for region in mem.iter()) == 3 * 1024
    assert make([(0x1000, 0x400)]).last_addr() == A(0x1000).checked_add(0x3FF)


# -- who marks -----------------------------------------------------------------------------------


def marked(bitmap: Bitmap) -> list[int]:
    """The pages of the first 0x8000 bytes that are dirty."""
    return [page for page in range(8) if bitmap.dirty_at(page * PAGE)]


def test_each_kind_of_write_to_a_mapping_marks_its_own_page() -> None:
    """Through the slice, a reference and an array; parts see the marks of the whole."""
    mapping = MmapRegion.new(0x8000, bitmap=AtomicBitmap.with_len)
    whole, part = mapping.as_volatile_slice(), mapping.get_slice(0x1000, 8)
    assert marked(whole.bitmap()) == [] and not part.bitmap().dirty_at(0)
    whole.write_obj(Le64(123), 0x1000)
    assert marked(whole.bitmap()) == [1] and part.bitmap().dirty_at(7)
    mapping.get_ref(0x2000, Le64).store(Le64(123))
    assert marked(whole.bitmap()) == [1, 2]
    mapping.get_array_ref(0x3000, 1, Le64).store(0, Le64(123))
    assert marked(whole.bitmap()) == marked(mapping.bitmap()) == [1, 2, 3]


@pytest.mark.parametrize("said", [None, False, True])
def test_what_is_said_of_pages_changes_nothing_else(said: bool | None) -> None:
    plain, mapping = MmapRegion.new(PAGE), MmapRegion.new(PAGE)
    if said is not None:
        mapping.set_hugetlbfs(said)
    assert mapping.is_hugetlbfs() is said
    assert mapping.size() == PAGE and mapping.file_offset() is None
    assert (mapping.prot(), mapping.flags()) == (plain.prot(), plain.flags())


# -- who uses it ---------------------------------------------------------------------------------


class Device:
    """Keeps its memory as a space, as a virtio device does from its activation on."""

    def __init__(self) -> None:
        self.mem: GuestAddressSpace | None = None

    def activate(self, mem: GuestAddressSpace) -> None:
        self.mem = mem

    def size(self) -> int:
        assert self.mem is not None
        with self.mem.memory() as shown:
            regions = shown.physical_memory()
            assert regions is not None
            return sum(region.len() for region in regions.iter())


def test_devices_share_a_map_that_is_plain_or_exchangeable() -> None:
    plain = GuestMemoryMmap.from_ranges([(A(0x1000), 0x400)])
    one, other = Device(), Device()
    one.activate(plain)
    other.activate(plain)
    assert one.size() == other.size() == 0x400 and one.mem is other.mem
    atomic = GuestMemoryAtomic.new(plain)
    one.activate(atomic.clone())
    other.activate(atomic.clone())
    assert one.size() == other.size() == 0x400
    with atomic.lock() as guard:
        guard.replace(plain.insert_region(next(GuestMemoryMmap.from_ranges(
            [(A(0x8000), 0x100)]).iter())))
    assert one.size() == other.size() == 0x500, "both see the new one"


# -- an object over two regions ------------------------------------------------------------------


class Tagged(ByteStructure, ctypes.LittleEndianStructure):
    """Its first member ends a region, the rest lies in the next one."""

    _fields_ = (("value", ctypes.c_uint16), ("some", ctypes.c_uint8 * 8))


#: Where the member is the last of the first page.
SEAM = PAGE - 2
SOME = (1, 2, 4, 16, 32, 64, 128, 255)


def tagged(value: int) -> Tagged:
    return Tagged(value, (ctypes.c_uint8 * 8)(*SOME))


def test_a_member_that_ends_a_region_is_one_access() -> None:
    first, second = Tape(PAGE), Tape(PAGE)
    mem = GuestRegionCollection.from_regions([GuestRegion(0, first), GuestRegion(PAGE, second)])
    mem.write_obj(tagged(0x1234), A(SEAM))
    assert mem.read_obj(A(SEAM), Tagged) == tagged(0x1234)
    assert first.calls == [("w", SEAM, 2), ("r", SEAM, 2)]
    assert sum(size for _, _, size in second.calls) == 16, "the rest, there and back"


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
def test_such_a_member_is_never_seen_torn() -> None:
    mem = GuestMemoryMmap.from_ranges([(A(0), PAGE), (A(PAGE), PAGE)])
    mem.write_obj(tagged(0), A(SEAM))
    done, seen = threading.Event(), set[int]()

    def look() -> None:
        while not done.is_set():
            seen.add(mem.read_obj(A(SEAM), Tagged).value)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for turn in range(1500):
            mem.write_obj(tagged(0xFFFF * (turn % 2)), A(SEAM))
    finally:
        done.set()
        reader.join(LIMIT_S)
    assert not reader.is_alive() and seen <= {0, 0xFFFF}, seen

