"""The tree, and the small values: what is refused, what changes what."""

from __future__ import annotations

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import (
    UNSPECIFIED,
    Backing,
    ByteBacking,
    Contract,
    Endian,
    MemoryRegion,
    MemTxAttrs,
    MemTxResult,
    RegionKind,
)
from qemuglue.memory import attrs as plain
from qemuglue.memory.contract import UNASSIGNED_CONTRACT
from qemuglue.memory.ops import BackingOps

TOP = 1 << 64


def test_a_region_is_in_one_container_once() -> None:
    root, other = MemoryRegion.container_of("root", TOP), MemoryRegion.container_of("o", TOP)
    child = MemoryRegion.ram("child", 8)
    root.add_subregion(4, child)
    for parent in (root, other):
        with pytest.raises(ModelError, match="already in 'root'"):
            parent.add_subregion(0, child)
    with pytest.raises(ModelError, match="not in 'o'"):
        other.del_subregion(child)
    root.del_subregion(child)
    assert child.container is None and root.subregions == ()
    other.add_subregion(0, child)


def test_a_tree_holds_no_cycle() -> None:
    one, two = MemoryRegion.container_of("one", 8), MemoryRegion.container_of("two", 8)
    one.add_subregion(0, two)
    for parent, child in ((two, one), (one, one)):
        with pytest.raises(ModelError, match="cannot contain itself"):
            parent.add_subregion(0, child)
    assert one.container is None and two.subregions == ()


@pytest.mark.parametrize("size", [-1, TOP + 1])
def test_sizes_are_0_to_2_64(size: int) -> None:
    with pytest.raises(ModelError, match="size must be"):
        MemoryRegion.ram("ram", size)
    region = MemoryRegion.ram("ram", TOP)
    with pytest.raises(ModelError, match="size must be"):
        region.set_size(size)
    assert region.size == TOP


@pytest.mark.parametrize("addr", [-1, TOP])
def test_offsets_are_below_2_64(addr: int) -> None:
    root, child = MemoryRegion.container_of("root", TOP), MemoryRegion.ram("ram", 1)
    with pytest.raises(ModelError, match="not below"):
        root.add_subregion(addr, child)
    assert child.container is None


def test_only_an_alias_has_a_target() -> None:
    with pytest.raises(ModelError, match="only an alias"):
        MemoryRegion("a", 1, RegionKind.ALIAS)
    with pytest.raises(ModelError, match="only an alias"):
        MemoryRegion("a", 1, RegionKind.RAM, alias=MemoryRegion.ram("ram", 1))
    with pytest.raises(ModelError, match="not an alias"):
        MemoryRegion.ram("ram", 1).set_alias_offset(0)
    with pytest.raises(ModelError, match="not a ROM device"):
        MemoryRegion.ram("ram", 1).set_romd(True)


def test_absolute_adds_up_the_chain_modulo_2_64() -> None:
    root, box = MemoryRegion.container_of("root", TOP), MemoryRegion.container_of("box", 0x100)
    leaf = MemoryRegion.io("leaf", 0x10)
    box.add_subregion(0x20, leaf)
    assert leaf.absolute(4) == 0x24
    root.add_subregion(TOP - 0x10, box)
    assert leaf.absolute(4) == 0x14


def test_kinds() -> None:
    root = MemoryRegion.container_of("root", 1)
    kinds = {
        MemoryRegion.ram("r", 1): (True, True), MemoryRegion.rom("r", 1): (True, True),
        MemoryRegion.ram_device("r", 1): (True, True),
        MemoryRegion.rom_device("r", 1, Contract()): (True, False),
        MemoryRegion.io("r", 1): (True, False), MemoryRegion.reservation("r", 1): (True, False),
        MemoryRegion.iommu("r", 1): (True, False), root: (False, False),
        MemoryRegion.alias_of("r", root, 0, 1): (False, False),
    }
    for region, (terminates, is_ram) in kinds.items():
        assert (region.terminates, region.is_ram) == (terminates, is_ram), region
    assert MemoryRegion.container_of("io", 65536, terminates=True).terminates
    assert [r.kind for r in kinds if r.readonly] == [RegionKind.ROM]
    assert [r.kind for r in kinds if r.romd] == [RegionKind.ROM_DEVICE]
    assert [r.kind for r in kinds if r.contract is UNASSIGNED_CONTRACT] == [
        RegionKind.RAM, RegionKind.ROM, RegionKind.RESERVATION, RegionKind.IOMMU,
        RegionKind.CONTAINER, RegionKind.ALIAS,
    ]


def test_contract_sizes_are_powers_of_two() -> None:
    for wrong in (-1, 3, 6, 128):
        for name in ("valid_min", "valid_max", "impl_min", "impl_max"):
            with pytest.raises(ValueError, match=name):
                Contract(**{name: wrong})  # type: ignore[arg-type]
    Contract(0, 64, True, 1, 8)
    assert [Contract(endian=e).big(t) for e in Endian for t in (False, True)] == [
        False, True, False, False, True, True
    ]


def test_results_and_attributes() -> None:
    assert (plain.OK, plain.ERROR, plain.DECODE_ERROR, plain.ACCESS_ERROR) == (
        *map(int, (MemTxResult.OK, MemTxResult.ERROR, MemTxResult.DECODE_ERROR,
                   MemTxResult.ACCESS_ERROR)),
    ) == (0, 1, 2, 4)
    assert MemTxAttrs(unspecified=True) == UNSPECIFIED and not UNSPECIFIED.memory
    for wrong in ({"space": 4}, {"requester_id": 1 << 16}, {"pid": 256}, {"pid": -1}):
        with pytest.raises(ValueError, match="bits wide"):
            MemTxAttrs(**wrong)


def test_byte_backing() -> None:
    backing = ByteBacking(4)
    assert isinstance(backing, Backing) and len(backing) == 4
    backing.write(2, b"ab")
    assert backing.read(0, 4) == b"\0\0ab" and backing.read(3, 4) == b"b"
    for offset, data in ((3, b"ab"), (-1, b"a"), (5, b"")):
        with pytest.raises(ModelError, match="do not fit"):
            backing.write(offset, data)
    assert backing.read(0, 4) == b"\0\0ab"
    shared = bytearray(b"xy")
    ByteBacking(shared).write(0, b"z")
    assert shared == b"zy"


def test_backing_ops_fail_outside_the_backing() -> None:
    ops, card = BackingOps(), MemoryRegion.ram_device("card", 8, ByteBacking(6))
    assert ops.write(card, 0, 0x0201, 2, UNSPECIFIED) == 0
    assert ops.read(card, 0, 4, UNSPECIFIED) == (0, 0x0201)
    assert ops.read(card, 4, 4, UNSPECIFIED)[0] == ops.write(card, 4, 0, 4, UNSPECIFIED) == 1
    empty = MemoryRegion("empty", 8, RegionKind.RAM_DEVICE)
    assert ops.read(empty, 0, 1, UNSPECIFIED)[0] == ops.write(empty, 0, 0, 1, UNSPECIFIED) == 1
