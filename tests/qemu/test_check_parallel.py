"""``qemuglue check`` of many machines on real QEMU: killed QEMUs, Ctrl-C, known oddities, cost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from processes import gone

from qemuglue.campaign import schedule
from qemuglue.campaign.check_jobs import find, jobs_of, machines_of, show
from qemuglue.campaign.check_run import CheckRun, run_check
from qemuglue.campaign.schedule import _children
from qemuglue.cli.main import main
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build
from qemuglue.witness.oddities import standard

pytestmark = [
    pytest.mark.qemu, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs the tests side by side has a thread of its own that does nothing meanwhile."""
    monkeypatch.setattr(schedule, "_one_thread", lambda: True)

ENDED = "QEMU was ended by SIGKILL"


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qemuglue.cli.main", "check", *words], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def qemus(parent: int) -> list[int]:
    """QEMUs of the workers of a check, past the moment in which they were a shell."""
    return [pid for pid in _children(set(_children({parent})))
            if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_qemus_that_are_killed_cost_nobody_else(newest_build: Build) -> None:
    """Some are killed once, whose machine is then checked again, some twice."""
    rng = random.Random(3)
    other = "ppc" if "ppc" in newest_build.targets() else "i386"
    check = start("--all", "--target", "x86_64", "--target", other, "--ops", "0", "--jobs", "2",
                  "--json", "--build", newest_build.name)
    killed: set[int] = set()
    seen: set[int] = set()
    while check.poll() is None:
        try:
            new = set(qemus(check.pid)) - seen
        except OSError:
            continue
        for pid in new:
            seen.add(pid)
            if rng.random() < 0.4:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.002)
    out, err = check.communicate(timeout=60)
    assert check.returncode in (0, 2), err
    results = json.loads(out)["results"]
    assert len(results) > 10 and len(killed) > 3
    again = [each for each in results if any("checked once more" in n for n in each["notes"])]
    lost = [each for each in results if each["status"] == "error"]
    assert again, "some machine was started again"
    assert all(each["reason"].startswith("QEMU was ended from outside, twice: ")
               and ENDED in each["reason"] for each in lost)
    for each in results:
        assert "SIGKILL" not in (each["reason"] or "") or each in lost, each
        if each["status"] == "match":
            assert each["views"]["exact"] == each["views"]["total"] > 0
        else:
            assert each in lost or each["status"] == "not-started", each
    assert all(map(gone, seen))


def test_ctrl_c_reports_what_is_done_and_leaves_nothing(newest_build: Build) -> None:
    check = start("--all", "--target", "x86_64", "--ops", "20000", "--jobs", "2", "--build",
                  newest_build.name)
    assert check.stdout is not None
    first = check.stdout.readline()
    assert re.match(r"(match|not-started) ", first), first
    running: list[int] = []
    until = time.monotonic() + 20
    while not running and time.monotonic() < until:
        with contextlib.suppress(OSError):  # it may end while it is looked at
            running = qemus(check.pid)
    os.killpg(check.pid, signal.SIGINT)
    out, err = check.communicate(timeout=20)
    assert check.returncode == 130, err
    assert "Interrupted; what follows is what was reached." in out
    assert re.search(r"(?m)^\d+ machines?: \d+ (match|not started)", out)
    assert "Traceback" not in err
    assert running and all(map(gone, running))


# -- oddities --------------------------------------------------------------------------------------


def test_every_oddity_is_shown_by_its_program(build: Build) -> None:
    has = {each.full_name for each in machines_of(build, build.targets())}
    named = {each.program.machine for each in standard() if each.program is not None}
    jobs = [job for job in jobs_of(
        [(build, machine) for machine in sorted(named & has)],
        args=(), ops=1, seed=1, defect="", folder=Path()) if job.oddity]
    run = CheckRun(1, 1, workers=2)
    run_check(run, jobs)
    assert len(run.shown) == len(jobs) >= 2
    assert not [shown for shown in run.shown if not shown.shows]


def test_an_oddity_that_is_gone_is_noticed(newest_build: Build) -> None:
    """A byte inside the ROM device instead of its end."""
    tame = replace(find("rom-device-end"), program=parse(
        "# qemuglue program 1\nmachine aarch64/virt\nreadl virt.flash1+0x10\n"))
    found = show(newest_build, tame)
    assert found.shows is False and found.signature == ""


def test_the_command_shows_oddities_again(
    newest_build: Build, capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check", "aarch64/virt", "--build", newest_build.name, "--ops", "64", "--seed",
                 "1", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search("(?m)^match .* aarch64/virt ", said)
    assert re.search(r"Known oddities shown again by their programs: (\d+) of \1\.", said), said


# -- cost ------------------------------------------------------------------------------------------


def test_the_cost_beside_launching_alone(
    newest_build: Build, capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["bench", "check", "--target", "x86_64", "--rounds", "1", "--build",
             newest_build.name]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machines"] >= found["started"] >= found["exact"] > 3
    assert found["ratio"] > 0 and found["rounds"][0]["memory"] > 10 << 20
    assert main(["bench", "check", "--target", "vax", "--build", newest_build.name]) == 2
    assert "no target 'vax'" in capsys.readouterr().err
