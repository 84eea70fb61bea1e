"""The accesses that a slice makes: how bytes move between a backing and a buffer.

One access is one access. On memory that can be pointed at, 1, 2, 4 or 8 bytes are one load or
store of that width; on any other backing an access is exactly one call of its ``read`` or
``write``, whatever it makes of it.
"""

from __future__ import annotations

import sys

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import FORMATS
from qemuglue.memory.backing import Backing, ViewBacking
from qemuglue.memory.guest_error import HostAddressNotAvailable

#: What the crate copies in one piece at most where it copies in aligned units: a ``usize``.
MAX_UNIT = 8
#: What a backing that has no address of its own is taken to be aligned to: a page.
PAGE = 0x1000


def base_of(backing: Backing) -> int:
    """Where a backing's first byte is in the address space of the process that it belongs to:
    its ``host_address``. A backing that does not say is taken to begin at 0, aligned to a page."""
    base = getattr(backing, "host_address", 0)
    return base if isinstance(base, int) else 0


def alignment(addr: int) -> int:
    """The largest power of two that ``addr`` is a multiple of; a page for address 0."""
    return addr & -addr or PAGE


def units(align: int, total: int) -> list[int]:
    """The sizes in which ``total`` bytes, 8 at most, are copied one after the other between two
    places of which the less aligned one is aligned to ``align``."""
    sizes = []
    left = total
    for unit in (8, 4, 2, 1):
        while unit <= align and unit <= left:
            sizes.append(unit)
            left -= unit
    return sizes


def host_view(backing: Backing, at: int, size: int) -> memoryview:
    """The bytes themselves. Raises HostAddressNotAvailable where they cannot be pointed at."""
    data = getattr(backing, "data", None)
    if data is None:
        raise HostAddressNotAvailable
    return memoryview(data)[at : at + size]


def load_one(backing: Backing, at: int, size: int) -> bytes:
    """``size`` bytes at ``at``, in one access."""
    code = FORMATS.get(size)
    data = getattr(backing, "data", None)
    if code is None or data is None:
        raw = backing.read(at, size)
        if len(raw) != size:
            raise ModelError(f"the backing gave {len(raw)} bytes of {size} at {at:#x}")
        return raw
    # An item of a cast memoryview is copied with a memcpy of constant size, which is one load
    # or store of that width. Slicing bytes, and struct's "<" and ">", may go byte by byte.
    number: int = memoryview(data)[at : at + size].cast(code)[0]
    return number.to_bytes(size, sys.byteorder)


def store_one(backing: Backing, at: int, raw: bytes) -> None:
    """``raw`` at ``at``, in one access."""
    code = FORMATS.get(len(raw))
    data = getattr(backing, "data", None)
    if code is None or data is None:
        backing.write(at, raw)
        return
    memoryview(data)[at : at + len(raw)].cast(code)[0] = int.from_bytes(raw, sys.byteorder)


class PlacedView(ViewBacking):
    """A view that begins ``host_address`` bytes into the object that owns its memory: what is
    aligned in the whole is aligned in the part."""

    __slots__ = ("host_address",)

    def __init__(self, view: memoryview, host_address: int) -> None:
        super().__init__(view)
        self.host_address = host_address
