"""The model draws a real machine's new map before it sees QEMU's: for every kind of change."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from remaps import HOTPLUG, PCI_DEVICES, Board, Ports

from qemuglue.mirror import Mirror, RefreshResult, known, moves
from qemuglue.mirror import model as model_room
from qemuglue.mirror.watch import Watch
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.events import parse
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu

#: Every kind of change is done until it has changed the map so often; many writes change
#: nothing, so it may take so many.
ENOUGH, TRIES = 2, 60
#: After these, devices do not decode.
RESETS = {"reset", "hotplug"}
#: Then so many of any kind, those included that change nothing most of the time.
MIXED = 24
#: How long QEMU may take to let go of a device for good (RCU).
DELETED_TIMEOUT_S = 20.0

ON_MAC = ("-device", "pci-testdev", "-device", "virtio-rng-pci", "-device", "VGA")
MACHINES = [
    ("x86_64", "q35", (*PCI_DEVICES, *HOTPLUG)),
    ("x86_64", "pc", (*PCI_DEVICES, "-m", "128,slots=8,maxmem=2G")),
    ("aarch64", "virt", PCI_DEVICES), ("arm", "virt", PCI_DEVICES), ("ppc", "mac99", ON_MAC),
]


def started(
    build: Build, target: str, machine: str, args: tuple[str, ...], *, transcript: bool = False
) -> QemuProcess:
    if target not in build.targets():
        pytest.skip(f"build {build.name} has no target {target}")
    return QemuProcess(QemuConfig(
        build=build, target=target, machine=machine, args=args, transcript=transcript,
    ))


def told(result: RefreshResult) -> list[str]:
    return [*map(str, result.differences), *result.learnt.facts]


def without_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing were known by name."""
    for table, empty in (("KNOWN_ANSWERS", {}), ("KNOWN_READONLY", {})):
        monkeypatch.setattr(model_room, table, empty)


@pytest.mark.parametrize(("target", "machine", "args"), MACHINES)
def test_every_kind_of_change_is_predicted(
    build: Build, target: str, machine: str, args: tuple[str, ...]
) -> None:
    rng = Random(4)
    with started(build, target, machine, args) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        board = Board(qemu, mirror, rng)
        assert mirror.refresh(qemu.monitor.hmp).exact
        changed: Counter[str] = Counter()

        def change(kind: str) -> None:
            board.kinds[kind]()
            result = mirror.refresh(qemu.monitor.hmp)
            assert result.predicted and result.exact, (kind, told(result))
            changed[kind] += result.changed

        off = True
        for kind in board.kinds:
            for _ in board.decode_all() if off else ():
                assert mirror.refresh(qemu.monitor.hmp).predicted
            off = kind in RESETS
            for _ in range(TRIES):
                if changed[kind] < ENOUGH:
                    change(kind)
            assert changed[kind], kind
        board.kinds |= board.rarely
        for kind in rng.choices(list(board.kinds), k=MIXED):
            change(kind)
        fresh = Mirror.take(qemu.monitor.hmp)
        assert fresh.exact and views_of(fresh) == views_of(mirror)


def views_of(mirror: Mirror) -> list[tuple[str, list[tuple[int, int, str, int, bool]]]]:
    return sorted(
        (space.name, [(s.start, s.size, s.region.name, s.offset, s.readonly)
                      for s in space.view.sections])
        for space in mirror.spaces
    )


