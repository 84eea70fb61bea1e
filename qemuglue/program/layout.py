"""How a program meets a machine: which region answers at which address.

A :class:`Layout` is a plain snapshot of flat views, filled by the mirror room (this room knows
no QEMU). It turns places into addresses and back, and offers the codec and the generator the
ranges worth aiming at.

What a place means. ``REGION+OFFSET`` is byte OFFSET of the region, region-relative like the
``@OFFSET`` of ``info mtree -f``; ``NAME#k`` is the k-th distinct region of that name in view
order. It resolves to

1. the lowest address at which the view shows that byte of the region;
2. where the view shows the region but not that byte: the address it would have if the region's
   lowest range went on, ``start - range.offset + OFFSET``, modulo the size of the space;
3. where the view does not show the region: nothing (strict: ProgramError; lenient: None).

Sizes of spaces: ``io`` 2**16, every other 2**64.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from qemuglue.errors import ProgramError
from qemuglue.program.operation import Operation, Place
from qemuglue.program.verbs import ADDRESS_MASK, IO, MEMORY, PORT_MAX

UNASSIGNED = "unassigned"

#: How often a range of each kind stands in ``rows``. Views have far more gaps and container
#: pieces than device ranges, and devices are what programs are for.
_COPIES = {"device": 4, "container-io": 1, UNASSIGNED: 1}
_COPIES_OTHER = 2


@dataclass(frozen=True, slots=True)
class Range:
    """One range of a flat view: ``size`` bytes from ``start``, showing a region from ``offset``.

    ``index`` tells same-named regions of one view apart. ``kind`` is ``ram``, ``rom``, ``romd``,
    ``ramd``, ``device``, ``container-io``, ``unassigned`` or another word of the mirror's; an
    unassigned range has ``region`` "".
    """

    start: int
    size: int
    region: str
    index: int
    offset: int
    kind: str
    space: str

    @property
    def last(self) -> int:
        """The last address of the range (inclusive)."""
        return self.start + self.size - 1


class Row(NamedTuple):
    """A range as the codec and the generator use it."""

    start: int
    size: int
    #: None for unassigned ranges: they are addressed absolutely.
    region: str | None
    #: The region's index among its namesakes (a tuple has an ``index`` of its own).
    nth: int
    offset: int
    #: Every byte of the range resolves back to its own address.
    whole: bool
    kind: str


class _Shown:
    """Where one region's bytes are first shown: disjoint offset intervals, painted in order."""

    __slots__ = ("base", "deltas", "lasts", "los")

    def __init__(self, pieces: Sequence[Range]) -> None:
        painted: list[tuple[int, int, int]] = []
        for piece in pieces:  # in address order: the first to paint a byte is the lowest
            low, last = piece.offset, piece.offset + piece.size - 1
            gaps: list[tuple[int, int, int]] = []
            at = bisect_right(painted, (low, ADDRESS_MASK + 1, 0))
            if at and painted[at - 1][1] >= low:
                at -= 1
            while low <= last:
                if at == len(painted) or painted[at][0] > last:
                    gaps.append((low, last, piece.start - piece.offset))
                    break
                if low < painted[at][0]:
                    gaps.append((low, painted[at][0] - 1, piece.start - piece.offset))
                low = painted[at][1] + 1
                at += 1
            for gap in gaps:
                insort(painted, gap)
        self.base = pieces[0].start - pieces[0].offset
        self.los = [low for low, _, _ in painted]
        self.lasts = [last for _, last, _ in painted]
        self.deltas = [delta for _, _, delta in painted]

    def address(self, offset: int) -> int:
        """Not yet reduced to the space; extrapolated where the byte is not shown."""
        if len(self.los) > 1:
            at = bisect_right(self.los, offset) - 1
            if at >= 0 and offset <= self.lasts[at]:
                return self.deltas[at] + offset
        return self.base + offset

    def shows_first(self, piece: Range) -> bool:
        """Whether every byte of ``piece`` is first shown there."""
        delta, last = piece.start - piece.offset, piece.offset + piece.size - 1
        at = bisect_right(self.los, piece.offset) - 1
        low = piece.offset
        while at >= 0 and at < len(self.los) and self.los[at] <= low <= self.lasts[at]:
            if self.deltas[at] != delta:
                return False
            if self.lasts[at] >= last:
                return True
            low, at = self.lasts[at] + 1, at + 1
        return False


