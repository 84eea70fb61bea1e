"""edu's transfers on the model, its recipe, and what is kept from hpet's timers."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from witness_events import device, space_of

from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import validate
from qemuglue.program.recipes import RECIPES
from qemuglue.program.recipes.edu import EduRecipe
from qemuglue.program.recipes.recipe import Scratch, scratch_of
from qemuglue.witness.dma.device import When, heard
from qemuglue.witness.dma.edu import CMD, CNT, DST, MASK, SIZE, SRC, START, Edu
from qemuglue.witness.dma.port import ModelPort
from qemuglue.witness.dma.timers import Timers

RAM = 0x10000
OLD, NEW, NEWEST = (7, 2, 22), (10, 0, 2), (11, 1, 3)


class Desk:
    """RAM of 64 KiB at 0 and an edu at 1 MiB."""

    def __init__(self, version: tuple[int, ...] = NEW, *, big: bool = False) -> None:
        self.ram = MemoryRegion.ram("ram", RAM, ByteBacking(RAM))
        self.registers = device("edu-mmio", 0x1000)
        self.space: AddressSpace = space_of((0, self.ram), (0x100000, self.registers))
        self.edu = Edu(parked=True, version=version, big_endian=big)
        self.port = ModelPort(self.space)

    def tell(self, source: int, target: int, count: int, command: int) -> None:
        for register, value in ((SRC, source), (DST, target), (CNT, count), (CMD, command)):
            self.edu.wrote(self.registers, register, 8, value)

    def go(self, source: int, target: int, count: int, command: int) -> None:
        self.tell(source, target, count, command)
        assert self.edu.when() is When.TIMER
        self.edu.act(self.port)
        assert self.edu.when() is When.NEVER or self.edu.lost

    def refused(self, source: int, target: int, count: int, command: int) -> bool:
        self.tell(source, target, count, 0)
        data = command.to_bytes(4, "little")
        assert self.edu.kicks(self.registers, CMD, data) == bool(command & 1)
        return self.edu.floods(self.registers, CMD, data)


@given(st.binary(min_size=1, max_size=SIZE - 1), st.data())
def test_bytes_go_in_and_come_out(data: bytes, draw: st.DataObject) -> None:
    desk = Desk(draw.draw(st.sampled_from([OLD, NEW])))
    at = draw.draw(st.integers(0, SIZE - 1 - len(data)))
    desk.space.write(0x1000, data)
    desk.go(0x1000, START + at, len(data), 1)
    desk.go(START + at, 0x8000 | 3 << 28, len(data), 3)  # the mask takes the upper bits away
    assert desk.space.read(0x8000, len(data) + 1)[1] == data + b"\0"
    assert desk.space.read(0x7FFF, 1)[1] == b"\0"
    assert not desk.edu.lost


def test_nothing_is_written_while_it_runs() -> None:
    desk = Desk()
    desk.tell(0x1000, START, 4, 1)
    desk.edu.wrote(desk.registers, SRC, 8, 0x2000)
    desk.edu.wrote(desk.registers, CMD, 8, 3)
    assert desk.edu.registers == {SRC: 0x1000, DST: START, CNT: 4, CMD: 1}
    desk.edu.act(desk.port)
    desk.edu.wrote(desk.registers, SRC, 8, 0x2000)
    assert desk.edu.registers[SRC] == 0x2000 and desk.edu.registers[CMD] == 0


def test_which_writes_it_takes() -> None:
    desk = Desk()
    desk.edu.wrote(desk.registers, SRC, 8, 0x1122334455667788)
    desk.edu.wrote(desk.registers, SRC, 4, 0x99)  # the upper half is lost
    assert desk.edu.registers[SRC] == 0x99
    desk.edu.wrote(desk.registers, SRC + 4, 4, 0x77)  # no register of its own
    desk.edu.wrote(desk.registers, CMD, 4, 2)  # a command that does not go is none
    assert desk.edu.registers == {SRC: 0x99, DST: 0, CNT: 0, CMD: 0}


def test_where_nothing_is_zeros_are_read() -> None:
    desk = Desk()
    desk.edu.memory[:8] = b"\xff" * 8
    desk.go(RAM - 4 + 0, START, 8, 1)
    assert desk.edu.memory[:9] == bytes(9)


@pytest.mark.parametrize(("version", "own", "count", "refused"), [
    (NEW, START, SIZE, False), (OLD, START, SIZE, True), (OLD, START, SIZE - 1, False),
    (NEW, START, SIZE + 1, True), (NEW, START + SIZE, 0, False), (NEW, START, 0, False),
    (OLD, START, 0, True), (NEW, START - 1, 1, True), (NEW, START + SIZE, 1, True),
    (NEW, START, (1 << 64) - 1, True), (OLD, START + 5, (1 << 64) - 5, True),
])
@pytest.mark.parametrize("to_ram", [0, 2])
def test_what_leaves_its_memory_is_not_started(
    version: tuple[int, ...], own: int, count: int, refused: bool, to_ram: int
) -> None:
    source, target = (own, 0) if to_ram else (0, own)
    desk = Desk(version)
    assert desk.refused(source, target, count, 1 | to_ram) is refused
    desk.tell(source, target, count, 1 | to_ram)
    desk.edu.act(desk.port)
    assert bool(desk.edu.lost) is refused, "what was sent all the same is not followed"


def test_from_11_1_on_what_leaves_its_memory_is_left_out() -> None:
    desk = Desk(NEWEST)
    desk.space.write(0x1000, bytes(range(16)))
    desk.go(0x1000, START + SIZE - 8, 8, 1)
    assert not desk.refused(START + SIZE - 8, 0x2000, 9, 3)
    desk.go(START + SIZE - 8, 0x2000, 9, 3)
    assert desk.space.read(0x2000, 9)[1] == bytes(9) and not desk.edu.lost
    assert desk.edu.registers[CMD] == 2


def test_long_writes_to_the_command_are_not_guessed() -> None:
    desk = Desk()
    long = bytes(0x20)[:-8] + b"\x01" + bytes(7)
    assert desk.edu.kicks(desk.registers, SRC, long) and desk.edu.floods(desk.registers, SRC, long)
    assert not desk.edu.kicks(desk.registers, SRC, bytes(0x20))


def test_a_big_endian_target_has_the_lowest_bit_last() -> None:
    desk = Desk(big=True)
    desk.tell(0, START, 4, 0)
    assert desk.edu.kicks(desk.registers, CMD, b"\0\0\0\x01")
    assert not desk.edu.kicks(desk.registers, CMD, b"\x01\0\0\0")
    assert not desk.edu.floods(desk.registers, CMD, b"\0\0\0\x01")


def test_stopped_it_starts_nothing() -> None:
    desk = Desk()
    desk.edu.parked = False
    assert not desk.edu.kicks(desk.registers, CMD, b"\x01\0\0\0")


def test_it_says_when_it_does_not_know() -> None:
    desk = Desk()
    desk.tell(0x1000, START, 4, 0)
    desk.edu.was_read(desk.registers, SRC, 4, 0x1000)
    desk.edu.was_read(desk.registers, START, 4, 77)
    assert not desk.edu.lost
    desk.edu.was_read(desk.registers, SRC, 8, 0x1001)
    assert "not what it was told" in desk.edu.lost
    other = Desk()
    other.edu.configured(0x40, 4, 0x0080_7005)
    assert not other.edu.lost
    other.edu.configured(0x42, 2, 1)
    assert "messages" in other.edu.lost


def test_the_recipe_makes_valid_operations_and_some_that_are_wrong() -> None:
    layout = Layout({"memory": [
        Range(0x100000, 0x400000, "ram", 0, 0, "ram", "memory"),
        Range(0xE0000000, 0x100000, "edu-mmio", 0, 0, "device", "memory"),
    ]})
    recipe = next(each for each in RECIPES if isinstance(each, EduRecipe))
    assert recipe.fits(layout)
    right = wrong = 0
    for seed in range(200):
        rng = Random(seed)
        scratch = scratch_of(layout, rng)
        assert isinstance(scratch, Scratch)
        desk = Desk()
        for op in recipe.operations(rng, layout, scratch):
            validate(op)
            if op.place is None or op.place.region != "edu-mmio":
                continue
            if op.verb.startswith("write"):
                data = op.value.to_bytes(op.size, "little")
                kick = desk.edu.kicks(desk.registers, op.place.offset, data)
                if kick and desk.edu.floods(desk.registers, op.place.offset, data):
                    wrong += 1
                    continue
                desk.edu.wrote(desk.registers, op.place.offset, op.size, op.value)
                if kick:
                    right += 1
                    desk.edu.registers[CMD] &= ~1
    assert right > 400 and 0.02 * right < wrong < 0.4 * right


@pytest.mark.parametrize(("name", "offset", "data", "refused"), [
    ("hpet", 0x100, b"\x4c\0\0\0", True), ("hpet", 0x100, b"\x44\0\0\0", False),
    ("hpet", 0x120, b"\0\x40\0\0", True), ("hpet", 0x121, b"\x40", True),
    ("hpet", 0x108, b"\xff\xff\xff\xff", False), ("hpet", 0x10, b"\xff\xff", False),
    ("hpet", 0x3E0, b"\x08", True), ("hpet", 0x400, b"\x08", False),
    ("hpet", 0xFE, b"\0\0\x08\0", True), ("hpet", 0, b"\xff" * 0x200, True),
    ("pit", 0, b"\x03\0", True), ("pit", 0, b"\0", False), ("pit", 0, b"\x80", False),
    ("pit", 1, b"\x03", False), ("pit", 3, b"\x34", False), ("rtc", 0, b"\x03", False),
])
def test_what_timers_are_not_told(name: str, offset: int, data: bytes, refused: bool) -> None:
    region = device(name, 0x400)
    timers = Timers(name)
    assert timers.kicks(region, offset, data) is timers.floods(region, offset, data) is refused
    assert timers.when() is When.NEVER and not timers.hears_reads


def test_the_mask_is_28_bits() -> None:
    assert MASK == 0x0FFF_FFFF


@pytest.mark.parametrize(("version", "refused"), [
    ((7, 2, 22), True), ((10, 0, 2), True), ((11, 1, 3), False)])
def test_no_transfer_is_started_once_nobody_knows_its_registers(
    version: tuple[int, ...], refused: bool
) -> None:
    """It could leave the device's own memory, which ends QEMU, or worse."""
    desk = Desk(version=version)
    command = (desk.registers, CMD, b"\1\0\0\0")
    desk.tell(0x1000, START, 4, 0)
    assert heard(desk.edu) and not desk.edu.floods(*command)
    desk.edu.lost = "missed something"
    assert heard(desk.edu) and desk.edu.kicks(*command)
    assert desk.edu.floods(*command) is refused
