"""One process that fuzzes the target ``text``: libFuzzer's harness, and the plain engine.

``python -m qemuglue.campaign.text.fuzz --out=DIR …`` is the plain engine: it damages the inputs
of the corpus (``text/damage``) and keeps what gives an answer not seen before. The Atheris engine
(``libfuzzer``) drives the same ``Work``. Both tell the campaign how it goes by lines on a pipe:
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
from qemuglue.campaign.text.damage import MAX_SIZE, damaged
from qemuglue.campaign.text.target import TextFault, record, run_input

#: Status lines are at least this far apart.
INTERVAL_S = 0.5
#: The plain engine keeps no more inputs than this: an answer can be had in many words.
MAX_KEPT = 5_000
#: What is recorded of one signature: the second tells whether the first was an odd case.
MOST_ALIKE = 2

_NODE = b"  0000000000000000-00000000000000ff (prio 0, i/o): "
_TREE = (b"address-space: memory\n" + _NODE + b"system orphan\n  " + _NODE.replace(b"0ff", b"07f")
         + b"alias a @b 0000000000000000-000000000000007f\n\nmemory-region: b\n" + _NODE + b"b\n\n")
_FLAT = (b'FlatView #0\n AS "memory", root: system\n Root memory region: system\n'
         b"  0000000000000000-000000000000007f (prio 0, i/o): b\n\n")
#: One input for each parser: enough to begin with where there is no corpus.
SEEDS = (
    b"t" + _TREE, b"f" + _FLAT, b"m" + _TREE + b"\x1e" + _FLAT,
    b"ememory_region_ops_read cpu -1 mr 0x1 addr 0x2 value 0x3 size 1 name 'a'\n",
    b"eInvalid read at addr 0x82, size 2, region 'edu', reason: invalid size (min:4 max:8)\n",
    b"q\x01OK 0x00", b"q\x00OK", b"x\x01OK\nOK 0x0000000000000000\n",
    b'j\0{"return": "text", "id": "__qmp#00000"}\r\n', b"hq35 a board (alias of pc-q35)\n",
    b"vQEMU emulator version 10.0.2 (Debian 1:10.0.2)\n",
    b"gHost virtual address for 0x1000 (pc.ram) is 0x7f0000001000\n",
    b"p\x000000000000001000: 0x00\n", b"d\x7fELF\x02\x01\x01", b"rqg_limit 5\n",
    b"sERROR:hw/a.c:1:f: assertion failed: (a)\n",
)


class Work:
    """Runs inputs, records what is found, tells how it goes."""

    def __init__(
        self, out: Path, *, status_fd: int = -1, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = out / "findings"
        self.inputs = 0
        self.signatures: dict[str, int] = {}
        self.facts: set[tuple[str, str, str]] = set()
        self._fd = status_fd
        self._clock = clock
        self._next = 0.0
        self._fresh: list[str] = []
        self._found: list[str] = []

    def run(self, data: bytes) -> tuple[tuple[str, str, str] | None, TextFault | None]:
        """(fact, fault): one of the two. A fault is recorded, unless it is known."""
        self.inputs += 1
        fact, fault = None, None
        try:
            fact = run_input(data)
        except TextFault as error:
            fault = error
            count = self.signatures[error.signature] = self.signatures.get(error.signature, 0) + 1
            if count <= MOST_ALIKE:
                self._found.append(str(record(self.folder, data, error).path))
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
    libFuzzer's own, half are damaged as QEMU's text may be."""
    work = Work(Path(options.out or "."), status_fd=options.status_fd)

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        rng = Random(seed)
        if not data or rng.random() < 0.5:
            return bytes(atheris.Mutate(data or rng.choice(SEEDS), size))
        return damaged(data, rng)[:size]

    return Harness(work, Feedback(), keep_going=options.keep_going), {"custom_mutator": mutate}


def explore(work: Work, corpus: Corpus, rng: Random, over: Callable[[], bool]) -> None:
    """The plain engine: the corpus first, then damaged inputs of it."""
    pool = [data for _, data in corpus.inputs() if len(data) <= MAX_SIZE] or list(SEEDS)
    for data in pool:
        if over():
            return
        work.run(data)
    kept = corpus.size()
    while not over():
        known = len(work.facts)
        data = damaged(rng.choice(pool), rng)
        work.run(data)
        if len(work.facts) > known and kept < MAX_KEPT:
            pool.append(data)
            kept += corpus.add(data)


def main(argv: Sequence[str] | None = None) -> int:
    """The plain engine's process; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="qemuglue.campaign.text.fuzz", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--programs", type=int, default=0)
    parser.add_argument("--status-fd", type=int, default=-1)
    args = parser.parse_args(argv)
    work = Work(args.out, status_fd=args.status_fd)
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
