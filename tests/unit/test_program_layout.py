"""Layouts: places to addresses and back, on views small enough to check by eye."""

from itertools import pairwise

import pytest

from qemuglue.errors import ProgramError
from qemuglue.program import IO, MEMORY, Layout, Operation, Place, Range


def span(start, last, region, kind, offset=0, index=0, space=MEMORY):
    return Range(start, last - start + 1, region, index, offset, kind, space)


def q35() -> Layout:
    """What q35 shows after reset, shortened."""
    memory = [
        span(0, 0x9FFFF, "pc.ram", "ram"),
        span(0xA0000, 0xBFFFF, "vga-lowmem", "device"),
        span(0xC0000, 0xDFFFF, "pc.rom", "rom"),
        span(0xE0000, 0xFFFFF, "pc.bios", "rom", offset=0x20000),
        span(0x100000, 0x7FFFFFF, "pc.ram", "ram", offset=0x100000),
        span(0xB0000000, 0xBFFFFFFF, "pcie-mmcfg-mmio", "device"),
        span(0xFEC00000, 0xFEC00FFF, "ioapic", "device"),
        span(0xFED00000, 0xFED003FF, "hpet", "device"),
        span(0xFEE00000, 0xFEEFFFFF, "apic-msi", "device"),
        span(0xFFFC0000, 0xFFFFFFFF, "pc.bios", "rom"),
    ]
    ports = [("dma-chan", 0, 7), ("io", 8, 0x1F), ("pic", 0x20, 0x21), ("io", 0x22, 0x3F),
             ("pit", 0x40, 0x43), ("io", 0x44, 0x9F), ("pic", 0xA0, 0xA1), ("io", 0xA2, 0xCF7),
             ("pci-conf-idx", 0xCF8, 0xCFB), ("pci-conf-data", 0xCFC, 0xCFF),
             ("io", 0xD00, 0xFFFF)]
    io = [span(start, last, name, "container-io" if name == "io" else "device",
               offset=start if name == "io" else 0, index=start == 0xA0, space=IO)
          for name, start, last in ports]
    return Layout({MEMORY: memory, IO: io})


@pytest.mark.parametrize(("place", "address"), [
    (Place(None, 0, 0xFFFF_FFFF_FFFF_FFFF), 0xFFFF_FFFF_FFFF_FFFF),
    (Place("hpet", 0, 4), 0xFED00004),
    # Region-relative, not view-relative: the view shows pc.ram from 0x100000 on again.
    (Place("pc.ram", 0, 0x100004), 0x100004),
    # Shown twice would be lowest first; byte 0x20000 of the BIOS is shown at 0xe0000.
    (Place("pc.bios", 0, 0x20000), 0xE0000),
    (Place("pc.bios", 0, 0), 0xFFFC0000),
    # Not shown: as if the lowest range went on, here downwards over VGA and upwards.
    (Place("pc.ram", 0, 0xA0000), 0xA0000),
    (Place("hpet", 0, 0x400), 0xFED00400),
    (Place("hpet", 0, 0xFFFF_FFFF_FFFF_FFFF), 0xFECFFFFF),
])
def test_resolve(place, address):
    assert q35().resolve(place) == address


def test_same_bytes_shown_twice_resolve_to_the_lowest():
    layout = Layout({MEMORY: [span(0x10, 0x1F, "r", "ram", offset=8),
                              span(0x40, 0x5F, "r", "ram", offset=0)]})
    assert layout.resolve(Place("r", 0, 8)) == 0x10
    assert layout.resolve(Place("r", 0, 7)) == 0x47
    assert layout.resolve(Place("r", 0, 0x18)) == 0x58
    assert layout.place_of(0x10) == Place("r", 0, 8)
    assert layout.place_of(0x47) == Place("r", 0, 7)
    assert layout.place_of(0x48) == Place(None, 0, 0x48), "byte 8 is shown lower down"


def test_ports_and_other_spaces():
    layout = Layout({**{name: q35().ranges(name) for name in (MEMORY, IO)},
                     "nvme": [span(0x1000, 0x1FFF, "hpet", "device", space="nvme")]})
    assert layout.spaces == (MEMORY, IO, "nvme")
    assert layout.address_of(Operation("inb", Place("pic", 1, 1), 1)) == 0xA1
    assert layout.place_of(0xA1, IO) == Place("pic", 1, 1)
    assert layout.address_of(Operation("inb", Place("pit", 0, 0xFFFF), 1)) == 0x3F, "wraps"
    assert layout.address_of(Operation("readb", Place("hpet", 0, 4, "nvme"), 1)) == 0x1004
    assert layout.place_of(0x1004, "nvme") == Place("hpet", 0, 4, "nvme")
    assert layout.place_of(0x2000, "nvme") == Place(None, 0, 0x2000, "nvme")
    assert layout.address_of(Operation("reset", None, 0)) is None


def test_what_is_not_there():
    layout = q35()
    for place in (Place("edu"), Place("hpet", 1), Place("hpet", 0, 0, "nvme")):
        assert layout.resolve(place, strict=False) is None
        with pytest.raises(ProgramError):
            layout.resolve(place)
    with pytest.raises(ProgramError, match="outside io"):
        layout.range_at(0x10000, IO)
    with pytest.raises(ProgramError, match="no address space"):
        layout.ranges("nvme")


def test_gaps_are_filled_to_the_end_of_the_space():
    layout = Layout({})
    assert [(r.start, r.size, r.kind) for r in layout.ranges()] == [(0, 1 << 64, "unassigned")]
    assert [(r.start, r.last) for r in layout.ranges(IO)] == [(0, 0xFFFF)]
    ranges = q35().ranges()
    assert all(a.last + 1 == b.start for a, b in pairwise(ranges))


@pytest.mark.parametrize("ranges", [
    [Range(0, 0, "a", 0, 0, "ram", MEMORY)],
    [Range(8, 8, "a", 0, 0, "ram", MEMORY), Range(0, 8, "b", 0, 0, "ram", MEMORY)],
    [Range(0, 9, "a", 0, 0, "ram", MEMORY), Range(8, 8, "b", 0, 0, "ram", MEMORY)],
    [Range(1, 1 << 64, "a", 0, 0, "ram", MEMORY)],
])
def test_no_view_is_refused(ranges):
    with pytest.raises(ProgramError, match="flat view"):
        Layout({MEMORY: ranges})


def test_devices_stand_up_to_gaps():
    layout = q35()
    kinds = [row.kind for row in layout.rows]
    assert kinds.count("device") > len(kinds) / 3
    assert [(r.start, r.kind) for r in layout.selectable()] == \
        [(row.start, row.kind) for row in layout.rows]


def test_whole_rows_need_no_search():
    """Every shortcut is taken where it may be: all ranges but those shown lower down as well."""
    slow = {row.start for row in (*q35().rows, *q35().port_rows) if row.region and not row.whole}
    assert slow == {0xFFFC0000}, "half of the BIOS is also at 0xe0000"
