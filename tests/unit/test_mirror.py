"""The mirror over stored texts of real machines and over machines made up here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_mtree import FakeMtree

from qemuglue.errors import ProtocolError
from qemuglue.memory import MemoryRegion, RegionKind
from qemuglue.mirror import Mirror, effort
from qemuglue.mirror.order import arrange
from qemuglue.mirror.shadow import occurrences
from qemuglue.mirror.watch import Watch
from qemuglue.qemu.events import parse

DATA = Path(__file__).parent.parent / "data" / "mtree"
MACHINES = sorted(path.stem for path in DATA.glob("*.tree"))


def stored(machine: str, change: Callable[[str], str] = str) -> Callable[[str], str]:
    """A monitor that answers with the stored texts, the flat views changed."""
    def hmp(line: str) -> str:
        suffix = "flat" if "-f" in line else "tree"
        text = (DATA / f"{machine}.{suffix}").read_text()
        return (change(text) if suffix == "flat" else text).replace("\n", "\r\n")

    return hmp


# Section: real machines


@pytest.mark.parametrize("machine", MACHINES)
def test_real_machines_are_exact(machine: str) -> None:
    mirror = Mirror.take(stored(machine))
    assert mirror.exact, [str(difference) for difference in mirror.differences]
    assert mirror.score.exact == mirror.score.total > 0


# What each of these takes to be exact: a change here is a change of the defaults.
INFERRED = {
    "11.1-hexagon-V66G_1024": (1, 0, 0), "7.2-ppc64-powernv10": (1, 2, 0),
    "7.2-x86_64-q35": (0, 1, 0), "10.0-arm-versatilepb": (0, 2, 0),
}


@pytest.mark.parametrize("machine", INFERRED)
def test_what_had_to_be_inferred_is_counted(machine: str) -> None:
    mirror = Mirror.take(stored(machine))
    found = mirror.inference
    assert (found.pairs, found.bits, found.aliases) == INFERRED[machine]
    assert len(found.facts) == found.total
    assert mirror.plain.exact < mirror.plain.total == mirror.score.total


# (machine, text, its replacement in the flat views, words of a difference)
PLANTED = [
    ("7.2-x86_64-q35", "00000000fed003ff", "00000000fed003fe", "0xfed00000-0xfed003fe"),
    ("7.2-x86_64-q35", "(prio 4096, i/o): apic-msi", "(prio 4095, i/o): apic-msi", "prio 4095"),
    ("7.2-x86_64-q35", "i/o): hpet", "i/o): tepid", "tepid"),
    ("7.2-x86_64-q35", "rom): pc.bios @0000000000020000", "rom): pc.bios @0000000000020001",
     "@0x20001"),
    ("7.2-x86_64-q35", "i/o): hpet", "nv-i/o): hpet", "nv-i/o"),
    ("7.2-x86_64-q35", "i/o): hpet", "ram): hpet", "ram"),
    ("7.2-x86_64-q35", "path=/machine/q35/ioapic", "path=/machine/q35/other", "ioapic"),
    ("7.2-x86_64-q35", ' AS "mch", root: bus', ' AS "mcx", root: bus', "no flat view lists it"),
    ("7.2-x86_64-q35", "Root memory region: io", "Root memory region: oi", "QEMU 'oi'"),
    ("7.2-x86_64-q35", "  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom"
     " parent:{obj path=/machine/unattached}\n", "", "QEMU nothing"),
]


@pytest.mark.parametrize(("machine", "old", "new", "words"), PLANTED)
def test_a_planted_difference_is_told(machine: str, old: str, new: str, words: str) -> None:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    mirror = Mirror.take(stored(machine, change))
    assert not mirror.exact and mirror.score.exact < mirror.score.total
    assert any(words in str(difference) for difference in mirror.differences)


def test_a_difference_that_a_fact_explains_is_learnt_and_counted() -> None:
    """A wrong view that some tree could have drawn cannot be told from a right one; it costs
    facts, and those are printed."""
    def change(text: str) -> str:
        return text.replace("  00000000fed00000-00000000fed003ff (prio 0, i/o): hpet"
                            " owner:{dev path=/machine/unattached/device[7]}\n", "")

    mirror = Mirror.take(stored("7.2-x86_64-q35", change))
    assert mirror.exact
    assert any("'hpet'" in fact and "does not answer" in fact for fact in mirror.inference.facts)


def test_what_was_shown_once_is_missed_later() -> None:
    texts = stored("7.2-x86_64-q35")
    mirror = Mirror.take(texts)

    def hmp(line: str) -> str:
        kept = [each for each in texts(line).splitlines(keepends=True) if "): hpet" not in each]
        return "".join(kept) if "-f" in line else texts(line)

    result = mirror.refresh(hmp)
    assert result.changed and not result.predicted and not result.exact
    assert any("hpet" in str(difference) for difference in mirror.differences)


def test_the_spaces_of_a_machine() -> None:
    mirror = Mirror.take(stored("7.2-x86_64-q35"))
    assert mirror.memory.name == "cpu-memory-0"
    assert mirror.io is not None and mirror.io.root.name == "io"
    assert mirror.memory.view is next(s for s in mirror.spaces if s.name == "memory").view
    hpet = mirror.memory.view.lookup(0xFED0_0010)
    assert hpet.region.name == "hpet" and hpet.region.owner == "/machine/unattached/device[7]"
    assert not mirror.memory.view.lookup(0xD000_0000).assigned
    ram = mirror.memory.view.lookup(0)
    assert ram.region.kind is RegionKind.RAM and ram.region.key.owner == "/objects/pc.ram"


def test_absolute_addresses_go_up_the_containers_not_through_aliases() -> None:
    mirror = Mirror.take(stored("7.2-x86_64-q35"))
    bios = mirror.memory.view.lookup(0xE_0000).region
    assert bios.name == "pc.bios"
    assert mirror.absolute(bios, 0x2_0000) == 0xFFFE_0000
    raspi = Mirror.take(stored("7.2-aarch64-raspi3b"))
    dma = next(space for space in raspi.spaces if space.name == "dwc2")
    timer = dma.view.lookup(0x7E00_3000).region
    assert timer.name == "bcm2835-sys-timer" and raspi.absolute(timer) == 0x3F00_3000
    assert timer is raspi.memory.view.lookup(0x3F00_3000).region


def test_layout() -> None:
    layout = Mirror.take(stored("7.2-x86_64-q35")).layout()
    kinds = {each.region: each.kind for each in layout.ranges("memory")}
    assert kinds["pc.ram"] == "ram" and kinds["pc.bios"] == "rom" and kinds["hpet"] == "device"
    assert kinds[""] == "unassigned"
    assert {each.kind for each in layout.ranges("io") if each.region == "io"} == {"container-io"}
    elcr = [each for each in layout.ranges("io") if each.region == "elcr"]
    assert [(each.start, each.index) for each in elcr] == [(0x4D0, 0), (0x4D1, 1)]
    assert "cpu-smm-0" in layout.spaces


# Section: machines made up


def machine(*regions: tuple[int, int, MemoryRegion]) -> tuple[FakeMtree, MemoryRegion]:
    """One space over a container with (address, priority, region) added in this order."""
    system = MemoryRegion.container_of("system", 1 << 64)
    for addr, priority, region in regions:
        system.add_subregion_overlap(addr, region, priority)
    return FakeMtree([("memory", system)]), system


def shown(mirror: Mirror, addr: int) -> str:
    return mirror.memory.view.lookup(addr).region.name


def region_of(mirror: Mirror, name: str) -> MemoryRegion:
    [found] = [region for region in mirror.regions if region.name == name]
    return found


def test_an_order_is_learnt_and_holds_later() -> None:
    low, high = MemoryRegion.io("low", 0x20), MemoryRegion.io("high", 0x20)
    # Added last and below: the guess (higher addresses are newer) is wrong.
    fake, _ = machine((0x10, 0, high), (0, 0, low))
    mirror = Mirror.take(fake.hmp)
    assert (mirror.inference.pairs, mirror.plain.exact, mirror.exact) == (1, 0, True)
    assert shown(mirror, 0x10) == "low"
    high.set_size(0x40)
    result = mirror.refresh(fake.hmp)
    assert result.changed and result.predicted and shown(mirror, 0x10) == "low"


def test_what_moves_becomes_the_newest() -> None:
    one, other = MemoryRegion.io("one", 0x20), MemoryRegion.io("other", 0x20)
    fake, _ = machine((0, 0, one), (0x10, 0, other))
    mirror = Mirror.take(fake.hmp)
    assert shown(mirror, 0x18) == "other"
    one.set_address(8)
    assert mirror.refresh(fake.hmp).predicted
    assert shown(mirror, 0x18) == "one"


def test_equal_addresses_need_no_inference() -> None:
    regions = [MemoryRegion.io(f"r{n}", 0x10 + n) for n in range(4)]
    fake, _ = machine(*[(0, 0, region) for region in regions])
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact and not mirror.inference.total and shown(mirror, 0) == "r3"


def test_equal_addresses_added_again_follow_the_print_order() -> None:
    one, other = MemoryRegion.io("one", 0x10), MemoryRegion.io("other", 0x10)
    fake, system = machine((0, 0, one), (0, 0, other))
    mirror = Mirror.take(fake.hmp)
    assert shown(mirror, 0) == "other"
    system.del_subregion(one)
    system.add_subregion(0, one)
    result = mirror.refresh(fake.hmp)
    assert result.changed and result.predicted and shown(mirror, 0) == "one"


def test_a_higher_priority_is_never_explained_by_an_order() -> None:
    bare = MemoryRegion.container_of("bare", 0x10)
    fake, _ = machine((0, 0, MemoryRegion.io("under", 0x20)), (0x8, 1, bare))
    found = Mirror.take(fake.hmp).inference
    assert (found.pairs, found.bits) == (0, 1) and "'bare'" in found.facts[0]


def test_roots_that_print_alike_are_two_regions() -> None:
    tops = [MemoryRegion.container_of("top", 0x100) for _ in range(2)]
    for top in tops:
        top.add_subregion(0, MemoryRegion.ram("ram", 0x10))
    mirror = Mirror.take(FakeMtree([("memory", tops[0]), ("other", tops[1])]).hmp)
    assert mirror.exact and len({space.root for space in mirror.spaces}) == 2


def test_alias_targets_that_print_alike_are_two_regions() -> None:
    system = MemoryRegion.container_of("system", 1 << 64)
    for number in range(2):
        box = MemoryRegion.container_of(f"box{number}", 0x100)
        bank = MemoryRegion.ram("bank", 0x100, owner="/machine/dev")
        box.add_subregion(0, bank)
        system.add_subregion(0x1000 * number, box)
        system.add_subregion(0x4000 + 0x1000 * number,
                             MemoryRegion.alias_of(f"a{number}", bank, 0, 0x100))
    mirror = Mirror.take(FakeMtree([("memory", system)]).hmp)
    assert mirror.exact
    targets = [region_of(mirror, f"a{number}").alias for number in range(2)]
    boxes = {target.container.name for target in targets if target and target.container}
    assert boxes == {"box0", "box1"}


def test_region_objects_survive_moves_switches_and_absence() -> None:
    bar = MemoryRegion.io("bar", 0x20, owner="/machine/dev")
    fake, system = machine((0x100, 1, bar), (0x300, 0, MemoryRegion.ram("ram", 0x100)))
    mirror = Mirror.take(fake.hmp)
    before, space = region_of(mirror, "bar"), mirror.memory
    generation = mirror.generation
    bar.set_address(0x180)
    assert mirror.refresh(fake.hmp).predicted
    assert mirror.memory.view.lookup(0x180).region is before
    bar.set_enabled(False)
    assert mirror.refresh(fake.hmp).predicted and not mirror.memory.view.lookup(0x180).assigned
    system.del_subregion(bar)
    assert mirror.refresh(fake.hmp).predicted and before not in mirror.regions
    bar.set_enabled(True)
    system.add_subregion_overlap(0x200, bar, 1)
    assert mirror.refresh(fake.hmp).predicted
    assert mirror.memory.view.lookup(0x200).region is before and mirror.memory is space
    assert mirror.generation == generation + 4


def test_an_unchanged_map_is_no_new_generation() -> None:
    fake, _ = machine((0, 0, MemoryRegion.ram("ram", 0x100)))
    mirror = Mirror.take(fake.hmp)
    view, generation = mirror.memory.view, mirror.generation
    result = mirror.refresh(fake.hmp)
    assert not result.changed and result.predicted and result.exact
    assert mirror.memory.view is view and mirror.generation == generation


def test_equals_are_told_apart_by_what_changed_least() -> None:
    twins = [MemoryRegion.io("uart", 0x10, owner="/machine/dev") for _ in range(3)]
    fake, _ = machine(*[(0x100 * n, 0, twin) for n, twin in enumerate(twins)])
    mirror = Mirror.take(fake.hmp)
    found = [mirror.memory.view.lookup(0x100 * n).region for n in range(3)]
    assert [region.key.index for region in found] == [0, 1, 2]
    twins[1].set_address(0x1000)
    mirror.refresh(fake.hmp)
    assert mirror.memory.view.lookup(0x1000).region is found[1]
    assert mirror.memory.view.lookup(0x200).region is found[2]


def test_a_rom_device_keeps_its_kind_out_of_romd_mode() -> None:
    flash = MemoryRegion("flash", 0x100, RegionKind.ROM_DEVICE)
    fake, _ = machine((0, 0, flash))
    mirror = Mirror.take(fake.hmp)
    found = region_of(mirror, "flash")
    flash.set_romd(False)
    assert mirror.refresh(fake.hmp).predicted
    assert found.kind is RegionKind.ROM_DEVICE and not found.romd
    flash.set_romd(True)
    assert mirror.refresh(fake.hmp).predicted and found.romd


def test_one_read_only_window_tells_of_its_kin() -> None:
    ram = MemoryRegion.ram("ram", 0x1000)
    windows = [MemoryRegion.alias_of("bios", ram, 0x100 * n, 0x100, owner="/machine/mch")
               for n in range(4)]
    for window in windows:
        window.set_readonly(True)
        window.set_enabled(False)
    fake, _ = machine((0, 0, ram), *[(0x100 * n, 1, w) for n, w in enumerate(windows)])
    mirror = Mirror.take(fake.hmp)
    windows[1].set_enabled(True)
    result = mirror.refresh(fake.hmp)
    assert not result.predicted and result.exact
    assert result.learnt.bits == 1 and "'bios' at 0x100 is read-only" in result.learnt.facts
    assert result.differences, "where the prediction was wrong is told"
    windows[3].set_enabled(True)
    assert mirror.refresh(fake.hmp).predicted
    section = mirror.memory.view.lookup(0x300)
    assert section.readonly and section.region.name == "ram" and not section.region.readonly


def test_a_container_stays_one_when_it_is_empty_again() -> None:
    bridge, bar = MemoryRegion.container_of("bridge", 0x100), MemoryRegion.io("bar", 0x10)
    bridge.add_subregion(0, bar)
    fake, _ = machine((0, 0, bridge))
    mirror = Mirror.take(fake.hmp)
    bridge.del_subregion(bar)
    assert mirror.refresh(fake.hmp).predicted and not mirror.memory.view.sections


def test_sizes_0_and_1_print_alike() -> None:
    hole = MemoryRegion.ram("hole", 0)
    fake, _ = machine((0x10, 1, hole), (0, 0, MemoryRegion.io("dev", 0x100)))
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact and mirror.inference.bits == 1 and shown(mirror, 0x10) == "dev"
    assert region_of(mirror, "hole").size == 0
    hole.set_address(0x20)
    assert mirror.refresh(fake.hmp).predicted and shown(mirror, 0x20) == "dev"


def test_unmerged_neighbours_are_learnt() -> None:
    ram = MemoryRegion.ram("ram", 0x1000)
    slots = [MemoryRegion.alias_of(f"slot{n}", ram, 0x100 * n, 0x100) for n in range(2)]
    for slot in slots:
        slot.unmergeable = True
    fake, _ = machine(*[(0x100 * n, 0, slot) for n, slot in enumerate(slots)])
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact and len(mirror.memory.view.sections) == 2


@pytest.mark.parametrize("second", [False, True])
def test_an_alias_with_two_candidates(second: bool) -> None:
    banks = [MemoryRegion.ram("bank", 0x100, owner="/machine/dev") for _ in range(2)]
    views = [MemoryRegion.alias_of("a", banks[0], 0, 0x100),
             MemoryRegion.alias_of("b", banks[1], 0, 0x80),
             MemoryRegion.alias_of("c", banks[second], 0x40, 0x40)]
    # The bank itself lies elsewhere under a name of its own, so that the two can be told apart.
    inner = MemoryRegion.io("inner", 0x20)
    banks[0].add_subregion(0x48, inner)
    fake, _ = machine(*[(0x1000 * n, 0, view) for n, view in enumerate(views)])
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact
    assert mirror.inference.aliases <= 1
    assert (shown(mirror, 0x2008) == "inner") == (not second)


def test_two_spaces_of_one_name() -> None:
    top = MemoryRegion.container_of("system", 1 << 64)
    top.add_subregion(0, MemoryRegion.ram("ram", 0x100))
    buses = []
    for number in range(3):
        bus = MemoryRegion.container_of("bus master container", 1 << 64, owner=f"/m/d{number}")
        alias = MemoryRegion.alias_of("bus master", top, 0, 1 << 64, owner=f"/m/d{number}")
        alias.set_enabled(number == 1)
        bus.add_subregion(0, alias)
        buses.append(bus)
    fake = FakeMtree([("memory", top), *[("nic", bus) for bus in buses]])
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact
    views = [len(space.view.sections) for space in mirror.spaces if space.name == "nic"]
    assert views == [0, 1, 0]


def test_the_map_changing_between_the_two_texts_is_taken_again() -> None:
    bar = MemoryRegion.io("bar", 0x20)
    fake, _ = machine((0x100, 1, bar), (0x300, 0, MemoryRegion.ram("ram", 0x100)))

    def hmp(line: str) -> str:
        if "-f" in line and len(fake.asked) == 1:
            bar.set_size(0x40)
        return fake.hmp(line)

    mirror = Mirror.take(hmp)
    assert mirror.exact and region_of(mirror, "bar").size == 0x40 and len(fake.asked) > 2


def test_the_renderer_does_not_see_the_flat_views() -> None:
    fake, _ = machine((0, 0, MemoryRegion.ram("ram", 0x100)))
    asked: list[str] = []
    mirror = Mirror.take(lambda line: asked.append(line) or fake.hmp(line))  # type: ignore[func-returns-value]
    assert asked == ["info mtree -o -D", "info mtree -f -o"]
    assert mirror.plain.exact == 1


CYCLE = """address-space: memory
  0000000000000000-00000000000000ff (prio 0, i/o): system
    0000000000000000-00000000000000ff (prio 0, i/o): alias loop @system \
