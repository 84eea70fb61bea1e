"""The callbacks of a device region, as QEMU's ``MemoryRegionOps`` has them with attributes."""

from __future__ import annotations

from typing import Protocol

from qemuglue.memory.attrs import MemTxAttrs
from qemuglue.memory.contract import Reason
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


class Observer(Protocol):
    """Told of what happens outside the callbacks; QEMU logs the same under ``invalid_mem``."""

    def invalid(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, reason: Reason
    ) -> None:
        """An access was refused before any callback."""
