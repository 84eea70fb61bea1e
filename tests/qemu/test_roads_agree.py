"""The fast road and the general one say the same of real batches: healthy, damaged on the way,
and under every planted defect of the rules.

Each batch that QEMU has answered is judged many times, always from the same state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import pytest

from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.settings import Settings, scene
from qemuglue.memory.region import MemoryRegion
from qemuglue.memory.rules import Rules
from qemuglue.program.generate import Generator
from qemuglue.qemu.builds import Build
from qemuglue.qemu.events import Lines
from qemuglue.witness import session as session_module
from qemuglue.witness.barriers import Barriers
from qemuglue.witness.contracts import Learned, Veto
from qemuglue.witness.fastmap import FastMap
from qemuglue.witness.fastroad import FastRoad
from qemuglue.witness.judge import prepare, resolve
from qemuglue.witness.judging import BatchJudge
from qemuglue.witness.lockstep import LockStep
from qemuglue.witness.ram import PAGE, TrackedBacking
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Tally

pytestmark = pytest.mark.qemu

MACHINES = {
    "x86_64/q35": ("pci-testdev", "virtio-rng-pci"),
    "ppc/mac99": ("pci-testdev",),
    "aarch64/virt": ("pci-testdev",),
}

#: Operations of a batch, and batches of a machine: more of both found nothing else.
LENGTH, BATCHES = 160, 4


@dataclass(slots=True)
class State:
    """Everything that judging a batch may change, taken and put back."""

    session: Session
    maps: tuple[FastMap, FastMap | None]
    barriers: Barriers = field(default_factory=Barriers)
    times: int = 0
    ram: dict[TrackedBacking, bytes] = field(default_factory=dict)
    evidence: dict[str, object] = field(default_factory=dict)
    contracts: list[tuple[MemoryRegion, object, Veto | None, bool]] = field(default_factory=list)
    learned: list[tuple[Learned, dict[str, object]]] = field(default_factory=list)

    def take(self) -> None:
        session = self.session
        for region in session.ram.sources:
            if isinstance(region.backing, TrackedBacking):
                region.backing.clean()
                self.ram.setdefault(region.backing, b"")
                self.ram[region.backing] = bytes(region.backing.data)
        self.evidence = _copied(vars(session.evidence))
        self.contracts = [
            (region, region.contract, veto, veto is not None and veto.vetoing)
            for region in session.device_regions() for veto in [_veto(region)]
        ]
        self.learned = [
            (each, {name: copy.copy(getattr(each, name)) for name in Learned.__slots__})
            for _, each in session.knowledge.contracts
        ]
        self.barriers = copy.deepcopy(session.knowledge.barriers)
        self.maps = session.fast, session.fast_io

    def put_back(self) -> None:
        session = self.session
        for backing, data in self.ram.items():
            for page in backing.dirty:
                backing.data[page * PAGE : (page + 1) * PAGE] = (
                    data[page * PAGE : (page + 1) * PAGE])
            backing.dirty.clear()
        vars(session.evidence).update(_copied(self.evidence))
        for region, contract, veto, vetoing in self.contracts:
            region.contract = contract  # type: ignore[assignment]
            if veto is not None:
                veto.vetoing = vetoing
        for each, slots in self.learned:
            for name, value in slots.items():
                if name == "accepts":
                    each.accepts.clear()  # the veto holds on to it
                    each.accepts.update(value)  # type: ignore[call-overload]
                else:
                    setattr(each, name, value)
        session.knowledge.barriers = copy.deepcopy(self.barriers)
        session.fast, session.fast_io = self.maps
        self.times += 1
        session.evidence.epoch += self.times  # the forms were made in another state


def _veto(region: MemoryRegion) -> Veto | None:
    accepts = region.contract.accepts
    return accepts if isinstance(accepts, Veto) else None


def _copied(state: dict[str, object]) -> dict[str, object]:
    kept = {"events", "text", "following", "on_piece", "more", "mismatch"}
    return {name: value if name in kept else copy.copy(value) for name, value in state.items()}


@dataclass(frozen=True, slots=True)
class Said:
    """All that a road leaves behind."""

    result: object
    tally: Tally
    features: frozenset[object]
    pos: int
    mismatch: object
    topology: bool
    replaced: object
    sides: dict[str, int]
    ram: dict[tuple[str, int], bytes]


@contextmanager
def general_road_only() -> Iterator[None]:
    run = FastRoad.run
    FastRoad.run = lambda self, steps, lines, at, stop: at  # type: ignore[method-assign]
    try:
        yield
    finally:
        FastRoad.run = run  # type: ignore[method-assign]


class Bench:
    """One session whose batches are judged again and again."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.state = State(session, (session.fast, session.fast_io))

    def judge(
        self, steps: list[Step], lines: list[bytes], text: bytes, *, fast: bool,
        keep: bool = False,
    ) -> Said:
        session = self.session
        session.evidence.load(Lines(text))
        session.evidence.sides.clear()
        tally, features = Tally(), set[object]()
        judge = BatchJudge(session, tally, slow=False, features=features)
        if fast:
            result = judge.judge(steps, lines, 0)
        else:
            with general_road_only():
                result = judge.judge(steps, lines, 0)
        evidence = session.evidence
        if not isinstance(result, int) or evidence.mismatch is not None:
            pos = 0  # where they part they may have looked ahead differently
        else:
            evidence.finish()
            pos = len(evidence.events) - evidence.pos
        ram = {
            (region.name, page): bytes(region.backing.data[page * PAGE : (page + 1) * PAGE])
            for region in session.ram.sources if isinstance(region.backing, TrackedBacking)
            for page in region.backing.dirty
        }
        said = Said(
            result, tally, frozenset(features), pos, evidence.mismatch, evidence.topology,
            evidence.replaced, dict(+evidence.sides), ram,
        )
        if not keep:
            self.state.put_back()
        return said

    def agree(self, steps: list[Step], lines: list[bytes], text: bytes, what: str) -> Said:
        fast = self.judge(steps, lines, text, fast=True)
        general = self.judge(steps, lines, text, fast=False)
        assert fast == general, what
        return fast


