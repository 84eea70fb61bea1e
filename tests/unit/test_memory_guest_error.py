"""vm-memory's errors: their data, their place in the tree, one sentence each."""

import pickle

import pytest

from qemuglue.errors import ModelError, QemuglueError
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import (
    CallbackOutOfRange,
    ErrorKind,
    GuestAddressOverflow,
    GuestIOError,
    GuestMemoryError,
    HostAddressNotAvailable,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)

ERRORS: list[tuple[GuestMemoryError, dict[str, object], str]] = [
    (InvalidGuestAddress(addr=GuestAddress(0x1234)), {"addr": GuestAddress(0x1234)}, "0x1234"),
    (GuestIOError(kind=ErrorKind.INVALID_INPUT, text="too wide"),
     {"kind": ErrorKind.INVALID_INPUT, "text": "too wide"}, "invalid input: too wide"),
    (GuestIOError(ErrorKind.OTHER), {"kind": ErrorKind.OTHER, "text": ""}, "other error"),
    (PartialBuffer(expected=8, completed=3), {"expected": 8, "completed": 3}, "3 bytes of 8"),
    (InvalidBackendAddress(), {}, "backend address"),
    (HostAddressNotAvailable(), {}, "host virtual address"),
    (CallbackOutOfRange(), {}, "callback"),
    (GuestAddressOverflow(), {}, "last guest address"),
]


@pytest.mark.parametrize(("error", "fields", "words"), ERRORS, ids=lambda value: repr(value)[:30])
def test_an_error_has_its_data_and_says_it(
    error: GuestMemoryError, fields: dict[str, object], words: str
) -> None:
    assert isinstance(error, GuestMemoryError) and isinstance(error, ModelError)
    assert isinstance(error, QemuglueError)
    assert {name: getattr(error, name) for name in fields} == fields
    assert words in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(("error", "fields", "words"), ERRORS, ids=lambda value: repr(value)[:30])
def test_an_error_travels_between_processes(
    error: GuestMemoryError, fields: dict[str, object], words: str
) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert {name: getattr(again, name) for name in fields} == fields


def test_every_variant_of_vm_memory_is_there() -> None:
    """Other faces have leaves of their own beside them."""
    its_own = {
        cls.__name__ for cls in GuestMemoryError.__subclasses__()
        if cls.__module__ == GuestMemoryError.__module__
    }
    assert its_own == {
        "InvalidGuestAddress", "GuestIOError", "PartialBuffer", "InvalidBackendAddress",
        "HostAddressNotAvailable", "CallbackOutOfRange", "GuestAddressOverflow",
        "IommuError",
    }
