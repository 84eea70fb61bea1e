"""What stands for an address where a plain number may."""

from __future__ import annotations

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import Be64, Le32
from qemuglue.memory.native import NativeU32
from qemuglue.memory.plain_number import plain_number


def test_integers_pass() -> None:
    assert [plain_number(number, "x") for number in (0, True, -1, 1 << 70)] == [0, 1, -1, 1 << 70]
    assert type(plain_number(True, "x")) is int


@pytest.mark.parametrize("other", [Le32(4), Be64(4), NativeU32(4), 4.0, "4", b"4", None])
def test_what_has_a_type_of_its_own_is_refused(other: object) -> None:
    with pytest.raises(ModelError, match=r"^an offset is a number, got "):
        plain_number(other, "an offset is a number")
