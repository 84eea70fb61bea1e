"""What QEMU's Rust bindings do otherwise than its C functions, side by side on one map.

One test per difference that ``rust_binding`` lists. Each makes the same map twice and does the
same access through either face.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
from oracle import ACCESS_ERROR, DECODE_ERROR, ERROR, OK, Event, Recorder
from rule_checks import ANY, DEBUG, ONLY_MEMORY, Device, io, ram, reads, space_of

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, Contract, Endian, MemoryRegion, MemTxAttrs
from qemuglue.memory.bytes import Ordering
from qemuglue.memory.endian import U8, Be16, Be32, Be64, Le16, Le32, Le64
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestAddressOverflow,
    GuestIOError,
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.rules import RULES_10_0
from qemuglue.memory.rust_binding import AddressSpace as RustSpace

TOP = 1 << 64
Placed = tuple[int, MemoryRegion]


class Failing(Device):
    """Says ``result`` to every access."""

    def __init__(self, result: int) -> None:
        super().__init__()
        self.result = result

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        return self.result, super().read(region, offset, size, attrs)[1]

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        super().write(region, offset, value, size, attrs)
        return self.result


def both(
    *maps: Callable[[], Placed], target_big: bool = False
) -> tuple[AddressSpace, Recorder, RustSpace, Recorder]:
    """(C face, its device, Rust face, its device): two equal maps."""
    c, c_device = space_of(RULES_10_0, *(make() for make in maps), target_big=target_big)
    twin, device = space_of(RULES_10_0, *(make() for make in maps), target_big=target_big)
    return c, c_device, RustSpace(twin), device


def ram_at(addr: int, size: int = 0x100) -> Callable[[], Placed]:
    return lambda: (addr, ram(size, f"ram{addr:x}"))


def io_at(addr: int, contract: Contract = ANY, size: int = 0x100) -> Callable[[], Placed]:
    return lambda: (addr, io(contract, f"dev{addr:x}", size))


# -- the first error ends it ---------------------------------------------------------------------


def test_a_write_ends_at_the_first_error_where_c_goes_on() -> None:
    c, c_device, rust, device = both(ram_at(0), ram_at(0x108))
    data = bytes(range(1, 0x19))
    assert c.write(0xF8, data) == DECODE_ERROR
    assert c.read(0x108, 8) == (OK, data[16:]), "C wrote behind the hole"
    assert rust.write(data, GuestAddress(0xF8)) == 8
    assert rust.space.read(0xF8, 8) == (OK, data[:8])
    assert rust.space.read(0x108, 8) == (OK, bytes(8)), "the Rust face did not"
    holes: list[Event] = [("invalid", "", at, 4, True, "rejected") for at in (0x100, 0x104)]
    assert c_device.log[:2] == holes
    assert device.log == holes[:1]


def test_a_read_ends_at_the_first_error_where_c_goes_on() -> None:
    c, _, rust, device = both(ram_at(0), ram_at(0x108))
    for space in (c, rust.space):
        assert space.write(0xF8, b"before..") == space.write(0x108, b"behind..") == OK
    mine, theirs = bytearray(b"\xee" * 24), bytearray(b"\xee" * 24)
    assert c.read_into(0xF8, theirs) == DECODE_ERROR
    assert theirs == b"before.." + bytes(8) + b"behind.."
    assert rust.read(mine, GuestAddress(0xF8)) == 8
    # The step that failed left zeros, as a step does in C; behind it nothing was touched.
    assert mine == b"before.." + bytes(4) + b"\xee" * 12
    assert len(device.log) == 1


def test_nothing_moved_is_an_error_where_c_has_a_result() -> None:
    c, _, rust, _ = both(ram_at(0x100))
    assert c.write(0xF8, b"x" * 16) == DECODE_ERROR and c.read(0x100, 8) == (OK, b"x" * 8)
    with pytest.raises(InvalidBackendAddress):
        rust.write(b"x" * 16, GuestAddress(0xF8))
    assert rust.space.read(0x100, 8) == (OK, bytes(8))


def test_nothing_to_move_is_no_error_anywhere() -> None:
    c, c_device, rust, device = both()
    assert c.write(0x40, b"") == OK and c.read(0x40, 0) == (OK, b"")
    assert rust.write(b"", 0x40) == 0 and rust.read(bytearray(), 0x40) == 0
    with rust.memory() as view:
        view.write_slice(b"", (GuestAddress(TOP - 1), ONLY_MEMORY))
        view.read_slice(bytearray(), 0x40)
    assert c_device.log == device.log == []


def test_what_was_moved_is_told_where_c_has_one_result_for_all() -> None:
    c, _, rust, _ = both(ram_at(0))
    assert c.write(0xFC, b"12345678") == DECODE_ERROR
    with rust.memory() as view:
        assert view.write(b"12345678", 0xFC) == 4
        with pytest.raises(PartialBuffer) as caught:
            view.write_slice(b"87654321", 0xFC)
        assert (caught.value.expected, caught.value.completed) == (8, 4)
        assert isinstance(caught.value.__cause__, InvalidBackendAddress)
        assert rust.space.read(0xFC, 4) == (OK, b"8765"), "what was moved stays"
        buf = bytearray(8)
        with pytest.raises(PartialBuffer):
            view.read_slice(buf, 0xFC)
        assert buf == b"8765" + bytes(4)
        with pytest.raises(InvalidBackendAddress):
            view.write_slice(b"87654321", 0x100)


# -- single accesses across the end of a region ----------------------------------------------------


def test_a_store_across_the_end_of_ram_is_refused_where_c_sends_it_whole() -> None:
    c, c_device, rust, device = both(ram_at(0), io_at(0x100))
    assert c.store(0xFE, Le32(0x44332211)) == DECODE_ERROR
    assert c_device.log == [("invalid", "ram0", 0xFE, 4, True, "rejected")], "whole, to the RAM"
    with pytest.raises(InvalidBackendAddress):
        rust.store(GuestAddress(0xFE), Le32(0x44332211))
    assert device.log == []
    for space in (c, rust.space):
        assert space.read(0xFE, 2) == (OK, bytes(2)), "in neither the RAM was written"


def test_a_load_across_the_end_of_ram_is_refused_where_c_reads_zero() -> None:
    c, c_device, rust, device = both(ram_at(0), ram_at(0x100))
    for space in (c, rust.space):
        space.write(0xFC, b"\xff" * 8)
    assert c.load(0xFE, Le32) == (DECODE_ERROR, 0)
    assert c_device.log == [("invalid", "ram0", 0xFE, 4, False, "rejected")]
    with pytest.raises(InvalidBackendAddress):
        rust.load(GuestAddress(0xFE), Le32)
    assert device.log == []
    # As bytes both have it.
    assert c.read(0xFE, 4) == (OK, b"\xff" * 4)
    with rust.memory() as view:
        assert view.read_obj(0xFE, Le32) == 0xFFFFFFFF


def test_ram_ends_at_the_last_whole_page_for_both() -> None:
    """QEMU dispatches a part of a page apart; so RAM seems to end there as well."""
    c, c_device, rust, device = both(lambda: (0x800, ram(0x1810)))
    for at, whole in ((0xFFC, True), (0xFFE, False), (0x1FFE, False), (0x17FE, True)):
        assert c.load(at, Le32)[0] == (OK if whole else DECODE_ERROR), hex(at)
        if whole:
            assert rust.load(at, Le32) == 0
        else:
            with pytest.raises(InvalidBackendAddress):
                rust.load(at, Le32)
            with pytest.raises(InvalidBackendAddress):
                rust.store(at, Le32(1))
    assert len(c_device.log) == 2 and device.log == []


def test_across_the_end_of_a_device_both_go_to_the_device() -> None:
    c, c_device, rust, device = both(io_at(0, size=0x10), ram_at(0x10))
    assert c.load(0xE, Le32) == (OK, 0x1211100F)
    assert rust.load(0xE, Le32) == 0x1211100F
    assert c_device.log == device.log and reads(device.log) == [(0xE, 4)]


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [ERROR, DECODE_ERROR, ACCESS_ERROR, ERROR | ACCESS_ERROR, 8])
def test_every_result_but_ok_is_one_error_where_c_tells_them_apart(bits: int) -> None:
    c, _, rust, _ = both(io_at(0))
    c.ops = rust.space.ops = device = Failing(bits)
    assert c.read(0, 4)[0] == c.write(0, b"abcd") == c.store(0, Le32(1)) == bits
    assert c.load(0, Le32) == (bits, 0x04030201)
    device.log.clear()
    errors: list[GuestMemoryError] = []
    tries: list[Callable[[], object]] = [
        lambda: rust.read(bytearray(4), 0), lambda: rust.write(b"abcd", 0),
        lambda: rust.load(0, Le32), lambda: rust.store(0, Le32(1)),
    ]
    for attempt in tries:
        with pytest.raises(InvalidBackendAddress) as caught:
            attempt()
        errors.append(caught.value)
    assert {error.args for error in errors} == {()}, "which result it was is lost"
    assert len(device.log) == 4, "the device was asked all the same"


def test_a_hole_is_invalid_backend_not_guest_address() -> None:
    """In vm-memory a hole is InvalidGuestAddress; QEMU has unassigned memory there, which
    refuses like a device."""
    c, _, rust, _ = both()
    assert c.load(0x40, Le32) == (DECODE_ERROR, 0)
    for attempt in (lambda: rust.load(0x40, Le32), lambda: rust.read(bytearray(1), 0x40)):
        with pytest.raises(InvalidBackendAddress):
            attempt()


def test_what_attrs_forbid_is_an_invalid_guest_address() -> None:
    c, c_device, rust, device = both(ram_at(0), io_at(0x100))
    assert c.write(0x100, b"abcd", ONLY_MEMORY) == ACCESS_ERROR
    with rust.memory() as view:
        for attempt in (
            lambda: view.write(b"abcd", (GuestAddress(0x100), ONLY_MEMORY)),
            lambda: view.read(bytearray(4), (GuestAddress(0x100), ONLY_MEMORY)),
            lambda: view.write_slice(b"abcd", (0x100, ONLY_MEMORY)),
        ):
            with pytest.raises(InvalidGuestAddress) as caught:
                attempt()
            assert caught.value.addr == GuestAddress(0x100)
        assert view.write(b"abcd", (0xFE, ONLY_MEMORY)) == 2, "what comes before is written"
        with pytest.raises(PartialBuffer) as partial:
            view.write_slice(b"abcd", (0xFE, ONLY_MEMORY))
        cause = partial.value.__cause__
        assert isinstance(cause, InvalidGuestAddress) and cause.addr == GuestAddress(0x100)
        assert view.write(b"abcd", (0x100, MemTxAttrs())) == 4
    assert c_device.log == [] and len(device.log) == 1


def test_forbidden_single_accesses_are_refused_where_c_lets_them_through() -> None:
    """``address_space_ldl`` and its kin never ask; the bindings' v2 does."""
    c, c_device, rust, device = both(io_at(0))
    assert c.load(0, Le32, ONLY_MEMORY) == (OK, 0x04030201)
    assert c.store(0, Le32(1), ONLY_MEMORY) == OK and len(c_device.log) == 2
    with rust.memory() as view:
        for attempt in (
            lambda: view.load((0, ONLY_MEMORY), Le32),
            lambda: view.store(Le32(1), (GuestAddress(0), ONLY_MEMORY)),
        ):
            with pytest.raises(InvalidGuestAddress) as caught:
                attempt()
            assert caught.value.addr == GuestAddress(0)
    assert device.log == []


