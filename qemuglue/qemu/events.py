"""Typed events out of the transcript's text, at several hundred thousand lines a second.

The text is made by QEMU's ``log`` trace backend and by ``-d invalid_mem``; one line a
record. Any byte of it may be garbage: names of regions hold quotes and spaces, device
messages need not end in a newline and then stand in front of the next record, and a line
that is nothing known is kept as text (:attr:`Kind.OTHER`), never dropped. Time and memory
are proportional to the text; more than MAX_LINES lines at once are refused. What a terminal
might obey comes out as ``\\xNN``.

Records read here (QEMU ``system/trace-events`` and ``memory_region_access_valid``)::

    memory_region_ops_{read,write} cpu C mr P addr A value V size N name 'NAME'
    memory_region_subpage_{read,write} cpu C mr P offset A value V size N
    memory_region_ram_device_{read,write} cpu C mr P addr A value V size N
    flatview_new P (root P)
    Invalid {read,write} at addr A, size N, region 'NAME', reason: REASON
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Final, NamedTuple, overload

from qemuglue.errors import ResourceError
from qemuglue.memory.contract import Reason


class Kind(enum.IntEnum):
    """What a record reports."""

    READ = 0
    """A device's read callback returned ``value``."""
    WRITE = 1
    """A device's write callback is given ``value``."""
    SUBPAGE_READ = 2
    SUBPAGE_WRITE = 3
    RAM_DEVICE_READ = 4
    RAM_DEVICE_WRITE = 5
    INVALID_READ = 6
    """A read that the region does not allow; no callback ran."""
    INVALID_WRITE = 7
    FLATVIEW_NEW = 8
    """A memory map was built: the topology changed, or QEMU looked whether it did."""
    OTHER = 9
    """Text that is none of these: a device's message, a plugin's line, garbage."""


class Refusal(NamedTuple):
    """The end of an ``Invalid …`` record. The limits are 0 unless the size was the reason."""

    reason: Reason
    size_min: int
    size_max: int


class Event(NamedTuple):
    """One record.

    ``cpu`` is the vCPU's index, -1 when none is at work (qtest, DMA, timers). ``mr`` is a
    number that stands for the region within one run, 0 where the record has none; for
    FLATVIEW_NEW it stands for the view's root region. ``address`` is a sum up the chain of
    containers for the trace records (the bus address unless an alias is involved), the
    offset within the region for refused ones (the address itself when unassigned).
    ``value`` holds the ``size`` lowest bytes of the printed number; ``size`` is in bytes.
    ``name`` is the region's, ``None`` where there is none or QEMU printed ``(null)``.
    ``refusal`` is set for the INVALID kinds, ``text`` for OTHER (without its newline).
    """

    kind: Kind
    cpu: int
    mr: int
    address: int
    value: int
    size: int
    name: str | None
    refusal: Refusal | None
    text: str


_make = partial(tuple.__new__, Event)

_PREFIXES: Final = {
    b"memory_region_ops_read": Kind.READ,
    b"memory_region_ops_write": Kind.WRITE,
    b"memory_region_subpage_read": Kind.SUBPAGE_READ,
    b"memory_region_subpage_write": Kind.SUBPAGE_WRITE,
    b"memory_region_ram_device_read": Kind.RAM_DEVICE_READ,
    b"memory_region_ram_device_write": Kind.RAM_DEVICE_WRITE,
    b"Invalid read": Kind.INVALID_READ,
    b"Invalid write": Kind.INVALID_WRITE,
    b"flatview_new": Kind.FLATVIEW_NEW,
}

# One record is cut into a head (kind, cpu, region: few different ones), two numbers, and
# a tail (size and name: few different ones). Heads and tails are decoded once and cached,
# so a record costs two int() and one tuple. Every quantifier is bounded by a byte class
# that cannot match what follows it, so no input makes the matching slow. What follows the
# numbers is limited, so that nothing in the caches is long.
_RECORD: Final = (
    rb"(memory_region_(?:ops|subpage|ram_device)_(?:read|write) "
    rb"cpu -?[0-9]{1,9} mr (?:0x[0-9a-f]{1,16}|\(nil\))) "
    rb"(?:addr|offset) 0x([0-9a-f]{1,16}) value 0x([0-9a-f]{1,16}) "
    rb"(size [0-9][^\n]{0,1024})\n"
    rb"|(Invalid (?:read|write)) at addr 0x([0-9A-F]{1,16}), "
    rb"(size [0-9]{1,9}, region '[^\n]{0,1024})\n"
)
# A whole chunk is walked from line start to line start: a record, else any line at all.
_LINE: Final = re.compile(_RECORD + rb"|([^\n]*\n)")
_INSIDE: Final = re.compile(_RECORD + rb"|flatview_new 0x[0-9a-f]{1,16} \(root (?:0x[0-9a-f]{1,16}|"
                            rb"\(nil\))\)\r?\n")

