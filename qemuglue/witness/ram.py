"""Guest RAM as a witness: what the model says is in it, compared with what is in it.

Each RAM-like region of the memory space has a coverage: ``shared`` (our own file is its
memory), ``procmem`` (its host address, read through /proc), or ``none``. Contents are taken
over once when QEMU starts; from then on the model changes them only by its own rules.
"""

from __future__ import annotations

import enum
import mmap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from qemuglue.memory.backing import ViewBacking
from qemuglue.memory.flatview import FlatView
from qemuglue.memory.region import MemoryRegion, RegionKind

PAGE_BITS = 12
PAGE = 1 << PAGE_BITS

#: Bytes taken over at a time.
STEP = 1 << 20

#: A RAM region beyond this is not looked at: to find what is in it takes too long.
MAX_COVERED = 16 << 30

#: Differing ranges listed for one region; more of them say nothing new.
MAX_DIFFERENCES = 64


class Coverage(enum.Enum):
    SHARED = "shared"
    PROCMEM = "procmem"
    NONE = "none"


#: An anonymous mapping that costs memory only where it was written, however large it is
#: (MAP_NORESERVE, which Python's module has not always had).
_SPARSE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000


class TrackedBacking(ViewBacking):
    """A backing that remembers which 4 KiB pages were written; a page that nobody wrote costs
    nothing, so a region may be larger than this host's memory."""

    __slots__ = ("_map", "cleaned", "dirty", "filled", "noted", "told")

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=_SPARSE)
        super().__init__(memoryview(self._map))
        self.dirty: set[int] = set()
        #: Where the pages of writes are noted as well, while somebody wants to know.
        self.noted: set[int] | None = None
        #: Who is told of (offset, size) then.
        self.told: Callable[[int, int], None] | None = None
        #: Pages that were dirty once.
        self.cleaned: set[int] = set()
        #: (offset, size) of what was taken over from QEMU.
        self.filled: list[tuple[int, int]] = []

    def write(self, offset: int, data: bytes) -> None:
        super().write(offset, data)
        pages = range(offset >> PAGE_BITS, ((offset + len(data) - 1) >> PAGE_BITS) + 1)
        self.dirty.update(pages)
        if self.noted is not None:
            self.noted.update(pages)
            if self.told is not None:
                self.told(offset, len(data))

    def fill(self, offset: int, data: bytes) -> None:
        """Take bytes over as they are: they are not dirty, and zeros cost nothing."""
        for at in range(0, len(data), PAGE):
            page = data[at : at + PAGE]
            if page.count(0) != len(page):
                self.data[offset + at : offset + at + len(page)] = page
        self.filled.append((offset, len(data)))

    def clean(self) -> None:
        """No page counts as dirty any more."""
        self.cleaned |= self.dirty
        self.dirty.clear()

    def used(self) -> list[tuple[int, int]]:
        """(offset, size) of what may be other than zero although no page of it is dirty."""
        self.filled = joined(self.filled)
        pages = ((first << PAGE_BITS, count << PAGE_BITS) for first, count in _runs(self.cleaned))
        return joined([*self.filled, *((at, min(n, len(self) - at)) for at, n in pages)])

    def forget(self) -> None:
        """Give the memory back at once; every byte is zero then."""
        self._map.madvise(mmap.MADV_DONTNEED)


