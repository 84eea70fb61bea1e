"""The verbs fuzz, targets and corpus as far as they need no QEMU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from qemuglue.campaign.libfuzzer import _command_line, parser, settings_of, starts_others
from qemuglue.campaign.planted import PLANTED
from qemuglue.campaign.settings import Settings
from qemuglue.cli import fuzz
from qemuglue.cli.main import main
from qemuglue.errors import UsageError


def settings(*words: str) -> Settings:
    made = argparse.ArgumentParser()
    fuzz.add_arguments(made)
    return fuzz.settings_of(made.parse_args([*words, "--engine", "random"]))


def test_a_target_brings_its_defaults_and_every_one_can_be_replaced() -> None:
    assert settings().machine == "x86_64/q35"
    assert settings().devices == ("edu", "pci-testdev")
    assert settings().seconds == fuzz.DEFAULT_SECONDS
    assert settings("--device", "edu").devices == ("edu",)
    assert settings("--machine", "aarch64/virt").devices == ()
    assert settings("--programs", "5").seconds == 0
    assert settings("canary").defect and not settings("access").defect
    assert settings("canary", "--defect", "no-clamp").defect == "no-clamp"
    assert settings("--qemu-args=-cpu max").qemu_args == ("-cpu", "max")


def test_a_seed_is_drawn_or_kept_and_each_run_has_a_folder() -> None:
    assert settings("--seed", "0x10").seed == 16
    assert settings().seed != settings().seed
    assert settings("--machine", "arm/virt").out.startswith("findings/access-arm-virt-2")


@pytest.mark.parametrize("words", [
    ["fuzz", "nosuch"], ["fuzz", "--machine", "q35"], ["fuzz", "--engine", "afl"],
    ["fuzz", "--defect", "nosuch"], ["fuzz", "--seconds", "-1"], ["fuzz", "--jobs", "0"],
    ["fuzz", "--seed", "-5"], ["fuzz", "--build", "/no/such/qemu"], ["fuzz", "--seconds", "nan"],
    ["corpus", "stats", "/no/such/folder"], ["corpus", "merge", "/tmp", "/no/such/folder"],
    ["corpus"], ["fuzz", "--out", "/proc/none"],
])
def test_wrong_usage_is_one_sentence_and_exit_2(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1, said.err
    assert "internal error" not in said.err


def test_targets_and_defects_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "--defects"]) == 0
    text = capsys.readouterr().out
    assert "access" in text and "canary" in text
    assert all(name in text for name in PLANTED)
    assert main(["targets", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in known["targets"]] == [
        "access", "topology", "dma", "device", "model", "text", "canary"]
    assert {each["name"] for each in known["defects"]} == set(PLANTED)


def test_corpus_stats(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(49))
    assert main(["corpus", "stats", str(tmp_path), "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert (known["inputs"], known["operations"]) == (1, 2)


# -- qemuglue-fuzz ---------------------------------------------------------------------------------


def fuzz_settings(*words: str) -> Settings:
    return settings_of(parser().parse_args(words))


def test_the_executable_takes_the_same_settings(tmp_path: Path) -> None:
    assert fuzz_settings().devices == ("edu", "pci-testdev")
    assert fuzz_settings("--target=canary").defect
    assert fuzz_settings("--machine=arm/virt", "--device=a", "--device=b").devices == ("a", "b")
    assert fuzz_settings("--qemu-args=-name 'a b'").qemu_args == ("-name", "a b")
    settings("--seed", "9", "--machine", "arm/virt").save(tmp_path / "s.json")
    loaded = fuzz_settings(f"--settings={tmp_path / 's.json'}", "--out=/x")
    assert (loaded.seed, loaded.machine, loaded.out) == (9, "arm/virt", "/x")
    with pytest.raises(UsageError):
        fuzz_settings("--target=nosuch")


@pytest.mark.parametrize(("words", "expected"), [
    (["-runs=5", "corpus"], False), (["-merge=1", "a", "b"], True), (["-fork=2"], True),
    (["-jobs=2", "-workers=1"], True), (["-minimize_crash=1", "c"], True), (["-merge=0"], False),
    (["-merge=1", "-merge_inner=1"], False), (["-merge_control_file=x", "-merge=1"], False),
    (["-minimize_crash=1", "-minimize_crash_internal_step=1", "c"], False),
    (["--jobs=2"], False),
])
def test_a_process_that_only_starts_others_is_known(words: list[str], expected: bool) -> None:
    assert starts_others(["qemuglue-fuzz", *words]) is expected


def test_the_command_line_can_be_executed_again(tmp_path: Path) -> None:
    program = tmp_path / "my fuzz"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    first, *rest = _command_line([str(program), "--qemu-args=-name 'a b'", "-runs=1", "c"])
    assert first == f"'{program}'"
    assert rest[1:] == ["-runs=1", "c"]
    assert rest[0].startswith("--qemu-args='")
    script, *_ = _command_line(["no/such/thing.py"])
    assert script.endswith(" -m qemuglue.campaign.libfuzzer")
