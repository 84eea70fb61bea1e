"""Medians by arm and rank tests, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from qemuglue.campaign.experiment.arms import MEASURES, SETUPS, result_path
from qemuglue.campaign.rank import effect, gain, p_value

#: Arms that others are compared with.
BASES = ("random", "blind")


def table(out: Path, setups: Sequence[str], arms: Sequence[str], seeds: int) -> list[str]:
    """A block for each set of devices and measure: median, least and most of each arm, and how
    it differs from drawing and from Atheris without QEMU's counters."""
    lines: list[str] = []
    for name in setups:
        results = {arm: _results(out, name, arm, seeds) for arm in arms}
        told = [run for runs in results.values() for run in runs]
        if not told:
            lines.append(f"{name}: no results yet")
            continue
        programs = sorted({run.get("programs", 0) for run in told})
        lines += ["", f"{' + '.join(('q35', *SETUPS[name]))}, "
                      f"{' to '.join(map(str, {programs[0]: 0, programs[-1]: 0}))} programs a run"]
        for measure in MEASURES:
            lines.append(f"  {measure:<16}{'runs':>5}{'median':>9}{'least':>8}{'most':>8}"
                         f"{'vs random':>12}{'p':>10}{'vs blind':>12}{'p':>10}")
            lines += [_row(arm, measure, results) for arm in arms if results[arm]]
        both = [_values(results, arm, "states") for arm in ("blind", "all")]
        if all(both):
            chances = ", ".join(
                f"{measure} {_chance(results, measure):.0%}" for measure in MEASURES)
            lines.append(f"  a run of `all` beats one of `blind` in this share of pairs: {chances}")
    return lines


def _row(arm: str, measure: str, results: dict[str, list[dict[str, Any]]]) -> str:
    mine = _values(results, arm, measure)
    row = (f"  {arm:<16}{len(mine):>5}{median(mine):>9.0f}{min(mine):>8.0f}{max(mine):>8.0f}")
    for base in BASES:
        other = _values(results, base, measure)
        if arm == base or not other:
            row += " " * 22
        else:
            row += f"{gain(other, mine):>+12.1%}{p_value(other, mine):>10.2g}"
    return row.rstrip()


def _chance(results: dict[str, list[dict[str, Any]]], measure: str) -> float:
    return effect(_values(results, "blind", measure), _values(results, "all", measure))


def _values(results: dict[str, list[dict[str, Any]]], arm: str, measure: str) -> list[float]:
    return [float(run[measure]) for run in results.get(arm, [])]


def _results(out: Path, name: str, arm: str, seeds: int) -> list[dict[str, Any]]:
    paths = [result_path(out, name, arm, seed) for seed in range(1, seeds + 1)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
