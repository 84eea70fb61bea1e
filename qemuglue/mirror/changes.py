"""What changed between two maps of one machine: who answers where now, and who did before.

Region objects live on through a refresh, so that a region that moved is told from one that went
and another that came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from qemuglue.memory import FlatView, MemoryRegion, MemoryRegionSection
from qemuglue.mirror.mirror import Mirror, MirroredSpace

#: The space's view as it was, by space.
Views = dict[MirroredSpace, FlatView]

_FIRST = ("memory", "I/O")


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answers a stretch of addresses: ``name`` "" for nobody, ``offset`` in the region at
    the stretch's start."""

    name: str = ""
    offset: int = 0
    readonly: bool = False
    region: MemoryRegion | None = field(default=None, repr=False)

    def __str__(self) -> str:
        offset = f"+{self.offset:#x}" if self.offset else ""
        return f"{self.name}{offset}{' (read-only)' * self.readonly}" if self.region else "nothing"


@dataclass(frozen=True, slots=True)
class Change:
    """Another answer from ``start`` to ``last`` (inclusive). ``moved_to`` is where the same part
    of the same region shows instead, as it went from where it was; -1 for no such thing."""

    start: int
    last: int
    before: Answer
    after: Answer
    moved_to: int = -1

    def __str__(self) -> str:
        size = self.last - self.start
        if self.moved_to >= 0:
            return (f"{self.before} moved {self.start:#x}-{self.last:#x} -> "
                    f"{self.moved_to:#x}-{self.moved_to + size:#x}")
        return f"{self.start:#x}-{self.last:#x} {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class SpaceChange:
    """``changes`` of all the ``spaces`` (names) that share them; none for spaces that came or
    went whole (``what``)."""

    spaces: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    what: str = ""


def views_of(mirror: Mirror) -> Views:
    """The views as they are, to be given to :func:`changes` later."""
    return {space: space.view for space in mirror.spaces}


def changes(before: Views, mirror: Mirror) -> list[SpaceChange]:
    """What is different from ``before``; the machine's own memory first, then ports."""
    told: dict[tuple[FlatView, FlatView], list[str]] = {}
    for space in mirror.spaces:
        old = before.get(space)
        if old is not None and old is not space.view:
            told.setdefault((old, space.view), []).append(space.name)
    by_change: dict[tuple[Change, ...], list[str]] = {}
    for (old, new), names in told.items():
        found = tuple(_moves(_differences(old, new)))
        if found:
            by_change.setdefault(found, []).extend(names)
    result = [SpaceChange(tuple(_sorted(names)), found) for found, names in by_change.items()]
    result.sort(key=lambda each: (_rank(each.spaces[0]), each.spaces))
    here = set(mirror.spaces)
    came = _sorted(space.name for space in here if space not in before)
    went = _sorted(space.name for space in before if space not in here)
    result += [SpaceChange(tuple(names), what=what)
               for names, what in ((came, "new"), (went, "gone")) if names]
    return result


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (_rank(name), name))


def _rank(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _differences(old: FlatView, new: FlatView) -> Iterator[Change]:
    """Stretches that are answered otherwise, in address order; neighbours with one story are
    one."""
    ours, theirs = iter(old.cover), iter(new.cover)
    one, other = next(ours, None), next(theirs, None)
    last: Change | None = None
    while one is not None and other is not None:
        start, stop = max(one.start, other.start), min(one.last, other.last)
        before, after = _answer(one, start), _answer(other, start)
        if before != after:
            if last is not None and _goes_on(last, start, before, after):
                last = Change(last.start, stop, last.before, last.after)
            else:
                if last is not None:
                    yield last
                last = Change(start, stop, before, after)
        if one.last == stop:
            one = next(ours, None)
        if other.last == stop:
            other = next(theirs, None)
    if last is not None:
        yield last


def _answer(section: MemoryRegionSection, start: int) -> Answer:
    if not section.assigned:
        return Answer()
    return Answer(section.region.name, section.offset + start - section.start,
                  section.readonly, section.region)


def _goes_on(last: Change, start: int, before: Answer, after: Answer) -> bool:
    size = start - last.start
    return last.last + 1 == start and all(
        first.region is then.region and first.readonly == then.readonly
        and (first.region is None or then.offset - first.offset == size)
        for first, then in ((last.before, before), (last.after, after))
    )


_K = TypeVar("_K")


def _moves(found: Iterable[Change]) -> Iterator[Change]:
    """The same, what only went from one place to another told once."""
    every = list(found)
    came = _once((_what(each.after, each), each) for each in every if each.after.region)
    went = _once((_what(each.before, each), each) for each in every if each.before.region)
    moved = {key: each for key, each in came.items() if key in went}
    targets = {each.start for each in moved.values() if not _told(each.before)}
    for each in every:
        to = moved.get(_what(each.before, each)) if each.before.region else None
        if to is not None and went.get(_what(each.before, each)) is each and not _told(each.after):
            yield Change(each.start, each.last, each.before, each.after, to.start)
        elif each.start in targets and _source(each, went):
            continue
        else:
            yield each


def _source(each: Change, went: Mapping[object, Change]) -> bool:
    """Whether the move to here is told where it came from."""
    origin = went.get(_what(each.after, each))
    return origin is not None and not _told(origin.after)


def _told(answer: Answer) -> bool:
    """Whether there is somebody to tell of: not nobody, and not the root behind everything."""
    return answer.region is not None and answer.region.container is not None


def _what(answer: Answer, change: Change) -> object:
    return answer.region, answer.offset, answer.readonly, change.last - change.start


def _once(pairs: Iterable[tuple[_K, Change]]) -> dict[_K, Change]:
    """What occurs once only."""
    found: dict[_K, Change] = {}
    twice: set[_K] = set()
    for key, each in pairs:
        if key in found:
            twice.add(key)
        found[key] = each
    return {key: each for key, each in found.items() if key not in twice}
