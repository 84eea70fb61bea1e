"""MemoryMap: where in which mapping a guest address is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.backing import Backing
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import CallbackOutOfRange, InvalidGuestAddress
from qemuglue.memory.memory_map.bisected import BisectLookup
from qemuglue.memory.memory_map.error import (
    InvalidGuestAddressRange,
    MemoryMappingFailed,
    MemoryRegionOverlap,
    NoMemoryRegions,
)
from qemuglue.memory.memory_map.lookup import LookupMaker, Span
from qemuglue.memory.memory_map.mapping import MemoryMapping
from qemuglue.memory.plain_number import plain_number

T = TypeVar("T")

#: A guest address, or a plain number that stands for one.
Place = GuestAddress | int
#: Given a mapping and an offset in it.
Callback = Callable[[MemoryMapping, int], T]


class MemoryMap(ABC):
    """Turns a guest address into a mapping and an offset: the trait of the seed.

    The callback is called once or not at all, and never for more than one region; what it raises
    passes through.
    """

    __slots__ = ()

    @abstractmethod
    def do_in_region(self, guest_addr: Place, size: int, cb: Callback[T]) -> T:
        """``cb(mapping, offset)`` where one region holds all ``size`` bytes from ``guest_addr``
        on, and what it gives. Raises InvalidGuestAddressRange otherwise: also if the next region
        holds the rest, and for a size of 0 in a hole."""

    @abstractmethod
    def do_in_region_partial(self, guest_addr: Place, cb: Callback[int]) -> int:
        """``cb(mapping, offset)`` in the region at ``guest_addr``, and what it gives: how many
        bytes it moved. Raises InvalidGuestAddress in a hole, and CallbackOutOfRange for more
        bytes than the region has from there on (the first model believed any number)."""


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A mapping and where the guest has it. Raises MemoryMappingFailed beyond 2^64-1."""

    guest_base: GuestAddress
    mapping: MemoryMapping

    def __post_init__(self) -> None:
        if self.size() > ADDRESS_END - self.guest_base.raw_value():
            raise MemoryMappingFailed(
                f"{self.size():#x} bytes at {self.guest_base.raw_value():#x} go beyond 2^64-1"
            )

    def size(self) -> int:
        """Bytes, at least 1."""
        return self.mapping.size()

    def last_addr(self) -> GuestAddress:
        """The last guest address (inclusive)."""
        return GuestAddress(self.guest_base.raw_value() + self.size() - 1)


class RegionMap(MemoryMap):
    """A map of regions that are sorted by address and disjoint; it never changes.

    ``regions`` are pairs (guest address, mapping or Backing). ``lookup`` is one of
    ``LinearLookup``, ``BisectLookup`` and ``RadixLookup`` or another ``Lookup``; nothing but the
    time that it takes depends on it. Raises NoMemoryRegions, and MemoryRegionOverlap for regions
    that overlap or are not sorted.

    Differs from the first model: a region may end with the address space. There its end wrapped
    to 0 and no address was found in it.
    """

    __slots__ = ("_lookup", "_regions")

    def __init__(
        self, regions: Iterable[tuple[Place, MemoryMapping | Backing]],
        lookup: LookupMaker = BisectLookup,
    ) -> None:
        self._regions = tuple(_region(base, what) for base, what in regions)
        if not self._regions:
            raise NoMemoryRegions
        last = -1
        for region in self._regions:
            if region.guest_base.raw_value() <= last:
                raise MemoryRegionOverlap(region.guest_base)
            last = region.last_addr().raw_value()
        self._lookup = lookup([Span(r.guest_base.raw_value(), r.size()) for r in self._regions])

    def find_region(self, guest_addr: Place) -> MemoryRegion | None:
        """The region at ``guest_addr``; None in a hole."""
        return self._find(number_of(guest_addr))

    def do_in_region(self, guest_addr: Place, size: int, cb: Callback[T]) -> T:
        """See ``MemoryMap``."""
        if size < 0:
            raise ModelError(f"a size is 0 or more, got {size}")
        addr = number_of(guest_addr)
        region = self._find(addr)
        if region is not None:
            offset = addr - region.guest_base.raw_value()
            if size <= region.size() - offset:
                return cb(region.mapping, offset)
        raise InvalidGuestAddressRange(GuestAddress(addr), size)

    def do_in_region_partial(self, guest_addr: Place, cb: Callback[int]) -> int:
        """See ``MemoryMap``."""
        addr = number_of(guest_addr)
        region = self._find(addr)
        if region is None:
            raise InvalidGuestAddress(GuestAddress(addr))
        offset = addr - region.guest_base.raw_value()
        done = cb(region.mapping, offset)
        if not 0 <= done <= region.size() - offset:
            raise CallbackOutOfRange
        return done

    # -- all of the map ----------------------------------------------------------------------

    def num_regions(self) -> int:
        """How many regions there are, at least 1."""
        return len(self._regions)

    def __iter__(self) -> Iterator[MemoryRegion]:
        """The regions by address."""
        return iter(self._regions)

    def last_addr(self) -> GuestAddress:
        """The highest address (inclusive) with a region."""
        return self._regions[-1].last_addr()

    def end_addr(self) -> GuestAddress:
        """The address behind the last one. Raises ModelError where that is 2^64, which the first
        model took for 0; ``last_addr`` came in its place."""
        return self.last_addr().unchecked_add(1)

    def address_in_range(self, addr: Place) -> bool:
        """Whether a region is at ``addr``."""
        return self._find(number_of(addr)) is not None

    def checked_offset(self, base: Place, offset: int) -> GuestAddress | None:
        """``base`` plus ``offset`` if a region is there, whether or not one is at ``base``."""
        addr = GuestAddress(number_of(base)).checked_add(offset)
        return addr if addr is not None and self.address_in_range(addr) else None

    def with_regions(self, cb: Callable[[int, GuestAddress, int, MemoryMapping], object]) -> None:
        """``cb(index, guest_base, size, mapping)`` for each region by address; what it raises
        ends that. The first model gave the mapping's pointer in the mapping's place."""
        for index, region in enumerate(self._regions):
            cb(index, region.guest_base, region.size(), region.mapping)

    def map_and_fold(
        self, init: T, mapf: Callable[[tuple[int, MemoryRegion]], T], foldf: Callable[[T, T], T]
    ) -> T:
        """``foldf`` over what ``mapf`` makes of each (index, region), beginning with ``init``."""
        for pair in enumerate(self._regions):
            init = foldf(init, mapf(pair))
        return init

    # -- inside ------------------------------------------------------------------------------

    def _find(self, addr: int) -> MemoryRegion | None:
        index = self._lookup.find(addr)
        return None if index is None else self._regions[index]

    def __repr__(self) -> str:
        return f"<RegionMap of {len(self._regions)} regions>"


def number_of(addr: Place) -> int:
    """The number. Raises ModelError for what is no guest address."""
    if isinstance(addr, GuestAddress):
        return addr.value
    return GuestAddress(
        plain_number(addr, "an address here is GuestAddress(…) or a plain number")).value


def _region(base: Place, what: MemoryMapping | Backing) -> MemoryRegion:
    mapping = what if isinstance(what, MemoryMapping) else MemoryMapping(what)
    return MemoryRegion(GuestAddress(number_of(base)), mapping)
