"""A memory map as a web page: one file that fetches nothing, and works without its script too.

The script draws nothing and decides nothing: the picture is ``map_svg``'s, what lies where are
the mirror's claims, and how an access is cut stands in tables the model's rules made. Names come
from QEMU and are not trusted: in markup they are escaped, to the script they are JSON in which
``<`` cannot occur, and the script puts them into text nodes only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from qemuglue.memory import AddressSpace, Contract, MemoryRegion, RegionKind
from qemuglue.memory.rules import Rules
from qemuglue.mirror import type_of
from qemuglue.mirror.shadow import Occurrence, occurrences
from qemuglue.mirror.views import owner_of
from qemuglue.report.dispatch_text import (
    MEMORY_WORDS,
    READ_ONLY,
    Contracts,
    described,
    in_words,
    table,
)
from qemuglue.report.map_layout import WIDTH, Picture
from qemuglue.report.map_svg import (
    HOW_TO_READ,
    MEANINGS,
    PALETTE,
    draw_view,
    hatch,
    heading,
    names_of,
    scale,
    style,
    swatch,
    text,
    view_height,
)
from qemuglue.witness.contract_table import Accepts, veto_words
from qemuglue.witness.fastmap import is_io_root

#: Lines of a tree that are written; a board with 837 devices has 4,000.
MAX_TREE = 20_000


@dataclass(frozen=True, slots=True)
class Page:
    """What a page is made of. ``views`` pairs each picture with a space that shows it;
    ``ports`` are the spaces entered by ``in`` and ``out``. ``about`` goes under the title."""

    title: str
    about: str
    views: Sequence[tuple[Picture, AddressSpace]]
    contracts: Contracts
    rules: Rules
    ports: Sequence[AddressSpace] = ()


def draw_page(page: Page) -> str:
    """The HTML text."""
    known = _Known(page)
    parts = {
        "TITLE": text(f"{page.title}: memory map"), "HEADING": text(page.title),
        "SUBTITLE": text(page.about), "STYLE": _file("page.css") + style(),
        "LEGEND": _legend(page), "HOW": _how(), "VIEWS": "\n".join(
            _view(number, picture, space, page.contracts, known)
            for number, (picture, space) in enumerate(page.views)
        ),
        "EXAMPLE": text(_example(page)), "DATA": script_json(known.document()),
        "SCRIPT": _file("page.js"),
    }
    whole = _file("page.html")
    pieces = whole.split("@")
    # Odd pieces are names: one pass, so that nothing that was put in is looked at again.
    return "".join(piece if number % 2 == 0 else parts[piece]
                   for number, piece in enumerate(pieces))


def script_json(value: Any) -> str:
    """JSON that can stand inside a ``script`` element: no ``<``, and no line separators."""
    plain = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return (files("qemuglue.report") / "map_page" / name).read_text(encoding="utf-8")


def _legend(page: Page) -> str:
    kinds = [kind for kind in PALETTE
             if any(box.type == kind for picture, _ in page.views for box in picture.boxes)]
    return '<p class="legend">' + "".join(
        f'<span><svg width="18" height="14" aria-hidden="true">{swatch(kind)}</svg>'
        f"{text(kind)}: {MEANINGS[kind]}</span>" for kind in kinds
    ) + "</p>"


def _how() -> str:
    svg = f'<svg width="390" height="54" aria-hidden="true">{scale(1.0)}</svg>'
    said = "".join(f"<p>{text(line)}</p>" for line in HOW_TO_READ)
    return (f"{said}{svg}<p>Point at a box or move with Tab to read about it; click it, or press "
            "Enter, to have an access there explained. / goes to the search.</p>")


def _example(page: Page) -> str:
    """An address of this machine that shows what the search can do: a device's, if there is
    one."""
    boxes = [box for picture, _ in page.views[:1] for box in picture.boxes if not box.layer]
    device = [box for box in boxes if box.type == "i/o" and box.size > 4] or boxes
    return f"{device[len(device) // 2].start + 4:#x}" if device else "0x1000"


def _view(
    number: int, picture: Picture, space: AddressSpace, contracts: Contracts, known: _Known
) -> str:
    name, told = heading(picture)
    drawing = ""
    if picture.boxes:
        high = view_height(picture)
        drawing = (
            f'<svg viewBox="0 0 {WIDTH} {high:.0f}" width="{WIDTH}" height="{high:.0f}" '
            f'role="group" aria-label="{text(name)}"><defs>{hatch(f"hatch{number}")}</defs>'
            f"{draw_view(picture, contracts, view=number, numbers=known.numbers)}</svg>"
        )
    return (f'<section class="view" id="view{number}"><h2>{text(", ".join(_names(picture)))}</h2>'
            f'<p class="sub">{text(told)}</p>{drawing}{_tree(space)}</section>')


def _names(picture: Picture) -> list[str]:
    return list(dict.fromkeys(picture.names))


# Section: the tree


def _tree(space: AddressSpace) -> str:
    """The space's regions inside each other, as nested lists."""
    lines = list(occurrences(space))[:MAX_TREE]
    parts = [f'<details class="tree"><summary>Tree of regions ({len(lines)})</summary>']
    depth = -1
    for one in lines:
        if one.depth > depth:
            parts.append("<ul>" * (one.depth - depth))
        else:
            parts.append("</li>" + "</ul></li>" * (depth - one.depth))
        depth = one.depth
        parts.append(f"<li>{_leaf(one)}")
    parts.append("</li></ul>" * (depth + 1) + "</details>")
    return "".join(parts)


