"""Aligned addresses, and the accesses that take them."""

from __future__ import annotations

import copy
import ctypes
import pickle
from collections.abc import Callable
from typing import ClassVar

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.aligned import (
    AlignedAccess,
    AlignedGuestAddress,
    MisalignedGuestAddress,
)
from qemuglue.memory.atomic_integer import AtomicU16
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.byte_valued import ByteStructure
from qemuglue.memory.bytes import Bytes, ByteValued, Ordering, Readable, V, Writable
from qemuglue.memory.endian import U8, Be16, Be32, Le16, Le32, Le64, LeSize
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import (
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import GuestRegion, GuestRegionCollection
from qemuglue.memory.native import NativeI16, NativeU32, NativeU128
from qemuglue.memory.one_access import NotOneAccess, WhyNot

LAST = ADDRESS_END - 1


class Descriptor(ByteStructure, ctypes.LittleEndianStructure):
    """virtio's: 16 bytes, aligned as its largest field."""

    _fields_ = (
        ("addr", ctypes.c_uint64), ("len", ctypes.c_uint32),
        ("flags", ctypes.c_uint16), ("next", ctypes.c_uint16),
    )


class Packed:
    """Six bytes that declare no alignment."""

    size: ClassVar[int] = 6

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def from_raw(cls, data: bytes | bytearray | memoryview) -> Packed:
        return cls(bytes(data))


class Declared(Packed):
    """The same with an alignment."""

    align: ClassVar[int] = 2


class Index(Declared):
    """A type of one's own that has an atomic access: two bytes, as ``AtomicU16``."""

    size: ClassVar[int] = 2
    A: ClassVar[type] = AtomicU16


def memory_of(*regions: tuple[int, int]) -> tuple[AlignedAccess, list[ByteBacking]]:
    backings = [ByteBacking(size) for _, size in regions]
    made = [GuestRegion(start, each) for (start, _), each in zip(regions, backings, strict=True)]
    return AlignedAccess(GuestRegionCollection.from_regions(made)), backings


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "alignment"),
    [
        (U8, 1), (Le16, 2), (Be16, 2), (Le32, 4), (Be32, 4), (Le64, 8), (LeSize, 8),
        (NativeI16, 2), (NativeU32, 4), (NativeU128, 16), (Descriptor, 8), (Packed, 1),
        (Declared, 2), (Index, 2),
    ],
)
def test_what_counts_as_aligned_for_a_type(cls: type[ByteValued], alignment: int) -> None:
    """The size of an integer, what a structure declares, nothing for one that declares nothing."""
    for addr in range(0x40):
        made = AlignedGuestAddress.new(addr, cls)
        assert (made is not None) == (addr % alignment == 0), addr
        if made is None:
            with pytest.raises(MisalignedGuestAddress) as caught:
                AlignedGuestAddress.of(addr, cls)
            assert (caught.value.addr, caught.value.alignment) == (GuestAddress(addr), alignment)
        else:
            assert made == AlignedGuestAddress.of(GuestAddress(addr), cls)
            assert (made.cls, made.alignment) == (cls, alignment)


def test_the_plain_constructor_refuses() -> None:
    for args in ((), (0x1000, Le32), (GuestAddress(0x1000), Le32)):
        with pytest.raises(ModelError, match=r"AlignedGuestAddress\.new\(addr, cls\)"):
            AlignedGuestAddress(*args)


