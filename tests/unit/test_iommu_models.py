"""The IOMMUs' models without QEMU: descriptors, tables, caches, queues, mappings."""

from __future__ import annotations

import struct

import pytest

from qemuglue.memory import AddressSpace, MemoryRegion
from qemuglue.memory.iommu import IommuAccess
from qemuglue.witness.dma.device import When
from qemuglue.witness.dma.port import ModelPort
from qemuglue.witness.dma.virtio_device import Traits, VirtioDevice
from qemuglue.witness.iommu import smmu
from qemuglue.witness.iommu.intel import IntelIommu
from qemuglue.witness.iommu.intel_queue import Act, decode
from qemuglue.witness.iommu.intel_walk import Fault, Features, find_context, reserved, walk
from qemuglue.witness.iommu.smmu_queue import Queue
from qemuglue.witness.iommu.tables import blind, functions, on_bus_zero, word
from qemuglue.witness.iommu.virtio import Mapping, VirtioIommu

R, W = IommuAccess.RO, IommuAccess.WO
SIZE = 1 << 20
ROOT, CONTEXT, L3, L2, L1 = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
DISK = 0x18
REGISTERS = MemoryRegion.io("intel_iommu", 0x230)


@pytest.fixture
def memory() -> AddressSpace:
    root = MemoryRegion.ram("ram", SIZE)
    return AddressSpace("memory", root)


def put(memory: AddressSpace, addr: int, *values: int) -> None:
    assert memory.write(addr, struct.pack(f"<{len(values)}Q", *values)) == 0


def tables(memory: AddressSpace) -> None:
    put(memory, ROOT, CONTEXT | 1, 0)
    put(memory, CONTEXT + 16 * DISK, L3 | 1, 1 | 7 << 8)
    put(memory, L3, L2 | 3)
    put(memory, L2, L1 | 3, 0x8_0083)
    put(memory, L1 + 8, 0x7000 | 3, 0x8000 | 1, 0x9000 | 2, 0)


def enabled(memory: AddressSpace) -> IntelIommu:
    tables(memory)
    made = IntelIommu(memory)
    for offset, size, value in ((0x20, 8, ROOT), (0x18, 4, 1 << 30), (0x18, 4, 1 << 31)):
        made.wrote(REGISTERS, offset, size, value)
    return made


def test_an_intel_walk_ends_at_a_page_or_says_why(memory: AddressSpace) -> None:
    tables(memory)
    features = Features()
    context = find_context(memory, ROOT, DISK, features)
    assert not isinstance(context, Fault)
    assert (context.domain, context.levels, context.table) == (7, 3, L3)
    leaf = walk(memory, context, 0x1234, True, features)
    assert not isinstance(leaf, Fault)
    assert (leaf.entry, leaf.mask, leaf.reads, leaf.writes) == (0x7003, 0xFFF, True, True)
    for addr, is_write, reason in (
        (0x2000, True, 5), (0x3000, False, 6), (0x4000, False, 6), (1 << 39, False, 4),
    ):
        assert walk(memory, context, addr, is_write, features) == Fault(reason)
    assert find_context(memory, ROOT, DISK + 8, features) == Fault(2)
    assert find_context(memory, SIZE, DISK, features) == Fault(8)


@pytest.mark.parametrize(("entry", "level", "bad"), [
    (0x1003, 1, 0), (0x803, 1, 0x800), (0x20_0083, 2, 0), (0x20_1083, 2, 0x1000),
    (0x1083, 4, 0x80), (1 << 40 | 3, 1, 1 << 40), (1 << 62 | 3, 1, 1 << 62), (1 << 52 | 3, 1, 0),
])
def test_reserved_bits_of_intel(entry: int, level: int, bad: int) -> None:
    assert reserved(entry, level, Features()) == bad


def test_intel_keeps_what_it_translated_until_told(memory: AddressSpace) -> None:
    iommu = enabled(memory)
    assert iommu.translate(DISK, 0x1080, W).translated_addr == 0x7000
    put(memory, L1 + 8, 0)
    assert iommu.translate(DISK, 0x1080, W).translated_addr == 0x7000, "stale, as in QEMU"
    iommu.wrote(REGISTERS, 0xF0, 8, 0x1000)
    iommu.wrote(REGISTERS, 0xF8, 8, 1 << 63 | 3 << 60 | 7 << 32)
    assert iommu.translate(DISK, 0x1080, W).perm is IommuAccess.NONE
    assert iommu.registers.get(0x34, 4) & 2, "the fault is pending"
    assert iommu.known(0x228, 8) is not None


