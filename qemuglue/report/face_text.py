"""What ``qemuglue check --face`` came to, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from qemuglue.campaign.check_result import Divergence, Status
from qemuglue.campaign.faces.defects import planted
from qemuglue.campaign.faces.designs import DESIGNS
from qemuglue.campaign.faces.result import SOFT, VERDICTS, FaceResult, FaceTally
from qemuglue.campaign.faces.run import BY_DESIGN, DIVERGED, LEARNT, MATCH, UNJUDGED
from qemuglue.report.summary import SOFT_LIMIT
from qemuglue.report.terminal import count, duration, percent

#: On the page; the JSON has all.
MAX_DIVERGENCES, MAX_REASONS, MAX_LINES = 12, 8, 8

_STYLES = {
    Status.MATCH: "green", Status.DIVERGED: "bold red", Status.NOT_STARTED: "yellow",
    Status.ERROR: "bold yellow",
}

#: What the words of the table mean; only those that occur are printed.
MEANING = {
    MATCH: "the face said what QEMU did",
    BY_DESIGN: "the face is meant to answer otherwise than QEMU's C functions; why is below",
    LEARNT: "first evidence of a device's byte order; binding from then on",
    UNJUDGED: "nothing sound can be said of it; the reasons are below",
    DIVERGED: "the face said something else",
}


def line(result: FaceResult) -> Text:
    """One machine, as it ends."""
    text = Text(f"{result.status:<12}", _STYLES.get(result.status, ""))
    text.append(f"{result.build:<20} {result.machine:<24} ", "")
    return text.append("; ".join(_parts(result)), "")


def _parts(result: FaceResult) -> Iterator[str]:
    if result.reason:
        yield result.reason
        return
    tally = result.tally
    if not tally.total:
        yield "no operations"
        return
    parts = [f"{count(tally.of(verdict=verdict))} {verdict}" for verdict in VERDICTS
             if tally.of(verdict=verdict)]
    yield f"{count(tally.total)} operations of {len(result.faces)} " + (
        "face" if len(result.faces) == 1 else "faces") + f": {', '.join(parts)}"
    if result.deaths:
        yield f"QEMU ended {result.deaths} times"
    yield f"{result.seconds:.1f} s"


def print_faces(
    results: Sequence[FaceResult], console: Console, *, seconds: float, interrupted: bool
) -> None:
    """The page: the verdict table over all machines, what is by design, what was found."""
    if interrupted:
        _say(console, "Interrupted; what follows is what was reached.")
    tally = FaceTally()
    for result in results:
        tally.add(result.tally)
    if tally.total:
        for text in _table(tally):
            _say(console, text)
        for verdict, meaning in MEANING.items():
            if tally.of(verdict=verdict):
                _say(console, f"  {verdict}: {meaning}")
        console.print()
    for text in (*_designs(tally), *_soft(tally), *_notes(results)):
        _say(console, text)
    _print_found(results, console)
    statuses = Counter(result.status for result in results)
    words = [f"{statuses[status]} {text}" for status, text in (
        (Status.MATCH, "match"), (Status.DIVERGED, "diverged"),
        (Status.NOT_STARTED, "not started"), (Status.ERROR, "could not be checked"),
    ) if statuses[status]]
    found = any(result.divergences for result in results)
    machines = f"{len(results)} machine{'s' * (len(results) != 1)}"
    _say(console, f"{machines}: {', '.join(words) or 'none'}; {duration(seconds)}",
         "bold red" if found else "bold green" if statuses[Status.MATCH] else "bold yellow")
    for name, faces in dict.fromkeys(
        (result.defect, result.faces) for result in results if result.defect
    ):
        summary = planted(name, faces).summary
        _say(console, f"Planted: {name} ({summary}); it is not QEMU that is wrong.")


def _table(tally: FaceTally) -> Iterator[str]:
    """Rows are methods of faces; columns the kinds of memory they met, then the verdicts. As wide
    as it must be: what is cut off is no result."""
    kinds = tally.kinds()
    verdicts = [verdict for verdict in VERDICTS if tally.of(verdict=verdict)]
    rows = [["face", "method", *kinds, *verdicts]]
    last = ""
    for face, method in tally.rows():
        rows.append([
            face if face != last else "", method,
            *(_cell(tally.of(face=face, method=method, kind=kind)) for kind in kinds),
            *(_cell(tally.of(face=face, method=method, verdict=each)) for each in verdicts),
        ])
        last = face
    rows.append([
        "all", "", *(_cell(tally.of(kind=kind)) for kind in kinds),
        *(_cell(tally.of(verdict=verdict)) for verdict in verdicts)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) if n < 2 else cell.rjust(width)
                 for n, (cell, width) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()


def _cell(n: int) -> str:
    return count(n) if n else ""


def _designs(tally: FaceTally) -> Iterator[str]:
    if tally.designs:
        yield "By design:"
    for name, n in tally.designs.most_common():
        yield f"  {count(n):>8}  {name}: {DESIGNS[name]}"


def _soft(tally: FaceTally) -> Iterator[str]:
    soft = sum(tally.of(verdict=verdict) for verdict in SOFT)
    if not soft:
        return
    over = " (more than the 2 % aimed at)" if tally.soft_share > SOFT_LIMIT else ""
    yield f"{' + '.join(SOFT)}: {count(soft)} operations, {percent(soft, tally.total)}{over}:"
    for why, n in tally.reasons.most_common(MAX_REASONS):
        yield f"  {count(n):>8}  {why}"


def _notes(results: Sequence[FaceResult]) -> Iterator[str]:
    for result in results:
        for note in result.notes:
            yield f"note: {result.build} {result.machine}: {note}"
        unread = sum(access == "read" for _, access, _ in result.left)
        unwritten = len(result.left) - unread
        if result.left:
            yield (f"{result.build} {result.machine}: {unread} regions are not read and "
                   f"{unwritten} not written (--json says why)")
        for each in result.known:
            yield (f"known: {result.build} {result.machine}: {each.oddity}: "
                   f"{each.found.signature} at {each.found.place}")
        if result.flaky:
            yield (f"note: {result.build} {result.machine}: {result.flaky} suspicions that a "
                   "fresh QEMU did not show again")


def _print_found(results: Sequence[FaceResult], console: Console) -> None:
    found = [(result, each) for result in results for each in result.divergences]
    for result, divergence in found[:MAX_DIVERGENCES]:
        _print_divergence(result, divergence, console)
    further = len(found[MAX_DIVERGENCES:]) + sum(n for r in results for _, n in r.further)
    if further:
        _say(console, f"{count(further)} further divergences (--json counts them)")


def _print_divergence(result: FaceResult, found: Divergence, console: Console) -> None:
    k, n = found.confirmed
    _say(console, f"{found.signature}: {result.build} {result.machine}, {found.place} "
                  f"(seen {k} of {n} times)", "bold red")
    for title, said in (("face", found.model), ("QEMU", found.qemu)):
        for text in said[:MAX_LINES]:
            _say(console, f"  {title}: {text}")
    lines = found.program.splitlines()
    if len(lines) > 1:
        _say(console, f"  after {len(lines) - 1} operations before it (--seed {result.seed})")


def _say(console: Console, text: str, style: str = "") -> None:
    """Texts are copied and searched: never wrapped, never markup."""
    console.print(Text(text, style=style), soft_wrap=True)
