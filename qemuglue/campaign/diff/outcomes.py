"""One program, performed by two QEMUs: what do they do that is not the same?

QEMU against QEMU, with no model in between. The program is drawn from a seed over the addresses
that both maps answer alike (same type, same byte of the region; names do not matter), so that a
difference is one of behaviour and not one of the map, which is told elsewhere. It is preceded by
the accesses that map PCI devices as firmware would, where the machine has them; both QEMUs are
given the same ones.

Operations go out one at a time, and the main loop is let come round after each, so every line of
the transcript belongs to its operation. Compared are, in this order, and at most one of them for
an operation: whether QEMU survives it; whether it is refused, and why; the calls into devices it
is cut into (direction, distance from the first, size, and the values written); QMP events; the
value replied.

Both QEMUs perform it twice. What differs between two runs of one build (clocks, random numbers,
pointers) is unstable and not compared; the count of such operations is kept. The builds take
turns, so that a clock that ticks between any two runs differs within one build as well. A QEMU that
dies ends a stretch: all four are started afresh behind that operation, so that both builds go on
from the same state; the region it was on is left alone from then on. Dying alike is no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from random import Random
from typing import Any

from qemuglue.campaign.diff.ranges import joined, pieces_of
from qemuglue.errors import QemuDied, QemuFailure, QemuHang, ResourceError
from qemuglue.mirror.snapshot import MapRange, View, views_of
from qemuglue.program.generate import Generator
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.program.verbs import ADDRESS_MASK, IO, MEMORY, PORT_MAX
from qemuglue.program.words import format_operation
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.events import Event, Kind, parse
from qemuglue.qemu.mtree import parse_flat
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.death import crash_signature
from qemuglue.witness.face import encode
from qemuglue.witness.oddities import avoided
from qemuglue.witness.pci import pci_setup

#: Operations where nothing is said: a machine takes half a second.
DEFAULT_OPS = 200
#: More is a campaign's work.
MAX_OPS = 100_000
#: One operation and the round of the main loop behind it: microseconds; a second when loaded.
OP_TIMEOUT_S = 5.0
#: Deaths after which the rest of the program is given up.
MAX_DEATHS = 8
#: Lines of one operation's calls that are kept: a 4 KiB byte string is 4,096 calls at most.
MAX_CALLS = 4200
#: The space that qtest's memory commands enter; without a CPU there is none.
_CPU_SPACE = "cpu-memory-0"
_IO_SPACE = "I/O"

Step = tuple[Operation, int]
_KINDS = {"i/o": "device"}


@dataclass(frozen=True, slots=True)
class Call:
    """A call into a device, or its refusal. ``offset`` is the distance in bytes from the first
    one of the operation: sums of region addresses differ where containers do. ``region`` is the
    name, which is not compared."""

    what: str
    offset: int
    size: int
    value: int | None = None
    region: str = field(default="", compare=False)

    def __str__(self) -> str:
        at = f" at {'+' if self.offset >= 0 else '-'}{abs(self.offset):#x}" if self.offset else ""
        value = "" if self.value is None else f" = {self.value:#x}"
        return f"{self.what} {self.size}{at}{value}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one operation did. ``reply`` is qtest's line, ``events`` are QMP's names, ``death`` is
    a signature, "" while QEMU lives."""

    reply: str = ""
    calls: tuple[Call, ...] = ()
    events: tuple[str, ...] = ()
    death: str = ""

    @property
    def refused(self) -> tuple[Call, ...]:
        return tuple(call for call in self.calls if call.what.startswith("refused"))


@dataclass(frozen=True, slots=True)
class OutcomeChange:
    """One operation that two builds do not do alike. ``what`` is ``death``, ``refusal``,
    ``pieces``, ``event`` or ``value``; ``region`` the one at the operation's address, "" where
    nothing is mapped; ``before`` and ``after`` are words."""

    what: str
    region: str
    kind: str
    operation: str
    address: int
    before: str
    after: str

    @property
    def alike(self) -> tuple[str, ...]:
        """Equal for what is probably one difference, on this machine or another."""
        verb = self.operation.split(" ", 1)[0].rstrip("bwlq")
        shape = "read" if verb in ("read", "in") else "write"
        return (self.what, self.kind, self.region, shape,
                *((self.before, self.after) if self.what == "death" else ()))

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what, "region": self.region, "kind": self.kind,
            "operation": self.operation, "address": self.address, "before": self.before,
            "after": self.after,
        }


