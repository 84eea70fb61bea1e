"""Asking: accesses to one region of a QEMU that is thrown away, and what it logged of each.

Between the accesses stand markers (one-byte reads of unassigned memory, which leave a refusal
with their address), so that every line of the transcript belongs to one access.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qemuglue.errors import QemuFailure
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.memory.rules import Rules
from qemuglue.program.operation import Operation
from qemuglue.qemu.events import Event
from qemuglue.qemu.events import Kind as EventKind
from qemuglue.qemu.qtest import QtestDied, QtestHang
from qemuglue.witness.face import encode
from qemuglue.witness.session import Session, Step, marker_base

MEMORY_VERBS = {1: ("readb", "writeb"), 2: ("readw", "writew"),
                4: ("readl", "writel"), 8: ("readq", "writeq")}
PORT_VERBS = {1: ("inb", "outb"), 2: ("inw", "outw"), 4: ("inl", "outl")}

_ACCESSES = (EventKind.READ, EventKind.WRITE, EventKind.INVALID_READ, EventKind.INVALID_WRITE)

#: Accesses in flight: a QEMU that dies loses no more, and there are markers for all of them.
BATCH = 2048


class Ask(NamedTuple):
    """One access: ``size`` bytes at ``offset`` of the region; ``value`` for a write, in the
    target's byte order."""

    offset: int
    size: int
    is_write: bool = False
    value: int = 0

    def __str__(self) -> str:
        what = f"write of {self.size} at +{self.offset:#x} value {self.value:#x}"
        return what if self.is_write else f"read of {self.size} at +{self.offset:#x}"


@dataclass(frozen=True, slots=True)
class Seen:
    """One line of the transcript: ``offset`` in the region, ``reason`` and limits for a
    refusal."""

    offset: int
    size: int
    value: int
    reason: str | None
    minimum: int
    maximum: int


