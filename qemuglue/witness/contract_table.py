"""What the devices of one machine on one build accept: a value that is printed, saved, compared.

A row is one region; reads and writes stand apart, because QEMU's ``MemoryRegionOps`` has one
``valid`` for both but a device's own ``accepts`` sees the direction, and because a ROM device's
reads never reach it. ``ContractSizes`` holds the numbers as QEMU declares them, as far as any
access can show them; ``alternatives`` lists every other declaration that would have looked the
same, so that nothing is claimed that was not seen (an unset ``valid`` and one of 1 to 4 cut and
refuse alike, say).

``differences`` is careful in the same way: what cannot be told apart is no change, and neither
is what was not learnt on one side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from qemuglue.memory.contract import Contract, Endian


@dataclass(frozen=True, slots=True, order=True)
class ContractSizes:
    """Bytes, as in ``MemoryRegionOps``: ``valid_max`` 0 is any size, ``impl_min`` 0 is 1 and
    ``impl_max`` 0 is 4."""

    valid_min: int = 0
    valid_max: int = 0
    unaligned: bool = False
    impl_min: int = 0
    impl_max: int = 0
    impl_unaligned: bool = False

    @classmethod
    def of(cls, contract: Contract) -> ContractSizes:
        return cls(
            contract.valid_min, contract.valid_max, contract.valid_unaligned,
            contract.impl_min, contract.impl_max, contract.impl_unaligned,
        )

    def contract(self, endian: Endian = Endian.NATIVE) -> Contract:
        return Contract(
            self.valid_min, self.valid_max, self.unaligned, self.impl_min, self.impl_max,
            self.impl_unaligned, endian,
        )

    @property
    def effective(self) -> ContractSizes:
        """The same with QEMU's defaults put in: two declarations that mean the same are equal."""
        return replace(
            self, valid_min=max(self.valid_min, 1) if self.valid_max else 0,
            impl_min=self.impl_min or 1, impl_max=self.impl_max or 4,
        )

    @property
    def valid(self) -> str:
        """The accepted sizes for people: ``1..4``, ``any``."""
        shown = self.effective
        return f"{shown.valid_min}..{shown.valid_max}" if shown.valid_max else "any"

    @property
    def impl(self) -> str:
        """The sizes of the calls for people: ``1..4``."""
        shown = self.effective
        return f"{shown.impl_min}..{shown.impl_max}"

    def __str__(self) -> str:
        valid = f"valid {self.valid}" + (" unaligned" if self.unaligned else "")
        return f"{valid}, impl {self.impl}" + (" unaligned" if self.impl_unaligned else "")


@dataclass(frozen=True, slots=True, order=True)
class AcceptedRange:
    """Accesses of ``size`` bytes that the device's own ``accepts`` lets pass: at ``start``,
    ``start + step``, … up to and including ``last`` (offsets in the region)."""

    size: int
    start: int
    last: int
    step: int

    def __contains__(self, offset: object) -> bool:
        return (
            isinstance(offset, int) and self.start <= offset <= self.last
            and (offset - self.start) % self.step == 0
        )

    def __str__(self) -> str:
        if self.start == self.last:
            return f"{self.size} at {self.start:#x}"
        step = "" if self.step == self.size else f" every {self.step:#x}"
        return f"{self.size} at {self.start:#x}..{self.last:#x}{step}"


@dataclass(frozen=True, slots=True)
class Accepts:
    """A device's own veto. What lies in no range is refused.

    Asked were the naturally aligned accesses whose first byte lies in ``asked`` (first and last
    offset of each span, ascending). ``complete``: that is all of the region that is in view;
    otherwise the ranges were drawn between offsets that were asked, and an edge between two that
    differ was searched for. ``dynamic`` are accesses whose answer changed from one time to the
    next."""

    ranges: tuple[AcceptedRange, ...] = ()
    complete: bool = True
    asked: tuple[tuple[int, int], ...] = ()
    dynamic: tuple[AcceptedRange, ...] = ()

    def __call__(self, offset: int, size: int) -> bool:
        return any(each.size == size and offset in each for each in self.ranges)

    def sure(self, offset: int, size: int) -> bool:
        """Whether just this access was asked, and always gave the same answer."""
        at = bisect_right(self.asked, (offset, 1 << 64)) - 1
        return (
            at >= 0 and offset <= self.asked[at][1] and offset % size == 0
            and not any(each.size == size and offset in each for each in self.dynamic)
        )


