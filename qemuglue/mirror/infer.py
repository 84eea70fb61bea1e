"""Learn from the flat views what the tree text does not tell.

The model draws its views with what it knows; where a view differs from QEMU's, the regions
that cover the differing address are looked at in the order they are resolved, and the fact is
learnt that lets QEMU's region win:

* nothing answers there, yet a region of the model does: it does not answer for itself;
* another region answers: it does, and each one drawn over it either lies under it (if they
  meet as siblings of equal priority whose order is unknown) or does not answer for itself;
* the right region answers, but read-only or not: an alias or container above it is, or is not.

Then the views are drawn again, until they agree or nothing more can be learnt. No fact is
turned round within one run, so this ends. The renderer itself never sees QEMU's views; a fact
is an order of two siblings, one bit, or the choice of an alias target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from qemuglue.errors import ModelError, ProtocolError
from qemuglue.memory import FlatView, MemoryRegion, MemoryRegionSection, RegionKind, render
from qemuglue.mirror.model import Model, Snapshot
from qemuglue.mirror.views import (
    differences,
    model_lines,
    owner_of,
    qemu_lines,
    same,
    type_of,
)
from qemuglue.qemu.mtree import TREE_COMMAND, FlatLine

#: Drawings in one run. Each learns at least one fact of every view that differs; the machine
#: that needs most takes 6.
MAX_ROUNDS = 64
#: Alias choices tried, when the text leaves several.
MAX_TRIALS = 64
#: Regions stacked over one address, walked through aliases.
MAX_LAYERS = 10_000

_END = 1 << 64


class _Stretch(Protocol):
    @property
    def start(self) -> int: ...

    @property
    def last(self) -> int: ...


_S = TypeVar("_S", bound=_Stretch)


@dataclass(frozen=True, slots=True)
class Observed:
    """A flat view QEMU shows, and the root of the space that shows it."""

    space: str
    root: MemoryRegion
    ranges: tuple[FlatLine, ...]


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


def draw(root: MemoryRegion) -> FlatView:
    """The view of a space with this root. Raises ProtocolError where the text describes a tree
    QEMU could not have drawn, such as a cycle of aliases."""
    try:
        return render(root)
    except ModelError as error:
        raise ProtocolError(
            f"the tree cannot be drawn: {error}", channel=TREE_COMMAND, text=root.name
        ) from error


def layers(root: MemoryRegion, addr: int) -> list[Layer]:
    """Every enabled region over ``addr`` that is no alias, in the order they are resolved."""
    found: list[Layer] = []

    def visit(region: MemoryRegion, base: int, path: tuple[MemoryRegion, ...], nv: bool) -> None:
        base += region.addr
        if not region.enabled or not base <= addr < base + region.size:
            return
        path = (*path, region)
        nv = nv or region.nonvolatile
        if region.alias is not None:
            visit(region.alias, base - region.alias.addr - region.alias_offset, path, nv)
            return
        for child in region.subregions:
            visit(child, base, path, nv)
        if len(found) < MAX_LAYERS:
            found.append(Layer(path, addr - base, nv))

    visit(root, 0, (), False)
    return found


def disagreements(
    view: FlatView, ranges: Sequence[FlatLine], labels: bool
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


def _tells(section: MemoryRegionSection, line: FlatLine, labels: bool) -> bool:
    region = section.region
    return (
        region.name == line.name
        and region.priority == line.priority
        and section.offset - section.start == line.offset - line.start
        and section.nonvolatile == line.nonvolatile
        and owner_of(region) == line.owner.path
        and line.type == ("rom" if section.readonly else type_of(region, labels))
    )


class Learner:
    """One run over a set of observed views."""

    def __init__(self, model: Model, observed: Sequence[Observed]) -> None:
        self.model = model
        self.observed = observed
        self.views: dict[MemoryRegion, FlatView] = {}
        #: Regions that some flat view shows: they surely answer for themselves.
        self._seen = {
            (line.name, line.owner.path, line.priority)
            for view in observed for line in view.ranges
        }
        self._bits: dict[tuple[MemoryRegion, str], bool] = {}
        #: Containers whose older pair orders turned out stale, and were dropped.
        self._renewed: set[MemoryRegion] = set()

    def draw(self) -> int:
        """Draw every view; the number of those that differ from QEMU's."""
        self.views = {}
        for view in self.observed:
            if view.root not in self.views:
                self.views[view.root] = draw(view.root)
        return len(self.wrong())

    def wrong(self) -> list[Observed]:
        labels = self.model.labels
        return [v for v in self.observed if not same(self.views[v.root], v.ranges, labels)]

    def learn(self) -> int:
        """Learn until the views agree or nothing helps; the number of views still wrong."""
        left = self.draw()
        if left and self.model.options:
            self._choose_targets()
            left = self.draw()
        return self._repeat(left)

    def _repeat(self, left: int) -> int:
        for _ in range(MAX_ROUNDS):
            if not left or not self._round():
                break
            left = self.draw()
        return left

    def _round(self) -> bool:
        progress = False
        for view in self.wrong():
            drawn = self.views[view.root]
            cut = True
            for at, section, line in disagreements(drawn, view.ranges, self.model.labels):
                cut = False
                progress |= self._explain(drawn.root or view.root, at, section, line)
            if cut and drawn.root is not None:
                progress |= self._cuts(drawn.root, drawn, view.ranges)
        return progress

    # -- one disagreement ------------------------------------------------------------------

    def _explain(
        self, root: MemoryRegion, at: int, section: MemoryRegionSection | None,
        line: FlatLine | None,
    ) -> bool:
        stack = layers(root, at)
        if line is None:
            return any([self._silence(one) for one in stack if one.region.terminates])
        fitting = [one for one in stack if self._fits(one, line, at)]
        fitting.sort(key=lambda one: not one.region.terminates)
        wins = next((one for one in stack if one.region.terminates), None)
        if wins is not None and wins in fitting and wins.readonly == (line.type == "rom"):
            return False  # a fact learnt since the view was drawn explains it
        if any(self._promote(one, stack, line) for one in fitting):
            return True
        return not fitting and section is None and self._unempty(root, at, line)

    def _fits(self, layer: Layer, line: FlatLine, at: int) -> bool:
        region = layer.region
        return (
            region.name == line.name
            and region.priority == line.priority
            and layer.offset == line.offset + at - line.start
            and owner_of(region) == line.owner.path
            and layer.nonvolatile == line.nonvolatile
            and line.type in ("rom", type_of(region, self.model.labels))
        )

    def _promote(self, winner: Layer, stack: list[Layer], line: FlatLine) -> bool:
        """Let ``winner`` win over those before it; False if that cannot be, or was so."""
        progress = False
        if not winner.region.terminates:
            if not self._bit(winner.region, "terminates", True):
                return False
            progress = True
        for other in stack[: stack.index(winner)]:
            if other.region.terminates and other.region is not winner.region:
                progress |= self._lower(other, winner)
        readonly = line.type == "rom"
        if winner.readonly != readonly and not progress:
            progress = self._set_readonly(winner, readonly)
        return progress

    def _lower(self, other: Layer, winner: Layer) -> bool:
        """Let ``other`` lose to ``winner`` by a pair order, or make it answer nothing."""
        fork = 0
        shortest = min(len(other.path), len(winner.path))
        while fork < shortest and other.path[fork] is winner.path[fork]:
            fork += 1
        sure = self._surely_answers(other.region)
        if fork < shortest:
            first, second = winner.path[fork], other.path[fork]
            siblings = first.container is not None and first.container is second.container
            if siblings and self.model.known_order(first, second) is None:
                # A region with children that is nowhere seen is likelier a container.
                plain = sure or not other.region.subregions
                if plain and self._pair(first, second):
                    return True
                return self._silence(other) or self._pair(first, second)
        return not sure and self._silence(other)

    def _surely_answers(self, region: MemoryRegion) -> bool:
        return (
            region.kind not in (RegionKind.IO, RegionKind.CONTAINER)
            or region in self.model.shown
            or (region.name, owner_of(region), region.priority) in self._seen
        )

    def _silence(self, layer: Layer) -> bool:
        region = layer.region
        if region.kind is not RegionKind.IO:
            # Memory answers, unless there is none: sizes 0 and 1 print alike.
            return region.size == 1 and self._bit(region, "empty", True)
        return self._bit(region, "terminates", False)

    def _unempty(self, root: MemoryRegion, at: int, line: FlatLine) -> bool:
        """A region taken for empty that is one byte after all."""
        if line.start != line.last:
            return False
        for region in list(self.model.facts.empty):
            if region.name == line.name and self._bit(region, "empty", False):
                return True
        return False

    def _set_readonly(self, winner: Layer, readonly: bool) -> bool:
        """Set the bit on the innermost alias or container it can be, the likeliest place."""
        path = winner.path[::-1]
        if not readonly:
            return any([
                self._bit(region, "readonly", False) for region in path
                if region.readonly and region.kind is not RegionKind.ROM
            ])
        candidates = [region for region in path if region.alias is not None]
        candidates += [region for region in path if region.alias is None]
        return any(self._bit(region, "readonly", True) for region in candidates)

    def _cuts(self, root: MemoryRegion, view: FlatView, ranges: Sequence[FlatLine]) -> bool:
        """The views tell the same but are cut differently: QEMU did not merge something."""
        starts = {line.start for line in ranges}
        missing = starts - {section.start for section in view.sections}
        for at in sorted(missing):
            for layer in layers(root, at):
                if layer.region.terminates:
                    aliases = [r for r in layer.path if r.alias is not None]
                    return any(self._bit(r, "unmergeable", True) for r in aliases[::-1])
        return False

    # -- facts, each learnt once -------------------------------------------------------------

    def _bit(self, region: MemoryRegion, what: str, value: bool) -> bool:
        if (region, what) in self._bits:
            return False
        self._bits[region, what] = value
        if what == "terminates":
            self.model.set_terminates(region, value)
        elif what == "readonly":
            self.model.set_readonly(region, value)
        elif what == "empty":
            self.model.set_empty(region, value)
        else:
            self.model.set_unmergeable(region)
        return True

    def _pair(self, first: MemoryRegion, second: MemoryRegion) -> bool:
        if self.model.add_pair(first, second):
            return True
        container = first.container
        assert container is not None
        if container in self._renewed:
            return False
        # The orders learnt in an earlier state may be stale: once a run they are dropped.
        self._renewed.add(container)
        self.model.facts.pairs.pop(container, None)
        return self.model.add_pair(first, second)

    # -- aliases whose target's name is not unique -----------------------------------------------

    def _choose_targets(self) -> None:
        """Try the other targets, one alias at a time, each with all that can then be learnt;
        keep those that leave fewer ranges wrong, and nothing else that was learnt."""
        before = self.model.snapshot()
        chosen: dict[MemoryRegion, MemoryRegion] = {}
        best = self._try(before, chosen)
        trials = 0
        for alias, options in list(self.model.options.items()):
            for target in options:
                if not best or trials == MAX_TRIALS:
                    break
                if target is not chosen.get(alias, options[0]):
                    trials += 1
                    result = self._try(before, {**chosen, alias: target})
                    if result < best:
                        best, chosen = result, {**chosen, alias: target}
        self._reset(before, chosen)

    def _try(self, before: Snapshot, chosen: dict[MemoryRegion, MemoryRegion]) -> int:
        """The number of ranges still wrong after all that can be learnt with these targets."""
        self._reset(before, chosen)
        self._repeat(self.draw())
        labels = self.model.labels
        return sum(
            len(differences(v.space, model_lines(self.views[v.root], labels),
                            qemu_lines(v.ranges)))
            for v in self.wrong()
        )

    def _reset(self, before: Snapshot, chosen: dict[MemoryRegion, MemoryRegion]) -> None:
        self.model.restore(before)
        self._bits.clear()
        self._renewed.clear()
        for alias, target in chosen.items():
            self.model.set_target(alias, target)
