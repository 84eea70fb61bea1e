"""QEMU's monitor: QMP commands and HMP lines, one at a time, with a time limit each.

A small synchronous face on ``qemu.qmp``'s asynchronous client, with an event loop of its
own that runs only inside a call here; no thread. So it cannot be used from inside a
running event loop. A round trip takes 0.3 ms.

Events are collected whenever a call runs. QEMU keeps what it sends in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from qemu.qmp import ExecuteError, Message, QMPClient, QMPError, Runstate, StateError

from qemuglue.errors import ProtocolError, QemuDied, QemuFailure, QemuHang, UsageError

CHANNEL: Final = "QMP"

COMMAND_TIMEOUT_S: Final = 10.0
"""``info mtree`` of the largest machine takes 10 ms; devices may take a second to answer."""
GREETING_TIMEOUT_S: Final = 30.0
"""QEMU greets after 30 ms; a sanitizer build on a loaded machine takes seconds."""
CLOSE_TIMEOUT_S: Final = 1.0
REPLY_LIMIT_BYTES: Final = 64 << 20
"""Longest single reply. The library's own 10 MB is only 16 times what a q35 with 800
devices prints as its flat views; QEMU sends a reply as one line, so it must fit."""
EVENTS_KEPT: Final = 10_000
"""Events not fetched yet; older ones go first. A guest that resets in a loop makes many."""

T = TypeVar("T")


class MonitorRefused(ProtocolError):
    """QEMU answered a command with an error. ``error_class`` and ``description`` are its own.

    Whether that is the caller's mistake or QEMU's depends on the command.
    """

    def __init__(self, command: str, *, error_class: str, description: str) -> None:
        self.command = command
        self.error_class = error_class
        self.description = description
        super().__init__(f"{command} was refused: {description} ({error_class})",
                         channel=CHANNEL, text=description)


@dataclass(frozen=True, slots=True)
class MonitorEvent:
    """A QMP event: ``RESET``, ``SHUTDOWN``, ``STOP`` …; ``time_s`` is QEMU's wall clock."""

    name: str
    data: Mapping[str, Any]
    time_s: float


def _gone() -> QemuFailure:
    """What is raised at the end of the stream when no process stands behind the socket."""
    return QemuDied(exit_code=0)


