"""Operations of faces on one live QEMU, each held against QEMU's own account.

A ``FaceRun`` has one QEMU, and two models of it. The faces stand on the live one
(``witness.live``): its RAM is QEMU's, its devices are asked through qtest. The other one is a
session's, whose devices answer from the transcript and whose RAM is a copy: the ``Ground`` that
says what each operation owed. Then QEMU is asked, by qtest, what its memory holds now; and where a
face said that nothing is there, whether QEMU says so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from qemuglue.campaign.faces.designs import DESIGNS
from qemuglue.campaign.faces.draw import Drawer, Untouched
from qemuglue.campaign.faces.ground import Ground
from qemuglue.campaign.faces.ops import FaceOp, Outcome, perform
from qemuglue.campaign.faces.specs import expected
from qemuglue.memory.contract import Reason
from qemuglue.memory.faces import put_on
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MASK64, MAX_SIZE
from qemuglue.memory.rules import Rules
from qemuglue.qemu.events import Event, describe
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.qemu.guest_ram import Hva, hva_of
from qemuglue.qemu.qtest_lines import parse_hex, read, readb
from qemuglue.witness.contracts import with_endian
from qemuglue.witness.fastmap import kind_of
from qemuglue.witness.judge import Scene
from qemuglue.witness.live import LiveMachine
from qemuglue.witness.live_device import Piece
from qemuglue.witness.session import Session
from qemuglue.witness.verdict import Kind

_ACCESSES = (
    EventKind.READ, EventKind.WRITE, EventKind.INVALID_READ, EventKind.INVALID_WRITE)
_REFUSALS = (EventKind.INVALID_READ, EventKind.INVALID_WRITE)
_WRITES = (EventKind.WRITE, EventKind.INVALID_WRITE)

#: Bytes on both sides of an operation that must not have changed.
GUARD = 16

_DMA = "memory changed while a device that was written may do DMA of its own"

#: Words of verdicts, as in ``verdict.Verdict``, and one of our own.
MATCH, LEARNT, UNJUDGED, BY_DESIGN, DIVERGED = (
    "match", "learnt", "unjudged", "by design", "diverged")


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one operation. ``what`` says in which account face and QEMU part: "outcome",
    "access", "pieces", "ram", "refusal"; ``why`` why it is not judged, or its designs."""

    op: FaceOp
    kind: Kind
    verdict: str
    region: str = ""
    what: str = ""
    face: tuple[str, ...] = ()
    qemu: tuple[str, ...] = ()
    why: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """Free of addresses: what parts, where, in which method."""
        kind = self.kind.value.replace(" ", "-")
        return f"divergence:{self.what}:{kind}:{self.op.face}:{self.op.method}"

    def unjudged(self, why: str) -> Judged:
        """The same, of which nothing is said."""
        return replace(self, verdict=UNJUDGED, why=(why,))