0000000000000000-00000000000000ff

memory-region: system
  0000000000000000-00000000000000ff (prio 0, i/o): system
    0000000000000000-00000000000000ff (prio 0, i/o): alias loop @system \
0000000000000000-00000000000000ff

"""
SELF = """address-space: memory
  0000000000000000-00000000000000ff (prio 0, i/o): alias loop @loop \
0000000000000000-00000000000000ff

memory-region: loop
  0000000000000000-00000000000000ff (prio 0, i/o): alias loop @loop \
0000000000000000-00000000000000ff

"""
STRANGE = CYCLE.replace("@system", "@nobody")
FLAT = """FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000000ff (prio 0, i/o): system

"""


@pytest.mark.parametrize("tree", [CYCLE, SELF, STRANGE], ids=["cycle", "self", "strange"])
def test_trees_that_no_qemu_could_draw_are_refused(tree: str) -> None:
    with pytest.raises(ProtocolError):
        Mirror.take(lambda line: FLAT if "-f" in line else tree)


def test_aliases_that_multiply_end_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty levels of two aliases each would be drawn 2^30 times."""
    monkeypatch.setattr(effort, "MAX_DRAWN", 20_000)
    region = MemoryRegion.io("leaf", 0x10)
    for level in range(30):
        above = MemoryRegion.container_of(f"c{level}", 0x10)
        for side in "ab":
            above.add_subregion(0, MemoryRegion.alias_of(f"{side}{level}", region, 0, 0x10))
        region = above
    small, _ = machine()
    tree = FakeMtree([("memory", region)]).tree()
    with pytest.raises(ProtocolError, match="line 2: the tree shows more than 20000 regions"):
        Mirror.take(lambda line: small.flat() if "-f" in line else tree)


