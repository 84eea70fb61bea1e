"""A machine whose map keeps changing, and what each of its states reads as.

``step`` makes one transaction: two windows show another page of their banks, two BARs change
places, a device and a RAM take turns, a BAR moves on. The state after ``n`` transactions is
``n % STATES``, and every page is full of one byte that ``byte_at`` knows without the model. So
whoever reads across two pages sees whether both belong to one state, and to which.
"""

from __future__ import annotations

import weakref
from time import sleep

from qemuglue.memory import (
    AddressSpace,
    ByteBacking,
    Contract,
    FlatView,
    MemoryRegion,
    MemTxAttrs,
    Topology,
)
from qemuglue.memory.iommu import IommuAccess, IommuTlbEntry
from qemuglue.memory.rcu import Rcu

PAGE = 0x1000
STATES = 64
PAGES = 16
BASE = 0x40_0000
ANY = Contract(valid_unaligned=True, impl_unaligned=True, valid_max=8, impl_max=8)


def byte_at(page: int, state: int) -> int:
    """What page ``page`` of the machine is full of."""
    if page in (0, 1):
        return state + 64 * page
    if page in (2, 3):
        return 0xC0 if (page + state) & 1 else 0xD0
    if page == 4:
        return 0xE0 if state & 2 else 0xB0
    if page == 5:
        return 0xB0 if state & 2 else 0xF0
    return 0x99 if page - 8 == state % 8 else 0xB0


