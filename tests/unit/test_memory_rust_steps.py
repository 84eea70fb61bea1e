"""The Rust face as vm-memory's traits: views, sections and spaces in the place of others."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rule_checks import ANY, Device, ram, space_of
from rule_checks import io as device

from qemuglue.memory import (
    AddressSpace,
    ByteBacking,
    Contract,
    Le32,
    MemoryRegion,
    MemTxAttrs,
    SparseBacking,
)
from qemuglue.memory.bytes import Bytes
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestIOError,
    HostAddressNotAvailable,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import (
    GuestAddressSpace,
    GuestMemory,
    GuestMemoryAtomic,
    GuestMemoryBackend,
    GuestMemoryRegion,
    GuestRegion,
    GuestRegionCollection,
    Permissions,
)
from qemuglue.memory.rules import RULES_10_0
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.rust_binding import FlatView, MemoryRegionSection
from qemuglue.memory.streams import CHUNK, SliceReader, SliceWriter

TOP = 1 << 64
A = GuestAddress
ONLY_RAM = MemTxAttrs(memory=True)


def rust_over(*placed: tuple[int, MemoryRegion]) -> tuple[RustSpace, AddressSpace]:
    space, _ = space_of(RULES_10_0, *placed)
    return RustSpace(space), space


def bytes_of(region: MemoryRegion) -> bytes:
    assert region.backing is not None
    return region.backing.read(0, len(region.backing))


# -- the traits --------------------------------------------------------------------------------


def sum_of(space: GuestAddressSpace[GuestMemory], addr: int, size: int) -> int:
    """Code of a user who knows vm-memory alone."""
    with space.memory() as mem:
        buf = bytearray(size)
        mem.read_slice(buf, A(addr))
        return sum(buf)


def test_code_for_any_address_space_runs_over_the_model() -> None:
    rust, space = rust_over((0x100, ram(4)), (0x104, ram(4, "b")))
    space.write(0x102, b"\1\2\3\4")
    assert isinstance(rust, GuestAddressSpace) and sum_of(rust, 0x100, 8) == 10
    plain = GuestRegionCollection.from_regions([GuestRegion(0x100, ByteBacking(8))])
    plain.write(b"\1\2\3\4", A(0x102))
    for other in (plain, GuestMemoryAtomic(plain)):
        assert sum_of(other, 0x100, 8) == 10
    assert rust.clone() is rust
    with rust.memory() as view:
        assert isinstance(view, GuestMemoryBackend) and isinstance(view, GuestMemory)
        assert isinstance(view, Bytes) and sum_of(view, 0x100, 8) == 10
        assert view.physical_memory() is view and view.memory() is view
        section = view.find_region(0x100)
        assert isinstance(section, GuestMemoryRegion)
        assert section.file_offset() is None and section.is_hugetlbfs() is None
        with pytest.raises(InvalidGuestAddress), pytest.warns(DeprecationWarning):
            view.try_access(4, A(0), lambda done, size, at, region: size)
        with pytest.warns(DeprecationWarning):
            assert view.try_access(6, A(0x101), lambda done, size, at, region: size) == 6


def test_a_view_may_be_the_map_of_an_atomic_space() -> None:
    rust, _ = rust_over((0x100, ram(4)))
    with rust.memory() as view:
        space = GuestMemoryAtomic(view)
        assert space.memory().write(b"abcd", A(0x100)) == 4
        assert space.memory().num_regions() == 1


# -- slices ------------------------------------------------------------------------------------


def test_sections_of_ram_have_slices() -> None:
    memory = ram(0x10)
    rust, space = rust_over((0x100, memory), (0x110, ram(0x10, "b")))
    with rust.memory() as view:
        assert [each.len() for each in view.get_slices(0x108, 0x10)] == [8, 8]
        assert [each.len() for each in view.get_slices(A(0x108), 4, Permissions.No)] == [4]
        piece = view.get_slice(0x104, 4)
        piece.write(b"abcd", 0)
        assert bytes_of(memory)[:10] == b"\0\0\0\0abcd\0\0" and space.read(0x104, 4)[1] == b"abcd"
        piece.store(Le32(7), 0)
        assert view.load(0x104, Le32) == 7 and piece.load(0, Le32) == 7
        assert piece.ptr_guard().as_ptr()[0] == 7
        (first, second) = view
        assert first.as_volatile_slice().len() == 0x10
        assert second.get_slice(0, 0x10).len() == 0x10 and second.get_slice(0x10, 0).is_empty()
        for wrong in ((0x10, 1), (0, 0x11), (0x11, 0), (TOP - 1, 1)):
            with pytest.raises(InvalidBackendAddress):
                first.get_slice(MemoryRegionAddress(wrong[0]), wrong[1])
        with pytest.raises(InvalidGuestAddress) as caught:
            view.get_slice(0x120, 0)
        assert caught.value.addr == A(0x120)
        pieces = view.get_slices(0x118, 0x10)
        assert next(pieces).len() == 8
        with pytest.raises(InvalidGuestAddress):
            next(pieces)


def test_an_alias_shows_a_part_of_its_ram() -> None:
    memory = ram(0x100)
    rust, _ = rust_over((0x800, MemoryRegion.alias_of("window", memory, 0x40, 0x10)))
    with rust.memory() as view:
        (section,) = view
        section.get_slice(4, 4).write(b"abcd", 0)
        assert bytes_of(memory)[0x44:0x48] == b"abcd"
        with pytest.raises(InvalidBackendAddress):
            section.get_slice(0xC, 8)


def test_what_is_no_ram_has_none() -> None:
    rom = MemoryRegion.rom("rom", 0x10, ByteBacking(0x10))
    far = MemoryRegion.ram("far", 0x10, SparseBacking(0x10))
    rust, _ = rust_over((0, device(ANY, size=0x10)), (0x10, rom), (0x20, far))
    with rust.memory() as view:
        for addr in (0, 0x10, 0x20):
            with pytest.raises(HostAddressNotAvailable):
                view.get_slice(addr, 4)
            with pytest.raises(HostAddressNotAvailable):
                next(view.get_slices(addr, 4))
        for section in view:
            with pytest.raises(HostAddressNotAvailable):
                section.as_volatile_slice()
        assert view.check_range(0, 0x30), "there are no slices, and still it can be accessed"
        assert view.check_range(0, 0x30, Permissions.Write)


# -- streams -----------------------------------------------------------------------------------


def test_streams_over_ram_and_devices() -> None:
    memory, more = ram(4), ram(4, "more")
    rust, space = rust_over((0, memory), (4, device(ANY, size=4)), (8, more))
    with rust.memory() as view:
        source = SliceReader(b"abcdEFGHijkl")
        assert view.read_volatile_from(0, source, 12) == 12 and source.left() == 0
        assert bytes_of(memory) == b"abcd" and bytes_of(more) == b"ijkl"
        log = space.ops
        assert isinstance(log, Device) and log.log == [("write", "dev", 0, 4, 0x48474645)]
        sink = bytearray()
        assert view.write_volatile_to((2, MemTxAttrs()), sink, 9) == 9
        assert sink[:2] == b"cd" and sink[6:] == b"ijk"
        view.read_exact_volatile_from(A(8), io.BytesIO(b"1234"), 4)
        view.write_all_volatile_to(8, sink, 4)
        assert sink[-4:] == b"1234"


@pytest.mark.parametrize("at", [12, 0x1000, TOP - 1])
def test_a_stream_is_not_touched_where_no_section_is(at: int) -> None:
    rust, _ = rust_over((0, ram(12)))
    source, sink = SliceReader(b"abcd"), SliceWriter(bytearray(4))
    with rust.memory() as view:
        uses: list[Callable[[], object]] = [
            lambda: view.read_volatile_from(at, source, 4),
            lambda: view.read_exact_volatile_from(at, source, 4),
            lambda: view.write_volatile_to(at, sink, 4),
            lambda: view.write_all_volatile_to(at, sink, 4),
        ]
        for use in uses:
            with pytest.raises(InvalidBackendAddress):
                use()
        assert view.read_volatile_from(at, source, 0) == view.write_volatile_to(at, sink, 0) == 0
    assert source.left() == 4 and sink.room == 4


def test_what_ends_a_stream() -> None:
    memory = ram(4)
    rust, _ = rust_over((0, memory), (4, device(Contract(), size=4)), (0x10, ram(4, "more")))
    with rust.memory() as view:
        assert view.read_volatile_from(0, io.BytesIO(b"ab"), 4) == 2, "the stream"
        sink = bytearray()
        assert view.write_volatile_to(0x12, sink, 9) == 2, "the map"
        with pytest.raises(PartialBuffer) as caught:
            view.write_all_volatile_to(0x12, sink, 3)
        assert (caught.value.expected, caught.value.completed) == (3, 2)
        with pytest.raises(PartialBuffer) as caught:
            view.read_exact_volatile_from(2, io.BytesIO(b"a"), 2)
        assert (caught.value.expected, caught.value.completed) == (2, 1)
        assert view.read_volatile_from(0x12, b"abcd", 4) == 2
        with pytest.raises(GuestIOError) as failed:
            view.write_volatile_to(0, memoryview(bytearray(2)), 4)
        assert failed.value.kind is ErrorKind.WRITE_ZERO
        with pytest.raises(InvalidGuestAddress):
            view.write_volatile_to((4, ONLY_RAM), sink, 4)
        with pytest.raises(InvalidGuestAddress):
            view.read_volatile_from((4, ONLY_RAM), b"abcd", 4)
        assert view.read_volatile_from((2, ONLY_RAM), b"abcdef", 6) == 2, "the device, later"
        assert view.write_volatile_to((2, ONLY_RAM), sink, 6) == 2


def test_streams_over_the_end_of_the_addresses() -> None:
    low, high = ram(4, "low"), ram(4, "high")
    rust, _ = rust_over((0, low), (TOP - 4, high))
    with rust.memory() as view:
        assert view.read_volatile_from(TOP - 4, b"abcdefghij", 10) == 8
        assert bytes_of(high) + bytes_of(low) == b"abcdefgh"
        sink = bytearray()
        assert view.write_volatile_to(TOP - 2, sink, 9) == 6 and sink == b"cdefgh"


def test_streams_of_a_section_end_with_it() -> None:
    memory = ram(8)
    rust, _ = rust_over((0x100, memory), (0x108, ram(8, "next")))
    with rust.memory() as view:
        section = view.find_region(0x100)
        assert isinstance(section, MemoryRegionSection)
        assert section.read_volatile_from(6, b"abcd", 4) == 2
        sink = bytearray()
        assert section.write_volatile_to(MemoryRegionAddress(6), sink, 9) == 2 and sink == b"ab"
        for at in (8, TOP - 1):
            with pytest.raises(InvalidBackendAddress):
                section.read_volatile_from(at, b"abcd", 4)
            with pytest.raises(InvalidBackendAddress):
                section.write_volatile_to((at, MemTxAttrs()), sink, 1)
        with pytest.raises(PartialBuffer):
            section.read_exact_volatile_from(6, b"abcd", 4)
        section.write_all_volatile_to(6, sink, 2)
        assert sink == b"abab"


def test_long_streams_go_in_chunks() -> None:
    size = CHUNK + 0x1000
    memory = MemoryRegion.ram("ram", size, SparseBacking(size))
    rust, _ = rust_over((0, memory))

    class Counting(io.BytesIO):
        asked: list[int]

        def read1(self, count: int | None = -1, /) -> bytes:
            self.asked.append(count or 0)
            return super().read1(count)

    source = Counting(bytes([1]) * size)
    source.asked = []
    with rust.memory() as view:
        assert isinstance(view, FlatView)
        assert view.read_volatile_from(0, source, TOP) == size
    assert max(source.asked) == CHUNK and bytes_of(memory)[-1] == 1
