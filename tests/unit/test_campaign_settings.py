"""Settings: what is refused, what travels, what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.settings import Settings, rules_of
from qemuglue.campaign.targets import DISK, TARGETS, find_target
from qemuglue.errors import UsageError
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.qemu.builds import Build
from qemuglue.witness.face import HostFace

BUILD = Build("some", "7.2.22", None, ())


def test_settings_travel_as_json_whole() -> None:
    settings = Settings(
        machine="aarch64/virt", devices=("edu", "virtio-rng-pci,id=a b"), seconds=1.5, seed=2**63,
        qemu_args=("-m", "128M"), defect="rom-writable", engine="atheris", out="/x y", setup="",
    )
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_settings_survive_a_file(tmp_path: Path) -> None:
    settings = Settings(devices=("edu",))
    settings.save(tmp_path / "s.json")
    assert Settings.load(tmp_path / "s.json") == settings


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "{}", '{"schema": 2}', '{"schema": 1}', "[" * 100_000, "\xff"],
)
def test_a_foreign_settings_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match="settings file"):
        Settings.load(path)


@pytest.mark.parametrize("name", ["machine", "jobs", "devices", "seconds", "seed"])
def test_a_field_of_another_type_is_refused(name: str) -> None:
    data = Settings().to_json()
    data[name] = {"a": 1}
    with pytest.raises(UsageError):
        Settings.from_json(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": "q35"}, {"target": "no"}, {"engine": "no"}, {"mode": "no"}, {"setup": "no"},
        {"defect": "no"}, {"operations": 0}, {"jobs": 0}, {"jobs": 10**6}, {"ram": "much"},
        {"seconds": -1.0}, {"seconds": float("nan")}, {"programs": -1},
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Settings().replace(**changes)


def test_devices_become_arguments_before_the_further_ones() -> None:
    settings = Settings(devices=("edu", "pci-testdev"), qemu_args=("-cpu", "max"))
    assert settings.args == ("-device", "edu", "-device", "pci-testdev", "-cpu", "max")
    program = settings.program(())
    assert (program.args, program.setup) == (settings.args, settings.setup)


def test_without_a_defect_the_rules_are_those_of_the_version() -> None:
    assert rules_of(Settings(), BUILD) == (rules_for((7, 2, 22)), HostFace)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_planted_and_keeps_the_version(name: str) -> None:
    rules, face = rules_of(Settings(defect=name), BUILD)
    plain = rules_for(BUILD.version_tuple)
    assert (rules.name, rules.debug_writes_rom) == (plain.name, plain.debug_writes_rom)
    assert (type(rules) is not Rules) != (face is not HostFace)


def test_the_targets_are_usable_as_they_are() -> None:
    assert [target.name for target in TARGETS.values() if not target.machine] == [
        "model", "text"]
    for target in TARGETS.values():
        if not target.machine:
            continue
        if target.draws == "device":
            continue  # it asks the build what devices there are
        settings = Settings.of_target(target.name)
        assert (settings.machine, settings.devices, settings.setup, settings.defect) == (
            target.machine, target.devices, target.setup, target.defect)
        assert (settings.mode, settings.operations) == (target.mode, target.operations)
    assert TARGETS["canary"].defect and not TARGETS["access"].defect
    with pytest.raises(UsageError, match="access, topology, dma"):
        find_target("acces")


def test_another_machine_comes_without_the_targets_devices() -> None:
    other = Settings.of_target("dma", machine="aarch64/virt")
    assert (other.devices, other.qemu_args, other.mode) == ((), (), "parked")
    assert Settings.of_target("dma", machine="aarch64/raspi3b").mode == "stopped"
    mine = Settings.of_target("dma", devices=["edu"])
    assert (mine.devices, mine.qemu_args, mine.mode) == (("edu",), (), "parked")
    assert Settings.of_target("dma").qemu_args == DISK


def test_a_target_s_disk_is_there_for_whatever_device_names_it() -> None:
    def words(*devices: str, own: tuple[str, ...] = ()) -> tuple[str, ...]:
        return Settings.of_target("dma", devices=devices, qemu_args=own).qemu_args

    assert words("virtio-blk-pci,drive=disk") == DISK
    assert words("edu", "virtio-blk-pci,drive=disk", own=("-cpu", "max")) == (
        *DISK, "-cpu", "max")
    mine = ("-blockdev", "null-co,size=4096,node-name=disk")
    assert words("virtio-blk-pci,drive=disk", own=mine) == mine
    assert words("virtio-blk-pci,drive=disks") == words("edu") == ()
