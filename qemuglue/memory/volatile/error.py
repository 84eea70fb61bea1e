"""What can go wrong with an access to a slice of memory.

::

    ModelError
    └── VolatileMemoryError
        ├── OutOfBounds           the access ends, or begins, outside the slice (addr)
        ├── Overflow              its end is beyond 2^64-1 (base, offset)
        ├── TooBig                so many elements have no size in bytes (nelements, size)
        ├── Misaligned            an address is no multiple of what it must be (addr, alignment)
        ├── VolatileIOError       the stream to read or write failed (kind, text)
        └── VolatilePartialBuffer only part of a buffer was moved (expected, completed)

Names and fields are those of ``volatile_memory::Error`` in vm-memory 0.18
(``src/volatile_memory.rs``); ``IOError`` and ``PartialBuffer`` have "Volatile" before them because
``guest_error`` has two of these names already. ``guest_error_of`` is the crate's ``From`` into the
errors of guest memory, which loses the data of the first four.
"""

from __future__ import annotations

from typing import SupportsIndex

from qemuglue.errors import ModelError
from qemuglue.memory.byte_valued import ByteValuedType
from qemuglue.memory.guest_error import (
    GuestIOError,
    GuestMemoryError,
    InvalidBackendAddress,
    IOReason,
    MovedInPart,
    PartialBuffer,
)

#: ``usize`` of the hosts that vm-memory 0.18 builds for; an offset is below this.
USIZE_END = 1 << 64
#: What an ``isize`` can hold: no object is larger.
ISIZE_MAX = (1 << 63) - 1


class VolatileMemoryError(ModelError):
    """Root of these errors; never raised itself."""


class OutOfBounds(VolatileMemoryError):
    """``addr`` is outside the slice: the first byte of an access that moves what it can, and
    the end (exclusive) of one that must fit. From ``VolatileSlice.offset`` it is the host's
    address, as in the crate."""

    def __init__(self, addr: int) -> None:
        self.addr = addr
        super().__init__(addr)

    def __str__(self) -> str:
        return f"address {self.addr:#x} is out of bounds"


class Overflow(VolatileMemoryError):
    """``base`` plus ``offset`` is beyond 2^64-1."""

    def __init__(self, base: int, offset: int) -> None:
        self.base = base
        self.offset = offset
        super().__init__(base, offset)

    def __str__(self) -> str:
        return f"address {self.base:#x} plus {self.offset:#x} is beyond 2^64-1"


class TooBig(VolatileMemoryError):
    """``nelements`` elements of ``size`` bytes are more than 2^63-1 bytes."""

    def __init__(self, nelements: int, size: int) -> None:
        self.nelements = nelements
        self.size = size
        super().__init__(nelements, size)

    def __str__(self) -> str:
        return f"{self.nelements} elements of {self.size} bytes are more than 2^63-1 bytes"


class Misaligned(VolatileMemoryError):
    """``addr`` (of the host; see ``VolatileSlice.host_addr``) is no multiple of ``alignment``."""

    def __init__(self, addr: int, alignment: int) -> None:
        self.addr = addr
        self.alignment = alignment
        super().__init__(addr, alignment)

    def __str__(self) -> str:
        return f"address {self.addr:#x} is not aligned to {self.alignment}"


class VolatileIOError(IOReason, VolatileMemoryError):
    """The stream cannot do this (Rust: ``IOError``)."""


class VolatilePartialBuffer(MovedInPart, VolatileMemoryError):
    """Part of a buffer was moved (Rust: ``PartialBuffer``)."""


def guest_error_of(error: VolatileMemoryError) -> GuestMemoryError:
    """The same as an error of guest memory, with ``error`` as its ``__cause__``: what an
    operation on guest memory raises when the slice in it does."""
    guest: GuestMemoryError
    if isinstance(error, VolatileIOError):
        guest = GuestIOError(error.kind, error.text)
    elif isinstance(error, VolatilePartialBuffer):
        guest = PartialBuffer(error.expected, error.completed)
    else:
        guest = InvalidBackendAddress()
    guest.__cause__ = error
    return guest


def compute_offset(base: int, offset: int) -> int:
    """``base`` plus ``offset``. Raises Overflow beyond 2^64-1."""
    total = usize(base) + usize(offset)
    if total >= USIZE_END:
        raise Overflow(base, offset)
    return total


def usize(number: SupportsIndex) -> int:
    """``number`` as an offset or a count: 0 to 2^64-1. Raises ModelError for anything else, a
    value that knows its bytes included: that is more likely in the place of an offset."""
    if type(number) is int and 0 <= number < USIZE_END:
        return number
    if isinstance(number, ByteValuedType) or not isinstance(number, int):
        raise ModelError(f"an offset in a slice is a plain number, got {number!r}")
    if not 0 <= number < USIZE_END:
        raise ModelError(f"an offset is 0 to 2^64-1, got {int(number):#x}")
    return int(number)
