"""The qtest protocol: encode, pipeline, decode.

One line to QEMU, one line back, strictly in order, so any number of commands can be on
their way at once. :class:`QtestChannel` moves whole batches of already encoded lines and
does no work per line; the encoders (``qtest_lines``) are the only way to make such lines from
numbers. They validate everything first, because QEMU's own parser asserts (the process
dies) on a malformed number, on ``read`` of no bytes and on a port above 0xffff, and
allocates whatever length it is told (QEMU ``system/qtest.c``).

Replies are untrusted: any bytes give a value or a ProtocolError of one sentence, with the
number of the reply in its batch where there is one, and no more is kept than what the
commands can have been answered with.

What the commands mean in QEMU: ``read[bwlq]``/``write[bwlq]`` are sized accesses through
address_space_read/write, swapped for the target's byte order; ``read write memset
b64read b64write`` move byte strings; ``in[bwl]``/``out[bwl]`` use the port space. All
answer ``OK`` whatever the outcome of the memory transaction was.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from qemuglue.errors import (
    ProtocolError,
    QemuDied,
    QemuFailure,
    QemuHang,
    ResourceError,
    UsageError,
)
from qemuglue.qemu.qtest_lines import (
    CHANNEL,
    READ_MAX_BYTES,
    WRITE_MAX_BYTES,
    b64read,
    b64write,
    below,
    inb,
    inl,
    inw,
    memset,
    outb,
    outl,
    outw,
    parse_base64,
    parse_hex,
    parse_ok,
    parse_value,
    read,
    readb,
    readl,
    readq,
    readw,
    show,
    write,
    writeb,
    writel,
    writeq,
    writew,
)

__all__ = [
    "CHANNEL", "READ_MAX_BYTES", "WRITE_MAX_BYTES", "Qtest", "QtestChannel", "QtestDied",
    "QtestHang", "b64read", "b64write", "inb", "inl", "inw", "memset", "outb", "outl", "outw",
    "parse_base64", "parse_hex", "parse_ok", "parse_value", "read", "readb", "readl", "readq",
    "readw", "socket_pair", "write", "writeb", "writel", "writeq", "writew",
]

EXCHANGE_TIMEOUT_S: Final = 10.0
"""A batch of some 10,000 commands takes 0.1 s; a slow device may take a second."""
REPLY_LIMIT_BYTES: Final = 256 << 20
"""Longest reply text of one batch: a guard against a QEMU that never stops talking."""
SHORT_REPLY_BYTES: Final = 64
"""More than any reply but that to a byte string: ``OK 0x`` and 16 digits."""
EXTRA_REPLY_BYTES: Final = 1 << 20
"""What may come on top of the short replies: interrupt lines, a refusal in words."""
B64READ_PIECE_BYTES: Final = 64 << 10
WRITE_PIECE_BYTES: Final = 32 << 10
"""Piece sizes of the bulk helpers, where QEMU was measured to be fastest."""
BULK_BATCH_PIECES: Final = 64
"""Pieces on their way at once: bounds what one bulk transfer keeps in memory."""
BUFFER_BYTES: Final = 4 << 20
"""Wanted socket buffer: QEMU sleeps 100 us each time its reply does not fit at once."""

PAUSE_S: Final = 50e-6
PAUSE_OVER_REPLIES: Final = 64
"""While more replies than this are due, sleep before reading: QEMU sends each one by itself,
and waking for each costs both sides half their time. Short enough (some 30 replies) that
the smallest usual socket buffer (about 280 replies) does not fill."""

_RECV_BYTES: Final = 64 << 10
_IRQ_LINES_KEPT: Final = 4096
_IRQ_LINE_KEPT: Final = 200
_U64_LIMIT: Final = 1 << 64


class QtestDied(QemuDied):
    """QEMU ended during an exchange. ``partial`` is the reply text up to then.

    The number of whole lines in it is the number of commands known to be done; the next
    one is the first suspect.
    """

    def __init__(self, cause: QemuDied, *, partial: bytes) -> None:
        self.partial = partial
        super().__init__(exit_code=cause.exit_code, signal=cause.signal, stderr=cause.stderr)

    @property
    def replies(self) -> int:
        """How many commands of the batch were answered."""
        return self.partial.count(b"\n")


class QtestHang(QemuHang):
    """QEMU stopped answering during an exchange; ``partial`` as in :class:`QtestDied`."""

    def __init__(self, *, timeout_s: float, partial: bytes) -> None:
        self.partial = partial
        super().__init__(channel=CHANNEL, timeout_s=timeout_s)

    @property
    def replies(self) -> int:
        """How many commands of the batch were answered."""
        return self.partial.count(b"\n")


def _gone() -> QemuFailure:
    """What is raised at the end of the stream when no process stands behind the socket."""
    return QemuDied(exit_code=0)


class QtestChannel:
    """A connected qtest socket that moves batches.

    ``on_eof`` is asked for the error when QEMU closes its side: the process knows how it
    ended. After a hang, a death or a protocol error the channel is out of step and
    refuses to go on (:class:`UsageError`); start a fresh QEMU.
    """

    def __init__(
        self, sock: socket.socket, *, on_eof: Callable[[], QemuFailure] = _gone,
        allow_irq: bool = False,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_eof = on_eof
        self._allow_irq = allow_irq
        self._poll = select.poll()
        self._fd = sock.fileno()
        self._poll.register(self._fd, select.POLLIN)
        self.broken = False
        #: For planted faults (``campaign.faults``): what is received is read through it.
        self.tap: Callable[[bytes], bytes] | None = None
        self._early = b""
        self._owed = 0
        self._owed_limit = 0
        self.irq_lines: deque[bytes] = deque(maxlen=_IRQ_LINES_KEPT)
        """``IRQ raise N`` / ``IRQ lower N`` lines seen, when ``allow_irq``; newest kept."""

    def close(self) -> None:
        """Close our end; idempotent."""
        self.broken = True
        self._sock.close()

    def exchange(
        self, request: bytes, replies: int, *, timeout_s: float = EXCHANGE_TIMEOUT_S,
        limit_bytes: int = REPLY_LIMIT_BYTES, check: bool = True,
    ) -> bytes:
        """Send whole lines and return exactly ``replies`` newline-terminated lines.

        Reading and writing overlap, so no batch is too long. ``timeout_s`` is for the
        whole exchange. With ``check``, every reply must begin with ``OK``; without, any
        line will do. Raises :class:`QtestDied`, :class:`QtestHang` (both with what was
        answered), :class:`ResourceError` over ``limit_bytes``, :class:`ProtocolError` on
        a surplus or refused command.
        """
        if self.broken:
            raise UsageError("this qtest channel is out of step; start a fresh QEMU")
        if not request or request[-1] != 0x0A or request.count(b"\n") != replies:
            raise UsageError(f"the batch is not {replies} newline-terminated commands")
        if self._owed:
            raise UsageError("replies of earlier batches are still owed; collect them first")
        self.broken = True  # until the end of the exchange shows otherwise
        self._refuse_stale()
        limit = min(limit_bytes, _longest(request, replies))
        reply = self._pump(memoryview(request), replies, timeout_s, limit)
        if check and not _all_ok(reply, replies):
            raise _refused(reply.split(b"\n"))
        self.broken = False
        return reply

    def send(
        self, request: bytes, replies: int, *, timeout_s: float = EXCHANGE_TIMEOUT_S,
    ) -> None:
        """Put whole lines on their way and come back; :meth:`collect` takes their replies.

        Several batches may be under way; replies come in order. What QEMU answers meanwhile is
        kept, so no batch is too long. Raises :class:`QtestHang` when QEMU does not read,
        :class:`ResourceError` when it says more than all commands under way can be answered
        with; a QEMU that has ended is noticed by :meth:`collect`.
        """
        if self.broken:
            raise UsageError("this qtest channel is out of step; start a fresh QEMU")
        if not request or request[-1] != 0x0A or request.count(b"\n") != replies:
            raise UsageError(f"the batch is not {replies} newline-terminated commands")
        if not self._owed and not self._early:
            self._refuse_stale()
        self.broken = True
        deadline = time.monotonic() + timeout_s
        known = self._owed_limit if self._owed else 0
        limit = self._owed_limit = max(known, _longest(request, self._owed + replies))
        early, size = [self._early], len(self._early)
        rest = self._send(memoryview(request))
        while rest:
            try:
                chunk = self._receive(deadline, wanting_to_send=True)
            except TimeoutError:
                raise QtestHang(timeout_s=timeout_s, partial=b"") from None
            if chunk == b"":
                break  # the end of the stream: collect() will meet it again
            if chunk:
                early.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise ResourceError(what="a qtest reply", limit=limit)
            rest = self._send(rest)
        self._early = b"".join(early)
        self._owed += replies
        self.broken = False

    def collect(
        self, replies: int, *, timeout_s: float = EXCHANGE_TIMEOUT_S,
        limit_bytes: int = REPLY_LIMIT_BYTES,
    ) -> list[bytes]:
        """The next ``replies`` reply lines, without their newlines. Raises as :meth:`exchange`."""
        if self.broken or replies > self._owed:
            raise UsageError("these replies were not asked for; send the commands first")
        self.broken = True
        limit_bytes = min(limit_bytes, self._owed_limit)
        deadline = time.monotonic() + timeout_s
        chunks = [self._early]
        lines, size = self._early.count(b"\n"), len(self._early)
        self._early = b""
        looked = False  # whoever judged a batch meanwhile finds all replies of the next one here
        while lines < replies:
            if looked and replies - lines > PAUSE_OVER_REPLIES:
                time.sleep(PAUSE_S)
            looked = True
            try:
                chunk = self._receive(deadline, wanting_to_send=False)
            except TimeoutError:
                raise QtestHang(timeout_s=timeout_s, partial=b"".join(chunks)) from None
            if chunk is None:
                continue
            if not chunk:
                raise self._died(b"".join(chunks))
            chunks.append(chunk)
            lines += chunk.count(b"\n")
            size += len(chunk)
            if size > limit_bytes:
                raise ResourceError(what="a qtest reply", limit=limit_bytes)
        text = b"".join(chunks)
        found = text.split(b"\n", replies)
        self._early = found.pop()
        self._owed -= replies
        if self._early and not self._owed:
            raise ProtocolError("more replies than commands", channel=CHANNEL,
                                text=show(self._early[-200:]))
        if not _all_ok(text[: len(text) - len(self._early)], replies):
            raise _refused(found)
        self.broken = False
        return found

    def _refuse_stale(self) -> None:
        """Bytes that nobody asked for: the last batch had a surplus reply."""
        try:
            stale = self._sock.recv(_RECV_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            stale = b""
        if not stale:
            raise self._died(b"")
        if self._allow_irq and stale.endswith(b"\n") and not self._without_irq(stale):
            return
        raise ProtocolError(f"a reply nobody asked for: {show(stale)}", channel=CHANNEL,
                            text=show(stale))

    def _pump(self, rest: memoryview, replies: int, timeout_s: float, limit: int) -> bytes:
        """Send and receive until all replies are there. No work per line."""
        deadline = time.monotonic() + timeout_s
        chunks: list[bytes] = []
        lines = size = 0
        while True:
            if rest:
                rest = self._send(rest)
            if replies - lines > PAUSE_OVER_REPLIES:
                time.sleep(PAUSE_S)
            try:
                chunk = self._receive(deadline, wanting_to_send=bool(rest))
            except TimeoutError:
                raise QtestHang(timeout_s=timeout_s, partial=b"".join(chunks)) from None
            if chunk is None:
                continue
            if not chunk:
                raise self._died(b"".join(chunks))
            chunks.append(chunk)
            lines += chunk.count(b"\n")
            size += len(chunk)
            if size > limit:
                raise ResourceError(what="a qtest reply", limit=limit)
            if lines < replies or rest:
                continue
            reply = b"".join(chunks)
            if self._allow_irq and b"IRQ " in reply:
                reply = self._without_irq(reply)
                chunks, lines = [reply], reply.count(b"\n")
                if lines < replies:
                    continue
            if lines > replies or reply[-1] != 0x0A:
                raise ProtocolError("more replies than commands", channel=CHANNEL,
                                    text=show(reply[-200:]))
            return reply

    def _send(self, rest: memoryview) -> memoryview:
        """What is still to be sent; nothing, when QEMU does not read any more."""
        try:
            return rest[self._sock.send(rest):]
        except BlockingIOError:
            return rest
        except (BrokenPipeError, ConnectionResetError):
            return rest[:0]  # what it answered before is still to be read

    def _receive(self, deadline: float, *, wanting_to_send: bool) -> bytes | None:
        """Bytes; ``b""`` at the end of the stream; ``None``: waited a little, try again.
        Raises TimeoutError behind the deadline, whether there are more bytes or not."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            data = self._sock.recv(_RECV_BYTES)
            return data if self.tap is None or not data else self.tap(data) or None
        except BlockingIOError:
            pass
        except ConnectionResetError:
            return b""
        events = select.POLLIN | select.POLLOUT if wanting_to_send else select.POLLIN
        self._poll.modify(self._fd, events)
        self._poll.poll(left * 1000 + 1)
        return None

    def _died(self, partial: bytes) -> QemuFailure:
        cause = self._on_eof()
        return QtestDied(cause, partial=partial) if isinstance(cause, QemuDied) else cause

    def _without_irq(self, reply: bytes) -> bytes:
        kept = []
        *lines, rest = reply.split(b"\n")
        for line in lines:
            if line.startswith(b"IRQ "):
                self.irq_lines.append(line[:_IRQ_LINE_KEPT].rstrip(b"\r"))
            else:
                kept.append(line)
        return b"\n".join([*kept, rest])


