"""GuestRegionCollection: a sorted set of regions that do not overlap, and never changes.

::

    ModelError
    └── GuestRegionCollectionError
        ├── NoMemoryRegion        no region at all, or not the one to be removed
        ├── MemoryRegionOverlap   two regions share an address
        └── UnsortedMemoryRegions the regions are not in the order of their addresses
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Self

from qemuglue.errors import ModelError
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_memory.backend import GuestMemoryBackend, R


class GuestRegionCollectionError(ModelError):
    """Root of these errors; never raised itself."""


class NoMemoryRegion(GuestRegionCollectionError):
    """There is no region, or none of that base and size."""

    def __str__(self) -> str:
        return "no memory region found"


class MemoryRegionOverlap(GuestRegionCollectionError):
    """Two of the regions share an address."""

    def __str__(self) -> str:
        return "some of the memory regions intersect with each other"


class UnsortedMemoryRegions(GuestRegionCollectionError):
    """The regions are not sorted by their first address."""

    def __str__(self) -> str:
        return "the memory regions are not sorted by address"


class GuestRegionCollection(GuestMemoryBackend[R]):
    """Regions by address (``src/region.rs``). ``insert_region`` and ``remove_region`` give
    another collection, in which the regions are the same objects; this one stays.

    ``GuestRegionCollection()`` is empty, as is one whose last region was removed; ``from_regions``
    makes no empty one.
    """

    __slots__ = ("_regions", "_starts")

    def __init__(self) -> None:
        self._regions: tuple[R, ...] = ()
        self._starts: tuple[int, ...] = ()

    @classmethod
    def new(cls) -> Self:
        """An empty collection."""
        return cls()

    @classmethod
    def from_regions(cls, regions: Iterable[R]) -> Self:
        """A collection of ``regions``, which must be sorted. Raises NoMemoryRegion,
        UnsortedMemoryRegions (which is looked for first, pair by pair) and
        MemoryRegionOverlap."""
        found = tuple(regions)
        if not found:
            raise NoMemoryRegion
        for before, after in pairwise(found):
            if before.start_addr() > after.start_addr():
                raise UnsortedMemoryRegions
            if before.last_addr() >= after.start_addr():
                raise MemoryRegionOverlap
        return cls._of(found)

    @classmethod
    def from_arc_regions(cls, regions: Iterable[R]) -> Self:
        """``from_regions``: everything is shared in Python."""
        return cls.from_regions(regions)

    def insert_region(self, region: R) -> Self:
        """A collection with ``region`` too. Raises MemoryRegionOverlap."""
        regions = sorted((*self._regions, region), key=lambda each: each.start_addr())
        return self.from_regions(regions)

    def remove_region(self, base: GuestAddress, size: int) -> tuple[Self, R]:
        """A collection without the region of exactly this base and size, and that region.
        Raises NoMemoryRegion if there is none."""
        index = self._index(base)
        if index < 0 or self._starts[index] != base.raw_value():
            raise NoMemoryRegion
        region = self._regions[index]
        if region.len() != size:
            raise NoMemoryRegion
        return self._of(self._regions[:index] + self._regions[index + 1 :]), region

    def num_regions(self) -> int:
        return len(self._regions)

    def find_region(self, addr: GuestAddress) -> R | None:
        """As ``GuestMemoryBackend``, by halving. As in the crate a region is believed to hold its
        own first address."""
        index = self._index(addr)
        if index < 0:
            return None
        region = self._regions[index]
        if self._starts[index] == addr.raw_value() or addr <= region.last_addr():
            return region
        return None

    def iter(self) -> Iterator[R]:
        """The regions by address."""
        return iter(self._regions)

    def __iter__(self) -> Iterator[R]:
        return self.iter()

    def _index(self, addr: GuestAddress) -> int:
        """Of the last region that begins at ``addr`` or before; -1 if none does."""
        return bisect_right(self._starts, addr.raw_value()) - 1

    @classmethod
    def _of(cls, regions: Sequence[R]) -> Self:
        made = cls()
        made._regions = tuple(regions)
        made._starts = tuple(region.start_addr().raw_value() for region in made._regions)
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {list(self._regions)!r}>"
