"""``qemuglue bench model`` measures; how fast is not for a test to say, only what it tells."""

from __future__ import annotations

import json
from functools import partial
from math import isclose, log2
from random import Random

import pytest

from qemuglue.campaign import bench_model
from qemuglue.campaign.bench_model import Access, Growth, View, fitted, flat_map, nested_map, nlogn
from qemuglue.cli.main import main
from qemuglue.memory import Le32, MemoryRegion, render

QUICK = {"sizes": (10, 40), "bulks": (1 << 12, 1 << 16)}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it, over small maps and short copies."""
    monkeypatch.setattr(bench_model, "ROUND_S", 0.0)
    monkeypatch.setattr(bench_model, "LOOKUPS", 1)
    monkeypatch.setattr(bench_model, "measure", partial(bench_model.measure, **QUICK))


def test_the_json_has_every_figure(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "model", "--rounds", "2", "--operations", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == [
        "schema", "python", "rounds", "accesses", "views", "growth", "bulk"]
    assert (document["schema"], document["rounds"]) == (1, 2)
    assert len({(a["face"], a["region"], a["what"], a["kind"]) for a in document["accesses"]}) == (
        2 * 2 * 2 * 2) == len(document["accesses"])
    assert [(v["shape"], v["regions"]) for v in document["views"]] == [
        ("flat", 10), ("flat", 40), ("nested", 10), ("nested", 40)]
    assert [g["shape"] for g in document["growth"]] == ["flat", "nested"]
    assert [(b["what"], b["size"]) for b in document["bulk"]] == [
        ("read", 1 << 12), ("write", 1 << 12), ("read", 1 << 16), ("write", 1 << 16)]
    for figure in (
        *(a["per_s"] for a in document["accesses"]),
        *(v[name] for v in document["views"] for name in ("render_s", "lookup_s", "sections")),
        *(g["nlogn_s"] for g in document["growth"]),
        *(b[name] for b in document["bulk"] for name in ("model_s", "slicing_s", "ratio")),
    ):
        assert figure > 0


def test_what_people_read(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "model", "--rounds", "1", "--operations", "1"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "medians of 1 rounds" in head
    assert rows[0].startswith("C face, load Le32, RAM ") and rows[0].endswith(" ns each")
    assert sum(row.startswith("draw ") for row in rows) == 4
    assert [row.split()[0] for row in rows[-4:]] == ["read", "write", "read", "write"]
    assert len(rows) == 16 + 2 * 4 + 2 + 4


def test_only_these_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "mirror"]) == 2
    assert "'lockstep', 'model'" in capsys.readouterr().err


@pytest.mark.parametrize("make", [flat_map, nested_map])
@pytest.mark.parametrize("count", [10, 100, 1000])
def test_a_map_has_as_many_regions_as_it_says(make: object, count: int) -> None:
    def regions(region: MemoryRegion) -> int:
        return 1 + sum(regions(child) for child in region.subregions)

    root = make(count)  # type: ignore[operator]
    assert regions(root) == count
    assert len(render(root)) > count // 2


def test_the_machine_answers_what_is_asked_of_it() -> None:
    space = bench_model.small_machine()
    for addr in (0, bench_model.RAM_SIZE - 4, bench_model.DEVICE_BASE,
                 bench_model.DEVICE_BASE + 0xFFC):
        assert space.store(addr, Le32(42)) == 0
        assert space.load(addr, Le32)[0] == 0
    assert space.load(bench_model.DEVICE_BASE + 8, Le32) == (0, 8)
    assert bench_model.RustSpace(space).load(0, Le32) == 42
    found = bench_model.measure_accesses(Random(1), 1, 1)
    assert found[0] == Access("C", "RAM", "load", "Le32", found[0].per_s)


def test_the_fit_finds_what_was_put_in() -> None:
    sizes = (10, 100, 1000)
    straight = [View("flat", n, n, 3e-7 * n * log2(n), 0.0) for n in sizes]
    other = [View("nested", n, n, float(n**2), 0.0) for n in sizes]
    growth = fitted("flat", straight + other)
    assert isclose(growth.nlogn_s, 3e-7) and 1.1 < growth.exponent < 1.3
    assert isclose(nlogn(growth, 100), straight[1].render_s)
    assert isclose(fitted("nested", straight + other).exponent, 2.0)
    assert fitted("flat", straight[:1]) == Growth("flat", 0.0, straight[0].render_s / 10 / log2(10))
