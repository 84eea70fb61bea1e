"""Iotlb: which I/O addresses lead where, and how they may be accessed.

A map of address ranges of any size and alignment: there are no pages in it. Names and rules are
those of vm-memory 0.18 (``src/iommu.rs``), whose map is the crate rangemap; what of that shows:

- A new mapping takes the place of what was mapped in its range; the parts of an older one before
  and behind it stay. Two that touch are one if they have the same permissions and the same
  distance from I/O address to target, so that the target goes on where it left off.
- A range is not empty and does not reach 2^64: the crate keeps the address behind it in 64 bits
  and panics otherwise. So the byte at 2^64-1 can never be mapped, which QEMU has no trouble with.
- A target may wrap to 0. The range found is then longer than what is left of the space there.

It differs from the crate's in this:

- A lookup of no bytes finds nothing, wherever it is. The crate reports an access failure of no
  bytes inside a mapping that lacks the permission (not at its start, and not outside).
- A lookup that would reach 2^64 is a ModelError. The crate panics in debug builds; in others it
  finds nothing in it that is not allowed, so that such a range passes every check.
- What a lookup found stays valid for its iterator whatever changes meanwhile. In Rust the
  iterator holds a borrow or a lock, and who wants to change something waits for it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from threading import Lock
from typing import Self

from qemuglue.errors import ModelError
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_memory.permissions import Permissions


@dataclass(frozen=True, slots=True)
class IovaRange:
    """``length`` bytes of I/O addresses from ``base`` on."""

    base: GuestAddress
    length: int

    def __str__(self) -> str:
        return f"{self.base.raw_value():#x}+{self.length:#x}"


@dataclass(frozen=True, slots=True)
class MappedRange:
    """``length`` bytes of the space behind the IOMMU from ``base`` on."""

    base: GuestAddress
    length: int


class IotlbFails(ModelError):
    """Which parts of a range cannot be accessed, in ascending order: ``misses`` are not mapped,
    ``access_fails`` are mapped without the permission, one entry a mapping. Both are clipped to
    the range, and are the caller's to change."""

    def __init__(self, misses: Iterable[IovaRange], access_fails: Iterable[IovaRange]) -> None:
        self.misses = list(misses)
        self.access_fails = list(access_fails)
        super().__init__(self.misses, self.access_fails)

    def __str__(self) -> str:
        told = [f"{each} is not mapped" for each in self.misses]
        told += [f"{each} does not allow it" for each in self.access_fails]
        return "; ".join(told)


class IotlbIterator(Iterator[MappedRange]):
    """The targets of a range of I/O addresses, in the order of the addresses. Together they are
    as long as the range; none is empty. Made by ``Iotlb.lookup``."""

    __slots__ = ("_left",)

    def __init__(self, found: Iterable[MappedRange]) -> None:
        self._left = list(found)
        self._left.reverse()

    def __next__(self) -> MappedRange:
        if not self._left:
            raise StopIteration
        return self._left.pop()

    def clone(self) -> IotlbIterator:
        """Another iterator over what is left."""
        return IotlbIterator(reversed(self._left))

    def __repr__(self) -> str:
        return f"IotlbIterator({self._left[::-1]!r})"


@dataclass(frozen=True, slots=True)
class _Mapping:
    """``start`` to ``last``, inclusive. ``shift`` is what to add, modulo 2^64, to get the target:
    equal in two mappings only if one continues the other."""

    start: int
    last: int
    shift: int
    perm: Permissions

    def part(self, start: int, last: int) -> _Mapping:
        return _Mapping(start, last, self.shift, self.perm)

    def goes_on_as(self, other: _Mapping) -> bool:
        return (
            self.last + 1 == other.start
            and self.shift == other.shift and self.perm is other.perm
        )


_START = attrgetter("start")
_LAST = attrgetter("last")


