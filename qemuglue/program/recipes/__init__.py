"""Recipes: how a driver would use a device, as operations with random parameters.

Random operations hardly ever set a DMA up. A recipe does: rings, descriptors and buffers in
guest RAM, then the registers that start it. Its operations are ordinary ones, so mutation,
minimizing and the text format need to know nothing about them.

============  ==========================================================================
``recipe``    what a recipe is, and the guest RAM it may use
``edu``       QEMU's teaching device
``fw_cfg``    QEMU's firmware configuration
``e1000e``    a network controller; ``e1000e_packets`` are what it sends
``iommu``     IOMMUs of PCs, and DMA through them; ``smmu`` is Arm's
``virtio``    disks and random numbers; ``virtio_transport`` are the ways to their registers
``mix``       programs that mix recipes with ordinary accesses
``focus``     accesses to one device: its regions and its configuration space
``topology``  programs that change the memory map; ``pci`` and ``knobs`` know the registers
============  ==========================================================================
"""

from __future__ import annotations

from qemuglue.program.recipes.e1000e import E1000eRecipe
from qemuglue.program.recipes.edu import EduRecipe
from qemuglue.program.recipes.fw_cfg import FwCfgRecipe
from qemuglue.program.recipes.iommu import IntelIommuRecipe, VirtioIommuRecipe
from qemuglue.program.recipes.recipe import Recipe
from qemuglue.program.recipes.smmu import SmmuRecipe
from qemuglue.program.recipes.virtio import VirtioNotifyRecipe, VirtioRecipe

#: Every recipe for a device that does DMA; a machine takes those that fit it.
RECIPES: tuple[Recipe, ...] = (
    FwCfgRecipe(), EduRecipe(), E1000eRecipe(), IntelIommuRecipe(), VirtioIommuRecipe(),
    SmmuRecipe(), VirtioRecipe(), VirtioNotifyRecipe(),
)
