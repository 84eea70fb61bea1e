"""AtomicBitmap: pages, ranges, growth, and many threads."""

from __future__ import annotations

import mmap
import sys
import threading
from collections.abc import Callable

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_bitmap import AtomicBitmap

USIZE_MAX = (1 << 64) - 1


def bits(bitmap: AtomicBitmap) -> list[int]:
    return [index for index in range(bitmap.len()) if bitmap.is_bit_set(index)]


@pytest.mark.parametrize(
    "size, page, pages",
    [(1025, 128, 9), (1024, 128, 8), (0, 128, 0), (1, 128, 1), (128, 128, 1), (129, 128, 2),
     (5, 1, 5), (5, USIZE_MAX, 1)],
)
def test_every_page_that_is_begun_has_a_bit(size: int, page: int, pages: int) -> None:
    bitmap = AtomicBitmap(size, page)
    assert (bitmap.len(), len(bitmap), bitmap.byte_size()) == (pages, pages, size)
    assert bitmap.page_size == page
    assert bits(bitmap) == []


def test_a_range_marks_the_pages_it_touches() -> None:
    bitmap = AtomicBitmap(1024, 128)
    bitmap.set_addr_range(128, 129)
    assert [bitmap.is_addr_set(at) for at in (0, 127, 128, 255, 256, 383, 384)] == [
        False, False, True, True, True, True, False,
    ]
    for start, length, pages in (
        (0, 0, []), (0, 1, [0]), (127, 1, [0]), (127, 2, [0, 1]), (128, 128, [1]),
        (130, 250, [1, 2]), (1023, 1, [7]), (0, 1024, list(range(8))),
    ):
        bitmap.reset()
        bitmap.set_addr_range(start, length)
        assert bits(bitmap) == pages
        assert [index * 128 for index in pages] == [
            at for at in range(0, 1024, 128) if bitmap.dirty_at(at)
        ]


def test_a_range_is_cleared_by_the_pages_it_touches() -> None:
    bitmap = AtomicBitmap(1024, 128)
    bitmap.set_addr_range(128, 129)
    bitmap.reset_addr_range(128, 129)
    assert bits(bitmap) == []
    bitmap.set_addr_range(0, 1024)
    bitmap.reset_addr_range(200, 100)
    assert bits(bitmap) == [0, 3, 4, 5, 6, 7]
    bitmap.reset_addr_range(0, 0)
    assert bits(bitmap) == [0, 3, 4, 5, 6, 7]


def test_get_and_reset_gives_words_and_clears() -> None:
    bitmap = AtomicBitmap(1024, 128)
    bitmap.set_addr_range(128, 129)
    assert bitmap.get_and_reset() == [0b110]
    assert bits(bitmap) == []
    assert bitmap.get_and_reset() == [0]
    wide = AtomicBitmap(130, 1)
    for index in (0, 1, 63, 64, 100, 127, 128, 129):
        wide.set_bit(index)
    assert wide.get_and_reset() == [1 << 63 | 3, 1 | 1 << 36 | 1 << 63, 3]
    assert AtomicBitmap(0, 1).get_and_reset() == []
    assert len(AtomicBitmap(64, 1).get_and_reset()) == 1
    assert len(AtomicBitmap(65, 1).get_and_reset()) == 2


def test_a_copy_goes_its_own_way() -> None:
    bitmap = AtomicBitmap(1025, 128)
    bitmap.set_addr_range(128, 129)
    copy = bitmap.clone()
    bitmap.reset()
    assert (bits(bitmap), bits(copy)) == ([], [1, 2])
    assert (copy.len(), copy.byte_size(), copy.page_size) == (9, 1025, 128)
    copy.set_bit(8)
    assert not bitmap.is_bit_set(8)


def test_single_bits() -> None:
    bitmap = AtomicBitmap(1024, 128)
    bitmap.set_bit(7)
    bitmap.set_bit(2)
    bitmap.reset_bit(2)
    bitmap.reset_bit(3)
    assert bits(bitmap) == [7]


def test_what_is_out_of_range_is_ignored() -> None:
    bitmap = AtomicBitmap(1024, 1)
    bitmap.set_addr_range(768, 512)
    assert bits(bitmap) == list(range(768, 1024))
    for addr in (1024, 1152, USIZE_MAX):
        assert not bitmap.is_addr_set(addr)
        assert not bitmap.is_bit_set(addr)
        bitmap.set_bit(addr)
        bitmap.reset_bit(addr)
        bitmap.set_addr_range(addr, 5)
        bitmap.reset_addr_range(addr, 5)
    bitmap.reset_bit(-1)
    assert bits(bitmap) == list(range(768, 1024))
    assert not bitmap.is_bit_set(-1)
    bitmap.reset()
    bitmap.set_bit(-1)
    assert bits(bitmap) == []


def test_a_range_beyond_the_last_address_saturates() -> None:
    bitmap = AtomicBitmap(1024, 128)
    bitmap.set_addr_range(1000, USIZE_MAX)
    assert bits(bitmap) == [7]
    bitmap.set_addr_range(500, USIZE_MAX)
    assert bits(bitmap) == [3, 4, 5, 6, 7]
    bitmap.reset_addr_range(600, USIZE_MAX)
    assert bits(bitmap) == [3]
    # A page so large that the last address is in the first one.
    huge = AtomicBitmap(USIZE_MAX, 1 << 63)
    assert huge.len() == 2
    huge.set_addr_range(5, USIZE_MAX)
    assert bits(huge) == [0, 1]


