"""The first memory model against a naive oracle, and the three lookups against each other.

The oracle knows one thing of a map: which region has each byte. All else is the written rules.
"""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.endian import ENDIAN_TYPES, EndianInt
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_error import (
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.memory_map import (
    BisectLookup,
    GuestMemory,
    InvalidGuestAddressRange,
    LinearLookup,
    MemoryAccess,
    MemoryMapping,
    RadixLookup,
    ReadFromSource,
    RegionMap,
    Span,
)

LOOKUPS = (LinearLookup, BisectLookup, RadixLookup)
RANDOMS = st.randoms(use_true_random=False)

#: (error's name or "", all that it tells or what was given)
Outcome = tuple[object, ...]


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    """Sorted and disjoint, with what lookups stumble over: neighbours, single bytes, the first
    and the last address, bounds at powers of 16 and just beside them."""
    near = st.builds(
        lambda shift, off: max((1 << shift) + off, 0), st.integers(0, 64), st.integers(-2, 0)
    )
    bounds = sorted(draw(st.sets(
        st.one_of(near, st.integers(0, ADDRESS_END), st.integers(0, 40), st.just(0),
                  st.just(ADDRESS_END), st.integers(ADDRESS_END - 20, ADDRESS_END)),
        min_size=2, max_size=24,
    )))
    return [
        Span(first, behind - first) for first, behind in pairwise(bounds) if draw(st.booleans())
    ]


@settings(max_examples=200, deadline=None)
@given(spans(), st.lists(st.integers(0, ADDRESS_END - 1), max_size=8))
def test_lookups_agree_with_each_other_and_with_the_spans(
    made: list[Span], others: list[int]
) -> None:
    lookups = [lookup(made) for lookup in LOOKUPS]
    edges = {0, ADDRESS_END - 1}
    for span in made:
        edges |= {span.start - 1, span.start, span.last, span.last + 1}
        edges.add((span.start + span.last) // 2)
    for addr in [*sorted(edges), *others]:
        if 0 <= addr < ADDRESS_END:
            want = [number for number, span in enumerate(made)
                    if span.start <= addr < span.start + span.size]
            got = [lookup.find(addr) for lookup in lookups]
            assert got == [want[0] if want else None] * 3, hex(addr)


class Oracle:
    """Bytes by address, each with the number of its region."""

    def __init__(self, placed: list[tuple[int, bytes]]) -> None:
        self.region: dict[int, int] = {}
        self.byte: dict[int, int] = {}
        for number, (start, data) in enumerate(placed):
            for at, byte in enumerate(data, start):
                self.region[at], self.byte[at] = number, byte
        self.start = {number: start for number, (start, _) in enumerate(placed)}

    def run(self, addr: int) -> int:
        """Bytes from ``addr`` to the end of its region."""
        here, n = self.region.get(addr), 0
        while here is not None and self.region.get(addr + n) == here:
            n += 1
        return n

    def put(self, addr: int, data: bytes) -> None:
        for at, byte in enumerate(data, addr):
            self.byte[at] = byte

    def get(self, addr: int, size: int) -> bytes:
        return bytes(self.byte[at] for at in range(addr, addr + size))

    def whole(self, addr: int, size: int) -> Outcome | None:
        """What an access says that wants all of it in one region; None if it may go on."""
        if addr not in self.region or size > self.run(addr):
            return "InvalidGuestAddressRange", addr, size
        return None

    def counted(self, addr: int, data: bytes | None, size: int, *, old: bool) -> Outcome:
        """``write`` and ``read``, and their old spellings."""
        if not size and not old:
            return ("", 0, b"")
        if addr not in self.region:
            return "InvalidGuestAddress", addr
        n = min(size, self.run(addr))
        if data is not None:
            self.put(addr, data[:n])
            return ("", n, b"")
        return ("", n, self.get(addr, n))

    def all_of(self, addr: int, data: bytes | None, size: int) -> Outcome:
        """``write_slice`` and ``read_slice``."""
        told = self.counted(addr, data, size, old=False)
        if told[0] or told[1] == size:
            return told
        return "PartialBuffer", size, told[1]

    def one(self, addr: int, size: int) -> Outcome | None:
        """``store`` and ``load``, but for the bytes."""
        told = self.whole(addr, size)
        if told is None and (addr - self.start[self.region[addr]]) % size:
            return "MemoryAccess", addr, "InvalidBackendAddress"
        return told

    def fill(self, addr: int, source: bytes, count: int) -> Outcome:
        """``read_to_memory``: and what is left in the source."""
        told = self.whole(addr, count)
        if told is not None:
            return *told, source
        data = source[:count]
        self.put(addr, data)
        if len(data) < count:
            return "MemoryAccess", addr, ("ReadFromSource", count, len(data)), b""
        return ("", source[count:])

    def drain(self, addr: int, count: int) -> Outcome:
        """``write_from_memory``: and what came."""
        told = self.whole(addr, count)
        return (*told, b"") if told is not None else ("", self.get(addr, count))


def told(error: GuestMemoryError) -> Outcome:
    """All that an error tells."""
    match error:
        case InvalidGuestAddressRange():
            return "InvalidGuestAddressRange", error.addr.raw_value(), error.size
        case InvalidGuestAddress():
            return "InvalidGuestAddress", error.addr.raw_value()
        case PartialBuffer():
            return "PartialBuffer", error.expected, error.completed
        case MemoryAccess(error=ReadFromSource() as inner):
            assert error.completed == inner.completed
            return ("MemoryAccess", error.addr.raw_value(),
                    ("ReadFromSource", inner.expected, inner.completed))
        case MemoryAccess(error=InvalidBackendAddress()):
            return "MemoryAccess", error.addr.raw_value(), "InvalidBackendAddress"
    raise AssertionError(f"an error that no rule has: {error!r}")


class Pair:
    """A random map as the model and as the oracle."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        top = rng.random() < 0.3
        at = ADDRESS_END - rng.randrange(40, 70) if top else rng.choice((0, 0x0FF8, 0xFFFF_FFF5))
        self.low = at
        placed: list[tuple[int, bytes]] = []
        for _ in range(rng.randrange(1, 6)):
            at += rng.choice((0, 0, 1, 3, 8))
            size = min(rng.choice((1, 2, 7, 8, 16)), ADDRESS_END - at)
            if size > 0:
                placed.append((at, rng.randbytes(size)))
                at += size
        if top and at < ADDRESS_END and rng.random() < 0.7:
            placed.append((at, rng.randbytes(ADDRESS_END - at)))
        self.placed = placed
        self.oracle = Oracle(placed)
        self.backings: list[ByteBacking] = []
        regions: list[tuple[int, MemoryMapping]] = []
        for number, (start, data) in enumerate(placed):
            # A mapping that begins at an odd offset is not aligned for its host.
            before = rng.choice((0, 0, 3))
            self.oracle.start[number] = start - before
            self.backings.append(ByteBacking(bytearray(b"\xee" * before + data)))
            regions.append((start, MemoryMapping(self.backings[-1], before)))
        self.memory = GuestMemory.from_regions(regions, rng.choice(LOOKUPS))

    def address(self) -> int:
        return (self.low + self.rng.randrange(-4, 60)) % ADDRESS_END

    def check_bytes(self) -> None:
        for backing, (start, data) in zip(self.backings, self.placed, strict=True):
            guard = len(backing) - len(data)
            assert backing.data[guard:] == self.oracle.get(start, len(data))
            assert backing.data[:guard] == b"\xee" * guard, "nothing before a mapping is touched"


def buffers(pair: Pair, verb: str, addr: int) -> tuple[Outcome, Outcome]:
    """One access of a byte string, by both."""
    rng, oracle = pair.rng, pair.oracle
    size = rng.choice((0, 1, 2, 4, 8, rng.randrange(0, 40)))
    is_write = "write" in verb
    data = rng.randbytes(size)
    buf = bytearray(data) if is_write else bytearray(size)
    try:
        n = getattr(pair.memory, verb)(buf, rng.choice((addr, GuestAddress(addr))))
        moved = size if n is None else n
        got: Outcome = ("", moved, b"" if is_write else bytes(buf[:moved]))
    except GuestMemoryError as error:
        got = told(error)
    sent = data if is_write else None
    if verb.endswith("slice"):
        return got, oracle.all_of(addr, sent, size)
    return got, oracle.counted(addr, sent, size, old=verb.endswith("at_addr"))


def values(pair: Pair, verb: str, addr: int) -> tuple[Outcome, Outcome]:
    """One access of a typed value, by both."""
    rng, oracle, memory = pair.rng, pair.oracle, pair.memory
    cls: type[EndianInt] = rng.choice(ENDIAN_TYPES)
    raw = rng.randbytes(cls.size)
    single = verb in ("store", "load")
    want = oracle.one(addr, cls.size) if single else oracle.whole(addr, cls.size)
    is_write = verb in ("store", "write_obj", "write_obj_at_addr")
    try:
        if is_write:
            getattr(memory, verb)(cls.from_raw(raw), addr)
            got: Outcome = ("",)
        else:
            value = getattr(memory, verb)(addr, cls)
            assert type(value) is cls
            got = ("", value.raw)
    except GuestMemoryError as error:
        got = told(error)
    if want is None:
        if is_write:
            oracle.put(addr, raw)
        want = ("",) if is_write else ("", oracle.get(addr, cls.size))
    return got, want


def streams(pair: Pair, verb: str, addr: int) -> tuple[Outcome, Outcome]:
    """One stream, by both."""
    rng, oracle, memory = pair.rng, pair.oracle, pair.memory
    count = rng.choice((0, 1, 4, 8, rng.randrange(0, 24)))
    if verb == "write_from_memory":
        sink = BytesIO()
        try:
            memory.write_from_memory(addr, sink, count)
            got: Outcome = ("", sink.getvalue())
        except GuestMemoryError as error:
            got = (*told(error), sink.getvalue())
        return got, oracle.drain(addr, count)
    source = rng.randbytes(max(count + rng.choice((0, 0, 2, -1, -3)), 0))
    stream = BytesIO(source)
    try:
        memory.read_to_memory(addr, stream, count)
        got = ("", stream.read())
    except GuestMemoryError as error:
        got = (*told(error), stream.read())
    return got, oracle.fill(addr, source, count)


STEPS = {
    **dict.fromkeys(
        ("write", "read", "write_slice", "read_slice", "write_slice_at_addr",
         "read_slice_at_addr"), buffers),
    **dict.fromkeys(
        ("write_obj", "read_obj", "write_obj_at_addr", "read_obj_from_addr", "store", "load"),
        values),
    **dict.fromkeys(("read_to_memory", "write_from_memory"), streams),
}


@settings(max_examples=250, deadline=None)
@given(RANDOMS)
def test_random_accesses_to_random_maps(rng: Random) -> None:
    pair = Pair(rng)
    for _ in range(16):
        verb, addr = rng.choice(list(STEPS)), pair.address()
        got, want = STEPS[verb](pair, verb, addr)
        assert got == want, f"{verb} at {addr:#x}"
        pair.check_bytes()


@settings(max_examples=150, deadline=None)
@given(RANDOMS)
def test_the_map_gives_what_the_oracle_has(rng: Random) -> None:
    pair = Pair(rng)
    regions = pair.memory.map
    assert isinstance(regions, RegionMap)
    oracle = pair.oracle
    for _ in range(20):
        addr, size = pair.address(), rng.randrange(0, 12)
        want = oracle.whole(addr, size) or (oracle.run(addr),)
        try:
            got: Outcome = regions.do_in_region(addr, size, lambda m, o: (m.size() - o,))
        except GuestMemoryError as error:
            got = told(error)
        assert got == want
        moved = rng.randrange(0, 3)
        if addr in oracle.region and moved <= oracle.run(addr):
            assert regions.do_in_region_partial(addr, lambda m, o, n=moved: n) == moved
        assert regions.address_in_range(addr) == (addr in oracle.region)
        onward = addr + size
        assert regions.checked_offset(addr, size) == (
            GuestAddress(onward) if onward in oracle.region else None
        )
    assert regions.last_addr().raw_value() == max(oracle.region)
    assert regions.num_regions() == len(pair.placed)