class FaceRun:
    """Use as a context manager; leaving it ends QEMU. ``rules`` are those that the faces go by:
    the true ones, unless a defect of the model is planted. Raises what a session raises."""

    def __init__(self, scene: Scene, faces: Sequence[str], rules: Rules | None = None) -> None:
        self._scene = replace(scene, rules=None)  # what is held against the faces is true
        self._faces = tuple(faces)
        self._rules = rules
        self._open = ExitStack()
        self._objects: dict[str, Any] = {}
        #: Whether a device was written: it may write memory by itself from then on.
        self._stirred = False
        #: Whether the byte order of each region was known before, by key.
        self._known_orders: frozenset[object] = frozenset()
        #: Regions that are left alone because an access to them ended QEMU, and the reason.
        self.fatal: dict[str, str] = {}
        #: What a reader of the result should know.
        self.notes: list[str] = []

    session: Session
    live: LiveMachine
    untouched: Untouched
    drawer: Drawer
    ground: Ground

    def __enter__(self) -> FaceRun:
        try:
            self.session = self._open.enter_context(self._scene.session())
            known = self.session.knowledge.contracts
            self._known_orders = frozenset(key for key, each in known if each.endian_known)
            self.live = self._open.enter_context(LiveMachine(
                self.session.process, contracts=known, rules=self._rules, record=True))
            self.session.evidence.lenient = True
            self.stand()
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._objects.clear()
        self._open.close()

    def go_by(self, rules: Rules) -> None:
        """Let the faces go by these rules from now on; what is held against them stays right."""
        self.live.rules = rules
        self.live.refresh()
        self.stand()

    def stand(self) -> None:
        """Put the faces on the map as it is now."""
        self._objects = {name: put_on(name, self.live.memory) for name in self._faces}
        self.untouched = Untouched(self.session, self.fatal)
        self.drawer = Drawer(self.session, self.untouched, self._faces)
        self.ground = Ground(self.session)
        self.session.events()
        self.live.told.take()
        self.live.told.remapped = False

    def _map_changed(self) -> None:
        self.session.refresh()
        self.live.refresh()
        self.stand()

    # -- one operation -------------------------------------------------------------------------

    def step(self, op: FaceOp) -> Judged:
        """Perform ``op`` and judge it. Raises QemuFailure where QEMU does not go on."""
        outcome = perform(self._objects[op.face], op)
        events, pieces = self.live.told.take()
        events += self.session.events()
        judged = self._judge(op, outcome, events, pieces)
        if self.ground.asked_device and op.is_write:
            self._stirred = True
            judged = self._after_device_write(judged)
        return judged

    def _after_device_write(self, judged: Judged) -> Judged:
        """What a write made QEMU do a little later."""
        if "RESET" in self.session.quiesce():
            self.session.after_reset()
            self.live.refresh()
            self.stand()
            return judged.unjudged("the machine was reset")
        return judged

    def _judge(
        self, op: FaceOp, outcome: Outcome, events: list[Event], pieces: list[Piece]
    ) -> Judged:
        sections = self._sections(op)
        kind = self._kind(op, sections)
        first = Judged(op, kind, MATCH, region=sections[0].region.name)
        evidence = self.session.evidence
        learnt = self._learn_orders(sections)
        owed = self._account(op, sections, events)
        odd = self._oddity()
        remapped = evidence.topology or self.live.told.remapped
        designs = tuple(sorted(self.ground.designs))
        found = (
            self._access(first) or self._outcome(first, outcome, owed)
            or self._pieces(first, events, pieces)
            or self._memory(first) or self._refusal(first, outcome, designs)
        )
        if remapped:
            self._map_changed()
            odd = odd or ("the memory map changed under it" if found is not None else "")
        if found is not None:
            return found.unjudged(odd) if odd else found
        if odd:
            return first.unjudged(odd)
        if "cut-by-qtest" in designs:
            return first.unjudged(DESIGNS["cut-by-qtest"])
        if designs:
            return replace(first, verdict=BY_DESIGN, why=designs)
        return replace(first, verdict=LEARNT if learnt else MATCH)

    def _account(
        self, op: FaceOp, sections: Sequence[MemoryRegionSection], events: Sequence[Event]
    ) -> Outcome:
        """What the operation owed, by QEMU's transcript and the copy of its memory."""
        evidence = self.session.evidence
        evidence.load(events)
        evidence.op_addr, evidence.op_size = op.addr, max(op.size, 8)
        evidence.targets = {section.region.name for section in sections}
        evidence.swallowed = evidence.mistaken = False
        owed = expected(self.ground, op)
        evidence.finish()
        return owed

    def _oddity(self) -> str:
        """Why nothing can be said of what was just held against the transcript, or ""."""
        evidence = self.session.evidence
        if evidence.swallowed:
            return "a write that an ioeventfd may have swallowed"
        if evidence.mistaken:
            return "QEMU's texts do not tell which of two namesakes an alias shows"
        if evidence.replaced is not None:
            return "a namesake took the region's place"
        return ""

    def _learn_orders(self, sections: Sequence[MemoryRegionSection]) -> bool:
        """Take over the byte orders that devices of unknown order were seen to have; whether
        there was any. It is the wire that tells, not the face."""
        regions = {section.region.key: section.region for section in sections}
        orders, learnt = self.live.told.orders, False
        for region, order in orders.items():
            mine = regions.get(region.key)
            if mine is None:
                continue
            learned = self.session.knowledge.contracts.get(self.session.contract_key(mine))
            if learned is not None and not learned.endian_known:
                learned.contract = with_endian(learned.contract, order == "big")
                learned.endian_known = learnt = True
                mine.contract = replace(mine.contract, endian=learned.contract.endian)
        return learnt

    # -- the accounts ----------------------------------------------------------------------------

    def _access(self, judged: Judged) -> Judged | None:
        mismatch = self.session.evidence.mismatch
        if mismatch is None:
            return None
        model, seen = mismatch.describe()
        return _parted(judged, "access", (f"owes: {model}",), (seen,))

    @staticmethod
    def _outcome(judged: Judged, outcome: Outcome, owed: Outcome) -> Judged | None:
        if outcome == owed:
            return None
        return _parted(judged, "outcome", (str(outcome),), (str(owed),))

    def _pieces(
        self, judged: Judged, events: Sequence[Event], pieces: Sequence[Piece]
    ) -> Judged | None:
        """The pieces that the face's model said would reach devices, and those that did. None
        may lie elsewhere: what a device does to others by itself is no piece of the model's."""
        mine = self.session.evidence.targets
        astray = [piece for piece in pieces if piece.region.name not in mine]
        if astray:
            return _parted(judged, "pieces", tuple(map(_piece_text, astray)),
                           (f"the operation lies in {judged.region or 'unassigned memory'}",))
        names = {piece.region.name or None for piece in pieces}
        op = judged.op
        seen = [
            e for e in events if e.kind in _ACCESSES and e.name in names
            # A refusal of unassigned memory elsewhere is a device's own doing.
            and (e.name is not None or (e.address - op.addr) & MASK64 < max(op.size, 8))
        ]
        if any(
            e.refusal is not None and e.refusal.reason is Reason.REJECTED
            and not any(piece.refused and (piece.region.name or None) == e.name
                        for piece in pieces) and e.name is not None
            for e in seen
        ):
            return None  # a rule of the device's own: the face learns of it from QEMU
        fits = len(seen) == len(pieces) and all(
            self._is(event, piece) for event, piece in zip(seen, pieces, strict=True))
        if fits:
            return None
        return _parted(
            judged, "pieces", tuple(map(_piece_text, pieces)) or ("no access to a device",),
            tuple(map(describe, seen)) or ("nothing in the transcript",))

    def _is(self, event: Event, piece: Piece) -> bool:
        refused = event.kind in _REFUSALS
        where = piece.offset if refused else piece.region.absolute(piece.offset)
        known = getattr(piece.region, "key", None) in self._known_orders
        value = piece.value if piece.is_write and not refused and known else None
        return (
            refused == piece.refused and (event.kind in _WRITES) == piece.is_write
            and event.size == piece.size and event.address == where & MASK64
            and value in (None, event.value)
        )

    def _memory(self, judged: Judged) -> Judged | None:
        """RAM and ROM at the operation, and a little around it, as qtest reads them now."""
        op = judged.op
        for section in self._sections(op):
            region = section.region
            if not section.assigned or not self.ground.is_memory(section, is_write=False):
                continue
            low = max(section.start, op.addr - GUARD) if op.addr >= section.start else (
                section.start)
            high = min(section.last + 1, op.addr + op.size + GUARD)
            if op.addr < section.start and op.addr + op.size <= section.start:  # it wrapped
                high = min(section.last + 1, section.start + op.size + GUARD)
            if high <= low:
                continue
            seen = self._qtest_read(low, high - low)
            assert region.backing is not None, "is_memory says so"
            owed = region.backing.read(low - section.start + section.offset, high - low)
            if seen != owed:
                at = next(n for n in range(len(seen)) if seen[n] != owed[n])
                if self._may_be_dma():
                    return judged.unjudged(_DMA)
                return _parted(
                    judged, "ram",
                    (f"{low + at:#x} holds {owed[at : at + 16].hex()}",),
                    (f"{low + at:#x} holds {seen[at : at + 16].hex()}",))
        return None

    def _refusal(
        self, judged: Judged, outcome: Outcome, designs: Sequence[str]
    ) -> Judged | None:
        """Where the face says that nothing is there, or no pointer, QEMU must say so too."""
        op = judged.op
        if "HostAddressNotAvailable" in outcome.told:
            found = hva_of(self.session.process.monitor, op.addr)
            if isinstance(found, Hva) == ("host-elsewhere" in designs):
                return None
            return _parted(judged, "refusal", (outcome.told,), (f"gpa2hva: {found}",))
        names = ("InvalidGuestAddress", "InvalidInput")
        if not outcome.told.startswith(names) or designs:
            return None
        hole = self._hole(op)
        if hole is None:
            return _parted(judged, "refusal", (outcome.told,), ("all of it is mapped",))
        self._exchange(readb(hole))
        events = self.session.events()
        if any(e.kind is EventKind.INVALID_READ and e.size == 1 for e in events):
            return None
        return _parted(
            judged, "refusal", (outcome.told,),
            (f"a read at {hole:#x} is answered", *map(describe, events)))

    def _hole(self, op: FaceOp) -> int | None:
        """The first address of the operation where nothing is."""
        at, left = op.addr, max(op.size, 1)
        while left > 0:
            section = self.ground.find(at)
            if section is None:
                return at
            left -= section.last + 1 - at
            at = (section.last + 1) % MAX_SIZE
        return None

    # -- all of RAM ------------------------------------------------------------------------------

    def check_ram(self) -> tuple[str, ...]:
        """Bytes anywhere in RAM that no operation explains, a line each. Where devices were
        written that may write memory by themselves they are taken over, and nothing is told."""
        found = self.session.ram.check_all()
        if not found:
            return ()
        if self._may_be_dma():
            return ()
        self.session.ram.adopt_all()
        return tuple(each.describe() for each in found[:8])

    def _may_be_dma(self) -> bool:
        """Whether a device that was written may have changed memory by itself; then it is taken
        as it is, and told."""
        if not (self._stirred and self.session.suspects()):
            return False
        self.session.ram.adopt_all()
        self.notes.append(_DMA)
        return True

    def stray(self, judged: Judged, found: tuple[str, ...]) -> Judged:
        """The divergence that bytes changed which no operation up to this one names."""
        return _parted(judged, "stray", ("these bytes are as they were",), found)

    def resync(self) -> None:
        """After a divergence: take memory as it is, and forget what is left to be heard."""
        self.session.events()
        self.live.told.take()
        self.session.ram.adopt_all()

    def region_of(self, op: FaceOp) -> str:
        """The name of the first region that ``op`` touches; "unassigned" where there is none."""
        names = [s.region.name for s in self._sections(op) if s.assigned]
        return names[0] if names else "unassigned"

    def kind_of(self, op: FaceOp) -> Kind:
        """The row of the table that ``op`` belongs to."""
        return self._kind(op, self._sections(op))

    # -- small things ----------------------------------------------------------------------------

    def _sections(self, op: FaceOp) -> list[MemoryRegionSection]:
        """The sections the bytes of ``op`` lie in, holes included, going on at 0."""
        view, at, left = self.session.mirror.memory.view, op.addr, max(op.size, 1)
        found: list[MemoryRegionSection] = []
        while left > 0:
            section = view.lookup(at)
            found.append(section)
            left -= section.start + section.size - at
            at = (section.start + section.size) % MAX_SIZE
        return found

    @staticmethod
    def _kind(op: FaceOp, sections: Sequence[MemoryRegionSection]) -> Kind:
        return kind_of(sections[0], ports=False) if len(sections) == 1 else Kind.CROSSING

    def _exchange(self, line: bytes) -> bytes:
        return self.session.exchange(line, 1)[0]

    def _qtest_read(self, addr: int, size: int) -> bytes:
        return parse_hex(self._exchange(read(addr, size)), size)


def _parted(
    judged: Judged, what: str, face: tuple[str, ...], qemu: tuple[str, ...]
) -> Judged:
    return replace(judged, verdict=DIVERGED, what=what, face=face, qemu=qemu)


def _piece_text(piece: Piece) -> str:
    verb = "write" if piece.is_write else "read"
    refused = ", refused" if piece.refused else ""
    name = piece.region.name or "unassigned memory"
    value = f" value {piece.value:#x}" if piece.value is not None and not piece.refused else ""
    return f"{verb} of {piece.size} at {name}+{piece.offset:#x}{value}{refused}"
