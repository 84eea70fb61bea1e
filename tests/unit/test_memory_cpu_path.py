"""The guest CPU's path, rule by rule, against a naive oracle, and with each rule broken."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from cpu_oracle import CpuOracle, Undefined, paged_map
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DECODE_ERROR, ERROR, TOP, Recorder, build
from rule_checks import Device, invalids, io, ram, reads, space_of

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    ByteBacking,
    Contract,
    Endian,
    IoEventFd,
    MemoryRegion,
    MemTxAttrs,
)
from qemuglue.memory.cpu_path import (
    CPU_RULES_7_2,
    CPU_RULES_8_1,
    FAULTS,
    CpuFailure,
    CpuOutcome,
    CpuPath,
    CpuRules,
    cpu_rules_for,
)
from qemuglue.memory.dirty import CLIENTS, MIGRATION, VGA
from qemuglue.memory.iommu import IommuAccess, IommuTlbEntry
from qemuglue.memory.rules import RULES_10_0
from qemuglue.memory.topology import Topology

BOTH = (CPU_RULES_7_2, CPU_RULES_8_1)
PAGE = 0x1000
LITTLE: Any = "little"

each_rules = pytest.mark.parametrize("rules", BOTH, ids=lambda rules: rules.name)


def path_of(
    rules: CpuRules, *placed: tuple[int, MemoryRegion], faults: bool = False,
    target_big: bool = False,
) -> tuple[CpuPath, Recorder]:
    space, device = space_of(RULES_10_0, *placed, target_big=target_big)
    return CpuPath(space, rules=rules, faults=faults), device


def writes(log: list[Any]) -> list[tuple[object, ...]]:
    return [event[2:] for event in log if event[0] == "write"]


def page_io(contract: Contract | None = None, name: str = "dev") -> MemoryRegion:
    """A device that fills its pages."""
    return io(contract or Contract(endian=Endian.LITTLE), name, 2 * PAGE)


# -- by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "rules"), [
    ((5, 2, 0), CPU_RULES_7_2), ((7, 2, 22), CPU_RULES_7_2), ((8, 0, 5), CPU_RULES_7_2),
    ((8, 1, 0), CPU_RULES_8_1), ((10, 0, 2), CPU_RULES_8_1), ((11, 1, 3), CPU_RULES_8_1),
])
def test_rules_for_a_version(version: tuple[int, ...], rules: CpuRules) -> None:
    assert cpu_rules_for(version) is rules


@each_rules
def test_an_aligned_access_is_one_dispatch_whatever_is_valid(rules: CpuRules) -> None:
    contract = Contract(valid_min=4, valid_max=4, endian=Endian.LITTLE)
    path, device = path_of(rules, (0, page_io(contract)))
    assert path.load(8, 8, LITTLE) == CpuOutcome(
        0, (CpuFailure(8, 8, False, DECODE_ERROR),))
    assert path.space.read(8, 8)[0] == 0, "the host's path cuts it in two"
    assert invalids(device.log) == [(8, 8, False, "invalid size")]
    assert reads(device.log) == [(8, 4), (12, 4)]


@each_rules
def test_an_aligned_access_is_cut_by_impl_only(rules: CpuRules) -> None:
    contract = Contract(valid_max=8, impl_max=2, endian=Endian.LITTLE)
    path, device = path_of(rules, (0, page_io(contract)))
    assert path.load(8, 8, LITTLE).value == 0x100F0E0D0C0B0A09
    assert reads(device.log) == [(8, 2), (10, 2), (12, 2), (14, 2)]


#: (address, size, pieces on 7.2, pieces since 8.1) of loads.
LOADS = [
    (4, 4, [(4, 4)], [(4, 4)]),
    (1, 2, [(0, 2), (2, 2)], [(1, 1), (2, 1)]),
    (2, 4, [(0, 4), (4, 4)], [(2, 2), (4, 2)]),
    (3, 4, [(0, 4), (4, 4)], [(3, 1), (4, 1), (5, 1), (6, 1)]),
    (4, 8, [(0, 8), (8, 8)], [(4, 4), (8, 4)]),
    (2, 8, [(0, 8), (8, 8)], [(2, 2), (4, 2), (6, 2), (8, 2)]),
    (5, 8, [(0, 8), (8, 8)], [(at, 1) for at in range(5, 13)]),
    (PAGE - 1, 2, [(PAGE - 2, 2), (PAGE, 2)], [(PAGE - 1, 1), (PAGE, 1)]),
    (PAGE - 2, 8, [(PAGE - 8, 8), (PAGE, 8)],
     [(PAGE - 2, 2), (PAGE, 2), (PAGE + 2, 2), (PAGE + 4, 2)]),
    (PAGE - 6, 8, [(PAGE - 8, 8), (PAGE, 8)],
     [(PAGE - 6, 2), (PAGE - 4, 4), (PAGE, 2)]),
    (PAGE - 4, 8, [(PAGE - 8, 8), (PAGE, 8)], [(PAGE - 4, 4), (PAGE, 4)]),
    (PAGE - 3, 8, [(PAGE - 8, 8), (PAGE, 8)],
     [(PAGE - 3, 1), (PAGE - 2, 2), *((PAGE + at, 1) for at in range(5))]),
]


@pytest.mark.parametrize(("addr", "size", "old", "new"), LOADS)
def test_pieces_of_a_load(
    addr: int, size: int, old: list[tuple[int, int]], new: list[tuple[int, int]]
) -> None:
    contract = Contract(valid_max=8, impl_max=8, endian=Endian.LITTLE)
    for rules, pieces in ((CPU_RULES_7_2, old), (CPU_RULES_8_1, new)):
        path, device = path_of(rules, (0, page_io(contract)))
        value = int.from_bytes(bytes((addr + i + 1) & 0xFF for i in range(size)), "little")
        assert path.load(addr, size, "little") == CpuOutcome(value)
        assert reads(device.log) == pieces


@pytest.mark.parametrize(("addr", "size", "old", "new"), LOADS)
def test_pieces_of_a_store(addr: int, size: int, old: object, new: list[Any]) -> None:
    contract = Contract(valid_max=8, impl_max=8, endian=Endian.BIG)
    data = bytes(range(0xA0, 0xA0 + size))
    aligned = addr % size == 0
    for rules in BOTH:
        path, device = path_of(rules, (0, page_io(contract)))
        outcome = path.store(addr, int.from_bytes(data, "big"), size, "big")
        assert outcome == CpuOutcome(None)
        pieces = new if rules is CPU_RULES_8_1 or aligned else [
            (addr + at, 1) for at in range(size)]
        assert writes(device.log) == [
            (at, n, int.from_bytes(data[at - addr : at - addr + n], "big")) for at, n in pieces
        ]


@each_rules
@pytest.mark.parametrize("endian", [Endian.LITTLE, Endian.BIG])
@pytest.mark.parametrize("addr", [8, 10, 11, PAGE - 3])
def test_byte_orders(rules: CpuRules, endian: Endian, addr: int) -> None:
    """The guest gets the device's bytes, in the order it asks for."""
    contract = Contract(valid_max=8, impl_max=8, endian=endian)
    path, device = path_of(rules, (0, page_io(contract)))
    data = bytes((addr + i + 1) & 0xFF for i in range(4))
    for order in ("little", "big"):
        assert path.load(addr, 4, order).value == int.from_bytes(data, order)
    path.store(addr, 0x01020304, 4, "big")
    stored = b"".join(
        value.to_bytes(n, endian.value) for _, n, value in writes(device.log)  # type: ignore
    )
    assert stored == bytes((1, 2, 3, 4))


