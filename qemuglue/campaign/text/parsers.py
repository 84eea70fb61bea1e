"""What the target ``text`` feeds its inputs to: every place where QEMU's words come in.

Each parser takes bytes and returns a word for what came of them, or raises ProtocolError, which
is an answer too. Everything else that escapes is a fault, and so is a value that breaks a rule:

* a tree or a view printed again (``text/printing``) parses to the same value, and a part of it
  that does not end with a block is refused;
* a mirror is taken and drawn within limits, and can be compared and laid out;
* a transcript read in pieces gives the events of the whole;
* replies of qtest fetched at once and one after another are the same replies;
* an error is one printable sentence with its channel, and of a text of lines with the line;
* names and messages hold nothing a terminal would obey.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterable

from qemuglue.campaign.inputs.faults import Fault
from qemuglue.campaign.text.printing import print_flat, print_tree
from qemuglue.errors import ProtocolError, QemuFailure
from qemuglue.mirror import Mirror
from qemuglue.qemu.builds import parse_version
from qemuglue.qemu.builds_machines import parse_machine_help
from qemuglue.qemu.dump import _File, parse_dump
from qemuglue.qemu.events import Event, describe
from qemuglue.qemu.events import parse as parse_events
from qemuglue.qemu.guest_ram import parse_gpa2hva
from qemuglue.qemu.monitor import Monitor
from qemuglue.qemu.mtree import MAX_LINE, TREE_COMMAND, parse_flat, parse_tree
from qemuglue.qemu.plugin import records
from qemuglue.qemu.qtest import QtestChannel
from qemuglue.qemu.qtest_lines import parse_base64, parse_hex, parse_ok, parse_value
from qemuglue.witness.death import crash_signature
from qemuglue.witness.xp import Read, parse_xp

#: Between the texts that a mirror is taken of: trees and views by turns.
SEPARATOR = "\x1e"

#: A sentence longer than this is none.
MAX_SENTENCE = 1000

_GREETING = (b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9}, '
             b'"package": ""}, "capabilities": []}}\r\n{"return": {}}\r\n')


def decoded(data: bytes) -> str:
    """Any bytes as a text; what is no UTF-8 becomes lone surrogates, as JSON can carry them."""
    return data.decode("utf-8", "surrogateescape")


def _tree(data: bytes) -> str:
    tree = parse_tree(decoded(data))
    _round_trip(parse_tree, print_tree(tree), tree)
    _cuts(parse_tree, decoded(data))
    _safe(name for listing in (*tree.spaces, *tree.targets)
          for name in (*listing.spaces, listing.name, *_names(listing.root)))
    return "parsed"


def _flat(data: bytes) -> str:
    views = parse_flat(decoded(data))
    _round_trip(parse_flat, print_flat(views), views)
    _cuts(parse_flat, decoded(data))
    for view in views:
        _safe(line.name for line in view.ranges)
        _safe(section.name for section in view.sections)
        _safe(name for space in view.spaces for name in (space.name, space.root))
        before = -1
        for line in view.ranges:
            if not before < line.start <= line.last < 1 << 64:
                raise Fault("order", f"{line} does not follow {before:#x}")
            before = line.last
    return "parsed"


def _round_trip(parse: Callable[[str], object], printed: str, value: object) -> None:
    if any(len(line) > MAX_LINE for line in printed.split("\r\n")):
        return  # QEMU left out an owner or an offset, and the line was nearly too long
    try:
        again = parse(printed)
    except ProtocolError as error:
        again = error
    if again != value:
        raise Fault("round-trip", f"printed again it is something else: {printed[:500]!r}")


def _cuts(parse: Callable[[str], object], text: str) -> None:
    """See that a text which is no longer whole is refused."""
    size = len(text)
    for stop in {size - 1, size - 2, size * 2 // 3, size // 3}:
        part = text[:max(stop, 0)].replace("\r\n", "\n")
        if not part.endswith("\n\n"):
            try:
                parse(part)
            except ProtocolError:
                continue
            raise Fault("cut", f"the first {stop} of {size} characters were taken for all")


def _names(root: object) -> Iterable[str]:
    stack = [] if root is None else [root]
    while stack:
        node = stack.pop()
        yield node.name  # type: ignore[attr-defined]
        stack.extend(node.children)  # type: ignore[attr-defined]


def _mirror(data: bytes) -> str:
    texts = decoded(data).split(SEPARATOR)
    given = {True: texts[::2], False: texts[1::2] or [""]}

    def hmp(line: str) -> str:
        left = given[line == TREE_COMMAND]
        return left.pop(0) if len(left) > 1 else left[0]

    mirror = Mirror.take(hmp)
    _mirror_rules(mirror)
    states = [mirror.exact]
    if len(texts) > 2:
        mirror.refresh(hmp)
        _mirror_rules(mirror)
        states.append(mirror.exact)
    return f"mirrored {states}"


def _mirror_rules(mirror: Mirror) -> None:
    if mirror.exact == bool(mirror.differences):
        raise Fault("exact", "exact, and yet there are differences")
    mirror.layout()
    _safe(str(difference) for difference in mirror.differences)
    _safe(mirror.inference.facts)
    for space in mirror.spaces:
        at = 0
        for section in space.view.cover:
            if section.start != at or section.size <= 0:
                raise Fault("cover", f"{space.name}: a hole or an overlap at {at:#x}")
            at += section.size
        if at != 1 << 64:
            raise Fault("cover", f"{space.name}: the view ends at {at:#x}")


def _events(data: bytes) -> str:
    events = parse_events(data)
    lines = data.split(b"\n")
    if len(events) < len(lines) - (not lines[-1]):
        raise Fault("lost", f"{len(events)} events of {len(lines)} lines")
    half = data.rfind(b"\n", 0, len(data) // 2) + 1
    pieces = parse_events(data[:half]) + parse_events(data[half:])
    singly = [event for line in data.splitlines(keepends=True) if b"\r" not in data
              for event in parse_events(line)]
    if pieces != events or (b"\r" not in data and singly != events):
        raise Fault("pieces", "read in pieces there are other events")
    _safe(f"{event.name}{event.text}".replace("\t", " ") for event in events)
    _safe(describe(event).replace("\t", " ") for event in events)
    if any(not _plausible(event) for event in events):
        raise Fault("numbers", "an event with numbers out of range")
    return " ".join(sorted({event.kind.name for event in events}))


def _plausible(event: Event) -> bool:
    return (0 <= event.address < 1 << 64 and 0 <= event.mr < 1 << 64
            and 0 <= event.value < 1 << 64 and 0 <= event.size < 1 << 30)


def _reply(data: bytes) -> str:
    """One reply line, decoded in every way: at most one of them fits."""
    size = data[0] % 16 if data else 0
    line, fits = data[1:], []
    for name, decode in (
        ("value", lambda: parse_value(line)), ("hex", lambda: parse_hex(line, size)),
        ("base64", lambda: parse_base64(line, size)), ("ok", lambda: parse_ok(line)),
    ):
        try:
            found = decode()
        except ProtocolError as error:
            _sentence(error, lines=False)
            continue
        fits.append(name)
        if isinstance(found, int) and not 0 <= found < 1 << 64:
            raise Fault("numbers", f"a value of {found:#x}")
        if isinstance(found, bytes) and len(found) != size:
            raise Fault("size", f"{len(found)} bytes where {size} were asked for")
    return " ".join(fits) or "refused"


def _exchange(data: bytes) -> str:
    """Replies as they come out of the socket, to one batch and to batches sent ahead."""
    count = data[0] % 8 + 1 if data else 1
    text = data[1:]
    request = b"readb 0x0\n" * count
    whole = _answer(text, lambda channel: channel.exchange(request, count, timeout_s=5))
    ahead = _answer(text, lambda channel: _sent_ahead(channel, count))
    good = text.count(b"\n") == count and text.endswith(b"\n") and all(
        line.startswith(b"OK") for line in text.split(b"\n")[:-1])
    if good and not whole == ahead == text:
        raise Fault("replies", f"good replies became {whole!r} and {ahead!r}")
    if not good and isinstance(whole, bytes):
        raise Fault("accepted", f"bad replies were taken: {whole[:200]!r}")
    return type(whole).__name__


def _sent_ahead(channel: QtestChannel, count: int) -> bytes:
    for _ in range(count):
        channel.send(b"readb 0x0\n", 1, timeout_s=5)
    return b"".join(line + b"\n" for _ in range(count)
                    for line in channel.collect(1, timeout_s=5))


def _answer(text: bytes, ask: Callable[[QtestChannel], bytes]) -> bytes | QemuFailure:
    ours, theirs = socket.socketpair()
    channel = QtestChannel(ours)
    try:
        with theirs:
            # QEMU has read and answered before it is asked; then it is gone.
            channel.broken = False
            late = _Late(ours, theirs, text)
            channel._sock = late  # type: ignore[assignment]
            return ask(channel)
    except QemuFailure as error:
        if isinstance(error, ProtocolError):
            _sentence(error, lines=False)
        return error
    finally:
        channel.close()


class _Late:
    """A socket whose other side answers everything as soon as it is told anything."""

    def __init__(self, ours: socket.socket, theirs: socket.socket, text: bytes) -> None:
        self._ours, self._theirs, self._text = ours, theirs, text

    def send(self, data: bytes) -> int:
        sent = self._ours.send(data)
        self._theirs.setblocking(False)
        if self._text:
            self._text = self._text[self._theirs.send(self._text):]
        if not self._text:
            self._theirs.shutdown(socket.SHUT_WR)
        return sent

    def recv(self, size: int) -> bytes:
        return self._ours.recv(size)

    def close(self) -> None:
        self._ours.close()


def _monitor(data: bytes) -> str:
    """QMP as it comes out of the socket: the answer to one command, or (first byte odd)
    instead of a greeting."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(False)
    greeted = not data[:1] or not data[0] & 1
    monitor = None

    def answer() -> None:
        with contextlib.suppress(BlockingIOError):
            theirs.send(data[1:])
        theirs.shutdown(socket.SHUT_WR)

    try:
        if greeted:
            theirs.send(_GREETING)
        else:
            answer()
        monitor = Monitor(ours, timeout_s=5)
        monitor._loop.call_soon(answer)
        text = monitor.hmp("info mtree", timeout_s=5)
        return "answered" if text else "answered nothing"
    except QemuFailure as error:
        if isinstance(error, ProtocolError):
            _sentence(error, lines=False)
        return type(error).__name__
    finally:
        if monitor is not None:
            for event in monitor.events():
                repr(event)
            monitor.close()
        ours.close()
        theirs.close()


