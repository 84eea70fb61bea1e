"""Recipes for virtio: valid on every machine that shows the registers, and they set queues up."""

from __future__ import annotations

import struct
from collections import Counter
from random import Random

import pytest

from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import validate
from qemuglue.program.recipes.recipe import Scratch, scratch_of
from qemuglue.program.recipes.virtio import VirtioNotifyRecipe, VirtioRecipe
from qemuglue.program.verbs import IO, MEMORY

RAM = Range(0, 16 << 20, "ram", 0, 0, "ram", MEMORY)


def layout(*ranges: Range) -> Layout:
    return Layout({
        MEMORY: [RAM, *(each for each in ranges if each.space == MEMORY)],
        IO: [each for each in ranges if each.space == IO],
    })


MODERN = (
    Range(0xE000_0000, 0x1000, "virtio-pci-common-virtio-blk", 0, 0, "device", MEMORY),
    Range(0xE000_3000, 0x1000, "virtio-pci-notify-virtio-blk", 0, 0, "device", MEMORY),
)
LAYOUTS = {
    "modern": layout(*MODERN),
    "legacy": layout(Range(0xC000, 0x80, "virtio-pci", 0, 0, "device", IO)),
    "legacy in memory": layout(Range(0x3EFF_1000, 0x80, "virtio-pci", 0, 0, "device", MEMORY)),
    "mmio": layout(*(
        Range(0x1000_0000 + 0x200 * i, 0x200, "virtio-mmio", i, 0, "device", MEMORY)
        for i in range(4))),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_recipes_draw_is_valid_and_repeatable(name: str) -> None:
    for recipe in (VirtioRecipe(), VirtioNotifyRecipe()):
        assert recipe.fits(LAYOUTS[name])
        for seed in range(60):
            drawn = [
                recipe.operations(Random(seed), LAYOUTS[name], Scratch(0x100000, 1 << 20))
                for _ in range(2)
            ]
            assert drawn[0] == drawn[1]
            assert drawn[0]
            for op in drawn[0]:
                validate(op)


def test_a_machine_without_virtio_is_none_of_theirs() -> None:
    assert not VirtioRecipe().fits(layout())
    assert not VirtioNotifyRecipe().fits(layout())


def test_about_one_in_five_is_wrong_on_purpose() -> None:
    """A chain is wrong where a buffer is empty or lies nowhere, among other things."""
    bare = LAYOUTS["modern"]
    wrong = 0
    for seed in range(400):
        rng = Random(seed)
        scratch = scratch_of(bare, rng)
        assert scratch is not None
        for op in VirtioRecipe().operations(rng, bare, scratch):
            if op.verb == "write" and op.size == 16 and op.data[8:12] != bytes(4):
                addr = int.from_bytes(op.data[:8], "little")
                wrong += addr >= RAM.size
                break
    assert 0 < wrong < 80


def test_what_holds_modern_registers_is_no_legacy_window() -> None:
    assert not VirtioRecipe().fits(
        layout(Range(0xE000_0000, 0x4000, "virtio-pci", 0, 0, "device", MEMORY)))


def test_windows_of_boards_are_few_where_there_is_pci() -> None:
    """Most windows have nothing behind them."""
    mmio = [each for each in LAYOUTS["mmio"].ranges() if each.region == "virtio-mmio"]
    both = layout(*mmio, *MODERN)
    chosen = Counter(
        "mmio" if any(op.place is not None and op.place.region == "virtio-mmio" for op in ops)
        else "pci"
        for ops in (VirtioRecipe().operations(Random(seed), both, Scratch(0x100000, 1 << 20))
                    for seed in range(200)))
    assert chosen["mmio"] > 5 and chosen["pci"] > 150


@pytest.mark.parametrize("name", ["legacy", "legacy in memory", "modern"])
def test_numbers_in_memory_have_the_target_s_order_where_the_device_is_legacy(name: str) -> None:
    """What is published last, an index of 2 bytes, tells the two orders apart."""
    little, big = ([], [])  # type: list[bytes], list[bytes]
    for target, found in ((False, little), (True, big)):
        where = Layout({space: [each for each in LAYOUTS[name].ranges(space) if each.region]
                        for space in (MEMORY, IO)}, big=target)
        for seed in range(20):
            ops = VirtioRecipe().operations(Random(seed), where, Scratch(0x100000, 1 << 20))
            found += [op.data for op in ops if op.verb == "write" and op.size == 16
                      and len(op.data) == 16]
    assert little and len(little) == len(big)
    turned = [struct.pack(">QIHH", *struct.unpack("<QIHH", each)) for each in little]
    same = sum(one == other for one, other in zip(little, big, strict=True))
    if name == "modern":
        assert 0 < sum(map(bytes.__eq__, turned, big)) < same, "few leave VERSION_1 out"
    else:
        assert turned == big
