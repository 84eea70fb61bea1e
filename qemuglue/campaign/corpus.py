"""A corpus: a folder of inputs, bytes only, each named by its SHA-1 as libFuzzer does.

Engine-independent: a corpus made by Atheris is read by the plain generator and the other way
round. Any bytes mean something on every machine (``program.codec``).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qemuglue.errors import UsageError
from qemuglue.program.codec import RECORD_SIZE
from qemuglue.program.verbs import MAX_OPERATIONS

#: The longest input any program needs; a longer file is none.
MAX_INPUT = 1 + RECORD_SIZE * MAX_OPERATIONS

#: What the plain generator keeps at most: it does not breed from the corpus, it only hands on.
MAX_KEPT = 10_000


class Corpus:
    """One folder, made when something is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[Path]:
        """The inputs in a fixed order, smallest first.

        :raise UsageError: the folder or something in it cannot be read.
        """
        if not self.folder.exists() and not self.folder.is_symlink():
            return []
        try:
            found = [(path.stat().st_size, path) for path in self.folder.iterdir()
                     if not path.name.startswith(".")]
            for size, path in found:
                if not path.is_file():
                    raise UsageError(f"corpus {self.folder}: {path.name} is no file; a corpus "
                                     "holds inputs and nothing else")
                if size > MAX_INPUT:
                    raise UsageError(f"corpus {self.folder}: {path.name} has {size} bytes; no "
                                     "input is that long, move it away")
        except OSError as error:
            raise UsageError(f"corpus {error.filename or self.folder} cannot be read: "
                             f"{error.strerror}") from None
        return [path for _, path in sorted(found)]

    def check(self) -> int:
        """How many inputs there are, having opened each.

        :raise UsageError: one cannot be read.
        """
        return sum(1 for _ in self.inputs())

    def inputs(self) -> Iterator[tuple[Path, bytes]]:
        """The inputs, smallest first; one that vanished meanwhile is left out."""
        for path in self.files():
            try:
                yield path, path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UsageError(f"corpus {path} cannot be read: {error.strerror}") from None

    def size(self) -> int:
        """How many inputs there are, as far as can be told; for progress."""
        try:
            return sum(not entry.name.startswith(".") for entry in os.scandir(self.folder))
        except OSError:
            return 0

    def add(self, data: bytes) -> bool:
        """Keep an input; False if it is there already."""
        path = self.folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()
        if path.exists():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        # Complete beside its place, then renamed: a reader never sees half an input.
        handle, name = tempfile.mkstemp(prefix=".adding-", dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(path)
        return True


@dataclass(slots=True)
class Stats:
    """What is in a corpus. ``shortest`` and ``longest`` count operations."""

    inputs: int = 0
    size_bytes: int = 0
    operations: int = 0
    shortest: int = 0
    longest: int = 0
    verbs: Counter[str] = field(default_factory=Counter)


def stats(corpus: Corpus, verbs_of: Callable[[bytes], Iterable[str]] | None = None) -> Stats:
    """Measure a corpus; raises UsageError where it cannot be read."""
    found = Stats()
    for _, data in corpus.inputs():
        count = -(-max(0, len(data) - 1) // RECORD_SIZE)
        found.shortest = min(found.shortest, count) if found.inputs else count
        found.longest = max(found.longest, count)
        found.inputs += 1
        found.size_bytes += len(data)
        found.operations += count
        if verbs_of is not None:
            found.verbs.update(verbs_of(data))
    return found


#: Runs one input and says what it reached.
Reach = Callable[[bytes], set[object]]


def select(
    inputs: Iterable[bytes], reach: Reach, covered: set[object] | None = None
) -> list[bytes]:
    """The inputs that reach something no earlier one did, in the order given (give the smallest
    first). ``covered`` is what need not be reached again; it grows."""
    seen = covered if covered is not None else set()
    kept: list[bytes] = []
    for data in inputs:
        found = reach(data)
        if not found <= seen:
            seen |= found
            kept.append(data)
    return kept


def merge(into: Corpus, sources: Iterable[Corpus], reach: Reach) -> int:
    """Add to ``into`` what reaches something it does not; how many were added."""
    covered: set[object] = set()
    for _, data in into.inputs():
        covered |= reach(data)
    pool = sorted(
        {data for source in sources for _, data in source.inputs()},
        key=lambda data: (len(data), data),
    )
    return sum(into.add(data) for data in select(pool, reach, covered))


def prune(corpus: Corpus, reach: Reach) -> tuple[int, int]:
    """Keep only what adds something, smallest first: (kept, removed). The new folder takes the
    old one's place at once, so that a prune that is interrupted loses nothing."""
    before = [data for _, data in corpus.inputs()]
    kept = select(before, reach)
    folder = corpus.folder.resolve()
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = work / "old"
    try:
        fresh = Corpus(work / "new")
        fresh.folder.mkdir()
        for data in kept:
            fresh.add(data)
        folder.rename(old)
        try:
            fresh.folder.rename(folder)
        except OSError:
            with contextlib.suppress(OSError):
                old.rename(folder)
            raise
    finally:
        if folder.exists():
            shutil.rmtree(work, ignore_errors=True)
    return len(kept), len(before) - len(kept)
