"""The few packets of GDB's remote protocol that read and write guest memory."""

from __future__ import annotations

import socket
from types import TracebackType

#: A stub answers within a millisecond.
TIMEOUT_S = 10.0


class Gdb:
    """A connection to QEMU's gdbstub on a Unix socket. Addresses are the first CPU's virtual
    ones, which are physical while its MMU is off."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(TIMEOUT_S)
        self._sock.connect(path)
        self._data = b""

    def __enter__(self) -> Gdb:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def read(self, addr: int, size: int) -> bytes | None:
        """The bytes; None where the stub answers with an error."""
        reply = self._ask(f"m{addr:x},{size:x}")
        return None if reply.startswith("E") else bytes.fromhex(reply)

    def write(self, addr: int, data: bytes) -> bool:
        """Whether the stub says OK."""
        return self._ask(f"M{addr:x},{len(data):x}:{data.hex()}") == "OK"

    def _ask(self, command: str) -> str:
        text = command.encode()
        self._sock.sendall(b"$%b#%02x" % (text, sum(text) & 0xFF))
        while True:
            reply = self._packet()
            if not reply.startswith("T"):  # a stop nobody asked for
                return reply

    def _packet(self) -> str:
        while True:
            start = self._data.find(b"$")
            end = self._data.find(b"#", start)
            if 0 <= start < end and len(self._data) >= end + 3:
                reply, self._data = self._data[start + 1 : end], self._data[end + 3 :]
                self._sock.sendall(b"+")
                return reply.decode()
            got = self._sock.recv(65536)
            assert got, "the stub hung up"
            self._data += got
