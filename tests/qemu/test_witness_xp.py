"""``xp`` on real QEMU agrees with the model, and notices when the model is wrong."""

from __future__ import annotations

from random import Random

import pytest

from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.settings import Settings, scene
from qemuglue.qemu.builds import Build
from qemuglue.witness.fastmap import kind_of
from qemuglue.witness.judge import Scene, prepare
from qemuglue.witness.ram import TrackedBacking
from qemuglue.witness.verdict import Kind
from qemuglue.witness.xp import check_xp, sample, touched

pytestmark = pytest.mark.qemu


def prepared(build: Build, machine: str, defect: str = "") -> Scene:
    setup = "pci" if machine.startswith("x86_64/q35") else ""
    found = scene(Settings(machine=machine, build=build.name, setup=setup, defect=defect,
                           ram="16M"))
    prepare(found)
    return found


@pytest.mark.parametrize("machine", ["x86_64/q35", "aarch64/virt"])
def test_xp_agrees(build: Build, machine: str) -> None:
    with prepared(build, machine).session() as session:
        reads = sample(session.mirror.memory.view, Random(3), 300)
        kinds = {kind_of(touched(session.mirror.memory.view, read)[0], ports=False)
                 for read in reads}
        assert {Kind.RAM, Kind.DEVICE, Kind.UNASSIGNED} <= kinds
        account = check_xp(session, Random(3), limit=300)
        assert account.differences == []
        assert account.compared >= 280
        assert account.compared + account.unjudged.total() >= 300
        again = check_xp(session, Random(4), limit=50, avoid=lambda read: "not today")
        assert (again.compared, again.unjudged) == (0, {"not today": 50})


@pytest.mark.parametrize("name", [
    "accepts-rejected", "alignment-ignored", "order-swapped", "alias-offset-dropped"])
def test_a_planted_defect_is_noticed(newest_build: Build, name: str) -> None:
    assert name in DEFECTS
    with prepared(newest_build, "x86_64/q35", name).session() as session:
        assert check_xp(session, Random(3), limit=300).differences


def test_values_and_success_are_told_apart(newest_build: Build) -> None:
    """A qtest reply hides the second: what the model takes for no memory reads well here."""
    with prepared(newest_build, "x86_64/q35").session() as session:
        ram = next(s.region for s in session.mirror.memory.view.sections
                   if s.region.name == "pc.ram")
        assert isinstance(ram.backing, TrackedBacking)
        ram.backing.data[0x100000:] = b"\x5a" * (len(ram.backing) - 0x100000)
        found = check_xp(session, Random(3), limit=200).differences
        assert any("pc.ram" in each.place and each.model.startswith("0x5a5a")
                   and each.qemu.startswith("0x0000") for each in found)
        session.refresh()
        ram.is_ram = False
        found = check_xp(session, Random(3), limit=200).differences
        assert any("pc.ram" in each.place and "refused" in each.model for each in found)
