"""Guest RAM as a witness, over a QEMU that is a bytearray."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from witness_events import device, space_of

from qemuglue.memory import MemoryRegion, RegionKind
from qemuglue.qemu.libc import differing_parts, differing_ranges
from qemuglue.witness.ram import (
    MAX_DIFFERENCES,
    PAGE,
    Coverage,
    RamDifference,
    RamWitness,
    TrackedBacking,
    _runs,
    joined,
    outside,
    ram_regions,
)
from qemuglue.witness.ramsource import data_extents

SIZE = 16 * PAGE


class FakeSource:
    """QEMU's RAM as bytes of ours; pages that were never touched are holes."""

    coverage = Coverage.SHARED

    def __init__(self, data: bytearray, holes: Iterable[int] = ()) -> None:
        self.data = data
        self.holes = set(holes)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.reads.append((offset, size))
        assert 0 <= offset <= offset + size <= len(self.data), "outside of the region"
        return bytes(self.data[offset : offset + size])

    def differing(self, offset: int, expected: memoryview) -> Iterator[tuple[int, int]]:
        self.reads.append((offset, len(expected)))
        yield from differing_ranges(bytes(self.data[offset : offset + len(expected)]), expected)

    def differing_parts(
        self, expected: memoryview, parts: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        parts = list(parts)
        self.reads.extend(parts)
        return differing_parts(self.data, expected, parts)

    def extents(self) -> Iterable[tuple[int, int]]:
        for page in range(len(self.data) // PAGE):
            if page not in self.holes:
                yield page * PAGE, PAGE


class Guest:
    """One region ``ram`` of 64 KiB in both worlds."""

    def __init__(self, holes: Iterable[int] = ()) -> None:
        self.theirs = bytearray(bytes(range(256)) * (SIZE // 256))
        for page in holes:
            self.theirs[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
        self.source = FakeSource(self.theirs, holes)
        self.region = MemoryRegion.ram("ram", SIZE)
        self.witness = RamWitness()
        self.witness.add(self.region, self.source)
        self.source.reads.clear()

    @property
    def ours(self) -> TrackedBacking:
        backing = self.region.backing
        assert isinstance(backing, TrackedBacking)
        return backing

    def both(self, offset: int, data: bytes) -> None:
        """A write that QEMU does as the model says."""
        self.ours.write(offset, data)
        self.theirs[offset : offset + len(data)] = data


def test_contents_are_taken_over_at_the_start() -> None:
    guest = Guest()
    assert guest.ours.data == guest.theirs
    assert not guest.ours.dirty, "nobody wrote them"
    assert guest.witness.check_all() == []


def test_holes_are_zeros_that_nobody_looks_at() -> None:
    guest = Guest(holes=range(4, 12))
    assert guest.ours.data == guest.theirs
    assert guest.witness.check_all() == []
    looked = {page for offset, size in guest.source.reads
              for page in range(offset // PAGE, (offset + size - 1) // PAGE + 1)}
    assert not looked & set(range(4, 12))


def test_a_write_into_a_hole_is_compared_all_the_same() -> None:
    guest = Guest(holes=range(4, 12))
    guest.ours.write(5 * PAGE, b"\x07")  # QEMU did not
    for check in (guest.witness.check_dirty, guest.witness.check_all):
        guest.ours.write(5 * PAGE, b"\x07")
        [found] = check()
        assert (found.offset, found.model, found.qemu) == (5 * PAGE, b"\x07", b"\0")


def test_a_page_that_qemu_gave_back_is_compared_too() -> None:
    guest = Guest(holes=range(4, 12))
    guest.both(5 * PAGE, b"\x07")
    assert guest.witness.check_all() == []
    guest.theirs[5 * PAGE] = 0  # and its file has a hole there again
    guest.theirs[2 * PAGE : 3 * PAGE] = bytes(PAGE)
    guest.source.holes.add(2)
    found = {each.offset // PAGE for each in guest.witness.check_all()}
    assert found == {2, 5}


def test_zeros_taken_over_cost_nothing() -> None:
    backing = TrackedBacking(1 << 34)
    backing.fill(1 << 33, bytes(1 << 20))
    backing.fill(3 << 32, b"\x01")
    assert backing.data[3 << 32] == 1 and backing.used() == [(1 << 33, 1 << 20), (3 << 32, 1)]
    backing.forget()
    assert backing.data[3 << 32] == 0


def test_namesakes_are_told_apart_in_the_coverage() -> None:
    guest = Guest()
    guest.witness.add(MemoryRegion.ram("ram", PAGE), None)
    assert guest.witness.coverage() == [("ram", "shared", SIZE), ("ram#1", "none", PAGE)]


_PIECES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 8)), max_size=8)


@given(_PIECES, _PIECES)
def test_ranges_outside_of_others(ranges: list[tuple[int, int]], other: list[tuple[int, int]]
                                  ) -> None:
    def items(pieces: Iterable[tuple[int, int]]) -> set[int]:
        return {at for start, size in pieces for at in range(start, start + size)}

    kept = joined(ranges)
    assert items(kept) == items(ranges)
    assert all(sum(a) < b[0] for a, b in pairwise(kept)), "what touches is joined"
    found = list(outside(kept, joined(other)))
    assert items(found) == items(ranges) - items(other)
    assert sum(size for _, size in found) == len(items(found)), "each once"


def test_writes_that_both_did_are_no_difference() -> None:
    guest = Guest()
    guest.both(0x100, b"abc")
    guest.both(PAGE - 2, b"over a page's end")
    assert guest.ours.dirty == {0, 1}
    assert guest.witness.check_dirty() == []
    assert not guest.ours.dirty, "clean now"


def test_only_pages_that_were_written_are_compared() -> None:
    guest = Guest()
    guest.both(3 * PAGE + 5, b"x")
    guest.both(4 * PAGE, b"y")
    guest.both(9 * PAGE, b"z")
    assert guest.witness.check_dirty() == []
    assert guest.source.reads == [(3 * PAGE, 2 * PAGE), (9 * PAGE, PAGE)], "neighbours at once"


@pytest.mark.parametrize("where", [0, 7, PAGE - 1, PAGE, SIZE - 1])
def test_a_byte_that_the_model_did_not_write(where: int) -> None:
    guest = Guest()
    guest.theirs[where] ^= 0xFF
    assert guest.witness.check_dirty() == [], "no page of it is dirty"
    [found] = guest.witness.check_all()
    assert (found.region, found.offset, found.last) == (guest.region, where, where)
    assert found.qemu == bytes([guest.theirs[where]])
    assert found.model == bytes([guest.theirs[where] ^ 0xFF])


def test_a_byte_that_qemu_did_not_write() -> None:
    guest = Guest()
    guest.ours.write(2 * PAGE + 9, b"\x99\x99")
    [found] = guest.witness.check_dirty()
    assert (found.offset, found.model) == (2 * PAGE + 9, b"\x99\x99")
    assert "ram+0x2009 (2 bytes): model 9999, QEMU " in found.describe()


def test_runs_of_differences_are_told_apart() -> None:
    guest = Guest()
    for where in (1, 2, 3, 7, PAGE + 5):
        guest.theirs[where] ^= 1
    found = guest.witness.check_all()
    assert [(each.offset, len(each.qemu)) for each in found] == [(1, 3), (7, 1), (PAGE + 5, 1)]


def test_a_flood_of_differences_is_cut() -> None:
    guest = Guest()
    for where in range(0, PAGE, 2):
        guest.theirs[where] ^= 1
    assert len(guest.witness.check_all()) == MAX_DIFFERENCES


def test_long_differences_are_shown_in_part() -> None:
    region = MemoryRegion.ram("ram", SIZE)
    text = RamDifference(region, 0, bytes(100), b"\xff" * 100).describe()
    assert text.count("…") == 2 and len(text) < 200


# -- taking over -----------------------------------------------------------------------------


def test_adopt_takes_what_qemu_has() -> None:
    guest = Guest()
    guest.theirs[5:9] = b"DMA!"
    [found] = guest.witness.check_all()
    guest.witness.adopt(found)
    assert guest.ours.data == guest.theirs and guest.witness.check_all() == []


def test_adopt_all_takes_a_flood_too() -> None:
    guest = Guest()
    for where in range(0, 2 * PAGE, 2):
        guest.theirs[where] ^= 1
    guest.witness.adopt_all()
    assert guest.ours.data == guest.theirs
    assert guest.witness.adopt_all() == 0


def test_adopt_range_takes_only_the_range() -> None:
    guest = Guest()
    guest.theirs[0x100:0x110] = b"0123456789abcdef"
    guest.theirs[0x200] ^= 1
    assert guest.witness.adopt_range(guest.region, 0x100, 0x10)
    assert not guest.witness.adopt_range(guest.region, 0x100, 0x10), "nothing differs there now"
    [found] = guest.witness.check_all()
    assert found.offset == 0x200, "a stray write stays a difference"


def test_adopt_range_stays_inside_the_region() -> None:
    guest = Guest()
    guest.theirs[-1] ^= 1
    assert guest.witness.adopt_range(guest.region, SIZE - 4, 0x1000)
    assert len(guest.ours.data) == SIZE and guest.ours.data == guest.theirs
    assert not guest.witness.adopt_range(MemoryRegion.ram("other", 16), 0, 4)


# -- regions -------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_said_to_be_uncovered() -> None:
    guest = Guest()
    hidden = MemoryRegion("vga.vram", PAGE, RegionKind.RAM)
    guest.witness.add(hidden, None)
    assert hidden in guest.witness.uncovered and hidden.backing is None
    assert guest.witness.coverage() == [("ram", "shared", SIZE), ("vga.vram", "none", PAGE)]
    assert guest.witness.check_all() == []


def test_released_regions_keep_nothing() -> None:
    guest = Guest()
    guest.witness.release()
    assert guest.region.backing is None and not guest.witness.sources
    assert guest.witness.check_all() == []


def test_regions_whose_bytes_are_memory() -> None:
    ram = MemoryRegion.ram("ram", PAGE)
    rom = MemoryRegion.rom("rom", PAGE)
    romd = MemoryRegion.rom_device("flash", PAGE, device().contract)
    ramd = MemoryRegion("vfio", PAGE, RegionKind.RAM_DEVICE)
    low, high = (MemoryRegion.alias_of(name, ram, 0, 0x100) for name in ("low", "high"))
    space = space_of((0x10000, ram), (0, low), (0x1000, high), (0x20000, rom), (0x30000, romd),
                     (0x40000, ramd), (0x50000, device()))
    assert list(ram_regions(space.view)) == [ram, rom, romd], "each once, a RAM device is none"


@given(st.sets(st.integers(0, 40)))
def test_neighbouring_pages_are_joined(pages: set[int]) -> None:
    runs = list(_runs(pages))
    assert [page for first, count in runs for page in range(first, first + count)] == sorted(pages)
    assert all(a + n < b for (a, n), (b, _) in pairwise(runs))


@given(st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=60)), max_size=6))
def test_a_tracked_backing_knows_every_page_it_wrote(
    writes: list[tuple[int, bytes]]
) -> None:
    backing = TrackedBacking(SIZE)
    touched: set[int] = set()
    for number, (at, data) in enumerate(writes):
        offset = number * PAGE + PAGE - 100 + at
        backing.write(offset, data)
        touched.update(where // PAGE for where in range(offset, offset + len(data)))
    assert backing.dirty == touched


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 255)), max_size=30))
def test_every_stray_byte_is_found(flips: list[tuple[int, int]]) -> None:
    guest = Guest()
    for where, mask in flips:
        guest.theirs[where] ^= mask
    wrong = {where for where in range(SIZE) if guest.theirs[where] != guest.ours.data[where]}
    found = {where for each in guest.witness.check_all()
             for where in range(each.offset, each.last + 1)}
    assert found == wrong


def test_holes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(0x40000)
        file.write(b"x" * PAGE)
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        extents = list(data_extents(file.fileno(), 1 << 20))
        assert list(data_extents(file.fileno(), 0)) == []
    covered = {at for start, size in extents for at in range(start, start + size, PAGE)}
    assert 0x40000 in covered and all(start + size <= 1 << 20 for start, size in extents)