class Monitor:
    """A connected QMP monitor. ``on_eof`` is asked for the error when QEMU hangs up.

    After :class:`QemuHang`, :class:`QemuDied` or a :class:`ProtocolError` other than
    :class:`MonitorRefused`, the connection is closed and every call raises what
    ``on_eof`` gives.
    """

    def __init__(
        self, sock: socket.socket, *, on_eof: Callable[[], QemuFailure] = _gone,
        timeout_s: float = GREETING_TIMEOUT_S, limit_bytes: int = REPLY_LIMIT_BYTES,
    ) -> None:
        self._on_eof = on_eof
        self._limit_bytes = limit_bytes
        self._events: deque[MonitorEvent] = deque(maxlen=EVENTS_KEPT)
        self.owners = True
        """Whether ``info mtree`` may be asked with ``-o``; off, :meth:`hmp` leaves it out."""
        self.shutdown: MonitorEvent | None = None
        """The last SHUTDOWN event; kept here too after :meth:`events` handed it out."""
        self._loop = asyncio.new_event_loop()
        self._sock = sock
        self._client = QMPClient("qemuglue", readbuflen=limit_bytes)
        # The filter sees every event once and keeps it, and says no: the library's own
        # listener would remember all events of the process for ever.
        self._client.events.event_filter = self._keep_event
        try:
            self._run(self._client.connect(sock), timeout_s=timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; idempotent, does not end QEMU."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(
                asyncio.wait_for(self._disconnect(), CLOSE_TIMEOUT_S))
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        self._sock.close()

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> Any:
        """Run a QMP command and return its answer (JSON as Python values).

        Raises :class:`MonitorRefused`, :class:`QemuHang`, :class:`ProtocolError` for an
        answer that is no QMP or is longer than the limit, and whatever ``on_eof`` gives.
        """
        self._ready()
        sent = None if arguments is None else dict(arguments)
        return self._run(self._client.execute(command, sent), timeout_s=timeout_s,
                         command=command)

    def hmp(self, line: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run one line of the human monitor and return its text; ``\\r\\n`` become ``\\n``.

        HMP reports its own errors as text: only the caller knows what to expect.
        """
        if "\n" in line or "\x00" in line:
            raise UsageError(f"not one monitor line: {line!r}")
        if not self.owners and line.startswith("info mtree "):
            line = line.replace(" -o", "")
        text = self.execute("human-monitor-command", {"command-line": line}, timeout_s=timeout_s)
        if not isinstance(text, str):
            raise ProtocolError("no text came back", channel=CHANNEL, text=repr(text)[:200])
        return text.replace("\r\n", "\n")

    def round_trip(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Wait until QEMU's main loop has come by once and answered a command."""
        self.execute("query-status", timeout_s=timeout_s)

    def events(self) -> list[MonitorEvent]:
        """The events seen and not handed out yet, oldest first, without waiting.

        Only what QEMU sent before the last call here, or has in the socket now.
        """
        if not self._loop.is_closed() and self._client.runstate is Runstate.RUNNING:
            # Two passes: the first reads the socket, the second lets the reader run.
            self._loop.run_until_complete(_turns(4))
        out = list(self._events)
        self._events.clear()
        return out

    def pending(self) -> bool:
        """Whether an event is there or something unread came from QEMU; costs a microsecond,
        where :meth:`events` costs a turn of an event loop."""
        if self._events:
            return True
        if self._loop.is_closed():
            return False
        return bool(select.select([self._sock], [], [], 0)[0])

    def drain(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Read what a QEMU that has ended still had to say, up to its end of the stream."""
        if self._loop.is_closed() or self._client.runstate is not Runstate.RUNNING:
            return
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(
                asyncio.wait_for(self._client.runstate_changed(), timeout_s))

    def send_fd(self, fd: int, name: str) -> None:
        """Give QEMU a file descriptor of ours under ``name`` (QMP ``getfd``)."""
        self._ready()

        async def give() -> None:
            self._client.send_fd_scm(fd)
            await self._client.execute("getfd", {"fdname": name})

        self._run(give(), timeout_s=COMMAND_TIMEOUT_S, command="getfd")

    # --- inside ------------------------------------------------------------------------

    def _ready(self) -> None:
        if self._loop.is_closed() or self._client.runstate is not Runstate.RUNNING:
            raise self._on_eof()

    def _keep_event(self, message: Message) -> bool:
        stamp = message.get("timestamp")
        time_s = 0.0
        if isinstance(stamp, dict):
            with contextlib.suppress(TypeError, ValueError):
                time_s = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
        data = message.get("data")
        event = MonitorEvent(str(message.get("event")), data if isinstance(data, dict) else {},
                             time_s)
        if event.name == "SHUTDOWN":
            self.shutdown = event
        self._events.append(event)
        return False

    def _run(
        self, work: Coroutine[Any, Any, T], *, timeout_s: float, command: str = "connect",
    ) -> T:
        """Run one coroutine and turn every failure into one of ours."""
        try:
            return self._loop.run_until_complete(asyncio.wait_for(work, timeout_s))
        except TimeoutError:
            self.close()
            raise QemuHang(channel=CHANNEL, timeout_s=timeout_s) from None
        except ExecuteError as error:
            raise MonitorRefused(command, error_class=error.error_class,
                                 description=str(error)) from None
        except (QMPError, OSError, EOFError, AssertionError) as error:
            # AssertionError: the library's own, when QEMU hangs up during its handshake.
            cause = self._root_cause(error)
        raise self._failure(cause) from cause

    def _root_cause(self, error: BaseException) -> BaseException:
        """What ended the connection; the library tells it at the disconnect only."""
        inner = getattr(error, "exc", None)  # ConnectError wraps the first cause
        if isinstance(inner, BaseException):
            return inner
        try:
            self._loop.run_until_complete(asyncio.wait_for(self._disconnect(), CLOSE_TIMEOUT_S))
        except Exception as cause:
            return cause
        return error

    def _failure(self, cause: BaseException) -> QemuFailure:
        if isinstance(cause, (EOFError, OSError, StateError, AssertionError)):
            return self._on_eof()
        self.close()
        if isinstance(cause, ValueError) and not isinstance(cause, json.JSONDecodeError):
            return ProtocolError(f"a reply over the limit of {self._limit_bytes} bytes",
                                 channel=CHANNEL)
        return ProtocolError(f"not QMP: {cause}", channel=CHANNEL, text=str(cause)[:200])

    async def _disconnect(self) -> None:
        if self._client.runstate is not Runstate.IDLE:
            await self._client.disconnect()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
