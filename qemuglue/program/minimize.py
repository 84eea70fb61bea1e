"""Minimising: the smallest program that still shows what a predicate looks for.

Passes, big cuts first, repeated until a whole round changes nothing:

- chunks: drop stretches, half the program first, then ever shorter ones down to two, last ones
  first (a bisection for the end of the program before that cost runs and saved none);
- singles: drop operations one by one, last first;
- sizes: narrower verbs, shorter byte strings;
- values: zero, one, fewer bits; data zeroed part by part.

Every pass only proposes. ``_Search.consider`` is the only judge: it accepts a candidate that is
smaller (shortlex: operations, then bytes moved, then text) and interesting, and remembers by
SHA-1 what was tried. The predicate may be a QEMU run and thus flaky: the original is confirmed
before any cut and the result after the last one, and what does not confirm every time is called
flaky, never minimised.

Pure: time comes in as ``Budget.expired``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from qemuglue.program.operation import Operation, Program, recast, validate
from qemuglue.program.verbs import VERBS, Kind

#: Data bytes are zeroed in ever smaller parts, down to this fraction of them: single bytes of
#: short data, without thousands of runs for long data.
FINEST_PARTS = 32

Predicate = Callable[[Program], bool]


class Stop(Enum):
    """Why a minimisation ended."""

    MINIMAL = "no smaller program of the kinds tried is interesting"
    TRIES = "the budget of predicate runs is used up"
    TIME = "the time is used up"
    NOT_REPRODUCED = "the original program was never interesting"
    FLAKY = "the program is interesting only some of the times it runs"


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a minimisation may spend."""

    #: Runs of the predicate, confirmations included. 500 operations with a cause of two need
    #: about 50.
    tries: int = 2000
    #: Asked before every run; True ends the search with what it has.
    expired: Callable[[], bool] = _never
    #: Runs of the original before, and of the result after.
    confirm: int = 2


@dataclass(frozen=True, slots=True)
class Minimized:
    """What came out. ``confirmed`` of ``runs`` confirmations of the last program showed it."""

    program: Program
    stop: Stop
    tries: int
    confirmed: int
    runs: int

    @property
    def sound(self) -> bool:
        """Whether ``program`` was interesting every time it was confirmed."""
        return self.confirmed == self.runs > 0


def minimize(
    program: Program, predicate: Predicate, budget: Budget | None = None,
) -> Minimized:
    """Shrink ``program`` while ``predicate`` holds. Deterministic if the predicate is.

    Where the original is flaky it is returned as it is, with ``Stop.FLAKY``; where only the
    result is, the result comes with ``Stop.FLAKY`` and how often it held. Raises what the
    predicate raises.
    """
    budget = Budget() if budget is None else budget
    search = _Search(program.validate(), predicate, budget)
    runs = max(budget.confirm, 1)
    held = search.confirm(runs)
    if held < runs:
        stop = Stop.FLAKY if held else Stop.NOT_REPRODUCED
        return Minimized(program, stop, search.tries, held, runs)
    try:
        while any([shrink(search) for shrink in PASSES]):
            pass
        stop = Stop.MINIMAL
    except _Spent as spent:
        stop = spent.stop
    if search.best != program:
        held = search.confirm(runs)
        if held < runs:
            stop = Stop.FLAKY
    return Minimized(search.best, stop, search.tries, held, runs)


