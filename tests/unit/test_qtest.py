"""The qtest protocol without QEMU: encoders, decoders, and a channel facing a fake server."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from qemuglue.errors import ProtocolError, QemuDied, ResourceError, UsageError
from qemuglue.qemu import qtest
from qemuglue.qemu.qtest import QtestChannel, QtestDied, QtestHang

Server = Callable[[socket.socket], None]
TOP = 2**64 - 1


@pytest.fixture
def channel_to() -> Iterator[Callable[..., QtestChannel]]:
    """Start a fake server in a thread; give the channel that talks to it."""
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    def start(server: Server, **options: object) -> QtestChannel:
        ours, theirs = qtest.socket_pair()
        sockets.extend((ours, theirs))

        def run() -> None:
            with contextlib.suppress(OSError):  # the test may have hung up already
                server(theirs)
            theirs.close()

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        return QtestChannel(ours, **options)  # type: ignore[arg-type]

    yield start
    for sock in sockets:
        sock.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def read_lines(sock: socket.socket, count: int) -> bytes:
    got = b""
    while got.count(b"\n") < count:
        piece = sock.recv(65536)
        if not piece:
            break
        got += piece
    return got


# --- encoders -------------------------------------------------------------------------

@pytest.mark.parametrize(("line", "expected"), [
    (qtest.readb(0), b"readb 0x0\n"),
    (qtest.readw(0x10), b"readw 0x10\n"),
    (qtest.readl(0xFED00000), b"readl 0xfed00000\n"),
    (qtest.readq(TOP), b"readq 0xffffffffffffffff\n"),
    (qtest.writeb(1, 0xFF), b"writeb 0x1 0xff\n"),
    (qtest.writew(1, 0xFFFF), b"writew 0x1 0xffff\n"),
    (qtest.writel(1, 0), b"writel 0x1 0x0\n"),
    (qtest.writeq(1, TOP), b"writeq 0x1 0xffffffffffffffff\n"),
    (qtest.inb(0xFFFF), b"inb 0xffff\n"),
    (qtest.inw(0), b"inw 0x0\n"),
    (qtest.inl(0xCFC), b"inl 0xcfc\n"),
    (qtest.outb(0x80, 1), b"outb 0x80 0x1\n"),
    (qtest.outw(0x604, 0x2000), b"outw 0x604 0x2000\n"),
    (qtest.outl(0xCF8, 0x80000810), b"outl 0xcf8 0x80000810\n"),
    (qtest.read(0x10, 3), b"read 0x10 0x3\n"),
    (qtest.write(0x10, b"\x01\xfe"), b"write 0x10 0x2 0x01fe\n"),
    (qtest.memset(0x10, 0, 0xAB), b"memset 0x10 0x0 0xab\n"),
    (qtest.b64read(0x10, 3), b"b64read 0x10 0x3\n"),
    (qtest.b64write(0x10, b"abc"), b"b64write 0x10 0x3 YWJj\n"),
])
def test_encoders(line: bytes, expected: bytes) -> None:
    assert line == expected


@pytest.mark.parametrize("make", [
    lambda: qtest.readb(-1),
    lambda: qtest.readl(2**64),
    lambda: qtest.readl(True),
    lambda: qtest.readl(1.0),  # type: ignore[arg-type]
    lambda: qtest.readl("0"),  # type: ignore[arg-type]
    lambda: qtest.writeb(0, 256),
    lambda: qtest.writew(0, 2**16),
    lambda: qtest.writel(0, 2**32),
    lambda: qtest.writeq(0, 2**64),
    lambda: qtest.writeq(0, -1),
    lambda: qtest.writeq(2**64, 0),
    lambda: qtest.inb(0x10000),        # QEMU asserts on a port over 0xffff
    lambda: qtest.outl(0x10000, 0),
    lambda: qtest.outb(0, 256),
    lambda: qtest.read(0, 0),          # QEMU asserts on a read of no bytes
    lambda: qtest.read(0, qtest.READ_MAX_BYTES + 1),
    lambda: qtest.b64read(0, 0),
    lambda: qtest.write(0, b""),       # QEMU answers ERR
    lambda: qtest.write(2**64, b"a"),
    lambda: qtest.write(0, bytes(qtest.WRITE_MAX_BYTES + 1)),
    lambda: qtest.b64write(0, b""),
    lambda: qtest.memset(0, -1, 0),
    lambda: qtest.memset(0, 1, 256),
])
def test_encoders_refuse(make: Callable[[], bytes]) -> None:
    with pytest.raises(UsageError):
        make()


# --- decoders -------------------------------------------------------------------------

def test_decoders() -> None:
    assert qtest.parse_value(b"OK 0x00000000000000ff") == 255
    assert qtest.parse_value(b"OK 0x00ff\n") == 255
    assert qtest.parse_hex(b"OK 0x01fe\n", 2) == b"\x01\xfe"
    assert qtest.parse_base64(b"OK YWJj", 3) == b"abc"
    qtest.parse_ok(b"OK\n")


@pytest.mark.parametrize("parse", [
    lambda: qtest.parse_value(b"OK"),
    lambda: qtest.parse_value(b"OK 0x"),
    lambda: qtest.parse_value(b"OK 0x1 2"),
    lambda: qtest.parse_value(b"OK 0x" + b"1" * 17),
    lambda: qtest.parse_value(b"FAIL Unknown command 'x'"),
    lambda: qtest.parse_hex(b"OK 0x01f", 2),
    lambda: qtest.parse_hex(b"OK 0x01", 2),
    lambda: qtest.parse_base64(b"OK YWJ", 3),
    lambda: qtest.parse_base64(b"OK YWJj", 4),
    lambda: qtest.parse_base64(b"OK \xff\xff", 1),
    lambda: qtest.parse_ok(b"OK 0x1"),
    lambda: qtest.parse_ok(b""),
])
def test_decoders_refuse(parse: Callable[[], object]) -> None:
    with pytest.raises(ProtocolError):
        parse()


# --- the channel ----------------------------------------------------------------------

def test_replies_may_come_in_any_pieces(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 3)
        for piece in (b"O", b"K\nOK 0", b"x1\nOK", b"\n"):
            sock.sendall(piece)
            time.sleep(0.01)
        read_lines(sock, 1)
        sock.sendall(b"OK\n")

    channel = channel_to(server)
    assert channel.exchange(qtest.inb(1) * 3, 3) == b"OK\nOK 0x1\nOK\n"
    assert channel.exchange(qtest.inb(1), 1) == b"OK\n"


def test_a_batch_larger_than_every_buffer(channel_to: Callable[..., QtestChannel]) -> None:
    count = 400_000
    line = qtest.writeq(TOP, TOP)

    def server(sock: socket.socket) -> None:
        """Answers before it reads on, as QEMU does: both sides fill up."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        seen = answered = 0
        while answered < count:
            seen += sock.recv(1024).count(b"\n")
            sock.sendall(b"OK\n" * (seen - answered))
            answered = seen

    channel = channel_to(server)
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reply = channel.exchange(line * count, count, timeout_s=60)
    assert reply == b"OK\n" * count


