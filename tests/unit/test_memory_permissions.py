"""Permissions: what is granted against what is wanted."""

from __future__ import annotations

import itertools

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.guest_memory.permissions import Permissions

NO, READ, WRITE, BOTH = (
    Permissions.No, Permissions.Read, Permissions.Write, Permissions.ReadWrite,
)
#: What each of them lets one do, said without bits.
GRANTS: dict[Permissions, frozenset[str]] = {
    NO: frozenset(), READ: frozenset("r"), WRITE: frozenset("w"), BOTH: frozenset("rw"),
}
PAIRS = list(itertools.product(Permissions, repeat=2))


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_intersection_is_what_both_grant(left: Permissions, right: Permissions) -> None:
    assert GRANTS[left & right] == GRANTS[left] & GRANTS[right]


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_union_is_what_either_grants(left: Permissions, right: Permissions) -> None:
    assert GRANTS[left | right] == GRANTS[left] | GRANTS[right]


@pytest.mark.parametrize(("granted", "wanted"), PAIRS)
def test_an_access_is_allowed_when_all_it_wants_is_granted(
    granted: Permissions, wanted: Permissions
) -> None:
    assert granted.allow(wanted) == (GRANTS[wanted] <= GRANTS[granted])


@pytest.mark.parametrize("granted", list(Permissions))
def test_has_write(granted: Permissions) -> None:
    assert granted.has_write() == ("w" in GRANTS[granted])


def test_the_numbers_are_the_crates_and_turn_back() -> None:
    assert [p.value for p in (NO, READ, WRITE, BOTH)] == [0, 1, 2, 3]
    assert all(Permissions.from_repr(p.value) is p for p in Permissions)


@pytest.mark.parametrize("raw", [4, -1, 7])
def test_no_other_number_is_a_permission(raw: int) -> None:
    with pytest.raises(ModelError, match="0 to 3"):
        Permissions.from_repr(raw)


def test_it_is_no_number() -> None:
    assert READ != 1  # type: ignore[comparison-overlap]
    with pytest.raises(TypeError):
        READ | 2  # type: ignore[operator]
    with pytest.raises(TypeError):
        READ & 1  # type: ignore[operator]
