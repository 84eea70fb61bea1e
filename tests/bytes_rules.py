"""The rules of ``Bytes``: buffers, objects, single accesses. ``bytes_conformance`` runs them."""

from __future__ import annotations

from array import array
from typing import Any, ClassVar

from bytes_subject import Contract, Probe, other, rule, short, short_and_writable, writable

from qemuglue.errors import ModelError
from qemuglue.memory.bytes import ByteValued, Ordering
from qemuglue.memory.endian import U8, Be16, Be32, Be64, Le16, Le32, Le64

#: Sizes of accesses: around those that one access can be, and some more.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17)
STORE_ORDERS = (Ordering.RELAXED, Ordering.RELEASE, Ordering.SEQ_CST)
LOAD_ORDERS = (Ordering.RELAXED, Ordering.ACQUIRE, Ordering.SEQ_CST)


class Odd:
    """A value of three bytes."""

    size: ClassVar[int] = 3

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def from_raw(cls, data: bytes | bytearray | memoryview) -> Odd:
        return cls(bytes(data))


class Wide(Odd):
    """A value of sixteen bytes."""

    size: ClassVar[int] = 16


OBJECTS: tuple[type[ByteValued], ...] = (U8, Le16, Be16, Odd, Le32, Be32, Le64, Be64, Wide)


def places(probe: Probe, size: int) -> list[int]:
    """Offsets where ``size`` bytes are all inside: the edges, odd ones, around the seam."""
    last = probe.length - size
    some = {0, 1, 2, 3, 8, last - 1, last}
    if probe.contract.seam is not None:
        some |= {probe.contract.seam - size, probe.contract.seam}
    return sorted(offset for offset in some if 0 <= offset <= last)


def unseamed(probe: Probe, size: int) -> list[int]:
    """Those of ``places`` that do not cross the seam."""
    seam = probe.contract.seam
    return [o for o in places(probe, size) if seam is None or o + size <= seam or o >= seam]


# -- buffers ---------------------------------------------------------------------------------


@rule("an empty buffer is 0 at any address")
def empty(probe: Probe) -> None:
    addresses = [probe.at(n) for n in (0, 5, probe.length - 1, probe.length, probe.length + 9)]
    if probe.contract.has_top:
        addresses.append(probe.top)
    for addr in addresses:
        what = f"nothing at {addr!r}"
        assert probe.bytes.write(b"", addr) == 0, what
        assert probe.bytes.read(bytearray(), addr) == 0, what
        assert probe.bytes.write_slice(b"", addr) is None, what
        assert probe.bytes.read_slice(bytearray(), addr) is None, what
    probe.settle("empty accesses")


@rule("read gives the bytes that are there, and no others")
def reading(probe: Probe) -> None:
    for size in (*SIZES, probe.length):
        for offset in places(probe, size):
            buf = bytearray(size)
            assert probe.bytes.read(buf, probe.at(offset)) == size
            assert buf == probe.have(offset, size), f"{size} bytes at {offset:#x} read as {buf!r}"
    probe.settle("reading")


@rule("write writes the bytes where they belong, and no others", writable)
def writing(probe: Probe) -> None:
    for size in (*SIZES, probe.length):
        for offset in places(probe, size):
            data = other(probe.have(offset, size))
            probe.put(offset, data)
            assert probe.bytes.write(data, probe.at(offset)) == size
            probe.settle(f"write of {size} bytes at {offset:#x}")


@rule("what changes behind its back is seen at once")
def no_copies(probe: Probe) -> None:
    cls = probe.contract.atomics[-1]
    buf = bytearray(8)
    for _ in range(2):
        probe.bytes.read(buf, probe.at(8))
        assert buf == probe.have(8, 8), "read gave what was there before"
        got = probe.bytes.load(probe.at(8), cls)
        assert got.raw == probe.have(8, cls.size), "load gave what was there before"
        probe.poke(8, other(probe.have(8, 8)))


@rule("read is short at the end, and says how short", short)
def short_read(probe: Probe) -> None:
    for left in (1, 2, 7, 8, probe.length):
        buf = bytearray(left + 5)
        offset = probe.length - left
        got = probe.bytes.read(buf, probe.at(offset))
        assert got == left, f"{got} bytes of {left} that are there"
        assert buf[:left] == probe.have(offset, left)
    probe.settle("short reads")


