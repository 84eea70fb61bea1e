"""The guest agent's accesses judged by ``CpuPath``: real pieces, values, faults and RAM.

The model performs each access over the mirror of a live QEMU; what its devices are asked is
compared with the transcript by the witness room's ``Evidence``, without the allowances that
judging fuzz programs needs: every event of the CPU has to be expected, in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agent import MAILBOX, MAILBOX_LAST, SIZES, Access, Agent, Answer

from qemuglue.errors import ModelError
from qemuglue.memory import Contract, MemoryRegion, MemTxAttrs, Reason, RegionKind
from qemuglue.memory.cpu_path import CpuOutcome, CpuPath, CpuRules, SubpageOps, cpu_rules_for
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.qemu.events import Event, Kind
from qemuglue.witness.evidence import Evidence, Expected, Mismatch
from qemuglue.witness.ram import TrackedBacking
from qemuglue.witness.session import Session

#: ESR_EL1 of a synchronous external abort, taken and reported at EL1; bit 6 is set for a store.
EXTERNAL_ABORT = 0x9600_0010


class CpuEvidence(Evidence):
    """Every event of the CPU must be expected, calls of subpage containers included.

    ``remap``, where given, is called as soon as a store has changed the map.
    """

    remap: Callable[[], None] | None = None

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        result = super().write(region, offset, value, size, attrs)
        before = self.pos
        while (self.remap is not None and self.pos < len(self.events)
               and self.events[self.pos].kind is Kind.FLATVIEW_NEW):
            self.pos += 1
        if self.remap is not None and self.pos > before:
            self.remap()
        return result

    def load(self, events: list[Event]) -> None:
        """Without what the main loop does by itself (timers, interrupts): no CPU is at work."""
        super().load([e for e in events if e.cpu >= 0 or e.refusal or e.kind is Kind.FLATVIEW_NEW])

    def _is_side(self, event: Event) -> bool:
        return False

    @staticmethod
    def _is_refusal(
        event: Event, region: MemoryRegion, offset: int, size: int, is_write: bool,
        reason: Reason,
    ) -> bool:
        if isinstance(region.ops, SubpageOps):
            return event.refusal is not None and event.refusal.reason is reason and (
                event.kind, event.address, event.size, event.name
            ) == (Kind.INVALID_WRITE if is_write else Kind.INVALID_READ, offset, size, None)
        return Evidence._is_refusal(event, region, offset, size, is_write, reason)

    def subpage(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, value: int
    ) -> None:
        """The container's own line: what it passes on, or what it got."""
        if self.mismatch is not None:
            return
        kind = Kind.SUBPAGE_WRITE if is_write else Kind.SUBPAGE_READ
        while self.pos < len(self.events) and self.events[self.pos].kind is Kind.FLATVIEW_NEW:
            self.topology = True
            self.pos += 1
        event = self.events[self.pos] if self.pos < len(self.events) else None
        if event is None or (event.kind, event.address, event.size, event.value) != (
            kind, offset, size, value
        ):
            self.mismatch = Mismatch(Expected(region, offset, size, is_write, value), event)
            return
        self.pos += 1


class _WitnessedSubpage(SubpageOps):
    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        result, value = super().read(region, offset, size, attrs)
        _evidence(self).subpage(region, offset, size, False, value)
        return result, value

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        _evidence(self).subpage(region, offset, size, True, value)
        return super().write(region, offset, value, size, attrs)


def _evidence(ops: SubpageOps) -> CpuEvidence:
    assert isinstance(ops.space.observer, CpuEvidence)
    return ops.space.observer


class WitnessedPath(CpuPath):
    """A CpuPath whose subpage containers have to be in the transcript too."""

    def _subpage(self, view: FlatView, base: int) -> MemoryRegion:
        region = super()._subpage(view, base)
        region.ops = _WitnessedSubpage(self.space, self.rules, view, base)
        return region


