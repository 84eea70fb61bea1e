"""The errors of slices: their data, their words, and what they become in guest memory."""

from __future__ import annotations

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.endian import Le16
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestIOError,
    InvalidBackendAddress,
    PartialBuffer,
)
from qemuglue.memory.native import NativeU8
from qemuglue.memory.volatile import (
    Misaligned,
    OutOfBounds,
    Overflow,
    TooBig,
    VolatileIOError,
    VolatileMemoryError,
    VolatilePartialBuffer,
    compute_offset,
    guest_error_of,
)
from qemuglue.memory.volatile.error import usize

USIZE_MAX = (1 << 64) - 1

ERRORS = [
    (OutOfBounds(0x65), "address 0x65 is out of bounds"),
    (Overflow(0x10, 0x20), "address 0x10 plus 0x20 is beyond 2^64-1"),
    (TooBig(3, 4), "3 elements of 4 bytes are more than 2^63-1 bytes"),
    (Misaligned(0x11, 8), "address 0x11 is not aligned to 8"),
    (VolatileIOError(ErrorKind.UNEXPECTED_EOF), "unexpected end of file"),
    (VolatileIOError(ErrorKind.OTHER, "no disk"), "other error: no disk"),
    (VolatilePartialBuffer(5, 2), "only 2 bytes of 5 were moved"),
]


@pytest.mark.parametrize("error, text", ERRORS)
def test_an_error_says_what_happened(error: VolatileMemoryError, text: str) -> None:
    assert str(error) == text
    assert isinstance(error, ModelError)


def test_errors_have_data() -> None:
    assert OutOfBounds(7).addr == 7
    assert (Overflow(1, 2).base, Overflow(1, 2).offset) == (1, 2)
    assert (TooBig(1, 2).nelements, TooBig(1, 2).size) == (1, 2)
    assert (Misaligned(1, 2).addr, Misaligned(1, 2).alignment) == (1, 2)
    assert (VolatilePartialBuffer(3, 2).expected, VolatilePartialBuffer(3, 2).completed) == (3, 2)
    error = VolatileIOError(ErrorKind.WRITE_ZERO, "full")
    assert (error.kind, error.text) == (ErrorKind.WRITE_ZERO, "full")


@pytest.mark.parametrize("error", [error for error, _ in ERRORS[:4]])
def test_where_the_slice_ends_is_lost_in_guest_memory(error: VolatileMemoryError) -> None:
    guest = guest_error_of(error)
    assert type(guest) is InvalidBackendAddress
    assert guest.__cause__ is error


def test_counts_and_stream_errors_are_kept_in_guest_memory() -> None:
    partial = guest_error_of(VolatilePartialBuffer(5, 2))
    assert isinstance(partial, PartialBuffer)
    assert (partial.expected, partial.completed) == (5, 2)
    io_error = guest_error_of(VolatileIOError(ErrorKind.OTHER, "no disk"))
    assert isinstance(io_error, GuestIOError)
    assert (io_error.kind, io_error.text) == (ErrorKind.OTHER, "no disk")


def test_compute_offset_adds_up_to_the_last_number() -> None:
    assert compute_offset(100, 8) == 108
    assert compute_offset(USIZE_MAX - 6, 6) == USIZE_MAX
    for base, offset in ((USIZE_MAX, 6), (6, USIZE_MAX), (USIZE_MAX, 1)):
        with pytest.raises(Overflow) as caught:
            compute_offset(base, offset)
        assert (caught.value.base, caught.value.offset) == (base, offset)


def test_an_offset_is_a_plain_number() -> None:
    assert usize(0) == 0
    assert usize(USIZE_MAX) == USIZE_MAX
    assert type(usize(True)) is int
    for wrong in (-1, USIZE_MAX + 1, 1.0, "1", None, Le16(1), NativeU8(1)):
        with pytest.raises(ModelError, match="offset"):
            usize(wrong)  # type: ignore[arg-type]
