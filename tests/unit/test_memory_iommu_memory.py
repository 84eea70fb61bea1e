"""IommuMemory: memory behind an IOMMU, what it refuses, and whose bitmap remembers a write."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.bitmap import NO_BITMAP
from qemuglue.memory.endian import U8, Le32, Le64
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import (
    GuestAddressOverflow,
    InvalidBackendAddress,
    InvalidGuestAddress,
    IommuError,
    PartialBuffer,
)
from qemuglue.memory.guest_memory.collection import GuestRegionCollection
from qemuglue.memory.guest_memory.iommu import (
    CannotResolve,
    Fragmented,
    Iommu,
)
from qemuglue.memory.guest_memory.iommu_memory import IommuMemory
from qemuglue.memory.guest_memory.iotlb import (
    Iotlb,
    IotlbFails,
    IotlbIterator,
    IovaRange,
    MappedRange,
)
from qemuglue.memory.guest_memory.memory import GuestMemory
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.guest_memory.region import GuestRegion

NO, READ, WRITE, BOTH = (
    Permissions.No, Permissions.Read, Permissions.Write, Permissions.ReadWrite,
)
PAGE = 0x1000
#: Two pieces of physical memory, and where both together are mapped.
LOW, HIGH, SIZE = 0x4000, 0x8000, 128
IOVA = 0x2_A000

Mapping = tuple[int, int, int, Permissions]


class FrontEnd(Iommu):
    """An IOTLB before a table of all mappings, as a vhost-user front end has it. What the IOTLB
    lacks is looked up there, and ``asked`` keeps (what was wrong, where, how many bytes)."""

    def __init__(self, *table: Mapping) -> None:
        self.tlb = Iotlb()
        self.table = list(table)
        self.asked: list[tuple[str, int, int]] = []

    def translate(self, iova: GuestAddress, length: int, access: Permissions) -> IotlbIterator:
        try:
            return self.tlb.lookup(iova, length, access)
        except IotlbFails as fails:
            for what, each in chain(
                (("miss", each) for each in fails.misses),
                (("denied", each) for each in fails.access_fails),
            ):
                self.asked.append((what, each.base.raw_value(), each.length))
                self._resolve(each, access)
        return self.tlb.lookup(iova, length, access)

    def _resolve(self, wanted: IovaRange, access: Permissions) -> None:
        start = wanted.base.raw_value()
        for iova, to, length, perm in self.table:
            if iova <= start and start + wanted.length <= iova + length and perm.allow(access):
                self.tlb.set_mapping(start, to + start - iova, wanted.length, perm)
                return
        raise CannotResolve(wanted, "it is in no table")

    def __repr__(self) -> str:
        return "FrontEnd"


class Told(Iommu):
    """Answers what it was told to, whatever it is asked."""

    def __init__(self, answer: Sequence[MappedRange]) -> None:
        self.answer = answer

    def translate(self, iova: GuestAddress, length: int, access: Permissions) -> IotlbIterator:
        return IotlbIterator(self.answer)


Memory = IommuMemory[GuestRegionCollection[GuestRegion], FrontEnd]


def ramp(size: int, first: int = 0) -> bytes:
    return bytes((first + at) % 256 for at in range(size))


def physical(
    *pieces: tuple[int, int], first: int = 0, page: int = PAGE
) -> GuestRegionCollection[GuestRegion]:
    """Regions whose bytes count up from ``first``, on and on through all of them, each with a
    bitmap of its own."""
    regions = []
    for start, size in pieces:
        backing = ByteBacking(bytearray(ramp(size, first)))
        regions.append(GuestRegion(start, backing, bitmap=AtomicBitmap(size, page)))
        first += size
    return GuestRegionCollection.from_regions(regions)


def mapped(*table: Mapping, first: int = 0) -> Memory:
    """The two pieces, with ``table`` already in the IOTLB; the front end knows nothing else."""
    memory = IommuMemory(physical((LOW, SIZE), (HIGH, SIZE), first=first), FrontEnd())
    for iova, to, length, perm in table:
        memory.iommu().tlb.set_mapping(iova, to, length, perm)
    return memory


def both(perm: Permissions) -> tuple[Mapping, Mapping]:
    """The two pieces one behind the other."""
    return (IOVA, LOW, SIZE, perm), (IOVA + SIZE, HIGH, SIZE, perm)


def at(addr: int) -> GuestAddress:
    return GuestAddress(addr)


def content(memory: GuestMemory, iova: int, size: int) -> bytes:
    """What the slices of a range hold."""
    parts = []
    for piece in memory.get_slices(at(iova), size, READ):
        data = bytearray(piece.len())
        piece.read_slice(data, 0)
        parts.append(bytes(data))
    return b"".join(parts)


def unresolved(memory: GuestMemory, iova: int, size: int, access: Permissions) -> tuple[int, int]:
    """What an access that must be refused says it could not translate."""
    with pytest.raises(IommuError) as caught:
        memory.get_slices(at(iova), size, access)
    error = caught.value.error
    assert isinstance(error, CannotResolve) and caught.value.__cause__ is error
    return error.iova_range.base.raw_value(), error.iova_range.length


# -- mapped beforehand -----------------------------------------------------------------------------


def test_two_pieces_of_memory_are_one_range_of_io_addresses() -> None:
    memory = mapped(*both(READ))
    assert memory.physical_memory() is None and memory.get_iommu_enabled()
    assert content(memory, IOVA, 2 * SIZE) == ramp(2 * SIZE)
    assert [piece.len() for piece in memory.get_slices(at(IOVA), 2 * SIZE, READ)] == [SIZE, SIZE]
    buffer = bytearray(20)
    assert memory.read(buffer, at(IOVA + SIZE - 10)) == 20 and buffer == ramp(20, SIZE - 10)
    assert memory.load(at(IOVA + SIZE), U8) == U8(SIZE)


def test_a_range_is_checked_against_table_and_permissions() -> None:
    memory = mapped(*both(READ))
    assert memory.check_range(at(IOVA), 2 * SIZE, NO)
    assert memory.check_range(at(IOVA), 2 * SIZE, READ)
    assert not memory.check_range(at(IOVA), 2 * SIZE, WRITE)
    assert not memory.check_range(at(IOVA), 2 * SIZE, BOTH)
    for outside in (IOVA - 1, IOVA + 2 * SIZE):
        assert not memory.check_range(at(outside), 1, NO)
    assert not memory.check_range(at(IOVA), 2 * SIZE + 1, READ)


def test_what_is_not_mapped_is_named_and_nothing_is_moved() -> None:
    memory = mapped(*both(BOTH))
    end = IOVA + 2 * SIZE
    assert unresolved(memory, IOVA - 1, 1, READ) == (IOVA - 1, 1)
    assert unresolved(memory, end, 1, READ) == (end, 1)
    assert unresolved(memory, IOVA, 2 * SIZE + 3, READ) == (end, 3)
    with pytest.raises(IommuError, match="0x2a100\\+0x1 cannot be translated: it is in no table"):
        memory.write(b"x" * (2 * SIZE + 1), at(IOVA))
    with pytest.raises(IommuError):
        memory.write_slice(b"x" * (2 * SIZE + 1), at(IOVA))
    assert content(memory, IOVA, 2 * SIZE) == ramp(2 * SIZE)


def test_an_access_asks_for_its_own_permission() -> None:
    memory = mapped((IOVA, LOW, SIZE, READ), (IOVA + SIZE, HIGH, SIZE, WRITE))
    write_only, buffer = at(IOVA + SIZE), bytearray(4)
    memory.read_slice(buffer, at(IOVA))
    memory.write_slice(b"new!", write_only)
    memory.store(Le32(7), at(IOVA + SIZE + 4))
    memory.read_volatile_from(at(IOVA + SIZE + 8), io.BytesIO(b"1234"), 4)
    memory.write_volatile_to(at(IOVA), sink := io.BytesIO(), 8)
    assert sink.getvalue() == ramp(8)
    refused = (
        lambda: memory.write(b"lost", at(IOVA)), lambda: memory.read(buffer, write_only),
        lambda: memory.store(Le32(1), at(IOVA)), lambda: memory.load(write_only, Le32),
        lambda: memory.read_volatile_from(at(IOVA), io.BytesIO(b"1234"), 4),
        lambda: memory.write_volatile_to(write_only, io.BytesIO(), 4),
        lambda: memory.write_obj(Le32(1), at(IOVA)), lambda: memory.read_obj(write_only, Le32),
    )
    for access in refused:
        with pytest.raises(IommuError):
            access()
    expected = ramp(SIZE) + b"new!\x07\0\0\x001234" + ramp(SIZE - 12, SIZE + 12)
    assert physical_bytes(memory) == expected


def physical_bytes(memory: Memory) -> bytes:
    return b"".join(
        region.backing.read(0, region.len()) for region in memory.get_backend().iter()
    )


def test_no_bytes_are_no_slices_wherever_they_are() -> None:
    """Also within a mapping that lacks the permission, where the crate refuses them."""
    memory = mapped(*both(READ))
    for iova in (0, IOVA, IOVA + 5, IOVA + 2 * SIZE, (1 << 64) - 1):
        assert list(memory.get_slices(at(iova), 0, WRITE)) == []
        assert memory.write(b"", at(iova)) == memory.read(bytearray(), at(iova)) == 0
        assert memory.check_range(at(iova), 0, BOTH)


# -- mapped on demand ------------------------------------------------------------------------------


def test_misses_and_denials_reach_the_iommu_and_are_mapped() -> None:
    memory = mapped()
    iommu = memory.iommu()
    for access in Permissions:
        assert not memory.check_range(at(IOVA), 2 * SIZE, access)
    assert iommu.asked == [("miss", IOVA, 2 * SIZE)] * 4
    iommu.asked.clear()
    iommu.table += both(READ)
    assert content(memory, IOVA, SIZE) == ramp(SIZE)
    assert iommu.asked == [("miss", IOVA, SIZE)]
    assert content(memory, IOVA, 2 * SIZE) == ramp(2 * SIZE)
    assert iommu.asked[1:] == [("miss", IOVA + SIZE, SIZE)]
    assert content(memory, IOVA, 2 * SIZE) == ramp(2 * SIZE)
    iommu.tlb.set_mapping(IOVA, LOW, SIZE, WRITE)
    assert content(memory, IOVA, 2 * SIZE) == ramp(2 * SIZE)
    assert iommu.asked[2:] == [("denied", IOVA, SIZE)]


def test_what_was_invalidated_is_asked_for_again() -> None:
    memory = mapped()
    memory.iommu().table.append((IOVA, LOW, SIZE, READ))
    assert content(memory, IOVA, 4) == ramp(4)
    memory.iommu().table[0] = (IOVA, HIGH, SIZE, READ)
    assert content(memory, IOVA, 4) == ramp(4), "stale, for nobody said that it changed"
    memory.iommu().tlb.invalidate_mapping(IOVA + 1, 2)
    assert content(memory, IOVA, 4) == bytes([0, SIZE + 1, SIZE + 2, 3])


def test_slices_stay_what_they_are_when_the_mapping_changes() -> None:
    memory = mapped(*both(BOTH))
    pieces = memory.get_slices(at(IOVA), 2 * SIZE, BOTH)
    memory.iommu().tlb.invalidate_all()
    assert [piece.len() for piece in pieces] == [SIZE, SIZE]


# -- the memory behind -----------------------------------------------------------------------------


def test_a_mapping_may_lead_where_there_is_no_memory() -> None:
    memory = mapped((IOVA, LOW + SIZE - 8, 16, BOTH))
    assert not memory.check_range(at(IOVA), 16, READ)
    assert memory.check_range(at(IOVA), 8, BOTH)
    assert memory.write(b"x" * 16, at(IOVA)) == 8
    buffer = bytearray(16)
    with pytest.raises(PartialBuffer) as partial:
        memory.read_slice(buffer, at(IOVA))
    assert (partial.value.expected, partial.value.completed) == (16, 8)
    assert buffer[:8] == b"x" * 8
    with pytest.raises(InvalidGuestAddress) as nothing:
        memory.read(bytearray(8), at(IOVA + 8))
    assert nothing.value.addr == at(LOW + SIZE), "the physical address"
    pieces = memory.get_slices(at(IOVA), 16, READ)
    assert next(pieces).len() == 8
    with pytest.raises(InvalidGuestAddress):
        next(pieces)
    assert next(pieces, None) is None, "nothing comes behind an error"


def test_one_access_does_not_go_over_a_seam() -> None:
    memory = mapped(*both(BOTH))
    for iova in (IOVA + SIZE - 2, IOVA + SIZE - 4):
        with pytest.raises(InvalidBackendAddress):
            memory.store(Le64(0), at(iova))
        with pytest.raises(InvalidBackendAddress):
            memory.load(at(iova), Le64)
    assert content(memory, IOVA, 2 * SIZE) == ramp(2 * SIZE)
    memory.write_obj(Le64(0), at(IOVA + SIZE - 4))
    assert memory.read_obj(at(IOVA + SIZE - 4), Le64) == Le64(0)


def test_one_range_may_lie_in_several_regions() -> None:
    backend = physical((LOW, SIZE), (LOW + SIZE, SIZE))
    memory = IommuMemory(backend, FrontEnd((IOVA, LOW, 2 * SIZE, BOTH)))
    assert memory.iommu().translate_whole(at(IOVA), 2 * SIZE, BOTH) == MappedRange(
        at(LOW), 2 * SIZE)
    assert [piece.len() for piece in memory.get_slices(at(IOVA), 2 * SIZE, BOTH)] == [SIZE, SIZE]
    assert content(memory, IOVA, 2 * SIZE) == ramp(2 * SIZE)


def test_a_range_that_must_be_whole_and_is_not() -> None:
    memory = mapped(*both(BOTH))
    iommu = memory.iommu()
    assert iommu.translate_whole(at(IOVA + SIZE), SIZE, READ) == MappedRange(at(HIGH), SIZE)
    with pytest.raises(Fragmented) as caught:
        iommu.translate_whole(at(IOVA + 100), 100, READ)
    assert caught.value.iova_range == IovaRange(at(IOVA + 100), 100)
    assert caught.value.continuous_length == 28
    assert str(caught.value) == (
        "only the first 0x1c bytes of I/O addresses 0x2a064+0x64 are in one piece")
    with pytest.raises(CannotResolve):
        iommu.translate_whole(at(IOVA), SIZE * 3, READ)
    with pytest.raises(ModelError, match="no bytes"):
        iommu.translate_whole(at(IOVA), 0, READ)
    assert iommu.translate_whole(at(IOVA + 1), 1, READ) == MappedRange(at(LOW + 1), 1)
    iommu.tlb.set_mapping(IOVA, HIGH, SIZE, READ)
    iommu.tlb.set_mapping(IOVA + SIZE, LOW, SIZE, READ)
    with pytest.raises(Fragmented):  # also where the second piece is the lower one
        iommu.translate_whole(at(IOVA), 2 * SIZE, READ)
    iommu.tlb.set_mapping(IOVA, LOW, SIZE, READ)
    for more, perm in ((0, READ), (8, NO), (16, WRITE)):
        iommu.tlb.set_mapping(IOVA + SIZE + more, LOW + SIZE + more, 8, perm)
    assert iommu.translate_whole(at(IOVA + 8), SIZE + 16, NO) == MappedRange(at(LOW + 8), SIZE + 16)


def test_an_iommu_must_translate() -> None:
    with pytest.raises(TypeError, match="translate"):
        Iommu()  # type: ignore[abstract]


def test_addresses_go_on_at_0_and_no_further() -> None:
    """An IOMMU of an Iotlb cannot answer so; another can, and the crate looks."""
    top = (1 << 64) - 8
    memory = IommuMemory(physical((LOW, SIZE)), Told([MappedRange(at(LOW), 8)]))
    assert [piece.len() for piece in memory.get_slices(at(top), 8, READ)] == [8]
    memory = IommuMemory(
        physical((LOW, SIZE)), Told([MappedRange(at(LOW), 4), MappedRange(at(LOW), 5)]))
    pieces = memory.get_slices(at(top), 8, READ)
    assert next(pieces).len() == 4
    with pytest.raises(GuestAddressOverflow):
        next(pieces)
    assert next(pieces, None) is None


# -- disabled --------------------------------------------------------------------------------------


def test_a_disabled_iommu_is_not_asked() -> None:
    memory = mapped()
    assert repr(memory).startswith("<IommuMemory on: FrontEnd before <GuestRegionCollection")
    memory.set_iommu_enabled(False)
    assert repr(memory).startswith("<IommuMemory off: ")
    assert not memory.get_iommu_enabled()
    assert memory.physical_memory() is memory.get_backend()
    assert content(memory, LOW, SIZE) == ramp(SIZE)
    assert memory.check_range(at(HIGH), SIZE, BOTH) and not memory.check_range(at(IOVA), 1, NO)
    memory.write_slice(b"plain", at(HIGH))
    with pytest.raises(InvalidGuestAddress):
        memory.read(bytearray(1), at(IOVA))
    assert memory.iommu().asked == []
    memory.set_iommu_enabled(True)
    assert unresolved(memory, LOW, 1, READ) == (LOW, 1)


# -- another memory behind -------------------------------------------------------------------------


def test_the_memory_behind_is_replaced_in_a_new_one() -> None:
    """As when memory is added: the IOMMU is shared, so both soon know the same mappings."""
    small = IommuMemory(physical((LOW, SIZE)), FrontEnd(), True, AtomicBitmap(IOVA + PAGE))
    small.iommu().tlb.set_mapping(IOVA, LOW, SIZE, READ)
    assert unresolved(small, IOVA, 2 * SIZE, READ) == (IOVA + SIZE, SIZE)
    copy = small.clone()
    large = small.with_replaced_backend(physical((LOW, SIZE), (HIGH, SIZE), first=42))
    assert large.iommu() is small.iommu() is copy.iommu()
    assert large.bitmap() is small.bitmap() is copy.bitmap()
    large.iommu().table.append((IOVA + SIZE, HIGH, SIZE, READ))
    assert content(large, IOVA, 2 * SIZE) == ramp(2 * SIZE, 42)
    assert large.iommu().asked[-1] == ("miss", IOVA + SIZE, SIZE)
    assert content(small, IOVA, SIZE) == content(copy, IOVA, SIZE) == ramp(SIZE)
    found = small.iommu().tlb.lookup(at(IOVA), 2 * SIZE, READ)
    assert list(found) == [MappedRange(at(LOW), SIZE), MappedRange(at(HIGH), SIZE)]
    with pytest.raises(InvalidGuestAddress) as caught:
        copy.read(bytearray(1), at(IOVA + SIZE))
    assert caught.value.addr == at(HIGH), "mapped, but it has no memory there"


def test_each_has_its_own_switch() -> None:
    first = mapped(*both(READ))
    first.set_iommu_enabled(False)
    second, third = first.clone(), first.with_replaced_backend(first.get_backend())
    assert not second.get_iommu_enabled() and not third.get_iommu_enabled()
    first.set_iommu_enabled(True)
    assert not second.get_iommu_enabled() and third.physical_memory() is first.get_backend()


# -- what was written ------------------------------------------------------------------------------


def watched() -> tuple[IommuMemory[Any, FrontEnd], AtomicBitmap, AtomicBitmap]:
    """Two pages at LOW seen at IOVA: (memory, bitmap of I/O addresses, that of the region)."""
    backend = physical((LOW, 2 * PAGE))
    bitmap = AtomicBitmap(IOVA + 2 * PAGE, PAGE)
    iommu = FrontEnd((IOVA, LOW, 2 * PAGE, BOTH))
    region = next(iter(backend.iter()))
    memory = IommuMemory.new(backend, iommu, True, bitmap)
    assert memory.bitmap() is bitmap
    own = region.bitmap()
    return memory, bitmap, own.inner  # type: ignore[attr-defined]


def pages(bitmap: AtomicBitmap) -> list[int]:
    """Which pages are dirty; they are clean afterwards."""
    found = [page for page in range(bitmap.len()) if bitmap.is_bit_set(page)]
    bitmap.reset()
    return found


def test_a_write_is_remembered_at_its_io_address_only() -> None:
    memory, bitmap, own = watched()
    first, second = IOVA // PAGE, IOVA // PAGE + 1
    assert content(memory, IOVA, 2 * PAGE) == ramp(2 * PAGE)
    [piece] = memory.get_slices(at(IOVA), 2 * PAGE, WRITE)
    assert pages(bitmap) == [], "not by reading, not by having a slice to write to"
    piece.store(Le32(42), 0)
    assert pages(bitmap) == [first]
    piece.store(Le32(23), PAGE)
    assert pages(bitmap) == [second]
    memory.write_slice(b"over the edge", at(IOVA + PAGE - 4))
    assert pages(bitmap) == [first, second]
    memory.read_volatile_from(at(IOVA + PAGE + 5), io.BytesIO(b"some"), 4)
    assert pages(bitmap) == [second]
    assert pages(own) == [], "nothing of it at the physical address"
    bitmap.set_addr_range(LOW, 2 * PAGE)
    assert pages(bitmap) == [LOW // PAGE, LOW // PAGE + 1], "which the bitmap could hold"


def test_a_write_past_a_disabled_iommu_is_remembered_in_the_region() -> None:
    memory, bitmap, own = watched()
    memory.set_iommu_enabled(False)
    memory.write_slice(b"data", at(LOW + PAGE))
    assert pages(own) == [1] and pages(bitmap) == []
    [held] = memory.get_slices(at(LOW), 8, WRITE)
    memory.set_iommu_enabled(True)
    held.store(Le32(1), 0)
    assert pages(own) == [0] and pages(bitmap) == [], "a slice belongs where it came from"


def test_fragments_are_remembered_each_at_its_own_io_address() -> None:
    backend = physical((LOW, 2 * PAGE))
    bitmap = AtomicBitmap(IOVA + 4 * PAGE, PAGE)
    table = (
        (IOVA, LOW + PAGE, PAGE, BOTH), (IOVA + PAGE, LOW, PAGE, BOTH),
        (IOVA + 2 * PAGE, LOW, PAGE, BOTH),
    )
    memory = IommuMemory(backend, FrontEnd(*table), True, bitmap)
    for each in table:
        memory.iommu().tlb.set_mapping(*each)
    pieces = list(memory.get_slices(at(IOVA), 3 * PAGE, BOTH))
    for number, piece in enumerate(pieces):
        piece.store(U8(1), 5)
        assert pages(bitmap) == [IOVA // PAGE + number]
    memory.write_slice(bytes(2 * PAGE), at(IOVA + 8))
    assert pages(bitmap) == [IOVA // PAGE + number for number in range(3)]


def test_without_a_bitmap_nothing_is_remembered() -> None:
    memory = mapped(*both(BOTH))
    assert memory.bitmap() is NO_BITMAP
    memory.write_slice(b"data", at(IOVA))
    region = memory.get_backend().find_region(at(LOW))
    assert region is not None and not region.bitmap().dirty_at(0)
