"""The access contract of a device region: which sizes, alignments and byte order it declares.

It is the declarative half of QEMU's ``MemoryRegionOps``: ``valid`` says what a caller may ask,
``impl`` says what the device's callbacks can do, ``endianness`` how their values are laid out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qemuglue.memory.attrs import MemTxAttrs

#: ``accepts(offset, size, is_write)``: the device's own veto (``valid.accepts``).
Accepts = Callable[[int, int, bool], bool]
#: The same for a device that looks at who asks: ``accepts(offset, size, is_write, attrs)``.
AcceptsAttrs = Callable[[int, int, bool, "MemTxAttrs"], bool]


class Endian(enum.Enum):
    """``enum device_endian``; NATIVE means the target's own order."""

    NATIVE = "native"
    LITTLE = "little"
    BIG = "big"


class Reason(enum.Enum):
    """Why an access is refused, in the words of QEMU's log (``memory_region_access_valid``)."""

    REJECTED = "rejected"
    UNALIGNED = "unaligned"
    INVALID_SIZE = "invalid size"


@dataclass(frozen=True, slots=True)
class Contract:
    """Sizes are bytes. 0 in ``valid_max`` means any size; 0 in the others means the default:
    ``valid_min`` 1, ``impl_min`` 1, ``impl_max`` 4. Where both vetoes are given, both must agree.
    """

    valid_min: int = 0
    valid_max: int = 0
    valid_unaligned: bool = False
    impl_min: int = 0
    impl_max: int = 0
    impl_unaligned: bool = False
    endian: Endian = Endian.NATIVE
    accepts: Accepts | None = None
    accepts_attrs: AcceptsAttrs | None = None

    def __post_init__(self) -> None:
        for name in ("valid_min", "valid_max", "impl_min", "impl_max"):
            size = getattr(self, name)
            if size < 0 or size & (size - 1) or size > 64:
                raise ValueError(f"{name} must be 0 or a power of two up to 64, got {size}")

    def big(self, target_big: bool) -> bool:
        """Whether the device counts as big-endian on a target of that byte order."""
        if self.endian is Endian.NATIVE:
            return target_big
        return self.endian is Endian.BIG


def _never(offset: int, size: int, is_write: bool) -> bool:
    return False


#: ``unassigned_mem_ops``: also the ops of RAM and ROM, which is why a write to ROM is "rejected".
UNASSIGNED_CONTRACT = Contract(accepts=_never)
