"""What came of a sample: as text for people, and as one JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mutation.explained import Entry
from mutation.listing import Change, Mutant
from mutation.running import Outcome, Verdict


@dataclass(slots=True)
class Result:
    """``explained`` and ``unexplained`` are the survivors; ``contradicted`` are mutants that
    the list calls unnoticeable and a test noticed all the same."""

    seed: int
    listed: int
    sample: list[Mutant]
    changes: dict[Mutant, Change]
    tool: str
    verdicts: list[Verdict] = field(default_factory=list)
    explained: dict[Mutant, Entry] = field(default_factory=dict)
    contradicted: list[Mutant] = field(default_factory=list)
    stale: list[Entry] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def survivors(self) -> list[Mutant]:
        return [each.mutant for each in self.verdicts if each.outcome is Outcome.SURVIVED]

    @property
    def unexplained(self) -> list[Mutant]:
        return [mutant for mutant in self.survivors if mutant not in self.explained]

    @property
    def clean(self) -> bool:
        return not (self.unexplained or self.contradicted or self.stale)


def lines(result: Result) -> Iterator[str]:
    """The report, survivors first, the figures last."""
    for mutant in result.unexplained:
        yield f"\nSURVIVED {mutant}"
        yield result.changes[mutant].diff
    for mutant in result.survivors:
        if mutant in result.explained:
            yield f"\nexplained {mutant}: {result.explained[mutant].reason}"
            yield f"  - {result.changes[mutant].before}"
            yield f"  + {result.changes[mutant].after}"
    for mutant in result.contradicted:
        yield f"\nexplained, and yet noticed: {mutant}; take its entry out of the list"
    for entry in result.stale:
        yield f"\nan entry of the list matches nothing any more: {entry}"
    yield ""
    modules = sorted({mutant.module for mutant in result.sample})
    width = max(16, *map(len, modules), 0)
    yield (f"{'module':{width}} {'mutants':>8} {'killed':>8} {'hung':>6} {'explained':>10} "
           f"{'survived':>9}")
    for module in (*modules, None):
        yield _row(result, module, width)
    stages = Counter(each.stage for each in result.verdicts if each.outcome is not Outcome.SURVIVED)
    noticed = sum(stages.values())
    yield (f"{noticed} of {len(result.verdicts)} noticed "
           f"({_share(noticed, len(result.verdicts))}), "
           f"{_share(noticed, len(result.verdicts) - len(result.explained))} of those not "
           f"explained; {stages[1]} by the tests named for the module, "
           f"{stages[2] + stages[3]} by others; "
           f"{result.seconds:.0f} s; seed {result.seed}")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _row(result: Result, module: str | None, width: int) -> str:
    mine = [each for each in result.verdicts if module in (None, each.mutant.module)]
    count = Counter(each.outcome for each in mine)
    explained = sum(each.mutant in result.explained for each in mine)
    return (f"{module or 'all':{width}} {len(mine):>8} {count[Outcome.KILLED]:>8} "
            f"{count[Outcome.HUNG]:>6} {explained:>10} "
            f"{count[Outcome.SURVIVED] - explained:>9}")


def document(result: Result) -> dict[str, Any]:
    """The JSON form; ``schema`` 1."""
    modules = sorted({mutant.module for mutant in result.sample})
    killed = [each for each in result.verdicts if each.outcome is not Outcome.SURVIVED]
    return {
        "schema": 1, "tool": result.tool, "seed": result.seed, "listed": result.listed,
        "sample": len(result.sample), "killed": len(killed),
        "explained": len(result.explained), "survived": len(result.unexplained),
        "kill_rate": round(len(killed) / max(1, len(result.verdicts)), 4),
        "modules": {
            module: {
                "mutants": sum(each.mutant.module == module for each in result.verdicts),
                "killed": sum(each.mutant.module == module for each in killed),
            } for module in modules
        },
        "mutants": [_one(result, each) for each in result.verdicts],
        "contradicted": [str(mutant) for mutant in result.contradicted],
        "stale": [str(entry) for entry in result.stale],
        "seconds": round(result.seconds, 1),
    }


def _one(result: Result, verdict: Verdict) -> dict[str, Any]:
    mutant = verdict.mutant
    entry = result.explained.get(mutant)
    told = {
        "module": mutant.module, "line": mutant.line, "operator": mutant.operator,
        "occurrence": mutant.occurrence, "outcome": verdict.outcome.value,
        "stage": verdict.stage, "by": verdict.by, "seconds": round(verdict.seconds, 2),
        "before": result.changes[mutant].before, "after": result.changes[mutant].after,
    }
    if entry is not None:
        told["reason"] = entry.reason
    if verdict.outcome is Outcome.SURVIVED:
        told["diff"] = result.changes[mutant].diff
    return told
