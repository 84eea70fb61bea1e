"""Atomic accesses are refused exactly where the rules would make several calls of one.

Two equal random maps: to one goes the atomic access, to the other the plain ``load`` or ``store``,
whose calls into devices are counted.
"""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, WINDOW, Recorder, build
from rust_oracle import RustOracle, rust_map

from qemuglue.errors import ModelError
from qemuglue.memory import AddressSpace, MemoryRegion
from qemuglue.memory.aligned import AlignedAccess, AlignedGuestAddress
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.endian import ENDIAN_TYPES, EndianInt
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidBackendAddress
from qemuglue.memory.guest_memory import GuestRegion, GuestRegionCollection
from qemuglue.memory.one_access import NotOneAccess, WhyNot
from qemuglue.memory.rules import RULES_10_0, RULES_LATEST
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.rust_binding import FlatView
from qemuglue.memory.section_backing import section_backing

RANDOMS = st.randoms(use_true_random=False)


class Twin:
    """A random map of the model; equal seeds give equal ones."""

    def __init__(self, seed: float) -> None:
        rng = Random(seed)
        self.root, self.base = rust_map(rng)
        region, self.made = build(self.root)
        self.target_big = rng.random() < 0.5
        self.space = AddressSpace(
            "memory", region, rules=rng.choice((RULES_10_0, RULES_LATEST)),
            target_big=self.target_big,
        )
        self.recorder = Recorder()
        self.space.ops = self.space.observer = self.recorder

    @property
    def calls(self) -> int:
        return sum(event[0] in ("read", "write") for event in self.recorder.log)

    def memory(self) -> list[bytes]:
        return [
            region.backing.read(0, region.size)
            for region in self.made.values() if region.backing is not None
        ]


def plain(view: FlatView, addr: int, cls: type[EndianInt], raw: bytes | None) -> object:
    """What ``load`` or ``store`` says."""
    try:
        if raw is None:
            return view.load(GuestAddress(addr), cls)
        view.store(cls.from_raw(raw), GuestAddress(addr))
        return "stored"
    except ModelError as error:
        return type(error)


def atomic(access: AlignedAccess, addr: int, cls: type[EndianInt], raw: bytes | None) -> object:
    """What ``read_atomic`` or ``write_atomic`` says: a reason stands for a refusal."""
    place = AlignedGuestAddress.of(addr, cls)
    try:
        if raw is None:
            return access.read_atomic(place)
        access.write_atomic(cls.from_raw(raw), place)
        return "stored"
    except NotOneAccess as error:
        assert (error.addr, error.size) == (GuestAddress(addr), cls.size)
        return error.why
    except ModelError as error:
        return type(error)


def copied(region: MemoryRegion, space: AddressSpace, is_write: bool) -> bool:
    """Whether QEMU copies this region's memory for such an access (R9)."""
    rules = space.rules
    return rules.direct_write(region, UNSPECIFIED) if is_write else rules.direct_read(region)


def wanted(
    twin: Twin, addr: int, size: int, is_write: bool, heard: object
) -> object:
    """What the atomic access says where ``heard`` comes from the plain one."""
    if twin.calls > 1:
        return WhyNot.SPLIT
    spots = [RustOracle(twin.root)._at((addr + at) % TOP) for at in range(size)]
    first = spots[0]
    if first is None:
        return heard
    region = twin.made[first.leaf]
    together = all(spot and first.carried_on_by(spot, at) for at, spot in enumerate(spots))
    if region.is_ram and not together:
        assert heard is InvalidBackendAddress
        return WhyNot.CROSSES
    if copied(region, twin.space, is_write) and first.offset % size:
        return WhyNot.HOST_ALIGNMENT
    return heard


@settings(max_examples=250, deadline=None)
@given(RANDOMS)
def test_an_atomic_access_is_refused_exactly_where_the_device_is_called_twice(rng: Random) -> None:
    seed = rng.random()
    for _ in range(4):
        one, two = Twin(seed), Twin(seed)
        cls = rng.choice(ENDIAN_TYPES)
        addr = (one.base + rng.randrange(-10, WINDOW + 4)) % TOP // cls.size * cls.size
        raw = rng.randbytes(cls.size) if rng.random() < 0.5 else None
        with RustSpace(two.space).memory() as view:
            heard = plain(view, addr, cls, raw)
        before = one.memory()
        with RustSpace(one.space).memory() as view:
            got = atomic(AlignedAccess(view), addr, cls, raw)
        what = f"{cls.__name__} at {addr:#x}, {raw!r}: plainly {heard!r}"
        assert got == wanted(two, addr, cls.size, raw is not None, heard), what
        if isinstance(got, WhyNot):
            assert not one.recorder.log and one.memory() == before, f"touched: {what}"
        else:
            assert one.recorder.log == two.recorder.log and one.memory() == two.memory(), what


@settings(max_examples=150, deadline=None)
@given(RANDOMS)
def test_the_same_through_sections_as_backings(rng: Random) -> None:
    """A collection over the sections of a map refuses what the view itself refuses; a section
    ends there also for a device, and an access that goes beyond is no single one."""
    seed = rng.random()
    for _ in range(4):
        one, two = Twin(seed), Twin(seed)
        placed = [
            GuestRegion(each.start, section_backing(two.space, each))
            for each in two.space.view.sections if each.size <= 1 << 32
        ]
        through = AlignedAccess(GuestRegionCollection.from_regions(placed))
        cls = rng.choice(ENDIAN_TYPES)
        addr = (one.base + rng.randrange(-10, WINDOW + 4)) % TOP // cls.size * cls.size
        raw = rng.randbytes(cls.size) if rng.random() < 0.5 else None
        got = atomic(through, addr, cls, raw)
        with RustSpace(one.space).memory() as view:
            section = view.find_region(addr)
            heard = atomic(AlignedAccess(view), addr, cls, raw)
        if section is None or addr + cls.size - 1 > section.last_addr().raw_value():
            assert isinstance(got, type) or got is WhyNot.CROSSES
            continue
        if (addr - section.start_addr().raw_value()) % cls.size and not isinstance(heard, WhyNot):
            # As vm-memory has it: aligned is what is aligned in the slice, also for a device.
            assert got is InvalidBackendAddress and not two.recorder.log
            continue
        assert got == heard, f"{cls.__name__} at {addr:#x}, {raw!r}"
        assert one.recorder.log == two.recorder.log and one.memory() == two.memory()