def test_no_space_to_enter() -> None:
    tree = "address-space: x\n  0000000000000000-00000000000000ff (prio 0, i/o): system\n\n"
    mirror = Mirror.take(lambda line: FLAT.replace('"memory"', '"x"') if "-f" in line else tree)
    with pytest.raises(ProtocolError, match="no address space"):
        _ = mirror.memory
    assert mirror.io is None


# Section: parts


# (items with their priorities, pairs, order)
ORDERS = [
    ({"a": 0, "b": 0, "c": 0}, [], "abc"),
    ({"a": 0, "b": 1, "c": 0}, [], "bac"),
    ({"a": 0, "b": 0, "c": 0}, [("c", "a")], "bca"),
    ({"a": 0, "b": 0, "c": 0}, [("c", "a"), ("b", "c")], "bca"),
    ({"a": 0, "b": 1, "c": 0}, [("a", "b"), ("x", "a")], "bac"),
    ({"a": 0, "b": 0}, [("a", "b"), ("b", "a")], None),
]


@pytest.mark.parametrize(("items", "pairs", "wanted"), ORDERS)
def test_arrange(
    items: dict[str, int], pairs: list[tuple[str, str]], wanted: str | None
) -> None:
    order = arrange(list(items), items.__getitem__, pairs)
    assert (None if order is None else "".join(order)) == wanted


