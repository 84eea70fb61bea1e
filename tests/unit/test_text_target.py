"""The fuzz target `text` as a whole: planted faults are found, recorded and seen again."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from qemuglue.campaign.corpus import Corpus
from qemuglue.campaign.inputs import subject
from qemuglue.campaign.inputs.engine import Work, explore
from qemuglue.campaign.inputs.faults import InputFault, is_input_finding, read_finding
from qemuglue.campaign.text.target import SEEDS, SUBJECT
from qemuglue.cli.main import main
from qemuglue.errors import FindingError
from qemuglue.qemu import events, mtree, qtest

ROOT = Path(__file__).parent.parent.parent


def test_every_seed_is_parsed_by_its_own_parser() -> None:
    reached = [SUBJECT.run(seed) for seed in SEEDS]
    names = {name for name, _, _ in reached}
    assert names == {name for name, _ in text_target_parsers().values()}
    refused = {name for name, what, _ in reached if what == "refused"}
    assert refused == {"dump"}  # a whole one is longer than a line


def text_target_parsers() -> dict[str, tuple[str, Callable[[bytes], str]]]:
    from qemuglue.campaign.text.parsers import PARSERS
    return PARSERS


def test_any_first_byte_means_a_parser() -> None:
    assert {SUBJECT.run(bytes([byte]))[0] for byte in range(256)} == {
        name for name, _ in text_target_parsers().values()}
    SUBJECT.run(b"")


# --- planted faults -----------------------------------------------------------------------


def _sizes(patch: pytest.MonkeyPatch) -> None:
    """What the transcript's reader really did: any number of digits as a size."""
    patch.setattr(events, "_TAIL",
                  re.compile(rb"size ([0-9]+)(?: name '(.*)')?\r?", re.DOTALL))
    events._tail.cache_clear()


def _truncation(patch: pytest.MonkeyPatch) -> None:
    blocks = mtree._blocks
    patch.setattr(mtree, "_blocks",
                  lambda text, channel: blocks(text.rstrip("\r\n") + "\n\n", channel))


def _controls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mtree, "_CONTROL", re.compile("\x00"))


def _order(patch: pytest.MonkeyPatch) -> None:
    ranged = mtree._range
    patch.setattr(mtree, "_range", lambda line, number, before: ranged(line, number, -1))


def _size(patch: pytest.MonkeyPatch) -> None:
    """One byte less where a region ends with its container."""
    node = mtree._node

    def worse(*words: Any) -> Any:
        made = node(*words)
        return replace(made, size=made.size - 1) if made.target and made.size == 0x80 else made

    patch.setattr(mtree, "_node", worse)


def _surplus(patch: pytest.MonkeyPatch) -> None:
    """Replies are taken whatever they say."""
    patch.setattr(qtest, "_all_ok", lambda reply, replies: True)


def _line_numbers(patch: pytest.MonkeyPatch) -> None:
    bad = mtree._bad
    patch.setattr(mtree, "_bad", lambda channel, line, message, text:
                  bad(channel, line + 1000, message, text))


PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, str]] = {
    "sizes": (_sizes, "e", "text:events:"),
    "truncation": (_truncation, "tf", "text:(tree|flat):cut"),
    "controls": (_controls, "tf", "text:(tree|flat):(terminal|sentence)"),
    "order": (_order, "f", "text:flat:order"),
    "sizes of aliases": (_size, "t", "text:tree:round-trip"),
    "refusals": (_surplus, "x", "text:exchange:accepted"),
    "line numbers": (_line_numbers, "t", "text:tree:line"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant, letters, signature = PLANTED[name]
    seeds = [seed for seed in SEEDS if chr(seed[0]) in letters]
    mtree._listing.clear()
    mtree._view_at.clear()
    with monkeypatch.context() as patch:
        plant(patch)
        work = Work(replace(SUBJECT, seeds=tuple(seeds)), tmp_path)
        explore(work, Corpus(tmp_path / "corpus"), Random(1),
                lambda: bool(work.signatures) or work.inputs >= 20_000)
        assert len(work.signatures) == 1, work.inputs
        [found] = work.signatures
        assert re.match(signature, found)
        [folder] = (tmp_path / "findings").iterdir()
        finding = read_finding(folder)
        assert finding.signature == found
        again = SUBJECT.replay(finding.data)
        assert again is not None and again.signature == found
    events._tail.cache_clear()
    mtree._listing.clear()
    mtree._view_at.clear()
    assert SUBJECT.replay(finding.data) is None


def test_too_slow_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from qemuglue.campaign.text import parsers as text_parsers

    def endless(text: str) -> object:
        while True:
            try:
                sum(range(1000))
            except Exception:  # a parser that swallows errors
                continue

    monkeypatch.setattr(subject, "SLOW_S", 0.05)
    monkeypatch.setattr(text_parsers, "parse_tree", endless)
    with pytest.raises(InputFault, match=r"^text:tree:slow: more than 0\.05 s of CPU time$"):
        SUBJECT.run(b"tx")


# --- as a user has it ---------------------------------------------------------------------


def test_a_campaign_of_the_plain_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fuzz", "text", "--engine", "random", "--programs", "300", "--seed", "5", "--jobs",
             "2", "--out", str(tmp_path), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["inputs"] == 300 and told["findings"] == [] and told["seed"] == 5
    assert len(told["answers"]) > 20
    assert Corpus(tmp_path / "corpus").size() > 5
    assert main([*words[:-1], "--corpus", str(ROOT / "corpora" / "access")]) == 0
    assert "Nothing found: every text gave a value or one sentence." in capsys.readouterr().out


@pytest.mark.parametrize("words", [
    ["--machine", "x86_64/q35"], ["--build", "sid"], ["--defect", "x"], ["--jobs", "0"],
    ["--seconds", "nan"], ["--corpus", "nowhere"], ["--out", "/dev/null"],
])
def test_wrong_usage(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fuzz", "text", "--engine", "random", *words]) == 2
    assert "internal error" not in capsys.readouterr().err


def test_a_finding_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = SEEDS[3].replace(b"size 1", b"size 99999999999")
    with monkeypatch.context() as patch:
        _sizes(patch)
        work = Work(SUBJECT, tmp_path)
        for _ in range(3):
            _, fault = work.run(data)
        assert fault is not None
        [folder] = (tmp_path / "findings").iterdir()
        assert main(["replay", str(folder)]) == 1
        assert "(the same as recorded)" in capsys.readouterr().out
    events._tail.cache_clear()
    assert main(["replay", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "none" and told["recorded"] == fault.signature
    (folder / "finding.json").write_text("[" * 100_000)
    with pytest.raises(FindingError, match="not that of a text"):
        read_finding(folder)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="Atheris is not here")
def test_as_a_libfuzzer_executable(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    for seed in SEEDS:
        Corpus(corpus).add(seed)
    fuzzer = ROOT / "fuzz" / "text_fuzzer.py"
    done = subprocess.run(
        [sys.executable, str(fuzzer), f"--out={tmp_path}", "-runs=60", "-seed=1", str(corpus)],
        capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"Done \d+ runs", done.stderr)
    refused = subprocess.run(
        [sys.executable, str(fuzzer), "--machine=x86_64/q35"], capture_output=True, text=True,
        timeout=120, cwd=tmp_path)
    assert refused.returncode == 2 and "needs no QEMU" in refused.stderr


def test_the_example_of_the_page_is_a_finding(tmp_path: Path) -> None:
    page = (Path(subject.__file__).parents[1] / "FINDING.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    folder = tmp_path / "text-0"
    folder.mkdir()
    (folder / "finding.json").write_text(example, encoding="utf-8")
    (folder / "input.bin").write_bytes(SEEDS[0])
    assert is_input_finding(folder)
    assert read_finding(folder).signature == "text:events:OverflowError"