def test_nothing_changes_one_that_was_made() -> None:
    made = AlignedGuestAddress.of(0x1000, Le32)
    for name in ("_addr", "_cls", "addr"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(made, name, GuestAddress(0x1001))
    assert made.raw_value() == 0x1000


def test_it_is_easily_turned_back() -> None:
    made = AlignedGuestAddress.of(0x1FFC, Le32)
    assert made.to_guest_address() == GuestAddress(0x1FFC)
    assert made.raw_value() == int(made) == 0x1FFC
    assert hex(made) == "0x1ffc"
    assert GuestAddress(made) == GuestAddress(0x1FFC)
    assert repr(made) == "AlignedGuestAddress(0x1ffc, Le32)"


def test_equal_are_those_of_the_same_address_and_type() -> None:
    made = AlignedGuestAddress.of(0x1000, Le32)
    assert made == AlignedGuestAddress.of(GuestAddress(0x1000), Le32)
    assert made != AlignedGuestAddress.of(0x1000, Be32)
    assert made != AlignedGuestAddress.of(0x1004, Le32)
    assert made != GuestAddress(0x1000) and made != 0x1000
    assert {made: 1}[AlignedGuestAddress.of(0x1000, Le32)] == 1
    assert len({made, AlignedGuestAddress.of(0x1000, Be32)}) == 2


def test_copies_and_pickles_are_checked_as_well() -> None:
    made = AlignedGuestAddress.of(0x1008, Le64)
    for again in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert again == made and again.cls is Le64


def test_steps_are_counted_in_values_and_stay_aligned() -> None:
    made = AlignedGuestAddress.of(0x1000, Descriptor)
    assert made.checked_add(0) == made
    assert made.unchecked_add(3) == AlignedGuestAddress.of(0x1030, Descriptor)
    assert made.unchecked_sub(256) == AlignedGuestAddress.of(0, Descriptor)
    assert made.checked_sub(257) is None
    near = AlignedGuestAddress.of(LAST - 15, Le64)
    assert near.checked_add(1) == AlignedGuestAddress.of(LAST - 7, Le64)
    assert near.checked_add(2) is None
    for call, where in ((near.unchecked_add, "behind"), (made.unchecked_sub, "before")):
        with pytest.raises(ModelError, match=f"no address 300 values {where} Aligned"):
            call(300)
    for step in (made.checked_add, made.checked_sub):
        with pytest.raises(ModelError, match="0 or more"):
            step(-1)


def test_offsets_are_counted_in_values() -> None:
    base = AlignedGuestAddress.of(0x1000, Descriptor)
    assert base.unchecked_add(5).checked_offset_from(base) == 5
    assert base.checked_offset_from(base) == 0
    assert base.checked_offset_from(base.unchecked_add(1)) is None
    assert AlignedGuestAddress.of(0x1008, Descriptor).checked_offset_from(base) is None, (
        "aligned, and half a descriptor further on"
    )
    for other in (AlignedGuestAddress.of(0x1000, Le64), GuestAddress(0x1000)):
        with pytest.raises(ModelError, match="means nothing"):
            base.checked_offset_from(other)


def test_a_field_is_checked_for_its_own_type() -> None:
    base = AlignedGuestAddress.of(0x1000, Descriptor)
    assert base.field(8, Le32) == AlignedGuestAddress.of(0x1008, Le32)
    assert base.field(14, Le16) == AlignedGuestAddress.of(0x100E, Le16)
    with pytest.raises(MisalignedGuestAddress) as caught:
        base.field(14, Le32)
    assert (caught.value.addr, caught.value.alignment) == (GuestAddress(0x100E), 4)
    assert str(caught.value) == "guest address 0x100e is not a multiple of 4"
    with pytest.raises(ModelError, match="beyond"):
        base.field(ADDRESS_END - 0x1000, U8)


def test_another_type_at_the_same_address() -> None:
    made = AlignedGuestAddress.of(0x1004, Le32)
    assert AlignedGuestAddress.of(made, Le16).cls is Le16
    assert AlignedGuestAddress.new(made, Le64) is None


@pytest.mark.parametrize("addr", [-1, ADDRESS_END, "0", 4.0, None, Le32(4)])
def test_an_address_is_a_guest_address_or_a_number(addr: int) -> None:
    access, _ = memory_of((0, 16))
    for call in (
        lambda: AlignedGuestAddress.new(addr, Le32), lambda: AlignedGuestAddress.of(addr, Le32),
        lambda: access.read_obj_unaligned(addr, Le32),
        lambda: access.write_obj_unaligned(Le32(1), addr),
    ):
        with pytest.raises(ModelError) as caught:
            call()
        assert not isinstance(caught.value, GuestMemoryError)


@pytest.mark.parametrize("cls", [int, bytes, Le32(4), None])
def test_a_type_says_its_size(cls: type[ByteValued]) -> None:
    with pytest.raises(ModelError):
        AlignedGuestAddress.new(0, cls)


@pytest.mark.parametrize("align", [0, -2, 3, 4])
def test_an_alignment_is_a_power_of_two_that_divides_the_size(align: int) -> None:
    class Crooked(Packed):
        pass

    Crooked.align = align  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="6 bytes with an alignment of"):
        AlignedGuestAddress.new(0, Crooked)


# -- accesses ----------------------------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    access, (backing,) = memory_of((0x1000, 0x20))
    index = AlignedGuestAddress.of(0x1002, Be16)
    access.write_atomic(Be16(0x0102), index)
    assert backing.data[:6] == b"\0\0\1\2\0\0"
    assert access.read_atomic(index) == access.read_obj(index) == 0x0102
    assert type(access.read_atomic(index)) is Be16
    access.write_obj(Be16(0x0304), index)
    assert access.read_obj_unaligned(0x1003, Le16) == 4
    access.write_obj_unaligned(Le32(0xA1A2A3A4), GuestAddress(0x1005))
    assert backing.data[5:9] == b"\xa4\xa3\xa2\xa1"
    assert access.read_obj_unaligned(AlignedGuestAddress.of(0x1006, Le16), Be16) == 0xA3A2


def test_a_structure_is_an_object_and_no_single_access() -> None:
    access, _ = memory_of((0x1000, 0x20))
    place = AlignedGuestAddress.of(0x1010, Descriptor)
    value = Descriptor(addr=0x8000, len=16, flags=1, next=2)
    access.write_obj(value, place)
    assert access.read_obj(place) == value
    assert access.read_atomic(place.field(12, Le16)) == 1
    for call in (lambda: access.read_atomic(place), lambda: access.write_atomic(value, place)):
        with pytest.raises(NotOneAccess) as caught:
            call()
        error = caught.value
        assert (error.addr, error.size, error.why) == (GuestAddress(0x1010), 16, WhyNot.TYPE)
    assert str(caught.value) == (
        "16 bytes at 0x1010 cannot be one access: values of this type have no atomic access"
    )