def test_what_hides_what() -> None:
    under = MemoryRegion.ram("under", 0x100)
    off = MemoryRegion.io("off", 0x10)
    off.set_enabled(False)
    fake, _ = machine(
        (0, 0, under), (0, 1, MemoryRegion.io("over", 0x40)), (0x10, 0, MemoryRegion.io("lost", 8)),
        (0x80, 2, off), (0x200, 0, MemoryRegion.container_of("bare", 0x10)),
    )
    seen = {one.region.name: (one.state, one.hidden_by)
            for one in occurrences(Mirror.take(fake.hmp).memory)}
    assert seen == {
        "system": ("shown", ()), "over": ("shown", ()), "under": ("partly", ("over",)),
        "lost": ("hidden", ("over",)), "off": ("disabled", ()), "bare": ("empty", ()),
    }


def test_what_a_disabled_part_holds_is_not_seen() -> None:
    ram = MemoryRegion.ram("ram", 0x100)
    box = MemoryRegion.container_of("box", 0x100)
    off = MemoryRegion.alias_of("off", ram, 0, 0x100)
    off.set_enabled(False)
    box.add_subregion(0, off)
    fake, _ = machine((0, 0, ram), (0, 1, MemoryRegion.alias_of("window", box, 0, 0x100)))
    seen = {one.region.name: one.state for one in occurrences(Mirror.take(fake.hmp).memory)}
    assert seen["window"] == "empty" and seen["ram"] == "shown"


