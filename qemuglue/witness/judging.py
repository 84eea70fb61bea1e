"""Judging one batch: what QEMU replied and logged, against the model, operation by operation.

Two roads to the same rules. The *fast* one (``fastroad``) serves an access inside one section:
RAM is a slice of the model's bytes; the lines that an access to a device owes to the transcript
are compared as text, in a form that the rules made once (``plan``, ``forms``). Whatever does not
fit takes the *general* road: the model performs the operation, its devices answering from the
transcript (``evidence``), and only that road ever finds fault.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from qemuglue.memory.attrs import MemTxResult
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MASK64, MemoryRegion, RegionKind
from qemuglue.program.operation import Operation
from qemuglue.qemu.events import Event
from qemuglue.witness.contracts import Learned, with_endian
from qemuglue.witness.evidence import Expected
from qemuglue.witness.face import (
    PORT_READS,
    PORT_WRITES,
    SIZED_READS,
    Outcome,
)
from qemuglue.witness.fastmap import FastMap
from qemuglue.witness.fastroad import PORT_ROOT_SIZE, FastRoad
from qemuglue.witness.session import Session, Step
from qemuglue.witness.verdict import Kind, Tally, Verdict

#: Choices of byte orders tried for one access that touches devices of unknown order.
MAX_CHOICES = 64

#: Why an access that a flash chip changed its mode under is not judged.
MODE_CHANGED = "a ROM device changed its mode in the middle of the access"

#: Why an access to a region that the mirror may have taken for its namesake is not judged.
MISTAKEN = "QEMU's texts do not tell which of two namesakes an alias shows"

READS = SIZED_READS | PORT_READS
PORTS = PORT_READS | PORT_WRITES


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


class BatchJudge:
    """Judges batches of one session into ``tally``.

    ``slow`` takes only the general road, allows device-initiated accesses anywhere but on the
    operation's own regions, and keeps in ``account`` what model and QEMU say of the last one.
    """

    def __init__(
        self, session: Session, tally: Tally, *, slow: bool, features: set[object] | None
    ) -> None:
        self.session = session
        self.tally = tally
        self.slow = slow
        self.features = features
        #: Of the last operation, slow mode only: (model says, QEMU says), a line a piece.
        self.account: tuple[list[str], list[str]] = ([], [])
        self._shape: list[object] = []
        session.evidence.lenient = session.following.telling = slow
        watch = slow or features is not None
        session.evidence.on_piece = self._on_piece if watch else None

    def judge(
        self, steps: Sequence[Step], lines: Sequence[bytes], base: int
    ) -> Suspicion | int:
        """The suspicion, or how many operations slipped past an unforeseen change."""
        evidence = self.session.evidence
        judge = self._judge_slowly if self.slow else self._judge_fast
        result = judge(steps, lines, base)
        if isinstance(result, Suspicion):
            return result
        done = min(len(steps), len(lines))
        k, slipped = result, 0
        if evidence.replaced is not None:
            slipped = self.unjudge(steps[k:done], "a namesake took the region's place")
        elif evidence.topology and k + 1 < done:
            slipped = self.unjudge(
                steps[k + 1 : done], "slipped past an unforeseen change of the map"
            )
            self.learn_barrier(steps[k])
        return slipped

    def _judge_slowly(
        self, steps: Sequence[Step], lines: Sequence[bytes], base: int
    ) -> Suspicion | int:
        """Every operation on the general road; the suspicion, or the last one judged."""
        evidence = self.session.evidence
        k = -1
        for k, (op, addr) in enumerate(steps[: len(lines)]):
            found = self.judge_one(op, addr, base + k, lines[k])
            if found is not None:
                return found
            if evidence.replaced is not None or evidence.topology:
                break
        return k

    def _judge_fast(
        self, steps: Sequence[Step], lines: Sequence[bytes], base: int
    ) -> Suspicion | int:
        """Both roads; the suspicion, or the last one judged."""
        evidence = self.session.evidence
        road = FastRoad(self.session, self.tally, self.features)
        at, stop = 0, min(len(steps), len(lines))
        try:
            while True:
                at = road.run(steps, lines, at, stop)
                if evidence.mismatch is not None:
                    op, addr = steps[at - 1]
                    return self.suspect(op, addr, base + at - 1, "access")
                if at == stop or evidence.topology:
                    return at - 1
                op, addr = steps[at]
                found = self.judge_one(op, addr, base + at, lines[at])
                if found is not None:
                    return found
                if evidence.replaced is not None or evidence.topology:
                    return at
                at += 1
        finally:
            road.close()

    def learn_barrier(self, step: Step) -> None:
        """The operation was seen to change the map or to reset: it ends its batch from now on."""
        op, addr = step
        session = self.session
        is_write = not (op.verb in READS or op.verb == "read")
        for section in self.sections(op, addr):
            start = max(addr, section.start) - section.start + section.offset
            session.knowledge.barriers.learn(section.region, start, is_write)
        session.draw_fast_maps()

    def unjudge(self, steps: Sequence[Step], why: str) -> int:
        """Nothing can be said of these any more; how many they are."""
        for op, addr in steps:
            self.tally.verbs[op.verb] += 1
            self.tally.cells[self.kind(op, addr), Verdict.UNJUDGED] += 1
        self.tally.reasons[why] += len(steps)
        self.session.evidence.skip(known=False)
        return len(steps)

    def judge_one(self, op: Operation, addr: int, index: int, reply: bytes) -> Suspicion | None:
        """The general road: anything on the model, its devices answering from the transcript."""
        session = self.session
        evidence = session.evidence
        sections = self.sections(op, addr)
        kind = self.kind(op, addr)
        cells = self.tally.cells
        evidence.op_addr, evidence.op_size = addr, op.size
        if op.verb in PORTS:  # the I/O space refuses without a name only beyond its root
            evidence.op_addr, evidence.op_size = PORT_ROOT_SIZE, op.size
        if self.slow:
            evidence.targets = {section.region.name for section in sections}
            self.account = ([], [])
        for section in sections:
            why = session.unjudgeable(section.region)
            if why is not None:
                self._pass_over()  # it is alone in its batch
                self.tally.verbs[op.verb] += 1
                cells[kind, Verdict.UNJUDGED] += 1
                self.tally.reasons[why] += 1
                self._adopt_touched(op, addr, sections)
                return None
        self._shape.clear()
        session.learnt_now = False
        evidence.swallowed = evidence.mistaken = False
        before = evidence.pos
        outcome = session.face.perform(op, addr)
        if evidence.replaced is not None:
            return None  # counted with what follows it
        self.tally.verbs[op.verb] += 1
        if evidence.mismatch is not None or outcome.reply != reply:
            outcome = self._other_order(op, addr, sections, before, reply, outcome)
        parted = evidence.mismatch is not None or outcome.reply != reply
        if parted and evidence.topology and mode_changed(sections):
            evidence.skip(known=False)
            cells[kind, Verdict.UNJUDGED] += 1
            self.tally.reasons[MODE_CHANGED] += 1
            return None
        if evidence.mismatch is not None:
            return self.suspect(op, addr, index, "access")
        if outcome.reply != reply:
            if any(section.region.is_ram for section in sections) and self.may_be_dma():
                cells[kind, Verdict.UNJUDGED] += 1
                session.ram.adopt_all()
                return None
            return self._reply_suspicion(op, addr, index, outcome.reply, reply)
        if self.slow:
            hidden = MemTxResult(outcome.result).name if outcome.result else None
            self.account[0].append(
                f"reply {_short(outcome.reply)}" + (f", MEMTX_{hidden}" if hidden else ""))
            self.account[1].append(f"reply {_short(reply)}")
        if evidence.pos < len(evidence.events):
            evidence.settle()
        if self.features is not None:
            self.features.add((kind, op.verb, tuple(self._shape), outcome.result))
        if outcome.result and not (evidence.swallowed or evidence.mistaken):
            self.tally.results[outcome.result] += 1
        if evidence.swallowed:
            cells[kind, Verdict.UNJUDGED] += 1
            self.tally.reasons["a write that an ioeventfd may have swallowed"] += 1
        elif evidence.mistaken:
            cells[kind, Verdict.UNJUDGED] += 1
            self.tally.reasons[MISTAKEN] += 1
        elif session.learnt_now:
            cells[kind, Verdict.LEARNT] += 1
        else:
            cells[kind, Verdict.MATCH] += 1
        return None

    def _pass_over(self) -> None:
        """Nothing can be said of what is left of the batch; but has it changed the map, and what
        has it told decoded devices?"""
        self.session.evidence.skip(known=True)

    def _adopt_touched(
        self, op: Operation, addr: int, sections: Sequence[MemoryRegionSection]
    ) -> None:
        """Take over the memory that an operation wrote and nobody could judge."""
        at, left = addr, op.size
        for section in sections:
            n = min(left, section.start + section.size - at)
            self.session.ram.adopt_range(section.region, at - section.start + section.offset, n)
            at, left = (at + n) & MASK64, left - n

    def _other_order(
        self, op: Operation, addr: int, sections: Sequence[MemoryRegionSection], before: int,
        reply: bytes, outcome: Outcome,
    ) -> Outcome:
        """Devices whose byte order nobody has seen yet may have the other one: the first
        evidence decides and is binding from then on. The fewest that must be turned are."""
        session = self.session
        evidence = session.evidence
        contracts = session.knowledge.contracts
        candidates: dict[MemoryRegion, Learned] = {}
        for section in sections if op.size > 1 else ():  # a byte has no order
            learned = contracts.get(session.contract_key(section.region))
            if learned is not None and not learned.endian_known:
                candidates[section.region] = learned
        reached, missed = evidence.pos, evidence.mismatch
        for turned in islice(_choices(list(candidates)), MAX_CHOICES):
            kept = {region: region.contract for region in turned}
            for region in turned:
                region.contract = with_endian(
                    region.contract, not region.contract.big(session.target_big))
            evidence.pos, evidence.mismatch = before, None
            second = session.face.perform(op, addr)
            if evidence.mismatch is None and second.reply == reply:
                for region in turned:
                    learned = candidates[region]
                    big = region.contract.big(session.target_big)
                    learned.contract = with_endian(learned.contract, big)
                    learned.endian_known = True
                session.learnt_now = True
                return second
            for region, contract in kept.items():
                region.contract = contract
        evidence.pos, evidence.mismatch = reached, missed
        return outcome

    def may_be_dma(self) -> bool:
        """Whether a device that nothing here decodes may have written RAM by itself."""
        suspects = self.session.suspects()
        if suspects:
            names = ", ".join(suspects)
            self.tally.reasons[f"RAM changed while {names} may do DMA of its own"] += 1
        return bool(suspects)

    # -- small things ----------------------------------------------------------------------------

    def fast(self, op: Operation) -> FastMap:
        """The map of the space ``op`` acts on."""
        if op.verb in PORTS:
            assert self.session.fast_io is not None, "this machine has no I/O space"
            return self.session.fast_io
        return self.session.fast

    def sections(self, op: Operation, addr: int) -> list[MemoryRegionSection]:
        """The sections the bytes of ``op`` lie in, in order, wrapping at 2^64."""
        fast = self.fast(op)
        i = bisect_right(fast.starts, addr) - 1
        sections = [fast.sections[i]]
        left = op.size - (fast.limits[i] - addr)
        while left > 0 and len(sections) < len(fast.sections):
            i = (i + 1) % len(fast.sections)
            sections.append(fast.sections[i])
            left -= fast.limits[i] - fast.starts[i]
        return sections

    def kind(self, op: Operation, addr: int) -> Kind:
        fast = self.fast(op)
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
        region = self.sections(op, addr)[0].region.name
        return Suspicion(
            index, (op, addr), self.kind(op, addr), "reply",
            (*self.account[0], f"reply {_short(owed)}"),
            (*self.account[1], f"reply {_short(reply)}"), region,
        )

    def suspect(self, op: Operation, addr: int, index: int, what: str) -> Suspicion:
        mismatch = self.session.evidence.mismatch
        assert mismatch is not None
        model, seen = mismatch.describe()
        region = self.sections(op, addr)[0].region.name
        return Suspicion(
            index, (op, addr & MASK64), self.kind(op, addr), what,
            (*self.account[0], model), (*self.account[1], seen), region,
            tuple(section.region.name for section in self.sections(op, addr)),
            (self.session.evidence.last_name, mismatch.seen.name or "")
            if mismatch.seen is not None else None,
        )


def mode_changed(sections: Sequence[MemoryRegionSection]) -> bool:
    """Whether a change of the map in the middle of an access to ``sections`` may be felt by the
    rest of it. A view is not replaced under an access, but whether a ROM device reads as memory
    is asked anew for each piece (``memory_access_is_direct``), and a flash chip may change that
    when it is read."""
    return any(section.region.kind is RegionKind.ROM_DEVICE for section in sections)


def _choices(regions: list[MemoryRegion]) -> Iterator[tuple[MemoryRegion, ...]]:
    """Which of them are turned: every set of them, the smallest first."""
    for count in range(1, len(regions) + 1):
        yield from combinations(regions, count)


#: Longest reply shown; a long ``read`` says little more in full.
_REPLY_SHOWN = 200


def _short(reply: bytes) -> str:
    text = reply.decode("ascii", "backslashreplace")
    return text if len(text) <= _REPLY_SHOWN else f"{text[:_REPLY_SHOWN]}… ({len(text)} characters)"
