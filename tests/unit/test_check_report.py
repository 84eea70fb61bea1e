"""A check's results as a page, as JSON and as JUnit; exit codes and usage errors."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qemuglue.campaign import check_jobs, schedule
from qemuglue.campaign.check_jobs import Shown
from qemuglue.campaign.check_result import CheckResult, Divergence, Known, MapResult, Status
from qemuglue.campaign.check_run import CheckRun
from qemuglue.cli import check
from qemuglue.cli.main import main
from qemuglue.errors import EnvironmentFailure, UsageError
from qemuglue.mirror import Inference
from qemuglue.qemu.builds_machines import Machine
from qemuglue.report import markdown
from qemuglue.report.check_json import document
from qemuglue.report.check_text import MAX_ALIKE, PipeConsole, line, print_check
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


def run_of(*results: CheckResult, **changes: Any) -> CheckRun:
    run = CheckRun(7, 100, results=list(results), seconds=1.5)
    for name, value in changes.items():
        setattr(run, name, value)
    return run


def page(*results: CheckResult, **changes: Any) -> str:
    out = io.StringIO()
    print_check(run_of(*results, **changes), Console(file=out, width=100))
    return out.getvalue()


STALE = Shown("rom-device-end", "sid", "11.1.3", "x86_64/q35", False)


# -- JSON ----------------------------------------------------------------------------------------


def test_the_document_has_what_the_contract_says() -> None:
    found = document(run_of(
        result(), result(Status.DIVERGED, divergences=(DIVERGENCE,)),
        result(Status.NOT_STARTED, reason="no firmware", tally=Tally(), accounts=(),
               map=MapResult()),
        result(known=(Known("rom-device-end", DIVERGENCE),)),
        shown=[STALE],
    ))
    assert found["schema"] == 1
    for each in found["results"]:
        assert {"build", "machine", "status", "spaces", "ranges", "inferred", "verdicts",
                "divergences", "seconds"} <= each.keys()
    first, second, third, fourth = found["results"]
    assert (first["spaces"], first["ranges"], first["status"]) == (8, 69, "match")
    assert first["inferred"] == {"pairs": 0, "bits": 1, "aliases": 0, "facts": ["a bit"]}
    assert first["verdicts"]["match"] == 90 and first["verdicts"]["unjudged"] == 10
    assert first["kinds"] == {"ram": {"match": 90}, "device": {"unjudged": 10}}
    assert second["divergences"][0]["confirmed"] == {"k": 3, "n": 3}
    assert second["divergences"][0]["path"] == "found/divergence-1"
    assert third["reason"] == "no firmware"
    summary = found["summary"]
    assert (summary["match"], summary["diverged"], summary["not_started"]) == (2, 1, 1)
    assert summary["operations"] == 300 and summary["divergences"] == 1
    assert summary["views"] == {"total": 12, "exact": 12, "exact_without_inference": 9}
    assert summary["inferred"] == {"pairs": 0, "bits": 3, "aliases": 0}
    assert summary["known"] == {"rom-device-end": 1}
    assert fourth["known"][0]["oddity"] == "rom-device-end"
    assert summary["no_longer_shown"] == ["rom-device-end"]
    assert found["oddities"][0]["shows"] is False
    assert summary["not_started_reasons"] == [
        {"reason": "no firmware", "machines": ["sid x86_64/q35"]}]
    assert json.loads(json.dumps(found)) == found


def test_paths_of_folders_that_are_gone_are_not_told() -> None:
    kept = result(Status.DIVERGED, divergences=(DIVERGENCE,)).without_paths()
    assert document(run_of(kept))["results"][0]["divergences"][0]["path"] is None
    assert kept.divergences[0].program == DIVERGENCE.program


# -- for people ----------------------------------------------------------------------------------


def test_a_line_says_what_was_compared_or_why_not() -> None:
    text = line(result()).plain
    assert text.startswith("match")
    assert "69 ranges, 4 of 4 views exact (3 with inference off), inferred 1 bit;" in text
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
    assert "Maps: 4 of 4 flat views exact, 3 of them with inference off; 1 bit inferred." in text
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


def test_known_findings_are_told_and_stale_oddities_too() -> None:
    known = result(known=(Known("rom-device-end", DIVERGENCE),))
    assert "1 known: rom-device-end" in line(known).plain
    text = page(known, known, shown=[STALE, replace(STALE, shows=None, reason="no such target"),
                                     replace(STALE, shows=True)])
    assert "known: rom-device-end: 2 findings on 1 machine: a sized read" in text
    assert ("oddity rom-device-end no longer occurs on sid x86_64/q35: remove or narrow it"
            ) in text
    assert "could not be tried on sid x86_64/q35: no such target" in text
    assert "shown again by their programs: 1 of 3" in text
    assert text.rstrip().endswith("1 machine: 1 match; 2 s") is False
    assert "2 match, 2 known oddities" in text


def test_reasons_for_not_starting_are_grouped() -> None:
    def refused(machine: str, reason: str) -> CheckResult:
        return result(Status.NOT_STARTED, machine=machine, tally=Tally(), map=MapResult(),
                      reason=f"QEMU did not start {machine}: qemu-system-arm: {reason}")

    text = page(*(refused(f"arm/m{n}", f"machine 'm{n}' needs -kernel") for n in range(9)),
                refused("arm/x", "no flash"))
    assert ("     9  machine 'MACHINE' needs -kernel  (arm/m0, arm/m1, arm/m2, arm/m3, arm/m4, "
            "arm/m5 and 3 more)") in text
    assert "     1  no flash  (arm/x)" in text


def test_a_note_that_many_have_is_told_once() -> None:
    text = page(*(result(machine=f"arm/m{n}", notes=("no CPU",)) for n in range(8)))
    assert text.count("no CPU") == 1 and "note: 8 machines (arm/m0," in text


def test_a_reader_that_goes_away_is_no_divergence() -> None:
    """rich would end the process with exit code 1."""
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        PipeConsole(file=Gone()).print(line(result()))


def test_what_it_cost() -> None:
    run = run_of(result(), workers=2)
    run.memory.harness, run.memory.qemus = 100 << 20, 50 << 20
    out = io.StringIO()
    print_check(run, Console(file=out, width=100))
    assert out.getvalue().rstrip().endswith(
        "1 machine: 1 match; 2 s with 2 workers, at most 100 MiB and 50 MiB in QEMUs")


# -- Markdown ------------------------------------------------------------------------------------


def test_markdown_has_a_row_a_build_and_the_divergences_folded() -> None:
    text = markdown.page(run_of(
        result(), result(Status.DIVERGED, build="bookworm", divergences=(DIVERGENCE,)),
        result(Status.NOT_STARTED, machine="arm/x", reason="no | <b>firmware", tally=Tally()),
        result(Status.ERROR, machine="arm/y", reason="QEMU `died` @someone #1"),
        result(known=(Known("rom-device-end", DIVERGENCE),)), shown=[STALE],
    ))
    assert "| sid \\(11.1.3\\) | 4 | 2 | 0 | 1 | 1 | 1 | 16 of 16 | 12 | 300 | 10.0 % |" in text
    assert "| bookworm \\(11.1.3\\) | 1 | 0 | **1** |" in text
    assert text.count("<details>") == text.count("</details>") == 6
    assert "<summary><code>divergence:access:device:readl</code> on bookworm" in text
    assert "no \\| &lt;b&gt;firmware" in text and "<b>" not in text
    assert "QEMU \\`died\\` \\@someone \\#1" in text
    assert "[!WARNING]" in text and "no longer occurs" in text
    assert "\x1b" not in text and "\x00" not in text
    assert "| all | 360 | 40 | 400 |" in text


def test_text_of_qemus_cannot_leave_its_fence() -> None:
    evil = replace(DIVERGENCE, qemu=("```\n</details> ````` <script>",), program="`" * 7,
                   signature="<img>|`x`")
    text = markdown.page(run_of(result(Status.DIVERGED, divergences=(evil,))))
    assert "``````text" in text and "````````text" in text
    assert "<code>&lt;img&gt;|`x`</code>" in text
    outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", text)
    assert "<script>" not in outside and outside.count("</details>") == outside.count("<details>")


def test_markdown_stays_under_what_github_takes(tmp_path: Path) -> None:
    big = replace(DIVERGENCE, qemu=("\N{SNOWMAN}" * 5000,), program="x" * 90000)
    run = run_of(*(result(Status.DIVERGED, machine=f"arm/{n}", reason="\N{SNOWMAN}" * 9000,
                          divergences=(big,) * 20) for n in range(400)),
                 *(result(Status.ERROR, machine=f"arm/{n}", reason="\N{SNOWMAN}" * 9000)
                   for n in range(400)))
    text = markdown.page(run)
    assert 100_000 < len(text.encode()) <= markdown.MAX_BYTES
    assert text.count("<details>") == text.count("</details>")
    assert text.endswith("`--json` has all.*\n")
    assert markdown.page(run, max_bytes=0) == "" and len(markdown.page(run, max_bytes=700)) <= 700
    path = tmp_path / "summary.md"
    path.write_bytes(b"x" * (markdown.MAX_BYTES - 5000))
    assert markdown.append_summary(run, path)
    assert path.stat().st_size <= markdown.MAX_BYTES


def test_without_the_variable_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(markdown.VARIABLE, raising=False)
    assert not markdown.append_summary(run_of(result()))


# -- JUnit ---------------------------------------------------------------------------------------


def test_junit_has_a_suite_a_build_and_a_case_a_machine(tmp_path: Path) -> None:
    path = tmp_path / "out.xml"
    write_junit(path, [  # one oddity that is gone, and one that is not
        result(), result(Status.DIVERGED, build="bookworm", divergences=(DIVERGENCE,)),
        result(Status.NOT_STARTED, machine="arm/x", reason="no \x07 firmware & <more>"),
        result(Status.ERROR, machine="arm/y", reason="QEMU died", divergences=(DIVERGENCE,)),
    ], [STALE, replace(STALE, oddity="still", shows=True)])
    root = ET.parse(path).getroot()
    suites = {suite.get("name"): suite for suite in root.iter("testsuite")}
    assert suites.keys() == {"sid", "bookworm"}
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("5", "2", "1")
    gone = suites["sid"].find("./testcase[@name='oddity rom-device-end']/skipped")
    assert gone is not None and "no longer occurs" in str(gone.get("message"))
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


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


class FakeBuild:
    name = "sid"
    version = "11.1.3"
    version_tuple = (11, 1, 3)

    def targets(self) -> tuple[str, ...]:
        return ("arm", "x86_64")


def fake_check(build: FakeBuild, machine: str, **options: Any) -> CheckResult:
    """In a worker process, with no QEMU: each machine has its own end."""
    known = {key: options[key] for key in ("seed", "ops")}
    match machine:
        case "x86_64/broken":
            raise AssertionError("ours")
        case "arm/lost":
            os.kill(os.getpid(), signal.SIGKILL)
        case "x86_64/slow-9.1":
            time.sleep(60)
        case "arm/dead":
            return result(Status.NOT_STARTED, machine=machine, reason="no kernel", **known)
        case "x86_64/odd":
            return result(Status.DIVERGED, machine=machine, divergences=(DIVERGENCE,), **known)
    return result(machine=machine, **known)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line with no QEMU behind it."""
    # What runs the tests side by side has a thread of its own that does nothing meanwhile; and
    # only a fork has what is patched here.
    monkeypatch.setattr(schedule, "_one_thread", lambda: True)
    names = {"x86_64": ["q35", "pc", "odd", "broken", "pc-q35-9.1", "slow-9.1"],
             "arm": ["dead", "virt"]}
    monkeypatch.setattr(check_jobs, "check_machine", fake_check)
    monkeypatch.setattr(check_jobs, "standard", lambda: ())
    monkeypatch.setattr(check, "builds_of", lambda args: [FakeBuild()])
    monkeypatch.setattr(check_jobs, "machine_list", lambda build, target: [
        Machine(target, name, "") for name in names[target]])
    monkeypatch.delenv(markdown.VARIABLE, raising=False)


