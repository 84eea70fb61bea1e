"""A device's DMA through QEMU's IOMMUs, whose registers and tables the model follows.

Thousands of requests of a virtio disk through mappings that change: what the model says of every
one must be what QEMU did, stale translations and recorded faults included. Every rule is left
out once, to see that it is found.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest
from intel_guest import HEADER, IOTLB, IVA, IntelGuest
from iommu_rig import Rig
from real_stage import VGA, stage
from smmu_guest import SmmuGuest, smmu_rig
from virtio_disk import TRACE
from virtio_driver import DEVICE, DRIVE, SERIAL, Buffer, VirtioBlk

from qemuglue.campaign.settings import Settings, scene
from qemuglue.memory.iommu import IommuAccess
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.iommu import IntelIommuRecipe, VirtioIommuRecipe
from qemuglue.program.recipes.recipe import Recipe, Scratch, ram_write, scratch_of
from qemuglue.program.recipes.smmu import SmmuRecipe
from qemuglue.program.recipes.virtio import COMMON, NOTIFY
from qemuglue.program.recipes.virtio_rings import Buffer as RingBuffer
from qemuglue.program.recipes.virtio_rings import Rings
from qemuglue.program.recipes.virtio_transport import ACCESS_PLATFORM, VERSION_1, Modern
from qemuglue.qemu.builds import Build
from qemuglue.witness.iommu import intel, intel_walk, smmu, smmu_walk, virtio
from qemuglue.witness.judge import Scene, prepare, resolve
from qemuglue.witness.lockstep import LockStep, Stop
from qemuglue.witness.session import Session
from qemuglue.witness.verdict import Kind as Row
from qemuglue.witness.verdict import Tally, Verdict

pytestmark = pytest.mark.qemu


@contextmanager
def intel_rig(build: Build, options: str = "aw-bits=39") -> Iterator[Rig]:
    device = f"{DEVICE},iommu_platform=on"
    with stage(
        build, f"intel-iommu,{options}", "edu", VGA, device, args=DRIVE, trace=TRACE
    ) as on:
        blk = VirtioBlk(on.qtest, on.session.mirror)
        blk.master()
        yield Rig(on, blk, intel.make, intel.REGION)


@pytest.mark.parametrize(("options", "four_levels"), [
    ("aw-bits=39", False), ("aw-bits=48,caching-mode=on", True),
    ("aw-bits=48,device-iotlb=on,snoop-control=on,intremap=on", False),
])
def test_a_careless_guest_of_intel_iommu(build: Build, options: str, four_levels: bool) -> None:
    """Every access of every request, every stale page, every recorded fault."""
    with intel_rig(build, options) as rig:
        guest = IntelGuest(rig, Random(f"{options} 1"), four_levels)
        guest.start()
        guest.run(25)
        assert guest.bad == []


def test_a_page_invalidation_forgets_what_qemu_forgets(build: Build) -> None:
    """Before 9.1 the address mask is kept in 8 bits: a page that was not meant is forgotten."""
    with intel_rig(build) as rig:
        guest = IntelGuest(rig, Random(1))
        guest.start()
        near, far = 0x3000, 0x10_3000
        for meant, pages_log in ((near, 0), (far, 0), (near, 9)):
            for page, entry in ((near, 0x4_0003), (far, 0x5_0003)):
                guest.page(page, entry)
            guest.write(IOTLB, 1 << 63 | 1 << 60, 8)
            ask = (Buffer(HEADER, 16), Buffer(near, 8, write=True), Buffer(far, 13, write=True))
            assert guest.demand(ask)
            for page, entry in ((near, 0x6_0003), (far, 0x7003)):
                guest.page(page, entry)
            guest.write(IVA, meant | pages_log, 8)
            guest.write(IOTLB, 1 << 63 | 3 << 60 | 1 << 32, 8)
            assert guest.demand(ask)
        assert guest.bad == []


# -- wrong models are found -----------------------------------------------------------------------


def _patched(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *args, **kw: change(function(*args, **kw))


def _all_permissions(leaf: intel_walk.Leaf | intel_walk.Fault) -> object:
    if isinstance(leaf, intel_walk.Fault):
        return leaf
    return intel_walk.Leaf(leaf.entry, leaf.level, True, True)


def _never(*_: object) -> None:
    return None


_context = intel.IntelIommu._context


def _fresh_context(iommu: intel.IntelIommu, *args: Any) -> object:
    iommu.contexts.clear()
    return _context(iommu, *args)


DEFECTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "permissions of the upper levels ignored": lambda patch: patch.setattr(
        intel, "walk", _patched(intel_walk.walk, _all_permissions)),
    "a large page is small": lambda patch: patch.setattr(
        intel_walk, "page_mask", lambda level: 0xFFF),
    "reserved bits ignored": lambda patch: patch.setattr(intel_walk, "reserved", lambda *_: 0),
    "nothing is stale": lambda patch: patch.setattr(intel.IntelIommu, "_cached", _never),
    "contexts are not kept": lambda patch: patch.setattr(
        intel.IntelIommu, "_context", _fresh_context),
    "page invalidations ignored": lambda patch: patch.setattr(
        intel.IntelIommu, "_forget_pages", _never),
    "interrupts are like all memory": lambda patch: patch.setattr(
        intel_walk, "INTERRUPTS", range(0)),
    "faults are not recorded": lambda patch: patch.setattr(intel.IntelIommu, "_record", _never),
}


def noticed(guest: IntelGuest | SmmuGuest, requests: int) -> bool:
    """Whether one of so many requests goes otherwise than the model says."""
    guest.start()
    for _ in range(requests):
        guest.run(1)
        if guest.bad:
            return True
    return False


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_the_intel_model_is_found(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    DEFECTS[defect](monkeypatch)
    with intel_rig(newest_build) as rig:
        guest = IntelGuest(rig, Random(2))
        assert noticed(guest, 300), f"{defect}: nobody noticed"


# -- Arm's ----------------------------------------------------------------------------------------

STAGE_2_SINCE = (8, 1)


@pytest.mark.parametrize(("granule", "stage", "options"), [
    (12, 1, {}), (14, 1, {"two_levels": True}), (16, 1, {}), (12, 2, {"concatenated": True}),
    (14, 2, {}), (16, 2, {"two_levels": True}), (12, 3, {}), (16, 3, {}),
])
def test_a_careless_guest_of_smmuv3(
    build: Build, granule: int, stage: int, options: dict[str, bool]
) -> None:
    """Every access, every record in the event queue, every command."""
    if "aarch64" not in dict(build.binaries):
        pytest.skip("this build has no aarch64")
    if stage != 1 and build.version_tuple < STAGE_2_SINCE:
        pytest.skip("it has no second stage")
    with smmu_rig(build) as rig:
        guest = SmmuGuest(rig, Random(f"{granule} {stage}"), granule, stage, **options)
        guest.start()
        guest.run(12)
        assert guest.bad == []


def _no_permissions(walker: smmu_walk.Walker, *args: Any) -> object:
    found = _first(walker, *args)
    if isinstance(found, smmu_walk.Entry):
        return replace(found, perm=IommuAccess.RW)
    return found


_first = smmu_walk.Walker._first
SMMU_DEFECTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "permissions ignored": lambda patch: patch.setattr(
        smmu_walk.Walker, "_first", _no_permissions),
    "nothing is stale": lambda patch: patch.setattr(smmu_walk.Walker, "_cached", _never),
    "a page's size is that of the level below": lambda patch: patch.setattr(
        smmu_walk, "shift_of", lambda level, granule: granule + (2 - level) * (granule - 3)
        if level < 3 else granule),
    "configurations are not kept": lambda patch: patch.setattr(
        smmu.Smmu, "streams", property(lambda self: {}, _never), raising=False),
    "commands are not performed": lambda patch: patch.setattr(smmu, "perform", lambda *_: 0),
    "faults are not recorded": lambda patch: patch.setattr(smmu.Smmu, "_record", _never),
}


@pytest.mark.parametrize("defect", SMMU_DEFECTS)
def test_a_defect_of_the_smmu_model_is_found(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    SMMU_DEFECTS[defect](monkeypatch)
    with smmu_rig(newest_build) as rig:
        guest = SmmuGuest(rig, Random(2))
        assert noticed(guest, 200), f"{defect}: nobody noticed"


# -- programs, as campaigns draw them --------------------------------------------------------------

DISK = f"{DEVICE},iommu_platform=on"


@cache
def programs_scene(build: Build, iommu: str) -> Scene:
    made = scene(Settings(
        build=build.name, devices=(iommu, "edu", DISK), qemu_args=DRIVE, setup="dma"))
    assert prepare(made) == []
    return made


@pytest.mark.parametrize("iommu", ["intel-iommu", "virtio-iommu-pci"])
def test_programs_with_an_iommu(build: Build, iommu: str) -> None:
    """Recipes through the lock step: nothing parts, nothing is lost, and DMA was judged."""
    recipe: Recipe = IntelIommuRecipe() if "intel" in iommu else VirtioIommuRecipe()
    rng, tally = Random(1), Tally()
    with programs_scene(build, iommu).session() as session:
        run = LockStep(session, tally=tally)
        for _ in range(8):
            layout = session.layout()
            scratch = scratch_of(layout, rng)
            assert scratch is not None
            end = run.run(resolve(layout, recipe.operations(rng, layout, scratch)))
            assert end.stop is Stop.DONE, end
        lost = [each.device.lost for each in session.following.followers.values()]
        assert not any(lost), lost
    assert tally.cells[Row.DMA, Verdict.MATCH] > 5
    assert not tally.cells[Row.DMA, Verdict.ADOPTED]


def behind_probes(session: Session, scratch: Scratch) -> list[Operation]:
    """Probes, and requests behind them in the same notify that have less room for the answer."""
    [common] = [each for each in session.layout().ranges() if each.region == VIRTIO_IOMMU]
    transport = Modern(common, NOTIFY + "virtio-iommu", 4)
    rings = Rings(*(scratch.take(512, 256) for _ in range(3)), 16)
    ops = [*transport.start(VERSION_1 | 0x7F), *transport.queue(0, rings)]
    ops += [ram_write(rings.avail, bytes(4)), ram_write(rings.used, bytes(4))]
    ops += transport.status(0xF)
    probe, detach = struct.pack("<B3xI64x", 5, 0x10), struct.pack("<B3xII8x", 2, 1, 0x18)
    for data, room in ((probe, 516), (detach, 4), (detach, 8), (probe, 600), (detach, 4)):
        at, to = scratch.take(len(data), 8), scratch.take(room, 8)
        ops += [ram_write(at, data), Operation("memset", Place(None, 0, to), room, 0xEE)]
        ops += rings.chain(
            scratch, [RingBuffer(at, len(data)), RingBuffer(to, room, True)], indirect=False)
    return [*ops, rings.publish(), *transport.notify(0)]


VIRTIO_IOMMU = f"{COMMON}virtio-iommu"


@pytest.mark.parametrize("defect", [False, True])
def test_what_follows_a_probe_is_answered_by_itself(
    build: Build, monkeypatch: pytest.MonkeyPatch, defect: bool
) -> None:
    """Each answer has its own size. Planted: behind a probe it has the probe's."""
    answer, after = virtio.VirtioIommu._answer, [False]

    def as_long_as_the_probe(iommu: virtio.VirtioIommu, chain: Any) -> bytes:
        found = answer(iommu, chain)
        after[0] |= len(found) > 4
        return found.ljust(516, b"\0") if after[0] else found

    if defect:
        monkeypatch.setattr(virtio.VirtioIommu, "_answer", as_long_as_the_probe)
    with programs_scene(build, "virtio-iommu-pci").session() as session:
        tally = Tally()
        ops = behind_probes(session, Scratch(0x20_0000, 0x1_0000))
        run = LockStep(session, tally=tally)
        end = run.run(resolve(session.layout(), ops))
        assert (end.stop is Stop.DONE) is not defect, end
        if not defect:
            assert tally.cells[Row.DMA, Verdict.MATCH] == 1
            assert not any(each.device.lost for each in session.following.followers.values())


