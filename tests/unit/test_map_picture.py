"""The picture of a map: its axis, its boxes, its texts; as SVG and as a page; in a terminal."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOP, build, random_tree
from rich.console import Console

from qemuglue.cli.main import main
from qemuglue.errors import UsageError
from qemuglue.memory import AddressSpace, Contract, Endian, MemoryRegion
from qemuglue.memory.contract import UNASSIGNED_CONTRACT
from qemuglue.memory.rules import RULES_10_0
from qemuglue.mirror import Mirror, type_of
from qemuglue.report import address_text
from qemuglue.report.dispatch_text import Contracts, described
from qemuglue.report.map_html import Page, draw_page, script_json
from qemuglue.report.map_layout import (
    ADVANCE,
    FONT,
    HOLE,
    LEFT,
    RIGHT,
    ROW_MIN,
    WIDTH,
    Picture,
    label,
    lay_out,
    rounded,
    shortened,
    size_text,
)
from qemuglue.report.map_svg import draw_file, heading, names_of, text, tip
from qemuglue.report.map_text import map_document, print_map, shared_views

DATA = Path(__file__).parent.parent / "data" / "mtree"
MACHINES = sorted(path.stem for path in DATA.glob("*.tree"))
RANDOMS = st.randoms(use_true_random=False)


def stored(machine: str) -> Mirror:
    def hmp(line: str) -> str:
        suffix = "flat" if "-f" in line else "tree"
        return (DATA / f"{machine}.{suffix}").read_text().replace("\n", "\r\n")

    return Mirror.take(hmp)


def pictures(mirror: Mirror) -> list[tuple[Picture, AddressSpace]]:
    return [(lay_out(names, space), space) for names, space in shared_views(mirror.spaces)]


def check(picture: Picture, space: AddressSpace) -> None:
    """What must hold of every picture."""
    rows = picture.rows
    assert rows[0].start == 0 and rows[-1].last == TOP - 1 and rows[0].y == 0
    for one, two in pairwise(rows):
        assert one.last + 1 == two.start and one.y + one.height == pytest.approx(two.y)
    assert all(row.height >= HOLE for row in rows)
    # Marks of 11 pixels stand at the top of each row.
    assert HOLE >= 11 * 1.3 and ROW_MIN >= HOLE
    top = [box for box in picture.boxes if not box.layer]
    assert [(box.start, box.size, box.region, box.offset) for box in top] == [
        (section.start, section.size, section.region, section.offset)
        for section in space.view.sections
    ]
    for box, section in zip(top, space.view.sections, strict=True):
        assert box.type == ("rom" if section.readonly else type_of(section.region))
    for box in picture.boxes:
        assert box.height > 0 and LEFT <= box.left < box.free + 1 < box.right <= RIGHT < WIDTH
        assert label(box).length * ADVANCE * FONT <= box.right - box.free - 16 + 1e-6
        assert label(box).name, "a box without a name says nothing"
        shown = space.view.lookup(box.start)
        if not box.layer:
            assert shown.region is box.region
        elif shown.region is box.region:
            assert shown.offset + box.start - shown.start != box.offset, "hidden by itself"
    layers: dict[int, list[object]] = {}
    for box in picture.boxes:
        layers.setdefault(box.layer, []).append(box)
    for boxes in layers.values():
        for one, two in pairwise(boxes):
            assert one.last < two.start and one.y + one.height <= two.y + 1e-6
    for row, more in picture.deeper:
        assert more == len(row.stack) - 1 - max(layers) > 0


# Section: the layout


@pytest.mark.parametrize("machine", MACHINES)
def test_real_machines_are_drawn_whole(machine: str) -> None:
    for picture, space in pictures(stored(machine)):
        check(picture, space)


@settings(max_examples=120, deadline=None)
@given(RANDOMS, st.sampled_from([24, 1 << 20, (1 << 63) + 5, TOP]), st.integers(1, 20))
def test_random_trees_are_drawn_whole(rng: Random, room: int, nodes: int) -> None:
    space = AddressSpace("s", build(random_tree(rng, room=room, nodes=nodes))[0])
    check(lay_out(["s"], space), space)


def test_height_grows_with_the_logarithm() -> None:
    root = MemoryRegion.container_of("root", TOP)
    at = 0x1000
    for bits in (0, 12, 30, 40):
        root.add_subregion(at, MemoryRegion.io(f"d{bits}", 1 << bits))
        at += 2 << bits
    picture = lay_out(["s"], AddressSpace("s", root))
    heights = [box.height for box in picture.boxes]
    steps = [(b - a) / bits for (a, b), bits in zip(pairwise(heights), (12, 18, 10), strict=True)]
    assert heights[0] == ROW_MIN and steps == pytest.approx([steps[0]] * 3) and steps[0] > 0
    assert {row.height for row in picture.rows if not row.stack} == {HOLE}


def test_what_is_hidden_lies_behind() -> None:
    root = MemoryRegion.container_of("root", TOP)
    ram, rom = MemoryRegion.ram("ram", 0x4000), MemoryRegion.rom("rom", 0x1000)
    root.add_subregion(0, ram)
    root.add_subregion_overlap(0x1000, MemoryRegion.alias_of("window", rom, 0, 0x1000), 2)
    root.add_subregion_overlap(0x1800, MemoryRegion.io("dev", 0x10), 3)
    picture = lay_out(["s"], AddressSpace("s", root))
    drawn = [(box.layer, box.start, box.last, box.region.name, box.offset, box.via)
             for box in picture.boxes]
    assert drawn == [
        (2, 0x1800, 0x180F, "ram", 0x1800, ()),
        (1, 0x1000, 0x17FF, "ram", 0x1000, ()), (1, 0x1800, 0x180F, "rom", 0x800, ("window",)),
        (1, 0x1810, 0x1FFF, "ram", 0x1810, ()),
        (0, 0, 0xFFF, "ram", 0, ()), (0, 0x1000, 0x17FF, "rom", 0, ("window",)),
        (0, 0x1800, 0x180F, "dev", 0, ()), (0, 0x1810, 0x1FFF, "rom", 0x810, ("window",)),
        (0, 0x2000, 0x3FFF, "ram", 0x2000, ()),
    ]
    told = tip(picture, picture.boxes[1], Contracts())
    assert told[0] == "ram, ram, 2 KiB, hidden here" and "hidden by rom" in told
    assert "seen through the alias window" in tip(picture, picture.boxes[5], Contracts())
    assert "hides rom, ram" in tip(picture, picture.boxes[6], Contracts())
    assert heading(picture)[1] == "5 ranges, 4 hidden"


def test_the_same_bytes_elsewhere_are_told() -> None:
    picture = pictures(stored("11.1-x86_64-q35"))
    box = next(box for each, _ in picture for box in each.boxes if box.start == 0xE0000)
    owner = next(each for each, _ in picture if box in each.boxes)
    assert [twin.start for twin in owner.twins(box)] == [0xFFFC0000]
    assert "the same bytes also answer at 0xfffe0000" in tip(owner, box, Contracts())
    [twin] = owner.twins(box)
    assert "the same bytes also answer at 0xe0000" in tip(owner, twin, Contracts())
    ram = next(box for box in owner.boxes if box.region.name == "pc.ram" and not box.layer)
    assert owner.twins(ram) == []


def test_more_layers_than_there_is_room_for_are_counted() -> None:
    root = MemoryRegion.container_of("root", TOP)
    root.add_subregion(0x10000, MemoryRegion.ram("else", 0x1000))
    for number in range(8):
        root.add_subregion_overlap(0, MemoryRegion.ram(f"r{number}", 0x1000), number)
    picture = lay_out(["s"], AddressSpace("s", root))
    assert picture.layers == 4 and [(row.start, more) for row, more in picture.deeper] == [(0, 3)]
    assert "+3 deeper" in draw_file("t", "", [picture], Contracts())


def test_texts() -> None:
    assert [size_text(n) for n in (1, 0x1000, 0x180000, 2092, 43431, TOP, (1 << 63) + 1)] == [
        "1 B", "4 KiB", "1536 KiB", "2092 B", "~42.4 KiB", "16 EiB", "~8 EiB"]
    assert [rounded(n) for n in (1, 1023, 1024, 0xF6C00000, TOP)] == [
        "1 B", "1023 B", "1 KiB", "3.9 GiB", "16 EiB"]
    assert shortened("xlnx.versal-ospi-dac", 12) == "xlnx.v…i-dac"
    assert shortened("abc", 3) == "abc" and shortened("abcd", 3) == ""
    for room in range(4, 30):
        assert len(shortened("a" * 40, room)) == room
    root = MemoryRegion.container_of("root", 0)
    names = ["cpu", "dma", "dma", "x" * 30, "y" * 30]
    assert names_of(lay_out(names, AddressSpace("s", root))) == "cpu, dma (2 of them) and 2 more"


def test_contracts_in_words() -> None:
    assert [described(contract) for contract in (
        Contract(), Contract(4, 4), Contract(4, 8, impl_max=8), Contract(1, 4, True, 4, 4),
        Contract(impl_min=8, endian=Endian.BIG), UNASSIGNED_CONTRACT,
    )] == [
        "takes any size, aligned; pieces of 1 to 4 bytes; byte order not seen",
        "takes 4 bytes, aligned; 4-byte pieces; byte order not seen",
        "takes 4 to 8 bytes, aligned; pieces of 4 to 8 bytes; byte order not seen",
        "takes 1 to 4 bytes, unaligned too; 4-byte pieces; byte order not seen",
        "takes any size, aligned; 8-byte pieces; big-endian", "refuses every access",
    ]


# Section: untrusted names

HOSTILE = (
    "</script><img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "'; DROP \\u003c", "]]>",
    "<!--", "&lt;b&gt;", "a\x00b\x1b[31m\x7f", "\ud800\ufffe", "\u2028@DATA@", "{{7*7}}",
    "@SCRIPT@", "", "n" * 3000,
)
_PAGE_TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "p", "div", "aside", "form",
    "label", "input", "button", "code", "section", "details", "summary", "main", "nav", "script",
    "svg", "g", "rect", "path", "text", "tspan", "pattern", "defs", "h2", "ul", "li", "span", "a",
}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.targets: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.targets += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def hostile_page() -> tuple[Page, list[Picture]]:
    root = MemoryRegion.container_of(HOSTILE[0], TOP)
    for number, name in enumerate(HOSTILE):
        device = MemoryRegion.io(name, 0x100, owner=name)
        root.add_subregion_overlap(number * 0x180, device, number)
        window = MemoryRegion.alias_of(name, device, 0x10, 0x80)
        root.add_subregion_overlap(0x100000 + number * 0x40, window, number)
    space = AddressSpace(HOSTILE[1], root, rules=RULES_10_0)
    picture = lay_out(list(HOSTILE), space)
    page = Page(HOSTILE[0], HOSTILE[1], [(picture, space)], Contracts(), RULES_10_0)
    return page, [picture]


def test_names_are_no_markup_in_a_page() -> None:
    page = draw_page(hostile_page()[0])
    seen = Tags()
    seen.feed(page)
    assert set(seen.tags) <= _PAGE_TAGS and seen.tags.count("script") == 2
    assert seen.tags.count("svg") < 10 and "img" not in seen.tags
    assert not [name for name in seen.attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in seen.targets)
    assert any("</script><img src=x onerror=alert(1)>" in said for said in seen.said)
    assert "\x00" not in page and "\x1b" not in page and page.encode()
    [data] = re.findall(r'<script type="application/json" id="map-data">(.*?)</script>', page)
    assert "<" not in data and {region["n"] for region in json.loads(data)["regions"]} == set(
        HOSTILE)


def test_names_are_no_markup_in_a_picture() -> None:
    drawn = ET.fromstring(draw_file(HOSTILE[0], HOSTILE[1], hostile_page()[1], Contracts()))
    tags = {element.tag.rpartition("}")[2] for element in drawn.iter()}
    assert tags <= {"svg", "title", "style", "defs", "pattern", "path", "rect", "text", "tspan",
                    "g"}
    assert not any(name.startswith("on") for element in drawn.iter() for name in element.attrib)
    titles = [element.text or "" for element in drawn.iter() if element.tag.endswith("title")]
    assert any(HOSTILE[0] in title for title in titles)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_survives(value: str) -> None:
    clean = ET.fromstring(f'<a b="{text(value)}">{text(value)}</a>')
    assert (clean.text or "") == (clean.get("b") or "").replace("\r", "\n") or "\n" in value or (
        "\t" in value)
    assert json.loads(script_json({"value": value})) == {"value": value}
    assert not set("<>&\u2028\u2029") & set(script_json(value))


def test_nothing_is_fetched() -> None:
    page, drawn = hostile_page()
    for whole in (draw_page(page), draw_file("t", "", drawn, Contracts())):
        assert set(re.findall(r"https?://[^\"' ]+", whole)) <= {"http://www.w3.org/2000/svg"}
        assert "@import" not in whole
        assert set(re.findall(r"url\((.*?)\)", whole)) <= {"#hatch0"}


# Section: what is in the files


@pytest.mark.parametrize("machine", MACHINES)
def test_every_range_is_in_both_files(machine: str) -> None:
    views = pictures(stored(machine))
    drawn = ET.fromstring(draw_file(machine, "", [picture for picture, _ in views], Contracts()))
    page = draw_page(Page(machine, "", views, Contracts(), RULES_10_0))
    assert len(page) < 3 << 20
    in_page = Tags()
    in_page.feed(page)
    boxes = [(element.get("data-a"), element.get("data-l"))
             for element in drawn.iter() if element.get("data-d") == "0"]
    wanted = [(f"{section.start:#x}", f"{section.last:#x}")
              for _, space in views for section in space.view.sections]
    assert boxes == wanted
    pattern = r'data-a="(\w+)" data-l="(\w+)" data-d="0"'
    assert re.findall(pattern, page) == wanted
    assert in_page.tags.count("ul") == page.count("</ul>")
    assert in_page.tags.count("li") == page.count("</li>")


def test_the_page_tells_the_script_what_the_model_says() -> None:
    """The script finds who answers as the first claim that does; so does this."""
    views = pictures(stored("11.1-x86_64-q35"))
    page = draw_page(Page("m", "", views, Contracts(), RULES_10_0))
    [text_of] = re.findall(r'id="map-data">(.*?)</script>', page)
    data = json.loads(text_of)
    for view, (_, space) in zip(data["views"], views, strict=True):
        for section in space.view.cover:
            for address in (section.start, section.last):
                found = next((
                    (data["regions"][number]["n"], int(offset, 0) + address - int(start, 0))
                    for start, last, number, offset, _, _ in view["claims"]
                    if int(start, 0) <= address <= int(last, 0) and data["regions"][number]["a"]
                ), None)
                want = (section.region.name, section.offset + address - section.start)
                assert found == (want if section.assigned else None)
        assert view["rows"][0][0] == "0x0"


def test_json_has_what_the_picture_shows() -> None:
    mirror = stored("11.1-x86_64-q35")
    document = map_document(mirror, mirror.spaces, tree=False, flat=True)
    memory = next(space for space in document["spaces"] if space["name"] == "memory")
    [hidden] = memory["hidden"]
    assert (hidden["start"], hidden["last"], hidden["region"], hidden["layer"]) == (
        "0xc0000", "0xfffff", "pc.ram", 1)
    bios = next(each for each in memory["ranges"] if each["start"] == "0xe0000")
    assert bios["aliases"][-1] == "isa-bios" and bios["over"] == ["pc.ram"]


# Section: a terminal


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_a_terminal_of_any_width_is_kept_to(width: int) -> None:
    mirror = stored("11.1-x86_64-q35")
    console = Console(width=width, force_terminal=True, file=io.StringIO(), color_system="standard")
    print_map(console, mirror, mirror.spaces, tree=True, flat=True)
    assert isinstance(console.file, io.StringIO)
    plain = re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= width
    assert "i/o a device" in plain and "hpet" in plain and "apic-msi" in plain
    assert ("/machine/q35/ioapic" in plain) == (width >= 130)
    assert plain.count("nothing is mapped") == 1


def test_a_pipe_has_whole_lines_and_no_legend() -> None:
    mirror = stored("11.1-x86_64-q35")
    console = Console(width=250, file=io.StringIO())
    print_map(console, mirror, mirror.spaces, tree=False, flat=True)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "00000000fed00000-00000000fed003ff" in said and "a device" not in said
    assert "/machine/q35/ioapic" in said


# Section: addresses


def test_an_address_is_explained() -> None:
    mirror = stored("11.1-x86_64-q35")
    asked = address_text.question("0xe0010,4,read")
    told = address_text.explain(mirror.memory, ["memory"], asked, 0xE0010, Contracts())
    assert address_text.lines(told) == [
        "0xe0010 -> pc.bios + 0x20010, memory, writes are refused",
        "  in        memory: 0xe0000 to 0xfffff, rom, /machine/unattached",
        "  seen by   alias pam-pci, then isa-bios",
        "  4 bytes   read copied",
        "  beneath   pc.ram + 0xe0010",
        "  beneath   pc.bios + 0x20010",
        "  inside    pci + 0xe0010, pci + 0xe0010, system + 0xe0010",
    ]
    document = address_text.document(told)
    assert document["accesses"] == [{
        "size": 4, "write": False, "text": "copied",
        "dispatches": [{"address": "0xe0010", "size": 4, "region": "pc.bios",
                        "offset": "0x20010", "what": "copied", "pieces": [], "reason": None}],
    }]
    hole = address_text.explain(mirror.memory, ["memory"], address_text.question("1"), 1 << 40,
                                Contracts())
    assert address_text.lines(hole)[0] == "0x10000000000 -> nothing answers"
    assert "refused (rejected)" in address_text.lines(hole)[2]


def test_places_by_name() -> None:
    mirror = stored("11.1-x86_64-q35")
    spaces = [mirror.memory]
    assert address_text.locate("hpet", spaces) == (mirror.memory, 0xFED00000)
    assert address_text.locate("hpet+0x4", spaces) == (mirror.memory, 0xFED00004)
    assert address_text.locate("pc.bios+0x20001", spaces)[1] == 0xE0001
    for wrong in ("nix", "hpet+0x400", "hpet+", "+4"):
        with pytest.raises(UsageError, match="nothing here shows"):
            address_text.locate(wrong, spaces)


@pytest.mark.parametrize("word", [
    "", ",4", "0x1,0", "0x1,5000", "0x1,four", "0x1,read,4", "0x1,read,write", "0x1,4,4",
    "0x10000000000000000", "0x1,", "0x1,read,read",
])
def test_bad_addresses_are_one_sentence(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["map", "x86_64/q35", "--address", word]) == 2
    said = capsys.readouterr().err
    assert said.startswith("qemuglue map: ") and said.count("\n") == 1