def _machines(data: bytes) -> str:
    machines = parse_machine_help("x86_64", data.decode("utf-8", "replace"))
    _safe(f"{each.name}{each.description}{each.alias_of}".replace("\t", " ") for each in machines)
    return f"{min(len(machines), 3)} machines"


def _version(data: bytes) -> str:
    return f"{min(len(parse_version(data.decode('utf-8', 'replace'))), 4)} numbers"


def _gpa2hva(data: bytes) -> str:
    return type(parse_gpa2hva(decoded(data))).__name__


def _xp(data: bytes) -> str:
    text = decoded(data[1:])
    addr = re.match(r"[0-9a-f]{1,16}(?=:)", text)
    read = Read(int(addr[0], 16) if addr else 0, 1 << (data[0] & 3 if data else 0))
    value = parse_xp(text, read)
    if value is not None and not 0 <= value < 1 << 8 * read.size:
        raise Fault("numbers", f"{value:#x} in {read.size} bytes")
    return "failed read" if value is None else "value"


def _dump(data: bytes) -> str:
    file = _File(os.memfd_create("text", os.MFD_CLOEXEC))
    os.write(file.fd, data)
    segments = parse_dump(file)
    for segment in segments:
        if len(segment.data) != segment.size or not 0 < segment.size <= len(data):
            raise Fault("size", f"{segment} of {len(data)} bytes")
    return f"{min(len(segments), 3)} segments"


