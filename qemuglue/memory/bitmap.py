"""Bitmaps of what was written: vm-memory's ``Bitmap`` and its slices.

A region's bitmap is told of every write (offset and length in bytes) and can say of an offset
whether it was written since. How finely it remembers is its own affair: ``AtomicBitmap``
(``atomic_bitmap``) knows pages. A *slice* of a bitmap is the same bitmap seen from some offset on;
every ``VolatileSlice`` carries one that begins where it begins.

Names and meaning are those of ``src/bitmap`` in vm-memory 0.18:

================================  =============================================================
in the crate                      here
================================  =============================================================
``Bitmap``                        ``Bitmap``
``BitmapSlice``                   ``BitmapSlice``: slices of it are of its own type
``WithBitmapSlice``, ``BS``       nothing: they are how Rust names the type of a slice
``NewBitmap``                     ``NewBitmap``: made from a length, and with none at all
``()``                            ``NoBitmap``: remembers nothing
``Option<B>``                     ``OptionBitmap``
``BaseSlice<B>``                  ``BaseSlice``; ``RefSlice`` and ``ArcSlice`` are other names
                                  of it, for every Python reference is counted
================================  =============================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

#: Offsets are ``usize``: they wrap here.
_USIZE_MASK = (1 << 64) - 1


class Bitmap(ABC):
    """What was written, at offsets in bytes from 0."""

    __slots__ = ()

    @abstractmethod
    def mark_dirty(self, offset: int, length: int) -> None:
        """Remember that ``length`` bytes from ``offset`` on were written."""

    @abstractmethod
    def dirty_at(self, offset: int) -> bool:
        """Whether the byte at ``offset`` counts as written."""

    @abstractmethod
    def slice_at(self, offset: int) -> BitmapSlice:
        """This bitmap seen from ``offset`` on."""


class BitmapSlice(Bitmap):
    """A part of a bitmap that is a bitmap itself, and whose own slices are of its type."""

    __slots__ = ()

    @abstractmethod
    def slice_at(self, offset: int) -> Self:
        """The same from ``offset`` on."""

    def clone(self) -> Self:
        """Another slice of the same bitmap at the same place."""
        return self.slice_at(0)


class NewBitmap(Bitmap):
    """A bitmap that can be made for a number of bytes."""

    __slots__ = ()

    @classmethod
    @abstractmethod
    def with_len(cls, length: int) -> Self:
        """One for ``length`` bytes, all clean."""

    @classmethod
    def default(cls) -> Self:
        """One for no bytes."""
        return cls.with_len(0)


class NoBitmap(BitmapSlice, NewBitmap):
    """Remembers nothing: everything is clean for ever (Rust: ``()``)."""

    __slots__ = ()

    def mark_dirty(self, offset: int, length: int) -> None:
        """Nothing."""

    def dirty_at(self, offset: int) -> bool:
        """False."""
        return False

    def slice_at(self, offset: int) -> Self:
        """Itself."""
        return self

    @classmethod
    def with_len(cls, length: int) -> Self:
        """As any other."""
        return cls()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoBitmap)

    def __hash__(self) -> int:
        return hash(NoBitmap)

    def __repr__(self) -> str:
        return "NoBitmap()"


#: The one that is meant where none is given.
NO_BITMAP = NoBitmap()


class OptionBitmap(BitmapSlice):
    """A bitmap or none (Rust: ``Option<B>``). Without one everything is clean for ever."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Bitmap | None = None) -> None:
        self._inner = inner

    @property
    def inner(self) -> Bitmap | None:
        """The bitmap, if there is one."""
        return self._inner

    def mark_dirty(self, offset: int, length: int) -> None:
        """Tell the bitmap, if there is one."""
        if self._inner is not None:
            self._inner.mark_dirty(offset, length)

    def dirty_at(self, offset: int) -> bool:
        """What the bitmap says; False without one."""
        return self._inner is not None and self._inner.dirty_at(offset)

    def slice_at(self, offset: int) -> Self:
        """A slice of the bitmap, or still none."""
        return type(self)(None if self._inner is None else self._inner.slice_at(offset))

    def __repr__(self) -> str:
        return f"OptionBitmap({self._inner!r})"


B = TypeVar("B", bound=Bitmap)
N = TypeVar("N", bound=NewBitmap)


class BaseSlice(BitmapSlice, Generic[B]):
    """``inner`` from ``offset`` on. An offset in it that goes beyond 2^64-1 wraps, as in the
    crate: no memory can be there, and what is marked instead is marked in vain only."""

    __slots__ = ("_base", "_inner")

    def __init__(self, inner: B, offset: int = 0) -> None:
        self._inner = inner
        self._base = offset & _USIZE_MASK

    @classmethod
    def default(cls, kind: type[N]) -> BaseSlice[N]:
        """A slice from 0 on of a new bitmap for no bytes."""
        return BaseSlice(kind.default())

    @property
    def inner(self) -> B:
        """The bitmap that this is a slice of."""
        return self._inner

    @property
    def base_offset(self) -> int:
        """Where in it this begins."""
        return self._base

    def mark_dirty(self, offset: int, length: int) -> None:
        """Tell the bitmap, which begins ``base_offset`` before."""
        self._inner.mark_dirty((self._base + offset) & _USIZE_MASK, length)

    def dirty_at(self, offset: int) -> bool:
        """What the bitmap says of ``base_offset + offset``."""
        return self._inner.dirty_at((self._base + offset) & _USIZE_MASK)

    def slice_at(self, offset: int) -> Self:
        """The same bitmap from ``base_offset + offset`` on."""
        return type(self)(self._inner, self._base + offset)

    def __repr__(self) -> str:
        return f"<slice of {self._inner!r} at {self._base:#x}>"


#: The crate's names for a slice that borrows its bitmap and for one that shares it.
RefSlice = BaseSlice
ArcSlice = BaseSlice
