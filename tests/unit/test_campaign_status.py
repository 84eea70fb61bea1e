"""What workers tell and what the campaign makes of it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from qemuglue.campaign.explorer import Progress
from qemuglue.campaign.findings import Finding
from qemuglue.campaign.status import (
    INTERVAL_S,
    Lines,
    StatusWriter,
    Totals,
    described,
    load_totals,
    save_totals,
)
from qemuglue.errors import UsageError
from qemuglue.program.operation import Program
from qemuglue.witness.verdict import Kind, Verdict

FINDING = {"kind": "crash", "signature": "crash:x", "path": "/f/1", "line": "it ended"}


def totals(n: int, path: str = "/f/1") -> Totals:
    made = Totals(programs=n, seconds=1.0, runs=1, shapes={n, 99}, regions={f"r{n}"},
                  signatures=Counter({"crash:x": n}), findings=[{**FINDING, "path": path}])
    made.tally.cells[Kind.RAM, Verdict.MATCH] = n
    made.note(f"note {n}")
    return made


def test_totals_add_up_and_findings_stay_once() -> None:
    whole = Totals()
    for part in (totals(1), totals(2), totals(3, "/f/2")):
        whole.add(part)
    assert (whole.programs, whole.judged, whole.runs, whole.seconds) == (6, 6, 3, 3.0)
    assert whole.shapes == {1, 2, 3, 99}
    assert whole.found == {"crash:x": 6}
    assert [each["path"] for each in whole.findings] == ["/f/1", "/f/2"]
    assert list(whole.notes) == ["note 1", "note 2", "note 3"]


def test_a_signature_taken_back_is_not_found() -> None:
    assert Totals(signatures=Counter({"divergence:x": 0})).found == {}


def test_totals_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    assert load_totals(path) is None
    save_totals(path, {"machine": "m"}, totals(4))
    known = load_totals(path)
    assert known is not None
    assert known[0] == {"machine": "m"}
    assert known[1].to_json() == totals(4).to_json()
    assert [each.name for each in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("text", [
    "", "{}", "[]", '{"schema": 9}', '{"schema": 1, "settings": {}, "totals": {}}',
    '{"schema": 1, "settings": {}, "totals": {"tally": 5}}',
    json.dumps({"schema": 1, "settings": {}, "totals": {
        **Totals().to_json(), "tally": {"kinds": {"ram": {"nonsense": 1}}}}}),
    json.dumps({"schema": 1, "settings": {}, "totals": {
        **Totals().to_json(), "findings": [{"kind": "crash"}]}}),
])
def test_a_foreign_status_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="--out"):
        load_totals(path)


def test_messages_are_cut_at_line_ends_and_garbage_is_dropped() -> None:
    lines = Lines()
    whole = b'{"type": "note", "text": "a"}\nnonsense\n[1]\n{"x": 1}\n{"type": "note", "t'
    seen = [message for byte in whole for message in lines.feed(bytes([byte]))]
    assert seen == [{"type": "note", "text": "a"}]
    assert list(lines.feed(b'ext": "b"}\n')) == [{"type": "note", "text": "b"}]


def test_a_writer_keeps_its_pace_and_tells_a_shape_once() -> None:
    ours, theirs = os.pipe()
    now = [100.0]
    writer = StatusWriter(theirs, clock=lambda: now[0])
    progress = Progress(programs=3)
    assert writer.due
    writer.status(progress, Counter(), {1, 2}, {"hpet"})
    assert not writer.due
    now[0] += INTERVAL_S
    assert writer.due
    writer.status(progress, Counter({"a": 1}), {1, 2, 3}, {"hpet", "edu"}, final=True)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        first, second = Lines().feed(pipe.read())
    assert (first["shapes"], second["shapes"]) == ([1, 2], [3])
    assert (first["regions"], second["regions"]) == (["hpet"], ["edu"])
    assert second["final"] and second["programs"] == 3 and second["signatures"] == {"a": 1}
    assert Totals.from_json(second).programs == 3


def test_a_finding_is_described_by_what_each_side_says() -> None:
    finding = Finding(
        "divergence", "divergence:reply:device:readl", Program("x86_64/q35"), {}, 1, (3, 3),
        {"verb": "readl", "address": "0xfed00000", "region": "hpet",
         "model_says": ["read of 4", "reply 1"], "qemu_says": ["read of 4", "reply 2"]},
    )
    told = described(finding)
    assert told["what"] == "readl at 0xfed00000 (hpet)"
    assert (told["model"], told["qemu"]) == ("reply 1", "reply 2")
    assert "shown again 3 of 3 times" in told["line"]


def test_a_crash_is_described_by_how_qemu_ended() -> None:
    finding = Finding("crash", "crash:signal:SIGSEGV", Program("x86_64/q35"), {}, 1, (0, 3),
                      {"error": "QEMU was ended by SIGSEGV"})
    told = described(finding)
    assert told["line"].startswith("QEMU was ended by SIGSEGV")
    assert "not shown again" in told["line"]
