"""What can go wrong in the first rust-vmm memory model.

::

    GuestMemoryError
    └── MemoryMapError
        ├── NoMemoryRegions           a map of nothing
        ├── MemoryRegionOverlap       regions overlap, or are not sorted (addr)
        ├── MemoryMappingFailed       there cannot be such a mapping (text)
        ├── InvalidGuestAddressRange  the range does not lie in one region (addr, size)
        ├── MemoryAccess              a mapping could not do it (addr, error)
        ├── InvalidAddress            outside the mapping (offset, size)
        ├── InvalidRange              a stream would leave the mapping (offset, count)
        ├── ReadFromSource            the source gave no more (kind, text, expected, completed)
        └── WriteToDestination        the destination took no more (likewise)

Names are those of its two error enums (``GuestMemory``'s and ``MemoryMapping``'s; Firecracker's
``memory_model``, the code that seed and first crate were cut from); InvalidGuestAddress and
PartialBuffer are ``guest_error``'s. What differs:

- InvalidAddress had no data. ReadFromSource stood also for a destination that refused, and
  neither told how much was moved.
- ReadFromMemory and WriteToMemory could not happen and are left out, as are MemoryNotInitialized
  and SystemCallFailed: a mapping is made over bytes that are already there.
"""

from __future__ import annotations

from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import ErrorKind, GuestMemoryError


class MemoryMapError(GuestMemoryError):
    """Root of these errors; never raised itself."""


class NoMemoryRegions(MemoryMapError):
    """A map needs at least one region."""

    def __str__(self) -> str:
        return "no memory regions were given"


class MemoryRegionOverlap(MemoryMapError):
    """The region at ``addr`` begins before the one listed before it ends."""

    def __init__(self, addr: GuestAddress) -> None:
        self.addr = addr
        super().__init__(addr)

    def __str__(self) -> str:
        return (
            f"the region at {self.addr.raw_value():#x} begins before the end of the one before it"
        )


class MemoryMappingFailed(MemoryMapError):
    """There cannot be such a mapping, or not at that address."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)


class InvalidGuestAddressRange(MemoryMapError):
    """No region holds all ``size`` bytes from ``addr`` on. Nothing was moved."""

    def __init__(self, addr: GuestAddress, size: int) -> None:
        self.addr = addr
        self.size = size
        super().__init__(addr, size)

    def __str__(self) -> str:
        return f"no region holds all {self.size} bytes from {self.addr.raw_value():#x} on"


class MemoryAccess(MemoryMapError):
    """What a mapping said to an access that began at ``addr``; the ``__cause__`` as well."""

    def __init__(self, addr: GuestAddress, error: GuestMemoryError) -> None:
        self.addr = addr
        self.error = error
        super().__init__(addr, error)

    @property
    def completed(self) -> int:
        """Bytes that were moved before the error, and stay moved."""
        return int(getattr(self.error, "completed", 0))

    def __str__(self) -> str:
        return f"access at {self.addr.raw_value():#x}: {self.error}"


class InvalidAddress(MemoryMapError):
    """``offset`` lies outside the mapping, or an object of ``size`` bytes there leaves it.
    Nothing was moved."""

    def __init__(self, offset: int, size: int) -> None:
        self.offset = offset
        self.size = size
        super().__init__(offset, size)

    def __str__(self) -> str:
        return f"{self.size} bytes at offset {self.offset:#x} are not in the mapping"


class InvalidRange(MemoryMapError):
    """A stream of ``count`` bytes at ``offset`` leaves the mapping. Nothing was moved."""

    def __init__(self, offset: int, count: int) -> None:
        self.offset = offset
        self.count = count
        super().__init__(offset, count)

    def __str__(self) -> str:
        return f"a stream of {self.count} bytes at offset {self.offset:#x} leaves the mapping"


class _StreamError(MemoryMapError):
    """``completed`` bytes of ``expected`` were moved, and stay moved."""

    def __init__(self, kind: ErrorKind, text: str, expected: int, completed: int) -> None:
        self.kind = kind
        self.text = text
        self.expected = expected
        self.completed = completed
        super().__init__(kind, text, expected, completed)

    def __str__(self) -> str:
        why = f"{self.kind.value}: {self.text}" if self.text else self.kind.value
        return f"{why}, after {self.completed} bytes of {self.expected}"


class ReadFromSource(_StreamError):
    """The source gave only ``completed`` of ``expected`` bytes; those are in memory."""


class WriteToDestination(_StreamError):
    """The destination took only ``completed`` of ``expected`` bytes."""
