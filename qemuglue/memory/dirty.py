"""Dirty memory: which pages of RAM were written since a client last looked.

One bitmap a region and client; all pages of new RAM count as dirty for every client. A write
sets the bits of the clients the region is logged for (rule R19, QEMU 10.0.2
``system/physmem.c:2812`` ``invalidate_and_set_dirty``, ``system/memory.c:1890`` for the clients,
``:2374`` for snapshots). No monitor command shows the bits.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from qemuglue.errors import ModelError
from qemuglue.memory.region import MemoryRegion

#: Clients, as bit numbers of a dirty log mask (``DIRTY_MEMORY_*``).
VGA = 0
CODE = 1
MIGRATION = 2
CLIENTS = (VGA, CODE, MIGRATION)

#: A snapshot takes, and cleans, whole groups of pages: the bits of one machine word.
PAGES_PER_WORD = 64

#: Pages of a region that can be told apart; beyond it a bitmap would cost too much.
MAX_PAGES = 1 << 26


class DirtySnapshot:
    """Pages that were dirty for one client when it was taken (``DirtyBitmapSnapshot``)."""

    __slots__ = ("_bits", "_first", "_page_size")

    def __init__(self, first: int, bits: bytes, page_size: int) -> None:
        self._first = first
        self._bits = bits
        self._page_size = page_size

    def dirty(self, offset: int, length: int) -> bool:
        """Whether any page of ``length`` bytes at ``offset`` of the region was dirty.
        Raises ModelError for a range that was not looked at."""
        first = offset // self._page_size - self._first
        last = -(-(offset + length) // self._page_size) - self._first
        if first < 0 or last > len(self._bits):
            raise ModelError(f"the snapshot does not cover {length:#x} bytes at {offset:#x}")
        return self._bits.find(1, first, last) >= 0


class DirtyMemory:
    """The bitmaps of one machine. Offsets and lengths are bytes in a region; every page that a
    range touches counts."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        #: Whether anybody ever asked: until then every page is dirty, and writes need no care.
        self.watched = False
        self._bits: WeakKeyDictionary[MemoryRegion, dict[int, bytearray]] = WeakKeyDictionary()

    def set(self, region: MemoryRegion, offset: int, length: int, mask: int) -> None:
        """The range was written; ``mask`` says for which clients
        (``cpu_physical_memory_set_dirty_range``)."""
        maps = self._bits.get(region)
        if not maps or length <= 0:
            return
        first, last = self._pages(offset, length)
        for client, bits in maps.items():
            if mask >> client & 1:
                bits[first:last] = b"\1" * (min(last, len(bits)) - first)

    def get(self, region: MemoryRegion, offset: int, length: int, client: int) -> bool:
        """Whether any page of the range is dirty."""
        if length <= 0:
            return False
        bits = self._bits.get(region, {}).get(client)
        return bits is None or bits.find(1, *self._pages(offset, length)) >= 0

    def test_and_clear(
        self, region: MemoryRegion, offset: int, length: int, client: int
    ) -> bool:
        """Whether any page was dirty; all of the range is clean after it."""
        if length <= 0:
            return False
        bits = self._bitmap(region, client)
        first, last = self._pages(offset, length)
        found = bits.find(1, first, last) >= 0
        bits[first:last] = bytes(min(last, len(bits)) - first)
        return found

    def snapshot_and_clear(
        self, region: MemoryRegion, offset: int, length: int, client: int
    ) -> DirtySnapshot:
        """What was dirty, by groups of ``PAGES_PER_WORD`` pages: all of every group that the
        range touches is clean after it (``cpu_physical_memory_snapshot_and_clear_dirty``)."""
        bits = self._bitmap(region, client)
        group = PAGES_PER_WORD * self.page_size
        first = offset // group * PAGES_PER_WORD
        last = -(-(offset + length) // group) * PAGES_PER_WORD
        taken = bytes(bits[first:last]).ljust(last - first, b"\0")
        bits[first:last] = bytes(len(bits[first:last]))
        return DirtySnapshot(first, taken, self.page_size)

    def _pages(self, offset: int, length: int) -> tuple[int, int]:
        return offset // self.page_size, -(-(offset + length) // self.page_size)

    def _bitmap(self, region: MemoryRegion, client: int) -> bytearray:
        if client not in CLIENTS:
            raise ModelError(f"dirty memory has clients 0 to 2, got {client}")
        maps = self._bits.setdefault(region, {})
        bits = maps.get(client)
        if bits is None:
            pages = -(-region.size // self.page_size)
            if pages > MAX_PAGES:
                raise ModelError(f"region {region.name!r} has too many pages to log: {pages:#x}")
            bits = maps[client] = bytearray(b"\1") * pages
            self.watched = True
        return bits
