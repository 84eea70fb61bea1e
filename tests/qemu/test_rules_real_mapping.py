"""R14 and R15 on real QEMU: what a virtio device maps, caches, and reads through its caches.

A queue's rings are three ``MemoryRegionCache``; a ring that cannot be cached whole breaks the
device. Buffers are mapped with ``address_space_map``, piece by piece where a mapping is shorter
than asked for; the trace tells the number of pieces, and on 10.0 and later each call. A buffer
that is not memory is bounced: read as it is mapped, written as it is unmapped. The whole kick
happens inside one register write (``ioeventfd=off``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random

import pytest
from real_stage import VGA as DISPLAY
from real_stage import stage, variant
from virtio_disk import ANSWER, HEADER, ID, TRACE, Disk
from virtio_driver import DEVICE, DRIVE, Buffer, Rings, VirtioBlk
from virtio_model import VirtioBlkModel

from qemuglue.memory import AddressSpace, mapping
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.memory.cached import MemoryRegionCache
from qemuglue.memory.endian import EndianInt
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.region import MAX_SIZE, MemoryRegion
from qemuglue.memory.rules import Rules
from qemuglue.qemu.builds import Build

pytestmark = pytest.mark.qemu

#: The message table cuts edu's registers here: what is left of the page is a part of its own.
CUT = 0xE008_0000
#: Segments of q35's firmware area made RAM, every other one read-only.
PAM = {0x91: 0x31, 0x92: 0x13}  # 0xc0000 ro, 0xc4000 rw, 0xc8000 rw, 0xcc000 ro
SHADOW = 0xC_0000


@pytest.fixture(scope="module")
def disk(build: Build) -> Iterator[Disk]:
    with stage(build, "edu", "pci-testdev", DISPLAY, DEVICE, args=DRIVE, trace=TRACE) as on:
        blk = VirtioBlk(on.qtest, on.session.mirror)
        blk.master()
        blk.move_table(CUT)
        for register, value in PAM.items():
            on.qtest.outl(0xCF8, 0x8000_0000 | register & ~3)
            on.qtest.outb(0xCFC + (register & 3), value)
        on.remapped()
        yield Disk(on, blk, VirtioBlkModel(on.memory, on.space("virtio-blk-pci")))


# -- R15: what can be cached ----------------------------------------------------------------------

PLACES = (
    0x400_0000, 0xA_0000, 0xB_FFFF, 0xC_0000, 0xC_4000, 0xD_0000, 0xE_0000, 0x10_0000,
    0xFED0_0000, 0xFED0_0400, 0xFEC0_1000, 0x1_0000_0000, 0xE010_0000, 0xE010_1000,
    CUT, CUT + 0x20, CUT + 0x800, CUT + 0x808, CUT + 0x1000, CUT + 0x2000, 0x1000_0000, MAX_SIZE,
)


def test_what_can_be_cached(disk: Disk) -> None:
    """R15: a cache ends with its section's dispatch, memory goes on as long as it is one
    region's; nothing has no end."""
    found = {}
    started = broken = 0
    for place in PLACES:
        for ring in ("desc", "avail", "used"):
            for num in (2, 16):
                for before in (0, 2, 24, 64, 4096 - 16):
                    rings = replace(Rings(num=num), **{ring: (place - before) % MAX_SIZE})
                    if complaints := disk.start(rings):
                        found[ring, hex(place - before), num] = complaints
                    started += not disk.model.error
                    broken += bool(disk.model.error)
    assert found == {}
    assert started > 100 and broken > 100


# -- R15: reading and writing through a cache -----------------------------------------------------

