"""``qemuglue contracts`` on saved tables: no QEMU is needed to look at one or compare two."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qemuglue.cli.contracts import load, save
from qemuglue.cli.main import main
from qemuglue.errors import UsageError
from qemuglue.witness.contract_table import (
    AcceptedRange,
    Accepts,
    Access,
    ContractRow,
    ContractSizes,
    ContractTable,
)

VETO = Accepts((AcceptedRange(2, 0, 0, 2), AcceptedRange(4, 0, 0, 4)), True, ((0, 15),))
HPET = Access(ContractSizes(4, 4), "little", (ContractSizes(4, 4, True, 1, 4),), None, 96,
              ("96 reads at 24 offsets",))


def row(name: str, reads: Access, writes: Access, address: int = 0x1000) -> ContractRow:
    return ContractRow(
        region=f"/machine/a:{name}", name=name, owner="/machine/a", size=16, kind="i/o",
        space="memory", address=address, reads=reads, writes=writes,
    )


TABLE = ContractTable("x86_64/q35", "bookworm", "7.2.22", (), (
    row("hpet", HPET, HPET),
    row("ctl", Access(ContractSizes()), Access(ContractSizes(), "big", accepts=VETO)),
    row("gone", Access(unknown="a read ended QEMU"), Access(unknown="not asked")),
    row("twin", HPET, HPET, 0x2000), row("twin", HPET, HPET, 0x3000),
))
TABLE = replace(TABLE, rows=(*TABLE.rows[:4], replace(TABLE.rows[4], region="/machine/a:twin#1")))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "q35.json"
    save(path, TABLE)
    return path


def test_saved_and_loaded(saved: Path) -> None:
    assert load(saved) == TABLE
    assert [path.name for path in saved.parent.iterdir()] == ["q35.json"]


def test_a_line_a_region(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contracts", "--load", str(saved)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["0x1000", "0x10", "hpet", "both", "4..4", "?", "1..4", "little"]
    assert lines[3].split()[:4] == ["0x1000", "0x10", "ctl", "reads"]
    assert lines[4].strip() == "writes  any    no         1..4  big     accepts 2, 4 at 0x0"
    assert lines[5].endswith("unknown: a read ended QEMU") and "writes" not in lines[6]
    assert lines[6].split()[2:6] == ["twin", "(2,", "up", "to"]
    assert "5 regions, reads of 4 and writes of 4 known, 1 with a veto of its own" in lines[-1]


def test_evidence(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contracts", "--load", str(saved), "-v", "--region", "h*"]) == 0
    out = capsys.readouterr().out
    assert "reads: 96 reads at 24 offsets" in out and "ctl" not in out
    assert "would look the same: valid 4..4 unaligned, impl 1..4" in out


def test_json_is_the_table(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contracts", "--load", str(saved), "--json", "--region", "*:ctl"]) == 0
    table = ContractTable.from_json(json.loads(capsys.readouterr().out))
    assert table.rows == TABLE.rows[1:2]


def test_two_tables(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = Access(ContractSizes(4, 8), "little")
    other = tmp_path / "new.json"
    save(other, replace(TABLE, build="sid", rows=(row("hpet", wide, wide), *TABLE.rows[1:])))
    assert main(["contracts", "--load", str(other), "--against", str(saved)]) == 1
    out = capsys.readouterr().out
    assert "/machine/a:hpet: valid sizes of reads and writes: 4..4 -> 4..8" in out
    assert "x86_64/q35 bookworm (QEMU 7.2.22) -> x86_64/q35 sid (QEMU 7.2.22): 1 difference" in out
    assert main(["contracts", "--load", str(other), "--against", str(saved), "--json"]) == 1
    [change] = json.loads(capsys.readouterr().out)["changes"]
    assert (change["name"], change["before"], change["after"]) == ("hpet", "4..4", "4..8")
    assert main(["contracts", "--load", str(saved), "--against", str(saved)]) == 0
    assert "no difference" in capsys.readouterr().out
    assert main(["contracts", "--load", str(other), "--against", str(saved),
                 "--region", "ctl"]) == 0


@pytest.mark.parametrize(("words", "said"), [
    ([], "give a MACHINE"),
    (["x86_64/q35", "--load", "x"], "give a MACHINE"),
    (["--load", "{saved}", "--region", "nope"], "no region is called nope; there are hpet, ctl"),
    (["--load", "{saved}.not"], "No such file"),
    (["--load", "{text}"], "no JSON"),
    (["--load", "{list}"], "no contract table: the file: an object is expected"),
])
def test_wrong_usage_is_one_sentence(
    words: list[str], said: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, array = saved.with_name("text"), saved.with_name("list")
    text.write_text("hello")
    array.write_text("[" * 3 + "]" * 3)
    named = [word.format(saved=saved, text=text, list=array) for word in words]
    assert main(["contracts", *named]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_deep_file_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "deep"
    path.write_text("[" * 100_000)
    with pytest.raises(UsageError, match="no JSON"):
        load(path)
