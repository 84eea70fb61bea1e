"""The accessor's six methods over any translation, and what is refused that upstream is not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.accessor import (
    AccessorDefect,
    AddressOverflow,
    AxError,
    GuestMemoryAccessor,
    GuestPlace,
    InvalidInput,
    LimitTooLarge,
    PhysAddr,
    ZeroLimit,
    guest_address,
)
from qemuglue.memory.backing import Backing, ByteBacking
from qemuglue.memory.endian import U8, Be16, Be32, Le16, Le32, Le64
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import HostAddressNotAvailable, InvalidBackendAddress

#: What upstream's tests call the memory of a machine: 64 KiB.
MEMORY_LEN = 0x10000
BUFFER = bytes(range(0x11, 0x99, 0x11))


class Recording:
    """Bytes that cannot be pointed at, and say how they were accessed."""

    def __init__(self, size: int, host_address: int | None = None) -> None:
        self.cells = bytearray(size)
        self.host_address = host_address
        self.calls: list[tuple[str, int, int]] = []

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, offset: int, size: int) -> bytes:
        self.calls.append(("read", offset, size))
        return bytes(self.cells[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= len(self.cells)
        self.calls.append(("write", offset, len(data)))
        self.cells[offset : offset + len(data)] = data


class Machine(GuestMemoryAccessor):
    """Guest address 0 on is a window of the host's memory: what upstream's tests mock."""

    def __init__(self, host: Backing, base: int, size: int) -> None:
        self.host = host
        self.base = base
        self.size = size
        self.asked: list[int] = []

    def translate_and_get_limit(self, guest_addr: GuestPlace) -> tuple[PhysAddr, int] | None:
        at = guest_address(guest_addr).raw_value()
        self.asked.append(at)
        if at >= self.size:
            return None
        return PhysAddr(self.host, self.base + at), self.size - at


class Scripted(GuestMemoryAccessor):
    """Translates what it is told to: address -> (offset in the host's memory, limit)."""

    def __init__(self, size: int, answers: dict[int, tuple[int, int]], known: int | None = None):
        self.host = Recording(size)
        self.host.cells[:] = bytes(i & 0xFF for i in range(size))
        self.answers = answers
        self.known = known

    def translate_and_get_limit(self, guest_addr: GuestPlace) -> tuple[PhysAddr, int] | None:
        found = self.answers.get(guest_address(guest_addr).raw_value())
        return None if found is None else (PhysAddr(self.host, found[0]), found[1])

    def bytes_left(self, guest_addr: GuestAddress) -> int | None:
        return self.known


class Trusting(Scripted):
    """Takes limits at their word."""

    trusts_limits = True


def machine(size: int = MEMORY_LEN) -> tuple[Machine, bytearray]:
    """A machine, and all its memory."""
    host = ByteBacking(size)
    return Machine(host, 0, size), host.data


# -- what upstream's own tests cover ---------------------------------------------------------


def test_objects_and_buffers_come_back_as_they_were_written() -> None:
    accessor, memory = machine()
    accessor.write_obj(GuestAddress(0x100), Le32(0x12345678))
    assert accessor.read_obj(GuestAddress(0x100), Le32) == 0x12345678
    assert memory[0x100:0x104] == bytes.fromhex("78563412")
    accessor.write_buffer(GuestAddress(0x200), BUFFER)
    buffer = bytearray(8)
    accessor.read_buffer(GuestAddress(0x200), buffer)
    assert buffer == BUFFER == memory[0x200:0x208]


def test_an_object_at_an_address_that_is_not_mapped_is_invalid_input() -> None:
    accessor, memory = machine()
    outside = GuestAddress(MEMORY_LEN + 0x1000)
    with pytest.raises(InvalidInput) as read:
        accessor.read_obj(outside, Le32)
    with pytest.raises(InvalidInput):
        accessor.write_obj(outside, Le32(42))
    assert (read.value.guest_addr, read.value.size, read.value.moved) == (outside, 4, 0)
    assert not any(memory)


def test_two_machines_do_not_see_each_other() -> None:
    host, half = ByteBacking(MEMORY_LEN), MEMORY_LEN // 2
    one, two = Machine(host, 0, half), Machine(host, half, half)
    one.write_obj(0x100, Le64(0xDEADBEEFCAFEBABE))
    two.write_obj(0x100, Le64(0x1234567890ABCDEF))
    assert one.read_obj(0x100, Le64) == 0xDEADBEEFCAFEBABE
    assert two.read_obj(0x100, Le64) == 0x1234567890ABCDEF
    one.write_buffer(0x200, b"\xaa" * 16)
    two.write_buffer(0x200, b"\x55" * 16)
    for accessor, byte in ((one, 0xAA), (two, 0x55)):
        buffer = bytearray(16)
        accessor.read_buffer(0x200, buffer)
        assert buffer == bytes([byte]) * 16
    with pytest.raises(InvalidInput):
        one.read_obj(half + 0x100, Le32)


def test_a_buffer_across_a_page_is_there_byte_by_byte() -> None:
    (accessor, _), at = machine(), 4096 - 8
    data = bytes(range(1, 17))
    accessor.write_buffer(at, data)
    buffer = bytearray(16)
    accessor.read_buffer(at, buffer)
    assert buffer == data
    assert [accessor.read_obj(at + i, U8) for i in range(16)] == list(data)


def test_buffers_at_a_page_s_start() -> None:
    accessor, memory = machine()
    accessor.write_buffer(4096, b"\xab\xcd\xef\x12")
    buffer = bytearray(4)
    accessor.read_buffer(4096, buffer)
    assert buffer == b"\xab\xcd\xef\x12"
    accessor.write_buffer(4096, b"")
    accessor.read_buffer(4096, bytearray())
    accessor.write_buffer(4096, b"\x42")
    assert memory[4095:4101] == b"\x00\x42\xcd\xef\x12\x00"


# -- the contract ----------------------------------------------------------------------------


def test_an_empty_buffer_is_not_even_translated() -> None:
    accessor, _ = machine()
    for at in (0, MEMORY_LEN, (1 << 64) - 1):
        accessor.read_buffer(at, bytearray())
        accessor.write_buffer(at, b"")
    assert accessor.asked == []


def test_what_fits_is_one_copy_and_one_translation() -> None:
    accessor = Machine(Recording(64), 16, 32)
    accessor.write_buffer(0, bytes(32))
    accessor.read_buffer(1, bytearray(31))
    accessor.write_buffer(31, b"x")
    assert isinstance(accessor.host, Recording)
    assert accessor.host.calls == [("write", 16, 32), ("read", 17, 31), ("write", 47, 1)]
    assert accessor.asked == [0, 1, 31]


def test_a_buffer_goes_on_region_by_region() -> None:
    accessor = Scripted(64, {0x100: (40, 3), 0x103: (0, 1), 0x104: (20, 30)})
    buffer = bytearray(8)
    accessor.read_buffer(0x100, buffer)
    assert buffer == bytes([40, 41, 42, 0, 20, 21, 22, 23])
    assert accessor.host.calls == [("read", 40, 3), ("read", 0, 1), ("read", 20, 4)]
    accessor.write_buffer(0x100, b"abcdef")
    assert accessor.host.cells[40:44] == b"abc\x2b" and accessor.host.cells[:2] == b"d\x01"
    assert accessor.host.cells[20:23] == b"ef\x16"


def test_what_was_moved_before_a_hole_stays_moved() -> None:
    accessor = Scripted(64, {0x100: (10, 3), 0x103: (30, 2)})
    buffer = bytearray(b"." * 8)
    with pytest.raises(InvalidInput) as caught:
        accessor.read_buffer(0x100, buffer)
    assert buffer == bytes([10, 11, 12, 30, 31]) + b"..."
    error = caught.value
    assert (error.guest_addr, error.size, error.moved) == (GuestAddress(0x105), 3, 5)
    assert str(error) == (
        "invalid input: 3 bytes at guest address 0x105 are not accessible; "
        "5 before them were moved"
    )
    with pytest.raises(InvalidInput):
        accessor.write_buffer(0x100, b"abcdefgh")
    assert accessor.host.cells[10:14] == b"abc\x0d" and accessor.host.cells[30:33] == b"de\x20"


def test_an_object_is_whole_in_one_region_or_invalid_input() -> None:
    accessor = Scripted(64, {0x100: (8, 3), 0x103: (11, 40)})
    for touch in (
        lambda: accessor.read_obj(0x100, Le32), lambda: accessor.write_obj(0x100, Le32(1)),
        lambda: accessor.read_volatile(0x100, Be32),
        lambda: accessor.write_volatile(0x100, Be32(1)),
    ):
        with pytest.raises(InvalidInput) as caught:
            touch()
        assert (caught.value.guest_addr, caught.value.size) == (GuestAddress(0x100), 4)
        assert str(caught.value).endswith("4 bytes at guest address 0x100 are not accessible")
    assert accessor.host.calls == []
    assert accessor.read_obj(0x100, Be16) == 0x0809
    assert accessor.read_obj(0x103, Le64) == int.from_bytes(range(11, 19), "little")


def test_an_object_is_one_access_at_any_address() -> None:
    accessor = Machine(Recording(64), 0, 64)
    assert isinstance(accessor.host, Recording)
    for at in range(9):
        accessor.host.calls.clear()
        accessor.write_obj(at, Le64(0x0102030405060708))
        assert accessor.read_volatile(at, Le64) == 0x0102030405060708
        accessor.write_volatile(at, Be16(0x0A0B))
        assert accessor.read_obj(at, Be16) == 0x0A0B
        assert accessor.host.calls == [
            ("write", at, 8), ("read", at, 8), ("write", at, 2), ("read", at, 2),
        ]


class Triple:
    """A value of three bytes."""

    size: ClassVar[int] = 3

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def from_raw(cls, data: bytes | bytearray | memoryview) -> Triple:
        return cls(bytes(data))


class Nothing(Triple):
    """A value of no bytes."""

    size: ClassVar[int] = 0


def test_an_object_of_no_bytes_must_be_mapped_unlike_a_buffer_of_none() -> None:
    accessor = Scripted(16, {4: (4, 0)})
    assert accessor.read_obj(4, Nothing).raw == b""
    accessor.write_obj(4, Nothing(b""))
    for touch in (
        lambda: accessor.read_obj(5, Nothing), lambda: accessor.write_obj(5, Nothing(b"")),
    ):
        with pytest.raises(InvalidInput):
            touch()
    accessor.read_buffer(5, bytearray())
    accessor.write_buffer(5, b"")


def test_an_object_may_be_any_bytes() -> None:
    accessor, _ = machine(8)
    accessor.write_obj(5, Triple(b"abc"))
    assert accessor.read_obj(5, Triple).raw == b"abc"
    with pytest.raises(InvalidInput):
        accessor.read_obj(6, Triple)


def test_what_is_no_value_address_or_buffer_is_refused() -> None:
    accessor, memory = machine(8)
    refused: list[Callable[[], object]] = [
        lambda: accessor.write_obj(0, 42),  # type: ignore[arg-type]
        lambda: accessor.read_obj(0, int),  # type: ignore[type-var]
        lambda: accessor.read_obj(Le32(0), Le32),
        lambda: accessor.read_obj(0.0, Le32),  # type: ignore[arg-type]
        lambda: accessor.read_obj(MemoryRegionAddress(0), Le32),  # type: ignore[arg-type]
        lambda: accessor.read_obj(-1, Le32),
        lambda: accessor.read_obj(1 << 64, Le32),
        lambda: accessor.write_buffer(1 << 64, b""),
        lambda: accessor.write_buffer(0, "text"),  # type: ignore[arg-type]
        lambda: accessor.read_buffer(0, bytes(4)),  # type: ignore[arg-type]
    ]
    for touch in refused:
        with pytest.raises(ModelError):
            touch()
    assert accessor.asked == [] and not any(memory)


def test_what_a_backing_refuses_passes_through() -> None:
    class Refusing(ByteBacking):
        def write(self, offset: int, data: bytes) -> None:
            if offset + len(data) > 4:
                raise InvalidBackendAddress
            super().write(offset, data)

    class Cut(Machine):
        def translate_and_get_limit(self, guest_addr: GuestPlace) -> tuple[PhysAddr, int] | None:
            found = super().translate_and_get_limit(guest_addr)
            return found and (found[0], min(found[1], 4 - found[0].offset % 4))

    host = Refusing(8)
    accessor = Cut(host, 0, 8)
    with pytest.raises(InvalidBackendAddress):
        accessor.write_buffer(2, b"abcd")
    assert host.data == b"\0\0ab\0\0\0\0"


# -- what upstream does not notice -----------------------------------------------------------


def test_a_limit_of_0_ends_a_buffer_with_an_error() -> None:
    accessor = Scripted(64, {0: (0, 2), 2: (2, 0)})
    buffer = bytearray(b"....")
    with pytest.raises(ZeroLimit) as caught:
        accessor.read_buffer(0, buffer)
    assert caught.value.guest_addr == GuestAddress(2) and buffer == b"\0\1.."
    assert "guest address 0x2 is translated with a limit of 0" in str(caught.value)
    with pytest.raises(ZeroLimit):
        accessor.write_buffer(2, b"x")
    accessor.write_buffer(2, b"")
    assert accessor.host.calls == [("read", 0, 2)]


def test_an_object_at_a_limit_of_0_is_invalid_input_as_upstream() -> None:
    accessor = Scripted(64, {2: (2, 0)})
    for touch in (lambda: accessor.read_obj(2, U8), lambda: accessor.write_obj(2, U8(1))):
        with pytest.raises(InvalidInput):
            touch()


@pytest.mark.parametrize("known", [None, 20])
def test_a_limit_beyond_the_end_is_refused_whatever_is_wanted(known: int | None) -> None:
    accessor = Scripted(16, {0x10: (8, 9), 0x20: (8, 8), 0x30: (30, 1)}, known)
    for touch in (
        lambda: accessor.read_obj(0x10, U8), lambda: accessor.write_obj(0x10, U8(1)),
        lambda: accessor.read_buffer(0x10, bytearray(1)),
        lambda: accessor.write_buffer(0x10, b"x"),
    ):
        with pytest.raises(LimitTooLarge) as caught:
            touch()
        error = caught.value
        assert (error.guest_addr, error.limit, error.left) == (GuestAddress(0x10), 9, 8)
    assert str(error) == (
        "guest address 0x10 is translated with a limit of 0x9 bytes where 0x8 are left: "
        "axaddrspace would run on into what lies behind them"
    )
    with pytest.raises(LimitTooLarge) as beyond:
        accessor.read_obj(0x30, U8)
    assert beyond.value.left == 0 and accessor.host.calls == []
    assert accessor.read_obj(0x20, Le64) == int.from_bytes(range(8, 16), "little")


def test_a_limit_beyond_the_region_is_refused_where_the_regions_are_known() -> None:
    unknown = Scripted(16, {0: (0, 16)})
    buffer = bytearray(16)
    unknown.read_buffer(0, buffer)
    assert buffer == bytes(range(16))
    known = Scripted(16, {0: (0, 16)}, known=15)
    with pytest.raises(LimitTooLarge) as caught:
        known.read_buffer(0, buffer)
    assert (caught.value.limit, caught.value.left) == (16, 15)
    exact = Scripted(16, {0: (0, 16)}, known=16)
    exact.read_buffer(0, buffer)


def test_a_trusted_limit_is_refused_only_at_the_end_of_the_host_s_memory() -> None:
    accessor = Trusting(16, {0: (8, 99)}, known=2)
    buffer = bytearray(8)
    accessor.read_buffer(0, buffer)
    assert buffer == bytes(range(8, 16)) and accessor.read_obj(0, Le64)
    for touch in (
        lambda: accessor.read_buffer(0, bytearray(9)), lambda: accessor.write_buffer(0, bytes(9)),
    ):
        with pytest.raises(LimitTooLarge) as caught:
            touch()
        assert (caught.value.limit, caught.value.left) == (99, 8)
    assert accessor.host.calls == [("read", 8, 8), ("read", 8, 8)]
    short = Trusting(16, {0: (12, 99)})
    with pytest.raises(LimitTooLarge):
        short.read_obj(0, Le64)
    assert short.read_obj(0, Le32) == int.from_bytes(range(12, 16), "little")
    for none in (Trusting(16, {0: (12, 7)}), Trusting(16, {0: (16, 7)})):
        with pytest.raises(InvalidInput):
            none.read_obj(0, Le64)


def test_bytes_beyond_the_last_address_are_refused_and_those_before_it_moved() -> None:
    last = (1 << 64) - 4
    accessor = Scripted(64, {last: (8, 4), 0: (0, 64)})
    buffer = bytearray(b"." * 6)
    with pytest.raises(AddressOverflow) as caught:
        accessor.read_buffer(last, buffer)
    assert buffer == bytes([8, 9, 10, 11]) + b".."
    assert (caught.value.guest_addr, caught.value.size) == (GuestAddress(last), 6)
    assert str(caught.value) == (
        "6 bytes at guest address 0xfffffffffffffffc go on beyond 2^64-1, where axaddrspace's "
        "addition overflows"
    )
    with pytest.raises(AddressOverflow):
        accessor.write_buffer(last, b"abcdef")
    assert accessor.host.cells[8:12] == b"abcd" and accessor.host.cells[:4] == bytes(range(4))


def test_a_buffer_may_end_at_the_last_address() -> None:
    last = (1 << 64) - 4
    accessor = Scripted(64, {last: (8, 2), last + 2: (20, 2)})
    buffer = bytearray(4)
    accessor.read_buffer(last, buffer)
    assert buffer == bytes([8, 9, 20, 21])
    with pytest.raises(InvalidInput):
        accessor.read_obj(last, Le32)
    assert accessor.read_obj(last + 2, Le16) == 0x1514


def test_the_errors_are_a_family() -> None:
    for leaf in (ZeroLimit, LimitTooLarge, AddressOverflow):
        assert issubclass(leaf, AccessorDefect)
    assert not issubclass(InvalidInput, AccessorDefect)
    for error in (InvalidInput, AccessorDefect):
        assert issubclass(error, AxError) and issubclass(error, ModelError)


@pytest.mark.parametrize("error", [
    InvalidInput(GuestAddress(4), 3, 2), ZeroLimit(GuestAddress(4)),
    LimitTooLarge(GuestAddress(4), 9, 8), AddressOverflow(GuestAddress(4), 6),
])
def test_an_error_travels_with_its_data(error: AxError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error) and again.args == tuple(vars(error).values())
    assert str(again) == str(error)


# -- host addresses --------------------------------------------------------------------------


def test_a_host_address_has_the_number_that_its_backing_has() -> None:
    there = Recording(16, host_address=0x7F0000001FFC)
    host = PhysAddr(there, 4)
    assert host.host_address == host.as_usize() == 0x7F0000002000
    assert repr(host) == "PhysAddr(0x7f0000002000: Recording+0x4)"
    host.write(b"abcd")
    assert host.read(4) == b"abcd" == there.cells[4:8] and host.left == 12
    host.write_volatile(b"ef")
    assert host.read_volatile(4) == b"efcd"
    nowhere = PhysAddr(ByteBacking(16), 17)
    assert nowhere.host_address is None and repr(nowhere) == "PhysAddr(ByteBacking+0x11)"
    assert nowhere.left == 0
    with pytest.raises(HostAddressNotAvailable):
        nowhere.as_usize()


def test_a_host_address_does_not_change() -> None:
    host: Any = PhysAddr(ByteBacking(16), 4)
    with pytest.raises(AttributeError):
        host.offset = 5
    assert not hasattr(host, "__dict__")


def test_an_accessor_must_translate() -> None:
    nothing: Any = GuestMemoryAccessor
    with pytest.raises(TypeError, match="translate_and_get_limit"):
        nothing()


def test_host_addresses_are_equal_where_they_are_one_place() -> None:
    one, other = ByteBacking(16), ByteBacking(16)
    assert PhysAddr(one, 4) == PhysAddr(one, 4) != PhysAddr(one, 5)
    assert PhysAddr(one, 4) != PhysAddr(other, 4) and PhysAddr(one, 4) != 4
    assert len({PhysAddr(one, 4), PhysAddr(one, 4), PhysAddr(other, 4)}) == 2
