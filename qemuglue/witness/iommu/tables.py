"""What every IOMMU here needs: tables in guest memory, and regions that translate.

An IOMMU reads its tables in the system's memory as any device would (``dma_memory_read`` in
``address_space_memory``), so a table that lies on a device's registers reads what the transcript
says, and one where nothing is fails. Nothing here keeps what it read: caches are the IOMMU's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import OK, MemTxAttrs
from qemuglue.memory.iommu import IommuAccess, IommuTlbEntry
from qemuglue.memory.region import MASK64, MemoryRegion, RegionKind

#: Bytes of the smallest page of every IOMMU but Arm's with larger granules.
PAGE = 0x1000


def words(memory: AddressSpace, addr: int, count: int) -> tuple[int, ...] | None:
    """``count`` little-endian words of 8 bytes at ``addr``; None if any of it fails."""
    result, data = memory.read(addr & MASK64, 8 * count)
    if result != OK:
        return None
    return tuple(
        int.from_bytes(data[at : at + 8], "little") for at in range(0, 8 * count, 8))


def word(memory: AddressSpace, addr: int) -> int | None:
    """One little-endian word of 8 bytes at ``addr``; None if it cannot be read."""
    found = words(memory, addr, 1)
    return None if found is None else found[0]


def bits(value: int, low: int, count: int) -> int:
    """``count`` bits of ``value`` from bit ``low`` on."""
    return value >> low & ((1 << count) - 1)


def nowhere(memory: AddressSpace, addr: int = 0, mask: int = 0) -> IommuTlbEntry:
    """The answer to an access that is not let through. ``addr_mask`` has no meaning then."""
    return IommuTlbEntry(memory, addr & ~mask, 0, mask, IommuAccess.NONE)


def through(memory: AddressSpace, addr: int, mask: int = PAGE - 1) -> IommuTlbEntry:
    """The answer where an address stays what it is, page by page."""
    page = addr & ~mask & MASK64
    return IommuTlbEntry(memory, page, page, mask, IommuAccess.RW)


#: (address in the region, what the access wants to do) -> where it goes.
Translate = Callable[[int, IommuAccess], IommuTlbEntry]


@dataclass(frozen=True, slots=True, eq=False)
class Translator:
    """The callbacks of one IOMMU region with one translation context. ``blind`` says why what it
    answers is not to be believed, "" while it is."""

    ask: Translate
    blind: Callable[[], str]

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        """Where ``addr``, an offset in the region, leads."""
        return self.ask(addr, access)

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        """There is one context only."""
        return 0


@runtime_checkable
class Translates(Protocol):
    """A decoded device that is an IOMMU. ``bind`` comes after every change of the map, with the
    mirror's regions and QEMU's answer to QMP ``query-pci``; ``unbind`` before the mirror looks
    at its regions again."""

    def bind(self, regions: Iterable[MemoryRegion], buses: object) -> None: ...

    def unbind(self) -> None: ...


def blind(space: AddressSpace) -> str:
    """Why it is not known where an access through ``space`` ends, as an IOMMU in it is not
    followed; "" where it is known."""
    for section in space.view.sections:
        ops = section.region.iommu_ops
        if isinstance(ops, Translator):
            why = ops.blind()
            if why:
                return f"{section.region.name}: {why}"
        elif _IOMMUS.search(section.region.name):
            return f"{section.region.name}: its IOMMU is not modelled"
    return ""


#: What QEMU calls the regions of IOMMUs that devices are behind (``memory_region_init_iommu``).
_IOMMUS = re.compile(
    r"vtd-.*-dmar|amd_iommu|.*-iommu-memory-region-.*|iommu-(astro|typhoon|sun4m|sun4u)"
    r"|phb\d.*iommu|tce-iommu-.*|tce-root-.*|rc4030\.dma|riscv_iommu|iommu-s390-.*")


@dataclass(slots=True)
class Bindings:
    """The regions of a mirror that translate, as long as the mirror does not change.

    QEMU's text calls such a region i/o; the mirror learns from the flat views whether it answers,
    as for any container. So a region is made an IOMMU's for accesses only, and is what the
    mirror says while the mirror looks at it.
    """

    bound: set[MemoryRegion] = field(default_factory=set)

    def bind(
        self, region: MemoryRegion, translate: Translate, blind: Callable[[], str]
    ) -> None:
        """From now on ``region`` translates."""
        self.bound.add(region)
        region.kind = RegionKind.IOMMU
        region.iommu_ops = Translator(translate, blind)

    def unbind(self) -> None:
        """Before the mirror looks at its regions again."""
        for region in self.bound:
            region.kind = RegionKind.IO if region.terminates else RegionKind.CONTAINER
            region.iommu_ops = None
        self.bound.clear()


@dataclass(frozen=True, slots=True)
class Function:
    """A PCI function as ``query-pci`` lists it: its requester id is ``bus << 8 | slot << 3 |
    function``. ``behind`` is whether a bridge is in between, which may lend it its own id."""

    bus: int
    slot: int
    function: int
    qdev: str = ""
    behind: bool = False

    @property
    def devfn(self) -> int:
        return self.slot << 3 | self.function

    @property
    def requester(self) -> int:
        return self.bus << 8 | self.devfn


def functions(buses: object) -> list[Function]:
    """Every function in an answer to QMP ``query-pci``; what is malformed is left out."""
    found: list[Function] = []

    def walk(devices: object, behind: bool, depth: int) -> None:
        if not isinstance(devices, Sequence) or depth > MAX_BRIDGES:
            return
        for device in devices:
            try:
                found.append(Function(
                    int(device["bus"]), int(device["slot"]), int(device["function"]),
                    str(device.get("qdev_id", "")), behind))
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
            bridge = device.get("pci_bridge")
            if isinstance(bridge, dict):
                walk(bridge.get("devices"), True, depth + 1)

    if isinstance(buses, Sequence):
        for bus in buses:
            if isinstance(bus, dict):
                walk(bus.get("devices"), False, 0)
    return found


#: Bridges one behind the other; PCI has 256 buses.
MAX_BRIDGES = 256


def on_bus_zero(found: Iterable[Function], devfn: int) -> int | None:
    """The requester id of what is called ``devfn`` when only its slot and function are known:
    of the root bus, unless a function behind a bridge has the same numbers."""
    if any(each.behind and each.devfn == devfn for each in found):
        return None
    return devfn