def _all_ok(reply: bytes, replies: int) -> bool:
    return replies == 0 or (reply.startswith(b"OK") and reply.count(b"\nOK") == replies - 1)


def _longest(request: bytes, replies: int) -> int:
    """How much text the replies to these commands can be, generously."""
    if b"read 0x" in request:  # ``read`` and ``b64read``: byte strings
        return REPLY_LIMIT_BYTES
    return replies * SHORT_REPLY_BYTES + EXTRA_REPLY_BYTES


def _refused(lines: list[bytes]) -> ProtocolError:
    """The first of these replies that is no ``OK``."""
    number, bad = next((number, line) for number, line in enumerate(lines, 1)
                       if not line.startswith(b"OK"))
    return ProtocolError(f"line {number}: QEMU refused a command: {show(bad)}", channel=CHANNEL,
                         text=show(bad))


# --- one at a time --------------------------------------------------------------------

class Qtest:
    """One command at a time, for set-up work, tests and people; values are ints.

    Some 20,000 accesses a second. Anything that is judged in numbers goes through
    :class:`QtestChannel` in batches.
    """

    def __init__(self, channel: QtestChannel, *, timeout_s: float = EXCHANGE_TIMEOUT_S) -> None:
        self.channel = channel
        self.timeout_s = timeout_s

    def _one(self, request: bytes) -> bytes:
        return self.channel.exchange(request, 1, timeout_s=self.timeout_s)

    def readb(self, address: int) -> int: return parse_value(self._one(readb(address)))
    def readw(self, address: int) -> int: return parse_value(self._one(readw(address)))
    def readl(self, address: int) -> int: return parse_value(self._one(readl(address)))
    def readq(self, address: int) -> int: return parse_value(self._one(readq(address)))
    def inb(self, port: int) -> int: return parse_value(self._one(inb(port)))
    def inw(self, port: int) -> int: return parse_value(self._one(inw(port)))
    def inl(self, port: int) -> int: return parse_value(self._one(inl(port)))

    def writeb(self, address: int, value: int) -> None: self._one(writeb(address, value))
    def writew(self, address: int, value: int) -> None: self._one(writew(address, value))
    def writel(self, address: int, value: int) -> None: self._one(writel(address, value))
    def writeq(self, address: int, value: int) -> None: self._one(writeq(address, value))
    def outb(self, port: int, value: int) -> None: self._one(outb(port, value))
    def outw(self, port: int, value: int) -> None: self._one(outw(port, value))
    def outl(self, port: int, value: int) -> None: self._one(outl(port, value))

    def memset(self, address: int, size: int, value: int) -> None:
        """Fill any number of bytes with one byte value."""
        for start in range(0, size, READ_MAX_BYTES):
            piece = min(READ_MAX_BYTES, size - start)
            self._one(memset(_wrapped(address + start), piece, value))

    def read_bytes(self, address: int, size: int) -> bytes:
        """Any number of bytes, fetched in pipelined pieces; 0 bytes is no command."""
        out = bytearray()
        step = B64READ_PIECE_BYTES * BULK_BATCH_PIECES
        for start in range(0, size, step):
            sizes = _pieces(min(step, size - start), B64READ_PIECE_BYTES)
            request = b"".join(
                b64read(_wrapped(address + start + at), piece) for at, piece in sizes)
            lines = self._many(request, len(sizes)).split(b"\n")
            for line, (_, piece) in zip(lines, sizes, strict=False):
                out += parse_base64(line, piece)
        return bytes(out)

    def write_bytes(self, address: int, data: bytes) -> None:
        """Any number of bytes, sent in pipelined pieces; an empty string is no command."""
        step = WRITE_PIECE_BYTES * BULK_BATCH_PIECES
        for start in range(0, len(data), step):
            sizes = _pieces(min(step, len(data) - start), WRITE_PIECE_BYTES)
            request = b"".join(
                b64write(_wrapped(address + start + at), data[start + at:start + at + piece])
                for at, piece in sizes)
            self._many(request, len(sizes))

    def _many(self, request: bytes, replies: int) -> bytes:
        return self.channel.exchange(request, replies, timeout_s=self.timeout_s)

    def endianness(self) -> str:
        """``"little"`` or ``"big"``: the byte order of the target's sized accesses."""
        line = self._one(b"endianness\n").strip()
        if line not in (b"OK little", b"OK big"):
            raise ProtocolError(f"no byte order: {show(line)}", channel=CHANNEL)
        return line[3:].decode()

    def clock_step(self, step_ns: int) -> int:
        """Move the virtual clock on and return it in ns; only under ``-accel qtest``."""
        request = b"clock_step %d\n" % below(step_ns, 1 << 63, "a clock step")
        line = self.channel.exchange(request, 1, timeout_s=self.timeout_s, check=False).strip()
        found = re.fullmatch(rb"OK (-?[0-9]{1,19})", line)
        if found:
            return int(found[1])
        if line.startswith(b"FAIL"):
            raise UsageError("this QEMU cannot step its clock: it runs without -accel qtest")
        raise ProtocolError(f"no clock: {show(line)}", channel=CHANNEL, text=show(line))


def _wrapped(address: int) -> int:
    return address % _U64_LIMIT if address >= _U64_LIMIT else address


def _pieces(size: int, step: int) -> list[tuple[int, int]]:
    return [(at, min(step, size - at)) for at in range(0, size, step)]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """A connected pair, ours and QEMU's, with buffers as large as the host allows."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    force = getattr(socket, "SO_SNDBUFFORCE", 32)
    for side in (ours, theirs):
        try:
            side.setsockopt(socket.SOL_SOCKET, force, BUFFER_BYTES)
        except OSError:
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return ours, theirs