@rule("write is short at the end, says how short, and what it wrote is there", short_and_writable)
def short_write(probe: Probe) -> None:
    for left in (1, 2, 7, 8, probe.length):
        offset = probe.length - left
        data = other(probe.have(offset, left))
        probe.put(offset, data)
        got = probe.bytes.write(data + b"beyond", probe.at(offset))
        assert got == left, f"{got} bytes of {left} that fit"
        probe.settle(f"write of {left} bytes and 6 that do not fit")


@rule("an access whose first byte is outside raises, and moves nothing")
def first_byte_outside(probe: Probe) -> None:
    contract = probe.contract
    writes = contract.read_only is None
    for behind in (0, 1, 9):
        addr = probe.at(probe.length + behind)
        for size in (1, 4, 20):
            what = f"{size} bytes {behind} behind the end"
            calls: list[Any] = [
                lambda b, a=addr: probe.bytes.read(bytearray(b), a),
                lambda b, a=addr: probe.bytes.read_slice(bytearray(b), a),
            ]
            if writes:
                calls.append(lambda b, a=addr: probe.bytes.write(bytes(b), a))
                calls.append(lambda b, a=addr: probe.bytes.write_slice(bytes(b), a))
            for call in calls:
                error = probe.refused(lambda c=call, s=size: c(s), contract.outside, what)
                if contract.outside_says_where:
                    got = getattr(error, "addr", None)
                    assert got == addr, f"{what}: the error says {got!r} instead of {addr!r}"
    probe.settle("accesses outside")


@rule("an access that would go on beyond 2^64-1 raises", lambda c: c.has_top)
def beyond_the_top(probe: Probe) -> None:
    for size in (1, 2, 16):
        what = f"{size} bytes at 2^64-1"
        outside = probe.contract.outside
        probe.refused(lambda s=size: probe.bytes.read(bytearray(s), probe.top), outside, what)
        if probe.contract.read_only is None:
            probe.refused(lambda s=size: probe.bytes.write(bytes(s), probe.top), outside, what)
            probe.refused(lambda s=size: probe.bytes.write_slice(bytes(s), probe.top),
                          outside, what)
    probe.settle("accesses at the last address")


@rule("read_slice and write_slice move all", writable)
def whole_slices(probe: Probe) -> None:
    for size in (*SIZES, probe.length):
        for offset in places(probe, size):
            data = other(probe.have(offset, size))
            probe.put(offset, data)
            assert probe.bytes.write_slice(data, probe.at(offset)) is None
            probe.settle(f"write_slice of {size} bytes at {offset:#x}")
            buf = bytearray(size)
            assert probe.bytes.read_slice(buf, probe.at(offset)) is None
            assert buf == data, f"read_slice of {size} bytes at {offset:#x}"


@rule("read_slice that ends early says how much it moved, and that stays moved", short)
def partial_read_slice(probe: Probe) -> None:
    for left in (1, 7, probe.length):
        offset = probe.length - left
        buf = bytearray(left + 3)
        error: Any = probe.refused(
            lambda b=buf, o=offset: probe.bytes.read_slice(b, probe.at(o)),
            probe.contract.partial, f"read_slice with {left} of {left + 3} bytes there",
        )
        assert (error.expected, error.completed) == (left + 3, left), repr(error)
        assert buf[:left] == probe.have(offset, left), "what was there was not read"
    probe.settle("partial reads")


@rule("write_slice that ends early says how much, and that stays moved", short_and_writable)
def partial_write_slice(probe: Probe) -> None:
    for left in (1, 7, probe.length):
        offset = probe.length - left
        data = other(probe.have(offset, left))
        probe.put(offset, data)
        error: Any = probe.refused(
            lambda d=data, o=offset: probe.bytes.write_slice(d + b"end", probe.at(o)),
            probe.contract.partial, f"write_slice with room for {left} of {left + 3} bytes",
        )
        assert (error.expected, error.completed) == (left + 3, left), repr(error)
        probe.settle("a partial write_slice")