@dataclass(frozen=True, slots=True)
class Outcomes:
    """``performed`` operations were compared, ``unstable`` of them only in part. ``skipped`` says
    why nothing was performed, "" if it was; ``notes`` are sentences."""

    performed: int = 0
    unstable: int = 0
    changes: tuple[OutcomeChange, ...] = ()
    skipped: str = ""
    notes: tuple[str, ...] = ()


def compare_outcomes(before: QemuConfig, after: QemuConfig, *, ops: int, seed: int) -> Outcomes:
    """Perform one program of ``ops`` operations on both machines and compare.

    :raise LaunchError: one of them does not start.
    :raise QemuFailure: one ends before the program begins.
    """
    a, b = (replace(config, transcript=True) for config in (before, after))
    plan = _plan(a, b, ops, seed)
    if isinstance(plan, str):
        return Outcomes(skipped=plan)
    return _Comparison((a, b, a, b), plan).run()


# Section: the program


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is performed: the set-up, then the steps; ``layout`` names the places."""

    setup: tuple[Step, ...]
    steps: tuple[Step, ...]
    layout: Layout


def _plan(a: QemuConfig, b: QemuConfig, ops: int, seed: int) -> _Plan | str:
    """The program, or why there is none."""
    with QemuProcess(a) as one, QemuProcess(b) as two:
        setup = tuple(
            (op, op.place.offset) for op in pci_setup(
                one.monitor, a.full_name, big=one.endianness == "big")
            if op.place is not None
        )
        maps = []
        for process in (one, two):
            _perform_setup(process, setup)
            maps.append(_views(process))
        one.kill()
        two.kill()
    if any(_CPU_SPACE not in views for views in maps):
        return "no CPU: there is no address space to make accesses in"
    layout, apart = _common(maps[0], maps[1], _avoid(a, b))
    rng = Random(f"{seed}/{a.full_name}")
    steps: list[Step] = []
    generator = Generator(layout)
    for _ in range(4):  # what touches a difference is left out and made up for
        for op, address in generator.resolved(rng, ops - len(steps)):
            if address is not None and not _touches(apart[op.info.space or ""], op, address):
                steps.append((op, address))
        if len(steps) >= ops:
            break
    if not steps:
        return "no place where both builds answer alike"
    return _Plan(setup, tuple(steps), layout)


def _perform_setup(process: QemuProcess, setup: Sequence[Step]) -> None:
    if setup:
        request = b"".join(encode(op, address) for op, address in setup)
        process.channel.exchange(request, len(setup))
    process.monitor.round_trip()
    process.monitor.events()
    process.transcript.read_new()


def _views(process: QemuProcess) -> dict[str, View]:
    views = views_of(parse_flat(process.monitor.hmp("info mtree -f")), {})
    return {name: view for view in views for name in view.spaces}


def _avoid(a: QemuConfig, b: QemuConfig) -> Callable[[str], bool]:
    lists = [avoided(config.build.version_tuple, config.full_name) for config in (a, b)]
    return lambda name: any(each.why(name) is not None for each in lists)


def _common(
    a: dict[str, View], b: dict[str, View], avoid: Callable[[str], bool],
) -> tuple[Layout, dict[str, list[tuple[int, int]]]]:
    """What both answer alike as a layout, and by space the bytes (first, last) that differ."""
    spaces: dict[str, list[Range]] = {}
    apart: dict[str, list[tuple[int, int]]] = {}
    for space, name in ((MEMORY, _CPU_SPACE), (IO, _IO_SPACE)):
        spaces[space], apart[space] = [], []
        mine, other = a.get(name), b.get(name)
        if mine is None or other is None:
            continue
        root = (mine.root, other.root)
        for piece in pieces_of(joined(mine.ranges), joined(other.ranges)):
            if not _alike(piece.a, piece.b, root) or (piece.a and avoid(piece.a.name)):
                apart[space].append((piece.start, piece.last))
            elif piece.a is not None:
                each = piece.a
                spaces[space].append(Range(
                    piece.start, piece.last - piece.start + 1, each.name, 0,
                    each.offset + piece.start - each.start, _kind(each, space, mine.root), space,
                ))
    return Layout(spaces), apart


def _alike(a: MapRange | None, b: MapRange | None, roots: tuple[str, str]) -> bool:
    if a is None or b is None:
        return False
    if (a.name == roots[0]) != (b.name == roots[1]):
        return False
    return a.type == b.type and a.start - a.offset == b.start - b.offset


def _kind(each: MapRange, space: str, root: str) -> str:
    if space == IO and each.name == root:
        return "container-io"
    return _KINDS.get(each.type, each.type)


def _touches(apart: Sequence[tuple[int, int]], op: Operation, address: int) -> bool:
    """Whether the bytes of an access, which may wrap, are among those."""
    last = address + op.size - 1
    wrapped = last - (1 << 64)
    return any(
        (start <= last and address <= stop) or start <= wrapped for start, stop in apart
    )


# Section: performing


class _Run:
    """One QEMU performing the program from some step on."""

    def __init__(self, process: QemuProcess, setup: Sequence[Step]) -> None:
        self.process = process
        _perform_setup(process, setup)

    def perform(self, steps: Sequence[Step]) -> list[Outcome]:
        """The outcomes up to the end or to QEMU's death, that one included."""
        done: list[Outcome] = []
        for op, address in steps:
            try:
                done.append(self._one(op, address))
            except QemuFailure as error:
                done.append(Outcome(death=self._death(error)))
                break
        return done

    def _one(self, op: Operation, address: int) -> Outcome:
        process = self.process
        reply = process.channel.exchange(encode(op, address), 1, timeout_s=OP_TIMEOUT_S)
        # What an access asks of the main loop (a reset, a power-off) is done before this answer.
        process.channel.exchange(b"endianness\n", 1, timeout_s=OP_TIMEOUT_S)
        names: tuple[str, ...] = ()
        if process.monitor.pending():
            names = tuple(event.name for event in process.monitor.events())
        calls = _calls(parse(process.transcript.read_new()))
        return Outcome(reply.decode("ascii", "backslashreplace").strip(), calls, names)

    def _death(self, error: QemuFailure) -> str:
        if isinstance(error, QemuHang):
            return f"hang:{error.channel}"
        if isinstance(error, ResourceError):
            return f"resource:{error.what}"
        status = self.process.exit_status()
        if status.polite:
            return f"shutdown:{status.shutdown_reason}"
        if isinstance(error, QemuDied):
            return crash_signature(error.stderr, error.exit_code, error.signal)
        return f"protocol:{error}"


