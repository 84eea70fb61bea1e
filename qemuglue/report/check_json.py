"""What ``qemuglue check`` came to, for programs (schema 1). Keys may be added, never renamed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemuglue.campaign.check_result import CheckResult, Status
from qemuglue.campaign.check_run import CheckRun
from qemuglue.witness.account import Account
from qemuglue.witness.verdict import Tally, Verdict

SCHEMA = 1

#: What a witness counts; the others count places.
UNITS = {"dump": "bytes", "map": "ranges", "qom": "regions"}


def document(run: CheckRun) -> dict[str, Any]:
    """All of it; machines in the order they were asked for."""
    statuses, tally, inferred = run.statuses, run.tally, run.inferred
    views, exact, plain = run.views
    return {
        "schema": SCHEMA,
        "results": [_result(result) for result in run.results],
        "oddities": [asdict(shown) for shown in run.shown],
        "summary": {
            "seed": run.seed, "ops": run.ops, "interrupted": run.interrupted,
            "machines": len(run.results),
            "match": statuses[Status.MATCH], "diverged": statuses[Status.DIVERGED],
            "not_started": statuses[Status.NOT_STARTED], "error": statuses[Status.ERROR],
            "views": {"total": views, "exact": exact, "exact_without_inference": plain},
            "inferred": {"pairs": inferred.pairs, "bits": inferred.bits,
                         "aliases": inferred.aliases},
            "known_by_name": run.known_by_name,
            "operations": tally.total, "verdicts": _verdicts(tally),
            "kinds": tally.to_json()["kinds"], "not_judged": round(tally.soft_share, 6),
            "divergences": sum(len(result.divergences) for result in run.results),
            "known": {oddity.id: found for oddity, found, _ in run.known()},
            "no_longer_shown": sorted({shown.oddity for shown in run.stale()}),
            "not_started_reasons": [
                {"reason": reason, "machines": [f"{each.build} {each.machine}" for each in found]}
                for reason, found in run.not_started()
            ],
            "jobs": run.workers, "elapsed_seconds": round(run.seconds, 3),
            "seconds": round(sum(result.seconds for result in run.results), 3),
            "peak_memory": {"harness": run.memory.harness, "qemus": run.memory.qemus},
        },
    }


def _result(result: CheckResult) -> dict[str, Any]:
    seen = result.map
    told = result.tally.to_json()
    return {
        "build": result.build, "version": result.version, "machine": result.machine,
        "status": result.status, "reason": result.reason or None,
        "spaces": seen.spaces, "ranges": seen.ranges,
        "views": {"total": seen.views, "exact": seen.exact, "exact_without_inference": seen.plain},
        "inferred": {
            "pairs": seen.inferred.pairs, "bits": seen.inferred.bits,
            "aliases": seen.inferred.aliases, "facts": list(seen.inferred.facts),
        },
        "known_by_name": list(seen.known.facts),
        "started_with": seen.started_with or None,
        "verdicts": _verdicts(result.tally), "kinds": told["kinds"], "verbs": told["verbs"],
        "unjudged_reasons": told["unjudged_reasons"],
        "device_initiated": told["device_initiated"],
        "memtx_results": result.tally.memtx_results(),
        "witnesses": [_account(account) for account in result.accounts],
        "divergences": [divergence.to_json() for divergence in result.divergences],
        "known": [{"oddity": each.oddity, **each.found.to_json()} for each in result.known],
        "ram": dict(result.ram), "ram_bytes": dict(result.ram_bytes),
        "notes": list(result.notes), "ops": result.ops,
        "seed": result.seed, "defect": result.defect, "flaky": result.flaky,
        "qemu": {"restarts": result.restarts, "deaths": result.deaths},
        "seconds": result.seconds,
    }


def _account(account: Account) -> dict[str, Any]:
    return {
        "witness": account.witness, "compared": account.compared,
        "unit": UNITS.get(account.witness, "places"),
        "differences": len(account.differences), "unjudged": dict(account.unjudged),
        "unsupported": account.unsupported or None,
    }


def _verdicts(tally: Tally) -> dict[str, int]:
    return {verdict.value: tally.of(verdict) for verdict in Verdict}
