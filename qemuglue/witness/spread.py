"""Accesses of many parts on the fast road: byte strings, and what crosses from one section into
the next.

An access is cut as ``flatview_read`` and ``_write`` cut it (R6-R8): memory up to where it ends,
anything else into dispatches, each of which has a form. First everything is compared, then it is
done: where one part is not as owed, nothing has happened.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from qemuglue.memory.attrs import OK
from qemuglue.memory.region import MemoryRegion
from qemuglue.memory.rules import Rules
from qemuglue.witness.evidence import Evidence
from qemuglue.witness.fastmap import FastMap
from qemuglue.witness.plan import ByteOrder
from qemuglue.witness.ram import PAGE_BITS

#: Parts of one access; what has more is for the general road, which does not compare it twice.
MAX_PARTS = 1 << 10


@dataclass(slots=True)
class Walk:
    """An access so far: where the transcript goes on, the memory it writes (section, offset,
    first byte, size), its pieces as coverage feedback has them, and the region called last."""

    pos: int
    stores: list[tuple[int, int, int, int]] = field(default_factory=list)
    shape: list[object] = field(default_factory=list)
    result: int = OK
    called: MemoryRegion | None = None


def walk(
    fast: FastMap, rules: Rules, evidence: Evidence, turn: object, addr: int, moved: bytes,
    *, is_write: bool, order: ByteOrder,
) -> Walk | None:
    """The access if everything is as owed: ``moved`` are the bytes it wrote, or those that its
    reply says it read; ``order`` is the target's. Nothing is consumed."""
    found = Walk(evidence.pos)
    at, size = 0, len(moved)
    if addr + size > fast.limits[-1]:
        return None  # it goes on at address 0
    for _ in range(MAX_PARTS):
        here = addr + at
        i = bisect_right(fast.starts, here) - 1
        place = here + fast.delta[i]
        n = rules.clamp(fast.sections[i], here, size - at)
        data = fast.wdata[i] if is_write else fast.rdata[i]
        if data is not None:
            if n <= 0 or here + n > fast.limits[i]:
                return None
            if is_write:
                found.stores.append((i, place, at, n))
            elif data[place : place + n] != moved[at : at + n]:
                return None
        else:
            plan = fast.plans[i]
            if plan.checked is not turn:
                plan.check(evidence, turn)
            n = rules.chunk(plan.region.contract, n, place)
            if n > 8:
                return None
            key = (place & plan.mask) << 5 | n << 1 | is_write
            known = plan.forms.get(key) or plan.find(evidence, key, place, n, is_write)
            if known is None or known[1].heard:
                return None
            form = known[1]
            stop = plan.compare(
                evidence.text, found.pos, form, place, n,
                int.from_bytes(moved[at : at + n], order), is_write)
            if stop is None:
                return None
            found.pos = stop
            found.shape += form.shape
            found.result = rules.combine(found.result, form.result)
            if form.calls:
                found.called = plan.region
        at += n
        if at >= size:
            return found if at == size else None
        if not rules.goes_on(found.result):
            return None
    return None


def store(fast: FastMap, found: Walk, moved: bytes) -> None:
    """Write what the access moved into the model's memory."""
    for i, place, first, n in found.stores:
        data = fast.wdata[i]
        assert data is not None, "walk found it"
        data[place : place + n] = moved[first : first + n]
        fast.dirty[i].update(range(place >> PAGE_BITS, ((place + n - 1) >> PAGE_BITS) + 1))
