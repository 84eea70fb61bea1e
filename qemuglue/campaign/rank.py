"""Mann-Whitney's rank test: do two samples come from the same distribution?

Nothing is assumed of the distributions; with ten runs a side the exact probabilities are used
(every way to deal the ranks out is counted), with ties or larger samples the normal approximation
with the correction for ties and continuity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from statistics import median

#: Samples up to this size are counted exactly, if no two values are the same.
EXACT = 25


def u_statistic(first: Sequence[float], second: Sequence[float]) -> float:
    """How many pairs (a of ``first``, b of ``second``) have a > b; a tie counts one half."""
    return sum((a > b) + 0.5 * (a == b) for a in first for b in second)


def p_value(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided: how likely a difference at least as clear would be if there were none.

    1.0 where a sample is empty.
    """
    n, m = len(first), len(second)
    if not n or not m:
        return 1.0
    u = u_statistic(first, second)
    counts = Counter([*first, *second])
    if max(n, m) <= EXACT and max(counts.values()) == 1:
        smaller = int(min(u, n * m - u))
        ways = sum(_ways(n, m, each) for each in range(smaller + 1))
        return min(1.0, 2.0 * ways / math.comb(n + m, n))
    total = n + m
    ties = sum(count**3 - count for count in counts.values())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def effect(first: Sequence[float], second: Sequence[float]) -> float:
    """The chance that a run of ``second`` beats one of ``first`` (Vargha and Delaney's A): 0.5 is
    no difference."""
    pairs = len(first) * len(second)
    return u_statistic(second, first) / pairs if pairs else 0.5


def gain(first: Sequence[float], second: Sequence[float]) -> float:
    """How much larger the median of ``second`` is, as a share of the median of ``first``."""
    base = median(first) if first else 0.0
    return median(second) / base - 1.0 if base and second else 0.0


@lru_cache(maxsize=1 << 16)
def _ways(n: int, m: int, u: int) -> int:
    """In how many orders of n and m things exactly ``u`` pairs are the other way round."""
    if u < 0:
        return 0
    if n == 0 or m == 0:
        return int(u == 0)
    return _ways(n - 1, m, u - m) + _ways(n, m - 1, u)
