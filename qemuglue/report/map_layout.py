"""The picture of a view, before anything is drawn: rows, boxes, and what is written in them.

Addresses grow downwards. Every stretch over which the same regions lie is a row; a row's height
grows with the logarithm of its size (``ROW_UNIT`` for every doubling), so that a byte and a
gigabyte can be read on one page. Holes are cut short: their rows are all alike and say how much
they leave out. The axis is monotonic and complete: rows follow each other from 0 to 2^64 - 1.

Boxes stand in layers: the first is what answers, as the view has it; the ones behind it would
answer if it did not, and show themselves to its right, as cards in a stack do. Two things are
left out behind others, because they would be everywhere and tell nothing: what shows the very
same bytes as a card before it, and a root that answers wherever nothing else does.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from qemuglue.memory import AddressSpace, MemoryRegion, MemoryRegionSection
from qemuglue.mirror import type_of
from qemuglue.mirror.shadow import Claim, Stretch, claims, stretches
from qemuglue.mirror.views import owner_of

#: Units are CSS pixels. The picture is as wide as half a screen and the narrowest window.
WIDTH = 760
#: Of a character of the fonts named in the style sheet, as a part of their size; no common
#: monospaced font has wider ones.
ADVANCE = 0.61
FONT = 12
#: Left edge of the boxes: right of an address of 18 characters.
LEFT = 142
RIGHT = WIDTH - 4
ROW_MIN = 21.0
ROW_UNIT = 0.6
HOLE = 19.0
#: Width of the part of a card that sticks out behind the one before it, by the number of them.
_STICKS_OUT = (0, 190, 140, 105, 84)
#: Layers drawn behind the first; what lies deeper is only told.
MAX_BEHIND = len(_STICKS_OUT) - 1

#: Boxes of one region that are looked at for bytes in common.
MAX_TWINS = 64
#: Ends of owners' paths that tell nothing.
_NO_OWNERS = ("unattached", "machine")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True, slots=True)
class Row:
    """Addresses ``start`` to ``last`` (inclusive) at ``y`` to ``y + height``. ``stack`` are the
    numbers of the claims there, topmost first; none in a hole."""

    start: int
    last: int
    y: float
    height: float
    stack: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A region over consecutive rows in layer ``layer`` (0 answers). ``offset`` is where in the
    region ``start`` leads; ``via`` are the names of the aliases it is seen through. ``left`` and
    ``right`` are its edges, ``free`` is where it is not covered. ``backdrop``: it is what the
    view's root answers wherever nothing else does."""

    layer: int
    start: int
    last: int
    region: MemoryRegion
    type: str
    offset: int
    via: tuple[str, ...]
    y: float
    height: float
    left: float
    right: float
    free: float
    backdrop: bool

    @property
    def size(self) -> int:
        return self.last - self.start + 1


@dataclass(frozen=True, slots=True)
class Picture:
    """One view. ``names`` are the spaces that show it; ``claims`` is every region in it, in the
    order of resolution; ``boxes`` come deepest first, so that they can be drawn in this order.
    ``deeper`` are rows that have more layers than are drawn, with the number that is left out."""

    names: tuple[str, ...]
    root: str
    claims: tuple[Claim, ...]
    rows: tuple[Row, ...]
    boxes: tuple[Box, ...]
    layers: int
    height: float
    deeper: tuple[tuple[Row, int], ...]
    _starts: tuple[int, ...]
    _shown: dict[MemoryRegion, list[Box]]

    def rows_of(self, box: Box) -> tuple[Row, ...]:
        """The rows a box stands in."""
        first = bisect_left(self._starts, box.start)
        return self.rows[first : bisect_right(self._starts, box.last)]

    def twins(self, box: Box) -> list[Box]:
        """The other boxes of layer 0 that show bytes of the region which ``box`` shows too, in
        order of their offsets."""
        boxes = self._shown.get(box.region, [])
        last = box.offset + box.size - 1
        at = bisect_right(boxes, last, key=_offset)
        found: list[Box] = []
        # Ranges of one region overlap rarely: whoever reaches so far stands near.
        for other in reversed(boxes[max(at - MAX_TWINS, 0) : at]):
            if other.offset + other.size > box.offset and other.start != box.start:
                found.append(other)
        return found[::-1]


def _offset(box: Box) -> int:
    return box.offset


