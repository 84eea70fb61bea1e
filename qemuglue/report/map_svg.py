"""Memory maps as SVG: one file, no script, nothing fetched; and the drawing that a page embeds.

Every text that came from QEMU goes through ``text``. Colours are written out and not as CSS
variables, which many readers of SVG do not know; dark mode is a media query.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from qemuglue.memory import MemoryRegion
from qemuglue.memory.region import MASK64
from qemuglue.mirror.views import owner_of
from qemuglue.report.dispatch_text import Contracts, described
from qemuglue.report.map_layout import (
    LEFT,
    RIGHT,
    ROW_MIN,
    ROW_UNIT,
    WIDTH,
    Box,
    Picture,
    Row,
    label,
    rounded,
    size_text,
)

#: Of each type: fill, edge and bar in light mode, then in dark mode.
PALETTE = {
    "ram": ("#d8f0dc", "#4f9a63", "#2f8a4a", "#1d3a27", "#4f9a63", "#58b877"),
    "rom": ("#fbe9c6", "#b98a2c", "#b07d12", "#40331a", "#a5843c", "#dba63a"),
    "romd": ("#f3dcf2", "#a75ba5", "#98409a", "#3d2440", "#a468a4", "#d27fd2"),
    "ramd": ("#d3eff1", "#3d939b", "#1f838d", "#16393d", "#3d939b", "#4fc0ca"),
    "i/o": ("#dbe7fa", "#5c83c4", "#3567b5", "#1f3050", "#5c83c4", "#7ba6ee"),
    "container": ("#eceef1", "#8b929c", "#6d7580", "#2c3138", "#7a828d", "#9aa3af"),
}
MEANINGS = {
    "ram": "memory", "rom": "memory that is not written", "romd": "reads memory, writes a device",
    "ramd": "memory of a host's device", "i/o": "a device", "container": "a container",
}
_FONTS = 'ui-monospace,"DejaVu Sans Mono",Menlo,Consolas,"Liberation Mono",monospace'
#: (class, property, light, dark) beside the types'.
_COLOURS = (
    ("ink", "fill", "#1c2128", "#e6e9ee"), ("dim", "fill", "#5b6470", "#a0a8b4"),
    ("tick", "stroke", "#b8bfc8", "#4a525d"), ("hole", "fill", "#f4f5f7", "#191d23"),
    ("break", "stroke", "#b8bfc8", "#4a525d"), ("strip", "fill", "#eceef1", "#262c34"),
    ("hatchline", "stroke", "#68707c", "#8b94a1"),
)
#: Height of the strip that shows where in 64 bits a view lies, with its marks.
STRIP = 48.0
#: Height of the line that names the columns.
COLUMNS = 28.0
_BITS = ((0, "0"), (10, "1 KiB"), (20, "1 MiB"), (30, "1 GiB"), (40, "1 TiB"), (50, "1 PiB"),
         (60, ""), (64, ""))


def text(value: str) -> str:
    """Safe in XML and HTML, in content and in quoted attributes. What XML cannot hold at all
    becomes U+FFFD."""
    clean = "".join(
        c if c in "\t\n" or (c >= " " and c != "\x7f" and not "\ud800" <= c <= "\udfff"
                             and c not in "\ufffe\uffff") else "\ufffd"
        for c in value
    )
    return escape(clean, {'"': "&quot;", "'": "&#39;"})


def css_class(kind: str) -> str:
    """A type as the name of a class; ``i/o`` has a character that none may have."""
    return "t-" + (kind if kind in PALETTE else "container").replace("/", "")


def style() -> str:
    """The rules of the drawing, light and dark."""
    def rules(dark: int) -> str:
        lines = [f".{name}{{{what}:{colours[dark]}}}" for name, what, *colours in _COLOURS]
        for kind, colours in PALETTE.items():
            fill, edge, bar = colours[3 * dark : 3 * dark + 3]
            name = css_class(kind)
            lines.append(f".{name} .box{{fill:{fill};stroke:{edge}}}.{name} .bar{{fill:{bar}}}"
                         f".{name}.mark{{fill:{bar}}}")
        return "".join(lines)

    return (
        f"text{{font:12px {_FONTS}}}text.small{{font-size:11px}}"
        "text.head{font:600 15px system-ui,sans-serif}text.plain{font:12px system-ui,sans-serif}"
        ".tick,.break,.hatchline{fill:none}.behind .box{stroke-dasharray:3 2}"
        ".backdrop .box{fill-opacity:.45}"
        f"{rules(0)}@media(prefers-color-scheme:dark){{{rules(1)}}}"
    )


def hatch(name: str) -> str:
    """The pattern that lies over what is hidden; ``name`` is its id."""
    return (f'<pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><path class="hatchline" stroke-opacity=".38" '
            'd="M0 0V6"/></pattern>')


# Section: one view


def view_height(picture: Picture) -> float:
    """Of ``draw_view``."""
    return STRIP + COLUMNS + picture.height + 20


def draw_view(
    picture: Picture, contracts: Contracts, *, view: int = 0,
    numbers: Mapping[MemoryRegion, int] | None = None,
) -> str:
    """The elements of one view, ``WIDTH`` wide, from y = 0 on. ``view`` is its number, which
    goes into ids; ``numbers`` are a page's, by which its script knows regions."""
    parts = [_strip(picture), f'<g transform="translate(0,{STRIP:g})">{_columns(picture)}</g>',
             f'<g class="rows" transform="translate(0,{STRIP + COLUMNS:g})">']
    parts += [_hole(row) for row in picture.rows if not row.stack]
    parts += [_box(picture, box, contracts, view, numbers or {}) for box in picture.boxes]
    parts += [_address(row) for row in picture.rows]
    parts += [
        f'<text class="small dim" x="{RIGHT - 6:g}" y="{row.y + row.height - 5:.1f}" '
        f'text-anchor="end">+{more} deeper</text>'
        for row, more in picture.deeper
    ]
    end = picture.height
    parts.append(f'<path class="tick" d="M{LEFT - 6:g} {end:.1f}H{LEFT:g}"/>'
                 f'<text class="small dim" x="{LEFT - 9:g}" y="{end + 4:.1f}" '
                 'text-anchor="end">2^64</text></g>')
    return "".join(parts)