@each_rules
def test_a_store_to_a_read_only_section_vanishes(rules: CpuRules) -> None:
    memory = ram(PAGE)
    rom = MemoryRegion.rom("rom", PAGE, ByteBacking(PAGE))
    shown = MemoryRegion.alias_of("shown", memory, 0, PAGE)
    shown.set_readonly(True)
    path, device = path_of(
        rules, (0, memory), (PAGE, rom), (2 * PAGE, shown), faults=True)
    for addr in (0x10, PAGE + 0x10, 2 * PAGE + 0x20, 2 * PAGE + 0x21):
        assert path.store(addr, 0x1122, 2, "big") == CpuOutcome(None)
    assert not device.log
    assert memory.backing is not None and rom.backing is not None
    assert memory.backing.read(0x10, 2) == b"\x11\x22"
    assert memory.backing.read(0x20, 4) == rom.backing.read(0x10, 4) == bytes(4)
    # R9: the host's path looks at the region, and so does a page that is shared.
    assert path.space.write(2 * PAGE + 0x20, b"\x33") == 0
    assert memory.backing.read(0x20, 1) == b"\x33"


@each_rules
def test_a_shared_page_goes_by_the_host_rules(rules: CpuRules) -> None:
    """R16: bytes of a page with a hole, a device and read-only RAM."""
    memory = ram(PAGE)
    shown = MemoryRegion.alias_of("shown", memory, 0, 0x100)
    shown.set_readonly(True)
    only_words = io(Contract(valid_min=4, valid_max=4, endian=Endian.LITTLE))
    path, device = path_of(rules, (0x1000, only_words), (0x1100, shown), (0x8000, memory))
    assert path.shares_page(0x1F00) and not path.shares_page(0x8000)
    assert path.load(0x1008, 8, "little") == CpuOutcome(0x100F0E0D0C0B0A09)
    assert reads(device.log) == [(8, 4), (12, 4)]
    device.log.clear()
    # A store to read-only RAM gets through here: R9 asks the region.
    assert path.store(0x1100, 0x5A, 1, "little") == CpuOutcome(None)
    assert memory.backing is not None and memory.backing.read(0, 1) == b"\x5a"
    # What R13 forbids is refused whole, in the page's own name.
    assert path.load(0x1002, 2, "little") == CpuOutcome(
        0, (CpuFailure(0x1002, 2, False, DECODE_ERROR),))
    assert invalids(device.log) == [(2, 2, False, "invalid size"), (2, 2, False, "rejected")]
    device.log.clear()
    # So is one that would begin well: nothing of it is done.
    assert path.store(0x10F8 + 8 * 0x21, 0, 8, "little").result == DECODE_ERROR
    assert not writes(device.log)


