"""Which of QEMU's views belongs to which root, where spaces have one name and one root's name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from qemuglue.memory import FlatView, MemoryRegion
from qemuglue.mirror.views import Labels, RangeLine, model_lines, qemu_lines
from qemuglue.qemu.mtree import FlatText

#: Ranges compared to find out which view fits which root best, about 0.3 s. Beyond it the rest
#: is paired in the order both texts print. Real machines need it only where the mirror is not
#: right yet; the one that needs most compares 240.
MAX_COMPARED = 200_000

#: What there is to a view: its root's name, its ranges.
_Shown = tuple[str | None, tuple[RangeLine, ...]]


def fit(
    roots: Sequence[MemoryRegion], views: Mapping[MemoryRegion, FlatView],
    texts: Sequence[FlatText], labels: Labels,
) -> list[tuple[MemoryRegion, FlatText]]:
    """Pair roots with QEMU's views: first what fits exactly, then what fits best. Hundreds of
    devices can have spaces of one name, most of them sharing one view, so views are compared
    once each. What is over on one side is left out."""
    if len(roots) == len(texts) == 1:
        return [(roots[0], texts[0])]
    alike: defaultdict[FlatView, list[MemoryRegion]] = defaultdict(list)
    for root in roots:
        alike[views[root]].append(root)
    wanted: defaultdict[int, list[FlatText]] = defaultdict(list)
    for text in texts:
        wanted[id(text)].append(text)
    ours = [(_drawn(view, labels), group) for view, group in alike.items()]
    theirs = [(_printed(group[0]), group) for group in wanted.values()]
    paired: list[tuple[MemoryRegion, FlatText]] = []
    by_shown: defaultdict[_Shown, list[list[FlatText]]] = defaultdict(list)
    for shown, same_text in theirs:
        by_shown[shown].append(same_text)
    for shown, group in ours:
        for same_text in by_shown.get(shown, ()):
            _take(group, same_text, paired)
    ours = [(shown, group) for shown, group in ours if group]
    theirs = [(shown, same_text) for shown, same_text in theirs if same_text]
    for group, same_text in _by_likeness(ours, theirs):
        _take(group, same_text, paired)
    return paired


def _take(
    group: list[MemoryRegion], same_text: list[FlatText],
    paired: list[tuple[MemoryRegion, FlatText]],
) -> None:
    count = min(len(group), len(same_text))
    paired += zip(group[:count], same_text[:count], strict=True)
    del group[:count], same_text[:count]


def _by_likeness(
    ours: list[tuple[_Shown, list[MemoryRegion]]], theirs: list[tuple[_Shown, list[FlatText]]],
) -> list[tuple[list[MemoryRegion], list[FlatText]]]:
    """Every root's group with every text's, best fit first; in print order if that is too much."""
    compared = (
        len(theirs) * sum(1 + len(lines) for (_, lines), _ in ours)
        + len(ours) * sum(1 + len(lines) for (_, lines), _ in theirs)
    )
    if compared > MAX_COMPARED:
        roots = [[root] for _, group in ours for root in group]
        texts = [[text] for _, group in theirs for text in group]
        return list(zip(roots, texts, strict=False))
    drawn = [{line.start: line for line in lines} for (_, lines), _ in ours]
    printed = [{line.start: line for line in lines} for (_, lines), _ in theirs]
    costs = sorted(
        (_misfit(mine, other), number, at)
        for number, mine in enumerate(drawn) for at, other in enumerate(printed)
    )
    return [(ours[number][1], theirs[at][1]) for _, number, at in costs]


def _misfit(ours: Mapping[int, RangeLine], theirs: Mapping[int, RangeLine]) -> int:
    """The number of ranges that differ. Views of the same ranges differ by their roots."""
    differing = sum(theirs.get(start) != line for start, line in ours.items())
    return differing + sum(start not in ours for start in theirs) or 1


def _drawn(view: FlatView, labels: Labels) -> _Shown:
    root = None if view.root is None else view.root.name
    return root, tuple(model_lines(view, labels))


def _printed(text: FlatText) -> _Shown:
    return text.root, tuple(qemu_lines(text.ranges))
