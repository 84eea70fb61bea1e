"""What a witness of a whole state came to: values, which a check prints, counts and confirms.

The witnesses of one access (reply, transcript, RAM) stop at the first suspicion; those of a
state (``xp``, ``translation``, ``elf_dump``) look at many places of one map and list what
differs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: Differences one witness lists; more of them say nothing new.
MAX_DIFFERENCES = 64


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where model and witness part. ``place`` is for people and names the address;
    the same place has the same text in another QEMU with the same map."""

    witness: str
    place: str
    model: str
    qemu: str

    def __str__(self) -> str:
        return f"{self.witness} at {self.place}: the model says {self.model}, QEMU {self.qemu}"


@dataclass(slots=True)
class Account:
    """``compared`` counts places (for a dump, bytes); ``unjudged`` reasons with how often.
    ``unsupported`` is QEMU's own reason where it has no such witness here, else ""."""

    witness: str
    compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    unjudged: Counter[str] = field(default_factory=Counter)
    unsupported: str = ""

    @property
    def full(self) -> bool:
        """Whether enough differences are listed to stop looking."""
        return len(self.differences) >= MAX_DIFFERENCES

    def differs(self, place: str, model: str, qemu: str) -> None:
        """List a difference, up to MAX_DIFFERENCES of them."""
        if not self.full:
            self.differences.append(Difference(self.witness, place, model, qemu))