@each_rules
def test_a_shared_page_gives_zeros_when_a_device_fails(rules: CpuRules) -> None:
    class Failing(Device):
        def read(self, *args: Any) -> tuple[int, int]:
            return ERROR, super().read(*args)[1]

    small = io(Contract(endian=Endian.LITTLE))
    path, _ = path_of(rules, (0, small), (0x2000, page_io(name="whole")))
    path.space.ops = Failing()
    assert path.load(4, 4, "little") == CpuOutcome(0, (CpuFailure(4, 4, False, ERROR),))
    # A page of the device's own passes on what came with the error.
    assert path.load(0x2004, 4, "little") == CpuOutcome(
        0x08070605, (CpuFailure(0x2004, 4, False, ERROR),))


@each_rules
def test_a_hole_is_a_page_of_its_own_only_when_whole(rules: CpuRules) -> None:
    path, device = path_of(rules, (0, io(Contract())))
    assert path.load(0x5000, 8, "little") == CpuOutcome(
        0, (CpuFailure(0x5000, 8, False, DECODE_ERROR),))
    assert device.log == [("invalid", "", 0x5000, 8, False, "rejected")]
    device.log.clear()
    path.load(0x800, 8, "little")
    assert device.log == [
        ("invalid", "", 0x800, 4, False, "rejected"), ("invalid", "", 0x800, 8, False, "rejected"),
    ]


def test_a_fault_ends_the_access() -> None:
    refusing = Contract(
        valid_max=8, impl_max=8, accepts=lambda offset, size, is_write: offset != 4)
    new, device = path_of(CPU_RULES_8_1, (0, page_io(refusing)), faults=True)
    outcome = new.load(2, 4, "little")
    assert outcome == CpuOutcome(None, (CpuFailure(4, 2, False, DECODE_ERROR),), True)
    assert outcome.fault == outcome.failures[0]
    assert reads(device.log) == [(2, 2)], "the first piece was done"
    outcome = new.store(3, 0x04030201, 4, "little")
    assert outcome.fault == CpuFailure(4, 1, True, DECODE_ERROR)
    assert writes(device.log) == [(3, 1, 1)]
    # 7.2 tells the aligned address of the load that failed, not the guest's.
    old, device = path_of(CPU_RULES_7_2, (0, page_io(refusing)), faults=True)
    assert old.load(6, 4, "little").fault == CpuFailure(4, 4, False, DECODE_ERROR)
    assert not reads(device.log)


def test_without_a_fault_the_rest_goes_on() -> None:
    refusing = Contract(
        valid_max=8, impl_max=8, accepts=lambda offset, size, is_write: offset != 4)
    path, device = path_of(CPU_RULES_8_1, (0, page_io(refusing)))
    outcome = path.load(2, 8, "little")
    assert outcome.value == 0x0A09_0807_0000_0403
    assert outcome.failures == (CpuFailure(4, 2, False, DECODE_ERROR),)
    assert outcome.fault is None
    assert reads(device.log) == [(2, 2), (6, 2), (8, 2)]


