"""``check --contracts FILE``: devices held to what was saved, of the same build and of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import INSTALLED

from qemuglue.cli.main import main

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        not {"bookworm", "bookworm-backports"} <= INSTALLED.keys(),
        reason="compares QEMU 7.2 with 10.0: `qemuglue builds install bookworm bookworm-backports`",
    ),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("contracts") / "pc.json"
    assert main(["contracts", "x86_64/pc", "--build", "bookworm", "--reads-only",
                 "--save", str(path)]) == 0
    return path


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:  # type: ignore[type-arg]
    capsys.readouterr()
    code = main(["check", "x86_64/pc", "--seed", "2", "--json", *words])
    [result] = json.loads(capsys.readouterr().out)["results"]
    return code, result


def test_a_build_is_held_to_its_own_contracts(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = checked(
        capsys, "--build", "bookworm", "--ops", "200", "--contracts", str(saved))
    assert code == 0 and result["status"] == "match"
    [note] = [note for note in result["notes"] if "contracts" in note]
    assert "saved of bookworm" in note and not note.startswith("0 of")


def test_another_build_diverges_where_a_contract_changed(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """hpet takes 8 bytes whole from 10.0 on; its owner has another number there."""
    code, result = checked(
        capsys, "--build", "bookworm-backports", "--ops", "200", "--contracts", str(saved))
    assert code == 1 and result["status"] == "diverged"
    for each in result["divergences"]:  # xp names the place that its read begins at
        assert "hpet" in str([each["place"], *each["model_says"], *each["qemu_says"]]), each


@pytest.mark.parametrize(("text", "said"), [
    (None, "which is not checked here"), ("{", "no JSON"), ("[1]", "contract"),
])
def test_a_file_that_is_no_use_is_told(
    saved: Path, tmp_path: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str],
) -> None:
    path, machine = saved, "x86_64/q35"
    if text is not None:
        path, machine = tmp_path / "x.json", "x86_64/pc"
        path.write_text(text)
    assert main(["check", machine, "--build", "bookworm", "--contracts", str(path)]) == 2
    told = capsys.readouterr().err
    assert said in told and str(path) in told and len(told.splitlines()) == 1


def test_the_object_model_is_asked_where_no_access_is_made(
    capsys: pytest.CaptureFixture[str]
) -> None:
    for words, asked in ((["--qom"], True), ([], False)):
        code, result = checked(capsys, "--build", "bookworm", "--ops", "0", *words)
        assert code == 0
        assert any(each["witness"] == "qom" for each in result["witnesses"]) == asked