def machines(out: str) -> list[str]:
    return [each["machine"] for each in json.loads(out)["results"]]


@pytest.mark.parametrize(("words", "code", "wanted"), [
    (["x86_64/q35"], 0, ["x86_64/q35"]),
    ([], 0, ["x86_64/q35", "x86_64/pc"]),
    (["x86_64/q35", "x86_64/odd"], 1, ["x86_64/q35", "x86_64/odd"]),
    (["arm/dead"], 2, ["arm/dead"]),
    (["arm/dead", "x86_64/odd"], 1, ["arm/dead", "x86_64/odd"]),
    (["x86_64/broken", "x86_64/q35"], 2, ["x86_64/broken", "x86_64/q35"]),
    (["x86_64/broken"], 2, ["x86_64/broken"]),
    (["x86_64/pc-q35-9.1"], 0, ["x86_64/pc-q35-9.1"]),
    (["--all", "--target", "arm"], 0, ["arm/dead", "arm/virt"]),
])
@pytest.mark.parametrize("jobs", ["1", "3"])
def test_exit_codes(
    checked: None, capsys: pytest.CaptureFixture[str], words: list[str], code: int,
    wanted: list[str], jobs: str,
) -> None:
    assert main(["check", *words, "--seed", "5", "--json", "--jobs", jobs]) == code
    said = capsys.readouterr()
    assert machines(said.out) == wanted
    assert said.err.startswith("seed 5\n") and all(name in said.err for name in wanted)