def lay_out(names: Sequence[str], space: AddressSpace) -> Picture:
    """The picture of the view of ``space``, which all of ``names`` show. Raises ModelError
    where there is absurdly much in it."""
    root = space.view.root
    found = claims(root)
    rows: list[Row] = []
    y = 0.0
    for stretch in _merged(stretches(found), found, root):
        height = row_height(stretch, found, root)
        rows.append(Row(stretch.start, stretch.last, y, height, stretch.stack))
        y += height
    behind = min(max((len(row.stack) for row in rows), default=1) - 1, MAX_BEHIND)
    behind = max(behind, 0)
    boxes = [
        box
        for layer in range(behind, 0, -1)
        for box in _behind(rows, found, layer, behind, root)
    ] + _answering(rows, found, space.view.sections, behind, root)
    deeper = tuple((row, len(row.stack) - 1 - MAX_BEHIND) for row in rows
                   if len(row.stack) - 1 > MAX_BEHIND)
    shown: dict[MemoryRegion, list[Box]] = {}
    for box in sorted((box for box in boxes if not box.layer), key=_offset):
        shown.setdefault(box.region, []).append(box)
    return Picture(tuple(names), space.root.name, tuple(found), tuple(rows), tuple(boxes),
                   behind, y, deeper, tuple(row.start for row in rows), shown)


def _merged(
    cut: Sequence[Stretch], found: Sequence[Claim], root: MemoryRegion | None
) -> list[Stretch]:
    """Stretches with what is worth drawing; neighbours that go on with the same bytes of the
    same regions are one (a PAM segment ends, and the next one shows the same)."""
    merged: list[Stretch] = []
    before: list[tuple[object, ...]] | None = None
    for stretch in cut:
        stack: list[int] = []
        shows: list[tuple[object, ...]] = []
        for number in stretch.stack:
            claim = found[number]
            bytes_of = (claim.region, claim.offset - claim.start)
            if stack and (claim.region is root or bytes_of in [each[:2] for each in shows]):
                continue
            stack.append(number)
            shows.append((*bytes_of, claim.readonly, claim.nonvolatile))
        if shows == before and not any(found[n].region.unmergeable for n in stack):
            merged[-1] = Stretch(merged[-1].start, stretch.last, merged[-1].stack)
        else:
            merged.append(Stretch(stretch.start, stretch.last, tuple(stack)))
        before = shows
    return merged


def row_height(stretch: Stretch, found: Sequence[Claim], root: MemoryRegion | None) -> float:
    """Of a hole, or of what the root itself answers, ``HOLE``; else by the size."""
    if not stretch.stack or (found[stretch.stack[0]].region is root and len(found) > 1):
        return HOLE
    return ROW_MIN + ROW_UNIT * math.log2(stretch.last - stretch.start + 1)


def _edge(layer: int, behind: int) -> float:
    """The right edge of a layer's boxes."""
    return RIGHT - _STICKS_OUT[behind] * (behind - layer)


def _box(
    layer: int, behind: int, rows: Sequence[Row], claim: Claim, kind: str, offset: int,
    root: MemoryRegion | None,
) -> Box:
    right = _edge(layer, behind)
    return Box(
        layer, rows[0].start, rows[-1].last, claim.region, kind, offset,
        tuple(region.name for region in claim.aliases), rows[0].y,
        rows[-1].y + rows[-1].height - rows[0].y,
        LEFT + 5 * layer, right, LEFT if not layer else _edge(layer - 1, behind),
        claim.region is root,
    )


def _answering(
    rows: Sequence[Row], found: Sequence[Claim], sections: Sequence[MemoryRegionSection],
    behind: int, root: MemoryRegion | None,
) -> list[Box]:
    """A box for every range of the view. Its edges are edges of rows, because whatever ends a
    range is a region that begins or ends."""
    boxes: list[Box] = []
    at = 0
    for section in sections:
        while rows[at].start < section.start:
            at += 1
        first = at
        while at + 1 < len(rows) and rows[at].last < section.last:
            at += 1
        assert rows[first].start == section.start and rows[at].last == section.last, (
            f"{section.region.name!r} at {section.start:#x} begins or ends inside a row")
        claim = found[rows[first].stack[0]]
        kind = "rom" if section.readonly else type_of(section.region)
        boxes.append(_box(0, behind, rows[first : at + 1], claim, kind, section.offset, root))
    return boxes


