"""The parent of a campaign, with workers that need no QEMU, and what is said of it."""

from __future__ import annotations

import io
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qemuglue.campaign import runner
from qemuglue.campaign.runner import Campaign, Result, Snapshot
from qemuglue.campaign.settings import Settings
from qemuglue.campaign.status import Totals, load_totals, save_totals
from qemuglue.errors import UsageError
from qemuglue.qemu.builds import Build
from qemuglue.report.summary import document, exit_code, print_summary
from qemuglue.report.terminal import Terminal, duration, line, percent
from qemuglue.witness.verdict import Kind, Verdict

BUILD = Build("some", "10.0.2", None, ())

#: A worker that tells what it is told to: a list of messages as JSON, then how it ends.
WORKER = """
import json, os, sys, time
fd = int([w for w in sys.argv if w.startswith("--status-fd=")][0].split("=")[1])
life = int([w for w in sys.argv if w.startswith("--life=")][0].split("=")[1])
index = int([w for w in sys.argv if w.startswith("--index=")][0].split("=")[1])
def tell(**message):
    os.write(fd, json.dumps(message).encode() + b"\\n")
def status(programs, **more):
    tell(type="status", final=False, tally={"kinds": {"ram": {"match": programs}}},
         programs=programs, restarts=0, deaths=0, shutdowns=0, flaky=0,
         **{"signatures": {}, "shapes": [programs], "regions": [], **more})
"""


