"""What mutation testing found untested in the faces and in what they stand on."""

from __future__ import annotations

import inspect
import pickle
from typing import Any, Self

import pytest
from rule_checks import ANY, io, ram, space_of
from volatile_bench import Tape

from qemuglue.errors import ModelError
from qemuglue.memory import accessor, guest_error
from qemuglue.memory.aligned import MisalignedGuestAddress
from qemuglue.memory.atomic_integer import AtomicInteger
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.bitmap import NewBitmap
from qemuglue.memory.byte_array import ByteArray, array_of
from qemuglue.memory.byte_valued import ByteValuedType, align_of
from qemuglue.memory.bytes import Readable
from qemuglue.memory.endian import U8, Le16
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import ErrorKind
from qemuglue.memory.guest_memory import collection, iommu, iotlb, mmap_error
from qemuglue.memory.memory_map import error as map_error
from qemuglue.memory.one_access import NotOneAccess, WhyNot
from qemuglue.memory.rules import RULES_10_0
from qemuglue.memory.section_backing import section_backing
from qemuglue.memory.volatile import VolatileMemory, VolatileSlice
from qemuglue.memory.volatile import error as volatile_error

AT = GuestAddress(0x1000)
RANGE = iotlb.IovaRange(AT, 0x20)
KIND = ErrorKind.WRITE_ZERO

#: Every error of the faces that has data, and the data by name.
ERRORS: list[tuple[type[ModelError], dict[str, object]]] = [
    (volatile_error.OutOfBounds, {"addr": 5}),
    (volatile_error.Overflow, {"base": 5, "offset": 6}),
    (volatile_error.TooBig, {"nelements": 5, "size": 6}),
    (volatile_error.Misaligned, {"addr": 5, "alignment": 2}),
    (volatile_error.VolatileIOError, {"kind": KIND, "text": "why"}),
    (volatile_error.VolatilePartialBuffer, {"expected": 5, "completed": 6}),
    (accessor.InvalidInput, {"guest_addr": AT, "size": 4, "moved": 3}),
    (accessor.ZeroLimit, {"guest_addr": AT}),
    (accessor.LimitTooLarge, {"guest_addr": AT, "limit": 4, "left": 3}),
    (accessor.AddressOverflow, {"guest_addr": AT, "size": 4}),
    (MisalignedGuestAddress, {"addr": AT, "alignment": 4}),
    (NotOneAccess, {"addr": AT, "size": 4, "why": next(iter(WhyNot))}),
    (map_error.MemoryRegionOverlap, {"addr": AT}),
    (map_error.MemoryMappingFailed, {"text": "why"}),
    (map_error.InvalidGuestAddressRange, {"addr": AT, "size": 4}),
    (map_error.MemoryAccess, {"addr": AT, "error": guest_error.InvalidGuestAddress(AT)}),
    (map_error.InvalidAddress, {"offset": 5, "size": 4}),
    (map_error.InvalidRange, {"offset": 5, "count": 4}),
    (map_error.ReadFromSource, {"kind": KIND, "text": "why", "expected": 5, "completed": 4}),
    (map_error.WriteToDestination, {"kind": KIND, "text": "why", "expected": 5, "completed": 4}),
    (mmap_error.Mmap, {"kind": KIND, "text": "why"}),
    (mmap_error.FromRangesCollection, {"error": collection.NoMemoryRegion()}),
    (mmap_error.FromRangesMmapRegion, {"error": mmap_error.MapFixed()}),
    (iommu.CannotResolve, {"iova_range": RANGE, "reason": "why"}),
    (iommu.Fragmented, {"iova_range": RANGE, "continuous_length": 4}),
    (iommu.IommuMisconfigured, {"reason": "why"}),
    (iotlb.IotlbFails, {"misses": [RANGE], "access_fails": []}),
]


@pytest.mark.parametrize(("cls", "data"), ERRORS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_error_made_by_keyword_has_its_data_and_travels(
    cls: Any, data: dict[str, object]
) -> None:
    """Python keeps the arguments of an exception by itself, but not those given by keyword."""
    error = cls(**data)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls and str(again) == str(error) != ""
    for name, value in data.items():
        assert getattr(error, name) == value
        kept = getattr(again, name)
        assert kept == value or (type(kept) is type(value) and str(kept) == str(value)), name


class Three(ByteValuedType):
    """A value of three bytes that does not say how it is aligned."""

    __slots__ = ("_raw",)
    size = 3

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    @property
    def raw(self) -> bytes:
        return self._raw

    @classmethod
    def from_raw(cls, data: Readable) -> Self:
        return cls(bytes(data))


def test_a_type_that_does_not_say_is_aligned_anywhere() -> None:
    assert Three.align == align_of(Three) == 1
    data = bytearray(b"012345")
    for at in range(4):
        found = Three.from_slice(memoryview(data)[at : at + 3])
        assert found is not None and found.raw == data[at : at + 3]


def test_the_base_of_arrays_has_no_elements() -> None:
    assert (ByteArray.count, ByteArray.size) == (0, 0)


def test_an_index_far_outside_an_array_is_refused() -> None:
    array = array_of(Le16, 3)([1, 2, 3])
    assert [array[at] for at in (-3, -1, 0, 2)] == [1, 3, 1, 3]
    for outside in (3, 4, 300, -4, -300):
        with pytest.raises(IndexError, match=f"3 elements, none at {outside}$"):
            array[outside]


class Least(VolatileMemory):
    """What has to be written of a memory, and no more."""

    def __init__(self) -> None:
        self.bytes = VolatileSlice(ByteBacking(8))

    def len(self) -> int:
        return 8

    def get_slice(self, offset: int, count: int) -> VolatileSlice:
        return self.bytes.subslice(offset, count)


def test_the_least_of_a_memory_has_the_rest_by_itself() -> None:
    mem = Least()
    assert mem.as_volatile_slice().len() == 8 and not mem.is_empty()
    mem.get_ref(2, Le16).store(Le16(0x4241))
    assert mem.as_volatile_slice().read_obj(2, Le16) == 0x4241
    assert mem.get_array_ref(2, 2, U8).load(1) == 0x42
    assert mem.compute_end_offset(2, 6) == 8


def test_a_bitmap_is_made_by_its_class_also_where_that_is_left_open() -> None:
    for name in ("with_len", "default"):
        assert isinstance(inspect.getattr_static(NewBitmap, name), classmethod)


def test_the_base_of_atomic_integers_has_no_size() -> None:
    assert AtomicInteger.size == 0


def test_behind_the_end_of_a_section_there_is_nothing_and_nobody_is_asked() -> None:
    space, device = space_of(RULES_10_0, (0, io(ANY, size=0x10)), (0x10, ram(0x10)))
    for section in space.view.sections:
        backing = section_backing(space, section)
        for offset in (0x10, 0x11, 0x40, 1 << 64):
            assert backing.read(offset, 4) == backing.read(offset, 0) == b""
    assert device.log == []


@pytest.mark.parametrize("backing", [ByteBacking(5), Tape(5)], ids=["here", "elsewhere"])
def test_the_last_byte_of_a_slice_moves(backing: ByteBacking) -> None:
    mem, buf = VolatileSlice(backing), bytearray(4)
    assert mem.write(b"xyz", 4) == 1 and mem.read(buf, 4) == 1 and buf == b"x\0\0\0"
    mem.read_slice(memoryview(buf)[3:], 4)
    assert buf == b"x\0\0x"