@rule("an access of which a byte is outside is refused whole", lambda c: not short(c))
def never_short(probe: Probe) -> None:
    kind = probe.contract.never_short
    assert kind is not None
    for left in (1, 7, probe.length):
        where = probe.at(probe.length - left)
        data = bytes(left + 1)
        calls: list[Any] = [
            lambda d=data, w=where: probe.bytes.read(bytearray(d), w),
            lambda d=data, w=where: probe.bytes.read_slice(bytearray(d), w),
        ]
        if probe.contract.read_only is None:
            calls.append(lambda d=data, w=where: probe.bytes.write(d, w))
            calls.append(lambda d=data, w=where: probe.bytes.write_slice(d, w))
        for call in calls:
            probe.refused(call, kind, f"{left + 1} bytes of which {left} are there")
            probe.settle(f"{left + 1} bytes of which {left} have room")


@rule("any kind of buffer is taken as its bytes", writable)
def kinds_of_buffers(probe: Probe) -> None:
    data = other(probe.have(4, 8))
    words = array("I", data)
    for buf in (data, bytearray(data), memoryview(b"<" + data + b">")[1:-1], memoryview(words)):
        probe.put(4, other(probe.have(4, 8)))
        probe.bytes.write(probe.have(4, 8), probe.at(4))
        probe.put(4, data)
        assert probe.bytes.write(buf, probe.at(4)) == 8, f"bytes of a {type(buf).__name__}"
        probe.settle(f"write of a {type(buf).__name__}")
    into = array("I", bytes(8))
    assert probe.bytes.read(memoryview(into), probe.at(4)) == 8
    assert into.tobytes() == data
    around = bytearray(b"<........>")
    probe.bytes.read_slice(memoryview(around)[1:-1], probe.at(4))
    assert around == b"<" + data + b">"


@rule("what is no buffer, or cannot be filled, is refused before anything is moved")
def no_buffers(probe: Probe) -> None:
    bad: Any
    for bad in ("text", 7, None, [1, 2]):
        what = f"{bad!r} as a buffer"
        probe.refused(lambda b=bad: probe.bytes.read(b, probe.at(0)), ModelError, what)
        if probe.contract.read_only is None:
            probe.refused(lambda b=bad: probe.bytes.write(b, probe.at(0)), ModelError, what)
    frozen: Any = bytes(4)
    probe.refused(lambda: probe.bytes.read(frozen, probe.at(0)), ModelError, "filling bytes")
    probe.settle("buffers that are none")


# -- objects ---------------------------------------------------------------------------------


@rule("read_obj gives the value whose bytes are there, at any address")
def reading_objects(probe: Probe) -> None:
    for cls in OBJECTS:
        for offset in (unseamed if probe.contract.whole_objects else places)(probe, cls.size):
            got = probe.bytes.read_obj(probe.at(offset), cls)
            assert type(got) is cls and got.raw == probe.have(offset, cls.size), (
                f"{cls.__name__} at {offset:#x} read as {got!r}"
            )
    probe.settle("reading objects")


@rule("write_obj writes the value's bytes, at any address", writable)
def writing_objects(probe: Probe) -> None:
    for cls in OBJECTS:
        for offset in (unseamed if probe.contract.whole_objects else places)(probe, cls.size):
            data = other(probe.have(offset, cls.size))
            probe.put(offset, data)
            assert probe.bytes.write_obj(cls.from_raw(data), probe.at(offset)) is None
            probe.settle(f"{cls.__name__} at {offset:#x}")


@rule("an object that does not fit is moved as a slice is, or not at all")
def objects_at_the_end(probe: Probe) -> None:
    whole = probe.contract.never_short or probe.contract.whole_objects
    for cls in OBJECTS[1:]:
        for left in (1, cls.size - 1):
            offset = probe.length - left
            what = f"{cls.__name__} with {left} bytes left"
            kind = whole or probe.contract.partial
            error: Any = probe.refused(
                lambda c=cls, o=offset: probe.bytes.read_obj(probe.at(o), c), kind, what)
            if whole is None:
                assert (error.expected, error.completed) == (cls.size, left), what
            if probe.contract.read_only is not None:
                continue
            value = cls.from_raw(other(probe.have(offset, left)) + bytes(cls.size - left))
            if whole is None:
                probe.put(offset, value.raw[:left])
            probe.refused(
                lambda v=value, o=offset: probe.bytes.write_obj(v, probe.at(o)), kind, what)
            probe.settle(what)
    outside = probe.contract.whole_objects or probe.contract.outside
    probe.refused(lambda: probe.bytes.read_obj(probe.at(probe.length), Le32), outside, "outside")
    if probe.contract.read_only is None:
        probe.refused(
            lambda: probe.bytes.write_obj(Le32(7), probe.at(probe.length)), outside, "outside")
    probe.settle("objects outside")


