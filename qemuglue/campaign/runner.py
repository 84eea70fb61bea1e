"""A campaign: several workers on one target, one folder that outlives them, one sum.

The loop: read what the workers tell, start those that ended before their time again, show how
it goes, write the totals down. It ends when every worker has used up its time, or at Ctrl-C or
SIGTERM, when the workers are asked to end between two programs and are killed if they do not.
The kernel kills the workers when the campaign ends in any other way, and their QEMUs with them.

The folder (``OUT``)::

    findings/<kind>-<sha1>/   see ``campaign.findings``
    flaky/                    the same of suspicions that nobody could show again: no findings
    corpus/                   inputs worth keeping, bytes only
    status.json               settings, and totals over all runs with this folder
    settings.json             what the workers were given last
    workers/worker-N.log      what worker N wrote to its terminal

A second run with the same folder resumes: its totals are added, its corpus is where it begins,
and what is recorded already is only counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from qemuglue.campaign.corpus import Corpus
from qemuglue.campaign.engines import start_engine
from qemuglue.campaign.settings import Settings, resolve, scene
from qemuglue.campaign.status import Lines, Totals, load_totals, save_totals
from qemuglue.campaign.worker import DONE, FOUND
from qemuglue.errors import EnvironmentFailure, QemuFailure, UsageError
from qemuglue.program.codec import RECORD_SIZE
from qemuglue.qemu.builds import Build, find_build

#: The loop looks at its workers at least this often.
TICK_S = 0.25

#: Totals are written down this often; a campaign that is killed loses no more of them.
SAVE_EVERY_S = 5.0

#: The present rate is measured over this long.
RATE_WINDOW_S = 5.0

#: A worker that dies is started again this often before its place stays empty.
MAX_LIVES = 20

#: A worker whose surroundings fail it before any program ran is started again this often: the
#: campaign has seen QEMU start, so it may have been an accident.
MAX_FALSE_STARTS = 3

#: Two deaths of one worker are at least this far apart, or the machine does nothing else.
REST_S = 1.0

#: How long a worker may go on behind its time: confirming a suspicion takes fresh QEMUs.
GRACE_S = 60.0

#: How long it may go on when it is asked to end.
STOP_GRACE_S = 10.0

#: Exit codes that a worker ends its time with.
_ENDED_WELL = (DONE, FOUND)


class Observer(Protocol):
    """Who is shown how a campaign goes; ``report.terminal`` is one."""

    def started(self, settings: Settings, build: Build, earlier: Totals | None) -> None: ...

    def progress(self, snapshot: Snapshot) -> None: ...

    def finding(self, finding: Mapping[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def ended(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How it goes now. ``totals`` are of this run; ``rate`` is judged operations a second over
    the last seconds."""

    settings: Settings
    elapsed_s: float
    totals: Totals
    rate: float
    corpus: int
    workers: int
    worker_deaths: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a campaign came to. ``totals`` are of this run, ``all_runs`` of all with its folder.
    ``failed`` says why it could not use its time; "" if it could."""

    settings: Settings
    build: Build
    totals: Totals
    all_runs: Totals
    elapsed_s: float
    corpus: int
    worker_deaths: int
    interrupted: bool = False
    failed: str = ""

    @property
    def rate(self) -> float:
        """Judged operations a second, start-up and confirming included."""
        return self.totals.judged / self.elapsed_s if self.elapsed_s > 0 else 0.0


@dataclass(slots=True)
class _Worker:
    """One place of the campaign; ``life`` counts the processes that filled it."""

    index: int
    life: int = -1
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    lines: Lines = field(default_factory=Lines)
    #: What this life told last; what the lives before told last.
    latest: Totals = field(default_factory=Totals)
    earlier: Totals = field(default_factory=Totals)
    error: str = ""
    environment: bool = False
    not_before: float = 0.0
    done: bool = False

    @property
    def programs(self) -> int:
        return self.earlier.programs + self.latest.programs


class Campaign:
    """``run`` it once. ``seeds`` are folders of inputs to begin with; ``until_found`` ends it at
    the first finding. Must be made and run on the main thread (signals, and the kernel watches
    the thread that starts a worker).

    :raise EnvironmentFailure, UsageError: by ``run``, before any worker started.
    """

    def __init__(
        self, settings: Settings, observer: Observer, *, seeds: Sequence[Path] = (),
        until_found: bool = False, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._seeds = seeds
        self._until_found = until_found
        self.out = Path(settings.out)
        self._observer = observer
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._shared = Totals()
        self._rates: deque[tuple[float, int]] = deque()
        self._deaths = 0
        self._stops = 0
        self._failed = ""
        self._start = 0.0
        self._build: Build
        self._earlier: Totals | None = None

    # -- the whole -----------------------------------------------------------------------------

    def run(self) -> Result:
        """From the first look to the last worker's end."""
        self._make_folder()
        with self._lock(), self._signals():
            self._prepare()
            self._observer.started(self.settings, self._build, self._earlier)
            self._start = self._clock()
            self._workers = [_Worker(index) for index in range(self.settings.jobs)]
            try:
                self._loop()
            finally:
                self._kill()
                self._observer.ended()
            self._save()
        totals = self._totals()
        return Result(
            self.settings, self._build, totals, self._all_runs(totals), totals.seconds,
            Corpus(self.settings.corpus).size(), self._deaths, self._stops > 0, self._failed,
        )

    def _make_folder(self) -> None:
        try:
            for folder in (self.out, self.settings.findings, self.settings.corpus,
                           self.out / "workers"):
                folder.mkdir(parents=True, exist_ok=True)
            (self.out / "lock").touch()
        except OSError as error:
            taken = isinstance(error, FileExistsError | NotADirectoryError)
            why = "is no folder" if taken else f"cannot be written: {error.strerror}"
            raise UsageError(
                f"{error.filename or self.out} {why}; give another folder with --out"
            ) from None

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One campaign at a time in a folder: two would overwrite each other's totals."""
        with (self.out / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(f"another campaign is running in {self.out}; give another "
                                 "folder with --out") from None
            yield

    def _prepare(self) -> None:
        """All that can be wrong with the settings, told before anything is started."""
        known = load_totals(self.out / "status.json")
        Corpus(self.settings.corpus).check()
        for folder in self._seeds:
            if not folder.is_dir():
                raise UsageError(f"{folder} is no folder; give a corpus")
            for _, data in Corpus(folder).inputs():
                Corpus(self.settings.corpus).add(data)
        if known is not None:
            _same_machine(self.out, known[0], self.settings)
            self._earlier = known[1]
        self.settings = resolve(self.settings)
        self._build = find_build(self.settings.build or None)
        try:
            with scene(self.settings).session():
                pass
        except QemuFailure as error:
            raise EnvironmentFailure(
                f"QEMU starts {self.settings.describe()} and fails at once: {error}"
            ) from error
        self.settings.save(self.out / "settings.json")

    # -- the loop ------------------------------------------------------------------------------

    def _loop(self) -> None:
        saved = self._clock()
        while True:
            now = self._clock()
            for worker in self._workers:
                if worker.process is None and not worker.done and now >= worker.not_before:
                    self._spawn(worker, now)
            self._read(TICK_S)
            for worker in self._workers:
                self._reap(worker)
            now = self._clock()
            if now - saved >= SAVE_EVERY_S:
                self._save()
                saved = now
            self._observer.progress(self._snapshot(now))
            if all(worker.done for worker in self._workers):
                return
            found = self._until_found and self._shared.findings
            if self._stops or self._failed or found:
                self._stop_workers(STOP_GRACE_S)
                return
            if self.settings.seconds and now > self._start + self.settings.seconds + GRACE_S:
                self._observer.say("a worker is still confirming a suspicion; it is ended now")
                self._stop_workers(STOP_GRACE_S)
                return

    def _spawn(self, worker: _Worker, now: float) -> None:
        """Start the worker's next life, with what is left of its time and programs."""
        left, share = 0.0, 0
        if self.settings.seconds:
            left = self._start + self.settings.seconds - now
            if left <= 0:
                worker.done = True
                return
        if self.settings.programs:
            share = _share(self.settings.programs, self.settings.jobs, worker.index)
            share -= worker.programs
            if share <= 0:
                worker.done = True
                return
        worker.life += 1
        worker.earlier.add(worker.latest)
        worker.latest, worker.lines = Totals(), Lines()
        worker.error, worker.environment = "", False
        ours, theirs = os.pipe()
        command = [*self._command(worker, theirs), f"--seconds={left}", f"--programs={share}"]
        if self.settings.engine == "atheris":
            command += _libfuzzer_flags(self.settings, worker.index, worker.life)
        log = self.out / "workers" / f"worker-{worker.index}.log"
        try:
            worker.process = start_engine(command, log, theirs)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        worker.pipe = ours
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _command(self, worker: _Worker, fd: int) -> list[str]:
        # -P: a file random.py in the folder this was called from must not become ours.
        engine = "libfuzzer" if self.settings.engine == "atheris" else "worker"
        return [
            sys.executable, "-P", "-m", f"qemuglue.campaign.{engine}",
            f"--settings={self.out / 'settings.json'}", f"--status-fd={fd}",
            f"--index={worker.index}", f"--life={worker.life}",
        ]

    def _read(self, timeout_s: float) -> None:
        """Take what the workers wrote, waiting for at most ``timeout_s`` for it."""
        if not self._selector.get_map():
            time.sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            worker: _Worker = key.data
            data = os.read(worker.pipe, 1 << 18)
            if not data:
                self._close_pipe(worker)
                continue
            for message in worker.lines.feed(data):
                try:
                    self._take(worker, message)
                except (KeyError, TypeError, ValueError):
                    continue

    def _take(self, worker: _Worker, message: Mapping[str, Any]) -> None:
        kind = message["type"]
        shared = self._shared
        if kind == "status":
            told = Totals.from_json(message)
            shared.shapes |= told.shapes
            shared.regions |= told.regions
            for note in told.notes:
                shared.note(note)
            told.shapes, told.regions, told.notes = set(), set(), {}
            worker.latest = told
        elif kind == "finding":
            finding = dict(message["finding"])
            if finding["path"] not in {each["path"] for each in shared.findings}:
                shared.findings.append(finding)
                self._observer.finding(finding)
        elif kind == "note":
            shared.note(str(message["text"]))
        elif kind == "error":
            worker.error = str(message["text"])
            worker.environment = bool(message.get("environment"))

    def _close_pipe(self, worker: _Worker) -> None:
        self._selector.unregister(worker.pipe)
        os.close(worker.pipe)
        worker.pipe = -1

    def _reap(self, worker: _Worker) -> None:
        """Deal with a worker that has ended, once its last words are read."""
        process = worker.process
        if process is None or worker.pipe >= 0 or process.poll() is None:
            return
        worker.process = None
        if process.returncode in _ENDED_WELL or self._stops:
            worker.done = True
            return
        self._deaths += 1
        why = worker.error or _how(process.returncode)
        false_start = worker.environment and not any(each.programs for each in self._workers)
        if false_start and worker.life + 1 >= MAX_FALSE_STARTS:
            self._failed = why
            self._observer.say(why)
            worker.done = True
            return
        if worker.life + 1 >= MAX_LIVES:
            worker.done = True
            self._observer.say(f"worker {worker.index} ended {MAX_LIVES} times and is not started "
                               f"again: {why}")
            if all(each.done for each in self._workers):
                self._failed = f"every worker ended {MAX_LIVES} times, the last with: {why}"
            return
        worker.not_before = self._clock() + REST_S
        log = self.out / "workers" / f"worker-{worker.index}.log"
        self._observer.say(f"worker {worker.index} ended before its time ({why}); it is started "
                           f"again, {worker.life + 1} of {MAX_LIVES - 1} times; its log is {log}")

    # -- ending --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for an end; the second time without waiting."""
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1

    def _stop_workers(self, grace_s: float) -> None:
        """Ask the workers to end, read their last words, kill those that do not."""
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is None:
                worker.process.terminate()
        until = self._clock() + grace_s
        while self._clock() < until and self._stops < 2:
            self._read(0.1)
            self._observer.progress(self._snapshot(self._clock()))
            if all(worker.process is None or (worker.pipe < 0 and worker.process.poll() is not None)
                   for worker in self._workers):
                return

    def _kill(self) -> None:
        """End what is left; their QEMUs go with them."""
        for worker in self._workers:
            process = worker.process
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            if worker.pipe >= 0:
                self._close_pipe(worker)
            worker.process = None
        self._selector.close()

    # -- sums ----------------------------------------------------------------------------------

    def _totals(self) -> Totals:
        """Of this run so far."""
        total = Totals(seconds=self._elapsed(), runs=1)
        for worker in self._workers:
            for part in (worker.earlier, worker.latest):
                seconds = part.seconds
                part.seconds = 0.0
                total.add(part)
                part.seconds = seconds
        total.runs = 1
        total.shapes, total.regions = set(self._shared.shapes), set(self._shared.regions)
        total.findings = list(self._shared.findings)
        total.notes = dict(self._shared.notes)
        return total

    def _all_runs(self, totals: Totals) -> Totals:
        whole = Totals()
        if self._earlier is not None:
            whole.add(self._earlier)
        whole.add(totals)
        return whole

    def _elapsed(self) -> float:
        return self._clock() - self._start

    def _snapshot(self, now: float) -> Snapshot:
        totals = self._totals()
        rates = self._rates
        rates.append((now, totals.judged))
        while len(rates) > 2 and rates[0][0] < now - RATE_WINDOW_S:
            rates.popleft()
        spent = now - rates[0][0]
        rate = (totals.judged - rates[0][1]) / spent if spent > 0 else 0.0
        return Snapshot(
            self.settings, totals.seconds, totals, rate, Corpus(self.settings.corpus).size(),
            sum(worker.process is not None for worker in self._workers), self._deaths,
        )

    def _save(self) -> None:
        """Write the totals down; a full disk must not end the campaign."""
        try:
            save_totals(self.out / "status.json", self.settings.to_json(),
                        self._all_runs(self._totals()))
        except OSError as error:
            self._observer.say(f"the totals cannot be written: {error.strerror}")


# Section: small things


def _same_machine(out: Path, before: Mapping[str, Any], settings: Settings) -> None:
    """A folder is for one machine: sums over two would mean nothing."""
    now = settings.to_json()
    for name in ("target", "machine", "devices", "qemu_args", "defect", "mode", "setup"):
        if before.get(name) != now[name]:
            raise UsageError(
                f"{out} holds a campaign with {name} {before.get(name)!r}, not {now[name]!r}; "
                "give another folder with --out"
            )


def _share(total: int, jobs: int, index: int) -> int:
    """This worker's part of ``total``."""
    return total // jobs + (index < total % jobs)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def _libfuzzer_flags(settings: Settings, index: int, life: int) -> list[str]:
    """Files libFuzzer writes go to the campaign's folder; how long an input may take is our own
    affair (confirming a suspicion can take minutes); signals come to Python."""
    # 0 would mean "of the clock"; 31 bits are what libFuzzer takes.
    seed = (settings.seed + 7919 * index + 104729 * life) % 0x7FFFFFFF + 1
    return [
        "--keep-going", f"-seed={seed}", f"-max_len={1 + RECORD_SIZE * settings.operations}",
        "-len_control=0", "-reload=1", "-timeout=3600", "-report_slow_units=36000",
        "-rss_limit_mb=4096", "-verbosity=0", "-handle_int=0", "-handle_term=0",
        f"-artifact_prefix={settings.out}/", str(settings.corpus),
    ]
