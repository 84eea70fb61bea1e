"""A machine with an IOMMU, seen by QEMU's API and by vm-memory's through ``ModelIommu``."""

from __future__ import annotations

from dataclasses import dataclass, field

from rule_checks import ANY, Device, io, ram

from qemuglue.memory import (
    AddressSpace,
    IommuAccess,
    IommuTlbEntry,
    MemoryRegion,
    MemTxAttrs,
    Topology,
)
from qemuglue.memory.guest_memory.collection import GuestRegionCollection
from qemuglue.memory.guest_memory.iommu_memory import IommuMemory
from qemuglue.memory.guest_memory.model_iommu import ModelIommu
from qemuglue.memory.guest_memory.region import GuestRegion
from qemuglue.memory.section_backing import section_backing

TOP = 1 << 64
PAGE = 0x1000
#: Where the device's space shows the IOMMU, and its own memory.
WINDOW, OWN = 0x10000, 0x2000
#: Where the system shows RAM, and a device.
RAM_SIZE, DEVICE = 4 * PAGE, 0x8000

RO, WO, RW, NONE = IommuAccess.RO, IommuAccess.WO, IommuAccess.RW, IommuAccess.NONE

Pages = dict[int, tuple[int, IommuAccess]]
Face = IommuMemory[GuestRegionCollection[GuestRegion], ModelIommu]


@dataclass(eq=False)
class Table:
    """The callbacks of an IOMMU: page -> (page of ``target``, permissions), one table for each
    requester. ``asked`` is what it was asked: (offset, access)."""

    target: AddressSpace
    tables: tuple[Pages, ...]
    mask: int = PAGE - 1
    asked: list[tuple[int, IommuAccess]] = field(default_factory=list)

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        self.asked.append((addr, access))
        page, perm = self.tables[index].get(addr // PAGE, (0, NONE))
        return IommuTlbEntry(self.target, addr & ~self.mask, page * PAGE, self.mask, perm)

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        return attrs.requester_id % len(self.tables)


@dataclass(eq=False)
class Machine:
    """``space`` is the device's, ``target`` the system's. RAM is 4 pages at 0, each byte its
    page's number plus its offset; a device is at ``DEVICE``; elsewhere there is nothing."""

    space: AddressSpace
    target: AddressSpace
    bus: MemoryRegion
    table: Table
    device: Device

    def face(self, attrs: MemTxAttrs = MemTxAttrs()) -> Face:  # noqa: B008 - it is frozen
        """The same memory as vm-memory shows it."""
        regions = [
            GuestRegion(section.start, section_backing(self.target, section))
            for section in self.target.view.sections
        ]
        backend = GuestRegionCollection.from_regions(regions)
        return IommuMemory(backend, ModelIommu(self.space, self.target, attrs))

    def ram(self) -> bytes:
        """All of it."""
        result, data = self.target.read(0, RAM_SIZE)
        assert result == 0
        return data


def machine(*tables: Pages) -> Machine:
    """The IOMMU is at ``WINDOW`` of the device's space and its tables count from there."""
    topology = Topology()
    root = MemoryRegion.container_of("system", TOP)
    root.add_subregion(0, ram(RAM_SIZE))
    root.add_subregion(DEVICE, io(ANY, "dev", PAGE))
    target = AddressSpace("memory", root, topology=topology)
    target.write(0, bytes((at // PAGE + at) % 256 for at in range(RAM_SIZE)))
    table = Table(target, tables)
    bus = MemoryRegion.container_of("bus", TOP)
    bus.add_subregion(WINDOW, MemoryRegion.iommu("iommu", 0x100000, table))
    bus.add_subregion(OWN, ram(PAGE, "own"))
    space = AddressSpace("bus", bus, topology=topology)
    device = Device()
    target.ops = space.ops = target.observer = space.observer = device
    return Machine(space, target, bus, table, device)