@dataclass(frozen=True, slots=True)
class Access:
    """The contract of one direction. ``sizes`` is None where nothing was learnt: then
    ``unknown`` says why. ``order`` is ``little``, ``big`` or "" (no value told).
    ``alternatives`` are other ``effective`` sizes that no access made here could tell from
    ``sizes``. ``accepts`` is None where the device refused nothing of its own accord.
    ``probes`` counts the accesses, ``evidence`` says in words what they showed."""

    sizes: ContractSizes | None = None
    order: str = ""
    alternatives: tuple[ContractSizes, ...] = ()
    accepts: Accepts | None = None
    probes: int = 0
    evidence: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def known(self) -> bool:
        return self.sizes is not None

    @property
    def possible(self) -> frozenset[ContractSizes]:
        """Every declaration that fits what was seen, QEMU's defaults put in."""
        if self.sizes is None:
            return frozenset()
        return frozenset({self.sizes.effective, *self.alternatives})

    def values(self, field: str) -> tuple[int, ...]:
        """What the field of ``ContractSizes`` may be, ascending."""
        return tuple(sorted({getattr(each, field) for each in self.possible}))

    def same(self, other: Access) -> bool:
        """Whether both say the same, whatever the evidence was."""
        mine = (self.sizes, self.order, self.alternatives, self.accepts, self.unknown)
        return mine == (
            other.sizes, other.order, other.alternatives, other.accepts, other.unknown
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractRow:
    """One region. ``region`` is its identity across runs as text (``owner:name``, ``#n`` for
    the n-th of equals), ``kind`` a value of ``RegionKind``; ``space`` and ``address`` tell where
    it was met first."""

    region: str
    name: str
    owner: str
    size: int
    kind: str
    space: str
    address: int
    reads: Access
    writes: Access


@dataclass(frozen=True, slots=True)
class ContractTable:
    """All device regions in view of ``machine`` (TARGET/NAME) started with ``args``."""

    machine: str
    build: str
    version: str
    args: tuple[str, ...] = ()
    rows: tuple[ContractRow, ...] = ()
    notes: tuple[str, ...] = ()

    def row(self, region: str) -> ContractRow | None:
        """The row of that identity."""
        return next((row for row in self.rows if row.region == region), None)

    def named(self, name: str) -> tuple[ContractRow, ...]:
        """The rows of regions of that name, in order."""
        return tuple(row for row in self.rows if row.name == name)

    def to_json(self) -> dict[str, object]:
        """A JSON document; ``from_json`` gives the same table."""
        from qemuglue.witness.contract_json import document

        return document(self)

    @classmethod
    def from_json(cls, data: object) -> ContractTable:
        """:raise UsageError: ``data`` is no such document; the message names the place."""
        from qemuglue.witness.contract_json import table_of

        return table_of(data)


# -- comparing -----------------------------------------------------------------------------


class ChangeKind:
    """What changed; the words of reports."""

    ADDED = "region added"
    REMOVED = "region removed"
    VALID = "valid sizes"
    IMPL = "impl sizes"
    UNALIGNED = "unaligned accesses"
    ORDER = "byte order"
    ACCEPTS = "own veto"
    SIZES = "sizes"  #: valid and impl together: neither alone is surely another


@dataclass(frozen=True, slots=True)
class ContractChange:
    """``region`` is the identity on the side that has it (the later one where both have).
    ``direction`` is ``reads``, ``writes``, ``reads and writes``, or "" for a whole region.
    ``before`` and ``after`` are words; "" where the region is not there."""

    kind: str
    region: str
    name: str
    direction: str
    before: str
    after: str

    def __str__(self) -> str:
        if not self.direction:
            return f"{self.region}: {self.kind}"
        return f"{self.region}: {self.kind} of {self.direction}: {self.before} -> {self.after}"


def differences(before: ContractTable, after: ContractTable) -> list[ContractChange]:
    """What surely changed, in the order of ``after``, removed regions last."""
    changes: list[ContractChange] = []
    for old, new in _pairs(before.rows, after.rows):
        if old is None and new is not None:
            changes.append(ContractChange(
                ChangeKind.ADDED, new.region, new.name, "", "", _words(new)
            ))
        elif new is None and old is not None:
            changes.append(ContractChange(
                ChangeKind.REMOVED, old.region, old.name, "", _words(old), ""
            ))
        elif old is not None and new is not None:
            changes += _row_changes(old, new)
    return changes


def _pairs(
    before: Iterable[ContractRow], after: Iterable[ContractRow]
) -> Iterator[tuple[ContractRow | None, ContractRow | None]]:
    """Rows of one region: same identity; else same name and place among what is left of that
    name (the path of an owner may change from build to build)."""
    by_key = {row.region: row for row in before}
    pairs: dict[str, ContractRow] = {}
    new_names: defaultdict[str, list[ContractRow]] = defaultdict(list)
    for row in after:
        old = by_key.pop(row.region, None)
        if old is not None:
            pairs[row.region] = old
        else:
            new_names[row.name].append(row)
    old_names: defaultdict[str, list[ContractRow]] = defaultdict(list)
    for row in by_key.values():
        old_names[row.name].append(row)
    for name, rows in new_names.items():
        for row, old in zip(_placed(rows), _placed(old_names[name]), strict=False):
            pairs[row.region] = old
    for row in after:
        yield pairs.get(row.region), row
    used = {row.region for row in pairs.values()}
    for row in by_key.values():
        if row.region not in used:
            yield row, None


def _placed(rows: list[ContractRow]) -> list[ContractRow]:
    return sorted(rows, key=lambda row: (row.space, row.address, row.size))


def _words(row: ContractRow) -> str:
    sizes = row.reads.sizes or row.writes.sizes
    return str(sizes) if sizes is not None else "unknown"


def _row_changes(old: ContractRow, new: ContractRow) -> list[ContractChange]:
    found: dict[tuple[str, str, str], list[str]] = {}
    for direction in ("reads", "writes"):
        a: Access = getattr(old, direction)
        b: Access = getattr(new, direction)
        for kind, before, after in _access_changes(a, b):
            found.setdefault((kind, before, after), []).append(direction)
    return [
        ContractChange(kind, new.region, new.name, " and ".join(directions), before, after)
        for (kind, before, after), directions in found.items()
    ]


def _access_changes(a: Access, b: Access) -> Iterator[tuple[str, str, str]]:
    if a.sizes is None or b.sizes is None:
        return
    if not a.possible & b.possible:
        told = False
        for kind, fields, words in _FIELDS:
            mine = {tuple(getattr(each, field) for field in fields) for each in a.possible}
            theirs = {tuple(getattr(each, field) for field in fields) for each in b.possible}
            if not mine & theirs:
                told = True
                yield kind, words(a.sizes), words(b.sizes)
        if not told:
            yield ChangeKind.SIZES, str(a.sizes), str(b.sizes)
    if a.order and b.order and a.order != b.order:
        yield ChangeKind.ORDER, a.order, b.order
    yield from _veto_change(a.accepts, b.accepts)


def _yes(value: bool) -> str:
    return "accepted" if value else "refused"


_FIELDS = (
    (ChangeKind.VALID, ("valid_min", "valid_max"), lambda sizes: sizes.valid),
    (ChangeKind.IMPL, ("impl_min", "impl_max"), lambda sizes: sizes.impl),
    (ChangeKind.UNALIGNED, ("unaligned",), lambda sizes: _yes(sizes.unaligned)),
)

#: Ranges named in words; the tables have them all.
_NAMED_RANGES = 4


def _veto_change(a: Accepts | None, b: Accepts | None) -> Iterator[tuple[str, str, str]]:
    """Only offsets that were asked on both sides count: a search may have missed an island."""
    if a is None and b is None:
        return
    if a is not None and b is not None:
        if a.ranges == b.ranges or a.dynamic or b.dynamic:
            return
        if not (a.complete and b.complete):
            edges = {(r.size, at) for veto in (a, b) for r in veto.ranges
                     for at in (r.start, r.last)}
            if all(a(at, size) == b(at, size) for size, at in edges):
                return
    yield ChangeKind.ACCEPTS, veto_words(a), veto_words(b)


def veto_words(veto: Accepts | None) -> str:
    """The accepted ranges for people."""
    if veto is None:
        return "refuses nothing of its own accord"
    if not veto.ranges:
        return "accepts nothing"
    named = range_words(veto.ranges)
    more = len(named) - _NAMED_RANGES
    return f"accepts {'; '.join(named[:_NAMED_RANGES])}" + (f" and {more} more" if more > 0 else "")


def range_words(ranges: Iterable[AcceptedRange]) -> list[str]:
    """The ranges for people, sizes that are taken at the same offsets together."""
    sizes: dict[tuple[int, int, int], list[int]] = {}
    for each in ranges:
        step = 0 if each.start == each.last or each.step == each.size else each.step
        sizes.setdefault((each.start, each.last, step), []).append(each.size)
    words = []
    for (start, last, step), taken in sizes.items():
        at = f"{start:#x}" if start == last else f"{start:#x}..{last:#x}"
        words.append(f"{', '.join(map(str, taken))} at {at}" + (f" every {step:#x}" * bool(step)))
    return words
