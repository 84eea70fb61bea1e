"""A device's DMA through QEMU's IOMMUs, whose registers and tables the model follows.

Thousands of requests of a virtio disk through mappings that change: what the model says of every
one must be what QEMU did, stale translations and recorded faults included. Every rule is left
out once, to see that it is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from intel_guest import HEADER, IOTLB, IVA, IntelGuest
from iommu_rig import Rig
from real_stage import VGA, stage
from smmu_guest import SmmuGuest, smmu_rig
from virtio_disk import TRACE
from virtio_driver import DEVICE, DRIVE, Buffer, VirtioBlk

from qemuglue.memory.iommu import IommuAccess
from qemuglue.qemu.builds import Build
from qemuglue.witness.iommu import intel, intel_walk, smmu, smmu_walk

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
        guest.run(40)
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


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_the_intel_model_is_found(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    DEFECTS[defect](monkeypatch)
    with intel_rig(newest_build) as rig:
        guest = IntelGuest(rig, Random(2))
        guest.start()
        for _ in range(300):
            guest.run(1)
            if guest.bad:
                return
        pytest.fail(f"{defect}: nobody noticed")


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
        guest.run(20)
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
        guest.start()
        for _ in range(200):
            guest.run(1)
            if guest.bad:
                return
        pytest.fail(f"{defect}: nobody noticed")
