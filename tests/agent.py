"""A guest that performs loads and stores from a list in its RAM, and how to talk to it.

The mailbox is at ``MAILBOX`` from the start of main memory. Word 0 is rung by the host (any new
number), word 1 answers with the same number when the list is done. Records follow from
``RECORDS`` on, one a command, ended by op ``END``:

    address, value (stored, or loaded), op, fault syndrome (0: none), fault address, 3 spare
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from qemuglue.memory.address_space import ByteOrder
from qemuglue.qemu.process import QemuProcess

MAILBOX = 0x20_0000
RECORDS = 0x1000
RECORD = struct.Struct("<8Q")
#: Records in one list; the mailbox ends before MAILBOX + 1 MiB.
MOST = 8000
MAILBOX_LAST = MAILBOX + 0xF_FFFF
END = 16
SIZES = (1, 2, 4, 8)

#: A list of thousands is done in milliseconds; a loaded machine may need long.
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Access:
    """One command. ``value`` None is a load. ``big`` is the byte order (x86 only: MOVBE)."""

    addr: int
    size: int
    value: int | None = None
    big: bool = False

    @property
    def op(self) -> int:
        return SIZES.index(self.size) + 4 * (self.value is not None) + 8 * self.big

    @property
    def order(self) -> ByteOrder:
        return "big" if self.big else "little"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the guest saw: ``value`` of a load; ``syndrome`` and ``fault_addr`` of a fault."""

    value: int
    syndrome: int
    fault_addr: int


class Agent:
    """The host's side, over shared RAM. The VM runs only inside ``perform``."""

    def __init__(self, process: QemuProcess) -> None:
        assert process.ram is not None, "the agent needs shared RAM"
        self.process = process
        self.view = process.ram.view
        self.number = 0

    def perform(self, accesses: Sequence[Access]) -> list[Answer]:
        """Have the guest do all, in order, and stop the VM again."""
        assert len(accesses) <= MOST
        at = MAILBOX + RECORDS
        for access in accesses:
            RECORD.pack_into(self.view, at, access.addr, access.value or 0, access.op,
                             0, 0, 0, 0, 0)
            at += RECORD.size
        RECORD.pack_into(self.view, at, 0, 0, END, 0, 0, 0, 0, 0)
        self.number += 1
        struct.pack_into("<Q", self.view, MAILBOX, self.number)
        self.process.monitor.execute("cont")
        self._wait(len(accesses))
        self.process.monitor.execute("stop")
        answers = []
        for index in range(len(accesses)):
            _, value, _, syndrome, fault_addr, *_ = RECORD.unpack_from(
                self.view, MAILBOX + RECORDS + index * RECORD.size)
            answers.append(Answer(value, syndrome, fault_addr))
        return answers

    def _wait(self, count: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while struct.unpack_from("<Q", self.view, MAILBOX + 8)[0] != self.number:
            assert time.monotonic() < deadline, f"the guest is not done with {count} accesses"
            time.sleep(0.001)