def test_all_machines(checked: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--all", "--json", "--seed", "5", "--ops", "10"]) == 1
    out = capsys.readouterr().out
    assert machines(out) == ["arm/dead", "arm/virt", "x86_64/q35", "x86_64/pc", "x86_64/odd",
                             "x86_64/broken"]
    summary = json.loads(out)["summary"]
    assert (summary["not_started"], summary["error"], summary["diverged"]) == (1, 1, 1)
    assert summary["peak_memory"]["harness"] > 1 << 20 and summary["jobs"] >= 1


def test_every_line_is_on_stdout_without_json(
    checked: None, capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "x86_64/q35", "x86_64/broken", "--seed", "5", "--jobs", "2"]) == 2
    said = capsys.readouterr()
    assert re.search("(?m)^match +sid +x86_64/q35 ", said.out)
    assert "internal error, please report it: AssertionError: ours" in said.out
    assert said.err == "seed 5\n2 machines, 2 at a time\n"
    assert "Traceback" not in said.out
    assert main(["check", "x86_64/broken", "--seed", "5", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_worker_that_is_killed_costs_its_machine(
    checked: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check_jobs, "machine_list", lambda build, target: [
        Machine(target, name, "") for name in ("a", "lost", "b", "c")])
    assert main(["check", "arm/a", "arm/lost", "arm/b", "arm/c", "--json", "--jobs", "1"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [each["status"] for each in found["results"]] == ["match", "error", "match", "match"]
    assert found["results"][1]["reason"] == "the worker process was ended by SIGKILL"


@pytest.mark.parametrize("words", [
    ["x86_64/q36"], ["q35"], ["--all", "x86_64/q35"], ["x86_64/q35", "--ops", "-1"],
    ["x86_64/q35", "--defect", "none"], ["x86_64/q35", "--seed", "x"],
    ["x86_64/q35", "--jobs", "0"], ["x86_64/q35", "--jobs", "1000000"],
    ["x86_64/q35", "--target", "arm"], ["--all", "--target", "vax"],
])
def test_usage_errors_are_one_sentence(
    checked: None, capsys: pytest.CaptureFixture[str], words: list[str],
) -> None:
    assert main(["check", *words]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1 and said.err.startswith("qemuglue check: ")


def test_an_interrupted_check_says_what_it_reached(
    checked: None, capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:
    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        code = main(["check", "x86_64/q35", "x86_64/slow-9.1", "--json", "--seed", "5",
                     "--junit", str(tmp_path / "x.xml")])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert code == 130
    found = json.loads(capsys.readouterr().out)
    assert found["summary"]["interrupted"] and machines(json.dumps(found)) == ["x86_64/q35"]
    assert (tmp_path / "x.xml").read_text().count("<testcase") == 1


def test_junit_is_missed_before_the_work(
    checked: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "junitparser", None)
    assert main(["check", "x86_64/q35", "--junit", str(tmp_path / "x.xml")]) == 2
    said = capsys.readouterr()
    assert not said.out and "seed" not in said.err and "qemuglue[report]" in said.err


def test_the_summary_of_a_ci_job(
    checked: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv(markdown.VARIABLE, str(path))
    assert main(["check", "x86_64/q35", "x86_64/odd", "--seed", "5"]) == 1
    text = path.read_text()
    assert text.startswith("before\n### qemuglue check: 1 divergence\n")
    assert "| sid \\(11.1.3\\) | 2 | 1 | **1** |" in text
    monkeypatch.setenv(markdown.VARIABLE, str(tmp_path / "no" / "summary.md"))
    assert main(["check", "x86_64/q35", "--seed", "5"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_oddities_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--oddities"]) == 0
    text = capsys.readouterr().out
    assert "rom-device-end (crash)" in text and "readl virt.flash1+0x3ffffff" in text
    assert main(["check", "--oddities", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["oddities"]
    assert "rom-device-end" in [each["id"] for each in found]