def _columns(picture: Picture) -> str:
    behind = ""
    if picture.layers:
        x = min(box.free for box in picture.boxes if box.layer == 1) + 8
        behind = f'<text class="plain dim" x="{x:g}" y="15">hidden behind it</text>'
    return (f'<text class="plain dim" x="{LEFT - 9:g}" y="15" text-anchor="end">from address</text>'
            f'<text class="plain dim" x="{LEFT + 10:g}" y="15">what answers</text>{behind}')


def _address(row: Row) -> str:
    return (f'<path class="tick" d="M{LEFT - 6:g} {row.y:.1f}H{LEFT:g}"/>'
            f'<text class="small {"ink" if row.stack else "dim"}" x="{LEFT - 9:g}" '
            f'y="{row.y + 4:.1f}" text-anchor="end">{row.start:#x}</text>')


def _hole(row: Row) -> str:
    """A stretch nobody claims, with the mark of a cut axis."""
    middle = row.y + row.height / 2
    size = row.last - row.start + 1
    says = "nothing up to 2^64" if row.last == MASK64 else f"nothing for {rounded(size)}"
    title = f"nothing answers from {row.start:#x} to {row.last:#x}"
    return (
        f'<g class="gap" data-a="{row.start:#x}" data-l="{row.last:#x}"><title>{title}</title>'
        f'<rect class="hole" x="{LEFT:g}" y="{row.y:.1f}" width="{RIGHT - LEFT:g}" '
        f'height="{row.height:.1f}"/>'
        f'<path class="break" d="M{LEFT:g} {middle - 3:.1f}l4 3l-8 3l4 3"/>'
        f'<text class="small dim" x="{LEFT + 10:g}" y="{middle + 4:.1f}">{says}</text></g>'
    )


