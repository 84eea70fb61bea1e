"""The plugin's lines, and how they agree with the trace lines around them.

A record is one line of QEMU's log, written by ``access_log.c`` when an access is done::

    qg_access cpu 0 insn 0xea4c5 load size 4 order little vaddr 0xb0000010 paddr 0xb0000010 io 1 value 0x0 name 'pcie-mmcfg-mmio'

``insn`` is the virtual address of the instruction, ``order`` the byte order of the access,
``value`` the number moved (as the CPU sees it). ``none`` stands where QEMU cannot tell: ``paddr``
and ``io`` together, ``value`` on an old QEMU, ``name``. In a name ``\\xNN`` stands for a quote, a
backslash, or a byte that is not printable ASCII. Around the records stand ``qg_plugin api 4 target
'x86_64'`` (at load), ``qg_limit N`` (quiet from here on) and, where QEMU ends by itself,
``qg_end seen N printed M``.

What is known of the accounts QEMU gives (measured on 7.2.22, 10.0.2 and 11.1.3):

- The value is there from API 4 on (10.0.2, 11.1.3), not on 7.2.
- Physical addresses of 7.2 are right only in simple cases (the q35 ROM at 0xfffffff0 comes as
  0x107fffff0); use the virtual one there, with the guest's MMU off or identity-mapped. On 10.0.2
  and 11.1.3 they are right.
- The name is ``RAM`` for RAM and for ROM (a store to ROM, which changes nothing, has a record
  like any other). It is ``anonXXXXXXXX`` for unassigned memory and where several regions share a
  4 KiB page: those are QEMU's own nameless regions.
- The name (and ``io``) are looked up *after* the access. Where the access itself changed the
  map, 10.0.2 names whatever took the place of the old region's entry.
- What the CPU's own microcode moves is there too: x86's LGDT and descriptor loads.
- A refused access that does not fault (x86) has a record and no trace event. A faulting access
  has no record, nor have x86's ``in`` and ``out``.
- A region in a shared page gives two events: its own, and one of the page (``subpage``), which
  stands behind it for a load and before it for a store.
"""  # noqa: E501 - the example is one line, as in the log

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from qemuglue.errors import plain

__all__ = [
    "Agreement", "DeviceEvent", "Difference", "GuestAccess", "LogEnd", "Match", "agreement",
    "end_of_log", "parse", "stream",
]

#: A longer line is no record (the plugin's own stay below 1,024) and not worth a regex.
MAX_LINE = 4096

_RECORD = re.compile(
    rb"qg_access cpu (\d{1,9}) insn 0x([0-9a-f]{1,16}) (load|store) size (\d{1,3})"
    rb" order (little|big) vaddr 0x([0-9a-f]{1,16})"
    rb" paddr (?:0x([0-9a-f]{1,16}) io ([01])|none io none)"
    rb" value (?:0x([0-9a-f]{1,32})|none)"
    rb" name (?:'((?:[ -&(-\[\]-~]|\\x[0-9a-f]{2})*)'|none)"
)
_EVENT = re.compile(
    rb"memory_region_(ops|subpage|ram_device)_(read|write) cpu (-?\d{1,9}) mr 0x([0-9a-f]{1,16})"
    rb" (?:addr|offset) 0x([0-9a-f]{1,16}) value 0x([0-9a-f]{1,16}) size (\d{1,3})"
    rb"(?: name '(.*)')?"
)
_LIMIT = re.compile(rb"qg_limit (\d{1,20})")
_END = re.compile(rb"qg_end seen (\d{1,20}) printed (\d{1,20})")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")

#: Text that may hide a record or an event in itself only by a hostile region name.
_TRACE_STARTS = (b"memory_region_", b"flatview_", b"qg_")

#: Differences and lone events kept whole; beyond it they are only counted.
MAX_KEPT = 100

#: x86's I/O space; its events carry the port number as their address. No device is mapped into
#: the lowest 64 KiB of memory on any x86 machine, so the two do not mix.
LAST_PORT = 0xFFFF

_PAGE_SIZE = 0x1000
_U64_MASK = (1 << 64) - 1

