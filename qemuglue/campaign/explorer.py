"""The inside of a campaign: execute programs one after another and deal with what happens.

One QEMU serves many programs; its mirror and the model follow it. It is replaced when it dies,
hangs, is suspected of a divergence, or has served ``SESSION_OPERATIONS`` operations. A
suspicion goes to the slow judge first: the program alone in a fresh QEMU, then everything that
QEMU had been told; what cannot be shown again is counted as flaky, never as a finding.

Rules for merging what happens, in this order: a death or hang is a finding; a confirmed
divergence is a finding; the same signature again is only counted; a guest that switches itself
off or resets is an outcome.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from qemuglue.campaign.findings import Finding, details, write_finding
from qemuglue.errors import QemuFailure
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Place, Program
from qemuglue.witness.judge import (
    CONFIRM_TRIES,
    Judgement,
    Kind,
    Scene,
    confirm,
    failure_judgement,
    judgement,
    prepare,
    replay,
    resolve,
)
from qemuglue.witness.lockstep import LockStep, RunEnd, Stop
from qemuglue.witness.maps import check_map
from qemuglue.witness.probe import learn_missing
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind as RowKind
from qemuglue.witness.verdict import Tally, Verdict

#: A session ends after this many operations: what a finding needs to be shown again stays
#: short, and a device wedged by one program does not swallow the rest of the campaign.
SESSION_OPERATIONS = 20_000

#: RAM is compared whole every so many programs; in between only the pages the model wrote.
FULL_RAM_EVERY = 64

#: Programs after which devices that were moved or unmapped are put back in their places, where
#: nothing steers, and where a campaign is steered towards what it has not seen. Measured with
#: 60 programs on e1000e: every 16th shows 2,800 states, every 4th 4,000, each 4,300 at a third
#: more time, a reset before each 4,800 at three times the time.
SETUP_EVERY, SETUP_EVERY_STEERED = 16, 4

#: Programs after which a QEMU is replaced that has a device which is decoded but not followed any
#: more: as long as it runs, RAM that differs is excused. Some are lost as soon as they are used.
LOST_FOR = 64

#: One signature is confirmed this often; after that it is counted and the session replaced.
CONFIRMATIONS = 2

#: Suspicions that the slow judge did not share and that are kept beside the findings, for people
#: who want to look: the first few of a worker show what kind they are.
FLAKY_KEPT = 8

#: A program longer than this is first tried in its shorter forms by the slow judge.
LONGEST_PREFIX = 20_000


@dataclass(slots=True)
class Progress:
    """What a campaign shows while it runs; everything is a total."""

    tally: Tally = field(default_factory=Tally)
    programs: int = 0
    restarts: int = 0
    deaths: int = 0
    shutdowns: int = 0
    flaky: int = 0
    signatures: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    regions: set[str] = field(default_factory=set)
    shapes: set[object] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


class Explorer:
    """Executes programs on one machine. ``folder`` receives findings; use ``close``."""

    def __init__(
        self, scene: Scene, folder: Path, *, seed: int | None, defect: str = "",
        want_features: bool = False, on_finding: Callable[[Finding], None] | None = None,
        compare_maps: bool = False, flaky: Path | None = None,
    ) -> None:
        self.scene = scene
        self.folder = folder
        #: Receives suspicions that could not be shown again; None keeps none.
        self.flaky = flaky
        self.seed = seed
        self.defect = defect
        self.on_finding = on_finding
        #: Whether the whole map is compared after each program.
        self.compare_maps = compare_maps
        #: Called with each QEMU that programs will run in, right after its start.
        self.on_session: Callable[[Session], None] | None = None
        self.progress = Progress()
        #: What the last program reached: hashable facts, for the coverage feedback.
        self.features: set[object] | None = set() if want_features else None
        self._session: Session | None = None
        self._layout: Layout | None = None
        self._since_full = 0
        self._since_setup = 0
        self._lost_for = 0
        #: The signature a suspicion had in the batch -> the one the slow judge gave it.
        self._shown_as: dict[str, str] = {}

    # -- life cycle ----------------------------------------------------------------------------

    def start(self) -> Layout:
        """Learn the contracts, start the first session; its layout."""
        self.progress.notes.extend(prepare(self.scene))
        return self.layout

    @property
    def layout(self) -> Layout:
        """The layout right after set-up: what program bytes are decoded against."""
        if self._layout is None:
            self._layout = self.session().layout()
        return self._layout

    def session(self) -> Session:
        """The running session, started if there is none."""
        if self._session is None:
            session = self.scene.session()
            session.__enter__()
            session.maps = self.progress.tally.maps
            self._session = session
            self._since_full = self._lost_for = 0
            if session.missing_contracts():
                self._learn(session)
                return self.session()
            if self.on_session is not None:
                self.on_session(session)
        return self._session

    def _learn(self, session: Session) -> None:
        """Regions came into view that nobody probed: do it here and throw this QEMU away."""
        try:
            self.progress.notes.extend(learn_missing(session))
        except QemuFailure as error:
            self.progress.notes.append(f"probing ended with: {error}")
        self._drop()

    def _drop(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
            self.progress.restarts += 1

    def close(self) -> None:
        """Compare RAM a last time and end QEMU."""
        if self._session is not None:
            self._final_check(self._session)
        if self._session is not None:
            self._session.close()
            self._session = None

    # -- executing -------------------------------------------------------------------------------

    def execute(self, program: Program, data: bytes = b"") -> bool:
        """Perform and judge one program; False when it led to a finding (new or known)."""
        session = self.session()
        # The map right after set-up: what a fresh QEMU gives the program when it is replayed.
        steps = resolve(self.layout, program.operations)
        if self.features is not None:
            self.features.clear()
        lockstep = LockStep(session, tally=self.progress.tally, features=self.features)
        self.progress.programs += 1
        clean = True
        try:
            end = lockstep.run(self._restored(session, steps))
            self._since_full += 1
            if end.stop is Stop.DONE and self._since_full >= FULL_RAM_EVERY:
                self._since_full = 0
                suspicion = lockstep.check_ram(full=True)
                if suspicion is not None:
                    end = replace(end, stop=Stop.SUSPICION, suspicion=suspicion)
            if end.stop is Stop.DONE and self.compare_maps:
                suspicion = check_map(session)
                if suspicion is not None:
                    end = replace(end, stop=Stop.SUSPICION, suspicion=suspicion)
            if end.stop is not Stop.DONE:
                clean = self._stopped(judgement(session, end, 0), program, session, data)
        except QemuFailure as error:
            clean = self._failed(error, program, session, data)
        if self._session is not None:
            if session.missing_contracts():
                self._learn(session)
            elif len(session.journal) > SESSION_OPERATIONS or self._blind(session):
                self._final_check(session)
                self._drop()
        if self.features is not None:
            self.progress.shapes.update(self.features)
        return clean

    def _blind(self, session: Session) -> bool:
        """Whether a device was not followed for too long."""
        self._lost_for = self._lost_for + 1 if session.following.lost() else 0
        return self._lost_for >= LOST_FOR

    def _restored(self, session: Session, steps: list[Step]) -> list[Step]:
        """The steps, after the set-up once more if the map has changed for a while: programs
        move and unmap the devices they are meant to reach."""
        self._since_setup += 1
        every = SETUP_EVERY if self.features is None else SETUP_EVERY_STEERED
        if self._since_setup < every or not session.changes:
            return steps
        self._since_setup = 0
        session.changes = 0
        return [*session.setup_steps, *steps]

    def _final_check(self, session: Session) -> None:
        """Every byte of RAM once more before a session ends."""
        try:
            suspicion = LockStep(session, tally=self.progress.tally).check_ram(full=True)
        except QemuFailure:
            return
        if suspicion is None:
            return
        found = judgement(session, RunEnd(Stop.SUSPICION, 0, suspicion), 0)
        self._stopped(found, self._whole(session), session, b"")

    def _failed(
        self, error: QemuFailure, program: Program, session: Session, data: bytes
    ) -> bool:
        """QEMU failed outside an exchange: on the monitor, at a refresh, by flooding."""
        return self._stopped(failure_judgement(session, error), program, session, data)

    # -- what happened -----------------------------------------------------------------------------

    def _stopped(
        self, found: Judgement, program: Program, session: Session, data: bytes
    ) -> bool:
        """Deal with a run that ended early; True when it was only an outcome."""
        whole = self._whole(session)
        self._drop()
        progress = self.progress
        if found.kind is Kind.SHUTDOWN:
            progress.shutdowns += 1
            progress.tally.cells[RowKind.EVENT, Verdict.SHUTDOWN] += 1
            return True
        if found.kind is not Kind.DIVERGENCE:
            progress.deaths += 1
        signature = self._shown_as.get(found.signature, found.signature)
        progress.signatures[signature] += 1
        if progress.signatures[signature] > CONFIRMATIONS:
            self._count(found)
            return False
        for candidate in (program, whole):
            if not 0 < len(candidate.operations) <= LONGEST_PREFIX + len(program.operations):
                continue
            count, shown = self._confirm(candidate, found)
            if count and shown is not None:
                progress.signatures[signature] -= 1
                progress.signatures[shown.signature] += 1
                self._shown_as[found.signature] = shown.signature
                self._count(shown)
                self._record(candidate, shown, (count, CONFIRM_TRIES), data)
                return False
        # The operation's number was that of the last program; it is the journal's last.
        found = replace(found, index=None)
        if found.kind is Kind.DIVERGENCE:
            progress.signatures[signature] -= 1
            if not self._forgive(found):
                progress.flaky += 1
                if self.flaky is not None and progress.flaky <= FLAKY_KEPT:
                    flaky = self._finding(whole, found, (0, CONFIRM_TRIES))
                    write_finding(self.flaky, flaky, found, data)
            return True
        self._record(whole, found, (0, CONFIRM_TRIES), data)
        return False

    def _count(self, found: Judgement) -> None:
        """A divergence belongs into the table like any verdict."""
        if found.suspicion is not None:
            self.progress.tally.cells[found.suspicion.kind, Verdict.DIVERGED] += 1

    def _confirm(self, program: Program, found: Judgement) -> tuple[int, Judgement | None]:
        """By the slow judge; a long journal is first run fast, which is how it was seen."""
        try:
            first = replay(self.scene, program)
        except QemuFailure:
            return 0, None
        # A reply that is lost in a batch is a wrong value there, and a hang when it is alone.
        if first.kind in (Kind.NONE, Kind.SHUTDOWN):
            return 0, None
        stop = first.index + 1 if first.index is not None else len(program.operations)
        shorter = program.replace(operations=program.operations[:stop])
        count, shown = confirm(self.scene, shorter, first.signature, tries=CONFIRM_TRIES)
        return count, shown

    def _forgive(self, found: Judgement) -> bool:
        """The slow judge saw nothing wrong: was an access that a device made by itself taken
        for a piece of the operation? Then remember the pair; it is counted from now on."""
        suspicion = found.suspicion
        if suspicion is None or suspicion.side is None:
            return False
        if suspicion.side[1] in suspicion.targets or suspicion.side in self.scene.knowledge.sides:
            return False
        self.scene.knowledge.sides.add(suspicion.side)
        return True

    def _record(
        self, program: Program, found: Judgement, confirmed: tuple[int, int], data: bytes
    ) -> None:
        if found.index is not None:
            program = program.replace(operations=program.operations[: found.index + 1])
        finding = self._finding(program, found, confirmed)
        path = write_finding(self.folder, finding, found, data)
        self.progress.findings.append(str(path))
        if self.on_finding is not None:
            self.on_finding(replace(finding, path=path))

    def _finding(
        self, program: Program, found: Judgement, confirmed: tuple[int, int]
    ) -> Finding:
        return Finding(
            found.kind.value, found.signature, program, self.scene.config.build.identity(),
            self.seed, confirmed, details(found), self.defect,
        )

    def _whole(self, session: Session) -> Program:
        """Everything this QEMU was told since its set-up, at absolute addresses."""
        steps = session.journal[len(session.setup_steps):]
        return Program(
            self.scene.config.full_name, self.scene.config.args,
            tuple(_absolute(step) for step in steps), self.scene.config.mode.value,
            setup=self.scene.setup,
        )


def _absolute(step: Step) -> Operation:
    op, addr = step
    if op.place is None:
        return op
    return Operation(op.verb, Place(None, 0, addr), op.size, op.value, op.data)
