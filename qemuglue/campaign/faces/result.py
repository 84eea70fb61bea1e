"""What ``check --face`` came to on one machine, as values that reports are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qemuglue.campaign.check_result import CheckResult, Divergence, Known
from qemuglue.campaign.faces.run import BY_DESIGN, DIVERGED, LEARNT, MATCH, UNJUDGED, Judged

#: In the order of reports.
VERDICTS = (MATCH, BY_DESIGN, LEARNT, UNJUDGED, DIVERGED)

#: Of these nothing sound was said; together they must stay small.
SOFT = (LEARNT, UNJUDGED)


@dataclass(slots=True)
class FaceTally:
    """Counts of verdicts by face, method and kind of memory; of designs, and of reasons for not
    judging."""

    #: (face, method, kind of memory, verdict) -> operations
    cells: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    designs: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, judged: Judged) -> None:
        op = judged.op
        self.cells[op.face, op.method, judged.kind.value, judged.verdict] += 1
        if judged.verdict == BY_DESIGN:
            self.designs.update(judged.why)
        elif judged.verdict == UNJUDGED:
            self.reasons.update(judged.why)

    def add(self, other: FaceTally) -> None:
        self.cells.update(other.cells)
        self.designs.update(other.designs)
        self.reasons.update(other.reasons)

    @property
    def total(self) -> int:
        return sum(self.cells.values())

    def of(self, *, face: str = "", method: str = "", kind: str = "", verdict: str = "") -> int:
        """How many have all that is given."""
        wanted = (face, method, kind, verdict)
        return sum(
            n for key, n in self.cells.items()
            if all(want in ("", have) for want, have in zip(wanted, key, strict=True))
        )

    @property
    def soft_share(self) -> float:
        """Share of operations that were not judged, 0 to 1."""
        soft = sum(self.of(verdict=verdict) for verdict in SOFT)
        return soft / self.total if self.total else 0.0

    def kinds(self) -> list[str]:
        """The kinds of memory met, by name."""
        return sorted({kind for _, _, kind, _ in self.cells})

    def rows(self) -> Iterator[tuple[str, str]]:
        """(face, method) of every operation, faces in the order they are listed."""
        yield from dict.fromkeys(sorted((face, method) for face, method, _, _ in self.cells))

    def to_json(self) -> dict[str, Any]:
        faces: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
        for (face, method, kind, verdict), n in sorted(self.cells.items()):
            row = faces.setdefault(face, {}).setdefault(method, {}).setdefault(kind, {})
            row[verdict] = n
        return {
            "operations": self.total,
            "verdicts": {verdict: self.of(verdict=verdict) for verdict in VERDICTS},
            "faces": faces,
            "by_design": dict(sorted(self.designs.items())),
            "unjudged_reasons": dict(sorted(self.reasons.items())),
            "not_judged": round(self.soft_share, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FaceResult:
    """One machine on one build. ``status`` is one of ``check_result.Status``."""

    build: str
    version: str
    machine: str
    status: str
    faces: tuple[str, ...]
    seed: int
    ops: int
    seconds: float
    reason: str = ""
    tally: FaceTally = field(default_factory=FaceTally)
    divergences: tuple[Divergence, ...] = ()
    #: Divergences beyond those listed, by signature.
    further: tuple[tuple[str, int], ...] = ()
    known: tuple[Known, ...] = ()
    notes: tuple[str, ...] = ()
    #: (region, "read" or "write", why): accesses that are not made.
    left: tuple[tuple[str, str, str], ...] = ()
    restarts: int = 0
    deaths: int = 0
    flaky: int = 0
    defect: str = ""

    def check_result(self) -> CheckResult:
        """The same as a plain check's, for reports that are made of those."""
        told = tuple(
            f"{face} {method}: " + ", ".join(
                f"{verdict} {n}" for verdict in VERDICTS
                if (n := self.tally.of(face=face, method=method, verdict=verdict)))
            for face, method in self.tally.rows()
        )
        return CheckResult(
            build=self.build, version=self.version,
            machine=f"{self.machine} (faces {', '.join(self.faces)})", status=self.status,
            seed=self.seed, ops=self.ops, seconds=self.seconds, reason=self.reason,
            divergences=self.divergences, known=self.known, notes=(*self.notes, *told),
            restarts=self.restarts, deaths=self.deaths, flaky=self.flaky, defect=self.defect,
        )