_SIZES = frozenset(1 << shift for shift in range(8))
_EVENT_SIZES = frozenset((1, 2, 4, 8))


@dataclass(frozen=True, slots=True)
class GuestAccess:
    """One load or store by a guest CPU, as QEMU's plugin interface tells it.

    ``size`` is in bytes, a power of two up to 128. ``value`` is the number the CPU loaded or
    stored, not its bytes in memory. Fields that may be ``None`` are those QEMU could not tell.
    """

    cpu: int
    instruction: int
    store: bool
    size: int
    big_endian: bool
    virtual: int
    physical: int | None
    is_io: bool | None
    value: int | None
    name: str | None


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """One ``memory_region_*`` trace line: a call into a device, after splitting.

    ``cpu`` is -1 for everything but a vCPU's thread. ``address`` is what the line gives: region
    addresses summed up the container chain, or for ``subpage`` the offset in its 4 KiB page.
    ``value`` is masked to ``size`` bytes (7.2 leaves bits above them). ``region`` tells regions
    apart within one run.
    """

    kind: str
    cpu: int
    store: bool
    region: int
    address: int
    size: int
    value: int
    name: str | None


@dataclass(frozen=True, slots=True)
class LogEnd:
    """What the plugin says about its own silence. ``None``: that line is not there.

    ``limit``: the record limit was reached. ``seen`` and ``printed``: at QEMU's own end, records
    that passed the filters and those of them that were printed.
    """

    limit: int | None
    seen: int | None
    printed: int | None


def parse(chunk: bytes) -> list[GuestAccess]:
    """The records of ``chunk`` in order; everything else in it is passed over.

    Only lines ended by a newline count (the last one may be cut), so a reader that gets the log
    in pieces keeps what follows the last newline for the next piece. A record glued behind a text
    without a newline (some device messages) is found; one inside a trace line's name is not.
    Never raises.
    """
    return [item for item in stream(chunk) if isinstance(item, GuestAccess)]


def stream(chunk: bytes) -> Iterator[GuestAccess | DeviceEvent]:
    """Records and trace events of ``chunk`` in the order of the log; as :func:`parse`."""
    for line in _lines(chunk):
        item = _event(line) if line.startswith(b"memory_region_") else _record(line)
        if item is not None:
            yield item


def end_of_log(chunk: bytes) -> LogEnd:
    """The plugin's words on a limit or its end in ``chunk``; the last ones where there are many."""
    limit = seen = printed = None
    for line in _lines(chunk):
        if found := _LIMIT.fullmatch(line):
            limit = int(found[1])
        elif found := _END.fullmatch(line):
            seen, printed = int(found[1]), int(found[2])
    return LogEnd(limit, seen, printed)


def _lines(chunk: bytes) -> Iterator[bytes]:
    """The lines of interest, each from its first word on."""
    start = 0
    while (stop := chunk.find(b"\n", start)) >= 0:
        line = chunk[start:min(stop, start + MAX_LINE + 1)]
        start = stop + 1
        if len(line) > MAX_LINE:
            continue
        if line.startswith(_TRACE_STARTS):
            yield line
        elif (at := max(line.rfind(b"qg_"), line.rfind(b"memory_region_"))) > 0:
            yield line[at:]


def _record(line: bytes) -> GuestAccess | None:
    found = _RECORD.fullmatch(line)
    if found is None:
        return None
    cpu, insn, way, size, order, virtual, physical, io, value, name = found.groups()
    bytes_moved = int(size)
    number = None if value is None else int(value, 16)
    if bytes_moved not in _SIZES or (number is not None and number >> 8 * bytes_moved):
        return None
    return GuestAccess(
        cpu=int(cpu), instruction=int(insn, 16), store=way == b"store", size=bytes_moved,
        big_endian=order == b"big", virtual=int(virtual, 16),
        physical=None if physical is None else int(physical, 16),
        is_io=None if io is None else io == b"1", value=number,
        name=None if name is None else _unescaped(name),
    )


