"""GuestMemoryMmap: guest memory made of mapped regions, in the shape that vm-memory gives it.

``MmapRegion`` is memory without an address, ``GuestRegionMmap`` puts it at one, ``GuestMemoryMmap``
is a collection of these (``src/mmap``). Here nothing is mapped by the operating system: anonymous
memory is a bytearray (or pages, where it is large), and a file gives a backing
(``mapped_file``). So a private mapping of a file is a copy of it as it was, and memory that may not
be written or read is refused, which in Rust ends the process at the first access.

Rust names the bitmap as a type parameter; here it is how to make one:
``GuestMemoryMmap.from_ranges([(GuestAddress(0), 0x1000)], bitmap=AtomicBitmap.with_len)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Self

from qemuglue.errors import ModelError
from qemuglue.memory.backing import Backing, ByteBacking, HostMemory, default_backing
from qemuglue.memory.bitmap import NO_BITMAP, Bitmap
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import ErrorKind, HostAddressNotAvailable
from qemuglue.memory.guest_memory.collection import (
    GuestRegionCollection,
    GuestRegionCollectionError,
)
from qemuglue.memory.guest_memory.file_offset import FileOffset
from qemuglue.memory.guest_memory.mapped_file import PAGE_SIZE, map_file
from qemuglue.memory.guest_memory.mmap_error import (
    FromRangesCollection,
    FromRangesMmapRegion,
    InvalidGuestRegion,
    InvalidPointer,
    MapFixed,
    Mmap,
    MmapRegionError,
)
from qemuglue.memory.guest_memory.region import GuestRegion
from qemuglue.memory.volatile import VolatileMemory, VolatileSlice

#: Linux's numbers, which ``prot`` and ``flags`` are made of.
PROT_READ = 0x1
PROT_WRITE = 0x2
MAP_SHARED = 0x01
MAP_PRIVATE = 0x02
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_NORESERVE = 0x4000

_READ_WRITE = PROT_READ | PROT_WRITE
#: The largest mapping: a length is a positive ``isize``.
MAX_SIZE = (1 << 63) - 1

#: How a bitmap for a number of bytes is made: ``AtomicBitmap.with_len``.
MakeBitmap = Callable[[int], Bitmap]


class MmapRegionBuilder:
    """What a region shall be, told bit by bit: ``MmapRegionBuilder.new(0x1000).build()``.
    As in the crate it begins without permissions, and as an anonymous private mapping."""

    __slots__ = ("_bitmap", "_file", "_flags", "_hugetlbfs", "_prot", "_raw", "_size")

    def __init__(self, size: int, bitmap: Bitmap | None = None) -> None:
        self._size = size
        self._bitmap: Bitmap = NO_BITMAP if bitmap is None else bitmap
        self._prot = 0
        self._flags = MAP_ANONYMOUS | MAP_PRIVATE
        self._file: FileOffset | None = None
        self._raw: Backing | None = None
        self._hugetlbfs: bool | None = None

    @classmethod
    def new(cls, size: int) -> Self:
        """A region of ``size`` bytes that remembers no writes."""
        return cls(size)

    @classmethod
    def new_with_bitmap(cls, size: int, bitmap: Bitmap) -> Self:
        """A region of ``size`` bytes."""
        return cls(size, bitmap)

    def with_mmap_prot(self, prot: int) -> Self:
        """Permissions, of PROT_READ and PROT_WRITE; ``build`` wants both."""
        self._prot = prot
        return self

    def with_mmap_flags(self, flags: int) -> Self:
        """What kind of mapping, of MAP_…."""
        self._flags = flags
        return self

    def with_file_offset(self, file_offset: FileOffset) -> Self:
        """Map a file."""
        self._file = file_offset
        return self

    def with_hugetlbfs(self, hugetlbfs: bool) -> Self:
        """Whether huge pages back it: told on request, and otherwise nothing."""
        self._hugetlbfs = hugetlbfs
        return self

    def with_raw_mmap_pointer(self, backing: Backing) -> Self:
        """Take over memory that is there already; its first ``size`` bytes are the region."""
        self._raw = backing
        return self

    def build(self) -> MmapRegion:
        """The region. Raises MmapRegionError, and ModelError where this package cannot."""
        if self._raw is not None:
            return self._region(self._taken_over(self._raw), owned=False)
        if self._flags & MAP_FIXED:
            raise MapFixed
        if not 0 < self._size <= MAX_SIZE:
            raise Mmap(ErrorKind.INVALID_INPUT, f"no mapping is {self._size:#x} bytes long")
        if self._prot != _READ_WRITE:
            raise ModelError("memory that may not be read and written is not modelled")
        shared, private = self._flags & MAP_SHARED, self._flags & MAP_PRIVATE
        if bool(shared) == bool(private):
            raise Mmap(ErrorKind.INVALID_INPUT, "a mapping is either shared or private")
        if self._flags & MAP_ANONYMOUS:
            return self._region(default_backing(self._size), owned=True)
        if self._file is None:
            raise Mmap(ErrorKind.OTHER, "bad file descriptor")
        backing = map_file(self._file, self._size)
        if private:
            backing = ByteBacking(bytearray(backing.read(0, self._size)))
        return self._region(backing, owned=True)

    def _taken_over(self, backing: Backing) -> Backing:
        if getattr(backing, "host_address", 0) % PAGE_SIZE:
            raise InvalidPointer
        if not 0 < self._size <= len(backing):
            raise ModelError(f"the memory to take over is not {self._size:#x} bytes long")
        return backing

    def _region(self, backing: Backing, *, owned: bool) -> MmapRegion:
        return MmapRegion(
            backing, self._size, bitmap=self._bitmap, file_offset=self._file, prot=self._prot,
            flags=self._flags, owned=owned, hugetlbfs=self._hugetlbfs,
        )


class MmapRegion(VolatileMemory):
    """Mapped memory, without an address of the guest. Made by ``new``, ``from_file``, ``build``,
    ``build_raw`` and ``MmapRegionBuilder``."""

    __slots__ = (
        "_backing", "_bitmap", "_file_offset", "_flags", "_hugetlbfs", "_owned", "_prot", "_size",
    )

    def __init__(
        self, backing: Backing, size: int, *, bitmap: Bitmap, file_offset: FileOffset | None,
        prot: int, flags: int, owned: bool, hugetlbfs: bool | None,
    ) -> None:
        self._backing = backing
        self._size = size
        self._bitmap = bitmap
        self._file_offset = file_offset
        self._prot = prot
        self._flags = flags
        self._owned = owned
        self._hugetlbfs = hugetlbfs

    @classmethod
    def new(cls, size: int, *, bitmap: MakeBitmap | None = None) -> MmapRegion:
        """Anonymous memory, all zero. Raises Mmap for no bytes."""
        return cls.build(None, size, _READ_WRITE, MAP_ANONYMOUS | MAP_NORESERVE | MAP_PRIVATE,
                         bitmap=bitmap)

    @classmethod
    def from_file(
        cls, file_offset: FileOffset, size: int, *, bitmap: MakeBitmap | None = None
    ) -> MmapRegion:
        """A part of a file, shared. Raises as ``build``."""
        return cls.build(file_offset, size, _READ_WRITE, MAP_NORESERVE | MAP_SHARED, bitmap=bitmap)

    @classmethod
    def build(
        cls, file_offset: FileOffset | None, size: int, prot: int, flags: int, *,
        bitmap: MakeBitmap | None = None,
    ) -> MmapRegion:
        """A mapping as told. Raises MapFixed, MappingPastEof and Mmap."""
        builder = _builder(size, bitmap).with_mmap_prot(prot).with_mmap_flags(flags)
        if file_offset is not None:
            builder.with_file_offset(file_offset)
        return builder.build()

    @classmethod
    def build_raw(
        cls, backing: Backing, size: int, prot: int, flags: int, *,
        bitmap: MakeBitmap | None = None,
    ) -> MmapRegion:
        """The first ``size`` bytes of memory that is there already. ``prot`` and ``flags`` are
        told on request. Raises InvalidPointer where its ``host_address`` is no page's."""
        builder = _builder(size, bitmap).with_mmap_prot(prot).with_mmap_flags(flags)
        return builder.with_raw_mmap_pointer(backing).build()

    @property
    def backing(self) -> Backing:
        """Where the bytes are."""
        return self._backing

    def as_ptr(self) -> memoryview:
        """The bytes, as they lie in this process: Python's pointer. Writes through it are noted
        in no bitmap. Raises HostAddressNotAvailable where they do not lie here."""
        if not isinstance(self._backing, HostMemory):
            raise HostAddressNotAvailable
        return memoryview(self._backing.data).cast("B")[: self._size]

    def size(self) -> int:
        """Bytes."""
        return self._size

    def len(self) -> int:
        return self._size

    def get_slice(self, offset: int, count: int) -> VolatileSlice:
        whole = VolatileSlice(self._backing, 0, self._size, bitmap=self._bitmap)
        return whole.get_slice(offset, count)

    def file_offset(self) -> FileOffset | None:
        """The file it is mapped from, where there is one."""
        return self._file_offset

    def prot(self) -> int:
        """The permissions it was mapped with."""
        return self._prot

    def flags(self) -> int:
        """The flags it was mapped with."""
        return self._flags

    def owned(self) -> bool:
        """Whether the memory was made for this region, and not taken over."""
        return self._owned

    def fds_overlap(self, other: MmapRegion) -> bool:
        """Whether both are mapped from the same file object and share bytes of it. Other objects
        may still be the same file."""
        mine, theirs = self._file_offset, other._file_offset
        if mine is None or theirs is None or mine.file() is not theirs.file():
            return False
        if mine.start() < theirs.start():
            return mine.start() + self._size > theirs.start()
        return theirs.start() + other._size > mine.start()

    def set_hugetlbfs(self, hugetlbfs: bool) -> None:
        """Say whether huge pages back it."""
        self._hugetlbfs = hugetlbfs

    def is_hugetlbfs(self) -> bool | None:
        """What was said about huge pages; None if nothing was."""
        return self._hugetlbfs

    def bitmap(self) -> Bitmap:
        """The bitmap itself."""
        return self._bitmap