@cache
def smmu_scene(build: Build) -> Scene:
    made = scene(Settings(
        build=build.name, machine="aarch64/virt", mode="parked", setup="dma",
        devices=("edu,dma_mask=0xffffffff", f"{DISK},disable-legacy=on", "e1000e"),
        qemu_args=(*DRIVE, "-machine", "iommu=smmuv3")))
    assert prepare(made) == []
    return made


def _stale(device: smmu.Smmu, *args: Any) -> int:
    return 0


@pytest.mark.parametrize("defect", [False, True])
def test_programs_with_an_smmu(
    build: Build, monkeypatch: pytest.MonkeyPatch, defect: bool
) -> None:
    """Devices behind it, through tables that programs write. Planted: what it is told to forget
    it keeps."""
    if "aarch64" not in build.targets():
        pytest.skip("this build has no aarch64")
    if defect:
        monkeypatch.setattr(smmu, "perform", _stale)
    rng, tally, recipe = Random(1), Tally(), SmmuRecipe()
    seen: Counter[IommuAccess] = Counter()
    translate = smmu.Smmu.translate

    def counted(device: smmu.Smmu, *args: Any) -> Any:
        entry = translate(device, *args)
        seen[entry.perm] += 1
        return entry

    monkeypatch.setattr(smmu.Smmu, "translate", counted)
    with smmu_scene(build).session() as session:
        run = LockStep(session, tally=tally)
        for _ in range(40 if defect else 10):
            layout = session.layout()
            scratch = scratch_of(layout, rng)
            assert scratch is not None
            end = run.run(resolve(layout, recipe.operations(rng, layout, scratch)))
            if end.stop is not Stop.DONE:
                break
        lost = [each.device.lost for each in session.following.followers.values()
                if each.device.name == smmu.Smmu.name and each.device.lost]
        if defect:
            assert end.stop is not Stop.DONE or lost, "a stale translation, or a register's word"
            return
        assert end.stop is Stop.DONE and not lost, (end, lost)
    assert tally.cells[Row.DMA, Verdict.MATCH] > 20
    assert seen[IommuAccess.RW] > 20 and seen[IommuAccess.NONE] > 20, seen


