"""The mirror of real machines: exact as they start, and followed through what guests do."""

from __future__ import annotations

import json
from random import Random

import pytest

from qemuglue.cli.main import main
from qemuglue.mirror import Mirror
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.qtest import Qtest

pytestmark = pytest.mark.qemu

DEVICES = (
    "-device", "edu", "-device", "pci-testdev", "-device", "virtio-rng-pci",
    "-device", "pci-bridge,id=bridge,chassis_nr=1", "-device", "edu,bus=bridge,addr=1",
)
MACHINES = [
    ("x86_64", "q35", ()), ("x86_64", "q35", DEVICES), ("x86_64", "pc", ()),
    ("x86_64", "microvm", ()), ("aarch64", "virt", ()), ("aarch64", "raspi3b", ()),
    ("aarch64", "sbsa-ref", ()), ("aarch64", "xlnx-versal-virt", ()), ("arm", "versatilepb", ()),
    ("arm", "mcimx6ul-evk", ()), ("arm", "ast2600-evb", ()),
]


def started(build: Build, target: str, machine: str, args: tuple[str, ...] = ()) -> QemuProcess:
    if target not in build.targets():
        pytest.skip(f"build {build.name} has no target {target}")
    return QemuProcess(QemuConfig(
        build=build, target=target, machine=machine, args=args, transcript=False,
    ))


def told(mirror: Mirror) -> list[str]:
    return [str(difference) for difference in mirror.differences]


@pytest.mark.parametrize(("target", "machine", "args"), MACHINES)
def test_a_machine_is_exact_as_it_starts(
    build: Build, target: str, machine: str, args: tuple[str, ...]
) -> None:
    with started(build, target, machine, args) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        assert mirror.exact, told(mirror)
        assert mirror.score.exact == mirror.score.total
        again = mirror.refresh(qemu.monitor.hmp)
        assert not again.changed


def test_every_version_takes_the_two_commands(build: Build) -> None:
    with started(build, "x86_64", "q35") as qemu:
        assert "extraneous" in qemu.monitor.hmp("info mtree -D -o")
        assert "address-space: memory" in qemu.monitor.hmp("info mtree -o -D")
        assert "FlatView #0" in qemu.monitor.hmp("info mtree -f -o")


def config_write(qtest: Qtest, slot: int, register: int, value: int) -> None:
    qtest.outl(0xCF8, 0x8000_0000 | slot << 11 | register)
    qtest.outl(0xCFC, value)


def config_read(qtest: Qtest, slot: int, register: int) -> int:
    qtest.outl(0xCF8, 0x8000_0000 | slot << 11 | register)
    return qtest.inl(0xCFC)


def slot_of(qtest: Qtest, device: int) -> int:
    """The slot of bus 0 with this PCI vendor and device id."""
    return next(slot for slot in range(32) if config_read(qtest, slot, 0) == device)


EDU = 0x11E8_1234


def test_a_bar_is_followed_and_stays_the_same_region(build: Build) -> None:
    with started(build, "x86_64", "q35", DEVICES) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        assert not mirror.memory.view.lookup(0xFE00_0000).assigned
        edu = slot_of(qemu.qtest, EDU)
        config_write(qemu.qtest, edu, 0x10, 0xFE00_0000)
        config_write(qemu.qtest, edu, 0x04, 0x7)
        first = mirror.refresh(qemu.monitor.hmp)
        assert first.changed and first.predicted and mirror.exact, told(mirror)
        region = mirror.memory.view.lookup(0xFE00_0088).region
        assert region.name == "edu-mmio" and mirror.absolute(region) == 0xFE00_0000
        assert qemu.qtest.readl(0xFE00_0000) == 0x0100_00ED
        # The device's identity register is where the model says, wherever the BAR goes.
        for base in (0xE000_0000, 0xFEA0_0000):
            config_write(qemu.qtest, edu, 0x10, base)
            moved = mirror.refresh(qemu.monitor.hmp)
            assert moved.changed and moved.predicted, [str(d) for d in moved.differences]
            assert mirror.memory.view.lookup(base).region is region
            assert qemu.qtest.readl(base) == 0x0100_00ED
        config_write(qemu.qtest, edu, 0x04, 0)
        assert mirror.refresh(qemu.monitor.hmp).predicted
        assert not mirror.memory.view.lookup(0xFEA0_0000).assigned
        config_write(qemu.qtest, edu, 0x04, 0x7)
        assert mirror.refresh(qemu.monitor.hmp).predicted
        assert mirror.memory.view.lookup(0xFEA0_0000).region is region


