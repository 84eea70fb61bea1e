"""Jobs in worker processes: one that dies, hangs or raises costs its own job and no other.

The model is Python, so threads would share one core; and what runs beside QEMU may be killed,
run out of memory or hang. So each job runs in the main thread of a worker process, one at a time,
and a worker that is lost is replaced.

**How workers start.** By ``fork`` where this process has one thread only (3 ms, and nothing is
imported again); a fork of several threads could copy a lock that nobody in the copy will ever
open, so there a fresh interpreter is started (0.4 s of imports each). ``forkserver`` would be as
quick as ``fork``, but its workers are another process's children: their deaths could not be told
apart, and they would not end with the thread that started them.

**How they end.** The kernel kills a worker when the thread that started it ends, for whatever
reason, SIGKILL included; and QEMU when the worker's thread ends. Asked to end, a worker gets
SIGTERM first, which unwinds what it is doing, so that its QEMUs are reaped and its temporary
folders removed, and SIGKILL after :data:`GRACE_S`. Workers have a process group each: Ctrl-C
reaches the parent alone, which then ends them.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import selectors
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Generic, NoReturn, TypeVar

from qemuglue.errors import EnvironmentFailure, LaunchError, QemuglueError
from qemuglue.qemu import libc

#: A job is given so long where nothing is said: four times the patience of a check.
JOB_TIMEOUT_S = 3600.0

#: From SIGTERM to SIGKILL: what a worker needs to end its QEMUs is some 10 ms.
GRACE_S = 3.0

#: A worker that has grown by this is replaced after its job, so that hundreds of jobs cannot add
#: up: Python seldom gives back what one large machine took.
MAX_GROWN_BYTES = 350 << 20

#: A worker is looked at so often even if nothing is heard of it.
TICK_S = 0.25

#: Memory is looked at so often: it is all of /proc that is read.
LOOK_EVERY_S = 0.5

#: A thread that was joined is gone from /proc within a fraction of a millisecond.
THREAD_ENDS_S = 0.05

#: A fresh interpreter is ready after 0.4 s; on a host with ten times the work, after ten seconds.
START_TIMEOUT_S = 120.0

#: Deaths in a row of workers that never came to a job, before there is no sense in more.
MAX_FALSE_STARTS = 5

_LENGTH_BYTES = 8
_CHUNK_BYTES = 1 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Done(Generic[J, R]):
    """One job that has ended. ``failure`` is "" when ``result`` is there, else one sentence that
    says what became of the job; ``trace`` is the traceback where it raised. ``seconds`` is the
    time from its start in a worker to its end, without the worker's own start."""

    job: J
    result: R | None
    failure: str
    seconds: float
    trace: str = ""


