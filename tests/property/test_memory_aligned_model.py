"""Aligned addresses are plain numbers with a promise: no step breaks it."""

from __future__ import annotations

import ctypes

from hypothesis import given
from hypothesis import strategies as st

from qemuglue.memory.aligned import AlignedGuestAddress
from qemuglue.memory.byte_valued import ByteStructure
from qemuglue.memory.bytes import ByteValued
from qemuglue.memory.endian import ENDIAN_TYPES
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.native import NATIVE_TYPES


class Pair(ByteStructure, ctypes.BigEndianStructure):
    """12 bytes, aligned to 4: size and alignment are not the same."""

    _fields_ = (("a", ctypes.c_uint32 * 2), ("b", ctypes.c_uint32))


ALIGNMENTS = {
    **{cls: cls.size for cls in (*ENDIAN_TYPES, *NATIVE_TYPES)}, Pair: 4,
}
TYPES = st.sampled_from(list(ALIGNMENTS))
ADDRESSES = st.one_of(
    st.integers(0, ADDRESS_END - 1), st.integers(0, 64),
    st.integers(ADDRESS_END - 64, ADDRESS_END - 1),
)
COUNTS = st.one_of(st.integers(0, 5), st.integers(0, ADDRESS_END))


@given(ADDRESSES, TYPES)
def test_there_is_one_exactly_at_multiples(addr: int, cls: type[ByteValued]) -> None:
    made = AlignedGuestAddress.new(addr, cls)
    assert (made is not None) == (addr % ALIGNMENTS[cls] == 0)
    if made is not None:
        assert int(made) == addr and made.to_guest_address() == GuestAddress(addr)


@given(ADDRESSES, TYPES, COUNTS)
def test_steps_go_so_many_values_or_nowhere(addr: int, cls: type[ByteValued], count: int) -> None:
    here = AlignedGuestAddress.of(addr - addr % ALIGNMENTS[cls], cls)
    at, far = int(here), count * cls.size
    on, back = here.checked_add(count), here.checked_sub(count)
    assert (None if on is None else int(on)) == (at + far if at + far < ADDRESS_END else None)
    assert (None if back is None else int(back)) == (at - far if at >= far else None)
    for there in (on, back):
        assert there is None or int(there) % ALIGNMENTS[cls] == 0
    if on is not None:
        assert on.checked_offset_from(here) == count and on.checked_sub(count) == here
        assert here.checked_offset_from(on) == (None if count else 0)


@given(ADDRESSES, ADDRESSES, TYPES)
def test_offsets_are_whole_values(one: int, two: int, cls: type[ByteValued]) -> None:
    step = ALIGNMENTS[cls]
    a, b = (AlignedGuestAddress.of(addr - addr % step, cls) for addr in (one, two))
    count, rest = divmod(int(a) - int(b), cls.size)
    assert a.checked_offset_from(b) == (count if count >= 0 and not rest else None)
