"""The conformance suite of ``Bytes`` on a running QEMU's own memory.

Each subject lies at the end of some of QEMU's memory, with nothing behind it. What is really there
is set and seen by QEMU itself, through qtest; ROM, which that cannot write, is set in QEMU's
process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from bytes_conformance import BytesConformanceAtOnce, Contract, Streams, Subject

from qemuglue.memory import AddressSpace, Backing, HostMemory
from qemuglue.memory.accessor import InvalidInput
from qemuglue.memory.endian import Be16, Le32
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.guest_address import GuestAddress, MemoryRegionAddress
from qemuglue.memory.guest_error import GuestMemoryError, InvalidBackendAddress
from qemuglue.memory.guest_memory import GuestRegion, GuestRegionCollection
from qemuglue.memory.memory_map.error import InvalidGuestAddressRange
from qemuglue.memory.region_accessor import RegionAccessor
from qemuglue.memory.rust_binding import FlatViewRefGuard
from qemuglue.memory.section_backing import section_backing
from qemuglue.memory.volatile import (
    OutOfBounds,
    VolatileIOError,
    VolatileMemoryError,
    VolatilePartialBuffer,
    VolatileSlice,
)
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.live import LiveMachine

pytestmark = pytest.mark.qemu

LENGTH, SEAM, MARGIN = 64, 20, 16


@dataclass
class Place:
    """The last bytes of some of QEMU's memory, and what they are kept in."""

    live: LiveMachine
    section: MemoryRegionSection

    @property
    def start(self) -> int:
        """Where the run begins."""
        return self.section.last + 1 - LENGTH

    @property
    def backing(self) -> Backing:
        assert self.section.region.backing is not None
        return self.section.region.backing

    @property
    def offset(self) -> int:
        """Where it begins in the backing."""
        return self.section.offset + self.section.size - LENGTH

    def address(self, n: int) -> GuestAddress:
        return GuestAddress(self.start + n)

    def snapshot(self) -> bytes:
        size = MARGIN + LENGTH
        reply = self.live.process.channel.exchange(
            b"read 0x%x 0x%x\n" % (self.start - MARGIN, size), 1)
        return bytes.fromhex(reply.split()[1].removeprefix(b"0x").decode())

    def fill(self, data: bytes) -> None:
        if self.section.region.readonly:
            self.backing.write(self.offset - MARGIN, data)
            return
        self.live.process.channel.exchange(
            b"write 0x%x 0x%x 0x%s\n" % (self.start - MARGIN, len(data), data.hex().encode()), 1)

    def subject(self, made: Any, address: Any = None) -> Subject:
        return Subject(made, address or self.address, self.snapshot, self.fill, MARGIN)


@pytest.fixture(scope="module")
def shared(build: Build) -> Iterator[LiveMachine]:
    """A machine whose main memory is shared with us."""
    with LiveMachine("x86_64/q35", build=build) as live:
        yield live


@pytest.fixture(scope="module")
def private(build: Build) -> Iterator[LiveMachine]:
    """A machine whose main memory is its own, reached in its process."""
    config = QemuConfig(build=build, target="x86_64", machine="q35", ram="32M")
    with QemuProcess(config) as process, LiveMachine(process) as live:
        yield live


@pytest.fixture(scope="module")
def big(build: Build) -> Iterator[LiveMachine]:
    """A big-endian machine."""
    with LiveMachine("ppc/mac99", build=build) as live:
        yield live


def section(live: LiveMachine, address: int) -> MemoryRegionSection:
    return next(s for s in live.memory.view.sections if s.start <= address <= s.last)


def main_memory(live: LiveMachine) -> Place:
    place = Place(live, section(live, 0x100000))
    assert place.section.region.is_ram and not place.section.region.readonly
    return place


def firmware(live: LiveMachine) -> Place:
    place = Place(live, section(live, 0xFFFFFFFF))
    assert place.section.region.readonly
    return place


class OnShared(BytesConformanceAtOnce):
    """On memory that is shared; a subclass says where, and what is made of it."""

    where = staticmethod(main_memory)

    @pytest.fixture(autouse=True)
    def _machine(self, shared: LiveMachine) -> None:
        self.place = self.where(shared)


class OnPrivate(BytesConformanceAtOnce):
    """On memory of another process."""

    @pytest.fixture(autouse=True)
    def _machine(self, private: LiveMachine) -> None:
        self.place = main_memory(private)


SLICE = Contract(
    LENGTH, outside=OutOfBounds, partial=VolatilePartialBuffer, not_one=VolatileMemoryError,
    not_one_outside=OutOfBounds, streams=Streams.SLICE, io_error=VolatileIOError,
)


class TestSliceOfSharedMemory(OnShared):
    contract = SLICE

    def make(self) -> Subject:
        place = self.place
        assert isinstance(place.backing, HostMemory)
        made = VolatileSlice(place.backing, place.offset, LENGTH)
        return place.subject(made, lambda n: n)


class TestSliceOfAnotherProcess(OnPrivate):
    contract = SLICE

    def make(self) -> Subject:
        place = self.place
        assert not isinstance(place.backing, HostMemory)
        made = VolatileSlice(place.backing, place.offset, LENGTH)
        return place.subject(made, lambda n: n)