@dataclass(slots=True)
class Memory:
    """The most memory that was seen in use while jobs ran, in bytes: ``harness`` is this process
    and its workers, ``qemus`` what they started. Sums of resident sizes, looked at every
    :data:`LOOK_EVERY_S`: a page that several processes share counts in each."""

    harness: int = 0
    qemus: int = 0
    _next_s: float = 0.0

    def look(self, workers: Sequence[int]) -> None:
        """Look now, unless :data:`LOOK_EVERY_S` has not passed. ``workers`` are process ids."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + LOOK_EVERY_S
        own = resident_bytes(os.getpid()) + sum(map(resident_bytes, workers))
        self.harness = max(self.harness, own)
        self.qemus = max(self.qemus, sum(map(resident_bytes, _children(set(workers)))))


def run_jobs(
    jobs: Sequence[J], work: Callable[[J], R], *, workers: int | None = None,
    timeout_s: float = JOB_TIMEOUT_S, cost: Callable[[J], float] | None = None,
    memory: Memory | None = None,
) -> Generator[Done[J, R], None, None]:
    """Run ``work(job)`` for every job, and yield each as it ends: every job exactly once.

    ``workers`` processes at a time (default: one a core; one still isolates the jobs from us).
    A job that takes more than ``timeout_s`` seconds is ended. With ``cost`` (any unit) dear jobs
    are started first, so that none is left over at the end alone. ``memory`` is kept up to date.

    ``work``, the jobs and the results must be picklable; ``work`` runs in a process's main
    thread and may start QEMUs. Closing the iterator, or leaving it by an exception such as
    KeyboardInterrupt, ends all workers and their QEMUs: take it in ``contextlib.closing``, or
    the end waits for the garbage collector.

    :raise EnvironmentFailure: workers die again and again before they come to any job.
    """
    packed = pickle.dumps((work, list(jobs)))
    order = range(len(jobs))
    if cost is not None:
        order = sorted(order, key=lambda index: -cost(jobs[index]))  # type: ignore[assignment]
    wanted = max(1, min(workers or os.cpu_count() or 1, len(jobs)))
    return _Pool[J, R](jobs, packed, deque(order), wanted, timeout_s, memory or Memory()).run()


@dataclass(slots=True, eq=False)
class _Worker:
    """One process. ``index`` is the job it has, ``received`` the part of its answer so far."""

    process: BaseProcess
    inbox: Connection
    outbox: Connection
    index: int | None = None
    #: Whether it has come to its jobs, and since when it has the one it has.
    ready: bool = False
    #: What it was born with: a fork has all its parent has.
    born_bytes: int = 0
    start_s: float = 0.0
    received: bytearray = field(default_factory=bytearray)

    def answer(self) -> bytes | None:
        """The whole answer, once it is there."""
        data = self.received
        if len(data) < _LENGTH_BYTES:
            return None
        end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
        if len(data) < end:
            return None
        found = bytes(memoryview(data)[_LENGTH_BYTES:end])
        del data[:end]
        return found


class _Pool(Generic[J, R]):
    """The workers of one call."""

    def __init__(
        self, jobs: Sequence[J], packed: bytes, waiting: deque[int], wanted: int,
        timeout_s: float, memory: Memory,
    ) -> None:
        self._jobs = jobs
        self._packed = packed
        self._waiting = waiting
        self._wanted = wanted
        self._timeout_s = timeout_s
        self._memory = memory
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._false_starts = 0

    def run(self) -> Generator[Done[J, R], None, None]:
        """See :func:`run_jobs`."""
        try:
            while self._waiting or any(each.index is not None for each in self._workers):
                self._staff()
                ready = {key.data for key, _ in self._selector.select(TICK_S)}
                self._memory.look([int(each.process.pid or 0) for each in self._workers])
                for worker in list(self._workers):
                    done = self._attend(worker, worker in ready)
                    if done is not None:
                        self._staff()  # nobody idles while the caller looks at the result
                        yield done
        finally:
            self._end(self._workers)
            self._selector.close()

    def _staff(self) -> None:
        """Every worker has a job, as long as there are any."""
        while self._waiting:
            idle = next((each for each in self._workers if each.index is None), None)
            if idle is None:
                if len(self._workers) >= self._wanted:
                    return
                idle = self._start()
            index = self._waiting.popleft()
            idle.index, idle.start_s = index, time.monotonic()
            # It may be dead already, which is noticed where its answer is waited for.
            with contextlib.suppress(OSError):
                idle.inbox.send(index)

    def _start(self) -> _Worker:
        method = "fork" if _one_thread() else "spawn"
        context = multiprocessing.get_context(method)
        theirs_in, inbox = context.Pipe(duplex=False)
        outbox, theirs_out = context.Pipe(duplex=False)
        process = context.Process(  # type: ignore[attr-defined]
            target=_serve, args=(self._packed, theirs_in, theirs_out, os.getpid()), daemon=True,
            name="qemuglue-worker",
        )
        # Until it has a process group of its own, a Ctrl-C would be its affair too.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs_in.close()
            theirs_out.close()
        worker = _Worker(process, inbox, outbox)
        worker.born_bytes = resident_bytes(os.getpid()) if method == "fork" else 0
        os.set_blocking(outbox.fileno(), False)
        self._workers.append(worker)
        self._selector.register(outbox, selectors.EVENT_READ, worker)
        return worker

    def _attend(self, worker: _Worker, readable: bool) -> Done[J, R] | None:
        """What ``worker`` has to say; a lost one is removed."""
        gone = self._receive(worker) if readable else False
        answer = worker.answer()
        if answer == _READY:
            worker.ready, worker.start_s = True, time.monotonic()
            answer = worker.answer()
        if answer is not None and worker.index is not None:
            self._false_starts = 0
            done = self._done(worker, answer)
            most = worker.born_bytes + MAX_GROWN_BYTES
            if gone or resident_bytes(int(worker.process.pid or 0)) > most:
                self._end([worker])
            return done
        if not gone and worker.process.exitcode is not None:
            gone = True
        if gone:
            why = self._how_it_ended(worker)
            self._end([worker])
            return self._lost(worker, why)
        spent = time.monotonic() - worker.start_s
        if worker.ready and worker.index is not None and spent > self._timeout_s:
            self._end([worker])
            return self._lost(worker, f"it did not end within {self._timeout_s:g} s")
        if not worker.ready and spent > START_TIMEOUT_S:
            self._end([worker])
            return self._lost(worker, f"no worker process came up within {START_TIMEOUT_S:g} s")
        return None

    def _receive(self, worker: _Worker) -> bool:
        """Take what is in the pipe; True at its end."""
        while True:
            try:
                data = os.read(worker.outbox.fileno(), _CHUNK_BYTES)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not data:
                return True
            worker.received += data

    def _done(self, worker: _Worker, answer: bytes) -> Done[J, R]:
        index, worker.index = worker.index, None
        assert index is not None
        seconds = round(time.monotonic() - worker.start_s, 3)
        try:
            failure, trace, result = pickle.loads(answer)
        except Exception as error:
            failure, trace, result = (
                f"its result cannot be read back: {type(error).__name__}: {error}", "", None)
        return Done(self._jobs[index], result, failure, seconds, trace)

    def _lost(self, worker: _Worker, why: str) -> Done[J, R] | None:
        index, worker.index = worker.index, None
        if index is None:
            return None
        return Done(self._jobs[index], None, why, round(time.monotonic() - worker.start_s, 3))

    def _how_it_ended(self, worker: _Worker) -> str:
        worker.process.join(GRACE_S)
        code = worker.process.exitcode
        if code == _START_FAILED:
            self._false_starts += 1
            if self._false_starts >= MAX_FALSE_STARTS:
                raise EnvironmentFailure(
                    f"{self._false_starts} worker processes in turn ended before their first job")
        if code is None:
            return "the worker process closed its channel and went on"
        if code >= 0:
            return f"the worker process exited with code {code}"
        try:
            return f"the worker process was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"the worker process was ended by signal {-code}"

    def _end(self, ending: Sequence[_Worker]) -> None:
        """Ask workers to end, then make them; all at once, so that the grace is one."""
        ending = list(ending)
        try:
            for worker in ending:
                worker.process.terminate()
            until = time.monotonic() + GRACE_S
            for worker in ending:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in ending:
                worker.process.kill()
                worker.process.join(GRACE_S)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(worker.outbox)
                worker.inbox.close()
                worker.outbox.close()
                if worker in self._workers:
                    self._workers.remove(worker)


# Section: in the worker

#: What it says before its first job.
_READY = b""

#: Exit code of a worker that could not even read what its work is.
_START_FAILED = 71


class _Ended(SystemExit):
    """SIGTERM in a worker: not an Exception, so that no job takes it for its own, and of the
    two that asyncio lets through its callbacks (it logs any other and goes on)."""


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.disable()  # what asyncio says of tasks that were cut short is nobody's affair now
    raise _Ended


def _serve(packed: bytes, inbox: Connection, outbox: Connection, parent: int) -> None:
    """The whole life of a worker: a job's number in, its answer out."""
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _on_sigterm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
        libc.die_with_parent(parent)
        try:
            work, jobs = pickle.loads(packed)
        except Exception:
            traceback.print_exc()
            os._exit(_START_FAILED)
        _send(outbox.fileno(), _READY)
        while True:
            try:
                index = inbox.recv()
            except EOFError:
                return
            _send(outbox.fileno(), _answer(work, jobs[index]))
    except _Ended:
        return


