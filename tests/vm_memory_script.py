"""A script of operations on guest memory: made at random, and done to ours.

vm-memory's own outcomes of such a script are in data/vm_memory/outcomes.txt; the test of that name
does the script to ours and compares. To record anew, where cargo has the crate::

    cd tests/data/vm_memory
    python ../../vm_memory_script.py 60 1 | cargo run > outcomes.txt

A line is an operation, its address and what it takes, in decimal; bytes are hexadecimal, ``-`` for
none. ``new`` begins with an empty collection. ``region`` does the rest of its line to the region at
an address, at an offset in it. ``pieces`` are what a stream gives call by call, an empty one an
interrupted call. An outcome is ``ok`` and the value, or the error's name and data, then what the
stream has left, the buffer, or the calls of the callback. ``panic`` is a ModelError here.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from qemuglue.errors import ModelError
from qemuglue.memory import Backing
from qemuglue.memory.bytes import Bytes
from qemuglue.memory.endian import U8, Le16, Le32, Le64
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    ErrorKind,
    GuestIOError,
    GuestMemoryError,
    InvalidGuestAddress,
    PartialBuffer,
)
from qemuglue.memory.guest_memory import (
    GuestRegion,
    GuestRegionCollection,
    GuestRegionCollectionError,
)
from qemuglue.memory.streams import ReadVolatile, SliceReader

#: What does one access of ``Bytes`` at an address of its kind, with the words of its line.
Access = Callable[[Bytes[Any], Any, list[str]], str]

TOP = 1 << 64
TYPES = {"1": U8, "2": Le16, "4": Le32, "8": Le64}
KINDS = {ErrorKind.UNEXPECTED_EOF: "UnexpectedEof", ErrorKind.WRITE_ZERO: "WriteZero"}


class Pieces(ReadVolatile):
    """A stream that gives its pieces one a call; an empty one is an interrupted call."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.left_over = pieces

    def read_volatile(self, count: int) -> bytes:
        if not self.left_over:
            return b""
        piece = self.left_over.pop(0)
        if not piece:
            raise GuestIOError(ErrorKind.INTERRUPTED)
        return piece[:count]


class Player:
    """Ours, as the script left it. ``backing`` makes what each new region lives in."""

    def __init__(
        self, backing: Callable[[int], Backing], accesses: dict[str, Access] | None = None
    ) -> None:
        self.backing = backing
        self.accesses = ACCESSES if accesses is None else accesses
        self.mem: GuestRegionCollection[GuestRegion] = GuestRegionCollection()

    def do(self, line: str) -> str:
        """What came of one line."""
        try:
            return self._step(line.split(" ")).strip()
        except (GuestMemoryError, GuestRegionCollectionError) as error:
            return _error(error)
        except ModelError:
            return "panic"

    def _step(self, words: list[str]) -> str:
        name, *rest = words
        if name == "new":
            self.mem = GuestRegionCollection()
            return "ok"
        if name == "shown":
            return " ".join(
                f"{r.start_addr().raw_value()}:{r.backing.read(0, r.len()).hex()}"
                for r in self.mem
            )
        if name == "last_addr":
            return str(self.mem.last_addr().raw_value())
        at = GuestAddress(int(rest[0]))
        if name == "insert":
            self.mem = self.mem.insert_region(GuestRegion(at, self.backing(int(rest[1]))))
            return "ok"
        if name == "remove":
            self.mem, _ = self.mem.remove_region(at, int(rest[1]))
            return "ok"
        if name == "region":
            return self._region(at, MemoryRegionAddress(int(rest[1])), rest[2:])
        access = self.accesses.get(name)
        if access is not None:
            return access(self.mem, at, rest[1:])
        return str(QUESTIONS[name](self.mem, at, rest[1:]))

    def _region(self, at: GuestAddress, offset: MemoryRegionAddress, words: list[str]) -> str:
        region = self.mem.find_region(at)
        if region is None:
            return "none"
        if words[0] == "get_slice":
            return told(lambda: region.get_slice(offset, int(words[1])).len())
        return ACCESSES[words[0]](region, offset, words[1:])


# -- accesses ----------------------------------------------------------------------------------

Where = Bytes[Any]


def told(call: Callable[[], object]) -> str:
    """``ok`` and what ``call`` gives, or its error."""
    try:
        value = call()
    except GuestMemoryError as error:
        return _error(error)
    return "ok ()" if value is None else f"ok {value}"


def _error(error: ModelError) -> str:
    name = type(error).__name__
    if isinstance(error, InvalidGuestAddress):
        return f"{name} {error.addr.raw_value()}"
    if isinstance(error, PartialBuffer):
        return f"{name} {error.expected} {error.completed}"
    if isinstance(error, GuestIOError):
        return f"IOError {KINDS[error.kind]}"
    return name


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.strip("-"))


def _read(name: str) -> Access:
    def access(on: Where, at: Any, words: list[str]) -> str:
        buf = bytearray(_bytes(words[0]))
        done = told(lambda: getattr(on, name)(buf, at))
        return f"{done} {buf.hex()}"

    return access


