"""The rank test against values worked out by hand and from its definition."""

from __future__ import annotations

from itertools import combinations
from math import comb
from random import Random

import pytest

from qemuglue.campaign.rank import effect, gain, p_value, u_statistic


def test_two_samples_apart_have_the_least_probability() -> None:
    low, high = list(range(10)), list(range(10, 20))
    assert p_value(low, high) == p_value(high, low) == pytest.approx(2 / comb(20, 10))
    assert u_statistic(high, low) == 100
    assert effect(low, high) == 1.0


def test_exact_probabilities_are_those_of_all_deals() -> None:
    first, second = [3.0, 9.0, 4.0, 12.0], [5.0, 20.0, 13.0]
    both = sorted(first + second)
    seen = min(u_statistic(first, second), 12 - u_statistic(first, second))
    as_clear = 0
    for dealt in combinations(both, 4):
        rest = [value for value in both if value not in dealt]
        as_clear += min(u_statistic(dealt, rest), 12 - u_statistic(dealt, rest)) <= seen
    assert p_value(first, second) == pytest.approx(as_clear / comb(7, 4))


def test_no_difference_is_no_evidence() -> None:
    assert p_value([1, 1, 1], [1, 1, 1]) == 1.0
    assert p_value([], [1]) == 1.0
    assert effect([1, 2], [1, 2]) == 0.5


def test_ties_take_the_approximation_which_is_near() -> None:
    rng = Random(1)
    first = [rng.random() for _ in range(12)]
    second = [rng.random() + 0.4 for _ in range(12)]
    tied = p_value([*first, 5.0], [*second, 5.0])
    assert 0.4 < tied / p_value(first, second) < 2.5


def test_false_alarms_are_as_rare_as_said() -> None:
    rng = Random(2)
    alarms = sum(
        p_value([rng.random() for _ in range(8)], [rng.random() for _ in range(8)]) < 0.05
        for _ in range(1000))
    assert 20 <= alarms <= 65


def test_gain_is_of_the_medians() -> None:
    assert gain([1, 2, 3], [2, 3, 100]) == 0.5
    assert gain([0], [1]) == 0.0
