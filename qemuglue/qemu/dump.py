"""All of the guest's RAM and ROM as QEMU itself writes it out: an ELF core file.

A witness of its own beside shared RAM and ``/proc``: QMP ``dump-guest-memory`` walks
QEMU's list of physical blocks. ``p_paddr`` of a segment is the guest-physical address.
RAM and ROM are in it, flash and devices are not.

The file is a memfd of ours given to QEMU over the monitor, so nothing touches a disk.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from qemuglue.errors import ProtocolError, ResourceError, UsageError
from qemuglue.qemu.process import QemuProcess

DUMP_TIMEOUT_S: Final = 120.0
"""QEMU writes 0.5 GB/s or more; a host that swaps is far slower."""
DUMP_LIMIT_BYTES: Final = 8 << 30
"""Largest dump: it is held in memory."""
SEGMENTS_MAX: Final = 65_536
_FD_NAME: Final = "qemuglue-dump"


class _File:
    """A file descriptor that lives as long as a segment of it does."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)


@dataclass(frozen=True, slots=True)
class Segment:
    """``size`` bytes of guest memory from guest-physical ``start``; read on demand."""

    start: int
    size: int
    _offset: int
    _file: _File

    @property
    def last(self) -> int:
        """Address of the last byte (inclusive)."""
        return self.start + self.size - 1

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes at a guest-physical address, all inside (:class:`UsageError`)."""
        if size < 0 or address < self.start or address + size > self.start + self.size:
            raise UsageError(f"{size:#x} bytes at {address:#x} are not inside "
                             f"{self.start:#x}-{self.last:#x}")
        out = bytearray()
        at = self._offset + address - self.start
        while len(out) < size:
            piece = os.pread(self._file.fd, size - len(out), at + len(out))
            if not piece:
                raise ProtocolError("the dump ends inside a segment", channel="dump")
            out += piece
        return bytes(out)

    @property
    def data(self) -> bytes:
        """All of it."""
        return self.read(self.start, self.size)


def dump_guest_memory(
    process: QemuProcess, *, start: int | None = None, size: int | None = None,
    timeout_s: float = DUMP_TIMEOUT_S,
) -> list[Segment]:
    """Dump the guest's memory, or only ``size`` bytes from ``start``; sorted by address.

    Raises :class:`~qemuglue.qemu.monitor.MonitorRefused` where QEMU refuses: a range that
    touches a hole, or a target that has no dump (mips64). ``start`` and ``size`` go
    together. QEMU stops the guest's CPUs for the time of the dump.
    """
    if (start is None) != (size is None):
        raise UsageError("a dump of a range needs its start and its size")
    arguments: dict[str, object] = {"paging": False, "protocol": f"fd:{_FD_NAME}"}
    if start is not None:
        arguments |= {"begin": start, "length": size}
    file = _File(os.memfd_create("qemuglue-dump", os.MFD_CLOEXEC))
    process.monitor.send_fd(file.fd, _FD_NAME)
    with process.without_file_limit():
        process.monitor.execute("dump-guest-memory", arguments, timeout_s=timeout_s)
    if os.fstat(file.fd).st_size > DUMP_LIMIT_BYTES:
        raise ResourceError(what="a dump of guest memory", limit=DUMP_LIMIT_BYTES)
    return parse_dump(file)


def parse_dump(file: _File) -> list[Segment]:
    """The loadable segments of a core file; :class:`ProtocolError` when it is none."""
    end = os.fstat(file.fd).st_size
    out = []
    try:
        with os.fdopen(os.dup(file.fd), "rb") as stream:
            core = ELFFile(stream)
            if core.num_segments() > SEGMENTS_MAX:
                raise ELFError("too many segments")
            for segment in core.iter_segments("PT_LOAD"):
                size, offset = segment["p_filesz"], segment["p_offset"]
                if size and offset + size > end:
                    raise ELFError("a segment lies outside the file")
                if size:
                    out.append(Segment(segment["p_paddr"], size, offset, file))
    except (ELFError, ValueError, KeyError, OSError, OverflowError) as error:
        raise ProtocolError(f"not a core file: {error}", channel="dump") from error
    return sorted(out, key=lambda segment: segment.start)
