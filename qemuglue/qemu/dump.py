"""All of the guest's RAM and ROM as QEMU itself writes it out: an ELF core file.

A witness of its own beside shared RAM and ``/proc``: QMP ``dump-guest-memory`` walks
QEMU's list of physical blocks. ``p_paddr`` of a segment is the guest-physical address.
RAM and ROM are in it, flash and devices are not.

The file is a memfd of ours given to QEMU over the monitor, so nothing touches a disk.
"""

from __future__ import annotations

import os
import struct
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
NOTES_MAX_BYTES: Final = 1 << 20
"""Notes that QEMU did not count; those of a CPU are a few hundred bytes."""
_NOTE_NAMES: Final = frozenset({b"CORE\0", b"LINUX\0", b"QEMU\0"})
_FD_NAME: Final = "qemuglue-dump"


class _File:
    """A file descriptor that lives as long as a segment of it does."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)


@dataclass(frozen=True, slots=True)
class Segment:
    """``size`` bytes of guest memory from guest-physical ``start``; read on demand.

    ``bits`` is 32 or 64, the class of the file: addresses in one of 32 bits are cut to these.
    ``misplaced``: so many bytes behind the place that its header names the bytes lie; they are
    read from where they are."""

    start: int
    size: int
    _offset: int
    _file: _File
    bits: int = 64
    misplaced: int = 0

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
    try:
        with os.fdopen(os.dup(file.fd), "rb") as stream:
            core = ELFFile(stream)
            if core.num_segments() > SEGMENTS_MAX:
                raise ELFError("too many segments")
            loads = [each for each in core.iter_segments("PT_LOAD") if each["p_filesz"]]
            if any(each["p_offset"] + each["p_filesz"] > end for each in loads):
                raise ELFError("a segment lies outside the file")
            offsets = [each["p_offset"] for each in loads]
            shift = _notes_beyond(file.fd, min(offsets), end) if loads else 0
            if any(each["p_offset"] + each["p_filesz"] + shift > end for each in loads):
                shift = 0
            out = [
                Segment(each["p_paddr"], each["p_filesz"], each["p_offset"] + shift, file,
                        core.elfclass, shift)
                for each in loads
            ]
    except (ELFError, ValueError, KeyError, OSError, OverflowError) as error:
        raise ProtocolError(f"not a core file: {error}", channel="dump") from error
    return sorted(out, key=lambda segment: segment.start)


def _notes_beyond(fd: int, at: int, end: int) -> int:
    """Bytes of notes from ``at`` on, where the headers say that memory begins.

    QEMU sizes the notes of all CPUs by its first one (``cpu_get_note_size``); where others
    have more registers to tell (the second core of mps2-an521 has a floating-point unit), every
    offset behind is too small by the difference.
    """
    found = 0
    while at + found + 12 <= end and found < NOTES_MAX_BYTES:
        head = os.pread(fd, 20, at + found)
        for order in ("<", ">"):
            name_size, size, _ = struct.unpack(order + "III", head[:12])
            if head[12 : 12 + name_size] in _NOTE_NAMES and name_size and size < NOTES_MAX_BYTES:
                found += 12 + (name_size + 3 & ~3) + (size + 3 & ~3)
                break
        else:
            break
    return found