def _leaf(one: Occurrence) -> str:
    region = one.region
    name = text(region.name or "(unnamed)")
    if region.alias is not None:
        kind = "alias"
        name += f" → {text(region.alias.name)} + {region.alias_offset:#x}"
    else:
        kind = "container" if region.kind is RegionKind.CONTAINER else type_of(region)
    said = ""
    if one.state != "shown":
        by = f" by {', '.join(one.hidden_by)}" if one.hidden_by else ""
        word = "partly hidden" if one.state == "partly" else one.state
        lost = ' class="lost"' if one.state in ("hidden", "partly") else ' class="faint"'
        said = f" <span{lost}>{text(word + by)}</span>"
    off = ' class="off"' if one.state == "disabled" else ""
    return (f'<span{off}><a class="mono" href="#{one.start:#x}">{one.start:#x}</a> {name}</span> '
            f'<span class="faint">{kind}, to {one.last:#x}, priority {region.priority}</span>'
            f"{said}")


# Section: what the script is told


class _Known:
    """Regions and contracts of a page, each once."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.numbers: dict[MemoryRegion, int] = {}
        self._contracts: dict[tuple[Contract, bool], int] = {}
        self._root_names = {space.root for space in page.ports}
        for picture, _ in page.views:
            for claim in picture.claims:
                self.numbers.setdefault(claim.region, len(self.numbers))

    def document(self) -> dict[str, Any]:
        """The data of the page: addresses as hexadecimal texts, since JavaScript's numbers end
        at 2^53."""
        views = [self._view(picture, space in self._page.ports)
                 for picture, space in self._page.views]
        ports = {claim.region for picture, space in self._page.views
                 if space in self._page.ports for claim in picture.claims}
        regions = [self._region(region, region in ports) for region in self.numbers]
        return {
            "schema": 1, "regions": regions, "views": views,
            "contracts": [self._contract(*key) for key in self._contracts],
            "words": {
                "ram": MEMORY_WORDS["ram"], "rom": MEMORY_WORDS["rom"],
                "readonly": MEMORY_WORDS[READ_ONLY],
                "romd": "reads are memory, writes go to the device",
                "root": "no port here: reads all ones",
            },
        }

    def _view(self, picture: Picture, ports: bool) -> dict[str, Any]:
        return {
            "names": _names(picture), "title": names_of(picture, 34), "ports": ports,
            "rows": [[f"{row.start:#x}", round(row.y, 1), round(row.height, 1)]
                     for row in picture.rows],
            "claims": [
                [f"{claim.start:#x}", f"{claim.last:#x}", self.numbers[claim.region],
                 f"{claim.offset:#x}", [alias.name for alias in claim.aliases],
                 int(claim.readonly)]
                for claim in picture.claims
            ],
        }

    def _region(self, region: MemoryRegion, port: bool) -> dict[str, Any]:
        reads, writes = (self._page.contracts.of(region, is_write) for is_write in (False, True))
        veto = reads.accepts or writes.accepts
        return {
            "n": region.name, "t": type_of(region), "o": owner_of(region),
            "a": int(region.terminates), "mem": _memory(region),
            "r": self._number(reads.contract, port), "w": self._number(writes.contract, port),
            "vr": _ranges(reads.accepts), "vw": _ranges(writes.accepts),
            "why": reads.unknown, "veto": veto_words(veto) if veto is not None else "",
        }

    def _number(self, contract: Contract | None, port: bool) -> int:
        if contract is None:
            return -1
        single = port and self._page.rules.ports_single_dispatch
        return self._contracts.setdefault((contract, single), len(self._contracts))

    def _contract(self, contract: Contract, single: bool) -> dict[str, Any]:
        rows = table(self._page.rules, contract, single=single)
        return {
            "words": described(contract),
            "cuts": [[[in_words(steps), [step.size for step in steps]] for steps in row]
                     for row in rows],
        }


def _memory(region: MemoryRegion) -> str:
    """How the host's path treats it: ``ram``, ``rom``, ``romd``, ``root`` (of the ports), or ""
    for a device."""
    if region.kind is RegionKind.ROM_DEVICE and region.romd:
        return "romd"
    if region.kind in (RegionKind.RAM, RegionKind.ROM):
        return "rom" if region.readonly else "ram"
    return "root" if region.terminates and is_io_root(region) else ""


def _ranges(accepts: Accepts | None) -> list[list[Any]] | None:
    if accepts is None:
        return None
    return [[each.size, f"{each.start:#x}", f"{each.last:#x}", f"{each.step:#x}"]
            for each in accepts.ranges]
