"""Guest RAM as a witness: what the model says is in it, compared with what is in it.

Each RAM-like region of the memory space has a coverage: ``shared`` (our own file is its
memory), ``procmem`` (its host address, read through /proc), or ``none``. Contents are taken
over once when QEMU starts; from then on the model changes them only by its own rules.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.flatview import FlatView
from qemuglue.memory.region import MemoryRegion, RegionKind

PAGE_BITS = 12
PAGE = 1 << PAGE_BITS

#: A RAM region beyond this is not copied through /proc (a model of it would cost as much).
MAX_PROCMEM = 256 << 20

#: Differing ranges listed for one region; more of them say nothing new.
MAX_DIFFERENCES = 64


class Coverage(enum.Enum):
    SHARED = "shared"
    PROCMEM = "procmem"
    NONE = "none"


class TrackedBacking(ByteBacking):
    """A backing that remembers which 4 KiB pages were written."""

    __slots__ = ("dirty",)

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.dirty: set[int] = set()

    def write(self, offset: int, data: bytes) -> None:
        super().write(offset, data)
        self.dirty.update(
            range(offset >> PAGE_BITS, ((offset + len(data) - 1) >> PAGE_BITS) + 1)
        )


class RamSource(Protocol):
    """QEMU's bytes of one region, by offset in it."""

    coverage: Coverage

    def read(self, offset: int, size: int) -> bytes: ...

    def differing(self, offset: int, expected: memoryview) -> Iterator[tuple[int, int]]:
        """(start from ``offset``, size) of each maximal run of bytes that differ, in order."""

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
        backing = TrackedBacking(region.size)
        region.backing = backing
        self.sources[region] = source
        for offset, size in source.extents():
            data = source.read(offset, min(size, region.size - offset))
            backing.data[offset : offset + len(data)] = data

    def release(self) -> None:
        """Forget all contents; the regions keep no backing."""
        for region in self.sources:
            region.backing = None
        self.sources.clear()

    def coverage(self) -> dict[str, str]:
        """Region name to coverage, for reports."""
        table = {region.name: source.coverage.value for region, source in self.sources.items()}
        table.update({region.name: Coverage.NONE.value for region in self.uncovered})
        return table

    def check_dirty(self) -> list[RamDifference]:
        """Compare the pages the model wrote since the last check; they count as clean then."""
        found: list[RamDifference] = []
        for region, source in self.sources.items():
            backing = region.backing
            assert isinstance(backing, TrackedBacking)
            if not backing.dirty:
                continue
            with memoryview(backing.data) as data:
                for first, count in _runs(backing.dirty):
                    offset = first << PAGE_BITS
                    part = data[offset : offset + (count << PAGE_BITS)]
                    found.extend(_differences(region, source, offset, part))
            backing.dirty.clear()
        return found

    def check_all(self) -> list[RamDifference]:
        """Compare every byte of every covered region.

        A hole of QEMU's file is zeros nobody has touched; where the model wrote, the pages
        are dirty, so holes need no look (and a look would fill them).
        """
        found = self.check_dirty()
        for region, source in self.sources.items():
            backing = region.backing
            assert isinstance(backing, TrackedBacking)
            with memoryview(backing.data) as data:
                for offset, size in source.extents():
                    part = data[offset : offset + size]
                    found.extend(_differences(region, source, offset, part))
        return found

    def adopt(self, difference: RamDifference) -> None:
        """Take QEMU's bytes over into the model."""
        backing = difference.region.backing
        assert isinstance(backing, TrackedBacking)
        stop = difference.offset + len(difference.qemu)
        backing.data[difference.offset : stop] = difference.qemu

    def adopt_range(self, region: MemoryRegion, offset: int, size: int) -> bool:
        """Take QEMU's bytes of one range over; whether they differed."""
        source = self.sources.get(region)
        backing = region.backing
        if source is None or not isinstance(backing, TrackedBacking):
            return False
        theirs = source.read(offset, min(size, region.size - offset))
        if backing.data[offset : offset + len(theirs)] == theirs:
            return False
        backing.data[offset : offset + len(theirs)] = theirs
        return True

    def adopt_all(self) -> int:
        """Take everything over; the number of bytes that differed."""
        found = self.check_all()
        while found:
            for difference in found:
                self.adopt(difference)
            if len(found) < MAX_DIFFERENCES:
                return sum(len(difference.qemu) for difference in found)
            found = self.check_all()
        return 0


def ram_regions(view: FlatView) -> Iterator[MemoryRegion]:
    """Regions of ``view`` whose bytes are memory, each once."""
    seen: set[MemoryRegion] = set()
    for section in view.sections:
        region = section.region
        memory = region.is_ram or region.kind is RegionKind.ROM_DEVICE
        if memory and region.kind is not RegionKind.RAM_DEVICE and region not in seen:
            seen.add(region)
            yield region


def _runs(pages: set[int]) -> Iterator[tuple[int, int]]:
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
