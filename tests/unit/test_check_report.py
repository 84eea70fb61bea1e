"""A check's results as a page, as JSON and as JUnit; exit codes and usage errors."""

from __future__ import annotations

import io
import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qemuglue.campaign.check_result import CheckResult, Divergence, MapResult, Status
from qemuglue.cli import check
from qemuglue.cli.main import main
from qemuglue.errors import EnvironmentFailure, UsageError
from qemuglue.mirror import Inference
from qemuglue.qemu.builds_machines import Machine
from qemuglue.report.check_text import MAX_ALIKE, document, line, print_check
from qemuglue.report.junit import write_junit
from qemuglue.witness.account import Account
from qemuglue.witness.verdict import Kind, Tally, Verdict

DIVERGENCE = Divergence(
    "divergence", "transcript", "divergence:access:device:readl", "readl 0xfed00001 (hpet)",
    ("read of 1 at hpet+0x1", "reply OK"), ("read of 4 \x1b[31m]]> \x00at hpet",), (3, 3),
    "# qemuglue program 1\nmachine x86_64/q35\nreadl hpet+0x1\n", "found/divergence-1",
)


def result(status: str = Status.MATCH, **changes: Any) -> CheckResult:
    tally = Tally()
    tally.cells[Kind.RAM, Verdict.MATCH] = 90
    tally.cells[Kind.DEVICE, Verdict.UNJUDGED] = 10
    tally.reasons["[bold]vmport[/bold]: needs a CPU"] = 10
    known: dict[str, Any] = {
        "build": "sid", "version": "11.1.3", "machine": "x86_64/q35", "status": status,
        "seed": 7, "ops": 100, "seconds": 1.5, "tally": tally,
        "map": MapResult(spaces=8, ranges=69, views=4, exact=4, plain=3,
                         inferred=Inference(bits=1, facts=("a bit",))),
        "accounts": (Account("xp", 600), Account("dump", 4096)),
    }
    return CheckResult(**(known | changes))


def page(*results: CheckResult, interrupted: bool = False) -> str:
    out = io.StringIO()
    print_check(results, Console(file=out, width=100), interrupted=interrupted)
    return out.getvalue()


# -- JSON ----------------------------------------------------------------------------------------


def test_the_document_has_what_the_contract_says() -> None:
    found = document(
        [result(), result(Status.DIVERGED, divergences=(DIVERGENCE,)),
         result(Status.NOT_STARTED, reason="no firmware", tally=Tally(), accounts=())],
        seed=7, ops=100,
    )
    assert found["schema"] == 1
    for each in found["results"]:
        assert {"build", "machine", "status", "spaces", "ranges", "inferred", "verdicts",
                "divergences", "seconds"} <= each.keys()
    first, second, third = found["results"]
    assert (first["spaces"], first["ranges"], first["status"]) == (8, 69, "match")
    assert first["inferred"] == {"pairs": 0, "bits": 1, "aliases": 0, "facts": ["a bit"]}
    assert first["verdicts"]["match"] == 90 and first["verdicts"]["unjudged"] == 10
    assert first["kinds"] == {"ram": {"match": 90}, "device": {"unjudged": 10}}
    assert second["divergences"][0]["confirmed"] == {"k": 3, "n": 3}
    assert second["divergences"][0]["path"] == "found/divergence-1"
    assert third["reason"] == "no firmware"
    summary = found["summary"]
    assert (summary["match"], summary["diverged"], summary["not_started"]) == (1, 1, 1)
    assert summary["operations"] == 200 and summary["divergences"] == 1
    assert json.loads(json.dumps(found)) == found


def test_paths_of_folders_that_are_gone_are_not_told() -> None:
    kept = result(Status.DIVERGED, divergences=(DIVERGENCE,)).without_paths()
    assert document([kept], seed=7, ops=1)["results"][0]["divergences"][0]["path"] is None
    assert kept.divergences[0].program == DIVERGENCE.program