def _behind(
    rows: Sequence[Row], found: Sequence[Claim], layer: int, behind: int,
    root: MemoryRegion | None,
) -> list[Box]:
    """A box for every run of rows whose layer is the same region."""
    boxes: list[Box] = []
    run: list[Row] = []

    def end() -> None:
        if run:
            claim = found[run[0].stack[layer]]
            kind = "rom" if claim.readonly else type_of(claim.region)
            offset = claim.offset + run[0].start - claim.start
            boxes.append(_box(layer, behind, run, claim, kind, offset, root))

    for row in rows:
        here = row.stack[layer] if len(row.stack) > layer else None
        if run and (here is None or not _goes_on(found, run[-1], here, layer)):
            end()
            run = []
        if here is not None:
            run.append(row)
    end()
    return boxes


def _goes_on(found: Sequence[Claim], row: Row, number: int, layer: int) -> bool:
    """Whether a claim shows the next bytes of what ``row`` shows in that layer."""
    one, other = found[row.stack[layer]], found[number]
    return (
        one.region is other.region and one.offset - one.start == other.offset - other.start
        and one.readonly == other.readonly
    )


# Section: what is written


def size_text(size: int) -> str:
    """In the largest unit that divides it, ``4 KiB``; with more than four digits left rounded,
    ``~41.8 KiB``."""
    unit = 0
    whole = size
    while whole % 1024 == 0 and whole and unit < len(_UNITS) - 1:
        whole //= 1024
        unit += 1
    return f"{whole} {_UNITS[unit]}" if whole < 10_000 else f"~{rounded(size)}"


def rounded(size: int) -> str:
    """Rounded to three digits or less: ``3.9 GiB``."""
    unit = 0
    value = float(size)
    while value >= 1023.5 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.1f}".removesuffix(".0").rstrip() + f" {_UNITS[unit]}"


def fits(width: float, font: float = FONT) -> int:
    """How many characters ``width`` has room for."""
    return max(int(width / (font * ADVANCE)), 0)


def shortened(text: str, room: int) -> str:
    """``text`` in at most ``room`` characters: an ellipsis stands for its middle, since names
    of devices differ at both ends. Nothing at all where not even two letters would stay."""
    if len(text) <= room:
        return text
    if room < 4:
        return ""
    tail = (room - 1) // 2
    return f"{text[:room - 1 - tail]}…{text[len(text) - tail:]}"


@dataclass(frozen=True, slots=True)
class Label:
    """What is written in a box: ``name`` (with its offset and alias), ``owner`` fainter behind
    it, ``beside`` at the right edge. Any may be empty."""

    name: str
    owner: str
    beside: str

    @property
    def length(self) -> int:
        """Characters, with the spaces between the parts."""
        return sum(len(part) + 2 for part in (self.name, self.owner, self.beside) if part) - 2


def _owner(region: MemoryRegion) -> str:
    """The last part of its owner's path that tells something."""
    parts = owner_of(region).split("/")
    while parts and parts[-1].startswith("<"):  # a list of ports, say: not a device
        parts.pop()
    return parts[-1] if parts and parts[-1] not in _NO_OWNERS else ""


def label(box: Box, font: float = FONT) -> Label:
    """The text of a box, never wider than what of it is free. What there is no room for goes in
    this order: the owner, the alias, the size, the offset, the middle of the name."""
    room = fits(box.right - max(box.left, box.free) - 16, font)
    name = box.region.name or "(unnamed)"
    offset = f" +{box.offset:#x}" if box.offset else ""
    via = f" ← {box.via[-1]}" if box.via else ""
    owner = _owner(box.region)
    if owner == name:
        owner = ""
    beside = f"{box.type} · {size_text(box.size)}" if not box.layer else "hidden"
    for found in (
        Label(name + offset + via, "" if box.layer else owner, beside),
        Label(name + offset + via, "", beside), Label(name + offset, "", beside),
        Label(name, "", beside), Label(name + offset, "", ""), Label(name, "", ""),
    ):
        if found.length <= room:
            return found
    if not box.layer and room - len(beside) - 2 >= 12:
        return Label(shortened(name, room - len(beside) - 2), "", beside)
    return Label(shortened(name, room), "", "")
