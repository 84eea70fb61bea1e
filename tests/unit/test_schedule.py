"""Jobs in worker processes: whatever becomes of one, the others and the parent are unharmed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
from processes import gone

from qemuglue.campaign import schedule
from qemuglue.campaign.schedule import Done, Memory, run_jobs
from qemuglue.errors import EnvironmentFailure, LaunchError, UsageError

HERE = Path(__file__).resolve().parent


def perform(job: tuple[str, Any]) -> Any:
    """One job of every kind that can go wrong."""
    what, given = job
    match what:
        case "double":
            return given * 2
        case "who":
            return os.getpid()
        case "sleep":
            time.sleep(given)
            return os.getpid()
        case "raise":
            raise given
        case "die":
            os.kill(os.getpid(), given)
            time.sleep(30)
        case "exit":
            os._exit(given)
        case "bytes":
            return b"x" * given
        case "unpicklable":
            return threading.Lock()
        case "unreadable":
            return Unreadable()
        case "interrupt":
            raise KeyboardInterrupt
        case "ends in a callback":
            loop = asyncio.new_event_loop()
            loop.call_soon(os.kill, os.getpid(), signal.SIGTERM)
            loop.run_forever()
        case "child":
            sleeper = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
            Path(given).write_text(str(sleeper.pid))
            time.sleep(60)
        case "cleans":
            path = Path(given)
            try:
                path.touch()
                time.sleep(60)
            finally:
                path.unlink()
        case "grow":
            globals()["KEPT"] = bytearray(given)
            return os.getpid()
    return None


class Unreadable:
    def __reduce__(self) -> Any:
        return int, ("not a number",)


def run(*jobs: tuple[str, Any], **options: Any) -> dict[tuple[str, Any], Done[Any, Any]]:
    found = list(run_jobs(jobs, perform, **options))
    assert len(found) == len(jobs)
    return {done.job: done for done in found}


def children() -> set[int]:
    return set(schedule._children({os.getpid()}))


@pytest.fixture(autouse=True)
def forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs the tests side by side has a thread of its own that does nothing meanwhile."""
    if "threads" not in request.node.name:
        monkeypatch.setattr(schedule, "_one_thread", lambda: True)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No worker, no zombie; the tracker that Python starts once for all spawned processes stays."""
    before = children()
    yield
    assert children() <= before | {getattr(resource_tracker._resource_tracker, "_pid", None)}


def wait_for(path: Path, timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not (path.exists() and (path.is_dir() or path.read_text() or not path.suffix)):
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@pytest.mark.parametrize("workers", [1, 2, None])
def test_every_job_gives_its_result_once(workers: int | None) -> None:
    found = run(*(("double", n) for n in range(20)), workers=workers)
    assert {job[1]: done.result for job, done in found.items()} == {n: 2 * n for n in range(20)}
    assert all(done.failure == "" and 0 <= done.seconds < 10 for done in found.values())


def test_no_jobs_no_workers() -> None:
    assert run() == {}


def test_jobs_run_in_other_processes_at_the_same_time() -> None:
    start = time.monotonic()
    found = run(*(("sleep", 0.4 + n / 1000) for n in range(4)), workers=4)
    assert time.monotonic() - start < 1.2
    assert len({done.result for done in found.values()} | {os.getpid()}) == 5


def test_one_worker_still_isolates_and_is_kept() -> None:
    found = run(("who", 1), ("who", 2), workers=1)
    [pid] = {done.result for done in found.values()}
    assert pid != os.getpid()


@pytest.mark.parametrize(("job", "said"), [
    (("raise", UsageError("no such thing")), "no such thing"),
    (("raise", ValueError("bad")), "internal error, please report it: ValueError: bad"),
    (("raise", LaunchError("refused", stderr="x\nno rom\n")), "refused: no rom"),
    (("die", signal.SIGKILL), "the worker process was ended by SIGKILL"),
    (("die", signal.SIGXCPU), "the worker process was ended by SIGXCPU"),
    (("exit", 3), "the worker process exited with code 3"),
    (("exit", 0), "the worker process exited with code 0"),
    (("unpicklable", 0), "its result cannot be sent: TypeError: cannot pickle"),
    (("unreadable", 0), "its result cannot be read back: ValueError"),
    (("interrupt", 0), "the worker process exited with code 1"),
    (("sleep", 30), "it did not end within 1 s"),
    (("die", signal.SIGSTOP), "it did not end within 1 s"),
])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_job_that_fails_costs_itself_only(
    job: tuple[str, Any], said: str, workers: int, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "GRACE_S", 0.3)
    others = [("double", n) for n in range(6)]
    found = run(*others[:3], job, *others[3:], workers=workers, timeout_s=1)
    bad = found.pop(job)
    assert bad.result is None and bad.failure.startswith(said), bad.failure
    assert all(done.result == 2 * job[1] for job, done in found.items())
    assert bool(bad.trace) == (job[0] in ("raise", "unpicklable"))


def test_a_worker_that_does_not_come_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "GRACE_S", 0.3)
    monkeypatch.setattr(schedule, "START_TIMEOUT_S", 0.5)
    monkeypatch.setattr(schedule, "_serve", lambda *_: time.sleep(30))
    [done] = run(("double", 1), timeout_s=0.1).values()
    assert done.failure == "no worker process came up within 0.5 s"


def test_an_answer_larger_than_any_pipe() -> None:
    found = run(("bytes", 30 << 20), ("bytes", 1), workers=2)
    assert [len(done.result) for done in found.values()] == [30 << 20, 1] or len(found) == 2


def test_dear_jobs_start_first() -> None:
    order = [done.job[1] for done in run_jobs(
        [("double", n) for n in (3, 1, 4, 15, 9)], perform, workers=1, cost=lambda job: job[1])]
    assert order == [15, 9, 4, 3, 1]


def test_a_worker_that_has_grown_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "MAX_GROWN_BYTES", 150 << 20)
    found = run(("who", 0), ("grow", 300 << 20), ("who", 1), workers=1)
    first, grown, last = (found[key].result for key in
                          (("who", 0), ("grow", 300 << 20), ("who", 1)))
    assert first == grown != last


def test_asyncio_does_not_swallow_the_end_of_a_worker(capfd: pytest.CaptureFixture[str]) -> None:
    """A monitor's callback may be what runs when Ctrl-C comes."""
    found = run(("ends in a callback", None), ("double", 2), workers=1, timeout_s=20)
    assert "20 s" not in found["ends in a callback", None].failure
    assert found["double", 2].result == 4
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("beside", [False, True])
def test_a_worker_is_kept_whatever_its_parent_has(
    beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork has all that its parent has, from the start; that is no growth."""
    monkeypatch.setattr(schedule, "MAX_GROWN_BYTES", 100 << 20)
    monkeypatch.setattr(schedule, "_one_thread", lambda: not beside)
    ballast = bytearray(b"x") * (200 << 20)
    found = run(("who", 1), ("who", 2), workers=1)
    assert len({done.result for done in found.values()}) == 1 and ballast


def test_memory_is_told() -> None:
    memory = Memory()
    run(("sleep", 0.6), workers=1, memory=memory)
    assert memory.harness > 10 << 20 and memory.qemus == 0


def test_beside_other_threads_workers_are_started_afresh() -> None:
    """A fork could copy a lock that the other thread holds for ever."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert not schedule._one_thread()
        found = run(("double", 4), ("raise", ValueError("bad")), workers=1, timeout_s=10)
    finally:
        stop.set()
        thread.join()
    assert sorted(done.failure for done in found.values()) == [
        "", "internal error, please report it: ValueError: bad"]


def test_workers_that_never_come_to_a_job_are_no_endless_loop(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(schedule, "_serve", lambda *_: os._exit(schedule._START_FAILED))
    with pytest.raises(EnvironmentFailure, match="5 worker processes in turn"):
        run(*(("double", n) for n in range(50)), workers=2)


def test_what_cannot_be_sent_is_told_at_once() -> None:
    with pytest.raises(Exception, match="pickle"):
        run_jobs([1], lambda job: job)


# -- the end -------------------------------------------------------------------------------------


def test_closing_the_iterator_ends_all_that_runs(tmp_path: Path) -> None:
    child, cleans = tmp_path / "child.pid", tmp_path / "cleans"
    jobs = [("double", 1), ("child", str(child)), ("cleans", str(cleans))]
    with contextlib.closing(run_jobs(jobs, perform, workers=3)) as done:
        assert next(done).result == 2
        wait_for(child)
        wait_for(cleans)
        start = time.monotonic()
    assert time.monotonic() - start < 2.0, "workers end when they are asked, not by force"
    assert not cleans.exists(), "what a job had open was unwound"
    os.kill(int(child.read_text()), signal.SIGKILL)


def test_a_worker_that_does_not_listen_is_made_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "GRACE_S", 0.2)
    jobs = [("double", 1), ("die", signal.SIGSTOP)]
    with contextlib.closing(run_jobs(jobs, perform, workers=2)) as done:
        assert next(done).result == 2


def test_an_error_of_the_caller_ends_the_workers() -> None:
    with pytest.raises(RuntimeError), contextlib.closing(
            run_jobs([("double", 1), ("sleep", 60)], perform, workers=2)) as found:
        for _ in found:
            raise RuntimeError


SCRIPT = """
    import contextlib, sys
    sys.path[:0] = [{here!r}, {here!r} + "/.."]  # this module, and what it imports from beside
    from test_schedule import perform
    from qemuglue.campaign.schedule import run_jobs
    jobs = [("child", {a!r}), ("cleans", {b!r})]
    try:
        with contextlib.closing(run_jobs(jobs, perform, workers=2)) as found:
            list(found)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    child, cleans = tmp_path / "child.pid", tmp_path / "cleans"
    text = textwrap.dedent(SCRIPT).format(here=str(HERE), a=str(child), b=str(cleans))
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True,
                              start_new_session=True)
    wait_for(child)
    wait_for(cleans)
    workers = list(schedule._children({parent.pid}))
    assert len(workers) == 2
    if number is signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does
    else:
        parent.send_signal(number)
    out, _ = parent.communicate(timeout=10)
    assert all(map(gone, workers))
    assert (out == "interrupted\n", cleans.exists()) == (
        (True, False) if number is signal.SIGINT else (False, True))
    os.kill(int(child.read_text()), signal.SIGKILL)