class RamSource(Protocol):
    """QEMU's bytes of one region, by offset in it."""

    coverage: Coverage

    def read(self, offset: int, size: int) -> bytes: ...

    def differing(self, offset: int, expected: memoryview) -> Iterator[tuple[int, int]]:
        """(start from ``offset``, size) of each maximal run of bytes that differ, in order."""

    def differing_parts(
        self, expected: memoryview, parts: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Those of ``parts``, (offset, size), where the source is not as ``expected``, which
        is all of it."""

    def extents(self) -> Iterable[tuple[int, int]]:
        """(offset, size) of what may be non-zero."""


@dataclass(frozen=True, slots=True)
class RamDifference:
    """``model`` and ``qemu`` are the bytes at ``offset`` of ``region``, of equal length."""

    region: MemoryRegion
    offset: int
    model: bytes
    qemu: bytes

    @property
    def last(self) -> int:
        return self.offset + len(self.qemu) - 1

    def describe(self) -> str:
        model, qemu = self.model[:16].hex(), self.qemu[:16].hex()
        more = " …" if len(self.qemu) > 16 else ""
        return (
            f"{self.region.name}+{self.offset:#x} ({len(self.qemu)} bytes): "
            f"model {model}{more}, QEMU {qemu}{more}"
        )


class RamWitness:
    """The RAM of one running QEMU. Regions are added as they come into view."""

    def __init__(self) -> None:
        self.sources: dict[MemoryRegion, RamSource] = {}
        self.uncovered: set[MemoryRegion] = set()

    def add(self, region: MemoryRegion, source: RamSource | None) -> None:
        """Take over the region's present contents."""
        if source is None:
            self.uncovered.add(region)
            return
        try:
            backing = TrackedBacking(region.size)
        except OSError:  # this host does not give so many addresses
            self.uncovered.add(region)
            return
        region.backing = backing
        self.sources[region] = source
        for first, size in source.extents():
            for offset in range(first, min(first + size, region.size), STEP):
                backing.fill(offset, source.read(
                    offset, min(STEP, first + size - offset, region.size - offset)))

    def release(self) -> None:
        """Forget all contents; the regions keep no backing."""
        for region in self.sources:
            if isinstance(region.backing, TrackedBacking):
                region.backing.forget()
            region.backing = None
        self.sources.clear()

    def coverage(self) -> list[tuple[str, str, int]]:
        """(region name, coverage, bytes) of each region, in order of name; namesakes are told
        apart as in a program (``sram``, ``sram#1``)."""
        table = [(region, source.coverage) for region, source in self.sources.items()]
        table += [(region, Coverage.NONE) for region in self.uncovered]
        seen: Counter[str] = Counter()
        rows: list[tuple[str, str, int]] = []
        for region, coverage in table:
            nth = seen[region.name]
            seen[region.name] += 1
            name = f"{region.name}#{nth}" if nth else region.name
            rows.append((name, coverage.value, region.size))
        return sorted(rows)

    def check_dirty(self) -> list[RamDifference]:
        """Compare the pages the model wrote since the last check; they count as clean then."""
        found: list[RamDifference] = []
        for region, source in self.sources.items():
            backing = region.backing
            assert isinstance(backing, TrackedBacking)
            if not backing.dirty:
                continue
            with memoryview(backing.data) as data:
                parts = [
                    (first << PAGE_BITS, min(count << PAGE_BITS, len(data) - (first << PAGE_BITS)))
                    for first, count in _runs(backing.dirty)
                ]
                for offset, size in source.differing_parts(data, parts):
                    part = data[offset : offset + size]
                    found.extend(_differences(region, source, offset, part))
            backing.clean()
        return found

    def check_pages(self, touched: Mapping[MemoryRegion, Iterable[int]]) -> list[RamDifference]:
        """Compare just these pages; those that are dirty stay so."""
        found: list[RamDifference] = []
        for region, pages in touched.items():
            source, backing = self.sources.get(region), region.backing
            if source is None or not isinstance(backing, TrackedBacking):
                continue
            with memoryview(backing.data) as data:
                for first, count in _runs(pages):
                    offset = first << PAGE_BITS
                    part = data[offset : offset + (count << PAGE_BITS)]
                    found.extend(_differences(region, source, offset, part))
        return found

    def check_all(self) -> list[RamDifference]:
        """Compare every byte of every covered region.

        Where QEMU's memory has a hole it is zeros, and so is the model's unless something was
        written there; only that is looked at (a look at a whole hole would fill it).
        """
        found: list[RamDifference] = []
        for region, source in self.sources.items():
            backing = region.backing
            assert isinstance(backing, TrackedBacking)
            backing.clean()
            theirs = joined(source.extents())
            with memoryview(backing.data) as data:
                for offset, size in sorted([*theirs, *outside(backing.used(), theirs)]):
                    part = data[offset : offset + size]
                    found.extend(_differences(region, source, offset, part))
        return found

    def adopt(self, difference: RamDifference) -> None:
        """Take QEMU's bytes over into the model."""
        backing = difference.region.backing
        assert isinstance(backing, TrackedBacking)
        stop = difference.offset + len(difference.qemu)
        backing.data[difference.offset : stop] = difference.qemu
        backing.filled.append((difference.offset, len(difference.qemu)))

    def adopt_range(self, region: MemoryRegion, offset: int, size: int) -> bool:
        """Take QEMU's bytes of one range over; whether they differed. They are not dirty."""
        source = self.sources.get(region)
        backing = region.backing
        if source is None or not isinstance(backing, TrackedBacking):
            return False
        theirs = source.read(offset, min(size, region.size - offset))
        if bytes(backing.data[offset : offset + len(theirs)]) == theirs:  # a view compares slowly
            return False
        backing.data[offset : offset + len(theirs)] = theirs
        backing.filled.append((offset, len(theirs)))
        return True

    def adopt_all(self) -> int:
        """Take everything over; the number of pages that differed. No page is dirty then."""
        count = 0
        for region, source in self.sources.items():
            backing = region.backing
            assert isinstance(backing, TrackedBacking)
            backing.clean()
            theirs = joined(source.extents())
            for first, length in sorted([*theirs, *outside(backing.used(), theirs)]):
                for offset in range(first, first + length, STEP):
                    size = min(STEP, first + length - offset)
                    count += _adopt_pages(backing, offset, source.read(offset, size))
        return count


def _adopt_pages(backing: TrackedBacking, offset: int, theirs: bytes) -> int:
    """Take over the pages that differ; how many they are."""
    data = backing.data
    if bytes(data[offset : offset + len(theirs)]) == theirs:  # a view compares slowly
        return 0
    count = 0
    for at in range(0, len(theirs), PAGE):
        page = theirs[at : at + PAGE]
        here = slice(offset + at, offset + at + len(page))
        if bytes(data[here]) != page:
            data[here] = page
            backing.filled.append((offset + at, len(page)))
            count += 1
    return count


def ram_regions(view: FlatView) -> Iterator[MemoryRegion]:
    """Regions of ``view`` whose bytes are memory, each once."""
    seen: set[MemoryRegion] = set()
    for section in view.sections:
        region = section.region
        memory = region.is_ram or region.kind is RegionKind.ROM_DEVICE
        if memory and region.kind is not RegionKind.RAM_DEVICE and region not in seen:
            seen.add(region)
            yield region


def joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset, size) in order, those that touch or overlap joined."""
    found: list[tuple[int, int]] = []
    for start, size in sorted(ranges):
        if found and start <= sum(found[-1]):
            first, length = found[-1]
            found[-1] = first, max(length, start + size - first)
        else:
            found.append((start, size))
    return found


def outside(
    ranges: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """The parts of ``ranges`` that lie in none of ``other``; both as ``joined`` gives them."""
    holes = iter(other)
    hole = next(holes, None)
    for start, size in ranges:
        at, stop = start, start + size
        while hole is not None and hole[0] < stop:
            if hole[0] > at:
                yield at, hole[0] - at
            at = max(at, sum(hole))
            if sum(hole) > stop:
                break
            hole = next(holes, None)
        if at < stop:
            yield at, stop - at


def _runs(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring pages joined: (first, count)."""
    first = count = -1
    for page in sorted(pages):
        if page == first + count:
            count += 1
            continue
        if count > 0:
            yield first, count
        first, count = page, 1
    if count > 0:
        yield first, count


def _differences(
    region: MemoryRegion, source: RamSource, offset: int, model: memoryview
) -> Iterator[RamDifference]:
    """The differing byte ranges from ``offset`` on, at most MAX_DIFFERENCES of them."""
    for start, size in islice(source.differing(offset, model), MAX_DIFFERENCES):
        yield RamDifference(
            region, offset + start, bytes(model[start : start + size]),
            source.read(offset + start, size),
        )
