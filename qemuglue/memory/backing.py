"""What a RAM-like region's bytes live in.

The model knows only these protocols; files, shared memory and another process's memory are the
``qemu`` room's.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from qemuglue.errors import ModelError

#: A RAM region made without a backing gets one ``bytearray`` up to here, pages beyond.
MAX_FLAT = 64 << 20


@runtime_checkable
class Backing(Protocol):
    """A fixed number of bytes, addressed by offset from 0."""

    def __len__(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; shorter only at the end of the backing."""

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset``; it must fit."""


@runtime_checkable
class HostMemory(Backing, Protocol):
    """A backing whose bytes can be pointed at: what ``address_space_map`` needs, and what the
    fast paths use. ``data`` may not be resized while a mapping of it is held."""

    @property
    def data(self) -> bytearray | memoryview: ...


class _Flat:
    """Bytes that lie in one piece."""

    __slots__ = ()
    data: bytearray | memoryview

    def __len__(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        if size <= 256:
            return bytes(self.data[offset : offset + size])
        with memoryview(self.data) as view:
            return bytes(view[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        last = offset + len(data)
        if offset < 0 or last > len(self.data):
            raise ModelError(
                f"{len(data)} bytes at {offset:#x} do not fit a backing of {len(self.data):#x}"
            )
        self.data[offset:last] = data


class ByteBacking(_Flat):
    """A backing over one ``bytearray``. ``ByteBacking(size)`` makes its own, all zero and all
    committed."""

    __slots__ = ("data",)

    def __init__(self, size_or_data: int | bytearray) -> None:
        self.data: bytearray = (
            bytearray(size_or_data) if isinstance(size_or_data, int) else size_or_data
        )


class ViewBacking(_Flat):
    """A backing over memory that belongs to something else: a writable, contiguous
    ``memoryview``, taken as bytes. Raises ModelError for any other view."""

    __slots__ = ("data",)

    def __init__(self, view: memoryview) -> None:
        if view.readonly or not view.c_contiguous:
            raise ModelError("a backing needs a writable, contiguous memoryview")
        self.data: memoryview = view.cast("B")


class SparseBacking:
    """A backing of any size that keeps only the pages that were written; the rest is zero."""

    PAGE = 1 << 16

    __slots__ = ("_pages", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._pages: dict[int, bytearray] = {}

    def __len__(self) -> int:
        # len() must fit the machine's word; the two largest sizes of a region do not.
        return min(self._size, (1 << 63) - 1)

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self._size - offset))
        parts = []
        while size > 0:
            number, start = divmod(offset, self.PAGE)
            n = min(size, self.PAGE - start)
            page = self._pages.get(number)
            parts.append(bytes(n) if page is None else bytes(page[start : start + n]))
            offset += n
            size -= n
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        if offset < 0 or offset + len(data) > self._size:
            raise ModelError(
                f"{len(data)} bytes at {offset:#x} do not fit a backing of {self._size:#x}"
            )
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, self.PAGE)
            part = data[at : at + self.PAGE - start]
            page = self._pages.setdefault(number, bytearray(self.PAGE))
            page[start : start + len(part)] = part
            at += len(part)


def default_backing(size: int) -> ByteBacking | SparseBacking:
    """What RAM of ``size`` bytes lives in when nobody says."""
    return ByteBacking(size) if size <= MAX_FLAT else SparseBacking(size)