def _box(
    picture: Picture, box: Box, contracts: Contracts, view: int,
    numbers: Mapping[MemoryRegion, int],
) -> str:
    lines = tip(picture, box, contracts)
    says = label(box)
    x = max(box.left, box.free)
    baseline = box.y + min(box.height / 2 + 4, 18)
    names = f"b {css_class(box.type)}" + (" behind" if box.layer else "") + (
        " backdrop" if box.backdrop else "")
    known = f' data-r="{numbers[box.region]}"' if box.region in numbers else ""
    stops = ' tabindex="0"' if not (box.layer or box.backdrop) else ""
    parts = [
        f'<g class="{names}" data-a="{box.start:#x}" data-l="{box.last:#x}" '
        f'data-d="{box.layer}"{known} role="img" aria-label="{text("; ".join(lines))}"{stops}>'
        f'<title>{text(chr(10).join(lines))}</title>'
        f'<rect class="box" x="{box.left:g}" y="{box.y + .5:.1f}" rx="2" '
        f'width="{box.right - box.left:g}" height="{box.height - 1:.1f}"/>'
    ]
    if box.layer:
        parts.append(f'<rect class="hatch" fill="url(#hatch{view})" x="{box.free:g}" '
                     f'y="{box.y + 1:.1f}" width="{box.right - box.free:g}" '
                     f'height="{box.height - 2:.1f}"/>')
    else:
        parts.append(f'<rect class="bar" x="{box.left:g}" y="{box.y + .5:.1f}" width="4" '
                     f'height="{box.height - 1:.1f}"/>')
    if says.name:
        owner = f'<tspan class="dim" dx="12">{text(says.owner)}</tspan>' if says.owner else ""
        parts.append(f'<text class="{"dim" if box.layer else "ink"}" x="{x + 10:g}" '
                     f'y="{baseline:.1f}">{text(says.name)}{owner}</text>')
    if says.beside:
        parts.append(f'<text class="dim" x="{box.right - 6:g}" y="{baseline:.1f}" '
                     f'text-anchor="end">{text(says.beside)}</text>')
    return "".join(parts) + "</g>"


def tip(picture: Picture, box: Box, contracts: Contracts) -> list[str]:
    """What is told of a box when somebody points at it, a line each."""
    name = box.region.name or "(unnamed)"
    to = box.offset + box.size - 1
    lines = [
        f"{name}, {box.type}, {size_text(box.size)}" + (", hidden here" if box.layer else ""),
        f"{box.start:#x} to {box.last:#x} is {name} + {box.offset:#x} to {to:#x}",
    ]
    if box.via:
        lines.append("seen through the alias " + ", then ".join(box.via))
    over, above = _others(picture, box)
    if above:
        lines.append("hidden by " + _named(above))
    if over:
        lines.append("hides " + _named(over))
    twins = [] if box.layer else picture.twins(box)
    if twins:
        lines.append("the same bytes also answer at " + _named([
            f"{other.start + max(box.offset - other.offset, 0):#x}" for other in twins]))
    if box.type not in ("ram", "rom"):
        known = contracts.of(box.region, box.type == "romd")
        if known.contract is not None:
            lines.append(described(known.contract))
        elif contracts.probed:
            lines.append(f"contract: {known.unknown}")
    if owner_of(box.region):
        lines.append(owner_of(box.region))
    return lines


def _others(picture: Picture, box: Box) -> tuple[list[str], list[str]]:
    """Names of what lies behind a box, and before it."""
    over: dict[str, None] = {}
    above: dict[str, None] = {}
    for row in picture.rows_of(box):
        above.update((picture.claims[n].region.name, None) for n in row.stack[:box.layer])
        over.update((picture.claims[n].region.name, None) for n in row.stack[box.layer + 1:])
    return list(over), list(above)