VGA, HPET, EDU, TESTDEV = 0xA_0100, 0xFED0_0100, 0xE000_0080, 0xE010_0000
RINGS = (
    Rings(), Rings(avail=VGA), Rings(desc=VGA), Rings(used=VGA), Rings(used=HPET),
    Rings(used=HPET + 2), Rings(used=EDU), Rings(used=TESTDEV), Rings(used=TESTDEV + 1),
    Rings(avail=HPET), Rings(desc=HPET), Rings(avail=EDU), Rings(desc=EDU), Rings(desc=EDU + 4),
    Rings(used=0x1000_0000), Rings(avail=0x1000_0000), Rings(desc=0x1000_0000),
    Rings(used=0xE_8000), Rings(avail=0xD_8000), Rings(desc=0xD_8000), Rings(used=0xFFFF_FF80),
    Rings(used=0xC_3FE0), Rings(avail=0xC_3FFA), Rings(desc=0xC_3FF0), Rings(used=CUT + 0x818),
)


def test_access_through_a_cache(disk: Disk) -> None:
    """R15: one dispatch for a sized access, pieces by R6 for a longer one; before 9.0 the second
    piece and those behind it went to the map, at the offset in the cache."""
    assert disk.bad([(ID, rings) for rings in RINGS]) == {}


# -- R14 ------------------------------------------------------------------------------------------


def outs(*buffers: tuple[int, int]) -> tuple[Buffer, ...]:
    """A request that reads these after its header."""
    return (Buffer(HEADER, 16), *(Buffer(*each) for each in buffers), *ID[1:])


def ins(*buffers: tuple[int, int]) -> tuple[Buffer, ...]:
    """A request whose answer of 20 bytes and a status goes there."""
    return (*ID[:1], *(Buffer(*each, write=True) for each in buffers))


HOLE = 0x1000_0000
OUTS = (
    outs((HPET, 16)), outs((HPET + 2, 9)), outs((0xFED0_03F0, 0x20)), outs((TESTDEV, 7)),
    outs((0x3FF_FFF0, 0x40)), outs((0x9_FFF8, 0x20)), outs((0xF_FF00, 0x200)),
    outs((0xD_FF00, 0x200)), outs((0xB_FFF0, 0x20)), outs((0xFFFF_FFF0, 0x20)),
    outs((0xC_3FF0, 0x20)), outs((0xC_3000, 0xA000)), outs((0xC_FFF0, 0x20)),
    # One bounce buffer of a page, or 4096 bytes of them.
    outs((HPET, 16), (EDU, 16)), outs((HOLE, 4096)), outs((HOLE, 4097)), outs((HOLE, 5000)),
    outs((HOLE, 4000), (HOLE, 96)), outs((HOLE, 4000), (HOLE, 97)), outs((HOLE + 3, 100)),
    outs((HPET, 8), (0x3000, 8), (EDU, 8), (0x5000, 8)), outs((0xC_3FF0, 0)),
    (Buffer(HPET, 16), *ID[1:]), (Buffer(HEADER, 8), *ID[1:]),
    (Buffer(HEADER, 8), Buffer(HEADER + 8, 8), *ID[1:]),
)
INS = (
    ins((ANSWER, 20), (ANSWER + 32, 1)), ins((HPET, 21)), ins((HPET, 20), (ANSWER, 1)),
    ins((HPET + 4, 12), (ANSWER, 9)), ins((0x3FF_FFF8, 16), (ANSWER, 5)),
    ins((0x9_FFF8, 21)), ins((0xF_FFF0, 21)), ins((0xD_0000, 21)), ins((0xE_0001, 21)),
    ins((HOLE, 21)), ins((TESTDEV + 1, 21)), ins((0xFED0_03F8, 21)), ins((0xC_3FF8, 21)),
    ins((HPET, 8), (EDU, 8), (ANSWER, 5)), ins((VGA, 21)), ins((0x3FF_FFFF, 1), (ANSWER, 20)),
    (Buffer(HEADER, 8), Buffer(HPET, 21, write=True)),
)


@pytest.mark.parametrize("requests", [OUTS, INS], ids=["read", "written"])
def test_what_is_mapped(disk: Disk, requests: Sequence[tuple[Buffer, ...]]) -> None:
    """R14: where a mapping ends, what is bounced and how much of it, and what is written back."""
    assert disk.bad([(request,) for request in requests]) == {}