def _plugin(data: bytes) -> str:
    items = list(records.stream(data))
    records.end_of_log(data)
    records.agreement(items, physical=True)
    _safe(item.name.replace("\t", " ") for item in items if item.name)
    return f"{min(len(items), 3)} records"


def _stderr(data: bytes) -> str:
    signature = crash_signature(data.decode("utf-8", "replace"), None, 6)
    _safe([signature])
    return ":".join(signature.split(":")[:2])


#: By the letter an input begins with; any other byte is taken modulo their number.
PARSERS: dict[str, tuple[str, Callable[[bytes], str]]] = {
    "t": ("tree", _tree), "f": ("flat", _flat), "m": ("mirror", _mirror),
    "e": ("events", _events), "q": ("reply", _reply), "x": ("exchange", _exchange),
    "j": ("monitor", _monitor), "h": ("machines", _machines), "v": ("version", _version),
    "g": ("gpa2hva", _gpa2hva), "p": ("xp", _xp), "d": ("dump", _dump),
    "r": ("plugin", _plugin), "s": ("stderr", _stderr),
}
#: Parsers of texts whose errors must name a line.
_LINED = ("tree", "flat", "events", "mirror")


def chosen(data: bytes) -> tuple[str, Callable[[bytes], str]]:
    """The parser an input is for."""
    letter = chr(data[0]) if data else "t"
    found = PARSERS.get(letter)
    return found if found is not None else list(PARSERS.values())[ord(letter) % len(PARSERS)]


def run_parser(name: str, parse: Callable[[bytes], str], text: bytes) -> tuple[str, str, str]:
    """What came of it as a fact for the coverage: (parser, "parsed" or "refused", how).

    :raise Fault: a rule was broken.
    """
    try:
        return name, "parsed", parse(text)
    except ProtocolError as error:
        fact = _sentence(error, lines=name in _LINED)
        line = re.search(r": line (\d+): ", str(error))
        if name in _LINED and line and not 1 <= int(line[1]) <= text.count(b"\n") + 1:
            raise Fault("line", f"no such line: {error}") from None
        return name, "refused", fact


def _sentence(error: ProtocolError, *, lines: bool) -> str:
    """See that an error is one good sentence; without its numbers it is a fact."""
    text = str(error)
    _safe([text])
    if len(text) > MAX_SENTENCE or "Traceback" in text:
        raise Fault("sentence", f"{len(text)} characters: {text[:300]!r}")
    if not error.channel or (lines and not re.search(r": line \d+: ", text)):
        raise Fault("sentence", f"neither channel nor line: {text[:300]!r}")
    return re.sub(r"\d+|'.*'|\".*\"", "…", text)[:80]


def _safe(texts: Iterable[str]) -> None:
    for text in texts:
        if not text.isprintable():
            raise Fault("terminal", f"not printable: {text[:300]!r}")