class Iotlb:
    """The mappings known. Several threads may look up and change at once: a lookup sees all of a
    change or nothing of it."""

    __slots__ = ("_lock", "_mappings")

    def __init__(self) -> None:
        # Ascending and disjoint. Never changed, only replaced, so that who reads needs no lock.
        self._mappings: Sequence[_Mapping] = ()
        self._lock = Lock()

    @classmethod
    def new(cls) -> Self:
        """An empty one."""
        return cls()

    def set_mapping(
        self, iova: GuestAddress | int, map_to: GuestAddress | int, length: int, perm: Permissions
    ) -> None:
        """From now on ``length`` bytes at ``iova`` are those at ``map_to``. Raises ModelError
        for a range that is empty or reaches 2^64."""
        start, last = _range(iova, length)
        shift = (_number(map_to) - start) % ADDRESS_END
        if not isinstance(perm, Permissions):
            raise ModelError(f"a mapping has Permissions, got {perm!r}")
        self._replace(start, last, _Mapping(start, last, shift, perm))

    def invalidate_mapping(self, iova: GuestAddress | int, length: int) -> None:
        """Forget what is mapped in the range, and only there. Raises as ``set_mapping``."""
        self._replace(*_range(iova, length), None)

    def invalidate_all(self) -> None:
        """Forget everything."""
        with self._lock:
            self._mappings = ()

    def lookup(
        self, iova: GuestAddress | int, length: int, access: Permissions
    ) -> IotlbIterator:
        """Where ``length`` bytes at ``iova`` lead, each for ``access``. Raises IotlbFails with
        every part that is missing or forbidden, and ModelError for a range that reaches 2^64."""
        if not length:
            _number(iova)
            return IotlbIterator(())
        start, last = _range(iova, length)
        found: list[MappedRange] = []
        misses: list[IovaRange] = []
        access_fails: list[IovaRange] = []
        at = start
        for mapping in _overlapping(self._mappings, start, last):
            first, final = max(mapping.start, start), min(mapping.last, last)
            if at < first:
                misses.append(IovaRange(GuestAddress(at), first - at))
            size = final - first + 1
            if mapping.perm.allow(access):
                target = GuestAddress((first + mapping.shift) % ADDRESS_END)
                found.append(MappedRange(target, size))
            else:
                access_fails.append(IovaRange(GuestAddress(first), size))
            at = final + 1
        if at <= last:
            misses.append(IovaRange(GuestAddress(at), last + 1 - at))
        if misses or access_fails:
            raise IotlbFails(misses, access_fails)
        return IotlbIterator(found)

    def _replace(self, start: int, last: int, new: _Mapping | None) -> None:
        """``new``, or nothing, in the place of what is mapped from ``start`` to ``last``."""
        with self._lock:
            known = self._mappings
            # One further to both sides, as that may touch.
            low = bisect_left(known, start - 1, key=_LAST)
            high = bisect_right(known, last + 1, key=_START)
            parts = [each.part(each.start, min(each.last, start - 1))
                     for each in known[low:high] if each.start < start]
            if new is not None:
                parts.append(new)
            parts += [each.part(max(each.start, last + 1), each.last)
                      for each in known[low:high] if each.last > last]
            self._mappings = (*known[:low], *_merged(parts), *known[high:])

    def __repr__(self) -> str:
        return f"<Iotlb of {len(self._mappings)} mappings>"


def _overlapping(mappings: Sequence[_Mapping], start: int, last: int) -> Iterator[_Mapping]:
    for index in range(bisect_left(mappings, start, key=_LAST), len(mappings)):
        mapping = mappings[index]
        if mapping.start > last:
            return
        yield mapping


def _merged(parts: Iterable[_Mapping]) -> list[_Mapping]:
    merged: list[_Mapping] = []
    for part in parts:
        if merged and merged[-1].goes_on_as(part):
            part = part.part(merged.pop().start, part.last)
        merged.append(part)
    return merged


def _range(iova: GuestAddress | int, length: int) -> tuple[int, int]:
    """First and last address."""
    start = _number(iova)
    if length < 1 or start + length >= ADDRESS_END:
        raise ModelError(
            f"{length:#x} bytes at I/O address {start:#x} are no range of an IOTLB:"
            " it has at least 1 byte and does not reach 2^64"
        )
    return start, start + length - 1


def _number(addr: GuestAddress | int) -> int:
    return addr.value if isinstance(addr, GuestAddress) else GuestAddress(addr).value
