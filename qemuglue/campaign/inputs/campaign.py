"""A campaign on a target without a machine: workers without a QEMU, one folder, one sum.

The folder holds ``findings/``, ``corpus/`` and ``workers/worker-N.log``, and can be used again:
the corpus is where the next run begins. Far smaller than ``runner``, whose worlds are machines.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qemuglue.campaign.corpus import Corpus
from qemuglue.campaign.engines import start_engine
from qemuglue.campaign.inputs.faults import InputFinding, read_finding
from qemuglue.campaign.inputs.subject import find_subject
from qemuglue.campaign.status import Lines
from qemuglue.errors import UsageError

#: The loop looks at its workers at least this often, and shows how it goes this often.
TICK_S = 0.25
SHOW_S = 5.0

#: How long a worker may go on behind its time: one input may take 20 s of CPU time.
GRACE_S = 60.0

#: libFuzzer's exit code for its own time being up, and the plain engine's for a finding.
_ENDED_WELL = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSettings:
    """``seconds`` and ``inputs`` limit the run (0: no limit); ``out`` is its folder."""

    target: str
    out: Path
    engine: str
    seed: int
    seconds: float = 0.0
    inputs: int = 0
    jobs: int = 1
    until_found: bool = False
    defect: str = ""


@dataclass(slots=True)
class InputResult:
    """What it came to. ``facts`` counts different answers: which parser, parsed or refused and
    with which sentence. ``failed`` says why it could not use its time; "" if it could."""

    inputs: int = 0
    facts: set[str] = field(default_factory=set)
    findings: list[InputFinding] = field(default_factory=list)
    elapsed_s: float = 0.0
    corpus: int = 0
    interrupted: bool = False
    failed: str = ""


@dataclass(slots=True)
class _Worker:
    index: int
    process: subprocess.Popen[bytes]
    pipe: int
    lines: Lines = field(default_factory=Lines)
    inputs: int = 0


def run_campaign(
    settings: InputSettings, say: Callable[[str], None], seeds: Sequence[Path] = (),
) -> InputResult:
    """From the first worker to the last one's end. Run it on the main thread: the kernel watches
    the thread that starts a worker.

    :raise UsageError: the folder cannot be used, or a corpus is none.
    """
    result = InputResult()
    _make_folder(settings.out, seeds)
    start = time.monotonic()
    with _workers(settings) as workers:
        try:
            _watch(settings, workers, result, say, start)
        except KeyboardInterrupt:
            result.interrupted = True
    result.elapsed_s = time.monotonic() - start
    result.corpus = Corpus(settings.out / "corpus").size()
    return result


def _make_folder(out: Path, seeds: Sequence[Path]) -> None:
    try:
        for folder in (out / "findings", out / "corpus", out / "workers"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{error.filename or out} cannot be written: {error.strerror}; give "
                         "another folder with --out") from None
    corpus = Corpus(out / "corpus")
    for folder in seeds:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder; give a corpus")
        for _, data in Corpus(folder).inputs():
            corpus.add(data)


@contextlib.contextmanager
def _workers(settings: InputSettings) -> Iterator[list[_Worker]]:
    started: list[_Worker] = []
    try:
        for index in range(settings.jobs):
            started.append(_start(settings, index))
        yield started
    finally:
        for worker in started:
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()
            os.close(worker.pipe)


def _start(settings: InputSettings, index: int) -> _Worker:
    ours, theirs = os.pipe()
    share = -(-settings.inputs // settings.jobs)
    command = [sys.executable, "-P", "-m"]
    defect = [f"--defect={settings.defect}"] if settings.defect else []
    if settings.engine == "atheris":
        seed = (settings.seed + 7919 * index) % 0x7FFFFFFF + 1
        command += [
            "qemuglue.campaign.libfuzzer", f"--target={settings.target}", f"--out={settings.out}",
            f"--status-fd={theirs}", "--keep-going", *defect, f"-seed={seed}",
            f"-max_len={1 + find_subject(settings.target).max_size}",
            "-len_control=0", "-reload=1", "-timeout=3600", "-report_slow_units=3600",
            "-rss_limit_mb=4096", f"-max_total_time={int(settings.seconds)}",
            f"-runs={share or -1}", f"-artifact_prefix={settings.out}/",
            str(settings.out / "corpus"),
        ]
    else:
        command += [
            "qemuglue.campaign.inputs.engine", f"--target={settings.target}",
            f"--out={settings.out}", f"--status-fd={theirs}",
            f"--seed={settings.seed}/{index}", f"--seconds={settings.seconds}",
            f"--programs={share}", *defect,
        ]
    log = settings.out / "workers" / f"worker-{index}.log"
    try:
        process = start_engine(command, log, theirs)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    return _Worker(index, process, ours)


def _watch(
    settings: InputSettings, workers: Sequence[_Worker], result: InputResult,
    say: Callable[[str], None], start: float,
) -> None:
    shown = start
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.pipe, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select(TICK_S):
                data = os.read(key.fd, 1 << 18)
                if not data:
                    selector.unregister(key.fd)
                for message in key.data.lines.feed(data):
                    _take(key.data, message, result, say)
            result.inputs = sum(worker.inputs for worker in workers)
            now = time.monotonic()
            if now - shown >= SHOW_S:
                shown = now
                say(f"{now - start:.0f} s: {result.inputs:,} inputs, {len(result.facts)} different "
                    f"answers, {len(result.findings)} findings")
            if settings.until_found and result.findings:
                return
            if settings.seconds and now - start > settings.seconds + GRACE_S:
                result.failed = "a worker did not end in its time"
                return
    for worker in workers:
        code = worker.process.wait()
        if code not in _ENDED_WELL:
            log = settings.out / "workers" / f"worker-{worker.index}.log"
            result.failed = f"worker {worker.index} ended with code {code}; its log is {log}"


def _take(
    worker: _Worker, message: dict[str, object], result: InputResult, say: Callable[[str], None],
) -> None:
    inputs, facts, found = (message.get(name) for name in ("inputs", "facts", "found"))
    if not (isinstance(inputs, int) and isinstance(facts, list) and isinstance(found, list)):
        return
    worker.inputs = inputs
    result.facts.update(str(fact) for fact in facts)
    known = {finding.path for finding in result.findings}
    for path in found:
        finding = read_finding(Path(str(path)))
        if finding.path not in known:
            result.findings.append(finding)
            say(f"found: {finding.message}; recorded in {finding.path}")
