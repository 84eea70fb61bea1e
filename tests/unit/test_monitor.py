"""The monitor without QEMU: a fake QMP server that misbehaves."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qemuglue.errors import ProtocolError, QemuDied, QemuHang, UsageError
from qemuglue.qemu.monitor import EVENTS_KEPT, Monitor, MonitorRefused

GREETING = {"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": []}}


class Peer:
    """The server's side of the socket: JSON lines."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard = b""

    def send(self, *messages: object) -> None:
        self.sock.sendall(b"".join(json.dumps(m).encode() + b"\r\n" for m in messages))

    def hear(self) -> dict[str, Any]:
        """One object; the client puts nothing behind it, so it ends where it is whole."""
        while True:
            with contextlib.suppress(ValueError):
                heard, end = json.JSONDecoder().raw_decode(self.heard.decode())
                self.heard = self.heard[end:]
                assert isinstance(heard, dict)
                return heard
            piece = self.sock.recv(65536)
            if not piece:
                raise OSError("hung up")
            self.heard += piece

    def greet(self) -> None:
        self.send(GREETING)
        heard = self.hear()
        assert heard["execute"] == "qmp_capabilities"
        self.send({"return": {}, **{k: v for k, v in heard.items() if k == "id"}})

    def answer(self, value: object) -> dict[str, Any]:
        heard = self.hear()
        self.send({"return": value, "id": heard["id"]})
        return heard


Script = Callable[[Peer], None]


@pytest.fixture
def monitor_to() -> Iterator[Callable[..., Monitor]]:
    """Start a fake server in a thread; give the monitor connected to it."""
    threads: list[threading.Thread] = []
    closing: list[Callable[[], None]] = []

    def start(script: Script, **options: Any) -> Monitor:
        ours, theirs = socket.socketpair()

        def run() -> None:
            peer = Peer(theirs)
            with contextlib.suppress(OSError):
                script(peer)
            theirs.close()

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()
        monitor = Monitor(ours, timeout_s=options.pop("timeout_s", 5.0), **options)
        closing.append(monitor.close)
        return monitor

    yield start
    for close in closing:
        close()
        close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_execute_hmp_and_refusal(monitor_to: Callable[..., Monitor]) -> None:
    heard: list[Any] = []

    def script(peer: Peer) -> None:
        peer.greet()
        heard.append(peer.answer({"status": "paused"}))
        heard.append(peer.answer("a\r\nb\r\n"))
        peer.send({"error": {"class": "GenericError", "desc": "no"}, "id": peer.hear()["id"]})
        peer.answer({})
        peer.answer(3)

    monitor = monitor_to(script)
    assert monitor.execute("query-status") == {"status": "paused"}
    assert monitor.hmp("info mtree") == "a\nb\n"
    assert heard[1]["arguments"] == {"command-line": "info mtree"}
    with pytest.raises(MonitorRefused, match="stop was refused: no") as caught:
        monitor.execute("stop")
    assert (caught.value.error_class, caught.value.description) == ("GenericError", "no")
    monitor.round_trip()  # a refusal does not end the connection
    with pytest.raises(ProtocolError, match="no text"):
        monitor.hmp("x")
    with pytest.raises(UsageError):
        monitor.hmp("a\nb")


def test_events(monitor_to: Callable[..., Monitor]) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        stamp = {"seconds": 10, "microseconds": 500000}
        peer.send({"event": "RESET", "data": {"guest": True}, "timestamp": stamp},
                  {"event": "SHUTDOWN", "timestamp": "garbage"})
        peer.answer({})
        heard = peer.hear()
        for _ in range(EVENTS_KEPT + 10):
            peer.send({"event": "X"})
        peer.send({"return": {}, "id": heard["id"]})
        peer.hear()

    monitor = monitor_to(script)
    monitor.round_trip()
    reset, shutdown = monitor.events()
    assert (reset.name, reset.data, reset.time_s) == ("RESET", {"guest": True}, 10.5)
    assert (shutdown.name, shutdown.data, shutdown.time_s) == ("SHUTDOWN", {}, 0.0)
    assert monitor.shutdown == shutdown
    assert monitor.events() == []
    monitor.round_trip()
    assert len(monitor.events()) == EVENTS_KEPT


def test_events_without_a_command(monitor_to: Callable[..., Monitor]) -> None:
    go, sent = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        go.wait(5)
        peer.send({"event": "STOP"})
        sent.set()
        peer.hear()

    monitor = monitor_to(script)
    assert monitor.events() == []
    go.set()
    assert sent.wait(5)
    assert [e.name for e in monitor.events()] == ["STOP"]


def test_no_answer_is_a_hang(monitor_to: Callable[..., Monitor]) -> None:
    done = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        peer.hear()
        done.wait(5)

    monitor = monitor_to(script, on_eof=lambda: QemuDied(signal=9))
    start = time.monotonic()
    with pytest.raises(QemuHang):
        monitor.execute("stop", timeout_s=0.2)
    assert time.monotonic() - start < 3
    with pytest.raises(QemuDied):
        monitor.execute("stop")
    done.set()


def test_no_greeting_is_a_hang(monitor_to: Callable[..., Monitor]) -> None:
    done = threading.Event()
    with pytest.raises(QemuHang):
        monitor_to(lambda peer: done.wait(5) and None, timeout_s=0.2)
    done.set()


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_end_of_stream_asks_the_process(
    monitor_to: Callable[..., Monitor], when: str,
) -> None:
    def script(peer: Peer) -> None:
        if when == "before":
            return
        peer.greet()
        if when == "during":
            peer.hear()

    def work() -> None:
        monitor = monitor_to(script, on_eof=lambda: QemuDied(exit_code=3))
        time.sleep(0.1)
        monitor.execute("stop")

    with pytest.raises(QemuDied) as caught:
        work()
    assert caught.value.exit_code == 3


def test_last_events_of_a_dead_qemu(monitor_to: Callable[..., Monitor]) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.greet()
        go.wait(5)
        peer.send({"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}})

    monitor = monitor_to(script)
    go.set()
    monitor.drain()
    assert monitor.shutdown is not None
    assert monitor.shutdown.data["reason"] == "guest-shutdown"


@pytest.mark.parametrize("garbage", [b"\xff\xfe\n", b"[]\n", b"OK 0x0\n", b"{\"a\n"])
def test_garbage_is_a_protocol_error(
    monitor_to: Callable[..., Monitor], garbage: bytes,
) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.hear()
        peer.sock.sendall(garbage)
        time.sleep(0.3)

    monitor = monitor_to(script)
    with pytest.raises(ProtocolError):
        monitor.execute("stop", timeout_s=5)


def test_a_reply_over_the_limit_is_named(monitor_to: Callable[..., Monitor]) -> None:
    def script(peer: Peer) -> None:
        peer.greet()
        peer.answer("x" * 50_000)
        peer.answer("x" * 500_000)
        time.sleep(0.2)

    monitor = monitor_to(script, limit_bytes=100_000)
    assert len(monitor.hmp("a")) == 50_000
    with pytest.raises(ProtocolError, match="limit of 100000 bytes"):
        monitor.hmp("b")
