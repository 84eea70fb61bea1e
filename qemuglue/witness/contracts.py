"""Contracts learnt from a throw-away QEMU, frozen, then binding.

A region is known by its ``key`` (owner path, name, index), so what was learnt in one process
holds in the next. What the probe cannot have seen is learnt on first evidence, once, and the
verdict says so: an offset a device refuses by its own ``accepts``, and the byte order of a
device whose probed registers all read the same backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

from qemuglue.memory.contract import Contract, Endian

#: (offset, size, is_write) -> accepted?
AcceptsFacts = dict[tuple[int, int, bool], bool]


@dataclass(slots=True)
class Learned:
    """What is known of one region's contract. ``contract`` has no ``accepts`` of its own."""

    contract: Contract
    endian_known: bool = False
    accepts: AcceptsFacts = field(default_factory=dict)

    @property
    def has_veto(self) -> bool:
        """Whether the device was ever seen to refuse an access by its own rule."""
        return not all(self.accepts.values())


class Contracts:
    """The contracts of one machine on one build, by region key."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Learned] = {}

    def get(self, key: Hashable) -> Learned | None:
        return self._known.get(key)

    def put(self, key: Hashable, learned: Learned) -> None:
        self._known[key] = learned

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> object:
        return iter(self._known.items())


class Veto:
    """A region's ``accepts``, answering from frozen facts and, where there is none, from the
    next line of evidence: then the fact is frozen and ``on_learnt`` is told."""

    __slots__ = ("_facts", "_learned", "_on_learnt", "_refused_next", "_vetoing")

    def __init__(
        self, learned: Learned, refused_next: Callable[[int, int, bool], bool],
        on_learnt: Callable[[], None],
    ) -> None:
        self._learned = learned
        self._facts = learned.accepts
        self._vetoing = learned.has_veto
        self._refused_next = refused_next
        self._on_learnt = on_learnt

    @property
    def vetoing(self) -> bool:
        """Whether the device was ever seen to refuse by its own rule."""
        return self._vetoing

    def __call__(self, offset: int, size: int, is_write: bool) -> bool:
        key = (offset, size, is_write)
        fact = self._facts.get(key)
        if fact is not None:
            return fact
        if self._refused_next(offset, size, is_write):
            self._facts[key] = False
            self._vetoing = True
            self._on_learnt()
            return False
        if self._vetoing:
            self._facts[key] = True
            self._on_learnt()
        return True


def with_endian(contract: Contract, big: bool) -> Contract:
    return replace(contract, endian=Endian.BIG if big else Endian.LITTLE)