# Section: prediction


def bridged() -> tuple[FakeMtree, dict[str, MemoryRegion], MemoryRegion]:
    """A bridge with two windows and a device's BAR over both, which is the newest."""
    bus = MemoryRegion.container_of("pci_bridge_pci", 1 << 32, owner="/b")
    bus.add_subregion(0x1000, MemoryRegion.io("inner", 0x3000, owner="/inner"))
    parts = {
        "pref": MemoryRegion.alias_of("pci_bridge_pref_mem", bus, 0x1000, 0x1000, owner="/b"),
        "mem": MemoryRegion.alias_of("pci_bridge_mem", bus, 0x2000, 0x1000, owner="/b"),
        "bar": MemoryRegion.io("bar", 0x2000, owner="/d"),
    }
    fake, system = machine((0x1000, 1, parts["pref"]), (0x2000, 1, parts["mem"]),
                           (0x1800, 1, parts["bar"]))
    return fake, parts, system


def put_back(system: MemoryRegion, region: MemoryRegion) -> None:
    addr, priority = region.addr, region.priority
    system.del_subregion(region)
    system.add_subregion_overlap(addr, region, priority)


def test_windows_of_a_bridge_are_added_anew_together() -> None:
    fake, parts, system = bridged()
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact and shown(mirror, 0x2000) == shown(mirror, 0x1800) == "bar"
    for name in ("pref", "mem"):
        put_back(system, parts[name])
    parts["mem"].set_size(0x800)  # this is what the text shows of it
    result = mirror.refresh(fake.hmp)
    assert result.predicted, [str(difference) for difference in result.differences]
    assert shown(mirror, 0x1800) == shown(mirror, 0x2000) == "inner"
    assert shown(mirror, 0x2900) == "bar"