def test_attributes_reach_the_device_and_rom_through_either_face() -> None:
    seen: list[MemTxAttrs] = []

    class Spy(Device):
        def read(
            self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
        ) -> tuple[int, int]:
            seen.append(attrs)
            return super().read(region, offset, size, attrs)

    attrs = MemTxAttrs(secure=True, requester_id=0x1234)
    c, _, rust, _ = both(io_at(0), lambda: (0x100, MemoryRegion.rom("rom", 0x100)))
    c.ops = rust.space.ops = Spy()
    assert c.load(0, Le32, attrs)[0] == OK
    with rust.memory() as view:
        view.load((0, attrs), Le32)
        view.read(bytearray(4), (0, attrs))
        assert seen == [attrs] * 3
        assert c.store(0x100, Le32(1)) == DECODE_ERROR
        with pytest.raises(InvalidBackendAddress):
            view.store(Le32(1), 0x100)
        assert c.store(0x100, Le32(1), DEBUG) == OK
        view.store(Le32(1), (0x100, DEBUG))
        assert view.write(b"ab", (0x104, DEBUG)) == 2
    assert rust.space.read(0x100, 6) == (OK, b"\1\0\0\0ab")


def test_beyond_the_last_address_is_an_overflow_where_c_wraps() -> None:
    # An unaligned step of a device takes 4 bytes, of which 2 lie beyond 2^64-1.
    c, c_device, rust, device = both(io_at(TOP - 2, size=2), ram_at(0))
    for space in (c, rust.space):
        space.write(0, b"ABCD")
    assert c.read(TOP - 2, 6) == (OK, bytes([1, 2, 3, 4]) + b"CD")
    buf = bytearray(6)
    assert rust.read(buf, GuestAddress(TOP - 2)) == 4 and buf == bytes([1, 2, 3, 4, 0, 0])
    with rust.memory() as view, pytest.raises(PartialBuffer) as caught:
        view.write_slice(b"abcdef", TOP - 2)
    assert isinstance(caught.value.__cause__, GuestAddressOverflow)
    assert rust.read(bytearray(4), TOP - 2) == 4, "nothing is to come: no overflow"
    assert reads(c_device.log) == [(0, 4)] and reads(device.log) == [(0, 4)] * 2