def _event(line: bytes) -> DeviceEvent | None:
    found = _EVENT.fullmatch(line)
    if found is None:
        return None
    kind, way, cpu, region, address, value, size, name = found.groups()
    bytes_moved = int(size)
    if bytes_moved not in _EVENT_SIZES:
        return None
    return DeviceEvent(
        kind=kind.decode(), cpu=int(cpu), store=way == b"write", region=int(region, 16),
        address=int(address, 16), size=bytes_moved,
        value=int(value, 16) & ((1 << 8 * bytes_moved) - 1),
        name=None if name is None else plain(name.decode("utf-8", "backslashreplace")),
    )


def _unescaped(name: bytes) -> str:
    whole = _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), name)
    return plain(whole.decode("utf-8", "backslashreplace"))


# Agreement of the two accounts


class Match(Enum):
    """How an I/O record agrees with the trace events in front of it."""

    EXACT = "one event, same address and size"
    SPLIT = "several events that together are the access"
    WIDER = "events that cover the access and more"
    SHARED = "only the page shared by several regions answered"
    SILENT = "no event: nothing there, or refused before the device was called"
    PARTIAL = "events that cover only some of the access"
    VALUE = "the events' values do not make up the value of the record"


#: What differs and needs an explanation. SILENT is one of them only where the run had no
#: accesses to unassigned memory, ROM, or refused sizes: QEMU traces none of these.
DISAGREEMENTS = frozenset((Match.SILENT, Match.PARTIAL, Match.VALUE))