def _named(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(name or "(unnamed)" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _strip(picture: Picture) -> str:
    """Where in 64 bits the view lies: one axis, logarithmic in the address."""
    left, width = 6.0, WIDTH - 12.0

    def x(addr: int) -> float:
        return left + width * (math.log2(addr) if addr > 1 else 0.0) / 64

    parts = [f'<g class="overview"><rect class="strip" x="{left:g}" y="6" width="{width:g}" '
             'height="16" rx="2"/>']
    for box in picture.boxes:
        if box.layer:
            continue
        wide = max(x(box.last + 1) - x(box.start), 1.5)
        at = min(x(box.start), left + width - wide)
        faint = ' fill-opacity=".35"' if box.backdrop else ""
        parts.append(f'<rect class="mark {css_class(box.type)}" data-a="{box.start:#x}" '
                     f'x="{at:.2f}" y="6" width="{wide:.2f}" height="16"{faint}/>')
    for bit, name in _BITS:
        anchor = "start" if not bit else "middle"
        parts.append(f'<path class="tick" d="M{x(1 << bit):.1f} 22v4"/><text class="small dim" '
                     f'x="{x(1 << bit):.1f}" y="38" text-anchor="{anchor}">{name}</text>')
    parts.append(f'<text class="small dim" x="{left + width:g}" y="38" text-anchor="end">2^64'
                 '</text></g>')
    return "".join(parts)


# Section: a whole file


def swatch(kind: str, x: float = 1.0) -> str:
    """A sample of a type, 16 by 12."""
    return (f'<g class="{css_class(kind)}"><rect class="box" x="{x:g}" y="1" width="16" '
            f'height="12" rx="2"/><rect class="bar" x="{x:g}" y="1" width="4" height="12"/></g>')


def legend(kinds: Sequence[str]) -> str:
    """The types that occur, in a line."""
    parts: list[str] = []
    x = 6.0
    for kind in kinds:
        says = f"{kind}: {MEANINGS[kind]}"
        parts.append(f'{swatch(kind, x)}<text class="plain dim" x="{x + 21:g}" y="11">'
                     f"{text(says)}</text>")
        x += 46 + 6.4 * len(says)
    return "".join(parts)


def scale(x: float = 6.0) -> str:
    """How tall a row of which size is."""
    parts = [f'<text class="plain dim" x="{x:g}" y="48">height of a row of</text>']
    x += 118
    for bits, name in ((0, "1 B"), (12, "4 KiB"), (30, "1 GiB"), (40, "1 TiB")):
        tall = ROW_MIN + ROW_UNIT * bits
        parts.append(f'<path class="tick" stroke-width="3" d="M{x:g} 50v{-tall:.1f}"/>'
                     f'<text class="small dim" x="{x + 5:g}" y="49">{name}</text>')
        x += 62
    return "".join(parts)


HOW_TO_READ = (
    "Addresses grow downwards. A row is as tall as the logarithm of its size: the same bit more "
    "for every doubling.",
    "Stretches where nothing answers are cut short. What is hidden sticks out behind what hides "
    "it. ← names an alias.",
)


def draw_file(title: str, subtitle: str, pictures: Sequence[Picture], contracts: Contracts) -> str:
    """A whole SVG document with every view below the other."""
    kinds = [kind for kind in PALETTE
             if any(box.type == kind for picture in pictures for box in picture.boxes)]
    head = [
        f'<text class="head ink" x="6" y="24" style="font-size:18px">{text(title)}</text>',
        f'<text class="plain dim" x="6" y="43">{text(subtitle)}</text>',
        f'<g transform="translate(0,56)">{legend(kinds)}</g>',
        *(f'<text class="plain dim" x="6" y="{92 + 17 * n}">{text(line)}</text>'
          for n, line in enumerate(HOW_TO_READ)),
        f'<g transform="translate(0,116)">{scale()}</g>',
    ]
    y = 184.0
    body: list[str] = []
    for number, picture in enumerate(pictures):
        says = heading(picture)
        body.append(f'<text class="head ink" x="6" y="{y + 18:g}">{text(says[0])}</text>'
                    f'<text class="plain dim" x="6" y="{y + 36:g}">{text(says[1])}</text>')
        y += 46
        if not picture.boxes:
            y += 14
            continue
        body.append(f'<g transform="translate(0,{y:g})">'
                    f'{draw_view(picture, contracts, view=number)}</g>')
        y += view_height(picture) + 24
    patterns = "".join(hatch(f"hatch{number}") for number in range(len(pictures)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0f}" '
        f'viewBox="0 0 {WIDTH} {y:.0f}" role="group" aria-label="{text(title)}">'
        f"<title>{text(title)}</title><style>{style()}"
        "svg{max-width:100%;height:auto}.page{fill:#fff}"
        "@media(prefers-color-scheme:dark){.page{fill:#12161b}}</style>"
        f'<defs>{patterns}</defs><rect class="page" width="100%" height="100%"/>'
        f'{"".join(head)}{"".join(body)}</svg>\n'
    )


def names_of(picture: Picture, room: int = 60) -> str:
    """The spaces that show a view, each name once, as many as ``room`` characters hold."""
    names = [name + (f" ({n} of them)" if n > 1 else "")
             for name, n in Counter(picture.names).items()]
    shown = names[0]
    for number, name in enumerate(names[1:], 1):
        if len(shown) + len(name) > room - 12:
            return f"{shown} and {len(names) - number} more"
        shown += f", {name}"
    return shown


def heading(picture: Picture) -> tuple[str, str]:
    """(names of the spaces, what there is in them)."""
    flat = sum(not box.layer for box in picture.boxes)
    if not flat:
        return names_of(picture), "nothing is mapped"
    backdrop = next((box for box in picture.boxes if box.backdrop), None)
    hidden = sum(bool(box.layer) for box in picture.boxes)
    told = f"{flat} range{'s' * (flat != 1)}, {hidden or 'nothing'} hidden"
    if backdrop is not None and flat > 1:
        told += f"; {backdrop.region.name} lies behind it all and answers where nothing else does"
    return names_of(picture), told
