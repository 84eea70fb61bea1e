"""ModelIommu: what vm-memory's IommuMemory sees through QEMU's IOMMU regions.

Each access is made twice, through the device's space and through the face. Where they are meant
to differ the test says so.
"""

from __future__ import annotations

import pytest
from iommu_bridge import DEVICE, NONE, OWN, PAGE, RAM_SIZE, RO, RW, TOP, WINDOW, WO, Face, machine
from rule_checks import ANY, io, ram

from qemuglue.memory import AddressSpace, Le32, MemoryRegion, MemTxAttrs
from qemuglue.memory.atomic_bitmap import AtomicBitmap
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidGuestAddress, IommuError
from qemuglue.memory.guest_memory import model_iommu
from qemuglue.memory.guest_memory.iommu import CannotResolve, IommuMisconfigured
from qemuglue.memory.guest_memory.iommu_memory import IommuMemory
from qemuglue.memory.guest_memory.iotlb import MappedRange
from qemuglue.memory.guest_memory.model_iommu import ModelIommu
from qemuglue.memory.guest_memory.permissions import Permissions

NO, READ, WRITE, BOTH = (
    Permissions.No, Permissions.Read, Permissions.Write, Permissions.ReadWrite,
)
DECODE_ERROR = 2


def at(addr: int) -> GuestAddress:
    return GuestAddress(addr)


def read(face: Face, addr: int, size: int) -> bytes:
    buffer = bytearray(size)
    face.read_slice(buffer, at(addr))
    return bytes(buffer)


def targets(face: Face, addr: int, size: int, access: Permissions) -> list[tuple[int, int]]:
    found = face.iommu().translate(at(addr), size, access)
    return [(each.base.raw_value(), each.length) for each in found]


def refused(face: Face, addr: int, size: int, access: Permissions) -> tuple[int, int, str]:
    """(first byte refused, bytes from there on, reason)."""
    with pytest.raises(CannotResolve) as caught:
        face.iommu().translate(at(addr), size, access)
    wanted = caught.value.iova_range
    return wanted.base.raw_value(), wanted.length, caught.value.reason


def misconfigured(face: Face, addr: int) -> str:
    assert not face.check_range(at(addr), 1, READ)
    with pytest.raises(IommuError) as caught:
        face.read(bytearray(1), at(addr))
    assert isinstance(caught.value.error, IommuMisconfigured)
    return caught.value.error.reason


# -- alike -----------------------------------------------------------------------------------------


def test_scattered_pages_are_the_same_bytes() -> None:
    m = machine({0: (2, RW), 1: (0, RW), 2: (1, RW)})
    face = m.face()
    assert read(face, WINDOW + 0xFF0, 0x1020) == m.space.read(WINDOW + 0xFF0, 0x1020)[1]
    face.write_slice(b"over the edge", at(WINDOW + PAGE - 4))
    assert m.space.read(WINDOW + PAGE - 4, 13) == (0, b"over the edge")
    assert m.target.read(3 * PAGE - 4, 4)[1] + m.target.read(0, 9)[1] == b"over the edge"
    m.space.write(WINDOW, b"by QEMU")
    assert read(face, WINDOW, 7) == b"by QEMU"
    assert targets(face, WINDOW + 8, PAGE, READ) == [(2 * PAGE + 8, PAGE - 8), (0, 8)]
    assert targets(face, WINDOW + PAGE, 2 * PAGE, BOTH) == [(0, 2 * PAGE)], "pages in one piece"
    assert targets(face, WINDOW, 3 * PAGE, BOTH) == [(2 * PAGE, PAGE), (0, 2 * PAGE)]


def test_permissions_are_the_iommus() -> None:
    m = machine({0: (0, RO), 1: (1, WO), 2: (2, NONE)})
    face, before = m.face(), m.ram()
    for page, access in ((0, READ), (1, WRITE)):
        assert targets(face, WINDOW + page * PAGE, PAGE, access) == [(page * PAGE, PAGE)]
    for page, access in ((0, WRITE), (1, READ), (2, READ), (2, WRITE), (2, NO), (3, NO)):
        addr = WINDOW + page * PAGE + 8
        what = "written" if access in (WRITE, NO) else "read"
        assert refused(face, addr, 4, access) == (addr, 4, f"it may not be {what}")
        assert not face.check_range(at(addr), 4, access)
    assert m.space.write(WINDOW, b"lost") == DECODE_ERROR
    with pytest.raises(IommuError):
        face.write(b"lost", at(WINDOW))
    assert m.ram() == before


