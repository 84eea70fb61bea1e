"""Writes to PCI configuration space, as the transcript shows them.

A PC has two ports, the address first and then the data, and other machines the same two registers
in memory; or every register shows in a window of memory (ECAM). A Mac's bridges have a pair each;
followed is that of the bus which devices are plugged into. Source: QEMU ``hw/pci/pci_host.c``,
``pcie_host.c``, ``hw/pci-host/uninorth.c``.
"""

from __future__ import annotations

from typing import Final

from qemuglue.memory.region import MemoryRegion

_INDEX, _DATA, _GRACKLE_DATA = "pci-conf-idx", "pci-conf-data", "pci-data-idx"
_MAC_INDEX, _MAC_DATA = "unin-pci-conf-idx", "unin-pci-conf-data"
_WINDOWS = frozenset({"pcie-mmcfg", "pcie-mmcfg-mmio"})
_ADDRESSES = frozenset({_INDEX, _MAC_INDEX})

#: Regions whose writes may reach a function's configuration space.
CONFIG_REGIONS = _WINDOWS | _ADDRESSES | {_DATA, _GRACKLE_DATA, _MAC_DATA}

#: Where the registers of a Mac's main bus are: the first 16 MiB from here on.
_MAC_MAIN: Final = 0xF2
_MAC_SHIFT: Final = 24

_ENABLE = 1 << 31


class ConfigWrites:
    """What the address register was set to; a machine has one that is followed."""

    def __init__(self) -> None:
        #: What the first of the two was written last.
        self.address = 0

    def wrote(
        self, region: MemoryRegion, offset: int, size: int, value: int
    ) -> tuple[int, int] | None:
        """(bus, device and function as 16 bits; register) that a write reached, if it did."""
        if region.name in _WINDOWS:
            return offset >> 12 & 0xFFFF, offset & 0xFFF
        is_mac = region.name in (_MAC_INDEX, _MAC_DATA)
        if is_mac and region.absolute() >> _MAC_SHIFT != _MAC_MAIN:
            return None
        if region.name in _ADDRESSES:
            if offset == 0 and size == 4:
                self.address = value
            return None
        at = _mac(self.address, offset) if is_mac else self.address | offset & 3
        if not is_mac and not self.address & _ENABLE:
            return None
        return at >> 8 & 0xFFFF, at & 0xFF


def _mac(address: int, offset: int) -> int:
    """``unin_get_config_reg``: as on a PC, as on a bus behind a bridge, or one bit a slot."""
    if address & _ENABLE:
        return address | offset & 3
    if address & 1:
        return address & ~7 | offset & 7
    slots = address & 0xFFFF_F800
    # No bit at all is slot -1, in 32 bits (``PCI_DEVFN``).
    slot = (slots & -slots).bit_length() - 1 if slots else 0x1F
    return address & 0xF8 | offset & 7 | slot << 11 | address & 0x700
