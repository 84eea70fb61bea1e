"""Mirror: a model taken from a live QEMU and kept equal to it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qemuglue.errors import ProtocolError
from qemuglue.memory import AddressSpace, FlatView, MemoryRegion, Topology
from qemuglue.memory.machine_spaces import Binding, bind
from qemuglue.mirror.effort import efforts
from qemuglue.mirror.facts import NOTHING, Inference
from qemuglue.mirror.identity import identify
from qemuglue.mirror.infer import Observed
from qemuglue.mirror.layers import draw
from qemuglue.mirror.layout import layout_of
from qemuglue.mirror.model import Model
from qemuglue.mirror.pairing import fit
from qemuglue.mirror.search import learn
from qemuglue.mirror.touched import Look, looks, touched
from qemuglue.mirror.views import (
    ViewDifference,
    differences,
    model_lines,
    qemu_lines,
    same,
)
from qemuglue.program.layout import Layout
from qemuglue.qemu.mtree import FLAT_COMMAND, TREE_COMMAND, FlatText, parse_flat, parse_tree

#: Runs one monitor line and returns its text.
Hmp = Callable[[str], str]

#: A tree and its flat views are two answers. If they disagree and the tree has changed
#: meanwhile, both are taken again, so often.
MAX_TAKES = 3

#: The space qtest enters (``first_cpu->as``), and the one there is without a CPU.
_CPU_SPACE = "cpu-memory-0"
_MEMORY_SPACE = "memory"
_IO_SPACE = "I/O"


class MirroredSpace(AddressSpace):
    """An address space whose view the mirror draws, once for all that share its root."""

    FOLLOWS = False

    def show(self, root: MemoryRegion, view: FlatView) -> None:
        """Replace the view."""
        self.root = root
        self.switch(view)


@dataclass(frozen=True, slots=True)
class Score:
    """How many of QEMU's flat views the model's equal, range by range."""

    exact: int
    total: int

    def __str__(self) -> str:
        return f"{self.exact} of {self.total}"


@dataclass(frozen=True, slots=True)
class RefreshResult:
    """What a refresh found. ``changed``: the map is another one. ``predicted``: the model drew
    the new map before it saw QEMU's, and it was right; ``differences`` is where it was not.
    ``learnt`` are the facts that this took, ``exact`` whether the mirror is right now."""

    changed: bool
    predicted: bool
    exact: bool
    learnt: Inference = NOTHING
    differences: tuple[ViewDifference, ...] = ()


class Mirror:
    """The address spaces of a running QEMU.

    ``spaces`` are in the order QEMU prints them; names may repeat, and spaces may share a
    view. Region objects and space objects live on through ``refresh``.
    """

    def __init__(self) -> None:
        self.spaces: tuple[MirroredSpace, ...] = ()
        #: What the spaces have in common: who is in I/O, listeners, dirty memory.
        self.topology = Topology()
        #: Counts the maps; every judged access belongs to one.
        self.generation = 0
        #: Views right by the tree text alone, as the first map was taken: no inferred fact,
        #: nothing known by name.
        self.plain = Score(0, 0)
        #: Views right now.
        self.score = Score(0, 0)
        #: Where the mirror is not exact.
        self.differences: tuple[ViewDifference, ...] = ()
        self._model = Model()
        self._views: dict[MemoryRegion, FlatView] = {}
        #: What the regions looked like as the views were drawn.
        self._looks: dict[MemoryRegion, Look] = {}
        self._texts: tuple[str, str] = ("", "")
        self._layout: Layout | None = None
        self._drawing, self._learning = efforts()

    @classmethod
    def take(cls, hmp: Hmp) -> Mirror:
        """Mirror what ``hmp`` talks to. Raises ProtocolError where the text is none, and what
        ``hmp`` raises. A mirror that is not exact says so (``exact``, ``differences``)."""
        mirror = cls()
        both = efforts()
        for _ in range(MAX_TAKES):
            tree = hmp(TREE_COMMAND)
            mirror = cls()
            mirror._drawing, mirror._learning = both
            mirror._redraw(tree)
            flat = hmp(FLAT_COMMAND)
            mirror._texts = (tree, flat)
            mirror._judge(parse_flat(flat))
            mirror.plain = mirror.score
            if mirror._model.use_known():
                mirror._show()
                mirror._judge(parse_flat(flat))
            if not mirror.exact:
                mirror._learn(parse_flat(flat))
            if mirror.exact or hmp(TREE_COMMAND) == tree:
                break
        mirror.generation = 1
        return mirror

    def refresh(self, hmp: Hmp) -> RefreshResult:
        """Bring the mirror to the present map. The model changes its own tree by what the tree
        text says and draws it; only then it is compared with QEMU's views."""
        self._drawing, self._learning = efforts()
        for _ in range(MAX_TAKES):
            tree = hmp(TREE_COMMAND)
            before = self._texts
            if tree != before[0]:
                self._redraw(tree)
            flat = hmp(FLAT_COMMAND)
            self._texts = (tree, flat)
            if self._texts == before:
                return RefreshResult(False, True, self.exact)
            views = parse_flat(flat)
            if tree == before[0] and _alike(views, parse_flat(before[1])):
                return RefreshResult(False, True, self.exact)
            self._judge(views)
            predicted, wrong = self.exact, self.differences
            known = self._model.facts.copy()
            if not predicted:
                self._learn(views)
            if self.exact or hmp(TREE_COMMAND) == tree:
                break
        self.generation += 1
        return RefreshResult(
            True, predicted, self.exact, self._model.facts.inference(known), wrong
        )

    # -- what is known ---------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether every view equals QEMU's."""
        return not self.differences

    @property
    def inference(self) -> Inference:
        """The facts that hold now and were taken from flat views."""
        return self._model.facts.inference()

    @property
    def known(self) -> Inference:
        """What holds now because regions of that name are made so in QEMU (``known``): neither
        told by the text nor inferred. Judged by QEMU's views like everything else."""
        return self._model.known()

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """Every region in sight, containers before their children."""
        return self._model.regions

    @property
    def memory(self) -> MirroredSpace:
        """The space that qtest enters: the first CPU's, or ``memory`` where there is none.
        Raises ProtocolError if there is neither."""
        for name in (_CPU_SPACE, _MEMORY_SPACE):
            for space in self.spaces:
                if space.name == name:
                    return space
        raise ProtocolError(
            "line 1: no address space of a CPU or of the machine", channel=TREE_COMMAND
        )

    @property
    def io(self) -> MirroredSpace | None:
        """The I/O space."""
        return next((space for space in self.spaces if space.name == _IO_SPACE), None)

    def bind(self) -> Binding:
        """Let ADDRESS_SPACE_MEMORY and ADDRESS_SPACE_IO stand for this machine, until the
        result is restored (``with``). The first is QEMU's ``address_space_memory``, not the
        space of a CPU. Refreshing the mirror keeps them right."""
        system = next((space for space in self.spaces if space.name == _MEMORY_SPACE), None)
        return bind(memory=system or self.memory, io=self.io)

    def absolute(self, region: MemoryRegion, offset: int = 0) -> int:
        """``offset`` in ``region`` as QEMU's trace prints it (``memory_region_to_absolute_addr``):
        the addresses up its own containers are added, aliases play no part."""
        return region.absolute(offset)

    def layout(self) -> Layout:
        """The views as programs see them."""
        if self._layout is None:
            self._layout = layout_of(
                self.memory, self.io, self.spaces, self._model.lines
            )
        return self._layout

    def compare(self, flat: str | Sequence[FlatText]) -> list[ViewDifference]:
        """Where the model's views differ from these, range by range. Spaces of one name and
        root are paired so that the fewest differ."""
        observed, unpaired = self._pair(parse_flat(flat) if isinstance(flat, str) else flat)
        found = list(unpaired)
        labels = self._model.labels
        right: set[tuple[int, int]] = set()
        for text, view in observed:
            drawn = self._views[view.root]
            if (id(drawn), id(text)) in right:
                continue
            if not same(drawn, view.ranges, labels):
                found.extend(differences(
                    view.space, model_lines(drawn, labels), qemu_lines(view.ranges)
                ))
            elif _root_name(drawn) == text.root:
                right.add((id(drawn), id(text)))
                continue
            ours = _root_name(drawn)
            if ours != text.root:
                found.append(ViewDifference(
                    view.space, what=f"the model draws {ours!r} for it, QEMU {text.root!r}"
                ))
        return found

    # -- taking --------------------------------------------------------------------------------

    def _redraw(self, tree: str) -> None:
        self._model.update(identify(parse_tree(tree)))
        old: defaultdict[str, list[MirroredSpace]] = defaultdict(list)
        for space in self.spaces:
            old[space.name].append(space)
        spaces: list[MirroredSpace] = []
        for name, root in self._model.spaces:
            root = root or MemoryRegion.container_of("", 0)
            known = old[name]
            # Spaces of one name are told apart by their roots.
            found = next((space for space in known if space.root is root), None)
            if found is None and len(known) == 1:
                found = known[0]
            if found is None:
                found = MirroredSpace(name, root, topology=self.topology)
            else:
                known.remove(found)
                found.root = root
            spaces.append(found)
        self.spaces = tuple(spaces)
        self._show()

    def _show(self) -> None:
        """Draw every root that a change since the last drawing can have touched, once, and give
        each space its view."""
        now = looks(self._model.regions)
        again = touched(self._looks, now)
        self._looks = now
        views: dict[MemoryRegion, FlatView] = {}
        drawn: dict[MemoryRegion | None, FlatView] = {}
        with self.topology.announced():
            for space in self.spaces:
                root = space.root
                if root not in views:
                    kept = root in self._views and root not in again
                    views[root] = self._views[root] if kept else draw(
                        root, self._drawing, drawn, self._model.lines)
                space.show(root, views[root])
        self._views = views
        self._layout = None

    def _judge(self, views: Sequence[FlatText]) -> None:
        """Compare with all of QEMU's views and keep the result."""
        found = self.compare(views)
        wrong = {difference.space for difference in found}
        exact = sum(all(space.name not in wrong for space in text.spaces) for text in views)
        self.differences = tuple(found)
        self.score = Score(exact, len(views))
        if not found:
            shown = self._model.shown
            for view in self._views.values():
                shown.update(section.region for section in view.sections)

    def _learn(self, views: Sequence[FlatText]) -> None:
        observed, _ = self._pair(views)
        learn(self._model, [view for _, view in observed], self._learning)
        self._show()
        self._judge(views)
        if self._learning.spent and self.differences:
            reason = ViewDifference("", what=self._learning.reason)
            self.differences = (reason, *self.differences)

    def _pair(
        self, views: Sequence[FlatText]
    ) -> tuple[list[tuple[FlatText, Observed]], list[ViewDifference]]:
        """Every space with the view QEMU shows for it; and those that only one side has."""
        ours: defaultdict[tuple[str, str], list[MemoryRegion]] = defaultdict(list)
        for space in self.spaces:
            ours[space.name, space.root.name].append(space.root)
        paired: list[tuple[FlatText, Observed]] = []
        unpaired: list[ViewDifference] = []
        theirs: defaultdict[tuple[str, str], list[FlatText]] = defaultdict(list)
        for text in views:
            for shown in text.spaces:
                theirs[shown.name, shown.root].append(text)
        for key, texts in theirs.items():
            name, roots = key[0], ours.pop(key, [])
            for root, text in fit(roots, self._views, texts, self._model.labels):
                paired.append((text, Observed(name, root, text.root, text.ranges)))
            unpaired += [
                ViewDifference(name, what="the tree does not list it")
            ] * (len(texts) - len(roots))
            unpaired += [
                ViewDifference(name, what="no flat view lists it")
            ] * (len(roots) - len(texts))
        for (name, _), left in ours.items():
            unpaired += [ViewDifference(name, what="no flat view lists it")] * len(left)
        return paired, unpaired


def _alike(views: Sequence[FlatText], others: Sequence[FlatText]) -> bool:
    """Whether two texts show the same. QEMU lists views, and the spaces of one, in the order of
    a hash table; a reset that changes nothing turns it round."""
    def shown(texts: Sequence[FlatText]) -> Counter[object]:
        return Counter(
            (tuple(sorted((space.name, space.root, space.alias or "") for space in text.spaces)),
             text.root, text.ranges)
            for text in texts
        )

    return shown(views) == shown(others)


def _root_name(view: FlatView) -> str | None:
    return None if view.root is None else view.root.name
