"""What ``qemuglue check`` came to, for people: a line a machine as it ends, and one page."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from qemuglue.campaign.check_jobs import Shown
from qemuglue.campaign.check_result import CheckResult, Divergence, Status
from qemuglue.campaign.check_run import CheckRun
from qemuglue.campaign.planted import PLANTED
from qemuglue.report.check_json import UNITS
from qemuglue.report.summary import MEANING, SOFT_LIMIT, results_line, verdict_table
from qemuglue.report.terminal import count, duration, percent
from qemuglue.witness.verdict import SOFT, Tally

#: On the page; the JSON has all. A rule that is wrong shows at hundreds of places.
MAX_DIVERGENCES, MAX_ALIKE, MAX_REASONS, MAX_SAID, MAX_WIDTH = 20, 3, 8, 6, 160

#: Machines named for a reason or a note that many have.
MAX_NAMED = 6

_PLURALS = {"divergence": "divergences", "crash": "crashes", "hang": "hangs"}

_STYLES = {
    Status.MATCH: "green", Status.DIVERGED: "bold red", Status.NOT_STARTED: "yellow",
    Status.ERROR: "bold yellow",
}


class PipeConsole(Console):
    """A console that lets the caller know that nobody reads any more; rich itself ends the
    process with exit code 1, which is that of a divergence."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


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
    if seen.plain < seen.exact:
        views += f" ({seen.plain} with inference off)"
    inferred = f", inferred {result.map.inferred}" if seen.inferred.total else ""
    by_name = f", {seen.known.total} known by name" if seen.known.total else ""
    yield f"{count(seen.ranges)} ranges, {views}{inferred}{by_name}"
    if seen.started_with:
        yield f"started with {seen.started_with}"
    if tally.total:
        soft = sum(tally.of(verdict) for verdict in SOFT)
        yield f"{count(tally.total)} accesses" + (f", {count(soft)} not judged" if soft else "")
    for kind, n in Counter(each.kind for each in result.divergences).items():
        yield f"{n} {kind if n == 1 else _PLURALS.get(kind, kind)}"
    if result.known:
        yield f"{len(result.known)} known: " + ", ".join(
            dict.fromkeys(each.oddity for each in result.known))
    yield f"{result.seconds:.1f} s"


# Section: for people


def print_check(run: CheckRun, console: Console) -> None:
    """The page: the verdict table over all machines, what else was compared, what was found."""
    if run.interrupted:
        _say(console, "Interrupted; what follows is what was reached.")
    tally = run.tally
    if tally.total:
        console.print(verdict_table(tally))
        for verdict, meaning in MEANING.items():
            if tally.of(verdict):
                _say(console, f"  {verdict.value}: {meaning}")
        console.print()
    if tally.total:
        _say(console, results_line(tally))
    for text in (*_maps(run), *_also(run.results), *_ram(run.results)):
        _say(console, text)
    _print_soft(tally, console)
    for text in (*_notes(run.results), *_not_started(run), *_known(run)):
        _say(console, text)
    for shown in run.stale():
        _say(console, stale(shown), "bold yellow")
    _print_found(run, console)


def stale(shown: Shown) -> str:
    """What to do about an oddity that does not show any more."""
    instead = f"; its program gives {shown.signature} now" if shown.signature else ""
    return (f"oddity {shown.oddity} no longer occurs on {shown.build} {shown.machine}{instead}: "
            "remove or narrow it in witness/oddities.toml")


def _maps(run: CheckRun) -> Iterator[str]:
    views, exact, plain = run.views
    if not views:
        return
    inferred = run.inferred
    facts = f"{inferred} inferred" if inferred.total else "nothing inferred"
    if run.known_by_name:
        facts += f", {count(run.known_by_name)} known by name"
    yield (f"Maps: {count(exact)} of {count(views)} flat views exact, {count(plain)} of them with "
           f"inference off; {facts}.")
    images = Counter(each.map.started_with for each in run.results if each.map.started_with)
    if images:
        ways = ", ".join(f"{n} with {image}" for image, n in images.most_common(MAX_REASONS))
        yield f"Started with a generated image: {ways}."


def _ram(results: Sequence[CheckResult]) -> Iterator[str]:
    """How much of the guests' memory could be compared, and by which way."""
    ways: Counter[str] = Counter()
    for result in results:
        ways.update(dict(result.ram_bytes))
    if ways:
        parts = (f"{n / (1 << 20):,.0f} MiB {way}" for way, n in ways.most_common())
        yield f"RAM and ROM by coverage: {', '.join(parts)}."


def _named(results: Sequence[CheckResult]) -> str:
    """A few of the machines, and how many more."""
    several = len({result.build for result in results}) > 1
    names = [f"{each.build} {each.machine}" if several else each.machine for each in results]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _notes(results: Sequence[CheckResult]) -> Iterator[str]:
    """Each note once, with the machines that have it."""
    found: dict[str, list[CheckResult]] = {}
    for result in results:
        for note in result.notes:
            found.setdefault(note, []).append(result)
    for note, machines in found.items():
        who = f"{machines[0].build} {machines[0].machine}" if len(machines) == 1 else (
            f"{len(machines)} machines ({_named(machines)})")
        yield f"note: {who}: {note}"


def _not_started(run: CheckRun) -> Iterator[str]:
    found = list(run.not_started())
    if not found:
        return
    yield "Not started:"
    for reason, machines in found:
        yield f"  {len(machines):>4}  {reason}  ({_named(machines)})"


def _known(run: CheckRun) -> Iterator[str]:
    for oddity, found, machines in run.known():
        yield (f"known: {oddity.id}: {found} finding{'s' * (found != 1)} on {machines} "
               f"machine{'s' * (machines != 1)}: {oddity.what} ({oddity.why})")
    tried = [shown for shown in run.shown if shown.shows is None]
    for shown in tried:
        yield (f"note: oddity {shown.oddity} could not be tried on {shown.build} "
               f"{shown.machine}: {shown.reason}")
    seen = sum(shown.shows is True for shown in run.shown)
    if seen:
        yield f"Known oddities shown again by their programs: {seen} of {len(run.shown)}."


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
        f"{witness} {count(n)} {UNITS.get(witness, 'places')}"
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


def _print_found(run: CheckRun, console: Console) -> None:
    results, statuses = run.results, run.statuses
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
    known = sum(len(result.known) for result in results)
    if known:
        words.append(f"{known} known oddit{'y' if known == 1 else 'ies'}")
    machines = f"{len(results)} machine{'s' * (len(results) != 1)}"
    _say(console, f"{machines}: {', '.join(words) or 'none'}; {_cost(run)}",
         "bold red" if found else "bold green" if statuses[Status.MATCH] else "bold yellow")
    for name in dict.fromkeys(result.defect for result in results if result.defect):
        defect = PLANTED[name]
        _say(console, f"Planted in the model: {name} ({defect.rule}: {defect.summary}); it is the "
                      "model that is wrong here, not QEMU.")


def _cost(run: CheckRun) -> str:
    """Time and memory."""
    workers = f" with {run.workers} workers" if run.workers > 1 else ""
    memory = run.memory
    told = ""
    if memory.harness:
        told = f", at most {memory.harness >> 20} MiB"
        if memory.qemus:
            told += f" and {memory.qemus >> 20} MiB in QEMUs"
    return f"{duration(run.seconds)}{workers}{told}"


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
