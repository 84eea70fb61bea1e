"""Bytes as a source of random numbers, and inputs made of others.

A law of the model draws all it needs from a ``random.Random``. Given one that reads an input, the
input decides every choice, so that an engine can steer it by changing bytes.
"""

from __future__ import annotations

from random import Random

#: An input is at most so long; what a law draws beyond its end is zero.
MAX_SIZE = 2048


class ByteRandom(Random):
    """Draws from ``data``, first byte first; zeros behind its end, so that every law ends."""

    def __new__(cls, data: bytes) -> ByteRandom:
        return super().__new__(cls)

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._at = 0

    def _take(self, n: int) -> int:
        part = self._data[self._at : self._at + n]
        self._at += n
        return int.from_bytes(part.ljust(n, b"\0"), "big")

    def random(self) -> float:
        """0 (inclusive) to 1, from two bytes."""
        return self._take(2) / 65536

    def getrandbits(self, k: int) -> int:
        """``k`` bits from as few bytes as hold them."""
        n = (k + 7) // 8
        return self._take(n) & ((1 << k) - 1) if k else 0


def damaged(data: bytes, rng: Random) -> bytes:
    """Another input for the same law: bytes changed, inserted, removed, doubled, drawn anew."""
    head, body = data[:1], bytearray(data[1:])
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(body) + 1)
        size = rng.choice((1, 1, 2, 4, 16))
        what = rng.randrange(6)
        if what == 0:
            body[at:at + size] = rng.randbytes(size)
        elif what == 1 and at < len(body):
            body[at] = (body[at] + rng.choice((-1, 1, 128, 64))) & 0xFF
        elif what == 2:
            body[at:at] = rng.randbytes(size)
        elif what == 3:
            del body[at:at + size]
        elif what == 4:
            body[at:at] = body[at:at + 4 * size]
        else:
            body[at:] = rng.randbytes(rng.randint(16, 384))
    return head + bytes(body[:MAX_SIZE])