def test_an_order_of_equals_tells_what_was_away() -> None:
    one, other, low = (MemoryRegion.io(name, 0x20, owner=f"/{name}") for name in "abc")
    fake, system = machine((0x10, 0, one), (0, 0, low), (0x10, 0, other))
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact and shown(mirror, 0x10) == "b"
    put_back(system, low)
    mirror.refresh(fake.hmp)
    assert mirror.exact and shown(mirror, 0x10) == "c"
    put_back(system, one)
    result = mirror.refresh(fake.hmp)
    assert result.predicted and shown(mirror, 0x10) == "a"


def test_a_closed_window_is_empty_and_a_byte_wide_one_is_learnt() -> None:
    ram = MemoryRegion.ram("ram", 0x100)
    window = MemoryRegion.alias_of("window", ram, 0, 0)
    fake, _ = machine((0x10, 1, window), (0, 0, MemoryRegion.io("dev", 0x100)))
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact and not mirror.inference.total
    window.set_size(1)
    mirror.refresh(fake.hmp)
    assert mirror.exact and "is not empty" in mirror.inference.facts[0]
    window.set_size(0x10)
    assert mirror.refresh(fake.hmp).predicted


def test_what_is_known_by_name_is_judged_and_counted_apart() -> None:
    """Here the window is not read-only at all, whatever QEMU's own of that name is."""
    ram = MemoryRegion.ram("ram", 0x1000)
    window = MemoryRegion.alias_of("pam-rom", ram, 0x100, 0x100, owner="/machine/mch")
    fake, _ = machine((0, 0, ram), (0x100, 1, window))
    mirror = Mirror.take(fake.hmp)
    assert mirror.exact and not mirror.known.total
    assert mirror.plain.exact == 1 and "is not read-only" in mirror.inference.facts[0]
    window.set_readonly(True)
    fresh = Mirror.take(fake.hmp)
    assert fresh.exact and fresh.known.bits == 1 and not fresh.inference.total
    assert fresh.plain.exact == 0, "without the table it would not have been right"