def test_intel_is_lost_when_a_register_says_otherwise(memory: AddressSpace) -> None:
    iommu = enabled(memory)
    iommu.was_read(REGISTERS, 0x1C, 4, 0xC000_0000)
    assert not iommu.lost
    iommu.was_read(REGISTERS, 0x1C, 4, 0x4000_0000)
    assert "0x40000000" in iommu.lost
    bound = MemoryRegion.io("vtd-03.0-dmar", SIZE)
    space = AddressSpace("disk", bound)
    iommu.bind([bound], [])
    assert "vtd-03.0-dmar" in blind(space)
    iommu.unbind()
    assert "not modelled" in blind(space)


def test_the_queue_of_intel_writes_its_status(memory: AddressSpace) -> None:
    iommu = enabled(memory)
    iommu.translate(DISK, 0x1000, R)
    put(memory, 0xA000, 2 | 1 << 4, 0, 5 | 0x20 | 0xABCD << 32, 0xB000)
    for offset, size, value in ((0x90, 8, 0xA000), (0x18, 4, 1 << 31 | 1 << 26), (0x88, 8, 0x20)):
        iommu.wrote(REGISTERS, offset, size, value)
    iommu.act(ModelPort(memory))
    assert not iommu.pages
    assert word(memory, 0xB000) == 0xABCD
    assert iommu.registers.get(0x80) == 0x20


@pytest.mark.parametrize(("low", "high", "version", "act"), [
    (1 | 1 << 4, 0, (7, 2), Act.ALL_CONTEXTS), (1 | 3 << 4, 0, (10, 0), Act.CONTEXT),
    (1, 0, (10, 0), Act.ERROR), (2 | 3 << 4, 18, (10, 0), Act.PAGES),
    (2 | 3 << 4, 19, (10, 0), Act.ERROR), (5 | 0x20, 4, (7, 2), Act.STATUS),
    (5 | 0x20, 2, (7, 2), Act.ERROR), (7, 0, (7, 2), Act.NOTHING), (7, 0, (10, 0), Act.ERROR),
    (4 | 1 << 9, 0, (7, 2), Act.NOTHING), (4 | 1 << 9, 0, (10, 0), Act.ERROR),
])
def test_descriptors(low: int, high: int, version: tuple[int, ...], act: Act) -> None:
    assert decode(low, high, version).act is act


def test_an_smmu_queue_tells_full_from_empty() -> None:
    queue = Queue(16)
    queue.set_base(0x4000_0000 | 2, resize=True)
    assert queue.empty and not queue.full
    for _ in range(4):
        queue.produced()
    assert queue.full and not queue.empty
    assert queue.address(queue.prod) == 0x4000_0000, "it wrapped"
    queue.consumed()
    queue.fail(2)
    assert (queue.cons, queue.waiting(queue.prod)) == (1 | 2 << 24, 3)


SMMU_REGISTERS = MemoryRegion.io(smmu.REGION, 0x2_0000)
COMMANDS, EVENTS, STREAMS = 0x1_0000, 0x2_0000, 0x3_0000


def smmu_on(memory: AddressSpace, *, lost: str = "") -> smmu.Smmu:
    """After a reset of the machine; it was lost before that if ``lost`` says why."""
    made = smmu.Smmu(memory)
    made.lost = lost
    made.reset()
    if lost:
        made.revived(lost)
    return made


def tell(device: smmu.Smmu, *writes: tuple[int, int, int]) -> None:
    for offset, size, value in writes:
        device.wrote(SMMU_REGISTERS, offset, size, value)
    if device.when() is When.NOW:
        device.act(ModelPort(device.memory))


def ask(device: smmu.Smmu) -> None:
    device.translate(DISK, 0x1000, R)


BASES = ((smmu.STRTAB, 8, STREAMS), (smmu.STRTAB_CFG, 4, 6), (smmu.CMDQ, 8, COMMANDS | 3),
         (smmu.EVENTQ, 8, EVENTS | 3))
ON = smmu.ENABLE | smmu.EVENTS_ON | smmu.COMMANDS_ON


def test_an_smmu_keeps_its_bases_in_a_reset(memory: AddressSpace) -> None:
    device = smmu_on(memory)
    tell(device, *BASES)
    device.reset()
    tell(device, (smmu.CR0, 4, ON))
    ask(device)
    assert not device.lost
    assert memory.read(EVENTS, 1) == (0, b"\x04"), "a stream table entry that is not valid"


@pytest.mark.parametrize("forgotten", [None, *range(4)])
def test_an_smmu_that_was_lost_does_not_guess_its_bases(
    memory: AddressSpace, forgotten: int | None
) -> None:
    """What it was told while nobody followed is still there after a reset."""
    device = smmu_on(memory, lost="missed something")
    assert not device.lost
    tell(device, *(each for at, each in enumerate(BASES) if at != forgotten))
    tell(device, (smmu.CR0, 4, ON))
    ask(device)
    assert bool(device.lost) is (forgotten is not None)
    device.reset()
    assert not device.lost


