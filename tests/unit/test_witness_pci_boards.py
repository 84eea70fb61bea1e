"""PCI of boards that are no PC: the set-up, configuration space in memory, byte orders."""

from __future__ import annotations

from typing import Any

import pytest

from qemuglue.memory import MemoryRegion, RegionKind
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.pci import Config, Function, wiring
from qemuglue.program.recipes.recipe import as_sent, ram_write, register_write
from qemuglue.witness.dma.pci_config import CONFIG_REGIONS, ConfigWrites
from qemuglue.witness.pci import SELECTED, pci_setup

EDU = {"slot": 2, "function": 0, "class_info": {"class": 0xFF},
       "regions": [{"bar": 0, "type": "memory", "size": 0x10_0000, "address": -1}]}
MACIO = {**EDU, "slot": 12, "class_info": {"class": 0xFF00}}
BRIDGE = {**EDU, "slot": 0, "class_info": {"class": 0x0B20}}


class FakeMonitor:
    """``ranges`` are (start, last, name) of the memory space."""

    def __init__(self, *ranges: tuple[int, int, str]) -> None:
        lines = "".join(
            f"  {start:016x}-{last:016x} (prio 0, i/o): {name} owner:{{dev path=/machine/a}}\r\n"
            for start, last, name in ranges)
        self.flat = (f'FlatView #0\r\n AS "memory", root: system\r\n Root memory region: system\r\n'
                     f"{lines}\r\n")

    def execute(self, command: str) -> Any:
        assert command == "query-pci"
        return [{"bus": 0, "devices": [BRIDGE, EDU, MACIO]}, {"bus": 0, "devices": [EDU]}]

    def hmp(self, command: str) -> str:
        assert command.startswith("info mtree -f")
        return self.flat


def written(
    machine: str, *ranges: tuple[int, int, str], big: bool = False
) -> list[tuple[int, int]]:
    monitor: Any = FakeMonitor(*ranges)
    ops = pci_setup(monitor, machine, masters=True, big=big)
    assert {op.verb for op in ops} <= {"writel"}
    return [(op.place.offset, op.value) for op in ops if op.place is not None]


@pytest.mark.parametrize("ecam", [0x3F00_0000, 0x40_1000_0000])
def test_a_window_is_written_where_it_is(ecam: int) -> None:
    assert written("aarch64/virt", (ecam, ecam + (1 << 24) - 1, "pcie-mmcfg-mmio")) == [
        (ecam + (2 << 15) + 0x10, 0x1000_0000), (ecam + (2 << 15) + 4, 7)]


def test_registers_of_another_byte_order_get_numbers_turned_round() -> None:
    index, data = 0xFEC0_0000, 0xFEE0_0000
    shown = ((index, index + 0xFFF, "pci-conf-idx"), (data, data + 0xFFF, "pci-data-idx"))
    assert written("ppc/g3beige", *shown, big=True) == [
        (index, 0x1010_0080), (data, 0x0000_0080), (index, 0x0410_0080), (data, 0x0700_0000),
        (index, 0x0000_0080)]


def test_a_bridge_s_windows_are_opened_first() -> None:
    base = 0xF_E000_8000
    ops = written("ppc/ppce500", (base, base + 3, "pci-conf-idx"),
                  (base + 4, base + 7, "pci-conf-data"), (base + 0xC00, base + 0xFFF, "pci.reg"),
                  big=True)
    assert ops[:3] == [(base + 0xC20, 0xC_0000), (base + 0xC28, 0xC0_0000),
                       (base + 0xC30, 0x8000_001C)]
    assert ops[9:11] == [(base, 0x8000_1010), (base + 4, 0x0000_00C0)], "one of each order"
    assert ops[-1] == (base, SELECTED)