WINDOW, BEHIND = 0x500_0000, 0x30_0000


def disk_writes(session: Session, addr: int, scratch: Scratch) -> list[Operation]:
    """The disk writes the first byte of its serial number to an I/O address: the first MiB of
    RAM's second is mapped as it is, and a page at ``WINDOW`` to ``BEHIND``."""
    layout = session.layout()
    at = {each.region: each for each in layout.ranges() if each.region.startswith(COMMON)}
    functions = session.buses()[0]["devices"]  # type: ignore[index]
    [disk] = [each for each in functions if each["id"]["device"] == 0x1042]
    ops: list[Operation] = []
    transports: dict[str, Modern] = {}
    rings: dict[str, list[Rings]] = {}
    for kind, queues in (("virtio-iommu", 2), ("virtio-blk", 1)):
        transport = transports[kind] = Modern(at[COMMON + kind], NOTIFY + kind, 4)
        ops += transport.start(VERSION_1 | (ACCESS_PLATFORM if queues == 1 else 0x7F))
        rings[kind] = [Rings(*(scratch.take(256, 256) for _ in range(3)), 8) for _ in range(queues)]
        for index, each in enumerate(rings[kind]):
            ops += transport.queue(index, each)
            ops += [ram_write(each.avail, bytes(4)), ram_write(each.used, bytes(4))]
        ops += transport.status(0xF)
        if queues == 2:
            for data in (
                struct.pack("<B3xIII4x", 1, 1, disk["slot"] << 3, 0),
                struct.pack("<B3xIQQQI", 3, 1, 0x10_0000, 0x1F_FFFF, 0x10_0000, 3),
                struct.pack("<B3xIQQQI", 3, 1, WINDOW, WINDOW + 0xFFF, BEHIND, 3),
            ):
                request, answer = scratch.take(64, 64), scratch.take(8, 8)
                ops.append(ram_write(request, data))
                ops += rings[kind][0].chain(scratch, [
                    RingBuffer(request, len(data)), RingBuffer(answer, 4, True)], indirect=False)
            ops += [rings[kind][0].publish(), *transport.notify(0)]
    header, rest = scratch.take(16, 16), scratch.take(24, 8)
    ops.append(ram_write(header, struct.pack("<IIQ", 8, 0, 0)))
    ops += rings["virtio-blk"][0].chain(scratch, [
        RingBuffer(header, 16), RingBuffer(addr, 1, True), RingBuffer(rest, 20, True),
    ], indirect=False)
    return [*ops, rings["virtio-blk"][0].publish(), *transports["virtio-blk"].notify(0)]


def test_the_byte_before_a_mapping_of_virtio_iommu(build: Build) -> None:
    """QEMU seeks a mapping for two bytes, so the byte before one is let through, to the byte
    before its memory."""
    with programs_scene(build, "virtio-iommu-pci").session() as session:
        scratch, written = Scratch(0x10_0000, 0x8_0000), set[int]()
        for addr, lands in (
            (WINDOW - 2, None), (WINDOW + 0x1000, None), (WINDOW, BEHIND),
            (WINDOW + 0xFFF, BEHIND + 0xFFF), (WINDOW - 1, BEHIND - 1),
        ):
            ops = disk_writes(session, addr, scratch)
            assert LockStep(session).run(resolve(session.layout(), ops)).stop is Stop.DONE
            found = session.process.qtest.read_bytes(BEHIND - 16, 0x1020)
            written |= {lands} if lands is not None else set()
            assert {BEHIND - 16 + at for at, byte in enumerate(found) if byte} == written
            assert {found[at - BEHIND + 16] for at in written} <= {SERIAL[0]}