class _Spent(Exception):
    """The budget is used up."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        super().__init__(stop.value)


def _weight(program: Program) -> tuple[int, int, int, str]:
    """Shortlex: fewer operations, fewer bytes, shorter text, then the text itself."""
    text = program.canonical_text()
    return (len(program.operations), sum(op.size for op in program.operations), len(text), text)


class _Search:
    """The best program so far, and the only judge of better ones."""

    def __init__(self, program: Program, predicate: Predicate, budget: Budget) -> None:
        self.best = program
        self.tries = 0
        self._weight = _weight(program)
        self._predicate = predicate
        self._budget = budget
        self._seen = {program.sha1()}

    @property
    def operations(self) -> tuple[Operation, ...]:
        return self.best.operations

    def confirm(self, runs: int) -> int:
        """How many of ``runs`` runs of the best program are interesting; outside the budget."""
        self.tries += runs
        return sum([self._predicate(self.best) for _ in range(runs)])

    def consider(self, operations: tuple[Operation, ...]) -> bool:
        """Whether these operations are now the best: smaller, not tried yet, interesting."""
        candidate = self.best.replace(operations=operations)
        weight = _weight(candidate)
        if weight >= self._weight:
            return False
        name = candidate.sha1()
        if name in self._seen:
            return False
        if self.tries >= self._budget.tries:
            raise _Spent(Stop.TRIES)
        if self._budget.expired():
            raise _Spent(Stop.TIME)
        self._seen.add(name)
        self.tries += 1
        if not self._predicate(candidate):
            return False
        assert weight < self._weight, f"{weight} is not less than {self._weight}"
        self.best, self._weight = candidate, weight
        return True

    def replace(self, at: int, op: Operation) -> bool:
        """Consider another operation in place of the one at ``at``."""
        ops = self.operations
        return ops[at] != op and self.consider((*ops[:at], validate(op), *ops[at + 1:]))


def _chunks(search: _Search) -> bool:
    """ddmin's complements: drop stretches from half the program down to two operations."""
    before = len(search.operations)
    size = before // 2
    while size >= 2:
        stop = len(search.operations)
        while stop > 0:  # last first: what follows the cause rarely matters
            ops = search.operations
            start = max(stop - size, 0)
            search.consider(ops[:start] + ops[stop:])
            stop = start
        size = min(size // 2, len(search.operations) // 2)
    return len(search.operations) < before


def _singles(search: _Search) -> bool:
    before = len(search.operations)
    for at in reversed(range(before)):
        ops = search.operations
        search.consider(ops[:at] + ops[at + 1:])
    return len(search.operations) < before


def _each(
    search: _Search, smaller: Callable[[Operation], Iterator[Operation]],
) -> bool:
    """Offer ``smaller`` versions of every operation, again from the first one that is taken."""
    changed = False
    for at in range(len(search.operations)):
        while any(search.replace(at, op) for op in smaller(search.operations[at])):
            changed = True
    return changed


def _smaller_sizes(op: Operation) -> Iterator[Operation]:
    info = op.info
    if op.place is None or op.size == 1:
        return
    if info.size is None:
        for size in dict.fromkeys((1, op.size // 4, op.size // 2, op.size - 1)):
            if 0 < size < op.size:
                yield recast(op, op.verb, size)
        return
    for name, other in VERBS.items():  # narrowest first: the table's order
        if other.kind is info.kind and other.is_write is info.is_write \
                and other.size is not None and other.size < op.size:
            yield recast(op, name)


def _smaller_values(op: Operation) -> Iterator[Operation]:
    if op.data:
        length, finest = op.size, max(op.size // FINEST_PARTS, 1)
        while length >= finest:
            for low in range(0, op.size, length):
                part = op.data[low:low + length]
                if any(part):
                    data = op.data[:low] + bytes(len(part)) + op.data[low + length:]
                    yield Operation(op.verb, op.place, op.size, 0, data)
            length //= 2
        return
    if op.info.kind is Kind.EVENT:
        return
    bits = op.value.bit_length()
    fewer = [0, 1, op.value >> bits // 2, op.value >> 4, op.value >> 1]
    fewer += [op.value & ~(1 << bit) for bit in reversed(range(bits))]
    for value in dict.fromkeys(fewer):
        if value < op.value:
            yield Operation(op.verb, op.place, op.size, value)


def _sizes(search: _Search) -> bool:
    return _each(search, _smaller_sizes)


def _values(search: _Search) -> bool:
    return _each(search, _smaller_values)


#: The passes of one round, in order.
PASSES: tuple[Callable[[_Search], bool], ...] = (_chunks, _singles, _sizes, _values)