def test_only_touched_views_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ram, bar = MemoryRegion.ram("ram", 0x100), MemoryRegion.io("bar", 0x10)
    inside = MemoryRegion.container_of("inside", 0x100)
    inside.add_subregion(0x20, bar)
    left, right = (MemoryRegion.container_of(name, 1 << 32) for name in ("left", "right"))
    left.add_subregion(0x1000, ram)
    left.add_subregion(0x2000, MemoryRegion.io("side", 4))
    right.add_subregion(0x1000, MemoryRegion.alias_of("shown", inside, 0, 0x100))
    right.add_subregion(0x2000, MemoryRegion.io("other", 4))
    fake = FakeMtree([("memory", left), ("device", right)])
    mirror = Mirror.take(fake.hmp)
    kept, redrawn = (space.view for space in mirror.spaces)
    bar.set_address(0x40)
    assert mirror.refresh(fake.hmp).predicted
    assert mirror.spaces[0].view is kept and mirror.spaces[1].view is not redrawn


def test_the_same_views_in_another_order_are_no_change() -> None:
    fake, _ = machine((0, 0, MemoryRegion.ram("ram", 0x100)))
    fake.spaces.append(("other", MemoryRegion.io("other", 0x10)))
    turned = False

    def hmp(line: str) -> str:
        text = fake.hmp(line)
        if turned and "-f" in line:
            views = text.replace("\r\n", "\n").strip("\n").split("\n\n")
            text = "\n\n".join(views[::-1]) + "\n\n"
        return text

    mirror = Mirror.take(hmp)
    turned = True
    assert not mirror.refresh(hmp).changed and mirror.generation == 1


