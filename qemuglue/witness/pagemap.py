"""Which pages of a process are there: ``/proc/PID/pagemap``.

A page of private anonymous memory that is neither present nor swapped out was never written,
or was given back: it is zeros. So a board's gigabyte of RAM is compared by looking at the few
pages in it. Nothing is said of memory with a file behind it, where an absent page is whatever
the file has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qemuglue.errors import ProtocolError

PAGE = 4096

#: An entry is eight bytes in this host's order (x86-64 and every Linux of today but s390x are
#: little-endian); bits 63 and 62 of it, present and swapped, are in its last byte.
_ENTRY = 8
_THERE = bytes(1 if value & 0xC0 else 0 for value in range(256))

#: Pages asked for at a time: 8 MiB of entries.
_PAGES = 1 << 20


@dataclass(frozen=True, slots=True)
class PageMap:
    """The pages of ``size`` bytes from ``host`` on in process ``pid``."""

    pid: int
    host: int
    size: int

    @classmethod
    def of(cls, pid: int, host: int, size: int) -> PageMap | None:
        """None where the memory is not all private and anonymous, or the kernel does not say."""
        if host % PAGE or not _is_private(pid, host, size):
            return None
        made = cls(pid, host, size)
        try:
            list(made.present())
        except ProtocolError:
            return None
        return made

    def present(self) -> Iterator[tuple[int, int]]:
        """(offset, size) of the runs of pages that are there, in order, inside ``size``.

        :raise ProtocolError: the process is gone, or the kernel does not tell.
        """
        found = self._flags()
        at = found.find(1)
        while at >= 0:
            stop = found.find(0, at)
            stop = len(found) if stop < 0 else stop
            yield at * PAGE, min(stop * PAGE, self.size) - at * PAGE
            at = found.find(1, stop)

    def _flags(self) -> bytearray:
        """A byte a page: 1 where it is there."""
        pages = (self.size + PAGE - 1) // PAGE
        found = bytearray()
        try:
            with Path(f"/proc/{self.pid}/pagemap").open("rb", buffering=0) as file:
                for first in range(0, pages, _PAGES):
                    want = min(_PAGES, pages - first) * _ENTRY
                    raw = os.pread(file.fileno(), want, (self.host // PAGE + first) * _ENTRY)
                    if len(raw) != want:
                        raise OSError("it ends early")
                    found += raw[_ENTRY - 1 :: _ENTRY].translate(_THERE)
        except OSError as error:
            path = f"/proc/{self.pid}/pagemap"
            raise ProtocolError(error.strerror or str(error), channel=path) from None
        return found


def _is_private(pid: int, host: int, size: int) -> bool:
    """Whether every byte is in a private mapping without a file."""
    at = host
    try:
        with Path(f"/proc/{pid}/maps").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                where, access, _, _, inode, *_name = line.split()
                start, stop = (int(number, 16) for number in where.split("-"))
                if start <= at < stop:
                    if inode != "0" or access[3] != "p":
                        return False
                    at = stop
                    if at >= host + size:
                        return True
    except (OSError, ValueError):
        pass
    return False
