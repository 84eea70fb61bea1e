"""Listeners on real QEMU: what one of QEMU's own is told at every change of the map.

QEMU's vhost code traces each section that its listener is told of by ``region_add`` or
``region_nop`` (one function serves both), and each commit. The model's listener, on the model's
own tree, must be told of the same sections in the same order, as often. Deletions are not
traced: their order is in QEMU's ``address_space_update_topology_pass``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from real_twins import DEVICES, Twins
from vhost_backend import VhostBackend

from qemuglue.memory import AddressSpace, FlatView, MemoryListener, MemoryRegionSection, register
from qemuglue.memory import space_view as space_module
from qemuglue.memory.topology import Topology
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu

_TOLD = re.compile(
    r"^vhost_(?:reject_section (?P<other>.*):\d+|"
    r"region_add_section (?P<ram>.*): 0x(?P<start>[0-9a-f]+)\+0x(?P<size>[0-9a-f]+) @.*|"
    r"(?P<commit>commit) .*)$", re.MULTILINE)
COMMIT = "commit"


def told_by_qemu(text: str) -> list[str]:
    """What QEMU's listener was told. Of memory that a backend can share it says more than of
    other sections."""
    told = []
    for found in _TOLD.finditer(text):
        if found["commit"]:
            told.append(COMMIT)
        elif found["ram"]:
            told.append(f"{found['ram']} {found['size']} at {found['start']}")
        else:
            told.append(found["other"])
    return told


class Recorder(MemoryListener):
    """Writes down what it is told, in the same words."""

    def __init__(self) -> None:
        super().__init__(10)
        self.told: list[str] = []

    def commit(self) -> None:
        self.told.append(COMMIT)

    def region_add(self, section: MemoryRegionSection) -> None:
        name = section.region.name
        if name == "pc.ram":
            name = f"{name} {section.size:x} at {section.start:x}"
        self.told.append(name)

    def region_nop(self, section: MemoryRegionSection) -> None:
        self.region_add(section)


@contextmanager
def twins(build: Build, folder: Path) -> Iterator[tuple[Twins, Recorder]]:
    with VhostBackend(folder) as backend:
        config = QemuConfig(
            build=build, target="x86_64", machine="q35", ram="64M", ram_id="pc.ram",
            args=(*DEVICES, *backend.args), extra_trace=("vhost_*",),
        )
        with QemuProcess(config) as qemu:
            both = Twins(qemu, "q35")
            recorder = Recorder()
            register(recorder, both.space("memory"))
            yield both, recorder


def run(build: Build, folder: Path) -> list[str]:
    """One change after the other on both; where the two listeners differ."""
    found = []
    with twins(build, folder) as (both, recorder):
        for step in both.steps():
            step.act()
            theirs = told_by_qemu(both.qemu.transcript.read_new().decode())
            recorder.told.clear()
            step.model()
            assert theirs.count(COMMIT) == step.commits, step.what
            if recorder.told != theirs:
                found.append(f"{step.what}: the model's is told {recorder.told}, QEMU's {theirs}")
    return found


def test_a_listener_is_told_of_every_section_at_every_commit(
    build: Build, tmp_path: Path
) -> None:
    assert run(build, tmp_path) == []


def test_a_new_listener_is_told_of_the_present_map(build: Build, tmp_path: Path) -> None:
    """What registering tells is what the next commit tells, when nothing has changed for it."""
    with twins(build, tmp_path) as (both, recorder):
        step = next(step for step in both.steps() if step.what == "bus mastering begins")
        step.act()
        assert recorder.told == told_by_qemu(both.qemu.transcript.read_new().decode())
        assert recorder.told[-1] == COMMIT and "hpet" in recorder.told


Update = Callable[[AddressSpace, Sequence[MemoryRegionSection], FlatView], None]
_right: Update = space_module.update


def _only_news(
    space: AddressSpace, old: Sequence[MemoryRegionSection], new: FlatView
) -> None:
    same = len(old) == len(new.sections) and all(
        before.equals(after) for before, after in zip(old, new.sections, strict=True))
    if not same:
        _right(space, old, new)


def _backwards(
    space: AddressSpace, old: Sequence[MemoryRegionSection], new: FlatView
) -> None:
    for section in reversed(new.sections):
        for listener in space.listeners:
            listener.region_nop(section)


@pytest.mark.parametrize(("wrong", "seen_at"), [
    (_only_news, "bus mastering begins"), (_backwards, "a BAR moves"),
])
def test_a_wrong_update_is_seen(
    newest_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: Update,
    seen_at: str,
) -> None:
    monkeypatch.setattr(space_module, "update", wrong)
    assert any(each.startswith(seen_at) for each in run(newest_build, tmp_path))


def test_a_commit_that_is_not_the_outermost_is_seen(
    newest_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def transaction(topology: Topology) -> AbstractContextManager[None]:
        return nullcontext()

    monkeypatch.setattr(Topology, "transaction", transaction)
    found = run(newest_build, tmp_path)
    assert any(each.startswith("two segments become RAM") for each in found)
