"""The jobs of ``check --face``: a machine each, in worker processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from qemuglue.campaign.check_result import Status
from qemuglue.campaign.faces.check import check_faces
from qemuglue.campaign.faces.result import FaceResult
from qemuglue.campaign.schedule import Done, run_jobs
from qemuglue.qemu.builds import Build


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceJob:
    """One machine to check through faces."""

    build: Build
    machine: str
    faces: tuple[str, ...]
    args: tuple[str, ...] = ()
    ops: int = 0
    seed: int = 0
    defect: str = ""


@dataclass(slots=True)
class FaceRuns:
    """What has ended so far."""

    results: list[FaceResult] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0
    traces: list[str] = field(default_factory=list)


def perform(job: FaceJob) -> FaceResult:
    """Do the job in the process that it is called in."""
    return check_faces(job.build, job.machine, job.faces, args=job.args, ops=job.ops,
                       seed=job.seed, defect=job.defect)


def run_faces(
    jobs: Sequence[FaceJob], *, workers: int,
    on_end: Callable[[FaceResult], None] = lambda result: None,
) -> FaceRuns:
    """Perform ``jobs``; ``on_end`` is called with each result as it is there. Ctrl-C ends all
    that still runs, and is not raised again.

    :raise EnvironmentFailure: no worker process comes to work.
    """
    runs, start = FaceRuns(), monotonic()
    try:
        with contextlib.closing(run_jobs(jobs, perform, workers=workers)) as ended:
            for done in ended:
                if done.trace:
                    runs.traces.append(done.trace)
                found = done.result if done.result is not None else _failed(done)
                runs.results.append(found)
                on_end(found)
    except KeyboardInterrupt:
        runs.interrupted = True
    runs.seconds = monotonic() - start
    order = {(job.build.name, job.machine): n for n, job in enumerate(jobs)}
    runs.results.sort(key=lambda each: order[each.build, each.machine])
    return runs


def _failed(done: Done[FaceJob, FaceResult]) -> FaceResult:
    """A job that gave no result: its worker was lost, or we made an error."""
    job = done.job
    return FaceResult(
        build=job.build.name, version=job.build.version, machine=job.machine, faces=job.faces,
        status=Status.ERROR, seed=job.seed, ops=job.ops, seconds=done.seconds, reason=done.failure,
    )
