"""What a campaign on the target ``text`` came to: for people and for programs."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from qemuglue.campaign.text.campaign import TextResult, TextSettings
from qemuglue.campaign.text.target import TextFault, TextFinding


def document(settings: TextSettings, result: TextResult) -> dict[str, Any]:
    """As ``fuzz --json`` prints it."""
    return {
        "schema": 1, "target": "text", "engine": settings.engine, "seed": settings.seed,
        "seconds": round(result.elapsed_s, 3), "inputs": result.inputs,
        "answers": sorted(result.facts), "corpus": result.corpus, "out": str(settings.out),
        "interrupted": result.interrupted, "failed": result.failed,
        "findings": [{"kind": "text", "signature": each.signature, "message": each.message,
                      "path": str(each.path)} for each in result.findings],
    }


def lines(settings: TextSettings, result: TextResult) -> list[str]:
    """As people read it."""
    rate = result.inputs / result.elapsed_s if result.elapsed_s else 0.0
    said = [
        f"Text: {result.inputs:,} inputs in {result.elapsed_s:.0f} s ({rate:,.0f}/s, engine "
        f"{settings.engine}, seed {settings.seed}); {result.corpus} kept in "
        f"{settings.out}/corpus.",
        f"{len(result.facts)} different answers, by parser (parsed / refused):",
    ]
    parsed: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for fact in result.facts:
        parser, what, *_ = fact.split("/")
        (parsed if what == "parsed" else refused)[parser] += 1
    said += [f"  {name:<9}{parsed[name]:>5} /{refused[name]:>4}"
             for name in sorted({*parsed, *refused})]
    if result.interrupted:
        said.append("Interrupted; this is what was reached.")
    if result.failed:
        said.append(f"The campaign could not use its time: {result.failed}")
    for signature in dict.fromkeys(each.signature for each in result.findings):
        first = next(each for each in result.findings if each.signature == signature)
        said.append(f"{first.message}")
        said.append(f"  see it again: {shlex.join(['qemuglue', 'replay', str(first.path)])}")
    if not result.findings and not result.failed:
        said.append("Nothing found: every text gave a value or one sentence.")
    return said


def exit_code(result: TextResult) -> int:
    """0 nothing found, 1 found, 130 interrupted; 2 when it could not go on."""
    if result.interrupted:
        return 130
    if result.findings:
        return 1
    return 2 if result.failed else 0


def replayed(finding: TextFinding, fault: TextFault | None) -> dict[str, Any]:
    """As ``replay --json`` prints it."""
    return {
        "schema": 1, "file": finding.path.name, "kind": "none" if fault is None else "text",
        "signature": "" if fault is None else fault.signature,
        "recorded": finding.signature, "message": "" if fault is None else str(fault),
    }
