"""virtio on real QEMU: queues followed through every transport, defects of the model found.

Each machine gets programs of the recipes, right and wrong ones. Everything must match: what lands
in memory byte by byte, what reaches other devices, and which notifies leave no line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random

import pytest

from qemuglue.errors import ProgramError
from qemuglue.memory.rules import Rules
from qemuglue.program.recipes.recipe import Recipe, scratch_of
from qemuglue.program.recipes.virtio import VirtioNotifyRecipe, VirtioRecipe
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode
from qemuglue.witness import settling
from qemuglue.witness.dma import virtio_blk, virtio_buffers, virtio_device, virtio_ring
from qemuglue.witness.judge import Judgement, Kind, Scene, prepare, replay, resolve
from qemuglue.witness.lockstep import LockStep, Stop
from qemuglue.witness.session import Knowledge
from qemuglue.witness.verdict import Kind as Row
from qemuglue.witness.verdict import Tally, Verdict

pytestmark = pytest.mark.qemu

NULL = ("-blockdev", "driver=null-co,node-name=d,size=1048576,read-zeroes=on")
BLK = "virtio-blk-pci,drive=d,serial=hello"
MMIO = (*NULL, "-device", "virtio-blk-device,drive=d,serial=hello", "-device", "virtio-rng-device")

#: Name to (machine, set-up, arguments, mode, programs).
CASES = {
    "both": ("x86_64/q35", "dma", (*NULL, "-device", BLK), VmMode.STOPPED, 8),
    "direct": ("x86_64/q35", "dma",
               (*NULL, "-device", f"{BLK},ioeventfd=off,disable-legacy=on"), VmMode.STOPPED, 8),
    "legacy": ("x86_64/q35", "dma", (*NULL, "-device", f"{BLK},disable-modern=on"),
               VmMode.STOPPED, 8),
    "random": ("x86_64/q35", "dma", ("-device", "virtio-rng-pci"), VmMode.PARKED, 8),
    "unmastered": ("x86_64/q35", "pci", (*NULL, "-device", BLK), VmMode.STOPPED, 8),
    "virt": ("aarch64/virt", "", MMIO, VmMode.STOPPED, 8),
    "modern virt": ("aarch64/virt", "", ("-global", "virtio-mmio.force-legacy=false", *MMIO),
                    VmMode.STOPPED, 8),
    "microvm": ("x86_64/microvm", "", MMIO, VmMode.STOPPED, 8),
}


@cache
def stage(build: Build, case: str) -> Scene:
    machine, setup, args, mode, _ = CASES[case]
    target, name = machine.split("/")
    if target not in build.targets():
        pytest.skip(f"{build.name} has no {target}")
    config = QemuConfig(
        build=build, target=target, machine=name, args=args, mode=mode, ram="32M")
    made = Scene(config, Knowledge(), setup)
    assert prepare(made) == []
    return made


def run(scene: Scene, seed: int, programs: int, *, slow: bool = False) -> Tally:
    """Programs of the recipes on one QEMU, as long as a device is followed."""
    tally, rng = Tally(), Random(seed)
    recipes: tuple[Recipe, ...] = (*[VirtioRecipe()] * 4, VirtioNotifyRecipe())
    with scene.session() as session:
        lockstep = LockStep(session, tally=tally, slow=slow, full_ram_every=50)
        done = 0
        while done < programs:
            layout = session.layout()
            scratch = scratch_of(layout, rng)
            assert scratch is not None
            try:
                drawn = rng.choice(recipes).operations(rng, layout, scratch)
            except ProgramError:
                continue  # the RAM it may use was not enough
            done += 1
            end = lockstep.run(resolve(layout, drawn))
            assert end.stop is Stop.DONE, (done, end.suspicion, end.error)
    return tally


def follows(build: Build, case: str) -> None:
    cells = run(stage(build, case), 11, CASES[case][4]).cells
    assert cells[Row.DMA, Verdict.MATCH] > 0
    adopted = cells[Row.DMA, Verdict.ADOPTED]
    assert (adopted > 0) == (case == "random"), "only random numbers are adopted"


@pytest.mark.parametrize("case", ["both", "virt"])
def test_requests_are_followed_on_every_build(build: Build, case: str) -> None:
    follows(build, case)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("both", "virt")])
def test_requests_are_followed_through_every_transport(newest_build: Build, case: str) -> None:
    follows(newest_build, case)


def test_the_slow_judge_says_the_same(newest_build: Build) -> None:
    scene = stage(newest_build, "both")
    fast, slow = run(scene, 5, 5), run(scene, 5, 5, slow=True)
    assert fast.cells == slow.cells
    assert fast.verbs == slow.verbs


PROGRAM = """\
# qemuglue program 1
machine x86_64/q35
args {args}
setup dma
writeb virtio-pci-common-virtio-blk+0x14 0x0
writeb virtio-pci-common-virtio-blk+0x14 0x3
writel virtio-pci-common-virtio-blk+0x8 0x1
writel virtio-pci-common-virtio-blk+0xc 0x1
writeb virtio-pci-common-virtio-blk+0x14 0xb
writew virtio-pci-common-virtio-blk+0x18 0x8
writel virtio-pci-common-virtio-blk+0x20 0x200000
writel virtio-pci-common-virtio-blk+0x28 0x201000
writel virtio-pci-common-virtio-blk+0x30 0x202000
writew virtio-pci-common-virtio-blk+0x1c 0x1
writeb virtio-pci-common-virtio-blk+0x14 0xf
write @0x203000 0x08000000000000000000000000000000
write @0x200000 0x00302000000000001000000001000100
write @0x200010 0x00402000000000001400000003000200
write @0x200020 0x00502000000000000100000002000000
write @0x201000 0x000001000000
writew virtio-pci-notify-virtio-blk+0x0 0x0
read @0x204000 0x8
readl @0x202008
"""


def judged(build: Build, *, case: str = "both", slow: bool = False) -> Judgement:
    scene = stage(build, case)
    return replay(scene, parse(PROGRAM.format(args=" ".join(scene.config.args))), slow=slow)


def test_a_disk_tells_its_serial_number_and_the_notify_leaves_no_line(build: Build) -> None:
    for slow in (False, True):
        assert judged(build, slow=slow).kind is Kind.NONE


Push = Callable[[virtio_ring.SplitRing, virtio_ring.Queue, virtio_ring.Chain, int], None]


def _longer(push: Push) -> Push:
    def changed(
        self: virtio_ring.SplitRing, queue: virtio_ring.Queue, chain: virtio_ring.Chain, size: int
    ) -> None:
        push(self, queue, chain, size + 1)

    return changed


def _ahead(push: Push) -> Push:
    def changed(
        self: virtio_ring.SplitRing, queue: virtio_ring.Queue, chain: virtio_ring.Chain, size: int
    ) -> None:
        queue.used_index += 1
        push(self, queue, chain, size)

    return changed


def _forgotten(push: Push) -> Push:
    def changed(
        self: virtio_ring.SplitRing, queue: virtio_ring.Queue, chain: virtio_ring.Chain, size: int
    ) -> None:
        """Nothing is given back: what QEMU writes into the used ring is a stray write."""

    return changed


@pytest.mark.parametrize("defect", [_longer, _ahead, _forgotten])
def test_a_wrong_used_ring_is_found(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch, defect: Callable[[Push], Push]
) -> None:
    monkeypatch.setattr(virtio_ring.SplitRing, "push", defect(virtio_ring.SplitRing.push))
    monkeypatch.setattr(settling, "PATIENCE_S", 0.2)
    assert judged(newest_build).kind is Kind.DIVERGENCE


def test_data_one_byte_early_are_found(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def early(segments: list[virtio_buffers.Segment], start: int, data: bytes) -> int:
        return virtio_buffers.scatter(segments, start, data[1:])

    monkeypatch.setattr(virtio_blk, "scatter", early)
    monkeypatch.setattr(settling, "PATIENCE_S", 0.2)
    assert judged(newest_build).kind is Kind.DIVERGENCE


def test_an_ioeventfd_that_the_model_forgets_is_found(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rules, "swallowed", lambda *_: False)
    assert judged(newest_build).kind is Kind.DIVERGENCE


def test_an_ioeventfd_that_qemu_does_not_have_is_found(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = virtio_device.VirtioDevice.start_ioeventfd

    def always(self: virtio_device.VirtioDevice) -> None:
        object.__setattr__(self.traits, "ioeventfd", True)
        start(self)

    monkeypatch.setattr(virtio_device.VirtioDevice, "start_ioeventfd", always)
    assert judged(newest_build, case="direct").kind is Kind.DIVERGENCE


TESTDEV = """\
# qemuglue program 1
machine x86_64/q35
args -device pci-testdev
setup pci
writeb pci-testdev-mmio+0x0 0x1
writeb pci-testdev-mmio+0x801 0x55
writel pci-testdev-mmio+0x801 0x55
writeb pci-testdev-mmio+0x800 0x55
writeb pci-testdev-mmio+0x0 0x2
writeb pci-testdev-mmio+0x802 0x55
writeb pci-testdev-mmio+0x802 0xfa
writew pci-testdev-mmio+0x802 0xfa
outb pci-testdev-portio+0x0 0x1
outb pci-testdev-portio+0x84 0x7
outb pci-testdev-portio+0x0 0x2
outb pci-testdev-portio+0x85 0x7
outb pci-testdev-portio+0x85 0xfa
outb pci-testdev-portio+0x0 0xff
outb pci-testdev-portio+0x85 0xfa
"""


def test_every_ioeventfd_of_pci_testdev_is_known(build: Build) -> None:
    program = parse(TESTDEV)
    scene = Scene(QemuConfig(
        build=build, target="x86_64", machine="q35", args=("-device", "pci-testdev"), ram="16M",
    ), Knowledge(), "pci")
    assert prepare(scene) == []
    for slow in (False, True):
        tally = Tally()
        assert replay(scene, program, tally=tally, slow=slow).kind is Kind.NONE
        assert not tally.reasons, tally.reasons
        assert sum(tally.cells.values()) == len(program.operations)
