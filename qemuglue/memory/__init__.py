"""The model: QEMU's memory API as executable rules. Pure: no I/O, no clock, no dependency.

It does not launch or read any QEMU; the ``mirror`` room fills it from a running one.

====================  ======================================================================
``attrs``             MemTxAttrs, MemTxResult
``contract``          what sizes, alignments and byte order a device region declares
``backing``           what RAM's bytes live in
``region``            MemoryRegion: the tree
``ops``               a device's callbacks
``flatview``          the tree drawn: FlatView, MemoryRegionSection
``rules``             the rules of an access, one method each, per QEMU version
``address_space``     accesses over a view
====================  ======================================================================
"""

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs, MemTxResult
from qemuglue.memory.backing import Backing, ByteBacking
from qemuglue.memory.contract import Contract, Endian, Reason
from qemuglue.memory.flatview import UNASSIGNED, FlatView, MemoryRegionSection, render
from qemuglue.memory.ops import MemoryRegionOps, Observer
from qemuglue.memory.region import IoEventFd, MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules, rules_for

__all__ = [
    "UNASSIGNED",
    "UNSPECIFIED",
    "AddressSpace",
    "Backing",
    "ByteBacking",
    "Contract",
    "Endian",
    "FlatView",
    "IoEventFd",
    "MemTxAttrs",
    "MemTxResult",
    "MemoryRegion",
    "MemoryRegionOps",
    "MemoryRegionSection",
    "Observer",
    "Reason",
    "RegionKind",
    "Rules",
    "render",
    "rules_for",
]
