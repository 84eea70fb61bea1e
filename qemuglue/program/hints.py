"""What a mutator may be told by whoever watches the machine: registers and values worth trying."""

from __future__ import annotations

from random import Random
from typing import Protocol

from qemuglue.program.operation import Place


class Hints(Protocol):
    """Answers depend on what was seen so far; each may be None as long as nothing was."""

    def register(self, rng: Random) -> tuple[str, Place, int] | None:
        """(space, place, size in bytes) of a device register that showed something new."""

    def value(self, rng: Random, space: str, place: Place) -> int | None:
        """A value that this register, or another, has returned."""