@each_rules
def test_rom_devices(rules: CpuRules) -> None:
    backing = ByteBacking(bytearray(range(256)) * 16)
    flash = MemoryRegion.rom_device("flash", PAGE, Contract(), backing=backing)
    path, device = path_of(rules, (0, flash), (PAGE, ram(PAGE)))
    assert path.load(0xFFE, 4, "big").value == 0xFEFF0000
    assert not device.log
    path.store(0x10, 0x98, 1, "little")
    assert writes(device.log) == [(0x10, 1, 0x98)] and backing.read(0x10, 1) == b"\x10"
    flash.set_romd(False)
    path.space.update()
    assert path.load(0x10, 1, "little").value == 0x11, "the TLB was flushed"


@each_rules
def test_a_ram_device_is_memory_to_the_cpu(rules: CpuRules) -> None:
    host = MemoryRegion.ram_device("bar", PAGE, ByteBacking(PAGE))
    host.ops = None
    path, device = path_of(rules, (0, host))
    path.store(3, 0x1234, 2, "big")
    assert path.load(3, 2, "big").value == 0x1234
    assert not device.log, "the host's path would call it"


def test_the_map_of_each_part() -> None:
    """7.2 looks each part's page up in its turn; later versions both before the first."""
    first, second = page_io(name="first"), page_io(name="second")
    first.set_size(PAGE)
    root = MemoryRegion.container_of("system", TOP)
    root.add_subregion(0, first)
    root.add_subregion(PAGE, second)
    space = AddressSpace("memory", root, rules=RULES_10_0)

    class Remapping(Device):
        def write(self, region: MemoryRegion, *rest: Any) -> int:
            if region is first:
                second.set_enabled(False)
                space.update()
            return super().write(region, *rest)

    for rules, seen in ((CPU_RULES_7_2, ["first"]), (CPU_RULES_8_1, ["first", "second"])):
        second.set_enabled(True)
        space.update()
        space.ops = space.observer = device = Remapping()
        CpuPath(space, rules=rules).store(PAGE - 1, 0, 2, "little")
        assert [event[1] for event in device.log if event[0] == "write"] == seen


def test_a_page_at_odds_with_its_region_is_refused() -> None:
    odd = page_io()
    odd_ram = ram(2 * PAGE)
    old, _ = path_of(CPU_RULES_7_2, (0x100, odd), (0x4100, odd_ram))
    new, _ = path_of(CPU_RULES_8_1, (0x100, page_io()), (0x4100, ram(2 * PAGE)))
    for path, addr in ((old, 0x1000), (new, 0x1000), (new, 0x5000)):
        with pytest.raises(ModelError, match="cannot hold the page"):
            path.load(addr, 4, "little")
    assert old.load(0x5000, 4, "little") == CpuOutcome(0)


def test_what_is_asked_wrongly() -> None:
    bare = MemoryRegion.ram("bare", PAGE)
    bare.backing = None
    path, _ = path_of(CPU_RULES_8_1, (0, ram(PAGE)), (2 * PAGE, bare))
    for addr, size, words in ((0, 3, "1, 2, 4 or 8"), (0, 16, "1, 2, 4 or 8"), (-1, 1, r"2\^64"),
                              (TOP, 1, r"2\^64"), (2 * PAGE, 1, "has no 1")):
        with pytest.raises(ModelError, match=words):
            path.load(addr, size, "little")
        with pytest.raises(ModelError, match=words):
            path.store(addr, 0, size, "little")
    with pytest.raises(ModelError, match=r"2\^3 to"):
        CpuPath(path.space, page_bits=2)
    assert FAULTS["aarch64"] and not FAULTS["x86_64"]


def test_the_last_bytes_of_the_space_and_the_first() -> None:
    for rules in BOTH:
        low, high = page_io(name="low"), page_io(name="high")
        path, device = path_of(rules, (0, low), (TOP - 2 * PAGE, high))
        assert path.load(TOP - 1, 2, "big").value == 0x0001
        assert {event[1] for event in device.log} == {"low", "high"}


