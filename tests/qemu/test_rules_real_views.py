"""R17 on real QEMU: which spaces share a view, and how often the views are drawn.

``info mtree -f`` lists the spaces of each view; the trace event ``flatview_new`` fires for each
view that is drawn. QEMU draws one view for each root that is really shown, once for every
outermost commit that has something to show: so a guest's register write gives a whole number of
rounds, and the model, which makes the same changes to its own tree, must make as many.
Source: ``hw/pci/pci.c`` ``pci_update_mappings`` (each BAR is taken out and put back by itself),
``pci_default_write_config`` (bus mastering), ``hw/pci-host`` (the PAM segments in one
transaction), ``hw/pci/pci_bridge.c`` ``pci_bridge_update_mappings`` (all windows in one).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest

from qemuglue.memory import AddressSpace, FlatView, MemoryRegion
from qemuglue.memory import topology as topology_module
from qemuglue.memory.rcu import Rcu
from qemuglue.memory.topology import Topology
from qemuglue.mirror import Mirror
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.events import Kind, parse
from qemuglue.qemu.mtree import FLAT_COMMAND, parse_flat
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu

DEVICES = (
    "-device", "edu,addr=4", "-device", "pci-testdev,addr=5", "-device", "virtio-rng-pci,addr=6",
    "-device", "pci-bridge,id=bridge,chassis_nr=1,addr=7", "-device", "edu,bus=bridge,addr=1",
)
IOMMU = ("-device", "intel-iommu", "-device", "edu,addr=4")
MACHINES = [
    ("x86_64", "q35", DEVICES), ("x86_64", "pc", DEVICES), ("x86_64", "microvm", ()),
    ("x86_64", "q35", IOMMU), ("aarch64", "virt", ("-device", "edu")),
    ("aarch64", "raspi3b", ()), ("arm", "versatilepb", ()),
]


def started(
    build: Build, target: str, machine: str, args: tuple[str, ...], *, transcript: bool = False
) -> QemuProcess:
    if target not in build.targets():
        pytest.skip(f"build {build.name} has no target {target}")
    return QemuProcess(QemuConfig(
        build=build, target=target, machine=machine, args=args, transcript=transcript,
    ))


def model_of(mirror: Mirror) -> list[AddressSpace]:
    """The mirror's tree with spaces of one topology over it, the two that QEMU makes first in
    front."""
    topology = Topology(rcu=Rcu())
    order = sorted(mirror.spaces, key=lambda each: each.name not in ("memory", "I/O"))
    return [AddressSpace(each.name, each.root, topology=topology) for each in order]


Sharing = Counter[tuple[str, ...]]


def sharing_of_model(spaces: list[AddressSpace]) -> Sharing:
    """The groups of space names that have one view; spaces that show nothing are one group."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for space in spaces:
        groups[id(space.view)].append(f"{space.name} {space.root.name}")
    return Counter(tuple(sorted(group)) for group in groups.values())


def sharing_of_qemu(text: str) -> Sharing:
    return Counter(
        tuple(sorted(f"{space.name} {space.root}" for space in view.spaces))
        for view in parse_flat(text)
    )


@pytest.mark.parametrize(("target", "machine", "args"), MACHINES)
def test_spaces_share_views(
    build: Build, target: str, machine: str, args: tuple[str, ...]
) -> None:
    with started(build, target, machine, args) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        qemus = sharing_of_qemu(qemu.monitor.hmp(FLAT_COMMAND))
    assert mirror.exact
    assert sharing_of_model(model_of(mirror)) == qemus
    assert any(len(group) > 1 for group in qemus) or machine == "raspi3b", "nothing is shared"