_TOLD = {
    Kind.READ: "read", Kind.WRITE: "write", Kind.RAM_DEVICE_READ: "read",
    Kind.RAM_DEVICE_WRITE: "write",
}


def _calls(events: Sequence[Event]) -> tuple[Call, ...]:
    """Calls and refusals. Records of shared pages (10.x has none any more), of new maps and the
    texts of devices are not compared: they tell how QEMU is made, not what it does."""
    calls: list[Call] = []
    first: int | None = None
    for event in events[:MAX_CALLS]:
        if event.refusal is not None:
            read = event.kind is Kind.INVALID_READ
            what = f"refused ({event.refusal.reason.value}) {'read' if read else 'write'}"
            # Counted from the region's start, where calls are from the machine's.
            calls.append(Call(what, 0, event.size, region=event.name or ""))
            continue
        what = _TOLD.get(event.kind, "")
        if not what:
            continue
        first = event.address if first is None else first
        calls.append(Call(what, event.address - first, event.size,
                          event.value if what == "write" else None, event.name or ""))
    return tuple(calls)


# Section: comparing


class _Comparison:
    """Four runs of one program: each build twice, in turns."""

    def __init__(self, configs: tuple[QemuConfig, ...], plan: _Plan) -> None:
        self.configs, self.plan = configs, plan
        self.performed = self.unstable = 0
        self.changes: list[OutcomeChange] = []
        self.alike_deaths: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.fatal: set[tuple[str, str]] = set()

    def run(self) -> Outcomes:
        left = self.plan.steps
        notes: list[str] = []
        for _ in range(MAX_DEATHS):
            left = self._stretch(left)
            if not left:
                break
        for signature, n in sorted(self.alike_deaths.items()):
            times = f"{n} times " if n > 1 else ""
            notes.append(f"both builds end {times}alike: {signature}")
        for region, n in sorted(self.left_out.items()):
            many = "operations" if n > 1 else "operation"
            notes.append(f"{region} ended QEMU: {n} more {many} on it left out")
        if left:
            notes.append(f"{len(left)} operations were left out: QEMU had ended {MAX_DEATHS} times")
        return Outcomes(self.performed, self.unstable, tuple(self.changes), "", tuple(notes))

    def _stretch(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """Perform until the end or until one of the four dies; what is left to do then."""
        with ExitStack() as open_processes:
            runs = [open_processes.enter_context(QemuProcess(config)) for config in self.configs]
            told = [_Run(process, self.plan.setup).perform(steps) for process in runs]
            for process in runs:
                process.kill()
        count = min(map(len, told))
        for number in range(count):
            a1, b1, a2, b2 = (outcomes[number] for outcomes in told)
            self._compare(steps[number], a1, a2, b1, b2)
        if count == len(steps):
            return ()
        self.fatal.update(self._regions(steps[count - 1])[:1])
        kept = []
        for step in steps[count:]:
            met = [place for place in self._regions(step) if place in self.fatal]
            if met:
                self.left_out[met[0][1]] += 1
            else:
                kept.append(step)
        return tuple(kept)

    def _regions(self, step: Step) -> list[tuple[str, str]]:
        """Regions (space, name) that an access touches at its two ends, devices first."""
        op, address = step
        space = op.info.space or MEMORY
        mask = PORT_MAX if space == IO else ADDRESS_MASK
        ends = (address, (address + op.size - 1) & mask)
        found = [self.plan.layout.range_at(end, space) for end in ends]
        found.sort(key=lambda each: each.kind == "container-io")
        return [(space, each.region) for each in found if each.region]

    def _compare(self, step: Step, a1: Outcome, a2: Outcome, b1: Outcome, b2: Outcome) -> None:
        self.performed += 1
        deaths_a, deaths_b = {a1.death, a2.death}, {b1.death, b2.death}
        if deaths_a != {""} or deaths_b != {""}:
            if deaths_a == deaths_b:
                self.alike_deaths[" or ".join(sorted(filter(None, deaths_a)))] += 1
            elif len(deaths_a) > 1 or len(deaths_b) > 1:
                self.unstable += 1
            else:
                self._tell("death", step, a1.death or "goes on", b1.death or "goes on")
            return
        unstable = False
        for what, key in _ASPECTS:
            mine, other = {key(a1), key(a2)}, {key(b1), key(b2)}
            if len(mine) > 1 or len(other) > 1:
                unstable = True
            elif mine != other:
                self._tell(what, step, _words(what, a1), _words(what, b1), _region(a1, b1))
                break
        self.unstable += unstable

    def _tell(
        self, what: str, step: Step, before: str, after: str, region: str = "",
    ) -> None:
        op, address = step
        space = op.info.space or MEMORY
        found = self.plan.layout.range_at(address, space)
        if not found.region:  # it may reach into something
            mask = PORT_MAX if space == IO else ADDRESS_MASK
            found = self.plan.layout.range_at((address + op.size - 1) & mask, space)
        plain = replace(op, place=Place(offset=address))
        other = region and region != found.region
        self.changes.append(OutcomeChange(
            what, region or found.region, "device" if other else found.kind,
            _short(format_operation(plain)), address, before, after,
        ))


def _region(a: Outcome, b: Outcome) -> str:
    """The region of the first call that is not the same, as the build before calls it."""
    for mine, other in zip_longest(a.calls, b.calls):
        if mine != other:
            return str((mine or other).region)
    return ""


_ASPECTS: tuple[tuple[str, Callable[[Outcome], object]], ...] = (
    ("refusal", lambda outcome: outcome.refused),
    ("pieces", lambda outcome: outcome.calls),
    ("event", lambda outcome: outcome.events),
    ("value", lambda outcome: outcome.reply),
)

#: A program's line or a reply in a report, at most.
MAX_WORDS = 100
#: Calls named; the rest is counted.
_NAMED_CALLS = 4


def _short(text: str) -> str:
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}…"


def _words(what: str, outcome: Outcome) -> str:
    if what == "event":
        return ", ".join(outcome.events) or "no event"
    if what == "value":
        return _short(outcome.reply.removeprefix("OK "))
    calls = outcome.calls
    named = [
        f"{n} times {call}" if n > 1 else f"{call}"
        for call, n in list(Counter(calls).items())[:_NAMED_CALLS]
    ]
    more = len(Counter(calls)) - _NAMED_CALLS
    return ", ".join(named) + (f" and {more} more" if more > 0 else "") if calls else "no call"