def test_bytes_a_device_gives_beyond_what_was_asked_for() -> None:
    """C8, as measured on e1000e (``tests/qemu``): a register file that knows only words."""
    registers = {0: 0x81C2E3F4, 4: 0x12345678}

    class Words(Device):
        def read(self, region: MemoryRegion, offset: int, *_: Any) -> tuple[int, int]:
            return 0, registers.get(offset & ~3, 0)

    contract = Contract(impl_min=4, impl_max=4, endian=Endian.LITTLE)
    measured = [
        # offset, size, 7.2, since 8.1, host
        (0, 4, 0x81C2E3F4, 0x81C2E3F4, 0x81C2E3F4),
        (0, 2, 0x81C2E3F4, 0xE3F4, 0xE3F4),
        (0, 1, 0x81C2E3F4, 0xF4, 0xF4),
        (2, 2, 0x81C2E3F4, 0xE3F4, 0xE3F4),
        (3, 2, 0xFAE3, 0x78F6, 0x78F4),
        (1, 2, 0xF6E3, 0xF4F7, 0xF4F4),
        (2, 4, 0x567881C2, 0x5678E3F4, 0x5678E3F4),
        (1, 4, 0x7881C2E3, 0x78F6F7F7, 0x78E3F4F4),
        (1, 8, 0x0012345678_81C2E3, 0x00787E7E7EF6F7F7, None),
    ]
    for offset, size, old, new, host in measured:
        for rules, value in ((CPU_RULES_7_2, old), (CPU_RULES_8_1, new)):
            path, _ = path_of(rules, (0, page_io(contract)))
            path.space.ops = Words()
            assert path.load(offset, size, "little") == CpuOutcome(value), (offset, size)
        if host is not None:
            _, data = path.space.read(offset, size)
            assert int.from_bytes(data, "little") == host, (offset, size)


def test_bytes_a_device_is_given_beyond_what_was_stored() -> None:
    contract = Contract(impl_min=4, impl_max=4, endian=Endian.LITTLE)
    for rules, passed in ((CPU_RULES_7_2, (0x55, 0xAA, 0x44, 0x33)),
                         (CPU_RULES_8_1, (0x3344AA55, 0x3344AA, 0x3344, 0x33))):
        path, device = path_of(rules, (0, page_io(contract)))
        path.store(0x209, 0x3344AA55, 4, "little")
        assert writes(device.log) == [(0x209 + at, 4, value) for at, value in enumerate(passed)]
        device.log.clear()
        # Over a page's end two bytes are two stores, and know nothing of each other.
        path.store(PAGE - 1, 0xAA55, 2, "little")
        assert writes(device.log) == [(PAGE - 1, 4, 0x55), (PAGE, 4, 0xAA)]


def test_an_eventfd_sees_the_bytes_beyond() -> None:
    """C8: so a store in pieces does not match an eventfd that asks for a byte."""
    for rules, seen in ((CPU_RULES_7_2, 1), (CPU_RULES_8_1, 2)):
        region = page_io()
        region.ioeventfds = (IoEventFd(1, 1, 0x55),)
        path, device = path_of(rules, (0, region))
        path.store(1, 0xAA55, 2, "little")
        assert len(writes(device.log)) == seen
        path.store(1, 0x55, 1, "little")
        assert len(writes(device.log)) == seen


@pytest.mark.parametrize("wrong", [None, "whoever_logs"])
def test_a_store_marks_memory(wrong: str | None) -> None:
    """C9: for display and migration, whoever logs it; not where it vanishes."""
    broken = dict((w.__name__, w) for _, w in DEFECTS)
    rules = CPU_RULES_8_1 if wrong is None else type(
        "Wrong", (CpuRules,), {"dirty_mask": broken[wrong]})("broken")
    memory = ram(2 * PAGE)
    shown = MemoryRegion.alias_of("shown", memory, 0, PAGE)
    shown.set_readonly(True)
    path, _ = path_of(rules, (0, memory), (4 * PAGE, shown))
    record = path.space.topology.dirty
    for client in CLIENTS:
        record.test_and_clear(memory, 0, 2 * PAGE, client)
    path.store(4 * PAGE, 1, 1, "little")
    assert not any(record.get(memory, 0, 2 * PAGE, client) for client in CLIENTS)
    path.store(PAGE + 1, 1, 2, "little")
    marked = [client for client in CLIENTS if record.get(memory, PAGE, PAGE, client)]
    assert (marked == [VGA, MIGRATION]) == (wrong is None)
    assert not record.get(memory, 0, PAGE, VGA)


