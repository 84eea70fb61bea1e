"""One check per rule of an access, each over a small map and through AddressSpace only.

A check takes the Rules to be checked and fails by assertion. The unit tests run every check over
the real rule sets; tests/quality runs them over rule sets with one method broken, and expects
the failure. Expected values are worked out by hand from QEMU's source, not from the model.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from oracle import ACCESS_ERROR, DECODE_ERROR, ERROR, OK, TOP, Event, Recorder, compare_accesses

from qemuglue.memory import (
    AddressSpace,
    ByteBacking,
    Contract,
    Endian,
    IoEventFd,
    Le32,
    MemoryRegion,
    MemoryRegionCache,
    MemTxAttrs,
    Rules,
)

ONLY_MEMORY = MemTxAttrs(memory=True)
DEBUG = MemTxAttrs(unspecified=True, debug=True)
ANY = Contract(valid_unaligned=True, impl_unaligned=True, valid_max=8, impl_max=8)


class Device(Recorder):
    """A register file: byte ``offset`` of the device reads as ``offset + 1``, in the region's
    own order; writes are only logged."""

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        self.log.append(("read", region.name, offset, size))
        order = "big" if region.contract.endian is Endian.BIG else "little"
        data = bytes((offset + at + 1) & 0xFF for at in range(size))
        return OK, int.from_bytes(data, order)  # type: ignore[arg-type]

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        self.log.append(("write", region.name, offset, size, value))
        return OK


def space_of(
    rules: Rules, *placed: tuple[int, MemoryRegion], target_big: bool = False
) -> tuple[AddressSpace, Recorder]:
    root = MemoryRegion.container_of("system", TOP)
    for addr, region in placed:
        root.add_subregion(addr, region)
    space = AddressSpace("memory", root, rules=rules, target_big=target_big)
    device = Device()
    space.ops = space.observer = device
    return space, device


def io(contract: Contract, name: str = "dev", size: int = 0x100) -> MemoryRegion:
    return MemoryRegion.io(name, size, contract)


def ram(size: int = 0x100, name: str = "ram") -> MemoryRegion:
    return MemoryRegion.ram(name, size, ByteBacking(size))


def reads(log: list[Event]) -> list[tuple[object, object]]:
    """(offset, size) of the reads in a log."""
    return [(event[2], event[3]) for event in log if event[0] == "read"]


def invalids(log: list[Event]) -> list[Event]:
    """(offset, size, is_write, reason) of the refusals in a log."""
    return [event[2:] for event in log if event[0] == "invalid"]


def refusal(rules: Rules) -> None:
    """R1: the veto, then alignment, then size; no size rule while valid_max is 0."""
    odd = Contract(valid_min=2, valid_max=4, accepts=lambda offset, size, is_write: offset < 8)
    cases: list[tuple[Contract, int, int, bool, str | None]] = [
        (Contract(), 1, 2, False, "unaligned"),
        (Contract(), 6, 4, True, "unaligned"),
        (Contract(), 4, 4, False, None),
        (Contract(), 8, 8, True, None),
        (Contract(valid_unaligned=True), 1, 8, False, None),
        (Contract(valid_min=4), 0, 1, False, None),
        (Contract(valid_min=4, valid_max=4), 0, 4, True, None),
        (Contract(valid_min=4, valid_max=4), 0, 2, True, "invalid size"),
        (Contract(valid_min=1, valid_max=2), 0, 4, False, "invalid size"),
        (Contract(valid_min=4, valid_max=8), 2, 2, False, "invalid size"),
        (Contract(valid_min=4, valid_max=8), 1, 2, False, "unaligned"),
        (odd, 9, 1, False, "rejected"),
        (odd, 9, 2, False, "rejected"),
        (odd, 1, 2, False, "unaligned"),
        (odd, 4, 1, True, "invalid size"),
        (odd, 4, 2, True, None),
        (Contract(accepts=lambda offset, size, is_write: is_write), 0, 4, True, None),
        (Contract(accepts=lambda offset, size, is_write: is_write), 0, 4, False, "rejected"),
        (Contract(accepts=lambda offset, size, is_write: size == 2), 0, 4, False, "rejected"),
    ]
    for contract, offset, size, is_write, reason in cases:
        region = io(contract)
        space, device = space_of(rules, (0, region))
        if is_write:
            result = space.dispatch_write(region, offset, 0, size)
        else:
            result = space.dispatch_read(region, offset, size)[0]
        said = f"{contract} offset {offset} size {size} write {is_write}: {device.log}"
        if reason is None:
            assert result == OK, said
            assert not invalids(device.log), said
            assert device.log, said
        else:
            assert result == DECODE_ERROR, said
            assert invalids(device.log) == [(offset, size, is_write, reason)], said
            assert len(device.log) == 1, said


def refused_value(rules: Rules) -> None:
    """R2: a refused read gives zeros, whatever stood in the buffer."""
    space, _ = space_of(rules, (0x10, io(Contract(valid_min=4, valid_max=4))))
    for address, size in ((0x11, 1), (0x12, 2), (0x400, 4), (0x400, 8)):
        buffer = bytearray(b"\xee" * size)
        assert space.read_into(address, buffer) == DECODE_ERROR
        assert buffer == bytes(size), f"{address:#x}: {buffer.hex()}"
        assert space.load_sized(address, size, "little") == (DECODE_ERROR, 0)


def swallowed(rules: Rules) -> None:
    """R2: an eventfd keeps exactly its own writes from the device, after the validity check."""
    region = io(Contract(endian=Endian.LITTLE))
    region.ioeventfds = (
        IoEventFd(0x10, 2), IoEventFd(0x20, 4, 0x11223344), IoEventFd(0x30, 0, 0x55),
        IoEventFd(0x41, 2),
    )
    cases = [
        (0x10, b"\x01\x02", True), (0x10, b"\xff\xff", True), (0x10, b"\x01", False),
        (0x10, b"\x01\x02\x03\x04", False), (0x12, b"\x01\x02", False),
        (0x20, b"\x44\x33\x22\x11", True), (0x20, b"\x44\x33\x22\x12", False),
        (0x20, b"\x44\x33", False), (0x24, b"\x44\x33\x22\x11", False),
        (0x30, b"\x01", True), (0x30, b"\x01\x02", True), (0x30, b"\x01\x02\x03\x04", True),
        (0x31, b"\x55", False),
    ]
    space, device = space_of(rules, (0, region))
    for address, data, kept in cases:
        device.log.clear()
        assert space.write(address, data) == OK
        assert (device.log == []) is kept, f"{address:#x} {data.hex()}: {device.log}"
    device.log.clear()
    assert space.dispatch_write(region, 0x41, 0, 2) == DECODE_ERROR
    assert invalids(device.log) == [(0x41, 2, True, "unaligned")]
    assert space.read(0x10, 2) == (OK, b"\x11\x12"), "reads pass"
    big = io(Contract(endian=Endian.BIG))
    big.ioeventfds = (IoEventFd(0, 2, 0x0102),)
    space, device = space_of(rules, (0, big))
    assert (space.write(0, b"\x01\x02"), device.log) == (OK, []), "data is in device order"


def pieces(rules: Rules) -> None:
    """R3: sizes and places of the calls, and the bytes they make, in both orders."""
    cases: list[tuple[int, int, int, list[tuple[int, int]]]] = [
        # size, impl_min, impl_max, calls (offset from the access, size)
        (8, 0, 0, [(0, 4), (4, 4)]),
        (4, 0, 0, [(0, 4)]),
        (1, 0, 0, [(0, 1)]),
        (8, 0, 8, [(0, 8)]),
        (4, 1, 1, [(0, 1), (1, 1), (2, 1), (3, 1)]),
        (4, 0, 2, [(0, 2), (2, 2)]),
        (1, 4, 4, [(0, 4)]),
        (2, 4, 0, [(0, 4)]),
        (2, 8, 8, [(0, 8)]),
        (4, 8, 4, [(0, 8)]),
        (8, 4, 2, [(0, 4), (4, 4)]),
    ]
    for order in (Endian.LITTLE, Endian.BIG):
        for size, least, most, calls in cases:
            contract = Contract(
                valid_max=8, valid_unaligned=True, impl_min=least, impl_max=most,
                impl_unaligned=True, endian=order,
            )
            for offset in (0x20, 0x23):  # a widened call keeps the odd address
                space, device = space_of(rules, (0, io(contract)))
                said = f"{order} size {size} impl {least}..{most} at {offset:#x}"
                want = bytes(offset + at + 1 for at in range(size))
                assert space.read(offset, size) == (OK, want), said
                assert reads(device.log) == [(offset + at, n) for at, n in calls], said
                device.log.clear()
                data = bytes(range(0xA1, 0xA1 + size))
                assert space.write(offset, data) == OK, said
                wrote = [
                    ("write", "dev", offset + at, n,
                     int.from_bytes(data[at : at + n].ljust(n, b"\0"), order.value))
                    for at, n in calls
                ]
                assert device.log == wrote, said


class _Reentrant(Device):
    """A device that, while it is read or written, reads address ``again`` of ``space``."""

    def __init__(self, space: AddressSpace, again: int) -> None:
        super().__init__()
        self.space = space
        self.again = again
        self.depth = 0
        self.inner: list[tuple[int, bytes]] = []

    def _nest(self) -> None:
        if self.depth == 0:
            self.depth = 1
            self.inner.append(self.space.read(self.again, 4))
            self.depth = 0

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        answer = super().read(region, offset, size, attrs)
        self._nest()
        return answer

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        self._nest()
        return super().write(region, offset, value, size, attrs)


def reentrancy(rules: Rules) -> None:
    """R4: a device in I/O is not entered again, by any of its regions or any space."""
    one, two, other = io(ANY, "one"), io(ANY, "two"), io(ANY, "other")
    free, romd = io(ANY, "free"), MemoryRegion.rom_device("romd", 0x100, ANY)
    lonely, locked = io(ANY, "lonely"), io(ANY, "locked")
    for region in (one, two, free, romd, locked):
        region.owner = "nic"
    other.owner = "disk"
    free.guarded = False
    romd.set_romd(False)
    locked.set_readonly(True)
    placed = [(0, one), (0x100, two), (0x200, other), (0x300, free), (0x400, romd),
              (0x500, lonely), (0x600, locked)]
    space, _ = space_of(rules, *placed)
    refused = (ACCESS_ERROR, bytes(4)) if rules.name != "7.2.0" else (OK, bytes([1, 2, 3, 4]))
    passes = (OK, bytes([1, 2, 3, 4]))
    cases = [
        # outer, inner, what the inner access gives
        (0x000, 0x000, refused), (0x000, 0x100, refused), (0x100, 0x000, refused),
        (0x000, 0x200, passes), (0x200, 0x100, passes), (0x000, 0x300, passes),
        (0x300, 0x000, passes), (0x300, 0x300, passes), (0x000, 0x400, passes),
        (0x400, 0x000, passes), (0x500, 0x500, passes), (0x600, 0x000, passes),
        (0x000, 0x600, passes),
    ]
    dma = AddressSpace("dma", space.root, rules=rules, engaged=space.engaged)
    for through in (space, dma):
        for outer, inner, want in cases:
            for is_write in (False, True):
                device = _Reentrant(through, inner)
                space.ops = dma.ops = device
                said = f"{outer:#x} then {inner:#x}, write {is_write}, through {through.name}"
                if is_write:
                    assert space.write(outer, bytes(4)) == OK, said
                else:
                    assert space.read(outer, 4) == passes, said
                assert device.inner == [want], f"{said}: {device.inner}"
                assert not space.engaged, said


def device_order(rules: Rules) -> None:
    """R5: the order of a device's bytes: its own, or the target's where it is native."""
    for endian, target_big, big in (
        (Endian.LITTLE, False, False), (Endian.LITTLE, True, False), (Endian.BIG, False, True),
        (Endian.BIG, True, True), (Endian.NATIVE, False, False), (Endian.NATIVE, True, True),
    ):
        region = io(Contract(valid_max=8, impl_max=8, endian=endian))
        space, device = space_of(rules, (0, region), target_big=target_big)
        order = "big" if big else "little"
        data = bytes.fromhex("0102030405060708")
        assert space.write(0, data) == OK
        value = int.from_bytes(data, order)  # type: ignore[arg-type]
        assert device.log == [("write", "dev", 0, 8, value)], f"{endian} {target_big}"
        # Device.read answers in the declared order, NATIVE as little
        _, got = space.read(0x10, 4)
        straight = bytes([0x11, 0x12, 0x13, 0x14])
        assert got == (straight[::-1] if endian is Endian.NATIVE and big else straight)
        little, large = (space.load_sized(0x10, 4, side)[1] for side in ("little", "big"))  # type: ignore[arg-type]
        assert little.to_bytes(4, "little") == large.to_bytes(4, "big") == got


def chunks(rules: Rules) -> None:
    """R6: the dispatches an access is cut into."""
    loose = {"valid_unaligned": True, "impl_max": 8}
    cases: list[tuple[Contract, int, int, list[int]]] = [
        (Contract(), 3, 8, [1, 4, 2, 1]),
        (Contract(), 1, 4, [1, 2, 1]),
        (Contract(), 0, 8, [4, 4]),
        (Contract(), 2, 8, [2, 4, 2]),
        (Contract(), 0, 3, [2, 1]),
        (Contract(valid_max=8, impl_max=8), 0, 8, [8]),
        (Contract(valid_max=8, impl_max=8), 4, 8, [4, 4]),
        (Contract(valid_max=8, impl_max=8), 0, 13, [8, 4, 1]),
        (Contract(valid_max=2), 0, 8, [2, 2, 2, 2]),
        (Contract(valid_max=1), 5, 3, [1, 1, 1]),
        (Contract(valid_min=8, valid_max=8, impl_max=4), 8, 8, [4, 4]),
        (Contract(valid_unaligned=True), 3, 8, [1, 4, 2, 1]),
        (Contract(**loose, impl_unaligned=True), 3, 8, [4, 4]),
        (Contract(**loose, impl_unaligned=True, valid_max=8), 3, 8, [8]),
        (Contract(**loose, impl_unaligned=True, valid_max=8), 3, 15, [8, 4, 2, 1]),
    ]
    for contract, offset, length, sizes in cases:
        space, device = space_of(rules, (0x1000, io(contract)))
        result, data = space.read(0x1000 + offset, length)
        assert (result, data) == (OK, bytes(offset + at + 1 for at in range(length)))
        assert [event[3] for event in device.log] == sizes, f"{contract} +{offset} {length}"
    # Alignment is the region's, not the bus's.
    space, device = space_of(rules, (0x1001, io(Contract())))
    space.read(0x1001, 4)
    assert reads(device.log) == [(0, 4)]
    # Unassigned memory is cut the same way, by its address.
    space.read(0x4003, 8)
    assert [event[1] for event in invalids(device.log)] == [1, 4, 2, 1]


def clamping(rules: Rules) -> None:
    """R7: RAM ends where its section ends; a device is accessed beyond its end."""
    memory = ram(0x40)  # goes on behind the others: only the section ends at 0x10
    space, device = space_of(rules, (0x10, io(ANY, size=6)), (0x16, ram(0x10, "b")))
    space.root.add_subregion_overlap(0, memory, -1)
    assert space.write(0xC, bytes(range(1, 9))) == OK
    assert memory.backing is not None
    assert memory.backing.read(0xC, 8) == b"\x01\x02\x03\x04" + bytes(4)
    assert device.log == [("write", "dev", 0, 4, 0x08070605)]
    device.log.clear()
    assert space.read(0xE, 8) == (OK, bytes([3, 4, 1, 2, 3, 4, 5, 6]))
    assert reads(device.log) == [(0, 4), (4, 2)]
    device.log.clear()
    assert space.read(0x14, 4) == (OK, bytes([5, 6, 7, 8])), "over the device's end"
    assert reads(device.log) == [(4, 4)]
    # R10: a single access that RAM cannot hold whole goes to RAM's own ops, which refuse it.
    device.log.clear()
    assert space.load_sized(0xE, 4, "little") == (DECODE_ERROR, 0)
    assert space.store_sized(0xE, 0, 4, "little") == DECODE_ERROR
    assert invalids(device.log) == [(0xE, 4, False, "rejected"), (0xE, 4, True, "rejected")]
    assert space.load_sized(0xC, 4, "little") == (OK, 0x04030201)
    # A write to ROM is cut at ROM's end as well.
    rom = MemoryRegion.rom("rom", 0x12, ByteBacking(0x20))
    space, device = space_of(rules, (0, rom), (0x12, io(ANY)))
    assert space.write(0x10, bytes(4)) == DECODE_ERROR
    assert device.log == [
        ("invalid", "rom", 0x10, 2, True, "rejected"), ("write", "dev", 0, 2, 0),
    ]


class _Failing(Device):
    """Fails with ERROR at odd multiples of 4."""

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        return (ERROR if offset & 4 else OK), super().read(region, offset, size, attrs)[1]

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        super().write(region, offset, value, size, attrs)
        return ERROR if offset & 4 else OK


def offsets(rules: Rules) -> None:
    """R7: a section's offset in its region, behind aliases and around whatever lies on top."""
    memory = MemoryRegion.ram("ram", 0x40, ByteBacking(bytearray(range(0x40))))
    device_region = io(ANY)
    window = MemoryRegion.alias_of("window", memory, 0x18, 8)
    twice = MemoryRegion.alias_of("twice", MemoryRegion.alias_of("once", device_region, 0x20, 64),
                                  0x10, 8)
    space, device = space_of(rules, (0x1000, memory), (0x2004, window), (0x3001, twice))
    space.root.add_subregion_overlap(0x1010, io(ANY, "top", 8), 1)
    assert space.read(0x2006, 2) == (OK, bytes([0x1A, 0x1B]))
    assert space.read(0x1018, 2) == (OK, bytes([0x18, 0x19]))
    assert space.write(0x2005, b"\xff") == OK and space.read(0x1019, 1) == (OK, b"\xff")
    assert space.load_sized(0x2008, 4, "big") == (OK, 0x1C1D1E1F)
    assert device.log == []
    assert space.read(0x3003, 2)[0] == OK and reads(device.log) == [(0x32, 2)]
    # Code that holds the alias itself may dispatch to it.
    device.log.clear()
    assert space.dispatch_read(twice, 4, 1) == (OK, 0x35)
    assert space.dispatch_write(twice, 5, 0xAB, 1) == OK
    assert device.log == [("read", "dev", 0x34, 1), ("write", "dev", 0x35, 1, 0xAB)]


