"""QEMU's own account of every access, as one totally ordered text.

The log file is a memfd of ours that QEMU inherits and opens as ``-D /dev/fd/N``. So there
is no pipe to fill: a reader that stalls never stalls QEMU, nothing is ever lost, and no
thread has to drain anything. QEMU writes each line out before it answers the command that
caused it (``qemu_log_unlock`` flushes), so once a reply is here, its lines are too. What
has been read is given back to the kernel by punching a hole behind the reader; QEMU's
position in the file is not touched by that, and the file never holds more than what is
unread plus the evidence for a finding.

Parsing into typed events is in :mod:`qemuglue.qemu.events`.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from qemuglue.errors import BuildError, QemuHang, ResourceError
from qemuglue.qemu import libc

if TYPE_CHECKING:
    from qemuglue.qemu.builds import Build

CHANNEL: Final = "transcript"

TRACE_PATTERNS: Final = (
    "memory_region_ops_*",         # each call into a device, after splitting and swapping
    "memory_region_subpage_*",     # accesses to pages shared by regions (gone in 10.x)
    "memory_region_ram_device_*",  # passed-through device memory
    "flatview_new",                # the memory map changed (its destruction is noise)
)
UNREAD_LIMIT_BYTES: Final = 256 << 20
"""Unread text that counts as a flood: 1.5 million lines, 15 times the largest batch."""
EVIDENCE_BYTES: Final = 64 << 10
"""Text kept behind the reader for findings: the last 400 lines or so."""
RELEASE_STEP_BYTES: Final = 4 << 20
"""Read text is given back this much at a time: one system call in 25,000 lines."""
POLL_S: Final = (0.0002, 0.005)
"""First and longest sleep while waiting for a line (a file cannot be waited for)."""
_HELP_TIMEOUT_S: Final = 30.0
_PAGE: Final = 4096


@lru_cache(maxsize=64)
def _log_items(
    command: tuple[str, ...], environment: tuple[tuple[str, str], ...],
) -> frozenset[str]:
    try:
        done = subprocess.run(
            [*command, "-d", "help"], env=dict(environment), stdin=subprocess.DEVNULL,
            capture_output=True, timeout=_HELP_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} -d help failed: {error}") from error
    words = (line.split(None, 1) for line in done.stdout.decode("utf-8", "replace").splitlines())
    return frozenset(found[0] for found in words if found)


def log_items(build: Build, target: str) -> frozenset[str]:
    """The names this QEMU takes for ``-d`` (asked once per build and target)."""
    return _log_items(tuple(build.command(target)), tuple(sorted(build.environment().items())))


def log_arguments(
    build: Build, target: str, path: str, *, extra_trace: tuple[str, ...] = (),
    plugin: bool = False,
) -> list[str]:
    """The command line words that make QEMU write the transcript to ``path``.

    ``invalid_mem`` alone where it exists: the texts of ``guest_errors`` come from devices
    and can glue records together. QEMU 7.2 has the same messages only under the latter.
    """
    known = log_items(build, target)
    items = ["invalid_mem" if "invalid_mem" in known else "guest_errors"]
    if plugin and "plugin" in known:
        items.append("plugin")
    traces = [word for pattern in (*TRACE_PATTERNS, *extra_trace) for word in ("-trace", pattern)]
    return [*traces, "-d", ",".join(items), "-D", path]


class Transcript:
    """The growing log of one QEMU process. Not for use by two threads at once.

    ``on_release`` is told how many bytes of the file have been given back so far, each
    time some are: the process moves its file size limit along with it.
    """

    def __init__(
        self, *, limit_bytes: int = UNREAD_LIMIT_BYTES,
        on_release: Callable[[int], None] | None = None,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.on_release = on_release
        self.fd = os.memfd_create("qemuglue-transcript", os.MFD_CLOEXEC)
        #: For planted faults (``campaign.faults``): what is read comes through it.
        self.tap: Callable[[bytes], bytes] | None = None
        #: For coverage feedback (``campaign.reach``): hears what is read, gives back what is
        #: left to be judged.
        self.listener: Callable[[bytes], bytes] | None = None
        self._offset = 0
        self._released = 0

    @property
    def path(self) -> str:
        """What ``-D`` is given, in a process that inherited :attr:`fd` under its number."""
        return f"/dev/fd/{self.fd}"

    def close(self) -> None:
        """Close our end; idempotent. QEMU's own end stays usable to it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def size(self) -> int:
        """All bytes QEMU has written so far, read or not."""
        return os.fstat(self.fd).st_size

    @property
    def offset(self) -> int:
        """Bytes handed out so far."""
        return self._offset

    def unread(self) -> int:
        """Bytes written and not yet handed out, an unfinished line included.

        Raises :class:`ResourceError` over ``limit_bytes``; the text stays.
        """
        unread = self.size() - self._offset
        if unread > self.limit_bytes:
            raise ResourceError(what="the transcript", limit=self.limit_bytes)
        return unread

    def read_new(self, *, final: bool = False) -> bytes:
        """All whole lines not handed out yet, oldest first; ``b""`` when there is none.

        ``final`` hands out an unfinished last line too (QEMU has ended).
        """
        unread = self.unread()
        if not unread:
            return b""
        text = self._pread(unread)
        if not final and text[-1:] != b"\n":
            text = text[:text.rfind(b"\n") + 1]
        self._advance(len(text))
        if self.tap is not None:
            text = self.tap(text)
        return text if self.listener is None else self.listener(text)

    def wait_for(self, sign: bytes | Callable[[bytes], bool], *, timeout_s: float) -> bytes:
        """Like :meth:`read_new`, once the whole lines not handed out yet hold ``sign``.

        ``sign`` is bytes to be found in them or a predicate on them. Raises
        :class:`QemuHang` after ``timeout_s``; nothing is handed out then.
        """
        found = sign if callable(sign) else lambda text: sign in text
        deadline = time.monotonic() + timeout_s
        pause, longest = POLL_S
        seen = -1
        while True:
            unread = self.unread()
            if unread != seen:
                seen = unread
                text = self._pread(unread)
                text = text[:text.rfind(b"\n") + 1]
                if found(text):
                    self._advance(len(text))
                    return text
            if time.monotonic() >= deadline:
                raise QemuHang(channel=CHANNEL, timeout_s=timeout_s)
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def tail(self, size: int = EVIDENCE_BYTES) -> bytes:
        """The last ``size`` bytes written, read or not; at least EVIDENCE_BYTES are kept."""
        end = self.size()
        start = max(0, end - size, self._released)
        return os.pread(self.fd, end - start, start)

    def _pread(self, size: int) -> bytes:
        """``size`` bytes from the reader's place; a file this large may need two calls."""
        text = os.pread(self.fd, size, self._offset)
        while len(text) < size:
            more = os.pread(self.fd, size - len(text), self._offset + len(text))
            if not more:
                break
            text += more
        return text

    def _advance(self, size: int) -> None:
        self._offset += size
        keep_from = (self._offset - EVIDENCE_BYTES) // _PAGE * _PAGE
        if keep_from - self._released < RELEASE_STEP_BYTES:
            return
        if libc.punch_hole(self.fd, self._released, keep_from - self._released):
            self._released = keep_from
            if self.on_release is not None:
                self.on_release(keep_from)
