"""What a campaign came to: one JSON document for programs, one page for people.

The page says of each number what it means; a reader who has never seen the project should be
able to tell whether something was found, what, and how to see it again.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qemuglue.campaign.planted import PLANTED
from qemuglue.campaign.runner import Result
from qemuglue.report.terminal import count, duration, finding_lines, percent
from qemuglue.witness.oddities import known_as
from qemuglue.witness.verdict import SOFT, Kind, Tally, Verdict

SCHEMA = 1

#: Reasons shown on the page; the JSON has all.
MAX_REASONS = 8

#: Findings shown on the page; the folder and the JSON have all.
MAX_FINDINGS = 20

#: ``unjudged + adopted + learnt`` above this share is pointed out.
SOFT_LIMIT = 0.02

#: What the words of the table mean; only those that occur are printed.
MEANING = {
    Verdict.MATCH: "QEMU did what the model says",
    Verdict.DIVERGED: "QEMU did something else",
    Verdict.UNJUDGED: "performed, but nothing sound can be said of it; the reasons are below",
    Verdict.ADOPTED: "RAM that a device wrote where the program had told it to",
    Verdict.LEARNT: "first evidence of how a device takes accesses; binding from then on",
    Verdict.RESET: "the machine was reset",
    Verdict.SHUTDOWN: "the guest switched the machine off (an outcome, no crash)",
}


def exit_code(result: Result) -> int:
    """0 nothing new found, 1 found, 130 interrupted; 2 when it could not go on."""
    if result.interrupted:
        return 130
    if any(each["known"] is None for each in findings(result)):
        return 1
    return 2 if result.failed else 0


# Section: for programs


def document(result: Result) -> dict[str, Any]:
    """The JSON form (schema 1)."""
    settings, totals, tally = result.settings, result.totals, result.totals.tally
    return {
        "schema": SCHEMA,
        "target": settings.target,
        "machine": settings.machine,
        "devices": list(settings.devices),
        "args": list(settings.args),
        "mode": settings.mode,
        "setup": settings.setup,
        "build": result.build.identity(),
        "engine": settings.engine,
        "seed": settings.seed,
        "jobs": settings.jobs,
        "seconds": round(result.elapsed_s, 3),
        "defect": settings.defect,
        "out": settings.out,
        "interrupted": result.interrupted,
        "failed": result.failed or None,
        "verdicts": {verdict.value: tally.of(verdict) for verdict in Verdict},
        "by_kind": tally.to_json()["kinds"],
        "verbs": tally.to_json()["verbs"],
        "unjudged_reasons": tally.to_json()["unjudged_reasons"],
        "device_initiated": tally.to_json()["device_initiated"],
        "memtx_results": tally.memtx_results(),
        "maps": tally.to_json()["maps"],
        "shares": {
            "devices_and_ports": round(device_share(tally), 6),
            "crossing": round(_share(tally.kind(Kind.CROSSING), tally.total), 6),
            "not_judged": round(tally.soft_share, 6),
        },
        "findings": findings(result),
        "rates": {"judged_per_second": round(result.rate, 1)},
        "coverage": {
            "regions": len(totals.regions), "shapes": len(totals.shapes),
            "corpus": result.corpus,
        },
        "qemu": {
            "restarts": totals.restarts, "deaths": totals.deaths,
            "shutdowns": totals.shutdowns,
        },
        "programs": totals.programs,
        "flaky": totals.flaky,
        "worker_deaths": result.worker_deaths,
        "notes": list(totals.notes),
        "all_runs": {
            "runs": result.all_runs.runs, "seconds": round(result.all_runs.seconds, 3),
            "judged": result.all_runs.judged, "findings": len(result.all_runs.found),
        },
    }


def findings(result: Result) -> list[dict[str, Any]]:
    """One entry a signature: what this run recorded, then what it came upon again of earlier
    runs. A suspicion is counted under what the batch showed and recorded under what the slow
    judge saw, which may differ: what has no record of its own is left out beside one that has.
    """
    recorded: dict[str, dict[str, Any]] = {}
    for each in result.totals.findings:
        recorded.setdefault(str(each["signature"]), each)
    seen = result.totals.found
    for each in result.all_runs.findings:
        if each["signature"] in seen:
            recorded.setdefault(str(each["signature"]), each)
    names = list(recorded) or list(seen)
    return [_entry(name, recorded.get(name, {}), seen.get(name, 1), result) for name in names]


def _entry(
    signature: str, each: dict[str, Any], seen: int, result: Result
) -> dict[str, Any]:
    known = "" if result.settings.defect else known_as(
        result.build.version_tuple, result.settings.machine, signature,
        str(each.get("region", "")))
    return {
        "known": known or None, "kind": each.get("kind", signature.partition(":")[0]),
        "signature": signature,
        "seen": seen, "planted": bool(result.settings.defect), "path": each.get("path") or None,
        "confirmed": each.get("confirmed"), "line": each.get("line", "recorded before"),
        **{part: each.get(part, "") for part in ("what", "model", "qemu", "shown")},
    }


def device_share(tally: Tally) -> float:
    """Share of operations on device regions and ports, 0 to 1."""
    kinds = (Kind.DEVICE, Kind.PORT, Kind.IO_ROOT)
    return _share(sum(tally.kind(kind) for kind in kinds), tally.total)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


# Section: for people


def print_summary(result: Result, console: Console) -> None:
    """The page."""
    settings, totals = result.settings, result.totals
    say = _Page(console)
    if result.interrupted:
        say.text("Interrupted; what follows is what was reached.")
    if result.failed:
        say.text(f"The campaign could not go on: {result.failed}")
    say.text(
        f"{settings.describe()} on {result.build.name}, QEMU {result.build.version}: "
        f"{count(totals.judged)} operations in {duration(result.elapsed_s)}, "
        f"{count(round(result.rate))} a second (seed {settings.seed}, engine {settings.engine}, "
        f"{settings.jobs} job{'s' * (settings.jobs != 1)})"
    )
    if totals.judged:
        say.gap()
        console.print(verdict_table(totals.tally))
        for verdict, meaning in MEANING.items():
            if totals.tally.of(verdict):
                say.text(f"  {verdict.value}: {meaning}")
    say.gap()
    for text in _shares(result):
        say.text(text)
    if totals.tally.total:
        say.text(results_line(totals.tally))
    _print_reasons(totals.tally, say)
    if totals.tally.maps:
        say.text(_maps(totals.tally))
    say.text(_life(result))
    if result.all_runs.runs > 1:
        every = result.all_runs
        say.text(f"All {every.runs} runs with this folder: {count(every.judged)} operations in "
                 f"{duration(every.seconds)}, {len(every.found)} different findings.")
    say.gap()
    _print_findings(result, say)


class _Page:
    """Prints text as text, unwrapped: it is copied and searched."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def text(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)

    def gap(self) -> None:
        self.console.print()


