"""After a batch: what decoded devices do by themselves, waited for and compared.

What a device does inside an access has happened when qtest answers. What it does from QEMU's
main loop, or by a timer, happens a little later: the device acts on the model, and the harness
goes round QEMU's main loop until guest RAM is what the model says, with bounded patience.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from qemuglue.memory.region import MemoryRegion
from qemuglue.qemu.config import VmMode
from qemuglue.qemu.events import Event
from qemuglue.witness.dma import Act, Follower, Unknown
from qemuglue.witness.dma.device import When
from qemuglue.witness.judging import Suspicion
from qemuglue.witness.ram import RamDifference
from qemuglue.witness.verdict import Kind, Tally, Verdict

if TYPE_CHECKING:
    from qemuglue.witness.session import Session, Step

#: How long QEMU may take for what a device does from its main loop. A disk request takes
#: microseconds; a host with many other processes may keep QEMU from running for a second.
PATIENCE_S: Final = 2.0

#: Between two looks: at first none but the round trip itself, then this, then twice as long.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.0005, 0.05

#: Looks without a pause.
EAGER_LOOKS = 8

#: Times that QEMU's main loop comes round before anything is looked at: a bottom half that the
#: kick scheduled has run then, and so has one that it scheduled.
ROUNDS = 2

#: Rounds of actions after one kick: each wakes the next. More is an endless loop.
MAX_ROUNDS = 64


class Settler:
    """Lets the devices of a session act at the end of a batch, and compares what they wrote."""

    def __init__(self, session: Session, tally: Tally) -> None:
        self.session = session
        self.tally = tally
        #: Whether a device has acted since the lock step last set this.
        self.acted = False
        #: Events behind those of the batch that were looked at already: what the devices did
        #: while QEMU's main loop came round for another reason.
        self.early: Sequence[Event] = ()
        #: What the devices did last, a line each, if they tell it.
        self.told: list[str] = []

    def pending(self) -> bool:
        """Whether a device has something left to do after the batch."""
        return any(True for _ in self._due())

    def settle(self, step: Step, index: int) -> Suspicion | None:
        """Everything due is done and compared. The batch's own events are used up; those that
        came later are taken here. Raises what the session's channels raise."""
        session = self.session
        following, evidence = session.following, session.evidence
        self.told = []
        late = False
        for _ in range(MAX_ROUNDS):
            began = time.monotonic()
            due = list(self._due())
            if not due:
                break
            late = True
            self._let_time_pass(due, began)
            evidence.more = self._more(began)
            try:
                for follower in due:
                    following.act(follower, follower.device.when())
            finally:
                evidence.more = None
            if evidence.mismatch is not None:
                return self._parted(step, index)
        else:
            for follower in self._due():
                follower.device.lost = f"it does something {MAX_ROUNDS} times in a row"
        self._note_lost()
        acts, touched = following.take()
        self.told = [act.describe() for act in acts] if following.telling else []
        self.acted = self.acted or bool(acts)
        found = self._wait(acts, touched, PATIENCE_S if late else 0.0)
        self.early = ()
        if late:
            session.events()  # interrupts that they raised
        return self._judge(acts, found, step, index)

    # -- when ----------------------------------------------------------------------------------

    def _due(self) -> Iterable[Follower]:
        yield from self.session.following.due(When.SOON)
        if self.session.config.mode is VmMode.PARKED:
            yield from self.session.following.due(When.TIMER)

    def _let_time_pass(self, due: Sequence[Follower], began: float) -> None:
        """Until the latest timer of the devices has run out and QEMU's main loop has come round;
        then take the transcript as far as it goes."""
        delays = [
            float(getattr(each.device, "delay_s", 0.0)) for each in due
            if each.device.when() is When.TIMER
        ]
        left = began + max(delays, default=0.0) - time.monotonic()
        if left > 0:
            time.sleep(min(left, PATIENCE_S))
        for _ in range(ROUNDS):
            self.session.process.channel.exchange(b"endianness\n", 1)
        self.session.evidence.load([*self.early, *self.session.events()])
        self.early = ()

    def _more(self, began: float) -> Callable[[], bool]:
        """Fetches more of the transcript, for a device that the model ran ahead of."""
        pause = Pause(began)

        def fetch() -> bool:
            evidence = self.session.evidence
            while pause.wait():
                self.session.process.channel.exchange(b"endianness\n", 1)
                events = self.session.events()
                if events:
                    evidence.append(events)
                    return True
            return False

        return fetch

    # -- comparing -----------------------------------------------------------------------------

    def _wait(
        self, acts: Sequence[Act], touched: dict[MemoryRegion, set[int]], patience_s: float
    ) -> list[RamDifference]:
        """Differences left in the touched pages when patience is at its end; none as soon as
        there are none. Then what nobody could predict is adopted."""
        session = self.session
        unknowns = [each for act in acts for each in act.unknowns]
        pages = {region: set(numbers) for region, numbers in touched.items() if numbers}
        found: list[RamDifference] = []
        if pages:
            pause = Pause(time.monotonic(), patience_s)
            while True:
                self._adopt(unknowns)
                found = session.ram.check_pages(pages)
                if not found or not pause.wait():
                    break
                session.process.channel.exchange(b"endianness\n", 1)
        if not found:
            self._adopt(unknowns)
            for each in unknowns:
                source = session.ram.sources.get(each.region)
                if each.learnt is not None and source is not None:
                    each.learnt(source.read(each.offset, each.size))
        return found

    def _adopt(self, unknowns: Sequence[Unknown]) -> None:
        for each in unknowns:
            self.session.ram.adopt_range(each.region, each.offset, each.size)

    def _judge(
        self, acts: Sequence[Act], found: Sequence[RamDifference], step: Step, index: int
    ) -> Suspicion | None:
        cells = self.tally.cells
        if found and self.session.suspects():
            cells[Kind.DMA, Verdict.UNJUDGED] += len(acts)
            return None  # the comparison of RAM says why
        if found:
            names = sorted({act.name for act in acts})
            return ram_suspicion(found, step, index, names)
        for act in acts:
            cells[Kind.DMA, Verdict.ADOPTED if act.unknowns else Verdict.MATCH] += 1
        return None

    def _parted(self, step: Step, index: int) -> Suspicion:
        """The device's accesses are not those of the model."""
        mismatch = self.session.evidence.mismatch
        assert mismatch is not None
        model, seen = mismatch.describe()
        return Suspicion(index, step, Kind.DMA, "access", (model,), (seen,),
                         mismatch.expected.region.name if mismatch.expected else "")

    def _note_lost(self) -> None:
        for name, why in self.session.following.newly_lost():
            self.tally.cells[Kind.DMA, Verdict.UNJUDGED] += 1
            self.tally.reasons[f"{name}: {why}"] += 1


def ram_suspicion(
    found: Sequence[RamDifference], step: Step | None, index: int | None, names: Sequence[str]
) -> Suspicion:
    """RAM that is not as the model says, although every device that could write it by itself
    is decoded: ``names`` are those that were accessed."""
    whose = (f"devices that could have written it: {', '.join(names)}",) if names else ()
    return Suspicion(
        index, step, Kind.DMA if names else Kind.RAM, "ram",
        (*(f"RAM as written: {each.describe()}" for each in found[:8]), *whose),
        tuple(f"{d.region.name}+{d.offset:#x}: {d.qemu[:32].hex()}" for d in found[:8]),
        found[0].region.name,
    )


class Pause:
    """Waiting with bounded patience from a moment on: not at all at first, then ever longer."""

    def __init__(self, began: float, patience_s: float = PATIENCE_S) -> None:
        self._deadline = began + patience_s
        self._looks = 0
        self._pause_s = FIRST_PAUSE_S

    def wait(self) -> bool:
        """False when patience is at its end."""
        if time.monotonic() >= self._deadline:
            return False
        self._looks += 1
        if self._looks > EAGER_LOOKS:
            time.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return True

