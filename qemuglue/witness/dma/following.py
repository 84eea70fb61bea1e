"""The decoded devices of one running QEMU: found in its map, told what reached them, let act.

A device is what one path of QEMU's object model owns: its regions, and its own address space if
it has one (the bus master container of a PCI function); else its DMA goes through the system's
memory. It is made when its regions are first seen and lives until QEMU ends; a change of the map
only gives it new regions, a reset of the machine is told to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.region import MemoryRegion
from qemuglue.witness.dma.device import DmaDevice, Maker, Place, Stretches, When
from qemuglue.witness.dma.pci_config import CONFIG_REGIONS, ConfigWrites
from qemuglue.witness.dma.port import ModelPort, Unknown, Wild
from qemuglue.witness.iommu.tables import Translates, blind
from qemuglue.witness.ram import RamWitness, TrackedBacking

#: The root of the address space that a PCI function's DMA goes through (``pci_init_bus_master``).
BUS_MASTER = "bus master container"

#: Actions in a row of one device without anything new from the program: more is an endless loop.
MAX_ACTS = 1 << 16

#: Devices that access one another's registers by DMA, one inside the other. QEMU of before its
#: re-entrancy guard (8.1) ends by its stack.
MAX_DEPTH = 32


#: Stretches of RAM that one act is told with.
STORES_TOLD = 4

#: A region, the offset in it, bytes.
Stored = tuple[MemoryRegion, int, int]


@dataclass(slots=True)
class Follower:
    """One device that is followed."""

    owner: str
    device: DmaDevice
    port: ModelPort
    #: Its lost state was counted.
    noted: bool = False

    def doubt(self) -> None:
        """Once it was lost, a reset does not tell what it holds."""
        if self.device.lost:
            self.port.space.topology.bounce_doubt = True


@dataclass(frozen=True, slots=True)
class Act:
    """Something a device did: its name, what of it had to be adopted, and, where somebody wants
    to know, (region, offset, size) of what it stored in RAM."""

    name: str
    unknowns: tuple[Unknown, ...] = ()
    stored: tuple[Stored, ...] = ()

    def describe(self) -> str:
        """What it stored, in a line for people."""
        known = _joined(self.stored)
        parts = [f"{size} byte{'s' * (size != 1)} at {region.name}+{offset:#x}"
                 for region, offset, size in known]
        if len(parts) > STORES_TOLD:
            parts[STORES_TOLD:] = [f"{len(parts) - STORES_TOLD} times more"]
        text = f"dma of {self.name}: stored {', '.join(parts) or 'nothing in RAM'}"
        return text + (", some that nobody can predict" if self.unknowns else "")


class Following:
    """All decoded devices of one session, by the path that owns them.

    ``makers`` are asked in order; the first that makes a device of a place has it. ``buses``
    gives QEMU's answer to QMP ``query-pci``, by which IOMMUs know who asks them.
    """

    def __init__(
        self, makers: Sequence[Maker], ram: RamWitness, *,
        qom_get: Callable[[str, str], Any], version: tuple[int, ...], parked: bool,
        known: dict[str, dict[str, Any]], buses: Callable[[], object] = list,
        ask: Callable[[str], object] = lambda command: None,
    ) -> None:
        self._makers = makers
        self._buses = buses
        self._ask = ask
        self.config = ConfigWrites()
        self._ram = ram
        self._qom_get = qom_get
        self._version = version
        self._parked = parked
        self._known = known
        self.followers: dict[str, Follower] = {}
        self._by_region: dict[MemoryRegion, Follower] = {}
        self._asked: set[tuple[str, frozenset[str]]] = set()
        #: What devices did since the lock step last took it.
        self.acts: list[Act] = []
        #: Pages that they wrote meanwhile.
        self.touched: dict[MemoryRegion, set[int]] = defaultdict(set)
        #: Regions whose devices were accessed since the last reset.
        self.accessed: set[MemoryRegion] = set()
        #: Set while a device writes what nobody can predict.
        self.wild = Wild()
        #: Whether acts say what they stored.
        self.telling = False
        self._stored: list[Stored] = []
        self._depth = 0

    # -- the map -------------------------------------------------------------------------------

    def attach(
        self, regions: Sequence[MemoryRegion], spaces: Iterable[AddressSpace],
        memory: AddressSpace,
    ) -> None:
        """After every change of the map."""
        owned: dict[str, dict[str, MemoryRegion]] = defaultdict(dict)
        for region in regions:
            if region.key is None:
                continue
            owner, index = owner_of(region), region.key.index
            if not owner:
                owned[nameless(region)][region.name] = region
            else:
                owned[owner][f"{region.name}#{index}" if index else region.name] = region
        own_space = {
            owner_of(space.root): space for space in spaces if space.root.name == BUS_MASTER
        }
        self._by_region.clear()
        for owner, named in owned.items():
            space = own_space.get(owner, memory)
            follower = self.followers.get(owner) or self._make(owner, named, space, memory)
            if follower is not None:
                follower.port.space = space
                self._by_region.update(dict.fromkeys(named.values(), follower))
                mapped = getattr(follower.device, "mapped", None)
                if mapped is not None:
                    mapped(named)
        for follower in self.followers.values():
            if isinstance(follower.device, Translates):
                follower.device.bind(regions, self._buses())

    def detach(self) -> None:
        """Before the mirror looks at its regions again."""
        for follower in self.followers.values():
            if isinstance(follower.device, Translates):
                follower.device.unbind()

    def _make(
        self, owner: str, named: Mapping[str, MemoryRegion], space: AddressSpace,
        memory: AddressSpace,
    ) -> Follower | None:
        asked = owner, frozenset(named)
        if asked in self._asked:
            return None
        self._asked.add(asked)
        place = Place(
            owner, named, space, memory, self._version, self._qom_get, self._ask, self._parked,
            self._known.setdefault(owner, {}),
        )
        for maker in self._makers:
            device = maker(place)
            if device is not None:
                port = ModelPort(space, self.wild)
                follower = self.followers[owner] = Follower(owner, device, port)
                return follower
        return None

    def of(self, region: MemoryRegion) -> DmaDevice | None:
        """The decoded device that the region belongs to."""
        follower = self._by_region.get(region)
        return None if follower is None else follower.device

    def is_lost(self, region: MemoryRegion) -> bool:
        """Whether the region's device is decoded, but not followed any more."""
        follower = self._by_region.get(region)
        return follower is not None and bool(follower.device.lost)

    def hears(self, region: MemoryRegion, is_write: bool) -> bool:
        """Whether accesses to the region have to be told here."""
        device = self.of(region)
        if is_write and region.name in CONFIG_REGIONS:
            return True
        return device is not None and (is_write or getattr(device, "hears_reads", True))

    def heeds(self, region: MemoryRegion) -> Stretches | None:
        """Where writes to the region mean something to the model; None: anywhere, or nobody
        has said."""
        if region.name in CONFIG_REGIONS:
            return None
        heeds = getattr(self.of(region), "heeds", None)
        found: Stretches | None = None if heeds is None else heeds(region)
        return found

    # -- what reaches a device -----------------------------------------------------------------

    def reading(self, region: MemoryRegion, offset: int, size: int) -> int | None:
        """A read is about to reach the region's device: what it does before it answers happens
        here. The answer, if it is known."""
        follower = self._by_region.get(region)
        if follower is None or follower.device.lost:
            return None
        reading = getattr(follower.device, "reading", None)
        if reading is None:
            return None
        answer: int | None = reading(region, offset, size, follower.port)
        return answer

    def heard(
        self, region: MemoryRegion, offset: int, size: int, is_write: bool, value: int
    ) -> None:
        """A piece reached the region's device; what it does inside the access happens here."""
        self.accessed.add(region)
        if is_write and region.name in CONFIG_REGIONS:
            self._configured(region, offset, size, value)
        follower = self._by_region.get(region)
        if follower is None or follower.device.lost:
            return
        device = follower.device
        if is_write:
            device.wrote(region, offset, size, value)
        else:
            device.was_read(region, offset, size, value)
        follower.doubt()
        if device.when() is When.NOW:
            self.act(follower, When.NOW)

    def _configured(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        """A write that may reach the configuration space of a decoded PCI function."""
        found = self.config.wrote(region, offset, size, value)
        if found is None:
            return
        bdf, register = found
        for follower in self.followers.values():
            device = follower.device
            if not device.lost and getattr(device, "bdf", None) == bdf:
                getattr(device, "configured")(register, size, value)  # noqa: B009
                if device.when() is When.NOW:
                    self.act(follower, When.NOW)

    def missed(self, region: MemoryRegion) -> None:
        """Something reached the region's device that nobody could tell it."""
        follower = self._by_region.get(region)
        if follower is not None and not follower.device.lost:
            follower.device.lost = "an access to it could not be followed"
            follower.doubt()

    def missed_name(self, name: str | None) -> None:
        """Something reached a region of that name, and nobody knows which."""
        for region in self._by_region:
            if region.name == name:
                self.missed(region)

    def reset(self) -> None:
        """The machine was reset."""
        for follower in self.followers.values():
            device, why = follower.device, follower.device.lost
            device.lost = ""
            follower.noted = False
            device.reset()
            revived = getattr(device, "revived", None)
            if why and revived is not None:
                revived(why)
        self.acts.clear()
        self.touched.clear()
        self.accessed.clear()

    # -- what it does --------------------------------------------------------------------------

    def due(self, when: When) -> Iterator[Follower]:
        """The devices whose next action is then."""
        for follower in self.followers.values():
            if not follower.device.lost and follower.device.when() is when:
                yield follower

    def act(self, follower: Follower, when: When) -> None:
        """Let the device do what is due at that time."""
        device, port = follower.device, follower.port
        device.lost = device.lost or blind(port.space)
        if device.lost:
            return
        if self._depth >= MAX_DEPTH:
            device.lost = "its DMA reaches registers that start it again"
            return
        self._depth += 1
        try:
            with self._noting():
                for _ in range(MAX_ACTS):
                    if device.lost or device.when() is not when:
                        return
                    unknowns, port.unknowns = port.unknowns, []
                    stored, self._stored = self._stored, []
                    device.act(port)
                    self.acts.append(
                        Act(device.name, tuple(port.unknowns), tuple(self._stored)))
                    port.unknowns, self._stored = unknowns, stored
                    if port.trouble and not device.lost:
                        device.lost = port.trouble
                    port.trouble = ""
                device.lost = f"it does {MAX_ACTS} things in a row"
        finally:
            follower.doubt()
            self._depth -= 1

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note the pages of RAM that are written meanwhile."""
        backings = [
            (region, region.backing) for region in self._ram.sources
            if isinstance(region.backing, TrackedBacking)
        ]
        for region, backing in backings:
            backing.noted = self.touched[region]
            backing.told = partial(self._store, region) if self.telling else None
        try:
            yield
        finally:
            if self._depth == 1:
                for _, backing in backings:
                    backing.noted = None

    def _store(self, region: MemoryRegion, offset: int, size: int) -> None:
        self._stored.append((region, offset, size))

    def take(self) -> tuple[list[Act], dict[MemoryRegion, set[int]]]:
        """(what devices did, the pages they wrote) since the last time."""
        acts, touched = self.acts, dict(self.touched)
        self.acts, self.touched = [], defaultdict(set)
        return acts, touched

    # -- what is not followed ------------------------------------------------------------------

    def newly_lost(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of each device that was lost since the last call."""
        for follower in self.followers.values():
            if follower.device.lost and not follower.noted:
                follower.noted = True
                yield follower.device.name, follower.device.lost

    def lost(self) -> dict[str, str]:
        """The devices that are not followed any more: path of the owner to name."""
        return {
            owner: each.device.name for owner, each in self.followers.items() if each.device.lost
        }

    def names(self) -> list[str]:
        """Names of the devices that were accessed and are followed."""
        return sorted({
            each.device.name for each in map(self._by_region.get, self.accessed)
            if each is not None and not each.device.lost
        })

    def owners_accessed(self) -> set[str]:
        """Paths of the objects whose regions were accessed since the last reset."""
        return {owner_of(region) for region in self.accessed}


def _joined(stored: Iterable[Stored]) -> list[Stored]:
    """Stretches that follow one another as one, in the order they were stored."""
    found: list[Stored] = []
    for region, offset, size in stored:
        if found and found[-1][0] is region and sum(found[-1][1:]) == offset:
            region, offset, size = region, found[-1][1], found[-1][2] + size
            found.pop()
        found.append((region, offset, size))
    return found


def nameless(region: MemoryRegion) -> str:
    """What stands for the owner where QEMU cannot print owners: the first part of the region's
    name, by which those of fw_cfg find together, and which of the namesakes it is."""
    return f"?{region.name.partition('.')[0]}#{getattr(region.key, 'index', 0)}"


def owner_of(region: MemoryRegion) -> str:
    """Path of the object that the region belongs to; "" where it is not known."""
    return str(getattr(region.key, "owner", ""))
