"""What one look at a map may cost, counted in steps and not in seconds: the same texts come to
the same end on every machine.

A step is a region visited, or a range compared; each takes one to three microseconds. The texts
are untrusted: a few lines of aliases of aliases show millions of regions, and learning draws them
again and again.
"""

from __future__ import annotations

from qemuglue.errors import ModelError, ProtocolError
from qemuglue.memory import MemoryRegion
from qemuglue.memory.flatview import MAX_DEPTH, view_root
from qemuglue.qemu.mtree import TREE_COMMAND

#: Regions visited by all drawings of one take or refresh, learning apart: about 1 s. The real
#: machine that needs most (m68k/q800 of 7.2, all aliases) takes 140,000, the others up to 1,500.
MAX_DRAWN = 1_000_000
#: Steps of learning in one take or refresh: about 2 s. The same machine takes 290,000, all
#: others 12,000 at most.
MAX_LEARNT = 1_000_000

_TOP = 1 << 64


class Effort:
    """A number of steps to spend. ``spent`` is whether more was wanted; then it stays so."""

    def __init__(self, limit: int, what: str) -> None:
        self.limit = limit
        self.spent = False
        self._what = what
        self._left = limit

    @property
    def left(self) -> int:
        return self._left

    @property
    def reason(self) -> str:
        """Why it ended, in words."""
        return f"{self._what} more than {self.limit} regions"

    def spend(self, steps: int, at: str = "") -> None:
        """Take ``steps`` away. Raises ProtocolError, ``at`` (the line) before the reason, if they
        are not left, now and from then on."""
        self._left -= steps
        if self._left < 0:
            self._left = -1
            self.spent = True
            raise ProtocolError(at + self.reason, channel=TREE_COMMAND)


def efforts() -> tuple[Effort, Effort]:
    """For the drawings and for the learning of one take or refresh."""
    return (Effort(MAX_DRAWN, "the tree shows"),
            Effort(MAX_LEARNT, "learning was given up, it looked at"))


def drawing_of(root: MemoryRegion, limit: int) -> int:
    """Regions that drawing ``root`` visits, counted up to ``limit`` + 1: in a tenth of the time
    that drawing takes, and before it is begun."""
    try:
        first = view_root(root)
    except ModelError:
        return 0  # it cannot be drawn, and drawing it says why
    visits = 0
    stack = [] if first is None else [(first, 0, 0, _TOP, 0)]
    while stack:
        region, base, low, high, depth = stack.pop()
        if not region.enabled:
            continue
        visits += 1
        if visits > limit or depth > MAX_DEPTH:
            break
        base += region.addr
        low, high = max(low, base), min(high, base + region.size)
        if low >= high:
            continue
        if region.alias is not None:
            base -= region.alias.addr + region.alias_offset
            stack.append((region.alias, base, low, high, depth + 1))
        else:
            stack += [(child, base, low, high, depth + 1) for child in region.subregions]
    return visits