class Judge:
    """Compares, access by access. ``differences`` are sentences; ``tally`` counts what was
    covered: kinds of target, alignment, outcome."""

    def __init__(
        self, session: Session, agent: Agent, *, faults: bool, rules: CpuRules | None = None
    ) -> None:
        assert isinstance(session.evidence, CpuEvidence)
        self.session = session
        self.agent = agent
        self.evidence = session.evidence
        version = session.config.build.version_tuple
        self.path = WitnessedPath(
            session.mirror.memory, rules=rules or cpu_rules_for(version), faults=faults)
        self.differences: list[str] = []
        self.tally: Counter[str] = Counter()
        self.events = 0

    def run(
        self, accesses: Sequence[Access], *, remaps: bool = False, all_memory: bool = True
    ) -> None:
        """The guest does them all, then the model. ``remaps``: the last one may change the
        map, which is taken again then. Without ``all_memory`` only what the model wrote is
        compared."""
        self.session.events()
        answers = self.agent.perform(accesses)
        events = self.session.events()
        self.compare(accesses, answers, events, all_memory)
        if self.evidence.topology and not self.differences:
            assert remaps, "an access changed the map"
            self.session.refresh()

    def compare(
        self, accesses: Sequence[Access], answers: Sequence[Answer], events: list[Event],
        all_memory: bool,
    ) -> None:
        """The model does what the guest has done."""
        self.evidence.load(events)
        self.events += len(self.evidence.events)
        for access, answer in zip(accesses, answers, strict=True):
            self._compare(access, answer)
            if self.evidence.mismatch is not None:
                return
        self.evidence.finish()
        if self.evidence.mismatch is not None:
            self._differ("the end", *self.evidence.mismatch.describe())
        self._compare_ram(all_memory)

    def record(self, accesses: Sequence[Access]) -> Recording:
        """Have the guest do them, to be judged as often as wanted; the guest does no more."""
        session = self.session
        before = {
            region: bytes(_tracked(region).data) for region in session.ram.sources
            if region.kind is not RegionKind.ROM_DEVICE  # no rule stores there
        }
        session.events()
        answers = self.agent.perform(accesses)
        return Recording(self, tuple(accesses), tuple(answers), session.events(), before)

    def _compare(self, access: Access, answer: Answer) -> None:
        what = f"{'load' if access.value is None else 'store'} of {access.size} at {access.addr:#x}"
        if access.value is None:
            outcome = self.path.load(access.addr, access.size, access.order)
        else:
            outcome = self.path.store(access.addr, access.value, access.size, access.order)
        self._count(access, outcome)
        if self.evidence.mismatch is not None:
            self._differ(what, *self.evidence.mismatch.describe())
            return
        fault = outcome.fault
        said = (None if access.value is not None or fault else outcome.value,
                0 if fault is None else EXTERNAL_ABORT | fault.is_write << 6,
                0 if fault is None else fault.addr)
        seen = (None if access.value is not None or answer.syndrome else answer.value,
                answer.syndrome, answer.fault_addr)
        if said != seen:
            self._differ(what, str(said), str(seen))

    def _compare_ram(self, all_memory: bool) -> None:
        """Memory that the model has, but for the mailbox and what a display adapter draws in."""
        ram = self.session.ram
        for found in ram.check_all() if all_memory else ram.check_dirty():
            name, shared = found.region.name, self.session.config.ram_id
            if name == "vga.vram" or (
                name == shared and found.offset >= MAILBOX and found.last <= MAILBOX_LAST
            ):
                self.session.ram.adopt(found)
                continue
            self._differ("memory", found.describe(), "see there")

    def _differ(self, what: str, model: str, qemu: str) -> None:
        self.differences.append(f"{what}: model {model}; QEMU {qemu}")

    def _count(self, access: Access, outcome: CpuOutcome) -> None:
        page = self.path.page_size
        section = self.path.space.view.lookup(access.addr)
        kind = "shared" if self.path.shares_page(access.addr) else (
            section.region.kind.value if section.assigned else "nothing")
        if section.readonly and kind == "ram":
            kind = "read-only ram"
        crossing = access.addr % page + access.size > page
        self.tally[kind] += 1
        self.tally["crossing" if crossing else "inside"] += 1
        self.tally["unaligned" if access.addr % access.size else "aligned"] += 1
        self.tally[access.order] += 1
        self.tally["store" if access.value is not None else "load"] += 1
        self.tally["faulted" if outcome.faulted else (
            "failed" if outcome.failures else "went well")] += 1


def _tracked(region: MemoryRegion) -> TrackedBacking:
    assert isinstance(region.backing, TrackedBacking)
    return region.backing