def _from(name: str) -> Access:
    def access(on: Where, at: Any, words: list[str]) -> str:
        source = SliceReader(_bytes(words[1]))
        done = told(lambda: getattr(on, name)(at, source, int(words[0])))
        return f"{done} left {source.remaining.hex()}"

    return access


def pieces_of(words: list[str]) -> Pieces:
    """The stream of a line."""
    return Pieces([_bytes(each) for each in words[1].split(",")])


def _pieces(name: str) -> Access:
    def access(on: Where, at: Any, words: list[str]) -> str:
        source = pieces_of(words)
        done = told(lambda: getattr(on, name)(at, source, int(words[0])))
        return f"{done} left {len(source.left_over)}"

    return access


def _to(name: str) -> Access:
    def access(on: Where, at: Any, words: list[str]) -> str:
        buf = bytearray(int(words[1]) if len(words) > 1 else 0)
        sink = memoryview(buf) if len(words) > 1 else buf
        done = told(lambda: getattr(on, name)(at, sink, int(words[0])))
        return f"{done} {buf.hex()}"

    return access


def _store(on: Where, at: Any, words: list[str]) -> str:
    return told(lambda: on.store(TYPES[words[0]](int(words[1])), at))


ACCESSES: dict[str, Access] = {
    "write": lambda on, at, w: told(lambda: on.write(_bytes(w[0]), at)),
    "write_slice": lambda on, at, w: told(lambda: on.write_slice(_bytes(w[0]), at)),
    "read": _read("read"), "read_slice": _read("read_slice"),
    "write_obj": lambda on, at, w: told(lambda: on.write_obj(Le64(int(w[0])), at)),
    "read_obj": lambda on, at, w: told(lambda: on.read_obj(at, Le64)),
    "store": _store, "load": lambda on, at, w: told(lambda: on.load(at, TYPES[w[0]])),
    "from": _from("read_volatile_from"), "from_exact": _from("read_exact_volatile_from"),
    "pieces": _pieces("read_volatile_from"), "pieces_exact": _pieces("read_exact_volatile_from"),
    "to": _to("write_volatile_to"), "to_all": _to("write_all_volatile_to"),
    "to_vec": _to("write_volatile_to"),
}


# -- questions ---------------------------------------------------------------------------------

Mem = GuestRegionCollection[GuestRegion]


def _maybe(value: object) -> str:
    raw = value.raw_value() if isinstance(value, GuestAddress) else value
    return "None" if raw is None else f"Some({raw})"


def _lengths(pieces: Iterable[Any]) -> str:
    found = []
    try:
        for piece in pieces:
            found.append(str(piece.len()))
    except GuestMemoryError as error:
        found.append(_error(error))
    return ",".join(found)


def _find(mem: Mem, at: GuestAddress, words: list[str]) -> str:
    found = mem.to_region_addr(at)
    if found is None:
        return "None"
    return f"Some(({found[0].start_addr().raw_value()}, {found[1].raw_value()}))"


def _wrapped(checked: object, wrapped: tuple[GuestAddress, bool]) -> str:
    return f"{_maybe(checked)} {wrapped[0].raw_value()} {str(wrapped[1]).lower()}"


def _try_access(mem: Mem, at: GuestAddress, words: list[str]) -> str:
    moved = [] if words[1] == "-" else [int(each) for each in words[1].split(",")]
    calls = []

    def callback(total: int, size: int, offset: MemoryRegionAddress, region: GuestRegion) -> int:
        calls.append(f"{total},{size},{offset.raw_value()},{region.start_addr().raw_value()}")
        return moved.pop(0) if moved else size

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        done = told(lambda: mem.try_access(int(words[0]), at, callback))
    return f"{done} {';'.join(calls)}"


QUESTIONS: dict[str, Callable[[Mem, GuestAddress, list[str]], object]] = {
    "check_range": lambda mem, at, w: str(mem.check_range(at, int(w[0]))).lower(),
    "slices": lambda mem, at, w: _lengths(mem.get_slices(at, int(w[0]))),
    "stop": lambda mem, at, w: _lengths(mem.get_slices(at, int(w[0])).stop_on_error()),
    "get_slice": lambda mem, at, w: told(lambda: mem.get_slice(at, int(w[0])).len()),
    "checked_offset": lambda mem, at, w: _maybe(mem.checked_offset(at, int(w[0]))),
    "find": _find, "try_access": _try_access,
    "align_up": lambda mem, at, w: _maybe(at.checked_align_up(int(w[0]))),
    "unchecked_align_up": lambda mem, at, w: at.unchecked_align_up(int(w[0])).raw_value(),
    "add": lambda mem, at, w: _wrapped(at.checked_add(int(w[0])), at.overflowing_add(int(w[0]))),
    "sub": lambda mem, at, w: _wrapped(at.checked_sub(int(w[0])), at.overflowing_sub(int(w[0]))),
    "unchecked_add": lambda mem, at, w: at.unchecked_add(int(w[0])).raw_value(),
    "unchecked_sub": lambda mem, at, w: at.unchecked_sub(int(w[0])).raw_value(),
    "offset_from": lambda mem, at, w: _maybe(at.checked_offset_from(GuestAddress(int(w[0])))),
    "unchecked_offset_from": lambda mem, at, w: at.unchecked_offset_from(GuestAddress(int(w[0]))),
}


