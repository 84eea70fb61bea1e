"""The pure parts of the witnesses of a state: samples, answers, ranges."""

from __future__ import annotations

from random import Random

import pytest

from qemuglue.errors import ProtocolError
from qemuglue.memory import AddressSpace, MemoryRegion
from qemuglue.memory.region import RegionKind
from qemuglue.witness.account import MAX_DIFFERENCES, Account
from qemuglue.witness.elf_dump import WINDOW, Span, _outside, is_dumped, merged, windows
from qemuglue.witness.fastmap import kind_of
from qemuglue.witness.translation import expected_answer, lookup_space, points
from qemuglue.witness.xp import Read, parse_xp, sample, touched


def space() -> AddressSpace:
    """RAM at 0, ROM, a device, flash as memory and flash as a device."""
    root = MemoryRegion.container_of("system", 1 << 64)
    for at, name, kind, size in (
        (0x0, "ram", RegionKind.RAM, 0x10000),
        (0x10000, "rom", RegionKind.ROM, 0x1000),
        (0x20000, "device", RegionKind.IO, 0x10),
        (0x30000, "flash", RegionKind.ROM_DEVICE, 0x1000),
        (0x40000, "busy flash", RegionKind.ROM_DEVICE, 0x1000),
        (0x50000, "bar", RegionKind.RAM_DEVICE, 0x1000),
    ):
        region = MemoryRegion(name, size, kind)
        region.romd = name == "flash"
        root.add_subregion(at, region)
    return AddressSpace("memory", root)


# -- xp ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "read", "value"), [
    ("0000000000001000: 0x2a\r\n", Read(0x1000, 1), 0x2A),
    ("00001000: 0x0000002a", Read(0x1000, 4), 0x2A),
    ("fffffffffffffff0: 0xffffffffffffffff\n", Read(2**64 - 16, 8), 2**64 - 1),
    ("0000000000001000: Cannot access memory\r\n", Read(0x1000, 2), None),
    ("00001000:g364: invalid read at [0017fffc]\r\n 0x00000000\r\n", Read(0x1000, 4), 0),
    ("00001000:one\ntwo: 0x1\n Cannot access memory\n", Read(0x1000, 4), None),
])
def test_an_answer_of_xp(text: str, read: Read, value: int | None) -> None:
    assert parse_xp(text, read) == value


@pytest.mark.parametrize("text", [
    "", "0000000000001000:", "0000000000001004: 0x2a", "0000000000001000: 0x100",
    "0000000000001000: 0x2a 0x2b", "unknown command: 'xp'", "0000000000001000: 42",
    "0000000000001000:said\n", "0000000000001000:said 0x2a", "said\n0000000000001000: 0x2a",
])
def test_what_is_no_answer_of_xp(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_xp(text, Read(0x1000, 1))


def test_the_sample_reaches_every_kind_size_and_edge() -> None:
    view = space().view
    reads = sample(view, Random(1), 600)
    assert len(reads) == len(set(reads)) == 600
    assert reads == sample(view, Random(1), 600)
    assert {read.size for read in reads} == {1, 2, 4, 8}
    sections = [touched(view, read) for read in reads]
    kinds = {kind_of(found[0], ports=False) for found in sections}
    assert kinds == {kind_of(section, ports=False) for section in view.cover}
    crossing = {(a[0].region.name, a[1].region.name) for a in sections if len(a) == 2}
    assert {("ram", "rom"), ("rom", ""), ("", "device"), ("device", "")} <= crossing
    assert any(read.addr + read.size > 1 << 64 for read in reads)


def test_the_sample_of_next_to_nothing_ends() -> None:
    empty = AddressSpace("memory", MemoryRegion.container_of("system", 1 << 64))
    assert 0 < len(sample(empty.view, Random(1), 50)) <= 50


def test_a_read_over_the_last_address_touches_the_first() -> None:
    found = touched(space().view, Read((1 << 64) - 4, 8))
    assert [section.region.name for section in found] == ["", "ram"]


# -- gpa2hva ---------------------------------------------------------------------------------------


def test_what_gpa2hva_owes() -> None:
    view = space().view
    answers = {section.region.name: expected_answer(section) for section in view.cover}
    assert answers == {
        "ram": "RAM of 'ram'", "rom": "RAM of 'rom'", "device": "no RAM",
        "flash": "RAM of 'flash'", "busy flash": "no RAM", "bar": "RAM of 'bar'",
        "": "nothing mapped",
    }


def test_every_section_is_asked_at_its_ends_and_in_its_middle() -> None:
    view = space().view
    asked = [(section.region.name, addr) for section, addr in points(view, Random(1))]
    assert [addr for name, addr in asked if name == "device"] == [0x20000, 0x20008, 0x2000F]
    assert asked[-1] == ("", (1 << 64) - 1)
    assert {name for name, _ in asked} == {section.region.name for section in view.cover}


def test_the_lookup_climbs_to_the_secure_world() -> None:
    """QEMU's ``memory_region_find`` goes up from the system's region as far as it can."""
    normal = space()
    other = AddressSpace("I/O", MemoryRegion.container_of("io", 1 << 16))
    assert lookup_space([other, normal], normal) is normal
    secure = AddressSpace("cpu-secure-memory-0", MemoryRegion.container_of("secure", 1 << 64),
                          topology=normal.topology)
    secure.root.add_subregion(0, normal.root)
    assert lookup_space([other, normal, secure], normal) is secure
    assert lookup_space([other, normal], normal) is normal


# -- the dump --------------------------------------------------------------------------------------


def test_a_dump_holds_ram_and_rom_only() -> None:
    view = space().view
    assert {s.region.name for s in view.sections if is_dumped(s)} == {"ram", "rom"}
    ram = view.lookup(0)
    ram.region.nonvolatile = True
    assert not is_dumped(ram)


def test_spans_that_touch_are_one() -> None:
    spans = [Span(0x2000, 0x1000), Span(0, 0x1000), Span(0x1000, 0x10), Span(0x2800, 0x1000)]
    assert merged(spans) == [Span(0, 0x1010), Span(0x2000, 0x1800)]


def test_what_one_side_lacks() -> None:
    whole = [Span(0, 0x100), Span(0x200, 0x100)]
    part = [Span(0x10, 0x20), Span(0x80, 0x200)]
    assert list(_outside(whole, part)) == [
        Span(0, 0x10), Span(0x30, 0x50), Span(0x280, 0x80)]
    assert list(_outside(part, whole)) == [Span(0x100, 0x100)]
    assert list(_outside(whole, whole)) == []
    assert list(_outside(whole, [])) == whole


def test_both_ends_of_a_large_memory() -> None:
    large = Span(0x40000000, 16 * WINDOW)
    assert merged(windows([large])) == [
        Span(large.start, WINDOW), Span(large.last + 1 - WINDOW, WINDOW)]
    assert merged(windows([Span(0, WINDOW // 2)])) == [Span(0, WINDOW // 2)]


def test_an_account_lists_only_so_much() -> None:
    account = Account("xp")
    for number in range(MAX_DIFFERENCES + 5):
        account.differs(hex(number), "1", "2")
    assert account.full and len(account.differences) == MAX_DIFFERENCES
    assert str(account.differences[0]) == "xp at 0x0: the model says 1, QEMU 2"
