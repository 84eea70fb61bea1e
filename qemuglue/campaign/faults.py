"""Planted faults on the wire: QEMU is as it is, and something between it and the judge lies.

Each damages what comes from QEMU (replies of qtest, lines of the transcript), its memory, or the
time it takes. A campaign that does not notice is deaf on that wire; the tests and ``ci/detect``
plant every one. Which line is damaged is decided by what it says, not by when it comes, so a
fault shows itself again in a fresh QEMU and is confirmed like any finding.

``answers-late`` is no lie, only patience tried: nothing may be found.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

from qemuglue.qemu.process import QemuProcess

#: One in so many lines that can be damaged is: a batch or two on the way to the first.
ONE_IN = 64

#: How long a late QEMU stands still; far from what counts as a hang.
LATE_S = 0.5

#: Times it does so in one process.
TIMES_LATE = 4

#: The byte of guest RAM that somebody else writes.
STRAY_AT = 0x20_3000

_VALUE = re.compile(rb"OK 0x[0-9a-f]{16}")
_POINTER = re.compile(rb" mr 0x[0-9a-f]+")
_ADDR = re.compile(rb"(addr 0x)([0-9a-fA-F]+)")
_REGION = re.compile(rb"(mr 0x)([0-9a-f]+)")
_NUMBER = re.compile(rb"(value 0x)([0-9a-f]+)")
_NAME = re.compile(rb"name '(.)")
_MARK = b", size 1, region '(null)', reason: rejected"

#: One whole line without its newline -> the lines that are read in its place.
Damage = Callable[[bytes], list[bytes]]


@dataclass(frozen=True, slots=True)
class Fault:
    """``wire`` is "reply", "transcript", "memory" or "time"; ``damage`` is for the first two.
    ``late`` holds a line back until the next one has gone by. ``finds`` is the kind of finding
    it must lead to, "" for none."""

    wire: str
    summary: str
    damage: Damage | None = None
    late: bool = False
    finds: str = "divergence"

    @property
    def rule(self) -> str:
        """Where a defect of the model names the rule it breaks."""
        return f"on the wire: {self.wire}"

    def attach(self, process: QemuProcess) -> None:
        """Begin to lie about ``process``; idempotent."""
        channel, transcript = process.channel, process.transcript
        if channel.tap is not None or transcript.tap is not None:
            return
        if self.wire == "reply":
            channel.tap = _Lines(_is_value, self.damage, self.late)
        elif self.wire == "transcript":
            transcript.tap = _Lines(_is_access, self.damage, self.late)
        elif self.wire == "memory":
            channel.tap = _Write(process)
        else:
            channel.tap = _Stop(process, for_good=self.finds == "hang")


@dataclass(slots=True)
class _Lines:
    """Damages lines of a stream that comes in pieces."""

    applies: Callable[[bytes], bool]
    damage: Damage | None
    late: bool
    _rest: bytes = b""
    _held: list[bytes] = field(default_factory=list)

    def __call__(self, data: bytes) -> bytes:
        *lines, self._rest = (self._rest + data).split(b"\n")
        read: list[bytes] = []
        for line in lines:
            if not self._chosen(line):
                read += [line, *self._held]
                self._held.clear()
            elif self.late:
                self._held.append(line)
            else:
                read += self.damage(line) if self.damage is not None else []
        return b"".join(b"%s\n" % line for line in read)

    def _chosen(self, line: bytes) -> bool:
        """By what it says; pointers differ in every run."""
        return self.applies(line) and not crc32(_POINTER.sub(b"", line)) % ONE_IN


@dataclass(slots=True)
class _Write:
    """Somebody else writes a byte of guest RAM, once."""

    process: QemuProcess
    done: bool = False

    def __call__(self, data: bytes) -> bytes:
        if not self.done and self.process.ram is not None:
            self.done = True
            self.process.ram.view[STRAY_AT] ^= 0x5A
        return data


@dataclass(slots=True)
class _Stop:
    """QEMU is stopped for a while before some of its answers; ``for_good`` once and for ever."""

    process: QemuProcess
    for_good: bool
    times: int = 0

    def __call__(self, data: bytes) -> bytes:
        if self.times < (1 if self.for_good else TIMES_LATE):
            self.times += 1
            os.kill(self.process.pid, signal.SIGSTOP)
            if not self.for_good:
                time.sleep(LATE_S)
                os.kill(self.process.pid, signal.SIGCONT)
        return data


# -- which lines, and what becomes of them ---------------------------------------------------------


def _is_value(line: bytes) -> bool:
    return _VALUE.fullmatch(line) is not None


def _is_access(line: bytes) -> bool:
    record = line.startswith((b"memory_region_ops_", b"Invalid "))
    return record and not line.endswith(_MARK)


def _flip(pattern: re.Pattern[bytes]) -> Damage:
    """The lowest bit of the number that ``pattern`` finds, in the case it is written in."""
    def damage(line: bytes) -> list[bytes]:
        def flipped(found: re.Match[bytes]) -> bytes:
            digits = b"%x" % (int(found[2], 16) ^ 1)
            return found[1] + (digits.upper() if line.startswith(b"Invalid") else digits)
        return [pattern.sub(flipped, line, count=1)]
    return damage


def _replace(*pairs: tuple[bytes, bytes]) -> Damage:
    """The first word of ``pairs`` that the line has, by the other."""
    def damage(line: bytes) -> list[bytes]:
        for word, instead in pairs:
            if word in line:
                return [line.replace(word, instead, 1)]
        return [line]
    return damage


def _last_digit(line: bytes) -> list[bytes]:
    return [line[:-1] + (b"1" if line.endswith(b"0") else b"0")]


def _twice(line: bytes) -> list[bytes]:
    return [line, line]


def _lost(line: bytes) -> list[bytes]:
    return []


def _cut(line: bytes) -> list[bytes]:
    return [line[: len(line) // 2]]


_SIZES = _replace((b"size 1 ", b"size 2 "), (b"size 2 ", b"size 4 "), (b"size 4 ", b"size 8 "),
                  (b"size 8 ", b"size 4 "), (b"size 1,", b"size 2,"), (b"size 2,", b"size 4,"),
                  (b"size 4,", b"size 8,"), (b"size 8,", b"size 4,"))
_VERBS = _replace((b"ops_read", b"ops_write"), (b"ops_write", b"ops_read"),
                  (b"Invalid read", b"Invalid write"), (b"Invalid write", b"Invalid read"))
_REASONS = _replace((b"reason: rejected", b"reason: unaligned"),
                    (b"reason: unaligned", b"reason: rejected"),
                    (b"reason: invalid size", b"reason: unaligned"))

FAULTS: dict[str, Fault] = {
    "reply-bit": Fault("reply", "a bit of a value is flipped", _last_digit),
    "reply-cut": Fault("reply", "a reply ends in its middle", _cut),
    "reply-refused": Fault("reply", "a value is replaced by an error",
                           _replace((b"OK ", b"FAIL ")), finds="crash"),
    "reply-twice": Fault("reply", "a reply comes twice", _twice, finds="crash"),
    "reply-lost": Fault("reply", "a reply never comes", _lost, finds="hang"),
    "reply-late": Fault("reply", "a reply comes behind the next", late=True),
    "line-lost": Fault("transcript", "an access is not in the transcript", _lost),
    "line-twice": Fault("transcript", "an access is there twice", _twice),
    "line-late": Fault("transcript", "an access comes behind the next", late=True),
    "line-cut": Fault("transcript", "a line ends in its middle", _cut),
    "line-value": Fault("transcript", "a bit of the value is flipped", _flip(_NUMBER)),
    "line-address": Fault("transcript", "a bit of the address is flipped", _flip(_ADDR)),
    "line-size": Fault("transcript", "the size is another", _SIZES),
    "line-region": Fault("transcript", "the region has another name",
                         lambda line: [_NAME.sub(rb"name 'x\1", line, count=1)]),
    "line-pointer": Fault("transcript", "the region is another one", _flip(_REGION)),
    "line-verb": Fault("transcript", "a read is a write, a write a read", _VERBS),
    "line-reason": Fault("transcript", "another reason for a refusal", _REASONS),
    "memory-stray": Fault("memory", "somebody else writes a byte of guest RAM"),
    "answers-never": Fault("time", "QEMU stands still for ever", finds="hang"),
    "answers-late": Fault("time", f"QEMU stands still for {LATE_S:g} s now and then", finds=""),
}
