"""What can go wrong with an access through vm-memory's interface.

::

    ModelError
    └── GuestMemoryError
        ├── InvalidGuestAddress     nothing there that may be accessed (addr)
        ├── GuestIOError            the access itself cannot be done (kind, text)
        ├── PartialBuffer           only part of a buffer was moved (expected, completed)
        ├── InvalidBackendAddress   the region refused the access
        ├── HostAddressNotAvailable the region's bytes cannot be pointed at
        ├── CallbackOutOfRange      a callback said it moved more than it was given
        ├── GuestAddressOverflow    the access goes on beyond 2^64-1
        └── IommuError              the IOMMU does not translate the address (error)

Names and fields are those of ``GuestMemoryError`` in vm-memory 0.18 (``src/guest_memory.rs``);
``IOError`` is named ``GuestIOError`` because Python has an IOError of its own. As there, an error
says nothing of data that was moved before it: only PartialBuffer does.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from qemuglue.errors import ModelError
from qemuglue.memory.guest_address import GuestAddress

if TYPE_CHECKING:
    from qemuglue.memory.guest_memory.iommu import TranslationError


class GuestMemoryError(ModelError):
    """Root of these errors; never raised itself."""


class InvalidGuestAddress(GuestMemoryError):
    """There is nothing at ``addr``, or nothing that this access may touch."""

    def __init__(self, addr: GuestAddress) -> None:
        self.addr = addr
        super().__init__(addr)

    def __str__(self) -> str:
        return f"invalid guest address {self.addr.raw_value():#x}"


class ErrorKind(enum.Enum):
    """Why a ``GuestIOError``: the kinds of ``std::io::ErrorKind`` that occur here."""

    INVALID_INPUT = "invalid input"
    INTERRUPTED = "interrupted"
    UNEXPECTED_EOF = "unexpected end of file"
    WRITE_ZERO = "nothing was written"
    WOULD_BLOCK = "operation would block"
    BROKEN_PIPE = "broken pipe"
    OTHER = "other error"


class IOReason(ModelError):
    """What errors have in common that carry an ``io::Error``; never raised itself."""

    def __init__(self, kind: ErrorKind, text: str = "") -> None:
        self.kind = kind
        self.text = text
        super().__init__(kind, text)

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.text}" if self.text else self.kind.value


class MovedInPart(ModelError):
    """What errors have in common that count: ``completed`` bytes of ``expected`` were moved, and
    stay moved. The error that stopped the rest, where there is one, is the ``__cause__``. Never
    raised itself."""

    def __init__(self, expected: int, completed: int) -> None:
        self.expected = expected
        self.completed = completed
        super().__init__(expected, completed)

    def __str__(self) -> str:
        return f"only {self.completed} bytes of {self.expected} were moved"


class GuestIOError(IOReason, GuestMemoryError):
    """The access, or the stream it was to read or write, cannot do this (Rust: ``IOError``)."""


class PartialBuffer(MovedInPart, GuestMemoryError):
    """Part of a buffer was moved; see ``MovedInPart``."""


class InvalidBackendAddress(GuestMemoryError):
    """The region does not take this access. Over QEMU this stands for every MemTxResult other
    than OK; which one it was is lost."""

    def __str__(self) -> str:
        return "invalid backend address"


class HostAddressNotAvailable(GuestMemoryError):
    """The region has no bytes that could be pointed at."""

    def __str__(self) -> str:
        return "host virtual address not available"


class CallbackOutOfRange(GuestMemoryError):
    """A callback said it moved more bytes than it was given."""

    def __str__(self) -> str:
        return "the callback moved more than it was given"


class GuestAddressOverflow(GuestMemoryError):
    """The access goes on beyond the last address. Ending exactly there is no overflow."""

    def __str__(self) -> str:
        return "the access goes beyond the last guest address"


class IommuError(GuestMemoryError):
    """The I/O address could not be translated: ``error``, of ``guest_memory.iommu``, says why.
    The access was not begun."""

    def __init__(self, error: TranslationError) -> None:
        self.error = error
        super().__init__(error)

    def __str__(self) -> str:
        return str(self.error)


def some_or_error(done: int, error: GuestMemoryError | None) -> int:
    """How ``Bytes.read`` and ``write`` tell ``error``, which ended an access after ``done`` bytes:
    raised if there are none, else the count is short."""
    if error is not None and not done:
        raise error
    return done


def all_or_error(expected: int, done: int, error: GuestMemoryError | None) -> None:
    """How the ``_slice`` forms tell it: raised if nothing was moved, else PartialBuffer with it as
    ``__cause__``. No error and all moved: nothing."""
    if error is not None and not done:
        raise error
    if done != expected:
        raise PartialBuffer(expected, done) from error
