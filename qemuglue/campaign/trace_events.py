"""QEMU's own trace events as feedback: which are chosen, what is made of a line, which go off.

QEMU 11.1 has 5,580 trace events. A device's own (``e1000e_*``, ``usb_xhci_*``, ``ahci_*``) tell
how far a program got inside the device, which no reply shows. Those are chosen whose first two
words name something that is on the machine: a type in ``info qtree``, a region of the map, a
device under test. Plumbing (locks, monitor, memory map, reset phases) is not.

A line is ``name arguments``, by QEMU's ``log`` trace backend. Its *shape* is the name with every
number replaced by its width in bits, pointers by nothing, so that shapes are few and the same in
every run. An event that floods is switched off at run time, for all QEMUs of this campaign.

Some events are not caused by the operation they stand behind: timers, bottom halves and threads
write whenever they like (:data:`ASYNCHRONOUS`). They are not counted; what else turns out to be
noise is found by ``feedback.Stability``.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from qemuglue.errors import QemuFailure, UsageError
from qemuglue.qemu.config import VmMode
from qemuglue.qemu.monitor import MonitorRefused

if TYPE_CHECKING:
    from qemuglue.witness.session import Session

#: First words of events that are QEMU's plumbing, whatever a type on the machine is called.
PLUMBING: Final = frozenset({
    "memory", "flatview", "address", "subpage", "exec", "tb", "cpu", "vcpu", "kvm", "hvf", "mshv",
    "qemu", "qmp", "handle", "monitor", "visit", "qio", "object", "qdev", "resettable", "loader",
    "lockcnt", "poll", "aio", "fdmon", "thread", "run", "runstate", "vm", "ram", "dirty",
    "migration", "migrate", "vmstate", "savevm", "loadvm", "reentrant", "system",
    "main", "file", "buffer", "load", "store", "find", "get", "set",
})

#: Words of type and region names that say nothing about which device it is.
_COMMON: Final = frozenset({
    "bus", "device", "dev", "default", "generic", "host", "id", "info", "int", "io", "ioport",
    "low", "high", "machine", "main", "mem", "mmio", "none", "port", "type", "unattached", "gpio",
})

#: First words that name a family; the second word of such an event names the device.
FAMILIES: Final = frozenset({"usb", "x86", "scsi", "sd", "hw", "isa"})

#: Events that are written when something else than an operation makes QEMU's main loop or a
#: thread of its come by: completions of block requests, network and character back-ends, the
#: display, timers. Measured with nearly all events on (4,904 of 11.1's, 4,535 of 10.0's, 3,640 of
#: 7.2's; q35 with e1000e, xhci and virtio-rng): two QEMUs that did the same 40 programs stopped
#: wrote the same lines but for ``qemu_mutex_*`` and ``qemu_*coroutine*``, which are plumbing.
ASYNCHRONOUS: Final = re.compile(
    r"bdrv_.*|blk_.*|qcow2_.*|paio_.*|luring_.*|laio_.*|chr_.*|vnc_.*|gd_.*|console_.*"
    r"|displaysurface_.*|net_.*|slirp_.*|.*_timer(_.*)?|.*_bh(_.*)?|.*_poll(_.*)?"
)

#: In parked mode a board's own timers raise interrupts at any moment (measured likewise: the
#: lines of ``pic_``, ``ioapic_`` and ``x86_`` events for them were all that differed).
ASYNCHRONOUS_PARKED: Final = re.compile(r".*_(irq|interrupt|timer)(_.*)?")

#: Lines of one event for one operation, on average over a window: beyond it the event goes off.
#: A line costs QEMU and us about as much as a quarter of a judged operation.
LINES_PER_OPERATION: Final = 1.0
#: All events together; when they exceed it the loudest goes off, then the next.
ALL_PER_OPERATION: Final = 2.0
#: Operations in a window; a flood is told sooner.
WINDOW: Final = 1024
#: Lines of one event in one window that need no average.
FLOOD: Final = 4096
#: A QEMU that answers with more names than this is not one.
MAX_EVENTS: Final = 50_000
#: Different shapes kept of one event; what comes later is its name only.
MAX_SHAPES: Final = 128
#: Longest line whose arguments are looked at.
MAX_LINE: Final = 512

_WORD: Final = re.compile(r"[a-z][a-z0-9]*")
_DEVICE: Final = re.compile(r"^ *dev: ([^,\r\n]+)", re.MULTILINE)
_NUMBER: Final = re.compile(rb"0x([0-9a-fA-F]+)|(?<![A-Za-z_0-9])-?([0-9]+)(?![A-Za-z_0-9])"
                            rb"|(?<![A-Za-z_0-9])([0-9][0-9a-f]{3,15})(?![A-Za-z_0-9])")
#: Numbers of more bits than this are pointers or times.
_POINTER_BITS: Final = 36


def words_of(names: Iterable[str]) -> set[str]:
    """The telling words of type, region and device names, in lower case."""
    return {
        word for name in names for word in _WORD.findall(name.lower().replace("_", " "))
        if len(word) > 1 and word not in _COMMON and word not in PLUMBING
    }


def choose(
    events: Iterable[str], words: Collection[str], *, parked: bool = False
) -> list[str]:
    """The events whose first word (the second, in a family) is one of ``words``, plumbing and
    asynchronous ones left out; sorted."""
    return sorted(
        event for event in events
        if _fits(event, words) and not ASYNCHRONOUS.fullmatch(event)
        and not (parked and ASYNCHRONOUS_PARKED.fullmatch(event))
    )


def _fits(event: str, words: Collection[str]) -> bool:
    first, *rest = event.lower().split("_", 2)
    if first in PLUMBING:
        return False
    return first in words or (first in FAMILIES and bool(rest) and rest[0] in words)


def _bits(found: re.Match[bytes]) -> bytes:
    hexadecimal, decimal, bare = found.groups()
    digits = (hexadecimal or bare or decimal)[:20]
    number = int(digits, 10 if decimal is not None else 16)
    bits = number.bit_length()
    return b"*" if bits > _POINTER_BITS or len(digits) > 16 else b"%d" % bits


@lru_cache(maxsize=1 << 14)
def shape_of(line: bytes) -> str:
    """A line with its numbers replaced by how many bits they need, and ``*`` for pointers.

    ``e1000e_core_write Write to register 0x4, 4 byte(s), value: 0x140`` becomes
    ``e1000e_core_write Write to register 3, 3 byte(s), value: 9``.
    """
    return _NUMBER.sub(_bits, line[:MAX_LINE]).decode("ascii", "backslashreplace")


def _known(session: Session) -> list[str]:
    """Names of all trace events of this QEMU; none where it does not tell."""
    try:
        answer = session.process.monitor.execute("trace-event-get-state", {"name": "*"})
    except MonitorRefused:
        return []
    if not isinstance(answer, list):
        return []
    names = [each.get("name") for each in answer[:MAX_EVENTS] if isinstance(each, dict)]
    return [name for name in names if isinstance(name, str) and re.fullmatch(r"\w{1,100}", name)]


class TraceEvents:
    """The events that are on, and their budget. ``chosen`` fit the machine; ``names`` are on;
    ``off`` were too loud, with their lines per operation then."""

    def __init__(self, devices: Iterable[str] = ()) -> None:
        self._devices = [device.split(",", 1)[0] for device in devices]
        self.chosen: list[str] = []
        self._patterns: list[str] = []
        self._not: list[str] = []
        self.names: dict[bytes, str] = {}
        self.off: dict[str, float] = {}
        self._lines: Counter[str] = Counter()
        self._operations = 0
        self._shapes: dict[str, set[str]] = {}

    def attach(self, session: Session) -> None:
        """Switch the chosen events on in a QEMU that has just started.

        :raise QemuFailure: it ended meanwhile.
        """
        if not self.chosen:
            self._choose(session)
        for pattern in self._patterns:
            self._switch(session, pattern, on=True)
        for name in (*self._not, *self.off):
            self._switch(session, name, on=False)
        self.names = {name.encode(): name for name in self.chosen if name not in self.off}

    def _choose(self, session: Session) -> None:
        tree = session.process.monitor.hmp("info qtree")
        names = [region.name for region in session.device_regions()]
        words = words_of([*self._devices, *_DEVICE.findall(tree), *names,
                          session.config.target])
        known = _known(session)
        self.chosen = choose(known, words, parked=session.config.mode is VmMode.PARKED)
        # What is only asynchronous in a group goes on with it and off again.
        fits = [name for name in known if _fits(name, words)]
        self._patterns = patterns(fits, known)
        self._not = sorted(set(fits) - set(self.chosen))

    def counted(self, name: str) -> None:
        """A line of the event was seen."""
        self._lines[name] += 1

    def shape(self, name: str, line: bytes) -> str | None:
        """The shape of a line of ``name``; None once the event has shown too many."""
        shape = shape_of(line)
        known = self._shapes.setdefault(name, set())
        if shape not in known:
            if len(known) >= MAX_SHAPES:
                return None
            known.add(shape)
        return shape

    def settle(self, session: Session | None, operations: int) -> list[str]:
        """After a program of so many operations: what is too loud goes off; its names."""
        self._operations += operations
        loud = [name for name, lines in self._lines.items() if lines > FLOOD]
        if self._operations >= WINDOW:
            loud = self._too_loud()
        if loud:
            for name in loud:
                self.off[name] = self._lines[name] / max(1, self._operations)
                self.names.pop(name.encode(), None)
                if session is not None:
                    # A QEMU that has ended is found out by its next operation.
                    with contextlib.suppress(QemuFailure, UsageError):
                        self._switch(session, name, on=False)
        if loud or self._operations >= WINDOW:
            self._lines.clear()
            self._operations = 0
        return loud

    def _too_loud(self) -> list[str]:
        """The loudest first, until the rest fits the budget."""
        left = sum(self._lines.values())
        loud: list[str] = []
        for name, lines in self._lines.most_common():
            if (lines <= LINES_PER_OPERATION * self._operations
                    and left <= ALL_PER_OPERATION * self._operations):
                break
            loud.append(name)
            left -= lines
        return loud

    @staticmethod
    def _switch(session: Session, name: str, *, on: bool) -> None:
        try:
            session.process.monitor.execute("trace-event-set-state", {
                "name": name, "enable": on, "ignore-unavailable": True})
        except MonitorRefused:
            return


def patterns(chosen: Collection[str], known: Collection[str]) -> list[str]:
    """The fewest names and ``prefix_*`` patterns that switch on ``chosen`` and nothing else of
    ``known``: a monitor command for each of a thousand would take seconds."""
    wanted = set(chosen)
    alike: dict[str, bool] = {}
    for name in known:
        for prefix in _prefixes(name):
            alike[prefix] = alike.get(prefix, True) and name in wanted
    return sorted({
        next((f"{prefix}*" for prefix in _prefixes(name) if alike.get(prefix)), name)
        for name in wanted
    })


def _prefixes(name: str) -> list[str]:
    """``a_b_c`` -> ``a_``, ``a_b_``."""
    parts = name.split("_")
    return ["_".join(parts[:length]) + "_" for length in range(1, len(parts))]