def test_growth_keeps_the_old_bits_and_clears_the_new() -> None:
    bitmap = AtomicBitmap(8 * 1024, 128)
    bitmap.set_addr_range(128, 129)
    bitmap.enlarge(8 * 1024)
    assert (bitmap.len(), bitmap.byte_size(), bits(bitmap)) == (128, 16 * 1024, [1, 2])
    for index in (55, *range(65, 128)):
        bitmap.set_bit(index)
    assert bits(bitmap) == [1, 2, 55, *range(65, 128)]
    bitmap.reset_addr_range(0, 16 * 1024)
    assert bits(bitmap) == []


def test_growth_within_a_page_adds_no_bit() -> None:
    bitmap = AtomicBitmap(100, 128)
    bitmap.set_bit(0)
    bitmap.enlarge(28)
    assert (bitmap.len(), bitmap.byte_size(), bits(bitmap)) == (1, 128, [0])
    bitmap.enlarge(1)
    assert (bitmap.len(), bitmap.byte_size(), bits(bitmap)) == (2, 129, [0])
    bitmap.enlarge(0)
    assert bitmap.len() == 2


def test_the_ways_to_make_one() -> None:
    assert AtomicBitmap.with_len(mmap.PAGESIZE + 1).len() == 2
    assert AtomicBitmap.with_len(5).page_size == mmap.PAGESIZE
    default = AtomicBitmap.default()
    assert (default.len(), default.byte_size(), default.page_size) == (0, 0, 4096)
    default.enlarge(8192)
    assert default.len() == 2
    assert AtomicBitmap(0x2000).len() == 2
    assert "2 pages of 0x1000 bytes" in repr(AtomicBitmap(0x2000))


def test_sizes_that_cannot_be_are_refused() -> None:
    for size, page in ((0, 0), (0, -1), (-1, 128), (USIZE_MAX + 1, 128), (0, USIZE_MAX + 1)):
        with pytest.raises(ModelError):
            AtomicBitmap(size, page)
    bitmap = AtomicBitmap(USIZE_MAX, USIZE_MAX)
    for more in (1, -1):
        with pytest.raises(ModelError):
            bitmap.enlarge(more)
    assert (bitmap.len(), bitmap.byte_size()) == (1, USIZE_MAX)


def test_threads_set_bits_at_once() -> None:
    bitmap = AtomicBitmap(8 * 1000, 1)
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        # Neighbouring bits of one word, by different threads.
        for index in range(number, 8 * 1000, 8):
            bitmap.set_bit(index)

    run([lambda number=number: work(number) for number in range(8)])
    assert bits(bitmap) == list(range(8 * 1000))


class Spy:
    """A lock that remembers what the bits were when it was taken and given back."""

    def __init__(self, bitmap: AtomicBitmap) -> None:
        self.bitmap = bitmap
        self.seen: list[list[int]] = []

    def __enter__(self) -> None:
        self.seen.append(bits(self.bitmap))

    def __exit__(self, *_: object) -> None:
        self.seen.append(bits(self.bitmap))


@pytest.mark.parametrize(
    "change",
    [lambda b: b.set_bit(5), lambda b: b.reset_bit(3), lambda b: b.set_addr_range(1, 4),
     lambda b: b.reset_addr_range(2, 3), lambda b: b.mark_dirty(7, 1), lambda b: b.get_and_reset(),
     lambda b: b.reset(), lambda b: b.slice_at(6).mark_dirty(0, 2)],
)
def test_every_change_is_made_as_one_under_the_lock(
    change: Callable[[AtomicBitmap], object]
) -> None:
    bitmap = AtomicBitmap(8, 1)
    bitmap.set_addr_range(2, 2)
    bitmap._lock = spy = Spy(bitmap)  # type: ignore[assignment]
    change(bitmap)
    assert spy.seen == [[2, 3], bits(bitmap)] != [[2, 3], [2, 3]]


def test_growth_and_copies_are_made_under_the_lock() -> None:
    bitmap = AtomicBitmap(8, 1)
    bitmap._lock = spy = Spy(bitmap)  # type: ignore[assignment]
    bitmap.enlarge(5)
    bitmap.clone()
    assert len(spy.seen) == 4


def test_no_mark_is_lost_or_given_twice_while_the_bits_are_taken() -> None:
    pages = 64 * 300
    bitmap = AtomicBitmap(pages, 1)
    words: list[list[int]] = []
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            words.append(bitmap.get_and_reset())

    def mark(first: int) -> None:
        for index in range(first, pages, 2):
            bitmap.mark_dirty(index, 1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads take turns inside of a call, too
    try:
        collector = threading.Thread(target=collect)
        collector.start()
        run([lambda: mark(0), lambda: mark(1)])
        done.set()
        collector.join()
    finally:
        sys.setswitchinterval(before)
    words.append(bitmap.get_and_reset())
    assert len(words) > 2
    # Each bit was set once, so the sum of what was taken is every bit, without a carry.
    assert [sum(column) for column in zip(*words, strict=True)] == [(1 << 64) - 1] * 300


def run(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