def bytes_at(addr: int, length: int, state: int) -> bytes:
    """What ``length`` bytes at ``addr`` read as."""
    return bytes(
        byte_at((at - BASE) // PAGE, state) for at in range(addr, addr + length)
    ) if length <= 64 else _long(addr, length, state)


def _long(addr: int, length: int, state: int) -> bytes:
    first = (addr - BASE) // PAGE
    last = (addr + length - 1 - BASE) // PAGE
    pages = b"".join(bytes([byte_at(page, state)]) * PAGE for page in range(first, last + 1))
    at = addr - BASE - first * PAGE
    return pages[at : at + length]


class Watched:
    """Memory that can only be read inside an RCU section: as what guards it is taken at its
    word, what the map showed may be gone behind it."""

    def __init__(self, size: int, byte: int, rcu: Rcu) -> None:
        self.size, self.byte, self.rcu = size, byte, rcu

    def __len__(self) -> int:
        return self.size

    def read(self, offset: int, size: int) -> bytes:
        assert self.rcu.held(), "memory is accessed outside of any RCU section"
        return bytes([self.byte]) * max(0, min(size, self.size - offset))

    def write(self, offset: int, data: bytes) -> None:
        assert self.rcu.held(), "memory is accessed outside of any RCU section"


class Device:
    """Reads as 0xE0; now and then it takes its time, and the map changes meanwhile."""

    def __init__(self, rcu: Rcu) -> None:
        self.rcu, self.reads = rcu, 0

    def read(
        self, region: MemoryRegion, offset: int, size: int, attrs: MemTxAttrs
    ) -> tuple[int, int]:
        assert self.rcu.held(), "a device is accessed outside of any RCU section"
        self.reads += 1
        if self.reads % 8 == 0:
            sleep(0)
        return 0, int.from_bytes(b"\xe0" * size, "little")

    def write(
        self, region: MemoryRegion, offset: int, value: int, size: int, attrs: MemTxAttrs
    ) -> int:
        assert self.rcu.held(), "a device is accessed outside of any RCU section"
        return 0


class SamePage:
    """An IOMMU that lets everything through to ``target``, page by page."""

    def __init__(self, target: AddressSpace) -> None:
        self.target = target

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        page = addr & -PAGE
        return IommuTlbEntry(self.target, page, page, PAGE - 1, IommuAccess.RW)

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        return 0


def _ram(name: str, byte: int) -> MemoryRegion:
    return MemoryRegion.ram(name, PAGE, ByteBacking(bytearray([byte]) * PAGE))


def _bank(name: str, first: int) -> MemoryRegion:
    data = b"".join(bytes([first + state]) * PAGE for state in range(STATES))
    return MemoryRegion.ram(name, len(data), ByteBacking(bytearray(data)))


class Machine:
    """``spaces``: one over the root, one over an alias of it with something besides; on demand
    one behind an IOMMU."""

    def __init__(self, *, iommu: bool = False) -> None:
        self.rcu = Rcu()
        self.topology = Topology(rcu=self.rcu)
        #: Transactions begun and done. What an access sees is a state from ``done`` before it
        #: up to ``begun`` after it.
        self.begun = self.done = 0
        root = MemoryRegion.container_of("root", 1 << 32)
        size = PAGES * PAGE
        root.add_subregion_overlap(
            BASE, MemoryRegion.ram("base", size, Watched(size, 0xB0, self.rcu)), -1)
        self.banks = [_bank("bank a", 0), _bank("bank b", 64)]
        self.windows = [
            MemoryRegion.alias_of(f"window {name}", bank, 0, PAGE)
            for name, bank in zip("ab", self.banks, strict=True)
        ]
        self.device = MemoryRegion.io("device", PAGE, ANY)
        self.device.ops = Device(self.rcu)
        self.bars = [_ram("bar c", 0xC0), _ram("bar d", 0xD0)]
        self.turn = _ram("turn", 0xF0)
        self.mover = _ram("mover", 0x99)
        for page, region in enumerate((*self.windows, *self.bars, self.device, self.turn)):
            root.add_subregion(BASE + page * PAGE, region)
        root.add_subregion(BASE + 8 * PAGE, self.mover)
        self._set(0)
        everything = MemoryRegion.container_of("everything", 1 << 33)
        everything.add_subregion(0, MemoryRegion.alias_of("all", root, 0, 1 << 32))
        everything.add_subregion(1 << 32, _ram("besides", 0x11))
        self.spaces = [
            AddressSpace("cpu", root, topology=self.topology),
            AddressSpace("device", everything, topology=self.topology),
        ]
        if iommu:
            region = MemoryRegion.iommu("iommu", 1 << 32, SamePage(self.spaces[0]))
            self.spaces.append(AddressSpace("behind", region, topology=self.topology))
        self.views: list[weakref.ref[FlatView]] = []
        self._note()

    def _set(self, state: int) -> None:
        for window in self.windows:
            window.set_alias_offset(state * PAGE)
        c, d = self.bars
        c.set_address(BASE + (3 if state & 1 == 0 else 2) * PAGE)
        d.set_address(BASE + (2 if state & 1 == 0 else 3) * PAGE)
        self.device.set_enabled(bool(state & 2))
        self.turn.set_enabled(not state & 2)
        self.mover.set_address(BASE + (8 + state % 8) * PAGE)

    def _note(self) -> None:
        self.views += [weakref.ref(space.view) for space in self.spaces]

    def step(self) -> None:
        """One transaction of everything."""
        self.begun += 1
        with self.topology.transaction():
            self._set(self.begun % STATES)
        self.done = self.begun
        self._note()

    def could_be(self, state: int, since: int) -> bool:
        """Whether the map was in ``state`` at some time since ``done`` was ``since``."""
        return (state - since) % STATES <= self.begun - since

    def state_of(self, view: FlatView) -> int:
        """The state that ``view`` shows, everywhere."""
        state = self._look(view, 0)[1] // PAGE
        for page in range(PAGES):
            name, offset = self._look(view, page)
            byte = byte_at(page, state)
            want = (
                ("bank a", "bank b")[page] if page < 2 else
                {0xC0: "bar c", 0xD0: "bar d", 0xE0: "device", 0xF0: "turn", 0x99: "mover",
                 0xB0: "base"}[byte]
            )
            start = state * PAGE if page < 2 else page * PAGE if name == "base" else 0
            assert (name, offset) == (want, start + 5), (
                f"torn: page {page} shows {name!r} at {offset:#x}, page 0 state {state}"
            )
        return state

    def _look(self, view: FlatView, page: int) -> tuple[str, int]:
        addr = BASE + page * PAGE + 5
        section = view.lookup(addr)
        return section.region.name, section.offset + addr - section.start

    def assert_only_the_current_views_are_left(self) -> None:
        self.rcu.drain()
        assert self.rcu.pending == 0
        current = {space.view for space in self.spaces}
        for view in current:
            assert not view.reclaimed and view.references == 1 + sum(
                space.view is view for space in self.spaces)
        left = {view for ref in self.views if (view := ref()) is not None} - current
        kept = [view for view in left if not view.reclaimed]
        assert not kept, f"{len(kept)} views were never reclaimed"