@rule("a value that does not say its size and byte order is refused")
def untyped_values(probe: Probe) -> None:
    bad: Any
    for bad in (42, -1, "text", b"1234", None, Le32, 1.5):
        what = f"{bad!r} as a value"
        probe.refused(lambda b=bad: probe.bytes.write_obj(b, probe.at(0)), ModelError, what)
        probe.refused(lambda b=bad: probe.bytes.store(b, probe.at(0)), ModelError, what)
    for bad in (int, bytes, str, 4, None):
        what = f"{bad!r} as a type"
        probe.refused(lambda b=bad: probe.bytes.read_obj(probe.at(0), b), ModelError, what)
        probe.refused(lambda b=bad: probe.bytes.load(probe.at(0), b), ModelError, what)
    probe.settle("values that are none")


# -- single accesses -------------------------------------------------------------------------


def aligned_places(probe: Probe, size: int) -> list[int]:
    """Multiples of ``size`` before the seam: the first two and the last."""
    last = (probe.contract.first_region - size) // size * size
    return sorted({0, size, last})


@rule("load gives the value whose bytes are there, in every order of loads")
def loading(probe: Probe) -> None:
    for cls in probe.contract.atomics:
        for offset in aligned_places(probe, cls.size):
            for order in LOAD_ORDERS:
                got = probe.bytes.load(probe.at(offset), cls, order)
                assert type(got) is cls and got.raw == probe.have(offset, cls.size), (
                    f"{cls.__name__} at {offset:#x} loaded as {got!r}"
                )
    probe.settle("loading")


@rule("store writes the value's bytes and no others, in every order of stores", writable)
def storing(probe: Probe) -> None:
    for cls in probe.contract.atomics:
        for offset in aligned_places(probe, cls.size):
            for order in STORE_ORDERS:
                data = other(probe.have(offset, cls.size))
                probe.put(offset, data)
                assert probe.bytes.store(cls.from_raw(data), probe.at(offset), order) is None
                probe.settle(f"{cls.__name__} stored at {offset:#x}")


def _single(probe: Probe, cls: type[ByteValued], offset: int, kind: type[Exception],
            what: str) -> None:
    """Neither ``load`` nor ``store`` may do this."""
    what = f"{cls.__name__} {what} at {offset:#x}"
    probe.refused(lambda: probe.bytes.load(probe.at(offset), cls), kind, f"load of {what}")
    if probe.contract.read_only is None:
        value = cls.from_raw(bytes(cls.size))
        probe.refused(lambda: probe.bytes.store(value, probe.at(offset)), kind, f"store of {what}")
    probe.settle(what)


@rule("store and load that would cross the end are refused, never cut")
def single_at_the_end(probe: Probe) -> None:
    for cls in probe.contract.atomics:
        for left in range(1, cls.size):
            kind = probe.contract.never_short or probe.contract.not_one
            _single(probe, cls, probe.length - left, kind, "across the end")


@rule("store and load outside are refused")
def single_outside(probe: Probe) -> None:
    kind = probe.contract.not_one_outside or probe.contract.outside
    for cls in probe.contract.atomics:
        for behind in (0, 8):
            _single(probe, cls, probe.length + behind, kind, "outside")


@rule("store and load that would cross into another region are refused", lambda c: bool(c.seam))
def single_across_the_seam(probe: Probe) -> None:
    assert probe.contract.seam is not None
    for cls in probe.contract.atomics:
        for before in range(1, cls.size):
            offset = probe.contract.seam - before
            _single(probe, cls, offset, probe.contract.not_one, "across the seam")


@rule("store and load at an odd address are refused", lambda c: c.aligned)
def misaligned(probe: Probe) -> None:
    for cls in probe.contract.atomics:
        for offset in range(1, 8):
            if offset % cls.size:
                _single(probe, cls, offset, probe.contract.not_one, "misaligned")


