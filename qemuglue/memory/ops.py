"""The callbacks of a device region.

``MemoryRegionOps`` is what the model calls. ``OpsTable`` makes one from plain functions the way
QEMU's structure of that name is filled in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qemuglue.errors import ModelError
from qemuglue.memory.attrs import ERROR, OK, MemTxAttrs
from qemuglue.memory.contract import Reason

if TYPE_CHECKING:
    from qemuglue.memory.region import MemoryRegion


class MemoryRegionOps(Protocol):
    """What a device does with one piece.

    Offsets are in the region, sizes in bytes, values unsigned in the device's own order. The
    result is a MemTxResult as an integer.
    """

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        """(result, value)."""

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        """The result."""


@dataclass(frozen=True, slots=True)
class OpsTable:
    """Callbacks as functions: plain ones, or ones that see the attributes and can fail.

    Where both are given for a direction the plain one is called, and its result is always OK
    (``memory_region_dispatch_read1`` and ``_write``). A direction with neither raises
    ModelError when it is used: QEMU would call a null pointer.
    """

    #: ``read(offset, size) -> value``
    read_plain: Callable[[int, int], int] | None = None
    #: ``write(offset, value, size)``
    write_plain: Callable[[int, int, int], None] | None = None
    #: ``read_with_attrs(offset, size, attrs) -> (result, value)``
    read_with_attrs: Callable[[int, int, MemTxAttrs], tuple[int, int]] | None = None
    #: ``write_with_attrs(offset, value, size, attrs) -> result``
    write_with_attrs: Callable[[int, int, int, MemTxAttrs], int] | None = None

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        if self.read_plain is not None:
            return OK, self.read_plain(offset, size)
        if self.read_with_attrs is None:
            raise ModelError(f"region {region.name!r} has no read callback")
        return self.read_with_attrs(offset, size, attrs)

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        if self.write_plain is not None:
            self.write_plain(offset, value, size)
            return OK
        if self.write_with_attrs is None:
            raise ModelError(f"region {region.name!r} has no write callback")
        return self.write_with_attrs(offset, value, size, attrs)


class BackingOps:
    """The callbacks of a RAM device: its backing in pieces, in the host's byte order, which is
    little-endian here (``ram_device_mem_ops``). ERROR where the backing has no such bytes."""

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        data = b"" if region.backing is None else region.backing.read(offset, size)
        return OK if len(data) == size else ERROR, int.from_bytes(data, "little")

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        if region.backing is None or offset + size > len(region.backing):
            return ERROR
        region.backing.write(offset, value.to_bytes(size, "little"))
        return OK


class Observer(Protocol):
    """Told of what happens outside the callbacks; QEMU logs the same under ``invalid_mem``."""

    def invalid(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, reason: Reason
    ) -> None:
        """An access was refused before any callback."""