def test_types_that_have_an_atomic_access() -> None:
    access, (backing,) = memory_of((0, 0x20))
    backing.data[:] = range(0x20)
    for cls in (U8, Le16, Be32, Le64, LeSize, NativeI16, NativeU32, Index):
        place = AlignedGuestAddress.of(0x10, cls)
        assert access.read_atomic(place).raw == bytes(range(0x10, 0x10 + cls.size))
    for cls in (NativeU128, Packed, Declared, Descriptor):
        with pytest.raises(NotOneAccess) as caught:
            access.read_atomic(AlignedGuestAddress.of(0x10, cls))
        assert caught.value.why is WhyNot.TYPE


def test_only_the_unaligned_methods_take_any_address() -> None:
    access, (backing,) = memory_of((0x1000, 0x10))
    for addr in (0x1000, GuestAddress(0x1000), None):
        calls: list[Callable[[], object]] = [
            lambda addr=addr: access.read_atomic(addr),
            lambda addr=addr: access.write_atomic(Le32(1), addr),
            lambda addr=addr: access.read_obj(addr),
            lambda addr=addr: access.write_obj(Le32(1), addr),
        ]
        for call in calls:
            with pytest.raises(ModelError, match=r"AlignedGuestAddress\.of\(addr, cls\)"):
                call()
    assert backing.data == bytes(16)


def test_a_value_is_of_the_type_that_the_address_is_of() -> None:
    access, (backing,) = memory_of((0x1000, 0x10))
    place = AlignedGuestAddress.of(0x1000, Le32)
    for value in (Be32(1), Le16(1), 1, Le32, None):
        for call in (access.write_atomic, access.write_obj):
            with pytest.raises(ModelError):
                call(value, place)
    assert backing.data == bytes(16)
    with pytest.raises(ModelError, match="does not say its size"):
        access.write_obj_unaligned(1, 0x1000)


def test_what_the_memory_raises_is_raised() -> None:
    access, _ = memory_of((0x1000, 6))
    hole = AlignedGuestAddress.of(0x2000, Le32)
    for call in (
        lambda: access.read_atomic(hole), lambda: access.write_atomic(Le32(1), hole),
        lambda: access.read_obj(hole), lambda: access.write_obj(Le32(1), hole),
        lambda: access.read_obj_unaligned(0x2001, Le32),
        lambda: access.write_obj_unaligned(Le32(1), 0x2001),
    ):
        with pytest.raises(InvalidGuestAddress):
            call()
    with pytest.raises(PartialBuffer) as caught:
        access.read_obj(AlignedGuestAddress.of(0x1004, Le32))
    assert (caught.value.expected, caught.value.completed) == (4, 2)


class Heard(Bytes[GuestAddress]):
    """A memory of nothing that hears what is asked of it, and shows none of its inside."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def write(self, buf: Readable, addr: GuestAddress) -> int:
        self.heard.append(("write", bytes(buf), addr))
        return len(buf)

    def read(self, buf: Writable, addr: GuestAddress) -> int:
        self.heard.append(("read", len(buf), addr))
        return len(buf)

    def store(
        self, value: ByteValued, addr: GuestAddress, order: Ordering = Ordering.RELAXED
    ) -> None:
        self.heard.append(("store", value, addr, order))

    def load(self, addr: GuestAddress, cls: type[V], order: Ordering = Ordering.RELAXED) -> V:
        self.heard.append(("load", addr, cls, order))
        return cls.from_raw(bytes(cls.size))


def test_each_method_has_one_counterpart_in_bytes() -> None:
    memory = Heard()
    access = AlignedAccess(memory)
    assert access.memory is memory
    here = AlignedGuestAddress.of(0x1000, Le32)
    access.read_atomic(here)
    access.write_atomic(Le32(1), here)
    access.read_obj(here)
    access.write_obj(Le32(2), here)
    access.read_obj_unaligned(0x1001, Le16)
    access.write_obj_unaligned(Be16(3), 0x1003)
    there = GuestAddress(0x1000)
    assert memory.heard == [
        ("load", there, Le32, Ordering.SEQ_CST), ("store", Le32(1), there, Ordering.SEQ_CST),
        ("read", 4, there), ("write", b"\2\0\0\0", there),
        ("read", 2, GuestAddress(0x1001)), ("write", b"\0\3", GuestAddress(0x1003)),
    ]


def test_what_vm_memory_does_differently() -> None:
    """``load`` at an odd address is InvalidBackendAddress there; here there is no such address.
    ``read_obj`` at one is done there; here it has a name of its own."""
    access, (backing,) = memory_of((0x1000, 0x10))
    backing.data[:] = range(16)
    memory = access.memory
    with pytest.raises(InvalidBackendAddress):
        memory.load(GuestAddress(0x1002), Le32)
    assert memory.read_obj(GuestAddress(0x1002), Be32) == 0x02030405
    assert AlignedGuestAddress.new(0x1002, Be32) is None
    assert access.read_obj_unaligned(0x1002, Be32) == 0x02030405
