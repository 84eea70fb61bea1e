"""Volatile memory: windows onto memory that somebody else uses too, and typed places in it.

vm-memory's face for that (``src/volatile_memory.rs``, 0.18) over any ``memory.backing.Backing``. It
knows nothing of addresses in a guest: ``guest_memory`` finds the slice, this moves the bytes.

================  ==============================================================================
``error``         VolatileMemoryError and its leaves; ``guest_error_of``; ``compute_offset``
``memory``        VolatileMemory: whatever gives slices by offset
``slice``         VolatileSlice: a window, as VolatileMemory and as ``Bytes[int]``
``ref``           VolatileRef: one value in memory
``array_ref``     VolatileArrayRef: values in a row
``guard``         PtrGuard, PtrGuardMut: the bytes themselves
``window``        how bytes move: one access is one access
================  ==============================================================================
"""

from qemuglue.memory.volatile.array_ref import VolatileArrayRef
from qemuglue.memory.volatile.error import (
    Misaligned,
    OutOfBounds,
    Overflow,
    TooBig,
    VolatileIOError,
    VolatileMemoryError,
    VolatilePartialBuffer,
    compute_offset,
    guest_error_of,
)
from qemuglue.memory.volatile.guard import PtrGuard, PtrGuardMut
from qemuglue.memory.volatile.memory import VolatileMemory
from qemuglue.memory.volatile.ref import VolatileRef
from qemuglue.memory.volatile.slice import VolatileSlice

__all__ = [
    "Misaligned",
    "OutOfBounds",
    "Overflow",
    "PtrGuard",
    "PtrGuardMut",
    "TooBig",
    "VolatileArrayRef",
    "VolatileIOError",
    "VolatileMemory",
    "VolatileMemoryError",
    "VolatilePartialBuffer",
    "VolatileRef",
    "VolatileSlice",
    "compute_offset",
    "guest_error_of",
]
