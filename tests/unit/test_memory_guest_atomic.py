"""A memory map that is replaced while others use it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import ByteBacking, Le32
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidGuestAddress
from qemuglue.memory.guest_memory import (
    GuestAddressSpace,
    GuestMemory,
    GuestMemoryAtomic,
    GuestRegion,
    GuestRegionCollection,
    Permissions,
)

A = GuestAddress
#: No thread of a test is waited for longer: it hangs.
LIMIT_S = 30


class Mem(GuestRegionCollection[GuestRegion]):
    """A collection that can be referred to weakly."""


def memory(*starts: int, size: int = 0x400) -> Mem:
    return Mem.from_regions([GuestRegion(start, ByteBacking(size)) for start in starts])


def check_two(mem: GuestMemory) -> None:
    """vm-memory's questions about two regions of 0x400 bytes at 0 and 0x1000."""
    regions = mem.physical_memory()
    assert regions is not None and regions.num_regions() == 2
    assert [(each.start_addr().raw_value(), each.len()) for each in regions.iter()] == [
        (0, 0x400), (0x1000, 0x400)
    ]
    assert regions.find_region(A(0x1000)) is not None
    assert regions.find_region(A(0x10000)) is None


def test_every_way_to_the_map_leads_to_it() -> None:
    space = GuestMemoryAtomic.new(memory(0, 0x1000))
    guard = space.memory()
    check_two(guard)
    inner = guard.into_inner()
    check_two(inner)
    check_two(inner.memory())
    check_two(space.clone().memory())
    with space.memory() as mem:
        assert mem is inner
        check_two(mem)
    assert isinstance(space, GuestAddressSpace) and isinstance(inner, GuestAddressSpace)


def test_a_guard_is_its_map() -> None:
    inner = memory(0, 0x1000)
    guard = GuestMemoryAtomic(inner).memory()
    assert isinstance(guard, GuestMemory) and guard.deref() is inner
    assert guard.num_regions() == 2 and guard.last_addr() == A(0x13FF)
    assert guard.write(b"abcd", A(0x1000)) == 4 and guard.read_obj(A(0x1000), Le32) == 0x64636261
    guard.store(Le32(7), A(4))
    assert guard.load(A(4), Le32) == 7
    assert guard.check_range(A(0), 0x400) and not guard.check_range(A(0), 0x401, Permissions.Read)
    assert [each.len() for each in guard.get_slices(A(0x10), 8)] == [8]
    assert guard.physical_memory() is inner and "GuestMemoryLoadGuard" in repr(guard)
    with pytest.raises(InvalidGuestAddress):
        guard.write(b"x", A(0x500))
    with pytest.raises(AttributeError):
        guard.no_such_method()
    with pytest.raises(AttributeError):
        guard._regions  # noqa: B018 (of the map's own things nothing is to be had)


def test_a_clone_of_a_guard_lives_on_its_own() -> None:
    space = GuestMemoryAtomic(memory(0, 0x1000))
    mem = space.memory().clone()
    assert mem.num_regions() == 2
    guard = space.memory()
    clone = guard.clone()
    guard.into_inner()
    assert clone.num_regions() == 2
    uses: list[Callable[[], object]] = [
        guard.deref, guard.into_inner, guard.clone, guard.physical_memory,
        lambda: guard.num_regions(),
        lambda: guard.write(b"x", A(0)), lambda: guard.check_range(A(0), 1), guard.__enter__,
    ]
    for use in uses:
        with pytest.raises(ModelError, match="gave its map away"):
            use()


def test_hotplug() -> None:
    original = memory(0, 0x10_0000, size=0x1000)
    space = GuestMemoryAtomic(original)
    before = space.memory()
    new = original
    with space.lock() as guard:
        for start in (0x8000, 0x4000, 0xC000):
            new = new.insert_region(GuestRegion(start, ByteBacking(0x1000)))
        with pytest.raises(ModelError):
            new.insert_region(GuestRegion(0x8000, ByteBacking(0x1000)))
        assert space.memory().num_regions() == 2, "locked is not replaced"
        guard.replace(new)
        assert space.memory().num_regions() == 5, "seen at once"
    assert before.num_regions() == 2 and original.num_regions() == 2
    assert before.clone().num_regions() == 2, "of the map it was taken from"
    with pytest.raises(InvalidGuestAddress):
        before.write(b"x", A(0x8000))
    assert space.memory().write(b"x", A(0x8000)) == 1
    assert space.clone().memory().into_inner() is new


