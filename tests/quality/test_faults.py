"""Every fault planted on the wire is found on real QEMU and confirmed; patience finds nothing.

Those that end in a hang take half a minute each and are left to ``ci/detect``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_run import run_until_found

from qemuglue.campaign.faults import FAULTS
from qemuglue.campaign.findings import read_finding
from qemuglue.qemu.builds import Build
from qemuglue.witness.session import Knowledge

pytestmark = pytest.mark.qemu

QUICK = [name for name, fault in FAULTS.items() if fault.finds not in ("", "hang")]

#: Programs of 64 operations until a fault must be found.
PROGRAMS = 400


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    """Contracts are learnt before anything lies, so one probe serves every fault."""
    return Knowledge()


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_found(
    name: str, newest_build: Build, knowledge: Knowledge, tmp_path: Path
) -> None:
    explorer = run_until_found(
        newest_build, knowledge, tmp_path, defect=name, programs=PROGRAMS)
    assert explorer.progress.findings, f"{name} ({FAULTS[name].summary}) was not found"
    finding = read_finding(Path(explorer.progress.findings[0]))
    assert (finding.kind, finding.defect) == (FAULTS[name].finds, name)
    assert finding.confirmed == (3, 3)


def test_a_slow_qemu_is_not_accused(
    newest_build: Build, knowledge: Knowledge, tmp_path: Path
) -> None:
    explorer = run_until_found(
        newest_build, knowledge, tmp_path, defect="answers-late", programs=40)
    assert explorer.progress.findings == []
    assert explorer.progress.flaky == 0
    assert explorer.progress.tally.total >= 40 * 64


def test_there_are_faults_on_every_wire() -> None:
    assert {fault.wire for fault in FAULTS.values()} == {"reply", "transcript", "memory", "time"}
    assert len(FAULTS) >= 15
