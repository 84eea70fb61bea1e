"""Guest memory as a virtio device holds it: rings that are cached, buffers that are mapped.

Memory is written through its backing, which remembers what was written; where a device's registers
are, a ring is accessed through the cache and a buffer is a copy, passed on when it is unmapped.
"""

from __future__ import annotations

from qemuglue.errors import ModelError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.backing import Backing
from qemuglue.memory.cached import MemoryRegionCache
from qemuglue.memory.endian import Be16, Le16
from qemuglue.memory.flatview import UNASSIGNED
from qemuglue.memory.mapping import Mapping
from qemuglue.memory.region import MASK64, RegionKind


class Unfollowed(Exception):
    """What QEMU does now cannot be told from outside."""


class Window:
    """A cached range of guest memory, accessed by offset."""

    def __init__(self, space: AddressSpace, addr: int, size: int, is_write: bool) -> None:
        self._cache = MemoryRegionCache(space, addr & MASK64, size, is_write)
        self._backing: Backing | None = (
            self._cache.section.region.backing if self._cache.direct else None)
        self.length = self._cache.length

    def read(self, offset: int, size: int) -> bytes:
        return self._cache.read(offset, size)[1]

    def write(self, offset: int, data: bytes) -> None:
        """Memory is written through its backing, which remembers what was written."""
        if self._backing is None:
            self._cache.write(offset, data)
        else:
            self._inside(offset, len(data))
            self._backing.write(self._cache.offset + offset, data)

    def load16(self, offset: int, big: bool) -> int:
        return self._cache.load(offset, Be16 if big else Le16)[1]

    def store16(self, offset: int, value: int, big: bool) -> None:
        if self._backing is None:
            self._cache.store(offset, Be16(value) if big else Le16(value))
        else:
            self.write(offset, value.to_bytes(2, "big" if big else "little"))

    def close(self) -> None:
        self._cache.destroy()

    def _inside(self, offset: int, size: int) -> None:
        if offset + size > self.length:
            raise ModelError(f"{size} bytes at {offset:#x} are outside a ring as it was cached")


def bounce_doubt(space: AddressSpace, addr: int, is_write: bool) -> bool:
    """Whether nobody can tell if ``addr`` can be mapped: no memory is there, and a device that
    is not followed may hold the bounce buffer (one for all of them until QEMU 9.2)."""
    if space.rules.bounce_budget or not space.topology.bounce_doubt:
        return False
    region = space.view.lookup(addr).region
    return region.kind is RegionKind.IOMMU or not space.is_direct(region, is_write, UNSPECIFIED)


class Segment:
    """A mapped part of a buffer."""

    def __init__(self, space: AddressSpace, mapping: Mapping) -> None:
        self._space = space
        self._mapping = mapping
        self._written = 0

    def __len__(self) -> int:
        return len(self._mapping)

    @property
    def addr(self) -> int:
        """The guest address it begins at."""
        return self._mapping.addr

    @property
    def bounced(self) -> bool:
        """Whether it is a copy, because no memory is there."""
        return self._mapping.bounced

    @property
    def told(self) -> bool:
        """Whether what is written there reaches a device, which shows it in the transcript."""
        return self._mapping.bounced and self._mapping.region is not UNASSIGNED

    def read(self, start: int, size: int) -> bytes:
        """What is in it now."""
        return bytes(self._mapping.buffer[start : start + size])

    def write(self, start: int, data: bytes) -> None:
        mapping = self._mapping
        self._written += len(data)
        if mapping.bounced:
            mapping.buffer[start : start + len(data)] = data
            return
        backing = mapping.region.backing
        assert backing is not None
        backing.write(mapping.offset + start, data)

    def unmap(self, size: int) -> None:
        """``size`` bytes from its beginning count as written. A bounce buffer of before QEMU's
        budget for them (9.2) begins with what was in that memory."""
        if self.told and self._written < size and not self._space.rules.bounce_budget:
            raise Unfollowed("a device is passed what QEMU's memory held")
        self._space.unmap(self._mapping, size)


def gather(segments: list[Segment], start: int, size: int) -> bytes:
    """Up to ``size`` bytes from ``start``."""
    parts: list[bytes] = []
    for segment in segments:
        if start >= len(segment):
            start -= len(segment)
            continue
        part = segment.read(start, min(size, len(segment) - start))
        parts.append(part)
        size -= len(part)
        start = 0
        if not size:
            break
    return b"".join(parts)


def scatter(segments: list[Segment], start: int, data: bytes) -> int:
    """``iov_from_buf``: how many bytes fitted."""
    done = 0
    for segment in segments:
        if start >= len(segment):
            start -= len(segment)
            continue
        part = data[done : done + len(segment) - start]
        if part:
            segment.write(start, part)
        done += len(part)
        start = 0
    return done
