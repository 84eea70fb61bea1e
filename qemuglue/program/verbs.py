"""The verbs of a program and the limits every program keeps.

One table, :data:`VERBS`, says what each verb moves and where. Everything else in this room
(validation, both codecs, the generator, the minimiser) reads the table, so a new verb family
(the guest-CPU ``ldb`` .. ``stq``, say) is a new row here plus a slot in a codec.

Host-path verbs carry qtest's names and meaning (``qtest_process_command`` in QEMU's
``system/qtest.c``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

#: The names by which programs and layouts know the two spaces that qtest reaches.
MEMORY: Final = "memory"
IO: Final = "io"

#: Addresses and region offsets are 64 bits wide (``hwaddr``); arithmetic on them wraps.
ADDRESS_MASK: Final = (1 << 64) - 1
#: qtest asserts on a port above this; the I/O space root is 64 KiB.
PORT_MAX: Final = 0xFFFF
#: Longest byte string an operation moves. QEMU's qtest parses ``write`` in quadratic time, and
#: one page already crosses every kind of boundary.
MAX_LENGTH: Final = 4096
#: Longest program. A batch is tens to thousands of operations; more is a corrupted file.
MAX_OPERATIONS: Final = 100_000
#: Longest region or space name, in characters. QEMU's own stay below 100.
MAX_NAME: Final = 1024
#: Highest ``#k``: more same-named regions than this in one view is garbage.
MAX_INDEX: Final = 0xFFFF
#: Most words on a QEMU command line; the largest seen (q35, 837 devices) has under 2000.
MAX_ARGS: Final = 8192
#: How a machine may run while a program acts on it (``-S``, or a vCPU in a halt loop).
MODES: Final = ("stopped", "parked")
#: What may be done to a machine before a program's places are resolved: nothing, or PCI devices
#: mapped as firmware would (no firmware runs under ``-S``), or that and each of them allowed to
#: do DMA of its own.
SETUPS: Final = ("", "pci", "dma")


class Kind(Enum):
    """The shape of a verb: which words follow it and which fields it uses."""

    SIZED = "one access of 1, 2, 4 or 8 bytes to memory, in target byte order"
    BYTES = "a byte string read from or written to memory"
    FILL = "one byte value repeated over a stretch of memory"
    PORT = "one access of 1, 2 or 4 bytes to an I/O port"
    EVENT = "something that happens to the whole machine"


@dataclass(frozen=True, slots=True)
class VerbInfo:
    """What a verb does. ``size`` is the bytes moved, None where each operation has its own."""

    name: str
    kind: Kind
    size: int | None
    is_write: bool
    #: Space it acts on: ``MEMORY`` or ``IO``; None for events.
    space: str | None


def _table() -> dict[str, VerbInfo]:
    rows: list[VerbInfo] = []
    for letter, size in (("b", 1), ("w", 2), ("l", 4), ("q", 8)):
        rows.append(VerbInfo(f"read{letter}", Kind.SIZED, size, False, MEMORY))
        rows.append(VerbInfo(f"write{letter}", Kind.SIZED, size, True, MEMORY))
    rows.append(VerbInfo("read", Kind.BYTES, None, False, MEMORY))
    rows.append(VerbInfo("write", Kind.BYTES, None, True, MEMORY))
    rows.append(VerbInfo("memset", Kind.FILL, None, True, MEMORY))
    for letter, size in (("b", 1), ("w", 2), ("l", 4)):
        rows.append(VerbInfo(f"in{letter}", Kind.PORT, size, False, IO))
        rows.append(VerbInfo(f"out{letter}", Kind.PORT, size, True, IO))
    rows.append(VerbInfo("reset", Kind.EVENT, 0, False, None))
    return {row.name: row for row in rows}


#: Every verb, in the order in which the formats list them.
VERBS: Final[dict[str, VerbInfo]] = _table()
