"""Flat views: the comparison of the model's with QEMU's own text.

The model draws; ``info mtree -f`` is only compared with. A view is compared range by range:
both ends, priority, type, name, offset, owner, the read-only and the non-volatile flag.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from qemuglue.memory import FlatView, MemoryRegion, MemoryRegionSection, RegionKind
from qemuglue.qemu.mtree import FlatLine

_TYPES = {
    RegionKind.RAM: "ram", RegionKind.ROM: "rom", RegionKind.RAM_DEVICE: "ramd",
}


#: Regions that QEMU prints as ``container`` (11.1 and later: what would be ``i/o`` but lies in
#: no other region, seen or not). Empty for earlier versions.
Labels = Container[MemoryRegion]


def type_of(region: MemoryRegion, labels: Labels = ()) -> str:
    """The type QEMU prints for a region that is no alias (``memory_region_type``)."""
    if region.kind is RegionKind.ROM_DEVICE and region.romd:
        return "romd"
    return _TYPES.get(region.kind) or ("container" if region in labels else "i/o")


def owner_of(region: MemoryRegion) -> str:
    """The owner's path as far as the text told it."""
    return region.key.owner if region.key is not None else ""


@dataclass(frozen=True, slots=True)
class RangeLine:
    """One range as both sides can tell it; ``last`` is inclusive."""

    start: int
    last: int
    priority: int
    type: str
    nonvolatile: bool
    name: str
    offset: int
    owner: str

    def __str__(self) -> str:
        flags = "nv-" if self.nonvolatile else ""
        offset = f" @{self.offset:#x}" if self.offset else ""
        return (
            f"{self.start:#x}-{self.last:#x} (prio {self.priority}, {flags}{self.type}): "
            f"{self.name}{offset}"
        )


@dataclass(frozen=True, slots=True)
class ViewDifference:
    """Where one space's view differs: the model's range, QEMU's range, or one missing. Without
    any range, ``what`` tells of the space as a whole, or of the whole mirror (``space`` "")."""

    space: str
    model: RangeLine | None = None
    qemu: RangeLine | None = None
    what: str = ""

    def __str__(self) -> str:
        if self.what:
            return f"{self.space}: {self.what}" if self.space else self.what
        return f"{self.space}: model {self.model or 'nothing'}, QEMU {self.qemu or 'nothing'}"


def model_lines(view: FlatView, labels: Labels) -> list[RangeLine]:
    """The ranges as QEMU would print them."""
    return [
        RangeLine(
            s.start, s.start + s.size - 1, s.region.priority,
            "rom" if s.readonly else type_of(s.region, labels),
            s.nonvolatile, s.region.name, s.offset, owner_of(s.region),
        )
        for s in view.sections
    ]


def qemu_lines(ranges: Sequence[FlatLine]) -> list[RangeLine]:
    """QEMU's ranges in the same form."""
    return [
        RangeLine(r.start, r.last, r.priority, r.type, r.nonvolatile, r.name, r.offset,
                  r.owner.path)
        for r in ranges
    ]


def differences(
    space: str, model: Sequence[RangeLine], qemu: Sequence[RangeLine]
) -> list[ViewDifference]:
    """Ranges that are not on both sides, paired by their start, in address order."""
    ours = {line.start: line for line in model}
    theirs = {line.start: line for line in qemu}
    return [
        ViewDifference(space, ours.get(start), theirs.get(start))
        for start in sorted(ours.keys() | theirs.keys())
        if ours.get(start) != theirs.get(start)
    ]


def agrees(section: MemoryRegionSection, line: FlatLine, labels: Labels) -> bool:
    """Whether the two are one range in all that a comparison looks at."""
    region = section.region
    return (
        section.start == line.start
        and section.size == line.last - line.start + 1
        and section.offset == line.offset
        and region.name == line.name
        and region.priority == line.priority
        and section.nonvolatile == line.nonvolatile
        and line.type == ("rom" if section.readonly else type_of(region, labels))
        and owner_of(region) == line.owner.path
    )


def same(view: FlatView, ranges: Sequence[FlatLine], labels: Labels) -> bool:
    """Whether a view is exactly QEMU's."""
    sections = view.sections
    return len(sections) == len(ranges) and all(
        agrees(section, line, labels) for section, line in zip(sections, ranges, strict=True)
    )