def port_root(rules: Rules) -> None:
    """R11: ports that nobody claims read all-ones of every size."""
    assert [rules.port_root_value(size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFF_FFFF]


def combining(rules: Rules) -> None:
    """R8: results are ORed, and the access goes on after an error."""
    memory = ram(8)
    space, _ = space_of(rules, (0, io(Contract(), size=8)), (0x10, memory))
    device = _Failing()
    space.ops = space.observer = device
    assert space.read(4, 0xC)[0] == ERROR | DECODE_ERROR
    assert space.read(0, 8) == (ERROR, bytes(range(1, 9)))
    assert space.read(0, 4)[0] == OK
    assert space.write(4, bytes([7]) * 0x14) == ERROR | DECODE_ERROR
    assert memory.backing is not None and memory.backing.read(0, 8) == bytes([7]) * 8
    assert space.read(8, 0x10) == (DECODE_ERROR, bytes(8) + bytes([7]) * 8)
    assert space.read(0x20, 0) == (OK, b"") and space.write(0x20, b"") == OK


def memory_only(rules: Rules) -> None:
    """R8: a transaction for memory only is refused elsewhere, at once or from there on."""
    rom = MemoryRegion.rom("rom", 8, ByteBacking(bytearray(b"romromro")))
    romd = MemoryRegion.rom_device("romd", 8, ANY, backing=ByteBacking(8))
    memory = ram(8)
    space, device = space_of(rules, (0, memory), (8, io(ANY, size=8)), (0x10, ram(8, "b")),
                             (0x20, rom), (0x30, romd))
    for address in (8, 0x30, 0x40, TOP - 1):
        buffer = bytearray(b"\xee" * 4)
        assert space.read_into(address, buffer, ONLY_MEMORY) == ACCESS_ERROR
        assert buffer == b"\xee" * 4, "what is refused for its attributes stays"
        assert space.write(address, bytes(4), ONLY_MEMORY) == ACCESS_ERROR
    assert space.read(0x20, 8, ONLY_MEMORY) == (OK, b"romromro")
    assert space.write(0, bytes(range(1, 9)), ONLY_MEMORY) == OK
    buffer = bytearray(b"\xee" * 0x14)
    assert space.read_into(4, buffer, ONLY_MEMORY) == ACCESS_ERROR
    assert buffer == bytes([5, 6, 7, 8]) + b"\xee" * 0x10, "the rest is skipped, memory too"
    assert space.write(4, b"\x99" * 0x14, ONLY_MEMORY) == ACCESS_ERROR
    assert memory.backing is not None and memory.backing.read(4, 4) == b"\x99" * 4
    assert space.read(0x10, 4)[1] == bytes(4)
    assert device.log == []


def direct(rules: Rules) -> None:
    """R9: which reads and writes copy memory. 10.0 on, a debug write reaches ROM."""
    memory, behind = ram(16), ram(16, "behind")
    rom = MemoryRegion.rom("rom", 16, ByteBacking(bytearray(b"R" * 16)))
    flash = MemoryRegion.rom_device("flash", 16, ANY, backing=ByteBacking(bytearray(b"F" * 16)))
    card = MemoryRegion.ram_device("card", 16, ByteBacking(bytearray(b"0123456789abcdef")))
    window = MemoryRegion.alias_of("window", behind, 0, 16)
    window.set_readonly(True)
    space, device = space_of(rules, (0, memory), (0x20, rom), (0x40, flash), (0x60, card),
                             (0x80, window), target_big=True)
    assert space.view.lookup(0x80).readonly and not behind.readonly
    for address, name in ((0, "ram"), (0x80, "behind")):
        assert space.write(address, b"data") == OK, f"{name}: the section's flag does not count"
        assert space.read(address, 4) == (OK, b"data")
    assert space.read(0x20, 4) == (OK, b"RRRR")
    assert space.write(0x20, b"data") == DECODE_ERROR
    assert device.log == [("invalid", "rom", 0, 4, True, "rejected")]
    device.log.clear()
    assert space.read(0x40, 4) == (OK, b"FFFF") and device.log == []
    assert space.write(0x40, b"\x01\x02") == OK
    assert device.log == [("write", "flash", 0, 2, 0x0102)]
    assert space.read(0x40, 2) == (OK, b"FF"), "the device did not store it"
    flash.set_romd(False)
    device.log.clear()
    assert space.load_sized(0x42, 2, "little")[0] == OK and reads(device.log) == [(2, 2)]
    # A RAM device is memory that is only accessed piece by piece, in the host's order.
    device.log.clear()
    assert space.read(0x61, 8) == (OK, b"12345678") and device.log == []
    assert space.write(0x63, b"wxyz") == OK and space.read(0x60, 8)[1] == b"012wxyz7"
    assert not rules.direct_read(card) and not rules.direct_write(card, DEBUG)
    # Memory made read-only later is ROM.
    memory.set_readonly(True)
    assert space.write(0, b"lost") == DECODE_ERROR and space.read(0, 4) == (OK, b"data")
    new = rules.name not in ("7.2.0", "7.2", "8.1", "9.0", "9.2")
    assert (space.write(0x20, b"debu", DEBUG) == OK) is new
    assert space.read(0x20, 4)[1] == (b"debu" if new else b"RRRR")
    device.log.clear()
    assert space.write(0x40, b"\x01", DEBUG) == OK, "out of ROMD mode the device gets it"
    assert device.log == [("write", "flash", 0, 1, 1)]
    flash.set_romd(True)
    assert space.write(0x44, b"dd", DEBUG) == OK
    assert space.read(0x44, 2)[1] == (b"dd" if new else b"FF")


def dispatch_parts(rules: Rules) -> None:
    """R7: sections are dispatched in parts that end with pages. A single access over the end of
    a part of RAM is no memory access; a cache of a device ends with its part; a hole has none."""
    low, dev = ram(0x3000, "low"), io(ANY, size=0x2000)
    space, _ = space_of(rules, (0x800, low), (0x8800, dev))
    low.backing.write(0, bytes(range(256)) * 48)  # type: ignore[union-attr]
    for address, whole in ((0x800, True), (0xFFC, True), (0xFFE, False), (0x1000, True),
                           (0x1FFE, True), (0x2FFC, True), (0x2FFD, False), (0x3000, True),
                           (0x37FC, True), (0x37FE, False)):
        value = int.from_bytes(bytes((address - 0x800 + at) & 0xFF for at in range(4)), "little")
        expected = (OK, value) if whole else (DECODE_ERROR, 0)
        assert space.load_sized(address, 4, "little") == expected, f"{address:#x}"
        assert space.load(address, Le32) == expected, f"{address:#x}"
        assert space.store(address, Le32(value)) == expected[0], f"{address:#x}"
    assert space.read(0xFFE, 4) == (OK, bytes([0xFE, 0xFF, 0, 1])), "a range is only cut"
    for address, length in ((0x8800, 0x800), (0x8900, 0x700), (0x9000, 0x1000), (0x9F00, 0x100),
                            (0xA000, 0x800), (0xA7FF, 1), (0x5000, 0x10000), (0x810, 0x2FF0)):
        with MemoryRegionCache(space, address, 0x10000, False) as cache:
            assert cache.length == length, f"{address:#x}"


def rom_loading(rules: Rules) -> None:
    """R12: loading firmware reaches RAM and ROM, also a ROM device that reads as memory, and
    passes over everything else, by the pieces of R6; it is always OK."""
    memory, rom, flash, off, card, dev = (
        ram(8, "ram"), MemoryRegion.rom("rom", 8),
        MemoryRegion.rom_device("flash", 8, ANY), MemoryRegion.rom_device("off", 8, ANY),
        MemoryRegion.ram_device("card", 8), io(Contract(valid_max=2), size=8),
    )
    off.set_romd(False)
    placed = (memory, rom, flash, off, card, dev)
    space, device = space_of(rules, *((8 * at, region) for at, region in enumerate(placed)))
    assert space.write_rom(2, bytes(range(1, 61))) == OK and device.log == []
    by_kind = rules.name in ("7.2.0", "7.2", "8.1", "9.0", "9.2")
    written = [region.backing is not None and any(region.backing.read(0, 8)) for region in placed]
    assert written == [True, True, True, False, by_kind, False]
    assert flash.backing is not None and flash.backing.read(0, 8) == bytes(range(15, 23))


#: name of a Rules method -> the check that must fail when that method is wrong
CHECKS: dict[str, Callable[[Rules], None]] = {
    "refusal": refusal,
    "refused_value": refused_value,
    "swallowed": swallowed,
    "pieces": pieces,
    "guarded": reentrancy,
    "blocked": reentrancy,
    "big": device_order,
    "chunk": chunks,
    "region_offset": offsets,
    "clamp": clamping,
    "combine": combining,
    "goes_on": combining,
    "port_root_value": port_root,
    "allowed": memory_only,
    "direct_read": direct,
    "direct_write": direct,
    "dispatch_end": dispatch_parts,
    "rom_writable": rom_loading,
}


def random_maps(rules: Rules) -> None:
    """All rules at once: 120 random maps against the byte-wise oracle, always the same ones."""
    for seed in range(120):
        compare_accesses(Random(seed), rules, accesses=12)