# -- for people ----------------------------------------------------------------------------------


def test_a_line_says_what_was_compared_or_why_not() -> None:
    text = line(result()).plain
    assert text.startswith("match") and "69 ranges, 4 of 4 views exact, inferred 1 bit" in text
    assert "100 accesses, 10 not judged" in text
    text = line(result(Status.NOT_STARTED, reason="[red]no[/red] firmware")).plain
    assert text.startswith("not-started") and text.endswith("[red]no[/red] firmware")
    crash = replace(DIVERGENCE, kind="crash")
    text = line(result(divergences=(DIVERGENCE, crash, DIVERGENCE))).plain
    assert "2 divergences; 1 crash;" in text


def test_the_page_shows_the_table_and_every_reason_as_text() -> None:
    text = page(result())
    assert "ram" in text and "90.0 %" in text
    assert "[bold]vmport[/bold]: needs a CPU" in text
    assert "more than the 2 % aimed at" in text
    assert "xp 600 places" in text and "dump 4,096 bytes" in text
    assert text.rstrip().endswith("1 machine: 1 match; 2 s")


def test_the_page_shows_a_divergence_with_both_sides_and_the_way_back() -> None:
    text = page(result(Status.DIVERGED, divergences=(DIVERGENCE,)))
    assert "readl 0xfed00001 (hpet) (transcript, seen 3 of 3 times)" in text
    assert "the model says: read of 1 at hpet+0x1" in text and "QEMU says: read of 4" in text
    assert "qemuglue replay found/divergence-1" in text
    kept = page(result(Status.DIVERGED, divergences=(DIVERGENCE,)).without_paths())
    assert "replay" not in kept and "program: readl hpet+0x1" in kept


def test_what_shows_at_hundreds_of_places_is_shown_at_a_few() -> None:
    text = page(result(Status.DIVERGED, divergences=(DIVERGENCE,) * 50))
    assert text.count("divergence:access:device:readl") == MAX_ALIKE
    assert f"{50 - MAX_ALIKE} further findings" in text


def test_a_planted_defect_is_named_as_one() -> None:
    assert "it is the model that is wrong here" in page(result(defect="no-clamp"))


# -- JUnit ---------------------------------------------------------------------------------------


def test_junit_has_a_suite_a_build_and_a_case_a_machine(tmp_path: Path) -> None:
    path = tmp_path / "out.xml"
    write_junit(path, [
        result(), result(Status.DIVERGED, build="bookworm", divergences=(DIVERGENCE,)),
        result(Status.NOT_STARTED, machine="arm/x", reason="no \x07 firmware & <more>"),
        result(Status.ERROR, machine="arm/y", reason="QEMU died", divergences=(DIVERGENCE,)),
    ])
    root = ET.parse(path).getroot()
    suites = {suite.get("name"): suite for suite in root.iter("testsuite")}
    assert suites.keys() == {"sid", "bookworm"}
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "2", "1")
    skipped = suites["sid"].find("./testcase[@name='arm/x']/skipped")
    assert skipped is not None and skipped.get("message") == "no ? firmware & <more>"
    failure = suites["bookworm"].find("./testcase/failure")
    assert failure is not None and failure.get("message") == DIVERGENCE.signature
    assert "model says: read of 1 at hpet+0x1" in str(failure.text)
    assert "readl hpet+0x1" in str(failure.text)
    both = suites["sid"].find("./testcase[@name='arm/y']")
    assert both is not None and {each.tag for each in both} >= {"error", "failure"}


def test_junit_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_junit(tmp_path / "none" / "out.xml", [result()])
    monkeypatch.setitem(sys.modules, "junitparser", None)
    with pytest.raises(EnvironmentFailure, match=r"qemuglue\[report\]"):
        write_junit(tmp_path / "out.xml", [result()])


# -- the command line ------------------------------------------------------------------------------


