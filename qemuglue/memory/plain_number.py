"""Plain numbers, where an address or an offset belongs."""

from __future__ import annotations

from operator import index

from qemuglue.errors import ModelError
from qemuglue.memory.byte_valued import ByteValuedType


def plain_number(value: object, wanted: str) -> int:
    """``value`` if it is an integer. Raises ModelError that begins with ``wanted`` for anything
    else: also for a typed integer (``Le32(4)``), which is more likely in the place of the address
    than meant as one."""
    if not isinstance(value, int) or isinstance(value, ByteValuedType):
        raise ModelError(f"{wanted}, got {value!r}")
    return index(value)
