"""Packets as QEMU holds them: lists of pieces of memory, guest RAM among them.

A device that maps a packet's buffers reads them when it needs them and, where it fills in
checksums, writes into them: so what is mapped stays where it is, and only what QEMU copies is
copied here. Sources: ``iov_to_buf``, ``iov_from_buf`` (``util/iov.c``), ``net/checksum.c``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from qemuglue.errors import ModelError
from qemuglue.memory.region import MemoryRegion

MASK32 = 0xFFFFFFFF


class Memory(Protocol):
    """Bytes that a piece lies in."""

    def read(self, offset: int, size: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...


class Private:
    """Memory of QEMU's own: header copies, bounce buffers."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytearray(data)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data


class Mapped:
    """A region's memory itself, ROM included: QEMU has a pointer to it and no second thoughts."""

    __slots__ = ("region",)

    def __init__(self, region: MemoryRegion) -> None:
        self.region = region

    def read(self, offset: int, size: int) -> bytes:
        backing = self.region.backing
        if backing is None:
            raise ModelError(f"the bytes of {self.region.name!r} are not known")
        return backing.read(offset, size)

    def write(self, offset: int, data: bytes) -> None:
        backing = self.region.backing
        if backing is None:
            raise ModelError(f"the bytes of {self.region.name!r} are not known")
        backing.write(offset, data)


@dataclass(frozen=True, slots=True)
class Piece:
    """``size`` bytes of ``memory`` from ``offset``; one ``struct iovec``. May be empty."""

    memory: Memory
    offset: int
    size: int

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        return self.memory.read(self.offset + start, self.size - start if size is None else size)

    def cut(self, start: int, size: int) -> Piece:
        return Piece(self.memory, self.offset + start, size)


def private(data: bytes | bytearray) -> Piece:
    return Piece(Private(data), 0, len(data))


class Vector:
    """Pieces in order; offsets count through all of them."""

    __slots__ = ("pieces", "size")

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self.pieces = list(pieces)
        self.size = sum(piece.size for piece in self.pieces)

    def _over(self, offset: int, size: int) -> Iterator[Piece]:
        """What lies from ``offset`` on, at most ``size`` bytes."""
        for piece in self.pieces:
            if size <= 0:
                return
            if offset >= piece.size:
                offset -= piece.size
                continue
            n = min(size, piece.size - offset)
            yield piece.cut(offset, n)
            offset, size = 0, size - n

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``: fewer where the vector ends."""
        return b"".join(piece.read() for piece in self._over(offset, size))

    def write(self, offset: int, data: bytes) -> None:
        """As much of ``data`` as fits before the end. Raises ModelError for an offset behind it,
        where QEMU ends with an assertion (``iov_from_buf_full``)."""
        if offset > self.size:
            raise ModelError("QEMU asserts that a checksum's place is inside the packet")
        done = 0
        for piece in self._over(offset, len(data)):
            piece.memory.write(piece.offset, data[done : done + piece.size])
            done += piece.size

    def cut(self, offset: int, size: int) -> Vector:
        """The same memory, ``size`` bytes from ``offset``, without empty pieces
        (``iov_copy``)."""
        return Vector(self._over(offset, size))


def checksum_sum(data: bytes | bytearray) -> int:
    """The sum of big-endian 16-bit words, not folded (``net_checksum_add``)."""
    return (sum(data[0::2]) * 256 + sum(data[1::2])) & MASK32


def checksum_finish(total: int) -> int:
    """Folded to 16 bits and inverted (``net_checksum_finish``)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def checksum_of(data: bytes | bytearray) -> int:
    """The checksum of a header (``net_raw_checksum``)."""
    return checksum_finish(checksum_sum(data))


def pseudo_sum(header: bytes | bytearray, length: int, protocol: int | None) -> int:
    """The sum of the pseudo header: of an IPv4 header (``protocol`` None: its own), or of an
    IPv6 header (``eth_calc_ip4_pseudo_hdr_csum``, ``eth_calc_ip6_pseudo_hdr_csum``). ``length``
    is taken modulo 2^16."""
    length &= 0xFFFF
    if protocol is None:
        return checksum_sum(header[12:20]) + header[9] + length
    return checksum_sum(header[8:40]) + length + protocol


def toeplitz(key: bytes, data: bytes) -> int:
    """The hash of receive side scaling: 32 bits (``net_toeplitz_add``)."""
    bits = int.from_bytes(key, "big")
    width = len(key) * 8
    result = 0
    for number, byte in enumerate(data):
        for bit in range(8):
            if byte & 0x80 >> bit:
                result ^= bits >> (width - 32 - number * 8 - bit) & MASK32
    return result
