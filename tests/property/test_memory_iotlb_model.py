"""Iotlb against the naive oracle: a dictionary with an entry for every single byte."""

from __future__ import annotations

from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_memory.iotlb import Iotlb, IotlbFails
from qemuglue.memory.guest_memory.permissions import Permissions

#: The space looked at; mappings begin at a few places in it, so that they meet.
SPAN = 48
SPACE = 1 << 64
#: The lowest I/O address of an example: at both ends of the space, and between.
BASES = (0, 0x7FFF_FFFF_FFFF_FFF0, SPACE - SPAN - 1)
#: Targets minus I/O address; equal ones let neighbours merge.
SHIFTS = (0, 0x100, SPACE - 1, SPACE - 0x20)

Part = tuple[int, int]


class Oracle:
    """byte -> (what to add to get its target, permissions)."""

    def __init__(self) -> None:
        self.bytes: dict[int, tuple[int, Permissions]] = {}

    def map(self, iova: int, shift: int, length: int, perm: Permissions) -> None:
        self.bytes.update({iova + i: (shift, perm) for i in range(length)})

    def forget(self, iova: int, length: int) -> None:
        for i in range(length):
            self.bytes.pop(iova + i, None)

    def lookup(
        self, iova: int, length: int, access: Permissions
    ) -> list[Part] | tuple[list[Part], list[Part]]:
        """(target, bytes) of each run of bytes that are alike; or (misses, access failures)."""
        runs = []
        for what, group in groupby(range(iova, iova + length), self.bytes.get):
            run = list(group)
            runs.append((what, run[0], len(run)))
        misses = [(start, n) for what, start, n in runs if what is None]
        forbidden = [
            (start, n) for what, start, n in runs
            if what is not None and access.value & ~what[1].value
        ]
        if misses or forbidden:
            return misses, forbidden
        return [((start + what[0]) % SPACE, n) for what, start, n in runs if what is not None]


def seen(
    tlb: Iotlb, iova: int, length: int, access: Permissions
) -> list[Part] | tuple[list[Part], list[Part]]:
    try:
        found = tlb.lookup(GuestAddress(iova), length, access)
    except IotlbFails as fails:
        return (
            [(each.base.raw_value(), each.length) for each in fails.misses],
            [(each.base.raw_value(), each.length) for each in fails.access_fails],
        )
    return [(each.base.raw_value(), each.length) for each in found]


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int]:
    start = draw(st.integers(0, SPAN - 1))
    return start, draw(st.integers(1, SPAN - start))


PERMISSIONS = st.sampled_from(Permissions)
CHANGES = st.one_of(
    st.tuples(st.just("map"), ranges(), st.sampled_from(SHIFTS), PERMISSIONS),
    st.tuples(st.just("map"), ranges(), st.sampled_from(SHIFTS[:2]), st.just(Permissions.Read)),
    st.tuples(st.just("forget"), ranges(), st.just(0), st.just(Permissions.No)),
)


@settings(max_examples=250, deadline=None)
@given(
    base=st.sampled_from(BASES), changes=st.lists(CHANGES, max_size=14),
    asked=st.lists(st.tuples(ranges(), PERMISSIONS), min_size=1, max_size=6), clear=st.booleans(),
)
def test_every_lookup_is_what_the_bytes_say(
    base: int, changes: list[tuple[str, tuple[int, int], int, Permissions]],
    asked: list[tuple[tuple[int, int], Permissions]], clear: bool,
) -> None:
    tlb, oracle = Iotlb(), Oracle()
    if clear:
        tlb.set_mapping(base, 7, SPAN, Permissions.ReadWrite)
        tlb.invalidate_all()
    for what, (start, length), shift, perm in changes:
        iova = base + start
        if what == "map":
            tlb.set_mapping(iova, (iova + shift) % SPACE, length, perm)
            oracle.map(iova, shift, length, perm)
        else:
            tlb.invalidate_mapping(iova, length)
            oracle.forget(iova, length)
        for (start, length), access in [((0, SPAN), Permissions.No), *asked]:
            expected = oracle.lookup(base + start, length, access)
            assert seen(tlb, base + start, length, access) == expected


@settings(max_examples=100, deadline=None)
@given(
    changes=st.lists(CHANGES, max_size=14), asked=ranges(), access=PERMISSIONS,
)
def test_what_failed_and_is_then_mapped_is_found(
    changes: list[tuple[str, tuple[int, int], int, Permissions]], asked: tuple[int, int],
    access: Permissions,
) -> None:
    """What an Iommu does: it puts in what a lookup lacks, and the next lookup succeeds."""
    tlb = Iotlb()
    for what, (start, length), shift, perm in changes:
        if what == "map":
            tlb.set_mapping(start, shift, length, perm)
        else:
            tlb.invalidate_mapping(start, length)
    start, length = asked
    try:
        tlb.lookup(start, length, access)
    except IotlbFails as fails:
        lacking = [*fails.misses, *fails.access_fails]
        assert lacking
        for each in lacking:
            tlb.set_mapping(each.base, each.base, each.length, access)
    found = list(tlb.lookup(start, length, access))
    assert sum(each.length for each in found) == length and all(each.length for each in found)
