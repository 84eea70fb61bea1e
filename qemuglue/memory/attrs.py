"""What travels with an access and what comes back: MemTxAttrs and MemTxResult.

Source: QEMU ``include/exec/memattrs.h``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class MemTxResult(enum.IntFlag):
    """Result bits of a transaction; a loop over pieces ORs them and goes on."""

    OK = 0
    ERROR = 1  #: the device reported a failure
    DECODE_ERROR = 2  #: nothing accepts the access at this address
    ACCESS_ERROR = 4  #: the access is not allowed here (attributes, re-entrancy)


#: The bits as plain integers, for the hot loops: IntFlag arithmetic is 20 times slower.
OK = 0
ERROR = 1
DECODE_ERROR = 2
ACCESS_ERROR = 4


@dataclass(frozen=True, slots=True)
class MemTxAttrs:
    """Attributes of a transaction, every field of QEMU's ``MemTxAttrs``.

    ``memory`` asks that only RAM may be touched; ``debug`` lets a write reach ROM.
    ``address_type`` is PCI's: whether the address is translated already (10.2 and later).
    """

    unspecified: bool = False
    secure: bool = False
    space: int = 0
    user: bool = False
    memory: bool = False
    debug: bool = False
    requester_id: int = 0
    pid: int = 0
    address_type: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.space < 4:
            raise ValueError(f"space is 2 bits wide, got {self.space}")
        if not 0 <= self.requester_id < 1 << 16:
            raise ValueError(f"requester_id is 16 bits wide, got {self.requester_id:#x}")
        if not 0 <= self.pid < 1 << 8:
            raise ValueError(f"pid is 8 bits wide, got {self.pid:#x}")
        if not 0 <= self.address_type < 2:
            raise ValueError(f"address_type is 1 bit wide, got {self.address_type}")


#: ``MEMTXATTRS_UNSPECIFIED``: what qtest, ``xp`` and most DMA use.
UNSPECIFIED = MemTxAttrs(unspecified=True)