def test_ending_at_the_last_address_both_go_on_at_0() -> None:
    c, _, rust, _ = both(ram_at(TOP - 0x100), ram_at(0))
    assert c.write(TOP - 4, b"abcdefgh") == OK
    assert rust.write(b"abcdefgh", TOP - 4) == 8
    assert c.read(0, 4) == rust.space.read(0, 4) == (OK, b"efgh")


# -- values ---------------------------------------------------------------------------------------


class Wide:
    """Sixteen bytes: more than a MemOp has."""

    size: ClassVar[int] = 16

    def __init__(self, raw: bytes = bytes(16)) -> None:
        self.raw = raw

    @classmethod
    def from_raw(cls, data: bytes | bytearray | memoryview) -> Wide:
        return cls(bytes(data))


def test_more_than_8_bytes_are_invalid_input() -> None:
    """C has no such function; there a size is part of the name."""
    _, _, rust, device = both(ram_at(0), io_at(0x100))
    for at in (0, 0x100):
        tries: list[Callable[[], object]] = [
            lambda at=at: rust.store(at, Wide()), lambda at=at: rust.load(at, Wide),
        ]
        for attempt in tries:
            with pytest.raises(GuestIOError) as caught:
                attempt()
            assert caught.value.kind is ErrorKind.INVALID_INPUT
    assert device.log == []
    with pytest.raises(InvalidBackendAddress):
        rust.store(0xF8, Wide())
    with rust.memory() as view:
        view.write_obj(Wide(bytes(range(16))), 8)
        assert view.read_obj(8, Wide).raw == bytes(range(16)), "in pieces it works"


