"""GuestMemoryBackend: guest memory made of regions, nothing between them and their addresses."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

from qemuglue.errors import ModelError
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    CallbackOutOfRange,
    GuestAddressOverflow,
    GuestMemoryError,
    InvalidGuestAddress,
)
from qemuglue.memory.guest_memory.memory import GuestMemory, stop_on_error
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.guest_memory.region import GuestMemoryRegion
from qemuglue.memory.volatile import VolatileSlice

R = TypeVar("R", bound=GuestMemoryRegion)

#: What ``try_access`` calls: (bytes done so far, bytes it may move now, where in the region,
#: region) -> how many it moved; 0 ends the access.
Callback = Callable[[int, int, MemoryRegionAddress, R], int]


class GuestMemoryBackend(GuestMemory, Generic[R]):
    """An unchanging set of regions (``src/guest_memory.rs``; ``GuestMemory`` before 0.18).

    ``iter`` is all that must be written; ``num_regions`` and ``find_region`` search through it.
    As a ``GuestMemory`` it lets every access through: permissions are an IOMMU's.
    """

    __slots__ = ()

    @abstractmethod
    def iter(self) -> Iterator[R]:
        """The regions."""

    def num_regions(self) -> int:
        """How many regions there are."""
        return sum(1 for _ in self.iter())

    def find_region(self, addr: GuestAddress) -> R | None:
        """The region at ``addr``; None in a hole."""
        for region in self.iter():
            if region.start_addr() <= addr <= region.last_addr():
                return region
        return None

    def last_addr(self) -> GuestAddress:
        """The highest address (inclusive) with a region; 0 where there is none."""
        return max((region.last_addr() for region in self.iter()), default=GuestAddress(0))

    def to_region_addr(self, addr: GuestAddress) -> tuple[R, MemoryRegionAddress] | None:
        """The region at ``addr`` and where in it that is; None in a hole. Raises ModelError for
        a region that ``find_region`` gives and that then denies the address (Rust panics)."""
        region = self.find_region(addr)
        if region is None:
            return None
        offset = region.to_region_addr(addr)
        if offset is None:
            raise ModelError(f"a region was found at {addr!r} that does not hold it")
        return region, offset

    def address_in_range(self, addr: GuestAddress) -> bool:
        """Whether a region is at ``addr``."""
        return self.find_region(addr) is not None

    def check_address(self, addr: GuestAddress) -> GuestAddress | None:
        """``addr`` if a region is there."""
        return addr if self.address_in_range(addr) else None

    def checked_offset(self, base: GuestAddress, offset: int) -> GuestAddress | None:
        """``base`` plus ``offset`` if a region is there. What lies between does not matter."""
        addr = base.checked_add(offset)
        return None if addr is None else self.check_address(addr)

    def check_range(
        self, base: GuestAddress, length: int, access: Permissions = Permissions.ReadWrite
    ) -> bool:
        """Whether slices of regions cover ``length`` bytes from ``base`` on. No bytes are covered
        anywhere. ``access`` does not matter here."""
        try:
            for _ in self.get_slices(base, length):
                pass
        except GuestMemoryError:
            return False
        return True

    def physical_memory(self) -> Self:
        """This memory itself."""
        return self

    def get_host_address(self, addr: GuestAddress) -> memoryview:
        """What Python has for a pointer to ``addr``: see ``GuestMemoryRegion``. Raises
        InvalidGuestAddress in a hole, and what the region raises."""
        region, offset = self._at(addr)
        return region.get_host_address(offset)

    def get_slice(self, addr: GuestAddress, count: int) -> VolatileSlice:
        """``count`` bytes from ``addr`` on, all in one region. Raises InvalidGuestAddress where
        there is none, also for no bytes; InvalidBackendAddress beyond its end, whatever is
        there; and what the region raises."""
        region, offset = self._at(addr)
        return region.get_slice(offset, count)

    def get_slices(
        self, addr: GuestAddress, count: int, access: Permissions = Permissions.ReadWrite
    ) -> GuestMemoryBackendSliceIterator[R]:
        """One slice a region; see ``GuestMemory``. ``access`` does not matter here."""
        return GuestMemoryBackendSliceIterator(self, addr, count)

    def try_access(self, count: int, addr: GuestAddress, f: Callback[R]) -> int:
        """Call ``f`` for each region that ``count`` bytes from ``addr`` on lie in; how many bytes
        the calls moved together. Deprecated since 0.17: take ``get_slices``.

        It ends where all is moved, where ``f`` moves nothing, and in a hole; in one at ``addr``
        it raises InvalidGuestAddress. What ``f`` raises goes through, and the count is lost.
        Raises CallbackOutOfRange where ``f`` says more than is left of ``count``, and
        GuestAddressOverflow where that goes on beyond 2^64-1 (ending there is none). As in the
        crate ``f`` may say more than it was offered, skipping what is between; and for a count
        of 0 it is called once.
        """
        warnings.warn(
            "try_access is deprecated since vm-memory 0.17: use get_slices",
            DeprecationWarning, stacklevel=2,
        )
        at, total = addr, 0
        while (found := self.to_region_addr(at)) is not None:
            region, offset = found
            room = region.len() - offset.raw_value()
            moved = f(total, min(room, count - total), offset, region)
            if moved == 0:
                return total
            total += moved
            if moved < 0 or total > count:
                raise CallbackOutOfRange
            if total == count:
                return total
            at = _advanced(at, moved)
        if not total:
            raise InvalidGuestAddress(addr)
        return total

    def _at(self, addr: GuestAddress) -> tuple[R, MemoryRegionAddress]:
        found = self.to_region_addr(addr)
        if found is None:
            raise InvalidGuestAddress(addr)
        return found


class GuestMemoryBackendSliceIterator(Iterator[VolatileSlice], Generic[R]):
    """The slices of a range, one a region.

    Rust's items are results; here ``next`` raises the error that an item is, and StopIteration
    ever after: ``InvalidGuestAddress`` of the first address of a hole, what the region raises,
    and GuestAddressOverflow for a region that goes on beyond 2^64-1, before its slice is given.
    """

    __slots__ = ("_addr", "_count", "_mem")

    def __init__(self, mem: GuestMemoryBackend[R], addr: GuestAddress, count: int) -> None:
        if not isinstance(count, int) or count < 0:
            raise ModelError(f"a count of bytes is 0 or more, got {count!r}")
        self._mem = mem
        self._addr = addr
        self._count = count

    def __next__(self) -> VolatileSlice:
        left, self._count = self._count, 0  # whatever raises below ends the iteration
        if not left:
            raise StopIteration
        found = self._mem.to_region_addr(self._addr)
        if found is None:
            raise InvalidGuestAddress(self._addr)
        region, start = found
        size = min(region.len() - start.raw_value(), left)
        self._addr = _advanced(self._addr, size)
        piece = region.get_slice(start, size)
        if piece.len() != size:
            raise ModelError(f"get_slice gave {piece.len()} bytes where {size} were asked for")
        self._count = left - size
        return piece

    def stop_on_error(self) -> Iterator[VolatileSlice]:
        """The function of that name, of this."""
        return stop_on_error(self)


def _advanced(addr: GuestAddress, size: int) -> GuestAddress:
    """``size`` bytes further on, 0 behind the last address. Raises GuestAddressOverflow beyond."""
    at, overflow = addr.overflowing_add(size)
    if overflow and at.raw_value():
        raise GuestAddressOverflow
    return at
