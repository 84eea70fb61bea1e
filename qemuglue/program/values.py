"""Values and data bytes, deterministic: telling numbers, pointers into RAM, byte streams."""

from __future__ import annotations

from hashlib import shake_128

#: Numbers that tell things apart: no bit, every bit, the sign bit of each width, one bit over,
#: and a byte ladder that shows order, size and position at a glance. Cut to the access's size.
SPECIAL = (
    0, 0xFFFF_FFFF_FFFF_FFFF, 1, 0x80, 0x7F, 0x8000, 0x7FFF, 0x8000_0000, 0x7FFF_FFFF,
    0x8000_0000_0000_0000, 0x7FFF_FFFF_FFFF_FFFF, 0x100, 0x1_0000, 0x1_0000_0000,
    0x0102_0304_0506_0708, 0x5555_5555_5555_5555,
)


def pointer(targets: tuple[tuple[int, int], ...], x: int) -> int:
    """An address in one of ``targets`` (start, size): low 8 bits of x: which; the rest: where."""
    start, size = targets[(x & 0xFF) % len(targets)]
    return start + (x >> 8) % size


def repeated(seed: int, length: int) -> bytes:
    """The 8 bytes of ``seed``, lowest first, over and over."""
    return (seed.to_bytes(8, "little") * (length // 8 + 1))[:length]


def stream(seed: int, length: int) -> bytes:
    """The 8 bytes of ``seed``, lowest first, then bytes that look random and depend on them."""
    first = seed.to_bytes(8, "little")
    return first[:length] if length <= 8 else first + shake_128(first).digest(length - 8)
