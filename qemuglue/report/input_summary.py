"""What a campaign on a target without a machine came to: for people and for programs."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from qemuglue.campaign.inputs.campaign import InputResult, InputSettings
from qemuglue.campaign.inputs.faults import InputFault, InputFinding


def document(settings: InputSettings, result: InputResult) -> dict[str, Any]:
    """As ``fuzz --json`` prints it."""
    return {
        "schema": 1, "target": settings.target, "engine": settings.engine, "seed": settings.seed,
        "seconds": round(result.elapsed_s, 3), "inputs": result.inputs,
        "answers": sorted(result.facts), "corpus": result.corpus, "out": str(settings.out),
        "interrupted": result.interrupted, "failed": result.failed,
        "defect": settings.defect,
        "findings": [{"kind": each.kind, "signature": each.signature, "message": each.message,
                      "path": str(each.path)} for each in result.findings],
    }


def lines(settings: InputSettings, result: InputResult) -> list[str]:
    """As people read it."""
    rate = result.inputs / result.elapsed_s if result.elapsed_s else 0.0
    said = [
        f"{settings.target.capitalize()}: {result.inputs:,} inputs in {result.elapsed_s:.0f} s "
        f"({rate:,.0f}/s, engine {settings.engine}, seed {settings.seed}); {result.corpus} kept in "
        f"{settings.out}/corpus.",
        *_WAYS[settings.target](result),
    ]
    if result.interrupted:
        said.append("Interrupted; this is what was reached.")
    if result.failed:
        said.append(f"The campaign could not use its time: {result.failed}")
    for signature in dict.fromkeys(each.signature for each in result.findings):
        first = next(each for each in result.findings if each.signature == signature)
        said.append(f"{first.message}")
        said.append(f"  see it again: {shlex.join(['qemuglue', 'replay', str(first.path)])}")
    if settings.defect:
        said.append(f"The defect {settings.defect} was planted in the model: it is the model that "
                    "is wrong here." if result.findings else
                    f"The defect {settings.defect} planted in the model was NOT found: give it "
                    "more time, or something in the pipeline is broken.")
    elif not result.findings and not result.failed:
        said.append(f"Nothing found: {_GOOD[settings.target]}.")
    return said


def _parsers(result: InputResult) -> list[str]:
    parsed: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for fact in result.facts:
        parser, what, *_ = fact.split("/")
        (parsed if what == "parsed" else refused)[parser] += 1
    return [f"{len(result.facts)} different answers, by parser (parsed / refused):", *(
        f"  {name:<9}{parsed[name]:>5} /{refused[name]:>4}"
        for name in sorted({*parsed, *refused}))]


def _laws(result: InputResult) -> list[str]:
    ways = Counter(fact.split("/")[0] for fact in result.facts)
    return [f"{len(result.facts)} different ways through the laws of the model:", *(
        f"  {name:<10}{n:>6}" for name, n in sorted(ways.items()))]


_WAYS = {"text": _parsers, "model": _laws}
_GOOD = {
    "text": "every text gave a value or one sentence",
    "model": "the model and the naive oracles agree on every input",
}


def exit_code(result: InputResult) -> int:
    """0 nothing found, 1 found, 130 interrupted; 2 when it could not go on."""
    if result.interrupted:
        return 130
    if result.findings:
        return 1
    return 2 if result.failed else 0


def replayed(finding: InputFinding, fault: InputFault | None) -> dict[str, Any]:
    """As ``replay --json`` prints it."""
    return {
        "schema": 1, "file": finding.path.name, "kind": "none" if fault is None else finding.kind,
        "signature": "" if fault is None else fault.signature,
        "recorded": finding.signature, "message": "" if fault is None else str(fault),
    }
