"""Programs that were accused wrongly once; each file's comment says of what.

Every one is judged on every build, in both ways, and must come to nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from qemuglue.campaign.loading import load
from qemuglue.campaign.settings import Settings, scene
from qemuglue.program.operation import Program
from qemuglue.qemu.builds import Build
from qemuglue.witness.judge import Kind, Scene, prepare, replay
from qemuglue.witness.verdict import Tally, Verdict

CORPUS = Path(__file__).parents[2] / "corpora" / "regressions"
FILES = sorted(CORPUS.glob("*.qg"))

#: Scenes whose contracts are known, by what decides them.
_STAGES: dict[tuple[str, str, tuple[str, ...], str], Scene] = {}


def stage_of(build: Build, program: Program) -> Scene:
    key = build.name, program.machine, program.args, program.setup
    if key not in _STAGES:
        made = scene(Settings(machine=program.machine, qemu_args=program.args,
                              setup=program.setup, mode=program.mode, build=build.name))
        prepare(made)
        _STAGES[key] = made
    return _STAGES[key]


def test_there_are_some() -> None:
    assert len(FILES) >= 9


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_is_readable_and_says_what_it_is_about(path: Path) -> None:
    program = load(path).program
    assert program.operations
    lines = path.read_text().splitlines()
    assert lines[1].startswith("# "), "a comment under the header says what once went wrong"
    assert {each.name for each in CORPUS.iterdir()} == {each.name for each in FILES}


@pytest.mark.qemu
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_comes_to_nothing(build: Build, path: Path) -> None:
    program = load(path).program
    stage = stage_of(build, program)
    for slow in (True, False):
        tally = Tally()
        found = replay(stage, program, slow=slow, tally=tally)
        assert found.kind is Kind.NONE, (slow, found.signature, found.index, found.suspicion)
        assert sum(tally.verbs.values()) == len(program.operations)
        assert tally.of(Verdict.DIVERGED) == 0
        assert tally.of(Verdict.MATCH) > 0, tally.to_json()
