"""R17 on real QEMU: which spaces share a view, and how often the views are drawn.

``info mtree -f`` lists the spaces of each view; the trace event ``flatview_new`` fires for each
view that is drawn. QEMU draws one view for each root that is really shown, once for every
outermost commit that has something to show: so a guest's register write gives a whole number of
rounds, and the model, which makes the same changes to its own tree, must make as many.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
from real_twins import DEVICES, Twins, model_of

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


Sharing = Counter[tuple[str, ...]]


def sharing_of_model(spaces: Sequence[AddressSpace]) -> Sharing:
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
    assert any(len(group) > 1 for group in qemus), "nothing is shared: this shows nothing"


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
    """What was drawn, in order: the model's roots, or QEMU's pointers to its own."""

    def __init__(self, drawn: Sequence[object]) -> None:
        self.roots = len(set(drawn))
        self.count, rest = divmod(len(drawn), self.roots) if drawn else (0, 0)
        # Every round draws each root once, in the same order.
        self.regular = not rest and list(drawn) == list(drawn[: self.roots]) * self.count

    def __repr__(self) -> str:
        return f"{self.count} rounds of {self.roots}{'' if self.regular else ', irregular'}"


def run(build: Build, machine: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One change after the other on both; where they differ, in sentences."""
    drawn: list[object] = []
    right = topology_module.render

    def render(root: MemoryRegion | None, *, rcu: Rcu) -> FlatView:
        if root is not None:  # QEMU has one empty view for ever
            drawn.append(root)
        return right(root, rcu=rcu)

    found: list[str] = []
    with started(build, "x86_64", machine, DEVICES, transcript=True) as qemu:
        twins = Twins(qemu, machine)
        monkeypatch.setattr(topology_module, "render", render)
        for step in twins.steps():
            step.act()
            theirs = Rounds([
                event.mr for event in parse(qemu.transcript.read_new())
                if event.kind is Kind.FLATVIEW_NEW
            ])
            drawn.clear()
            step.model()
            ours = Rounds(drawn)
            if (theirs.count, theirs.regular) != (step.commits, True):
                found.append(f"{step.what}: {step.commits} rounds expected, QEMU drew {theirs}")
            if repr(ours) != repr(theirs):
                found.append(f"{step.what}: the model drew {ours}, QEMU {theirs}")
            if wrong := twins.wrong_views():
                found.append(f"{step.what}: the views differ: {wrong}")
    return found


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_views_are_drawn_once_a_commit(
    build: Build, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(build, machine, monkeypatch) == []


def test_a_commit_that_is_not_the_outermost_is_seen(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change commits by itself."""
    def transaction(topology: Topology) -> AbstractContextManager[None]:
        return nullcontext()

    monkeypatch.setattr(Topology, "transaction", transaction)
    found = run(newest_build, "q35", monkeypatch)
    assert any("two segments become RAM: the model drew" in each for each in found)
    assert any("a window grows: the model drew" in each for each in found)
    assert not any("the views differ" in each for each in found)


def test_views_of_their_own_are_seen(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology_module, "view_root", lambda root: root)
    found = run(newest_build, "q35", monkeypatch)
    assert any("a BAR moves: the model drew" in each for each in found)
