"""The slow judge: a program again, one operation at a time, in a fresh QEMU.

Nothing is reported as a divergence that this judge has not seen for itself; ``confirm`` says
k of n. ``replay`` is the same for people: it tells of every operation what the model says and
what QEMU says.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from qemuglue.errors import ProtocolError, QemuDied, QemuFailure, QemuHang, ResourceError
from qemuglue.memory.rules import Rules
from qemuglue.mirror import Mirror
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Program
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.asking_items import try_to_ask
from qemuglue.witness.death import crash_signature
from qemuglue.witness.face import HostFace
from qemuglue.witness.judging import Suspicion
from qemuglue.witness.lockstep import LockStep, RunEnd, Stop
from qemuglue.witness.maps import check_map, map_suspicion
from qemuglue.witness.orders import learn_orders, unknown_orders
from qemuglue.witness.probe import learn_missing
from qemuglue.witness.session import Knowledge, Session, Step
from qemuglue.witness.verdict import Tally

#: Fresh processes a preparation may use up: each death of a probed device costs one, and a
#: device has three windows to die in.
MAX_PREPARATIONS = 64

#: Times a suspicion is replayed.
CONFIRM_TRIES = 3


#: In a long program all of RAM is compared this often, in a short one after every operation;
#: the pages that the model wrote always are.
FULL_RAM_CHECKS = 256


#: A killed process is reaped within milliseconds; a loaded host may take longer.
DEATH_WAIT_S = 0.5


class Kind(enum.Enum):
    """What a program does; the values are the words of ``replay --json``."""

    NONE = "none"
    DIVERGENCE = "divergence"
    CRASH = "crash"
    HANG = "hang"
    RESOURCE = "resource"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Judgement:
    """``signature`` is free of addresses and paths; ``index`` is the operation's number."""

    kind: Kind
    signature: str = ""
    index: int | None = None
    suspicion: Suspicion | None = None
    stderr: str = ""
    transcript: bytes = b""
    command: tuple[str, ...] = ()
    error: str = ""


class Evidence(TypedDict):
    """What every judgement but "none" carries."""

    transcript: bytes
    command: tuple[str, ...]


