"""Verdicts, and the table every campaign and check prints."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from qemuglue.memory.attrs import MemTxResult


class Verdict(enum.Enum):
    """What the comparison says of one operation; the values are the words in reports."""

    MATCH = "match"
    DIVERGED = "diverged"
    UNJUDGED = "unjudged"  #: no sound judgement possible; a reason is always given
    ADOPTED = "adopted"  #: RAM that a device wrote where the program told it to
    LEARNT = "learnt"  #: first evidence of a contract; binding from then on
    RESET = "reset"
    SHUTDOWN = "shutdown"


class Kind(enum.Enum):
    """What an operation touched; the rows of the verdict table."""

    RAM = "ram"
    ROM = "rom"
    ROMD = "rom device"
    RO_ALIAS = "read-only alias"
    DEVICE = "device"
    PORT = "port device"
    IO_ROOT = "port root"
    UNASSIGNED = "unassigned"
    CROSSING = "crossing"
    DMA = "dma"
    EVENT = "event"


#: Verdicts that are not a judgement: together they must stay small.
SOFT = (Verdict.UNJUDGED, Verdict.ADOPTED, Verdict.LEARNT)


#: What is counted of the memory map: ``changed`` maps, how many of them the mirror had
#: ``predicted`` before it saw QEMU's own views, facts ``learnt`` from those for the others, and
#: how often all views were ``compared`` once more; ``inexact`` are those that no fact explains.
MAPS = ("changed", "predicted", "learnt", "compared", "inexact")


@dataclass(slots=True)
class Tally:
    """Counts of verdicts by kind, of verbs, and of reasons for not judging."""

    cells: Counter[tuple[Kind, Verdict]] = field(default_factory=Counter)
    verbs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    side_accesses: Counter[str] = field(default_factory=Counter)
    #: MemTxResult (its bits) other than OK -> operations that matched and had it.
    results: Counter[int] = field(default_factory=Counter)
    #: The memory map: ``MAPS`` says what is counted.
    maps: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.cells.update(other.cells)
        self.verbs.update(other.verbs)
        self.reasons.update(other.reasons)
        self.side_accesses.update(other.side_accesses)
        self.results.update(other.results)
        self.maps.update(other.maps)

    @property
    def total(self) -> int:
        return sum(self.cells.values())

    def of(self, verdict: Verdict) -> int:
        return sum(n for (_, seen), n in self.cells.items() if seen is verdict)

    def kind(self, kind: Kind) -> int:
        return sum(n for (seen, _), n in self.cells.items() if seen is kind)

    @property
    def soft_share(self) -> float:
        """Share of operations that were not judged, 0 to 1."""
        return sum(self.of(verdict) for verdict in SOFT) / self.total if self.total else 0.0

    def memtx_results(self) -> dict[str, int]:
        """MemTxResult by QEMU's name without ``MEMTX_`` -> operations that matched with it. qtest
        hides it; every refusal of a piece, which makes it, stood in the transcript."""
        judged = sum(
            n for (kind, verdict), n in self.cells.items()
            if verdict in (Verdict.MATCH, Verdict.LEARNT) and kind not in (Kind.DMA, Kind.EVENT))
        named = {
            "|".join(flag.name or "" for flag in MemTxResult(bits)): n
            for bits, n in sorted(self.results.items()) if n
        }
        return {"OK": judged - sum(named.values()), **named}

    def to_json(self) -> dict[str, Mapping[str, object]]:
        table: dict[str, dict[str, int]] = {}
        for (kind, verdict), n in sorted(
            self.cells.items(), key=lambda item: (item[0][0].value, item[0][1].value)
        ):
            table.setdefault(kind.value, {})[verdict.value] = n
        return {
            "kinds": table,
            "verbs": dict(sorted(self.verbs.items())),
            "unjudged_reasons": dict(sorted(self.reasons.items())),
            "device_initiated": dict(sorted(self.side_accesses.items())),
            "memtx": {str(bits): n for bits, n in sorted(self.results.items())},
            "maps": dict(sorted(self.maps.items())),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Mapping[str, object]]) -> Tally:
        tally = cls()
        for kind, row in data.get("kinds", {}).items():
            assert isinstance(row, dict)
            for verdict, n in row.items():
                tally.cells[Kind(kind), Verdict(verdict)] += int(n)
        for name, counter in (
            ("verbs", tally.verbs), ("unjudged_reasons", tally.reasons),
            ("device_initiated", tally.side_accesses), ("maps", tally.maps),
        ):
            for key, n in data.get(name, {}).items():
                assert isinstance(n, int)
                counter[key] += n
        for bits, n in data.get("memtx", {}).items():
            assert isinstance(n, int)
            tally.results[int(bits)] += n
        return tally