class Layout:
    """Flat views of a machine's spaces, by name; ``memory`` and ``io`` are always there.

    The constructor takes each space's ranges in address order. They must be disjoint, non-empty
    and inside the space (ProgramError otherwise); what they leave open is filled with unassigned
    ranges. Immutable afterwards. ``big`` is the target's byte order; ``swapped`` names the
    regions whose devices have the other one, as far as that is known.
    """

    def __init__(
        self, spaces: Mapping[str, Sequence[Range]], *, big: bool = False,
        swapped: frozenset[str] = frozenset(),
    ) -> None:
        self.big = big
        self.swapped = swapped
        names = dict.fromkeys([MEMORY, IO, *spaces])
        self._ranges = {name: _filled(name, spaces.get(name, ())) for name in names}
        self._starts = {name: [each.start for each in ranges]
                        for name, ranges in self._ranges.items()}
        pieces: dict[tuple[str, str, int], list[Range]] = {}
        for name, ranges in self._ranges.items():
            for each in ranges:
                if each.region:
                    pieces.setdefault((name, each.region, each.index), []).append(each)
        self._shown = {key: _Shown(each) for key, each in pieces.items()}
        self._whole = {
            name: [bool(each.region)
                   and self._shown[name, each.region, each.index].shows_first(each)
                   for each in ranges]
            for name, ranges in self._ranges.items()
        }

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of the spaces, ``memory`` and ``io`` first."""
        return tuple(self._ranges)

    def ranges(self, space: str = MEMORY) -> tuple[Range, ...]:
        """The whole view in address order, gaps included; raises ProgramError."""
        try:
            return self._ranges[space]
        except KeyError:
            raise self._no_space(space) from None

    def range_at(self, address: int, space: str = MEMORY) -> Range:
        """The range that holds ``address``; raises ProgramError outside the space."""
        ranges = self.ranges(space)
        if not 0 <= address <= _last_of(space):
            raise ProgramError(f"address {address:#x} is outside {space}; "
                               f"it ends at {_last_of(space):#x}")
        return ranges[bisect_right(self._starts[space], address) - 1]

    def resolve(self, place: Place, space: str = MEMORY, strict: bool = True) -> int | None:
        """The address of ``place``, read in ``place.space`` if it names one, else in ``space``.

        Strict never returns None: it raises ProgramError where the view lacks the region or the
        layout lacks the space.
        """
        if place.region is None:
            return place.offset
        name = place.space or space
        shown = self._shown.get((name, place.region, place.index))
        if shown is not None:
            return shown.address(place.offset) & _last_of(name)
        if not strict:
            return None
        if name not in self._ranges:
            raise self._no_space(name)
        index = f"#{place.index}" if place.index else ""
        raise ProgramError(f"no region {place.region!r}{index} in {name}; list the machine's "
                           "regions with 'qemuglue map', or write @ADDRESS")

    def number(self, region: str, value: int, size: int) -> int:
        """What the target writes to ``size`` bytes of a region so that its device sees
        ``value``."""
        if region not in self.swapped:
            return value
        return int.from_bytes(value.to_bytes(size, "little"), "big")

    def address_of(self, op: Operation, strict: bool = True) -> int | None:
        """The address an operation acts on, in its verb's own space; None for events too."""
        if op.place is None:
            return None
        space = op.info.space
        assert space is not None, f"{op.verb} has a place but no space"
        return self.resolve(op.place, space, strict)

    def place_of(self, address: int, space: str = MEMORY) -> Place:
        """``REGION+OFFSET`` where that resolves back to ``address``, else the absolute address.

        ``resolve(place_of(address, space), space) == address`` for every address.
        """
        ranges = self.ranges(space)
        named = None if space in (MEMORY, IO) else space
        at = bisect_right(self._starts[space], address) - 1
        found = ranges[at]
        if found.region:
            offset = found.offset + address - found.start
            place = Place(found.region, found.index, offset, named)
            if self._whole[space][at] or self.resolve(place, space) == address:
                return place
        return Place(None, 0, address, named)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """``selectable`` of memory, ready for the codec and the generator."""
        return self._rows(MEMORY)

    @cached_property
    def port_rows(self) -> tuple[Row, ...]:
        """``selectable`` of the I/O space, likewise."""
        return self._rows(IO)

    @cached_property
    def pointers(self) -> tuple[tuple[int, int], ...]:
        """Start and size of what a device can be told to use as a buffer: RAM, else anything."""
        ranges = self._ranges[MEMORY]
        ram = tuple((each.start, each.size) for each in ranges if each.kind == "ram")
        return ram or tuple((each.start, each.size) for each in ranges)

    def selectable(self, space: str = MEMORY) -> tuple[Range, ...]:
        """What a record's region selector counts over: ranges in address order, each as often
        as its kind deserves, so that few small devices stand up to many gaps."""
        return tuple(each for each in self.ranges(space)
                     for _ in range(_COPIES.get(each.kind, _COPIES_OTHER)))

    def _rows(self, space: str) -> tuple[Row, ...]:
        rows: list[Row] = []
        for each, whole in zip(self._ranges[space], self._whole[space], strict=True):
            row = Row(each.start, each.size, each.region or None, each.index, each.offset, whole,
                      each.kind)
            rows.extend([row] * _COPIES.get(each.kind, _COPIES_OTHER))
        return tuple(rows)

    def _no_space(self, space: str) -> ProgramError:
        return ProgramError(f"no address space {space!r}; use one of {', '.join(self._ranges)}")


def _last_of(space: str) -> int:
    """The last address of a space, which is also the mask its addresses wrap at."""
    return PORT_MAX if space == IO else ADDRESS_MASK


def _filled(space: str, ranges: Sequence[Range]) -> tuple[Range, ...]:
    """The ranges with every hole between them filled; raises ProgramError if they are no view."""
    whole: list[Range] = []
    at = 0
    for each in ranges:
        if each.size <= 0 or each.start < at or each.last > _last_of(space):
            raise ProgramError(f"{space}: range {each.region!r} {each.start:#x}+{each.size:#x} is "
                               "empty, out of order or out of the space; give a flat view")
        if each.start > at:
            whole.append(Range(at, each.start - at, "", 0, 0, UNASSIGNED, space))
        whole.append(each)
        at = each.start + each.size
    if at <= _last_of(space):
        whole.append(Range(at, _last_of(space) + 1 - at, "", 0, 0, UNASSIGNED, space))
    return tuple(whole)
