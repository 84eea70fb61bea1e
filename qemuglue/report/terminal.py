"""How a campaign is shown while it runs: a live table on a terminal, plain lines elsewhere.

All of it goes to stderr: stdout is for the result. Texts of QEMU and of programs are printed as
text, never as markup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qemuglue.campaign.planted import PLANTED
from qemuglue.campaign.runner import Snapshot
from qemuglue.campaign.settings import Settings
from qemuglue.campaign.status import Totals
from qemuglue.qemu.builds import Build
from qemuglue.witness.verdict import SOFT, Verdict

#: Without a terminal, a line this often.
LINE_EVERY_S = 5.0

#: On a terminal, drawn this often at most.
DRAW_EVERY_S = 0.4


class Terminal:
    """An ``Observer`` of a campaign. ``live`` is for a person who watches."""

    def __init__(
        self, console: Console | None = None, *, live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console or Console(stderr=True)
        able = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live_wanted = able if live is None else live
        self._live: Live | None = None
        self._clock = clock
        self._next = 0.0
        self._told: set[str] = set()

    def started(self, settings: Settings, build: Build, earlier: Totals | None) -> None:
        """The seed first, then everything it takes to repeat the run."""
        self._print(f"seed {settings.seed}")
        self._print(
            f"target {settings.target}: {settings.describe()}, {build.name} QEMU {build.version}, "
            f"{settings.jobs} job{'s' * (settings.jobs != 1)}, engine {settings.engine}, "
            f"{limit_of(settings)}"
        )
        if settings.defect:
            defect = PLANTED[settings.defect]
            self._print(f"planted: {settings.defect} ({defect.rule}: "
                        f"{defect.summary}); the campaign must find it")
        self._print(f"folder {settings.out}")
        if earlier is not None:
            self._print(f"goes on where {earlier.runs} earlier run{'s' * (earlier.runs != 1)} "
                        f"stopped: {count(earlier.judged)} operations judged in "
                        f"{duration(earlier.seconds)}")
        self._next = self._clock() + LINE_EVERY_S
        if self._live_wanted:
            # No thread of its own: the kernel watches the thread that starts workers, and a
            # fork beside another thread may hang.
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
            self._next = 0.0

    def progress(self, snapshot: Snapshot) -> None:
        now = self._clock()
        if now < self._next:
            return
        if self._live is not None:
            self._next = now + DRAW_EVERY_S
            self._live.update(live_table(snapshot), refresh=True)
        else:
            self._next = now + LINE_EVERY_S
            self._print(line(snapshot))

    def finding(self, finding: Mapping[str, Any]) -> None:
        """A signature is told once; what else has it is in the folder."""
        if finding["signature"] in self._told:
            return
        self._told.add(finding["signature"])
        planted = " (planted defect)" if finding.get("defect") else ""
        self._print(f"FOUND {finding['signature']}{planted}")
        for text in finding_lines(finding):
            self._print(f"      {text}")

    def say(self, text: str) -> None:
        self._print(text)

    def ended(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)


# Section: the texts


def line(snapshot: Snapshot) -> str:
    """One line of progress, for logs."""
    totals = snapshot.totals
    parts = [
        f"{duration(snapshot.elapsed_s):>7}", f"{count(totals.judged)} judged{_shares(totals)}",
        f"{count(round(snapshot.rate))}/s", f"{len(totals.regions)} regions",
        f"{count(len(totals.shapes))} shapes", f"corpus {count(snapshot.corpus)}",
        f"QEMU restarts {totals.restarts}", f"findings {len(totals.found)}",
    ]
    if snapshot.worker_deaths:
        parts.append(f"worker deaths {snapshot.worker_deaths}")
    return " | ".join(parts)


def finding_lines(finding: Mapping[str, Any]) -> list[str]:
    """A finding for people: where, what each side says, where it is recorded."""
    lines = [f"{finding.get('what') or 'recorded by an earlier run'}"]
    if finding.get("shown"):
        lines[0] += f"; {finding['shown']}"
    if finding.get("model"):
        lines += [f"model says: {finding['model']}", f"QEMU says:  {finding['qemu']}"]
    return [*lines, str(finding["path"])] if finding.get("path") else lines


def _shares(totals: Totals) -> str:
    if not totals.judged:
        return ""
    shares = [
        f"{verdict.value} {percent(totals.tally.of(verdict), totals.judged)}"
        for verdict in (Verdict.MATCH, *SOFT) if totals.tally.of(verdict)
    ]
    return f" ({', '.join(shares)})"


def live_table(snapshot: Snapshot) -> Table:
    """The live display: what a person wants to see at a glance."""
    totals, settings = snapshot.totals, snapshot.settings
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    spent = duration(snapshot.elapsed_s)
    rows = [
        ("time", f"{spent} of {duration(settings.seconds)}" if settings.seconds else spent),
        ("judged", f"{count(totals.judged)} operations{_shares(totals)}"),
        ("rate", f"{count(round(snapshot.rate))} operations/s"),
        ("covered", f"{len(totals.regions)} regions, {count(len(totals.shapes))} piece shapes"),
        ("corpus", f"{count(snapshot.corpus)} inputs"),
        ("QEMU", f"{totals.restarts} restarts, {totals.deaths} deaths or hangs, "
                 f"{totals.shutdowns} switched off by the guest"),
        ("findings", str(len(totals.found))),
    ]
    for name, text in rows:
        style = "bold red" if name == "findings" and totals.found else ""
        table.add_row(name, Text(text, style=style))
    return table


def limit_of(settings: Settings) -> str:
    """When the campaign ends, in words."""
    limits = [duration(settings.seconds)] if settings.seconds else []
    if settings.programs:
        limits.append(f"{count(settings.programs)} programs")
    return " or ".join(limits) or "until Ctrl-C"


def count(number: int) -> str:
    return f"{number:,}"


def percent(part: int, whole: int) -> str:
    """A share, with the digits that matter: a handful in a million is not 0 %."""
    share = 100 * part / whole if whole else 0.0
    if share == 0 or share == 100:
        return f"{share:.0f} %"
    if share > 99.9:
        return "> 99.9 %"
    return f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
