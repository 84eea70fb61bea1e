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

from qemuglue.memory.address_space import MASK64
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MemoryRegion
from qemuglue.program.operation import Operation
from qemuglue.qemu.events import Event
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.qemu.qtest import QtestDied, QtestHang
from qemuglue.witness.contracts import Learned, with_endian
from qemuglue.witness.dma import KICK_REGIONS, LONGEST, floods, ranges
from qemuglue.witness.evidence import Expected
from qemuglue.witness.face import (
    OK_REPLY,
    PORT_READS,
    PORT_WRITES,
    SIZED_READS,
    SIZED_WRITES,
    Outcome,
    encode,
)
from qemuglue.witness.fastmap import FastMap
from qemuglue.witness.ram import PAGE_BITS
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind, Tally, Verdict

#: Operations in one batch. Rates hardly grow beyond this, and a death costs less evidence.
BATCH = 256

#: Reply of a write, and of nothing else.
_READS = SIZED_READS | PORT_READS
_PORTS = PORT_READS | PORT_WRITES


class Stop(enum.Enum):
    """Why a run ended."""

    DONE = "every operation was performed"
    SUSPICION = "model and QEMU part"
    DIED = "QEMU ended"
    HANG = "QEMU does not answer"


@dataclass(frozen=True, slots=True)
class Suspicion:
    """``index`` counts the steps of the run; None for RAM that differs at its end."""

    index: int | None
    step: Step | None
    kind: Kind
    what: str  #: "reply", "access", "extra", "ram"
    model: tuple[str, ...]
    qemu: tuple[str, ...]
    region: str = ""
    #: Names of the regions the operation's bytes lie in.
    targets: tuple[str, ...] = ()
    #: (region whose device was called last, region of the event that did not fit).
    side: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended. ``done`` is the number of steps known to be performed."""

    stop: Stop
    done: int
    suspicion: Suspicion | None = None
    error: QtestDied | QtestHang | None = None


class LockStep:
    """Runs steps on a session and judges them into ``tally``.

    ``slow`` judges one operation at a time, with RAM compared after each, and allows
    device-initiated accesses anywhere but on the operation's own regions; it also records
    what the model and QEMU say of each operation in ``account``.
    """

    def __init__(
        self, session: Session, *, tally: Tally | None = None, slow: bool = False,
        batch: int = BATCH, features: set[object] | None = None, full_ram_every: int = 1,
    ) -> None:
        self.session = session
        self.tally = tally if tally is not None else Tally()
        self.slow = slow
        self.batch = 1 if slow else batch
        self.features = features
        #: Slow mode compares all of RAM after every so many operations.
        self.full_ram_every = full_ram_every
        self._operations = 0
        #: Of the last operation, slow mode only: (model says, QEMU says), a line a piece.
        self.account: tuple[list[str], list[str]] = ([], [])
        self._shape: list[object] = []
        session.evidence.lenient = slow
        watch = slow or features is not None
        session.evidence.on_piece = self._on_piece if watch else None

    # -- running -------------------------------------------------------------------------------

    def run(self, steps: Sequence[Step]) -> RunEnd:
        """Perform and judge ``steps``; stops early at the first suspicion or death."""
        at = 0
        while at < len(steps):
            if steps[at][0].verb == "reset":
                end = self._reset(steps[at], at)
                stop = at + 1
            else:
                stop, barrier = self._next_batch(steps, at)
                if stop == at:
                    self._pass_over(steps[at])
                    at += 1
                    continue
                end = self._do_batch(steps[at:stop], at, barrier)
            if end is not None:
                return end
            at = stop
        if self.slow:
            return RunEnd(Stop.DONE, at)
        suspicion = self.check_ram(full=False)
        if suspicion is not None:
            return RunEnd(Stop.SUSPICION, at, suspicion)
        return RunEnd(Stop.DONE, at)

    def _reset(self, step: Step, index: int) -> RunEnd | None:
        session = self.session
        self.account = ([], [])
        session.journal.append(step)
        session.process.monitor.execute("system_reset")
        session.quiesce()
        session.events()
        session.refresh()
        session.ram.adopt_all()
        self.tally.verbs["reset"] += 1
        self.tally.cells[Kind.EVENT, Verdict.RESET] += 1
        return None

    def _next_batch(self, steps: Sequence[Step], at: int) -> tuple[int, Step | None]:
        """(stop, the barrier that ends it or None); stop is ``at`` if that step is avoided."""
        stop = min(at + self.batch, len(steps))
        for index in range(at, stop):
            op, addr = steps[index]
            if op.verb == "reset":
                return index, None
            barrier = self._is_barrier(op, addr)
            if barrier is not None:
                if barrier == "avoid" or (barrier in ("solo", "kick") and index > at):
                    return index, None
                if barrier == "kick" and self._floods(op, addr):
                    return index, None
                return index + 1, steps[index]
        return stop, None

    def _pass_over(self, step: Step) -> None:
        """An operation that is not sent, see ``oddities``."""
        op, addr = step
        self.account = ([], [])
        self.tally.verbs[op.verb] += 1
        self.tally.cells[self._kind(op, addr), Verdict.UNJUDGED] += 1
        for section in self._sections(op, addr):
            why = self.session.unjudgeable(section.region)
            if section.region.name in KICK_REGIONS:
                why = f"{section.region.name}: a DMA of more than {LONGEST} bytes is not started"
            if why is not None:
                self.tally.reasons[why] += 1
                return

    def _floods(self, op: Operation, addr: int) -> bool:
        session = self.session
        data = self._written(op)
        for section in self._sections(op, addr):
            if section.region.name in KICK_REGIONS:
                start = section.start - addr
                offset = section.offset if start >= 0 else section.offset - start
                if floods(session.dma, session.mirror.memory, offset, data[max(0, start):]):
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
        """None; "after": the batch ends with it; "solo": it is a batch of its own."""
        fast = self._fast(op)
        is_read = op.verb in _READS or op.verb == "read"
        i = bisect_right(fast.starts, addr) - 1
        table = fast.rbarrier if is_read else fast.wbarrier
        last = addr + op.size
        while True:
            rule = table[i]
            if rule is not None:
                if rule != "learnt":
                    return rule
                section = fast.sections[i]
                start = max(addr, section.start)
                size = min(last, fast.limits[i]) - start
                data = None if is_read else self._written(op)[start - addr :]
                if self.session.knowledge.barriers.has(
                    section.region, start + fast.delta[i], size, data
                ):
                    return "after"
            if last <= fast.limits[i]:
                return None
            i = (i + 1) % len(fast.starts)
            if i == 0:
                return None

    def _fast(self, op: Operation) -> FastMap:
        if op.verb in _PORTS:
            assert self.session.fast_io is not None, "this machine has no I/O space"
            return self.session.fast_io
        return self.session.fast

    # -- one batch -----------------------------------------------------------------------------

    def _do_batch(self, steps: Sequence[Step], base: int, barrier: Step | None) -> RunEnd | None:
        session = self.session
        request = b"".join([encode(op, addr) for op, addr in steps])
        session.journal.extend(steps)
        error: QtestDied | QtestHang | None = None
        try:
            lines = session.exchange(request, len(steps))
        except (QtestDied, QtestHang) as caught:
            error = caught
            lines = caught.partial.split(b"\n")[:-1]
        evidence = session.evidence
        evidence.load(session.events())
        judged = self._judge(steps, lines, base)
        if isinstance(judged, Suspicion):
            # A death explains what is missing; the death is the finding.
            last = base + len(lines) - 1
            if error is None or (judged.index is not None and judged.index < last):
                return RunEnd(Stop.SUSPICION, base + len(lines), judged)
        if error is not None:
            stop = Stop.DIED if isinstance(error, QtestDied) else Stop.HANG
            return RunEnd(stop, base + len(lines), error=error)
        assert not isinstance(judged, Suspicion)
        evidence.finish()
        if evidence.mismatch is not None:
            op, addr = steps[-1]
            suspicion = self._suspect(op, addr, base + len(steps) - 1, "extra")
            return RunEnd(Stop.SUSPICION, base + len(steps), suspicion)
        return self._after_batch(steps, base, barrier, judged)

    def _after_batch(
        self, steps: Sequence[Step], base: int, barrier: Step | None, slipped: int
    ) -> RunEnd | None:
        """What may have changed underneath: the map, the machine, RAM."""
        session = self.session
        evidence = session.evidence
        self.tally.side_accesses.update(evidence.sides)
        evidence.sides.clear()
        changed = evidence.topology
        if evidence.kicks:
            self._adopt_kicked()
        if barrier is not None and self._waits(barrier):
            events = session.quiesce()
            if "RESET" in events:
                self._after_reset(steps[-1])
                return None
            later = session.events()
            changed = changed or any(event.kind is EventKind.FLATVIEW_NEW for event in later)
        if evidence.replaced is not None:
            session.replaced(evidence.replaced)
            evidence.replaced = None
        if changed:
            session.refresh()
        if slipped:
            session.ram.adopt_all()
        elif self.slow:
            self._operations += 1
            full = self._operations % self.full_ram_every == 0
            suspicion = self.check_ram(full=full, steps=(base, steps))
            if suspicion is not None:
                return RunEnd(Stop.SUSPICION, base + len(steps), suspicion)
        return None

    def _adopt_kicked(self) -> None:
        """Take over what devices wrote where the program told them to."""
        session = self.session
        adopted = False
        for region, offset, size in list(
            ranges(session.dma, session.evidence.kicks, session.mirror.memory)
        ):
            adopted = session.ram.adopt_range(region, offset, size) or adopted
        if adopted:
            self.tally.cells[Kind.RAM, Verdict.ADOPTED] += 1

    def _waits(self, barrier: Step) -> bool:
        op, addr = barrier
        barriers = self.session.knowledge.barriers
        return any(barriers.waits(section.region) for section in self._sections(op, addr))

    def _after_reset(self, step: Step) -> None:
        op, addr = step
        session = self.session
        kind = self._kind(op, addr)
        if self.tally.cells[kind, Verdict.MATCH] > 0:
            self.tally.cells[kind, Verdict.MATCH] -= 1
            self.tally.cells[kind, Verdict.RESET] += 1
        self._learn_barrier(op, addr)
        session.events()
        session.refresh()
        session.ram.adopt_all()

    def _learn_barrier(self, op: Operation, addr: int) -> None:
        is_write = not (op.verb in _READS or op.verb == "read")
        for section in self._sections(op, addr):
            start = max(addr, section.start) - section.start + section.offset
            self.session.knowledge.barriers.learn(section.region, start, is_write)

    # -- judging -------------------------------------------------------------------------------

    def _judge(
        self, steps: Sequence[Step], lines: Sequence[bytes], base: int
    ) -> Suspicion | int:
        """The suspicion, or how many operations slipped past an unforeseen change."""
        session = self.session
        evidence, fast = session.evidence, session.fast
        starts, limits, delta = fast.starts, fast.limits, fast.delta
        rdata, wdata, dirty, kinds = fast.rdata, fast.wdata, fast.dirty, fast.kinds
        order = session.face.order
        cells, verbs = self.tally.cells, self.tally.verbs
        from_bytes = int.from_bytes
        match = Verdict.MATCH
        features, slow = self.features, self.slow
        done = min(len(steps), len(lines))
        counts = [0] * len(starts)
        suspicion: Suspicion | None = None
        slipped = 0
        for k in range(done):
            op, addr = steps[k]
            verb = op.verb
            verbs[verb] += 1
            size = None if slow else SIZED_READS.get(verb)
            if size is not None:
                i = bisect_right(starts, addr) - 1
                data = rdata[i]
                if data is not None and addr + size <= limits[i]:
                    at = addr + delta[i]
                    owed = b"OK 0x%016x" % from_bytes(data[at : at + size], order)
                    if lines[k] == owed:
                        counts[i] += 1
                        if features is not None:
                            features.add((kinds[i], verb))
                        continue
                    if self._may_be_dma():
                        cells[kinds[i], Verdict.UNJUDGED] += 1
                        session.ram.adopt_all()
                        continue
                    suspicion = self._reply_suspicion(op, addr, base + k, owed, lines[k])
                    break
            else:
                size = None if slow else SIZED_WRITES.get(verb)
                if size is not None:
                    i = bisect_right(starts, addr) - 1
                    data = wdata[i]
                    if data is not None and addr + size <= limits[i]:
                        at = addr + delta[i]
                        data[at : at + size] = op.value.to_bytes(size, order)
                        dirty[i].add(at >> PAGE_BITS)
                        dirty[i].add((at + size - 1) >> PAGE_BITS)
                        if lines[k] == OK_REPLY:
                            counts[i] += 1
                            if features is not None:
                                features.add((kinds[i], verb))
                            continue
                        suspicion = self._reply_suspicion(op, addr, base + k, OK_REPLY, lines[k])
                        break
            found = self._judge_one(op, addr, base + k, lines[k])
            if found is not None:
                suspicion = found
                break
            if evidence.replaced is not None:
                slipped = self._unjudge(steps[k:done], "a namesake took the region's place")
                break
            if evidence.topology:
                slipped = done - k - 1
                if slipped:
                    self._learn_barrier(op, addr)
                    self._unjudge(
                        steps[k + 1 : done], "slipped past an unforeseen change of the map"
                    )
                break
        for i, n in enumerate(counts):
            if n:
                cells[kinds[i], match] += n
        return suspicion if suspicion is not None else slipped

    def _unjudge(self, steps: Sequence[Step], why: str) -> int:
        """Nothing can be said of these any more; how many they are."""
        for op, addr in steps:
            self.tally.verbs[op.verb] += 1
            self.tally.cells[self._kind(op, addr), Verdict.UNJUDGED] += 1
        self.tally.reasons[why] += len(steps)
        self.session.evidence.pos = len(self.session.evidence.events)
        self.session.evidence.mismatch = None
        return len(steps)

    def _judge_one(self, op: Operation, addr: int, index: int, reply: bytes) -> Suspicion | None:
        """The general road: anything on the model, its devices answering from the transcript."""
        session = self.session
        evidence = session.evidence
        sections = self._sections(op, addr)
        kind = self._kind(op, addr)
        cells = self.tally.cells
        evidence.op_addr, evidence.op_size = addr, op.size
        if self.slow:
            evidence.targets = {section.region.name for section in sections}
            self.account = ([], [])
        for section in sections:
            why = session.unjudgeable(section.region)
            if why is not None:
                evidence.pos = len(evidence.events)  # it is alone in its batch
                cells[kind, Verdict.UNJUDGED] += 1
                self.tally.reasons[why] += 1
                return None
        self._shape.clear()
        session.learnt_now = False
        evidence.swallowed = False
        before = evidence.pos
        outcome = session.face.perform(op, addr)
        if evidence.replaced is not None:
            return None
        if evidence.mismatch is not None or outcome.reply != reply:
            outcome = self._other_order(op, addr, sections, before, reply, outcome)
        if evidence.mismatch is not None:
            return self._suspect(op, addr, index, "access")
        if outcome.reply != reply:
            if any(section.region.is_ram for section in sections) and self._may_be_dma():
                cells[kind, Verdict.UNJUDGED] += 1
                session.ram.adopt_all()
                return None
            return self._reply_suspicion(op, addr, index, outcome.reply, reply)
        if self.slow:
            self.account[0].append(f"reply {_short(outcome.reply)}")
            self.account[1].append(f"reply {_short(reply)}")
        if evidence.pos < len(evidence.events):
            evidence.settle()
        if self.features is not None:
            self.features.add((kind, op.verb, tuple(self._shape), outcome.result))
        if evidence.swallowed:
            cells[kind, Verdict.UNJUDGED] += 1
            self.tally.reasons["a write that an ioeventfd may have swallowed"] += 1
        elif session.learnt_now:
            cells[kind, Verdict.LEARNT] += 1
        else:
            cells[kind, Verdict.MATCH] += 1
        return None

    def _other_order(
        self, op: Operation, addr: int, sections: Sequence[MemoryRegionSection], before: int,
        reply: bytes, outcome: Outcome,
    ) -> Outcome:
        """A device whose byte order nobody has seen yet may have the other one: the first
        evidence decides and is binding from then on."""
        session = self.session
        evidence = session.evidence
        contracts = session.knowledge.contracts
        candidates: list[tuple[MemoryRegion, Learned]] = []
        for section in sections:
            learned = contracts.get(session.contract_key(section.region))
            if learned is not None and not learned.endian_known:
                candidates.append((section.region, learned))
        for region, learned in candidates:
            kept, missed = region.contract, evidence.mismatch
            big = not kept.big(session.target_big)
            region.contract = with_endian(kept, big)
            reached = evidence.pos
            evidence.pos, evidence.mismatch = before, None
            second = session.face.perform(op, addr)
            if evidence.mismatch is None and second.reply == reply:
                learned.contract = with_endian(learned.contract, big)
                learned.endian_known = True
                session.learnt_now = True
                return second
            region.contract = kept
            evidence.pos, evidence.mismatch = reached, missed
        return outcome

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
            session.events()
            session.refresh()
            ram.adopt_all()
            self.tally.cells[Kind.EVENT, Verdict.RESET] += 1
            return None
        if self._may_be_dma():
            ram.adopt_all()
            self.tally.cells[Kind.RAM, Verdict.UNJUDGED] += 1
            return None
        index, step = None, None
        if steps is not None:
            base, batch = steps
            index, step = base + len(batch) - 1, batch[-1]
        return Suspicion(
            index, step, Kind.RAM, "ram",
            tuple(f"RAM as written: {d.describe()}" for d in found[:8]),
            tuple(f"{d.region.name}+{d.offset:#x}: {d.qemu[:32].hex()}" for d in found[:8]),
            found[0].region.name,
        )

    def _may_be_dma(self) -> bool:
        """Whether a device that nothing here decodes may have written RAM by itself."""
        suspects = self.session.dma_suspects()
        if suspects:
            names = ", ".join(suspects)
            self.tally.reasons[f"RAM changed while {names} may do DMA of its own"] += 1
        return bool(suspects)

    # -- small things ----------------------------------------------------------------------------

    def _sections(self, op: Operation, addr: int) -> list[MemoryRegionSection]:
        """The sections the bytes of ``op`` lie in, in order, wrapping at 2^64."""
        fast = self._fast(op)
        i = bisect_right(fast.starts, addr) - 1
        sections = [fast.sections[i]]
        left = op.size - (fast.limits[i] - addr)
        while left > 0 and len(sections) < len(fast.sections):
            i = (i + 1) % len(fast.sections)
            sections.append(fast.sections[i])
            left -= fast.limits[i] - fast.starts[i]
        return sections

    def _kind(self, op: Operation, addr: int) -> Kind:
        fast = self._fast(op)
        i = bisect_right(fast.starts, addr) - 1
        return fast.kinds[i] if addr + op.size <= fast.limits[i] else Kind.CROSSING

    def _on_piece(self, expected: Expected, event: Event) -> None:
        if self.features is not None:
            reason = expected.reason.value if expected.reason is not None else None
            self._shape.append((expected.region.name, expected.size, reason))
        if self.slow:
            self.account[0].append(expected.describe())
            self.account[1].append(self.session.evidence.describe_event(event))

    def _reply_suspicion(
        self, op: Operation, addr: int, index: int, owed: bytes, reply: bytes
    ) -> Suspicion:
        region = self._sections(op, addr)[0].region.name
        return Suspicion(
            index, (op, addr), self._kind(op, addr), "reply",
            (*self.account[0], f"reply {_short(owed)}"),
            (*self.account[1], f"reply {_short(reply)}"), region,
        )

    def _suspect(self, op: Operation, addr: int, index: int, what: str) -> Suspicion:
        mismatch = self.session.evidence.mismatch
        assert mismatch is not None
        model, seen = mismatch.describe()
        region = self._sections(op, addr)[0].region.name
        return Suspicion(
            index, (op, addr & MASK64), self._kind(op, addr), what,
            (*self.account[0], model), (*self.account[1], seen), region,
            tuple(section.region.name for section in self._sections(op, addr)),
            (self.session.evidence.last_name, mismatch.seen.name or "")
            if mismatch.seen is not None else None,
        )


#: Longest reply shown; a long ``read`` says little more in full.
_REPLY_SHOWN = 200


def _short(reply: bytes) -> str:
    text = reply.decode("ascii", "backslashreplace")
    return text if len(text) <= _REPLY_SHOWN else f"{text[:_REPLY_SHOWN]}… ({len(text)} characters)"
