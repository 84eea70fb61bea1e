"""Which pages of a process are there, seen on this very process."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile

import pytest

from qemuglue.errors import ProtocolError
from qemuglue.witness.pagemap import PAGE, PageMap

SIZE = 64 * PAGE
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def pages_of(memory: mmap.mmap, size: int = SIZE) -> PageMap:
    found = PageMap.of(os.getpid(), address(memory), size)
    if found is None:
        pytest.skip("this kernel has no page map for its processes")
    return found


def test_only_what_was_written_is_there() -> None:
    memory = mmap.mmap(-1, SIZE, flags=ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    pages = pages_of(memory)
    assert list(pages.present()) == []
    for at in (0, 3, 4, 63):
        memory[at * PAGE + 7] = 1
    assert list(pages.present()) == [(0, PAGE), (3 * PAGE, 2 * PAGE), (63 * PAGE, PAGE)]
    memory.madvise(mmap.MADV_DONTNEED, 3 * PAGE, PAGE)
    assert list(pages.present()) == [(0, PAGE), (4 * PAGE, PAGE), (63 * PAGE, PAGE)]


def test_a_size_that_is_no_whole_page() -> None:
    memory = mmap.mmap(-1, SIZE, flags=ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[PAGE] = 1
    assert list(pages_of(memory, PAGE + 5).present()) == [(PAGE, 5)]


def test_memory_with_a_file_behind_it_is_not_told_of() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            memory = mmap.mmap(file.fileno(), SIZE, flags=flags)
            assert PageMap.of(os.getpid(), address(memory), SIZE) is None
    shared = mmap.mmap(-1, SIZE)
    assert PageMap.of(os.getpid(), address(shared), SIZE) is None


def test_what_is_not_mapped_or_gone() -> None:
    memory = mmap.mmap(-1, SIZE, flags=ANONYMOUS)
    assert PageMap.of(os.getpid(), address(memory) + 8, PAGE) is None, "not a page's start"
    assert PageMap.of(os.getpid(), 0, PAGE) is None
    assert PageMap.of(0, address(memory), PAGE) is None
    with pytest.raises(ProtocolError, match="pagemap: No such file"):
        list(PageMap(0, 0, PAGE).present())
