"""memcmp and holes: the calls that Python does not have."""

from __future__ import annotations

import os
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.errors import UsageError
from qemuglue.qemu import libc


def naive(left: bytes, right: bytes) -> list[tuple[int, int]]:
    out = []
    for differs, run in groupby(enumerate(zip(left, right, strict=True)),
                                lambda item: item[1][0] != item[1][1]):
        places = [index for index, _ in run]
        if differs:
            out.append((places[0], len(places)))
    return out


@given(st.data())
def test_differing_ranges_against_a_byte_loop(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 20_000))
    left = bytes(size)
    right = bytearray(size)
    for _ in range(data.draw(st.integers(0, 4))):
        start = data.draw(st.integers(0, size))
        length = data.draw(st.integers(0, size - start))
        right[start:start + length] = b"\1" * length
    expected = naive(left, bytes(right))
    assert list(libc.differing_ranges(left, right)) == expected
    assert list(libc.differing_ranges(memoryview(left), memoryview(right))) == expected


@given(st.binary(min_size=1, max_size=300), st.data())
def test_differing_parts_are_those_whose_bytes_differ(left: bytes, data: st.DataObject) -> None:
    right = bytearray(left)
    for at in data.draw(st.lists(st.integers(0, len(left) - 1), max_size=4)):
        right[at] ^= 0x40
    place = st.tuples(st.integers(0, len(left)), st.integers(0, 40))
    parts = [(at, min(size, len(left) - at)) for at, size in data.draw(st.lists(place))]
    expected = [(at, size) for at, size in parts if left[at:at + size] != right[at:at + size]]
    assert libc.differing_parts(left, memoryview(right), parts) == expected


@pytest.mark.parametrize("part", [(-1, 1), (0, 5), (4, 1), (0, -1), (5, 0)])
def test_a_part_outside_is_refused(part: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="not inside"):
        libc.differing_parts(b"abcd", b"abcd", [part])
    with pytest.raises(UsageError, match="cannot compare"):
        libc.differing_parts(b"abcd", b"abc", [])


def test_differing_ranges_across_large_blocks() -> None:
    left = bytearray(3 << 20)
    right = bytearray(3 << 20)
    for start, size in ((0, 1), ((1 << 20) - 3, 9), ((2 << 20), 8192), ((3 << 20) - 1, 1)):
        right[start:start + size] = b"\xff" * size
    assert list(libc.differing_ranges(left, right)) == [
        (0, 1), ((1 << 20) - 3, 9), (2 << 20, 8192), ((3 << 20) - 1, 1)]
    assert next(libc.differing_ranges(left, right)) == (0, 1)


def test_differing_ranges_refuses() -> None:
    assert list(libc.differing_ranges(b"", b"")) == []
    with pytest.raises(UsageError):
        list(libc.differing_ranges(b"a", b"ab"))
    with pytest.raises(BufferError):  # strided: not bytes in a row
        list(libc.differing_ranges(memoryview(b"abcd")[::2], b"ac"))


def test_punch_hole() -> None:
    fd = os.memfd_create("test")
    try:
        os.write(fd, b"x" * (1 << 20))
        assert libc.punch_hole(fd, 0, 1 << 19)
        assert os.fstat(fd).st_size == 1 << 20
        assert os.fstat(fd).st_blocks * 512 <= 1 << 19
        assert os.pread(fd, 2, (1 << 19) - 1) == b"\0x"
    finally:
        os.close(fd)
    assert not libc.punch_hole(fd, 0, 4096)
