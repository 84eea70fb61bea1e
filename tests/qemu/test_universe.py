"""Every machine of the installed builds: mirrored exactly, as a plain command line gives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from qemuglue.campaign.check_result import CheckResult
from qemuglue.campaign.checking import check_machine
from qemuglue.campaign.map_check import check_map
from qemuglue.campaign.schedule import run_jobs
from qemuglue.errors import LaunchError, QemuHang, UsageError
from qemuglue.memory import MemoryRegion
from qemuglue.mirror import Mirror
from qemuglue.qemu import monitor, process
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import machine_list
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.mtree import FLAT_COMMAND, TREE_COMMAND
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.qom import QomRegion, memory_regions
from qemuglue.witness.qom import compare

pytestmark = pytest.mark.qemu

#: What CI has; every target is the business of the nightly run.
TARGETS = ("x86_64", "aarch64", "ppc64")


@dataclass(frozen=True, slots=True)
class Job:
    build: Build
    machine: str
    folder: Path


def check(job: Job) -> CheckResult:
    return check_machine(job.build, job.machine, ops=0, folder=job.folder)


def test_every_machine_is_exact(build: Build, tmp_path: Path) -> None:
    """The machines of arm, ppc and i386 are those of the targets of 64 bits once more."""
    machines = [
        each.full_name for target in TARGETS if target in build.targets()
        for each in machine_list(build, target) if not each.versioned
    ]
    assert len(machines) > 70
    results = {}
    for done in run_jobs([Job(build, each, tmp_path) for each in machines], check):
        assert done.result is not None, f"{done.job.machine}: {done.failure}"
        results[done.job.machine] = done.result
    assert set(results) == set(machines)
    refused = {name for name, each in results.items() if each.status == "not-started"}
    # It wants an accelerator of its own.
    assert refused <= {"x86_64/nitro"}, {name: results[name].reason for name in refused}
    for name, each in results.items():
        if name not in refused:
            assert each.status == "match", (name, each.reason, each.divergences[:3])
            assert each.map.exact == each.map.views >= 2 and each.map.spaces >= 2, name
    assert results["aarch64/sx1"].map.started_with == "a blank 4 KiB -kernel"
    assert not results["aarch64/virt"].map.started_with


def test_a_map_takes_one_qemu(newest_build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []
    asked: list[str] = []
    launch, execute = process.QemuProcess.launch, monitor.Monitor.execute

    def counted(self: QemuProcess) -> QemuProcess:
        started = launch(self)
        commands.append(self.command)
        return started

    def noted(self: monitor.Monitor, command: str, *words: object, **more: float) -> object:
        asked.append(command)
        return execute(self, command, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(process.QemuProcess, "launch", counted)
    monkeypatch.setattr(monitor.Monitor, "execute", noted)
    result = check_machine(newest_build, "x86_64/q35", ops=0, folder=Path("unused"))
    assert result.status == "match" and not result.accounts
    [command] = commands
    assert not {"-nodefaults", "-m", "-trace", "-object"} & set(command)
    assert asked == ["human-monitor-command"] * 2


def test_errors_are_told_apart(newest_build: Build, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no machine x86_64/pcc"):
        check_machine(newest_build, "x86_64/pcc", ops=0, folder=tmp_path)
    with pytest.raises(LaunchError, match="no-such-device"):
        check_map(newest_build, "x86_64/q35", args=("-device", "no-such-device"))
    with pytest.raises(UsageError, match="no image qemuglue-image:blnk"):
        check_map(newest_build, "x86_64/q35", args=("-bios", "qemuglue-image:blnk"))
    assert not list(tmp_path.iterdir())


def test_what_the_user_gave_is_not_replaced(newest_build: Build) -> None:
    found = check_map(newest_build, "arm/sx1", args=("-kernel", "qemuglue-image:blank-8K"))
    assert found.config.args == ("-kernel", "qemuglue-image:blank-8K")
    assert not found.result.started_with


def test_a_qemu_caught_in_its_owners_is_mirrored_without(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As mips64/magnum of 7.2 is, which quirks.py knows: here QEMU seems to be new at it."""
    take = Mirror.take
    asked: list[str] = []

    def caught(hmp: Callable[[str], str]) -> Mirror:
        tree = hmp("info mtree -o -D")
        asked.append(tree)
        if "owner:{" in tree:
            raise QemuHang(channel="QMP", timeout_s=10)
        return take(hmp)

    monkeypatch.setattr(Mirror, "take", caught)
    found = check_map(newest_build, "x86_64/microvm", qom=True)
    assert len(asked) == 2 and "owner:{" not in asked[1] and not found.config.owners
    assert found.mirror.exact and found.notes and found.qom is not None
    assert not found.qom.differences and found.qom.compared > 10
    with pytest.raises(QemuHang):
        monkeypatch.setattr(Mirror, "take", lambda hmp: caught(lambda line: "owner:{"))
        check_map(newest_build, "x86_64/microvm")


