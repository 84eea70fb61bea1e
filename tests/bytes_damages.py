"""Implementations of ``Bytes`` that are damaged in one way each, and the rules that must see it.

Most damages are made so that no other rule sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bytes_conformance import Contract, Streams
from bytes_reference import (
    TOP,
    Frozen,
    NotOne,
    NotWhole,
    Part,
    Reference,
    Refused,
    StreamReference,
    contract,
)

from qemuglue.errors import ModelError
from qemuglue.memory.bytes import Ordering
from qemuglue.memory.endian import Be16, Be32

MEMORY = contract()
SLICE = contract(streams=Streams.SLICE, seam=None)
UNALIGNED = contract(aligned=False)
READ_ONLY = contract(read_only=Frozen)
NEVER_SHORT = contract(never_short=Refused)
WHOLE = contract(whole_objects=NotWhole)

#: (rules that must be seen broken, contract, damaged implementation)
DAMAGES: list[tuple[frozenset[str], Contract, type[Reference]]] = []


def damage(
    *rules: str, about: Contract = MEMORY
) -> Callable[[type[Reference]], type[Reference]]:
    """Say which rules the class below breaks."""

    def add(made: type[Reference]) -> type[Reference]:
        DAMAGES.append((frozenset(rules), about, made))
        return made

    return add


# -- buffers ---------------------------------------------------------------------------------


@damage("empty")
class RefusesNothingOutside(StreamReference):
    def read_slice(self, buf: Any, addr: int) -> None:
        self.count(addr, 1, write=False)
        super().read_slice(buf, addr)


@damage("reading")
class ReadsALastByteWrong(StreamReference):
    def read(self, buf: Any, addr: int) -> int:
        n = super().read(buf, addr)
        if n == 17:
            buf[16] ^= 1
        return n


@damage("writing")
class WritesAByteTooMany(StreamReference):
    def write(self, buf: Any, addr: int) -> int:
        n = super().write(buf, addr)
        if n == 17:
            self.set(addr + n, b"!")
        return n


@damage("no_copies")
class RemembersLoads(StreamReference):
    known: Any = None

    def load(self, addr: int, cls: Any, order: Ordering = Ordering.RELAXED) -> Any:
        if self.known is None:
            self.known = {}
        if (addr, cls, order) not in self.known:
            self.known[addr, cls, order] = super().load(addr, cls, order)
        return self.known[addr, cls, order]


@damage("short_read")
class SaysThatAShortReadWasWhole(StreamReference):
    def read(self, buf: Any, addr: int) -> int:
        super().read(buf, addr)
        return len(self.buffer(buf))


@damage("short_write")
class SaysThatAShortWriteWasWhole(StreamReference):
    def write(self, buf: Any, addr: int) -> int:
        super().write(buf, addr)
        return len(self.buffer(buf))


@damage("short_write")
class WritesPastTheEnd(StreamReference):
    def write(self, buf: Any, addr: int) -> int:
        n = super().write(buf, addr)
        self.set(addr + n, bytes(self.buffer(buf))[n:])
        return n


@damage("first_byte_outside")
class NamesTheWrongAddress(StreamReference):
    def count(self, addr: int, n: int, *, write: bool) -> int:
        try:
            return super().count(addr, n, write=write)
        except Exception as error:
            error.addr = addr + 1  # type: ignore[attr-defined]
            raise


@damage("first_byte_outside", "beyond_the_top")
class IsShortOutside(StreamReference):
    def read(self, buf: Any, addr: int) -> int:
        return super().read(buf, addr) if self.room(addr) else 0


@damage("beyond_the_top")
class WrapsAround(StreamReference):
    def write(self, buf: Any, addr: int) -> int:
        return 1 if addr == TOP and len(buf) == 16 else super().write(buf, addr)


@damage("whole_slices")
class GivesBackACount(StreamReference):
    def write_slice(self, buf: Any, addr: int) -> Any:
        super().write_slice(buf, addr)
        return len(buf) or None


@damage("partial_read_slice")
class MiscountsAPartialRead(StreamReference):
    def read_slice(self, buf: Any, addr: int) -> None:
        try:
            super().read_slice(buf, addr)
        except Part as error:
            error.completed += 1
            raise


@damage("partial_write_slice")
class DropsAPartialWrite(StreamReference):
    def write_slice(self, buf: Any, addr: int) -> None:
        if 0 < self.room(addr) < len(buf):
            raise Part(len(buf), self.room(addr))
        super().write_slice(buf, addr)


@damage("never_short", about=NEVER_SHORT)
class WritesWhatItCanFirst(StreamReference):
    def write_slice(self, buf: Any, addr: int) -> None:
        if 0 < self.room(addr) < len(buf):
            self.set(addr, bytes(buf)[: self.room(addr)])
        super().write_slice(buf, addr)


@damage("kinds_of_buffers")
class CountsItems(StreamReference):
    def write(self, buf: Any, addr: int) -> int:
        n = super().write(buf, addr)
        return n // buf.itemsize if isinstance(buf, memoryview) else n


@damage("no_buffers")
class LetsPythonComplain(StreamReference):
    def room_in(self, buf: Any) -> memoryview:
        return memoryview(buf).cast("B") if isinstance(buf, str) else super().room_in(buf)


# -- objects and single accesses -------------------------------------------------------------


@damage("reading_objects")
class ReadsABigOneLittle(StreamReference):
    def read_obj(self, addr: int, cls: Any) -> Any:
        value = super().read_obj(addr, cls)
        return Be16.from_raw(value.raw[::-1]) if cls is Be16 else value


@damage("writing_objects")
class WritesABigOneLittle(StreamReference):
    def write_obj(self, value: Any, addr: int) -> None:
        if isinstance(value, Be32) and self.room(addr) >= 4:
            value = Be32.from_raw(value.raw[::-1])
        super().write_obj(value, addr)


@damage("objects_at_the_end")
class WritesAnObjectWholeOrNot(StreamReference):
    def write_obj(self, value: Any, addr: int) -> None:
        raw = self.raw_of(value)
        if 0 < self.room(addr) < len(raw):
            raise Part(len(raw), self.room(addr))
        super().write_obj(value, addr)


@damage("objects_at_the_end", about=WHOLE)
class WritesPartOfAnObject(StreamReference):
    def write_obj(self, value: Any, addr: int) -> None:
        self.set(addr, self.raw_of(value)[: self.room(addr)])
        super().write_obj(value, addr)


@damage("untyped_values")
class TakesPlainIntegers(StreamReference):
    def store(self, value: Any, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        if type(value) is not int:
            super().store(value, addr, order)


@damage("loading")
class KnowsNoAcquire(StreamReference):
    def load(self, addr: int, cls: Any, order: Ordering = Ordering.RELAXED) -> Any:
        if order is Ordering.ACQUIRE:
            raise ModelError("no such order")
        return super().load(addr, cls, order)


@damage("storing")
class LosesReleasedStores(StreamReference):
    def store(self, value: Any, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        if order is not Ordering.RELEASE:
            super().store(value, addr, order)


@damage("single_at_the_end")
class StoresACutValue(StreamReference):
    def store(self, value: Any, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        raw = self.raw_of(value)
        if len(raw) == 8 and self.room(addr) == 4:
            self.set(addr, raw[:4])
        super().store(value, addr, order)


@damage("single_at_the_end")
class LoadsACutValue(StreamReference):
    def load(self, addr: int, cls: Any, order: Ordering = Ordering.RELAXED) -> Any:
        if getattr(cls, "size", 0) == 8 and self.room(addr) == 4:
            return cls.from_raw(self.get(addr, 4) + bytes(4))
        return super().load(addr, cls, order)


@damage("single_outside")
class LoadsNothingOutside(StreamReference):
    def load(self, addr: int, cls: Any, order: Ordering = Ordering.RELAXED) -> Any:
        self.size_of(cls)
        return super().load(addr, cls, order) if self.room(addr) else cls.from_raw(bytes(cls.size))


@damage("single_across_the_seam")
class StoresAcrossTheSeam(StreamReference):
    def store(self, value: Any, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        raw = self.raw_of(value)
        if len(raw) == 8 and self.to_seam(addr, 8) == 4:
            self.set(addr, raw)
            return
        super().store(value, addr, order)


@damage("misaligned")
class StoresAtOddAddresses(StreamReference):
    def check_alignment(self, addr: int, size: int) -> None:
        super().check_alignment(addr, min(size, 4))


@damage("any_alignment", about=UNALIGNED)
class WantsAlignment(StreamReference):
    def check_alignment(self, addr: int, size: int) -> None:
        if addr % size:
            raise NotOne


@damage("impossible_sizes")
class StoresSixteenBytes(StreamReference):
    def single(self, addr: int, size: int, *, write: bool) -> None:
        if size != 16:
            super().single(addr, size, write=write)


@damage("one_access")
class StoresInTwo(StreamReference):
    def store(self, value: Any, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        super().store(value, addr, order)
        if len(value.raw) == 8:
            self.calls[-1:] = [("write", 0, 4), ("write", 4, 4)]


@damage("only_what_was_asked")
class ReadsBeforeItWrites(StreamReference):
    def write(self, buf: Any, addr: int) -> int:
        if self.room(addr):
            self.get(addr, 1)
        return super().write(buf, addr)


@damage("across_the_seam")
class LosesThePartBehindTheSeam(StreamReference):
    def set(self, addr: int, data: bytes) -> None:
        part = self.to_seam(addr, len(data))
        super().set(addr, data[:part] if part == 3 else data)


@damage("read_only", about=READ_ONLY)
class WritesObjectsAnyhow(StreamReference):
    def write_obj(self, value: Any, addr: int) -> None:
        self.set(addr, self.raw_of(value)[:1])
        super().write_obj(value, addr)
