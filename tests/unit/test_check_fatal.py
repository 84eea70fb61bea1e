"""Places that ended QEMU are left out afterwards, and nothing else is."""

from __future__ import annotations

from qemuglue.campaign.fatal import FatalPlaces
from qemuglue.campaign.findings import Finding
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place, Program
from qemuglue.witness.verdict import Kind

LAYOUT = Layout({
    "memory": [
        Range(0x0, 0x1000, "ram", 0, 0, "ram", "memory"),
        Range(0x1000, 0x100, "rng", 0, 0, "device", "memory"),
        Range(0x1100, 0x100, "flash", 0, 0, "romd", "memory"),
    ],
    "io": [Range(0x70, 2, "rtc", 0, 0, "device", "io")],
})


def op(verb: str, address: int, size: int) -> Operation:
    return Operation(verb, Place(offset=address), size)


def finding(last: Operation, confirmed: int = 3) -> Finding:
    program = Program("arm/x", (), (op("readb", 0, 1), last))
    return Finding("crash", "crash:assert:rng_read:size", program, {}, 1, (confirmed, 3))


def test_a_region_is_left_out_however_it_is_reached() -> None:
    places = FatalPlaces()
    assert places.why(LAYOUT, op("readb", 0x1004, 1)) == ("", Kind.EVENT)
    assert places.add(LAYOUT, finding(op("readb", 0x1004, 1))) == "readb 0x1004 (rng)"
    why, row = places.why(LAYOUT, op("writel", 0x10F0, 4))
    assert "rng" in why and "crash:assert:rng_read:size" in why and row is Kind.DEVICE
    why, row = places.why(LAYOUT, op("read", 0xFF8, 0x10))
    assert why and row is Kind.CROSSING
    for kept in (op("readl", 0xFF8, 4), op("readl", 0x1100, 4), op("read", 0x11F8, 16),
                 op("inb", 0x70, 1)):
        assert not places.why(LAYOUT, kept)[0]


def test_an_edge_is_left_out_but_not_the_region_before_it() -> None:
    places = FatalPlaces()
    assert places.add(LAYOUT, finding(op("readl", 0x11FD, 4))) == "readl 0x11fd (the end of flash)"
    assert places.why(LAYOUT, op("readq", 0x11FF, 8))[1] is Kind.CROSSING
    assert places.why(LAYOUT, op("readq", 0x11FF, 8))[0]
    why, row = places.why(LAYOUT, op("readl", 0x11FC, 4))
    assert (why, row) == ("", Kind.ROMD)


def test_the_edge_is_of_one_range_not_of_its_region() -> None:
    layout = Layout({"memory": [Range(0x0, 0x1000, "ram", 0, 0, "ram", "memory"),
                                Range(0x2000, 0x1000, "ram", 0, 0x1000, "ram", "memory")]})
    places = FatalPlaces()
    places.add(layout, finding(op("readl", 0xFFE, 4)))
    assert places.why(layout, op("readw", 0xFFF, 2))[0]
    assert not places.why(layout, op("readw", 0x2FFF, 2))[0]


def test_a_port_is_a_place_of_its_own() -> None:
    places = FatalPlaces()
    places.add(LAYOUT, finding(op("inb", 0x71, 1)))
    assert places.why(LAYOUT, op("outb", 0x70, 1))[1] is Kind.PORT
    assert places.why(LAYOUT, op("outb", 0x70, 1))[0]
    assert not places.why(LAYOUT, op("readb", 0x70, 1))[0]


def test_what_was_not_shown_again_and_unassigned_memory_stay_in() -> None:
    places = FatalPlaces()
    places.add(LAYOUT, finding(op("readb", 0x1004, 1), confirmed=0))
    assert not places.why(LAYOUT, op("readb", 0x1004, 1))[0]
    assert places.add(LAYOUT, finding(op("readb", 0x9000, 1))) == "readb 0x9000 (unassigned memory)"
    assert not places.why(LAYOUT, op("readb", 0x9000, 1))[0]


def test_unassigned_memory_in_front_is_not_to_blame() -> None:
    layout = Layout({"memory": [Range(0x1000, 0x100, "rng", 0, 0, "device", "memory"),
                                Range(0x1100, 0x100, "flash", 0, 0, "romd", "memory")]})
    places = FatalPlaces()
    assert places.add(layout, finding(op("readl", 0xFFD, 4))) == "readl 0xffd (rng)"
    assert places.why(layout, op("readb", 0x1004, 1))[0], "the region, however it is reached"
    assert not places.why(layout, op("readb", 0xFFD, 1))[0]
    places = FatalPlaces()
    far = op("read", 0xFFD, 0x140)
    assert places.add(layout, finding(far)) == "read 0xffd (the end of rng)"
    assert places.why(layout, far)[0] and not places.why(layout, op("readb", 0x1004, 1))[0]


def test_an_event_has_no_place() -> None:
    places = FatalPlaces()
    assert places.add(LAYOUT, finding(Operation("reset", None, 0))) == "reset"
    assert not places.why(LAYOUT, Operation("reset", None, 0))[0]


def test_an_access_over_the_last_address_has_an_end() -> None:
    places = FatalPlaces()
    places.add(LAYOUT, finding(op("readb", 0x1004, 1)))
    assert not places.why(LAYOUT, op("readq", (1 << 64) - 1, 8))[0]
