"""``qemuglue check`` on real QEMU: machines match, planted defects do not, errors are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from qemuglue.campaign import checking
from qemuglue.campaign.check_result import CheckResult
from qemuglue.campaign.checking import check_machine
from qemuglue.campaign.exercised import UNSPLIT
from qemuglue.campaign.starting import start_machine
from qemuglue.cli.main import main
from qemuglue.errors import LaunchError
from qemuglue.memory.rules import Rules
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Place
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.witness.verdict import Verdict

pytestmark = pytest.mark.qemu


def told(result: CheckResult) -> str:
    return "\n".join(map(str, (result.status, result.reason, *result.divergences)))


@pytest.mark.parametrize("machine", ["x86_64/q35", "x86_64/pc", "x86_64/microvm"])
def test_a_machine_matches(build: Build, machine: str, tmp_path: Path) -> None:
    result = check_machine(build, machine, ops=600, seed=1, folder=tmp_path)
    assert result.status == "match", told(result)
    assert result.map.exact == result.map.views > 0
    assert result.tally.total >= 600 and result.tally.of(Verdict.MATCH) >= 0.95 * 600
    assert {a.witness for a in result.accounts} == {"qom", "gpa2hva", "dump", "xp", "map"}
    assert all(a.compared and not a.unsupported for a in result.accounts)
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_check(newest_build: Build, tmp_path: Path) -> None:
    first, again, other = (
        check_machine(newest_build, "x86_64/microvm", ops=200, seed=seed, folder=tmp_path)
        for seed in (5, 5, 6)
    )
    assert first.tally.to_json() == again.tally.to_json() != other.tally.to_json()


@pytest.mark.parametrize("name", ["accepts-rejected", "rom-writable", "fill-short"])
def test_a_planted_defect_diverges(newest_build: Build, name: str, tmp_path: Path) -> None:
    result = check_machine(
        newest_build, "x86_64/pc", ops=100, seed=1, defect=name, folder=tmp_path)
    assert result.status == "diverged" and result.defect == name
    assert result.tally.of(Verdict.DIVERGED) > 0
    first = next(each for each in result.divergences if each.path)
    assert first.confirmed == (3, 3) and first.model != first.qemu
    assert (Path(first.path) / "program.qg").read_text() == first.program


def test_what_no_device_exercised_is_told(newest_build: Build, tmp_path: Path) -> None:
    """Nothing on a bare versatilepb cuts an access; pci-testdev on a q35 cuts every wide one."""
    bare = check_machine(newest_build, "arm/versatilepb", ops=60, seed=1, folder=tmp_path)
    with_it = check_machine(newest_build, "x86_64/q35", args=("-device", "pci-testdev"),
                            ops=200, seed=1, folder=tmp_path)
    assert UNSPLIT in bare.notes and UNSPLIT not in with_it.notes


def test_a_device_that_no_contract_explains_diverges(
    newest_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules that drop all but the first piece fit no answer of a device that makes several: the
    contracts that are probed with them cannot hide it."""
    whole = Rules.pieces
    monkeypatch.setattr(Rules, "pieces", lambda *args: whole(*args)[:1])
    result = check_machine(newest_build, "x86_64/microvm", ops=20, seed=1, folder=tmp_path)
    assert result.status == "diverged", told(result)
    found = [each for each in result.divergences if each.signature == "divergence:contract"]
    assert "pic" in {each.region for each in found}


def test_a_machine_with_a_size_of_its_own(newest_build: Build, tmp_path: Path) -> None:
    """raspi3b takes 1 GiB and nothing else; that much is shared, and costs no such memory."""
    config = QemuConfig(build=newest_build, target="aarch64", machine="raspi3b", ram="64M",
                        ram_id="ram")
    found, mirror = start_machine(config)
    assert found.ram_bytes == 1 << 30 and found.has_shared_ram and mirror.exact
    result = check_machine(newest_build, "aarch64/raspi3b", ops=64, seed=1, folder=tmp_path)
    assert dict(result.ram)["ram"] == "shared", told(result)


