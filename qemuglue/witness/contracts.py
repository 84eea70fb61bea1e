"""Contracts learnt from a throw-away QEMU, frozen, then binding.

A region is known by its ``key`` (owner path, name, index), so what was learnt in one process
holds in the next. What the probe cannot have seen is learnt on first evidence, once, and the
verdict says so: an offset a device refuses by its own ``accepts``, and the byte order of a
device whose probed registers all read the same backwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from qemuglue.memory import MemoryRegion
from qemuglue.memory.contract import Contract, Endian
from qemuglue.mirror import RegionKey
from qemuglue.witness.contract_table import Accepts, ContractRow, ContractTable

#: (offset, size, is_write) -> accepted?
AcceptsFacts = dict[tuple[int, int, bool], bool]


@dataclass(slots=True)
class Learned:
    """What is known of one region's contract. ``contract`` has no ``accepts`` of its own.
    ``reads`` and ``writes`` are the device's veto as it was asked for all over the region; None
    where it was not (``accepts`` has the single facts). ``unrefused`` has the directions (False
    reads, True writes) in which probes met no veto."""

    contract: Contract
    endian_known: bool = False
    accepts: AcceptsFacts = field(default_factory=dict)
    reads: Accepts | None = None
    writes: Accepts | None = None
    unrefused: frozenset[bool] = frozenset()

    @property
    def has_veto(self) -> bool:
        """Whether the device was ever seen to refuse an access by its own rule."""
        asked = self.reads is not None or self.writes is not None
        return asked or not all(self.accepts.values())

    def told(self, offset: int, size: int, is_write: bool) -> bool | None:
        """Whether just this access was accepted when the region was asked; None if it was
        not asked."""
        veto = self.writes if is_write else self.reads
        if veto is None or not veto.sure(offset, size):
            return None
        return veto(offset, size)

    def guess(self, offset: int, size: int, is_write: bool) -> bool | None:
        """What its neighbours say, or the other direction: good enough to be proved right,
        never to accuse QEMU."""
        if is_write in self.unrefused:
            return True
        mine, other = (self.reads, self.writes) if not is_write else (self.writes, self.reads)
        veto = mine if mine is not None else other
        return None if veto is None else veto(offset, size)


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

    def __iter__(self) -> Iterator[tuple[Hashable, Learned]]:
        return iter(self._known.items())


class Veto:
    """A region's ``accepts``, answering from frozen facts and, where there is none, from the
    next line of evidence: then the fact is frozen and, if it is not what was to be expected,
    ``on_learnt`` is told. ``refused_next`` says None where there is no evidence to learn from.
    """

    __slots__ = ("_facts", "_learned", "_on_learnt", "_refused_next", "vetoing")

    def __init__(
        self, learned: Learned, refused_next: Callable[[int, int, bool], bool | None],
        on_learnt: Callable[[], None],
    ) -> None:
        self._learned = learned
        self._facts = learned.accepts
        #: Whether the device was ever seen to refuse by its own rule.
        self.vetoing = learned.has_veto
        self._refused_next = refused_next
        self._on_learnt = on_learnt

    def known(self, offset: int, size: int, is_write: bool) -> bool | None:
        """The frozen fact about just this access, if there is one."""
        fact = self._facts.get((offset, size, is_write))
        return self._learned.told(offset, size, is_write) if fact is None else fact

    def __call__(self, offset: int, size: int, is_write: bool) -> bool:
        key = (offset, size, is_write)
        fact = self._facts.get(key)
        if fact is None and self.vetoing:
            fact = self._learned.told(offset, size, is_write)
        if fact is not None:
            return fact
        refused = self._refused_next(offset, size, is_write)
        guess = self._learned.guess(offset, size, is_write) if self.vetoing else None
        if refused is None:
            return guess is not False
        if refused or self.vetoing:
            self.vetoing = True
            self._facts[key] = not refused
            if guess is not (not refused):
                self._on_learnt()
        return not refused


def with_endian(contract: Contract, big: bool) -> Contract:
    return replace(contract, endian=Endian.BIG if big else Endian.LITTLE)


# -- from a table --------------------------------------------------------------------------

_ENDIAN = {"little": Endian.LITTLE, "big": Endian.BIG, "": Endian.NATIVE}


def contracts_of(table: ContractTable) -> Contracts:
    """The rows of a table whose contract is known, for ``Knowledge.contracts``: a check or a
    campaign that has them does not probe these regions again."""
    contracts = Contracts()
    for row in table.rows:
        learned = learned_of(row)
        if learned is not None:
            contracts.put(key_of(row), learned)
    return contracts


def contracts_for(table: ContractTable, regions: Iterable[MemoryRegion]) -> Contracts:
    """The same, under the identities that the regions have in another build. The path of an
    owner is numbered by QEMU as it makes devices (``/machine/unattached/device[5]``), so what
    is left of one name and size on both sides is paired in address order."""
    contracts = contracts_of(table)
    keys = {key_of(row) for row in table.rows}
    strange: defaultdict[tuple[str, int], list[MemoryRegion]] = defaultdict(list)
    for region in regions:
        if region.key in keys:
            keys.discard(region.key)
        else:
            strange[region.name, region.size].append(region)
    left: defaultdict[tuple[str, int], list[ContractRow]] = defaultdict(list)
    for row in table.rows:
        if key_of(row) in keys:
            left[row.name, row.size].append(row)
    for nature, unknown in strange.items():
        rows = left[nature]
        if len(rows) != len(unknown):
            continue  # which is which is anybody's guess
        rows.sort(key=lambda row: (row.space, row.address))
        unknown.sort(key=lambda region: region.absolute())
        for row, region in zip(rows, unknown, strict=True):
            learned = learned_of(row)
            if learned is not None:
                contracts.put(region.key, learned)
    return contracts


def learned_of(row: ContractRow) -> Learned | None:
    """The row as the judge takes it; None if neither direction is known. QEMU declares one
    contract for both directions: reads are preferred, being asked first."""
    access = row.reads if row.reads.sizes is not None else row.writes
    if access.sizes is None:
        return None
    order = row.reads.order or row.writes.order
    unrefused = frozenset(
        is_write for is_write, each in ((False, row.reads), (True, row.writes))
        if each.known and each.accepts is None
    )
    return Learned(
        access.sizes.contract(_ENDIAN[order]), bool(order), {}, row.reads.accepts,
        row.writes.accepts, unrefused,
    )


def key_of(row: ContractRow) -> RegionKey:
    """The region's identity, as a mirror gives it."""
    tail = row.region[len(f"{row.owner}:{row.name}"):]
    return RegionKey(row.owner, row.name, int(tail[1:]) if tail[1:].isdigit() else 0)
