"""vm-memory's IommuMemory over a running QEMU's RAM, and a disk whose DMA goes the same way.

A guest sets up the tables of an Intel IOMMU. What the disk moves through them inside QEMU is what
the face moves through ``ModelIommu``: all of QEMU's main memory is compared with a copy to which
the face wrote what the disk was to write.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from intel_guest import IOTLB, LEVEL1, IntelGuest
from iommu_rig import Rig
from real_stage import stage
from virtio_driver import DEVICE, DRIVE, GET_ID, SERIAL, Buffer, Rings, VirtioBlk, table

from qemuglue.memory import Le64
from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import IommuError
from qemuglue.memory.guest_memory.collection import GuestRegionCollection
from qemuglue.memory.guest_memory.iommu import CannotResolve
from qemuglue.memory.guest_memory.iommu_memory import IommuMemory
from qemuglue.memory.guest_memory.model_iommu import ModelIommu
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.guest_memory.region import GuestRegion
from qemuglue.memory.section_backing import section_backing
from qemuglue.qemu.backings import SharedBacking
from qemuglue.qemu.builds import Build
from qemuglue.qemu.libc import differing_ranges
from qemuglue.witness.iommu import intel, intel_walk
from qemuglue.witness.iommu.intel_walk import Leaf

pytestmark = pytest.mark.qemu

READ, WRITE = Permissions.Read, Permissions.Write
PAGE = 0x1000
#: I/O page -> (frame, permissions as the table has them). What is not here is not mapped.
PAGES = {
    0x3000: (0x4_0000, 3), 0x4000: (0x6_0000, 3), 0x5000: (0x5_0000, 3), 0x6000: (0x4_1000, 2),
    0x7000: (0x7000, 1), 0x9000: (0x8000, 3),
}
UNMAPPED = 0x8000
#: The header lies across a seam, and so do the first answers.
HEADER, STATUS, RINGS = 0x3FF8, 0x9100, Rings()
#: What GET_ID answers: 20 bytes, and that it worked.
ANSWER, WORKED = SERIAL + b"\0", b"\0"

Memory = IommuMemory[GuestRegionCollection[GuestRegion], ModelIommu]


class Bench:
    """The disk, QEMU's RAM, and the face on it."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.blk = rig, rig.blk
        process = rig.on.session.process
        assert process.ram is not None
        self.ram = process.ram.view
        system = rig.system
        [main] = {each.region for each in system.view.sections if each.region.name == "pc.ram"}
        self.shared = main.backing = SharedBacking(process.ram)
        backend = GuestRegionCollection.from_regions([
            GuestRegion(each.start, section_backing(system, each))
            for each in system.view.sections if each.region is main and not each.readonly
        ])
        self.memory: Memory = IommuMemory(
            backend, ModelIommu(rig.on.space("virtio-blk-pci"), system))

    def map(self, page: int, frame: int, permissions: int) -> None:
        """An entry of the table, written by the face."""
        entry = Le64(frame | permissions)
        self.memory.get_backend().write_obj(entry, GuestAddress(LEVEL1 + 8 * (page // PAGE)))

    def invalidate(self) -> None:
        """All pages, in QEMU and in the model."""
        command = 1 << 63 | 1 << 60
        self.rig.on.qtest.writeq(self.rig.base + IOTLB, command)
        self.rig.device.wrote(self.rig.region, IOTLB, 8, command)

    def forget(self, iova: int) -> None:
        """One page, in the model alone."""
        assert isinstance(self.rig.device, intel.IntelIommu)
        pages = self.rig.device.pages
        for key in [key for key, page in pages.items() if page.frame == iova // PAGE]:
            del pages[key]

    def copy(self) -> Memory:
        """The same addresses, the same IOMMU, and a copy of the memory."""
        regions = []
        for each in self.memory.get_backend().iter():
            start = each.start_addr().raw_value()
            data = bytearray(self.ram[start : start + each.len()])
            regions.append(GuestRegion(start, ByteBacking(data)))
        return self.memory.with_replaced_backend(GuestRegionCollection.from_regions(regions))

    def targets(self, iova: int, size: int, access: Permissions) -> list[tuple[int, int]]:
        """Where the face says that a range is."""
        found = self.memory.iommu().translate(GuestAddress(iova), size, access)
        return [(each.base.raw_value(), each.length) for each in found]

    def refused(self, iova: int, size: int, access: Permissions) -> int:
        """The first byte of it that the face refuses."""
        with pytest.raises(IommuError) as caught:
            self.memory.get_slices(GuestAddress(iova), size, access)
        assert isinstance(caught.value.error, CannotResolve)
        return caught.value.error.iova_range.base.raw_value()

    def differing(self, other: Memory) -> list[int]:
        """Pages of main memory that are not as in ``other``."""
        found = set()
        for region in other.get_backend().iter():
            start, backing = region.start_addr().raw_value(), region.backing
            assert isinstance(backing, ByteBacking)
            theirs = memoryview(backing.data)
            for at, size in differing_ranges(self.ram[start : start + len(theirs)], theirs):
                at += start
                found |= set(range(at & -PAGE, at + size, PAGE))
        return sorted(found)

    def ask(self, answer: int) -> Memory:
        """The disk's serial number to ``answer``; a copy of what memory was before."""
        memory, rings = self.memory, RINGS
        buffers = (
            Buffer(HEADER, 16), Buffer(answer, 20, write=True), Buffer(STATUS, 1, write=True))
        for addr, data in (
            (HEADER, GET_ID), (STATUS, b"\xff"), (rings.desc, table(buffers)),
            (rings.avail, struct.pack("<HHH", 1, 1, 0)), (rings.used, bytes(12)),
        ):
            memory.write_slice(data, GuestAddress(addr))
        assert self.blk.start(rings, iommu=True, vector=False)
        before = self.copy()
        self.blk.kick()
        assert not self.blk.broken
        for addr, data in ((STATUS, WORKED), (rings.used + 2, struct.pack("<HII", 1, 0, 21))):
            before.write_slice(data, GuestAddress(addr))
        return before


@pytest.fixture(scope="module")
def on(build: Build) -> Iterator[Bench]:
    device = f"{DEVICE},iommu_platform=on"
    with stage(build, "intel-iommu,aw-bits=39", device, args=DRIVE) as staged:
        blk = VirtioBlk(staged.qtest, staged.session.mirror)
        blk.master()
        rig = Rig(staged, blk, intel.make, intel.REGION)
        guest = IntelGuest(rig, Random(1))
        guest.start()
        assert guest.bad == []
        made = Bench(rig)
        try:
            for page in range(0x3000, 24 * PAGE, PAGE):
                made.map(page, *PAGES.get(page, (0, 0)))
            made.invalidate()
            yield made
        finally:
            made.shared.close()


@pytest.mark.parametrize(("answer", "parts"), [
    (0x3100, [(0x4_0100, 20)]),
    (0x3FFA, [(0x4_0FFA, 6), (0x6_0000, 14)]),
    (0x4FF0, [(0x6_0FF0, 16), (0x5_0000, 4)]),
    (0x22_0000, [(0x22_0000, 20)]),
], ids=["one page", "a seam", "another seam", "a large page"])
def test_what_the_disk_writes_is_where_the_face_finds_it(
    on: Bench, answer: int, parts: list[tuple[int, int]]
) -> None:
    where, found = GuestAddress(answer), bytearray(20)
    assert on.targets(answer, 20, WRITE) == parts
    copy = on.ask(answer)
    copy.write_slice(ANSWER, where)
    assert on.differing(copy) == []
    on.memory.read_slice(found, where)
    assert found == ANSWER
    told = b"".join(on.rig.on.qtest.read_bytes(addr, size) for addr, size in parts)
    assert told == ANSWER, "qtest finds it where the face says that it is"


def test_a_page_that_is_only_written(on: Bench) -> None:
    where = GuestAddress(0x6100)
    copy = on.ask(0x6100)
    copy.write_slice(ANSWER, where)
    assert on.differing(copy) == []
    assert on.ram[0x4_1100:0x4_1114] == ANSWER
    assert on.refused(0x6100, 20, READ) == 0x6100


@pytest.mark.parametrize("answer", [UNMAPPED, 0x7800, 0xFEE0_0000, 1 << 39], ids=hex)
def test_what_the_iommu_refuses_the_disk_does_not_write_either(on: Bench, answer: int) -> None:
    """Not mapped, read only, the interrupts' window that no table changes, too high."""
    copy = on.ask(answer)
    assert not copy.check_range(GuestAddress(answer), 20, WRITE)
    assert on.refused(answer, 20, WRITE) == answer
    assert on.differing(copy) == []


def test_what_is_refused_in_part_the_disk_writes_in_part(on: Bench) -> None:
    """Differs: QEMU goes on page by page, IommuMemory does all of an access or nothing."""
    answer = UNMAPPED - 0x1000 - 6  # the end of a page to write to, then one to read only
    copy = on.ask(answer)
    with pytest.raises(IommuError):
        copy.write_slice(ANSWER, GuestAddress(answer))
    assert on.refused(answer, 20, WRITE) == 0x7000
    assert on.differing(copy) == [0x4_1000]
    copy.write_slice(ANSWER[:6], GuestAddress(answer))
    assert on.differing(copy) == []


def test_a_page_that_nobody_forgot_is_as_stale_in_the_face(on: Bench) -> None:
    first, second = 0x9_0000, 0x8_0000
    page, where = 0xA000, GuestAddress(0xA010)
    on.map(page, first, 3)
    copy = on.ask(0xA010)
    copy.write_slice(ANSWER, where)
    on.map(page, second, 3)
    copy = on.ask(0xA010)
    copy.write_slice(ANSWER, where)
    assert on.differing(copy) == [] and on.targets(0xA010, 20, WRITE) == [(first + 0x10, 20)]
    on.invalidate()
    copy = on.ask(0xA010)
    assert on.targets(0xA010, 20, WRITE) == [(second + 0x10, 20)]
    assert on.ram[second + 0x10 : second + 0x24] == ANSWER
    copy.write_slice(ANSWER, where)
    assert on.differing(copy) == []


_walk = intel_walk.walk


def _frame_astray(*args: Any) -> object:
    found = _walk(*args)
    return replace(found, entry=found.entry ^ PAGE) if isinstance(found, Leaf) else found


def _all_allowed(memory: Any, context: Any, addr: int, is_write: bool, features: Any) -> object:
    found = _walk(memory, context, addr, False, features)
    return replace(found, writes=True) if isinstance(found, Leaf) else found


@pytest.mark.parametrize(
    ("wrong", "answer"), [(_frame_astray, 0x5100), (_all_allowed, 0x7800)],
    ids=["a frame astray", "permissions ignored"],
)
def test_a_wrong_translation_is_noticed(
    on: Bench, monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., object], answer: int
) -> None:
    monkeypatch.setattr(intel, "walk", wrong)
    # The header and the rings stay known as they are: only the answer is looked for anew.
    on.forget(answer)
    try:
        copy = on.ask(answer)
        copy.write_slice(ANSWER, GuestAddress(answer))
        assert on.differing(copy), "nobody noticed"
    finally:
        on.invalidate()
