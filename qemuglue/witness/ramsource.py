"""Where QEMU's RAM can be read from outside QEMU, region by region."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qemuglue.errors import QemuglueError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MemoryRegion
from qemuglue.qemu.guest_ram import ProcMem, SharedRam
from qemuglue.qemu.libc import differing_ranges
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.ram import MAX_PROCMEM, Coverage, RamSource

#: Bytes read from /proc at a time.
STEP = 1 << 20


class SharedSource:
    """Main memory, whose file this process shares."""

    coverage = Coverage.SHARED

    def __init__(self, ram: SharedRam) -> None:
        self._ram = ram

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._ram.view[offset : offset + size])

    def differing(self, offset: int, expected: memoryview) -> Iterator[tuple[int, int]]:
        return differing_ranges(self._ram.view[offset : offset + len(expected)], expected)

    def extents(self) -> Iterable[tuple[int, int]]:
        return self._ram.extents()


class ProcSource:
    """A region behind a host address of the QEMU process."""

    coverage = Coverage.PROCMEM

    def __init__(self, memory: ProcMem, host: int, size: int) -> None:
        self._memory = memory
        self._host = host
        self._size = size

    def read(self, offset: int, size: int) -> bytes:
        return self._memory.read(self._host + offset, size)

    def differing(self, offset: int, expected: memoryview) -> Iterator[tuple[int, int]]:
        for at in range(0, len(expected), STEP):
            part = expected[at : at + STEP]
            theirs = self.read(offset + at, len(part))
            for start, size in differing_ranges(theirs, part):
                yield at + start, size

    def extents(self) -> Iterable[tuple[int, int]]:
        for at in range(0, self._size, STEP):
            yield at, min(STEP, self._size - at)


def source_for(
    process: QemuProcess, memory: AddressSpace, region: MemoryRegion
) -> RamSource | None:
    """The best source for a region in view of ``memory``, or None."""
    shared = process.shared_ram
    if shared is not None and region.name == process.config.ram_id and region.size == shared.size:
        return SharedSource(shared)
    if region.size > MAX_PROCMEM:
        return None
    section = next(s for s in memory.view.sections if s.region is region)
    try:
        host = process.hva(section.start)
    except QemuglueError:
        return None
    if host is None:
        return None
    return ProcSource(process.procmem, host - section.offset, region.size)
