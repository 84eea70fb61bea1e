"""Recipes that change the map, aim at one device or mix with ordinary accesses: no QEMU."""

from __future__ import annotations

from random import Random

import pytest

from qemuglue.program.codec import decode, encode
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place, Program, validate
from qemuglue.program.recipes import RECIPES
from qemuglue.program.recipes.focus import Focus, Focused
from qemuglue.program.recipes.fw_cfg import FwCfgRecipe
from qemuglue.program.recipes.knobs import knobs_of
from qemuglue.program.recipes.mix import Mix, Share, kept
from qemuglue.program.recipes.pci import Bar, Config, Function, functions_of, windows
from qemuglue.program.recipes.recipe import ram_write
from qemuglue.program.recipes.topology import Topology

#: A q35 as QMP tells of it, shortened: edu, a bridge with a device behind it, the ISA bridge.
QUERY_PCI = [{"bus": 0, "devices": [
    {"bus": 0, "slot": 0, "function": 0, "qdev_id": "", "class_info": {"class": 0x600},
     "regions": []},
    {"bus": 0, "slot": 1, "function": 0, "qdev_id": "fuzzed", "class_info": {"class": 0xFF},
     "regions": [{"bar": 0, "size": 0x100000, "address": 0xE0000000, "type": "memory"},
                 {"bar": 1, "size": 0x20, "address": 0xC000, "type": "io"},
                 {"bar": 6, "size": 0x10000, "address": -1, "type": "memory"}]},
    {"bus": 0, "slot": 2, "function": 0, "qdev_id": "below", "class_info": {"class": 0x604},
     "regions": [], "pci_bridge": {"devices": [
         {"bus": 1, "slot": 0, "function": 0, "qdev_id": "", "class_info": {"class": 0xFF},
          "regions": []}]}},
    {"bus": 0, "slot": 31, "function": 0, "qdev_id": "", "class_info": {"class": 0x601},
     "regions": []},
]}]

LAYOUT = Layout({
    "memory": [
        Range(0, 0xA0000, "pc.ram", 0, 0, "ram", "memory"),
        Range(0x100000, 0x3F00000, "pc.ram", 0, 0x100000, "ram", "memory"),
        Range(0xE0000000, 0x100000, "edu-mmio", 0, 0, "device", "memory"),
        Range(0xFED00000, 0x400, "hpet", 0, 0, "device", "memory"),
        Range(0xFFFC0000, 0x40000, "system.flash0", 0, 0, "romd", "memory"),
    ],
    "io": [
        Range(0x3C0, 0x10, "vga", 0, 0, "device", "io"),
        Range(0x510, 2, "fwcfg", 0, 0, "device", "io"),
        Range(0x514, 8, "fwcfg.dma", 0, 0, "device", "io"),
        Range(0xCD8, 12, "acpi-cpu-hotplug", 0, 0, "device", "io"),
        Range(0xCF8, 4, "pci-conf-idx", 0, 0, "device", "io"),
        Range(0xCFC, 4, "pci-conf-data", 0, 0, "device", "io"),
        Range(0xC000, 0x20, "edu-io", 0, 0, "device", "io"),
    ],
})
FUNCTIONS = functions_of(QUERY_PCI)


def test_functions_are_those_qmp_tells_of() -> None:
    assert [(each.bus, each.slot) for each in FUNCTIONS] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (0, 31)]
    edu = FUNCTIONS[1]
    assert edu.bars == (Bar(0, 0x100000, 0xE0000000, "memory"), Bar(1, 0x20, 0xC000, "io"),
                        Bar(6, 0x10000, -1, "memory"))
    assert [bar.register(edu.is_bridge) for bar in edu.bars] == [0x10, 0x14, 0x30]
    assert FUNCTIONS[2].is_bridge


