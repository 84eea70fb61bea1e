"""The same program again and again: is what QEMU does the same every time?

Each time the machine is in its first state, and every operation is sent alone. Compared are the
reply, the lines it left in the transcript, and QMP's events. The numbers that differ between two
processes and mean nothing are taken out first: a pointer to a region becomes the how-manieth it
was met, an address of the host is left out. Nothing else is forgiven; a clock that is read is a
difference, and is named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qemuglue.campaign.restoring import Method, Stand
from qemuglue.errors import QemuFailure
from qemuglue.program.operation import Operation
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.face import encode
from qemuglue.witness.session import Step

#: Different accounts of one operation that are kept; a clock gives a new one every time.
MAX_ACCOUNTS = 8

_POINTER = re.compile(rb"\bmr (0x[0-9a-f]+)")
#: Addresses of this process on a 64-bit Linux: its program and heap, its mappings.
_HOST = re.compile(rb"\b0x(?:5[56]|7[ef])[0-9a-f]{10}\b")
#: Views that nobody uses any more are given back by another thread, at times of its own.
_LATER = re.compile(rb"flatview_destroy\w*")


@dataclass(frozen=True, slots=True)
class Account:
    """What one operation did: QEMU's reply, its lines, its events' names. ``end`` says how QEMU
    ended or failed, if it did."""

    reply: bytes
    lines: tuple[bytes, ...]
    events: tuple[str, ...] = ()
    end: str = ""

    def words(self) -> list[str]:
        """A line a part, for a person."""
        parts = [f"reply {self.reply.decode('ascii', 'backslashreplace')}"] if self.reply else []
        parts += [line.decode("utf-8", "backslashreplace") for line in self.lines]
        parts += [f"event {name}" for name in self.events]
        return [*parts, *([self.end] if self.end else [])]


class Normal:
    """Takes the numbers out that mean nothing; one for each time a program is performed."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}

    def lines(self, text: bytes) -> tuple[bytes, ...]:
        return tuple(
            self._line(line) for line in text.splitlines() if not _LATER.match(line))

    def _line(self, line: bytes) -> bytes:
        return _HOST.sub(b"HOST", _POINTER.sub(self._number, line))

    def _number(self, match: re.Match[bytes]) -> bytes:
        known = self._known
        return b"mr " + known.setdefault(match[1], b"%d" % (len(known) + 1))


def perform(process: QemuProcess, steps: Sequence[Step]) -> list[Account]:
    """Every step alone; fewer accounts than steps where QEMU ended or failed."""
    normal = Normal()
    accounts: list[Account] = []
    for op, addr in steps:
        try:
            accounts.append(_one(process, op, addr, normal))
        except QemuFailure as error:
            text = normal.lines(process.transcript.read_new(final=True))
            accounts.append(Account(b"", text, end=str(error)))
            break
    return accounts


def _one(process: QemuProcess, op: Operation, addr: int, normal: Normal) -> Account:
    if op.verb == "reset":
        process.monitor.execute("system_reset")
        reply = b""
    else:
        reply = process.channel.exchange(encode(op, addr), 1).strip()
    # Once round the main loop: what the operation started there belongs to it.
    process.channel.exchange(b"endianness\n", 1)
    lines = normal.lines(process.transcript.read_new())
    events: tuple[str, ...] = ()
    if process.monitor.pending():
        events = tuple(event.name for event in process.monitor.events())
    return Account(reply, lines, events)


@dataclass(slots=True)
class Difference:
    """An operation that did not do the same every time: how often which account was seen."""

    index: int
    step: Step
    accounts: Counter[Account] = field(default_factory=Counter)
    #: Times it was performed.
    total: int = 0

    @property
    def same(self) -> int:
        """How often the commonest account was seen."""
        return max(self.accounts.values())


@dataclass(slots=True)
class Repeated:
    """``same`` of ``total`` times the program did what it did the first time."""

    total: int = 0
    same: int = 0
    first: list[Account] = field(default_factory=list)
    differences: dict[int, Difference] = field(default_factory=dict)
    #: Processes started, and times that one was used again.
    fresh: int = 0
    restored: int = 0


def repeat(
    config: QemuConfig, setup: Sequence[Step], steps: Sequence[Step], times: int, *,
    method: Method = Method.FRESH, on_time: Callable[[Repeated], None] = lambda so_far: None,
) -> Repeated:
    """Perform ``steps`` ``times`` times, each in the first state of the machine.

    :raise EnvironmentFailure, QemuFailure: the machine cannot be brought into it.
    """
    found = Repeated()
    with Stand(config, setup, method) as stand:
        for _ in range(times):
            accounts = perform(stand.clean(), steps)
            if accounts and accounts[-1].end:
                stand.drop()
            _count(found, accounts, steps)
            found.fresh, found.restored = stand.fresh, stand.restored
            on_time(found)
    return found


def _count(found: Repeated, accounts: list[Account], steps: Sequence[Step]) -> None:
    found.total += 1
    if found.total == 1:
        found.first = accounts
    found.same += accounts == found.first
    for index in range(max(len(accounts), len(found.first))):
        account = accounts[index] if index < len(accounts) else None
        first = found.first[index] if index < len(found.first) else None
        known = found.differences.get(index)
        if known is None:
            if account == first:
                continue
            known = found.differences[index] = Difference(index, steps[index])
            if first is not None:
                known.accounts[first] = known.total = found.total - 1
        if account is None:
            continue  # QEMU had ended before; that operation has the difference
        known.total += 1
        if account in known.accounts or len(known.accounts) < MAX_ACCOUNTS:
            known.accounts[account] += 1
