"""IOMMU regions: what an access to one is turned into (R18).

An IOMMU region has no bytes. It translates an address to one of a target space, with the
permissions of the page; the access goes on there, and the target may be behind an IOMMU again.
Source: QEMU 10.0.2 ``system/physmem.c:422`` ``address_space_translate_iommu``. One IOMMU is shown
on real QEMU by intel-iommu; no board at hand has two in a row.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qemuglue.errors import ModelError
from qemuglue.memory.attrs import MemTxAttrs
from qemuglue.memory.flatview import UNASSIGNED, MemoryRegionSection
from qemuglue.memory.region import MASK64, MAX_SIZE, MemoryRegion, RegionKind

if TYPE_CHECKING:
    from qemuglue.memory.address_space import AddressSpace

#: IOMMUs one behind the other. QEMU has no limit: two that translate to each other hang it.
MAX_NESTING = 64


class IommuAccess(enum.IntFlag):
    """What a translation allows, or is asked for (``IOMMUAccessFlags``)."""

    NONE = 0
    RO = 1
    WO = 2
    RW = 3


@dataclass(frozen=True, slots=True)
class IommuTlbEntry:
    """One translation (``IOMMUTLBEntry``). ``addr_mask`` has the low bits of the page set:
    0xfff is 4 KiB. ``iova`` and ``translated_addr`` are its addresses before and after."""

    target: AddressSpace
    iova: int
    translated_addr: int
    addr_mask: int
    perm: IommuAccess

    def __post_init__(self) -> None:
        if not 0 <= self.addr_mask < MAX_SIZE or self.addr_mask & (self.addr_mask + 1):
            raise ModelError(f"addr_mask must be 2^n - 1, got {self.addr_mask:#x}")


class IommuOps(Protocol):
    """The callbacks of an IOMMU (``IOMMUMemoryRegionClass``)."""

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        """``addr`` is an offset in the region. An access of NONE asks for all permissions."""

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        """Which of its translation contexts serves these attributes; 0 if it has one."""


@dataclass(frozen=True, slots=True)
class Translation:
    """Where an access ends: ``offset`` in the section's region; ``length`` bytes of it can be
    done at once; ``page_mask`` and ``space`` are the last IOMMU's."""

    section: MemoryRegionSection
    offset: int
    length: int
    page_mask: int
    space: AddressSpace | None


#: Where an access goes that an IOMMU does not let through.
NOWHERE = MemoryRegionSection(0, MAX_SIZE, UNASSIGNED, 0)


def translate(
    region: MemoryRegion, offset: int, length: int, is_write: bool, attrs: MemTxAttrs
) -> Translation:
    """Follow ``region`` and every IOMMU behind it.

    Without the permission the access is one to unassigned memory, at the offset it had before
    that IOMMU. Raises ModelError where the IOMMUs never end.
    """
    page_mask = MASK64
    target: AddressSpace | None = None
    wanted = IommuAccess.WO if is_write else IommuAccess.RO
    for _ in range(MAX_NESTING):
        ops = region.iommu_ops
        if ops is None:
            return Translation(NOWHERE, offset, length, 0, target)
        entry = ops.translate(region, offset, wanted, ops.attrs_to_index(region, attrs))
        if not entry.perm & wanted:
            return Translation(NOWHERE, offset, length, 0, target)
        mask = entry.addr_mask
        addr = (entry.translated_addr & ~mask | offset & mask) & MASK64
        page_mask &= mask
        length = min(length, (addr | mask) - addr + 1)
        target = entry.target
        section, offset, length = target.translate_section(addr, length)
        region = section.region
        if region.kind is not RegionKind.IOMMU:
            return Translation(section, offset, length, page_mask, target)
    raise ModelError(f"more than {MAX_NESTING} IOMMUs behind each other, at {region.name!r}")



