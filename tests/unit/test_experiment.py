"""The experiment's own account of what was reached, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qemuglue.campaign.experiment.__main__ import main
from qemuglue.campaign.experiment.arms import result_path
from qemuglue.campaign.experiment.recording import Recording

TEXT = (
    b"memory_region_ops_read cpu -1 mr 0x1 addr 0xfeb00010 value 0x1 size 4 name 'edu'\n"
    b"memory_region_ops_read cpu -1 mr 0x2 addr 0xc0000010 value 0x9 size 4 name 'edu'\n"
    b"memory_region_ops_write cpu -1 mr 0x2 addr 0xc0000010 value 0x9 size 4 name 'edu'\n"
    b"flatview_new 0x1 (root 0x2)\n"
    b"Invalid read at addr 0x2, size 2, region 'edu', reason: invalid size (min:4 max:4)\n"
    b"Invalid read at addr 0x123456, size 2, region '(null)', reason: rejected\n"
    b"pci_cfg_write edu 00:03.0 @0x4 <- 0x7\n"
    b"pci_cfg_write edu 00:03.0 @0x4 <- 0x5\n"
    b"\xff\xfe garbage\n"
)


def test_a_recording_counts_states_and_events_by_itself() -> None:
    recording = Recording()
    recording.hear(TEXT, {"edu": 0x100000})
    assert recording.states == {
        ("edu", "10", "4", "read"), ("edu", "10", "4", "write"),
        ("'edu'", "0x2", "size 2", "invalid"),
    }, "where the region is at the moment makes no difference"
    assert recording.events == {"pci_cfg_write"}
    assert len(recording.shapes) == 1
    recording.note(5)
    assert recording.to_json()["curve"] == [(5, 3, 1, 1)]


def test_the_table_is_made_of_the_results_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(1, 11):
        for arm, states in (("random", 100), ("blind", 80), ("all", 200)):
            result_path(tmp_path, "access", arm, seed).write_text(json.dumps(
                {"states": states + seed, "events": 5, "shapes": 7, "programs": 200}))
    assert main(["--out", str(tmp_path), "--setup", "access", "--table"]) == 0
    text = capsys.readouterr().out
    assert "transcript" not in text, "it has no results"
    assert "200 programs a run" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("all "))
    words = line.split()
    assert words[1:6] == ["10", "206", "201", "210", "+94.8%"], line
    assert float(words[6]) == pytest.approx(1.1e-5, rel=0.05)
    assert words[7].startswith("+1"), line
    assert "states 100%, events 50%, shapes 50%" in text, "the others are all alike"
    assert max(map(len, text.splitlines())) <= 100


def test_an_unknown_arm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--arm", "nonsense"])
    assert "nonsense" in capsys.readouterr().err