@pytest.mark.parametrize(("machine", "first"), [("q35", 0x90), ("pc", 0x59)])
def test_what_one_state_taught_holds_in_all_others(
    build: Build, machine: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every PAM segment in every state, forth and back, with nothing known by name."""
    without_known(monkeypatch)
    with started(build, "x86_64", machine, ()) as qemu:
        config = Ports(qemu.qtest)
        mirror = Mirror.take(qemu.monitor.hmp)
        states = [(first + n, value) for n in range(7) for value in (0x11, 0x22, 0x33, 0x00)]
        surprises = 0
        for register, value in states:
            config.write((0, 0), register, value, 1)
            result = mirror.refresh(qemu.monitor.hmp)
            surprises += not result.predicted
            assert result.exact, told(result)
        assert surprises == 1, "the first read-only window teaches what the others are"
        for register, value in states[::-1]:
            config.write((0, 0), register, value, 1)
            result = mirror.refresh(qemu.monitor.hmp)
            assert result.predicted, told(result)


# (name in the tables, what shows it)
KNOWN = [
    ("vga.mmio", "VGA"), ("bochs-display-mmio", "bochs-display"), ("megasas-mmio", "megasas"),
    ("e1000e-flash", "e1000e"), ("igb-flash", "igb"),
    ("pci_bridge_pci", "pci-bridge,chassis_nr=1"), ("pci_bridge_io", "pci-bridge,chassis_nr=1"),
    ("pam-rom", ""),
]


def test_everything_known_is_tried() -> None:
    assert {name for name, _ in KNOWN} == {*known.KNOWN_ANSWERS, *known.KNOWN_READONLY}


@pytest.mark.parametrize(("name", "device"), KNOWN)
def test_what_is_known_by_name_is_so(
    build: Build, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's own views teach the same to a mirror that does not know it, and the one that knows
    has nothing to learn."""
    model = device.split(",")[0]
    with started(build, "x86_64", "q35", ("-device", device) if device else ()) if (
        device == "" or has_device(build, model)
    ) else pytest.skip(f"{build.name} has no {model}") as qemu:
        knowing = Mirror.take(qemu.monitor.hmp)
        with monkeypatch.context() as patch:
            without_known(patch)
            learning = Mirror.take(qemu.monitor.hmp)
        board = Board(qemu, knowing, Random(1))
        at = 0xC000_0000
        for place in board.devices:
            for register, sort, size in place.bars:
                at = -(-at // size) * size
                board.config.write(place.slot, register, at if sort != "io" else 0xC000)
                at += size
            board.config.write(place.slot, 4, 7, 2)
        board.config.write((0, 0), 0x91, 0x11, 1)
        assert knowing.refresh(qemu.monitor.hmp).predicted
        facts = [fact for fact in knowing.known.facts if f"'{name}'" in fact]
        assert facts and not any(f"'{name}'" in fact for fact in knowing.inference.facts)
        with monkeypatch.context() as patch:
            without_known(patch)
            learning.refresh(qemu.monitor.hmp)
            assert learning.exact and not learning.known.total
        assert any(f"'{name}'" in fact for fact in learning.inference.facts)
        # The same bit, the same way round.
        assert {fact.split("' at ")[0] + fact.split(" ", 3)[3] for fact in facts} & {
            fact.split("' at ")[0] + fact.split(" ", 3)[3] for fact in learning.inference.facts
        }


def has_device(build: Build, model: str) -> bool:
    with started(build, "x86_64", "none", ()) as qemu:
        types = qemu.monitor.execute("qom-list-types", {"implements": "pci-device"})
        return any(each["name"] == model for each in types)


# Section: planted defects


class Liar:
    """A monitor whose tree text can be made to say something else."""

    def __init__(self, hmp: Callable[[str], str]) -> None:
        self.hmp = hmp
        self.change: Callable[[str], str] = str

    def __call__(self, line: str) -> str:
        text = self.hmp(line)
        return text if "-f" in line else self.change(text)


EDU = ("-device", "edu")


def test_a_bar_one_page_off_is_seen(build: Build) -> None:
    with started(build, "x86_64", "q35", EDU) as qemu:
        hmp = Liar(qemu.monitor.hmp)
        mirror = Mirror.take(hmp)
        board = Board(qemu, mirror, Random(1))
        [slot] = [one.slot for one in board.devices if board.config.read(one.slot, 0) == 0x11E81234]
        board.config.write(slot, 4, 7, 2)
        hmp.change = lambda text: text.replace(
            "00000000fe000000-00000000fe0fffff (prio 1, i/o): edu",
            "00000000fe001000-00000000fe100fff (prio 1, i/o): edu")
        board.config.write(slot, 0x10, 0xFE00_0000)
        result = mirror.refresh(hmp)
        assert result.changed and not result.predicted and not result.exact
        assert any("edu-mmio" in words for words in told(result))


def test_a_reset_that_is_not_followed_is_seen(build: Build) -> None:
    with started(build, "x86_64", "q35", EDU) as qemu:
        hmp = Liar(qemu.monitor.hmp)
        mirror = Mirror.take(hmp)
        board = Board(qemu, mirror, Random(1))
        board.config.write((0, 0), 0x60, 0xE000_0001)
        assert mirror.refresh(hmp).predicted
        before = qemu.monitor.hmp("info mtree -o -D")
        board.reset()
        hmp.change = lambda text: before
        result = mirror.refresh(hmp)
        assert result.changed and not result.predicted


@pytest.mark.parametrize("followed", [True, False])
def test_an_order_that_is_kept_though_stale_is_seen(
    build: Build, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge's windows put back where they were lie over a BAR that was newer; only the
    order of equals tells."""
    if not followed:
        monkeypatch.setattr(model_room, "overtaking", lambda *_: set())
        monkeypatch.setattr(model_room, "rebuilt", lambda *_: set())
    args = ("-device", "pci-bridge,id=b,chassis_nr=1", *EDU, "-device", "edu,bus=b,addr=1")
    with started(build, "x86_64", "q35", args) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        board = Board(qemu, mirror, Random(1))
        [bridge] = [one.slot for one in board.devices if one.bridge]
        near, far = sorted(one.slot for one in board.devices
                           if board.config.read(one.slot, 0) == 0x11E81234)
        steps = [(bridge, 4, 7), (bridge, 0x20, 0xFE20_FE00), (far, 4, 7), (far, 0x10, 0xFE10_0000),
                 (near, 4, 7), (near, 0x10, 0xFE10_0000), (bridge, 0x1C, 0xF0C0)]
        results = []
        for slot, register, value in steps:
            board.config.write(slot, register, value, 2 if register in (4, 0x1C) else 4)
            results.append(mirror.refresh(qemu.monitor.hmp))
        assert all(result.exact for result in results)
        assert all(result.predicted for result in results[:-1])
        assert results[-1].changed and results[-1].predicted == followed


def test_moves_are_where_the_model_looks_for_them() -> None:
    """What the planted defects replace is what is used."""
    assert model_room.overtaking is moves.overtaking and model_room.rebuilt is moves.rebuilt


# Section: staleness


def test_a_change_behind_the_mirror_is_noticed_at_once(build: Build) -> None:
    with started(build, "x86_64", "pc", EDU, transcript=True) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        watch = Watch(mirror, qemu.monitor.hmp)
        qemu.transcript.read_new()
        config = Ports(qemu.qtest)

        def stale() -> bool:
            watch.hear(event.name for event in qemu.monitor.events())
            return watch.see(parse(qemu.transcript.read_new()))

        for number in range(64):
            qemu.qtest.readl(0xFED0_0000 + 4 * number)
            qemu.qtest.writel(0x1000 + 4 * number, number)
            config.read((0, 3), number & ~3)
        assert not stale() and watch.refresh() is None
        config.write((0, 0), 0x5A, 0x33, 1)
        assert stale() and watch.drawn
        assert mirror.memory.view.lookup(0xC0000).region.name != "pc.ram"
        result = watch.refresh()
        assert result is not None and result.predicted and not stale()
        assert mirror.memory.view.lookup(0xC0000).region.name == "pc.ram"
        qemu.monitor.execute("device_add", {"driver": "edu", "id": "late", "addr": "0x1d"})
        assert stale() and watch.refresh() is not None
        qemu.monitor.execute("device_del", {"id": "late"})
        qemu.qtest.outl(0xAE10, 0)
        qemu.qtest.outl(0xAE08, 1 << 0x1D)
        deadline = time.monotonic() + DELETED_TIMEOUT_S
        while not stale() and time.monotonic() < deadline:
            qemu.monitor.round_trip()
        gone = watch.refresh()
        assert gone is not None and gone.predicted and gone.changed


@pytest.mark.parametrize(("target", "machine"), [
    ("x86_64", "q35"), ("aarch64", "virt"), ("arm", "versatilepb"), ("ppc", "g3beige"),
])
def test_a_machine_left_alone_is_not_stale(build: Build, target: str, machine: str) -> None:
    with started(build, target, machine, (), transcript=True) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
        watch = Watch(mirror, qemu.monitor.hmp)
        qemu.transcript.read_new()
        qemu.monitor.events()
        again = mirror.refresh(qemu.monitor.hmp)
        for section in mirror.memory.view.sections:
            if section.region.is_ram:
                qemu.qtest.readb(section.start)
        qemu.monitor.round_trip()
        assert not again.changed
        assert not watch.see_text(qemu.transcript.read_new())
        assert not watch.hear(event.name for event in qemu.monitor.events())