class FakeBuild:
    name = "sid"
    version = "11.1.3"

    def targets(self) -> tuple[str, ...]:
        return ("arm", "x86_64")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line with no QEMU behind it: every machine gives ``outcome[name]``."""
    seen: list[str] = []

    def fake(build: FakeBuild, machine: str, **options: Any) -> CheckResult:
        seen.append(machine)
        if machine == "x86_64/broken":
            raise AssertionError("ours")
        status = {"arm/dead": Status.NOT_STARTED, "x86_64/odd": Status.DIVERGED}.get(
            machine, Status.MATCH)
        return result(
            status, machine=machine, reason="" if status != Status.NOT_STARTED else "no kernel",
            divergences=(DIVERGENCE,) * (status == Status.DIVERGED),
            **{key: options[key] for key in ("seed", "ops")},
        )

    names = {"x86_64": ["q35", "pc", "odd", "broken", "pc-q35-9.1"], "arm": ["dead", "virt"]}
    monkeypatch.setattr(check, "check_machine", fake)
    monkeypatch.setattr(check, "builds_of", lambda args: [FakeBuild()])
    monkeypatch.setattr(check, "machine_list", lambda build, target: [
        Machine(target, name, "") for name in names[target]])
    return seen


@pytest.mark.parametrize(("words", "code", "machines"), [
    (["x86_64/q35"], 0, ["x86_64/q35"]),
    ([], 0, ["x86_64/q35", "x86_64/pc"]),
    (["x86_64/q35", "x86_64/odd"], 1, ["x86_64/q35", "x86_64/odd"]),
    (["arm/dead"], 2, ["arm/dead"]),
    (["arm/dead", "x86_64/odd"], 1, ["arm/dead", "x86_64/odd"]),
    (["x86_64/broken", "x86_64/q35"], 2, ["x86_64/broken", "x86_64/q35"]),
    (["x86_64/pc-q35-9.1"], 0, ["x86_64/pc-q35-9.1"]),
])
def test_exit_codes(
    checked: list[str], capsys: pytest.CaptureFixture[str], words: list[str], code: int,
    machines: list[str],
) -> None:
    assert main(["check", *words, "--seed", "5"]) == code
    assert checked == machines
    assert capsys.readouterr().err.startswith("seed 5\n")


def test_all_machines(checked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--all", "--json", "--seed", "5", "--ops", "10"]) == 1
    assert checked == ["arm/dead", "arm/virt", "x86_64/q35", "x86_64/pc", "x86_64/odd",
                       "x86_64/broken"]
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert (summary["not_started"], summary["error"], summary["diverged"]) == (1, 1, 1)


@pytest.mark.parametrize("words", [
    ["x86_64/q36"], ["q35"], ["--all", "x86_64/q35"], ["x86_64/q35", "--ops", "-1"],
    ["x86_64/q35", "--defect", "none"], ["x86_64/q35", "--seed", "x"],
])
def test_usage_errors_are_one_sentence(
    checked: list[str], capsys: pytest.CaptureFixture[str], words: list[str],
) -> None:
    assert main(["check", *words]) == 2
    assert not checked
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1 and said.err.startswith("qemuglue check: ")


def test_an_interrupted_check_says_what_it_reached(
    checked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = vars(check)["check_machine"]

    def interrupted(build: Any, machine: str, **options: Any) -> CheckResult:
        if machine == "x86_64/pc":
            raise KeyboardInterrupt
        return before(build, machine, **options)

    monkeypatch.setattr(check, "check_machine", interrupted)
    assert main(["check", "x86_64/q35", "x86_64/pc", "--json", "--seed", "5"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["interrupted"] and len(found["results"]) == 1


def test_junit_is_missed_before_the_work(
    checked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "junitparser", None)
    assert main(["check", "x86_64/q35", "--junit", str(tmp_path / "x.xml")]) == 2
    assert not checked and "qemuglue[report]" in capsys.readouterr().err
