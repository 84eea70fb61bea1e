"""A memory map behind an IOMMU that is replaced while others use it.

GuestMemoryAtomic holds an IommuMemory; who replaces the physical memory makes another one over the
same IOMMU (``with_replaced_backend``). Threads take turns as often as Python lets them, and no
test judges by the clock; the last one has no threads and every order of steps instead.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from threading import Barrier, Event, Thread
from time import sleep

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.endian import U8
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import GuestMemoryError, InvalidGuestAddress, IommuError
from qemuglue.memory.guest_memory import (
    GuestMemoryAtomic,
    GuestMemoryLoadGuard,
    GuestRegion,
    GuestRegionCollection,
    Iommu,
    IommuMemory,
    Iotlb,
    IotlbFails,
    IotlbIterator,
    Permissions,
)
from qemuglue.memory.guest_memory.iommu import CannotResolve

READ, WRITE, BOTH = Permissions.Read, Permissions.Write, Permissions.ReadWrite
PAGE = 0x1000
#: Two regions with a hole between, and where they are one range of I/O addresses.
LOW, HIGH, IOVA = 0x4000, 0x8000, 0x2_0000
#: A thread that is not done after this never will be.
STUCK_S = 60


class Table(Iommu):
    """What is in its IOTLB, and nothing else."""

    def __init__(self) -> None:
        self.tlb = Iotlb()

    def translate(self, iova: GuestAddress, length: int, access: Permissions) -> IotlbIterator:
        try:
            return self.tlb.lookup(iova, length, access)
        except IotlbFails as fails:
            raise CannotResolve([*fails.misses, *fails.access_fails][0], str(fails)) from None


Backend = GuestRegionCollection[GuestRegion]
Memory = IommuMemory[Backend, Table]


def backend(fill: int, *starts: int) -> Backend:
    """A page of bytes ``fill`` at each of ``starts``."""
    return GuestRegionCollection.from_regions([
        GuestRegion(start, ByteBacking(bytearray([fill]) * PAGE)) for start in starts])


def memory(fill: int = 0) -> Memory:
    """Both regions, mapped one behind the other."""
    made: Memory = IommuMemory(backend(fill, LOW, HIGH), Table(), True, AtomicBitmap(1 << 20))
    made.iommu().tlb.set_mapping(IOVA, LOW, PAGE, BOTH)
    made.iommu().tlb.set_mapping(IOVA + PAGE, HIGH, PAGE, BOTH)
    return made


def across(shown: GuestMemoryLoadGuard[Memory], size: int = 32) -> set[int]:
    """Which bytes lie around the seam of the two regions."""
    buffer = bytearray(size)
    shown.read_slice(buffer, GuestAddress(IOVA + PAGE - size // 2))
    return set(buffer)


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def together(*acts: Callable[[], None]) -> None:
    """Each in a thread of its own, all begun at once; raises what one of them raised."""
    errors: list[BaseException] = []
    start = Barrier(len(acts))

    def run(act: Callable[[], None]) -> None:
        try:
            start.wait(STUCK_S)
            act()
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(STUCK_S)
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
    if errors:
        raise errors[0]


# -- threads -------------------------------------------------------------------------------------


def test_a_snapshot_is_of_one_map_and_maps_never_go_back() -> None:
    place = GuestMemoryAtomic(memory(0))
    done = Event()
    last = 120

    def replace() -> None:
        try:
            for fill in range(1, last + 1):
                with place.lock() as guard:
                    new = place.memory().into_inner().with_replaced_backend(
                        backend(fill, LOW, HIGH))
                    guard.replace(new)
        finally:
            done.set()

    def look() -> None:
        newest = 0
        while not done.is_set():
            shown = place.memory()
            first = across(shown)
            assert len(first) == 1, f"two maps in one snapshot: {first}"
            assert across(shown) == first and across(shown.clone()) == first
            [fill] = first
            assert fill >= newest, f"map {fill} behind {newest}"
            newest = fill

    together(replace, look, look, look)
    assert across(place.memory()) == {last}


def test_who_holds_the_lock_loses_no_other_ones_change() -> None:
    """Each thread adds regions to whatever is there; at the end all are."""
    place = GuestMemoryAtomic(memory())
    count, threads = 12, 4

    def add(number: int) -> Callable[[], None]:
        def act() -> None:
            mine = place.clone()
            for index in range(count):
                region = GuestRegion((16 + number * count + index) * PAGE, ByteBacking(PAGE))
                with mine.lock() as guard:
                    old = mine.memory().into_inner()
                    sleep(0)  # let others have a turn, were they not kept waiting
                    guard.replace(old.with_replaced_backend(
                        old.get_backend().insert_region(region)))
        return act

    together(*(add(number) for number in range(threads)))
    found = place.memory().into_inner().get_backend()
    assert found.num_regions() == 2 + count * threads
    starts = [region.start_addr() for region in found.iter()]
    assert starts == sorted(starts)


def test_a_mapping_told_through_one_map_holds_in_all_of_them() -> None:
    place = GuestMemoryAtomic(memory(1))
    old = place.memory()
    mapped, replaced = Event(), Event()

    def replace() -> None:
        with place.lock() as guard:
            guard.replace(place.memory().into_inner().with_replaced_backend(
                backend(2, LOW, HIGH)))
        replaced.set()
        assert mapped.wait(STUCK_S)
        assert place.memory().load(GuestAddress(0x9_0000), U8) == U8(2)

    def tell() -> None:
        assert replaced.wait(STUCK_S)
        old.into_inner().iommu().tlb.set_mapping(0x9_0000, HIGH, PAGE, READ)
        mapped.set()

    together(replace, tell)


def test_an_access_is_translated_once_whatever_is_invalidated_meanwhile() -> None:
    """It is all of one mapping or all of the other, or refused; never some of each."""
    place = GuestMemoryAtomic(memory())
    inner = place.memory().into_inner()
    for start, fill in ((LOW, 0xA), (HIGH, 0xB)):
        inner.get_backend().write_slice(bytes([fill]) * PAGE, GuestAddress(start))
    tlb, done, where = inner.iommu().tlb, Event(), 0x9_0000

    def change() -> None:
        try:
            for _ in range(150):
                tlb.set_mapping(where, LOW, PAGE, READ)
                tlb.invalidate_mapping(where, PAGE)
                tlb.set_mapping(where, HIGH, PAGE, READ)
                tlb.invalidate_all()
        finally:
            done.set()

    def look() -> None:
        while not done.is_set():
            buffer = bytearray(64)
            try:
                place.memory().read_slice(buffer, GuestAddress(where + 0x100))
            except IommuError:
                continue
            assert set(buffer) in ({0xA}, {0xB}), buffer.hex()

    together(change, look, look)


def test_what_is_written_through_any_map_is_in_the_one_bitmap() -> None:
    place = GuestMemoryAtomic(memory())
    bitmap = place.memory().into_inner().bitmap()
    assert isinstance(bitmap, AtomicBitmap)
    tlb, count, threads = place.memory().into_inner().iommu().tlb, 20, 3
    taken: set[int] = set()
    left = list(range(threads))

    def write(number: int) -> Callable[[], None]:
        def act() -> None:
            for index in range(count):
                iova = (0x40 + number * count + index) * PAGE
                tlb.set_mapping(iova, LOW, PAGE, WRITE)
                with place.lock() as guard:
                    shown = place.memory()
                    guard.replace(shown.clone().into_inner().with_replaced_backend(
                        backend(0, LOW, HIGH)))
                shown.write_slice(b"x", GuestAddress(iova + 7))
            left.remove(number)
        return act

    def take() -> None:
        """What a live migration does: the dirty pages, again and again."""
        more = True
        while more:
            more = bool(left)
            for number, word in enumerate(bitmap.get_and_reset()):
                taken.update(64 * number + bit for bit in range(64) if word >> bit & 1)

    together(take, *(write(number) for number in range(threads)))
    assert taken == {0x40 + at for at in range(threads * count)}


# -- who keeps what alive --------------------------------------------------------------------------


def test_an_old_map_lives_as_long_as_somebody_holds_it() -> None:
    place = GuestMemoryAtomic(memory(7))

    class Kept(ByteBacking):
        """One that can be watched."""

        __slots__ = ("__weakref__",)

    backing = Kept(bytearray([9]) * PAGE)
    gone = weakref.ref(backing)
    regions = GuestRegionCollection.from_regions([GuestRegion(LOW, backing)])
    with place.lock() as guard:
        guard.replace(place.memory().into_inner().with_replaced_backend(regions))
    del backing, regions
    shown = place.memory()
    [piece] = shown.get_slices(GuestAddress(IOVA), 4, READ)
    with place.lock() as guard:
        guard.replace(shown.clone().into_inner().with_replaced_backend(backend(1, LOW)))
    assert shown.load(GuestAddress(IOVA), U8) == U8(9)
    assert place.memory().load(GuestAddress(IOVA), U8) == U8(1)
    del shown
    gc.collect()
    assert gone() is not None and piece.load(0, U8) == U8(9), "a slice holds it too"
    del piece
    gc.collect()
    assert gone() is None


# -- every order of steps --------------------------------------------------------------------------

STEPS = st.lists(st.one_of(
    st.tuples(st.just("take"), st.just(0), st.just(0)),
    st.tuples(st.just("replace"), st.integers(0, 7), st.sampled_from(("both", "low"))),
    st.tuples(st.just("switch"), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("map"), st.integers(0, 1), st.sampled_from((LOW, HIGH, None))),
    st.tuples(st.just("clone"), st.integers(0, 7), st.just(0)),
), max_size=14)


def expected(
    fill: int, starts: Sequence[int], enabled: bool, table: dict[int, int], addr: int
) -> int | type[GuestMemoryError]:
    """The byte at ``addr``, or how reading it fails."""
    if enabled:
        page = addr & -PAGE
        if page not in table:
            return IommuError
        addr += table[page] - page
    return fill if addr & -PAGE in starts else InvalidGuestAddress


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_a_snapshot_shows_its_own_memory_through_the_shared_iommu(
    steps: list[tuple[str, int, object]]
) -> None:
    """Whatever is done in whatever order: each snapshot has the memory and the switch that its
    map has, and the table that is there now."""
    place = GuestMemoryAtomic(memory(0))
    table = {IOVA: LOW, IOVA + PAGE: HIGH}
    tlb = place.memory().into_inner().iommu().tlb
    # One record a map, which all its snapshots share: (fill, starts, [enabled]).
    maps: list[tuple[int, tuple[int, ...], list[bool]]] = [(0, (LOW, HIGH), [True])]
    held = [(place.memory(), 0)]
    current = 0
    for number, (what, which, how) in enumerate(steps, 1):
        shown, index = held[which % len(held)]
        if what == "take":
            held.append((place.memory(), current))
        elif what == "clone":
            held.append((shown.clone(), index))
        elif what == "replace":
            regions = (LOW, HIGH) if how == "both" else (LOW,)
            with place.lock() as guard:
                guard.replace(shown.with_replaced_backend(backend(number, *regions)))
            current = len(maps)
            maps.append((number, regions, [maps[index][2][0]]))
        elif what == "switch":
            shown.set_iommu_enabled(how)
            maps[index][2][0] = bool(how)
        else:
            page = IOVA + which * PAGE
            if how is None:
                tlb.invalidate_mapping(page, PAGE)
                table.pop(page, None)
            else:
                assert isinstance(how, int)
                tlb.set_mapping(page, how, PAGE, READ)
                table[page] = how
        for shown, index in [*held, (place.memory(), current)]:
            fill, starts, [enabled] = maps[index]
            for addr in (LOW + 5, HIGH + 5, IOVA + 5, IOVA + PAGE + 5):
                want = expected(fill, starts, enabled, table, addr)
                if isinstance(want, int):
                    assert shown.load(GuestAddress(addr), U8) == U8(want)
                else:
                    with pytest.raises(want):
                        shown.load(GuestAddress(addr), U8)