def test_a_watch_is_told_and_forgets_only_by_a_refresh() -> None:
    bar = MemoryRegion.io("bar", 0x20)
    fake, _ = machine((0x100, 1, bar), (0x300, 0, MemoryRegion.ram("ram", 0x100)))
    mirror = Mirror.take(fake.hmp)
    watch = Watch(mirror, fake.hmp)
    access = b"memory_region_ops_read cpu -1 mr 0x1 addr 0x100 value 0x0 size 4 name 'bar'\n"
    drawn = b"flatview_new 0x5555 (root 0x6666)\n"
    assert not watch.see(parse(access)) and not watch.see_text(access)
    assert not watch.hear(["STOP", "RTC_CHANGE"]) and watch.refresh() is None
    bar.set_address(0x180)
    assert watch.see(parse(access + drawn)) and watch.see(parse(access)) and watch.drawn == 1
    result = watch.refresh()
    assert result is not None and result.predicted and shown(mirror, 0x180) == "bar"
    assert not watch.stale and not watch.see_text(access)
    assert watch.see_text(drawn + drawn) and watch.drawn == 2
    again = watch.refresh()
    assert again is not None and not again.changed
    assert watch.hear(["DEVICE_DELETED"])


def test_a_window_that_shows_another_part_is_drawn_again() -> None:
    ram = MemoryRegion.ram("ram", 0x1000)
    window = MemoryRegion.alias_of("window", ram, 0, 0x100)
    fake, _ = machine((0x4000, 0, window))
    mirror = Mirror.take(fake.hmp)
    window.set_alias_offset(0x200)
    assert mirror.refresh(fake.hmp).predicted
    assert mirror.memory.view.lookup(0x4000).offset == 0x200


def test_windows_of_a_bridge_come_in_their_turn() -> None:
    """Both anew in one change: the ordinary one is added after the prefetchable one."""
    buses = [MemoryRegion.io(name, 1 << 32, owner="/b") for name in ("low", "high")]
    pref = MemoryRegion.alias_of("pci_bridge_pref_mem", buses[1], 0, 0, owner="/b")
    mem = MemoryRegion.alias_of("pci_bridge_mem", buses[0], 0, 0, owner="/b")
    fake, system = machine((0x1000, 1, pref), (0x1000, 1, mem))
    mirror = Mirror.take(fake.hmp)
    for region, at in ((pref, 0x4000), (mem, 0x2000)):
        system.del_subregion(region)
        region.set_size(0x4000)
        system.add_subregion_overlap(at, region, 1)
    result = mirror.refresh(fake.hmp)
    assert result.predicted and shown(mirror, 0x4000) == "low"
