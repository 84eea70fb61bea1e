"""An accessor over regions: axaddrspace's face on memory whose layout is known.

``RegionAccessor`` translates by a table of regions, each a range of guest addresses that one
backing holds. It is to ``accessor`` what ``AddrSpace`` is to the trait in axaddrspace 0.3.0
(``src/address_space/mod.rs``), of which it also has ``translate`` and ``translated_byte_buffer``;
what maps and unmaps there (page tables) has no place here: make another accessor.

One quirk of that ``AddrSpace`` cannot be had here, for a region is one piece of its backing: an
area whose pages were allocated one by one lies in pieces, yet is told as one, so that even bytes
that are left in the area are read from the wrong page behind the end of the first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self

from qemuglue.errors import ModelError
from qemuglue.memory.accessor import (
    GuestMemoryAccessor,
    GuestPlace,
    PhysAddr,
    guest_address,
)
from qemuglue.memory.backing import Backing, HostMemory
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import HostAddressNotAvailable
from qemuglue.memory.region import RegionKind


class _Slice(Protocol):
    @property
    def backing(self) -> Backing: ...
    @property
    def offset_in_backing(self) -> int: ...


class _Region(Protocol):
    def len(self) -> int: ...
    def start_addr(self) -> GuestAddress: ...
    def as_volatile_slice(self) -> _Slice: ...


class _Collection(Protocol):
    def iter(self) -> Iterator[_Region]: ...


@dataclass(frozen=True, slots=True)
class AccessorRegion:
    """``size`` bytes of guest memory from ``start`` on, which ``backing`` holds from ``offset``
    on. Raises ModelError where it does not, for no bytes, and beyond 2^64-1."""

    start: int
    size: int
    backing: Backing
    offset: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", guest_address(self.start).raw_value())
        if self.size <= 0 or self.start + self.size > ADDRESS_END:
            raise ModelError(
                f"a region has bytes and ends below 2^64, got {self.size:#x} at {self.start:#x}"
            )
        if self.offset < 0 or self.offset + self.size > len(self.backing):
            raise ModelError(
                f"a backing of {len(self.backing):#x} bytes does not hold {self.size:#x} bytes "
                f"from {self.offset:#x} on"
            )

    @property
    def last(self) -> int:
        """The last guest address, inclusive."""
        return self.start + self.size - 1


class RegionAccessor(GuestMemoryAccessor):
    """An accessor over regions that do not overlap, in any order; contiguous ones stay apart.

    A region is an AccessorRegion, or (start, backing) for all of the backing. The limit is what
    is left of the region. With ``whole_area_limit`` it is the whole region's size wherever in
    it the address is, as in axaddrspace 0.3.0, and is taken at its word: what lies behind the
    region in its backing is read and written in place of the guest's next bytes. Raises
    ModelError for regions that overlap.
    """

    __slots__ = ("_starts", "regions", "trusts_limits", "whole_area_limit")

    def __init__(
        self, regions: Iterable[AccessorRegion | tuple[GuestPlace, Backing]], *,
        whole_area_limit: bool = False,
    ) -> None:
        made = sorted(map(_region, regions), key=lambda region: region.start)
        for before, region in pairwise(made):
            if region.start <= before.last:
                raise ModelError(
                    f"regions overlap: {before.start:#x}..{before.last:#x} and "
                    f"{region.start:#x}..{region.last:#x}"
                )
        #: By address.
        self.regions: tuple[AccessorRegion, ...] = tuple(made)
        self.whole_area_limit = whole_area_limit
        self.trusts_limits = whole_area_limit
        self._starts = [region.start for region in made]

    @classmethod
    def from_collection(
        cls, collection: _Collection, *, whole_area_limit: bool = False
    ) -> Self:
        """Over vm-memory's regions (``GuestRegionCollection``). Their bitmaps hear of nothing."""
        regions = []
        for region in collection.iter():
            bytes_ = region.as_volatile_slice()
            regions.append(AccessorRegion(
                region.start_addr().raw_value(), region.len(), bytes_.backing,
                bytes_.offset_in_backing,
            ))
        return cls(regions, whole_area_limit=whole_area_limit)

    @classmethod
    def from_view(cls, view: FlatView, *, whole_area_limit: bool = False) -> Self:
        """Over the RAM of a view of the model, as it is drawn now: what a pointer may both read
        and write. ROM is left out, since a translation does not say what it is for: QEMU would
        drop the write, a pointer would not. So are devices. The dirty log hears of nothing."""
        return cls(
            (
                AccessorRegion(section.start, section.size, section.region.backing, section.offset)
                for section in view.sections
                if _is_plain_ram(section) and section.region.backing is not None
            ),
            whole_area_limit=whole_area_limit,
        )

    def translate_and_get_limit(self, guest_addr: GuestPlace) -> tuple[PhysAddr, int] | None:
        at = guest_address(guest_addr).raw_value()
        region = self._find(at)
        if region is None:
            return None
        inside = at - region.start
        limit = region.size if self.whole_area_limit else region.size - inside
        return PhysAddr(region.backing, region.offset + inside), limit

    def bytes_left(self, guest_addr: GuestAddress) -> int | None:
        region = self._find(guest_addr.raw_value())
        return None if region is None else region.last + 1 - guest_addr.raw_value()

    def translate(self, guest_addr: GuestPlace) -> PhysAddr | None:
        """Where the host has ``guest_addr``; None where it is not mapped."""
        found = self.translate_and_get_limit(guest_addr)
        return None if found is None else found[0]

    def translated_byte_buffer(
        self, guest_addr: GuestPlace, length: int
    ) -> list[memoryview] | None:
        """``length`` bytes of guest memory as writable views, one a region; None at an address
        that is not mapped, and for more bytes than its region has.

        It is not asked whether they are *left* in that region, and pages are no pieces here.
        Raises InvalidInput where a later region is missing, at which upstream panics, and
        HostAddressNotAvailable where a backing cannot be pointed at.
        """
        region = self._find(guest_address(guest_addr).raw_value())
        if region is None or length > region.size:
            return None
        return [_pointed(host, n) for host, _, n in self._pieces(guest_addr, length)]

    def _find(self, at: int) -> AccessorRegion | None:
        index = bisect_right(self._starts, at) - 1
        if index < 0 or at > self.regions[index].last:
            return None
        return self.regions[index]

    def __repr__(self) -> str:
        ranges = ", ".join(f"{r.start:#x}..{r.last:#x}" for r in self.regions)
        return f"<RegionAccessor {ranges or 'of nothing'}>"


def _region(region: AccessorRegion | tuple[GuestPlace, Backing]) -> AccessorRegion:
    if isinstance(region, AccessorRegion):
        return region
    start, backing = region
    return AccessorRegion(guest_address(start).raw_value(), len(backing), backing)


def _is_plain_ram(section: MemoryRegionSection) -> bool:
    region = section.region
    return region.kind is RegionKind.RAM and not region.readonly


def _pointed(host: PhysAddr, size: int) -> memoryview:
    if not isinstance(host.backing, HostMemory):
        raise HostAddressNotAvailable
    return memoryview(host.backing.data)[host.offset : host.offset + size]