class Drawn:
    """In place of the generator: always the same operations."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def operations(self, rng: Random, count: int) -> list[Operation]:
        ram = Operation("readl", Place("ram", 0, 0x1000), 4)
        rng_byte = Operation("readb", Place("bcm2835-rng", 0, 1), 1)
        return [ram, ram, rng_byte, ram][:count]


def test_an_access_that_ends_qemu_is_a_finding_and_no_end(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """bcm2835-rng of QEMU before 11 asserts that every access is one of four bytes."""
    if not (10,) <= build.version_tuple < (11,):
        pytest.skip("one version that asserts is enough, and takes ten seconds")
    monkeypatch.setattr(checking, "Generator", Drawn)
    result = check_machine(build, "aarch64/raspi3b", ops=16, seed=1, folder=tmp_path)
    assert result.status == "diverged" and result.tally.total == 16, told(result)
    [crash] = result.divergences
    assert (crash.kind, crash.confirmed) == ("crash", (3, 3))
    assert crash.signature == "crash:assert:bcm2835_rng_read:size == 4"
    assert crash.place == "readb 0x3f104001 (bcm2835-rng)"
    [(why, count)] = [(why, n) for why, n in result.tally.reasons.items() if "left out" in why]
    assert crash.signature in why and count == result.tally.of(Verdict.UNJUDGED)
    assert {a.witness for a in result.accounts} == {"qom", "gpa2hva", "dump", "xp", "map"}


def test_no_operations_only_compare_the_map(newest_build: Build, tmp_path: Path) -> None:
    result = check_machine(newest_build, "aarch64/virt", ops=0, seed=1, folder=tmp_path)
    assert result.status == "match" and not result.accounts, told(result)
    assert result.map.exact == result.map.views > 0 == result.tally.total


def test_a_machine_that_does_not_start_says_why(newest_build: Build, tmp_path: Path) -> None:
    result = check_machine(
        newest_build, "x86_64/q35", args=("-device", "nothing"), ops=10, folder=tmp_path)
    assert result.status == "not-started"
    assert "'nothing' is not a valid device model name" in result.reason
    with pytest.raises(LaunchError):
        start_machine(QemuConfig(build=newest_build, target="x86_64", machine="q35",
                                 args=("-device", "nothing")))


def test_a_machine_without_a_cpu_has_only_a_map(newest_build: Build, tmp_path: Path) -> None:
    result = check_machine(newest_build, "x86_64/none", ops=100, folder=tmp_path)
    assert result.status == "match" and result.tally.total == 0
    assert "no CPU" in result.notes[0]


def test_the_command(
    newest_build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    junit = tmp_path / "junit.xml"
    code = main(["check", "x86_64/microvm", "x86_64/none", "--build", newest_build.name,
                 "--ops", "128", "--seed", "0x10", "--json", "--junit", str(junit)])
    said = capsys.readouterr()
    assert code == 0, said.err
    found = json.loads(said.out)
    assert [each["status"] for each in found["results"]] == ["match", "match"]
    assert found["summary"]["seed"] == 16 and found["results"][0]["inferred"]["bits"] >= 0
    assert said.err.splitlines()[0] == "seed 16" and "x86_64/microvm" in said.err
    assert [each["oddity"] for each in found["oddities"]] == []
    assert junit.read_text().count("<testcase") == 2


def test_the_command_exits_1_on_a_divergence_and_keeps_it(
    newest_build: Build, tmp_path: Path,
) -> None:
    words = [sys.executable, "-m", "qemuglue.cli.main", "check", "x86_64/microvm", "--build",
             newest_build.name, "--ops", "64", "--seed", "1", "--defect", "refused-ones",
             "--out", str(tmp_path / "found")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    assert "Planted in the model: refused-ones" in done.stdout
    [path, *_] = [line.split("qemuglue replay ")[1] for line in done.stdout.splitlines()
                  if "qemuglue replay" in line]
    assert main(["replay", path]) == 1
