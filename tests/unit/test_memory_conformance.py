"""Every implementation of ``Bytes`` in the model, through the one conformance suite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bytes_conformance import BytesConformance, Contract, Streams, Subject

from qemuglue.memory import AddressSpace, Backing, ByteBacking, MemoryRegion
from qemuglue.memory.attrs import MemTxAttrs
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import (
    GuestMemoryError,
    InvalidBackendAddress,
    InvalidGuestAddress,
    IommuError,
)
from qemuglue.memory.guest_memory import GuestRegion, GuestRegionCollection, IommuMemory, Iotlb
from qemuglue.memory.guest_memory.iommu import CannotResolve, Iommu
from qemuglue.memory.guest_memory.iotlb import IotlbFails, IotlbIterator, IovaRange
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.memory_map import GuestMemory as MapMemory
from qemuglue.memory.memory_map import MemoryMapping
from qemuglue.memory.memory_map.error import (
    InvalidAddress,
    InvalidGuestAddressRange,
)
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.section_backing import section_backing
from qemuglue.memory.volatile import (
    OutOfBounds,
    VolatileIOError,
    VolatileMemoryError,
    VolatilePartialBuffer,
    VolatileSlice,
)

LENGTH = 64
SEAM = 20
#: Bytes of each backing around those that the subject may reach.
MARGIN = 16
BASE = 0x1000
TOP = (1 << 64) - 1


class Recording:
    """Bytes that cannot be pointed at, and say how they were accessed."""

    def __init__(self, size: int, calls: list[tuple[str, int, int]]) -> None:
        self.cells = bytearray(size)
        self.calls = calls

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, offset: int, size: int) -> bytes:
        self.calls.append(("read", offset, size))
        return bytes(self.cells[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        assert offset >= 0 and offset + len(data) <= len(self.cells)
        self.calls.append(("write", offset, len(data)))
        self.cells[offset : offset + len(data)] = data


class Store:
    """One backing with a margin on both sides of the run, and a subject over it."""

    def __init__(self, size: int = LENGTH, *, pointed: bool = False) -> None:
        self.calls: list[tuple[str, int, int]] = []
        whole = MARGIN + size + MARGIN
        self.backing: Backing
        if pointed:
            backing = ByteBacking(whole)
            self.backing, self.cells = backing, backing.data
        else:
            recording = Recording(whole, self.calls)
            self.backing, self.cells = recording, recording.cells

    def subject(self, made: Any, address: Any, top: Any = None) -> Subject:
        return of_stores(made, address, self, top=top)


def of_stores(made: Any, address: Any, *stores: Store, top: Any = None) -> Subject:
    """A subject whose run is that of each store in turn."""
    sizes = [len(store.cells) - 2 * MARGIN for store in stores]

    def snapshot() -> bytes:
        runs = b"".join(bytes(s.cells[MARGIN:-MARGIN]) for s in stores)
        return stores[0].cells[:MARGIN] + runs + b"".join(
            bytes(s.cells[-MARGIN:]) + (bytes(s.cells[:MARGIN]) if i else b"")
            for i, s in enumerate(stores)
        )

    def fill(data: bytes) -> None:
        rest = memoryview(data)
        stores[0].cells[:MARGIN] = rest[:MARGIN]
        rest = rest[MARGIN:]
        for store, size in zip(stores, sizes, strict=True):
            store.cells[MARGIN:-MARGIN] = rest[:size]
            rest = rest[size:]
        for i, store in enumerate(stores):
            store.cells[-MARGIN:] = rest[:MARGIN]
            rest = rest[MARGIN:]
            if i:
                store.cells[:MARGIN] = rest[:MARGIN]
                rest = rest[MARGIN:]

    calls = stores[0].calls
    for store in stores[1:]:
        if isinstance(store.backing, Recording):
            store.backing.calls = calls
    return Subject(made, address, snapshot, fill, MARGIN, calls, top)


class Window:
    """The run of a store as a backing of its own."""

    def __init__(self, store: Store) -> None:
        self._backing = store.backing

    def __len__(self) -> int:
        return len(self._backing) - 2 * MARGIN

    def read(self, offset: int, size: int) -> bytes:
        return self._backing.read(MARGIN + offset, min(size, len(self) - offset))

    def write(self, offset: int, data: bytes) -> None:
        self._backing.write(MARGIN + offset, data)


def collection(*, gap: int = 0) -> tuple[GuestRegionCollection, Store, Store]:
    """Two regions, ``gap`` bytes between them, and what they are kept in."""
    low, high = Store(SEAM), Store(LENGTH - SEAM)
    regions = [GuestRegion(BASE, Window(low)), GuestRegion(BASE + SEAM + gap, Window(high))]
    return GuestRegionCollection.from_regions(regions), low, high


def guest(n: int) -> GuestAddress:
    return GuestAddress(BASE + n)


SLICE = Contract(
    LENGTH, outside=OutOfBounds, partial=VolatilePartialBuffer, not_one=VolatileMemoryError,
    not_one_outside=OutOfBounds, streams=Streams.SLICE, io_error=VolatileIOError, counted=True,
)


class TestVolatileSlice(BytesConformance):
    contract = SLICE

    def make(self) -> Subject:
        store = Store()
        return store.subject(VolatileSlice(store.backing, MARGIN, LENGTH), lambda n: n)


class TestVolatileSliceOfMemory(BytesConformance):
    """One whose bytes can be pointed at."""

    contract = replace(SLICE, counted=False)

    def make(self) -> Subject:
        store = Store(pointed=True)
        made = VolatileSlice(store.backing).subslice(MARGIN, LENGTH)
        return store.subject(made, lambda n: n)


class TestGuestRegion(BytesConformance):
    contract = Contract(
        LENGTH, outside=InvalidBackendAddress, outside_says_where=False, streams=Streams.SLICE,
        counted=True,
    )

    def make(self) -> Subject:
        store = Store()
        made = GuestRegion(BASE, Window(store))
        return store.subject(made, MemoryRegionAddress)


class TestGuestRegionCollection(BytesConformance):
    contract = Contract(LENGTH, SEAM, counted=True)

    def make(self) -> Subject:
        made, low, high = collection()
        return of_stores(made, guest, low, high)


class TestMapping(BytesConformance):
    """The first model's, by offset."""

    contract = Contract(
        LENGTH, outside=InvalidAddress, outside_says_where=False, whole_objects=InvalidAddress,
        not_one_outside=InvalidBackendAddress, streams=Streams.PLAIN, counted=True,
    )

    def make(self) -> Subject:
        store = Store()
        return store.subject(MemoryMapping(store.backing, MARGIN, LENGTH), lambda n: n)


