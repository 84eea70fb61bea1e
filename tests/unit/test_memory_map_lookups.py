"""The three lookups of the first memory model, case by case; all of them give the same."""

from __future__ import annotations

import pytest

from qemuglue.memory.guest_address import ADDRESS_END
from qemuglue.memory.memory_map import (
    BisectLookup,
    LinearLookup,
    Lookup,
    LookupMaker,
    RadixLookup,
    Span,
)
from qemuglue.memory.memory_map.radix import DIGIT_BITS

LOOKUPS = (LinearLookup, BisectLookup, RadixLookup)
LAST = ADDRESS_END - 1


@pytest.fixture(params=LOOKUPS, ids=lambda cls: cls.__name__)
def make(request: pytest.FixtureRequest) -> LookupMaker:
    made: LookupMaker = request.param
    return made


def found(lookup: Lookup, *addrs: int) -> list[int | None]:
    return [lookup.find(addr) for addr in addrs]


def test_first_and_last_address_of_a_span_are_in_it(make: LookupMaker) -> None:
    lookup = make([Span(0x1000, 0x400)])
    assert found(lookup, 0, 0xFFF, 0x1000, 0x13FF, 0x1400, LAST) == [
        None, None, 0, 0, None, None
    ]


def test_spans_that_adjoin_are_told_apart(make: LookupMaker) -> None:
    lookup = make([Span(0x1000, 0x800), Span(0x1800, 0x7FF), Span(0x1FFF, 1)])
    assert found(lookup, 0x17FF, 0x1800, 0x1FFE, 0x1FFF, 0x2000) == [0, 1, 1, 2, None]


def test_holes_between_spans_are_nowhere(make: LookupMaker) -> None:
    lookup = make([Span(0x10, 0x10), Span(0x30, 0x10)])
    assert found(lookup, 0xF, 0x10, 0x1F, 0x20, 0x2F, 0x30, 0x3F, 0x40) == [
        None, 0, 0, None, None, 1, 1, None
    ]


def test_single_bytes_side_by_side_and_apart(make: LookupMaker) -> None:
    lookup = make([Span(0, 1), Span(1, 1), Span(3, 1), Span(0x1_0000_0000, 1)])
    assert found(lookup, 0, 1, 2, 3, 4, 0xFFFF_FFFF, 0x1_0000_0000, 0x1_0000_0001) == [
        0, 1, None, 2, None, None, 3, None
    ]


def test_a_span_that_ends_with_the_address_space(make: LookupMaker) -> None:
    lookup = make([Span(0, 1), Span(LAST - 0xF, 0x10)])
    assert found(lookup, 0, 1, LAST - 0x10, LAST - 0xF, LAST) == [0, None, None, 1, 1]


def test_one_span_that_is_all_there_is(make: LookupMaker) -> None:
    lookup = make([Span(0, ADDRESS_END)])
    assert found(lookup, 0, 1 << 63, LAST) == [0, 0, 0]


def test_no_span_at_all(make: LookupMaker) -> None:
    assert found(make([]), 0, 0x1000, LAST) == [None, None, None]


def test_two_halves_meet_in_the_middle(make: LookupMaker) -> None:
    half = 1 << 63
    lookup = make([Span(0, half), Span(half, half)])
    assert found(lookup, 0, half - 1, half, LAST) == [0, 0, 1, 1]


def test_bounds_at_every_digit_of_the_radix_tree(make: LookupMaker) -> None:
    """A span from just above a power of 16 to just below the next is cut at each digit."""
    for shift in range(DIGIT_BITS, 64, DIGIT_BITS):
        start, last = (1 << shift) + 1, (1 << shift + DIGIT_BITS) - 2
        lookup = make([Span(start, last - start + 1)])
        assert found(lookup, start - 1, start, last, last + 1) == [None, 0, 0, None], hex(start)


def test_a_span_may_have_odd_bounds_on_both_sides_of_another(make: LookupMaker) -> None:
    spans = [Span(0x0FF1, 0x1235), Span(0x2226, 3), Span(0x2229, 0xF_FFFF)]
    lookup = make(spans)
    for number, span in enumerate(spans):
        assert found(lookup, span.start, span.last) == [number, number]
    assert found(lookup, 0x0FF0, spans[2].last + 1) == [None, None]


def test_a_large_span_takes_few_nodes() -> None:
    """2 GiB of aligned memory is said in the digits that they differ in, not page by page."""
    lookup = RadixLookup([Span(0, 0x8000_0000), Span(0x1_0000_0000, 0x8000_0000)])
    nodes, stack = 0, [lookup._root]
    while stack:
        node = stack.pop()
        nodes += 1
        stack += [slot for slot in node if isinstance(slot, list)]
    assert nodes == 10, "eight down to where they part, and one for each"


@pytest.mark.parametrize(
    ("start", "size"), [(0, 0), (-1, 1), (LAST, 2), (0, ADDRESS_END + 1), (1, ADDRESS_END)]
)
def test_a_span_is_at_least_a_byte_and_ends_with_the_address_space(start: int, size: int) -> None:
    with pytest.raises(AssertionError):
        Span(start, size)


def test_the_last_address_of_a_span_is_inclusive() -> None:
    assert Span(0x1000, 0x400).last == 0x13FF
    assert Span(LAST, 1).last == LAST
