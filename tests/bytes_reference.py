"""A naive implementation of ``Bytes`` that keeps every rule, for the conformance suite's own test.

It stands on nothing but a bytearray and the contract it is given; nothing in it is shared with
the faces of the model, and each method is written out so that one can be damaged alone.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, NoReturn

from bytes_subject import Contract, Streams, Subject

from qemuglue.errors import ModelError
from qemuglue.memory.bytes import Bytes, Ordering
from qemuglue.memory.guest_error import ErrorKind, PartialBuffer

#: The address of the run's first byte.
BASE = 0x1000
MARGIN = 32
TOP = (1 << 64) - 1


class Outside(Exception):
    """Nothing is at ``addr``."""

    def __init__(self, addr: int) -> None:
        super().__init__(addr)
        self.addr = addr


class Part(PartialBuffer):
    """``completed`` bytes of ``expected`` were moved."""


class NotOne(Exception):
    """That is no single access."""


class NotWhole(Exception):
    """The object does not fit."""


class Refused(Exception):
    """Not all of it is there."""


class Frozen(Exception):
    """Nothing can be written."""


class StreamFailed(Exception):
    """What a stream raised."""

    def __init__(self, kind: ErrorKind) -> None:
        super().__init__(kind)
        self.kind = kind


def contract(**fields: Any) -> Contract:
    """A contract with the errors above; the rest as given."""
    return Contract(**{
        "length": 64, "seam": 20, "outside": Outside, "not_one": NotOne,
        "io_error": StreamFailed, "counted": True, **fields,
    })


class Reference(Bytes[int]):
    """The contract, literally."""

    def __init__(self, contract: Contract, cells: bytearray, calls: list[Any]) -> None:
        self.contract = contract
        self.cells = cells
        self.calls = calls

    # -- the memory --------------------------------------------------------------------------

    def room(self, addr: int) -> int:
        """Bytes from ``addr`` to the end; 0 outside."""
        inside = addr - BASE
        return self.contract.length - inside if 0 <= inside < self.contract.length else 0

    def to_seam(self, addr: int, n: int) -> int:
        """Bytes of the first ``n`` that are in the region of ``addr``."""
        seam = BASE + (self.contract.seam or 0)
        return min(n, seam - addr) if addr < seam else n

    def get(self, addr: int, n: int) -> bytes:
        got = b""
        while n:
            part = self.to_seam(addr, n)
            at = MARGIN + addr - BASE
            self.calls.append(("read", at, part))
            got += bytes(self.cells[at : at + part])
            addr, n = addr + part, n - part
        return got

    def set(self, addr: int, data: bytes) -> None:
        while data:
            part = self.to_seam(addr, len(data))
            at = MARGIN + addr - BASE
            self.calls.append(("write", at, part))
            self.cells[at : at + part] = data[:part]
            addr, data = addr + part, data[part:]

    def count(self, addr: int, n: int, *, write: bool) -> int:
        """How many of ``n`` bytes can be moved at ``addr``; raises where it is none."""
        room = self.room(addr)
        if not room:
            raise Outside(addr)
        if n > room and self.contract.never_short is not None:
            raise Refused
        if write:
            self.may_write()
        return min(n, room)

    def may_write(self) -> None:
        if self.contract.read_only is not None:
            raise Frozen

    # -- buffers -----------------------------------------------------------------------------

    def buffer(self, buf: Any) -> memoryview:
        if not isinstance(buf, bytes | bytearray | memoryview):
            raise ModelError("no buffer")
        return memoryview(buf).cast("B")

    def room_in(self, buf: Any) -> memoryview:
        view = self.buffer(buf)
        if view.readonly:
            raise ModelError("cannot be filled")
        return view

    def write(self, buf: Any, addr: int) -> int:
        data = bytes(self.buffer(buf))
        if not data:
            return 0
        n = self.count(addr, len(data), write=True)
        self.set(addr, data[:n])
        return n

    def read(self, buf: Any, addr: int) -> int:
        view = self.room_in(buf)
        if not view:
            return 0
        n = self.count(addr, len(view), write=False)
        view[:n] = self.get(addr, n)
        return n

    def write_slice(self, buf: Any, addr: int) -> None:
        data = bytes(self.buffer(buf))
        if data:
            n = self.count(addr, len(data), write=True)
            self.set(addr, data[:n])
            if n < len(data):
                raise Part(len(data), n)

    def read_slice(self, buf: Any, addr: int) -> None:
        view = self.room_in(buf)
        if view:
            n = self.count(addr, len(view), write=False)
            view[:n] = self.get(addr, n)
            if n < len(view):
                raise Part(len(view), n)

    # -- objects and single accesses ---------------------------------------------------------

    def raw_of(self, value: Any) -> bytes:
        raw = None if isinstance(value, type) else getattr(value, "raw", None)
        if not isinstance(raw, bytes):
            raise ModelError("no value")
        return raw

    def size_of(self, cls: Any) -> int:
        if not isinstance(cls, type) or not hasattr(cls, "from_raw"):
            raise ModelError("no type")
        size: int = cls.size  # type: ignore[attr-defined]
        return size

    def object_count(self, addr: int, size: int, *, write: bool) -> int:
        """Bytes of an object that can be moved; raises where it must be whole and is not."""
        if self.contract.whole_objects is not None and self.to_seam(addr, size) < size:
            raise NotWhole
        if self.contract.whole_objects is not None and self.room(addr) < size:
            raise NotWhole
        return self.count(addr, size, write=write)

    def write_obj(self, value: Any, addr: int) -> None:
        raw = self.raw_of(value)
        n = self.object_count(addr, len(raw), write=True)
        self.set(addr, raw[:n])
        if n < len(raw):
            raise Part(len(raw), n)

    def read_obj(self, addr: int, cls: Any) -> Any:
        size = self.size_of(cls)
        n = self.object_count(addr, size, write=False)
        if n < size:
            raise Part(size, n)
        return cls.from_raw(self.get(addr, n))

    def single(self, addr: int, size: int, *, write: bool) -> None:
        """Raise unless that can be one access."""
        if size not in (1, 2, 4, 8):
            raise ModelError("no single access")
        if self.count(addr, size, write=write) < size or self.to_seam(addr, size) < size:
            raise NotOne
        self.check_alignment(addr, size)

    def check_alignment(self, addr: int, size: int) -> None:
        if self.contract.aligned and addr % size:
            raise NotOne

    def store(self, value: Any, addr: int, order: Ordering = Ordering.RELAXED) -> None:
        raw = self.raw_of(value)
        self.single(addr, len(raw), write=True)
        self.set(addr, raw)

    def load(self, addr: int, cls: Any, order: Ordering = Ordering.RELAXED) -> Any:
        size = self.size_of(cls)
        self.single(addr, size, write=False)
        return cls.from_raw(self.get(addr, size))


class StreamReference(Reference):
    """With stream forms of its own, of the two styles that are not ``Bytes``' own."""

    @property
    def by_slice(self) -> bool:
        return self.contract.streams is Streams.SLICE

    def ask(self, call: Any, what: Any) -> Any:
        """One read or write of a stream that is not interrupted."""
        while True:
            try:
                return call(what)
            except InterruptedError:
                continue
            except OSError:
                raise StreamFailed(ErrorKind.OTHER) from None

    def stream_room(self, addr: int, count: int, *, write: bool) -> int:
        if not count or (self.by_slice and addr == BASE + self.contract.length):
            return 0
        return self.count(addr, count, write=write)

    def read_volatile_from(self, addr: int, src: Any, count: int) -> int:
        left = self.stream_room(addr, count, write=True)
        done = 0
        while left:
            part = self.to_seam(addr + done, left)
            data = self.ask(src.read, part)
            self.set(addr + done, data)
            done, left = done + len(data), left - len(data)
            if len(data) < part:
                break
        return done

    def read_exact_volatile_from(self, addr: int, src: Any, count: int) -> None:
        if not self.by_slice:
            done = self.read_volatile_from(addr, src, count)
            if done < count:
                raise Part(count, done)
            return
        self.whole(addr, count)
        if isinstance(src, BytesIO) and len(src.getvalue()) - src.tell() < count:
            raise StreamFailed(ErrorKind.UNEXPECTED_EOF)
        done = 0
        while done < count:
            data = self.ask(src.read, count - done)
            if not data:
                raise StreamFailed(ErrorKind.UNEXPECTED_EOF)
            self.set(addr + done, data)
            done += len(data)

    def write_volatile_to(self, addr: int, dst: Any, count: int) -> int:
        n = self.stream_room(addr, count, write=False)
        if not self.by_slice:
            return self.give(dst, self.get(addr, n))
        return self.ask(dst.write, self.get(addr, n)) if n else 0

    def write_all_volatile_to(self, addr: int, dst: Any, count: int) -> None:
        if self.by_slice:
            self.whole(addr, count)
            self.give(dst, self.get(addr, count))
            return
        n = self.stream_room(addr, count, write=False)
        self.give(dst, self.get(addr, n))
        if n < count:
            raise Part(count, n)

    def whole(self, addr: int, count: int) -> None:
        if count and self.room(addr) < count:
            raise Outside(addr)

    def give(self, dst: Any, data: bytes) -> int:
        done = 0
        while done < len(data):
            n = self.ask(dst.write, data[done:])
            if not n:
                self.full()
            done += n
        return done

    def full(self) -> NoReturn:
        raise StreamFailed(ErrorKind.WRITE_ZERO)


def subject(made: type[Reference], about: Contract) -> Subject:
    """A fresh one, with a margin on both sides."""
    cells = bytearray(MARGIN + about.length + MARGIN)
    calls: list[Any] = []

    def fill(data: bytes) -> None:
        cells[:] = data

    return Subject(
        made(about, cells, calls), address=lambda n: BASE + n, snapshot=lambda: bytes(cells),
        fill=fill, margin=MARGIN, calls=calls, top=TOP,
    )
