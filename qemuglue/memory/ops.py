"""The callbacks of a device region, as QEMU's ``MemoryRegionOps`` has them with attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

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
