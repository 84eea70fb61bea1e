"""One process of a campaign: makes programs, has them executed, tells how it goes.

``python -m qemuglue.campaign.worker --settings=FILE --status-fd=FD …`` is the ``random`` engine;
the Atheris engine (``libfuzzer``) drives the same ``Work``. A worker ends when its time or its
programs are used up, or at SIGTERM between two programs; it dies with the campaign that started
it.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

from qemuglue.campaign.corpus import MAX_KEPT, Corpus
from qemuglue.campaign.drawing import drawing
from qemuglue.campaign.explorer import CONFIRMATIONS, Explorer
from qemuglue.campaign.feedback import regions_of, shape_id
from qemuglue.campaign.findings import Finding, read_finding
from qemuglue.campaign.settings import Settings, scene
from qemuglue.campaign.status import StatusWriter
from qemuglue.campaign.targets import find_target
from qemuglue.errors import (
    EnvironmentFailure,
    FindingError,
    LaunchError,
    QemuFailure,
    UsageError,
)
from qemuglue.program.codec import decode, encode
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Program
from qemuglue.program.recipes.mix import Wild

#: Programs drawn with one set of weights; wild weights need a few to show what they do.
PHASE = 32

#: A QEMU that fails this often in a row before it takes a single operation will go on so.
MAX_FAILED_STARTS = 20

#: Exit codes of a worker: as the command line has them, and one for an error of ours.
DONE, FOUND, ENVIRONMENT, INTERNAL = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Role:
    """Which worker of the campaign this is: the ``life``-th process in place ``index``."""

    index: int = 0
    life: int = 0

    def rng(self, seed: int) -> Random:
        """Its own stream of the campaign's seed. A restarted worker takes another one: the
        program that ended it must not come first again."""
        return Random(f"{seed}/{self.index}/{self.life}")


class Work:
    """An explorer with a deadline, a stop flag and a status line. Use ``close``.

    :raise EnvironmentFailure, UsageError: by :meth:`start`, as of ``settings.scene``.
    """

    def __init__(
        self, settings: Settings, writer: StatusWriter, *, role: Role | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.writer = writer
        self.role = role or Role()
        self.stopping = False
        self.regions: set[str] = set()
        self.shapes: set[int] = set()
        #: What the last program reached that this process had not seen before.
        self.fresh = 0
        #: The last finding that was recorded.
        self.last: Finding | None = None
        #: What programs are drawn from; there after :meth:`start`.
        self.drawing: Wild
        self._seen: set[object] = set()
        self._failed_starts = 0
        self._clock = clock
        self._deadline = clock() + settings.seconds if settings.seconds else None
        self.explorer = Explorer(
            scene(settings), settings.findings, seed=settings.seed, defect=settings.defect,
            want_features=True, on_finding=self._on_finding,
            compare_maps=find_target(settings.target).draws == "topology",
            flaky=settings.findings.parent / "flaky",
        )
        #: What is recorded already is only counted, from where these counts begin.
        self._base = Counter(dict.fromkeys(known_signatures(settings.findings), CONFIRMATIONS))
        self.explorer.progress.signatures.update(self._base)

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> Layout:
        """Learn the machine's contracts and start the first QEMU; its layout."""
        layout = self.explorer.start()
        self.drawing = drawing(self.settings.target, self.explorer.session(), layout)
        self.tell()
        return layout

    @property
    def over(self) -> bool:
        """Whether the time or the programs are used up, or a signal asks for an end."""
        limit = self.settings.programs
        return (
            self.stopping
            or (self._deadline is not None and self._clock() >= self._deadline)
            or (limit > 0 and self.explorer.progress.programs >= limit)
        )

    def stop_at_signals(self) -> None:
        """From now on SIGTERM and SIGINT ask for an end between two programs."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def close(self) -> None:
        """Look at RAM a last time, end QEMU, tell the final totals."""
        try:
            self.explorer.close()
        except QemuFailure as error:
            self.explorer.progress.notes.append(f"the last look ended with: {error}")
        self.tell(final=True)

    # -- work ----------------------------------------------------------------------------------

    def decode(self, data: bytes) -> Program:
        """The program that ``data`` means on this machine; never fails."""
        settings = self.settings
        program = decode(
            data, self.explorer.layout, settings.machine, settings.args, settings.operations
        )
        return settings.program(program.operations)

    def perform(self, program: Program, data: bytes = b"") -> bool:
        """Have one program executed; False when it led to a finding, new or known."""
        explorer = self.explorer
        try:
            clean = explorer.execute(program, data)
            self._failed_starts = 0
        except (QemuFailure, LaunchError) as error:
            # QEMU ended before it took an operation: killed from outside, out of memory.
            self._failed_starts += 1
            explorer.progress.notes.append(f"a start of QEMU failed: {error}")
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise EnvironmentFailure(
                    f"{MAX_FAILED_STARTS} starts of QEMU failed one after another, "
                    f"the last with: {error}"
                ) from error
            clean = True
        self._note_reached()
        if self.writer.due:
            self.tell()
        return clean

    def _note_reached(self) -> None:
        features = self.explorer.features or ()
        self.fresh = 0
        for feature in features:
            if feature not in self._seen:
                self._seen.add(feature)
                self.fresh += 1
                self.shapes.add(shape_id(feature))
                self.regions.update(regions_of(feature))

    @property
    def signatures(self) -> Counter[str]:
        """Signatures this process came upon, with how often."""
        return self.explorer.progress.signatures - self._base

    def tell(self, *, final: bool = False) -> None:
        """Write a status line now."""
        progress = self.explorer.progress
        self.writer.status(
            progress, self.signatures, self.shapes, self.regions | progress.regions, final=final
        )

    def _on_finding(self, finding: Finding) -> None:
        self.last = finding
        self.writer.finding(finding)
        self.tell()


def known_signatures(folder: Path) -> set[str]:
    """Signatures of the findings recorded in ``folder``; what cannot be read is left out."""
    found: set[str] = set()
    if folder.is_dir():
        for path in folder.iterdir():
            if not path.name.startswith("."):
                try:
                    found.add(read_finding(path).signature)
                except FindingError:
                    continue
    return found


def run_random(work: Work) -> None:
    """The corpus first (each worker its share), then programs drawn from the seed, every other
    ``PHASE`` of them with wild weights. What reaches something new is kept in the corpus."""
    settings, role = work.settings, work.role
    layout = work.explorer.layout
    corpus = Corpus(settings.corpus)
    for number, (_, data) in enumerate(corpus.inputs()):
        if work.over:
            return
        if number % settings.jobs == role.index:
            work.perform(work.decode(data), data)
    kept = corpus.size()
    rng = role.rng(settings.seed)
    generator = even = work.drawing
    count = 0
    while not work.over:
        if count % PHASE == 0:
            wild = count // PHASE % 2 == 1
            generator = even.wild(rng) if wild else even
        count += 1
        program = settings.program(generator.operations(rng, settings.operations))
        clean = work.perform(program)
        if clean and work.fresh and kept < MAX_KEPT:
            kept += corpus.add(encode(program, layout))


def main(argv: Sequence[str] | None = None) -> int:
    """The process's own main; its exit code."""
    parser = argparse.ArgumentParser(prog="qemuglue.campaign.worker", allow_abbrev=False)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--programs", type=int)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--life", type=int, default=0)
    parser.add_argument("--status-fd", type=int, default=-1)
    args = parser.parse_args(argv)
    writer = StatusWriter(args.status_fd)
    return guarded(writer, lambda: _work(args, writer))


def _work(args: argparse.Namespace, writer: StatusWriter) -> int:
    given = {"seconds": args.seconds, "programs": args.programs}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = Settings.load(args.settings).replace(**changes)
    work = Work(settings, writer, role=Role(args.index, args.life))
    work.stop_at_signals()
    try:
        work.start()
        run_random(work)
    finally:
        work.close()
    return FOUND if work.signatures else DONE


def guarded(writer: StatusWriter, body: Callable[[], int]) -> int:
    """Run ``body``; an error goes to the campaign as a sentence, and becomes an exit code."""
    try:
        return body()
    except (EnvironmentFailure, UsageError) as error:
        writer.error(str(error), environment=True)
        print(error, file=sys.stderr)  # noqa: T201 - a worker's stderr is its log
        return ENVIRONMENT
    except QemuFailure as error:
        writer.error(f"QEMU failed before it could be used: {error}", environment=False)
        print(error, file=sys.stderr)  # noqa: T201
        return INTERNAL
    except Exception as error:
        traceback.print_exc()
        writer.error(f"{type(error).__name__}: {error}", environment=False)
        return INTERNAL


if __name__ == "__main__":
    sys.exit(main())
