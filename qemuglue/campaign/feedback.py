"""Coverage feedback: what a program reached in QEMU, as libFuzzer counters.

Python's own branches say how the model was walked, not which of QEMU's regions, pieces and
refusals were seen. Each such fact (a hashable tuple of the lock step) is hashed onto one of a
fixed number of counters that libFuzzer minds like branches.

The three names used of Atheris are private ones, kept behind this module and tested. Measured
on 3.0.0: counters are reserved before ``Fuzz``; ``_trace_branch`` is another function after it,
so it is looked up at each call; the last counter reserved never counts, so there is a spare one.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Set
from types import ModuleType
from typing import TypeVar

#: What steers: accesses and refusals of the transcript with the trace events of the devices; the
#: transcript alone; neither (Python's branches still do).
FEEDBACKS = ("all", "transcript", "none")
DEFAULT_FEEDBACK = "all"

#: Facts seen on q35 in an hour are in the thousands; two that share a counter cost little.
COUNTERS = 1 << 15

_Fact = TypeVar("_Fact", bound=Hashable)

#: Cached hashes; beyond this the facts are garbage and the cache starts anew.
MAX_CACHED = 1 << 18


def shape_id(feature: object) -> int:
    """A 32-bit number for a fact, the same in every process (``hash`` of a text is not)."""
    return zlib.crc32(repr(feature).encode("utf-8", "backslashreplace"))


def regions_of(feature: object) -> Iterable[str]:
    """Names of the device regions whose pieces a fact tells of; none for facts of other forms."""
    if isinstance(feature, tuple) and len(feature) == 4 and isinstance(feature[2], tuple):
        for piece in feature[2]:
            if isinstance(piece, tuple) and piece and isinstance(piece[0], str):
                yield piece[0]


class Feedback:
    """Make it before ``atheris.Fuzz``; without Atheris it does nothing."""

    def __init__(self, counters: int = COUNTERS) -> None:
        self._atheris = _atheris()
        self._ids: list[int] = []
        self._known: dict[object, int] = {}
        if self._atheris is not None:
            reserved = [self._atheris._reserve_counter() for _ in range(counters + 1)]
            self._ids = reserved[:-1]

    def feed(self, features: Collection[object]) -> None:
        """Count each fact once for the input that is being run."""
        if self._atheris is None or not self._ids:
            return
        known, ids = self._known, self._ids
        if len(known) > MAX_CACHED:
            known.clear()
        trace = self._atheris._trace_branch
        for feature in features:
            counter = known.get(feature)
            if counter is None:
                counter = known[feature] = ids[shape_id(feature) % len(ids)]
            trace(counter)


#: One in so many programs that reached something new is run twice. Noise belongs to its source
#: (an event, a register), so a sample finds it, and executions are what a campaign is short of.
SAMPLE = 16
#: A source is judged after so many facts that a second run could have shown again.
TRIALS = 6
#: It is noise when fewer than this share of them were there again.
STABLE = 0.5


class Stability:
    """Which sources of facts are the programs' own doing, and which come and go by themselves.

    libFuzzer keeps an input for what it reached; kept for a timer's or a thread's doing, it is
    noise to breed from. So now and then a program is run twice, and an event or a register whose
    facts do not come again is not counted any more. A fact that needs a state which the first run
    used up does not come again either: hence a share, not a single failure.
    """

    def __init__(self) -> None:
        self._tried: set[Hashable] = set()
        self._new = 0
        self._again: Counter[Hashable] = Counter()
        self._gone: Counter[Hashable] = Counter()
        #: Sources whose facts do not count.
        self.noise: set[tuple[object, ...]] = set()
        self.reruns = 0

    def wants(self, facts: Set[Hashable]) -> bool:
        """Whether to run the program once more: one in :data:`SAMPLE` of those that reached
        something new."""
        fresh = facts - self._tried
        if not fresh:
            return False
        if len(self._tried) > MAX_CACHED:
            self._tried.clear()
        self._tried |= fresh
        self._new += 1
        return self._new % SAMPLE == 0

    def compare(self, first: Set[Hashable], second: Set[Hashable]) -> None:
        """Learn from two runs of one program."""
        self.reruns += 1
        for fact in first:
            source = source_of(fact)
            if source is None:
                continue
            (self._again if fact in second else self._gone)[source] += 1
            again, gone = self._again[source], self._gone[source]
            if again + gone >= TRIALS:
                if again < STABLE * (again + gone):
                    self.noise.add(source)
                else:
                    self.noise.discard(source)

    def trusted(self, facts: Set[_Fact]) -> set[_Fact]:
        """The facts whose source is not noise."""
        if not self.noise:
            return set(facts)
        return {fact for fact in facts if source_of(fact) not in self.noise}


def source_of(fact: object) -> tuple[object, ...] | None:
    """Where a fact of ``reach`` comes from: a trace event by name, a register that was read.
    None for what only the program decides: writes, refusals, the lock step's shapes."""
    if not isinstance(fact, tuple) or len(fact) < 2:
        return None
    if fact[0] in ("event", "shape"):
        return "event", str(fact[1]).partition(" ")[0]
    return fact[:3] if fact[0] == "read" else None


def _atheris() -> ModuleType | None:
    """Atheris with its private names, or None."""
    try:
        import atheris
    except ImportError:
        return None
    return atheris if hasattr(atheris, "_reserve_counter") else None


def has_atheris() -> bool:
    """Whether the Atheris engine can be used here."""
    return _atheris() is not None
