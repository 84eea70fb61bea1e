"""Campaigns on real QEMU: they judge, resume, survive what is done to them, leave nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemuglue.campaign.feedback import has_atheris
from qemuglue.campaign.findings import read_finding
from qemuglue.qemu.builds import Build

pytestmark = pytest.mark.qemu

ENGINES = [
    "random",
    pytest.param("atheris", marks=pytest.mark.skipif(
        not has_atheris(), reason="Atheris is not installed")),
]


def command(build: Build, out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "qemuglue.cli.main", "fuzz", "--build", build.name, "--json",
            "--out", str(out), *words]


def campaign(build: Build, out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, the document, what was said)."""
    done = subprocess.run(command(build, out, *words), capture_output=True, text=True,
                          timeout=110, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Processes below ``pid``, with the names of their programs."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                yield int(child), Path(f"/proc/{child}/cmdline").read_text()
            yield from descendants(int(child))


def gone(pids: list[int], seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}/stat").exists() and
                   Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
                   for pid in pids):
            return True
        time.sleep(0.05)
    return False


def wait_for(test: Any, seconds: float = 30.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = test()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that in time")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_short_campaign_judges_and_finds_nothing(
    build: Build, tmp_path: Path, engine: str
) -> None:
    code, made, said = campaign(build, tmp_path, "--engine", engine, "--programs", "40",
                                "--seed", "11")
    assert (code, made["findings"], made["worker_deaths"]) == (0, [], 0), said
    assert said.startswith("seed 11\n")
    assert made["programs"] >= 40 and made["build"]["version"] == build.version
    assert made["verdicts"]["match"] > 20 * made["verdicts"]["unjudged"] > 0
    assert made["shares"]["devices_and_ports"] > 0.1 and made["shares"]["crossing"] > 0.02
    assert made["coverage"]["regions"] > 5 and made["coverage"]["corpus"] > 5


def test_the_same_seed_draws_the_same(newest_build: Build, tmp_path: Path) -> None:
    words = ("--engine", "random", "--programs", "20", "--seed", "5")
    seen = [campaign(newest_build, tmp_path / name, *words)[1]["verbs"] for name in "ab"]
    assert seen[0] == seen[1]
    other = campaign(newest_build, tmp_path / "c", *words[:-1], "6")[1]["verbs"]
    assert other != seen[0]


def test_a_second_run_goes_on_where_the_first_stopped(
    newest_build: Build, tmp_path: Path
) -> None:
    words = ("--engine", "random", "--programs", "30")
    _, first, _ = campaign(newest_build, tmp_path, *words)
    _, second, said = campaign(newest_build, tmp_path, *words, "--jobs", "2")
    assert "goes on where 1 earlier run stopped" in said
    judged = sum(first["verdicts"].values()) + sum(second["verdicts"].values())
    assert (second["all_runs"]["runs"], second["all_runs"]["judged"]) == (2, judged)
    assert second["coverage"]["corpus"] >= first["coverage"]["corpus"]


def test_qemu_killed_again_and_again_is_a_finding_and_no_end(
    newest_build: Build, tmp_path: Path
) -> None:
    with subprocess.Popen(
        command(newest_build, tmp_path, "--engine", "random", "--seconds", "13"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:
        killed: set[int] = set()
        wait_for(lambda: list((tmp_path / "corpus").glob("[!.]*")))
        while process.poll() is None and len(killed) < 20:
            for pid, words in descendants(process.pid):
                # Between fork and exec a child has its parent's command line.
                is_qemu = "-qtest" in words and not words.startswith(sys.executable)
                if is_qemu and pid not in killed:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.4)
        out, said = process.communicate(timeout=100)
    made = json.loads(out)
    assert len(killed) >= 10 and process.returncode == 1, said
    assert made["worker_deaths"] == 0, said
    assert "crash:signal:SIGKILL" in {each["signature"] for each in made["findings"]}
    assert made["verdicts"]["match"] > 200, "it went on"
    for path in (tmp_path / "findings").iterdir():
        assert read_finding(path).kind == "crash"
    assert gone(sorted(killed))


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_outlives_a_campaign_that_is_killed(
    newest_build: Build, tmp_path: Path, engine: str
) -> None:
    process = subprocess.Popen(
        command(newest_build, tmp_path, "--engine", engine, "--seconds", "60", "--jobs", "2"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: sum("--index=" in words for _, words in descendants(process.pid)) == 2)
        below = wait_for(lambda: (found := list(descendants(process.pid)))
                         and len(found) >= 4 and found)
    finally:
        process.kill()
        process.wait()
    assert gone([pid for pid, _ in below])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_campaign_with_its_summary(
    newest_build: Build, tmp_path: Path, number: signal.Signals
) -> None:
    words = command(newest_build, tmp_path, "--engine", "random", "--seconds", "60")
    words.remove("--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        wait_for(lambda: list((tmp_path / "corpus").glob("[!.]*")))
        below = [pid for pid, _ in descendants(process.pid)]
        process.send_signal(number)
        out, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Interrupted" in out and "Nothing found" in out and "Traceback" not in said
    assert json.loads((tmp_path / "status.json").read_text())["totals"]["programs"] > 0
    assert gone(below)


def test_a_worker_that_is_killed_is_replaced(newest_build: Build, tmp_path: Path) -> None:
    with subprocess.Popen(
        command(newest_build, tmp_path, "--engine", "random", "--seconds", "7"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:
        wait_for(lambda: list((tmp_path / "corpus").glob("[!.]*")))
        time.sleep(1)
        [worker] = [pid for pid, words in descendants(process.pid) if "--index=" in words]
        os.kill(worker, signal.SIGKILL)
        out, said = process.communicate(timeout=60)
    made = json.loads(out)
    assert (process.returncode, made["worker_deaths"]) == (0, 1), said
    assert "ended by SIGKILL" in said and made["verdicts"]["match"] > 0


@pytest.mark.parametrize(("words", "said"), [
    (("--machine", "x86_64/nosuch"), "has no machine x86_64/nosuch"),
    (("--device", "nosuch"), "'nosuch' is not a valid device model name"),
    (("--qemu-args=-bios /no/such/file",), "/no/such/file"),
])
def test_what_qemu_refuses_is_one_sentence(
    newest_build: Build, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = subprocess.run(command(newest_build, tmp_path, *words), capture_output=True, text=True,
                          timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("qemuglue fuzz: ") and said in last
    assert len(done.stderr.splitlines()) <= 2, done.stderr


def test_merge_and_prune_keep_what_is_reached(newest_build: Build, tmp_path: Path) -> None:
    campaign(newest_build, tmp_path / "c", "--engine", "random", "--programs", "12")
    run = [sys.executable, "-m", "qemuglue.cli.main", "corpus"]
    rest = ["--build", newest_build.name, "--json", "--out", str(tmp_path / "o")]

    def made(*words: str) -> dict[str, Any]:
        done = subprocess.run([*run, *words, *rest], capture_output=True, text=True, timeout=60,
                              check=False)
        assert done.returncode == 0, done.stderr
        known: dict[str, Any] = json.loads(done.stdout)
        return known

    into = str(tmp_path / "into")
    assert made("merge", into, str(tmp_path / "c" / "corpus"))["added"] >= 5
    pruned = made("prune", into)
    assert pruned["kept"] >= 3
    assert made("prune", into)["removed"] <= pruned["removed"] + 3
