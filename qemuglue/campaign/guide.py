"""Where to aim next: which regions and registers show something new, and what they answer.

Counters tell libFuzzer which inputs to keep; they do not tell which of sixty-four operations
made the difference. The guide does: every access in the transcript names its register, and the
trace events behind it are its doing. A register that shows something new is worth more accesses,
by a driver's habits: read, change a bit, write back; an index, then the data beside it.

A register's worth is the number of new facts it showed against how often it was tried; a region's
is its yield of late: new facts for each access, older ones counting less and less, so that what
is exhausted is left alone and what has more to show is not. Everything is bounded.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from qemuglue.program.operation import Place

#: Registers remembered; new ones beyond it are not.
MAX_REGISTERS: Final = 1 << 14
#: Values remembered of one register, newest last.
VALUES: Final = 8
#: Values remembered of all registers together: pointers and magics travel between registers.
ALL_VALUES: Final = 256
#: Draws made from one table of chances before it is made anew.
REDRAW: Final = 64
#: Facts remembered, to know new ones.
MAX_FACTS: Final = 1 << 20
#: Regions remembered.
MAX_REGIONS: Final = 1 << 12
#: Accesses after which a region's past counts half.
HALF_LIFE: Final = 512
#: A new fact of QEMU's inside (a trace event) weighs as many as this of the register itself.
#: Measured with 0, 1, 2 and 4: beyond 1 the guide is lured to a few registers whose arguments
#: vary, and both states and events become fewer.
EVENT_WEIGHT: Final = 1.0


@dataclass(slots=True)
class Known:
    """What is known of one register."""

    score: float = 0.0
    tried: int = 0
    size: int = 4
    values: deque[int] = field(default_factory=lambda: deque(maxlen=VALUES))


@dataclass(slots=True)
class Yield:
    """New facts and accesses of one region, both fading."""

    new: float = 0.0
    tried: float = 0.0

    def worth(self) -> float:
        """New facts for each access, as far as can be told; a region that was hardly tried
        is worth as much as the best. Squared, because there are many regions and few that have
        much left to show."""
        return ((self.new + 1.0) / (self.tried + 2.0)) ** 2


#: (space, name, index) of a region.
Region = tuple[str, str, int]


class Guide:
    """Fed by ``Reach``, asked by the mutator (it is its ``Hints``)."""

    def __init__(self) -> None:
        self._registers: dict[tuple[str, Place], Known] = {}
        self._regions: dict[Region, Yield] = {}
        self._facts: set[object] = set()
        self._values: deque[int] = deque(maxlen=ALL_VALUES)
        self._keys: list[tuple[str, Place]] = []
        self._sums: list[float] = []
        self._draws = 0

    # -- told ----------------------------------------------------------------------------------

    def accessed(
        self, register: tuple[str, Place], size: int, value: int | None, fact: object
    ) -> None:
        """An access reached the register; ``value`` is what a read returned."""
        new = fact not in self._facts
        self._credit(register, 1.0, float(new))
        known = self._registers.get(register)
        if known is None:
            if len(self._registers) >= MAX_REGISTERS:
                return
            known = self._registers[register] = Known()
        known.tried += 1
        known.size = size
        if new:
            self._remember(fact)
            known.score += 1.0
        if value is not None and value not in known.values:
            known.values.append(value)
            self._values.append(value)

    def fired(self, register: tuple[str, Place], fact: object) -> None:
        """A trace event came with the access that reached the register last."""
        if fact not in self._facts:
            self._remember(fact)
            self._credit(register, 0.0, EVENT_WEIGHT)
            known = self._registers.get(register)
            if known is not None:
                known.score += EVENT_WEIGHT

    def _remember(self, fact: object) -> None:
        if len(self._facts) >= MAX_FACTS:
            self._facts.clear()
        self._facts.add(fact)

    def _credit(self, register: tuple[str, Place], tried: float, new: float) -> None:
        space, place = register
        key = space, place.region or "", place.index
        found = self._regions.get(key)
        if found is None:
            if len(self._regions) >= MAX_REGIONS:
                return
            found = self._regions[key] = Yield()
        found.tried += tried
        found.new += new
        if found.tried >= HALF_LIFE:
            found.tried /= 2
            found.new /= 2

    # -- asked ---------------------------------------------------------------------------------

    def register(self, rng: Random) -> tuple[str, Place, int] | None:
        """A register worth an access: (space, place, the size it was last accessed with)."""
        if not self._registers:
            return None
        if self._draws % REDRAW == 0 or not self._keys:
            self._keys = list(self._registers)
            self._sums = list(accumulate(map(_worth, self._registers.values())))
        self._draws += 1
        key = rng.choices(self._keys, cum_weights=self._sums)[0]
        return key[0], key[1], self._registers[key].size

    def region(self, rng: Random) -> Region | None:
        """A region that has more to show, by its yield of late."""
        if not self._regions:
            return None
        sums = list(accumulate(each.worth() for each in self._regions.values()))
        return rng.choices(list(self._regions), cum_weights=sums)[0]

    def knows(self, space: str, place: Place) -> bool:
        """Whether an access has reached the register yet."""
        return (space, place) in self._registers

    def value(self, rng: Random, space: str, place: Place) -> int | None:
        """A value that the register, or else any, has shown."""
        known = self._registers.get((space, place))
        if known is not None and known.values and rng.getrandbits(2):
            return rng.choice(known.values)
        return rng.choice(self._values) if self._values else None


def _worth(known: Known) -> float:
    return (known.score + 0.25) / math.sqrt(known.tried + 4)
