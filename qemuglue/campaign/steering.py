"""What of QEMU steers the Atheris engine, put together: facts, counters, hints.

``all``: states and trace events become counters and hints; ``transcript``: states alone;
``none``: neither, only what Python's instrumented branches tell libFuzzer.
"""

from __future__ import annotations

from collections.abc import Hashable

from qemuglue.campaign.feedback import Feedback, Stability
from qemuglue.campaign.guide import Guide
from qemuglue.campaign.reach import Reach
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

    def _once(self, program: Program, data: bytes, reach: Reach) -> tuple[bool, set[Hashable]]:
        reach.begin()
        clean = self._work.perform(program, data)
        reach.end(len(program.operations))
        facts: set[Hashable] = set(reach.facts)
        facts.update(self._work.explorer.features or ())
        return clean, facts
