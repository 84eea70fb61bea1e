"""Linear lookup: one span after the other, as the first model did."""

from __future__ import annotations

from collections.abc import Sequence

from qemuglue.memory.memory_map.lookup import Span


class LinearLookup:
    """The simplest; also with one region no quicker than ``BisectLookup`` in Python."""

    __slots__ = ("_bounds",)

    def __init__(self, spans: Sequence[Span]) -> None:
        self._bounds = [(span.start, span.last) for span in spans]

    def find(self, addr: int) -> int | None:
        for index, (start, last) in enumerate(self._bounds):
            if start <= addr <= last:
                return index
        return None