# -- damage ------------------------------------------------------------------------------------

Damage = Callable[[Random, list[bytes]], None]


def _drop(rng: Random, lines: list[bytes]) -> None:
    del lines[rng.randrange(len(lines))]


def _double(rng: Random, lines: list[bytes]) -> None:
    at = rng.randrange(len(lines))
    lines.insert(at, lines[at])


def _late(rng: Random, lines: list[bytes]) -> None:
    at = rng.randrange(len(lines) - 1)
    lines[at : at + 2] = lines[at + 1], lines[at]


def _flip(rng: Random, lines: list[bytes]) -> None:
    """A bit of a character: of the value, the address, the name, the verb."""
    at = rng.randrange(len(lines))
    line = bytearray(lines[at])
    if line:
        line[rng.randrange(len(line))] ^= 1 << rng.randrange(7)
        lines[at] = bytes(line).replace(b"\n", b"")


def _glue(rng: Random, lines: list[bytes]) -> None:
    """A device's message without a newline."""
    at = rng.randrange(len(lines))
    lines[at] = b"dev: odd " + lines[at]


def _remap(rng: Random, lines: list[bytes]) -> None:
    lines.insert(rng.randrange(len(lines) + 1), b"flatview_new 0x5500 (root 0x5508)")


DAMAGES: tuple[Damage, ...] = (_drop, _double, _late, _flip, _flip, _flip, _glue, _remap)


def _wrong_reply(rng: Random, lines: list[bytes]) -> None:
    at = rng.randrange(len(lines))
    lines[at] = lines[at][:-1] + (b"1" if lines[at].endswith(b"0") else b"0")


@pytest.mark.parametrize("machine", MACHINES)
def test_both_roads_say_the_same(
    machine: str, newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine.split("/")[0] not in newest_build.targets():
        pytest.skip(f"{newest_build.name} has no {machine.split('/')[0]}")
    monkeypatch.setattr(session_module, "MAKERS", ())  # a device that is told remembers it
    stage = scene(Settings(machine=machine, devices=MACHINES[machine], build=newest_build.name))
    prepare(stage)
    rng = Random(machine)
    found = parted = 0
    with stage.session() as session:
        bench = Bench(session)
        generator = Generator(session.layout())
        for _ in range(BATCHES):
            steps, lines, text = _batch(session, generator, rng)
            if not steps:
                continue
            bench.state.take()
            said = bench.agree(steps, lines, text, "nothing is wrong")
            assert said.result in (0, len(steps) - 1) or said.topology, said.result
            whole = text.split(b"\n")[:-1]
            for damage in DAMAGES:
                wrong = list(whole)
                damage(rng, wrong)
                shown = b"".join(b"%b\n" % line for line in wrong)
                said = bench.agree(steps, lines, shown, damage.__name__)
                found += not isinstance(said.result, int) or said.mismatch is not None
            replies = list(lines)
            _wrong_reply(rng, replies)
            found += not isinstance(bench.agree(steps, replies, text, "reply").result, int)
            for name, defect in DEFECTS.items():
                if defect.rules is not None:
                    with _rules(session, defect.rules()):
                        said = bench.agree(steps, lines, text, name)
                    parted += not isinstance(said.result, int)
            bench.judge(steps, lines, text, fast=True, keep=True)
            if session.evidence.topology or session.reset_seen():
                session.refresh()
                session.ram.adopt_all()
    assert found > BATCHES, "most damage is seen"
    assert parted > BATCHES, "so are most defects"


def _batch(
    session: Session, generator: Generator, rng: Random
) -> tuple[list[Step], list[bytes], bytes]:
    """A batch that QEMU has performed: as far as nothing ends it."""
    lockstep = LockStep(session, batch=LENGTH)
    drawn = resolve(generator.layout, generator.operations(rng, 4 * LENGTH))
    steps = [
        step for step in drawn
        if step[0].size <= 64 and lockstep._is_barrier(*step) is None
        and not any(session.unjudgeable(section.region) or section.region.name == "fwcfg.dma"
                    for section in lockstep.judge.sections(*step))
    ][:LENGTH]
    sent = lockstep._send(steps, 0, None)
    lines = session.process.channel.collect(len(steps) + 1)
    lines.pop()
    text = b"".join(b"%b\n" % line for line in session.events_until(sent.marker).text[:-1])
    return steps, lines, text


@contextmanager
def _rules(session: Session, rules: Rules) -> Iterator[None]:
    """Another set of rules in all spaces."""
    spaces = list(session.mirror.spaces)
    before = [space.rules for space in spaces]
    maps = session.fast, session.fast_io
    for space in spaces:
        space.rules = rules
    session.draw_fast_maps()
    try:
        yield
    finally:
        for space, old in zip(spaces, before, strict=True):
            space.rules = old
        session.fast, session.fast_io = maps
