"""The recipe for SMMUv3: what it draws is valid, and the model makes translations of it."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from qemuglue.memory import AddressSpace, ByteBacking, MemoryRegion, RegionKind
from qemuglue.memory.iommu import IommuAccess
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import validate
from qemuglue.program.recipes.iommu import SLOTS
from qemuglue.program.recipes.recipe import Scratch
from qemuglue.program.recipes.smmu import REGION, SmmuRecipe
from qemuglue.witness.dma.device import When
from qemuglue.witness.dma.port import ModelPort
from qemuglue.witness.iommu import smmu
from qemuglue.witness.iommu.smmu_decode import Features

RAM, SIZE, REGISTERS = 0x4000_0000, 1 << 21, 0x905_0000
LAYOUT = Layout({"memory": [
    Range(REGISTERS, 0x2_0000, REGION, 0, 0, "device", "memory"),
    Range(RAM, SIZE, "ram", 0, 0, "ram", "memory"),
]})


def scratch() -> Scratch:
    return Scratch(RAM + 0x10_0000, 1 << 20)


def test_what_it_draws_is_valid_and_repeatable() -> None:
    recipe = SmmuRecipe()
    assert recipe.fits(LAYOUT) and not recipe.fits(Layout({}))
    for seed in range(60):
        drawn = [list(recipe.operations(Random(seed), LAYOUT, scratch())) for _ in range(2)]
        assert drawn[0] == drawn[1] and len(drawn[0]) > 30
        for op in drawn[0]:
            validate(op)


@pytest.mark.parametrize("version_is_old", [True, False])
def test_the_model_translates_by_what_it_draws(version_is_old: bool) -> None:
    """Once it is on, most pages are let through; later some are not."""
    seen: Counter[IommuAccess] = Counter()
    for seed in range(20):
        root = MemoryRegion("root", 1 << 64, RegionKind.CONTAINER)
        backing = ByteBacking(SIZE)
        root.add_subregion(RAM, MemoryRegion("ram", SIZE, RegionKind.RAM, backing=backing))
        memory = AddressSpace("memory", root)
        device = smmu.Smmu(memory, Features(old=version_is_old))
        registers = MemoryRegion.io(REGION, 0x2_0000)
        for op in SmmuRecipe().operations(Random(seed), LAYOUT, scratch()):
            assert op.place is not None
            if op.place.region != REGION:
                memory.write(op.place.offset, op.value.to_bytes(op.size, "little"))
            elif op.verb.startswith("write"):
                device.wrote(registers, op.place.offset, op.size, op.value)
                while device.when() is When.NOW:
                    device.act(ModelPort(memory))
            if device._registers[smmu.CR0] & smmu.ENABLE:
                for page in (RAM + 0x11_0000, 0x11_0000):
                    seen[device.translate(SLOTS[2] << 3, page, IommuAccess.RO).perm] += 1
        assert not device.lost, device.lost
    assert seen[IommuAccess.RW] > 500 and seen[IommuAccess.NONE] > 100, seen