def test_pam_segments_are_predicted(build: Build) -> None:
    """The read-only bit of an alias is in no tree text; this one is known by name."""
    with started(build, "x86_64", "q35") as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        assert any("pam-rom" in fact for fact in mirror.known.facts)
        for value in (0x1000_0000, 0x1111_1100, 0x3333_3300):
            config_write(qemu.qtest, 0, 0x90, value)
            result = mirror.refresh(qemu.monitor.hmp)
            assert result.changed and result.predicted, [str(d) for d in result.differences]
        assert not any("pam-rom" in fact for fact in mirror.inference.facts)


def noise(qtest: Qtest, rng: Random) -> None:
    """One random write to a configuration register that may remap something."""
    slot = rng.choice([*range(8), 31])
    what = rng.randrange(5)
    if what == 0:
        config_write(qtest, slot, 0x04, rng.choice((0, 1, 2, 3, 7, 7)))
    elif what <= 2:
        config_write(qtest, slot, 0x10 + 4 * rng.randrange(6), rng.choice(
            (0xFE00_0000, 0xFE00_1000, 0xC000, 0xC_0000, 0xE000_0000, 0xFEC0_0000, 0x3F8)
        ))
    elif what == 3:
        config_write(qtest, rng.choice((0, 1, 31)), rng.choice(
            (0x58, 0x5C, 0x60, 0x90, 0x94, 0x98, 0x9C, 0x40, 0x44, 0x80, 0xAC, 0xF0)
        ), rng.getrandbits(32))
    else:
        config_write(qtest, slot, rng.choice((0x18, 0x1C, 0x20, 0x24, 0x30)), rng.getrandbits(32))


#: Facts that only a later state shows, such as the order of what came into sight at once.
MAX_SURPRISES = 1


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_random_remapping_is_followed_exactly(build: Build, machine: str) -> None:
    rng = Random(1)
    with started(build, "x86_64", machine, DEVICES) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        changed = surprises = 0
        for _ in range(120):
            noise(qemu.qtest, rng)
            result = mirror.refresh(qemu.monitor.hmp)
            assert result.exact, told(mirror)
            changed += result.changed
            surprises += not result.predicted
        assert changed >= 10 and surprises <= MAX_SURPRISES
        fresh = Mirror.take(qemu.monitor.hmp)
        assert fresh.exact
        assert views_of(fresh) == views_of(mirror)


def views_of(mirror: Mirror) -> list[tuple[str, list[tuple[int, int, str, int]]]]:
    return sorted(
        (space.name, [(s.start, s.size, s.region.name, s.offset) for s in space.view.sections])
        for space in mirror.spaces
    )


def test_hotplug_and_reset(build: Build) -> None:
    with started(build, "x86_64", "q35", ("-device", "pcie-root-port,id=slot1,chassis=1")) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        qemu.monitor.execute("device_add", {"driver": "edu", "id": "guest", "bus": "slot1"})
        assert mirror.refresh(qemu.monitor.hmp).exact
        assert any(space.name == "edu" for space in mirror.spaces)
        qemu.monitor.execute("system_reset")
        qemu.monitor.round_trip()
        assert mirror.refresh(qemu.monitor.hmp).exact


def test_qemu_answers_at_the_addresses_of_the_model(build: Build) -> None:
    """`gpa2hva` is a witness that shares no code with `info mtree`."""
    with started(build, "x86_64", "q35") as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        for section in mirror.memory.view.cover:
            said = qemu.monitor.hmp(f"gpa2hva {section.start:#x}")
            if not section.assigned:
                assert "No memory is mapped" in said
            elif section.region.is_ram:
                assert f"({section.region.name})" in said
            else:
                assert "is not RAM" in said


def test_map_verb(newest_build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    map_q35 = ["map", "x86_64/q35", "--build", newest_build.name]
    assert main(map_q35) == 0
    out = capsys.readouterr().out
    assert "hpet" in out and " views exact; inferred " in out
    assert main([*map_q35, "--tree", "--space", "memory"]) == 0
    out = capsys.readouterr().out
    assert "disabled" in out and "I/O" not in out
    assert main([*map_q35, "--json", "--tree", "--flat"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1 and document["exact"] and not document["differences"]
    assert document["views"]["exact"] == document["views"]["total"]
    space = next(space for space in document["spaces"] if space["name"] == "memory")
    hpet = next(each for each in space["ranges"] if each["region"] == "hpet")
    assert (hpet["start"], hpet["last"], hpet["type"]) == ("0xfed00000", "0xfed003ff", "i/o")
    assert any(node["region"] == "smram-region" for node in space["tree"])
    assert main([*map_q35, "--space", "nix"]) == 2
    assert "there are" in capsys.readouterr().err
