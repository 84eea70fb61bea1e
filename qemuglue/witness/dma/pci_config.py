"""Writes to PCI configuration space, as the transcript shows them.

A PC has two ports, the address first and then the data; other machines show every register in a
window of memory (ECAM). Source: QEMU ``hw/pci/pci_host.c``, ``pcie_host.c``.
"""

from __future__ import annotations

from qemuglue.memory.region import MemoryRegion

_INDEX, _DATA = "pci-conf-idx", "pci-conf-data"
_WINDOWS = frozenset({"pcie-mmcfg", "pcie-mmcfg-mmio"})

#: Regions whose writes may reach a function's configuration space.
CONFIG_REGIONS = _WINDOWS | {_INDEX, _DATA}

_ENABLE = 1 << 31


class ConfigWrites:
    """What the ports were set to; a machine has one pair of them."""

    def __init__(self) -> None:
        #: What the first port was written last.
        self.address = 0

    def wrote(
        self, region: MemoryRegion, offset: int, size: int, value: int
    ) -> tuple[int, int] | None:
        """(bus, device and function as 16 bits; register) that a write reached, if it did."""
        if region.name in _WINDOWS:
            return offset >> 12 & 0xFFFF, offset & 0xFFF
        if region.name == _DATA:
            if not self.address & _ENABLE:
                return None
            at = self.address | offset & 3
            return at >> 8 & 0xFFFF, at & 0xFF
        if offset == 0 and size == 4:
            self.address = value
        return None
