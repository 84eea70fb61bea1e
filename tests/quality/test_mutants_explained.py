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
        name = entry["module"].replace(".", "/")
        source = (ROOT / f"qemuglue/memory/{name}.py").read_text(encoding="utf-8")
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


TREE = (
    "qemuglue/memory/__init__.py", "qemuglue/memory/region.py", "qemuglue/memory/iommu.py",
    "qemuglue/memory/guest_address.py", "qemuglue/memory/guest_memory/__init__.py",
    "qemuglue/memory/guest_memory/region.py", "qemuglue/memory/guest_memory/iommu.py",
    "qemuglue/memory/guest_memory/iotlb.py", "qemuglue/memory/guest_memory/iommu_memory.py",
    "qemuglue/memory/volatile/slice.py", "qemuglue/memory/memory_map/linear.py",
    "tests/unit/test_memory_region.py", "tests/unit/test_memory_iommu.py",
    "tests/unit/test_memory_guest_region.py", "tests/unit/test_memory_guest_address.py",
    "tests/unit/test_memory_iommu_memory.py", "tests/unit/test_memory_iotlb.py",
    "tests/property/test_memory_iotlb_model.py", "tests/property/test_memory_guest_model.py",
    "tests/unit/test_memory_volatile_slice_copies.py", "tests/property/test_memory_map_model.py",
    "tests/unit/test_memory_other.py",
)
NAMED = {
    "region": ["unit/test_memory_region"], "iommu": ["unit/test_memory_iommu"],
    "guest_address": ["unit/test_memory_guest_address"],
    "guest_memory.region": ["unit/test_memory_guest_region"],
    "guest_memory.iotlb": ["property/test_memory_iotlb_model", "unit/test_memory_iotlb"],
    "guest_memory.iommu_memory": ["unit/test_memory_iommu_memory"],
    "guest_memory.iommu": ["property/test_memory_guest_model"],
    "volatile.slice": ["unit/test_memory_volatile_slice_copies"],
    "memory_map.linear": ["property/test_memory_map_model"],
}


def test_the_tool_knows_the_modules_of_sub_packages_and_their_tests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cosmic_ray", reason="ci/mutants installs Cosmic Ray")
    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    from mutation.__main__ import sources_of
    from mutation.listing import Mutant, change, modules, mutants_of, path_of, source_of
    from mutation.running import Unusable, tests_named_for
    from mutation.tree import copy_with

    for name in TREE:
        (tmp_path / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kept" / name).write_text(SOURCE, encoding="utf-8")
    kept = tmp_path / "kept"
    assert modules(kept) == sorted(NAMED)
    for module, files in NAMED.items():
        assert tests_named_for(kept, module) == [f"tests/{each}.py" for each in files], module
    (kept / "tests/unit/test_memory_region.py").unlink()
    assert len(tests_named_for(kept, "region")) == 7, "every unit test, where none is named"
    assert list(sources_of(kept, ["guest_memory", "region"])) == [
        name for name in sorted(NAMED) if name.startswith("guest_memory.") or name == "region"]
    for wrong in ("guest", "memory", "guest_memory.slice", ""):
        with pytest.raises(Unusable, match="guest_memory"):
            sources_of(kept, [wrong])
    assert path_of("volatile.slice") == Path("qemuglue/memory/volatile/slice.py")
    mutant: Mutant = mutants_of("volatile.slice", source_of(kept, "volatile.slice"))[0]
    assert str(mutant).startswith("volatile.slice:")
    cache = kept / "qemuglue/memory/volatile/__pycache__"
    cache.mkdir()
    for name in ("slice.cpython-311.pyc", "ref.cpython-311.pyc"):
        (cache / name).touch()
    copy_with(mutant, kept, tmp_path / "copy")
    made = change(mutant, SOURCE)
    assert source_of(tmp_path / "copy", "volatile.slice") == made.source != SOURCE
    assert source_of(tmp_path / "copy", "region") == source_of(kept, "volatile.slice") == SOURCE
    assert [each.name for each in (tmp_path / "copy/qemuglue/memory/volatile/__pycache__").iterdir(
        )] == ["ref.cpython-311.pyc"], "what was compiled before is not run for the mutant"
    assert "qemuglue/memory/volatile/slice.py" in made.diff
