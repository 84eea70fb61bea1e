"""Views compared: nothing without a difference, no difference without a change that covers it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qemuglue.campaign.diff.ranges import compare_ranges, joined
from qemuglue.mirror.snapshot import MapRange

LAST = 63


@st.composite
def views(draw: st.DrawFn) -> list[MapRange]:
    edges = sorted(draw(st.sets(st.integers(0, LAST + 1), min_size=2, max_size=12)))
    found = []
    for start, stop in pairwise(edges):
        if draw(st.booleans()):
            continue
        found.append(MapRange(
            start, stop - start, draw(st.sampled_from(("ram", "rom", "i/o"))),
            draw(st.sampled_from("abc")), draw(st.sampled_from((0, start, start + 8))),
            draw(st.sampled_from(("", "x"))), draw(st.booleans()),
        ))
    return found


Answer = tuple[str, int, str, str, bool] | None


def answers(view: list[MapRange]) -> list[Answer]:
    """Who answers at each address, byte by byte."""
    found: list[Answer] = [None] * (LAST + 1)
    for each in view:
        for at in range(each.start, each.last + 1):
            found[at] = (each.name, at - each.start + each.offset, each.type, each.owner,
                         each.nonvolatile)
    return found


@given(views(), views())
def test_every_difference_is_covered_and_nothing_else_is_told(
    before: list[MapRange], after: list[MapRange]
) -> None:
    a, b = answers(before), answers(after)
    found = compare_ranges(before, after)
    assert bool(found) == (a != b), found
    for at in range(LAST + 1):
        if a[at] == b[at]:
            continue
        assert any(
            change.start <= at <= change.last
            or (change.before is not None and change.before.start <= at <= change.before.last)
            or (change.after is not None and change.after.start <= at <= change.after.last)
            for change in found
        ), (at, a[at], b[at], found)


@given(views())
def test_joining_changes_no_answer(view: list[MapRange]) -> None:
    assert answers(joined(view)) == answers(view)
    assert compare_ranges(view, joined(view)) == []