def test_end_of_stream_while_still_sending(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 10)
        sock.sendall(b"OK\n" * 10)

    channel = channel_to(server)
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with pytest.raises(QtestDied) as caught:
        channel.exchange(qtest.inb(1) * 100_000, 100_000)
    assert caught.value.replies == 10


def test_batches_are_checked_before_sending(channel_to: Callable[..., QtestChannel]) -> None:
    channel = channel_to(lambda sock: None)
    for request, replies in ((b"", 0), (b"inb 0x1", 1), (b"inb 0x1\n", 2), (b"a\nb\n", 1)):
        with pytest.raises(UsageError):
            channel.exchange(request, replies)


def test_hang_keeps_the_partial_replies(channel_to: Callable[..., QtestChannel]) -> None:
    done = threading.Event()

    def server(sock: socket.socket) -> None:
        read_lines(sock, 3)
        sock.sendall(b"OK\nOK\nO")
        done.wait(5)

    channel = channel_to(server)
    start = time.monotonic()
    with pytest.raises(QtestHang) as caught:
        channel.exchange(qtest.inb(1) * 3, 3, timeout_s=0.2)
    assert 0.1 < time.monotonic() - start < 2
    assert (caught.value.partial, caught.value.replies) == (b"OK\nOK\nO", 2)
    with pytest.raises(UsageError, match="out of step"):
        channel.exchange(qtest.inb(1), 1)
    done.set()