def _answer(work: Callable[[J], R], job: J) -> bytes:
    """The pickled (failure, trace, result)."""
    try:
        result = work(job)
    except Exception as error:
        return pickle.dumps((_sentence(error), traceback.format_exc(), None))
    try:
        return pickle.dumps(("", "", result))
    except Exception as error:
        why = f"its result cannot be sent: {type(error).__name__}: {error}"
        return pickle.dumps((why, traceback.format_exc(), None))


def _sentence(error: Exception) -> str:
    text = str(error)
    if isinstance(error, LaunchError):
        said = [line.strip() for line in error.stderr.splitlines() if line.strip()]
        return f"{text}: {said[-1]}" if said and said[-1] not in text else text
    if isinstance(error, QemuglueError):
        return text or type(error).__name__
    told = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"internal error, please report it: {told}"


def _send(fd: int, answer: bytes) -> None:
    data = memoryview(len(answer).to_bytes(_LENGTH_BYTES, "little") + answer)
    while data:
        data = data[os.write(fd, data):]


# Section: looking at processes


def _one_thread() -> bool:
    """Whether this process has one thread, those that Python does not know of included. One that
    Python has joined may still be on its way out."""
    until = time.monotonic() + THREAD_ENDS_S
    while threading.active_count() == 1:
        try:
            if len(os.listdir("/proc/self/task")) == 1:  # noqa: PTH208
                return True
        except OSError:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return False


def resident_bytes(pid: int) -> int:
    """The memory a process has now; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def _children(parents: Set[int]) -> Iterator[int]:
    """Ids of the processes whose parent is one of ``parents``; /proc/PID/task/PID/children is
    not there in every kernel."""
    with os.scandir("/proc") as entries:
        ids = [entry.name for entry in entries if entry.name.isdecimal()]
    for pid in ids:
        try:
            # The name before the state may hold blanks and parentheses.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
            parent = int(fields[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if parent in parents:
            yield int(pid)
