"""The jobs of a check: what somebody else ended, what an oddity explains, what is shown again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemuglue.campaign import check_jobs
from qemuglue.campaign.check_jobs import CheckJob, find, jobs_of, perform, show, sort_known
from qemuglue.campaign.check_result import CheckResult, Divergence, Status
from qemuglue.campaign.check_run import CheckRun, plain_reason
from qemuglue.errors import LaunchError, UsageError
from qemuglue.witness.judge import Judgement, Kind
from qemuglue.witness.oddities import load

CRASH = Divergence(
    "crash", "process", "crash:signal:SIGSEGV", "readl 0x7fffffe (the end of virt.flash1)",
    ("QEMU goes on",), ("QEMU was ended by SIGSEGV",), (3, 3),
)
KILLED = replace(CRASH, signature="crash:signal:SIGKILL", confirmed=(0, 3),
                 place="readl 0x40 (ram)")


class FakeBuild:
    name = "sid"
    version = "11.1.3"
    version_tuple = (11, 1, 3)


def result(status: str = Status.MATCH, **changes: Any) -> CheckResult:
    known: dict[str, Any] = {"build": "sid", "version": "11.1.3", "machine": "aarch64/virt",
                             "status": status, "seed": 1, "ops": 10, "seconds": 1.0}
    return CheckResult(**(known | changes))


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[CheckResult]:
    """What check_machine gives, in turn."""
    given: list[CheckResult] = []
    monkeypatch.setattr(check_jobs, "check_machine", lambda *args, **options: given.pop(0))
    return given


def performed() -> CheckResult:
    found = perform(CheckJob(build=FakeBuild(), machine="aarch64/virt"))  # type: ignore[arg-type]
    assert isinstance(found, CheckResult)
    return found


# -- QEMUs that somebody else ended ----------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.ERROR, Status.NOT_STARTED])
@pytest.mark.parametrize("reason", [
    "QEMU was ended by SIGKILL", "QEMU did not start aarch64/virt: QEMU was ended by SIGTERM",
    "QEMU did not start arm/x: qemu-system-arm: terminating on signal 15 from pid 77 (kill)",
])
def test_a_machine_whose_qemu_was_killed_is_checked_again(
    outcomes: list[CheckResult], status: str, reason: str,
) -> None:
    outcomes += [result(status, reason=reason), result(notes=("slow",))]
    found = performed()
    assert found.status == Status.MATCH and not outcomes
    assert found.notes == (
        f"QEMU was ended from outside ({reason}), and the machine checked once more", "slow")


def test_killed_twice_is_an_error_and_never_not_started(outcomes: list[CheckResult]) -> None:
    ends = (replace(KILLED, confirmed=(3, 3)), CRASH)
    outcomes += [result(Status.NOT_STARTED, reason="QEMU was ended by SIGKILL",
                        divergences=ends, machine="x86_64/odd")] * 2
    found = performed()
    assert found.status == Status.ERROR
    assert found.reason == "QEMU was ended from outside, twice: QEMU was ended by SIGKILL"


@pytest.mark.parametrize("given", [
    result(Status.NOT_STARTED, reason="qemu-system-arm: no kernel"),
    result(Status.ERROR, reason="QEMU was ended by SIGSEGV"),
    result(Status.ERROR, reason="QEMU was ended by SIGABRT"),
    result(reason="QEMU was ended by SIGKILL"),
])
def test_what_qemu_did_itself_is_told_at_once(
    outcomes: list[CheckResult], given: CheckResult,
) -> None:
    outcomes.append(given)
    assert performed() == given


@pytest.mark.parametrize("confirmed", [(0, 3), (1, 3), (1, 2)])
def test_killed_among_accesses_is_a_note(
    outcomes: list[CheckResult], confirmed: tuple[int, int],
) -> None:
    outcomes.append(result(Status.DIVERGED, divergences=(replace(KILLED, confirmed=confirmed),)))
    found = performed()
    assert found.status == Status.MATCH and not found.divergences
    assert "ended from outside once among the accesses" in found.notes[0]


@pytest.mark.parametrize("found", [
    replace(KILLED, confirmed=(3, 3)), replace(KILLED, signature="crash:signal:SIGSEGV")])
def test_an_end_that_shows_again_or_is_qemus_own_stays(
    outcomes: list[CheckResult], found: Divergence,
) -> None:
    outcomes.append(result(Status.DIVERGED, divergences=(found, KILLED)))
    told = performed()
    assert (told.status, told.divergences) == (Status.DIVERGED, (found,))


# -- known oddities --------------------------------------------------------------------------------


def test_findings_that_are_explained_are_put_apart() -> None:
    other = replace(CRASH, place="readl 0x10 (virt.flash1)")
    assert other.region == "virt.flash1" and CRASH.region == "the end of virt.flash1"
    found = sort_known(result(Status.DIVERGED, divergences=(CRASH, other)))
    assert (found.status, found.divergences) == (Status.DIVERGED, (other,))
    [known] = found.known
    assert (known.oddity, known.found) == ("rom-device-end", CRASH)
    alone = sort_known(result(Status.DIVERGED, divergences=(CRASH,)))
    assert alone.status == Status.MATCH and alone.known and not alone.divergences
    error = sort_known(result(Status.ERROR, reason="x", divergences=(CRASH,)))
    assert error.status == Status.ERROR


def test_out_of_scope_nothing_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "o.toml"
    text = """
        [[oddity]]
        id = "one"
        what = "x"
        why = "x"
        kind = "crash"
        builds = "BUILDS"
        machines = ["MACHINES"]
        match = { signature = "crash:signal:SIGSEGV" }
        program = "# qemuglue program 1\\nmachine aarch64/virt\\nreadb @0x0\\n"
        upstream = "unknown"
    """
    given = result(Status.DIVERGED, divergences=(CRASH,))
    for builds, machine, explained in [
        (">=7.2", "*/virt", True), (">=7.2,<11.1", "*/virt", False), (">=7.2", "*64/virt*", True),
    ]:
        path.write_text(text.replace("BUILDS", builds).replace("MACHINES", machine))
        assert bool(sort_known(given, load(path)).known) is explained, (builds, machine)
    assert not sort_known(replace(given, machine="arm/x"), load(path)).known


def test_each_oddity_is_shown_once_a_build_on_its_own_machine() -> None:
    old, new = FakeBuild(), FakeBuild()
    old.name, old.version_tuple = "bookworm", (7, 2, 22)
    chosen: list[Any] = [(b, m) for b in (old, new) for m in ("x86_64/pc", "aarch64/raspi3b")]

    def oddities(**options: Any) -> list[tuple[str, str, str]]:
        given: Any = {"args": (), "ops": 5, "seed": 1, "defect": "", "folder": Path()} | options
        return [(job.build.name, job.machine, job.oddity)
                for job in jobs_of(chosen, **given) if job.oddity]

    assert {each for each in oddities() if each[2] in ("vmport-without-a-cpu", "bcm2835-rng-size")
            } == {("bookworm", "x86_64/pc", "vmport-without-a-cpu"),
                  ("sid", "x86_64/pc", "vmport-without-a-cpu"),
                  ("bookworm", "aarch64/raspi3b", "bcm2835-rng-size")}
    assert not oddities(ops=0) and not oddities(args=["-s"]) and not oddities(defect="no-clamp")


@pytest.mark.parametrize(("signatures", "shows", "signature"), [
    (["crash:signal:SIGSEGV"], True, "crash:signal:SIGSEGV"),
    (["", "crash:signal:SIGSEGV:frame"], True, "crash:signal:SIGSEGV:frame"),
    (["", ""], False, ""), (["crash:signal:SIGABRT"] * 2, False, "crash:signal:SIGABRT"),
])
def test_an_oddity_shows_or_does_not(
    monkeypatch: pytest.MonkeyPatch, signatures: list[str], shows: bool, signature: str,
) -> None:
    left = list(signatures)
    monkeypatch.setattr(check_jobs, "_scene", lambda build, oddity: None)
    monkeypatch.setattr(check_jobs, "replay", lambda *args, **options: Judgement(
        Kind.CRASH, left.pop(0)))
    build: Any = FakeBuild()
    found = show(build, find("rom-device-end"))
    assert (found.shows, found.signature, left) == (shows, signature, [])


def test_an_oddity_that_cannot_be_tried_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(build: Any, oddity: Any) -> Any:
        raise LaunchError("it did not start", stderr="no rom\n")

    monkeypatch.setattr(check_jobs, "_scene", refuse)
    build: Any = FakeBuild()
    found = show(build, find("rom-device-end"))
    assert found.shows is None and found.reason == "it did not start no rom"
    with pytest.raises(UsageError, match="no oddity 'x'"):
        find("x")


# -- sums ------------------------------------------------------------------------------------------


def test_reasons_without_names() -> None:
    def plain(machine: str, reason: str) -> str:
        return plain_reason(result(machine=machine, reason=reason))

    assert plain("arm/a-1", "QEMU did not start arm/a-1: qemu-system-arm: no a-1 here, a-12") == (
        "no MACHINE here, a-12")
    assert plain("arm/none", "it has none.bin") == "it has MACHINE.bin"


def test_what_a_run_adds_up_to() -> None:
    run = CheckRun(1, 10, results=[result(), result(Status.NOT_STARTED, reason="no rom")])
    assert run.statuses == {"match": 1, "not-started": 1} and run.views == (0, 0, 0)
    assert [reason for reason, _ in run.not_started()] == ["no rom"]
