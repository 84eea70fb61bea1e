"""The bit-band of Arm's M profile: every access of it is predicted, in memory and in devices."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Place
from qemuglue.qemu.builds import Build
from qemuglue.witness.dma.bitband import BITBAND, BitBand
from qemuglue.witness.judge import Scene, prepare, resolve
from qemuglue.witness.lockstep import LockStep, RunEnd, Stop
from qemuglue.witness.verdict import Kind as Row
from qemuglue.witness.verdict import Tally, Verdict

pytestmark = pytest.mark.qemu

#: A word of the band lies so far behind the memory it shows.
AWAY = 0x200_0000


@pytest.fixture(scope="module")
def stage(build: Build) -> Scene:
    """A microcontroller with a bit-band over its memory and one over its devices."""
    if "arm" not in build.targets():
        pytest.skip(f"build {build.name} has no qemu-system-arm")
    made = scene(Settings(machine="arm/netduino2", build=build.name, setup=""))
    assert prepare(made) == []
    return made


def program(rng: Random, layout: Layout, count: int) -> list[Operation]:
    """Accesses of every size to both bands, and looks at the memory behind."""
    bands = [each for each in layout.ranges() if each.region == BITBAND]
    operations: list[Operation] = []
    for _ in range(count):
        band = rng.choice(bands)
        offset = rng.randrange(rng.choice((AWAY, 0x8_0000, 0x100)))
        letter, size = rng.choice((("b", 1), ("w", 2), ("l", 4), ("q", 8)))
        op = Operation(f"write{letter}", Place(offset=band.start + offset), size,
                       rng.getrandbits(8 * size))
        if rng.random() < 0.4:
            op = replace(op, verb=f"read{letter}", value=0)
        operations.append(op)
        if rng.random() < 0.3:
            at = band.start - AWAY + (offset >> 5)
            operations.append(Operation("readl", Place(offset=at), 4))
    return operations


def run(stage: Scene, *, slow: bool = False, count: int = 400) -> tuple[RunEnd, Tally]:
    tally = Tally()
    with stage.session() as session:
        layout = session.layout()
        steps = resolve(layout, program(Random(5), layout, count))
        return LockStep(session, tally=tally, slow=slow, full_ram_every=16).run(steps), tally


def test_every_access_is_predicted(stage: Scene) -> None:
    end, tally = run(stage)
    assert end.stop is Stop.DONE, end
    assert tally.total == tally.of(Verdict.MATCH)
    assert tally.cells[Row.DMA, Verdict.MATCH] > 200, "each piece of a write changes a bit"
    assert not tally.side_accesses, "nothing was passed over"


def test_one_operation_at_a_time_says_the_same(stage: Scene) -> None:
    _, fast = run(stage, count=40)
    end, slow = run(stage, slow=True, count=40)
    assert end.stop is Stop.DONE and (fast.cells, fast.verbs) == (slow.cells, slow.verbs)


@pytest.mark.parametrize("slow", [False, True])
def test_a_wrong_bit_is_seen(stage: Scene, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    place = BitBand._place
    monkeypatch.setattr(BitBand, "_place", lambda self, offset, size: (
        place(self, offset, size)[0], place(self, offset, size)[1] ^ 1))
    end, _ = run(stage, slow=slow, count=60)
    assert end.stop is Stop.SUSPICION