def test_a_device_behind_gets_the_same_accesses() -> None:
    m = machine({0: (DEVICE // PAGE, RW)})
    face = m.face()
    assert face.load(at(WINDOW + 4), Le32) == Le32(m.space.load(WINDOW + 4, Le32)[1])
    face.store(Le32(7), at(WINDOW + 8))
    m.space.store(WINDOW + 8, Le32(7))
    read_, write_ = ("read", "dev", 4, 4), ("write", "dev", 8, 4, 7)
    assert m.device.log == [read_, read_, write_, write_]


def test_large_pages_and_how_far_they_reach() -> None:
    m = machine({0: (0, RW), 1: (0, RW), 2: (2, RW)})
    m.table.mask = 2 * PAGE - 1
    face = m.face()
    m.table.asked.clear()
    assert targets(face, WINDOW + 0x10, 2 * PAGE, READ) == [(0x10, 2 * PAGE)]
    assert m.table.asked == [(0x10, RO), (2 * PAGE, RO)], "once a page of this size"
    m.table.mask = 0xFF
    assert read(face, WINDOW + 0xF0, 0x20) == m.space.read(WINDOW + 0xF0, 0x20)[1]
    assert targets(face, WINDOW + 0xF0, 0x20, READ) == [(0xF0, 0x10), (0, 0x10)]


def test_iommus_behind_each_other() -> None:
    m = machine({5: (0x12, RO), 6: (0x13, RW), 7: (0x99, RW)})
    inner = machine({}).table
    inner.target, inner.tables = m.target, ({2: (1, RW), 3: (2, WO)},)
    root = MemoryRegion.container_of("middle", TOP)
    root.add_subregion(WINDOW, MemoryRegion.iommu("inner", 0x10000, inner))
    m.table.target = AddressSpace("middle", root, topology=m.target.topology)
    face = m.face()
    assert targets(face, WINDOW + 5 * PAGE, PAGE, READ) == [(PAGE, PAGE)]
    assert read(face, WINDOW + 5 * PAGE, 4) == m.space.read(WINDOW + 5 * PAGE, 4)[1]
    assert refused(face, WINDOW + 5 * PAGE, 4, WRITE)[2] == "it may not be written"
    assert refused(face, WINDOW + 6 * PAGE, 4, READ)[2] == "it may not be read"
    assert targets(face, WINDOW + 6 * PAGE, 4, WRITE) == [(2 * PAGE, 4)]
    # The outer one leads past the inner one, and not to the target.
    assert "it leads to <AddressSpace 'middle'" in refused(face, WINDOW + 7 * PAGE, 4, READ)[2]


def test_attributes_choose_the_table() -> None:
    m = machine({0: (0, RW)}, {0: (1, RW)})
    for requester in (0, 1):
        attrs = MemTxAttrs(requester_id=requester)
        face = m.face(attrs)
        assert targets(face, WINDOW, 4, READ) == [(requester * PAGE, 4)]
        assert read(face, WINDOW, 4) == m.space.read(WINDOW, 4, attrs)[1]


def test_a_table_that_changed_is_seen_at_once() -> None:
    """As in QEMU, which keeps nothing here; an Iommu with an IOTLB must be told."""
    m = machine({0: (0, RW)})
    face = m.face()
    held = next(face.get_slices(at(WINDOW), 4, BOTH))
    m.table.tables[0][0] = (1, RW)
    assert read(face, WINDOW, 4) == m.target.read(PAGE, 4)[1] == m.space.read(WINDOW, 4)[1]
    m.table.tables[0].clear()
    assert refused(face, WINDOW, 4, NO)[0] == WINDOW
    held.store(Le32(1), 0)
    assert m.target.load(0, Le32) == (0, 1), "what was mapped before is held"


def test_memory_that_stays_where_it_is_needs_no_iommu() -> None:
    """A device before translation is switched on: its space shows the system itself."""
    m = machine({})
    plain = MemoryRegion.alias_of("plain", m.target.root, 0, TOP)
    space = AddressSpace("device", plain, topology=m.target.topology)
    iommu = ModelIommu(space, m.target)
    assert list(iommu.translate(at(8), PAGE, BOTH)) == [MappedRange(at(8), PAGE)]
    assert list(iommu.translate(at(DEVICE), 4, BOTH)) == [MappedRange(at(DEVICE), 4)]
    m.target.root.add_subregion_overlap(PAGE, io(ANY, "in between", PAGE), 1)
    assert list(iommu.translate(at(0), 3 * PAGE, BOTH)) == [MappedRange(at(0), 3 * PAGE)]
    with pytest.raises(CannotResolve, match=r"0x9000\+0x2 .* nothing is mapped there"):
        iommu.translate(at(DEVICE + PAGE - 2), 4, BOTH)
    with pytest.raises(CannotResolve, match=f"{RAM_SIZE:#x}\\+0x1 .* nothing is mapped there"):
        iommu.translate(at(RAM_SIZE - 1), 2, NO)


# -- meant to differ -------------------------------------------------------------------------------


def test_an_access_that_is_refused_in_part_is_not_done_in_part() -> None:
    """Differs from QEMU, which does what it may and says that something failed."""
    m = machine({0: (0, RW), 2: (1, RW)})
    face, before, start = m.face(), m.ram(), WINDOW + PAGE - 2
    with pytest.raises(IommuError):
        face.write(b"x" * (PAGE + 4), at(start))
    assert m.ram() == before
    assert m.table.asked == [(PAGE - 2, WO), (PAGE, WO)], "nothing is asked behind a refusal"
    assert refused(face, start, PAGE + 4, READ) == (WINDOW + PAGE, PAGE + 2, "it may not be read")
    assert m.space.write(start, b"x" * (PAGE + 4)) == DECODE_ERROR
    assert m.ram()[PAGE - 2 : PAGE + 3] == b"xxxx" + before[PAGE + 2 : PAGE + 3]


def test_an_address_with_nothing_behind_it_is_the_backends_error() -> None:
    """Differs from QEMU, where it is the same MEMTX_DECODE_ERROR."""
    m = machine({0: (3, RW), 1: (5, RW)})
    face = m.face()
    assert targets(face, WINDOW + PAGE, 4, BOTH) == [(5 * PAGE, 4)]
    assert not face.check_range(at(WINDOW + PAGE), 4, READ)
    with pytest.raises(InvalidGuestAddress) as caught:
        face.write(b"lost", at(WINDOW + PAGE))
    assert caught.value.addr == at(5 * PAGE)
    assert face.write(b"part", at(WINDOW + PAGE - 2)) == 2
    assert m.space.write(WINDOW + PAGE, b"lost") == DECODE_ERROR


def test_reading_and_writing_at_once_must_lead_to_one_place() -> None:
    m = machine({0: (0, RO), 1: (1, RW), 2: (2, WO)})
    face = m.face()
    assert targets(face, WINDOW + PAGE, 4, BOTH) == [(PAGE, 4)]
    assert refused(face, WINDOW, 4, BOTH)[2] == "it may not be written"
    assert refused(face, WINDOW + 2 * PAGE, 4, BOTH)[2] == "it may not be read"
    for page in range(3):  # one permission is enough for an access that wants none
        assert targets(face, WINDOW + page * PAGE, 4, NO) == [(page * PAGE, 4)]
    m.table.asked.clear()
    face.check_range(at(WINDOW), 4, NO)
    face.check_range(at(WINDOW + 2 * PAGE), 4, NO)
    assert m.table.asked == [(0, RO), (2 * PAGE, RO), (2 * PAGE, WO)], "no more than it needs"
    usual = m.table.translate

    def by_direction(region: MemoryRegion, addr: int, access: int, index: int) -> object:
        return usual(region, addr ^ PAGE * (access == WO), RW, index)

    m.table.tables = ({0: (0, RW), 1: (1, RW)},)
    m.table.translate = by_direction  # type: ignore[method-assign,assignment]
    assert targets(face, WINDOW, 4, READ) == [(0, 4)]
    assert targets(face, WINDOW, 4, WRITE) == [(PAGE, 4)]
    assert refused(face, WINDOW, 4, BOTH)[2] == "what is read there is not what is written there"

    def finer_for_writes(region: MemoryRegion, addr: int, access: int, index: int) -> object:
        m.table.mask = 0xFF if access == WO else PAGE - 1
        return usual(region, addr, RW, index)

    m.table.translate = finer_for_writes  # type: ignore[method-assign,assignment]
    assert targets(face, WINDOW, 0x100, BOTH) == [(0, 0x100)]
    assert refused(face, WINDOW, 0x180, BOTH)[:2] == (WINDOW + 0x100, 0x80)


def test_the_last_byte_of_the_space() -> None:
    """Differs from QEMU, where it is translated as any other; an Iotlb cannot hold it."""
    m = machine({(TOP - 1) // PAGE: (0, RW)})
    root = MemoryRegion.iommu("all of it", TOP, m.table)
    space = AddressSpace("device", root, topology=m.target.topology)
    assert space.read(TOP - 8, 8) == (0, m.ram()[PAGE - 8 : PAGE])
    iommu = ModelIommu(space, m.target)
    assert list(iommu.translate(at(TOP - 8), 7, READ)) == [MappedRange(at(PAGE - 8), 7)]
    for start, length in ((TOP - 8, 8), (TOP - 1, 1), (TOP - 1, 2)):
        with pytest.raises(CannotResolve, match="does not reach 2\\^64"):
            iommu.translate(at(start), length, READ)
    assert list(iommu.translate(at(TOP - 1), 0, READ)) == []


def test_a_write_is_remembered_where_the_device_made_it() -> None:
    """Differs from QEMU, which remembers the memory: here it is the I/O address."""
    m = machine({0: (2, RW)})
    bitmap = AtomicBitmap(WINDOW + PAGE, PAGE)
    face = m.face()
    memory = IommuMemory(face.get_backend(), face.iommu(), True, bitmap)
    memory.write_slice(b"data", at(WINDOW))
    assert bitmap.is_addr_set(WINDOW) and not bitmap.is_addr_set(2 * PAGE)
    assert m.ram()[2 * PAGE : 2 * PAGE + 4] == b"data"


# -- where it cannot say ---------------------------------------------------------------------------


def test_what_is_past_the_iommu_has_no_address_behind_it() -> None:
    m = machine({})
    face = m.face()
    assert m.space.read(OWN, 4) == (0, bytes(4)), "the bus's own memory, which QEMU reaches"
    assert refused(face, OWN, 4, READ) == (OWN, 4, "it leads past the IOMMU, to 'own'")
    assert refused(face, 0x9_0000_0000, 1, NO)[2] == "nothing is mapped there"
    shifted = MemoryRegion.container_of("shifted", TOP)
    shifted.add_subregion(PAGE, MemoryRegion.alias_of("ram", m.target.root, 0, PAGE))
    moved = ModelIommu(AddressSpace("moved", shifted, topology=m.target.topology), m.target)
    with pytest.raises(CannotResolve, match="past the IOMMU, to 'ram'"):
        moved.translate(at(PAGE), 4, READ)
    instead = AddressSpace("instead", ram(PAGE, "another"), topology=m.target.topology)
    with pytest.raises(CannotResolve, match="past the IOMMU, to 'another'"):
        ModelIommu(instead, m.target).translate(at(0), 4, READ)


def test_another_space_than_the_target() -> None:
    m = machine({0: (0, RW)})
    other_root = MemoryRegion.container_of("other", TOP)
    other_root.add_subregion(0, ram(PAGE, "there"))
    m.table.target = AddressSpace("other", other_root, topology=m.target.topology)
    assert refused(m.face(), WINDOW, 4, READ)[2] == (
        "it leads to <AddressSpace 'other' over 'other'>, not to"
        " <AddressSpace 'memory' over 'system'>")


def test_iommus_that_are_not_set_up() -> None:
    m = machine({0: (WINDOW // PAGE, RW)})
    face = m.face()
    m.bus.add_subregion(0, MemoryRegion.iommu("mute", 0x1000))
    assert misconfigured(face, 0) == "IOMMU region 'mute' has no callbacks"
    m.table.target = m.space
    assert "more than 64 IOMMUs" in misconfigured(face, WINDOW)


def test_no_access_asks_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_iommu, "MAX_STEPS", 3)
    m = machine({page: (0, RW) for page in range(8)})
    face = m.face()
    assert len(targets(face, WINDOW, 3 * PAGE, READ)) == 3
    assert refused(face, WINDOW, 4 * PAGE, READ) == (
        WINDOW + 3 * PAGE, PAGE, "an access is at most 3 translations")


def test_what_it_is_between() -> None:
    m = machine({})
    assert repr(m.face().iommu()) == "<ModelIommu from 'bus' to 'memory'>"
