"""The verdict table adds up and travels as JSON."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemuglue.witness.verdict import SOFT, Kind, Tally, Verdict

COUNTS = st.integers(1, 1 << 40)
WORDS = st.dictionaries(st.text(min_size=1, max_size=20), COUNTS, max_size=4)
TALLIES = st.builds(
    lambda cells, verbs, reasons, sides: Tally(
        Counter(cells), Counter(verbs), Counter(reasons), Counter(sides)),
    st.dictionaries(st.tuples(st.sampled_from(Kind), st.sampled_from(Verdict)), COUNTS),
    WORDS, WORDS, WORDS,
)


@given(TALLIES)
def test_it_travels_as_json(tally: Tally) -> None:
    again = Tally.from_json(json.loads(json.dumps(tally.to_json())))
    assert again == tally


@given(TALLIES, TALLIES)
def test_sums(one: Tally, two: Tally) -> None:
    both = Tally()
    both.add(one)
    both.add(two)
    assert both.total == one.total + two.total
    for verdict in Verdict:
        assert both.of(verdict) == one.of(verdict) + two.of(verdict)
    for kind in Kind:
        assert both.kind(kind) == one.kind(kind) + two.kind(kind)
    assert sum(both.of(verdict) for verdict in Verdict) == both.total
    assert 0 <= both.soft_share <= 1
    assert both.reasons == one.reasons + two.reasons
    assert both.side_accesses == one.side_accesses + two.side_accesses


def test_what_is_no_judgement() -> None:
    assert set(SOFT) == {Verdict.UNJUDGED, Verdict.ADOPTED, Verdict.LEARNT}
    tally = Tally()
    assert tally.soft_share == 0.0, "of nothing, nothing"
    tally.cells[Kind.RAM, Verdict.MATCH] = 6
    tally.cells[Kind.DEVICE, Verdict.UNJUDGED] = 1
    tally.cells[Kind.RAM, Verdict.ADOPTED] = 1
    tally.cells[Kind.DEVICE, Verdict.LEARNT] = 2
    assert tally.soft_share == 0.4


def test_the_words_are_those_of_the_reports() -> None:
    tally = Tally()
    tally.cells[Kind.RO_ALIAS, Verdict.MATCH] = 2
    tally.verbs["readb"] = 2
    assert tally.to_json() == {
        "kinds": {"read-only alias": {"match": 2}}, "verbs": {"readb": 2},
        "unjudged_reasons": {}, "device_initiated": {}, "memtx": {}, "maps": {},
    }


def test_words_of_another_table_are_refused() -> None:
    with pytest.raises(ValueError, match="ramm"):
        Tally.from_json({"kinds": {"ramm": {"match": 1}}})


def test_results_are_told_by_name() -> None:
    tally = Tally()
    tally.cells[Kind.DEVICE, Verdict.MATCH] = 9
    tally.cells[Kind.RAM, Verdict.LEARNT] = 1
    tally.cells[Kind.DMA, Verdict.MATCH] = 5
    tally.results.update({2: 3, 6: 1})
    assert tally.memtx_results() == {"OK": 6, "DECODE_ERROR": 3, "DECODE_ERROR|ACCESS_ERROR": 1}
    again = Tally.from_json(tally.to_json())
    assert again.memtx_results() == tally.memtx_results()