def test_sharing_by_the_root_alone_is_seen(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(newest_build, "x86_64", "q35", DEVICES) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        qemus = sharing_of_qemu(qemu.monitor.hmp(FLAT_COMMAND))
    monkeypatch.setattr(topology_module, "view_root", lambda root: root)
    assert sharing_of_model(model_of(mirror)) != qemus


# -- transactions ---------------------------------------------------------------------------------


class Rounds:
    """What was drawn: the model's roots or QEMU's pointers, in order."""

    def __init__(self, drawn: list[object]) -> None:
        self.roots = len(set(drawn))
        self.count, rest = divmod(len(drawn), self.roots) if drawn else (0, 0)
        first = drawn[: self.roots]
        # Every round draws each root once, in the same order.
        self.regular = not rest and drawn == first * self.count

    def __repr__(self) -> str:
        return f"{self.count} rounds of {self.roots}{'' if self.regular else ', irregular'}"


class Twins:
    """A QEMU, and the model of it that changes by its own means."""

    def __init__(self, qemu: QemuProcess, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.qemu = qemu
        self.machine = machine
        self.drawn: list[object] = []
        for slot, bars in ((EDU, (0xFE00_0000,)), (TESTDEV, (0xFD00_0000, 0xC000))):
            for bar, value in enumerate(bars):
                self.config(slot, 0x10 + 4 * bar, value)
            self.config(slot, 0x04, 0x3, 2)
        self.mirror = Mirror.take(qemu.monitor.hmp)
        assert self.mirror.exact
        self.spaces = model_of(self.mirror)
        self.topology = self.spaces[0].topology
        for region in self.mirror.regions:  # what no text says until it is in sight
            if region.name == "pam-rom":
                region.set_readonly(True)
            if region.name in ("pci_bridge_pci", "pci_bridge_io") and region.alias is None:
                region.terminates = False
        right = topology_module.render

        def render(root: MemoryRegion | None, *, rcu: Rcu) -> FlatView:
            if root is not None:  # QEMU has one empty view for ever
                self.drawn.append(root)
            return right(root, rcu=rcu)

        monkeypatch.setattr(topology_module, "render", render)

    def config(self, slot: int, register: int, value: int, size: int = 4) -> Rounds:
        """A write to a configuration register; what QEMU drew."""
        q = self.qemu.qtest
        q.outl(0xCF8, 0x8000_0000 | slot << 11 | register & ~3)
        self.qemu.transcript.read_new()
        write = {1: q.outb, 2: q.outw, 4: q.outl}[size]
        write(0xCFC + (register & 3), value)
        return Rounds([
            event.mr for event in parse(self.qemu.transcript.read_new())
            if event.kind is Kind.FLATVIEW_NEW
        ])

    # -- the model's tree ----------------------------------------------------------------------

    def region(self, name: str) -> MemoryRegion:
        [found] = [region for region in self.mirror.regions if region.name == name]
        return found

    @property
    def master(self) -> MemoryRegion:
        """The alias that lets the test device reach memory."""
        [root] = [space.root for space in self.spaces if space.name == "pci-testdev"]
        [alias] = root.subregions
        return alias

    def move(self, name: str, addr: int | None) -> None:
        """Take a BAR out, and put it elsewhere."""
        region = self.region(name)
        parent = region.container
        assert parent is not None
        parent.del_subregion(region)
        if addr is not None:
            parent.add_subregion_overlap(addr, region, 1)

    def pam(self, *modes: str) -> None:
        """The first segments from 0xc0000 on, in one transaction; each alias in use goes off
        before another, or itself, goes on."""
        with self.topology.transaction():
            for number, wanted in enumerate(modes):
                start = 0xC_0000 + 0x4000 * number
                aliases = [
                    region for region in self.region("system").subregions
                    if region.name.startswith("pam-") and region.addr == start
                ]
                for alias in aliases:
                    if alias.enabled:
                        alias.set_enabled(False)
                for alias in aliases:
                    assert alias.alias is not None
                    if alias.name == wanted and alias.alias.name == "pc.ram":
                        alias.set_enabled(True)

    def window(self, addr: int, size: int) -> None:
        """The bridge's memory window, in one transaction with its others."""
        with self.topology.transaction():
            for name in ("pci_bridge_io", "pci_bridge_mem", "pci_bridge_pref_mem"):
                for alias in [each for each in self.mirror.regions if each.name == name]:
                    parent = alias.container
                    if alias.alias is None or parent is None:
                        continue
                    where = addr if name == "pci_bridge_mem" else alias.addr
                    parent.del_subregion(alias)
                    if name == "pci_bridge_mem":
                        alias.set_size(size)
                        alias.set_alias_offset(addr)
                    parent.add_subregion_overlap(where, alias, 1)


#: Registers of the PAM segments at 0xc0000 and 0xc4000, by machine.
PAM = {"q35": 0x91, "pc": 0x5A}
EDU, TESTDEV, BRIDGE = 4, 5, 7


def run(twins: Twins) -> list[str]:
    """One change after the other on both; where they differ, in sentences."""
    found: list[str] = []

    def step(what: str, rounds: int, qemu: Rounds, act: Callable[[], None]) -> None:
        twins.drawn.clear()
        act()
        model = Rounds(twins.drawn)
        if (qemu.count, qemu.regular) != (rounds, True):
            found.append(f"{what}: {rounds} rounds expected, QEMU drew {qemu}")
        if repr(model) != repr(qemu):
            found.append(f"{what}: the model drew {model}, QEMU {qemu}")
        now = Mirror.take(twins.qemu.monitor.hmp)
        ours, theirs = shown(twins.spaces), shown(now.spaces)
        if ours != theirs:
            found.append(f"{what}: the model shows something else than QEMU: "
                         f"{ours - theirs}, {theirs - ours}")

    config = twins.config
    step("a BAR moves", 2, config(EDU, 0x10, 0xFB00_0000), lambda: twins.move(
        "edu-mmio", 0xFB00_0000))
    step("a BAR is written as it is", 0, config(EDU, 0x10, 0xFB00_0000), lambda: None)
    step("bus mastering begins", 1, config(TESTDEV, 4, 7, 2), lambda: twins.master.set_enabled(
        True))
    step("bus mastering goes on", 0, config(TESTDEV, 4, 7, 2), lambda: twins.master.set_enabled(
        True))

    def all_off() -> None:
        twins.move("pci-testdev-mmio", None)
        twins.move("pci-testdev-portio", None)
        twins.master.set_enabled(False)

    step("two BARs and bus mastering end", 3, config(TESTDEV, 4, 0, 2), all_off)
    pam = PAM[twins.machine]
    step("two segments become RAM", 1, config(0, pam, 0x33, 1), lambda: twins.pam(
        "pam-ram", "pam-ram"))
    step("they stay RAM", 1, config(0, pam, 0x33, 1), lambda: twins.pam("pam-ram", "pam-ram"))
    step("one becomes read-only", 1, config(0, pam, 0x13, 1), lambda: twins.pam(
        "pam-ram", "pam-rom"))
    step("a window is set, still off", 1, config(BRIDGE, 0x20, 0xFC00_FC00), lambda: twins.window(
        0, 0))

    step("a bridge forwards", 1, config(BRIDGE, 4, 2, 2), lambda: twins.window(
        0xFC00_0000, 0x10_0000))
    step("a window grows", 1, config(BRIDGE, 0x20, 0xFC30_FC00), lambda: twins.window(
        0xFC00_0000, 0x40_0000))
    return found


def shown(spaces: list[AddressSpace] | tuple[AddressSpace, ...]) -> Counter[tuple[object, ...]]:
    """Every space with all it shows."""
    return Counter(
        (space.name, *((s.start, s.size, s.region.name, s.offset) for s in space.view.sections))
        for space in spaces
    )


@contextmanager
def twins(build: Build, machine: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Twins]:
    with started(build, "x86_64", machine, DEVICES, transcript=True) as qemu:
        yield Twins(qemu, machine, monkeypatch)


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_views_are_drawn_once_a_commit(
    build: Build, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with twins(build, machine, monkeypatch) as both:
        assert run(both) == []


class _EveryCommit(Topology):
    """Redraws at the end of every transaction, nested or not."""

    def transaction(self) -> AbstractContextManager[object]:  # type: ignore[override]
        return nullcontext()


def test_a_commit_that_is_not_the_outermost_is_seen(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "Topology", _EveryCommit)
    with twins(newest_build, "q35", monkeypatch) as both:
        found = run(both)
    assert any("two segments become RAM: the model drew" in each for each in found)
    assert any("a window grows: the model drew" in each for each in found)
    assert not any("shows something else" in each for each in found)


def test_views_of_their_own_are_seen(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology_module, "view_root", lambda root: root)
    with twins(newest_build, "q35", monkeypatch) as both:
        assert any("a BAR moves: the model drew" in each for each in run(both))
