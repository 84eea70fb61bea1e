"""The fuzz target `model`: its laws hold, planted faults are found, bytes steer it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from qemuglue.campaign.corpus import Corpus
from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.inputs.engine import Work, explore
from qemuglue.campaign.inputs.faults import read_finding
from qemuglue.campaign.inputs.subject import Subject, find_subject
from qemuglue.campaign.model.source import MAX_SIZE, ByteRandom, damaged
from qemuglue.campaign.model.target import LAWS, SEEDS, SUBJECT, subject
from qemuglue.cli.main import main
from qemuglue.errors import UsageError
from qemuglue.memory.flatview import FlatView
from qemuglue.memory.rust_binding import FlatView as RustView
from qemuglue.memory.topology import Topology

ROOT = Path(__file__).parent.parent.parent

#: Defects of rules that a model without re-entrant devices and without ports cannot show.
ELSEWHERE = {"guard-inverted", "ports-read-zero"}


def search(subject: Subject, out: Path, letters: str = "", inputs: int = 4000) -> set[str]:
    """The signatures that the plain engine comes upon with the seeds and their kin."""
    work = Work(subject, out)
    pool = [seed for seed in subject.seeds if not letters or chr(seed[0]) in letters]
    corpus = Corpus(out / "corpus")
    for seed in pool:
        corpus.add(seed)
    explore(work, corpus, Random(1), lambda: bool(work.signatures) or work.inputs >= inputs)
    return set(work.signatures)


def test_the_laws_hold_for_the_seeds() -> None:
    assert {SUBJECT.run(seed)[0] for seed in SEEDS} == {name for name, _ in LAWS.values()}
    assert {SUBJECT.run(bytes([byte]))[0] for byte in range(256)} == {
        name for name, _ in LAWS.values()}
    SUBJECT.run(b"")


def test_the_same_bytes_are_the_same_case() -> None:
    for seed in SEEDS:
        assert SUBJECT.run(seed) == SUBJECT.run(seed)


# --- planted faults -----------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(
    name for name, defect in DEFECTS.items() if defect.rules and name not in ELSEWHERE))
def test_every_wrong_rule_is_found(name: str, tmp_path: Path) -> None:
    found = search(subject(name), tmp_path)
    assert found, DEFECTS[name].summary
    [folder] = (tmp_path / "findings").iterdir()
    finding = read_finding(folder)
    assert finding.defect == name and finding.signature in found
    again = subject(name).replay(finding.data)
    assert again is not None and again.signature == finding.signature
    assert SUBJECT.replay(finding.data) is None, "it is the planted defect that shows"


def _no_reclaim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FlatView, "unref", lambda self, finalizer=False: None)


def _early_reclaim(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FlatView, "ref", lambda self: True)


def _nested(patch: pytest.MonkeyPatch) -> None:
    """An inner transaction's end shows what is not finished."""
    commit = Topology.commit

    def early(self: Topology) -> None:
        commit(self)
        if self.depth:
            depth = self.depth
            while self.depth:
                commit(self)
            for _ in range(depth):
                self.begin()

    patch.setattr(Topology, "commit", early)


def _short(patch: pytest.MonkeyPatch) -> None:
    """The Rust face says it read one byte more."""
    read = RustView.read

    def more(self: RustView, *words: Any) -> int:
        return read(self, *words) + 1

    patch.setattr(RustView, "read", more)


@pytest.mark.parametrize(("plant", "letters"), [
    (_no_reclaim, "gc"), (_early_reclaim, "gc"), (_nested, "c"), (_short, "r"),
])
def test_other_faults_are_found(
    plant: Any, letters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        assert search(SUBJECT, tmp_path, letters)


# --- bytes as a source --------------------------------------------------------------------


def test_bytes_decide_and_zeros_follow() -> None:
    one, other = ByteRandom(b"\x80\x00\x05rest"), ByteRandom(b"\x80\x00\x05rest")
    assert one.random() == 0.5 == other.random()
    assert one.getrandbits(8) == 5
    assert one.randbytes(4)[::-1] == b"rest"
    assert one.random() == 0.0 and one.getrandbits(64) == 0
    assert one.randrange(1000) == 0 and one.choice("ab") == "a"
    assert ByteRandom(b"\xff" * 9).randrange(3) in (0, 1, 2), "it ends"


def test_damage_stays_with_its_law_and_within_the_limit() -> None:
    rng = Random(4)
    data = SEEDS[0]
    for _ in range(300):
        data = damaged(data, rng)
        assert data[:1] == SEEDS[0][:1] and len(data) <= 1 + MAX_SIZE


# --- as a user has it ---------------------------------------------------------------------


def test_a_campaign_and_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["fuzz", "model", "--engine", "random", "--programs", "80", "--seed", "5", "--out",
             str(out), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["target"] == "model" and told["inputs"] == 80 and told["findings"] == []
    into = tmp_path / "into"
    assert main(["corpus", "merge", str(into), str(out / "corpus"), "--target", "model"]) == 0
    assert Corpus(into).size() > 10
    capsys.readouterr()
    assert main(["corpus", "prune", str(into), "--target", "model", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == Corpus(into).size()
    assert main(["corpus", "stats", str(into), "--target", "model"]) == 0
    assert "operations" not in capsys.readouterr().out
    assert main(["corpus", "prune", str(into), "--target", "model", "--build", "sid"]) == 2


def test_a_planted_defect_is_found_told_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fuzz", "model", "--engine", "random", "--seconds", "60", "--seed", "5",
             "--until-found", "--defect", "refused-ones", "--out", str(tmp_path)]
    assert main(words) == 1
    assert "the model that is wrong here" in capsys.readouterr().out
    folder = next((tmp_path / "findings").iterdir())
    assert main(["replay", str(folder)]) == 1
    assert "(the same as recorded)" in capsys.readouterr().out


def test_wrong_usage() -> None:
    with pytest.raises(UsageError, match="there are accepts-rejected"):
        find_subject("model", "nosuch")
    with pytest.raises(UsageError, match="there are"):
        find_subject("model", "fill-short")
    with pytest.raises(UsageError, match="takes no --defect"):
        find_subject("text", "refused-ones")
    with pytest.raises(UsageError, match="none of text, model"):
        find_subject("access")


def test_the_seed_corpus_loads() -> None:
    inputs = [data for _, data in Corpus(ROOT / "corpora" / "model").inputs()]
    assert inputs, "corpora/model"
    assert {SUBJECT.run(data)[0] for data in inputs} == {name for name, _ in LAWS.values()}


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="Atheris is not here")
def test_as_a_libfuzzer_executable(tmp_path: Path) -> None:
    fuzzer = ROOT / "fuzz" / "model_fuzzer.py"
    (tmp_path / "corpus").mkdir()
    for seed in SEEDS:
        Corpus(tmp_path / "corpus").add(seed)
    found = subprocess.run(
        [sys.executable, str(fuzzer), f"--out={tmp_path}", "--defect=refused-ones", "-runs=400",
         "-seed=1", str(tmp_path / "corpus")], capture_output=True, text=True, timeout=120,
        cwd=tmp_path)
    assert found.returncode == 77, found.stderr[-2000:]
