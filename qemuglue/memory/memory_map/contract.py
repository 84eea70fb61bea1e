"""The one contract that a mapping (by offset) and guest memory (by address) share.

It is ``Bytes`` with the stream forms of the first model. The seed drafted ``Bytes`` for exactly
this purpose: the same methods on both, told apart by the type of the address alone.
"""

from __future__ import annotations

from abc import abstractmethod

from qemuglue.memory.bytes import A, Bytes


class MapBytes(Bytes[A]):
    """Bytes whose streams are exact: all of ``count`` or an error that tells how much.

    Sources and destinations are what ``streams`` takes: binary files, sockets, BytesIO, buffers.
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
