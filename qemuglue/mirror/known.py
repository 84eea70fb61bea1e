"""What is known of QEMU's own regions by their names, where no text of QEMU's tells it.

Whether a region that contains others answers for itself, and whether an alias is read-only, can
only be seen in a flat view, and a region that is not mapped yet is in none. Every entry names
the function that makes the region so; all of them are tested on real QEMU. It is a default:
the flat view judges, and what it says otherwise is learnt. What these entries give is counted
apart from what was inferred (``Mirror.known``), and ``Mirror.plain`` is without them.
"""

from __future__ import annotations

#: Aliases that are read-only.
KNOWN_READONLY = {
    "pam-rom": "init_pam",
}

#: Device regions with others inside that answer, and regions with nothing inside that do not.
KNOWN_ANSWERS = {
    "vga.mmio": True,  # pci_std_vga_realize: the registers lie inside a device of their own
    "bochs-display-mmio": True,  # bochs_display_realize: the same
    "megasas-mmio": True,  # megasas_scsi_realize: the MSI-X table lies inside
    "e1000e-flash": False,  # e1000e_pci_realize: memory_region_init, and nothing inside
    "igb-flash": False,  # igb_pci_realize: the same
    "pci_bridge_pci": False,  # pci_bridge_initfn: a bus that may be empty
    "pci_bridge_io": False,
}

#: Windows of a PCI bridge, in the order ``pci_bridge_region_init`` adds them. When one changes,
#: ``pci_bridge_update_mappings`` takes all away and adds them anew, so that they are the newest
#: of their priority even where the text shows no change.
BUILT_TOGETHER = (
    "pci_bridge_pref_mem", "pci_bridge_mem", "pci_bridge_io",
    "pci_bridge_vga_mem", "pci_bridge_vga_io_lo", "pci_bridge_vga_io_hi",
)