class TestMapMemory(BytesConformance):
    """The first model's, by address: the run ends with the region, whatever is behind it."""

    contract = Contract(
        LENGTH, whole_objects=InvalidGuestAddressRange, not_one=GuestMemoryError,
        not_one_outside=InvalidGuestAddressRange, streams=Streams.PLAIN, counted=True,
    )

    def make(self) -> Subject:
        store = Store()
        made = MapMemory.from_regions([(BASE, MemoryMapping(store.backing, MARGIN, LENGTH))])
        return store.subject(made, guest)


# -- behind an IOMMU -------------------------------------------------------------------------


class Table(Iommu):
    """An IOMMU that knows what it was told."""

    def __init__(self, *mappings: tuple[int, int, int, Permissions]) -> None:
        self.tlb = Iotlb()
        for mapping in mappings:
            self.tlb.set_mapping(*mapping)

    def translate(self, iova: GuestAddress, length: int, access: Permissions) -> IotlbIterator:
        if iova.raw_value() + length > TOP:
            raise CannotResolve(IovaRange(iova, length), "no IOTLB reaches so far")
        try:
            return self.tlb.lookup(iova, length, access)
        except IotlbFails as fails:
            failed = [*fails.misses, *fails.access_fails]
            raise CannotResolve(failed[0], "in no table") from None


#: Where the two regions are seen; they lie the other way round, and apart.
IOVA = 0x7000_0000
GAP = 0x100


def behind(*, slack: int, access: Permissions) -> Subject:
    """Two regions that an IOMMU shows as one run, and ``slack`` bytes of nothing after it."""
    made, first, second = collection(gap=GAP)
    high = BASE + SEAM + GAP
    table = Table(
        (IOVA, high, LENGTH - SEAM, access),
        (IOVA + LENGTH - SEAM, BASE, SEAM + slack, access),
    )
    memory = IommuMemory(made, table)
    return of_stores(memory, lambda n: GuestAddress(IOVA + n), second, first)


