"""axaddrspace's face and vm-memory's on the same regions: one request, both outcomes.

The table in ``qemuglue.memory.accessor`` row by row, and QEMU's C face where it is named there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion, MemTxResult
from qemuglue.memory.accessor import AddressOverflow, InvalidInput
from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.endian import Be32, Le16, Le32, Le64
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import (
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import GuestRegion, GuestRegionCollection
from qemuglue.memory.region_accessor import RegionAccessor

#: The first region, where the second begins, and where a hole does.
LOW, HIGH, HOLE = 0x1000, 0x1010, 0x1020
TOP = (1 << 64) - 16


class Both:
    """The same memory with the three faces: 0x1000 to 0x101f in two regions, then a hole; and
    16 bytes at each end of the address space."""

    def __init__(self) -> None:
        self.low, self.high, self.first, self.last = (
            ByteBacking(bytearray(range(start, start + 16))) for start in (0, 16, 32, 48)
        )
        parts = [(0, self.first), (LOW, self.low), (HIGH, self.high), (TOP, self.last)]
        self.vm = GuestRegionCollection.from_regions([GuestRegion(at, b) for at, b in parts])
        self.ax = RegionAccessor.from_collection(self.vm)
        root = MemoryRegion.container_of("system", 1 << 64)
        for at, backing in parts:
            root.add_subregion(at, MemoryRegion.ram(f"ram{at:x}", 16, backing))
        self.c = AddressSpace("memory", root)

    def bytes(self) -> bytes:
        return bytes(self.low.data + self.high.data + self.first.data + self.last.data)


@pytest.fixture
def both() -> Both:
    return Both()


def raised(call: Callable[[], object]) -> Any:
    """The error that ``call`` ends with."""
    with pytest.raises(ModelError) as caught:
        call()
    return caught.value


def at(addr: int) -> GuestAddress:
    return GuestAddress(addr)


def test_nothing_at_the_address(both: Both) -> None:
    for addr in (LOW - 1, HOLE):
        for ax, vm in (
            (lambda a=addr: both.ax.read_obj(a, Le32),
             lambda a=addr: both.vm.read_obj(at(a), Le32)),
            (lambda a=addr: both.ax.write_buffer(a, b"xy"),
             lambda a=addr: both.vm.write_slice(b"xy", at(a))),
        ):
            error = raised(ax)
            assert type(error) is InvalidInput and error.guest_addr == at(addr)
            error = raised(vm)
            assert type(error) is InvalidGuestAddress and error.addr == at(addr)


def test_no_bytes_at_a_bad_address(both: Both) -> None:
    for addr in (0x20, HOLE):
        both.ax.read_buffer(addr, bytearray())
        both.ax.write_buffer(addr, b"")
        assert both.vm.read(bytearray(), at(addr)) == both.vm.write(b"", at(addr)) == 0


def test_an_object_of_no_bytes_at_a_bad_address(both: Both) -> None:
    class Nothing:
        size: ClassVar[int] = 0
        raw = b""

        @classmethod
        def from_raw(cls, data: object) -> Nothing:
            return cls()

    assert type(raised(lambda: both.ax.read_obj(HOLE, Nothing))) is InvalidInput
    assert type(raised(lambda: both.ax.write_obj(HOLE, Nothing()))) is InvalidInput
    assert isinstance(both.vm.read_obj(at(HOLE), Nothing), Nothing)
    both.vm.write_obj(Nothing(), at(HOLE))


def test_an_object_that_two_regions_share(both: Both) -> None:
    addr = HIGH - 2
    assert type(raised(lambda: both.ax.read_obj(addr, Le32))) is InvalidInput
    assert type(raised(lambda: both.ax.read_volatile(addr, Le32))) is InvalidInput
    assert both.vm.read_obj(at(addr), Le32) == 0x11100F0E
    assert type(raised(lambda: both.vm.load(at(addr), Le32))) is InvalidBackendAddress
    # QEMU: one access of the first region, which has no room for it.
    assert both.c.load(addr, Le32) == (MemTxResult.DECODE_ERROR, 0)
    assert both.c.read(addr, 4) == (0, bytes([14, 15, 16, 17]))
    before = both.bytes()
    assert type(raised(lambda: both.ax.write_obj(addr, Le32(0)))) is InvalidInput
    assert type(raised(lambda: both.vm.store(Le32(0), at(addr)))) is InvalidBackendAddress
    assert both.bytes() == before
    both.vm.write_obj(Le32(0x64636261), at(addr))
    assert both.low.data[14:] + both.high.data[:2] == b"abcd"


def test_a_buffer_over_contiguous_regions(both: Both) -> None:
    mine, theirs = bytearray(6), bytearray(6)
    both.ax.read_buffer(HIGH - 3, mine)
    both.vm.read_slice(theirs, at(HIGH - 3))
    assert mine == theirs == bytes(range(13, 19)) == both.c.read(HIGH - 3, 6)[1]
    both.ax.write_buffer(HIGH - 1, b"ab")
    assert both.low.data[15] == ord("a") and both.high.data[0] == ord("b")
    both.vm.write_slice(b"cd", at(HIGH - 1))
    assert both.low.data[15] == ord("c") and both.high.data[0] == ord("d")


def test_reading_into_a_hole(both: Both) -> None:
    mine, theirs, more = bytearray(b"." * 6), bytearray(b"." * 6), bytearray(b"." * 6)
    error = raised(lambda: both.ax.read_buffer(HOLE - 4, mine))
    assert type(error) is InvalidInput and error.guest_addr == at(HOLE)
    assert both.vm.read(theirs, at(HOLE - 4)) == 4
    error = raised(lambda: both.vm.read_slice(more, at(HOLE - 4)))
    assert type(error) is PartialBuffer and (error.expected, error.completed) == (6, 4)
    assert mine == theirs == more == bytes([28, 29, 30, 31]) + b".."
    # QEMU goes on: the bytes that are missing are 0, and the result says so.
    assert both.c.read(HOLE - 4, 6) == (MemTxResult.DECODE_ERROR, bytes([28, 29, 30, 31, 0, 0]))


def test_writing_into_a_hole(both: Both) -> None:
    assert type(raised(lambda: both.ax.write_buffer(HOLE - 2, b"abcd"))) is InvalidInput
    assert both.high.data[13:] == b"\x1dab"
    assert both.vm.write(b"cdef", at(HOLE - 2)) == 2
    assert both.high.data[13:] == b"\x1dcd"
    error = raised(lambda: both.vm.write_slice(b"efgh", at(HOLE - 2)))
    assert type(error) is PartialBuffer and (error.expected, error.completed) == (4, 2)
    assert both.high.data[13:] == b"\x1def"


def test_an_object_that_runs_into_a_hole(both: Both) -> None:
    before = both.bytes()
    assert type(raised(lambda: both.ax.write_obj(HOLE - 2, Be32(0)))) is InvalidInput
    assert both.bytes() == before
    assert type(raised(lambda: both.vm.write_obj(Be32(0), at(HOLE - 2)))) is PartialBuffer
    assert both.high.data[13:] == b"\x1d\0\0"


def test_an_object_at_an_odd_address(both: Both) -> None:
    for addr in (LOW + 1, LOW + 3):
        want = int.from_bytes(range(addr - LOW, addr - LOW + 4), "little")
        assert both.ax.read_obj(addr, Le32) == both.ax.read_volatile(addr, Le32) == want
        assert both.vm.read_obj(at(addr), Le32) == want
        assert type(raised(lambda a=addr: both.vm.load(at(a), Le32))) is InvalidBackendAddress
        assert both.c.load(addr, Le32) == (0, want)
    both.ax.write_volatile(LOW + 1, Le16(0x6261))
    assert both.low.data[:4] == b"\x00ab\x03"
    before = both.bytes()
    error = raised(lambda: both.vm.store(Le16(0), at(LOW + 1)))
    assert type(error) is InvalidBackendAddress and both.bytes() == before


def test_a_buffer_beyond_the_last_address(both: Both) -> None:
    addr, wrapped = TOP + 12, bytes([60, 61, 62, 63, 32, 33])
    mine, theirs = bytearray(b"." * 6), bytearray(6)
    error = raised(lambda: both.ax.read_buffer(addr, mine))
    assert type(error) is AddressOverflow and mine == wrapped[:4] + b".."
    assert both.vm.read(theirs, at(addr)) == 6 and theirs == wrapped
    assert both.c.read(addr, 6) == (0, wrapped)
    assert type(raised(lambda: both.ax.write_buffer(addr, b"abcdef"))) is AddressOverflow
    assert both.last.data[12:] == b"abcd" and both.first.data[0] == 32
    assert both.vm.write(b"ABCDEF", at(addr)) == 6
    assert both.last.data[12:] == b"ABCD" and both.first.data[:2] == b"EF"


def test_a_buffer_that_ends_at_the_last_address(both: Both) -> None:
    mine, theirs = bytearray(4), bytearray(4)
    both.ax.read_buffer(TOP + 12, mine)
    both.vm.read_slice(theirs, at(TOP + 12))
    assert mine == theirs == bytes([60, 61, 62, 63])
    assert both.ax.read_obj(TOP + 8, Le64) == both.vm.load(at(TOP + 8), Le64)


def test_a_bitmap_hears_of_vm_memory_s_writes_alone() -> None:
    backing, bitmap = ByteBacking(0x2000), AtomicBitmap(0x2000, 0x1000)
    region = GuestRegion(0, backing, bitmap=bitmap)
    vm = GuestRegionCollection.from_regions([region])
    ax = RegionAccessor.from_collection(vm)
    ax.write_obj(0, Le32(1))
    ax.write_buffer(0xFFE, b"abcd")
    assert not any(bitmap.dirty_at(offset) for offset in range(0, 0x2000, 0x800))
    vm.write_obj(Le32(2), at(4))
    assert bitmap.dirty_at(0) and not bitmap.dirty_at(0x1000)
    assert backing.data[:8] == b"\1\0\0\0\2\0\0\0" and backing.data[0xFFE:0x1002] == b"abcd"
