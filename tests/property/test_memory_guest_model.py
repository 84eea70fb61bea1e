"""Guest memory against a naive oracle: a dict of bytes, and the rules written down.

The oracle knows nothing of regions as objects: only which addresses there are (and which of them
belong together), what byte each holds, and walks from address to address. Every outcome is
compared: values, counts, which error with which data, what the stream has left, and all bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from guest_regions import Remote
from hypothesis import event, given, settings
from hypothesis import strategies as st

from qemuglue.errors import ModelError
from qemuglue.memory import Backing, ByteBacking, SparseBacking
from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.endian import ENDIAN_TYPES, EndianInt
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestIOError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import (
    GuestMemoryAtomic,
    GuestRegion,
    GuestRegionCollection,
    MemoryRegionOverlap,
    NoMemoryRegion,
    Permissions,
    UnsortedMemoryRegions,
)
from qemuglue.memory.streams import SliceReader, SliceWriter

TOP = 1 << 64
#: No region of the test is longer.
MAX_REGION = 24
Mem = GuestRegionCollection[GuestRegion]
#: What an operation did: its value, or its error's class and data.
Outcome = tuple[object, ...]
BACKINGS: tuple[Callable[[int], Backing], ...] = (ByteBacking, SparseBacking, Remote)

STARTS = st.one_of(st.integers(0, 80), st.integers(TOP - 60, TOP - 1))
RANGES = st.tuples(STARTS, st.integers(1, MAX_REGION)).filter(lambda each: sum(each) <= TOP)
COUNTS = st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 2, 4, 8, TOP - 1]))
#: Which region (modulo how many), from its start or its end, and how far from there.
PLACES = st.tuples(st.integers(0, 5), st.booleans(), st.integers(-4, 4))
#: Likewise, where an access of one value has a chance.
ALIGNED = st.tuples(
    st.integers(0, 5), st.sampled_from([False, False, True]), st.sampled_from([0, 0, 4, 8, -4, 1])
)


@dataclass
class Oracle:
    """``ranges`` are (start, size) in any order; ``bytes`` has each of their addresses."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    bytes: dict[int, int] = field(default_factory=dict)

    def place(self, which: int, at_end: bool, delta: int) -> int:
        if not self.ranges:
            return delta % TOP
        start, size = sorted(self.ranges)[which % len(self.ranges)]
        return (start + (size if at_end else 0) + delta) % TOP

    def range_at(self, addr: int) -> tuple[int, int] | None:
        return next((r for r in self.ranges if r[0] <= addr < r[0] + r[1]), None)

    def walk(self, addr: int, count: int) -> list[int]:
        """The addresses that an access moves: up to the first that is not there."""
        found: list[int] = []
        while len(found) < count and addr in self.bytes:
            found.append(addr)
            addr = (addr + 1) % TOP
            if len(found) > len(self.bytes):
                raise AssertionError("the test's addresses go round")
        return found

    def hole_at(self, addr: int) -> Outcome:
        return (InvalidGuestAddress, addr)

    def moved(self, addr: int, count: int) -> tuple[list[int], Outcome | None]:
        """The addresses moved; or the error, where there is not even the first."""
        found = self.walk(addr, count)
        return (found, None) if found or not count else ([], self.hole_at(addr))

    def whole(self, addr: int, count: int) -> Outcome | None:
        found, error = self.moved(addr, count)
        if error is None and len(found) < count:
            error = (PartialBuffer, count, len(found))
        return error

    def single(self, addr: int, size: int) -> Outcome | None:
        """The error of one access, if it is one."""
        at = self.range_at(addr)
        if at is None:
            return self.hole_at(addr)
        fits = addr + size <= at[0] + at[1]
        return None if fits and (addr - at[0]) % size == 0 else (InvalidBackendAddress,)

    def slices(self, addr: int, count: int) -> Iterator[object]:
        """The lengths of the slices, then the error if there is one."""
        while count:
            at = self.range_at(addr)
            if at is None:
                yield self.hole_at(addr)
                return
            size = min(at[0] + at[1] - addr, count)
            yield size
            addr, count = (addr + size) % TOP, count - size