@dataclass(frozen=True, slots=True)
class Difference:
    """An I/O record that does not agree, with the events of its CPU since the record before."""

    access: GuestAccess
    match: Match
    events: tuple[DeviceEvent, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Both accounts of one run side by side.

    ``matches`` counts I/O records by how they agree, ``values`` those of them whose value was
    compared and found equal, ``swapped`` those where it is equal but for the byte order (a trace
    value is in the device's order, which the line does not tell). ``names`` counts the pairs
    (record's name, event's name) that differ. ``lone`` are events of vCPUs that no record claims,
    ``ports`` counts those among them that are port I/O (not in ``lone``), ``not_cpu`` events that
    are no vCPU's. ``unknown`` counts records of which QEMU could not say whether they are I/O;
    they are not judged.
    ``differences`` and ``lone`` keep the first :data:`MAX_KEPT`; ``lone_count`` counts all.
    """

    matches: Mapping[Match, int]
    values: int
    swapped: int
    names: Mapping[tuple[str, str], int]
    differences: tuple[Difference, ...]
    lone: tuple[DeviceEvent, ...]
    lone_count: int
    ports: int
    not_cpu: int
    unknown: int

    @property
    def judged(self) -> int:
        """I/O records compared with the events."""
        return sum(self.matches.values())

    @property
    def disagreed(self) -> int:
        """Records of a kind in :data:`DISAGREEMENTS`."""
        return sum(count for match, count in self.matches.items() if match in DISAGREEMENTS)


def agreement(
    items: Iterable[GuestAccess | DeviceEvent], *, physical: bool, last_port: int = LAST_PORT,
) -> Agreement:
    """Compare every I/O record with the trace events of its access.

    ``items`` in the order of the log, as :func:`stream` gives them. The events of an access stand
    in front of its record and behind the record before it of the same vCPU; between them only
    port I/O, faulting accesses and what a device did on that thread can stand.
    ``physical`` picks the record's physical address, else the virtual one (7.2; see the module's
    text). ``last_port``: events wholly up to here are taken as port I/O where no record claims
    them; -1 for a target without ports. An event behind an alias that moves addresses does not
    carry the bus address (QEMU sums up containers), so a record of it counts as silent.
    """
    tally = _Tally(last_port)
    waiting: dict[int, list[DeviceEvent]] = {}
    for item in items:
        if isinstance(item, DeviceEvent):
            if item.cpu < 0:
                tally.not_cpu += 1
            else:
                waiting.setdefault(item.cpu, []).append(item)
            continue
        tally.take(item, waiting.pop(item.cpu, []), physical)
    for events in waiting.values():
        tally.leave(events)
    return tally.result()


class _Tally:
    def __init__(self, last_port: int) -> None:
        self.last_port = last_port
        self.matches: Counter[Match] = Counter()
        self.names: Counter[tuple[str, str]] = Counter()
        self.differences: list[Difference] = []
        self.lone: list[DeviceEvent] = []
        self.values = self.swapped = self.lone_count = self.ports = self.not_cpu = self.unknown = 0

    def take(self, access: GuestAccess, events: list[DeviceEvent], physical: bool) -> None:
        if access.is_io is None:
            self.unknown += 1
        if not access.is_io:
            self.leave(events)
            return
        address = access.physical if physical else access.virtual
        assert address is not None, "a record with io 0 or 1 has a physical address"
        claimed = [event for event in events if _touches(event, access, address)]
        self.leave(event for event in events if event not in claimed)
        match = _match(access, address, claimed)
        self.matches[match] += 1
        if match in DISAGREEMENTS:
            if len(self.differences) < MAX_KEPT:
                self.differences.append(Difference(access, match, tuple(events)))
        elif access.value is not None:
            if _value(access, address, claimed, swap=False) == access.value:
                self.values += 1
            else:
                self.swapped += 1
        for event in claimed:
            if event.name is not None and access.name is not None and event.name != access.name:
                self.names[access.name, event.name] += 1

    def leave(self, events: Iterable[DeviceEvent]) -> None:
        for event in events:
            if event.kind == "ops" and event.address + event.size - 1 <= self.last_port:
                self.ports += 1
                continue
            self.lone_count += 1
            if len(self.lone) < MAX_KEPT:
                self.lone.append(event)

    def result(self) -> Agreement:
        return Agreement(
            matches=dict(self.matches), values=self.values,
            swapped=self.swapped, names=dict(self.names),
            differences=tuple(self.differences), lone=tuple(self.lone),
            lone_count=self.lone_count, ports=self.ports, not_cpu=self.not_cpu,
            unknown=self.unknown,
        )


def _start(event: DeviceEvent, address: int) -> int:
    """Where ``event`` starts, relative to ``address``; small and signed.

    A subpage event gives its offset in the page of the access.
    """
    if event.kind == "subpage":
        return event.address - address % _PAGE_SIZE
    ahead = (event.address - address) & _U64_MASK
    return ahead - (1 << 64) if ahead >> 63 else ahead


def _touches(event: DeviceEvent, access: GuestAccess, address: int) -> bool:
    """Whether ``event`` can be of ``access``: the same way, on bytes it may touch.

    Those are its own and, for an unaligned load, the rest of the two aligned words around it:
    7.2 loads both whole and combines them.
    """
    before = 0 if access.store else address % access.size
    after = access.size - before if before else 0
    start = _start(event, address)
    return (
        event.store == access.store
        and start < access.size + after
        and start + event.size > -before
    )


def _calls(events: list[DeviceEvent]) -> list[DeviceEvent]:
    """The events whose bytes count: a subpage's own line repeats those of the regions in it."""
    return [event for event in events if event.kind != "subpage"] or events


def _match(access: GuestAccess, address: int, events: list[DeviceEvent]) -> Match:
    """The judgement on ``access`` with the events that touch it, in order."""
    if not events:
        return Match.SILENT
    calls = _calls(events)
    covered = {_start(event, address) + i for event in calls for i in range(event.size)}
    if not covered.issuperset(range(access.size)):
        return Match.PARTIAL
    if access.value is not None and access.value not in (
        _value(access, address, events, swap=False), _value(access, address, events, swap=True),
    ):
        return Match.VALUE
    if calls[0].kind == "subpage":
        return Match.SHARED
    if len(covered) > access.size:
        return Match.WIDER
    return Match.EXACT if len(calls) == 1 else Match.SPLIT


def _value(
    access: GuestAccess, address: int, events: list[DeviceEvent], *, swap: bool,
) -> int:
    """The number the events make up, in the byte order of the access; they cover all of it.

    ``swap``: the device's order is the other one.
    """
    order: Literal["big", "little"] = "big" if access.big_endian else "little"
    other: Literal["big", "little"] = "little" if access.big_endian else "big"
    memory: dict[int, int] = {}
    for event in _calls(events):
        octets = event.value.to_bytes(event.size, other if swap else order)
        memory.update(enumerate(octets, _start(event, address)))
    return int.from_bytes(bytes(memory[i] for i in range(access.size)), order)
