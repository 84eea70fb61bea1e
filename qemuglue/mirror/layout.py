"""The mirror's views as the program room wants them: ranges with names, indexes and kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qemuglue.errors import ProgramError, ProtocolError
from qemuglue.memory import AddressSpace, FlatView, MemoryRegion, MemoryRegionSection, RegionKind
from qemuglue.program.layout import Layout, Range
from qemuglue.qemu.mtree import TREE_COMMAND

#: Region kinds in a layout's words; everything else is a device.
_KINDS = {
    RegionKind.RAM: "ram", RegionKind.ROM: "rom", RegionKind.ROM_DEVICE: "romd",
    RegionKind.RAM_DEVICE: "ramd",
}
_DEVICE = "device"
#: A root that answers itself where nothing is mapped: the I/O space's.
_ROOT = "container-io"
#: Names of the two spaces a program's verbs enter.
_MEMORY = "memory"
_IO = "io"


def layout_of(
    memory: AddressSpace, io: AddressSpace | None, spaces: Sequence[AddressSpace],
    lines: Mapping[MemoryRegion, int],
) -> Layout:
    """``memory`` and ``io`` under those names, every other space under its own; a name that
    repeats gets ``#k``, k from 1. Raises ProtocolError for a map that no program can be laid
    out on, such as ports beyond 0xffff; ``lines`` are the regions' in the text."""
    ranges = {_MEMORY: _ranges(memory.view, _MEMORY)}
    if io is not None:
        ranges[_IO] = _ranges(io.view, _IO)
    used: dict[str, int] = {}
    for space in spaces:
        if space is memory or space is io or (space.name == _MEMORY and space.root is memory.root):
            continue
        name, count = space.name, used.get(space.name, 0)
        while name in ranges:
            count += 1
            name = f"{space.name}#{count}"
        used[space.name] = count
        ranges[name] = _ranges(space.view, name)
    try:
        return Layout(ranges, big=memory.target_big, swapped=_swapped(memory))
    except ProgramError as error:
        # A view is in order and within 2^64: only ports can be where none are.
        line = 1 if io is None else lines.get(io.root, 1)
        raise ProtocolError(
            f"line {line}: no map of a machine: {error}", channel=TREE_COMMAND
        ) from None


def _swapped(memory: AddressSpace) -> frozenset[str]:
    """Names of the device regions whose byte order is not that of a big-endian target. On a
    little-endian one programs spell the few big-endian registers out themselves."""
    if not memory.target_big:
        return frozenset()
    return frozenset(
        section.region.name for section in memory.view.sections
        if not section.region.is_ram and not section.region.contract.big(True))


def _ranges(view: FlatView, space: str) -> list[Range]:
    indexes: dict[str, dict[MemoryRegion, int]] = {}
    ranges: list[Range] = []
    for section in view.sections:
        same_name = indexes.setdefault(section.region.name, {})
        index = same_name.setdefault(section.region, len(same_name))
        ranges.append(Range(
            section.start, section.size, section.region.name, index, section.offset,
            _kind(section, view, space), space,
        ))
    return ranges


def _kind(section: MemoryRegionSection, view: FlatView, space: str) -> str:
    if space == _IO and section.region is view.root:
        return _ROOT
    return _KINDS.get(section.region.kind, _DEVICE)
