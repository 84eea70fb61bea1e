"""The model: QEMU's memory API as executable rules. Pure: no I/O, no clock, no dependency.

It does not launch or read any QEMU; the ``mirror`` room fills it from a running one.

====================  ======================================================================
``attrs``             MemTxAttrs, MemTxResult
``endian``            Le32, Be16 and their kin: values that know their size and byte order
``contract``          what sizes, alignments and byte order a device region declares
``ops``               a device's callbacks
``backing``           what RAM's bytes live in
``region``            MemoryRegion: the tree, and how it is changed
``topology``          what changes together: transactions, spaces, shared views, dirty logging
``flatview``          the tree drawn: FlatView, MemoryRegionSection, FlatViewRefGuard
``rcu``               readers that never wait; what they still see is reclaimed behind them
``listener``          who is told of changes
``dirty``             which pages were written
``rules``             the rules of an access, one method each, per QEMU version
``dispatch``          an accepted access becomes calls into a device
``address_space``     accesses over a view: the C face
``mapping``           ``map`` and ``unmap``, bounce buffers
``cached``            MemoryRegionCache: translated once, accessed often
``iommu``             regions that translate
``cpu_path``          the other way in: a guest CPU's accesses, by the rules of ``cpu_rules``
``rust_binding``      the Rust face of the same, with ``bytes``, ``guest_address``, ``guest_error``
``guest_memory``      vm-memory's regions, collections and maps that are replaced; ``streams``
``volatile``          vm-memory's slices: windows onto memory, and typed places in it
``bitmap``            vm-memory's bitmaps of what was written; ``atomic_bitmap`` knows pages
``byte_valued``       values that are their bytes; ``native`` integers, ``atomic_integer``
``memory_map``        the first rust-vmm memory model: a map, and bytes over it
``aligned``           aligned and atomic access as proposed for vm-memory; ``one_access``
``accessor``          axaddrspace's GuestMemoryAccessor; ``region_accessor`` over regions
``faces``             each of these put on a space by name, over its sections (``section_backing``)
``machine_spaces``    ADDRESS_SPACE_MEMORY and ADDRESS_SPACE_IO of a mirrored machine
====================  ======================================================================
"""

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs, MemTxResult
from qemuglue.memory.backing import (
    Backing,
    ByteBacking,
    HostMemory,
    SparseBacking,
    ViewBacking,
)
from qemuglue.memory.cached import MemoryRegionCache
from qemuglue.memory.contract import Contract, Endian, Reason
from qemuglue.memory.cpu_path import CpuFailure, CpuOutcome, CpuPath, CpuRules, cpu_rules_for
from qemuglue.memory.dirty import DirtyMemory, DirtySnapshot
from qemuglue.memory.endian import (
    U8,
    Be16,
    Be32,
    Be64,
    BeSize,
    EndianInt,
    Le16,
    Le32,
    Le64,
    LeSize,
)
from qemuglue.memory.flatview import (
    UNASSIGNED,
    FlatView,
    FlatViewRefGuard,
    MemoryRegionSection,
    render,
)
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import GuestMemoryError
from qemuglue.memory.iommu import IommuAccess, IommuOps, IommuTlbEntry
from qemuglue.memory.listener import MemoryListener, register, unregister
from qemuglue.memory.machine_spaces import ADDRESS_SPACE_IO, ADDRESS_SPACE_MEMORY
from qemuglue.memory.mapping import Mapping
from qemuglue.memory.ops import MemoryRegionOps, Observer, OpsTable
from qemuglue.memory.rcu import (
    Rcu,
    RcuCell,
    RcuError,
    RcuGuard,
    RcuRef,
    call_rcu,
    drain_call_rcu,
    synchronize_rcu,
)
from qemuglue.memory.region import IoEventFd, MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.memory.topology import Topology

__all__ = [
    "ADDRESS_SPACE_IO",
    "ADDRESS_SPACE_MEMORY",
    "U8",
    "UNASSIGNED",
    "UNSPECIFIED",
    "AddressSpace",
    "Backing",
    "Be16",
    "Be32",
    "Be64",
    "BeSize",
    "ByteBacking",
    "Contract",
    "CpuFailure",
    "CpuOutcome",
    "CpuPath",
    "CpuRules",
    "DirtyMemory",
    "DirtySnapshot",
    "Endian",
    "EndianInt",
    "FlatView",
    "FlatViewRefGuard",
    "GuestAddress",
    "GuestMemoryError",
    "HostMemory",
    "IoEventFd",
    "IommuAccess",
    "IommuOps",
    "IommuTlbEntry",
    "Le16",
    "Le32",
    "Le64",
    "LeSize",
    "Mapping",
    "MemTxAttrs",
    "MemTxResult",
    "MemoryListener",
    "MemoryRegion",
    "MemoryRegionAddress",
    "MemoryRegionCache",
    "MemoryRegionOps",
    "MemoryRegionSection",
    "Observer",
    "OpsTable",
    "Rcu",
    "RcuCell",
    "RcuError",
    "RcuGuard",
    "RcuRef",
    "Reason",
    "RegionKind",
    "Rules",
    "SparseBacking",
    "Topology",
    "ViewBacking",
    "call_rcu",
    "cpu_rules_for",
    "drain_call_rcu",
    "register",
    "render",
    "rules_for",
    "synchronize_rcu",
    "unregister",
]
