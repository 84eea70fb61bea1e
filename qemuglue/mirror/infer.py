"""Learn from the flat views what the tree text does not tell.

The model draws its views with what it knows; where a view differs from QEMU's, the regions
that cover the differing address are looked at in the order they are resolved, and the fact is
learnt that lets QEMU's region win:

* nothing answers there, yet a region of the model does: it does not answer for itself;
* another region answers: it does, and each one drawn over it either lies under it (if they
  meet as siblings of equal priority whose order is unknown) or does not answer for itself;
* the right region answers, but read-only or not: an alias or container above it is, or is not;
* QEMU drew the view from another root: a root that answers itself is never passed over.

Then the views are drawn again, until they agree or nothing more can be learnt. No fact is
turned round within one run, so this ends. The renderer itself never sees QEMU's views; a fact
is an order of two siblings, one bit, or the choice of an alias target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qemuglue.memory import FlatView, MemoryRegion, MemoryRegionSection, RegionKind
from qemuglue.mirror.effort import Effort
from qemuglue.mirror.facts import Pair
from qemuglue.mirror.layers import Layer, disagreements, draw, layers, passed_over
from qemuglue.mirror.model import Model
from qemuglue.mirror.views import (
    differences,
    model_lines,
    owner_of,
    qemu_lines,
    same,
    type_of,
)
from qemuglue.qemu.mtree import FlatLine

#: Drawings in one run. Each learns at least one fact of every view that differs; the machine
#: that needs most takes 6.
MAX_ROUNDS = 64


@dataclass(frozen=True, slots=True)
class Observed:
    """A flat view QEMU shows, and the root of the space that shows it. ``drawn`` is the name
    of the region QEMU drew for it (roots that only stand for another are passed over)."""

    space: str
    root: MemoryRegion
    drawn: str | None
    ranges: tuple[FlatLine, ...]


class Learner:
    """One run over a set of observed views. Where one address can be explained in several
    ways, ``last_first`` takes the lowest fitting region instead of the topmost. Every method
    raises ProtocolError when ``effort`` is spent; what was learnt up to then holds."""

    def __init__(
        self, model: Model, observed: Sequence[Observed], effort: Effort, *,
        last_first: bool = False,
    ) -> None:
        self.model = model
        self.effort = effort
        self.last_first = last_first
        self.observed = observed
        self.views: dict[MemoryRegion, FlatView] = {}
        #: Regions that some flat view shows: they surely answer for themselves.
        self._seen = {
            (line.name, line.owner.path, line.priority)
            for view in observed for line in view.ranges
        }
        self._bits: dict[tuple[MemoryRegion, str], bool] = {}
        self._pairs: set[Pair] = set()

    def draw(self) -> int:
        """Draw every view; the number of those that differ from QEMU's."""
        self.views = {}
        drawn: dict[MemoryRegion | None, FlatView] = {}
        for view in self.observed:
            if view.root not in self.views:
                self.views[view.root] = draw(view.root, self.effort, drawn)
        return len(self.wrong())

    def wrong(self) -> list[Observed]:
        # Hundreds of spaces can share a view, on both sides.
        known: dict[tuple[int, int], bool] = {}
        wrong: list[Observed] = []
        for view in self.observed:
            key = id(self.views[view.root]), id(view.ranges)
            right = known.get(key)
            if right is None:
                right = known[key] = self._is_right(view)
            if not right:
                wrong.append(view)
        return wrong

    def _is_right(self, view: Observed) -> bool:
        drawn = self.views[view.root]
        self.effort.spend(1 + len(drawn.sections))
        return same(drawn, view.ranges, self.model.labels) and self._right_root(view)

    def _right_root(self, view: Observed) -> bool:
        drawn = self.views[view.root].root
        return (None if drawn is None else drawn.name) == view.drawn

    def learn(self) -> int:
        """Learn until the views agree or nothing helps; the number of ranges still wrong."""
        left = self.draw()
        for _ in range(MAX_ROUNDS):
            if not left or not self._round():
                break
            left = self.draw()
        labels = self.model.labels
        wrong = self.wrong()
        self.effort.spend(sum(
            len(self.views[view.root].sections) + len(view.ranges) for view in wrong
        ))
        return sum(
            len(differences(view.space, model_lines(self.views[view.root], labels),
                            qemu_lines(view.ranges))) or 1
            for view in wrong
        )

    def _round(self) -> bool:
        labels = self.model.labels
        progress = False
        for view in self.wrong():
            if progress:  # what was learnt from the view before may have put this one right
                self.views[view.root] = draw(view.root, self.effort)
                if self._is_right(view):
                    continue
            drawn = self.views[view.root]
            if self._root(view):
                progress = True
                continue
            cut = True
            self.effort.spend(len(drawn.sections) + len(view.ranges))
            for at, section, line in disagreements(drawn, view.ranges, labels):
                cut = False
                roots = dict.fromkeys((drawn.root or view.root, view.root))
                progress |= any(self._explain(root, at, section, line) for root in roots)
            if cut and drawn.root is not None:
                progress |= self._cuts(drawn.root, drawn, view.ranges)
        return progress

    def _root(self, view: Observed) -> bool:
        """Learn from which region QEMU drew the view of: a root that answers itself is never
        passed over, one that does not is, for its only child."""
        passed = passed_over(view.root)
        if self._right_root(view):
            return False
        for region in passed:
            if region.name == view.drawn and not region.terminates:
                return self._device(region) and self._bit(region, "terminates", True)
        last = passed[-1]
        if last.alias is not None and not last.size and view.drawn is not None:
            return self._bit(last, "empty", False)
        return last.terminates and self._device(last) and self._bit(last, "terminates", False)

    @staticmethod
    def _device(region: MemoryRegion) -> bool:
        return region.kind in (RegionKind.IO, RegionKind.CONTAINER)

    # -- one disagreement ------------------------------------------------------------------

    def _explain(
        self, root: MemoryRegion, at: int, section: MemoryRegionSection | None,
        line: FlatLine | None,
    ) -> bool:
        stack = layers(root, at, self.effort)
        if line is None:
            return any([self._silence(one) for one in stack if one.region.terminates])
        fitting = [one for one in stack if self._fits(one, line, at)]
        if self.last_first:
            fitting.reverse()
        fitting.sort(key=lambda one: not one.region.terminates)
        wins = next((one for one in stack if one.region.terminates), None)
        if wins is not None and wins in fitting and wins.readonly == (line.type == "rom"):
            return False  # a fact learnt since the view was drawn explains it
        if any(self._promote(one, stack, line) for one in fitting):
            return True
        return not fitting and self._unempty(root, at, line)

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
            if other.region.terminates:
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
        sure = other.region is winner.region or self._surely_answers(other.region)
        if fork < shortest:
            first, second = winner.path[fork], other.path[fork]
            container = first.container
            siblings = container is not None and container is second.container
            self.effort.spend(len(container.subregions) if container is not None else 0)
            if siblings and self.model.known_order(first, second) is None:
                assert container is not None
                order = container.subregions
                if order.index(first) < order.index(second):
                    return False  # learnt since the stack was taken
                # A region with children that is nowhere seen is likelier a container.
                plain = sure or not other.region.subregions
                if plain and self._pair(first, second):
                    return True
                return self._silence(other) or self._pair(first, second)
        return not sure and self._silence(other)

    def _surely_answers(self, region: MemoryRegion) -> bool:
        """Memory does, unless there is none (sizes 0 and 1 print alike); so does what a flat
        view shows, now or before."""
        return (
            region in self.model.shown
            or (not self._device(region) and region.size != 1)
            or (region.name, owner_of(region), region.priority) in self._seen
        )

    def _silence(self, layer: Layer) -> bool:
        region = layer.region
        if region in self.model.shown:
            return False
        if self._device(region):
            return self._bit(region, "terminates", False)
        return region.size == 1 and self._bit(region, "empty", True)

    def _unempty(self, root: MemoryRegion, at: int, line: FlatLine) -> bool:
        """A region taken for empty that is one byte after all, itself or a window to it."""
        self.effort.spend(len(self.model.regions))
        for region in self.model.regions:
            if region.size:
                continue
            region.size = 1
            try:
                fits = any(self._fits(layer, line, at) and region in layer.path
                           for layer in layers(root, at, self.effort))
            finally:
                region.size = 0
            if fits and self._bit(region, "empty", False):
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
            for layer in layers(root, at, self.effort):
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
            self.effort.spend(len(self.model.regions))
            self.model.set_readonly(region, value)
        elif what == "empty":
            self.model.set_empty(region, value)
        else:
            self.model.set_unmergeable(region)
        return True

    def _pair(self, first: MemoryRegion, second: MemoryRegion) -> bool:
        self.effort.spend(0 if first.container is None else len(first.container.subregions))
        if self.model.add_pair(first, second):
            self._pairs.add((first, second))
            return True
        # Orders learnt in an earlier state may be stale; those of this run are not.
        container = first.container
        assert container is not None
        known = self.model.facts.pairs.get(container, set())
        stale = known - self._pairs
        known -= stale
        if stale and self.model.add_pair(first, second):
            self._pairs.add((first, second))
            return True
        known |= stale
        return False