@pytest.mark.parametrize("answer", [
    None, {}, [], [1], [{"devices": 7}], [{"devices": [{}]}], [{"devices": [None]}],
    [{"devices": [{"bus": "x", "slot": 0, "function": 0, "class_info": {"class": 1}}]}],
    [{"devices": [{"bus": 0, "slot": 0, "function": 0, "class_info": {"class": 1},
                   "regions": [{"bar": 0}]}]}],
])
def test_what_is_no_answer_has_no_functions(answer: object) -> None:
    assert functions_of(answer) == ()


def test_configuration_goes_by_ports_or_by_the_window() -> None:
    edu = FUNCTIONS[1]
    config = Config(LAYOUT)
    assert config.select(edu, 0x13) == [Operation("outl", Place(None, 0, 0xCF8), 4, 0x80000810)]
    assert config.write(edu, 0x13, 1, 0x1FF) == Operation("outb", Place(None, 0, 0xCFF), 1, 0xFF)
    board = Config(Layout({"memory": [
        Range(0x4010000000, 1 << 28, "pcie-mmcfg-mmio", 0, 0, "device", "memory")]}))
    assert board and board.select(edu, 4) == []
    assert board.read(edu, 4, 2) == Operation("readw", Place("pcie-mmcfg-mmio", 0, 0x8004), 2)
    assert not Config(Layout({}))
    assert windows("aarch64/virt")[0] < windows("x86_64/q35")[0]


def test_a_fifth_and_more_changes_the_map() -> None:
    """Writes to what moves things, after their register was selected."""
    topology = Topology(LAYOUT, FUNCTIONS, "x86_64/q35")
    assert set(topology.ways) == {
        "bar", "command", "knob", "bridge", "flash", "vga", "hotplug"}
    rng = Random(1)
    ops = [op for _ in range(100) for op in topology.operations(rng, 64)]
    assert len(ops) == 6400
    changes = [op for op in ops if op.place is not None and op.info.is_write
               and op.place.region is None and 0xCFC <= op.place.offset <= 0xCFF]
    assert len(changes) > 0.2 * len(ops)
    looks = [op for op in ops if not op.info.is_write]
    assert len(looks) > 0.2 * len(ops), "what moved is looked at"


@pytest.mark.parametrize("seed", range(5))
def test_what_is_drawn_is_valid_and_survives_the_codec(seed: int) -> None:
    rng = Random(seed)
    mix = Mix(LAYOUT, [Share(each) for each in RECIPES], share=0.7)
    focused = Focused(LAYOUT, Focus(frozenset({("memory", 0xE0000000)}), FUNCTIONS[1]))
    topology = Topology(LAYOUT, FUNCTIONS, "x86_64/q35")
    for drawer in (mix, focused, topology, mix.wild(rng), focused.wild(rng), topology.wild(rng)):
        ops = drawer.operations(rng, 80)
        assert len(ops) == 80
        for op in ops:
            validate(op)
        program = Program("x86_64/q35", (), ops)
        again = decode(encode(program, LAYOUT), LAYOUT, "x86_64/q35")
        assert len(again.operations) == 80
        for before, after in zip(ops, again.operations, strict=True):
            assert (before.verb, before.size, before.value) == (
                after.verb, after.size, after.value)
            assert LAYOUT.address_of(before) == LAYOUT.address_of(after)
            assert before.data[:8] == after.data[:8]


def test_the_same_seed_draws_the_same() -> None:
    topology = Topology(LAYOUT, FUNCTIONS, "x86_64/q35")
    assert topology.operations(Random(7), 200) == topology.operations(Random(7), 200)


