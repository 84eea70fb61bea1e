"""Guest RAM seen from outside, without asking QEMU for each byte.

Two ways: main memory that QEMU shares with us (a memfd of ours, mapped here and in QEMU),
and any other RAM or ROM through its address in QEMU's process and ``/proc/PID/mem``.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from qemuglue.errors import EnvironmentFailure, ProtocolError, UsageError
from qemuglue.qemu import libc
from qemuglue.qemu.monitor import Monitor

DIFFERENCES_MAX: Final = 1000
"""Differing ranges reported of one comparison: more help nobody and cost a byte loop."""

_PAGE: Final = 4096
_HVA: Final = re.compile(
    r"Host virtual address for (?:0x)?[0-9a-fA-F]+ \((.*)\) is 0x([0-9a-fA-F]{1,16})", re.DOTALL)
_NOT_RAM: Final = re.compile(r"Memory at address (?:0x)?[0-9a-fA-F]+ ?is not RAM")
_UNMAPPED: Final = re.compile(r"No memory is mapped at address (?:0x)?[0-9a-fA-F]+")


class SharedRam:
    """``size`` bytes of main memory, a memfd that both sides map.

    Offsets are offsets in the RAM block, not guest addresses: ROM may lie in front of
    parts of it, and machines put it at different places. The backend's id must be the
    machine's own (see :func:`default_ram_id`), so that the region keeps its name. A
    machine may ignore the backend: the flat view tells.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % _PAGE:
            raise UsageError(f"shared memory must be whole pages of {_PAGE} bytes, not {size}")
        self.size = size
        self.fd = os.memfd_create("qemuglue-ram", os.MFD_CLOEXEC)
        try:
            # The whole length now: QEMU then need not (and under its file limit could
            # not) make the file longer itself.
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)
        """All of it, writable; not usable after :meth:`close`."""

    def arguments(self, backend_id: str) -> list[str]:
        """The ``-object`` of a QEMU that inherits :attr:`fd` under its number."""
        return ["-object", f"memory-backend-file,id={backend_id},size={self.size},"
                           f"mem-path=/dev/fd/{self.fd},share=on"]

    def close(self) -> None:
        """Unmap; idempotent. Slices of :attr:`view` must be gone (else BufferError)."""
        if self.fd >= 0:
            self.view.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1

    def _slice(self, offset: int, size: int) -> memoryview:
        if offset < 0 or offset + size > self.size:
            raise UsageError(f"{size:#x} bytes at {offset:#x} are not inside {self.size:#x}")
        return self.view[offset:offset + size]

    def compare(self, offset: int, expected: bytes | bytearray | memoryview) -> int | None:
        """Offset (in the RAM) of the first byte that differs; ``None``: all equal.

        At memory speed (some 10 GB/s) where equal.
        """
        for start, _ in self._differences(offset, expected):
            return start
        return None

    def differences(
        self, offset: int, expected: bytes | bytearray | memoryview, *,
        limit: int = DIFFERENCES_MAX,
    ) -> list[tuple[int, int]]:
        """The first ``limit`` maximal runs that differ, as ``(offset in the RAM, size)``."""
        return list(islice(self._differences(offset, expected), limit))

    def _differences(
        self, offset: int, expected: bytes | bytearray | memoryview,
    ) -> Iterator[tuple[int, int]]:
        size = expected.nbytes if isinstance(expected, memoryview) else len(expected)
        with self._slice(offset, size) as ours:
            for start, length in libc.differing_ranges(ours, expected):
                yield offset + start, length


@dataclass(frozen=True, slots=True)
class Hva:
    """RAM or ROM: its address in QEMU's process, and the name of its region."""

    address: int
    region: str


@dataclass(frozen=True, slots=True)
class NotRam:
    """Mapped, and no RAM: a device."""


@dataclass(frozen=True, slots=True)
class Unmapped:
    """Nothing is mapped there."""


def parse_gpa2hva(text: str) -> Hva | NotRam | Unmapped:
    """The answer of HMP ``gpa2hva``; :class:`ProtocolError` for any other text."""
    line = text.strip()
    found = _HVA.fullmatch(line)
    if found:
        return Hva(int(found[2], 16), found[1])
    if _NOT_RAM.fullmatch(line):
        return NotRam()
    if _UNMAPPED.fullmatch(line):
        return Unmapped()
    raise ProtocolError("not an answer to gpa2hva", channel="HMP", text=line[:200])


def hva_of(monitor: Monitor, address: int) -> Hva | NotRam | Unmapped:
    """Where a guest-physical address (0 to 2**64-1) lies in QEMU's process.

    A translation witness (QEMU's gpa2hva: memory_region_find of one byte in the system
    address space). The HVA holds until the memory map changes.
    """
    if not 0 <= address < 1 << 64:
        raise UsageError(f"{address!r} is not an address")
    return parse_gpa2hva(monitor.hmp(f"gpa2hva {address:#x}"))


def default_ram_ids(monitor: Monitor) -> dict[str, str | None]:
    """The id of every machine's main memory, ``None`` where it takes no backend; by name and
    by alias.

    Asks QMP ``query-machines``, so any running QEMU of the same build and target will do.
    """
    answer = monitor.execute("query-machines")
    if not isinstance(answer, list):
        raise ProtocolError("no list of machines", channel="QMP")
    found: dict[str, str | None] = {}
    for entry in answer:
        if isinstance(entry, dict):
            ram_id = entry.get("default-ram-id")
            for name in (entry.get("alias"), entry.get("name")):
                if isinstance(name, str):
                    found[name] = ram_id if isinstance(ram_id, str) else None
    return found


def default_ram_id(monitor: Monitor, machine: str) -> str | None:
    """The id of a machine's main memory, or ``None`` where it takes no backend.

    Raises :class:`UsageError` for a machine this QEMU does not have.
    """
    known = default_ram_ids(monitor)
    if machine not in known:
        raise UsageError(f"this QEMU has no machine {machine!r}")
    return known[machine]


class ProcMem:
    """Reads and writes another process's memory by its own addresses (HVA).

    A context manager. Every failed access is a :class:`ProtocolError`, because the
    addresses come from QEMU; an open that the host refuses is an
    :class:`EnvironmentFailure` (a parent may look at its child, unless the host's
    ``kernel.yama.ptrace_scope`` is 2 or more).
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        except PermissionError as error:
            raise EnvironmentFailure(f"/proc/{pid}/mem: {error.strerror}") from None
        except OSError as error:
            raise self._failed("open", 0, error) from None

    def __enter__(self) -> ProcMem:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        out = bytearray()
        while len(out) < size:
            try:
                piece = os.pread(self._fd, size - len(out), address + len(out))
            except (OSError, OverflowError) as error:
                raise self._failed("read", address + len(out), error) from None
            if not piece:
                raise self._failed("read", address + len(out), EOFError("the process is gone"))
            out += piece
        return bytes(out)

    def write(self, address: int, data: bytes) -> None:
        """All of ``data``; part of it may be written when this raises."""
        done = 0
        while done < len(data):
            try:
                count = os.pwrite(self._fd, data[done:], address + done)
            except (OSError, OverflowError) as error:
                raise self._failed("write", address + done, error) from None
            if not count:
                raise self._failed("write", address + done, EOFError("the process is gone"))
            done += count

    def _failed(self, verb: str, address: int, error: Exception) -> ProtocolError:
        return ProtocolError(f"cannot {verb} QEMU's memory at {address:#x}: {error}",
                             channel=f"/proc/{self.pid}/mem")
