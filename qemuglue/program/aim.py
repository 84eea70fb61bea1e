"""Aiming: from a range, a way to aim and a number to the place an operation acts on.

Shared by the byte codec (the number comes from the input) and the generator (from its random
source), so that both reach the same kinds of places.
"""

from __future__ import annotations

from enum import IntEnum

from qemuglue.program.layout import Layout, Row
from qemuglue.program.operation import Place
from qemuglue.program.verbs import ADDRESS_MASK, IO, PORT_MAX

#: "Near" an edge, in bytes: a few registers, more than the longest sized access.
NEAR = 64
#: Where devices keep most of their registers.
REGISTERS = 4096


class Aim(IntEnum):
    """Which byte of a range the access starts at, from a number x (0..2**64-1)."""

    #: x modulo the size.
    UNIFORM = 0
    #: As UNIFORM, rounded down to the largest power of two that divides the length.
    ALIGNED = 1
    #: One of the first REGISTERS bytes, a multiple of 4.
    REGISTER = 2
    #: One of the first NEAR bytes.
    NEAR_START = 3
    #: One of the last NEAR bytes.
    NEAR_LAST = 4
    #: Starts in the range, ends beyond its last byte (length 1: is the last byte).
    CROSS_LAST = 5
    #: Starts before the range, ends in it (length 1: is the byte before).
    CROSS_START = 6
    #: The address is x itself; the range does not matter.
    ABSOLUTE = 7


#: The aims whose accesses straddle an edge, wherever they are longer than one byte.
CROSSING = (Aim.CROSS_LAST, Aim.CROSS_START)


# Members of an enum are slow to name, and reach() runs once for every operation.
_UNIFORM, _ALIGNED, _REGISTER = int(Aim.UNIFORM), int(Aim.ALIGNED), int(Aim.REGISTER)
_NEAR_START, _NEAR_LAST = int(Aim.NEAR_START), int(Aim.NEAR_LAST)
_CROSS_LAST = int(Aim.CROSS_LAST)


def reach(aim: int, size: int, length: int, x: int) -> int:
    """Bytes from the start of a range of ``size`` bytes to an access of ``length`` bytes.

    ``aim`` is an ``Aim`` other than ABSOLUTE. Negative for CROSS_START.
    """
    if aim == _UNIFORM:
        return x % size
    if aim == _ALIGNED:
        return (x % size) & -(length & -length)
    if aim == _REGISTER:
        return x % (size if size < REGISTERS else REGISTERS) & ~3
    if aim == _NEAR_START:
        return x % (size if size < NEAR else NEAR)
    if aim == _NEAR_LAST:
        return size - 1 - x % (size if size < NEAR else NEAR)
    over = 1 + x % (length - 1) if length > 1 else 1
    return size - over if aim == _CROSS_LAST else -over


def place_at(layout: Layout, row: Row, delta: int, space: str) -> tuple[Place, int]:
    """The place ``delta`` bytes from the start of ``row``, and its address in ``space``.

    The address wraps at the end of the space; the place resolves to it.
    """
    start, size, region, nth, offset, whole, _ = row
    if 0 <= delta < size:
        if whole:
            return Place(region, nth, offset + delta, None), start + delta
        if region is None:
            return Place(None, 0, start + delta, None), start + delta
    address = (start + delta) & (PORT_MAX if space == IO else ADDRESS_MASK)
    return layout.place_of(address, space), address