@pytest.mark.parametrize("reset", [False, True])
def test_end_of_stream_keeps_the_partial_replies(
    channel_to: Callable[..., QtestChannel], reset: bool,
) -> None:
    def server(sock: socket.socket) -> None:
        if reset:
            select.select([sock], [], [], 5)  # unread bytes make the close a reset
        else:
            read_lines(sock, 3)
        sock.sendall(b"OK\nOK\n")

    channel = channel_to(server, on_eof=lambda: QemuDied(signal=9, stderr="why"))
    with pytest.raises(QtestDied) as caught:
        channel.exchange(qtest.inb(1) * 3, 3)
    assert (caught.value.replies, caught.value.signal, caught.value.stderr) == (2, 9, "why")


def test_end_of_stream_between_batches(channel_to: Callable[..., QtestChannel]) -> None:
    channel = channel_to(lambda sock: None)
    time.sleep(0.1)
    with pytest.raises(QtestDied) as caught:
        channel.exchange(qtest.inb(1), 1)
    assert caught.value.partial == b""


@pytest.mark.parametrize(("answer", "match"), [
    (b"OK\nOK\n", "more replies"),
    (b"OK\nO", "more replies"),
    (b"FAIL Unknown command 'x'\n", "refused"),
    (b"ERR invalid argument size\n", "refused"),
    (b"\n", "refused"),
    (b"\x00\xff\xfe\n", "refused"),
])
def test_what_the_protocol_does_not_allow(
    channel_to: Callable[..., QtestChannel], answer: bytes, match: str,
) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 1)
        sock.sendall(answer)
        time.sleep(0.1)

    channel = channel_to(server)
    with pytest.raises(ProtocolError, match=match):
        channel.exchange(qtest.inb(1), 1)
    assert channel.broken


def test_a_surplus_that_comes_late(channel_to: Callable[..., QtestChannel]) -> None:
    sent = threading.Event()

    def server(sock: socket.socket) -> None:
        read_lines(sock, 1)
        sock.sendall(b"OK\n")
        time.sleep(0.05)
        sock.sendall(b"OK\n")
        sent.set()
        time.sleep(0.2)

    channel = channel_to(server)
    channel.exchange(qtest.inb(1), 1)
    assert sent.wait(5)
    with pytest.raises(ProtocolError, match="nobody asked"):
        channel.exchange(qtest.inb(1), 1)


def test_irq_lines_only_where_enabled(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 2)
        sock.sendall(b"IRQ raise 4\nOK\nIRQ lower 4\n")
        time.sleep(0.05)
        sock.sendall(b"OK 0x1\n")
        time.sleep(0.1)

    channel = channel_to(server, allow_irq=True)
    assert channel.exchange(qtest.inb(1) * 2, 2) == b"OK\nOK 0x1\n"
    assert list(channel.irq_lines) == [b"IRQ raise 4", b"IRQ lower 4"]
    with pytest.raises(ProtocolError):
        channel_to(server).exchange(qtest.inb(1) * 2, 2)


def test_a_flood_is_stopped(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 1)
        while True:
            sock.sendall(b"x" * 65536)

    channel = channel_to(server)
    with pytest.raises(ResourceError):
        channel.exchange(qtest.inb(1), 1, limit_bytes=1 << 20)
    channel.close()


def test_without_check_any_line_will_do(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 1)
        sock.sendall(b"FAIL no\n")
        time.sleep(0.1)

    assert channel_to(server).exchange(b"x\n", 1, check=False) == b"FAIL no\n"


def test_clock_step_without_the_accelerator(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 1)
        sock.sendall(b"FAIL Unknown command 'clock_step'\n")
        read_lines(sock, 1)
        sock.sendall(b"OK 1234\n")
        time.sleep(0.1)

    client = qtest.Qtest(channel_to(server))
    with pytest.raises(UsageError, match="accel qtest"):
        client.clock_step(5)
    assert client.clock_step(5) == 1234