def outcome(call: Callable[[], object]) -> Outcome:
    try:
        return ("value", call())
    except InvalidGuestAddress as error:
        return (InvalidGuestAddress, error.addr.raw_value())
    except PartialBuffer as error:
        return (PartialBuffer, error.expected, error.completed)
    except GuestIOError as error:
        return (GuestIOError, error.kind)
    except ModelError as error:
        return (type(error),)


class World:
    """The memory and its oracle, which every operation is done to."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self.mem: Mem = GuestRegionCollection()
        self.space = GuestMemoryAtomic(self.mem)
        self.regions: dict[tuple[int, int], GuestRegion] = {}
        self.dirty: dict[GuestRegion, set[int]] = {}

    # -- the map -----------------------------------------------------------------------------

    def insert(self, where: tuple[int, int], kind: int) -> None:
        start, size = where
        bitmap = AtomicBitmap(size, 1)
        region = GuestRegion(start, BACKINGS[kind](size), bitmap=bitmap)
        taken = any(start < s + n and s < start + size for s, n in self.oracle.ranges)
        old, before = self.mem, list(self.mem)
        got = outcome(lambda: self.mem.insert_region(region))
        assert list(old) == before
        if taken:
            assert got == (MemoryRegionOverlap,)
            return
        assert got[0] == "value"
        self._replace(got[1])
        self.oracle.ranges.append(where)
        self.oracle.bytes.update(dict.fromkeys(range(start, start + size), 0))
        self.regions[where] = region
        self.dirty[region] = set()

    def remove(self, which: tuple[int, bool, int], change: int) -> None:
        base = self.oracle.place(which[0], False, which[2] if which[1] else 0)
        at = self.oracle.range_at(base)
        size = (at[1] if at else 4) + change
        got = outcome(lambda: self.mem.remove_region(GuestAddress(base), size))
        if (base, size) not in self.oracle.ranges:
            assert got == (NoMemoryRegion,)
            return
        assert isinstance(got[1], tuple) and got[1][1] is self.regions[base, size]
        self._replace(got[1][0])
        self.oracle.ranges.remove((base, size))
        for addr in range(base, base + size):
            del self.oracle.bytes[addr]

    def _replace(self, new: object) -> None:
        assert isinstance(new, GuestRegionCollection)
        before, old = self.space.memory(), self.mem
        self.space.lock().replace(new)
        self.mem = new
        assert before.deref() is old and self.space.memory().deref() is new

    # -- bytes -------------------------------------------------------------------------------

    def access(self, place: tuple[int, bool, int], data: bytes, count: int, kind: str) -> None:
        addr = self.oracle.place(*place)
        at, oracle = GuestAddress(addr), self.oracle
        if kind == "write":
            found, error = oracle.moved(addr, len(data))
            assert outcome(lambda: self.mem.write(data, at)) == (error or ("value", len(found)))
            self.put(found, data)
        elif kind == "write_slice":
            error = oracle.whole(addr, len(data))
            assert outcome(lambda: self.mem.write_slice(data, at)) == (error or ("value", None))
            self.put(oracle.walk(addr, len(data)), data)
        elif kind in ("read", "read_slice"):
            buf = bytearray(data)
            found, error = oracle.moved(addr, len(buf))
            want: object = len(found)
            if kind == "read_slice":
                error, want = oracle.whole(addr, len(buf)), None
            read = getattr(self.mem, kind)
            assert outcome(lambda: read(buf, at)) == (error or ("value", want))
            shown = bytes(oracle.bytes[each] for each in found)
            assert buf == shown + data[len(shown) :], "and nothing behind what was read"
        elif kind in ("from", "from_exact"):
            self.filled(at, data, count, kind == "from_exact")
        else:
            self.emptied(at, count, len(data), kind == "to_all")

    def filled(self, at: GuestAddress, data: bytes, count: int, exact: bool) -> None:
        source = SliceReader(data)
        found, error = self.oracle.moved(at.raw_value(), count)
        found = found[: len(data)]
        if exact:
            got = outcome(lambda: self.mem.read_exact_volatile_from(at, source, count))
            if error is None and len(found) != count:
                error = (PartialBuffer, count, len(found))
            assert got == (error or ("value", None))
        else:
            got = outcome(lambda: self.mem.read_volatile_from(at, source, count))
            assert got == (error or ("value", len(found)))
        assert source.remaining == data[len(found) :]
        self.put(found, data)

    def emptied(self, at: GuestAddress, count: int, room: int, whole: bool) -> None:
        buf = bytearray(room)
        found, error = self.oracle.moved(at.raw_value(), count)
        if error is None and room < len(found):
            error = (GuestIOError, ErrorKind.WRITE_ZERO)
        want: object = len(found)
        if whole:
            if error is None and len(found) != count:
                error = (PartialBuffer, count, len(found))
            want = None
        name = "write_all_volatile_to" if whole else "write_volatile_to"
        got = outcome(lambda: getattr(self.mem, name)(at, SliceWriter(buf), count))
        assert got == (error or ("value", want))
        shown = bytes(self.oracle.bytes[each] for each in found)[:room]
        assert buf == shown.ljust(room, b"\0")

    def typed(self, place: tuple[int, bool, int], value: EndianInt, once: bool) -> None:
        addr, cls = self.oracle.place(*place), type(value)
        at, oracle = GuestAddress(addr), self.oracle
        if once:
            error = oracle.single(addr, cls.size)
            store, load = (lambda: self.mem.store(value, at)), (lambda: self.mem.load(at, cls))
        else:
            error = oracle.whole(addr, cls.size)
            store = lambda: self.mem.write_obj(value, at)  # noqa: E731
            load = lambda: self.mem.read_obj(at, cls)  # noqa: E731
        assert outcome(store) == (error or ("value", None))
        if not (once and error):
            self.put(oracle.walk(addr, cls.size), value.raw)
        got = outcome(load)
        assert got == (error or ("value", value))
        event(f"typed: {'once' if once else 'object'}, {'refused' if error else 'done'}")

    def in_region(self, place: tuple[int, bool, int], data: bytes) -> None:
        """The same as the region itself sees it: from its start on, and to its end."""
        if not self.oracle.ranges:
            return
        start, size = sorted(self.oracle.ranges)[place[0] % len(self.oracle.ranges)]
        region = self.regions[start, size]
        offset = ((size if place[1] else 0) + place[2]) % TOP
        at = MemoryRegionAddress(offset)
        room = max(size - offset, 0)
        done = min(room, len(data))
        want: Outcome = ("value", done) if room or not data else (InvalidBackendAddress,)
        assert outcome(lambda: region.write(data, at)) == want
        self.put(list(range(start + offset, start + offset + done)), data)
        buf = bytearray(len(data))
        assert outcome(lambda: region.read(buf, at)) == want
        assert buf[:done] == data[:done] and not any(buf[done:])
        fits = offset + len(data) <= size
        got = outcome(lambda: region.get_slice(at, len(data)).len())
        assert got == (("value", len(data)) if fits else (InvalidBackendAddress,))

    def put(self, addresses: list[int], data: bytes) -> None:
        for addr, byte in zip(addresses, data, strict=False):
            self.oracle.bytes[addr] = byte
            start, size = self.oracle.range_at(addr) or (0, 0)
            self.dirty[self.regions[start, size]].add(addr - start)

    # -- questions ---------------------------------------------------------------------------

    def ask(self, place: tuple[int, bool, int], count: int) -> None:
        addr = self.oracle.place(*place)
        at, oracle, mem = GuestAddress(addr), self.oracle, self.mem
        here = oracle.range_at(addr)
        region = mem.find_region(at)
        assert region is (None if here is None else self.regions[here])
        assert mem.address_in_range(at) is (here is not None)
        assert mem.check_address(at) == (None if here is None else at)
        found = mem.to_region_addr(at)
        if here is None:
            assert found is None
        else:
            assert found == (region, MemoryRegionAddress(addr - here[0]))
        assert mem.check_range(at, count) is (len(oracle.walk(addr, count)) == count)
        there = addr + count < TOP and oracle.range_at(addr + count) is not None
        assert mem.checked_offset(at, count) == (at.unchecked_add(count) if there else None)
        pieces = list(oracle.slices(addr, count))
        assert taken(mem, at, count) == pieces
        got = outcome(lambda: mem.get_slice(at, count).len())
        if here is None:
            assert got == oracle.hole_at(addr)
        else:
            fits = addr + count <= sum(here)
            assert got == (("value", count) if fits else (InvalidBackendAddress,))
        self.check()

    def check(self) -> None:
        """All of the map, every byte, and every mark."""
        ranges = sorted(self.oracle.ranges)
        assert [(r.start_addr().raw_value(), r.len()) for r in self.mem] == ranges
        assert self.mem.num_regions() == len(ranges)
        last = max((start + size - 1 for start, size in ranges), default=0)
        assert self.mem.last_addr() == GuestAddress(last)
        for start, size in ranges:
            region = self.regions[start, size]
            shown = bytes(self.oracle.bytes[each] for each in range(start, start + size))
            assert region.backing.read(0, size) == shown
            marked = {each for each in range(size) if region.bitmap().dirty_at(each)}
            assert marked == self.dirty[region]


def taken(mem: Mem, at: GuestAddress, count: int) -> list[object]:
    found: list[object] = []
    pieces = mem.get_slices(at, count, Permissions.Read)
    try:
        for piece in pieces:
            found.append(piece.len())
    except InvalidGuestAddress as error:
        found.append((InvalidGuestAddress, error.addr.raw_value()))
    assert next(pieces, None) is None
    return found


ACCESSES = ("write", "write_slice", "read", "read_slice", "from", "from_exact", "to", "to_all")
VALUES = st.sampled_from(ENDIAN_TYPES).flatmap(
    lambda cls: st.builds(cls, st.integers(0, (1 << 8 * cls.size) - 1))
)
DATA = st.binary(max_size=40)
STEPS = st.one_of(
    st.tuples(st.just("insert"), RANGES, st.integers(0, len(BACKINGS) - 1)),
    st.tuples(st.just("remove"), PLACES, st.sampled_from([0, 0, 0, 1, -1])),
    st.tuples(st.just("access"), PLACES, DATA, COUNTS, st.sampled_from(ACCESSES)),
    st.tuples(st.just("access"), PLACES, DATA, COUNTS, st.sampled_from(ACCESSES)),
    st.tuples(st.just("typed"), ALIGNED, VALUES, st.booleans()),
    st.tuples(st.just("in_region"), PLACES, DATA),
    st.tuples(st.just("ask"), PLACES, COUNTS),
)
FIRST = st.lists(st.tuples(st.just("insert"), RANGES, st.integers(0, 2)), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(FIRST, st.lists(STEPS, max_size=12))
def test_guest_memory_does_what_the_oracle_does(
    first: list[tuple[object, ...]], steps: list[tuple[object, ...]]
) -> None:
    world = World()
    for name, *arguments in first + steps:
        getattr(world, str(name))(*arguments)
    world.check()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=4))
def test_which_regions_make_a_collection(ranges: list[tuple[int, int]]) -> None:
    """The first pair in which something is wrong says what."""
    want: Outcome = (NoMemoryRegion,) if not ranges else ("value",)
    for (one, size), (other, _) in pairwise(ranges):
        if one > other:
            want = (UnsortedMemoryRegions,)
            break
        if one + size > other:
            want = (MemoryRegionOverlap,)
            break
    regions = [GuestRegion(start, ByteBacking(size)) for start, size in ranges]
    assert outcome(lambda: GuestRegionCollection.from_regions(regions))[:1] == want
