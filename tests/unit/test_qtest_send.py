"""Batches that are sent ahead of their replies, over a socket whose other end is a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from qemuglue.errors import ProtocolError, QemuDied, ResourceError, UsageError
from qemuglue.qemu import qtest
from qemuglue.qemu.qtest import QtestChannel, QtestDied, QtestHang

Server = Callable[[socket.socket], None]
LINE = qtest.inb(1)


@pytest.fixture
def channel_to() -> Iterator[Callable[..., QtestChannel]]:
    """Start a fake server in a thread; give the channel that talks to it."""
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    def start(server: Server, *, buffer: int = 0, **options: object) -> QtestChannel:
        ours, theirs = qtest.socket_pair()
        sockets.extend((ours, theirs))
        if buffer:
            for side in (ours, theirs):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)

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


def counting(sock: socket.socket) -> None:
    """Answers the n-th command with n, as soon as it comes, until we hang up."""
    number, rest = 0, b""
    while True:
        piece = sock.recv(65536)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        sock.sendall(b"".join(b"OK 0x%x\n" % n for n in range(number, number + len(lines))))
        number += len(lines)


def wanted(start: int, count: int) -> list[bytes]:
    return [b"OK 0x%x" % n for n in range(start, start + count)]


def read_lines(sock: socket.socket, count: int) -> None:
    got = 0
    while got < count:
        piece = sock.recv(65536)
        if not piece:
            return
        got += piece.count(b"\n")


# -- order ---------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_the_batches(channel_to: Callable[..., QtestChannel]) -> None:
    channel = channel_to(counting)
    channel.send(LINE * 3, 3)
    channel.send(LINE * 2, 2)
    assert channel.collect(3) == wanted(0, 3)
    channel.send(LINE * 4, 4)
    assert channel.collect(2) == wanted(3, 2)
    assert channel.collect(4) == wanted(5, 4)
    assert channel.exchange(LINE, 1) == b"OK 0x9\n", "all is even again"


def test_replies_may_be_collected_across_batches(
    channel_to: Callable[..., QtestChannel]
) -> None:
    channel = channel_to(counting)
    channel.send(LINE * 3, 3)
    channel.send(LINE * 3, 3)
    assert channel.collect(1) == wanted(0, 1)
    assert channel.collect(4) == wanted(1, 4)
    assert channel.collect(1) == wanted(5, 1)
    channel.send(LINE, 1)
    assert channel.collect(1) == wanted(6, 1)


def test_nothing_is_collected_at_once(channel_to: Callable[..., QtestChannel]) -> None:
    channel = channel_to(counting)
    channel.send(LINE * 2, 2)
    assert channel.collect(0) == []
    assert channel.collect(2) == wanted(0, 2)


def test_replies_in_single_bytes(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 4)
        for byte in b"OK 0x1\nOK\nOK 0x3\nOK\n":
            sock.sendall(bytes([byte]))
            time.sleep(0.002)

    channel = channel_to(server)
    channel.send(LINE * 2, 2)
    channel.send(LINE * 2, 2)
    assert channel.collect(2) == [b"OK 0x1", b"OK"]
    assert channel.collect(2) == [b"OK 0x3", b"OK"]


def test_what_was_not_sent_cannot_be_collected(
    channel_to: Callable[..., QtestChannel]
) -> None:
    channel = channel_to(counting)
    with pytest.raises(UsageError, match="not asked for"):
        channel.collect(1)
    channel.send(LINE * 2, 2)
    with pytest.raises(UsageError, match="not asked for"):
        channel.collect(3)
    assert channel.collect(2) == wanted(0, 2), "asking for too much spoils nothing"


def test_an_exchange_waits_for_its_turn(channel_to: Callable[..., QtestChannel]) -> None:
    channel = channel_to(counting)
    channel.send(LINE, 1)
    with pytest.raises(UsageError, match="still owed"):
        channel.exchange(LINE, 1)
    assert channel.collect(1) == wanted(0, 1)
    assert channel.exchange(LINE, 1) == b"OK 0x1\n"


def test_batches_are_checked_before_sending(channel_to: Callable[..., QtestChannel]) -> None:
    channel = channel_to(counting)
    for request, replies in ((b"", 0), (b"inb 0x1", 1), (b"inb 0x1\n", 2), (b"a\nb\n", 1)):
        with pytest.raises(UsageError):
            channel.send(request, replies)
    channel.send(LINE, 1)
    assert channel.collect(1) == wanted(0, 1), "nothing of them went out"


# -- length --------------------------------------------------------------------------------------


def test_a_batch_larger_than_every_buffer(channel_to: Callable[..., QtestChannel]) -> None:
    """The other side answers before it reads on, as QEMU does: both sides fill up."""
    count = 100_000
    channel = channel_to(counting, buffer=4096)
    channel.send(LINE * count, count, timeout_s=60)
    assert channel.collect(count, timeout_s=60) == wanted(0, count)


def test_two_such_batches_under_way(channel_to: Callable[..., QtestChannel]) -> None:
    count = 30_000
    channel = channel_to(counting, buffer=4096)
    channel.send(LINE * count, count, timeout_s=60)
    channel.send(LINE * count, count, timeout_s=60)
    assert channel.collect(count, timeout_s=60) == wanted(0, count)
    assert channel.collect(count, timeout_s=60) == wanted(count, count)


# -- ends ------------------------------------------------------------------------------------------


def test_the_end_of_the_stream_keeps_the_partial_replies(
    channel_to: Callable[..., QtestChannel],
) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 5)
        sock.sendall(b"OK 0x0\nOK 0x1\nOK 0x2\nOK 0")

    channel = channel_to(server, on_eof=lambda: QemuDied(signal=11, stderr="why"))
    channel.send(LINE * 2, 2)
    channel.send(LINE * 3, 3)
    assert channel.collect(2) == wanted(0, 2)
    with pytest.raises(QtestDied) as caught:
        channel.collect(3)
    assert (caught.value.partial, caught.value.replies) == (b"OK 0x2\nOK 0", 1)
    assert (caught.value.signal, caught.value.stderr) == (11, "why")
    assert channel.broken
    for refused in (lambda: channel.send(LINE, 1), lambda: channel.collect(1)):
        with pytest.raises(UsageError):
            refused()


def test_all_that_was_answered_before_the_end_is_collected(
    channel_to: Callable[..., QtestChannel],
) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 2)
        sock.sendall(b"OK 0x0\nOK 0x1\n")

    channel = channel_to(server)
    channel.send(LINE * 2, 2)
    time.sleep(0.1)
    assert channel.collect(2) == wanted(0, 2)
    channel_gone = pytest.raises((QtestDied, ProtocolError))
    with channel_gone:
        channel.send(LINE, 1)
        channel.collect(1)


def test_the_end_while_still_sending_is_met_by_collect(
    channel_to: Callable[..., QtestChannel],
) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 10)
        sock.sendall(b"OK\n" * 10)

    channel = channel_to(server, buffer=4096)
    channel.send(LINE * 100_000, 100_000)
    with pytest.raises(QtestDied) as caught:
        channel.collect(100_000)
    assert caught.value.replies == 10


def test_a_qemu_that_does_not_answer(channel_to: Callable[..., QtestChannel]) -> None:
    done = threading.Event()

    def server(sock: socket.socket) -> None:
        read_lines(sock, 3)
        sock.sendall(b"OK 0x0\nOK")
        done.wait(5)

    channel = channel_to(server)
    channel.send(LINE * 3, 3)
    start = time.monotonic()
    with pytest.raises(QtestHang) as caught:
        channel.collect(3, timeout_s=0.2)
    assert 0.1 < time.monotonic() - start < 2
    assert (caught.value.partial, caught.value.replies) == (b"OK 0x0\nOK", 1)
    assert channel.broken
    done.set()


def test_a_qemu_that_does_not_read(channel_to: Callable[..., QtestChannel]) -> None:
    done = threading.Event()
    channel = channel_to(lambda sock: done.wait(5) and None, buffer=4096)
    start = time.monotonic()
    with pytest.raises(QtestHang):
        channel.send(LINE * 1_000_000, 1_000_000, timeout_s=0.2)
    assert time.monotonic() - start < 3
    assert channel.broken
    done.set()


# -- what the protocol does not allow ------------------------------------------------------------


def test_a_surplus_reply(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 2)
        sock.sendall(b"OK\n" * 3)
        time.sleep(0.2)

    channel = channel_to(server)
    channel.send(LINE * 2, 2)
    time.sleep(0.05)
    with pytest.raises(ProtocolError, match="more replies"):
        channel.collect(2)
    assert channel.broken


def test_a_surplus_that_comes_late(channel_to: Callable[..., QtestChannel]) -> None:
    go = threading.Event()

    def server(sock: socket.socket) -> None:
        read_lines(sock, 1)
        sock.sendall(b"OK\n")
        go.wait(5)
        sock.sendall(b"OK\n")
        time.sleep(0.2)

    channel = channel_to(server)
    channel.send(LINE, 1)
    channel.collect(1)
    go.set()
    time.sleep(0.05)
    with pytest.raises(ProtocolError, match="nobody asked"):
        channel.send(LINE, 1)


@pytest.mark.parametrize("answer", [
    b"FAIL Unknown command 'x'\nOK\n", b"OK\nFAIL Unknown command 'x'\n",
])
def test_a_refused_command(channel_to: Callable[..., QtestChannel], answer: bytes) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 2)
        sock.sendall(answer)
        time.sleep(0.1)

    channel = channel_to(server)
    channel.send(LINE * 2, 2)
    with pytest.raises(ProtocolError, match="Unknown command"):
        channel.collect(2)
    assert channel.broken


@pytest.mark.parametrize("answer", [b"ERR invalid argument size\n", b"\n", b"\x00\xff\xfe\n"])
def test_what_is_no_ok_is_refused(channel_to: Callable[..., QtestChannel], answer: bytes) -> None:
    """As ``exchange`` does: a reply that is not OK is no reply of a command that was done."""
    def server(sock: socket.socket) -> None:
        read_lines(sock, 2)
        sock.sendall(b"OK\n" + answer)
        time.sleep(0.1)

    channel = channel_to(server)
    channel.send(LINE * 2, 2)
    with pytest.raises(ProtocolError, match="refused"):
        channel.collect(2)


def test_a_flood_is_stopped(channel_to: Callable[..., QtestChannel]) -> None:
    def server(sock: socket.socket) -> None:
        read_lines(sock, 1)
        while True:
            sock.sendall(b"x" * 65536)

    channel = channel_to(server)
    channel.send(LINE, 1)
    with pytest.raises(ResourceError):
        channel.collect(1, limit_bytes=1 << 20)
    channel.close()


def test_nothing_is_sent_on_a_closed_channel(channel_to: Callable[..., QtestChannel]) -> None:
    channel = channel_to(counting)
    channel.close()
    with pytest.raises(UsageError, match="out of step"):
        channel.send(LINE, 1)
