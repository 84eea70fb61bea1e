"""The order of siblings: priority first, then what the text and the flat views tell.

QEMU keeps equal priorities newest first, and the tree text sorts them by address instead. What
stays known: those at the same address print in their true order. Everything else is a base
order (a guess, or what held before) bent by pair orders.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def arrange(
    items: Sequence[T], priority: Callable[[T], int], pairs: Collection[tuple[T, T]]
) -> list[T] | None:
    """``items`` by priority, highest first; equals stay in the order given except where
    ``pairs`` (first before second) say otherwise.

    Pairs of different priority, or of strangers, have no effect. None if the pairs contradict
    one another. The result is the one closest to the given order: the next is always the
    earliest item that nothing outstanding must precede.
    """
    groups: defaultdict[int, list[T]] = defaultdict(list)
    for item in items:
        groups[priority(item)].append(item)
    arranged: list[T] = []
    for level in sorted(groups, reverse=True):
        group = groups[level]
        if pairs and len(group) > 1:
            ordered = _topological(group, pairs)
            if ordered is None:
                return None
            group = ordered
        arranged.extend(group)
    return arranged


def _topological(group: list[T], pairs: Collection[tuple[T, T]]) -> list[T] | None:
    rank = {item: number for number, item in enumerate(group)}
    after: defaultdict[int, list[int]] = defaultdict(list)
    waiting = [0] * len(group)
    for first, second in pairs:
        one, other = rank.get(first), rank.get(second)
        if one is not None and other is not None:
            after[one].append(other)
            waiting[other] += 1
    if not after:
        return group
    ready = [number for number, count in enumerate(waiting) if not count]
    ordered: list[T] = []
    while ready:
        number = heapq.heappop(ready)
        ordered.append(group[number])
        for other in after[number]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, other)
    return ordered if len(ordered) == len(group) else None
