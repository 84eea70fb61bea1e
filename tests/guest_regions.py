"""Regions and backings that do less than others: for tests of guest memory."""

from __future__ import annotations

from qemuglue.memory.bitmap import NO_BITMAP, Bitmap
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidBackendAddress
from qemuglue.memory.guest_memory import GuestMemoryRegionBytes

TOP = 1 << 64


class Bare(GuestMemoryRegionBytes):
    """A region without memory: what has to be written, and no more."""

    def __init__(self, start: int, size: int) -> None:
        self.start = start
        self.size = size

    def len(self) -> int:
        return self.size

    def start_addr(self) -> GuestAddress:
        return GuestAddress(self.start)

    def bitmap(self) -> Bitmap:
        return NO_BITMAP


class Remote:
    """A backing whose bytes cannot be pointed at, and which may refuse some."""

    def __init__(self, size: int, refused: int = TOP) -> None:
        self.bytes = bytearray(size)
        self.refused = refused

    def __len__(self) -> int:
        return len(self.bytes)

    def read(self, offset: int, size: int) -> bytes:
        if offset + size > self.refused:
            raise InvalidBackendAddress
        return bytes(self.bytes[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        if offset + len(data) > self.refused:
            raise InvalidBackendAddress
        self.bytes[offset : offset + len(data)] = data
