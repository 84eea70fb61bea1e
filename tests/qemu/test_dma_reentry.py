"""A device whose DMA reaches its own registers: QEMU refuses that, and so does the fast road."""

from __future__ import annotations

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.memory.address_space import AddressSpace
from qemuglue.program.operation import Operation, Place
from qemuglue.qemu.builds import Build
from qemuglue.witness.judge import Scene, prepare, resolve
from qemuglue.witness.lockstep import LockStep, RunEnd, Stop

pytestmark = pytest.mark.qemu

STRUCTURE = 0x4010_0000
#: Of virt's fw_cfg; a write of its lower half begins a transfer.
REGISTER = 0x0902_0010
SELECT_AND_READ = (0x0000 << 16 | 0x08 | 0x02).to_bytes(4, "big")
TIMES = 4


@pytest.fixture(scope="module")
def stage(newest_build: Build) -> Scene:
    if "arm" not in newest_build.targets():
        pytest.skip(f"build {newest_build.name} has no qemu-system-arm")
    made = scene(Settings(machine="arm/virt", build=newest_build.name, setup="dma"))
    prepare(made)
    return made


def run(stage: Scene) -> RunEnd:
    """The item "QEMU" into the register that moves it, several times over: the first goes the
    general road, by which the register is met."""
    block = SELECT_AND_READ + (4).to_bytes(4, "big") + (REGISTER + 4).to_bytes(8, "big")
    low = int.from_bytes(STRUCTURE.to_bytes(4, "big"), "little")
    once = [
        Operation("write", Place(None, 0, STRUCTURE), 16, 0, block),
        Operation("writel", Place(None, 0, REGISTER), 4, 0),
        Operation("writel", Place(None, 0, REGISTER + 4), 4, low),
        Operation("read", Place(None, 0, STRUCTURE), 16),
    ]
    with stage.session() as session:
        steps = resolve(session.layout(), once * TIMES)
        return LockStep(session).run(steps)


def test_a_transfer_into_its_own_register_is_refused(stage: Scene) -> None:
    assert run(stage).stop is Stop.DONE


def test_a_fast_road_without_the_guard_is_found(
    stage: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AddressSpace, "engage", lambda self, region: False)
    assert run(stage).stop is Stop.SUSPICION
