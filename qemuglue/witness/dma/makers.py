"""Every decoded device: one line each. The first maker that knows a place has it."""

from __future__ import annotations

from typing import Final

from qemuglue.witness.dma import bitband, e1000e, edu, fw_cfg, pci_testdev, timers, virtio
from qemuglue.witness.dma.device import Maker
from qemuglue.witness.iommu import intel, smmu

MAKERS: Final[tuple[Maker, ...]] = (
    fw_cfg.make,
    bitband.make,
    e1000e.make,
    intel.make,
    smmu.make,
    virtio.make,
    pci_testdev.make,
    edu.make,
    timers.make,
)
