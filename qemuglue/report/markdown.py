"""A check as GitHub-flavoured Markdown, for the summary page of a CI job.

GitHub shows what a step appends to the file that ``$GITHUB_STEP_SUMMARY`` names, up to 1 MiB, and
nothing of it when it is more. Texts of QEMU's are no markup here: they are escaped, or stand
in code spans longer than any run of backticks in them.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from qemuglue.campaign.check_result import CheckResult, Divergence, Status
from qemuglue.campaign.check_run import CheckRun
from qemuglue.errors import UsageError
from qemuglue.report.check_text import MAX_NAMED, stale
from qemuglue.report.terminal import count, duration, percent
from qemuglue.witness.verdict import SOFT, Kind, Tally, Verdict

#: Where GitHub's runner says what file to append to.
VARIABLE = "GITHUB_STEP_SUMMARY"

#: What GitHub takes of one step is 1 MiB; something is left to the other writers of the step.
MAX_BYTES = 900 << 10

#: One text out of QEMU, in characters.
MAX_TEXT = 2000

#: Divergences and reasons told; the JSON has all.
MAX_FOUND, MAX_REASONS = 100, 30

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$@-])")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def append_summary(run: CheckRun, path: Path | None = None) -> bool:
    """Append the page to the file that :data:`VARIABLE` names, or to ``path``. False: none is
    named, and nothing was written.

    :raise UsageError: the file cannot be written.
    """
    named = os.environ.get(VARIABLE, "")
    if path is None:
        if not named:
            return False
        path = Path(named)
    try:
        before = path.stat().st_size if path.exists() else 0
        text = page(run, max_bytes=max(0, MAX_BYTES - before))
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"{VARIABLE}: {path} cannot be written: {error.strerror}") from None
    return True


def page(run: CheckRun, *, max_bytes: int = MAX_BYTES) -> str:
    """The page, cut between two blocks where it would be longer than ``max_bytes`` in UTF-8."""
    kept: list[str] = []
    left = max_bytes
    cut = "\n*More was found than fits here; `--json` has all.*\n"
    for block in _blocks(run):
        size = len(block.encode()) + 1
        if size > left - len(cut):
            kept.append(cut if left >= len(cut) else "")
            break
        kept.append(block + "\n")
        left -= size
    return "".join(kept)


def _blocks(run: CheckRun) -> Iterator[str]:
    found = sum(len(result.divergences) for result in run.results)
    what = "interrupted" if run.interrupted else (
        f"{found} divergence{'s' * (found != 1)}" if found else "no divergence")
    yield f"### qemuglue check: {what}\n"
    yield _builds(run)
    accesses = f"{run.ops} accesses to each machine" if run.ops else "Maps only"
    yield (f"{accesses}, seed `{run.seed}`; {duration(run.seconds)} with "
           f"{run.workers} worker{'s' * (run.workers != 1)}, at most "
           f"{run.memory.harness >> 20} MiB.\n")
    for shown in run.stale():
        yield f"> [!WARNING]\n> {escaped(stale(shown))}\n"
    pairs = [(result, each) for result in run.results for each in result.divergences]
    for result, divergence in pairs[:MAX_FOUND]:
        yield _divergence(result, divergence)
    if pairs[MAX_FOUND:]:
        yield f"{len(pairs) - MAX_FOUND} further divergences: `--json` has all.\n"
    tally = run.tally
    if tally.total:
        yield _details("Verdicts by what was touched", _verdicts(tally))
    yield from _lists(run)


def _builds(run: CheckRun) -> str:
    rows = []
    for build in dict.fromkeys(result.build for result in run.results):
        mine = CheckRun(run.seed, run.ops)
        mine.results = [result for result in run.results if result.build == build]
        views, exact, plain = mine.views
        statuses, tally = mine.statuses, mine.tally
        soft = sum(tally.of(verdict) for verdict in SOFT)
        diverged = count(statuses[Status.DIVERGED])
        rows.append([
            escaped(f"{build} ({mine.results[0].version})"), count(len(mine.results)),
            count(statuses[Status.MATCH]),
            f"**{diverged}**" if statuses[Status.DIVERGED] else diverged,
            count(sum(len(result.known) for result in mine.results)),
            count(statuses[Status.NOT_STARTED]), count(statuses[Status.ERROR]),
            f"{count(exact)} of {count(views)}", count(plain), count(tally.total),
            percent(soft, tally.total) if tally.total else "",
        ])
    return _table(["build", "machines", "match", "diverged", "known oddities", "not started",
                   "error", "views exact", "with inference off", "accesses", "not judged"], rows)


def _verdicts(tally: Tally) -> str:
    seen = [verdict for verdict in Verdict if tally.of(verdict)]
    rows = [
        [kind.value, *(count(tally.cells[kind, verdict]) for verdict in seen),
         count(tally.kind(kind))]
        for kind in Kind if tally.kind(kind)
    ]
    rows.append(["all", *(count(tally.of(verdict)) for verdict in seen), count(tally.total)])
    return _table(["touched", *(verdict.value for verdict in seen), "all"], rows)


def _divergence(result: CheckResult, found: Divergence) -> str:
    k, n = found.confirmed
    lines = [f"{found.place} ({found.witness}, seen {k} of {n} times)"]
    lines += [f"the model says: {text}" for text in found.model]
    lines += [f"QEMU says: {text}" for text in found.qemu]
    title = f"<code>{_html(found.signature)}</code> on {_html(result.build)} " \
            f"{_html(result.machine)}"
    return _details(title, "\n".join([block("\n".join(lines)), "", block(_last(found.program))]))


def _last(program: str) -> str:
    """The end of a program, which is what did it."""
    lines = program.splitlines()
    size = 0
    for number, text in enumerate(reversed(lines)):
        size += len(text) + 1
        if size > MAX_TEXT - 100:
            return "\n".join([f"# {len(lines) - number} lines before",
                              *(lines[len(lines) - number:] or [text[-MAX_TEXT // 2:]])])
    return program


def _lists(run: CheckRun) -> Iterator[str]:
    known = [
        [f"`{oddity.id}`", count(found), count(machines), escaped(oddity.what),
         escaped(oddity.why)] for oddity, found, machines in run.known()
    ]
    if known:
        yield _details("Known oddities of QEMU", _table(
            ["oddity", "findings", "machines", "what", "why"], known))
    errors = [[escaped(f"{each.build} {each.machine}"), escaped(each.reason)]
              for each in run.results if each.status == Status.ERROR]
    if errors:
        yield _details("Could not be checked", _table(["machine", "reason"], errors))
    reasons = [[escaped(reason), count(len(machines)), escaped(_named(machines))]
               for reason, machines in run.not_started()]
    if reasons:
        yield _details("Not started", _table(["reason", "machines", ""], reasons))
    unjudged = [[escaped(reason), count(n)]
                for reason, n in run.tally.reasons.most_common(MAX_REASONS)]
    if unjudged:
        yield _details("Not judged", _table(["reason", "operations"], unjudged))


def _named(machines: Sequence[CheckResult]) -> str:
    names = [f"{each.build} {each.machine}" for each in machines[:MAX_NAMED]]
    more = [f"{len(machines) - MAX_NAMED} more"] if machines[MAX_NAMED:] else []
    return ", ".join([*names, *more])


# Section: Markdown


def escaped(text: str) -> str:
    """``text`` as it is, in a table's cell or a paragraph: one line, no markup, no HTML, no
    mention of a person or an issue."""
    text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text[:MAX_TEXT].split()))
    # The backslash goes first into what html.escape leaves alone.
    text = _MARKUP.sub(r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def block(text: str) -> str:
    """``text`` in a fence longer than any run of backticks in it."""
    text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text[:MAX_TEXT]).rstrip()
    runs = re.findall("`+", text)
    fence = "`" * max(3, 1 + max(map(len, runs), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _html(text: str) -> str:
    return html.escape(_UNPRINTABLE.sub("?", " ".join(text[:MAX_TEXT].split())))


def _details(title: str, body: str) -> str:
    """A part that is folded away; GitHub wants the empty lines."""
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
