"""One process that fuzzes a target without a machine: libFuzzer's harness, and the plain engine.

``python -m qemuglue.campaign.inputs.engine --target=NAME --out=DIR …`` is the plain engine: it
damages the inputs of the corpus (``Subject.damaged``) and keeps what gives an answer not seen
before. The Atheris engine (``libfuzzer``) drives the same ``Work``. Both tell the campaign how it
goes by lines on a pipe:
``{"type": "text", "inputs": N, "facts": [new ones], "found": [folders]}``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from qemuglue.campaign.corpus import Corpus
from qemuglue.campaign.feedback import Feedback
from qemuglue.campaign.inputs.faults import InputFault, record
from qemuglue.campaign.inputs.subject import Fact, Subject, find_subject

#: Status lines are at least this far apart.
INTERVAL_S = 0.5
#: The plain engine keeps no more inputs than this: an answer can be had in many words.
MAX_KEPT = 5_000
#: What is recorded of one signature: the second tells whether the first was an odd case.
MOST_ALIKE = 2

class Work:
    """Runs inputs, records what is found, tells how it goes."""

    def __init__(
        self, subject: Subject, out: Path, *, status_fd: int = -1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.subject = subject
        self.folder = out / "findings"
        self.inputs = 0
        self.signatures: dict[str, int] = {}
        self.facts: set[Fact] = set()
        self._fd = status_fd
        self._clock = clock
        self._next = 0.0
        self._fresh: list[str] = []
        self._found: list[str] = []

    def run(self, data: bytes) -> tuple[Fact | None, InputFault | None]:
        """(fact, fault): one of the two. A fault is recorded, unless it is known."""
        self.inputs += 1
        fact, fault = None, None
        try:
            fact = self.subject.run(data)
        except InputFault as error:
            fault = error
            count = self.signatures[error.signature] = self.signatures.get(error.signature, 0) + 1
            if count <= MOST_ALIKE:
                self._found.append(str(record(self.folder, data, error,
                                              self.subject.defect).path))
        if fact is not None and fact not in self.facts:
            self.facts.add(fact)
            self._fresh.append("/".join(fact))
        if self._fd >= 0 and self._clock() >= self._next:
            self.tell()
        return fact, fault

    def tell(self) -> None:
        """Write a status line; a campaign that is gone ends the process."""
        if self._fd < 0:
            return
        self._next = self._clock() + INTERVAL_S
        line = {"type": "text", "inputs": self.inputs, "facts": self._fresh,
                "found": self._found, "signatures": self.signatures}
        left = json.dumps(line).encode() + b"\n"
        self._fresh, self._found = [], []
        try:
            while left:
                left = left[os.write(self._fd, left):]
        except OSError:
            os._exit(1)


class Harness:
    """Called by libFuzzer with one input after another."""

    def __init__(self, work: Work, feedback: Feedback, *, keep_going: bool) -> None:
        self.work = work
        self.feedback = feedback
        self.keep_going = keep_going

    def __call__(self, data: bytes) -> None:
        fact, fault = self.work.run(data)
        if fact is not None:
            self.feedback.feed({fact})
        if fault is not None and not self.keep_going:
            print(fault.trace, file=sys.stderr)  # noqa: T201 - as libFuzzer targets do
            raise fault


def setup(options: argparse.Namespace, atheris: Any) -> tuple[Harness, dict[str, Any]]:
    """The harness and the further arguments of ``atheris.Setup``: half of all new inputs are
    libFuzzer's own, half are damaged as the subject knows."""
    subject = find_subject(options.target, options.defect or "")
    work = Work(subject, Path(options.out or "."), status_fd=options.status_fd)

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        rng = Random(seed)
        if not data or rng.random() < 0.5:
            return bytes(atheris.Mutate(data or rng.choice(subject.seeds), size))
        return subject.damaged(data, rng)[:size]

    return Harness(work, Feedback(), keep_going=options.keep_going), {"custom_mutator": mutate}


def explore(work: Work, corpus: Corpus, rng: Random, over: Callable[[], bool]) -> None:
    """The plain engine: the corpus first, then damaged inputs of it."""
    subject = work.subject
    pool = [data for _, data in corpus.inputs() if len(data) <= subject.max_size]
    pool = pool or list(subject.seeds)
    for data in pool:
        if over():
            return
        work.run(data)
    kept = corpus.size()
    while not over():
        known = len(work.facts)
        data = subject.damaged(rng.choice(pool), rng)
        work.run(data)
        if len(work.facts) > known and kept < MAX_KEPT:
            pool.append(data)
            kept += corpus.add(data)


def main(argv: Sequence[str] | None = None) -> int:
    """The plain engine's process; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="qemuglue.campaign.inputs.engine", allow_abbrev=False)
    parser.add_argument("--target", required=True)
    parser.add_argument("--defect", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--programs", type=int, default=0)
    parser.add_argument("--status-fd", type=int, default=-1)
    args = parser.parse_args(argv)
    work = Work(find_subject(args.target, args.defect), args.out, status_fd=args.status_fd)
    seconds, programs = float(args.seconds), int(args.programs)
    deadline = time.monotonic() + seconds if seconds else None

    def over() -> bool:
        late = deadline is not None and time.monotonic() >= deadline
        return late or 0 < programs <= work.inputs

    explore(work, Corpus(args.out / "corpus"), Random(args.seed), over)
    work.tell()
    return 1 if work.signatures else 0


if __name__ == "__main__":
    sys.exit(main())
