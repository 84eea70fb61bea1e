"""What can go wrong when guest memory is mapped.

::

    ModelError
    ├── MmapRegionError
    │   ├── InvalidPointer        memory mapped elsewhere does not begin at a page
    │   ├── MapFixed              MAP_FIXED was asked for
    │   ├── MappingPastEof        the file ends before the mapping
    │   └── Mmap                  the mapping itself is refused (kind, text)
    └── FromRangesError
        ├── FromRangesCollection  the regions make no collection (error)
        ├── FromRangesMmapRegion  a region cannot be mapped (error)
        └── InvalidGuestRegion    a region goes on beyond the last address

Names and fields are those of ``mmap::unix::Error`` and ``FromRangesError`` in vm-memory 0.18, with
"FromRanges" before two that are other things' names too. Two of the crate's are not here, for
nothing raises them there since 0.17: ``InvalidOffsetLength`` (an offset and a length that overflow
are ``Mmap``, INVALID_INPUT, as the kernel answers) and ``MappingOverlap`` (``fds_overlap`` tells).
``MappingPastEof`` is not raised by 0.18 either, which maps such a file and dies of SIGBUS at the
first access behind its end; a backing has nothing behind its end that could be mapped.
"""

from __future__ import annotations

from qemuglue.errors import ModelError
from qemuglue.memory.guest_error import IOReason
from qemuglue.memory.guest_memory.collection import GuestRegionCollectionError


class MmapRegionError(ModelError):
    """Root of the first family; never raised itself."""


class InvalidPointer(MmapRegionError):
    """The memory does not begin at a page."""

    def __str__(self) -> str:
        return "the memory to take over does not begin at a page"


class MapFixed(MmapRegionError):
    """MAP_FIXED is forbidden: the caller does not say where."""

    def __str__(self) -> str:
        return "MAP_FIXED makes no sense here"


class MappingPastEof(MmapRegionError):
    """The file ends before the mapping does."""

    def __str__(self) -> str:
        return "the mapping would go on beyond the end of the file"


class Mmap(IOReason, MmapRegionError):
    """The mapping is refused (Rust: ``Mmap(io::Error)``)."""


class FromRangesError(ModelError):
    """Root of the second family; never raised itself."""


class FromRangesCollection(FromRangesError):
    """``error``: the regions make no collection (Rust: ``Collection``)."""

    def __init__(self, error: GuestRegionCollectionError) -> None:
        self.error = error
        super().__init__(error)

    def __str__(self) -> str:
        return f"the regions make no collection: {self.error}"


class FromRangesMmapRegion(FromRangesError):
    """``error``: a region cannot be mapped (Rust: ``MmapRegion``)."""

    def __init__(self, error: MmapRegionError) -> None:
        self.error = error
        super().__init__(error)

    def __str__(self) -> str:
        return f"a region cannot be mapped: {self.error}"


class InvalidGuestRegion(FromRangesError):
    """Address and length of a region together are beyond 2^64-1."""

    def __str__(self) -> str:
        return "guest address and length of a region are beyond the last address"
