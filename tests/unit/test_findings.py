"""Finding folders: what is written is read back; what is broken is one sentence."""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from qemuglue.campaign import findings
from qemuglue.campaign.findings import SCHEMA, Finding, details, read_finding, write_finding
from qemuglue.errors import FindingError, ProgramError, QemuDied
from qemuglue.memory import MemoryRegion
from qemuglue.program.operation import Operation, Place, Program
from qemuglue.program.text import parse
from qemuglue.qemu.qtest import QtestDied
from qemuglue.witness.judge import Judgement, Kind
from qemuglue.witness.judging import Suspicion
from qemuglue.witness.verdict import Kind as Row

READ = Operation("readl", Place("hpet", 0, 4), 4)
PROGRAM = Program(
    "x86_64/q35", ("-device", "edu,id=a b"),
    (READ, Operation("writeq", Place(None, 0, 0x1000), 8, 0x1122334455667788)),
    setup="pci",
)
JUDGEMENT = Judgement(
    Kind.DIVERGENCE, "divergence:reply:device:readl", 1,
    Suspicion(1, (READ, 0xFED00004), Row.DEVICE, "reply", ("reply OK 0x1",), ("reply OK 0x2",),
              "hpet"),
    stderr="a µ warning\n", transcript=b"memory_region_ops_read \xff\n",
    command=("/opt/qemu/bin/qemu-system-x86_64", "-device", "edu,id=a b", "-name", "it's"),
)
BUILD = {"name": "sid", "version": "11.1.3", "package": "1:11.1.3+ds-2"}


def finding(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "kind": "divergence", "signature": JUDGEMENT.signature, "program": PROGRAM,
        "build": BUILD, "seed": 7, "confirmed": (3, 3), "details": details(JUDGEMENT),
        "defect": "",
    }
    return Finding(**{**values, **changes})


def written(folder: Path, **changes: Any) -> Path:
    return write_finding(folder, finding(**changes), JUDGEMENT, b"\x01\x02")


# -- round trip ----------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
    {}, {"seed": None}, {"seed": (1 << 64) - 1}, {"confirmed": (1, 3)}, {"confirmed": (0, 3)},
    {"defect": "rom-writable"}, {"details": {}}, {"kind": "crash", "signature": "crash:exit:1"},
    {"program": Program("a/b")}, {"build": {}},
])
def test_what_is_written_is_read_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = written(tmp_path, **changes)
    assert read_finding(path) == finding(**changes, path=path)
    assert read_finding(path).flaky == (finding(**changes).confirmed != (3, 3))


