"""The accessor against a naive oracle: random regions, and random answers of a translation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qemuglue.memory.accessor import (
    AxError,
    GuestMemoryAccessor,
    GuestPlace,
    PhysAddr,
    guest_address,
)
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.endian import ENDIAN_TYPES
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.region_accessor import AccessorRegion, RegionAccessor

RANDOMS = st.randoms(use_true_random=False)
END = 1 << 64

#: (what it came to, data of it, what is in the caller's buffer then)
Outcome = tuple[Any, ...]


def told(error: AxError) -> Outcome:
    """An error with all its data."""
    data = tuple(
        value.raw_value() if isinstance(value, GuestAddress) else value for value in error.args
    )
    return (type(error).__name__, *data)


@dataclass
class Area:
    """Some bytes of a host's memory, seen by the guest."""

    start: int
    size: int
    host: int
    offset: int


class Oracle:
    """Guest memory as a dictionary of single bytes: address -> (area, host, offset)."""

    def __init__(self, areas: list[Area], hosts: list[bytearray], whole_area: bool) -> None:
        self.hosts = [bytearray(host) for host in hosts]
        self.whole_area = whole_area
        self.cells = {
            area.start + i: (number, area.host, area.offset + i)
            for number, area in enumerate(areas) for i in range(area.size)
        }
        self.sizes = [area.size for area in areas]

    def object(self, addr: int, size: int, data: bytes | None) -> Outcome:
        if addr not in self.cells:
            return ("InvalidInput", addr, size, 0)
        number, host, offset = self.cells[addr]
        if self.whole_area:
            if size > self.sizes[number]:
                return ("InvalidInput", addr, size, 0)
            if offset + size > len(self.hosts[host]):
                return self.too_large(number, host, offset, addr)
        elif any(self.cells.get(addr + i, (None,))[0] != number for i in range(size)):
            return ("InvalidInput", addr, size, 0)
        if data is None:
            return ("done", bytes(self.hosts[host][offset : offset + size]))
        self.hosts[host][offset : offset + size] = data
        return ("done",)

    def too_large(self, number: int, host: int, offset: int, addr: int) -> Outcome:
        return ("LimitTooLarge", addr, self.sizes[number], len(self.hosts[host]) - offset)

    def buffer(self, addr: int, buf: bytearray, *, write: bool) -> Outcome:
        done = 0
        while done < len(buf):
            at = addr + done
            if at >= END:
                return ("AddressOverflow", addr, len(buf))
            if at not in self.cells:
                return ("InvalidInput", at, len(buf) - done, done)
            number, host, offset = self.cells[at]
            n = 1
            if self.whole_area:
                n = min(len(buf) - done, self.sizes[number])
                if offset + n > len(self.hosts[host]):
                    return self.too_large(number, host, offset, at)
            for i in range(n):
                if write:
                    self.hosts[host][offset + i] = buf[done + i]
                else:
                    buf[done + i] = self.hosts[host][offset + i]
            done += n
        return ("done",)


def layout(rng: Random) -> tuple[list[Area], list[bytearray]]:
    """Areas that do not overlap, some contiguous, some at the ends of the address space, some
    sharing a host's memory."""
    hosts = [bytearray(rng.randbytes(rng.randint(24, 64))) for _ in range(rng.randint(1, 3))]
    areas: list[Area] = []
    at = rng.choice((0, 0x1000, END - 120))
    for _ in range(rng.randint(1, 6)):
        at += rng.choice((0, 0, 0, 1, 7))
        host = rng.randrange(len(hosts))
        size = min(rng.choice((1, 3, 8, 13, 20)), END - at)
        if size <= 0:
            break
        areas.append(Area(at, size, host, rng.randint(0, len(hosts[host]) - size)))
        at += size
    if rng.random() < 0.4 and areas[0].start > 8:
        areas.append(Area(0, 5, 0, rng.randint(0, len(hosts[0]) - 5)))
    if rng.random() < 0.4 and areas[0].start + 300 < END:
        areas.append(Area(END - 6, 6, 0, rng.randint(0, len(hosts[0]) - 6)))
    return areas, hosts


def outcome(call: Callable[[], object]) -> Outcome:
    try:
        got = call()
    except AxError as error:
        return told(error)
    return ("done",) if got is None else ("done", got.raw)  # type: ignore[attr-defined]


def places(rng: Random, areas: list[Area]) -> int:
    """An address in, before or behind an area."""
    area = rng.choice(areas)
    addr = rng.choice((area.start, area.start + area.size)) + rng.randint(-9, 9)
    return min(max(addr, 0), END - 1)


