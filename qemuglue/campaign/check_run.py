"""A whole check: many machines at a time, each in a worker process, and what they came to."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

from qemuglue.campaign.check_jobs import CheckJob, Shown, perform
from qemuglue.campaign.check_result import CheckResult, Status
from qemuglue.campaign.schedule import JOB_TIMEOUT_S, Done, Memory, run_jobs
from qemuglue.mirror import Inference
from qemuglue.witness.oddities import Oddity, standard
from qemuglue.witness.verdict import Tally

#: A machine whose map alone is compared: it takes a tenth of a second, or QEMU hangs, which is
#: noticed after a minute.
MAP_TIMEOUT_S = 600.0

#: What names a machine or a program of QEMU's in the reason why one did not start.
_NAMES = re.compile(r"QEMU did not start \S+: |qemu-system-\S+: |^\s+")


@dataclass(slots=True)
class CheckRun:
    """What has ended so far. ``workers`` processes; ``seconds`` of a clock, where the results'
    own seconds add up; ``traces`` are tracebacks of errors of ours."""

    seed: int
    ops: int
    workers: int = 1
    results: list[CheckResult] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0
    memory: Memory = field(default_factory=Memory)
    traces: list[str] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[str]:
        return Counter(result.status for result in self.results)

    @property
    def tally(self) -> Tally:
        """The verdicts of all machines together."""
        tally = Tally()
        for result in self.results:
            tally.add(result.tally)
        return tally

    @property
    def inferred(self) -> Inference:
        """How many facts were inferred from flat views, by kind."""
        found = [result.map.inferred for result in self.results]
        return Inference(*(sum(getattr(each, name) for each in found)
                           for name in ("pairs", "bits", "aliases")))

    @property
    def known_by_name(self) -> int:
        """How many facts of QEMU's own regions were taken from their names, over all machines
        (``mirror/known.py``); none of them counts as inferred."""
        return sum(result.map.known.total for result in self.results)

    @property
    def views(self) -> tuple[int, int, int]:
        """(QEMU's views, exact of them, exact with inference off)."""
        maps = [result.map for result in self.results]
        return (sum(each.views for each in maps), sum(each.exact for each in maps),
                sum(each.plain for each in maps))

    def not_started(self) -> Iterator[tuple[str, list[CheckResult]]]:
        """Machines that did not start by reason, the commonest first; without the names in it
        the same reason is the same for many."""
        found: dict[str, list[CheckResult]] = {}
        for result in self.results:
            if result.status == Status.NOT_STARTED:
                found.setdefault(plain_reason(result), []).append(result)
        yield from sorted(found.items(), key=lambda item: -len(item[1]))

    def known(self) -> Iterator[tuple[Oddity, int, int]]:
        """(oddity, findings it explains, machines it was found on)."""
        for oddity in standard():
            machines = [
                result for result in self.results for each in result.known
                if each.oddity == oddity.id
            ]
            if machines:
                yield oddity, len(machines), len({(r.build, r.machine) for r in machines})

    def stale(self) -> list[Shown]:
        """Oddities that a build does not show any more."""
        return [each for each in self.shown if each.shows is False]


def plain_reason(result: CheckResult) -> str:
    """The reason why a machine did not start, without its own name in it."""
    text = _NAMES.sub("", result.reason)
    name = result.machine.partition("/")[2]
    return re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "MACHINE", text) if name else text


def run_check(
    run: CheckRun, jobs: Sequence[CheckJob],
    on_end: Callable[[CheckResult | Shown], None] = lambda result: None,
) -> None:
    """Perform ``jobs``; ``on_end`` is called with each result as it is there. Ctrl-C ends all
    that still runs, and is not raised again: ``run.interrupted`` says so.

    :raise EnvironmentFailure: no worker process comes to work.
    """
    start = monotonic()
    timeout_s = JOB_TIMEOUT_S if run.ops else MAP_TIMEOUT_S
    try:
        with contextlib.closing(run_jobs(
            jobs, perform, workers=run.workers, timeout_s=timeout_s, memory=run.memory
        )) as ended:
            for done in ended:
                if done.trace:
                    run.traces.append(done.trace)
                found = done.result if done.result is not None else _failed(done, run)
                if isinstance(found, Shown):
                    run.shown.append(found)
                else:
                    run.results.append(found)
                on_end(found)
    except KeyboardInterrupt:
        run.interrupted = True
    finally:
        run.seconds = monotonic() - start
        order = {(job.build.name, job.machine): n for n, job in enumerate(jobs) if not job.oddity}
        run.results.sort(key=lambda each: order.get((each.build, each.machine), len(order)))


def _failed(done: Done[CheckJob, CheckResult | Shown], run: CheckRun) -> CheckResult | Shown:
    """A job that gave no result: its worker was lost, or we made an error."""
    job = done.job
    build = job.build
    if job.oddity:
        return Shown(job.oddity, build.name, build.version, job.machine, None,
                     reason=done.failure)
    return CheckResult(
        build=build.name, version=build.version, machine=job.machine, status=Status.ERROR,
        seed=run.seed, ops=run.ops, seconds=done.seconds, reason=done.failure,
    )
