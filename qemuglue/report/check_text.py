"""What ``qemuglue check`` came to: a line a machine as it ends, one page, one JSON document."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from qemuglue.campaign.check_result import CheckResult, Divergence, Status
from qemuglue.campaign.defects import DEFECTS
from qemuglue.report.summary import MEANING, SOFT_LIMIT, verdict_table
from qemuglue.report.terminal import count, duration, percent
from qemuglue.witness.account import Account
from qemuglue.witness.verdict import SOFT, Tally, Verdict

SCHEMA = 1

#: On the page; the JSON has all. A rule that is wrong shows at hundreds of places.
MAX_DIVERGENCES, MAX_ALIKE, MAX_REASONS, MAX_SAID, MAX_WIDTH = 20, 3, 8, 6, 160

#: What a witness counts; the others count places.
_UNITS = {"dump": "bytes", "map": "ranges"}

_PLURALS = {"divergence": "divergences", "crash": "crashes", "hang": "hangs"}

_STYLES = {
    Status.MATCH: "green", Status.DIVERGED: "bold red", Status.NOT_STARTED: "yellow",
    Status.ERROR: "bold yellow",
}


def line(result: CheckResult) -> Text:
    """One machine, as it ends."""
    text = Text(f"{result.status:<12}", _STYLES.get(result.status, ""))
    text.append(f"{result.build:<20} {result.machine:<24} ", "")
    return text.append("; ".join(_parts(result)), "")


def _parts(result: CheckResult) -> Iterator[str]:
    if result.reason:
        yield result.reason
        return
    seen, tally = result.map, result.tally
    views = f"{seen.exact} of {seen.views} views exact"
    inferred = f", inferred {result.map.inferred}" if seen.inferred.total else ""
    yield f"{count(seen.ranges)} ranges, {views}{inferred}"
    if tally.total:
        soft = sum(tally.of(verdict) for verdict in SOFT)
        yield f"{count(tally.total)} accesses" + (f", {count(soft)} not judged" if soft else "")
    for kind, n in Counter(each.kind for each in result.divergences).items():
        yield f"{n} {kind if n == 1 else _PLURALS.get(kind, kind)}"
    yield f"{result.seconds:.1f} s"


# Section: for programs


def document(
    results: Sequence[CheckResult], *, seed: int, ops: int, interrupted: bool = False
) -> dict[str, Any]:
    """The JSON form (schema 1). Keys may be added, never renamed."""
    statuses = Counter(result.status for result in results)
    tally = total_tally(results)
    return {
        "schema": SCHEMA,
        "results": [_result(result) for result in results],
        "summary": {
            "seed": seed, "ops": ops, "interrupted": interrupted, "machines": len(results),
            "match": statuses[Status.MATCH], "diverged": statuses[Status.DIVERGED],
            "not_started": statuses[Status.NOT_STARTED], "error": statuses[Status.ERROR],
            "operations": tally.total, "verdicts": _verdicts(tally), "kinds": _kinds(tally),
            "not_judged": round(tally.soft_share, 6),
            "divergences": sum(len(result.divergences) for result in results),
            "seconds": round(sum(result.seconds for result in results), 3),
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
        "verdicts": _verdicts(result.tally), "kinds": told["kinds"], "verbs": told["verbs"],
        "unjudged_reasons": told["unjudged_reasons"],
        "device_initiated": told["device_initiated"],
        "witnesses": [_account(account) for account in result.accounts],
        "divergences": [divergence.to_json() for divergence in result.divergences],
        "ram": dict(result.ram), "notes": list(result.notes), "ops": result.ops,
        "seed": result.seed, "defect": result.defect, "flaky": result.flaky,
        "qemu": {"restarts": result.restarts, "deaths": result.deaths},
        "seconds": result.seconds,
    }


def _account(account: Account) -> dict[str, Any]:
    return {
        "witness": account.witness, "compared": account.compared,
        "unit": _UNITS.get(account.witness, "places"),
        "differences": len(account.differences), "unjudged": dict(account.unjudged),
        "unsupported": account.unsupported or None,
    }


def _verdicts(tally: Tally) -> dict[str, int]:
    return {verdict.value: tally.of(verdict) for verdict in Verdict}


def _kinds(tally: Tally) -> Any:
    return tally.to_json()["kinds"]


def total_tally(results: Sequence[CheckResult]) -> Tally:
    """The verdicts of all machines together."""
    tally = Tally()
    for result in results:
        tally.add(result.tally)
    return tally


# Section: for people


def print_check(
    results: Sequence[CheckResult], console: Console, *, interrupted: bool = False
) -> None:
    """The page: the verdict table over all machines, what else was compared, what was found."""
    if interrupted:
        _say(console, "Interrupted; what follows is what was reached.")
    tally = total_tally(results)
    if tally.total:
        console.print(verdict_table(tally))
        for verdict, meaning in MEANING.items():
            if tally.of(verdict):
                _say(console, f"  {verdict.value}: {meaning}")
        console.print()
    for text in _also(results):
        _say(console, text)
    _print_soft(tally, console)
    for result in results:
        for note in result.notes:
            _say(console, f"note: {result.build} {result.machine}: {note}")
    _print_found(results, console)


def _say(console: Console, text: str, style: str = "") -> None:
    """Texts are copied and searched: never wrapped, never markup."""
    console.print(Text(text, style=style), soft_wrap=True)


def _also(results: Sequence[CheckResult]) -> Iterator[str]:
    """What the witnesses of a state compared, in sum."""
    compared: Counter[str] = Counter()
    unsupported: Counter[str] = Counter()
    for result in results:
        for account in result.accounts:
            compared[account.witness] += account.compared
            if account.unsupported:
                unsupported[f"{account.witness}: {account.unsupported}"] += 1
    parts = [
        f"{witness} {count(n)} {_UNITS.get(witness, 'places')}"
        for witness, n in compared.items() if n
    ]
    if parts:
        yield f"Also compared, after random accesses: {', '.join(parts)}."
    for why, n in unsupported.most_common(MAX_REASONS):
        yield f"Not asked on {n} machine{'s' * (n != 1)}: {why}"


def _print_soft(tally: Tally, console: Console) -> None:
    soft = sum(tally.of(verdict) for verdict in SOFT)
    if not soft:
        return
    names = " + ".join(verdict.value for verdict in SOFT)
    over = " (more than the 2 % aimed at)" if tally.soft_share > SOFT_LIMIT else ""
    _say(console, f"{names}: {count(soft)} operations, {percent(soft, tally.total)}{over}:")
    common = tally.reasons.most_common()
    for text, n in common[:MAX_REASONS]:
        _say(console, f"  {count(n):>8}  {text}")
    if common[MAX_REASONS:]:
        _say(console, f"  {count(sum(n for _, n in common[MAX_REASONS:])):>8}  "
                      f"{len(common) - MAX_REASONS} further reasons (--json has all)")


def _print_found(results: Sequence[CheckResult], console: Console) -> None:
    statuses = Counter(result.status for result in results)
    found = [(result, each) for result in results for each in result.divergences]
    shown = list(_worth_showing(found))
    for result, divergence in shown:
        _print_divergence(result, divergence, console)
    if len(found) > len(shown):
        _say(console, f"{len(found) - len(shown)} further findings (--json has all)")
    words = [
        f"{statuses[status]} {text}" for status, text in (
            (Status.MATCH, "match"), (Status.DIVERGED, "diverged"),
            (Status.NOT_STARTED, "not started"), (Status.ERROR, "could not be checked"),
        ) if statuses[status]
    ]
    spent = duration(sum(result.seconds for result in results))
    machines = f"{len(results)} machine{'s' * (len(results) != 1)}"
    _say(console, f"{machines}: {', '.join(words)}; {spent}",
         "bold red" if found else "bold green" if statuses[Status.MATCH] else "bold yellow")
    for name in dict.fromkeys(result.defect for result in results if result.defect):
        defect = DEFECTS[name]
        _say(console, f"Planted in the model: {name} ({defect.rule}: {defect.summary}); it is the "
                      "model that is wrong here, not QEMU.")


def _worth_showing(
    found: Sequence[tuple[CheckResult, Divergence]],
) -> Iterator[tuple[CheckResult, Divergence]]:
    """A few of each signature."""
    alike: Counter[str] = Counter()
    shown = 0
    for result, divergence in found:
        alike[divergence.signature] += 1
        if alike[divergence.signature] <= MAX_ALIKE and shown < MAX_DIVERGENCES:
            shown += 1
            yield result, divergence


def _print_divergence(result: CheckResult, found: Divergence, console: Console) -> None:
    k, n = found.confirmed
    _say(console, f"{found.signature}: {result.build} {result.machine}, {found.place} "
                  f"({found.witness}, seen {k} of {n} times)", "bold red")
    for title, said in (("the model says", found.model), ("QEMU says", found.qemu)):
        for text in said[-MAX_SAID:]:
            _say(console, f"  {title}: {text}")
    if found.path:
        _say(console, f"  see it again: {shlex.join(['qemuglue', 'replay', found.path])}")
        return
    lines = [text for text in found.program.splitlines() if not text.startswith("#")]
    for text in lines[-MAX_SAID:]:
        _say(console, f"  program: {text[:MAX_WIDTH]}")
    if len(lines) > MAX_SAID:
        _say(console, f"  ({len(lines) - MAX_SAID} lines before; --out DIR keeps all, to replay)")
