"""What ``qemuglue check --face`` came to, for programs (schema 1). Keys may be added, never
renamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qemuglue.campaign.faces.designs import DESIGNS
from qemuglue.campaign.faces.result import FaceResult, FaceTally

SCHEMA = 1


def document(
    results: Sequence[FaceResult], *, seed: int, ops: int, seconds: float, interrupted: bool
) -> dict[str, Any]:
    """All of it; machines in the order they were asked for."""
    tally = FaceTally()
    for result in results:
        tally.add(result.tally)
    statuses = [result.status for result in results]
    return {
        "schema": SCHEMA,
        "results": [_result(result) for result in results],
        "designs": DESIGNS,
        "summary": {
            "seed": seed, "ops": ops, "interrupted": interrupted, "machines": len(results),
            "match": statuses.count("match"), "diverged": statuses.count("diverged"),
            "not_started": statuses.count("not-started"), "error": statuses.count("error"),
            "divergences": sum(len(result.divergences) for result in results),
            **tally.to_json(), "seconds": round(seconds, 3),
        },
    }


def _result(result: FaceResult) -> dict[str, Any]:
    return {
        "build": result.build, "version": result.version, "machine": result.machine,
        "status": result.status, "reason": result.reason or None, "faces": list(result.faces),
        "tally": result.tally.to_json(),
        "divergences": [divergence.to_json() for divergence in result.divergences],
        "further": dict(result.further),
        "known": [{"oddity": each.oddity, **each.found.to_json()} for each in result.known],
        "notes": list(result.notes),
        "left_alone": [
            {"region": region, "access": access, "why": why}
            for region, access, why in result.left
        ],
        "ops": result.ops, "seed": result.seed,
        "defect": result.defect, "flaky": result.flaky,
        "qemu": {"restarts": result.restarts, "deaths": result.deaths},
        "seconds": result.seconds,
    }
