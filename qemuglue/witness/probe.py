"""Find out a device region's contract by reading it in a QEMU that is thrown away afterwards.

For every region in view, every start within a window of eight bytes and every size, one read
(one write for a ROM device in ROMD mode, whose reads never reach the device). What the
transcript shows for each is compared with what the model's own rules make of each candidate
contract; the simplest candidate that explains everything is taken. Contracts that no host-path
access can tell apart (``valid_max`` 0 and 4, say) count as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from qemuglue.errors import QemuFailure
from qemuglue.memory.contract import Contract, Endian
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules, rules_for
from qemuglue.program.operation import Operation
from qemuglue.qemu.events import Event
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.witness.contracts import AcceptsFacts, Learned
from qemuglue.witness.face import encode
from qemuglue.witness.session import Session, Step, marker_base

#: A candidate: sizes as declared; the order is the order of preference.
_CANDIDATES = tuple(
    (valid_max, unaligned, impl_min, impl_max, impl_unaligned)
    for impl_unaligned, unaligned, impl_min, impl_max, valid_max in product(
        (False, True), (False, True), (0, 2, 4, 8), (0, 1, 2, 8), (0, 1, 2, 8)
    )
)

_MEMORY_VERBS = {1: ("readb", "writeb"), 2: ("readw", "writew"),
                 4: ("readl", "writel"), 8: ("readq", "writeq")}
_PORT_VERBS = {1: ("inb", "outb"), 2: ("inw", "outw"), 4: ("inl", "outl")}


@dataclass(frozen=True, slots=True)
class _Seen:
    """One probe's piece: ``offset`` in the region, ``reason`` and limits for a refusal."""

    offset: int
    size: int
    value: int
    reason: str | None
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class _Probe:
    """``size`` bytes at ``offset`` of the region; bytes from ``stop`` on are not its own;
    ``data`` is what a read gave, in address order."""

    offset: int
    size: int
    stop: int
    is_write: bool
    seen: tuple[_Seen, ...]
    data: bytes
    #: One dispatch of the whole size, never cut (``Rules.ports_single_dispatch``).
    single: bool = False


def learn_missing(session: Session) -> list[str]:
    """Probe every region in view without a contract. The session is not clean afterwards.

    Returns what could not be learnt, a sentence each; those regions stay unjudged. A QEMU
    that dies is raised as it is, after the region was given up.
    """
    # The true rules, also where a planted defect is being judged: contracts are facts.
    rules = rules_for(session.config.build.version_tuple)
    failures: list[str] = []
    cache: dict[object, Contract | None] = {}
    for region in session.missing_contracts():
        try:
            probes = list(_observe(session, region, rules))
        except QemuFailure as error:
            key = session.contract_key(region)
            session.knowledge.hopeless[key] = f"probing it ended with: {error}"
            raise
        learned = explain(rules, probes, cache)
        if learned is None:
            why = "its accesses follow no contract this model knows"
            session.knowledge.hopeless[session.contract_key(region)] = why
            session.give_up_on(region, why)
            failures.append(f"{region.name}: {why}")
            continue
        session.knowledge.contracts.put(session.contract_key(region), learned)
    return failures


# -- observing -----------------------------------------------------------------------------


def _sections(
    session: Session, region: MemoryRegion
) -> tuple[bool, list[MemoryRegionSection]]:
    """(in the I/O space?, where the region shows)."""
    for space in session.spaces():
        found = [s for s in space.view.sections if s.region is region]
        if found:
            return space is session.mirror.io, found
    return False, []


