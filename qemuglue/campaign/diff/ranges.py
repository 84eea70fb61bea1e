"""What changed between two flat views: each change once, by kind.

The order of the questions is in :mod:`qemuglue.campaign.diff.maps`. Pure: two lists of ranges in,
changes out, in address order.
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from qemuglue.mirror.snapshot import MapRange


class Kind(enum.Enum):
    """What became of it; the values are the words of reports."""

    ADDED = "added"
    REMOVED = "removed"
    MOVED = "moved"
    RESIZED = "resized"
    RENAMED = "renamed"
    OWNER = "owner"
    RETYPED = "retyped"
    READ_ONLY = "read-only"
    OFFSET = "offset"
    NONVOLATILE = "nonvolatile"
    REPLACED = "replaced"


@dataclass(frozen=True, slots=True)
class RangeChange:
    """``before`` and ``after`` are whole ranges of the two views (None: nothing was or is
    there), ``start`` and ``last`` (inclusive) the bytes that changed."""

    kind: Kind
    before: MapRange | None
    after: MapRange | None
    start: int
    last: int


def compare_ranges(before: Sequence[MapRange], after: Sequence[MapRange]) -> list[RangeChange]:
    """The changes from one view to the other; both in address order and without overlaps."""
    comparison = _Comparison(joined(before), joined(after))
    comparison.find_moved()
    comparison.find_resized()
    comparison.compare_bytes()
    return sorted(comparison.changes, key=lambda change: (change.start, change.kind.value))


def joined(ranges: Sequence[MapRange]) -> list[MapRange]:
    """Neighbours that show one region without a seam are one range: where a view is cut inside
    a region (two aliases side by side, say) nothing can be seen of it."""
    out: list[MapRange] = []
    for each in ranges:
        if out:
            last = out[-1]
            if last.start + last.size == each.start and replace(
                each, start=last.start, size=last.size, offset=last.offset
            ) == last and last.offset + last.size == each.offset:
                out[-1] = replace(last, size=last.size + each.size)
                continue
        out.append(each)
    return out


@dataclass(slots=True)
class Piece:
    """Bytes for which each side has one answer throughout."""

    start: int
    last: int
    a: MapRange | None
    b: MapRange | None


class _Comparison:
    """One comparison while it is made. ``a`` is before, ``b`` after."""

    def __init__(self, a: list[MapRange], b: list[MapRange]) -> None:
        self.a, self.b = a, b
        self.changes: list[RangeChange] = []
        #: Ranges whose change is told already.
        self.told_a: set[MapRange] = set()
        self.told_b: set[MapRange] = set()
        both = set(a) & set(b)
        self.only_a = [each for each in a if each not in both]
        self.only_b = [each for each in b if each not in both]

    def _tell(
        self, kind: Kind, a: MapRange | None, b: MapRange | None,
        start: int | None = None, last: int | None = None,
    ) -> None:
        whole = b or a
        assert whole is not None
        self.changes.append(RangeChange(
            kind, a, b, whole.start if start is None else start,
            whole.last if last is None else last,
        ))

    # -- whole ranges ------------------------------------------------------------------------

    def find_moved(self) -> None:
        """Twins elsewhere; first with the same owner, then with another. A range in whose place
        the other side has one of the same name has not moved: it changed there."""
        there = {(each.start, each.name) for each in self.only_b}
        here = {(each.start, each.name) for each in self.only_a}
        for owned in (True, False):
            waiting: defaultdict[Hashable, list[MapRange]] = defaultdict(list)
            for a in self.only_a:
                if a not in self.told_a and (a.start, a.name) not in there:
                    waiting[_shape(a, owned)].append(a)
            for b in self.only_b:
                twins = waiting[_shape(b, owned)]
                if b in self.told_b or (b.start, b.name) in here or not twins:
                    continue
                a = twins.pop(0)
                self._tell(Kind.MOVED, a, b)
                if a.owner != b.owner:
                    self._tell(Kind.OWNER, a, b)
                self.told_a.add(a)
                self.told_b.add(b)

    def find_resized(self) -> None:
        """Regions with one range on either side that grew into nothing or shrank to it."""
        single_b = _singles(self.b)
        for key, a in _singles(self.a).items():
            b = single_b.get(key)
            if b is None or a == b or a in self.told_a or b in self.told_b or a.size == b.size:
                continue
            edge = a.start == b.start or a.last == b.last
            if a.offset != b.offset:
                continue
            if edge and _free(self.b, a, b) and _free(self.a, b, a):
                self._tell(Kind.RESIZED, a, b, min(a.start, b.start), max(a.last, b.last))
            elif not edge and (a.last < b.start or b.last < a.start):
                self._tell(Kind.MOVED, a, b)
                self._tell(Kind.RESIZED, a, b)
            else:
                continue
            self.told_a.add(a)
            self.told_b.add(b)

    # -- bytes ---------------------------------------------------------------------------------

    def compare_bytes(self) -> None:
        """Everything that is not told yet."""
        pieces = list(pieces_of(self.a, self.b))
        kept_a = {piece.a for piece in pieces if _kept(piece)}
        kept_b = {piece.b for piece in pieces if _kept(piece)}
        self._find_replaced(pieces, kept_a, kept_b)
        once: set[tuple[Kind, MapRange | None, MapRange | None]] = set()
        for piece in pieces:
            if piece.a == piece.b:
                continue
            for kind, a, b in self._judge(piece, kept_a, kept_b):
                if kind in (Kind.ADDED, Kind.REMOVED):
                    # Told of the whole range, however many others it lies over.
                    mark = (kind, a if kind is Kind.REMOVED else None,
                            b if kind is Kind.ADDED else None)
                    if mark not in once:
                        once.add(mark)
                        whole = b if kind is Kind.ADDED else a
                        assert whole is not None
                        self._tell(kind, a, b, whole.start, whole.last)
                elif kind is Kind.RESIZED:
                    if (kind, a, b) not in once:
                        once.add((kind, a, b))
                        self._tell(kind, a, b, piece.start, piece.last)
                else:
                    self._tell(kind, a, b, piece.start, piece.last)

    def _find_replaced(
        self, pieces: list[Piece], kept_a: set[MapRange | None], kept_b: set[MapRange | None],
    ) -> None:
        """Other ranges, of another extent, that begin where others began."""
        for piece in pieces:
            a, b = piece.a, piece.b
            if (
                a is not None and b is not None and a.start == b.start == piece.start
                and a.size != b.size and a.name != b.name
                and a not in kept_a | self.told_a and b not in kept_b | self.told_b
            ):
                self._tell(Kind.REPLACED, a, b, a.start, max(a.last, b.last))
                self.told_a.add(a)
                self.told_b.add(b)

    def _judge(
        self, piece: Piece, kept_a: set[MapRange | None], kept_b: set[MapRange | None],
    ) -> Iterator[tuple[Kind, MapRange | None, MapRange | None]]:
        a, b = piece.a, piece.b
        if a in self.told_a and b in self.told_b:
            return
        if a in self.told_a:
            if b is not None and b not in kept_b:
                yield Kind.ADDED, None, b
            return
        if b in self.told_b:
            if a is not None and a not in kept_a:
                yield Kind.REMOVED, a, None
            return
        if a is not None and b is not None and a.name == b.name and _kept(piece):
            yield from _attributes(a, b)
        elif b is None or a is None:
            yield from self._one_sided(piece, kept_a, kept_b)
        elif a.name == b.name and a.type == b.type:
            yield Kind.OFFSET, a, b
            if a.owner != b.owner:
                yield Kind.OWNER, a, b
        elif a in kept_a and b in kept_b:
            yield Kind.RESIZED, self._partner(b), b
        elif a in kept_a:
            yield Kind.ADDED, a, b
        elif b in kept_b:
            yield Kind.REMOVED, a, b
        elif (a.start, a.size) != (b.start, b.size):
            yield Kind.REMOVED, a, None
            yield Kind.ADDED, None, b
        elif a.type == b.type and a.offset == b.offset:
            yield Kind.RENAMED, a, b
            if a.owner != b.owner:
                yield Kind.OWNER, a, b
        else:
            yield Kind.REPLACED, a, b

    def _one_sided(
        self, piece: Piece, kept_a: set[MapRange | None], kept_b: set[MapRange | None],
    ) -> Iterator[tuple[Kind, MapRange | None, MapRange | None]]:
        a, b = piece.a, piece.b
        if a is None and b is not None:
            partner = self._partner(b) if b in kept_b else None
            yield (Kind.RESIZED, partner, b) if partner else (Kind.ADDED, None, b)
        elif a is not None:
            left = self._left(a) if a in kept_a else None
            yield (Kind.RESIZED, a, left) if left else (Kind.REMOVED, a, None)

    def _partner(self, b: MapRange) -> MapRange | None:
        """The range before of which ``b`` kept a part."""
        return next((a for a in _over(self.a, b) if _same_place(a, b)), None)

    def _left(self, a: MapRange) -> MapRange | None:
        return next((b for b in _over(self.b, a) if _same_place(a, b)), None)


def _shape(each: MapRange, owned: bool) -> MapRange:
    """The range wherever it lies, and whoever owns it."""
    return replace(each, start=0, owner=each.owner if owned else "")


def _attributes(
    a: MapRange, b: MapRange
) -> Iterator[tuple[Kind, MapRange | None, MapRange | None]]:
    """The same bytes of the same region, in other clothes."""
    if a.type != b.type:
        yield (Kind.READ_ONLY if {a.type, b.type} == {"ram", "rom"} else Kind.RETYPED), a, b
    if a.owner != b.owner:
        yield Kind.OWNER, a, b
    if a.nonvolatile != b.nonvolatile:
        yield Kind.NONVOLATILE, a, b


def _same_place(a: MapRange, b: MapRange) -> bool:
    """Whether both show the region of one name so that common addresses are common bytes."""
    return a.name == b.name and a.start - a.offset == b.start - b.offset


def _kept(piece: Piece) -> bool:
    return piece.a is not None and piece.b is not None and _same_place(piece.a, piece.b)


def _singles(ranges: Sequence[MapRange]) -> dict[Hashable, MapRange]:
    """Regions (name, owner, type) that the view shows in one range only."""
    found: defaultdict[Hashable, list[MapRange]] = defaultdict(list)
    for each in ranges:
        found[each.name, each.owner, each.type, each.nonvolatile].append(each)
    return {key: each[0] for key, each in found.items() if len(each) == 1}


def _free(ranges: Sequence[MapRange], old: MapRange, new: MapRange) -> bool:
    """Whether ``ranges`` have nothing at the bytes of ``old`` that ``new`` does not cover."""
    return all(
        each == new or all(
            max(each.start, start) > min(each.last, last)
            for start, last in _outside(old, new)
        )
        for each in ranges
    )


def _outside(old: MapRange, new: MapRange) -> Iterator[tuple[int, int]]:
    """The bytes of ``old`` outside ``new``."""
    if old.start < new.start:
        yield old.start, min(old.last, new.start - 1)
    if old.last > new.last:
        yield max(old.start, new.last + 1), old.last


def _over(ranges: Sequence[MapRange], place: MapRange) -> list[MapRange]:
    """The ranges that share bytes with ``place``."""
    return [each for each in ranges if each.start <= place.last and place.start <= each.last]


def pieces_of(a: Sequence[MapRange], b: Sequence[MapRange]) -> Iterator[Piece]:
    """Every stretch of bytes between two edges of either side that somebody answers."""
    edges = sorted({edge for each in (*a, *b) for edge in (each.start, each.start + each.size)})
    starts_a, starts_b = [each.start for each in a], [each.start for each in b]
    for start, stop in pairwise(edges):
        here = _at(a, starts_a, start)
        there = _at(b, starts_b, start)
        if here is not None or there is not None:
            yield Piece(start, stop - 1, here, there)


def _at(ranges: Sequence[MapRange], starts: Sequence[int], address: int) -> MapRange | None:
    at = bisect_right(starts, address) - 1
    return ranges[at] if at >= 0 and address <= ranges[at].last else None
