"""VolatileSlice against a naive oracle: a bytearray, a set of dirty offsets, and written-down
rules. Random sequences of operations on random windows of random backings, errors with their
data."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from volatile_bench import Marks, Tape

from qemuglue.memory.backing import ByteBacking, SparseBacking
from qemuglue.memory.endian import U8, Be16, Be64, EndianInt, Le32
from qemuglue.memory.guest_error import ErrorKind
from qemuglue.memory.volatile import VolatileMemoryError, VolatileSlice

VOLATILE_ERRORS = VolatileMemoryError.__subclasses__()
TOP = 1 << 64
TYPES = (U8, Be16, Le32, Be64)
Outcome = tuple[Any, ...]
Op = tuple[Any, ...]


class Oracle:
    """Bytes at host addresses from ``base`` on: a window, seen as its parts by (start, size)."""

    def __init__(self, data: bytes, base: int) -> None:
        self.data, self.base = bytearray(data), base
        self.start, self.size = 0, len(data)
        self.dirty: set[int] = set()

    def get(self, at: int, n: int) -> bytes:
        return bytes(self.data[self.start + at + i] for i in range(n))

    def put(self, at: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            self.data[self.start + at + i] = byte
            self.dirty.add(self.start + at + i)

    def within(self, at: int, n: int) -> Outcome | None:
        """Why ``n`` bytes at ``at`` are no part, if they are none."""
        if at + n >= TOP:
            return ("Overflow", at, n)
        return ("OutOfBounds", at + n) if at + n > self.size else None

    def behind(self, count: int) -> Outcome | None:
        """Why there is nothing behind ``count`` bytes; in host addresses."""
        here = self.base + self.start
        if here + count >= TOP:
            return ("Overflow", here, count)
        return ("OutOfBounds", here + count) if count > self.size else None

    # -- one method for each operation: what it gives ------------------------------------------

    def write(self, at: int, data: bytes) -> Outcome:
        if not data:
            return ("ok", 0)
        if at >= self.size:
            return ("OutOfBounds", at)
        n = min(len(data), self.size - at)
        self.put(at, data[:n])
        return ("ok", n)

    def write_slice(self, at: int, data: bytes) -> Outcome:
        told = self.write(at, data)
        if told[0] == "ok" and told[1] != len(data):
            return ("VolatilePartialBuffer", len(data), told[1])
        return ("ok", None) if told[0] == "ok" else told

    def read(self, at: int, n: int) -> Outcome:
        if not n:
            return ("ok", (0, b""))
        if at >= self.size:
            return ("OutOfBounds", at)
        have = min(n, self.size - at)
        return ("ok", (have, self.get(at, have) + b"\xee" * (n - have)))

    def read_slice(self, at: int, n: int) -> Outcome:
        told = self.read(at, n)
        if told[0] == "ok" and told[1][0] != n:
            return ("VolatilePartialBuffer", n, told[1][0])
        return ("ok", told[1][1]) if told[0] == "ok" else told

    def write_obj(self, at: int, value: EndianInt) -> Outcome:
        return self.write_slice(at, value.raw)

    def read_obj(self, at: int, cls: type[EndianInt]) -> Outcome:
        told = self.read_slice(at, cls.size)
        return ("ok", cls.from_raw(told[1])) if told[0] == "ok" else told

    def one(self, at: int, size: int) -> Outcome | None:
        error = self.within(at, size)
        if error is None and (self.base + self.start + at) % size:
            error = ("Misaligned", self.base + self.start + at, size)
        return error

    def store(self, at: int, value: EndianInt) -> Outcome:
        error = self.one(at, value.size)
        if error is None:
            self.put(at, value.raw)
        return error or ("ok", None)

    def load(self, at: int, cls: type[EndianInt]) -> Outcome:
        return self.one(at, cls.size) or ("ok", cls.from_raw(self.get(at, cls.size)))

    def ref(self, at: int, value: EndianInt) -> Outcome:
        error = self.within(at, value.size)
        if error is not None:
            return error
        old = type(value).from_raw(self.get(at, value.size))
        self.put(at, value.raw)
        return ("ok", old)

    def array(self, at: int, n: int, values: list[EndianInt], cls: type[EndianInt]) -> Outcome:
        if n * cls.size >= 1 << 63:
            return ("TooBig", n, cls.size)
        error = self.within(at, n * cls.size)
        if error is not None:
            return error
        old = [cls.from_raw(self.get(at + i * cls.size, cls.size)) for i in range(n)]
        for i, value in enumerate(values[:n]):
            self.put(at + i * cls.size, value.raw)
        return ("ok", old)

    def copy_from(self, data: bytes) -> Outcome:
        self.put(0, data[: self.size])
        return ("ok", None)

    def copy_to(self, n: int) -> Outcome:
        have = min(n, self.size)
        return ("ok", (have, self.get(0, have) + b"\xee" * (n - have)))

    def move(self, source: int, target: int) -> Outcome:
        """Copy what is behind ``source`` to what is behind ``target``."""
        error = self.behind(source) or self.behind(target)
        if error is None:
            n = self.size - max(source, target)
            self.put(target, self.get(source, n))
        return error or ("ok", None)

    def from_stream(self, at: int, data: bytes, count: int) -> Outcome:
        error = self.behind(at)
        if error is not None:
            return error
        part = data[: min(count, self.size - at)]
        self.put(at, part)
        return ("ok", len(part))

    def exact_from_stream(self, at: int, data: bytes, count: int) -> Outcome:
        error = self.within(at, count)
        if error is None and len(data) < count:
            error = ("VolatileIOError", ErrorKind.UNEXPECTED_EOF)
        if error is None:
            self.put(at, data[:count])
        return error or ("ok", None)

    def to_stream(self, at: int, count: int) -> Outcome:
        error = self.behind(at)
        return error or ("ok", self.get(at, min(count, self.size - at)))

    def all_to_stream(self, at: int, count: int) -> Outcome:
        return self.within(at, count) or ("ok", self.get(at, count))

    def subslice(self, at: int, n: int) -> Outcome:
        error = self.within(at, n)
        if error is None:
            self.start, self.size = self.start + at, n
        return error or ("ok", None)

    def offset(self, count: int) -> Outcome:
        error = self.behind(count)
        if error is None:
            self.start, self.size = self.start + count, self.size - count
        return error or ("ok", None)

    def first(self, mid: int) -> Outcome:
        error = self.behind(mid)
        if error is None:
            self.size = mid
        return error or ("ok", None)


class Real:
    """The same operations on a slice, with the same names."""

    def __init__(self, mem: VolatileSlice) -> None:
        self.mem = mem

    def write(self, at: int, data: bytes) -> int:
        return self.mem.write(data, at)

    def write_slice(self, at: int, data: bytes) -> None:
        self.mem.write_slice(data, at)

    def read(self, at: int, n: int) -> tuple[int, bytes]:
        buf = bytearray(b"\xee" * n)
        return self.mem.read(buf, at), bytes(buf)

    def read_slice(self, at: int, n: int) -> bytes:
        buf = bytearray(n)
        self.mem.read_slice(buf, at)
        return bytes(buf)

    def write_obj(self, at: int, value: EndianInt) -> None:
        self.mem.write_obj(value, at)

    def read_obj(self, at: int, cls: type[EndianInt]) -> EndianInt:
        return self.mem.read_obj(at, cls)

    def store(self, at: int, value: EndianInt) -> None:
        self.mem.store(value, at)

    def load(self, at: int, cls: type[EndianInt]) -> EndianInt:
        return self.mem.load(at, cls)

    def ref(self, at: int, value: EndianInt) -> EndianInt:
        ref = self.mem.get_ref(at, type(value))
        old = ref.load()
        ref.store(value)
        return old

    def array(self, at: int, n: int, values: list[EndianInt], cls: type[EndianInt]) -> object:
        array = self.mem.get_array_ref(at, n, cls)
        old = [cls(0)] * array.len()
        assert array.copy_to(old) == n
        array.copy_from(values)
        return old

    def copy_from(self, data: bytes) -> None:
        self.mem.copy_from(data)

    def copy_to(self, n: int) -> tuple[int, bytes]:
        buf = bytearray(b"\xee" * n)
        return self.mem.copy_to(buf), bytes(buf)

    def move(self, source: int, target: int) -> None:
        self.mem.offset(source).copy_to_volatile_slice(self.mem.offset(target))

    def from_stream(self, at: int, data: bytes, count: int) -> int:
        return self.mem.read_volatile_from(at, io.BytesIO(data), count)

    def exact_from_stream(self, at: int, data: bytes, count: int) -> None:
        self.mem.read_exact_volatile_from(at, io.BytesIO(data), count)

    def to_stream(self, at: int, count: int) -> bytes:
        out = bytearray()
        assert self.mem.write_volatile_to(at, out, count) == len(out)
        return bytes(out)

    def all_to_stream(self, at: int, count: int) -> bytes:
        out = bytearray()
        self.mem.write_all_volatile_to(at, out, count)
        return bytes(out)

    def subslice(self, at: int, n: int) -> None:
        self.mem = self.mem.subslice(at, n)

    def offset(self, count: int) -> None:
        self.mem = self.mem.offset(count)

    def first(self, mid: int) -> None:
        self.mem = self.mem.split_at(mid)[0]


def outcome(call: Callable[..., object], arguments: Op) -> Outcome:
    try:
        return ("ok", call(*arguments))
    except VolatileMemoryError as error:
        data = error.args[:1] if isinstance(error.args[0], ErrorKind) else error.args
        return (type(error).__name__, *data)


OFFSETS = st.one_of(
    st.integers(0, 50), st.integers(0, 50), st.integers(TOP - 50, TOP - 1), st.just(1 << 63)
)
SIZES = st.one_of(st.integers(0, 12), st.integers(0, 50))
DATA = st.binary(max_size=20)
CLASSES = st.sampled_from(TYPES)


def value_of(cls: type[EndianInt]) -> st.SearchStrategy[EndianInt]:
    return st.integers(0, (1 << cls.size * 8) - 1).map(cls)


VALUES = CLASSES.flatmap(value_of)
ARRAYS = CLASSES.flatmap(
    lambda cls: st.tuples(
        OFFSETS, st.one_of(st.integers(0, 8), OFFSETS), st.lists(value_of(cls), max_size=8),
        st.just(cls),
    )
)


def op(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Op]:
    return st.tuples(st.just(name), *arguments)


OPS = st.one_of(
    op("write", OFFSETS, DATA), op("write_slice", OFFSETS, DATA),
    op("read", OFFSETS, SIZES), op("read_slice", OFFSETS, SIZES),
    op("write_obj", OFFSETS, VALUES), op("read_obj", OFFSETS, CLASSES),
    op("store", OFFSETS, VALUES), op("load", OFFSETS, CLASSES), op("ref", OFFSETS, VALUES),
    ARRAYS.map(lambda given: ("array", *given)),
    op("copy_from", DATA), op("copy_to", SIZES), op("move", OFFSETS, OFFSETS),
    op("from_stream", OFFSETS, DATA, SIZES), op("exact_from_stream", OFFSETS, DATA, SIZES),
    op("to_stream", OFFSETS, SIZES), op("all_to_stream", OFFSETS, SIZES),
    op("subslice", st.integers(0, 5), st.integers(20, 48)), op("subslice", OFFSETS, OFFSETS),
    op("offset", st.integers(0, 5)), op("offset", OFFSETS), op("first", st.integers(20, 48)),
)


@settings(max_examples=400)
@given(
    kind=st.sampled_from((ByteBacking, Tape, SparseBacking)),
    base=st.sampled_from((None, 0x1000, 0x1003, 0x1006, TOP - 0x40)),
    window=st.integers(0, 9), size=st.integers(0, 48), rest=st.integers(0, 5),
    ops=st.lists(OPS, max_size=25),
)
def test_a_slice_does_what_the_oracle_says(
    kind: type[Tape], base: int | None, window: int, size: int, rest: int, ops: list[Op]
) -> None:
    filling = bytes(range(1, window + size + rest + 1))
    backing = kind(len(filling))
    backing.write(0, filling)
    if isinstance(backing, Tape) and base is not None:
        backing.host_address = base
    else:
        base = 0
    marks = Marks()
    real = Real(VolatileSlice(backing, window, size, bitmap=marks))
    oracle = Oracle(filling[window : window + size], base + window)
    for name, *arguments in ops:
        told = outcome(getattr(real, name), tuple(arguments))
        assert told == getattr(oracle, name)(*arguments), name
        assert backing.read(window, size) == oracle.data
        assert marks.dirty == oracle.dirty, name
        assert (real.mem.len(), real.mem.host_addr) == (oracle.size, oracle.base + oracle.start)
    assert backing.read(0, window) == filling[:window]
    assert backing.read(window + size, rest) == filling[window + size :]


REACHED = settings(max_examples=20000, derandomize=True, database=None, phases=[Phase.generate])


@pytest.mark.parametrize("wanted", ["ok", *(cls.__name__ for cls in VOLATILE_ERRORS)])
def test_the_strategies_reach_every_outcome(wanted: str) -> None:
    def reaches(given: Op) -> bool:
        real = Real(VolatileSlice(Tape(48, host_address=TOP - 0x40)))
        return bool(outcome(getattr(real, given[0]), given[1:])[0] == wanted)

    find(OPS, reaches, settings=REACHED)


@pytest.mark.parametrize("name", [name for name in vars(Real) if not name.startswith("__")])
def test_the_strategies_reach_every_operation_where_it_succeeds(name: str) -> None:
    def reaches(given: Op) -> bool:
        real = Real(VolatileSlice(Tape(48)))
        return bool(given[0] == name and outcome(getattr(real, name), given[1:])[0] == "ok")

    find(OPS, reaches, settings=REACHED)
