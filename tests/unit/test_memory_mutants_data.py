"""What mutation testing found untested in data: versions, value classes, messages, page maths."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from dataclasses import replace

import pytest
from rule_checks import Device, ram

import qemuglue.memory
from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    Be64,
    Contract,
    CpuPath,
    Endian,
    EndianInt,
    IoEventFd,
    Le16,
    MemoryRegion,
    MemTxAttrs,
    RcuCell,
    RcuError,
    RcuGuard,
    RegionKind,
    Rules,
    SparseBacking,
    render,
)
from qemuglue.memory.cpu_rules import CPU_RULES_7_2
from qemuglue.memory.dirty import DirtyMemory
from qemuglue.memory.rules import (
    RULES_7_2,
    RULES_7_2_UNGUARDED,
    RULES_8_1,
    RULES_9_0,
    RULES_9_2,
    RULES_10_0,
    RULES_LATEST,
)

MODULES = [
    importlib.import_module(f"qemuglue.memory.{module.name}")
    for module in pkgutil.iter_modules(qemuglue.memory.__path__)
]
VALUE_CLASSES = [
    each for module in MODULES for each in vars(module).values()
    if isinstance(each, type) and dataclasses.is_dataclass(each)
    and each.__module__ == module.__name__ and not each.__name__.startswith("_")
]
#: Subclasses replace one method of a Rules; a Piece is made once a shape.
WITH_A_DICTIONARY = {"Rules", "CpuRules", "Piece"}


@pytest.mark.parametrize("kind", VALUE_CLASSES, ids=lambda kind: kind.__name__)
def test_value_classes_cannot_be_changed(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert ("__slots__" in vars(kind)) is (kind.__name__ not in WITH_A_DICTIONARY)


#: What each version does otherwise than the one behind it: reentrancy_guard, unguarded_releases,
#: debug_writes_rom, bounce_budget, cached_slow_relative, rom_write_by_kind,
#: ports_single_dispatch.
VERSIONS = [
    (RULES_7_2_UNGUARDED, "7.2.0", False, False, False, False, True, True, False),
    (RULES_7_2, "7.2", True, True, False, False, True, True, False),
    (RULES_8_1, "8.1", True, False, False, False, True, True, False),
    (RULES_9_0, "9.0", True, False, False, False, False, True, False),
    (RULES_9_2, "9.2", True, False, False, True, False, True, False),
    (RULES_10_0, "10.0", True, False, True, True, False, False, False),
    (RULES_LATEST, "11.1", True, False, True, True, False, False, True),
]


@pytest.mark.parametrize("row", VERSIONS, ids=lambda row: row[1])
def test_what_each_version_does(row: tuple[object, ...]) -> None:
    rules = row[0]
    assert isinstance(rules, Rules)
    assert (
        rules, rules.name, rules.reentrancy_guard, rules.unguarded_releases,
        rules.debug_writes_rom, rules.bounce_budget, rules.cached_slow_relative,
        rules.rom_write_by_kind, rules.ports_single_dispatch,
    ) == row


@pytest.mark.parametrize(("kind", "most"), [(Le16, 0xFFFF), (Be64, (1 << 64) - 1)])
def test_the_message_names_the_whole_range(kind: type[EndianInt], most: int) -> None:
    with pytest.raises(ModelError, match=f"{kind.__name__} holds 0 to {most:#x}, got "):
        kind(most + 1)


def test_an_eventfd_far_inside_a_region_swallows_too() -> None:
    region = MemoryRegion.io("bell", 0x2000, Contract(endian=Endian.LITTLE))
    root = MemoryRegion.container_of("system", 1 << 64)
    root.add_subregion(0, region)
    space = AddressSpace("memory", root)
    space.ops = device = Device()
    region.ioeventfds = (IoEventFd(int("1040", 16), 4),)
    assert space.write(0x1040, bytes(4)) == 0 and device.log == []
    assert space.write(0x1044, bytes(4)) == 0 and len(device.log) == 1


def test_nothing_written_makes_nothing_dirty() -> None:
    memory = ram(0x4000)
    bits = DirtyMemory(0x1000)
    assert bits.test_and_clear(memory, 0, 0x4000, 0)
    for length in (0, -1):
        bits.set(memory, 0x1800, length, 1)
        assert not bits.get(memory, 0, 0x4000, 0)
    bits.set(memory, 0x1800, 1, 1)
    assert not bits.get(memory, 0x1800, 0, 0) and bits.get(memory, 0x1800, 1, 0)
    assert not bits.test_and_clear(memory, 0x1800, 0, 0)
    assert bits.test_and_clear(memory, 0x1000, 1, 0)


@pytest.mark.parametrize("kind", [kind for kind in RegionKind if kind is not RegionKind.ALIAS])
def test_no_region_has_an_iommu_unless_it_was_given_one(kind: RegionKind) -> None:
    assert MemoryRegion("plain", 0x1000, kind).iommu_ops is None


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_an_aligned_load_keeps_every_bit_it_was_asked_for(size: int) -> None:
    class Ones(Device):
        def read(self, *_: object) -> tuple[int, int]:
            return 0, (1 << 64) - 1

    root = MemoryRegion.container_of("system", 1 << 64)
    wide = Contract(valid_max=8, impl_min=8, impl_max=8, endian=Endian.LITTLE)
    root.add_subregion(0, MemoryRegion.io("wide", 0x1000, wide))
    space = AddressSpace("memory", root)
    space.ops = Ones()
    path = CpuPath(space, rules=replace(CPU_RULES_7_2, loads_spill=False))
    assert path.load(8, size, "little").value == (1 << 8 * size) - 1


@pytest.mark.parametrize("at", [0, 1, 0x7FFF, 0xFFFD])
def test_a_write_to_sparse_memory_moves_nothing_else(at: int) -> None:
    memory = SparseBacking(0x30000)
    memory.write(0, bytes(at % 251 for at in range(0x20000)))
    memory.write(at, b"new")
    want = bytearray(at % 251 for at in range(0x20000))
    want[at : at + 3] = b"new"
    assert memory.read(0, 0x20000) == want
    assert memory.read(0x20000, 0x10000) == bytes(0x10000)


@pytest.mark.parametrize(("length", "chunk"), [(63, 32), (64, 64), (65, 64), (200, 64)])
def test_the_widest_dispatch_is_64_bytes(length: int, chunk: int) -> None:
    wide = Contract(valid_max=64, valid_unaligned=True, impl_unaligned=True)
    assert RULES_10_0.chunk(wide, length, 0) == chunk


def test_aliases_of_aliases_count_as_levels() -> None:
    shown = ram(0x1000)
    for at in range(250):
        shown = MemoryRegion.alias_of(f"alias{at}", shown, 0, 0x1000)
    root = MemoryRegion.container_of("system", 1 << 64)
    root.add_subregion(0x1000, shown)
    with pytest.raises(ModelError, match="levels deep"):
        render(root)


def test_eventfds_of_any_size_are_told_apart_by_their_address() -> None:
    region = MemoryRegion.io("bell", 0x100)
    region.add_eventfd(0x10, 0, None, "a")
    region.add_eventfd(0x20, 0, None, "b")
    region.del_eventfd(0x20, 0, None, "b")
    assert [(fd.addr, fd.notifier) for fd in region.ioeventfds] == [(0x10, "a")]


def test_eventfds_at_one_address_are_told_apart_by_their_size() -> None:
    region = MemoryRegion.io("bell", 0x100)
    region.add_eventfd(0x10, 2, None, "a")
    region.add_eventfd(0x10, 4, None, "b")
    region.del_eventfd(0x10, 4, None, "b")
    assert [(fd.size, fd.notifier) for fd in region.ioeventfds] == [(2, "a")]
    assert not IoEventFd(0x10, 2).equals(IoEventFd(0x10, 4))
    assert IoEventFd(0x10, 0).equals(IoEventFd(0x10, 4))
    assert IoEventFd(0x10, 2, 1).equals(IoEventFd(0x10, 2, 1))


@pytest.mark.parametrize("bits", [2, 64])
def test_pages_of_a_cpu_have_limits(bits: int) -> None:
    space = AddressSpace("memory", ram(0x1000))
    with pytest.raises(ModelError, match=r"pages are 2\^3 to 2\^63 bytes"):
        CpuPath(space, page_bits=bits)
    nearest = 3 if bits == 2 else 63
    assert CpuPath(space, page_bits=nearest).page_size == 1 << nearest


def test_a_page_at_odds_is_named_with_its_offset() -> None:
    root = MemoryRegion.container_of("system", 1 << 64)
    root.add_subregion(0x800, MemoryRegion.ram("odd", 0x3000))
    path = CpuPath(AddressSpace("memory", root))
    with pytest.raises(ModelError, match="the page 0x2000 of 'odd': its offset 0x1800 is not a"):
        path.load(0x2000, 4, "little")


@pytest.mark.parametrize(("field", "most"), [
    ("space", 3), ("pid", 255), ("requester_id", 65535), ("address_type", 1),
])
def test_attributes_hold_as_many_bits_as_qemus(field: str, most: int) -> None:
    assert getattr(MemTxAttrs(**{field: most}), field) == most
    for wrong in (-1, most + 1):
        with pytest.raises(ValueError, match=field):
            MemTxAttrs(**{field: wrong})


def test_nothing_behind_a_region_is_dirty() -> None:
    memory = ram(0x2000)
    bits = DirtyMemory(0x1000)
    assert bits.test_and_clear(memory, 0, 0x2000, 0)
    assert not bits.get(memory, 0x2000, 0x1000, 0)


def test_a_cell_asks_for_its_guard_even_while_it_is_empty() -> None:
    cell: RcuCell[int] = RcuCell(None)
    guard = RcuGuard()
    assert cell.get(guard) is None
    guard.release()
    with pytest.raises(RcuError):
        cell.get(guard)


def test_a_store_of_a_cpu_takes_the_low_bytes_of_its_value() -> None:
    memory = ram(0x1000)
    path = CpuPath(AddressSpace("memory", memory))
    path.store(4, 0x11223344, 2, "little")
    assert memory.backing is not None and memory.backing.read(3, 4) == b"\0\x44\x33\0"


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("endian", [Endian.LITTLE, Endian.BIG])
def test_two_bytes_of_two_pages_are_one_byte_each(endian: Endian, order: str) -> None:
    class Wide(Device):
        def read(self, region: MemoryRegion, *_: object) -> tuple[int, int]:
            return 0, (1 << 64) - 1 if region.name == "ones" else 0

    wide = Contract(valid_max=8, valid_unaligned=True, impl_min=4, impl_max=8, endian=endian)
    root = MemoryRegion.container_of("system", 1 << 64)
    for at, name in enumerate(("zeros", "ones", "none")):
        root.add_subregion(at * 0x1000, MemoryRegion.io(name, 0x1000, wide))
    space = AddressSpace("memory", root)
    space.ops = Wide()
    path = CpuPath(space)
    for addr, data in ((0xFFF, b"\0\xff"), (0x1FFF, b"\xff\0")):
        value = path.load(addr, 2, order).value  # type: ignore[arg-type]
        assert value == int.from_bytes(data, order)  # type: ignore[arg-type]