def test_the_folder_is_named_after_its_program(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert path.name == f"divergence-{PROGRAM.sha1()}"
    assert parse((path / "program.qg").read_text()) == PROGRAM
    assert (path / "program.qg").read_text() == PROGRAM.canonical_text()


def test_its_files(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert sorted(each.name for each in path.iterdir()) == [
        "command.sh", "finding.json", "input.bin", "program.qg", "stderr.log", "transcript.log"]
    assert (path / "input.bin").read_bytes() == b"\x01\x02"
    assert (path / "transcript.log").read_bytes() == JUDGEMENT.transcript
    assert (path / "stderr.log").read_text(encoding="utf-8") == "a µ warning\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755, "others may read it"
    other = write_finding(tmp_path / "b", finding(), JUDGEMENT)
    assert not (other / "input.bin").exists(), "there was none"


def test_the_command_can_be_run_by_a_shell(tmp_path: Path) -> None:
    command = written(tmp_path) / "command.sh"
    assert command.stat().st_mode & 0o111
    last = command.read_text().splitlines()[-1]
    assert shlex.split(last) == ["exec", *JUDGEMENT.command]
    assert command.read_text().startswith("#!/bin/sh\n")


def test_the_record_says_all_that_decides(tmp_path: Path) -> None:
    record = json.loads((written(tmp_path, confirmed=(2, 3)) / "finding.json").read_text())
    assert record["schema"] == SCHEMA
    assert (record["kind"], record["signature"]) == ("divergence", JUDGEMENT.signature)
    assert record["build"] == BUILD and record["seed"] == 7
    assert record["machine"] == "x86_64/q35" and record["mode"] == "stopped"
    assert record["args"] == ["-device", "edu,id=a b"] and record["setup"] == "pci"
    assert record["confirmed"] == {"k": 2, "n": 3} and record["flaky"] is True
    assert record["verdict"] == {
        "index": 1, "error": "", "what": "reply", "region": "hpet", "region_kind": "device",
        "model_says": ["reply OK 0x1"], "qemu_says": ["reply OK 0x2"], "verb": "readl",
        "address": "0xfed00004", "size": 4,
    }


def test_details_of_a_death() -> None:
    error = QtestDied(QemuDied(signal=signal.SIGSEGV), partial=b"OK\n")
    found = details(Judgement(Kind.CRASH, "crash:signal:SIGSEGV", 4, error=str(error)))
    assert found == {"index": 4, "error": "QEMU was ended by SIGSEGV"}


def test_details_of_ram_have_no_operation() -> None:
    suspicion = Suspicion(None, None, Row.RAM, "ram", ("a",), ("b",), "pc.ram")
    found = details(Judgement(Kind.DIVERGENCE, "divergence:ram:ram:end", 9, suspicion))
    assert found["region"] == "pc.ram" and "verb" not in found
    assert MemoryRegion.ram("pc.ram", 16).name == found["region"]


# -- twice, and half -------------------------------------------------------------------------------


def test_twice_the_same_is_once(tmp_path: Path) -> None:
    first = written(tmp_path)
    (first / "minimal.qg").write_text("kept")
    assert written(tmp_path, seed=99) == first
    assert read_finding(first).seed == 7 and (first / "minimal.qg").exists()
    assert list(tmp_path.iterdir()) == [first], "and nothing is left over"


def test_a_campaign_that_is_killed_leaves_no_half_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(judgement: Judgement) -> str:
        raise Killed

    monkeypatch.setattr(findings, "_command", die)
    with pytest.raises(Killed):
        written(tmp_path)
    assert [each for each in tmp_path.iterdir() if not each.name.startswith(".")] == []


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(judgement: Judgement) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(findings, "_command", full)
    with pytest.raises(OSError, match="No space"):
        written(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_somebody_else_was_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers record the same finding at the same moment."""
    target = tmp_path / f"divergence-{PROGRAM.sha1()}"
    command = findings._command

    def meanwhile(judgement: Judgement) -> str:
        monkeypatch.undo()
        written(tmp_path, seed=1)
        return command(judgement)

    monkeypatch.setattr(findings, "_command", meanwhile)
    assert written(tmp_path, seed=2) == target
    assert read_finding(target).seed == 1
    assert list(tmp_path.iterdir()) == [target]


# -- what cannot be read -----------------------------------------------------------------------


def one_sentence(error: FindingError, path: Path) -> str:
    text = str(error)
    assert text.startswith(f"{path}: ") and "\n" not in text and "Traceback" not in text
    assert error.path == str(path)
    return text.removeprefix(f"{path}: ")


def refused(path: Path) -> str:
    with pytest.raises(FindingError) as caught:
        read_finding(path)
    return one_sentence(caught.value, path)


@pytest.mark.parametrize("name", ["program.qg", "finding.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path)
    (path / name).unlink()
    assert refused(path) == f"{name} is missing; the finding is incomplete"


def test_files_it_can_do_without(tmp_path: Path) -> None:
    path = written(tmp_path)
    for name in ("input.bin", "transcript.log", "stderr.log", "command.sh"):
        (path / name).unlink()
    assert read_finding(path).program == PROGRAM


def test_no_folder_at_all(tmp_path: Path) -> None:
    assert "program.qg is missing" in refused(tmp_path / "nothing")
    file = tmp_path / "file"
    file.write_text("")
    assert "cannot be read: Not a directory" in refused(file)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_a_truncated_record(tmp_path: Path, share: float) -> None:
    record = written(tmp_path) / "finding.json"
    raw = record.read_bytes()
    record.write_bytes(raw[: int(len(raw) * share)])
    assert "truncated or not JSON" in refused(record.parent)


@pytest.mark.parametrize("raw", [
    b"\x00\xff\xfe", b"null", b"[]", b"7", b'"x"', b"{", b"[" * 100_000, b"\xef\xbb\xbf{}",
    b'{"schema": 1}', b'{"schema": 1, "kind": "x"}', b"NaN", b"",
])
def test_a_record_that_is_none(tmp_path: Path, raw: bytes) -> None:
    path = written(tmp_path)
    (path / "finding.json").write_bytes(raw)
    assert refused(path).startswith("finding.json ")


@pytest.mark.parametrize("key", ["kind", "signature", "build", "confirmed"])
def test_a_record_without_what_it_needs(tmp_path: Path, key: str) -> None:
    path = written(tmp_path)
    record = json.loads((path / "finding.json").read_text())
    for wrong in (None, "x", 7, [], {}):
        record[key] = wrong
        if wrong is None:
            del record[key]
        (path / "finding.json").write_text(json.dumps(record))
        if key in ("kind", "signature") and wrong is not None:
            continue  # any value has a spelling
        if (key, wrong) in (("build", []), ("build", {})):
            continue  # an empty mapping
        refused(path)


@pytest.mark.parametrize("key", ["seed", "defect", "verdict"])
def test_a_record_may_lack_what_is_not_needed(tmp_path: Path, key: str) -> None:
    path = written(tmp_path)
    record = json.loads((path / "finding.json").read_text())
    del record[key]
    (path / "finding.json").write_text(json.dumps(record))
    assert read_finding(path).program == PROGRAM


def test_a_record_of_another_schema(tmp_path: Path) -> None:
    path = written(tmp_path)
    record = json.loads((path / "finding.json").read_text())
    record["schema"] = SCHEMA + 1
    (path / "finding.json").write_text(json.dumps(record))
    assert "not of schema" in refused(path)


def test_a_record_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    monkeypatch.setattr(findings, "MAX_JSON", 100)
    assert "larger than" in refused(path)


@pytest.mark.parametrize("text", ["", "garbage\n", "# qemuglue program 1\n",
                                  "# qemuglue program 1\nmachine a/b\nreadx @0\n"])
def test_a_program_that_is_none(tmp_path: Path, text: str) -> None:
    path = written(tmp_path)
    (path / "program.qg").write_text(text)
    assert refused(path).startswith("program.qg: ")


def test_a_program_that_is_no_text(tmp_path: Path) -> None:
    path = written(tmp_path)
    (path / "program.qg").write_bytes(b"\xff\xfe\x00")
    assert refused(path).startswith("program.qg"), "it names the file that is broken"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_we_may_not_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    (path / "finding.json").chmod(0)
    assert "cannot be read: Permission denied" in refused(path)


def test_a_program_error_is_no_finding_error_by_itself() -> None:
    with pytest.raises(ProgramError):
        parse("garbage")