_HEAD: Final = re.compile(rb"(\S+) cpu (-?[0-9]+) mr (?:0x([0-9a-f]+)|\(nil\))")
_TAIL: Final = re.compile(rb"size ([1-8])(?: name '(.*)')?\r?", re.DOTALL)
_REFUSED: Final = re.compile(
    rb"size ([0-9]{1,9}), region '(.*)', reason: "
    rb"(rejected|unaligned|invalid size(?: \(min:([0-9]{1,9}) max:([0-9]{1,9})\))?)\r?",
    re.DOTALL)
_FLATVIEW: Final = re.compile(
    rb"flatview_new 0x([0-9a-f]{1,16}) \(root (?:0x([0-9a-f]{1,16})|\(nil\))\)\r?\n")

_START: Final = re.compile(rb"memory_region_|Invalid |flatview_new ")
RECORD_MAX_BYTES: Final = 1280
"""No record is longer: its head, two numbers, and 1,024 bytes behind them."""

_CACHE: Final = 1 << 14
"""Different heads or tails remembered: a machine has some hundred regions; a hostile
QEMU that invents names makes parsing slower, and larger by 40 MB at most."""

MAX_LINES: Final = 2_000_000
"""Lines parsed at once; an event takes 200 bytes. The largest batch has some 100,000, and the
transcript's own limit (UNREAD_LIMIT_BYTES) is 1.5 million of the usual length."""
_MAX_AHEAD: Final = 64
"""Lines parsed at a time where all are asked for; more of them are hardly cheaper."""
_SLICE_BYTES: Final = 1 << 20
"""Text cut into lines at once: the pieces take several times its size."""

TEXT_MAX_BYTES: Final = 4096
"""Longest text kept of a line that is no record; the rest is cut and its length told."""


@lru_cache(maxsize=_CACHE)
def _head(head: bytes) -> tuple[Kind, int, int]:
    found = _HEAD.fullmatch(head)
    assert found, head  # _RECORD is stricter than _HEAD
    return _PREFIXES[found[1]], int(found[2]), int(found[3] or b"0", 16)


@lru_cache(maxsize=_CACHE)
def _tail(tail: bytes) -> tuple[int, int, str | None] | None:
    """(mask, size, name), or ``None`` for a tail that is not one."""
    found = _TAIL.fullmatch(tail)
    if not found:
        return None
    size = int(found[1])
    name = None if found[2] is None else _text(found[2])
    return (1 << 8 * size) - 1, size, name


@lru_cache(maxsize=_CACHE)
def _refused(tail: bytes) -> tuple[int, str | None, Refusal] | None:
    """(size, name, refusal), or ``None`` for a tail that is not one."""
    found = _REFUSED.fullmatch(tail)
    if not found:
        return None
    name = None if found[2] == b"(null)" else _text(found[2])
    reason = Reason.INVALID_SIZE if found[3].startswith(b"inv") else Reason(found[3].decode())
    refusal = Refusal(reason, int(found[4] or b"0"), int(found[5] or b"0"))
    return int(found[1]), name, refusal


def _text(raw: bytes) -> str:
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def parse(chunk: bytes) -> list[Event]:
    """The events of a chunk of whole lines, in order; every line is in at least one event.

    A last line without a newline is taken as if it had one. Raises ResourceError for more
    than MAX_LINES lines.
    """
    if chunk.count(b"\n") > MAX_LINES:
        raise _too_many()
    if chunk and chunk[-1] != 0x0A:
        chunk += b"\n"
    out: list[Event] = []
    start = 0
    while start < len(chunk):
        stop = chunk.rfind(b"\n", start, start + _SLICE_BYTES) + 1
        if not stop:  # one line longer than that
            stop = chunk.find(b"\n", start) + 1
        if stop - start > _SLICE_BYTES:
            _slow_line(chunk[start:stop], out)
        else:
            _lines(chunk if stop - start == len(chunk) else chunk[start:stop], out)
        start = stop
    return out


def _too_many() -> ResourceError:
    return ResourceError(what="the transcript of a batch", limit=MAX_LINES, unit="lines")


