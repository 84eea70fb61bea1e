"""R18: accesses that an IOMMU translates."""

from __future__ import annotations

import pytest
from rule_checks import ANY, Device, io, ram

from qemuglue.errors import ModelError
from qemuglue.memory import (
    AddressSpace,
    IommuAccess,
    IommuTlbEntry,
    Le32,
    MemoryRegion,
    MemoryRegionCache,
    MemTxAttrs,
    Topology,
)

TOP = 1 << 64
PAGE = 0x1000
RO, WO, RW, NONE = IommuAccess.RO, IommuAccess.WO, IommuAccess.RW, IommuAccess.NONE


class Table:
    """An IOMMU over a dictionary: page -> (page, permission), one dictionary a context."""

    def __init__(self, target: AddressSpace, *contexts: dict[int, tuple[int, IommuAccess]]) -> None:
        self.target = target
        self.contexts = contexts
        self.mask = PAGE - 1
        self.asked: list[tuple[int, IommuAccess, int]] = []

    def translate(
        self, region: MemoryRegion, addr: int, access: IommuAccess, index: int
    ) -> IommuTlbEntry:
        self.asked.append((addr, access, index))
        page, perm = self.contexts[index].get(addr // PAGE, (0, NONE))
        return IommuTlbEntry(self.target, addr & ~self.mask, page * PAGE, self.mask, perm)

    def attrs_to_index(self, region: MemoryRegion, attrs: MemTxAttrs) -> int:
        return attrs.requester_id if len(self.contexts) > 1 else 0


def machine(
    *contexts: dict[int, tuple[int, IommuAccess]]
) -> tuple[AddressSpace, AddressSpace, MemoryRegion, Table, Device]:
    """(the device's space, the target space, its RAM, the IOMMU, callbacks); the IOMMU is at
    0x10000, so the page numbers of a table count from there."""
    root = MemoryRegion.container_of("system", TOP)
    memory = ram(4 * PAGE)
    root.add_subregion(0, memory)
    root.add_subregion(0x8000, io(ANY, "dev"))
    topology = Topology()
    target = AddressSpace("memory", root, topology=topology)
    table = Table(target, *contexts)
    bus = MemoryRegion.container_of("bus", TOP)
    bus.add_subregion(0x10000, MemoryRegion.iommu("iommu", 0x100000, table))
    bus.add_subregion(0, ram(PAGE, "own"))
    space = AddressSpace("bus", bus, topology=topology)
    device = Device()
    target.ops = space.ops = device
    target.observer = space.observer = device
    return space, target, memory, table, device


def test_pages_are_scattered_and_results_ored() -> None:
    space, target, _, table, _device = machine({0: (2, RW), 1: (0, RW), 3: (1, RW)})
    assert space.write(0x10FFE, b"abcd") == 0
    assert target.read(2 * PAGE + 0xFFE, 2) == (0, b"ab") and target.read(0, 2) == (0, b"cd")
    assert table.asked == [(0xFFE, WO, 0), (0x1000, WO, 0)]
    table.asked.clear()
    assert space.read(0x10FFE, 4) == (0, b"abcd")
    assert [access for _, access, _ in table.asked[:2]] == [RO, RO]
    assert space.read(0x11FFE, 0x1004)[0] == 2, "page 2 leads nowhere"
    data = space.read(0x12FFE, 4)
    assert data == (2, b"\0\0\0\0")
    target.write(PAGE, b"xy")
    assert space.read(0x12FFE, 4) == (2, b"\0\0xy")


def test_permissions_are_those_of_the_access() -> None:
    space, target, _, _, device = machine({0: (0, RO), 1: (1, WO), 2: (2, NONE)})
    target.write(0, b"data")
    target.write(PAGE, b"data")
    assert space.read(0x10000, 4) == (0, b"data") and space.write(0x10000, b"lost") == 2
    assert space.write(0x11000, b"here") == 0 and space.read(0x11000, 4) == (2, bytes(4))
    assert space.read(0x12000, 4)[0] == space.write(0x12000, b"lost") == 2
    assert target.read(0, 4) == (0, b"data") and target.read(PAGE, 4) == (0, b"here")
    # What is refused is logged at the offset in the IOMMU.
    assert ("invalid", "", 0x2000, 4, True, "rejected") in device.log


def test_a_refused_access_goes_by_unassigned_pieces() -> None:
    # R6 over the unassigned ops: at most 4, aligned by the IOMMU's offset.
    space, _, _, _, device = machine({})
    assert space.read(0x10003, 8) == (2, bytes(8))
    assert [event[2:4] for event in device.log] == [(3, 1), (4, 4), (8, 2), (10, 1)]


def test_devices_behind_an_iommu() -> None:
    space, _, _, _, device = machine({0: (8, RW)})
    assert space.read(0x10004, 4) == (0, bytes([5, 6, 7, 8]))
    assert space.load(0x10004, Le32) == (0, 0x08070605)
    assert space.store(0x10008, Le32(1)) == 0
    assert device.log == [
        ("read", "dev", 4, 4), ("read", "dev", 4, 4), ("write", "dev", 8, 4, 1),
    ]
    assert space.access_valid(0x10004, 4, True) and not space.access_valid(0x11000, 1, False)


def test_a_single_access_over_the_end_of_a_page_is_no_memory_access() -> None:
    # The page's length is clamped (R18), so fewer than the 4 bytes remain (R10).
    space, _, _, _, device = machine({0: (0, RW), 1: (1, RW)})
    assert space.load(0x10FFE, Le32) == (2, 0) and space.store(0x10FFE, Le32(1)) == 2
    assert space.load(0x10FFC, Le32) == (0, 0)
    assert [event[:3] for event in device.log] == [("invalid", "ram", 0xFFE)] * 2


def test_attributes_choose_the_context() -> None:
    space, target, _, table, _ = machine({0: (0, RW)}, {0: (1, RW)})
    assert space.write(0x10000, b"a", MemTxAttrs(requester_id=0)) == 0
    assert space.write(0x10000, b"b", MemTxAttrs(requester_id=1)) == 0
    assert target.read(0, 1) == (0, b"a") and target.read(PAGE, 1) == (0, b"b")
    assert [index for _, _, index in table.asked] == [0, 1]


def test_large_pages() -> None:
    space, target, _, table, _ = machine({0: (0, RW)})
    table.mask = 2 * PAGE - 1
    target.write(PAGE, b"second")
    table.contexts[0][1] = (0, RW)
    assert space.read(0x11000, 6) == (0, b"second")
    table.asked.clear()
    assert space.write(0x10000, bytes(2 * PAGE)) == 0
    assert len(table.asked) == 1, "one translation for both"


def test_iommus_behind_each_other() -> None:
    space, target, memory, outer, _ = machine({5: (0x12, RO), 6: (0x13, RW)})
    middle_root = MemoryRegion.container_of("middle", TOP)
    inner = Table(target, {2: (1, RW), 3: (2, WO)})
    middle_root.add_subregion(0x10000, MemoryRegion.iommu("inner", 0x10000, inner))
    middle_root.add_subregion(0, MemoryRegion.ram("unused", PAGE))
    middle = AddressSpace("middle", middle_root, topology=target.topology)
    outer.target = middle
    memory.backing.write(PAGE, b"deep")  # type: ignore[union-attr]
    assert space.read(0x15000, 4) == (0, b"deep")
    assert space.write(0x15000, b"lost") == 2, "the outer one only reads"
    assert space.read(0x16000, 4)[0] == 2, "the inner one only writes"
    assert space.write(0x16000, b"down") == 0 and target.read(2 * PAGE, 4) == (0, b"down")
    section, offset, length = space.translate(0x16FF0, 0x100, True)
    assert section.region is memory and (offset, length) == (0x2FF0, 0x10)


def test_iommus_that_never_end() -> None:
    space, _, _, table, _ = machine({0: (0x10, RW)})
    table.target = space
    with pytest.raises(ModelError, match="more than 64 IOMMUs"):
        space.read(0x10000, 1)


def test_an_iommu_without_callbacks_leads_nowhere() -> None:
    space, _, _, _, _ = machine({})
    root = MemoryRegion.container_of("lone", TOP)
    root.add_subregion(0, MemoryRegion.iommu("plain", 0x1000))
    root.add_subregion(0x1000, ram(16))
    lone = AddressSpace("lone", root)
    assert lone.read(0, 4) == (2, bytes(4)) and lone.write(0, b"x") == 2
    assert lone.get_iotlb_entry(0, False) is None and space.get_iotlb_entry(0x10000, False) is None


def test_iotlb_entries() -> None:
    space, target, _, table, _ = machine({0: (2, RO)})
    entry = space.get_iotlb_entry(0x10123, False)
    assert entry is not None
    assert (entry.target, entry.iova, entry.translated_addr) == (target, 0x10000, 0x2000)
    assert (entry.addr_mask, entry.perm) == (0xFFF, RW), "QEMU answers RW whatever it is"
    assert space.get_iotlb_entry(0x10123, True) is None
    table.mask = 0x3FFF
    entry = space.get_iotlb_entry(0x10123, False)
    assert entry is not None and entry.addr_mask == 0x3FFF and entry.translated_addr == 0
    entry = space.get_iotlb_entry(0x123, True)
    assert entry is not None and entry.target is space and entry.translated_addr == 0
    assert space.get_iotlb_entry(0x5000, True) is None


def test_mappings_stop_at_a_page_that_is_elsewhere() -> None:
    space, _, memory, _, device = machine({0: (0, RW), 1: (1, RW), 2: (3, RW), 3: (8, RW)})
    mapped = space.map(0x10800, 0x4000, True)
    assert mapped is not None and len(mapped) == 0x1800 and mapped.region is memory
    space.unmap(mapped, 0)
    bounced = space.map(0x13010, 4, False)
    assert bounced is not None and bounced.bounced
    assert bytes(bounced.buffer) == bytes([0x11, 0x12, 0x13, 0x14])
    space.unmap(bounced, 0)
    assert device.log == [("read", "dev", 0x10, 4)]


def test_a_cache_of_an_iommu_asks_it_every_time() -> None:
    space, target, _, table, device = machine({0: (0, RW), 1: (8, RW)})
    target.write(0, b"data")
    with MemoryRegionCache(space, 0x10000, 0x2000, True) as cache:
        assert not cache.direct and cache.length == 0x2000
        assert cache.read(0, 4) == (0, b"data")
        table.contexts[0][0] = (1, RW)
        assert cache.write(0, b"more") == 0 and target.read(PAGE, 4) == (0, b"more")
        assert cache.load(0x1004, Le32) == (0, 0x08070605)
        assert cache.store(0x1008, Le32(9)) == 0
        assert device.log[-1] == ("write", "dev", 8, 4, 9)
        assert cache.load(0, Le32) == (0, int.from_bytes(b"more", "little"))


@pytest.mark.parametrize("mask", [-1, 0xFFE, 1 << 64])
def test_masks_are_low_bits(mask: int) -> None:
    space, _, _, _, _ = machine({})
    with pytest.raises(ModelError, match="2\\^n - 1"):
        IommuTlbEntry(space, 0, 0, mask, RW)


def test_the_whole_space_as_one_page() -> None:
    space, target, _, table, _ = machine({0: (0, RW)})
    table.mask = TOP - 1
    table.contexts[0].update({page: (0, RW) for page in range(16)})
    target.write(0x3000, b"far")
    assert space.read(0x13000, 3) == (0, b"far")
