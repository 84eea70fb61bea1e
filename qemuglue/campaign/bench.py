"""How fast operations are judged, beside a client that sends the same bytes and counts replies.

Both run in turn on the same QEMU, so their ratio holds while absolute rates drift with the
host. The client's batches are encoded beforehand; the judge encodes, sends, predicts and
compares, and the transcript is on for both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import median

from qemuglue.program.operation import Operation, Place
from qemuglue.witness.face import encode
from qemuglue.witness.fastmap import FastMap
from qemuglue.witness.judge import Scene, prepare
from qemuglue.witness.lockstep import BATCH, LockStep, Stop
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind

_READS = (("readb", 1), ("readw", 2), ("readl", 4), ("readq", 8))
_WRITES = (("writeb", 1), ("writew", 2), ("writel", 4), ("writeq", 8))


@dataclass(frozen=True, slots=True)
class Rate:
    """Operations a second, medians over the rounds."""

    what: str
    operations: int
    judged: float
    counted: float

    @property
    def share(self) -> float:
        """Judged as a share of counted."""
        return self.judged / self.counted


def measure(scene: Scene, *, operations: int, rounds: int, seed: int) -> list[Rate]:
    """RAM and device rates on the scene's machine; raises what a session raises."""
    prepare(scene)
    with scene.session() as session:
        rng = Random(seed)
        return [
            _rate("RAM", session, ram_steps(session, rng, operations), rounds),
            _rate("device", session, device_steps(session, rng, operations), rounds),
        ]


def ram_steps(session: Session, rng: Random, count: int) -> list[Step]:
    """Sized reads and writes, half and half, evenly over RAM, inside its ranges."""
    fast = session.fast
    ranges = [i for i, kind in enumerate(fast.kinds) if kind is Kind.RAM]
    weights = [fast.limits[i] - fast.starts[i] for i in ranges]
    return [
        _step(rng, fast, i, _READS if rng.random() < 0.5 else _WRITES)
        for i in rng.choices(ranges, weights, k=count)
    ]


def device_steps(session: Session, rng: Random, count: int) -> list[Step]:
    """Aligned sized reads of device registers: one access each for the device."""
    fast = session.fast
    ranges = [
        i for i, kind in enumerate(fast.kinds)
        if kind is Kind.DEVICE and session.unjudgeable(fast.sections[i].region) is None
        and fast.limits[i] - fast.starts[i] >= 0x10
    ]
    return [_step(rng, fast, i, _READS[2:3], align=True) for i in rng.choices(ranges, k=count)]


def _step(
    rng: Random, fast: FastMap, i: int, verbs: Sequence[tuple[str, int]], *, align: bool = False
) -> Step:
    verb, size = rng.choice(verbs)
    addr = rng.randrange(fast.starts[i], fast.limits[i] - size + 1)
    if align:
        addr &= -size
    value = rng.getrandbits(8 * size) if verb.startswith("write") else 0
    return Operation(verb, Place(None, 0, addr), size, value), addr


def _rate(what: str, session: Session, steps: list[Step], rounds: int) -> Rate:
    batches = [
        (b"".join(encode(*step) for step in steps[at : at + BATCH]), len(steps[at : at + BATCH]))
        for at in range(0, len(steps), BATCH)
    ]
    judged, counted = [], []
    for number in range(rounds + 1):
        started = time.perf_counter()
        for request, count in batches:
            session.process.channel.exchange(request, count)
        middle = time.perf_counter()
        session.ram.adopt_all()
        session.events()
        begun = time.perf_counter()
        end = LockStep(session).run(steps)
        done = time.perf_counter()
        assert end.stop is Stop.DONE, f"the benchmark found something: {end}"
        if number:  # the first round warms caches
            counted.append(len(steps) / (middle - started))
            judged.append(len(steps) / (done - begun))
    return Rate(what, len(steps), median(judged), median(counted))