def test_what_nobody_has_said_is_left_alone() -> None:
    assert written("sparc64/sun4u", (0, 3, "pci-conf-idx"), (4, 7, "pci-conf-data")) == []
    assert written("ppc/g3beige", (0, 3, "pci-conf-idx")) == [], "half a pair"
    assert wiring("aarch64/raspi3b") is None


def board(swapped: frozenset[str] = frozenset()) -> Layout:
    return Layout({"memory": [
        Range(0x8000, 0x1000, "pci-conf-idx", 0, 0, "device", "memory"),
        Range(0xA000, 0x1000, "pci-conf-data", 0, 0, "device", "memory"),
    ]}, big=True, swapped=swapped)


def test_programs_configure_by_a_pair_of_registers() -> None:
    function = Function(0, 3, 1, 0xFF)
    for swapped, address in ((frozenset[str](), 0x8000_1904), (frozenset({"pci-conf-idx"}),
                                                              0x0419_0080)):
        config = Config(board(swapped))
        assert config.pair == ("pci-conf-idx", "pci-conf-data") and config
        assert config.select(function, 6) == [register_write("pci-conf-idx", 0, 4, address)]
        assert config.write(function, 6, 2, 0x11234) == register_write(
            "pci-conf-data", 2, 2, 0x1234)
        assert config.read(function, 6, 1) == Operation(
            "readb", Place("pci-conf-data", 0, 2), 1)


def test_what_recipes_say_is_sent_in_the_target_s_order() -> None:
    ops = [register_write("a", 0, 4, 0x1234), register_write("b", 0, 2, 0x1234),
           register_write("a", 0, 1, 5), ram_write(0x1000, b"\1\2"),
           Operation("readl", Place("a"), 4)]
    sent = list(as_sent(Layout({}, big=True, swapped=frozenset({"a"})), ops))
    assert [op.value for op in sent] == [0x3412_0000, 0x1234, 5, 0, 0]
    assert sent[1:] == ops[1:] and list(as_sent(Layout({}), ops)) == ops


def pair(base: int) -> tuple[MemoryRegion, MemoryRegion]:
    """A Mac's bridge at ``base``."""
    root = MemoryRegion("root", 1 << 32, RegionKind.CONTAINER)
    index, data = (MemoryRegion.io(f"unin-pci-conf-{word}", 0x1000) for word in ("idx", "data"))
    root.add_subregion(base + 0x80_0000, index)
    root.add_subregion(base + 0xC0_0000, data)
    return index, data


@pytest.mark.parametrize(("address", "offset", "reached"), [
    (0x8000_6804, 2, (0x68, 6)),  # as on a PC
    (1 << 13 | 0x100, 4, (0x69, 4)),  # a bit for the slot
    (0x1_2341, 6, (0x123, 0x46)),  # on a bus behind a bridge
    (0x100, 0, (0xF9, 0)),  # no slot at all
])
def test_a_mac_s_bridges_have_a_pair_each(
    address: int, offset: int, reached: tuple[int, int]
) -> None:
    config = ConfigWrites()
    (index, data), (other, others) = pair(0xF200_0000), pair(0xF400_0000)
    assert {index.name, data.name} <= CONFIG_REGIONS
    assert config.wrote(index, 0, 4, address) is None
    config.wrote(other, 0, 4, 0x8000_5804)
    config.wrote(index, 0, 2, 0)
    assert config.wrote(others, 0, 4, 7) is None
    assert config.wrote(data, offset, 1, 7) == reached


def test_a_grackle_s_data_is_where_another_name_is() -> None:
    config = ConfigWrites()
    config.wrote(MemoryRegion.io("pci-conf-idx", 0x1000), 0, 4, 0x8000_1010)
    data = MemoryRegion.io("pci-data-idx", 0x1000)
    assert config.wrote(data, 2, 2, 0) == (0x10, 0x12)
    config.wrote(MemoryRegion.io("pci-conf-idx", 0x1000), 0, 4, 0x1010)
    assert config.wrote(data, 2, 2, 0) is None, "it is not enabled"
