"""Devices that never access guest memory by themselves, though they may master the bus.

Read in QEMU's sources: none of their files calls ``pci_dma_*``, ``dma_memory_*`` or
``address_space_*``. What is left is a message-signalled interrupt, which ports send for hot-plug
and errors; its four bytes land where configuration space says.
"""

from __future__ import annotations

from typing import Final

#: QOM types.
QUIET: Final = frozenset({
    # host bridges, ISA bridges, power management
    "mch", "i440FX", "gpex-root", "ICH9-LPC", "ICH9-SMB", "PIIX3", "PIIX3-xen", "piix4-isa",
    "PIIX4_PM", "VT82C686B-ISA", "VT8231-ISA", "vt82c686b-isa", "vt8231-isa", "vt82c686b-pm",
    "vt8231-pm", "uni-north-pci", "uni-north-agp", "uni-north-internal-pci", "u3-agp",
    "grackle", "raven",
    # bridges and ports
    "pci-bridge", "pci-bridge-seat", "pcie-pci-bridge", "i82801b11-bridge", "pcie-root-port",
    "ioh3420", "x3130-upstream", "xio3130-downstream", "dec-21154-p2p-bridge",
    # displays that draw from memory of their own
    "VGA", "secondary-vga", "bochs-display", "cirrus-vga", "ati-vga",
    # timers; the messages that hpet can send are kept from it where its clock moves (``timers``)
    "hpet", "isa-pit", "pit",
    # others
    "pci-testdev", "pvpanic-pci", "pci-serial", "pci-serial-2x", "pci-serial-4x", "i6300esb",
})
