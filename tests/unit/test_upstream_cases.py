"""The table of upstream's cases is whole and true: ``upstream_cases.toml``.

It names every test, and every example of the documentation that checks something, of the crates
whose interfaces ``qemuglue.memory`` has, and which of our tests cover the same case. What can be
checked without upstream's sources is checked here: nothing is missing by the counts of the table's
head, nothing stands twice, each of our tests that it names is there and runs.
"""

from __future__ import annotations

import ast
import copy
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TABLE = tomllib.loads((Path(__file__).parent / "upstream_cases.toml").read_text(encoding="utf-8"))

#: A case or a reason in fewer characters says nothing.
SHORTEST_WORDS = 12
#: Marks with which a test does not show what it says.
NOT_SHOWN = {"skip", "skipif", "xfail"}


def complaints(table: dict[str, Any], root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the table."""
    seen: Counter[str] = Counter()
    counts: Counter[tuple[str, str, str]] = Counter()
    for each in table["case"]:
        at = each.get("at", "")
        crate, _, rest = at.partition(" ")
        file, _, name = rest.partition(" ")
        if not name:
            yield f"no crate, file and name: {at!r}"
        seen[at] += 1
        counts[crate, "examples" if name.startswith("example ") else "tests", file] += 1
        if len(each.get("case", "")) < SHORTEST_WORDS:
            yield f"{at}: the case is not told"
        if set(each) - {"at", "case"} not in ({"ours"}, {"not_here"}):
            yield f"{at}: one of ours and not_here, got {sorted(set(each) - {'at', 'case'})}"
        if "not_here" in each and len(each["not_here"]) < SHORTEST_WORDS:
            yield f"{at}: no reason is given"
        ours = each.get("ours", ["-"])
        if not ours or len(set(ours)) < len(ours):
            yield f"{at}: {'a test stands twice' if ours else 'no test of ours'}"
        for node in each.get("ours", []):
            yield from (f"{at}: {text}" for text in missing(node, root))
    yield from (f"{at} stands twice" for at, times in seen.items() if times > 1)
    wanted = {
        (crate, kind, file): number
        for crate, source in table["source"].items() for kind in ("tests", "examples")
        for file, number in source.get(kind, {}).items()
    }
    for key in sorted(wanted.keys() | counts.keys()):
        if counts[key] != wanted.get(key, 0):
            yield f"{' '.join(key)}: {wanted.get(key, 0)} upstream, {counts[key]} in the table"


def missing(node: str, root: Path) -> Iterator[str]:
    """Why ``file::class::function`` is no test that runs."""
    file, *names = node.split("::")
    path = root / file
    if not (file.startswith("tests/") and path.is_file()):
        yield f"there is no {file}"
        return
    body: list[ast.stmt] = parsed(path).body
    for name in names:
        found = next((each for each in body if isinstance(each, ast.FunctionDef | ast.ClassDef)
                      and each.name == name), None)
        if found is None:
            yield f"there is no {node}"
            return
        marks = {getattr(part, "attr", "") for decorator in found.decorator_list
                 for part in ast.walk(decorator)}
        if marks & NOT_SHOWN:
            yield f"{node} may not run"
        body = found.body
    if not names or not names[-1].startswith("test_"):
        yield f"{node} is no test"


@lru_cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_case_of_upstream_is_covered_or_explained() -> None:
    assert list(complaints(TABLE)) == []


def test_the_counts_are_those_of_the_sources() -> None:
    """137 and 21 tests, 35 examples: figures of the commits named in the table's head."""
    kinds = Counter(
        (each["at"].partition(" ")[0], " example " in each["at"]) for each in TABLE["case"])
    assert kinds == {("vm-memory", False): 137, ("vm-memory", True): 35, ("axaddrspace", False): 21}


Damage = Callable[[dict[str, Any]], None]


def first(table: dict[str, Any], key: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in table["case"] if key in each)
    return found


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a case is left out": (lambda table: table["case"].pop(), "in the table"),
    "a case stands twice": (
        lambda table: table["case"].append(first(table, "ours")), "stands twice"),
    "a test moved to a file that has none": (
        lambda table: first(table, "ours").update(at="vm-memory src/lib.rs test_new"),
        "src/lib.rs: 0 upstream, 1 in the table"),
    "an example counted as a test": (
        lambda table: table["source"]["vm-memory"]["examples"].update({"src/address.rs": 2}),
        "examples src/address.rs: 2 upstream"),
    "neither covered nor explained": (lambda table: first(table, "ours").pop("ours"), "one of"),
    "both covered and explained": (
        lambda table: first(table, "ours").update(not_here="because of this"), "one of"),
    "an empty list": (lambda table: first(table, "ours").update(ours=[]), "no test of ours"),
    "a test named twice": (
        lambda table: first(table, "ours").update(ours=first(table, "ours")["ours"] * 2),
        "a test stands twice"),
    "no reason": (lambda table: first(table, "not_here").update(not_here="-"), "no reason"),
    "no words": (lambda table: first(table, "ours").update(case="?"), "not told"),
    "no name": (lambda table: first(table, "ours").update(at="vm-memory src/lib.rs"), "no crate"),
}
THIS = "tests/unit/test_upstream_cases.py"
NODES = {
    "tests/unit/test_nothing_of_this_name.py::test_x": "there is no tests/",
    "pyproject.toml::test_x": "there is no pyproject",
    f"{THIS}::test_that_is_not_there": "there is no",
    f"{THIS}::TestNothing::test_it_is_told": "there is no",
    f"{THIS}::first": "is no test",
    f"{THIS}::complaints": "is no test",
    THIS: "is no test",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_table_is_refused(name: str) -> None:
    damage, words = DAMAGES[name]
    table = copy.deepcopy(TABLE)
    damage(table)
    assert any(words in text for text in complaints(table)), list(complaints(table))


@pytest.mark.parametrize("node", NODES)
def test_a_test_that_is_not_there_is_refused(node: str) -> None:
    table = copy.deepcopy(TABLE)
    first(table, "ours").update(ours=[node])
    (text,) = complaints(table)
    assert NODES[node] in text


def test_a_test_that_does_not_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_some.py").write_text(
        "@pytest.mark.skip(reason='x')\ndef test_a(): ...\n"
        "class TestThings:\n    @pytest.mark.xfail\n    def test_b(self): ...\n"
        "    @pytest.mark.parametrize('n', [1])\n    def test_c(self, n): ...\n"
        "@pytest.mark.skipif(True)\nclass TestMore:\n    def test_d(self): ...\n",
        encoding="utf-8")
    told = {name: list(missing(f"tests/test_some.py::{name}", tmp_path)) for name in (
        "test_a", "TestThings::test_b", "TestThings::test_c", "test_c", "TestMore::test_d")}
    assert told.pop("TestThings::test_c") == []
    assert all(told.values()), told
