"""PtrGuard: the bytes of a slice themselves, for as long as somebody holds them.

The crate's guards give a raw pointer and keep what is mapped from going away; these give a
memoryview and are context managers, which also keeps the memory from being resized or unmapped.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self


class PtrGuard:
    """Bytes that can be looked at. Using it after its end raises ValueError."""

    __slots__ = ("_view",)

    def __init__(self, view: memoryview) -> None:
        self._view = self._of(view)

    @staticmethod
    def _of(view: memoryview) -> memoryview:
        return view.toreadonly()

    def as_ptr(self) -> memoryview:
        """The bytes, read-only."""
        return self._view

    def len(self) -> int:
        """How many there are."""
        return self._view.nbytes

    def __len__(self) -> int:
        return self._view.nbytes

    def release(self) -> None:
        """Let go of them; idempotent."""
        self._view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class PtrGuardMut(PtrGuard):
    """Bytes that can be changed. No bitmap is told of that: whoever changes them says so."""

    __slots__ = ()

    @staticmethod
    def _of(view: memoryview) -> memoryview:
        return view

    def as_ptr(self) -> memoryview:
        """The bytes, writable."""
        return self._view