@pytest.mark.parametrize("machine", ["x86_64/pc", "aarch64/virt", "ppc64/pseries"])
def test_the_object_model_agrees(build: Build, machine: str) -> None:
    """virt and pseries have devices whose ids do not tell where they live."""
    if machine.partition("/")[0] not in build.targets():
        pytest.skip(f"build {build.name} has no {machine}")
    found = check_map(build, machine, args=("-device", "virtio-rng-pci,id=rng"), qom=True)
    assert found.qom is not None
    assert not found.qom.differences, [str(each) for each in found.qom.differences]
    assert found.qom.compared == len(found.mirror.regions) > 30
    assert sum(found.qom.unjudged.values()) <= 3


Change = Callable[[MemoryRegion], None]


def grow(region: MemoryRegion) -> None:
    region.size *= 2


def lift(region: MemoryRegion) -> None:
    region.priority += 1


def move(region: MemoryRegion) -> None:
    region.addr += 0x10


def elsewhere(region: MemoryRegion) -> None:
    assert region.container is not None
    container, sibling = region.container, region.container.subregions[-1]
    if sibling is region:
        sibling = container.subregions[0]
    container.del_subregion(region)
    sibling.add_subregion(region.addr, region)


@pytest.fixture(scope="module")
def q35_objects(newest_build: Build) -> tuple[str, str, list[QomRegion]]:
    config = QemuConfig(build=newest_build, target="x86_64", machine="q35", nodefaults=False,
                        transcript=False)
    with QemuProcess(config) as qemu:
        texts = qemu.monitor.hmp(TREE_COMMAND), qemu.monitor.hmp(FLAT_COMMAND)
        return *texts, memory_regions(qemu.monitor, newest_build.version_tuple)


@pytest.mark.parametrize("change", [grow, lift, move, elsewhere])
def test_a_planted_error_of_the_mirror_is_seen(
    q35_objects: tuple[str, str, list[QomRegion]], change: Change
) -> None:
    tree, flat, objects = q35_objects
    mirror = Mirror.take({"info mtree -o -D": tree, "info mtree -f -o": flat}.__getitem__)
    assert not compare(mirror.regions, objects).differences
    change(next(region for region in mirror.regions if region.name == "hpet"))
    [difference] = compare(mirror.regions, objects).differences
    assert difference.witness == "qom" and difference.place.endswith(":hpet")
    assert difference.model != difference.qemu


def test_a_region_on_one_side_only_is_seen(
    q35_objects: tuple[str, str, list[QomRegion]]
) -> None:
    tree, flat, objects = q35_objects
    mirror = Mirror.take({"info mtree -o -D": tree, "info mtree -f -o": flat}.__getitem__)
    missing = [region for region in mirror.regions if region.name != "ioapic"]
    [difference] = compare(missing, objects).differences
    assert difference.place.endswith(":ioapic") and difference.model == "there is none"
    [difference] = compare(
        mirror.regions, [each for each in objects if each.name != "ioapic"]).differences
    assert difference.place.endswith(":ioapic") and difference.qemu == "there is none"
    # Another owner's is another region.
    moved = [replace(each, path="/machine/unattached/ioapic[0]")
             if each.name == "ioapic" else each for each in objects]
    assert len(compare(mirror.regions, moved).differences) == 2
    # Without owners the rest still counts.
    assert not compare(mirror.regions, moved, owners=False).differences
