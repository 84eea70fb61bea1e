"""Bitmaps: what remembers nothing, what may be there, and slices of either."""

from __future__ import annotations

import pytest
from volatile_bench import Marks

from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.bitmap import (
    NO_BITMAP,
    ArcSlice,
    BaseSlice,
    Bitmap,
    BitmapSlice,
    NewBitmap,
    NoBitmap,
    OptionBitmap,
    RefSlice,
)

USIZE_MAX = (1 << 64) - 1


def dirty(bitmap: Bitmap, start: int, length: int) -> list[int]:
    return [at for at in range(start, start + length) if bitmap.dirty_at(at)]


@pytest.mark.parametrize(
    "bitmap",
    [AtomicBitmap(0x800, 128), AtomicBitmap(0x800, 1), AtomicBitmap(0x800, 1).slice_at(0),
     OptionBitmap(AtomicBitmap(0x800, 128)), Marks(), BaseSlice(BaseSlice(Marks(), 5), 7)],
    ids=lambda bitmap: repr(bitmap).split()[0],
)
def test_a_bitmap_and_its_slice_see_the_same_marks(bitmap: Bitmap) -> None:
    part = bitmap.slice_at(0x400)
    assert dirty(bitmap, 0, 0x800) == dirty(part, 0, 0x100) == []
    bitmap.mark_dirty(0x400, 0x100)
    assert dirty(bitmap, 0, 0x800) == list(range(0x400, 0x500))
    assert dirty(part, 0, 0x400) == list(range(0x100))
    part.mark_dirty(0x200, 0x80)
    assert dirty(bitmap, 0x500, 0x300) == list(range(0x600, 0x680))


def test_no_bitmap_remembers_nothing() -> None:
    for bitmap in (NoBitmap(), NoBitmap.with_len(100), NoBitmap.default(), NO_BITMAP):
        bitmap.mark_dirty(0, 100)
        assert not bitmap.dirty_at(0)
        assert bitmap.slice_at(50) == bitmap.clone() == NoBitmap()
        assert not bitmap.slice_at(50).dirty_at(0)
    assert isinstance(NO_BITMAP, BitmapSlice) and isinstance(NO_BITMAP, NewBitmap)
    assert OptionBitmap() != NO_BITMAP
    assert hash(NO_BITMAP) == hash(NoBitmap())
    assert repr(NO_BITMAP) == "NoBitmap()"


def test_what_a_bitmap_of_ones_own_must_have() -> None:
    assert Bitmap.__abstractmethods__ == {"mark_dirty", "dirty_at", "slice_at"}
    assert BitmapSlice.__abstractmethods__ == {"mark_dirty", "dirty_at", "slice_at"}
    assert NewBitmap.__abstractmethods__ == {"mark_dirty", "dirty_at", "slice_at", "with_len"}


def test_an_optional_bitmap_is_told_if_it_is_there() -> None:
    marks = Marks()
    some, none = OptionBitmap(marks), OptionBitmap()
    for bitmap in (some, none):
        bitmap.mark_dirty(3, 2)
        bitmap.slice_at(10).slice_at(5).mark_dirty(0, 1)
        bitmap.clone().mark_dirty(20, 1)
    assert marks.told == [(3, 2), (15, 1), (20, 1)]
    assert dirty(some, 0, 30) == [3, 4, 15, 20]
    assert dirty(none, 0, 30) == []
    assert (some.inner, none.inner, none.slice_at(4).inner) == (marks, None, None)
    assert repr(none) == "OptionBitmap(None)"


def test_a_slice_of_a_slice_adds_its_offset() -> None:
    marks = Marks()
    part = BaseSlice(marks, 0x100)
    deeper = part.slice_at(0x20)
    deeper.mark_dirty(3, 4)
    assert marks.told == [(0x123, 4)]
    assert (deeper.inner, deeper.base_offset) == (marks, 0x120)
    assert deeper.dirty_at(6) and not deeper.dirty_at(7) and part.dirty_at(0x23)
    copy = deeper.clone()
    assert (type(copy), copy.base_offset) == (BaseSlice, 0x120)
    assert RefSlice is ArcSlice is BaseSlice
    assert repr(deeper).endswith("at 0x120>")


def test_a_default_slice_is_of_a_default_bitmap() -> None:
    part = ArcSlice.default(AtomicBitmap)
    assert (part.base_offset, type(part.inner), part.inner.len()) == (0, AtomicBitmap, 0)


def test_an_offset_in_a_slice_wraps() -> None:
    marks = Marks()
    part = BaseSlice(marks, USIZE_MAX)
    part.mark_dirty(4, 1)
    assert marks.told == [(3, 1)]
    assert part.dirty_at(4) and not part.dirty_at(3)
    assert part.slice_at(2).base_offset == 1
    assert BaseSlice(marks, USIZE_MAX + 3).base_offset == 2