class Watcher:
    """An observer that keeps what it is shown."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.findings: list[str] = []

    def started(self, settings: Settings, build: Build, earlier: Totals | None) -> None:
        self.earlier = earlier

    def progress(self, snapshot: Snapshot) -> None:
        self.last = snapshot

    def finding(self, finding: Mapping[str, Any]) -> None:
        self.findings.append(finding["signature"])

    def say(self, text: str) -> None:
        self.said.append(text)

    def ended(self) -> None:
        self.over = True


def campaign(
    monkeypatch: pytest.MonkeyPatch, out: Path, body: str, **settings: Any
) -> tuple[Result, Watcher]:
    """Run a campaign whose workers are ``body``."""

    class Fake(Campaign):
        def _prepare(self) -> None:
            known = load_totals(self.out / "status.json")
            self._earlier = known[1] if known else None
            self._build = BUILD

        def _command(self, worker: Any, fd: int) -> list[str]:
            return [sys.executable, "-c", WORKER + body, f"--status-fd={fd}",
                    f"--life={worker.life}", f"--index={worker.index}"]

    monkeypatch.setattr(runner, "REST_S", 0.0)
    monkeypatch.setattr(runner, "TICK_S", 0.02)
    watcher = Watcher()
    result = Fake(Settings(out=str(out), **settings), watcher).run()
    return result, watcher


def test_workers_are_summed_and_the_next_run_adds_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = "status(5); status(10 + index)"
    first, _ = campaign(monkeypatch, tmp_path, body, seconds=9.0, jobs=3)
    assert (first.totals.programs, first.totals.judged) == (33, 33)
    assert first.totals.shapes == {5, 10, 11, 12}
    assert exit_code(first) == 0
    second, watcher = campaign(monkeypatch, tmp_path, body, seconds=9.0, jobs=1)
    assert watcher.earlier is not None and watcher.earlier.programs == 33
    assert (second.totals.programs, second.all_runs.programs) == (10, 43)
    assert second.all_runs.runs == 2
    stored = json.loads((tmp_path / "status.json").read_text())
    assert stored["totals"]["programs"] == 43


def test_a_worker_that_dies_is_replaced_and_its_work_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = "status(7)\nif life == 0: os.kill(os.getpid(), 9)\nstatus(8)"
    result, watcher = campaign(monkeypatch, tmp_path, body, seconds=9.0)
    assert (result.totals.programs, result.worker_deaths) == (15, 1)
    assert "SIGKILL" in watcher.said[0] and "started again" in watcher.said[0]
    assert (exit_code(result), result.failed) == (0, "")


def test_a_worker_that_always_dies_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "MAX_LIVES", 3)
    result, watcher = campaign(monkeypatch, tmp_path, "sys.exit(3)", seconds=9.0)
    assert (result.worker_deaths, exit_code(result)) == (3, 2)
    assert "exit code 3" in result.failed and "not started again" in watcher.said[-1]


def test_an_environment_error_ends_it_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = 'tell(type="error", text="no QEMU", environment=True); sys.exit(2)'
    result, _ = campaign(monkeypatch, tmp_path, body, seconds=9.0)
    assert (result.failed, exit_code(result)) == ("no QEMU", 2)
    assert result.worker_deaths == runner.MAX_FALSE_STARTS


def test_a_restarted_worker_gets_what_is_left_of_its_programs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = ("share = int([w for w in sys.argv if w.startswith('--programs=')][0].split('=')[1])\n"
            "status(share if life else 3)\nsys.exit(0 if life else 3)")
    result, _ = campaign(monkeypatch, tmp_path, body, programs=11, jobs=2)
    assert result.totals.programs == 11


def test_findings_end_in_exit_code_1_and_are_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finding = {"kind": "crash", "signature": "crash:x", "path": "/f/1", "line": "it ended",
               "confirmed": [3, 3]}
    body = (f"f = json.loads({json.dumps(json.dumps(finding))})\n"
            "tell(type='finding', finding=f); status(1, signatures={'crash:x': 2})")
    result, watcher = campaign(monkeypatch, tmp_path, body, seconds=9.0, jobs=2)
    assert watcher.findings == ["crash:x"]
    assert exit_code(result) == 1
    [entry] = document(result)["findings"]
    assert (entry["signature"], entry["seen"], entry["path"]) == ("crash:x", 4, "/f/1")


@pytest.mark.parametrize("deaf", [False, True])
def test_a_signal_ends_it_with_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deaf: bool
) -> None:
    monkeypatch.setattr(runner, "STOP_GRACE_S", 0.5)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    body = f"{ignore}status(4)\nos.kill(os.getppid(), 15)\ntime.sleep(60)"
    start = time.monotonic()
    result, _ = campaign(monkeypatch, tmp_path, body, seconds=50.0)
    assert result.interrupted and exit_code(result) == 130
    assert result.totals.programs == 4
    assert time.monotonic() - start < 20


def test_garbage_from_a_worker_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = ("os.write(fd, b'\\xff\\xfe{]\\n[]\\n{\"type\": 5}\\n')\n"
            "tell(type='status'); tell(type='finding', finding=7); tell(type='error')\n"
            "status(2, signatures=[[1]]); status(3)")
    result, _ = campaign(monkeypatch, tmp_path, body, seconds=9.0)
    assert result.totals.programs == 3


def test_two_campaigns_in_one_folder_are_refused(tmp_path: Path) -> None:
    first = Campaign(Settings(out=str(tmp_path)), Watcher())
    first._make_folder()
    with first._lock(), pytest.raises(UsageError, match="another campaign is running"), \
            Campaign(Settings(out=str(tmp_path)), Watcher())._lock():
        pass


def test_a_folder_of_another_machine_is_refused(tmp_path: Path) -> None:
    save_totals(tmp_path / "status.json", Settings(devices=("edu",)).to_json(), Totals())
    with pytest.raises(UsageError, match="devices"):
        Campaign(Settings(out=str(tmp_path)), Watcher()).run()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--out"):
        Campaign(Settings(out=str(tmp_path / "file" / "x")), Watcher()).run()


# -- what is said ----------------------------------------------------------------------------------


def result_of(totals: Totals, **changes: Any) -> Result:
    settings = changes.pop("settings", Settings(devices=("edu",), seed=77, out="/out"))
    return Result(settings, BUILD, totals, totals, 10.0, 5, 0, **changes)


def totals_of(**cells: int) -> Totals:
    totals = Totals(seconds=10.0, runs=1)
    totals.tally.cells.update({
        (Kind.RAM, Verdict.MATCH): cells.get("match", 0),
        (Kind.DEVICE, Verdict.MATCH): cells.get("device", 0),
        (Kind.PORT, Verdict.UNJUDGED): cells.get("unjudged", 0),
    })
    return totals


def page(result: Result) -> str:
    out = io.StringIO()
    print_summary(result, Console(file=out, width=80))
    return out.getvalue()


def test_a_quiet_campaign_says_so_and_shows_its_table() -> None:
    text = page(result_of(totals_of(match=900, device=99, unjudged=1)))
    assert "Nothing found" in text and "seed 77" in text
    assert "unjudged: performed" in text and "adopted:" not in text
    assert "more than the 2 %" not in text


def test_too_much_unjudged_is_pointed_out() -> None:
    totals = totals_of(match=90, unjudged=10)
    totals.tally.reasons["vmport: it needs a CPU"] = 10
    text = page(result_of(totals))
    assert "more than the 2 %" in text and "vmport: it needs a CPU" in text


def test_a_finding_is_shown_with_the_command_to_see_it_again() -> None:
    totals = totals_of(match=10)
    totals.signatures["crash:signal:SIGSEGV"] = 2
    totals.findings.append({
        "kind": "crash", "signature": "crash:signal:SIGSEGV", "path": "/out dir/findings/crash-1",
        "line": "x", "what": "QEMU was ended by SIGSEGV", "shown": "3 operations",
    })
    text = page(result_of(totals))
    assert "qemuglue replay '/out dir/findings/crash-1'" in text
    assert "QEMU was ended by SIGSEGV; 3 operations" in text
    assert "Nothing found" not in text


@pytest.mark.parametrize(("version", "known"), [("11.1.3", "serial-port-end"), ("10.0.2", None)])
def test_a_known_oddity_is_no_news(version: str, known: str | None) -> None:
    signature = "crash:assert:serial_ioport_read:size == 1 && addr < 8"
    totals = totals_of(match=10)
    totals.findings.append({"kind": "crash", "signature": signature, "path": "/f", "line": "x"})
    result = Result(Settings(machine="mips/malta"), Build("some", version, None, ()), totals,
                    totals, 1.0, 0, 0)
    assert [each["known"] for each in document(result)["findings"]] == [known]
    assert exit_code(result) == int(known is None)
    assert ("Nothing new found" in page(result)) is (known is not None)


def test_what_only_an_earlier_run_recorded_is_found_again() -> None:
    now, every = totals_of(match=1), totals_of(match=2)
    now.signatures["crash:x"] = 1
    every.findings.append({"kind": "crash", "signature": "crash:x", "path": "/f", "line": "old"})
    result = Result(Settings(), BUILD, now, every, 1.0, 0, 0)
    assert [each["path"] for each in document(result)["findings"]] == ["/f"]
    assert exit_code(result) == 1


@pytest.mark.parametrize("found", [False, True])
def test_the_canary_says_whether_it_was_heard(found: bool) -> None:
    totals = totals_of(match=10)
    if found:
        totals.signatures = Counter({"divergence:access:ram:readl": 1})
    settings = Settings(target="canary", defect="rom-writable")
    result = result_of(totals, settings=settings)
    assert ("was found, as it must be" in page(result)) is found
    assert ("was NOT found" in page(result)) is not found
    assert exit_code(result) == int(found)


def test_texts_of_qemu_are_not_markup() -> None:
    totals = totals_of(match=1, unjudged=1)
    totals.tally.reasons["[bold]vmport[/bold] [/]"] = 1
    assert "[bold]vmport[/bold] [/]" in page(result_of(totals))


def test_the_document_is_json_and_complete() -> None:
    made = json.loads(json.dumps(document(result_of(totals_of(match=3, device=1)))))
    assert made["schema"] == 1 and made["target"] == "access" and made["seed"] == 77
    assert made["verdicts"]["match"] == 4 and made["shares"]["devices_and_ports"] == 0.25
    assert made["rates"]["judged_per_second"] == 0.4
    assert made["build"]["version"] == "10.0.2"
    assert made["findings"] == []


def test_the_terminal_prints_the_seed_first_and_a_line_now_and_then() -> None:
    out = io.StringIO()
    now = [0.0]
    terminal = Terminal(Console(file=out, width=60), clock=lambda: now[0])
    settings = Settings(seed=4711, seconds=60.0)
    terminal.started(settings, BUILD, totals_of(match=1000))
    snapshot = Snapshot(settings, 5.0, totals_of(match=12345), 99.6, 3, 1, 0)
    for _ in range(3):
        terminal.progress(snapshot)
    now[0] += 5
    terminal.progress(snapshot)
    terminal.ended()
    lines = out.getvalue().splitlines()
    assert lines[0] == "seed 4711"
    assert "1,000 operations judged" in out.getvalue()
    assert sum("12,345 judged (match 100 %)" in each for each in lines) == 1
    assert "100/s" in line(snapshot)


def test_a_live_display_draws_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # rich draws nothing on a dumb terminal
    out = io.StringIO()
    terminal = Terminal(Console(file=out, width=100, force_terminal=True), live=True)
    settings = Settings(seed=1)
    terminal.started(settings, BUILD, None)
    terminal.progress(Snapshot(settings, 5.0, totals_of(match=12), 99.6, 3, 1, 0))
    terminal.finding({"signature": "crash:x", "line": "it ended", "path": "/f"})
    terminal.finding({"signature": "crash:x", "line": "it ended again", "path": "/g"})
    terminal.ended()
    assert "12 operations" in out.getvalue()
    assert out.getvalue().count("FOUND crash:x") == 1


def test_small_shares_and_durations_keep_their_digits() -> None:
    assert [percent(part, 1000) for part in (0, 1, 500, 999, 1000)] == [
        "0 %", "0.1 %", "50.0 %", "99.9 %", "100 %"]
    assert percent(1, 10**6) == "< 0.1 %" and percent(10**6 - 1, 10**6) == "> 99.9 %"
    assert [duration(each) for each in (1.2, 119, 120, 3725, 9000)] == [
        "1 s", "119 s", "2 min", "62 min 5 s", "2 h 30 min"]


def test_no_descriptor_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir()))
    campaign(monkeypatch, tmp_path, "status(1)", seconds=5.0, jobs=2)
    assert len(list(folder.iterdir())) == before