@dataclass(frozen=True, slots=True)
class Probe:
    """One access and what it left: ``size`` bytes at ``offset`` of the region; bytes from
    ``stop`` on are not its own; ``data`` is what a read gave or a write moved, in address
    order."""

    offset: int
    size: int
    stop: int
    is_write: bool
    seen: tuple[Seen, ...]
    data: bytes
    #: One dispatch of the whole size, never cut (``Rules.ports_single_dispatch``).
    single: bool = False
    #: The device accessed others meanwhile.
    nested: bool = False

    @property
    def crossing(self) -> bool:
        """Whether it goes on behind the region's part in view."""
        return self.offset + self.size > self.stop

    def __str__(self) -> str:
        verb = "write" if self.is_write else "read"
        left = ", ".join(
            f"{s.size} at +{s.offset:#x}" + (f" {s.reason}" if s.reason else "")
            for s in self.seen
        )
        return f"{verb} of {self.size} at +{self.offset:#x}: {left or 'nothing'}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a region shows: its sections of one space, by offset."""

    region: MemoryRegion
    space: str
    ports: bool
    sections: tuple[MemoryRegionSection, ...]

    @classmethod
    def of(cls, session: Session, region: MemoryRegion) -> Place | None:
        """None: it is in no view that qtest reaches."""
        for space in session.spaces():
            found = [s for s in space.view.sections if s.region is region]
            if found:
                found.sort(key=lambda s: (s.offset, s.start))
                ports = space is session.mirror.io
                return cls(region, space.name, ports, tuple(found))
        return None

    @classmethod
    def as_ports(cls, session: Session, region: MemoryRegion) -> Place | None:
        """Where it shows among the ports, if it shows in memory too (boards map their ports)."""
        io = session.mirror.io
        if io is None:
            return None
        found = sorted(
            (s for s in io.view.sections if s.region is region),
            key=lambda s: (s.offset, s.start))
        return cls(region, io.name, True, tuple(found)) if found else None

    @property
    def verbs(self) -> dict[int, tuple[str, str]]:
        """The sizes there are, each with its read and its write."""
        return PORT_VERBS if self.ports else MEMORY_VERBS

    @property
    def main(self) -> MemoryRegionSection:
        """The section where the most can be seen at once."""
        return max(self.sections, key=lambda s: min(s.size, 16))

    def section(self, offset: int) -> MemoryRegionSection | None:
        """The section that shows ``offset``."""
        for section in self.sections:
            if section.offset <= offset < section.offset + section.size:
                return section
        return None

    def step(self, ask: Ask) -> tuple[Step, int] | None:
        """The operation, and the offset where the section ends; None if it is not in view."""
        section = self.section(ask.offset)
        if section is None:
            return None
        addr = ask.offset - section.offset + section.start
        if addr + ask.size > (1 << 16 if self.ports else 1 << 64):
            return None
        verb = self.verbs[ask.size][ask.is_write]
        op = Operation(verb, None, ask.size, value=ask.value)
        return (op, addr), section.offset + section.size


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back. ``rest`` was not answered, or answered by a map that had changed: after
    ``culprit``, which ended QEMU (``ended``) or changed the map (``ended`` is None)."""

    probes: tuple[Probe, ...]
    culprit: Ask | None = None
    ended: QemuFailure | None = None
    rest: tuple[Ask, ...] = ()


def ask(
    session: Session, place: Place, asks: Iterable[Ask], rules: Rules, *,
    map_matters: bool = False,
) -> Answers:
    """Make the accesses, as far as the region is in view there and they do not go on behind it
    into one that is never touched. With ``map_matters`` nothing that came after a change of the
    map counts."""
    todo = [one for one in asks if _may_be_made(session, place, one)]
    probes: list[Probe] = []
    for at in range(0, len(todo), BATCH):
        batch = todo[at : at + BATCH]
        got = _batch(session, place, batch, rules, map_matters)
        probes += got.probes
        if got.culprit is not None or got.ended is not None:
            rest = (*got.rest, *todo[at + BATCH :])
            return Answers(tuple(probes), got.culprit, got.ended, rest)
    return Answers(tuple(probes))


def _may_be_made(session: Session, place: Place, one: Ask) -> bool:
    """Whether it begins in view of the region and reaches nothing that is avoided."""
    step = place.step(one)
    if step is None:
        return False
    (_, addr), stop = step
    space = session.mirror.io if place.ports else session.mirror.memory
    if one.offset + one.size <= stop or space is None:
        return True
    behind = range(addr + stop - one.offset, addr + one.size)
    return not any(
        session.avoided.why(space.view.lookup(at & MASK64).region.name) for at in behind
    )


def _batch(
    session: Session, place: Place, asks: Sequence[Ask], rules: Rules, map_matters: bool
) -> Answers:
    marker = marker_base(session.mirror.memory.view)
    steps = [step for step in map(place.step, asks) if step is not None]
    assert len(steps) == len(asks) <= BATCH
    request = b"".join(
        encode(*step) + b"readb 0x%x\n" % (marker + number)
        for number, (step, _) in enumerate(steps)
    )
    session.journal.extend(step for step, _ in steps)
    ended: QemuFailure | None = None
    try:
        lines = session.exchange(request, 2 * len(asks))
        windows = _windows(session.events(), marker, len(asks))
    except (QtestDied, QtestHang) as error:
        ended = error
        lines = error.partial.split(b"\n")[:-1]
        windows = _windows(session.events(), marker, len(lines) // 2)
    except QemuFailure as error:
        return Answers((), asks[0], error, tuple(asks[1:]))
    single = place.ports and rules.ports_single_dispatch
    base = place.region.absolute()
    probes: list[Probe] = []
    for number, (one, window) in enumerate(zip(asks, windows, strict=False)):
        if window is None:
            continue  # its marker is not to be found: nobody knows what was its own
        stop = steps[number][1]
        seen = tuple(own_lines(window, place.region, base, one, stop))
        value = one.value if one.is_write else int(lines[2 * number].split()[1], 16)
        data = (
            value.to_bytes(one.size, "little") if single
            else session.face.value_bytes(value, one.size)
        )
        nested = one.offset + one.size <= stop and _nested(window, place.region)
        probes.append(
            Probe(one.offset, one.size, stop, one.is_write, seen, data, single, nested)
        )
        if map_matters and any(event.kind is EventKind.FLATVIEW_NEW for event in window):
            return Answers(tuple(probes), one, None, tuple(asks[number + 1 :]))
    if ended is not None:
        first = min(len(lines) // 2, len(asks) - 1)
        return Answers(tuple(probes), asks[first], ended, tuple(asks[first + 1 :]))
    return Answers(tuple(probes))


def _windows(events: list[Event], marker: int, count: int) -> list[list[Event] | None]:
    """The events before each of ``count`` markers; None where they cannot be told from those
    of others, because a marker is missing."""
    windows: list[list[Event] | None] = []
    window: list[Event] = []
    for event in events:
        number = event.address - marker
        if (
            event.kind is EventKind.INVALID_READ and event.name is None and event.size == 1
            and len(windows) <= number < count
        ):
            lost = number - len(windows)
            windows += [None] * lost
            windows.append(None if lost else window)
            window = []
        else:
            window.append(event)
    windows += [None] * (count - len(windows))
    return windows


def own_lines(
    events: list[Event], region: MemoryRegion, base: int, one: Ask, stop: int
) -> Iterator[Seen]:
    """The lines of ``region`` among those of one access.

    A device may access others before its own call returns and is logged, so foreign lines in
    between say nothing as long as the access lies in the region. One that goes on behind
    ``stop`` leaves the region at the first foreign line, and a refusal there may be a
    namesake's, whose offsets start anew.
    """
    wanted = EventKind.WRITE if one.is_write else EventKind.READ
    refused = EventKind.INVALID_WRITE if one.is_write else EventKind.INVALID_READ
    crossing = one.offset + one.size > stop
    pointer = 0  # the first call is on the region itself; namesakes have other pointers
    begun = False
    for event in events:
        if event.kind not in (wanted, refused):
            continue
        if event.name != region.name or (event.mr and pointer not in (0, event.mr)):
            if crossing and (begun or event.kind is refused):
                return  # it may come back to the region later, as somebody else's doing
            continue
        if event.kind is wanted:
            seen = Seen((event.address - base) & MASK64, event.size, event.value, None, 0, 0)
        else:
            assert event.refusal is not None, event
            why, least, most = event.refusal
            seen = Seen(event.address, event.size, 0, why.value, least, most)
        # No access to the region begins behind its end; one may run over it.
        first_behind = event.kind is wanted and not pointer and seen.offset >= stop
        if first_behind or not one.offset <= seen.offset < one.offset + one.size:
            if crossing:
                return
            continue
        pointer, begun = event.mr or pointer, True
        yield seen


def _nested(events: list[Event], region: MemoryRegion) -> bool:
    """Whether an access that lies in the region left lines of others: before its own (a read is
    logged when it is done) or behind it (a write when it begins)."""
    accesses = [event for event in events if event.kind in _ACCESSES]
    pointers = {event.mr for event in accesses if event.mr and event.name == region.name}
    return len(pointers) > 1 or any(event.name != region.name for event in accesses)


# -- where ---------------------------------------------------------------------------------


def first_windows(place: Place) -> list[int]:
    """Offsets that show most contracts: the first eight, eight in the middle, and where there
    is an odd end the last eight."""
    section = place.main
    first, last = section.offset, section.offset + section.size - 1
    starts = {first & ~7, (first + section.size // 2) & ~7, last & ~7}
    return [
        offset for start in sorted(starts) for offset in range(start, start + 8)
        if first <= offset <= last
    ]


def every_size(place: Place, offsets: Iterable[int], *, is_write: bool = False) -> list[Ask]:
    """Every size at each offset; writes of 0."""
    return [Ask(offset, size, is_write) for offset in offsets for size in place.verbs]


def powers_of_two(place: Place) -> list[Ask]:
    """One aligned read of four bytes at each power of two in view: what lies far off the
    windows."""
    wanted = [Ask(1 << bit, 4) for bit in range(3, 64)]
    return [
        one for one in wanted
        if (section := place.section(one.offset)) is not None
        and one.offset + one.size <= section.offset + section.size
    ]
