"""AtomicInteger and AtomicAccess."""

from __future__ import annotations

import threading

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory.atomic_integer import (
    FORMATS,
    AtomicI8,
    AtomicI16,
    AtomicI32,
    AtomicI64,
    AtomicInteger,
    AtomicIsize,
    AtomicU8,
    AtomicU16,
    AtomicU32,
    AtomicU64,
    AtomicUsize,
    atomic_of,
)
from qemuglue.memory.bytes import Ordering
from qemuglue.memory.endian import ENDIAN_TYPES, Be64, Le64
from qemuglue.memory.native import NATIVE_TYPES, NativeI128, NativeInt, NativeU128, NativeUsize

ATOMICS = (
    AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize,
)


@pytest.mark.parametrize("cls", ATOMICS)
def test_what_is_stored_is_loaded(cls: type[AtomicInteger[NativeInt]]) -> None:
    atomic = cls.new(0)
    assert atomic.load(Ordering.RELAXED) == 0
    for number in (100, cls.V.min(), cls.V.max()):
        atomic.store(number, Ordering.RELAXED)
        assert atomic.load() == number
        atomic.store(cls.V(number))
        assert type(atomic.load()) is cls.V
    for number in (cls.V.min() - 1, cls.V.max() + 1):
        with pytest.raises(ModelError, match="holds"):
            atomic.store(number)
        with pytest.raises(ModelError, match="holds"):
            cls.new(number)
    assert repr(cls.new(7)) == f"{cls.__name__}(7)"


@pytest.mark.parametrize("cls", ATOMICS)
def test_it_lies_in_the_bytes_it_is_given(cls: type[AtomicInteger[NativeInt]]) -> None:
    data = bytearray(2 * cls.size)
    atomic = cls(memoryview(data)[cls.size :])
    atomic.store(cls.V.max())
    assert data == bytes(cls.size) + cls.V(cls.V.max()).raw
    data[cls.size :] = cls.V(5).raw
    assert atomic.load() == 5


@pytest.mark.parametrize("order", list(Ordering))
def test_orders_that_rust_panics_for_are_refused(order: Ordering) -> None:
    atomic = AtomicU32.new(1)
    if order in (Ordering.RELEASE, Ordering.ACQ_REL):
        with pytest.raises(ModelError, match="load"):
            atomic.load(order)
    else:
        assert atomic.load(order) == 1
    if order in (Ordering.ACQUIRE, Ordering.ACQ_REL):
        with pytest.raises(ModelError, match="store"):
            atomic.store(2, order)
        assert atomic.load() == 1
    else:
        atomic.store(2, order)
        assert atomic.load() == 2


def test_what_is_no_order_is_refused() -> None:
    with pytest.raises(ModelError, match="'relaxed' load"):
        AtomicU8.new(1).load("relaxed")  # type: ignore[arg-type]


def test_a_place_must_fit_be_aligned_and_writable() -> None:
    data = bytearray(16)
    for place in (memoryview(data)[:3], memoryview(data)[:5], memoryview(data)[2:6],
                  memoryview(bytes(4))):
        with pytest.raises(ModelError, match="4 aligned writable bytes"):
            AtomicU32(place)
    AtomicU32(memoryview(data)[4:8])
    for size in (0, 1):
        with pytest.raises(ModelError, match="holds nothing"):
            AtomicInteger(bytearray(size))


@pytest.mark.parametrize("cls", NATIVE_TYPES)
def test_every_native_integer_of_up_to_8_bytes_has_one(cls: type[NativeInt]) -> None:
    if cls in (NativeU128, NativeI128):
        with pytest.raises(ModelError, match="cannot be loaded or stored in one access"):
            atomic_of(cls)
        return
    atomic = atomic_of(cls)
    assert atomic in ATOMICS
    assert (atomic.V, atomic.size) == (cls, cls.size)


def test_endian_types_have_one_of_their_size() -> None:
    # Differs from the crate, where they have none.
    wanted = {1: AtomicU8, 2: AtomicU16, 4: AtomicU32, 8: AtomicU64}
    for cls in ENDIAN_TYPES:
        assert atomic_of(cls) is wanted[cls.size]


def test_a_type_of_ones_own_names_its_own() -> None:
    class Tag:
        size = 8
        A = AtomicI64

        @classmethod
        def from_raw(cls, data: bytes) -> Tag:
            return cls()

        raw = bytes(8)

    assert atomic_of(Tag) is AtomicI64

    class None_(Tag):
        A = None

    with pytest.raises(ModelError, match="None_ cannot be loaded or stored"):
        atomic_of(None_)

    class Wrong(Tag):
        A = AtomicI32

    with pytest.raises(ModelError, match="Wrong is 8 bytes, AtomicI32 is 4"):
        atomic_of(Wrong)

    class Not(Tag):
        A = int

    with pytest.raises(ModelError, match="Not cannot be"):
        atomic_of(Not)


def test_formats_are_of_their_sizes() -> None:
    assert {size: memoryview(bytes(8)).cast(code).itemsize for size, code in FORMATS.items()} == {
        1: 1, 2: 2, 4: 4, 8: 8,
    }


def test_a_number_is_never_seen_in_half() -> None:
    data = bytearray(8)
    writer, reader = AtomicUsize(data), AtomicUsize(data)
    low, high = 0, NativeUsize.max()
    done = threading.Event()

    def write() -> None:
        for _ in range(3000):
            writer.store(high)
            writer.store(low)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = {low}
    while not done.is_set():
        seen.add(int(reader.load()))
    thread.join()
    assert seen <= {low, high}
    assert Le64(high) == Be64(high)
