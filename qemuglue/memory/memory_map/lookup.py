"""Lookup: which range an address lies in.

The seed of rust-vmm's memory model (Paolo Bonzini, rust-vmm 2019-02-11) asks that linear search,
binary search and a radix tree can stand in for each other without anybody noticing. They are
``linear``, ``bisected`` and ``radix`` here; another one needs only this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qemuglue.memory.guest_address import ADDRESS_END


@dataclass(frozen=True, slots=True)
class Span:
    """``size`` bytes from ``start`` on: at least one, and none beyond 2^64-1."""

    start: int
    size: int

    def __post_init__(self) -> None:
        assert self.start >= 0 and 1 <= self.size <= ADDRESS_END - self.start, self

    @property
    def last(self) -> int:
        """The last address (inclusive)."""
        return self.start + self.size - 1


class Lookup(Protocol):
    """Asked often, about spans that never change."""

    def find(self, addr: int) -> int | None:
        """The index of the span that holds ``addr`` (0 to 2^64-1); None in a hole."""


#: Makes a lookup of spans that are sorted and disjoint; each class of lookups is one.
LookupMaker = Callable[[Sequence[Span]], Lookup]
