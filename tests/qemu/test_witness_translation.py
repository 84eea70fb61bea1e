"""``gpa2hva`` on real QEMU agrees with the model, and notices when the model is wrong."""

from __future__ import annotations

from random import Random

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.qemu.builds import Build
from qemuglue.witness.session import Session
from qemuglue.witness.translation import check_translation, lookup_space, system_memory

pytestmark = pytest.mark.qemu


def session_on(build: Build, machine: str, *args: str) -> Session:
    return scene(Settings(machine=machine, build=build.name, setup="", ram="16M",
                          qemu_args=args)).session()


@pytest.mark.parametrize("machine", ["x86_64/pc", "arm/versatilepb"])
def test_gpa2hva_agrees(build: Build, machine: str) -> None:
    with session_on(build, machine) as session:
        account = check_translation(session, Random(1))
        assert account.differences == []
        assert account.compared >= 3 * len(session.mirror.memory.view.sections) // 2


def test_the_secure_world_answers_where_there_is_one(build: Build) -> None:
    with session_on(build, "aarch64/virt", "-machine", "secure=on") as session:
        memory = system_memory(session)
        assert lookup_space(session.mirror.spaces, memory) is not memory
        assert check_translation(session, Random(1)).differences == []


def test_a_wrong_map_is_noticed(newest_build: Build) -> None:
    with session_on(newest_build, "x86_64/pc") as session:
        bios = next(r for r in session.mirror.regions if r.name == "pc.bios")
        bios.name = "another"
        found = check_translation(session, Random(1)).differences
        assert found and all(each.model == "RAM of 'another'" for each in found)
        assert {each.qemu for each in found} == {"RAM of 'pc.bios'"}
        bios.name = "pc.bios"
        bios.enabled = False
        for space in session.mirror.spaces:
            space.update()
        found = check_translation(session, Random(1)).differences
        assert any("pc.bios" not in each.model and "pc.bios" in each.qemu for each in found)


def test_an_alias_that_shows_other_bytes_is_noticed(newest_build: Build) -> None:
    """Same region, wrong offset: only the host addresses can tell."""
    with session_on(newest_build, "x86_64/pc") as session:
        alias = next(r for r in session.mirror.regions if r.name == "isa-bios")
        alias.alias_offset -= 0x1000
        for space in session.mirror.spaces:
            space.update()
        found = check_translation(session, Random(1)).differences
        assert any(each.qemu.endswith("bytes out of line") for each in found)