@pytest.mark.parametrize("target_big", [False, True])
@pytest.mark.parametrize("endian", list(Endian))
def test_a_value_has_its_own_byte_order_where_v1_had_the_targets(
    target_big: bool, endian: Endian
) -> None:
    order = Contract(valid_max=8, impl_max=8, endian=endian)
    c, c_device, rust, device = both(ram_at(0), io_at(0x100, order), target_big=target_big)
    # The target's order has a name of its own in C ...
    assert c.store_target(0, 0x11223344, 4) == OK
    assert c.read(0, 4)[1] == (b"\x11\x22\x33\x44" if target_big else b"\x44\x33\x22\x11")
    # ... and none here: the bytes are the value's.
    for at, value in enumerate((Le32(0x11223344), Be32(0x11223344), Le64(5), Be16(6), U8(7))):
        rust.store(8 * at, value)
        assert rust.space.read(8 * at, value.size) == (OK, value.raw)
        again = rust.load(8 * at, type(value))
        assert again == value and type(again) is type(value)
        # To a device both faces say the same.
        assert c.store(0x100 + 8 * at, value) == OK
        rust.store(0x100 + 8 * at, value)
        answer = rust.load(0x100 + 8 * at, type(value))
        assert c.load(0x100 + 8 * at, type(value)) == (OK, answer)
        # The bytes of a typed access are those of a byte-wise one, which order never touches.
        assert rust.space.read(0x100 + 8 * at, value.size) == (OK, answer.raw)
        c_device.log.append(("read", "dev100", 8 * at, value.size))
    assert c_device.log == device.log