class _Mmu:
    """An IOMMU of 4 KiB pages: ``pages`` maps a page's number to (target space, page, perm)."""

    def __init__(self, pages: dict[int, tuple[AddressSpace, int, IommuAccess]]) -> None:
        self.pages = pages
        self.asked: list[IommuAccess] = []

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        self.asked.append(access)
        space, page, perm = self.pages[addr // PAGE]
        return IommuTlbEntry(space, addr & -PAGE, page * PAGE, PAGE - 1, perm)

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        return 0


@each_rules
def test_behind_an_iommu(rules: CpuRules) -> None:
    topology = Topology(rules=RULES_10_0)
    device, memory, small = page_io(), ram(PAGE), io(Contract(endian=Endian.LITTLE), "small")
    below = MemoryRegion.container_of("below", TOP)
    for at, region in ((0x10, device), (0x20, memory), (0x30, small)):
        below.add_subregion(at * PAGE, region)
    target = AddressSpace("target", below, topology=topology)
    gate = MemoryRegion.iommu("gate", 6 * PAGE)
    mmu = gate.iommu_ops = _Mmu({
        0: (target, 0x11, IommuAccess.RW), 1: (target, 0x20, IommuAccess.RW),
        2: (target, 0x30, IommuAccess.RW), 3: (target, 0x10, IommuAccess.NONE),
        4: (target, 0x20, IommuAccess.RO),
    })
    root = MemoryRegion.container_of("system", TOP)
    root.add_subregion(8 * PAGE, gate)
    space = AddressSpace("memory", root, topology=topology)
    space.ops = space.observer = recorder = Device()
    path = CpuPath(space, rules=rules)
    assert path.load(8 * PAGE + 4, 4, "little").value == 0x08070605
    assert reads(recorder.log) == [(PAGE + 4, 4)]
    path.store(9 * PAGE + 1, 0x77, 1, "little")
    assert memory.backing is not None and memory.backing.read(1, 1) == b"w"
    recorder.log.clear()
    assert path.shares_page(10 * PAGE)
    assert path.load(10 * PAGE + 8, 2, "big").value == 0x090A
    assert reads(recorder.log) == [(8, 2)]
    recorder.log.clear()
    path.load(11 * PAGE + 8, 4, "big")
    assert recorder.log == [("invalid", "", 11 * PAGE + 8, 4, False, "rejected")]
    assert path.load(12 * PAGE + 1, 1, "big").value == 0x77
    with pytest.raises(ModelError, match="not modelled"):
        path.store(12 * PAGE, 0, 1, "big")
    assert set(mmu.asked) == {IommuAccess.NONE}, "no access in mind"


# -- against the oracle ------------------------------------------------------------------------


def compare(rng: Random, rules: CpuRules, *, accesses: int) -> int:
    """Random accesses to a random map; the number that QEMU defines."""
    page_bits = rng.choice((3, 4, 4, 5))
    root, base = paged_map(rng, 1 << page_bits)
    target_big, faults = rng.random() < 0.5, rng.random() < 0.5
    region, made = build(root)
    recorder = Recorder()
    space = AddressSpace("memory", region, rules=RULES_10_0, target_big=target_big)
    space.ops = space.observer = recorder
    path = CpuPath(space, rules=rules, page_bits=page_bits, faults=faults)
    oracle = CpuOracle(root, page=1 << page_bits, old=rules.name == "7.2" or rules.loads_combine,
                       faults=faults, target_big=target_big)
    defined = 0
    for _ in range(accesses):
        addr = (base + rng.randrange(-10, 8 << page_bits)) % TOP
        size = rng.choice((1, 2, 4, 8))
        order = rng.choice(("little", "big"))
        data = rng.randbytes(size) if rng.random() < 0.5 else None
        defined += one_access(path, oracle, addr, size, order, data)
        assert recorder.log == oracle.log, f"{addr:#x} size {size} data {data!r}"
        recorder.log.clear()
        oracle.log.clear()
    for node, memory in oracle.ram.items():
        backing = made[node].backing
        assert backing is not None and backing.read(0, node.size) == memory, node.name
    return defined


def one_access(
    path: CpuPath, oracle: CpuOracle, addr: int, size: int, order: Any, data: bytes | None
) -> bool:
    try:
        expected = (
            oracle.cpu_load(addr, size, order) if data is None
            else oracle.cpu_store(addr, data))
    except Undefined:
        with pytest.raises(ModelError):
            if data is None:
                path.load(addr, size, order)
            else:
                path.store(addr, int.from_bytes(data, order), size, order)
        oracle.log.clear()
        path.space.observer.log.clear()  # type: ignore[union-attr]
        return False
    if data is None:
        outcome = path.load(addr, size, order)
        assert outcome.value == expected
        assert outcome.faulted == (expected is None)
    else:
        outcome = path.store(addr, int.from_bytes(data, order), size, order)
        assert outcome.value is None and outcome.faulted == (not expected)
    said = [(f.addr, f.size, f.is_write, f.result) for f in outcome.failures]
    assert said == oracle.failed, f"{addr:#x} size {size} data {data!r}"
    return True


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(BOTH))
def test_random_accesses_to_random_maps(rng: Random, rules: CpuRules) -> None:
    compare(rng, rules, accesses=12)


