"""The corpus folder, and choosing what stays in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qemuglue.campaign import corpus as module
from qemuglue.campaign.corpus import Corpus, merge, prune, select, stats
from qemuglue.errors import UsageError
from qemuglue.program.codec import RECORD_SIZE

SEEDS = Path(__file__).parents[2] / "corpora" / "access"


def letters(data: bytes) -> set[object]:
    return set(data)


def made(folder: Path, *inputs: bytes) -> Corpus:
    corpus = Corpus(folder)
    for data in inputs:
        assert corpus.add(data)
    return corpus


def test_inputs_are_named_by_their_sha1_and_kept_once(tmp_path: Path) -> None:
    corpus = made(tmp_path / "c", b"one")
    assert not corpus.add(b"one")
    assert [path.name for path in corpus.files()] == [hashlib.sha1(b"one").hexdigest()]
    assert corpus.size() == 1


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "none")
    assert (corpus.files(), corpus.size(), corpus.check()) == ([], 0, 0)


def test_what_cannot_be_a_corpus_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "nested" / "folder").mkdir(parents=True)
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "x").symlink_to(tmp_path / "gone")
    for name in ("file", "link", "nested", "dangling"):
        with pytest.raises(UsageError, match="corpus"):
            Corpus(tmp_path / name).check()
    monkeypatch.setattr(module, "MAX_INPUT", 3)
    with pytest.raises(UsageError, match="4 bytes"):
        made(tmp_path / "long", b"four").check()


def test_selection_keeps_the_first_of_equals() -> None:
    assert select([b"a", b"ab", b"ba", b"c"], letters) == [b"a", b"ab", b"c"]


def test_merge_adds_only_what_is_new_smallest_first(tmp_path: Path) -> None:
    into = made(tmp_path / "into", b"a")
    sources = [made(tmp_path / "1", b"abc", b"b"), made(tmp_path / "2", b"ac")]
    assert merge(into, sources, letters) == 2
    assert {data for _, data in into.inputs()} == {b"a", b"b", b"ac"}


def test_prune_keeps_all_that_was_reached(tmp_path: Path) -> None:
    corpus = made(tmp_path / "c", b"a", b"ab", b"ba", b"aab", b"abc")
    assert prune(corpus, letters) == (3, 2)
    assert [bytes(sorted(data)) for _, data in corpus.inputs()] == [b"a", b"ab", b"abc"]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_prune_that_fails_loses_nothing(tmp_path: Path) -> None:
    corpus = made(tmp_path / "c", b"a", b"b")

    def reach(data: bytes) -> set[object]:
        raise OSError("QEMU is gone")

    with pytest.raises(OSError, match="gone"):
        prune(corpus, reach)
    assert corpus.size() == 2


def test_stats_count_records(tmp_path: Path) -> None:
    found = stats(made(tmp_path / "c", b"", bytes(1 + RECORD_SIZE), bytes(2 + RECORD_SIZE)))
    assert (found.inputs, found.operations, found.shortest, found.longest) == (3, 3, 0, 2)


def test_the_seeds_are_whole_inputs() -> None:
    corpus = Corpus(SEEDS)
    assert corpus.check() >= 6
    for path, data in corpus.inputs():
        assert data[0] == 1 and len(data) % RECORD_SIZE == 1, path.name
