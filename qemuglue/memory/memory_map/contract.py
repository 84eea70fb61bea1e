"""The one contract that a mapping (by offset) and guest memory (by address) share.

It is ``Bytes`` with the stream forms of the first model. The seed drafted ``Bytes`` for exactly
this purpose: the same methods on both, told apart by the type of the address alone.
"""

from __future__ import annotations

from abc import abstractmethod

from qemuglue.memory.bytes import A, Bytes
from qemuglue.memory.guest_error import PartialBuffer
from qemuglue.memory.streams import reader, retry_eintr


class MapBytes(Bytes[A]):
    """Bytes whose own streams are exact: all of ``count`` or an error that tells how much.

    Sources and destinations are what ``streams`` takes: binary files, sockets, BytesIO, buffers.
    The stream forms of ``Bytes`` are here as well, and take no byte from a source for which there
    is no room.
    """

    __slots__ = ()

    @abstractmethod
    def read_to_memory(self, addr: A, src: object, count: int) -> None:
        """Read exactly ``count`` bytes from ``src`` into memory at ``addr``. Nothing is taken
        from ``src`` unless all of the memory is there."""

    @abstractmethod
    def write_from_memory(self, addr: A, dst: object, count: int) -> None:
        """Write exactly ``count`` bytes of the memory at ``addr`` to ``dst``. Nothing is given
        to ``dst`` unless all of the memory is there."""

    @abstractmethod
    def room_at(self, addr: A) -> int:
        """How many bytes can be moved at once from ``addr`` on, at least 1. Raises what ``write``
        raises where there are none."""

    def read_volatile_from(self, addr: A, src: object, count: int) -> int:
        """As ``Bytes``; only as much is read of ``src`` as there is room for."""
        fits = min(count, self.room_at(addr)) if count else 0
        return super().read_volatile_from(addr, src, fits)

    def read_exact_volatile_from(self, addr: A, src: object, count: int) -> None:
        """As ``Bytes``; only as much is read of ``src`` as there is room for."""
        room = self.room_at(addr) if count else 0
        if count <= room:
            super().read_exact_volatile_from(addr, src, count)
            return
        source = reader(src)
        data = bytearray()
        while len(data) < room:
            wanted = room - len(data)
            part = retry_eintr(lambda wanted=wanted: source.read_volatile(wanted))  # type: ignore[misc]
            if not part:
                break
            data += part
        raise PartialBuffer(count, self.write(data, addr))
