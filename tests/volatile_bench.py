"""Backings that tests of slices look behind: one that keeps a record, one that refuses."""

from __future__ import annotations

from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.bitmap import BitmapSlice
from qemuglue.memory.guest_error import InvalidBackendAddress


class Tape:
    """Memory that cannot be pointed at and keeps a record: ``("r", offset, size)`` and
    ``("w", offset, size)``."""

    def __init__(self, data: bytes | int, host_address: int | None = None) -> None:
        self.bytes = bytearray(data)
        self.calls: list[tuple[str, int, int]] = []
        if host_address is not None:
            self.host_address = host_address

    def __len__(self) -> int:
        return len(self.bytes)

    def read(self, offset: int, size: int) -> bytes:
        self.calls.append(("r", offset, size))
        return bytes(self.bytes[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.calls.append(("w", offset, len(data)))
        self.bytes[offset : offset + len(data)] = data


class Refusing(Tape):
    """A tape with a place that refuses every access which touches it."""

    def __init__(self, data: bytes | int, bad: range) -> None:
        super().__init__(data)
        self.bad = bad

    def _check(self, offset: int, size: int) -> None:
        if offset < self.bad.stop and offset + size > self.bad.start:
            raise InvalidBackendAddress

    def read(self, offset: int, size: int) -> bytes:
        self._check(offset, size)
        return super().read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._check(offset, len(data))
        super().write(offset, data)


class Recording(ByteBacking):
    """Memory of this process that keeps a record of calls of its methods."""

    __slots__ = ("calls",)

    def __init__(self, size_or_data: int | bytearray) -> None:
        super().__init__(size_or_data)
        self.calls: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.calls.append(("r", offset, size))
        return super().read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self.calls.append(("w", offset, len(data)))
        super().write(offset, data)


class Marks(BitmapSlice):
    """A bitmap to the byte that also remembers what it was told: (offset, length) in the
    whole, in order."""

    def __init__(self, base: int = 0, told: list[tuple[int, int]] | None = None) -> None:
        self.base = base
        self.told: list[tuple[int, int]] = [] if told is None else told

    def mark_dirty(self, offset: int, length: int) -> None:
        self.told.append((self.base + offset, length))

    def dirty_at(self, offset: int) -> bool:
        return self.base + offset in self.dirty

    def slice_at(self, offset: int) -> Marks:
        return Marks(self.base + offset, self.told)

    @property
    def dirty(self) -> set[int]:
        return {at for offset, length in self.told for at in range(offset, offset + length)}
