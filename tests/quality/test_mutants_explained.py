"""The lists of explained mutants stay true: what it names is there, and is explained once.

Whether a mutant is noticed is for ``ci/mutants`` and ``ci/detect`` to say; this is what can be
said without them.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = ROOT / "tests/quality/mutants_explained.toml"
LISTS = {
    path.stem: tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    for path in (LIST, LIST.with_name("mutants_undetected.toml"))
}


@pytest.mark.parametrize("name", LISTS)
def test_each_entry_names_lines_that_are_there_and_a_reason(name: str) -> None:
    for entry in LISTS[name]:
        assert set(entry) <= {"module", "line", "operator", "becomes", "within", "reason"}, entry
        source = (ROOT / f"qemuglue/memory/{entry['module']}.py").read_text(encoding="utf-8")
        lines = "\n".join(line.strip() for line in source.splitlines())
        assert f"\n{entry['line']}\n" in lines, f"not in {entry['module']}: {entry['line']}"
        assert len(entry["reason"]) > 10, entry
        assert entry.get("becomes") != entry["line"], entry


@pytest.mark.parametrize("name", LISTS)
def test_no_entry_is_there_twice(name: str) -> None:
    seen = Counter(
        (entry["module"], entry["line"], entry["operator"], entry.get("becomes"),
         entry.get("within"))
        for entry in LISTS[name]
    )
    assert [each for each, times in seen.items() if times > 1] == []


SOURCE = """from __future__ import annotations

def f(a: int | None, b: int = 3) -> int:
    if a is None or b < 4:
        raise ValueError("no")
    box.at = a + b
    return box.at
"""


def test_the_tool_lists_draws_and_makes_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cosmic_ray", reason="ci/mutants installs Cosmic Ray")
    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    from mutation.explained import Entry, stale
    from mutation.listing import change, drawn, mutants_of

    mutants = mutants_of("f", SOURCE)
    made = {(each.operator, change(each, SOURCE).after) for each in mutants}
    assert ("ReplaceOrWithAnd", "if a is None and b < 4:") in made
    assert ("ReplaceBinaryOperator_Add_Sub", "box.at = a - b") in made
    removed = {change(each, SOURCE).before for each in mutants
               if each.operator == "RemoveStatement"}
    assert removed == {'raise ValueError("no")', "box.at = a + b", "return box.at"}
    assert not any(each.operator.startswith("ReplaceBinaryOperator_BitOr") for each in mutants), (
        "annotations are left alone")
    for each in mutants:
        compile(change(each, SOURCE).source, "f.py", "exec")
    order, other = (list(drawn(mutants, {"f": SOURCE}, seed)) for seed in (7, 8))
    assert order == list(drawn(mutants, {"f": SOURCE}, 7)) != other
    assert sorted(map(str, order)) == sorted(map(str, mutants))
    places = {(each.line, each.column) for each in mutants}
    assert {(each.line, each.column) for each in order[: len(places)]} == places
    edited = SOURCE.replace("def f(", "N = 1\n\n\ndef f(")
    later = [
        (each.operator, change(each, edited).after)
        for each in drawn(mutants_of("f", edited), {"f": edited}, 7)
        if change(each, edited).before != "N = 1"
    ]
    assert later == [(each.operator, change(each, SOURCE).after) for each in order]
    there = Entry("f", "box.at = a + b", "ReplaceBinaryOperator_Add_Sub", "why", "box.at = a - b")
    gone = Entry("f", "box.at = a + b", "ReplaceBinaryOperator_Add_Sub", "why", "box.at = a")
    assert stale([there, gone], mutants, {"f": SOURCE}) == [gone]