def _starts(section: MemoryRegionSection) -> Iterator[int]:
    """Offsets in the region to probe: the first window of eight and one in the middle."""
    first = section.offset
    last = section.offset + section.size - 1
    windows = {first & ~7, (first + section.size // 2) & ~7}
    for window in sorted(windows):
        for offset in range(window, window + 8):
            if first <= offset <= last:
                yield offset


def _observe(session: Session, region: MemoryRegion, rules: Rules) -> Iterator[_Probe]:
    ports, sections = _sections(session, region)
    if not sections:
        return
    section = max(sections, key=lambda s: min(s.size, 16))
    is_write = region.kind is RegionKind.ROM_DEVICE and section.romd
    verbs = _PORT_VERBS if ports else _MEMORY_VERBS
    limit = 1 << 16 if ports else 1 << 64
    asked: list[tuple[int, int, Step]] = []
    for offset in _starts(section):
        for size, names in verbs.items():
            addr = offset - section.offset + section.start
            if addr + size <= limit:
                op = Operation(names[is_write], None, size)
                asked.append((offset, size, (op, addr)))
    stop = section.offset + section.size
    single = ports and rules.ports_single_dispatch
    marker = marker_base(session.mirror.memory.view)
    request = b"".join(
        encode(*step) + b"readb 0x%x\n" % (marker + number)
        for number, (_, _, step) in enumerate(asked)
    )
    session.journal.extend(step for _, _, step in asked)
    lines = session.exchange(request, 2 * len(asked))
    windows = _windows(session.events(), marker, len(asked))
    base = region.absolute()
    for (offset, size, _), events, reply in zip(asked, windows, lines[::2], strict=True):
        seen = tuple(_own(events, region, base, is_write))
        data = b"" if is_write else session.face.value_bytes(int(reply.split()[1], 16), size)
        yield _Probe(offset, size, stop, is_write, seen, data, single)


def _windows(events: list[Event], marker: int, count: int) -> list[list[Event]]:
    """The events before each marker."""
    windows: list[list[Event]] = [[]]
    for event in events:
        if (
            event.kind is EventKind.INVALID_READ and event.name is None and event.size == 1
            and event.address == marker + len(windows) - 1
        ):
            windows.append([])
        else:
            windows[-1].append(event)
    windows.pop()
    assert len(windows) == count, f"{count} markers sent, {len(windows)} seen"
    return windows


def _own(
    events: list[Event], region: MemoryRegion, base: int, is_write: bool
) -> Iterator[_Seen]:
    wanted = EventKind.WRITE if is_write else EventKind.READ
    refused = EventKind.INVALID_WRITE if is_write else EventKind.INVALID_READ
    pointer = 0  # the first call is on the region itself; namesakes have other pointers
    for event in events:
        if event.kind not in (wanted, refused):
            continue
        if event.name != region.name or (event.mr and pointer not in (0, event.mr)):
            if pointer or event.kind is refused:
                return  # the access has left the region; it may come back to it later
            continue
        if event.kind is wanted:
            pointer = event.mr
            offset = (event.address - base) & ((1 << 64) - 1)
            yield _Seen(offset, event.size, event.value, None, 0, 0)
        elif event.kind is refused and event.refusal is not None:
            why, least, most = event.refusal
            yield _Seen(event.address, event.size, 0, why.value, least, most)


# -- explaining ----------------------------------------------------------------------------


def explain(
    rules: Rules, probes: list[_Probe], cache: dict[object, Contract | None]
) -> Learned | None:
    """The contract that explains the probes, or None. ``cache`` holds what was found for
    probes of the same shape: most devices of a machine behave alike."""
    facts: AcceptsFacts = {}
    for probe in probes:
        for seen in probe.seen:
            if seen.reason == "rejected":
                facts[seen.offset, seen.size, probe.is_write] = False
    shape = tuple(
        (probe.offset & 7, probe.size, probe.is_write, probe.single,
         min(probe.stop - probe.offset, 16),
         tuple((s.offset - probe.offset, s.size, s.reason, s.minimum, s.maximum)
               for s in probe.seen))
        for probe in probes
    )
    if shape not in cache:
        cache[shape] = _contract(rules, probes, facts)
    contract = cache[shape]
    if contract is None:
        return None
    if facts:
        for probe in probes:
            facts.update(_accepted(probe))
    orders = {big for probe in probes for big in _orders(rules, contract, probe, facts)}
    if len(orders) == 1:
        endian = Endian.BIG if orders.pop() else Endian.LITTLE
        return Learned(replace(contract, endian=endian), True, facts)
    return Learned(contract, False, facts)


def _contract(rules: Rules, probes: list[_Probe], facts: AcceptsFacts) -> Contract | None:
    limits = {
        (seen.minimum, seen.maximum)
        for probe in probes for seen in probe.seen if seen.reason == "invalid size"
    }
    if len(limits) > 1:
        return None
    ordered = sorted(probes, key=lambda probe: (-probe.size, probe.offset))
    for valid_max, unaligned, impl_min, impl_max, impl_unaligned in _CANDIDATES:
        minimum = 0
        if limits:
            minimum, declared = next(iter(limits))
            if valid_max:
                continue  # declared: no need to guess
            valid_max = declared
        candidate = Contract(minimum, valid_max, unaligned, impl_min, impl_max, impl_unaligned)
        if all(_fits(rules, candidate, probe, facts) for probe in ordered):
            return candidate
    return None


def _chunk(rules: Rules, contract: Contract, probe: _Probe, at: int) -> int:
    left = probe.offset + probe.size - at
    return left if probe.single else rules.chunk(contract, left, at)


def _expected(
    rules: Rules, contract: Contract, probe: _Probe, facts: AcceptsFacts
) -> Iterator[tuple[int, int, str | None]]:
    """(offset, size, refusal) of each line the probe should have left for this region."""
    at = probe.offset
    while at < min(probe.offset + probe.size, probe.stop):
        n = _chunk(rules, contract, probe, at)
        if facts.get((at, n, probe.is_write)) is False:
            yield at, n, "rejected"
        else:
            reason = rules.refusal(contract, at, n, probe.is_write)
            if reason is not None:
                yield at, n, reason.value
            else:
                for piece in rules.pieces(contract, n, False):
                    yield at + piece.delta, piece.size, None
        at += n


def _fits(rules: Rules, contract: Contract, probe: _Probe, facts: AcceptsFacts) -> bool:
    count = 0
    for expected in _expected(rules, contract, probe, facts):
        if count >= len(probe.seen):
            return False
        seen = probe.seen[count]
        if (seen.offset, seen.size, seen.reason) != expected:
            return False
        count += 1
    return count == len(probe.seen)


def _accepted(probe: _Probe) -> Iterator[tuple[tuple[int, int, bool], bool]]:
    """The dispatch that was surely accepted, of a device that vetoes others. The trace shows
    calls only, and a call may be a piece of a wider dispatch: nothing is sure but a probe that
    was one call."""
    if (
        len(probe.seen) == 1 and probe.seen[0].reason is None
        and probe.offset + probe.size <= probe.stop
    ):
        yield (probe.offset, probe.size, probe.is_write), True


def _orders(
    rules: Rules, contract: Contract, probe: _Probe, facts: AcceptsFacts
) -> Iterator[bool]:
    """Whether the device is big-endian, if this probe's values can tell."""
    if probe.is_write or probe.offset + probe.size > probe.stop or probe.size == 1:
        return
    fits = []
    for big in (False, True):
        data = _assemble(rules, contract, probe, facts, big)
        if data is None:
            return
        fits.append(probe.data == data)
    if fits[0] != fits[1]:
        yield fits[1]


def _assemble(
    rules: Rules, contract: Contract, probe: _Probe, facts: AcceptsFacts, big: bool
) -> bytes | None:
    """The bytes the probe should have given if the device were of this byte order."""
    seen = iter(probe.seen)
    data = b""
    while len(data) < probe.size:
        at = probe.offset + len(data)
        n = _chunk(rules, contract, probe, at)
        refused = facts.get((at, n, False)) is False or rules.refusal(contract, at, n, False)
        value = 0
        if refused:
            next(seen, None)
        else:
            for piece in rules.pieces(contract, n, big):
                found = next(seen, None)
                if found is None:
                    return None
                part = found.value
                value |= part << piece.shift if piece.shift >= 0 else part >> -piece.shift
        value &= (1 << n * 8) - 1
        data += value.to_bytes(n, "big" if big else "little")
    return data
