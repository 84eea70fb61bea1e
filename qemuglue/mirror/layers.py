"""What lies over an address, drawn or not, and where a drawing differs from QEMU's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from qemuglue.errors import ModelError, ProtocolError
from qemuglue.memory import FlatView, MemoryRegion, MemoryRegionSection, render
from qemuglue.memory.flatview import view_root
from qemuglue.mirror.effort import Effort, drawing_of
from qemuglue.mirror.views import Labels, owner_of, type_of
from qemuglue.qemu.mtree import TREE_COMMAND, FlatLine

#: Roots passed over in a row.
MAX_PASSED = 200
#: Regions stacked over one address, walked through aliases. Real machines have at most 20.
MAX_LAYERS = 10_000

_END = 1 << 64


class _Stretch(Protocol):
    @property
    def start(self) -> int: ...

    @property
    def last(self) -> int: ...


_S = TypeVar("_S", bound=_Stretch)


@dataclass(frozen=True, slots=True)
class Layer:
    """A region over one address. ``path`` goes from the drawn root to it, aliases included."""

    path: tuple[MemoryRegion, ...]
    offset: int
    nonvolatile: bool

    @property
    def region(self) -> MemoryRegion:
        return self.path[-1]

    @property
    def readonly(self) -> bool:
        return any(region.readonly for region in self.path)


def draw(
    root: MemoryRegion, effort: Effort, drawn: dict[MemoryRegion | None, FlatView] | None = None,
    lines: Mapping[MemoryRegion, int] | None = None,
) -> FlatView:
    """The view of a space with this root; ``drawn`` collects views for spaces that share one.
    Raises ProtocolError where the text describes a tree QEMU could not have drawn, such as a
    cycle of aliases, or where that takes more than ``effort``; ``lines`` are the regions' in
    the text."""
    lines = lines or {}
    try:
        shared = view_root(root)
        view = None if drawn is None else drawn.get(shared)
        if view is None:
            effort.spend(drawing_of(root, effort.left), _at(root, lines))
            view = render(root)
            if drawn is not None:
                drawn[shared] = view
        return view
    except ModelError as error:
        alias = in_itself(root)
        what = f"{_at(root, lines)}the tree cannot be drawn: {error}" if alias is None else (
            f"{_at(alias, lines)}alias {alias.name!r} shows "
            f"{alias.alias.name if alias.alias else ''!r}, which it is part of itself"
        )
        raise ProtocolError(what, channel=TREE_COMMAND, text=root.name) from error


def _at(region: MemoryRegion, lines: Mapping[MemoryRegion, int]) -> str:
    return f"line {lines[region]}: " if region in lines else ""


def in_itself(root: MemoryRegion) -> MemoryRegion | None:
    """An alias in ``root``'s tree that leads back to what it is part of, if there is one."""
    inside: set[MemoryRegion] = set()
    done: set[MemoryRegion] = set()
    stack = [(root, False)]
    while stack:
        region, left = stack.pop()
        if left:
            inside.discard(region)
            done.add(region)
            continue
        if region in done or region in inside or not region.enabled:
            continue
        inside.add(region)
        stack.append((region, True))
        if region.alias is not None and region.alias in inside:
            return region
        stack += [(below, False) for below in (region.alias, *region.subregions)
                  if below is not None]
    return None


def passed_over(root: MemoryRegion) -> list[MemoryRegion]:
    """The regions ``view_root`` looks at in turn, the one it ends at included."""
    passed = [root]
    while len(passed) < MAX_PASSED and passed[-1].enabled:
        region = passed[-1]
        if region.alias is not None:
            if region.alias_offset or region.size < region.alias.size:
                break
            passed.append(region.alias)
            continue
        enabled = [child for child in region.subregions if child.enabled]
        if region.terminates or len(enabled) != 1:
            break
        if enabled[0].addr or region.size < enabled[0].size:
            break
        passed.append(enabled[0])
    return passed


def layers(root: MemoryRegion, addr: int, effort: Effort | None = None) -> list[Layer]:
    """Every enabled region over ``addr`` that is no alias, in the order they are resolved.
    Raises ProtocolError where they are absurdly many, or more than ``effort``."""
    found: list[Layer] = []
    passed = 0

    def visit(region: MemoryRegion, base: int, path: tuple[MemoryRegion, ...], nv: bool) -> None:
        base += region.addr
        if not region.enabled or not base <= addr < base + region.size:
            return
        nonlocal passed
        passed += 1
        if effort is not None:
            # Children that are elsewhere are looked at too, which is quickly done.
            effort.spend(1 + len(region.subregions) // 8)
        if passed > MAX_LAYERS:
            raise ProtocolError(
                f"more than {MAX_LAYERS} regions over {addr:#x}", channel=TREE_COMMAND,
                text=root.name,
            )
        path = (*path, region)
        nv = nv or region.nonvolatile
        if region.alias is not None:
            visit(region.alias, base - region.alias.addr - region.alias_offset, path, nv)
            return
        for child in region.subregions:
            visit(child, base, path, nv)
        found.append(Layer(path, addr - base, nv))

    visit(root, 0, (), False)
    return found


def disagreements(
    view: FlatView, ranges: Sequence[FlatLine], labels: Labels
) -> Iterator[tuple[int, MemoryRegionSection | None, FlatLine | None]]:
    """(first address, model's section, QEMU's range) of every stretch where the two tell
    different things; one that is only cut differently is no disagreement."""
    sections = view.sections
    at = ours = theirs = 0
    while at < _END:
        while ours < len(sections) and sections[ours].last < at:
            ours += 1
        while theirs < len(ranges) and ranges[theirs].last < at:
            theirs += 1
        section, until_ours = _here(sections, ours, at)
        line, until_theirs = _here(ranges, theirs, at)
        if (section is None) != (line is None) or (
            section is not None and line is not None and not _tells(section, line, labels)
        ):
            yield at, section, line
        at = min(until_ours, until_theirs)


def _here(items: Sequence[_S], number: int, at: int) -> tuple[_S | None, int]:
    if number == len(items):
        return None, _END
    item = items[number]
    return (item, item.last + 1) if item.start <= at else (None, item.start)


def _tells(section: MemoryRegionSection, line: FlatLine, labels: Labels) -> bool:
    region = section.region
    return (
        region.name == line.name
        and region.priority == line.priority
        and section.offset - section.start == line.offset - line.start
        and section.nonvolatile == line.nonvolatile
        and owner_of(region) == line.owner.path
        and line.type == ("rom" if section.readonly else type_of(region, labels))
    )