def test_slices_of_an_old_map_stay_of_it() -> None:
    old, new = memory(0), memory(0)
    space = GuestMemoryAtomic(old)
    (piece,) = space.memory().get_slices(A(0), 4)
    space.lock().replace(new)
    piece.write(b"old!", 0)
    assert old.read_obj(A(0), Le32) != 0 and space.memory().read_obj(A(0), Le32) == 0


def test_a_guard_keeps_the_old_map_alive_and_nothing_else_does() -> None:
    space = GuestMemoryAtomic(memory(0))
    gone = weakref.ref(space.memory().into_inner())
    guard = space.memory()
    space.lock().replace(memory(0, 0x1000))
    gc.collect()
    assert gone() is not None and guard.num_regions() == 1
    clone = guard.clone()
    del guard
    gc.collect()
    assert gone() is not None
    del clone
    gc.collect()
    assert gone() is None


# -- the lock ----------------------------------------------------------------------------------


def test_the_lock_is_given_back_however_its_guard_ends() -> None:
    space = GuestMemoryAtomic(memory(0))
    with space.lock():
        pass
    with pytest.raises(ZeroDivisionError), space.lock():
        raise ZeroDivisionError
    space.lock().release()
    guard = space.lock()
    guard.release()
    guard.release()
    space.lock()  # dropped at once, as a Rust guard is
    guard = space.lock()
    guard.replace(memory(0, 0x1000))
    with pytest.raises(ModelError, match="given back"):
        guard.replace(memory(0))
    space.lock().release()
    assert space.memory().num_regions() == 2


def test_who_holds_the_lock_does_not_wait_for_it() -> None:
    space = GuestMemoryAtomic(memory(0))
    with space.lock():
        for each in (space, space.clone()):
            with pytest.raises(ModelError, match="holds the lock"):
                each.lock()
        assert GuestMemoryAtomic(memory(0)).lock() is not None, "each place has its own"


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ModelError, match="a GuestMemory, not int"):
        GuestMemoryAtomic(5)  # type: ignore[type-var]
    space = GuestMemoryAtomic(memory(0))
    guard = space.lock()
    with pytest.raises(ModelError, match="a GuestMemory, not NoneType"):
        guard.replace(None)  # type: ignore[arg-type]
    guard.replace(memory(0, 0x1000))
    assert space.memory().num_regions() == 2
    assert "GuestMemoryAtomic" in repr(space)


def test_another_thread_waits_for_the_lock_and_readers_do_not() -> None:
    space = GuestMemoryAtomic(memory(0))
    order: list[str] = []
    started = threading.Event()

    def replacer() -> None:
        started.set()
        with space.lock() as guard:
            order.append("second")
            guard.replace(memory(0, 0x1000, 0x2000))

    with space.lock() as first:
        thread = threading.Thread(target=replacer)
        thread.start()
        assert started.wait(LIMIT_S)
        assert space.memory().num_regions() == 1, "a reader does not wait"
        order.append("first")
        first.replace(memory(0, 0x1000))
    thread.join(LIMIT_S)
    assert not thread.is_alive() and order == ["first", "second"]
    assert space.memory().num_regions() == 3


def test_no_replacement_is_lost_and_every_snapshot_is_whole() -> None:
    """Four threads each add regions of their own to what is there, while others look: without
    the lock some would be lost, and a snapshot that changed would not be a run of additions."""
    space = GuestMemoryAtomic(memory(0))
    each, threads = 25, 4
    wrong: list[str] = []
    done = threading.Event()

    def add(number: int) -> None:
        for n in range(each):
            with space.lock() as guard:
                now = space.memory().into_inner()
                start = 0x10_0000 * (number + 1) + 0x1000 * n
                guard.replace(now.insert_region(GuestRegion(start, ByteBacking(0x10))))

    def look() -> None:
        last = 0
        while not done.is_set():
            with space.memory() as mem:
                count = mem.num_regions()
                if count < last or count != len(list(mem.iter())) or mem.num_regions() != count:
                    wrong.append(f"{last} then {count}")
                last = count

    readers = [threading.Thread(target=look) for _ in range(2)]
    writers = [threading.Thread(target=add, args=(n,)) for n in range(threads)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join(LIMIT_S)
    done.set()
    for thread in readers:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in (*readers, *writers))
    assert space.memory().num_regions() == 1 + threads * each and wrong == []
