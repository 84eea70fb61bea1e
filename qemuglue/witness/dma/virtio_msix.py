"""The table of messages of a PCI function (MSI-X), as its driver fills it.

Whether messages are on at all is a bit of configuration space. Source: QEMU ``hw/pci/msix.c``.
"""

from __future__ import annotations

_ENTRY = 16
#: Bit 0 of an entry's control word: the vector is masked.
_MASKED = 1


class MsixTable:
    """``vectors`` entries of 16 bytes: address, data, control. Masked until the driver says."""

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        self.enabled = False
        self.masked = False
        self.reset()

    def reset(self) -> None:
        entry = bytes(12) + _MASKED.to_bytes(4, "little")
        self._bytes = bytearray(entry * self.vectors)
        self._pending: set[int] = set()
        self.enabled = self.masked = False

    def write(self, offset: int, size: int, value: int) -> list[int]:
        """A write of the driver; the vectors whose message is sent by that, because it was
        waiting for it (``msix_handle_mask_update``)."""
        if offset + size > len(self._bytes):
            return []
        self._bytes[offset : offset + size] = value.to_bytes(size, "little")
        return self._due()

    def configure(self, enabled: bool, masked: bool) -> list[int]:
        """The control word of configuration space; what is sent by that."""
        self.enabled, self.masked = enabled, masked
        return self._due()

    def raised(self, vector: int) -> bool:
        """``msix_notify``: whether the message is sent at once; else it waits for its mask."""
        if not self.enabled or vector >= self.vectors:
            return False
        if self._is_masked(vector):
            self._pending.add(vector)
            return False
        return True

    def message(self, vector: int) -> tuple[int, int]:
        """(address, data)."""
        at = vector * _ENTRY
        return (
            int.from_bytes(self._bytes[at : at + 8], "little"),
            int.from_bytes(self._bytes[at + 8 : at + 12], "little"),
        )

    def _is_masked(self, vector: int) -> bool:
        return self.masked or bool(self._bytes[vector * _ENTRY + 12] & _MASKED)

    def _due(self) -> list[int]:
        due = [
            vector for vector in sorted(self._pending)
            if self.enabled and not self._is_masked(vector)
        ]
        self._pending.difference_update(due)
        return due
