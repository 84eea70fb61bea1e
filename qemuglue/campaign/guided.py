"""Operations drawn where the guide points, among those that a target draws anyway.

Three ways, besides the target's own: somewhere in a region that has more to show; a register
that showed something new; a driver's habits with one (``program.hinted``).
"""

from __future__ import annotations

from random import Random

from qemuglue.campaign.guide import Guide, Region
from qemuglue.program.aim import Aim, place_at, reach
from qemuglue.program.hinted import HINTED, access, some_value
from qemuglue.program.layout import Layout, Row
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.mix import Wild
from qemuglue.program.verbs import IO, MEMORY

#: Of a hundred stretches: drawn by the target as ever; anywhere in a telling region; the rest
#: goes to telling registers.
OWN, ANYWHERE = 20, 55
#: Operations of one stretch at most.
STRETCH = 4
#: Of a hundred accesses anywhere in a region of memory, so many cover neighbouring registers.
SWEEPS = 50
#: Draws for a place that was not reached yet.
TRIES = 4

_AIMS = (Aim.ALIGNED, Aim.ALIGNED, Aim.REGISTER, Aim.REGISTER, Aim.UNIFORM, Aim.NEAR_START)
_HABITS = [HINTED[name][0] for name in ("touch", "modify", "pair")]


class Guided:
    """Draws as ``own`` does, and where ``guide`` points."""

    def __init__(self, layout: Layout, own: Wild, guide: Guide) -> None:
        self._layout = layout
        self._own = own
        self._guide = guide
        self._rows: dict[Region, list[Row]] = {}
        for space, rows in ((MEMORY, layout.rows), (IO, layout.port_rows)):
            for row in dict.fromkeys(rows):
                if row.region is not None:
                    self._rows.setdefault((space, row.region, row.nth), []).append(row)

    def wild(self, rng: Random) -> Guided:
        """The same with the wild kin of the target's own."""
        return Guided(self._layout, self._own.wild(rng), self._guide)

    def operations(self, rng: Random, n: int) -> tuple[Operation, ...]:
        """``n`` valid operations."""
        made: list[Operation] = []
        while len(made) < n:
            draw = rng.randrange(100)
            part: list[Operation] = []
            if draw >= OWN + ANYWHERE:
                rng.choice(_HABITS)(rng, part, self._guide)
            elif draw >= OWN:
                part = self._anywhere(rng)
            made += part or self._own.operations(rng, rng.randint(1, STRETCH))
        return tuple(made[:n])

    def _anywhere(self, rng: Random) -> list[Operation]:
        found = self._guide.region(rng)
        rows = self._rows.get(found) if found is not None else None
        if found is None or not rows:
            return []
        space, row = found[0], rng.choice(rows)
        part = []
        for _ in range(rng.randint(1, STRETCH)):
            size = rng.choice((1, 2, 4, 4, 8)) if space == MEMORY else rng.choice((1, 2, 4))
            place = self._untouched(rng, space, row, size)
            if space == MEMORY and rng.randrange(100) < SWEEPS:
                part.append(_sweep(rng, place))
                continue
            value = None
            if rng.getrandbits(1):
                value = some_value(rng, self._guide, space, place, size)
            part.append(access(space, place, size, value))
        return part

    def _untouched(self, rng: Random, space: str, row: Row, size: int) -> Place:
        """A place in the range, if a few tries find one then one that no access has reached."""
        for _ in range(TRIES):
            delta = reach(int(rng.choice(_AIMS)), row.size, size, rng.getrandbits(64))
            place, _ = place_at(self._layout, row, delta, space)
            if not self._guide.knows(space, place):
                break
        return place


def _sweep(rng: Random, place: Place) -> Operation:
    """Neighbouring registers in one operation: QEMU cuts it into accesses of its own."""
    length = 4 << rng.randrange(5)
    verb = rng.choice(("read", "write", "memset"))
    value = rng.getrandbits(8) if verb == "memset" else 0
    data = rng.randbytes(8) * (length // 8 + 1) if verb == "write" else b""
    return Operation(verb, place, length, value, data[:length])