class TestIommuMemoryThatIsOff(BytesConformance):
    """What lies behind it, as if it were not there."""

    contract = Contract(LENGTH, SEAM, counted=True)

    def make(self) -> Subject:
        made, low, high = collection()
        memory = IommuMemory(made, Table(), use_iommu=False)
        return of_stores(memory, guest, low, high)


class TestIommuMemory(BytesConformance):
    """It asks for all of an access first: a byte that it does not map refuses the whole."""

    contract = Contract(
        LENGTH, LENGTH - SEAM, outside=IommuError, outside_says_where=False,
        never_short=IommuError, counted=True,
    )

    def make(self) -> Subject:
        return behind(slack=0, access=Permissions.ReadWrite)


class TestIommuMemoryWithoutMemory(BytesConformance):
    """What it maps, and nothing is behind, ends an access as any hole does."""

    contract = Contract(
        LENGTH, LENGTH - SEAM, outside=InvalidGuestAddress, outside_says_where=False,
        counted=True, has_top=False,
    )

    def make(self) -> Subject:
        return behind(slack=GAP, access=Permissions.ReadWrite)


class TestIommuMemoryForReading(BytesConformance):
    contract = Contract(
        LENGTH, LENGTH - SEAM, outside=IommuError, outside_says_where=False,
        never_short=IommuError, read_only=IommuError, counted=True,
    )

    def make(self) -> Subject:
        return behind(slack=0, access=Permissions.Read)


# -- the Rust face of the model --------------------------------------------------------------


def space_of(*parts: tuple[int, MemoryRegion]) -> AddressSpace:
    root = MemoryRegion.container_of("system", 1 << 64)
    for at, region in parts:
        root.add_subregion(at, region)
    return AddressSpace("memory", root)


class OfTheModel(BytesConformance):
    """Kept alive with the test: a view belongs to its space."""

    kept: Any = None

    def view(self, space: AddressSpace) -> Any:
        self.kept = (space, RustSpace(space).memory())
        return self.kept[1].view


VIEW = Contract(
    LENGTH, outside=InvalidBackendAddress, outside_says_where=False, aligned=False, counted=True,
)


class TestFlatView(OfTheModel):
    contract = replace(VIEW, seam=SEAM)

    def make(self) -> Subject:
        low, high = Store(SEAM), Store(LENGTH - SEAM)
        space = space_of(
            (BASE, MemoryRegion.ram("low", SEAM, Window(low))),
            (BASE + SEAM, MemoryRegion.ram("high", LENGTH - SEAM, Window(high))),
        )
        return of_stores(self.view(space), guest, low, high)


class TestFlatViewWithAttributes(OfTheModel):
    """The same at (address, attributes)."""

    contract = VIEW

    def make(self) -> Subject:
        store = Store()
        space = space_of((BASE, MemoryRegion.ram("ram", LENGTH, Window(store))))
        attrs = MemTxAttrs(secure=True)
        top = (GuestAddress(TOP), attrs)
        return store.subject(self.view(space), lambda n: (guest(n), attrs), top)


class TestFlatViewOfRom(OfTheModel):
    contract = replace(VIEW, read_only=InvalidBackendAddress)

    def make(self) -> Subject:
        store = Store()
        space = space_of((BASE, MemoryRegion.rom("rom", LENGTH, Window(store))))
        return store.subject(self.view(space), guest)


class TestMemoryRegionSection(OfTheModel):
    """A part of a region: its other bytes are not reached."""

    contract = VIEW

    def make(self) -> Subject:
        store = Store()
        ram = MemoryRegion.ram("ram", LENGTH + 2 * MARGIN, store.backing)
        space = space_of((BASE, MemoryRegion.alias_of("part", ram, MARGIN, LENGTH)))
        section = self.view(space).find_region(BASE)
        return store.subject(section, MemoryRegionAddress)


class TestRegionOfASection(OfTheModel):
    """vm-memory's region over a section of the model's."""

    contract = TestGuestRegion.contract

    def make(self) -> Subject:
        store = Store()
        ram = MemoryRegion.ram("ram", LENGTH + 2 * MARGIN, store.backing)
        space = space_of((BASE, MemoryRegion.alias_of("part", ram, MARGIN, LENGTH)))
        self.kept = space
        made = GuestRegion(BASE, section_backing(space, space.view.sections[0]))
        return store.subject(made, MemoryRegionAddress)