class GuestRegionMmap(GuestRegion):
    """Mapped memory at a guest address. ``new`` and ``from_range`` make it; they refuse also a
    region that ends exactly at 2^64, as the crate does (``GuestRegion`` takes it)."""

    __slots__ = ("_mapping",)

    def __init__(self, mapping: MmapRegion, guest_base: GuestAddress) -> None:
        super().__init__(
            guest_base, mapping.backing, bitmap=mapping.bitmap(),
            file_offset=mapping.file_offset(), size=mapping.size(),
        )
        self._mapping = mapping

    @classmethod
    def new(cls, mapping: MmapRegion, guest_base: GuestAddress) -> GuestRegionMmap | None:
        """``mapping`` at ``guest_base``; None if base and size together are beyond 2^64-1."""
        if guest_base.raw_value() + mapping.size() >= ADDRESS_END:
            return None
        return cls(mapping, guest_base)

    @classmethod
    def with_arc(cls, mapping: MmapRegion, guest_base: GuestAddress) -> GuestRegionMmap | None:
        """``new``: everything is shared in Python."""
        return cls.new(mapping, guest_base)

    @classmethod
    def from_range(
        cls, addr: GuestAddress, size: int, file: FileOffset | None = None, *,
        bitmap: MakeBitmap | None = None,
    ) -> GuestRegionMmap:
        """Memory for ``size`` bytes at ``addr``: anonymous, or of ``file``. Raises
        FromRangesMmapRegion and InvalidGuestRegion."""
        try:
            if file is None:
                mapping = MmapRegion.new(size, bitmap=bitmap)
            else:
                mapping = MmapRegion.from_file(file, size, bitmap=bitmap)
        except MmapRegionError as error:
            raise FromRangesMmapRegion(error) from error
        made = cls.new(mapping, addr)
        if made is None:
            raise InvalidGuestRegion
        return made

    def get_mmap(self) -> MmapRegion:
        """The memory, to be put at another address."""
        return self._mapping

    def is_hugetlbfs(self) -> bool | None:
        return self._mapping.is_hugetlbfs()