@rule("store and load at an odd address are done", lambda c: not c.aligned and writable(c))
def any_alignment(probe: Probe) -> None:
    for cls in probe.contract.atomics:
        for offset in range(1, 8):
            data = other(probe.have(offset, cls.size))
            probe.put(offset, data)
            probe.bytes.store(cls.from_raw(data), probe.at(offset))
            probe.settle(f"{cls.__name__} stored at {offset:#x}")
            assert probe.bytes.load(probe.at(offset), cls).raw == data


@rule("what no single access can be is neither stored nor loaded")
def impossible_sizes(probe: Probe) -> None:
    for cls in (Odd, Wide):
        _single(probe, cls, 0, ModelError, "in one access")


def _counted_and_writable(contract: Contract) -> bool:
    return contract.counted and contract.read_only is None


@rule("store and load are one access to what the bytes are kept in", lambda c: c.counted)
def one_access(probe: Probe) -> None:
    for cls in probe.contract.atomics:
        for offset in aligned_places(probe, cls.size):
            probe.calls.clear()
            probe.bytes.load(probe.at(offset), cls)
            got = [(what, size) for what, _, size in probe.calls]
            assert got == [("read", cls.size)], f"load of {cls.__name__}: {probe.calls}"
            if probe.contract.read_only is not None:
                continue
            data = other(probe.have(offset, cls.size))
            probe.put(offset, data)
            probe.calls.clear()
            probe.bytes.store(cls.from_raw(data), probe.at(offset))
            got = [(what, size) for what, _, size in probe.calls]
            assert got == [("write", cls.size)], f"store of {cls.__name__}: {probe.calls}"
            probe.settle(f"{cls.__name__} stored at {offset:#x}")


@rule("reading, however it ends, writes nothing; writing reads nothing", _counted_and_writable)
def only_what_was_asked(probe: Probe) -> None:
    probe.bytes.read(bytearray(probe.length + 4 * short(probe.contract)), probe.at(0))
    probe.bytes.read_obj(probe.at(1), Le64)
    probe.bytes.load(probe.at(8), probe.contract.atomics[-1])
    assert {what for what, _, _ in probe.calls} == {"read"}, probe.calls
    probe.calls.clear()
    for offset in (0, 3):
        data = other(probe.have(offset, 8))
        probe.put(offset, data)
        probe.bytes.write(data, probe.at(offset))
    assert {what for what, _, _ in probe.calls} == {"write"}, probe.calls
    probe.settle("writing")


# -- regions ---------------------------------------------------------------------------------


@rule("buffers go on in the next region", lambda c: bool(c.seam) and writable(c))
def across_the_seam(probe: Probe) -> None:
    seam = probe.contract.seam
    assert seam is not None
    for before, behind in ((1, 1), (3, 5), (8, 8), (seam, probe.length - seam)):
        offset, size = seam - before, before + behind
        data = other(probe.have(offset, size))
        probe.put(offset, data)
        assert probe.bytes.write(data, probe.at(offset)) == size
        probe.settle(f"write of {before} + {behind} bytes")
        buf = bytearray(size)
        assert probe.bytes.read(buf, probe.at(offset)) == size and buf == data
        probe.put(offset, other(data))
        probe.bytes.write_slice(other(data), probe.at(offset))
        probe.settle(f"write_slice of {before} + {behind} bytes")
        probe.bytes.read_slice(buf, probe.at(offset))
        assert buf == other(data)


@rule("every form of write is refused, and changes nothing", lambda c: c.read_only is not None)
def read_only(probe: Probe) -> None:
    kind = probe.contract.read_only
    assert kind is not None
    for offset in (0, 3, probe.length - 4):
        where = probe.at(offset)
        probe.refused(lambda w=where: probe.bytes.write(b"abcd", w), kind, "write")
        probe.refused(lambda w=where: probe.bytes.write_slice(b"abcd", w), kind, "write_slice")
        probe.refused(lambda w=where: probe.bytes.write_obj(Le32(1), w), kind, "write_obj")
    probe.refused(lambda: probe.bytes.store(Le32(1), probe.at(4)), kind, "store")
    if probe.contract.streams is not None:
        probe.refused(
            lambda: probe.bytes.read_volatile_from(probe.at(0), b"abcd", 4), kind, "a stream")
    probe.settle("writes that were refused")
