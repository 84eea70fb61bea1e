"""A vhost-user backend that does nothing, so that QEMU has a MemoryListener with trace events.

QEMU's vhost code listens to the memory space and traces every section it is told of, of any
kind, and every commit (``hw/virtio/vhost.c`` ``vhost_section``, ``vhost_commit``). A device
needs a backend that answers two questions as it is made. Source: ``docs/interop/vhost-user.rst``.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path
from types import TracebackType

_GET_FEATURES, _GET_PROTOCOL_FEATURES = 1, 15
#: virtio 1, and that protocol features can be asked for (there are none).
_FEATURES = 1 << 32 | 1 << 30
_REPLY = 5
_HEADER = struct.Struct("<III")
#: QEMU connects as it starts, and hangs up as it ends.
_TIMEOUT_S = 60.0


class VhostBackend:
    """Serves one QEMU while it is entered; ``args`` plug the device."""

    def __init__(self, folder: Path) -> None:
        path = str(folder / "vhost")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(_TIMEOUT_S)
        self._listener.bind(path)
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.args = (
            "-chardev", f"socket,id=vhost,path={path}",
            "-device", "vhost-user-rng-pci,chardev=vhost,addr=9",
        )

    def __enter__(self) -> VhostBackend:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes a thread that nobody came to
        self._listener.close()
        self._thread.join(_TIMEOUT_S)

    def _serve(self) -> None:
        try:
            qemu, _ = self._listener.accept()
        except OSError:
            return
        with qemu:
            qemu.settimeout(_TIMEOUT_S)
            while len(head := qemu.recv(_HEADER.size, socket.MSG_WAITALL)) == _HEADER.size:
                request, _, size = _HEADER.unpack(head)
                if size:
                    qemu.recv(size, socket.MSG_WAITALL)
                if request in (_GET_FEATURES, _GET_PROTOCOL_FEATURES):
                    answer = _FEATURES if request == _GET_FEATURES else 0
                    qemu.sendall(_HEADER.pack(request, _REPLY, 8) + struct.pack("<Q", answer))
