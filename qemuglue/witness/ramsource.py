"""Where QEMU's RAM can be read from outside QEMU, region by region."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from qemuglue.errors import QemuglueError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MemoryRegion
from qemuglue.qemu.backings import ProcBacking, SharedBacking
from qemuglue.qemu.guest_ram import Hva, ProcMem, SharedRam, hva_of
from qemuglue.qemu.libc import differing_parts, differing_ranges
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.pagemap import PageMap
from qemuglue.witness.ram import MAX_COVERED, Coverage, RamSource

#: Bytes read from /proc at a time.
STEP = 1 << 20

#: Up to so many bytes a copy is cheaper than finding out where they are: a page costs 1 us so,
#: and 10 us otherwise.
COPIED = 1 << 16

_NOTHING: Iterator[tuple[int, int]] = iter(())

#: A region beyond this is not read whole, where the kernel does not tell what is in it.
MAX_WHOLE = 256 << 20


class SharedSource:
    """Main memory, whose file this process shares."""

    coverage = Coverage.SHARED

    def __init__(self, ram: SharedRam) -> None:
        self._ram = ram

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._ram.view[offset : offset + size])

    def differing(self, offset: int, expected: memoryview) -> Iterator[tuple[int, int]]:
        size = len(expected)
        ours = self._ram.view[offset : offset + size]
        if size <= COPIED and ours.tobytes() == expected.tobytes():
            return _NOTHING
        return differing_ranges(ours, expected)

    def differing_parts(
        self, expected: memoryview, parts: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        return differing_parts(self._ram.view, expected, parts)

    def extents(self) -> Iterable[tuple[int, int]]:
        return data_extents(self._ram.fd, self._ram.size)


class ProcSource:
    """A region behind a host address of the QEMU process; ``pages`` where the kernel tells
    which of its pages are there."""

    coverage = Coverage.PROCMEM

    def __init__(
        self, memory: ProcMem, host: int, size: int, pages: PageMap | None = None
    ) -> None:
        self._memory = memory
        self._host = host
        self._size = size
        self._pages = pages

    def read(self, offset: int, size: int) -> bytes:
        return self._memory.read(self._host + offset, size)

    def differing(self, offset: int, expected: memoryview) -> Iterator[tuple[int, int]]:
        for at in range(0, len(expected), STEP):
            part = expected[at : at + STEP]
            theirs = self.read(offset + at, len(part))
            if len(part) <= COPIED and theirs == part.tobytes():
                continue
            for start, size in differing_ranges(theirs, part):
                yield at + start, size

    def differing_parts(
        self, expected: memoryview, parts: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        return [
            (offset, size) for offset, size in parts
            if next(self.differing(offset, expected[offset : offset + size]), None) is not None
        ]

    def extents(self) -> Iterable[tuple[int, int]]:
        if self._pages is not None:
            return self._pages.present()
        return ((at, min(STEP, self._size - at)) for at in range(0, self._size, STEP))


def source_for(
    process: QemuProcess, procmem: ProcMem, memory: AddressSpace, region: MemoryRegion
) -> RamSource | None:
    """The best source for a region in view of ``memory``, or None."""
    shared = _shared(process, region)
    if shared is not None:
        return SharedSource(shared)
    if region.size > MAX_COVERED:
        return None
    host = _host(process, memory, region)
    if host is None:
        return None
    pages = PageMap.of(process.pid, host, region.size)
    if pages is None and region.size > MAX_WHOLE:
        return None
    return ProcSource(procmem, host, region.size, pages)


def live_backing(
    process: QemuProcess, procmem: ProcMem, memory: AddressSpace, region: MemoryRegion
) -> SharedBacking | ProcBacking | None:
    """QEMU's own memory of a RAM-like region in view of ``memory``, to be its ``backing``: then
    accesses through the model read and write what QEMU sees. None where it cannot be reached."""
    shared = _shared(process, region)
    if shared is not None:
        return SharedBacking(shared)
    host = _host(process, memory, region)
    return None if host is None else ProcBacking(procmem, host, region.size)


def _shared(process: QemuProcess, region: MemoryRegion) -> SharedRam | None:
    shared = process.ram
    if shared is not None and region.name == process.config.ram_id and region.size == shared.size:
        return shared
    return None


def _host(process: QemuProcess, memory: AddressSpace, region: MemoryRegion) -> int | None:
    """Where the region's first byte is in QEMU's process."""
    section = next(s for s in memory.view.sections if s.region is region)
    try:
        found = hva_of(process.monitor, section.start)
    except QemuglueError:
        return None
    if not isinstance(found, Hva) or found.region != region.name:
        return None
    return found.address - section.offset


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of the parts of a file that are not holes: RAM nobody touched is one."""
    if 0 < size <= os.fstat(fd).st_blocks * 512:
        yield 0, size  # to look for holes takes a fifth of the time of comparing
        return
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        stop = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(stop, size) - start
        at = stop
