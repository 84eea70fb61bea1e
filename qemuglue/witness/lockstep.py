"""Lock step: send a batch to QEMU, then do the same on the model and compare.

The order inside is always: encode and send; read replies and transcript; perform every
operation on the model in program order, its devices answering from the transcript; compare the
reply QEMU gave with the reply the model owes. Batches end where the map may change.

The first operation on which model and QEMU part is a *suspicion*: judging stops there, and the
slow judge decides (one operation at a time in a fresh QEMU).
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.program.operation import Operation
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.qemu.qtest import QtestDied, QtestHang
from qemuglue.witness.dma.device import apart, heard
from qemuglue.witness.face import SIZED_READS, SIZED_WRITES, encode_all
from qemuglue.witness.fastroad import SIZED
from qemuglue.witness.judging import READS, BatchJudge, Suspicion
from qemuglue.witness.oddities import reason
from qemuglue.witness.session import Session, Step
from qemuglue.witness.settling import Settler, ram_suspicion
from qemuglue.witness.verdict import Kind, Tally, Verdict

#: Operations in one batch. Rates hardly grow beyond this, and a death costs less evidence.
BATCH = 256


class Stop(enum.Enum):
    """Why a run ended."""

    DONE = "every operation was performed"
    SUSPICION = "model and QEMU part"
    DIED = "QEMU ended"
    HANG = "QEMU does not answer"


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended. ``done`` is the number of steps known to be performed."""

    stop: Stop
    done: int
    suspicion: Suspicion | None = None
    error: QtestDied | QtestHang | None = None


#: What ends a batch (``FastMap``): the rule of the strictest place decides for an operation.
_STRICTNESS: Final = {None: 0, "after": 1, "solo": 2, "kick": 3, "avoid": 4}

