"""Contracts are learnt, frozen, and hold for accesses that did not teach them.

Every access of the probe is written down (region, offset, size, direction); then only accesses to
devices that are none of these are made and judged. A contract that fits what it was learnt from
and nothing else would part from QEMU here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from random import Random

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.memory.contract import Endian
from qemuglue.memory.rules import Rules
from qemuglue.program.generate import Generator
from qemuglue.qemu.builds import Build
from qemuglue.witness import probe
from qemuglue.witness.face import PORT_READS, PORT_WRITES, SIZED_READS, SIZED_WRITES
from qemuglue.witness.judge import Scene, prepare, resolve
from qemuglue.witness.judging import BatchJudge
from qemuglue.witness.lockstep import LockStep, RunEnd, Stop
from qemuglue.witness.probing import Answers, Ask, Place
from qemuglue.witness.probing import ask as really_ask
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind, Tally, Verdict

pytestmark = pytest.mark.qemu

MACHINES = {
    "x86_64/q35": ("edu", "pci-testdev"),
    "aarch64/virt": (),
    "ppc/mac99": (),
}

#: Accesses judged on each machine.
WANTED = 2000

#: (region, offset, size, is_write)
Asked = set[tuple[Hashable, int, int, bool]]

_VERBS = {**{verb: False for verb in (*SIZED_READS, *PORT_READS)},
          **{verb: True for verb in (*SIZED_WRITES, *PORT_WRITES)}}


@pytest.fixture(scope="module", params=MACHINES)
def taught(build: Build, request: pytest.FixtureRequest) -> tuple[Scene, Asked]:
    """A machine whose contracts are known, and what was asked to learn them."""
    if request.param.split("/")[0] not in build.targets():
        pytest.skip(f"{build.name} has no binary for {request.param}")
    made = scene(Settings(machine=request.param, devices=MACHINES[request.param],
                          build=build.name))
    asked: Asked = set()

    def ask(session: Session, place: Place, asks: Iterable[Ask], rules: Rules) -> Answers:
        each = list(asks)
        key = session.contract_key(place.region)
        asked.update((key, one.offset, one.size, one.is_write) for one in each)
        return really_ask(session, place, each, rules)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "ask", ask)
        prepare(made)
    return made, asked


def fresh(session: Session, asked: Asked, rng: Random, wanted: int) -> list[Step]:
    """Accesses to devices, each inside one, that are none of those asked."""
    judge = BatchJudge(session, Tally(), slow=False, features=None)
    layout = session.layout()
    generator = Generator(layout)
    found: list[Step] = []
    while len(found) < wanted:
        for op, addr in resolve(layout, generator.operations(rng, 512)):
            if op.verb not in _VERBS or judge.kind(op, addr) not in (Kind.DEVICE, Kind.PORT):
                continue
            section = judge.sections(op, addr)[0]
            offset = addr - section.start + section.offset
            key = session.contract_key(section.region)
            if (key, offset, op.size, _VERBS[op.verb]) not in asked:
                found.append((op, addr))
    return found


def judged(taught: tuple[Scene, Asked], tally: Tally, seed: int) -> RunEnd:
    stage, asked = taught
    with stage.session() as session:
        steps = fresh(session, asked, Random(seed), WANTED)
        return LockStep(session, tally=tally).run(steps)


def test_contracts_hold_where_they_were_not_learnt(taught: tuple[Scene, Asked]) -> None:
    tally = Tally()
    end = judged(taught, tally, 1)
    assert end.stop is Stop.DONE, end
    assert tally.of(Verdict.MATCH) > 0.9 * WANTED, tally.to_json()
    assert tally.of(Verdict.LEARNT) < 0.03 * WANTED, tally.to_json()


@pytest.mark.parametrize("wrong", ["valid", "impl", "order"])
def test_a_wrong_contract_parts_there(taught: tuple[Scene, Asked], wrong: str) -> None:
    """Frozen means binding: nothing is learnt anew to make it fit."""
    stage, asked = taught
    knowledge = stage.knowledge
    key, learned = max(
        ((key, each) for key, each in knowledge.contracts if each.endian_known),
        key=lambda pair: sum(pair[0] == place[0] for place in asked))
    true = learned.contract
    spoilt = {
        "valid": replace(true, valid_max=2 if true.valid_max != 2 else 8, valid_min=0),
        "impl": replace(true, impl_max=1 if true.impl_max != 1 else 4, impl_min=0),
        "order": replace(true, endian=Endian.LITTLE if true.endian is Endian.BIG else Endian.BIG),
    }[wrong]
    learned.contract = spoilt
    try:
        end = judged(taught, Tally(), 2)
    finally:
        learned.contract = true
    assert end.stop is Stop.SUSPICION, (key, spoilt)
