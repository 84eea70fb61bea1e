"""Permissions: how memory may be accessed, or is about to be.

The four values and their two questions are those of ``Permissions`` in vm-memory 0.18
(``src/guest_memory.rs``). The same type says what a mapping grants and what an access wants.
"""

from __future__ import annotations

import enum

from qemuglue.errors import ModelError


class Permissions(enum.Enum):
    """Bit 0 is reading, bit 1 is writing.

    ``|`` and ``&`` are union and intersection of two of them. Unlike QEMU's ``IommuAccess`` it
    is no number: it neither adds nor compares with one.
    """

    No = 0b00
    Read = 0b01
    Write = 0b10
    ReadWrite = 0b11

    @classmethod
    def from_repr(cls, raw: int) -> Permissions:
        """The value whose bits are ``raw``, 0 to 3. Raises ModelError otherwise (Rust panics)."""
        if raw not in (0, 1, 2, 3):
            raise ModelError(f"permissions are two bits, 0 to 3, got {raw!r}")
        return cls(raw)

    def allow(self, access: Permissions) -> bool:
        """Whether what ``access`` wants is all granted here. ``No`` wants nothing and is always
        allowed, also by ``No``."""
        return self & access is access

    def has_write(self) -> bool:
        """Whether writing is among them."""
        return self.allow(Permissions.Write)

    def __or__(self, other: Permissions) -> Permissions:
        if not isinstance(other, Permissions):
            return NotImplemented
        return Permissions(self.value | other.value)

    def __and__(self, other: Permissions) -> Permissions:
        if not isinstance(other, Permissions):
            return NotImplemented
        return Permissions(self.value & other.value)
