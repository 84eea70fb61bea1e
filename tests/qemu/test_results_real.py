"""MemTxResult: what the model predicts of it, and who can tell.

A qtest reply hides it. The refusals in the transcript make it, and ``xp`` is the one read whose
failure shows: here every sized read of a program is made again by ``xp``, and must fail exactly
where the model says.
"""

from __future__ import annotations

from dataclasses import fields, replace
from random import Random

import pytest

from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.settings import Settings, scene
from qemuglue.memory.attrs import OK
from qemuglue.program.generate import Generator
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build
from qemuglue.witness.face import SIZED_READS
from qemuglue.witness.judge import Scene, prepare, resolve
from qemuglue.witness.lockstep import LockStep, Stop
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Tally
from qemuglue.witness.xp import LETTERS, Read, parse_xp

pytestmark = pytest.mark.qemu

#: Reads made again by xp: half a millisecond each.
READS = 1200


@pytest.fixture(scope="module", params=["x86_64/q35", "ppc/mac99"])
def stage(build: Build, request: pytest.FixtureRequest) -> Scene:
    if request.param.split("/")[0] not in build.targets():
        pytest.skip(f"{build.name} has no binary for {request.param}")
    made = scene(Settings(machine=request.param, build=build.name))
    prepare(made)
    return made


def test_fast_and_slow_predict_the_same_results(stage: Scene) -> None:
    """The fast road does not perform an access, so it must know the result beforehand."""
    told = []
    for slow in (False, True):
        tally = Tally()
        with stage.session() as session:
            layout = session.layout()
            rng, generator = Random(3), Generator(layout)
            steps = [step for step in resolve(layout, generator.operations(rng, 600))
                     if step[0].verb in SIZED_READS]
            end = LockStep(session, tally=tally, slow=slow).run(steps)
            assert end.stop is Stop.DONE, end
        told.append(tally.memtx_results())
    assert told[0] == told[1]
    assert told[0]["DECODE_ERROR"] > 20 and told[0]["OK"] > 100


def compare(stage: Scene, reads: int) -> tuple[int, int, list[Step]]:
    """Reads by xp that failed, those that did not, and those of which the model says otherwise."""
    with stage.session() as session:
        rng, generator = Random(4), Generator(session.layout())
        failed = fine = 0
        wrong: list[Step] = []
        while failed + fine < reads:
            for step in resolve(session.layout(), generator.operations(rng, 256)):
                if not _can_be_made(session, step):
                    continue
                op, addr = step
                said = session.process.monitor.hmp(f"xp /1x{LETTERS[op.size]} {addr:#x}")
                session.evidence.load(session.events())
                predicted, _ = session.mirror.memory.read(addr, op.size)
                refused = parse_xp(said, Read(addr, op.size)) is None
                if refused is not (predicted != OK):
                    wrong.append(step)
                failed += refused
                fine += not refused
        return failed, fine, wrong


def test_xp_fails_exactly_where_the_model_says(stage: Scene) -> None:
    failed, fine, wrong = compare(stage, READS)
    assert wrong == []
    assert failed > READS // 20 and fine > READS // 4


def test_a_wrong_result_is_seen(stage: Scene) -> None:
    """A model that accepts what is rejected predicts success, and xp contradicts it."""
    assert stage.rules is not None
    accepting = DEFECTS["accepts-rejected"].rules
    assert accepting is not None
    rules = accepting(**{each.name: getattr(stage.rules, each.name)
                         for each in fields(stage.rules)})
    assert len(compare(replace(stage, rules=rules), 200)[2]) > 5


def _can_be_made(session: Session, step: Step) -> bool:
    op, addr = step
    if op.verb not in SIZED_READS:
        return False
    sections = session.mirror.memory.view.sections
    touched = [each for each in sections
               if each.start < addr + op.size and addr < each.start + each.size]
    return not any(session.unjudgeable(each.region) for each in touched)


def test_replay_tells_the_result(stage: Scene) -> None:
    program = parse("# qemuglue program 1\nmachine x86_64/q35\nreadl @0xffff00000000\n")
    accounts = []
    with stage.session() as session:
        lockstep = LockStep(session, slow=True)
        lockstep.run(resolve(session.layout(), program.operations))
        accounts = lockstep.account[0]
    assert accounts[-1].endswith("MEMTX_DECODE_ERROR"), accounts