def test_an_untyped_integer_is_refused_by_both_with_the_reason() -> None:
    c, c_device, rust, device = both(ram_at(0), io_at(0x100))
    tries: list[Callable[[], object]] = [
        lambda: c.store(0x100, 42), lambda: rust.store(0x100, 42),  # type: ignore
        lambda: c.load(0x100, int), lambda: rust.load(0x100, int),  # type: ignore
        lambda: rust.store(0x100, Le32(41) + 1),  # type: ignore
    ]
    for attempt in tries:
        with pytest.raises(ModelError, match="getting rid of target endianness"):
            attempt()
    assert c_device.log == device.log == []


@pytest.mark.parametrize("order", list(Ordering))
def test_ordering_means_nothing(order: Ordering) -> None:
    """In Rust some orders panic: a load cannot release. QEMU's access is none of Rust's."""
    c, c_device, rust, device = both(io_at(0))
    with rust.memory() as view:
        assert view.load(0, Le32, order) == c.load(0, Le32)[1]
        view.store(Le32(5), 0, order)
        section = view.find_region(0)
        assert section is not None and section.load(0, Le16, order) == 0x0201
    c.store(0, Le32(5))
    c.load(0, Le16)
    assert c_device.log == device.log


def test_an_order_that_is_none_is_refused() -> None:
    _, _, rust, _ = both(ram_at(0))
    with rust.memory() as view, pytest.raises(ModelError, match="Ordering"):
        view.load(0, Le32, "relaxed")  # type: ignore[arg-type]


# -- sections --------------------------------------------------------------------------------------


def test_a_region_address_counts_from_the_section_where_c_counts_from_the_region() -> None:
    def alias() -> Placed:
        return 0x1000, MemoryRegion.alias_of("alias", io(ANY), 0x40, 0x20)

    c, _, rust, device = both(alias)
    section, offset, _ = c.translate(0x1008, 4)
    assert (section.offset, offset) == (0x40, 0x48), "C: offset in the region"
    with rust.memory() as view:
        found = view.to_region_addr(0x1008)
        assert found is not None and found[1] == MemoryRegionAddress(8)
        assert found[0].section.offset == 0x40
        assert found[0].load(MemoryRegionAddress(8), Be64) == view.load(0x1008, Be64)
        assert reads(device.log) == [(0x48, 8)] * 2, "the device is told the region's offset"
        assert found[0].to_region_addr(GuestAddress(0x1008)) == MemoryRegionAddress(8)


def test_what_v1_left_unimplemented_works() -> None:
    """read_slice, write_slice, iter and to_region_addr panicked; a section's check_address took
    one byte too many; find_region found a section in a hole."""
    _, _, rust, _ = both(ram_at(0), io_at(0x200))
    with rust.memory() as view:
        view.write_slice(b"abcd", 0)
        buf = bytearray(4)
        view.read_slice(buf, 0)
        assert buf == b"abcd"
        assert [(s.start_addr().value, s.len()) for s in view.iter()] == [
            (0, 0x100), (0x200, 0x100)
        ]
        assert view.num_regions() == len(list(view)) == 2
        section = view.find_region(0xFF)
        assert section is not None
        assert section.check_address(MemoryRegionAddress(0xFF)) == MemoryRegionAddress(0xFF)
        assert section.check_address(MemoryRegionAddress(0x100)) is None
        assert view.find_region(0x100) is None and view.to_region_addr(0x100) is None


def test_a_device_is_left_at_its_end_as_in_c_where_v2_runs_on() -> None:
    c, c_device, rust, device = both(io_at(0, size=8), ram_at(8))
    for space in (c, rust.space):
        space.write(8, b"RAMRAMRA")
    assert c.read(0, 0x10) == (OK, bytes(range(1, 9)) + b"RAMRAMRA")
    buf = bytearray(0x10)
    assert rust.read(buf, 0) == 0x10 and buf == bytes(range(1, 9)) + b"RAMRAMRA"
    assert c_device.log == device.log