class GuestMemoryMmap(GuestRegionCollection[GuestRegionMmap]):
    """A collection of mapped regions."""

    __slots__ = ()

    @classmethod
    def from_ranges(
        cls, ranges: Iterable[tuple[GuestAddress, int]], *, bitmap: MakeBitmap | None = None
    ) -> Self:
        """Anonymous memory for each (address, size), which must be sorted. Raises
        FromRangesError: for the first range that is wrong in itself, else for all together."""
        return cls.from_ranges_with_files(((*each, None) for each in ranges), bitmap=bitmap)

    @classmethod
    def from_ranges_with_files(
        cls, ranges: Iterable[tuple[GuestAddress, int, FileOffset | None]], *,
        bitmap: MakeBitmap | None = None,
    ) -> Self:
        """Memory for each (address, size, file or None). Raises as ``from_ranges``."""
        regions = [
            GuestRegionMmap.from_range(addr, size, file, bitmap=bitmap)
            for addr, size, file in ranges
        ]
        try:
            return cls.from_regions(regions)
        except GuestRegionCollectionError as error:
            raise FromRangesCollection(error) from error


def _builder(size: int, bitmap: MakeBitmap | None) -> MmapRegionBuilder:
    return MmapRegionBuilder(size, None if bitmap is None else bitmap(size))
