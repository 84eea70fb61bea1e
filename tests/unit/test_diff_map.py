"""Maps compared: every kind of planted change is seen exactly once, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from qemuglue.campaign.diff.maps import MapChange, Subject, compare_maps, space_label
from qemuglue.campaign.diff.ranges import Kind, compare_ranges, joined
from qemuglue.mirror.snapshot import Bar, MapRange, PciFunction, RamBlock, Snapshot, View


def rng(start: int, size: int, kind: str, name: str, offset: int = 0, **more: object) -> MapRange:
    return MapRange(start, size, kind, name, offset, **more)  # type: ignore[arg-type]


RAM = rng(0x0, 0xA0000, "ram", "pc.ram")
VGA = rng(0xA0000, 0x20000, "i/o", "vga-lowmem", owner="VGA")
HIGH = rng(0xC0000, 0x40000, "rom", "pc.ram", 0xC0000)
MORE = rng(0x100000, 0x7F00000, "ram", "pc.ram", 0x100000)
HPET = rng(0xFED00000, 0x400, "i/o", "hpet", owner="hpet")
BIOS = rng(0xFFFC0000, 0x40000, "rom", "pc.bios")
VIEW = (RAM, VGA, HIGH, MORE, HPET, BIOS)


def only(before: Sequence[MapRange], after: Sequence[MapRange]) -> tuple[str, ...]:
    """The changes from ``before`` to ``after`` in words."""
    return tuple(
        f"{change.kind.value} {change.start:#x}-{change.last:#x}"
        for change in compare_ranges(before, sorted(after, key=lambda each: each.start))
    )


def swapped(old: MapRange, *new: MapRange) -> list[MapRange]:
    return [each for each in VIEW if each != old] + list(new)


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (list(VIEW), ()),
        # Somebody new: in a hole, at the end of RAM, in its middle.
        ([*VIEW, rng(0xFEC00000, 0x1000, "i/o", "ioapic")], ("added 0xfec00000-0xfec00fff",)),
        (swapped(RAM, replace(RAM, size=0x9FC00), rng(0x9FC00, 0x400, "i/o", "new")),
         ("added 0x9fc00-0x9ffff",)),
        (swapped(RAM, replace(RAM, size=0x1000), rng(0x1000, 0x10, "i/o", "new"),
                 rng(0x1010, 0xA0000 - 0x1010, "ram", "pc.ram", 0x1010)),
         ("added 0x1000-0x100f",)),
        # Somebody over two others, hiding one of them altogether.
        (swapped(HPET), ("removed 0xfed00000-0xfed003ff",)),
        (swapped(HPET, replace(HPET, start=0xFED10000)), ("moved 0xfed10000-0xfed103ff",)),
        (swapped(HPET, replace(HPET, size=0x800)), ("resized 0xfed00000-0xfed007ff",)),
        (swapped(HPET, replace(HPET, size=0x100)), ("resized 0xfed00000-0xfed003ff",)),
        (swapped(HPET, replace(HPET, start=0xFECFF000, size=0x1400)),
         ("resized 0xfecff000-0xfed003ff",)),
        (swapped(HPET, replace(HPET, start=0xFEE00000, size=0x800)),
         ("moved 0xfee00000-0xfee007ff", "resized 0xfee00000-0xfee007ff")),
        # A border between two that moves is one change.
        (swapped(MORE, replace(MORE, size=0x6F00000)), ("resized 0x7000000-0x7ffffff",)),
        (swapped(HPET, replace(HPET, name="hpet2")), ("renamed 0xfed00000-0xfed003ff",)),
        (swapped(HPET, replace(HPET, owner="machine")), ("owner 0xfed00000-0xfed003ff",)),
        (swapped(HPET, replace(HPET, name="x", owner="y")),
         ("owner 0xfed00000-0xfed003ff", "renamed 0xfed00000-0xfed003ff")),
        (swapped(BIOS, replace(BIOS, type="ram")), ("read-only 0xfffc0000-0xffffffff",)),
        (swapped(BIOS, replace(BIOS, type="romd")), ("retyped 0xfffc0000-0xffffffff",)),
        (swapped(BIOS, replace(BIOS, nonvolatile=True)), ("nonvolatile 0xfffc0000-0xffffffff",)),
        (swapped(BIOS, replace(BIOS, offset=0x20000)), ("offset 0xfffc0000-0xffffffff",)),
        (swapped(VGA, replace(VGA, type="ram", name="vram")), ("replaced 0xa0000-0xbffff",)),
        (swapped(HPET, rng(0xFED00000, 0x1000, "i/o", "timer")),
         ("replaced 0xfed00000-0xfed00fff",)),
        # Part of the ROM becomes writable, as a PAM register does it.
        (swapped(HIGH, rng(0xC0000, 0x10000, "rom", "pc.ram", 0xC0000),
                 rng(0xD0000, 0x10000, "ram", "pc.ram", 0xD0000),
                 rng(0xE0000, 0x20000, "rom", "pc.ram", 0xE0000)),
         ("read-only 0xd0000-0xdffff",)),
    ],
)
def test_each_change_is_told_once(after: list[MapRange], told: tuple[str, ...]) -> None:
    assert only(VIEW, after) == told


@pytest.mark.parametrize("kind", [Kind.ADDED, Kind.REMOVED])
def test_one_range_over_many_is_one_change(kind: Kind) -> None:
    many = [rng(at, 0x10, "i/o", f"d{at:x}") for at in range(0, 0x100, 0x20)]
    big = [rng(0x0, 0x8, "i/o", "early"), rng(0x400, 0x100, "i/o", "big")]
    found = compare_ranges(many, many + big[1:]) if kind is Kind.ADDED else compare_ranges(
        many + big[1:], many)
    assert [change.kind for change in found] == [kind]


def test_a_seam_inside_a_region_is_no_change() -> None:
    cut = [replace(MORE, size=0x1000), replace(MORE, start=0x101000, size=MORE.size - 0x1000,
                                               offset=0x101000)]
    assert only(VIEW, swapped(MORE, *cut)) == ()
    assert joined(cut) == [MORE]


def test_who_grows_over_another_is_told_by_what_became_of_that_one() -> None:
    x, y = rng(0x0, 0x10, "i/o", "x"), rng(0x10, 0x10, "i/o", "y")
    assert only([x, y], [replace(x, size=0x20)]) == ("removed 0x10-0x1f",)
    assert only([replace(x, size=0x20)], [x, y]) == ("added 0x10-0x1f",)


def test_what_a_move_covers_and_uncovers_is_told_by_the_move() -> None:
    before = [rng(0x0, 0x100, "ram", "ram"), rng(0x100, 0x10, "i/o", "dev"),
              rng(0x110, 0xF0, "ram", "ram", 0x110)]
    after = [rng(0x0, 0x80, "ram", "ram"), rng(0x80, 0x10, "i/o", "dev"),
             rng(0x90, 0x170, "ram", "ram", 0x90)]
    assert only(before, after) == ("moved 0x80-0x8f",)
    # But somebody new in the old place is told as well.
    after = [rng(0x0, 0x80, "ram", "ram"), rng(0x80, 0x10, "i/o", "dev"),
             rng(0x90, 0x70, "ram", "ram", 0x90), rng(0x100, 0x10, "i/o", "new"),
             rng(0x110, 0xF0, "ram", "ram", 0x110)]
    assert only(before, after) == ("moved 0x80-0x8f", "added 0x100-0x10f")


# Section: whole snapshots

IO_ROOT = rng(0x0, 0xCF8, "i/o", "io")
PORTS = (IO_ROOT, rng(0xCF8, 1, "i/o", "pci-conf-idx"), rng(0xCF9, 1, "i/o", "piix3-reset-control"),
         rng(0xCFA, 0x10000 - 0xCFA, "i/o", "io", 0xCFA))
SNAPSHOT = Snapshot(
    "x86_64/pc-i440fx-7.2", "a", "7.2.22",
    views=(
        View(("I/O",), "io", PORTS),
        View(("cpu-memory-0", "memory"), "system", VIEW),
        View(("cpu-smm-0",), "memory", VIEW),
        View(("e1000",) * 3, "", ()),
    ),
    blocks=(RamBlock("/rom@etc/acpi/tables", 0x20000, 0x200000),
            RamBlock("0000:00:02.0/vga.vram", 0x1000000, 0x1000000),
            RamBlock("pc.bios", 0x40000, 0x40000), RamBlock("pc.ram", 0x8000000, 0x8000000)),
    functions=(PciFunction("0/00.0", "8086:1237"),
               PciFunction("0/02.0", "1234:1111", (Bar(0, "mem-pref", 0x1000000),
                                                   Bar(2, "mem", 0x1000),
                                                   Bar(6, "mem", 0x10000)))),
)


def with_memory(*ranges: MapRange, views: slice = slice(1, 3)) -> Snapshot:
    found = list(SNAPSHOT.views)
    ordered = tuple(sorted(ranges, key=lambda each: each.start))
    for number in range(*views.indices(len(found))):
        found[number] = replace(found[number], ranges=ordered)
    return replace(SNAPSHOT, views=tuple(found))


def one(after: Snapshot) -> MapChange:
    found = compare_maps(SNAPSHOT, after)
    assert len(found) == 1, found
    return found[0]


def test_a_snapshot_equals_itself_and_its_builds_do_not_matter() -> None:
    assert compare_maps(SNAPSHOT, SNAPSHOT) == []
    other = replace(SNAPSHOT, build="b", version="10.0.2", views=SNAPSHOT.views[::-1])
    assert compare_maps(SNAPSHOT, other) == []


def test_a_change_in_shared_and_similar_views_is_told_once() -> None:
    change = one(with_memory(*swapped(HPET)))
    assert change.spaces == ("cpu-memory-0", "cpu-smm-0", "memory")
    assert change.visible and change.kind is Kind.REMOVED
    assert change.place == "memory 0xfed00000-0xfed003ff"
    assert change.told == "removed: hpet (i/o, 0x400 bytes) -> nothing"


@pytest.mark.parametrize(
    ("change", "visible"),
    [
        ({"start": 0xFED10000}, True), ({"size": 0x800}, True), ({"type": "romd"}, True),
        ({"offset": 0x400}, True), ({"type": "ram", "name": "x"}, True), ({"name": "x"}, False),
        ({"owner": "x"}, False), ({"nonvolatile": True}, False),
    ],
)
def test_what_a_guest_sees(change: dict[str, Any], visible: bool) -> None:
    assert one(with_memory(*swapped(HPET, replace(HPET, **change)))).visible is visible


def test_names_and_owners_are_never_visible() -> None:
    renamed = tuple(replace(each, name=each.name.replace("piix3", "piix")) for each in PORTS)
    views = (replace(SNAPSHOT.views[0], ranges=renamed), *SNAPSHOT.views[1:])
    change = one(replace(SNAPSHOT, views=views))
    assert not change.visible
    assert str(change) == "I/O 0xcf9: renamed: piix3-reset-control -> piix-reset-control"
    assert not one(with_memory(*swapped(HPET, replace(HPET, owner="machine")))).visible


def test_a_port_that_answers_where_only_the_root_did_is_added() -> None:
    ports = (*PORTS[:3], rng(0xCFA, 0x6, "i/o", "io", 0xCFA), rng(0xD00, 4, "i/o", "new"),
             rng(0xD04, 0x10000 - 0xD04, "i/o", "io", 0xD04))
    views = (replace(SNAPSHOT.views[0], ranges=ports), *SNAPSHOT.views[1:])
    change = one(replace(SNAPSHOT, views=views))
    assert str(change) == "I/O 0xd00-0xd03: added: nothing -> new (i/o, 4 bytes)"
    assert change.visible


def test_what_only_a_device_sees_is_not_visible() -> None:
    device = View(("e1000",), "bus master container", (RAM,))
    views = (*SNAPSHOT.views[:3], View(("e1000",) * 2, "", ()), device)
    change = one(replace(SNAPSHOT, views=views))
    assert not change.visible and change.place == "'e1000' 0x0-0x9ffff"


@pytest.mark.parametrize(
    ("views", "told", "visible"),
    [
        (SNAPSHOT.views[:3], "e1000: address space removed: 3 of 'e1000' -> none", False),
        ((*SNAPSHOT.views, View(("dma",), "", ())), "dma: address space added: none -> 'dma'",
         False),
        (SNAPSHOT.views[1:], "I/O: address space removed: 'I/O' -> none", True),
    ],
)
def test_spaces_come_and_go(views: tuple[View, ...], told: str, visible: bool) -> None:
    change = one(replace(SNAPSHOT, views=views))
    assert (str(change), change.visible) == (told, visible)
    assert change.subject is Subject.SPACE


def blocks(**changed: RamBlock | None) -> Snapshot:
    """The snapshot with blocks changed by the end of their name."""
    found = [each for each in SNAPSHOT.blocks]
    for end, block in changed.items():
        at = next(n for n, each in enumerate(found) if each.name.endswith(end))
        found[at:at + 1] = [block] if block else []
    return replace(SNAPSHOT, blocks=tuple(found))


@pytest.mark.parametrize(
    ("after", "told", "visible"),
    [
        (blocks(vram=RamBlock("0000:00:03.0/vga.vram", 0x1000000, 0x1000000)),
         "renamed: 0000:00:02.0/vga.vram -> 0000:00:03.0/vga.vram", True),
        (blocks(vram=None), "removed: 0000:00:02.0/vga.vram, 0x1000000 bytes -> none", True),
        (replace(SNAPSHOT, blocks=(*SNAPSHOT.blocks, RamBlock("new", 16, 16))),
         "added: none -> new, 0x10 bytes", True),
        (blocks(bios=RamBlock("pc.bios", 0x20000, 0x20000)),
         "resized: pc.bios, 0x40000 bytes -> 0x20000 bytes", True),
        # Resizeable: each takes what the other has.
        (blocks(tables=RamBlock("/rom@etc/acpi/tables", 0x21000, 0x200000)),
         "resized: /rom@etc/acpi/tables, 0x20000 of at most 0x200000 bytes -> "
         "0x21000 of at most 0x200000 bytes", False),
        (blocks(tables=RamBlock("/rom@etc/acpi/tables", 0x8000, 0x10000)),
         "resized: /rom@etc/acpi/tables, 0x20000 of at most 0x200000 bytes -> "
         "0x8000 of at most 0x10000 bytes", True),
    ],
)
def test_ram_blocks(after: Snapshot, told: str, visible: bool) -> None:
    change = one(after)
    assert (change.told, change.visible) == (f"RAM block {told}", visible)


@pytest.mark.parametrize(
    ("functions", "told"),
    [
        (SNAPSHOT.functions[:1], "PCI 0/02.0: PCI function removed: 1234:1111 -> none"),
        ((*SNAPSHOT.functions, PciFunction("0/03.0", "8086:100e")),
         "PCI 0/03.0: PCI function added: none -> 8086:100e"),
        ((replace(SNAPSHOT.functions[0], ident="8086:29c0"), SNAPSHOT.functions[1]),
         "PCI 0/00.0: PCI function replaced: 8086:1237 -> 8086:29c0"),
        ((SNAPSHOT.functions[0], replace(SNAPSHOT.functions[1], bars=(
            Bar(0, "mem-pref", 0x1000000), Bar(2, "mem", 0x2000), Bar(6, "mem", 0x10000)))),
         "PCI 0/02.0: PCI base address register resized: 1234:1111 BAR 2, mem 0x1000 bytes -> "
         "mem 0x2000 bytes"),
        ((SNAPSHOT.functions[0], replace(SNAPSHOT.functions[1], bars=(
            Bar(0, "mem-pref", 0x1000000), Bar(2, "io", 0x1000), Bar(6, "mem", 0x10000)))),
         "PCI 0/02.0: PCI base address register retyped: 1234:1111 BAR 2, mem 0x1000 bytes -> "
         "io 0x1000 bytes"),
        ((SNAPSHOT.functions[0],
          replace(SNAPSHOT.functions[1], bars=SNAPSHOT.functions[1].bars[:2])),
         "PCI 0/02.0: PCI base address register removed: 1234:1111 ROM, mem 0x10000 bytes -> none"),
    ],
)
def test_pci_functions(functions: tuple[PciFunction, ...], told: str) -> None:
    change = one(replace(SNAPSHOT, functions=functions))
    assert str(change) == told and change.visible


def test_labels_of_spaces() -> None:
    assert space_label(("cpu-memory-0", "cpu-memory-1", "e1000", "memory")) == "memory"
    assert space_label(("cpu-smm-0",)) == "cpu-smm-0"
    assert space_label(("I/O", "x")) == "I/O"
    assert space_label(("piix3-ide",)) == "'piix3-ide'"
    assert space_label(()) == ""