class OfTheWholeMachine(BytesConformanceAtOnce):
    """vm-memory's face; devices and ROM are regions of it too."""

    contract = Contract(LENGTH)
    place: Place

    def make(self) -> Subject:
        return self.place.subject(self.place.live.face("vm-memory"))


class TestVmMemory(OfTheWholeMachine, OnShared):
    pass


class TestVmMemoryInAnotherProcess(OfTheWholeMachine, OnPrivate):
    pass

class TestVmMemoryOfABigEndianMachine(OfTheWholeMachine):
    """A value's byte order is its type's, whatever the machine's."""

    @pytest.fixture(autouse=True)
    def _machine(self, big: LiveMachine) -> None:
        self.place = main_memory(big)


class Window:
    """A part of a backing."""

    def __init__(self, backing: Backing, offset: int, size: int) -> None:
        self.parts = (backing, offset, size)

    def __len__(self) -> int:
        return self.parts[2]

    def read(self, offset: int, size: int) -> bytes:
        backing, start, whole = self.parts
        return backing.read(start + offset, min(size, whole - offset))

    def write(self, offset: int, data: bytes) -> None:
        backing, start, whole = self.parts
        assert offset + len(data) <= whole
        backing.write(start + offset, data)


class TestTwoRegions(OnShared):
    """Two regions of vm-memory over one piece of the machine's memory."""

    contract = Contract(LENGTH, SEAM)

    def make(self) -> Subject:
        place = self.place
        made = GuestRegionCollection.from_regions([
            GuestRegion(place.address(at), Window(place.backing, place.offset + at, size))
            for at, size in ((0, SEAM), (SEAM, LENGTH - SEAM))
        ])
        return place.subject(made)


class TestRegionOfFirmware(OnShared):
    """vm-memory's region over a section of ROM."""

    contract = Contract(
        LENGTH, outside=InvalidBackendAddress, outside_says_where=False, streams=Streams.SLICE,
        read_only=InvalidBackendAddress,
    )

    where = staticmethod(firmware)

    def make(self) -> Subject:
        place = self.place
        backing = section_backing(place.live.memory, place.section)
        made = GuestRegion(place.section.start, backing)
        first = place.start - place.section.start
        return place.subject(made, lambda n: MemoryRegionAddress(first + n))


class TestMemoryMap(OnShared):
    contract = Contract(
        LENGTH, whole_objects=InvalidGuestAddressRange, not_one=GuestMemoryError,
        not_one_outside=InvalidGuestAddressRange, streams=Streams.PLAIN,
    )

    def make(self) -> Subject:
        return self.place.subject(self.place.live.face("memory-map"))


VIEW = Contract(LENGTH, outside=InvalidBackendAddress, outside_says_where=False, aligned=False)


class OfAView(BytesConformanceAtOnce):
    """The Rust face. Views are held as long as the test runs."""

    contract = VIEW
    place: Place

    def make(self) -> Subject:
        return self.place.subject(self.view())

    def view(self) -> Any:
        space: AddressSpace = self.place.live.face("rust")
        self.guards.append(space.memory())
        return self.guards[-1].view

    @pytest.fixture(autouse=True)
    def _held(self) -> Iterator[None]:
        self.guards: list[FlatViewRefGuard] = []
        yield
        for guard in self.guards:
            guard.release()


class TestRustView(OfAView, OnShared):
    pass


class TestRustViewOfAnotherProcess(OfAView, OnPrivate):
    pass


class TestRustViewOfFirmware(OfAView, OnShared):
    contract = replace(VIEW, read_only=InvalidBackendAddress)
    where = staticmethod(firmware)


class TestRustSection(OfAView, OnShared):
    def make(self) -> Subject:
        place = self.place
        made = self.view().find_region(place.address(0))
        first = place.start - made.start_addr().raw_value()
        return place.subject(made, lambda n: MemoryRegionAddress(first + n))


# -- axaddrspace's face, which is no Bytes ----------------------------------------------------


@pytest.mark.parametrize("memory", ["shared", "private"])
def test_the_accessor_reads_and_writes_what_qemu_has(
    memory: str, shared: LiveMachine, private: LiveMachine
) -> None:
    live = shared if memory == "shared" else private
    place = main_memory(live)
    accessor = RegionAccessor.from_view(live.memory.view)
    place.fill(bytes(range(MARGIN + LENGTH)))
    assert accessor.read_obj(place.address(3), Le32) == 0x16151413
    accessor.write_volatile(place.address(LENGTH - 2), Be16(0x0102))
    accessor.write_buffer(place.address(8), b"the guest's")
    assert place.snapshot()[MARGIN + 7 : MARGIN + 20] == b"\x17the guest's\x23"
    assert place.snapshot()[-3:] == b"\x4d\x01\x02"
    with pytest.raises(InvalidInput):
        accessor.read_obj(place.address(LENGTH - 2), Le32)
    buffer = bytearray(b"." * 6)
    with pytest.raises(InvalidInput) as caught:
        accessor.read_buffer(place.address(LENGTH - 3), buffer)
    assert (buffer, caught.value.moved) == (b"\x4d\x01\x02...", 3)
    rom = firmware(live)
    assert accessor.translate(rom.address(0)) is None
