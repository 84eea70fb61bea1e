"""What a campaign records of a run that ended early and cannot be shown again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qemuglue.campaign.explorer import LOST_FOR, Explorer
from qemuglue.campaign.findings import read_finding
from qemuglue.program.operation import Operation, Place, Program
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.witness.judge import Judgement, Kind, Scene
from qemuglue.witness.judging import Suspicion
from qemuglue.witness.session import Knowledge
from qemuglue.witness.verdict import Kind as RowKind

STEPS = [(Operation("readb", Place(None, 0, addr), 1), addr) for addr in range(8)]


class FakeSession:
    """A QEMU that was told eight operations since its set-up."""

    journal = STEPS
    setup_steps: tuple[Any, ...] = ()


@pytest.fixture
def explorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explorer:
    config = QemuConfig(
        build=Build("a", "10.0.2", None, ()), target="x86_64", machine="q35")
    made = Explorer(
        Scene(config, Knowledge()), tmp_path / "findings", seed=1, flaky=tmp_path / "flaky")
    monkeypatch.setattr(made, "_confirm", lambda program, found: (0, None))
    return made


@pytest.mark.parametrize(("kind", "folder"), [
    (Kind.HANG, "findings"), (Kind.CRASH, "findings"), (Kind.DIVERGENCE, "flaky")])
def test_the_whole_journal_is_kept_not_its_beginning(
    explorer: Explorer, tmp_path: Path, kind: Kind, folder: str
) -> None:
    """The number of the operation counts within the last program, the third of these."""
    last = Program("x86_64/q35", (), tuple(op for op, _ in STEPS[5:]))
    suspicion = Suspicion(1, STEPS[6], RowKind.RAM, "ram", ("a",), ("b",))
    found = Judgement(
        kind, "some:signature", 1, suspicion if kind is Kind.DIVERGENCE else None,
        command=("qemu",))
    session: Any = FakeSession()
    explorer._stopped(found, last, session, b"")
    [path] = (tmp_path / folder).iterdir()
    kept = read_finding(path)
    assert len(kept.program.operations) == len(STEPS)
    assert kept.confirmed[0] == 0
    assert explorer.progress.flaky == (kind is Kind.DIVERGENCE)
    assert len(explorer.progress.findings) == (kind is not Kind.DIVERGENCE)


def test_a_qemu_with_a_device_that_is_not_followed_is_replaced_after_a_while(
    explorer: Explorer
) -> None:
    lost: dict[str, str] = {"/dev": "edu"}
    session: Any = SimpleNamespace(following=SimpleNamespace(lost=lambda: lost))
    seen = [explorer._blind(session) for _ in range(LOST_FOR)]
    assert seen == [False] * (LOST_FOR - 1) + [True]
    lost.clear()
    assert not explorer._blind(session)
    lost["/dev"] = "edu"
    assert not explorer._blind(session)
