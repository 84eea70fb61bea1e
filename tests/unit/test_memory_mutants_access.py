"""What mutation testing found untested in accesses and in what listeners are told."""

from __future__ import annotations

import pytest
from rule_checks import ANY, Device, io, ram

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    ByteBacking,
    CpuPath,
    IommuAccess,
    IommuTlbEntry,
    Le32,
    MemoryListener,
    MemoryRegion,
    MemoryRegionSection,
    MemTxAttrs,
    RcuError,
    Topology,
    register,
    unregister,
)
from qemuglue.memory.rust_binding import AddressSpace as RustSpace

TOP = 1 << 64
PAGE = 0x1000
ONLY_MEMORY = MemTxAttrs(memory=True)


class Swapped:
    """An IOMMU that swaps every two pages."""

    def __init__(self, target: AddressSpace, allows: IommuAccess = IommuAccess.RW) -> None:
        self.target = target
        self.allows = allows

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        page = addr & -PAGE
        return IommuTlbEntry(self.target, page, page ^ PAGE, PAGE - 1, self.allows)

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        return 0


def test_memory_only_is_asked_before_anything_is_done() -> None:
    # R8: no device ends an access before its own end, so only an IOMMU shows it: the bus has RAM
    # in page 1 and a device in page 0, which the IOMMU swaps.
    root = MemoryRegion.container_of("system", TOP)
    memory = ram(PAGE)
    root.add_subregion(0, memory)
    root.add_subregion(PAGE, io(ANY, "dev", PAGE))
    topology = Topology()
    target = AddressSpace("memory", root, topology=topology)
    bus = MemoryRegion.container_of("bus", TOP)
    bus.add_subregion(0, MemoryRegion.iommu("iommu", 2 * PAGE, Swapped(target)))
    space = AddressSpace("bus", bus, topology=topology)
    target.ops = space.ops = device = Device()
    assert target.write(0, b"RAM!") == 0
    assert space.write(PAGE - 4, b"devi" + b"lost", ONLY_MEMORY) == 4
    assert target.read(0, 4) == (0, b"RAM!"), "what follows the refused part is not done"
    buffer = bytearray(b"\xee" * 8)
    assert space.read_into(PAGE - 4, buffer, ONLY_MEMORY) == 4
    assert buffer == b"\xee" * 8
    assert space.write(2 * PAGE - 4, b"0123", ONLY_MEMORY) == 0
    assert space.read(2 * PAGE - 4, 4, ONLY_MEMORY) == (0, b"0123")
    assert device.log == []


@pytest.mark.parametrize("allows", [IommuAccess.RO, IommuAccess.WO])
def test_translate_asks_for_reading_unless_told(allows: IommuAccess) -> None:
    target = AddressSpace("memory", MemoryRegion.ram("ram", 2 * PAGE))
    bus = MemoryRegion.container_of("bus", TOP)
    bus.add_subregion(0, MemoryRegion.iommu("iommu", 2 * PAGE, Swapped(target, allows)))
    space = AddressSpace("bus", bus, topology=target.topology)
    found, told = space.translate(4, 4), space.translate(4, 4, False)
    assert found[0].assigned is told[0].assigned is (allows is IommuAccess.RO)
    assert space.translate(4, 4, True)[0].assigned is (allows is IommuAccess.WO)


class _Again(Device):
    """While its first byte is read or written, accesses 8 bytes from its last 4 on."""

    def __init__(self) -> None:
        super().__init__()
        self.space: AddressSpace | None = None
        self.given: list[object] = []

    def _again(self, is_write: bool) -> None:
        space, self.space = self.space, None
        if space is not None:
            self.given.append(space.write(0xFC, b"devi" + b"then") if is_write
                              else space.read(0xFC, 8))

    def read(self, *args: object) -> tuple[int, int]:
        self._again(False)
        return super().read(*args)  # type: ignore[arg-type]

    def write(self, *args: object) -> int:
        self._again(True)
        return super().write(*args)  # type: ignore[arg-type]


def test_a_device_refused_for_its_re_entry_does_not_end_the_access() -> None:
    # R4 and R8: ACCESS_ERROR of the guard is ORed, ACCESS_ERROR of the attributes ends it all.
    root = MemoryRegion.container_of("system", TOP)
    memory = ram(0x100)
    narrow = MemoryRegion.io("narrow", 0x100)  # 4 bytes at once
    narrow.owner = "nic"
    root.add_subregion(0, narrow)
    root.add_subregion(0x100, memory)
    space = AddressSpace("memory", root)
    space.ops = calls = _Again()
    memory.backing.write(0, b"RAM!")  # type: ignore[union-attr]
    calls.space = space
    assert space.read(0, 1)[0] == 0
    assert calls.given == [(4, b"\0\0\0\0RAM!")]
    calls.space = space
    assert space.write(0, b"x") == 0
    assert calls.given[1:] == [4]
    assert memory.backing is not None and memory.backing.read(0, 4) == b"then"


