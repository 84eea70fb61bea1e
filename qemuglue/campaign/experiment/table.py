"""Medians by arm and rank tests, as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemuglue.campaign.experiment.arms import MEASURES, SETUPS, result_path
from qemuglue.campaign.rank import effect, gain, p_value


def table(out: Path, setups: Sequence[str], arms: Sequence[str], seeds: int) -> list[str]:
    """Medians by arm, with the test against the arm before and against ``blind``."""
    lines: list[str] = []
    for name in setups:
        results = {arm: _results(out, name, arm, seeds) for arm in arms}
        lines += ["", f"{name}: {' + '.join(('q35', *SETUPS[name]))}",
                  f"{'arm':<16}{'runs':>5}" + "".join(
                      f"{each:>10}{'vs random':>11}{'p':>9}{'vs blind':>10}{'p':>9}"
                      for each in MEASURES)]
        for arm in arms:
            runs = results[arm]
            if not runs:
                continue
            row = f"{arm:<16}{len(runs):>5}"
            for measure in MEASURES:
                mine = [float(run[measure]) for run in runs]
                row += f"{sorted(mine)[len(mine) // 2]:>10.0f}"
                for base, width in (("random", 11), ("blind", 10)):
                    other = [float(run[measure]) for run in results.get(base, [])]
                    if arm == base or not other:
                        row += f"{'':>{width}}{'':>9}"
                    else:
                        row += (f"{gain(other, mine):>+{width}.1%}"
                                f"{p_value(other, mine):>9.2g}")
            lines.append(row)
        lines.append("chance that a run of `all` beats one of `blind`: " + ", ".join(
            f"{measure} {effect(*(_values(results, arm, measure) for arm in ('blind', 'all'))):.2f}"
            for measure in MEASURES))
    return lines


def _values(results: dict[str, list[dict[str, Any]]], arm: str, measure: str) -> list[float]:
    return [float(run[measure]) for run in results.get(arm, [])]


def _results(out: Path, name: str, arm: str, seeds: int) -> list[dict[str, Any]]:
    paths = [result_path(out, name, arm, seed) for seed in range(1, seeds + 1)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