def test_the_limits_were_met(disk: Disk) -> None:
    """The cases above mean something: what is known from elsewhere of their results."""
    budget = disk.on.session.config.build.version_tuple >= (9, 2)
    results = {}
    for request in OUTS:
        disk.judge(request)
        results[request] = disk.model.error
    spent = "virtio: bogus descriptor or out of resources"
    assert results[outs((HPET, 16), (EDU, 16))] == ("" if budget else spent)
    assert results[outs((HOLE, 4096))] == ""
    assert results[outs((HOLE, 4097))] == spent
    assert results[outs((HOLE, 4000), (HOLE, 96))] == ("" if budget else spent)
    assert results[outs((HOLE, 4000), (HOLE, 97))] == spent


# -- R4 -------------------------------------------------------------------------------------------

#: The device's message table, its pending bits, its own registers, a buffer over each.
SELF = (
    (ID, Rings(), (CUT, 5)), (ID, Rings(), (CUT + 0x1E, 5)), (ID, Rings(), (CUT + 0x800, 5)),
    (ins((CUT + 0x10, 21)),), (ins((CUT - 8, 21)),), (outs((CUT - 16, 64)),),
    (ID, Rings(used=CUT - 8)), (ID, Rings(avail=CUT - 4)),
)


@contextmanager
def engaged(disk: Disk) -> Iterator[None]:
    """The model knows whose registers these are, and that their device is at work."""
    for region in disk.on.session.mirror.regions:
        if region.name.startswith("msix-"):
            region.owner = "disk"
    disk.on.memory.engaged.add("disk")
    try:
        yield
    finally:
        disk.on.memory.engaged.discard("disk")


def test_a_device_does_not_reach_itself(disk: Disk) -> None:
    """R4: by no way at all while it handles a kick."""
    with engaged(disk):
        assert disk.bad(SELF) == {}


class _Unguarded(Rules):
    def blocked(self, engaged: bool) -> bool:
        return False


def test_a_guard_that_is_not_there_is_seen(disk: Disk) -> None:
    right = disk.on.session.rules
    disk.on.judge_by(variant(right, _Unguarded))
    try:
        with engaged(disk):
            # The others meet a refusal or nothing of the device's.
            assert len(disk.bad(SELF)) >= 5
    finally:
        disk.on.judge_by(right)


# -- whatever comes -------------------------------------------------------------------------------

#: The device itself: it does not reach its own registers while it handles a kick (R4).
OWN = ("msix-", "virtio-pci-")
#: Registers whose reads or writes change more than themselves.
LIVELY = ("apic", "ahci", "ioapic", "vga.", "vga ", "bochs", "qemu ext", "edid")


class Places:
    """Addresses near the edges of what the view shows."""

    def __init__(self, disk: Disk, rng: Random) -> None:
        sections = disk.on.memory.view.cover
        self.own = [s for s in sections if s.region.name.startswith(OWN)]
        self.edges = [
            s.start for s in sections
            if s.start and not s.region.name.startswith((*OWN, *LIVELY))
        ]
        self.rng = rng

    def place(self, size: int) -> int:
        """Room for ``size`` bytes of a request."""
        rng = self.rng
        while True:
            near = rng.choice((0, -1, -3, -8, -16, -20, 4, 0x80, 0x100, -size))
            addr = (rng.choice(self.edges) + near + rng.randrange(8)) % MAX_SIZE
            if all(addr >= s.start + s.size or addr + size <= s.start for s in self.own):
                return addr

    def request(self) -> tuple[tuple[Buffer, ...], Rings, tuple[int, int] | None]:
        """What ``Disk.judge`` takes."""
        rng = self.rng
        buffers = [Buffer(HEADER, 16)]
        for _ in range(rng.randrange(3)):
            size = rng.choice((1, 3, 8, 16, 21, 64, 300, 1500, 4097))
            buffers.append(Buffer(self.place(size), size))
        left = 21
        while left:
            size = min(left, rng.choice((1, 4, 7, 8, 21)))
            left -= size
            addr = self.place(size) if rng.random() < 0.6 else ANSWER + left
            buffers.append(Buffer(addr, size, write=True))
        rings = Rings()
        if rng.random() < 0.3:
            ring = rng.choice(("desc", "avail", "used"))
            rings = replace(rings, **{ring: self.place(128) & ~rng.choice((0, 3, 15))})
        message = (self.place(4), rng.getrandbits(32)) if rng.random() < 0.7 else None
        return tuple(buffers), rings, message