@dataclass(frozen=True)
class Recording:
    """Accesses that were done once, and memory as it was before."""

    by: Judge
    accesses: tuple[Access, ...]
    answers: tuple[Answer, ...]
    events: list[Event]
    before: dict[MemoryRegion, bytes]

    def judge(self, rules: CpuRules) -> list[str]:
        """What is different when the model has these rules; the first of it, at least."""
        for region, data in self.before.items():
            backing = _tracked(region)
            backing.data[:] = data
            backing.dirty.clear()
        by = self.by
        by.evidence.new_process()
        judge = Judge(by.session, by.agent, faults=by.path.faults, rules=rules)
        try:
            judge.compare(self.accesses, self.answers, self.events, False)
        except ModelError as error:
            judge.differences.append(str(error))
        return judge.differences[:3]


#: Nothing is here on either machine: loads from it mark where an access's events end.
HOLE = 0x9000_0000


def learn_sizes(session: Session, agent: Agent) -> int:
    """Learn what the probe cannot have seen of contracts; how many changed.

    The host's path never asks for more than is declared valid, so that ``valid_max`` 0, its
    default 4, and a smaller ``impl_max`` look alike to it. Every device that fills a page is
    loaded from by the CPU in all sizes; of others, the end shows whether a dispatch is larger
    than the pieces it is made of.
    """
    page = 0x1000
    asked: list[tuple[MemoryRegionSection, bool, int]] = []
    accesses: list[Access] = []
    for section in session.mirror.memory.view.sections:
        at = section.start + (-section.start & (page - 1))
        known = session.knowledge.contracts.get(session.contract_key(section.region))
        if known is None or at >= 1 << 39 or section.region.kind is RegionKind.ROM_DEVICE:
            continue
        whole = at + page <= section.start + section.size
        if not whole and known.contract.valid_max not in (1, 2):
            continue
        for size in SIZES:
            accesses.append(Access(at if whole else section.last & -size, size))
            accesses.append(Access(HOLE + len(asked), 1))
            asked.append((section, whole, size))
    session.events()
    agent.perform(accesses)
    windows: list[list[Event]] = [[]]
    for event in session.events():
        if event.refusal is not None and event.address == HOLE + len(windows) - 1:
            windows.append([])
        else:
            windows[-1].append(event)
    seen: dict[MemoryRegionSection, dict[int, list[Event]]] = {}
    for (section, _, size), window in zip(asked, windows, strict=False):
        own = [event for event in window if event.name == section.region.name]
        seen.setdefault(section, {})[size] = own
    changed = 0
    for section, whole in {section: whole for section, whole, _ in asked}.items():
        key = session.contract_key(section.region)
        learned = session.knowledge.contracts.get(key)
        assert learned is not None
        infer = _contract_of_page if whole else _contract_at_end
        contract = infer(section, seen[section], learned.contract)
        if contract != learned.contract:
            changed += 1
            session.knowledge.contracts.put(key, replace(learned, contract=contract))
    return changed


def _contract_at_end(
    section: MemoryRegionSection, seen: dict[int, list[Event]], contract: Contract
) -> Contract:
    base = section.region.absolute()
    for event in (event for events in seen.values() for event in events):
        if event.kind is Kind.READ and event.address - base >= section.offset + section.size:
            return replace(contract, valid_max=0, impl_max=event.size)
    return contract


def _contract_of_page(
    section: MemoryRegionSection, seen: dict[int, list[Event]], contract: Contract
) -> Contract:
    limits = (0, 0)
    pieces: dict[int, int] = {}
    for size, events in seen.items():
        for event in events:
            if event.refusal is not None and event.refusal.reason is Reason.INVALID_SIZE:
                limits = event.refusal.size_min, event.refusal.size_max
            elif event.kind is Kind.READ:
                pieces.setdefault(size, event.size)
    if not pieces:
        return contract
    narrowest, widest = min(pieces), max(pieces)
    # Narrower pieces than asked for show impl_max, wider ones impl_min.
    return replace(
        contract, valid_min=limits[0], valid_max=limits[1],
        impl_max=pieces[widest] if pieces[widest] < widest else max(
            widest, contract.impl_max or 4),
        impl_min=pieces[narrowest] if pieces[narrowest] > narrowest else contract.impl_min,
    )
