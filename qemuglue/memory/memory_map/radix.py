"""Radix tree: the address is read digit by digit from the top.

A node stands for an aligned piece of the address space and has a slot for each value of the next
digit. A slot is None (all of it is a hole), an index (all of it is in that span) or a node (it is
mixed). So a span of many megabytes ends the search after a few digits, while one whose bounds
are odd goes down to single bytes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

from qemuglue.memory.memory_map.lookup import Span

#: Bits of a digit. A bound can need a node for each digit of it: wider digits make the search
#: shorter and those nodes larger, by more than they are fewer (4 bits: 16 slots each, at most 32
#: nodes a span; 8 bits: 256 slots each, at most 16 nodes).
DIGIT_BITS = 4
#: How far the first digit stands from the lowest bit.
TOP_SHIFT = 64 - DIGIT_BITS

_SLOTS = 1 << DIGIT_BITS
_DIGIT = _SLOTS - 1

_Node = list[Union[int, "_Node", None]]


class RadixLookup:
    """How long it takes depends on the digits to be read, not on the number of regions. In Python
    ``BisectLookup`` is quicker all the same, with one region and with thousands."""

    __slots__ = ("_root",)

    def __init__(self, spans: Sequence[Span]) -> None:
        self._root: _Node = [None] * _SLOTS
        for index, span in enumerate(spans):
            _fill(self._root, TOP_SHIFT, span.start, span.last, index)

    def find(self, addr: int) -> int | None:
        node = self._root
        shift = TOP_SHIFT
        while True:
            slot = node[addr >> shift & _DIGIT]
            if not isinstance(slot, list):
                return slot
            node = slot
            shift -= DIGIT_BITS


def _fill(node: _Node, shift: int, first: int, last: int, index: int) -> None:
    """Say in ``node`` that its addresses ``first`` to ``last`` (both inclusive, both relative to
    the node's own start) are in span ``index``."""
    whole = (1 << shift) - 1
    for digit in range(first >> shift, (last >> shift) + 1):
        base = digit << shift
        low = max(first, base) - base
        high = min(last, base + whole) - base
        if low == 0 and high == whole:
            assert node[digit] is None, "spans are disjoint"
            node[digit] = index
            continue
        slot = node[digit]
        assert not isinstance(slot, int), "spans are disjoint"
        if slot is None:
            slot = [None] * _SLOTS
            node[digit] = slot
        _fill(slot, shift - DIGIT_BITS, low, high, index)
