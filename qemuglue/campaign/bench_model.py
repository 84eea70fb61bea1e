"""How fast the model is by itself: no QEMU takes part.

Every figure is the median over rounds, after a first round that warms caches and does not
count. Ratios are taken within a round and hold; absolute figures drift with the host.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from math import log, log2
from random import Random
from statistics import fmean, median

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import OK, MemTxAttrs
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.contract import Contract, Endian
from qemuglue.memory.endian import EndianInt, Le32, Le64
from qemuglue.memory.flatview import render
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.region import MAX_SIZE, MemoryRegion
from qemuglue.memory.rust_binding import AddressSpace as RustSpace

MIB = 1 << 20
#: Regions of the maps that are drawn.
SIZES = (10, 100, 1_000, 10_000)
#: Bytes of a bulk access.
BULKS = (1 * MIB, 4 * MIB, 16 * MIB, 64 * MIB)
#: Distinct addresses of a loop: enough that no cache of one address helps.
ADDRESSES = 4096
#: Lookups timed at once.
LOOKUPS = 100_000
#: A small measurement is repeated within a round until it has taken so long, because the
#: clock's own cost and its jumps must not show.
ROUND_S = 0.05

RAM_BASE, RAM_SIZE = 0, 64 * MIB
DEVICE_BASE, DEVICE_SIZE = 1 << 40, 0x1000


@dataclass(frozen=True, slots=True)
class Access:
    """Single accesses a second: ``what`` is load or store, ``kind`` the type of the value."""

    face: str
    region: str
    what: str
    kind: str
    per_s: float


@dataclass(frozen=True, slots=True)
class View:
    """A map of ``regions`` regions (its root counts too), which shows ``sections``. Seconds of
    one rendering and of one lookup."""

    shape: str
    regions: int
    sections: int
    render_s: float
    lookup_s: float


@dataclass(frozen=True, slots=True)
class Growth:
    """Rendering over all sizes of a shape: ``exponent`` e of the fitted n^e, and
    ``nlogn_s`` c of the fitted c·n·log2(n), in seconds."""

    shape: str
    exponent: float
    nlogn_s: float


@dataclass(frozen=True, slots=True)
class Bulk:
    """Seconds of one access of ``size`` bytes to RAM, of slicing the same bytearray alike, and
    the median of their ratios."""

    what: str
    size: int
    model_s: float
    slicing_s: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Figures:
    rounds: int
    accesses: list[Access]
    views: list[View]
    growth: list[Growth]
    bulk: list[Bulk]


def measure(
    *, operations: int, rounds: int, seed: int,
    sizes: Sequence[int] = SIZES, bulks: Sequence[int] = BULKS,
) -> Figures:
    """``operations`` single accesses of each kind a round; maps of ``sizes`` regions; ``bulks``
    bytes at once, at most 64 MiB."""
    rng = Random(seed)
    views = measure_views(rng, rounds, sizes)
    return Figures(
        rounds, measure_accesses(rng, operations, rounds), views,
        [fitted(shape, views) for shape in SHAPES], measure_bulk(rounds, bulks),
    )


# -- single accesses ---------------------------------------------------------------------------


class _Registers:
    """A device with nothing behind it: what is measured is the way there and back."""

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        return OK, offset

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        return OK


def small_machine() -> AddressSpace:
    """RAM of 64 MiB at 0 and a device of one page far behind it, which takes any size."""
    root = MemoryRegion.container_of("system", MAX_SIZE)
    root.add_subregion(RAM_BASE, MemoryRegion.ram("ram", RAM_SIZE, ByteBacking(RAM_SIZE)))
    contract = Contract(valid_min=1, valid_max=8, impl_min=1, impl_max=8, endian=Endian.LITTLE)
    device = MemoryRegion.io("device", DEVICE_SIZE, contract, _Registers(), owner="device")
    root.add_subregion(DEVICE_BASE, device)
    return AddressSpace("memory", root)


def measure_accesses(rng: Random, operations: int, rounds: int) -> list[Access]:
    """Aligned typed accesses at random addresses of RAM and of a device, through both faces."""
    space = small_machine()
    rust = RustSpace(space)
    places = {
        "RAM": [RAM_BASE + 8 * rng.randrange(RAM_SIZE // 8) for _ in range(ADDRESSES)],
        "device": [DEVICE_BASE + 8 * rng.randrange(DEVICE_SIZE // 8) for _ in range(ADDRESSES)],
    }
    turns = max(1, operations // ADDRESSES)
    found = []
    for region, addresses in places.items():
        typed = [GuestAddress(addr) for addr in addresses]
        for kind in (Le32, Le64):
            value = kind(42)
            for face, what, loop in (
                ("C", "load", _loads(space.load, addresses, kind, turns)),
                ("C", "store", _stores(space.store, addresses, value, turns)),
                ("Rust", "load", _loads(rust.load, typed, kind, turns)),
                ("Rust", "store", _stores(rust.store, typed, value, turns)),
            ):
                seconds = median(_timed(loop, rounds))
                per_s = turns * ADDRESSES / seconds
                found.append(Access(face, region, what, kind.__name__, per_s))
    return found


def _loads(
    load: Callable[..., object], addresses: Sequence[object], kind: type[EndianInt], turns: int
) -> Callable[[], None]:
    def loop() -> None:
        for addr in chain.from_iterable(repeat(addresses, turns)):
            load(addr, kind)
    return loop


def _stores(
    store: Callable[..., object], addresses: Sequence[object], value: EndianInt, turns: int
) -> Callable[[], None]:
    def loop() -> None:
        for addr in chain.from_iterable(repeat(addresses, turns)):
            store(addr, value)
    return loop


# -- views ---------------------------------------------------------------------------------------


def flat_map(count: int) -> MemoryRegion:
    """One container; RAM of one page in every second page, added from the bottom up."""
    root = MemoryRegion.container_of("flat", MAX_SIZE)
    for at in range(count - 1):
        root.add_subregion(at * 0x2000, MemoryRegion.ram(f"ram{at}", 0x1000))
    return root


def nested_map(count: int) -> MemoryRegion:
    """Containers of eight in containers of eight, and so on. Each child overlaps its neighbours
    by a quarter, with priorities of four levels; where the eighth is no container it is an
    alias of the first. Behind all lies RAM, which shows in the gaps."""
    inside = _nested(max(1, count - 2), 0)
    root = MemoryRegion.container_of("nested", MAX_SIZE)
    root.add_subregion(0, inside)
    root.add_subregion_overlap(0, MemoryRegion.ram("behind", inside.size + 0x1000), -1)
    return root


def _nested(budget: int, at: int) -> MemoryRegion:
    """A tree of ``budget`` regions, which is child number ``at`` of its container."""
    if budget == 1:
        return MemoryRegion.ram("leaf", 0x1000 if at % 3 else 0x2000)
    number = min(8, budget - 1)
    share, rest = divmod(budget - 1, number)
    parts = [_nested(share + (i < rest), i) for i in range(number)]
    stride = max(part.size for part in parts) * 3 // 4
    if number == 8 and parts[7].terminates and parts[0].terminates:
        parts[7] = MemoryRegion.alias_of("alias", parts[0], 0x800, stride)
    box = MemoryRegion.container_of("box", stride * (number + 1))
    for i, part in enumerate(parts):
        box.add_subregion_overlap(i * stride, part, i % 4)
    return box


SHAPES: dict[str, Callable[[int], MemoryRegion]] = {"flat": flat_map, "nested": nested_map}


def measure_views(rng: Random, rounds: int, sizes: Sequence[int]) -> list[View]:
    found = []
    for shape, make in SHAPES.items():
        for count in sizes:
            root = make(count)
            render_s = median(_timed(partial(render, root), rounds))
            view = render(root)
            end = view.sections[-1].last + 0x1000
            addresses = [rng.randrange(end) for _ in range(ADDRESSES)]
            turns = max(1, LOOKUPS // ADDRESSES)
            loop = _lookups(view.lookup, addresses, turns)
            lookup_s = median(_timed(loop, rounds)) / (turns * ADDRESSES)
            found.append(View(shape, count, len(view), render_s, lookup_s))
    return found


def _lookups(
    lookup: Callable[[int], object], addresses: list[int], turns: int
) -> Callable[[], None]:
    def loop() -> None:
        for addr in chain.from_iterable(repeat(addresses, turns)):
            lookup(addr)
    return loop


def fitted(shape: str, views: Sequence[View]) -> Growth:
    """Least squares: of log t over log n for the exponent, of t over n·log2(n), each size
    weighing the same, for the factor."""
    points = [(view.regions, view.render_s) for view in views if view.shape == shape]
    logs = [(log(n), log(t)) for n, t in points]
    middle_n, middle_t = (fmean(column) for column in zip(*logs, strict=True))
    spread = sum((n - middle_n) ** 2 for n, _ in logs)
    exponent = sum((n - middle_n) * (t - middle_t) for n, t in logs) / spread if spread else 0.0
    return Growth(shape, exponent, fmean(t / (n * log2(n)) for n, t in points))


def nlogn(growth: Growth, regions: int) -> float:
    """Seconds that the fitted c·n·log2(n) gives for so many regions."""
    return growth.nlogn_s * regions * log2(regions)


# -- bulk ----------------------------------------------------------------------------------------


def measure_bulk(rounds: int, sizes: Sequence[int]) -> list[Bulk]:
    """Reads and writes of RAM, each in turn with slicing its bytearray."""
    root = MemoryRegion.container_of("system", MAX_SIZE)
    # Not zeros: pages never written are one page, which stays in the processor's cache.
    memory = bytearray(b"\x5a") * RAM_SIZE
    root.add_subregion(0, MemoryRegion.ram("ram", RAM_SIZE, ByteBacking(memory)))
    space = AddressSpace("memory", root)
    found = []
    for size in sizes:
        data = bytes(memory[:size])
        whole = slice(0, size)
        for what, model, slicing in (
            ("read", partial(space.read, 0, size), partial(memory.__getitem__, whole)),
            ("write", partial(space.write, 0, data), partial(memory.__setitem__, whole, data)),
        ):
            pairs = _timed_in_turn(model, slicing, rounds)
            found.append(Bulk(
                what, size, median(a for a, _ in pairs), median(b for _, b in pairs),
                median(a / b for a, b in pairs),
            ))
    return found


# -- the clock ---------------------------------------------------------------------------------


def _timed(act: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of one call, for each round."""
    times = _times_a_round(act)
    return [_once(act, times) for _ in range(rounds)]


def _timed_in_turn(
    one: Callable[[], object], other: Callable[[], object], rounds: int
) -> list[tuple[float, float]]:
    times = max(_times_a_round(one), _times_a_round(other))
    return [(_once(one, times), _once(other, times)) for _ in range(rounds)]


def _times_a_round(act: Callable[[], object]) -> int:
    """The warming round."""
    return max(1, int(ROUND_S / max(_once(act, 1), 1e-7)))


def _once(act: Callable[[], object], times: int) -> float:
    collecting = gc.isenabled()
    gc.disable()
    try:
        started = time.perf_counter()
        for _ in repeat(None, times):
            act()
        return (time.perf_counter() - started) / times
    finally:
        if collecting:
            gc.enable()