def test_most_random_accesses_are_defined() -> None:
    rng = Random(3)
    for rules in BOTH:
        defined = sum(compare(rng, rules, accesses=10) for _ in range(60))
        assert defined > 400


# -- with each rule broken -----------------------------------------------------------------------

DEFECTS: list[tuple[str, Callable[..., Any]]] = []
Real = CpuRules


def defect(method: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(wrong: Callable[..., Any]) -> Callable[..., Any]:
        DEFECTS.append((method, wrong))
        return wrong
    return register


@defect("shared")
def holes_do_not_share(self: CpuRules, section: Any, page: int, page_size: int) -> bool:
    return Real.shared(self, section, page, page_size) and bool(section.assigned)


@defect("shared")
def start_is_enough(self: CpuRules, section: Any, page: int, page_size: int) -> bool:
    return bool(section.start > page)


@defect("shared")
def one_byte_too_many(self: CpuRules, section: Any, page: int, page_size: int) -> bool:
    return bool(section.start > page or section.last < page + page_size)


@defect("shared")
def all_shared(self: CpuRules, section: Any, page: int, page_size: int) -> bool:
    return True


@defect("odd")
def never_odd(self: CpuRules, section: Any, page_size: int) -> bool:
    return False


@defect("odd")
def start_alone_counts(self: CpuRules, section: Any, page_size: int) -> bool:
    return bool(section.offset % page_size)


@defect("direct_load")
def romd_is_called(self: CpuRules, section: Any) -> bool:
    return bool(section.region.is_ram)


@defect("direct_load")
def rom_is_called(self: CpuRules, section: Any) -> bool:
    return Real.direct_load(self, section) and not section.readonly


@defect("direct_store")
def rom_device_is_written(self: CpuRules, section: Any) -> bool:
    return Real.direct_load(self, section)


@defect("direct_store")
def rom_store_is_dispatched(self: CpuRules, section: Any) -> bool:
    return bool(section.region.is_ram and not section.readonly)


@defect("discards")
def the_region_counts(self: CpuRules, section: Any) -> bool:
    return bool(section.region.readonly)


@defect("discards")
def nothing_discarded(self: CpuRules, section: Any) -> bool:
    return False


@defect("loads")
def never_in_parts(self: CpuRules, addr: int, size: int, page_size: int, direct: bool) -> Any:
    return ((addr, size),)


@defect("loads")
def no_second_load(self: CpuRules, addr: int, size: int, page_size: int, direct: bool) -> Any:
    return Real.loads(self, addr, size, page_size, direct)[:1] if addr % size else ((addr, size),)


@defect("loads")
def memory_combines(self: CpuRules, addr: int, size: int, page_size: int, direct: bool) -> Any:
    # Seen only where loads combine and a page's kind decides.
    return Real.loads(self, addr, size, page_size, not direct)


@defect("stores")
def store_in_one(self: CpuRules, addr: int, size: int, page_size: int, direct: bool) -> Any:
    return ((addr, size),)


@defect("stores")
def store_backwards(self: CpuRules, addr: int, size: int, page_size: int, direct: bool) -> Any:
    return Real.stores(self, addr, size, page_size, direct)[::-1]


@defect("pieces")
def never_cut(self: CpuRules, addr: int, size: int) -> Any:
    return ((addr, size),)


@defect("pieces")
def cut_by_address_only(self: CpuRules, addr: int, size: int) -> Any:
    found = []
    while size:
        n = min(addr & -addr or 8, 8)
        while n > size:
            n //= 2
        found.append((addr % TOP, n))
        addr, size = addr + n, size - n
    return tuple(found)


@defect("pieces")
def bytes_only(self: CpuRules, addr: int, size: int) -> Any:
    return tuple(((addr + at) % TOP, 1) for at in range(size))


@defect("pieces")
def words_at_most(self: CpuRules, addr: int, size: int) -> Any:
    return tuple(
        part for at, n in Real.pieces(self, addr, size)
        for part in ([(at, n)] if n < 8 else [(at, 4), (at + 4, 4)])
    )


@defect("subpage_valid")
def everything_valid(self: CpuRules, *_: Any) -> bool:
    return True


@defect("subpage_valid")
def judged_as_loads(
    self: CpuRules, space: Any, view: Any, addr: int, size: int, is_write: bool, attrs: Any
) -> bool:
    return Real.subpage_valid(self, space, view, addr, size, False, attrs)


@defect("refused_bytes")
def bytes_of_a_failed_read(self: CpuRules, result: int, data: bytes) -> bytes:
    return data


@defect("stops")
def never_stops(self: CpuRules, faults: bool) -> bool:
    return False


@defect("stops")
def always_stops(self: CpuRules, faults: bool) -> bool:
    return True


@defect("swapped")
def swapping_keeps_all(self: CpuRules, value: int, size: int, swap: bool) -> int:
    if not swap:
        return value
    bits = max(8 * size, value.bit_length() + 7 & ~7)
    return int.from_bytes(value.to_bytes(bits // 8, "big"), "little")


@defect("swapped")
def always_cut(self: CpuRules, value: int, size: int, swap: bool) -> int:
    return Real.swapped(self, value, size, swap) & ((1 << 8 * size) - 1)


@defect("swapped")
def never_swapped(self: CpuRules, value: int, size: int, swap: bool) -> int:
    return value


@defect("appended")
def cut_before(self: CpuRules, before: int, value: int, size: int) -> int:
    return before << 8 * size | value & ((1 << 8 * size) - 1)


@defect("joined")
def halves_cut(self: CpuRules, first: int, second: int, size: int, skip: int, order: Any) -> int:
    mask = (1 << 8 * size) - 1
    return Real.joined(self, first & mask, second & mask, size, skip, order)


@defect("joined")
def order_of_halves(
    self: CpuRules, first: int, second: int, size: int, skip: int, order: Any
) -> int:
    return Real.joined(self, first, second, size, skip, LITTLE)


@defect("carried")
def only_its_own(self: CpuRules, data: bytes, done: int, size: int) -> bytes:
    return data[done : done + size]


@defect("dirty_mask")
def whoever_logs(self: CpuRules, region: MemoryRegion) -> int:
    return region.dirty_log_mask


#: Random maps tried on a defect; the rarest needs about 150.
MAPS = 400
#: What these break, the other version does not do: 7.2 has aligned parts only, 8.1 joins none.
ONE_VERSION = (
    "memory_combines", "never_cut", "cut_by_address_only", "cut_before", "halves_cut",
    "order_of_halves", "only_its_own",
)
#: The oracle keeps no record of dirty pages; ``test_a_store_marks_memory`` does.
ELSEWHERE = ("whoever_logs",)


@pytest.mark.parametrize(
    ("method", "wrong"), [
        pytest.param(m, w, id=f"{m}-{w.__name__}") for m, w in DEFECTS
        if w.__name__ not in ELSEWHERE
    ])
def test_the_oracle_notices_a_broken_rule(method: str, wrong: Callable[..., Any]) -> None:
    kind: type[CpuRules] = type(f"Wrong_{method}", (CpuRules,), {method: wrong})
    noticed = 0
    for sound in BOTH:
        broken = kind(**vars(sound))
        rng = Random(1)
        try:
            for _ in range(MAPS):
                compare(rng, broken, accesses=10)
        except (AssertionError, ModelError, pytest.fail.Exception):
            noticed += 1
    assert noticed == (1 if wrong.__name__ in ONE_VERSION else 2)


@pytest.mark.parametrize(
    "field", ["loads_combine", "stores_bytewise", "loads_spill", "odd_memory"])
def test_the_oracle_notices_a_wrong_version(field: str) -> None:
    wrong = replace(CPU_RULES_7_2, **{field: False})
    rng = Random(1)
    with pytest.raises((AssertionError, ModelError)):
        for _ in range(MAPS):
            compare(rng, wrong, accesses=10)


def test_every_method_of_the_rules_has_a_defect() -> None:
    methods = {
        name for name, _ in inspect.getmembers(CpuRules, inspect.isfunction)
        if not name.startswith("_")
    }
    assert methods == {method for method, _ in DEFECTS}
