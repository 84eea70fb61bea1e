"""What an access to one region meets at its end, and what changes under it, on real QEMU."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest

from qemuglue.campaign.starting import start_machine
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import machine_list
from qemuglue.qemu.config import QemuConfig, VmMode
from qemuglue.witness import judging
from qemuglue.witness.judge import Judgement, Kind, Scene, prepare, replay, resolve
from qemuglue.witness.judging import MODE_CHANGED
from qemuglue.witness.lockstep import LockStep
from qemuglue.witness.session import Knowledge
from qemuglue.witness.verdict import Tally, Verdict

pytestmark = pytest.mark.qemu


def scene_of(build: Build, machine: str) -> Scene:
    """The machine as it starts, with an image if it wants one; skips where there is none."""
    target, name = machine.split("/")
    if target not in build.targets():
        pytest.skip(f"{build.name} has no {target}")
    if all(each.name != name for each in machine_list(build, target)):
        pytest.skip(f"{build.name} has no {machine}")
    config, _ = start_machine(QemuConfig(
        build=build, target=target, machine=name, args=(), ram=None, ram_id=None,
        mode=VmMode.STOPPED,
    ))
    return Scene(config, Knowledge())


def judged(scene: Scene, text: str) -> tuple[Judgement, Tally]:
    tally = Tally()
    program = parse(f"# qemuglue program 1\nmachine {scene.config.full_name}\n{text}")
    return replay(scene, program, tally=tally), tally


#: A command that is ignored takes the chip out of ROMD mode; at the 43rd read it goes back by
#: itself (PFLASH_LAZY_ROMD_THRESHOLD in hw/block/pflash_cfi02.c), in the middle of 64 pieces.
LAZY = """
writeb @0xf8000000 0xb0
read @0xf8000000 0x100
read @0xf8000000 0x100
"""


def test_a_flash_changes_its_mode_in_the_middle_of_an_access(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scene_of(build, "arm/canon-a1100")
    assert prepare(scene) == []
    found, tally = judged(scene, LAZY)
    assert found.kind is Kind.NONE, found
    assert tally.reasons == {MODE_CHANGED: 1}
    assert (tally.of(Verdict.UNJUDGED), tally.of(Verdict.MATCH)) == (1, 2)
    # Without that rule model and QEMU part: the rest of the pieces leaves no lines.
    monkeypatch.setattr(judging, "mode_changed", lambda sections: False)
    found, _ = judged(scene, LAZY)
    assert (found.kind, found.index) == (Kind.DIVERGENCE, 1)


#: The first goes on into the interrupt controller's page, which only a CPU may enter.
OVER_THE_END = """
writew a9-scu+0xff 0xee0f
read a9-scu+0xf8 0x10
readw a9-scu+0xff
readl a9-scu+0xfc
"""


def test_nothing_goes_over_an_end_into_what_is_avoided(build: Build) -> None:
    """Neither a probe nor an operation, also where the region before it is not known."""
    scene = scene_of(build, "arm/npcm750-evb")
    assert prepare(scene) == [], "no probe ended QEMU"
    for known in (scene, Scene(scene.config, Knowledge())):
        found, tally = judged(known, OVER_THE_END)
        assert found.kind is Kind.NONE, found
        reasons = [why for why in tally.reasons if "gic-without-a-cpu" in why]
        assert reasons and sum(tally.reasons[why] for why in reasons) == 3
        with known.session() as session:
            program = parse(f"# qemuglue program 1\nmachine arm/npcm750-evb\n{OVER_THE_END}")
            end = LockStep(session).run(resolve(session.layout(), program.operations))
            assert end.error is None and len(session.journal) == 1


def test_a_place_that_ends_qemu_costs_no_more_than_itself(build: Build) -> None:
    """The last register of the USB controller is none (dwc2-offset, until 10.0)."""
    if build.version_tuple >= (10,):
        pytest.skip("mended in this build")
    scene = scene_of(build, "arm/raspi2b")
    notes = prepare(scene)
    assert notes and all("SIGABRT" in note for note in notes)
    with scene.session() as session:
        dwc2 = [r for r in session.device_regions() if fnmatchcase(r.name, "dwc2-io")]
        assert [session.unjudgeable(region) for region in dwc2] == [None]
        (key,) = map(session.contract_key, dwc2)
        assert scene.knowledge.deadly[key] == {0xFFF >> 3}
        assert scene.knowledge.hopeless, "the random number generator ends it everywhere"
