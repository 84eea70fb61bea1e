"""A device's own veto (``MemoryRegionOps.valid.accepts``), as ranges of offsets.

Few devices have one, and those decode register by register: dino of hppa takes some offsets and
refuses their neighbours. So a region in which a refusal of that kind was seen is asked all over:
every naturally aligned access where that is affordable; else windows at its start, its end, the
pages and the powers of two, and between two neighbours that differ a search for the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from qemuglue.memory.contract import Contract
from qemuglue.witness.contract_table import AcceptedRange, Accepts
from qemuglue.witness.probing import Ask, Place, Probe

#: Up to so many bytes in view every access is made: 1.75 accesses a byte, some 50,000 a second.
DENSE_BYTES = 16 << 10
#: In larger regions: so many bytes at its start and its end.
EDGE_BYTES = 1 << 10
#: And so many bytes at pages and at powers of two.
WINDOW_BYTES = 64
#: Pages that get a window; spread evenly where there are more.
PAGES = 256
#: Searches for an edge, at most; each takes as many rounds as the gap has bits.
SEARCHES = 64

#: (size, offset) -> accepted?
Answers = dict[tuple[int, int], bool]
#: Makes accesses; what did not come back is left out.
Asker = Callable[[list[Ask]], Iterable[Probe]]


def learn_veto(
    place: Place, contract: Contract, ask: Asker, *, is_write: bool = False,
) -> Accepts:
    """Ask all over the region. Every question is asked once more at the edges, to see whether
    the answer depends on what the device is doing."""
    spans = list(_spans(place))
    sizes = [size for size in place.verbs if size <= (contract.valid_max or 4)]
    asks = [
        Ask(offset, size, is_write)
        for first, last in spans for size in sizes
        for offset in range(-(-first // size) * size, last + 1, size)
    ]
    known = _answers(ask(asks))
    answered = list(_answered(known, spans, sizes))
    complete = _total(answered) == _total(
        _joined(sorted({(s.offset, s.offset + s.size - 1) for s in place.sections}))
    )
    if not complete:
        _search(known, sizes, ask, is_write)
    ranges = [each for size in sizes for each in _ranges(known, size, complete)]
    again = _answers(ask([
        Ask(offset, size, is_write) for size, offset in sorted(_edges(ranges)) if
        (size, offset) in known
    ]))
    changed = sorted((size, offset) for (size, offset), yes in again.items()
                     if known[size, offset] != yes)
    dynamic = [AcceptedRange(size, offset, offset, size) for size, offset in changed]
    return Accepts(tuple(ranges), complete, tuple(answered), tuple(dynamic))


def _total(spans: Iterable[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in spans)


def _answered(
    known: Answers, spans: Iterable[tuple[int, int]], sizes: list[int]
) -> Iterator[tuple[int, int]]:
    """The spans of offsets at which every aligned access was answered: QEMU may have died of
    some."""
    start: int | None = None
    for first, last in spans:
        for offset in range(first, last + 1):
            if all((size, offset) in known for size in sizes if offset % size == 0):
                start = offset if start is None else start
            elif start is not None:
                yield start, offset - 1
                start = None
        if start is not None:
            yield start, last
            start = None


def _spans(place: Place) -> Iterator[tuple[int, int]]:
    """First and last offsets to ask between, ascending, apart from each other."""
    visible = sorted({(s.offset, s.offset + s.size - 1) for s in place.sections})
    if _total(_joined(visible)) <= DENSE_BYTES:
        yield from _joined(visible)
        return
    wanted: list[tuple[int, int]] = []
    for first, last in visible:
        wanted.append((first, min(first + EDGE_BYTES - 1, last)))
        wanted.append((max(last - EDGE_BYTES + 1, first), last))
        starts = {1 << bit for bit in range(64)}
        pages = (last >> 12) - (first >> 12) + 1
        step = -(-pages // PAGES)
        starts |= {page << 12 for page in range(first >> 12, (last >> 12) + 1, step)}
        wanted += [
            (at, min(at + WINDOW_BYTES - 1, last)) for at in starts if first <= at <= last
        ]
    yield from _joined(sorted(wanted))


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start, stop = spans[0]
    for first, last in spans[1:]:
        if first > stop + 1:
            yield start, stop
            start, stop = first, last
        stop = max(stop, last)
    yield start, stop


def _answers(probes: Iterable[Probe]) -> Answers:
    """What each access that was one dispatch says."""
    found: Answers = {}
    for probe in probes:
        if not probe.seen:
            continue
        first = probe.seen[0]
        if first.reason == "rejected":
            if first.size == probe.size and first.offset == probe.offset:
                found[probe.size, probe.offset] = False
        elif first.reason is not None:
            # The device is asked first: what is refused for its size was accepted by it.
            if first.size == probe.size:
                found[probe.size, probe.offset] = True
        elif all(seen.reason is None for seen in probe.seen):
            found[probe.size, probe.offset] = True
    return found


def _search(known: Answers, sizes: list[int], ask: Asker, is_write: bool) -> None:
    """Find the edge in each gap between two neighbours that differ; all gaps at once, a
    question each and round."""
    gaps: list[tuple[int, int, int]] = []
    for size in sizes:
        offsets = sorted(offset for each, offset in known if each == size)
        gaps += [
            (size, low, high) for low, high in pairwise(offsets)
            if high - low > size and known[size, low] != known[size, high]
        ]
    gaps = gaps[:SEARCHES]
    while gaps:
        middles = [(size, (low + high) // 2 // size * size) for size, low, high in gaps]
        known.update(_answers(ask([Ask(at, size, is_write) for size, at in middles])))
        left = []
        for (size, low, high), (_, middle) in zip(gaps, middles, strict=True):
            yes = known.get((size, middle))
            if yes is None:
                continue
            low, high = (middle, high) if yes == known[size, low] else (low, middle)
            if high - low > size:
                left.append((size, low, high))
        gaps = left


def _ranges(known: Answers, size: int, complete: bool) -> Iterator[AcceptedRange]:
    """The accepted offsets of one size as progressions. Where not all was asked, a gap counts as
    accepted between a run of accepted neighbours and another accepted offset."""
    asked = sorted(offset for each, offset in known if each == size)
    runs: list[list[int]] = []  # [first, last], all of natural step
    for index, offset in enumerate(asked):
        if not known[size, offset]:
            continue
        joined = bool(runs) and index > 0 and runs[-1][1] == asked[index - 1]
        near = joined and offset - asked[index - 1] == size
        wide = joined and not complete and runs[-1][1] > runs[-1][0]
        if near or wide:
            runs[-1][1] = offset
        else:
            runs.append([offset, offset])
    yield from _progressions(runs, size)


def _progressions(runs: list[list[int]], size: int) -> Iterator[AcceptedRange]:
    """Runs as ranges; three and more single accesses at equal distances are one range."""
    at = 0
    while at < len(runs):
        first, last = runs[at]
        at += 1
        if first != last:
            yield AcceptedRange(size, first, last, size)
            continue
        step, stop = 0, at
        while stop < len(runs) and runs[stop][0] == runs[stop][1]:
            distance = runs[stop][0] - runs[stop - 1][1]
            if step not in (0, distance):
                break
            step, stop = distance, stop + 1
        if stop - at >= 2:
            yield AcceptedRange(size, first, runs[stop - 1][0], step)
            at = stop
        else:
            yield AcceptedRange(size, first, first, size)


def _edges(ranges: Iterable[AcceptedRange]) -> set[tuple[int, int]]:
    """The first and last accesses of each range and their neighbours."""
    return {
        (each.size, offset) for each in ranges
        for offset in (each.start - each.size, each.start, each.last, each.last + each.size)
        if offset >= 0
    }
