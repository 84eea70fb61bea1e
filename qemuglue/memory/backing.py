"""What a RAM-like region's bytes live in.

The model knows only this protocol; files, shared memory and another process's memory are the
``qemu`` room's.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from qemuglue.errors import ModelError


@runtime_checkable
class Backing(Protocol):
    """A fixed number of bytes, addressed by offset from 0."""

    def __len__(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; shorter only at the end of the backing."""

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset``; it must fit."""


class ByteBacking:
    """A backing over one ``bytearray``. ``bytearray(n)`` is zero pages until written, so a
    large one costs little."""

    __slots__ = ("data",)

    def __init__(self, size_or_data: int | bytearray) -> None:
        self.data = bytearray(size_or_data) if isinstance(size_or_data, int) else size_or_data

    def __len__(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        last = offset + len(data)
        if offset < 0 or last > len(self.data):
            raise ModelError(
                f"{len(data)} bytes at {offset:#x} do not fit a backing of {len(self.data):#x}"
            )
        self.data[offset:last] = data
