"""What of QEMU steers the Atheris engine, put together: facts, counters, hints.

``all``: states and trace events become counters and hints; ``transcript``: states alone;
``none``: neither, only what Python's instrumented branches tell libFuzzer.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from qemuglue.campaign.feedback import MAX_CACHED, Feedback, Stability
from qemuglue.campaign.guide import Guide
from qemuglue.campaign.reach import Reach, names_of
from qemuglue.campaign.trace_events import TraceEvents
from qemuglue.campaign.worker import Work
from qemuglue.program.operation import Program


class Steering:
    """Make it before ``work.start()``, and before ``atheris.Fuzz``."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.mode = work.settings.feedback
        self.guide = Guide()
        self.trace = TraceEvents(work.settings.devices) if self.mode == "all" else None
        self.reach: Reach | None = None
        self.stability = Stability()
        self._seen_events: set[str] = set()
        self._seen_states: set[int] = set()
        self._feedback = Feedback()
        if self.mode != "none":
            self.reach = Reach(
                lambda: work.explorer.layout, trace=self.trace, guide=self.guide)
            work.explorer.on_session = self.reach.attach

    @property
    def hints(self) -> Guide | None:
        """What mutations and draws may ask."""
        return None if self.reach is None else self.guide

    def perform(self, program: Program, data: bytes) -> bool:
        """As ``Work.perform``, with what was reached told to libFuzzer. Now and then a program
        is performed twice, see ``feedback.Stability``."""
        work, reach = self._work, self.reach
        if reach is None:
            return work.perform(program, data)
        clean, facts = self._once(program, data, reach)
        if clean and not work.over and self.stability.wants(facts):
            clean, again = self._once(program, data, reach)
            self.stability.compare(facts, again)
            facts &= again
        self._feedback.feed(self.stability.trusted(facts))
        return clean

    def describe(self) -> str:
        """What steered, for the end of a campaign; "" where nothing did."""
        if self.reach is None:
            return ""
        role = self._work.role
        text = f"feedback of worker {role.index}: {len(self._seen_states)} states"
        if self.trace is not None:
            text += f", {len(self._seen_events)} of {len(self.trace.chosen)} trace events"
            if self.trace.off:
                text += f"; too loud and switched off: {_few(self.trace.off)}"
        noise = sorted({" ".join(map(_word, source)) for source in self.stability.noise})
        if noise:
            text += f"; noise that does not count: {_few(noise)}"
        return text

    def _once(self, program: Program, data: bytes, reach: Reach) -> tuple[bool, set[Hashable]]:
        reach.begin()
        clean = self._work.perform(program, data)
        reach.end(len(program.operations))
        facts: set[Hashable] = set(reach.facts)
        self._seen_events |= names_of(reach.facts)
        for fact in reach.facts:
            if fact[0] in ("read", "write", "refused") and len(self._seen_states) < MAX_CACHED:
                self._seen_states.add(hash(fact[:4] if fact[0] == "read" else fact))
        facts.update(self._work.explorer.features or ())
        return clean, facts


#: Names told of a list in one sentence.
FEW = 5


def _few(names: Iterable[str]) -> str:
    told = list(names)
    more = f" and {len(told) - FEW} more" if len(told) > FEW else ""
    return ", ".join(told[:FEW]) + more


def _word(part: object) -> str:
    return f"+{part:#x}" if isinstance(part, int) else str(part)
