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
from collections.abc import Collection, Iterable
from types import ModuleType

#: Facts seen on q35 in an hour are in the thousands; two that share a counter cost little.
COUNTERS = 8192

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
