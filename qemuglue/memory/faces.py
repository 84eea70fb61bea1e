"""The faces that a space of the model can be used through, by name.

``put_on("vm-memory", space)`` gives the memory that the space shows now, with that interface. Each
keeps its own meaning under its own names; where they differ from one another and from QEMU's C
functions stands in their modules. ``rust`` follows the map as it changes; the others are of the
regions as they were when they were put on, one for each section of the view, each over a
``section_backing``: what a device is asked, and what it refuses, is told there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qemuglue.errors import UsageError
from qemuglue.memory import rust_binding
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.aligned import AlignedAccess
from qemuglue.memory.guest_memory.collection import GuestRegionCollection
from qemuglue.memory.guest_memory.region import GuestRegion
from qemuglue.memory.memory_map import GuestMemory
from qemuglue.memory.region import RegionKind
from qemuglue.memory.region_accessor import RegionAccessor
from qemuglue.memory.section_backing import SectionBacking, section_backing


@dataclass(frozen=True, slots=True)
class Face:
    """``put_on(space)`` gives an object with the interface."""

    name: str
    #: Where the interface comes from, for people.
    summary: str
    put_on: Callable[[AddressSpace], Any]


def sections_of(space: AddressSpace) -> Iterator[tuple[int, SectionBacking]]:
    """(first address, backing) of each section that the space shows now, by address. Sections
    that claim addresses and answer as if nothing were there are holes."""
    for section in space.view.sections:
        if section.region.kind is not RegionKind.RESERVATION:
            yield section.start, section_backing(space, section)


def _vm_memory(space: AddressSpace) -> GuestRegionCollection[GuestRegion]:
    return GuestRegionCollection.from_regions(
        [GuestRegion(start, backing) for start, backing in sections_of(space)])


def _aligned(space: AddressSpace) -> AlignedAccess:
    return AlignedAccess(_vm_memory(space))


def _memory_map(space: AddressSpace) -> GuestMemory:
    return GuestMemory.from_regions(sections_of(space))


def _accessor(space: AddressSpace) -> RegionAccessor:
    return RegionAccessor(sections_of(space))


#: By name, as ``--face`` takes it.
FACES: dict[str, Face] = {
    face.name: face for face in (
        Face("vm-memory", "rust-vmm's vm-memory 0.18: GuestMemory over a region collection",
             _vm_memory),
        Face("aligned", "the aligned and atomic accesses proposed for vm-memory (#102)",
             _aligned),
        Face("memory-map", "the first rust-vmm memory model: one access, one region",
             _memory_map),
        Face("accessor", "axaddrspace's GuestMemoryAccessor", _accessor),
        Face("rust", "QEMU's own Rust bindings (RFC): AddressSpace and FlatView",
             rust_binding.AddressSpace),
    )
}


def find_face(name: str) -> Face:
    """The face of that name. Raises UsageError where there is none."""
    if name not in FACES:
        raise UsageError(f"no face {name!r}; there are {', '.join(FACES)}")
    return FACES[name]


def put_on(name: str, space: AddressSpace) -> Any:
    """``space`` with the face of that name. Raises UsageError where there is none."""
    return find_face(name).put_on(space)