# -- making a script ---------------------------------------------------------------------------


class Writer:
    """Lines at random, near the regions that there are."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ranges: list[tuple[int, int]] = []

    def address(self) -> int:
        rng = self.rng
        if self.ranges and rng.random() < 0.9:
            start, size = rng.choice(self.ranges)
            near = rng.choice((0, 0, 0, 1, -1, 2, -2, 4, -4, 8, 3, -8))
            return (rng.choice((start, start, start + size)) + near) % TOP
        return rng.choice((0, 1, TOP - 1, rng.randrange(100), TOP - rng.randrange(1, 60)))

    def count(self) -> int:
        return self.rng.choice((0, 1, 2, 4, 5, 8, 9, 16, 20, 30, TOP - 1, self.rng.randrange(40)))

    def small(self) -> int:
        return self.rng.choice((0, 1, 2, 3, 4, 7, 8, 9, 16, 20, self.rng.randrange(30)))

    def data(self, size: int | None = None) -> str:
        size = self.small() if size is None else size
        return bytes(self.rng.randrange(1, 256) for _ in range(size)).hex() or "-"

    def insert(self) -> str:
        rng = self.rng
        start = rng.choice((0, rng.randrange(90), TOP - rng.randrange(1, 60)))
        if self.ranges and rng.random() < 0.4:
            start = sum(rng.choice(self.ranges)) % TOP
        size = min(rng.randrange(1, 24), TOP - start)
        if not any(start < a + n and a < start + size for a, n in self.ranges):
            self.ranges.append((start, size))
        return f"insert {start} {size}"

    def remove(self) -> str:
        where = (self.address(), self.small())
        if self.ranges and self.rng.random() < 0.5:
            where = self.rng.choice(self.ranges)
        if where in self.ranges:
            self.ranges.remove(where)
        return f"remove {where[0]} {where[1]}"

    def arguments(self, name: str) -> str:
        rng = self.rng
        if name in ("write", "write_slice", "read", "read_slice"):
            return self.data()
        if name in ("store", "load"):
            size = rng.choice((1, 2, 4, 8))
            return f"{size} {rng.randrange(1 << 8 * size)}"
        if name in ("from", "from_exact"):
            return f"{self.count()} {self.data()}"
        if name in ("pieces", "pieces_exact"):
            sizes = rng.choices((0, 1, 2, 3, 30), (1, 1, 1, 1, 6), k=rng.randrange(1, 5))
            return f"{self.count()} {','.join(self.data(size) for size in sizes)}"
        if name in ("to", "to_all"):
            return f"{self.count()} {rng.choice((self.small(), 60))}"
        if name == "try_access":
            moved = [str(rng.choice((0, 1, 2, 4, 5, 8))) for _ in range(rng.randrange(1, 5))]
            return f"{self.small()} {','.join(moved) if rng.random() < 0.6 else '-'}"
        if name in ("align_up", "unchecked_align_up"):
            return str(rng.choice((1 << rng.randrange(64), 1 << rng.randrange(8), 0, 12)))
        if name in ("add", "sub", "unchecked_add", "unchecked_sub", "offset_from",
                    "unchecked_offset_from"):
            return str(self.address())
        if name in ("read_obj", "find"):
            return ""
        return str(rng.randrange(TOP) if name == "write_obj" else self.count())

    def line(self) -> str:
        rng = self.rng
        kind = rng.random()
        if kind < 0.04:
            return self.insert()
        if kind < 0.08:
            return self.remove()
        if kind < 0.14:
            return rng.choice(("shown", "last_addr"))
        if kind < 0.3:
            name = rng.choice((*(each for each in ACCESSES if "pieces" not in each), "get_slice"))
            return f"region {self.address()} {self.small()} {name} {self.arguments(name)}".strip()
        name = rng.choice((*ACCESSES, *QUESTIONS))
        return f"{name} {self.address()} {self.arguments(name)}".strip()


def script(programs: int, seed: int, length: int = 30) -> list[str]:
    """``programs`` programs of ``length`` lines, each on a memory of its own."""
    rng = random.Random(seed)
    lines = []
    for _ in range(programs):
        writer = Writer(rng)
        lines += ["new", *(writer.insert() for _ in range(3))]
        lines += [writer.line() for _ in range(length)]
        lines.append("shown")
    return lines


if __name__ == "__main__":
    print(f"# vm_memory_script.py {' '.join(sys.argv[1:])}")
    print("\n".join(script(int(sys.argv[1]), int(sys.argv[2]))))
