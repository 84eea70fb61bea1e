"""What a file is to this package: something that maps parts of itself."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from qemuglue.errors import EnvironmentFailure, ModelError
from qemuglue.memory.backing import Backing, HostMemory, ViewBacking
from qemuglue.memory.guest_address import ADDRESS_END
from qemuglue.memory.guest_error import ErrorKind
from qemuglue.memory.guest_memory.file_offset import FileOffset
from qemuglue.memory.guest_memory.mmap_error import MappingPastEof, Mmap

#: Mappings begin at multiples of this.
PAGE_SIZE = 0x1000


@runtime_checkable
class MappableFile(Protocol):
    """A file, to be told to ``FileOffset``: ``map`` is what ``mmap`` is to a file descriptor.
    This room opens none; ``MappedBacking`` of the ``qemu`` room is what a real one gives."""

    def map(self, start: int, size: int) -> Backing:
        """``size`` bytes from ``start`` on, shared with whoever else maps them. Raises OSError,
        and MappingPastEof beyond the end."""


class BackingFile:
    """A backing in the role of a file: its parts are mapped."""

    __slots__ = ("_backing",)

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    def map(self, start: int, size: int) -> Backing:
        """A window on the backing."""
        if start + size > len(self._backing):
            raise MappingPastEof
        if isinstance(self._backing, HostMemory):
            return ViewBacking(memoryview(self._backing.data).cast("B")[start : start + size])
        return _Window(self._backing, start, size)


class _Window:
    """A part of a backing whose bytes cannot be pointed at."""

    __slots__ = ("_backing", "_size", "_start")

    def __init__(self, backing: Backing, start: int, size: int) -> None:
        self._backing = backing
        self._start = start
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self._size - offset))
        return self._backing.read(self._start + offset, size) if size else b""

    def write(self, offset: int, data: bytes) -> None:
        if offset < 0 or offset + len(data) > self._size:
            raise ModelError(
                f"{len(data)} bytes at {offset:#x} do not fit a backing of {self._size:#x}"
            )
        self._backing.write(self._start + offset, data)


def map_file(where: FileOffset, size: int) -> Backing:
    """``size`` bytes of a file, shared. Raises Mmap for what the kernel refuses, MappingPastEof,
    and ModelError for a file that is neither a MappableFile nor a backing."""
    start = where.start()
    if start < 0 or start % PAGE_SIZE:
        raise Mmap(ErrorKind.INVALID_INPUT, f"offset {start:#x} is no multiple of a page")
    if start + size > ADDRESS_END:
        raise Mmap(ErrorKind.INVALID_INPUT, f"{size:#x} bytes at {start:#x} are beyond 2^64-1")
    file = where.file()
    if isinstance(file, Backing) and not isinstance(file, MappableFile):
        file = BackingFile(file)
    if not isinstance(file, MappableFile):
        raise ModelError(f"a file here is a MappableFile or a backing, not {type(file).__name__}")
    try:
        backing = file.map(start, size)
    except (OSError, EnvironmentFailure) as error:
        raise Mmap(ErrorKind.OTHER, str(error)) from error
    if len(backing) != size:
        raise ModelError(f"the file mapped {len(backing):#x} bytes where {size:#x} were meant")
    return backing