def verdict_table(tally: Tally) -> Table:
    """Verdicts by what the operations touched; columns and rows that are empty are left out."""
    shown = [verdict for verdict in Verdict if tally.of(verdict)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("touched")
    for verdict in shown:
        table.add_column(verdict.value, justify="right")
    table.add_column("all", justify="right")
    table.add_column("share", justify="right")
    for kind in Kind:
        total = tally.kind(kind)
        if total:
            cells = [tally.cells[kind, verdict] for verdict in shown]
            table.add_row(kind.value, *[count(n) if n else "" for n in cells], count(total),
                          percent(total, tally.total))
    table.add_row(
        "all", *[count(tally.of(verdict)) for verdict in shown], count(tally.total), "",
        style="bold",
    )
    return table


def _shares(result: Result) -> Iterator[str]:
    tally, totals = result.totals.tally, result.totals
    if tally.total:
        crossing = percent(tally.kind(Kind.CROSSING), tally.total)
        yield (f"{100 * device_share(tally):.1f} % of the operations were on devices and ports, "
               f"{crossing} crossed from one region into another.")
        soft = sum(tally.of(verdict) for verdict in SOFT)
        names = " + ".join(verdict.value for verdict in SOFT)
        line = f"{names}: {count(soft)} operations, {percent(soft, tally.total)}"
        over = tally.soft_share > SOFT_LIMIT
        yield f"{line}{' (more than the 2 % aimed at; the reasons follow)' if over else ''}."
    yield (f"Covered: {len(totals.regions)} device regions, {count(len(totals.shapes))} piece "
           f"shapes; the corpus has {count(result.corpus)} inputs.")
    yield from (f"{note[0].upper()}{note[1:]}." for note in totals.notes
                if note.startswith("feedback of"))


def results_line(tally: Tally) -> str:
    """What the model predicted of that no reply of qtest's tells."""
    told = ", ".join(f"MEMTX_{name} {count(n)}" for name, n in tally.memtx_results().items())
    return (f"MemTxResult as predicted: {told}; every refusal that makes one stood in the "
            "transcript.")


def _print_reasons(tally: Tally, say: _Page) -> None:
    for title, reasons in (
        ("Not judged because:", tally.reasons),
        ("Accesses that devices made by themselves:", tally.side_accesses),
    ):
        shown = +Counter(reasons)
        if not shown:
            continue
        say.text(title)
        common = shown.most_common()
        for text, n in common[:MAX_REASONS]:
            say.text(f"  {count(n):>8}  {text}")
        rest = common[MAX_REASONS:]
        if rest:
            say.text(f"  {count(sum(n for _, n in rest)):>8}  {len(rest)} further reasons (--json "
                     "has all)")


def _maps(tally: Tally) -> str:
    """What became of the memory map, where it changed."""
    maps = tally.maps
    learnt = maps["learnt"]
    text = (f"Memory map: it changed {count(maps['changed'])} times; the mirror had predicted "
            f"{count(maps['predicted'])} of the new maps before it saw QEMU's")
    if learnt:
        text += f", and learnt {count(learnt)} fact{'s' * (learnt != 1)} from the others"
    if maps["inexact"]:
        text += f"; {count(maps['inexact'])} it could not explain, which is a fault of the mirror"
    if maps["compared"]:
        text += f"; all of it was compared {count(maps['compared'])} times more"
    return text + "."


def _life(result: Result) -> str:
    totals = result.totals
    parts = [f"{totals.restarts} restarts of QEMU", f"{totals.deaths} deaths or hangs"]
    if totals.shutdowns:
        parts.append(f"{totals.shutdowns} times switched off by the guest")
    if totals.flaky:
        parts.append(f"{totals.flaky} suspicions that a fresh QEMU did not show again "
                     "(counted, not reported)")
    if result.worker_deaths:
        parts.append(f"{result.worker_deaths} workers that died and were replaced")
    return f"QEMU: {', '.join(parts)}."


def _print_findings(result: Result, say: _Page) -> None:
    settings = result.settings
    found = findings(result)
    if settings.defect:
        defect = PLANTED[settings.defect]
        planted = f"{settings.defect} ({defect.rule}: {defect.summary})"
        if found:
            say.text(f"What was planted was found, as it must be: {planted}. It is "
                     "the model that is wrong here, not QEMU.", "bold green")
        else:
            say.text(f"What was planted was NOT found: {planted}. Give it more "
                     "time, or something in the pipeline is broken.", "bold red")
    elif not found:
        say.text("Nothing found: no crash, no hang, no access that went otherwise than the model "
                 "says.", "bold green")
    elif all(each["known"] for each in found):
        say.text("Nothing new found: every finding is an oddity of QEMU that is known.",
                 "bold green")
    if not found:
        return
    say.text(f"{len(found)} finding{'s' * (len(found) != 1)}:", "bold")
    for each in found[:MAX_FINDINGS]:
        say.text(f"  {each['signature']}  (seen {each['seen']} "
                 f"time{'s' * (each['seen'] != 1)})")
        if each["known"]:
            say.text(f"    known: {each['known']} (`qemuglue check --oddities` tells)")
        for text in finding_lines(each):
            say.text(f"    {text}")
    if len(found) > MAX_FINDINGS:
        say.text(f"  and {len(found) - MAX_FINDINGS} more, in the folder")
    say.text(f"Findings folder: {settings.findings}")
    path = next((each["path"] for each in found if each["path"]), None)
    if path:
        say.text(f"See the first again: {shlex.join(['qemuglue', 'replay', str(path)])}")
