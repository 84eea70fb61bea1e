"""What a file is to guest memory: something that maps parts of itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from guest_regions import Remote

from qemuglue.errors import EnvironmentFailure, ModelError
from qemuglue.memory import Backing, ByteBacking, ViewBacking
from qemuglue.memory.guest_error import ErrorKind
from qemuglue.memory.guest_memory import (
    BackingFile,
    FileOffset,
    MappableFile,
    MappingPastEof,
    Mmap,
    MmapRegion,
)
from qemuglue.memory.guest_memory.mapped_file import PAGE_SIZE, map_file

TOP = 1 << 64


class Endless:
    """A file that maps whatever it is asked for."""

    def map(self, start: int, size: int) -> Backing:
        return ByteBacking(size)


def test_where_a_mapping_may_begin_and_end() -> None:
    for start, size in ((0, 1), (PAGE_SIZE, 5), (TOP - PAGE_SIZE, PAGE_SIZE)):
        assert len(map_file(FileOffset(Endless(), start), size)) == size
    for start, size in ((1, 1), (512, 1), (2048, 1), (PAGE_SIZE + 8, 1), (-PAGE_SIZE, 1),
                        (TOP - PAGE_SIZE, PAGE_SIZE + 1), (TOP, 1)):
        with pytest.raises(Mmap) as caught:
            map_file(FileOffset(Endless(), start), size)
        assert caught.value.kind is ErrorKind.INVALID_INPUT


@pytest.mark.parametrize("make", [ByteBacking, Remote], ids=["here", "elsewhere"])
def test_a_backing_in_the_role_of_a_file(make: Callable[[int], Backing]) -> None:
    backing = make(0x3000)
    for file in (backing, BackingFile(backing)):
        one = MmapRegion.from_file(FileOffset(file, 0x1000), 0x800)
        two = MmapRegion.from_file(FileOffset(file, 0x1000), 0x1000)
        one.as_volatile_slice().write(b"abcd", 0x7FE)
        assert backing.read(0x17FE, 4) == b"ab\0\0", "a window ends where it ends"
        buf = bytearray(4)
        assert two.as_volatile_slice().read(buf, 0x7FE) == 4 and buf == b"ab\0\0"
        with pytest.raises(MappingPastEof):
            MmapRegion.from_file(FileOffset(file, 0x2000), 0x1001)
        MmapRegion.from_file(FileOffset(file, 0x2000), 0x1000)
        backing.write(0x17FE, b"\0\0")


def test_a_window_refuses_what_does_not_fit() -> None:
    window = BackingFile(Remote(0x3000)).map(0x1000, 8)
    assert len(window) == 8 and window.read(4, 99) == bytes(4) and window.read(9, 1) == b""
    for offset, data in ((5, b"1234"), (-1, b"1"), (9, b"")):
        with pytest.raises(ModelError, match="do not fit"):
            window.write(offset, data)
    window.write(8, b"")
    assert isinstance(BackingFile(ByteBacking(0x1000)).map(0, 8), ViewBacking)


class Refusing:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def map(self, start: int, size: int) -> Backing:
        raise self.error


class Short:
    def map(self, start: int, size: int) -> Backing:
        return ByteBacking(size - 1)


def test_a_file_that_cannot_be_mapped() -> None:
    for error in (OSError(12, "no memory"), EnvironmentFailure("no memory")):
        with pytest.raises(Mmap, match="no memory") as caught:
            MmapRegion.from_file(FileOffset(Refusing(error), 0), 0x1000)
        assert caught.value.kind is ErrorKind.OTHER and caught.value.__cause__ is error
    with pytest.raises(ModelError, match="mapped 0xfff bytes where 0x1000"):
        MmapRegion.from_file(FileOffset(Short(), 0), 0x1000)
    for wrong in (object(), 5, b"bytes"):
        with pytest.raises(ModelError, match="a file here is"):
            MmapRegion.from_file(FileOffset(wrong, 0), 4)
    assert isinstance(Short(), MappableFile) and not isinstance(ByteBacking(1), MappableFile)
