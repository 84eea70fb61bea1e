"""What can go wrong when guest memory is mapped: two families, their data, one sentence each."""

from __future__ import annotations

import pickle

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.guest_error import ErrorKind
from qemuglue.memory.guest_memory import (
    FromRangesCollection,
    FromRangesError,
    FromRangesMmapRegion,
    InvalidGuestRegion,
    InvalidPointer,
    MapFixed,
    MappingPastEof,
    Mmap,
    MmapRegionError,
    NoMemoryRegion,
)

ERRORS: list[tuple[ModelError, type[ModelError], str]] = [
    (InvalidPointer(), MmapRegionError, "begin at a page"),
    (MapFixed(), MmapRegionError, "MAP_FIXED"),
    (MappingPastEof(), MmapRegionError, "end of the file"),
    (Mmap(ErrorKind.INVALID_INPUT, "no page"), MmapRegionError, "invalid input: no page"),
    (Mmap(ErrorKind.OTHER), MmapRegionError, "other error"),
    (FromRangesCollection(NoMemoryRegion()), FromRangesError, "no memory region found"),
    (FromRangesMmapRegion(MapFixed()), FromRangesError, "MAP_FIXED"),
    (InvalidGuestRegion(), FromRangesError, "beyond the last address"),
]


@pytest.mark.parametrize(("error", "family", "words"), ERRORS, ids=lambda each: repr(each)[:30])
def test_an_error_has_its_family_and_its_data_and_says_it(
    error: ModelError, family: type[ModelError], words: str
) -> None:
    assert isinstance(error, family) and words in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error)
    for name in ("kind", "text", "error"):
        assert repr(getattr(again, name, None)) == repr(getattr(error, name, None))


def test_the_errors_are_two_families() -> None:
    assert {cls.__name__ for cls in MmapRegionError.__subclasses__()} == {
        "InvalidPointer", "MapFixed", "MappingPastEof", "Mmap",
    }
    assert {cls.__name__ for cls in FromRangesError.__subclasses__()} == {
        "FromRangesCollection", "FromRangesMmapRegion", "InvalidGuestRegion",
    }
