"""The targets topology, dma and device on real QEMU: what each alone is to find, it finds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from random import Random

import pytest

from qemuglue.campaign import settings as settings_module
from qemuglue.campaign.corpus import Corpus
from qemuglue.campaign.devices import DEVICE_ID
from qemuglue.campaign.findings import read_finding
from qemuglue.campaign.map_defects import MAP_DEFECTS
from qemuglue.campaign.settings import Settings
from qemuglue.campaign.status import StatusWriter
from qemuglue.campaign.targets import TARGETS
from qemuglue.campaign.worker import Work
from qemuglue.cli.main import main
from qemuglue.memory.contract import Contract
from qemuglue.memory.rules import Piece, Rules
from qemuglue.qemu.builds import Build
from qemuglue.witness.dma.fw_cfg import FwCfg
from qemuglue.witness.face import HostFace
from qemuglue.witness.verdict import Verdict

pytestmark = pytest.mark.qemu

CORPORA = Path(__file__).parent.parent.parent / "corpora"


class Narrow(Rules):
    """The least width of a device's own accesses is not known of."""

    def pieces(self, contract: Contract, size: int, big: bool) -> tuple[Piece, ...]:
        return super().pieces(replace(contract, impl_min=0), size, big)


@contextmanager
def work_of(settings: Settings, out: Path) -> Iterator[Work]:
    work = Work(settings.replace(out=str(out), seed=5), StatusWriter(-1))
    try:
        work.start()
        yield work
    finally:
        work.close()


def perform(work: Work, programs: int, seed: int = 5) -> None:
    """So many programs, or until something is found."""
    rng = Random(seed)
    for _ in range(programs):
        operations = work.drawing.operations(rng, work.settings.operations)
        if not work.perform(work.settings.program(operations)):
            return


def test_the_map_changes_all_the_time_and_is_followed(build: Build, tmp_path: Path) -> None:
    with work_of(Settings.of_target("topology", build=build.name), tmp_path) as work:
        perform(work, 6)
        tally = work.explorer.progress.tally
    assert not work.signatures, work.signatures
    assert tally.maps["changed"] >= 0.15 * 6 * 64, "a fifth, less what a restart took away"
    assert tally.maps["predicted"] >= 0.95 * tally.maps["changed"]
    assert tally.maps["compared"] == 6
    assert tally.of(Verdict.MATCH) > 0.9 * tally.total


@pytest.mark.parametrize("name", MAP_DEFECTS)
def test_only_topology_finds_a_map_that_is_not_followed(
    newest_build: Build, tmp_path: Path, name: str
) -> None:
    settings = Settings.of_target("topology", build=newest_build.name).replace(defect=name)
    with work_of(settings, tmp_path / "topology") as work:
        perform(work, 12)
    assert work.last is not None and work.last.signature.startswith("divergence:")
    assert work.last.path is not None and read_finding(work.last.path).defect == name
    plain = Settings.of_target("access", build=newest_build.name).replace(defect=name)
    with work_of(plain, tmp_path / "access") as work:
        perform(work, 12)
    assert work.last is None


def test_a_map_that_is_wrong_is_a_finding_that_replays(
    newest_build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "moves.qg"
    program.write_text(
        "# qemuglue program 1\nmachine x86_64/q35\nargs -device edu\nsetup pci\n"
        "outl 0xcf8 0x80000810\noutl 0xcfc 0xe8000000\n")
    words = ["replay", str(program), "--build", newest_build.name, "--json"]
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--defect", "moves-unseen"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["signature"].startswith("divergence:map:")
    assert told["verdict"]["index"] == 1 and "edu-mmio" in str(told["verdict"]["qemu_says"])


def test_only_dma_finds_a_wrong_copy(
    newest_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fw_cfg's model reads an item from one byte further on."""
    read = FwCfg._read

    def shifted(self, port, address, n, length, item):  # type: ignore[no-untyped-def]
        return read(self, port, address + 1, n, length, item)

    monkeypatch.setattr(FwCfg, "_read", shifted)
    with work_of(Settings.of_target("dma", build=newest_build.name), tmp_path / "dma") as work:
        perform(work, 12)
    assert work.last is not None and work.last.signature.startswith("divergence:")
    with work_of(Settings.of_target("access", build=newest_build.name), tmp_path / "a") as work:
        perform(work, 12)
    assert work.last is None


def test_a_device_gets_nearly_all_and_its_quirks_are_found(
    newest_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that is wrong for no device of the machine but this one: its least width."""
    settings = Settings.of_target("device", devices=["e1000"], build=newest_build.name)
    assert settings.devices == (f"e1000,id={DEVICE_ID}",) and settings.setup == "pci"
    with work_of(settings, tmp_path / "healthy") as work:
        perform(work, 4)
        mine = [name for name in work.regions if name.startswith("e1000")]
        cells = work.explorer.progress.tally.cells
        assert work.last is None and "e1000-mmio" in mine
        near = sum(n for (kind, _), n in cells.items()
                   if kind.value in ("device", "port device", "crossing"))
        assert near > 0.85 * sum(cells.values())
    right = settings_module.rules_of

    def wrong(settings: Settings, build: Build) -> tuple[Rules, type[HostFace]]:
        rules, face = right(settings, build)
        return Narrow(**{each.name: getattr(rules, each.name) for each in fields(rules)}), face

    monkeypatch.setattr(settings_module, "rules_of", wrong)
    with work_of(settings, tmp_path / "wrong") as work:
        perform(work, 4)
    assert work.last is not None and work.last.details["region"] == "e1000-mmio"
    plain = Settings.of_target("access", build=newest_build.name)
    with work_of(plain, tmp_path / "access") as work:
        perform(work, 4)
    assert work.last is None


def test_a_device_that_cannot_be_had_is_one_sentence(
    newest_build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["fuzz", "device", "--engine", "random", "--build", newest_build.name, "--programs",
              "1", "--out", str(tmp_path)]
    for device, words in (
        ("nosuch", "has no device 'nosuch'"), ("e1000q", "among them e1000"),
        ("edu,id=mine", "gives its device the id"), ("edu,nosuch=1", "nosuch"),
        ("isa-serial,chardev=none", "chardev"),
    ):
        assert main([*common, "--device", device]) == 2
        said = capsys.readouterr().err.splitlines()
        assert words in said[-1] and not any("Traceback" in line for line in said), said


def test_devices_are_listed(newest_build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--devices", "--build", newest_build.name]) == 0
    text = capsys.readouterr().out
    assert "Network devices" in text and "e1000e" in text
    assert main(["targets", "--devices", "x86_64", "--build", newest_build.name, "--json"]) == 0
    names = {each["name"] for each in json.loads(capsys.readouterr().out)["build_devices"]}
    assert {"edu", "virtio-blk-pci"} <= names


@pytest.mark.parametrize("target", ["topology", "dma", "device"])
def test_the_seed_corpora_run(newest_build: Build, tmp_path: Path, target: str) -> None:
    """A few inputs each, nothing found."""
    inputs = [path for path, _ in Corpus(CORPORA / target).inputs()]
    assert inputs, target
    device = ["--device", "edu"] if target == "device" else []
    done = subprocess.run(
        [sys.executable, "-m", "qemuglue.cli.main", "fuzz", target, "--engine", "random",
         "--build", newest_build.name, "--programs", "6", "--seed", "1", "--out", str(tmp_path),
         "--corpus", str(CORPORA / target), "--json", *device],
        capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    made = json.loads(done.stdout)
    assert made["programs"] == 6 and made["findings"] == []
    assert TARGETS[target].machine == made["machine"]