#: Called with each operation's index, step, and what model and QEMU say of it.
OnStep = Callable[[int, Step, Sequence[str], Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Scene:
    """All that decides how a program is judged, apart from the program."""

    config: QemuConfig
    knowledge: Knowledge
    setup: str = ""
    rules: Rules | None = None
    face: type[HostFace] = HostFace
    #: Plants a fault on the wires of a QEMU that is judged, see ``Session.tamper``.
    tamper: Callable[[QemuProcess], None] | None = None
    mirror: type[Mirror] = Mirror

    def session(self) -> Session:
        return Session(
            self.config, knowledge=self.knowledge, setup=self.setup, rules=self.rules,
            face=self.face, tamper=self.tamper, mirror=self.mirror,
        )


def prepare(scene: Scene) -> list[str]:
    """Probe contracts in throw-away processes until none is missing; failures as sentences."""
    failures: list[str] = []
    for _ in range(MAX_PREPARATIONS):
        with scene.session() as session:
            if not session.missing_contracts():
                more = session.target_big and any(True for _ in unknown_orders(session))
                if not (more and learn_orders(session)):
                    trouble = try_to_ask(session)
                    return [*failures, trouble] if trouble else failures
                continue
            try:
                failures += learn_missing(session)
            except QemuFailure as error:
                failures.append(f"probing ended with: {error}")
    return failures


def resolve(layout: Layout, operations: Sequence[Operation]) -> list[Step]:
    """Steps at the addresses ``layout`` gives them; raises ProgramError."""
    return [(op, layout.address_of(op) or 0) for op in operations]


def replay(
    scene: Scene, program: Program, *, on_step: OnStep | None = None, tally: Tally | None = None,
    slow: bool = True, avoid: bool = True,
) -> Judgement:
    """Judge ``program`` in a fresh QEMU; ``slow`` one operation at a time. ``avoid`` leaves out
    what ``oddities`` lists, as campaigns do."""
    with scene.session() as session:
        steps = resolve(session.layout(), program.operations)
        lockstep = LockStep(
            session, tally=tally, slow=slow, avoid=avoid,
            full_ram_every=max(1, len(steps) // FULL_RAM_CHECKS),
        )
        if not slow:
            return judgement(session, lockstep.run(steps), 0)
        for index, step in enumerate(steps):
            try:
                end = lockstep.run([step])
            except QemuFailure as error:
                return replace(failure_judgement(session, error), index=index)
            if on_step is not None:
                model, seen = lockstep.account
                if end.suspicion is not None:
                    model, seen = list(end.suspicion.model), list(end.suspicion.qemu)
                elif end.error is not None:  # the account is still the one before it
                    model, seen = [], [str(end.error)]
                on_step(index, step, model, seen)
            if end.stop is Stop.DONE:
                end = map_end(session, end, step)
            if end.stop is not Stop.DONE:
                return judgement(session, end, index)
        suspicion = lockstep.check_ram(full=True) or check_map(session)
        if suspicion is not None:
            return judgement(session, RunEnd(Stop.SUSPICION, 0, suspicion), len(steps) - 1)
        return Judgement(Kind.NONE)


def map_end(session: Session, end: RunEnd, step: Step) -> RunEnd:
    """The end of a run of one step, or the suspicion that it left the mirror another map."""
    if session.mirror.exact or not session.map_exact:
        return end
    return RunEnd(Stop.SUSPICION, 0, map_suspicion(session.mirror.differences, 0, step))


def confirm(
    scene: Scene, program: Program, signature: str, *, tries: int = CONFIRM_TRIES
) -> tuple[int, Judgement | None]:
    """(times the slow judge found ``signature``, the first such judgement)."""
    seen: Judgement | None = None
    count = 0
    for _ in range(tries):
        found = replay(scene, program)
        if found.signature == signature:
            count += 1
            seen = seen or found
        elif count == 0:
            break
    return count, seen


def judgement(session: Session, end: RunEnd, base: int) -> Judgement:
    """What the end of a run amounts to, with the evidence at hand."""
    process = session.process
    evidence: Evidence = {
        "transcript": process.transcript.tail(),
        "command": process.command,
    }
    if end.stop is Stop.DONE:
        return Judgement(Kind.NONE)
    if end.suspicion is not None:
        index = end.suspicion.index
        return Judgement(
            Kind.DIVERGENCE, divergence_signature(end.suspicion),
            base + index if index is not None else None, end.suspicion,
            stderr=process.stderr_tail(), **evidence,
        )
    assert end.error is not None
    stderr = process.stderr_tail()
    if isinstance(end.error, QemuHang):
        return Judgement(
            Kind.HANG, f"hang:{end.error.channel}", base + end.done, stderr=stderr,
            error=str(end.error), **evidence,
        )
    status = process.exit_status()
    if status.polite:
        return Judgement(
            Kind.SHUTDOWN, "shutdown", base + end.done, stderr=stderr, error=str(end.error),
            **evidence,
        )
    signature = crash_signature(stderr, end.error.exit_code, end.error.signal)
    return Judgement(
        Kind.CRASH, signature, base + end.done, stderr=stderr, error=str(end.error), **evidence,
    )


def failure_judgement(session: Session, error: QemuFailure) -> Judgement:
    """A failure outside an exchange: on the monitor, at a refresh, by flooding a limit."""
    process = session.process
    stderr = process.stderr_tail()
    evidence: Evidence = {"transcript": process.transcript.tail(), "command": process.command}
    if isinstance(error, QemuDied) or (isinstance(error, ProtocolError) and _has_ended(process)):
        status = process.exit_status()
        if status.polite:
            return Judgement(Kind.SHUTDOWN, "shutdown", stderr=stderr, **evidence)
        signature = crash_signature(stderr, status.code, status.signal)
        return Judgement(Kind.CRASH, signature, stderr=stderr, error=str(error), **evidence)
    if isinstance(error, QemuHang):
        return Judgement(
            Kind.HANG, f"hang:{error.channel}", stderr=stderr, error=str(error), **evidence
        )
    if isinstance(error, ResourceError):
        signature = f"resource:{error.what.replace(' ', '-')}"
        return Judgement(Kind.RESOURCE, signature, stderr=stderr, error=str(error), **evidence)
    channel = error.channel if isinstance(error, ProtocolError) else "unknown"
    return Judgement(
        Kind.CRASH, f"crash:protocol:{channel}", stderr=stderr, error=str(error), **evidence
    )


def _has_ended(process: QemuProcess) -> bool:
    """A dying QEMU's last words can be cut in the middle before it can be seen to be dead."""
    deadline = time.monotonic() + DEATH_WAIT_S
    while process.poll():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def divergence_signature(suspicion: Suspicion) -> str:
    """``divergence:<what>:<region kind>:<shape>``."""
    shape = suspicion.step[0].verb if suspicion.step is not None else "end"
    kind = suspicion.kind.value.replace(" ", "-")
    return f"divergence:{suspicion.what}:{kind}:{shape}"