@pytest.mark.parametrize("addr", [0x7FE, 0x800, 0xFFC])
def test_a_single_access_behind_the_end_of_the_backing_is_an_error(addr: int) -> None:
    root = MemoryRegion.container_of("system", TOP)
    root.add_subregion(0, MemoryRegion.ram("short", PAGE, ByteBacking(0x800)))
    space = AddressSpace("memory", root)
    assert space.store(0x7FC, Le32(7)) == 0 and space.load(0x7FC, Le32) == (0, 7)
    with pytest.raises(ModelError, match="ends inside the access"):
        space.load(addr, Le32)
    with pytest.raises(ModelError):
        space.store(addr, Le32(1))


def test_a_mapping_over_two_sections_is_no_longer_than_asked_for() -> None:
    memory = ram(0x10000)
    protected = MemoryRegion.alias_of("protected", memory, 0x1000, 0x9000)
    protected.set_readonly(True)
    root = MemoryRegion.container_of("system", TOP)
    root.add_subregion(0, MemoryRegion.alias_of("low", memory, 0, 0x1000))
    root.add_subregion(0x1000, protected)
    space = AddressSpace("memory", root)
    assert len(space.view) == 2
    for wanted in (0x800, 0x1000, 0x1800, 0x2800, 0x6400, 0xA000):
        mapped = space.map(0, wanted, False)
        assert mapped is not None and len(mapped) == wanted
        space.unmap(mapped, wanted)


def test_a_cpu_sees_the_right_bytes_behind_an_iommu() -> None:
    root = MemoryRegion.container_of("system", TOP)
    memory = ram(4 * PAGE)
    root.add_subregion(3 * PAGE, memory)
    root.add_subregion(0, ram(PAGE, "low"))
    target = AddressSpace("memory", root)
    bus = MemoryRegion.container_of("bus", TOP)
    bus.add_subregion(PAGE, MemoryRegion.iommu("iommu", 8 * PAGE, Swapped(target)))
    space = AddressSpace("bus", bus, topology=target.topology)
    path = CpuPath(space)
    for page in range(4):
        assert target.store(3 * PAGE + page * PAGE + 8, Le32(0x1000 + page)) == 0
    for page in range(3, 7):
        # The IOMMU is asked by the offset in its region, which begins in page 1.
        from_cpu = (page ^ 1) * PAGE + PAGE + 8
        assert path.load(from_cpu, 4, "little").value == 0x1000 + page - 3
        assert space.load(from_cpu, Le32) == (0, 0x1000 + page - 3)


def test_a_guard_of_the_rust_face_cannot_be_entered_after_its_release() -> None:
    guard = RustSpace(AddressSpace("memory", ram(PAGE))).memory()
    with guard as view:
        assert view.num_regions() == 1
    with pytest.raises(RcuError), guard:
        pass


# -- listeners ---------------------------------------------------------------------------------


class Hears(MemoryListener):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[object, ...]] = []


class AddsOnly(Hears):
    def eventfd_add(
        self, section: MemoryRegionSection, match_data: bool, data: int, notifier: object
    ) -> None:
        self.log.append(("fd+", section.start, notifier))


class Events(AddsOnly):
    def eventfd_del(
        self, section: MemoryRegionSection, match_data: bool, data: int, notifier: object
    ) -> None:
        self.log.append(("fd-", section.start, notifier))


class DelsOnly(Hears):
    eventfd_del = Events.eventfd_del


class Coalescing(Hears):
    def coalesced_io_add(self, section: MemoryRegionSection, start: int, size: int) -> None:
        self.log.append(("co+", start, size))

    def coalesced_io_del(self, section: MemoryRegionSection, start: int, size: int) -> None:
        self.log.append(("co-", start, size))


def bells() -> tuple[AddressSpace, MemoryRegion]:
    root = MemoryRegion.container_of("system", TOP)
    bell = MemoryRegion.io("bell", 0x100)
    root.add_subregion(0x1000, bell)
    return AddressSpace("memory", root), bell


def test_eventfds_that_stay_are_not_told_again() -> None:
    space, bell = bells()
    listener = Events()
    register(listener, space)
    for at in (0x10, 0x20, 0x30):
        bell.add_eventfd(at, 2, None, at)
    listener.log.clear()
    bell.add_eventfd(0x28, 2, None, "new")
    assert listener.log == [("fd+", 0x1028, "new")]
    listener.log.clear()
    bell.del_eventfd(0x20, 2, None, 0x20)
    assert listener.log == [("fd-", 0x1020, 0x20)]


@pytest.mark.parametrize(("kind", "heard"), [
    (AddsOnly, [("fd+", 0x1010, "e")]), (DelsOnly, [("fd-", 0x1010, "e")]),
])
def test_one_of_the_two_calls_is_enough_to_hear_of_eventfds(
    kind: type[Hears], heard: list[tuple[object, ...]]
) -> None:
    space, bell = bells()
    listener = kind()
    register(listener, space)
    bell.add_eventfd(0x10, 2, None, "e")
    bell.del_eventfd(0x10, 2, None, "e")
    assert listener.log == heard


def test_who_leaves_is_told_that_coalesced_ranges_go() -> None:
    space, bell = bells()
    listener = Coalescing()
    bell.add_coalescing(0x10, 8)
    register(listener, space)
    unregister(listener)
    assert listener.log == [("co+", 0x1010, 8), ("co-", 0x1010, 8)]