def test_half_a_base_of_an_smmu_is_not_enough(memory: AddressSpace) -> None:
    device = smmu_on(memory, lost="missed something")
    tell(device, (smmu.CMDQ, 4, COMMANDS | 3), (smmu.CR0, 4, smmu.COMMANDS_ON))
    assert "while it was not followed" in device.lost
    device = smmu_on(memory, lost="missed something")
    tell(device, (smmu.CMDQ, 4, COMMANDS | 3), (smmu.CMDQ + 4, 4, 0),
         (smmu.CR0, 4, smmu.COMMANDS_ON))
    assert not device.lost


def test_more_commands_than_can_be_waited_for(memory: AddressSpace) -> None:
    device = smmu_on(memory)
    tell(device, (smmu.CMDQ, 8, COMMANDS | 19))
    for offset, data, floods in (
        (smmu.CMDQ_PROD, b"\0\x10\0\0", False), (smmu.CMDQ_PROD, b"\1\x10\0\0", True),
        (smmu.CMDQ_PROD + 0x1_0000, b"\1\x10\0\0", True), (smmu.EVENTQ, b"\1\x10\0\0", False),
        (smmu.CMDQ_PROD - 4, bytes(4) + b"\1\x10\0\0", True), (smmu.GBPA, b"\xff" * 4, False),
    ):
        assert device.floods(SMMU_REGISTERS, offset, data) is floods, hex(offset)
        assert device.kicks(SMMU_REGISTERS, offset, data) or not floods
    tell(device, (smmu.CMDQ, 8, COMMANDS | 3))
    assert not device.floods(SMMU_REGISTERS, smmu.CMDQ_PROD, b"\1\x10\0\0")
    assert device.floods(SMMU_REGISTERS, smmu.CMDQ, bytes(8) + b"\1\x10\0\0"), "in one write"


def virtio(memory: AddressSpace) -> VirtioIommu:
    made = VirtioIommu(memory, (10, 0), bypass=False)
    VirtioDevice(Traits("virtio-iommu", (10, 0), (4, 4), 1 << 32, False), made, memory)
    made.functions.add(DISK)
    return made


def test_mappings_of_virtio_iommu(memory: AddressSpace) -> None:
    iommu = virtio(memory)
    assert iommu._attach(struct.pack("<B3xIII4x", 1, 1, DISK + 1, 0)) == 6, "no such function"
    assert iommu._attach(struct.pack("<B3xIII4x", 1, 1, DISK, 0)) == 0
    assert iommu._map(struct.pack("<B3xIQQQI", 3, 1, 0x5000, 0x5FFF, 0x9000, 1)) == 0
    assert iommu._map(struct.pack("<B3xIQQQI", 3, 1, 0x5800, 0x67FF, 0, 3)) == 4, "one is there"
    assert iommu.translate(DISK, 0x5010, R).translated_addr == 0x9000
    assert iommu.translate(DISK, 0x5010, W).perm is IommuAccess.NONE
    before = iommu.translate(DISK, 0x4FFF, R)
    assert (before.iova, before.translated_addr, before.perm) == (0x4000, 0x8000, R), "a bug"
    assert iommu.translate(DISK, 0x4FFE, R).perm is IommuAccess.NONE
    assert iommu._unmap(struct.pack("<B3xIQQ4x", 4, 1, 0x5000, 0x57FF)) == 5, "part of one"
    assert iommu._unmap(struct.pack("<B3xIQQ4x", 4, 1, 0, (1 << 64) - 1)) == 0
    assert iommu.translate(DISK, 0x5010, R).perm is IommuAccess.NONE


def test_two_mappings_side_by_side_are_not_guessed(memory: AddressSpace) -> None:
    iommu = virtio(memory)
    iommu._attach(struct.pack("<B3xIII4x", 1, 1, DISK, 0))
    iommu.domains[1].mappings += [Mapping(0, 0xFFF, 0, 3), Mapping(0x1000, 0x1FFF, 0x8000, 3)]
    assert iommu.translate(DISK, 0xFFE, R).perm is R
    iommu.translate(DISK, 0xFFF, R)
    assert "side by side" in iommu.device.lost


def test_who_is_behind_a_bridge_is_not_guessed() -> None:
    buses = [{"devices": [
        {"bus": 0, "slot": 3, "function": 0, "qdev_id": "a"},
        {"bus": 0, "slot": 4, "function": 0, "pci_bridge": {"devices": [
            {"bus": 1, "slot": 5, "function": 1}, {"slot": "?"}]}},
    ]}, 7]
    found = functions(buses)
    assert [(each.requester, each.behind) for each in found] == [
        (0x18, False), (0x20, False), (0x129, True)]
    assert on_bus_zero(found, 0x18) == 0x18
    assert on_bus_zero(found, 0x29) is None
