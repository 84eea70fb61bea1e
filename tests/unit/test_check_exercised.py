"""Which accesses a device makes several calls of."""

from __future__ import annotations

import pytest

from qemuglue.campaign.exercised import splits
from qemuglue.memory import Contract
from qemuglue.memory.rules import Rules, rules_for

RULES: Rules = rules_for((10, 0, 2))


@pytest.mark.parametrize("valid_min", [0, 2])
@pytest.mark.parametrize("valid_max", [0, 1, 4, 8])
@pytest.mark.parametrize("impl_min", [0, 1, 4])
@pytest.mark.parametrize("impl_max", [0, 1, 2, 8])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_splits_agrees_with_the_rules(
    valid_min: int, valid_max: int, impl_min: int, impl_max: int, size: int
) -> None:
    contract = Contract(
        valid_min=valid_min, valid_max=valid_max, impl_min=impl_min, impl_max=impl_max)
    chunk = RULES.chunk(contract, size, 0x40)
    refused = RULES.refusal(contract, 0x40, chunk, False) is not None
    several = not refused and len(RULES.pieces(contract, chunk, False)) > 1
    assert splits(contract, size) is several
