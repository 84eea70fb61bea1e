"""AtomicBitmap: which pages were written, told by many threads at once.

vm-memory's (``src/bitmap/backend/atomic_bitmap.rs``, 0.18). One bit per page of ``page_size``
bytes; offsets count from 0. Nothing here fails for an offset or index that is out of range: such
bits are always clear, and setting or clearing them does nothing.
"""

from __future__ import annotations

import mmap
import threading

from qemuglue.errors import ModelError
from qemuglue.memory.bitmap import BaseSlice, NewBitmap

#: Bits in one word of ``get_and_reset``.
WORD_BITS = 64
#: The page size of ``AtomicBitmap.default()``, and of one whose maker gives none.
DEFAULT_PAGE_SIZE = 0x1000

_USIZE_MAX = (1 << 64) - 1
#: One byte per page becomes the digits of a binary number.
_DIGITS = bytes.maketrans(b"\x00\x01", b"01")


class AtomicBitmap(NewBitmap):
    """One bit for each of the pages that ``byte_size`` bytes begin, all clear at first.

    Raises ModelError for a page size of 0, which Rust's ``NonZeroUsize`` cannot hold.

    Any number of threads may use one at once: a page that is marked is seen marked by every
    ``dirty_at`` after that, and by exactly one ``get_and_reset``. The crate has an atomic
    integer for 64 pages; this has a byte for each, changed under a lock. So the crate's
    ``get_and_reset`` is atomic for each word, this one for the whole bitmap.
    """

    __slots__ = ("_byte_size", "_lock", "_page_size", "_pages")

    def __init__(self, byte_size: int, page_size: int = DEFAULT_PAGE_SIZE) -> None:
        if not 0 < page_size <= _USIZE_MAX:
            raise ModelError(f"a page is 1 to 2^64-1 bytes, got {page_size}")
        self._byte_size = _size(byte_size)
        self._page_size = page_size
        # Reading a byte needs no lock: it is there as a whole. Writers hold it, since a range
        # that is set while the pages are taken away must not be lost.
        self._lock = threading.Lock()
        self._pages = bytearray(-(-byte_size // page_size))

    @classmethod
    def with_len(cls, length: int) -> AtomicBitmap:
        """One for ``length`` bytes, with the page size of this host."""
        return cls(length, mmap.PAGESIZE)

    @classmethod
    def default(cls) -> AtomicBitmap:
        """One for no bytes, with pages of 4 KiB; ``enlarge`` it."""
        return cls(0)

    # -- size --------------------------------------------------------------------------------

    def len(self) -> int:
        """Bits, that is pages."""
        return len(self._pages)

    def __len__(self) -> int:
        return len(self._pages)

    def byte_size(self) -> int:
        """Bytes that the bitmap speaks of."""
        return self._byte_size

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return self._page_size

    def enlarge(self, additional_size: int) -> None:
        """Speak of ``additional_size`` more bytes, whose pages are clear. The last page of
        before may now have more bytes; it stays as it was. Raises ModelError where the sum is
        beyond 2^64-1 (Rust panics or wraps)."""
        with self._lock:
            self._byte_size = _size(self._byte_size + _size(additional_size))
            pages = -(-self._byte_size // self._page_size)
            self._pages.extend(bytes(pages - len(self._pages)))

    # -- bits --------------------------------------------------------------------------------

    def is_bit_set(self, index: int) -> bool:
        """Whether page number ``index`` is marked."""
        pages = self._pages
        return 0 <= index < len(pages) and pages[index] != 0

    def is_addr_set(self, addr: int) -> bool:
        """Whether the page of the byte at ``addr`` is marked."""
        return self.is_bit_set(addr // self._page_size)

    def set_bit(self, index: int) -> None:
        """Mark page number ``index``."""
        self._put(index, 1)

    def reset_bit(self, index: int) -> None:
        """Clear page number ``index``."""
        self._put(index, 0)

    def set_addr_range(self, start_addr: int, length: int) -> None:
        """Mark the pages of the ``length`` bytes from ``start_addr`` on; none for no bytes.
        A range that goes beyond 2^64-1 ends there."""
        self._put_range(start_addr, length, b"\x01")

    def reset_addr_range(self, start_addr: int, length: int) -> None:
        """Clear them: the first and the last also where the range covers only part of them."""
        self._put_range(start_addr, length, b"\x00")

    def get_and_reset(self) -> list[int]:
        """Every bit in words of 64, page 0 the lowest bit of the first, and clear them all."""
        with self._lock:
            taken = bytes(self._pages)
            self._pages[:] = bytes(len(taken))
        return [
            int(taken[at : at + WORD_BITS].translate(_DIGITS)[::-1], 2)
            for at in range(0, len(taken), WORD_BITS)
        ]

    def reset(self) -> None:
        """Clear every bit."""
        with self._lock:
            self._pages[:] = bytes(len(self._pages))

    def clone(self) -> AtomicBitmap:
        """Another bitmap with the same bits, which then go their own way."""
        other = AtomicBitmap(0, self._page_size)
        with self._lock:
            other._byte_size = self._byte_size
            other._pages = bytearray(self._pages)
        return other

    # -- as a Bitmap -------------------------------------------------------------------------

    def mark_dirty(self, offset: int, length: int) -> None:
        """``set_addr_range``."""
        self._put_range(offset, length, b"\x01")

    def dirty_at(self, offset: int) -> bool:
        """``is_addr_set``."""
        return self.is_bit_set(offset // self._page_size)

    def slice_at(self, offset: int) -> BaseSlice[AtomicBitmap]:
        """This bitmap from ``offset`` on; what is marked there is marked here."""
        return BaseSlice(self, offset)

    # -- inside ------------------------------------------------------------------------------

    def _put(self, index: int, bit: int) -> None:
        with self._lock:
            if 0 <= index < len(self._pages):
                self._pages[index] = bit

    def _put_range(self, start_addr: int, length: int, bit: bytes) -> None:
        if length <= 0:
            return
        first = start_addr // self._page_size
        last = min(start_addr + length - 1, _USIZE_MAX) // self._page_size
        with self._lock:
            count = min(last + 1, len(self._pages)) - first
            if count > 0:
                self._pages[first : first + count] = bit * count

    def __repr__(self) -> str:
        return f"<AtomicBitmap of {len(self)} pages of {self._page_size:#x} bytes>"


def _size(number: int) -> int:
    if not 0 <= number <= _USIZE_MAX:
        raise ModelError(f"a bitmap speaks of 0 to 2^64-1 bytes, got {number:#x}")
    return number
