"""Memory outside this process, or shared with another, as what a model's RAM lives in."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from qemuglue.errors import EnvironmentFailure, UsageError
from qemuglue.memory.backing import ViewBacking
from qemuglue.qemu.guest_ram import ProcMem, SharedRam


class MappedBacking(ViewBacking):
    """``size`` bytes of a file from ``offset`` on, mapped shared: what another process writes
    there is seen here at once, and the other way round. A context manager."""

    __slots__ = ("_map",)

    def __init__(self, path: str | os.PathLike[str], size: int, offset: int = 0) -> None:
        if size <= 0 or offset < 0 or offset % mmap.ALLOCATIONGRANULARITY:
            raise UsageError(
                f"{os.fspath(path)}: a mapping needs at least one byte, from an offset that is a "
                f"multiple of {mmap.ALLOCATIONGRANULARITY}"
            )
        try:
            with Path(path).open("r+b") as file:
                self._map = mmap.mmap(file.fileno(), size, offset=offset)
        except (OSError, ValueError) as error:
            raise EnvironmentFailure(
                f"{os.fspath(path)}: cannot map {size:#x} bytes at {offset:#x}: {error}"
            ) from None
        super().__init__(memoryview(self._map))

    def close(self) -> None:
        """Unmap. Mappings of it (``AddressSpace.map``) must have been unmapped (BufferError);
        idempotent."""
        self.data.release()
        self._map.close()

    def __enter__(self) -> MappedBacking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SharedBacking(ViewBacking):
    """The main memory that QEMU shares with us."""

    __slots__ = ()

    def __init__(self, ram: SharedRam) -> None:
        super().__init__(ram.view)

    def close(self) -> None:
        """Let go of it, before ``SharedRam.close``; idempotent."""
        self.data.release()


class ProcBacking:
    """``size`` bytes of another process's memory, from its address ``host`` on. Each access is
    a system call; a process that is gone is a ProtocolError."""

    __slots__ = ("_host", "_memory", "_size")

    def __init__(self, memory: ProcMem, host: int, size: int) -> None:
        self._memory = memory
        self._host = host
        self._size = size

    def __len__(self) -> int:
        return self._size

    @property
    def host_address(self) -> int:
        """Where the first byte is in that process."""
        return self._host

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self._size - offset)
        return self._memory.read(self._host + offset, size) if size > 0 else b""

    def write(self, offset: int, data: bytes) -> None:
        if offset < 0 or offset + len(data) > self._size:
            raise UsageError(
                f"{len(data)} bytes at {offset:#x} do not fit a backing of {self._size:#x}"
            )
        self._memory.write(self._host + offset, data)
