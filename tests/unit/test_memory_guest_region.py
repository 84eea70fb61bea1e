"""One region of guest memory: its addresses, its slices, its bytes, what it cannot do."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from guest_regions import Bare, Remote

from qemuglue.errors import ModelError
from qemuglue.memory import ByteBacking, Le32, SparseBacking, ViewBacking
from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.bitmap import NO_BITMAP
from qemuglue.memory.endian import U8, Be16, Le16
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestIOError,
    HostAddressNotAvailable,
    InvalidBackendAddress,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import (
    FileOffset,
    GuestMemoryRegion,
    GuestMemoryRegionBytes,
    GuestRegion,
)
from qemuglue.memory.volatile import VolatileSlice

TOP = 1 << 64
At = MemoryRegionAddress


def region(size: int = 0x400, start: int = 0x1000) -> GuestRegion:
    return GuestRegion(start, ByteBacking(size))


# -- addresses ---------------------------------------------------------------------------------


def test_where_a_region_is() -> None:
    one = region()
    assert one.len() == 0x400 and one.start_addr() == GuestAddress(0x1000)
    assert one.last_addr() == GuestAddress(0x13FF), "inclusive"
    assert one.address_in_range(At(0)) and one.address_in_range(At(0x3FF))
    assert not one.address_in_range(At(0x400)) and not one.address_in_range(At(TOP - 1))
    assert one.check_address(At(0x3FF)) == At(0x3FF) and one.check_address(At(0x400)) is None
    assert one.checked_offset(At(0x100), 0x2FF) == At(0x3FF)
    assert one.checked_offset(At(0x100), 0x300) is None
    assert one.checked_offset(At(0x100), TOP - 1) is None, "and no overflow back into it"
    assert one.to_region_addr(GuestAddress(0x1000)) == At(0)
    assert one.to_region_addr(GuestAddress(0x13FF)) == At(0x3FF)
    assert one.to_region_addr(GuestAddress(0xFFF)) is None
    assert one.to_region_addr(GuestAddress(0x1400)) is None
    assert repr(one) == "<GuestRegion 0x1000+0x400>"


def test_a_region_may_end_with_the_addresses_and_not_behind() -> None:
    assert region(0x10, TOP - 0x10).last_addr() == GuestAddress(TOP - 1)
    with pytest.raises(ModelError, match="beyond"):
        region(0x11, TOP - 0x10)
    with pytest.raises(ModelError, match="at least one byte"):
        region(0)
    assert region(1, 5).last_addr() == GuestAddress(5)
    short = GuestRegion(GuestAddress(0), ByteBacking(8), size=4)
    assert short.len() == 4 and short.read(bytearray(8), At(0)) == 4
    for size in (0, 9):
        with pytest.raises(ModelError, match="at least one byte"):
            GuestRegion(0, ByteBacking(8), size=size)


def test_a_region_that_lies_about_its_size_has_no_last_address() -> None:
    with pytest.raises(ModelError, match="no bytes"):
        Bare(5, 0).last_addr()
    with pytest.raises(ModelError, match="beyond"):
        Bare(TOP - 1, 2).last_addr()


# -- what a region may leave out ---------------------------------------------------------------


def test_a_region_without_slices_has_no_bytes() -> None:
    bare = Bare(0x1000, 0x100)
    uses: list[Callable[[], object]] = [
        lambda: bare.get_host_address(At(0)), lambda: bare.get_slice(At(0), 1),
        bare.as_volatile_slice, lambda: bare.write(b"x", At(0)),
        lambda: bare.read(bytearray(1), At(0)), lambda: bare.write_slice(b"x", At(0)),
        lambda: bare.read_slice(bytearray(1), At(0)), lambda: bare.store(U8(1), At(0)),
        lambda: bare.load(At(0), U8), lambda: bare.read_volatile_from(At(0), b"x", 1),
        lambda: bare.read_exact_volatile_from(At(0), b"x", 1),
        lambda: bare.write_volatile_to(At(0), bytearray(), 1),
        lambda: bare.write_all_volatile_to(At(0), bytearray(), 1),
        lambda: bare.write(b"", At(0)),
    ]
    for use in uses:
        with pytest.raises(HostAddressNotAvailable):
            use()
    assert bare.file_offset() is None and bare.is_hugetlbfs() is None
    assert bare.bitmap() is NO_BITMAP


@pytest.mark.parametrize("missing", ["len", "start_addr", "bitmap"])
def test_a_region_cannot_be_made_without(missing: str) -> None:
    methods = {n: getattr(Bare, n) for n in ("len", "start_addr", "bitmap") if n != missing}
    with pytest.raises(TypeError, match=f"abstract method '?{missing}"):
        type("Incomplete", (GuestMemoryRegionBytes,), methods)()
    assert issubclass(GuestRegion, GuestMemoryRegion)


# -- slices ------------------------------------------------------------------------------------


def test_get_slice() -> None:
    one = region()
    assert one.get_slice(At(0x100), 0x200).len() == 0x200
    assert one.get_slice(At(0x200), 0).is_empty() and one.get_slice(At(0x400), 0).is_empty()
    for wrong in ((0x300, 0x200), (0x400, 1), (0x401, 0), (TOP - 1, 2), (0, TOP - 1)):
        with pytest.raises(InvalidBackendAddress):
            one.get_slice(At(wrong[0]), wrong[1])
    piece = one.get_slice(At(2), 3)
    piece.write(b"abc", 0)
    assert one.backing.read(0, 6) == b"\0\0abc\0"
    assert isinstance(piece, VolatileSlice) and piece.offset_in_backing == 2


def test_as_volatile_slice() -> None:
    one = region()
    whole = one.as_volatile_slice()
    assert whole.len() == 0x400
    ref = whole.get_ref(0x200, Le32)
    ref.store(Le32(0x12345678))
    assert ref.load() == 0x12345678 and one.load(At(0x200), Le32) == 0x12345678


def test_a_pointer_into_a_region() -> None:
    one = GuestRegion(0x1000, ByteBacking(8), size=6)
    pointer = one.get_host_address(At(2))
    assert len(pointer) == 4, "up to the end of the region"
    pointer[1] = 7
    assert one.backing.read(0, 8) == b"\0\0\0\7\0\0\0\0"
    same = one.get_slice(At(2), 3).ptr_guard().as_ptr()
    assert same.obj is pointer.obj and same[1] == 7 and len(same) == 3
    for wrong in (6, TOP - 1):
        with pytest.raises(InvalidBackendAddress):
            one.get_host_address(At(wrong))
    far = GuestRegion(0, Remote(4))
    with pytest.raises(HostAddressNotAvailable):
        far.get_host_address(At(0))
    with pytest.raises(InvalidBackendAddress):
        far.get_host_address(At(4))


# -- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "backing", [ByteBacking(10), SparseBacking(10), Remote(10),
                ViewBacking(memoryview(bytearray(10)))], ids=lambda b: type(b).__name__,
)
def test_bytes_of_a_region_over_any_backing(backing: ByteBacking) -> None:
    one = GuestRegion(0x1000, backing)
    assert one.write(b"abc", At(0)) == 3 and one.write(b"xyz", At(8)) == 2
    buf = bytearray(12)
    assert one.read(buf, At(0)) == 10 and buf == b"abc\0\0\0\0\0xy\0\0"
    assert one.write(b"", At(99)) == one.read(bytearray(), At(99)) == 0
    for wrong in (lambda: one.write(b"x", At(10)), lambda: one.read(buf, At(10)),
                  lambda: one.write_slice(b"x", At(10)), lambda: one.read_slice(buf, At(TOP - 1))):
        with pytest.raises(InvalidBackendAddress):
            wrong()
    with pytest.raises(PartialBuffer) as caught:
        one.write_slice(b"12345", At(7))
    assert (caught.value.expected, caught.value.completed) == (5, 3)
    with pytest.raises(PartialBuffer) as caught:
        one.read_slice(buf, At(1))
    assert (caught.value.expected, caught.value.completed) == (12, 9) and buf[6:9] == b"123"
    one.write_obj(Be16(0x4142), At(0))
    assert one.read_obj(At(0), Le16) == 0x4241


def test_atomic_accesses() -> None:
    one = region(0x1000, 0)
    assert one.load(At(0), Le32) == 0
    one.store(Le32(100), At(0))
    assert one.load(At(0), Le32) == 100 and one.backing.read(0, 4) == b"d\0\0\0"
    for bad in (0x1000, 0xFFD, 1, 2, TOP - 1):
        with pytest.raises(InvalidBackendAddress):
            one.load(At(bad), Le32)
        with pytest.raises(InvalidBackendAddress):
            one.store(Le32(1), At(bad))
    assert one.load(At(0), Le32) == 100


def test_streams_of_a_region() -> None:
    one = region(8)
    assert one.read_volatile_from(At(6), io.BytesIO(b"abcdef"), 6) == 2
    with pytest.raises(InvalidBackendAddress):
        one.read_volatile_from(At(9), io.BytesIO(b"x"), 1)
    one.read_exact_volatile_from(At(0), io.BytesIO(b"123456"), 4)
    assert one.backing.read(0, 8) == b"1234\0\0ab"
    with pytest.raises(GuestIOError) as caught:
        one.read_exact_volatile_from(At(0), io.BytesIO(b"12"), 4)
    assert caught.value.kind is ErrorKind.UNEXPECTED_EOF, "a region tells it as its slice does"
    with pytest.raises(InvalidBackendAddress):
        one.read_exact_volatile_from(At(6), io.BytesIO(b"1234"), 4)
    vec = bytearray()
    assert one.write_volatile_to(At(6), vec, 6) == 2 and vec == b"ab"
    one.write_all_volatile_to(At(0), vec, 4)
    assert vec == b"ab1234"
    with pytest.raises(InvalidBackendAddress):
        one.write_all_volatile_to(At(6), vec, 4)
    with pytest.raises(GuestIOError) as caught:
        one.write_all_volatile_to(At(0), memoryview(bytearray(2)), 4)
    assert caught.value.kind is ErrorKind.WRITE_ZERO


def test_what_a_backing_refuses_goes_through() -> None:
    one = GuestRegion(0, Remote(8, refused=4))
    with pytest.raises(InvalidBackendAddress):
        one.write(b"12345678", At(0))
    with pytest.raises(InvalidBackendAddress):
        one.load(At(4), Le32)
    assert one.write(b"1234", At(0)) == 4


# -- dirty tracking, and what is only told -------------------------------------------------------


def test_writes_are_noted_where_they_were_made() -> None:
    bitmap = AtomicBitmap(0x4000, 0x1000)
    one = GuestRegion(0x8000, ByteBacking(0x4000), bitmap=bitmap)

    def dirty() -> list[int]:
        found = [n for n in range(4) if one.bitmap().dirty_at(n << 12)]
        bitmap.reset()
        return found

    one.read(bytearray(0x4000), At(0))
    one.load(At(0), Le32)
    assert dirty() == []
    one.write(b"xy", At(0x1FFF))
    assert dirty() == [1, 2]
    one.store(Le32(1), At(0x3000))
    assert dirty() == [3]
    one.get_slice(At(0x2000), 4).write(b"x", 0)
    assert dirty() == [2]
    one.read_volatile_from(At(0x1000), b"abc", 3)
    assert dirty() == [1]
    piece = one.get_slice(At(0x1000), 0x1000)
    one.write_obj(Le32(1), At(0x1004))
    assert piece.bitmap().dirty_at(0) and dirty() == [1]


def test_a_file_is_told() -> None:
    file = object()
    where = FileOffset(file, 1234)
    assert where.start() == 1234 and where.file() is file and where.arc() is file
    assert FileOffset.from_arc(file, 5).start() == 5 and "0x4d2" in repr(where)
    one = GuestRegion(0, ByteBacking(4), file_offset=where)
    assert one.file_offset() is where and region().file_offset() is None