#: No flash erases more than this at one write (boards have sectors of 64 to 256 KiB).
FLASH_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch that QEMU has been sent: its steps, the number of the first, what ends it, and
    the address whose refusal marks its end in the transcript."""

    steps: Sequence[Step]
    base: int
    barrier: Step | None
    marker: int


class LockStep:
    """Runs steps on a session and judges them into ``tally``.

    While one batch is judged the next is already under way, unless a barrier ends the first.
    ``slow`` performs one operation at a time, with RAM compared after each; ``account`` then
    holds what the model and QEMU say of it.
    """

    def __init__(
        self, session: Session, *, tally: Tally | None = None, slow: bool = False,
        batch: int = BATCH, features: set[object] | None = None, full_ram_every: int = 1,
        avoid: bool = True,
    ) -> None:
        self.session = session
        if session.tamper is not None:
            session.tamper(session.process)
        self.tally = tally if tally is not None else Tally()
        self.slow = slow
        self.batch = 1 if slow else batch
        self.judge = BatchJudge(session, self.tally, slow=slow, features=features)
        #: Whether what ``oddities`` lists is left out.
        self.avoid = avoid
        #: Slow mode compares all of RAM after every so many operations.
        self.full_ram_every = full_ram_every
        self._operations = 0
        self._settler = Settler(session, self.tally)

    @property
    def account(self) -> tuple[list[str], list[str]]:
        """Of the last operation, slow mode only: (model says, QEMU says), a line a piece."""
        return self.judge.account

    # -- running -------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step]) -> RunEnd:
        """Perform and judge ``steps``; stops early at the first suspicion or death.

        After anything but DONE the session is of no further use.
        """
        at = 0
        self._settler.acted = False
        flying: _Batch | None = None
        while flying is not None or at < len(steps):
            if flying is None:
                if steps[at][0].verb == "reset":
                    stray = self._reset(steps[at], at)
                    if stray is not None:
                        return RunEnd(Stop.SUSPICION, at, stray)
                    at += 1
                    continue
                stop, barrier = self._next_batch(steps, at)
                if stop == at:
                    self._pass_over(steps[at])
                    at += 1
                    continue
                flying = self._send(steps[at:stop], at, barrier)
                at = stop
            ahead: _Batch | None = None
            if flying.barrier is None and not self.slow and at < len(steps):
                stop, barrier = self._next_batch(steps, at, ahead=True)
                if stop > at:
                    ahead = self._send(steps[at:stop], at, barrier)
                    at = stop
            end, overtaken = self._take(flying, ahead)
            if end is not None:
                return end
            flying = None if overtaken else ahead
        if not self.slow and steps:
            suspicion = self._settler.settle(steps[-1], at - 1)
            # A device that acted may have written anywhere; else only the model's pages changed.
            suspicion = suspicion or self.check_ram(full=self._settler.acted)
            if suspicion is not None:
                return RunEnd(Stop.SUSPICION, at, suspicion)
        return RunEnd(Stop.DONE, at)

    def _reset(self, step: Step, index: int) -> Suspicion | None:
        session = self.session
        self.judge.account = ([], [])
        session.journal.append(step)
        session.process.monitor.execute("system_reset")
        session.quiesce()
        stray = self._strays(step, index)
        session.after_reset()
        self.tally.verbs["reset"] += 1
        self.tally.cells[Kind.EVENT, Verdict.RESET] += 1
        return stray

    def _strays(self, step: Step, index: int) -> Suspicion | None:
        """RAM that somebody wrote before a reset, whose comparison will not come any more. With a
        device in the middle of something nobody can say whose doing it is."""
        if self._settler.pending():
            return None
        found = self.session.strays_at_reset()
        return ram_suspicion(found, step, index, self.session.following.names()) if found else None

    def _next_batch(
        self, steps: Sequence[Step], at: int, *, ahead: bool = False
    ) -> tuple[int, Step | None]:
        """(stop, the barrier that ends it or None); stop is ``at`` if that step is avoided, or,
        ``ahead`` of the batch before, if it must see that one's end first."""
        stop = min(at + self.batch, len(steps))
        fast = self.session.fast
        rom_device = Kind.ROMD in fast.kinds
        free_reads = {} if fast.read_barriers or rom_device else SIZED_READS
        free_writes = {} if fast.write_barriers else SIZED_WRITES
        starts, limits, rbarrier, wbarrier = (
            fast.starts, fast.limits, fast.rbarrier, fast.wbarrier)
        for index in range(at, stop):
            op, addr = steps[index]
            verb = op.verb
            if verb in free_reads or verb in free_writes:
                continue
            way = SIZED.get(verb)
            if way is not None:  # most lie inside one section that nothing is known of
                i = bisect_right(starts, addr) - 1
                barred = wbarrier[i] if way[1] else rbarrier[i]
                if addr + way[0] <= limits[i]:
                    if barred is None:
                        continue
                    place = addr + fast.delta[i]
                    if barred == "kick" and apart(fast.heeds[i], place, way[0]):
                        continue
                    if barred in ("kick", "learnt") and self._rule(
                        fast.sections[i].region, place, way[0],
                        self._written(op) if way[1] else None
                    ) is None:
                        continue
            if verb == "reset":
                return index, None
            barrier = self._is_barrier(op, addr)
            if barrier == "avoid" and not self.avoid:
                barrier = "solo"
            if barrier is not None:
                if barrier == "avoid" or (barrier in ("solo", "kick") and index > at):
                    return index, None
                if ahead and barrier in ("solo", "kick"):
                    return index, None
                if barrier == "kick" and self._floods(op, addr):
                    return index, None
                return index + 1, steps[index]
        return stop, None

    def ends_batch(self, op: Operation, addr: int) -> bool:
        """Whether the operation is a barrier, is not sent at all, or cannot be judged."""
        return op.verb == "reset" or self._is_barrier(op, addr) is not None or any(
            self.session.unjudgeable(section.region) is not None
            for section in self.judge.sections(op, addr))

    def _pass_over(self, step: Step) -> None:
        """An operation that is not sent, see ``oddities``."""
        op, addr = step
        self.judge.account = ([], [])
        self.tally.verbs[op.verb] += 1
        self.tally.cells[self.judge.kind(op, addr), Verdict.UNJUDGED] += 1
        sections = self.judge.sections(op, addr)
        avoided = self.session.avoided
        sections.sort(key=lambda section: avoided.why(section.region.name) is None)
        for section in sections:
            why = self.session.unjudgeable(section.region)
            if op.verb in SIZED_READS and section.region.kind is RegionKind.ROM_DEVICE:
                why = reason("rom-device-end")
            if self.session.following.of(section.region) is not None:
                why = (f"{section.region.name}: a write is not sent that would start more than can "
                       "be waited for, or nobody can tell how much")
            if why is not None:
                self.tally.reasons[why] += 1
                return

    def _floods(self, op: Operation, addr: int) -> bool:
        """Whether a decoded device says that it would do more than can be waited for."""
        data = self._written(op)
        for section in self.judge.sections(op, addr):
            device = self.session.following.of(section.region)
            if device is not None and heard(device):
                start = section.start - addr
                offset = section.offset if start >= 0 else section.offset - start
                piece = data[max(0, start) : start + section.size]
                if device.floods(section.region, offset, piece):
                    return True
        return False

    def _written(self, op: Operation) -> bytes:
        """The bytes a write moves, in address order."""
        if op.verb == "write":
            return op.data
        if op.verb == "memset":
            return bytes([op.value]) * op.size
        return self.session.face.value_bytes(op.value, op.size)

    def _is_barrier(self, op: Operation, addr: int) -> str | None:
        """None; "after": the batch ends with it; "solo": it is a batch of its own. Of all the
        places it touches the strictest decides."""
        fast = self.judge.fast(op)
        is_read = op.verb in READS or op.verb == "read"
        i = bisect_right(fast.starts, addr) - 1
        table = fast.rbarrier if is_read else fast.wbarrier
        last = addr + op.size
        if op.verb in SIZED_READS and last > fast.limits[i] and fast.kinds[i] is Kind.ROMD:
            return "avoid"
        strictest: str | None = None
        while True:
            rule = table[i]
            if rule == "learnt" or rule == "kick":
                section = fast.sections[i]
                start = max(addr, section.start)
                size = min(last, fast.limits[i]) - start
                data = None if is_read else self._written(op)[start - addr :][:size]
                rule = self._rule(section.region, start + fast.delta[i], size, data)
            if _STRICTNESS[rule] > _STRICTNESS[strictest]:
                strictest = rule
            if last <= fast.limits[i]:
                return strictest
            i += 1
            if i == len(fast.starts):  # on at address 0
                i, addr, last = 0, addr - fast.limits[-1], last - fast.limits[-1]

    def _rule(
        self, region: MemoryRegion, offset: int, size: int, data: bytes | None
    ) -> str | None:
        """The same for one place where it depends on the access; ``data`` is None for a read."""
        barriers = self.session.knowledge.barriers
        device = self.session.following.of(region)
        if data is not None:
            if device is not None and heard(device) and device.kicks(region, offset, data):
                return "kick"
            if barriers.always(region):
                return "after"
        return "after" if barriers.has(region, offset, size, data) else None

    # -- one batch -----------------------------------------------------------------------------

    def _send(self, steps: Sequence[Step], base: int, barrier: Step | None) -> _Batch:
        session = self.session
        marker = session.next_marker()
        lines = encode_all(steps)
        lines.append(b"readb 0x%x\n" % marker)
        session.journal.extend(steps)
        session.process.channel.send(b"".join(lines), len(lines))
        return _Batch(steps, base, barrier, marker)

    def _take(self, batch: _Batch, ahead: _Batch | None) -> tuple[RunEnd | None, bool]:
        """Judge a batch that was sent: (how the run ends or None, whether ``ahead`` went off on
        a map that this batch had changed and was given up)."""
        session = self.session
        steps, base = batch.steps, batch.base
        error: QtestDied | QtestHang | None = None
        try:
            lines = session.process.channel.collect(len(steps) + 1)
            lines.pop()
        except (QtestDied, QtestHang) as caught:
            error = caught
            lines = caught.partial.split(b"\n")[:-1]
        evidence = session.evidence
        evidence.load(session.events_until(batch.marker))
        judged = self.judge.judge(steps, lines, base)
        if isinstance(judged, Suspicion):
            # A death explains what is missing; the death is the finding.
            last = base + len(lines) - 1
            if error is None or (judged.index is not None and judged.index < last):
                return self._suspected(batch, ahead, judged)
        if error is not None:
            stop = Stop.DIED if isinstance(error, QtestDied) else Stop.HANG
            return RunEnd(stop, base + min(len(lines), len(steps)), error=error), False
        assert not isinstance(judged, Suspicion)
        evidence.finish()
        if evidence.mismatch is not None:
            op, addr = steps[-1]
            suspicion = self.judge.suspect(op, addr, base + len(steps) - 1, "extra")
            return self._suspected(batch, ahead, suspicion)
        changed = evidence.topology or evidence.replaced is not None
        overtaken = changed and ahead is not None
        if overtaken and ahead is not None:
            lost = self._give_up(ahead)
            if lost is not None:
                return lost, True
        return self._after_batch(steps, base, batch.barrier, judged or int(overtaken)), overtaken

    def _suspected(
        self, batch: _Batch, ahead: _Batch | None, suspicion: Suspicion
    ) -> tuple[RunEnd | None, bool]:
        """Model and QEMU part; unless the machine was reset meanwhile, which explains it."""
        if ahead is not None:
            lost = self._give_up(ahead)
            if lost is not None:
                return lost, True
        session = self.session
        if not session.reset_seen():
            return RunEnd(Stop.SUSPICION, batch.base + len(batch.steps), suspicion), False
        index = suspicion.index if suspicion.index is not None else batch.base
        self.judge.unjudge(batch.steps[index - batch.base :], "after a reset nobody foresaw")
        self.tally.verbs.subtract([batch.steps[index - batch.base][0].verb])
        session.evidence.replaced = None
        self._start_over()
        return None, True

    def _start_over(self) -> None:
        """The machine was reset: take its map and its RAM again."""
        self.tally.cells[Kind.EVENT, Verdict.RESET] += 1
        self.session.after_reset()

    def _give_up(self, ahead: _Batch) -> RunEnd | None:
        """A batch that overtook a change of the map: QEMU did it, nobody can judge it."""
        session = self.session
        try:
            session.process.channel.collect(len(ahead.steps) + 1)
        except (QtestDied, QtestHang) as error:
            stop = Stop.DIED if isinstance(error, QtestDied) else Stop.HANG
            return RunEnd(stop, ahead.base + min(error.replies, len(ahead.steps)), error=error)
        session.evidence.overlook(session.events_until(ahead.marker))
        self.judge.unjudge(ahead.steps, "slipped past an unforeseen change of the map")
        return None

    def _after_batch(
        self, steps: Sequence[Step], base: int, barrier: Step | None, slipped: int
    ) -> RunEnd | None:
        """What may have changed underneath: the map, the machine, RAM."""
        session = self.session
        evidence = session.evidence
        self.tally.side_accesses.update(evidence.sides)
        evidence.sides.clear()
        changed = evidence.topology
        if slipped:  # QEMU did them, the model did not: before RAM is compared with it
            session.ram.adopt_all()
        if evidence.stored:
            self._adopt_stored()
        pending = self._settler.pending()
        if self.slow or pending or (barrier is not None and self._waits(barrier)):
            events = session.quiesce()
            if "RESET" in events:
                stray = self._after_reset(steps[-1], base + len(steps) - 1)
                return None if stray is None else RunEnd(Stop.SUSPICION, base + len(steps), stray)
            later = session.events()
            self._settler.early = later
            changed = changed or any(event.kind is EventKind.FLATVIEW_NEW for event in later)
        if evidence.replaced is not None:
            session.replaced(evidence.replaced)
            evidence.replaced = None
        if changed:
            session.refresh()
        if pending or barrier is not None or self.slow:
            suspicion = self._settler.settle(steps[-1], base + len(steps) - 1)
            self.judge.account[0].extend(self._settler.told)
            if suspicion is not None:
                return RunEnd(Stop.SUSPICION, base + len(steps), suspicion)
        if self.slow and not slipped:
            self._operations += 1
            full = self._operations % self.full_ram_every == 0
            suspicion = self.check_ram(full=full, steps=(base, steps))
            if suspicion is not None:
                return RunEnd(Stop.SUSPICION, base + len(steps), suspicion)
        return None

    def _adopt_stored(self) -> None:
        """A ROM device's memory is its own: what it programs or erases at a write is taken
        over, within the block that the write lies in."""
        ram = self.session.ram
        stored = self.session.evidence.stored
        blocks = {(region, offset & -FLASH_BLOCK) for region, offset in stored}
        if [block for block in blocks if ram.adopt_range(*block, FLASH_BLOCK)]:
            self.tally.cells[Kind.ROMD, Verdict.ADOPTED] += 1

    def _waits(self, barrier: Step) -> bool:
        op, addr = barrier
        barriers = self.session.knowledge.barriers
        return any(barriers.waits(section.region) for section in self.judge.sections(op, addr))

    def _after_reset(self, step: Step, index: int) -> Suspicion | None:
        op, addr = step
        session = self.session
        kind = self.judge.kind(op, addr)
        if self.tally.cells[kind, Verdict.MATCH] > 0:
            self.tally.cells[kind, Verdict.MATCH] -= 1
            self.tally.cells[kind, Verdict.RESET] += 1
        self.judge.learn_barrier(step)
        stray = self._strays(step, index)
        session.after_reset()
        return stray

    # -- RAM -------------------------------------------------------------------------------------

    def check_ram(
        self, *, full: bool, steps: tuple[int, Sequence[Step]] | None = None
    ) -> Suspicion | None:
        """Compare guest RAM; what a device was told to write is adopted, the rest suspected."""
        session = self.session
        ram = session.ram
        found = ram.check_all() if full else ram.check_dirty()
        if not found:
            return None
        if session.reset_seen():
            self._start_over()
            return None
        if self.judge.may_be_dma():
            ram.adopt_all()
            self.tally.cells[Kind.RAM, Verdict.UNJUDGED] += 1
            return None
        index, step = None, None
        if steps is not None:
            base, batch = steps
            index, step = base + len(batch) - 1, batch[-1]
        return ram_suspicion(found, step, index, session.following.names())