def step(rng: Random, accessor: GuestMemoryAccessor, oracle: Oracle, addr: int) -> None:
    """One random operation, of both."""
    verb = rng.choice(("read_obj", "write_obj", "read_volatile", "write_volatile",
                       "read_buffer", "read_buffer", "write_buffer", "write_buffer"))
    if verb.endswith("_buffer"):
        data = rng.randbytes(rng.choice((0, 1, 2, 5, 16, 33)))
        mine, theirs = bytearray(data), bytearray(data)
        want = oracle.buffer(addr, theirs, write=verb.startswith("write"))
        got = outcome(lambda: getattr(accessor, verb)(addr, mine))
        assert (got, mine) == (want, theirs), (verb, hex(addr))
        return
    cls = rng.choice(ENDIAN_TYPES)
    if verb.startswith("read"):
        want = oracle.object(addr, cls.size, None)
        got = outcome(lambda: getattr(accessor, verb)(GuestAddress(addr), cls))
    else:
        raw = rng.randbytes(cls.size)
        want = oracle.object(addr, cls.size, raw)
        got = outcome(lambda: getattr(accessor, verb)(addr, cls.from_raw(raw)))
    assert got == want, (verb, hex(addr), cls)


@settings(max_examples=150)
@given(RANDOMS, st.booleans())
def test_regions_are_accessed_as_the_oracle_says(rng: Random, whole_area: bool) -> None:
    areas, hosts = layout(rng)
    oracle = Oracle(areas, hosts, whole_area)
    backings = [ByteBacking(host) for host in hosts]
    regions = [AccessorRegion(a.start, a.size, backings[a.host], a.offset) for a in areas]
    rng.shuffle(regions)
    accessor = RegionAccessor(regions, whole_area_limit=whole_area)
    for _ in range(25):
        addr = places(rng, areas)
        found = accessor.translate(addr)
        cell = oracle.cells.get(addr)
        assert (found is None) == (cell is None)
        if found is not None and cell is not None:
            assert found == PhysAddr(backings[cell[1]], cell[2])
        step(rng, accessor, oracle, addr)
        assert [bytes(backing.data) for backing in backings] == [bytes(h) for h in oracle.hosts]


# -- any translation -------------------------------------------------------------------------


class Answers(GuestMemoryAccessor):
    """Translates by a table, good or not: address -> (offset, limit, what is really left)."""

    def __init__(self, host: ByteBacking, table: dict[int, tuple[int, int, int | None]],
                 trusts: bool) -> None:
        self.host = host
        self.table = table
        self.trusts_limits = trusts

    def translate_and_get_limit(self, guest_addr: GuestPlace) -> tuple[PhysAddr, int] | None:
        found = self.table.get(guest_address(guest_addr).raw_value())
        return None if found is None else (PhysAddr(self.host, found[0]), found[1])

    def bytes_left(self, guest_addr: GuestAddress) -> int | None:
        return self.table[guest_addr.raw_value()][2]


def expected(answers: Answers, host: bytearray, addr: int, buf: bytearray, write: bool) -> Outcome:
    """What a buffer must come to, after the text of the trait."""
    done = 0
    while done < len(buf):
        at = addr + done
        if at >= END:
            return ("AddressOverflow", addr, len(buf))
        if at not in answers.table:
            return ("InvalidInput", at, len(buf) - done, done)
        offset, limit, really = answers.table[at]
        if limit == 0:
            return ("ZeroLimit", at)
        n = min(limit, len(buf) - done)
        room = max(len(host) - offset, 0)
        left = room if answers.trusts_limits or really is None else min(room, really)
        if (n if answers.trusts_limits else limit) > left:
            return ("LimitTooLarge", at, limit, left)
        if write:
            host[offset : offset + n] = buf[done : done + n]
        else:
            buf[done : done + n] = host[offset : offset + n]
        done += n
    return ("done",)


@settings(max_examples=150)
@given(RANDOMS, st.booleans())
def test_any_answers_end_and_are_told(rng: Random, trusts: bool) -> None:
    host = bytearray(rng.randbytes(32))
    base = rng.choice((0, 0x5000, END - 12))
    table = {
        base + i: (
            rng.choice((rng.randint(0, 31), rng.randint(0, 40))),
            rng.choice((0, 1, 1, 2, 3, 5, 40)), rng.choice((None, None, 2, 5)),
        )
        for i in range(12) if rng.random() < 0.85
    }
    backing = ByteBacking(bytearray(host))
    answers = Answers(backing, table, trusts)
    for _ in range(12):
        addr, write = base + rng.randint(0, 11), rng.random() < 0.5
        data = rng.randbytes(rng.randint(0, 12))
        mine, theirs = bytearray(data), bytearray(data)
        want = expected(answers, host, addr, theirs, write)
        verb = answers.write_buffer if write else answers.read_buffer
        assert outcome(lambda: verb(addr, mine)) == want  # noqa: B023
        assert mine == theirs and backing.data == host