def test_random_requests(disk: Disk) -> None:
    """R10, R14, R15 together."""
    places = Places(disk, Random(1))
    assert disk.bad([places.request() for _ in range(60)]) == {}


# -- wrong models are seen ------------------------------------------------------------------------


class _WholeSections(Rules):
    def dispatch_end(self, section: MemoryRegionSection, addr: int, page_bits: int) -> int:
        return section.start + section.size if section.assigned else MAX_SIZE


class _HolesEnd(Rules):
    def dispatch_end(self, section: MemoryRegionSection, addr: int, page_bits: int) -> int:
        end = super().dispatch_end(section, addr, page_bits)
        return end if section.assigned else section.start + section.size


@pytest.mark.parametrize(("wrong", "rings"), [
    (_WholeSections, Rings(desc=CUT + 0x1000 - 24)),
    (_HolesEnd, Rings(desc=0xFED0_0000 - 24)),
])
def test_wrong_ends_are_seen(disk: Disk, wrong: type[Rules], rings: Rings) -> None:
    right = disk.on.session.rules
    assert disk.start(rings) == []
    disk.on.judge_by(variant(right, wrong))
    try:
        assert disk.start(rings) != []
    finally:
        disk.on.judge_by(right)


@pytest.mark.parametrize(("name", "case"), [
    ("bounce_budget", (outs((HPET, 16), (EDU, 16)),)),
    ("cached_slow_relative", (ID, Rings(desc=VGA))),
    ("cached_slow_relative", (ID, Rings(used=EDU))),
])
def test_another_version_is_seen(disk: Disk, name: str, case: tuple[object, ...]) -> None:
    right = disk.on.session.rules
    assert disk.bad([case]) == {}
    disk.on.judge_by(replace(right, **{name: not getattr(right, name)}))
    try:
        assert disk.bad([case]) != {}
    finally:
        disk.on.judge_by(right)


def _not_extended(
    space: AddressSpace, view: FlatView, addr: int, wanted: int, region: MemoryRegion,
    base: int, length: int, is_write: bool, attrs: MemTxAttrs,
) -> int:
    return length


def test_a_mapping_that_is_not_extended_is_seen(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "extend", _not_extended)
    assert disk.bad([(outs((0xC_3FF0, 0x20)),)]) != {}
    assert disk.bad([(outs((0xC_3FE0, 0x20)),)]) == {}


_unmap = mapping.unmap_memory


def _written_whole(space: AddressSpace, mapped: mapping.Mapping, access_length: int) -> None:
    _unmap(space, mapped, len(mapped) if mapped.is_write else access_length)


def test_an_unmap_that_writes_all_is_seen(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ((Buffer(HEADER, 8), Buffer(HPET, 21, write=True)),)
    assert disk.bad([case]) == {}
    monkeypatch.setattr(mapping, "unmap_memory", _written_whole)
    assert disk.bad([case]) != {}


def _cut(
    cache: MemoryRegionCache, offset: int, kind: type[EndianInt], attrs: MemTxAttrs = UNSPECIFIED
) -> tuple[int, int]:
    result, data = cache.read(offset, kind.size)
    return result, int.from_bytes(data, kind.order)


def test_a_cached_load_that_is_cut_is_seen(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    case = (ID, Rings(used=TESTDEV + 1))
    assert disk.bad([case]) == {}
    monkeypatch.setattr(MemoryRegionCache, "load", _cut)
    assert disk.bad([case]) != {}