def test_the_ports_that_configure_are_never_covered() -> None:
    """A port window over them would be the last thing a program changes."""
    wide = Function(0, 3, 0, 0xFF, (Bar(0, 0x400, 0xC000, "io"), Bar(1, 0x40, 0xC400, "io")))
    topology = Topology(LAYOUT, [wide], "x86_64/q35", only=["bar"])
    rng, selected = Random(3), False
    for op in topology.operations(rng, 20_000):
        assert op.place is not None
        if op.verb == "outl" and op.place.offset == 0xCF8:
            selected = op.value & 0xFC in (0x10, 0x14)
            size = 0x400 if op.value & 0xFC == 0x10 else 0x40
        elif op.verb == "outl" and op.place.offset == 0xCFC and selected:
            base = op.value & -size & 0xFFFF
            assert not base <= 0xCFF < base + size


def test_a_machine_with_nothing_to_change_is_looked_at() -> None:
    bare = Layout({"memory": [Range(0, 0x1000, "ram", 0, 0, "ram", "memory")]})
    topology = Topology(bare)
    assert not topology.fits(bare) and len(topology.operations(Random(1), 10)) == 10
    assert knobs_of(()) == ()


def test_a_long_write_is_split_into_what_the_codec_keeps() -> None:
    data = bytes(range(1, 17)) + bytes(20) + b"abcd"
    parts = list(kept([Operation("write", Place(None, 0, 0x1000), len(data), 0, data)]))
    assert [part.size for part in parts] == [8, 8, 20, 4]
    assert b"".join(part.data for part in parts) == data
    assert [part.place.offset for part in parts if part.place] == [
        0x1000, 0x1008, 0x1010, 0x1024]
    assert b"".join(
        op.data for op in decode(encode(Program("x/y", (), tuple(parts)), LAYOUT), LAYOUT,
                                 "x/y").operations) == data
    same = Operation("write", Place(None, 0, 0), 24, 0, b"12345678" * 3)
    assert list(kept([same])) == [same]


def test_a_focus_is_kept_to() -> None:
    focus = Focus(frozenset({("memory", 0xE0000000), ("io", 0xC000)}), FUNCTIONS[1])
    focused = Focused(LAYOUT, focus)
    ops = focused.operations(Random(5), 4000)
    inside = outside = 0
    for op in ops:
        addr = LAYOUT.address_of(op)
        assert addr is not None
        if op.info.space == "memory":
            near = 0xE0000000 - 64 <= addr <= 0xE0100000 + 64
        else:
            near = 0xC000 - 64 <= addr <= 0xC020 + 64 or 0xCF8 <= addr <= 0xCFF
        inside, outside = inside + near, outside + (not near)
    assert outside < 0.08 * len(ops), "the rest of the machine gets a few per cent"
    assert not Focus()


def test_a_focus_on_configuration_alone() -> None:
    """A device none of whose regions is shown."""
    ops = Focused(LAYOUT, Focus(frozenset(), FUNCTIONS[1])).operations(Random(5), 400)
    ports = [op for op in ops if op.place and 0xCF8 <= op.place.offset <= 0xCFF]
    assert len(ports) > 300


def test_fw_cfg_is_told_of_control_structures() -> None:
    recipe = FwCfgRecipe()
    assert recipe.fits(LAYOUT) and not recipe.fits(Layout({}))
    ops = Mix(LAYOUT, [Share(recipe)], share=1.0).operations(Random(2), 200)
    starts = [op for op in ops if op.place and op.place.region == "fwcfg.dma"
              and op.place.offset == 4]
    assert len(starts) > 15
    written = {op.place.offset for op in ops if op.verb == "write" and op.place}
    for op in starts:
        address = int.from_bytes(op.value.to_bytes(4, "little"), "big")
        assert address in written, "a structure is there"


def test_a_long_write_goes_on_behind_the_last_address() -> None:
    """As the access itself does; a piece beyond 64 bits could not be sent."""
    top = (1 << 64) - 4
    data = bytes(range(1, 21))
    parts = list(kept([Operation("write", Place(None, 0, top), len(data), 0, data)]))
    assert [part.place.offset for part in parts if part.place is not None] == [top, 4, 12]
    assert ram_write((1 << 64) + 8, b"a").place == Place(None, 0, 8)
