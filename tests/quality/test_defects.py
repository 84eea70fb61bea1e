"""Every planted model defect is found on real QEMU, confirmed by the slow judge, and replays."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_run import run_until_found

from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.findings import read_finding
from qemuglue.qemu.builds import Build
from qemuglue.witness.session import Knowledge

pytestmark = pytest.mark.qemu

#: Programs of 64 operations until a defect must be found: a few seconds at the slowest.
PROGRAMS = 400


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """Contracts are learnt by the true rules, so one probe serves every defect."""
    return Knowledge()


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(
    name: str, newest_build: Build, knowledge: Knowledge, tmp_path: Path
) -> None:
    explorer = run_until_found(
        newest_build, knowledge, tmp_path, defect=name, programs=PROGRAMS)
    assert explorer.progress.findings, f"{name} ({DEFECTS[name].summary}) was not found"
    finding = read_finding(Path(explorer.progress.findings[0]))
    assert finding.kind == "divergence"
    assert finding.defect == name
    assert finding.confirmed == (3, 3)
    assert finding.details["model_says"] != finding.details["qemu_says"]


def test_there_is_a_defect_for_each_rule_of_the_host_path() -> None:
    planted = {defect.rule for defect in DEFECTS.values()}
    assert planted == {f"R{n}" for n in (*range(1, 10), 11, 20)}


def test_the_true_model_is_not_accused(build: Build, tmp_path: Path) -> None:
    explorer = run_until_found(build, Knowledge(), tmp_path, defect="", programs=60)
    progress = explorer.progress
    assert progress.findings == []
    assert progress.tally.total >= 60 * 64
    assert progress.tally.soft_share < 0.05, progress.tally.to_json()