class Lines(Sequence[Event]):
    """The events of a chunk of whole lines as :func:`parse` gives them, each made when it is
    asked for. Whoever knows what a line must say compares ``text[i]`` with it instead.

    ``text[i]`` is the line of event ``i`` without its newline, and one more ``b""`` behind the
    last. A line that holds several events (text without a newline in front of a record) counts
    as one until it is asked for; then ``text`` and the length grow, and all its places in
    ``text`` hold ``b""``, which is no record. So an index is good for what lies at or before it.
    """

    __slots__ = ("_ahead", "_events", "_parsed", "tells_of_map", "text")

    def __init__(self, chunk: bytes) -> None:
        self.text = chunk.split(b"\n")
        if self.text[-1]:
            self.text.append(b"")
        if len(self.text) > MAX_LINES + 1:
            raise _too_many()
        #: Whether a FLATVIEW_NEW may be among them.
        self.tells_of_map = b"flatview_new " in chunk
        self._events: list[Event | None] = [None] * (len(self.text) - 1)
        self._parsed = self._ahead = 0

    def __len__(self) -> int:
        return len(self._events)

    @overload
    def __getitem__(self, index: int) -> Event: ...

    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...

    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        if isinstance(index, slice):
            return list(self)[index]
        event = self._events[index]
        return event if event is not None else self._parse(index % len(self._events))

    def _parse(self, index: int) -> Event:
        """One line, or several where one was asked for after the other."""
        self._ahead = min(2 * self._ahead, _MAX_AHEAD) if index == self._parsed else 1
        stop = index + 1
        limit = min(index + self._ahead, len(self._events))
        while stop < limit and self._events[stop] is None:
            stop += 1
        found = parse(b"\n".join(self.text[index:stop]) + b"\n")
        if len(found) != stop - index:
            stop = index + 1
            found = parse(self.text[index] + b"\n")
            if len(found) > 1:
                self.text[index:stop] = [b""] * len(found)
        self._events[index:stop] = found
        self._parsed = index + len(found)
        return found[0]


def _lines(chunk: bytes, out: list[Event]) -> None:
    add = out.append
    for head, address, value, tail, invalid, where, why, other in _LINE.findall(chunk):
        if head:
            end = _tail(tail)
            if end is not None:
                kind, cpu, mr = _head(head)
                mask, size, name = end
                add(_make((kind, cpu, mr, int(address, 16), int(value, 16) & mask, size, name,
                           None, "")))
                continue
        elif invalid:
            refused = _refused(why)
            if refused is not None:
                size, name, refusal = refused
                add(_make((_PREFIXES[invalid], -1, 0, int(where, 16), 0, size, name, refusal,
                           "")))
                continue
        if head:  # it looked like a record up to its tail
            word = b" offset 0x" if b"subpage" in head else b" addr 0x"
            add(_other(head + word + address + b" value 0x" + value + b" " + tail))
        elif invalid:
            add(_other(invalid + b" at addr 0x" + where + b", " + why))
        else:
            _slow_line(other, out)


def _slow_line(line: bytes, out: list[Event]) -> None:
    """A line that does not begin with a record: it may still hold one at its end."""
    # A record ends with its line, so it cannot begin further in front.
    end = max(0, len(line) - RECORD_MAX_BYTES)
    found = _INSIDE.search(line, end) if _START.search(line, end) else None
    if not found:
        out.append(_other(line, len(line) - 1))
        return
    if found.start():
        out.append(_other(line, found.start()))
    rest = line[found.start():]
    if rest.startswith(b"flatview_new"):
        flat = _FLATVIEW.match(rest)
        assert flat, rest
        out.append(_flatview(flat))
    else:
        _lines(rest, out)


def _flatview(found: re.Match[bytes]) -> Event:
    return Event(Kind.FLATVIEW_NEW, -1, int(found[2] or b"0", 16), int(found[1], 16), 0, 0, None,
                 None, "")


def _other(raw: bytes, size: int | None = None) -> Event:
    """The first ``size`` bytes of ``raw``, or all, as text."""
    size = len(raw) if size is None else size
    text = _text(raw[:min(size, TEXT_MAX_BYTES)])
    if size > TEXT_MAX_BYTES:
        text += f" … {size} bytes"
    return Event(Kind.OTHER, -1, 0, 0, 0, 0, None, None, text)


def describe(event: Event) -> str:
    """One readable line without the run's pointers, for reports and findings."""
    if event.kind is Kind.OTHER:
        return event.text
    if event.kind is Kind.FLATVIEW_NEW:
        return "memory map rebuilt"
    where = "unassigned memory" if event.name is None else f"'{event.name}'"
    if event.refusal is not None:
        verb = "read" if event.kind is Kind.INVALID_READ else "write"
        limits = (f" (allowed {event.refusal.size_min} to {event.refusal.size_max})"
                  if event.refusal.reason is Reason.INVALID_SIZE else "")
        return (f"refused {verb} of {event.size} at {event.address:#x} of {where}: "
                f"{event.refusal.reason.value}{limits}")
    by = "" if event.cpu < 0 else f" by cpu {event.cpu}"
    word = event.kind.name.lower().replace("_", " ")
    arrow = "->" if word.endswith("read") else "<-"
    name = "" if event.name is None else f" of {where}"
    return (f"{word} of {event.size} at {event.address:#x}{name}{by} "
            f"{arrow} {event.value:#x}")
