"""A memory map for people at a terminal, and the same as a JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qemuglue.memory import AddressSpace, MemoryRegion, RegionKind
from qemuglue.memory.region import MASK64
from qemuglue.mirror import Mirror, type_of
from qemuglue.mirror.layers import layers
from qemuglue.mirror.shadow import Occurrence, occurrences
from qemuglue.mirror.views import owner_of
from qemuglue.report.dispatch_text import Contracts, contract_document
from qemuglue.report.map_layout import Picture, lay_out
from qemuglue.report.map_svg import MEANINGS

#: Colour of each type; what is not here is plain.
_STYLES = {
    "ram": "green", "rom": "yellow", "romd": "magenta", "ramd": "cyan", "i/o": "blue",
    "alias": "italic", "container": "dim",
}
#: Columns from which on a terminal has room for owners and for addresses of 16 digits.
_ROOMY = 130
#: Columns that are kept for what hides a region.
_SEEN = 22
#: Differences that are printed; a wrong order can make hundreds.
MAX_DIFFERENCES = 20
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def exactness(mirror: Mirror) -> str:
    """One line: how far the model's views equal QEMU's, and what they took to do so."""
    by_name = f"{mirror.known} known by name; " if mirror.known.total else ""
    return (
        f"{mirror.score} views exact; inferred {mirror.inference}; {by_name}"
        f"{mirror.plain.exact} exact without inference"
    )


def print_map(
    console: Console, mirror: Mirror, spaces: Sequence[AddressSpace], *, tree: bool, flat: bool
) -> None:
    """The views of ``spaces``, their trees, or both; spaces that share one are one table. A
    terminal gets a legend of the colours, and as much as its width has room for."""
    if console.is_terminal and (flat or tree):
        console.print(_legend(tree, console.width))
        console.print()
    for names, space in shared_views(spaces):
        if flat and not space.view.sections:
            console.print(Text.assemble((_listed(names), "bold"), ": nothing is mapped"))
            console.print()
        elif flat:
            console.print(_flat_table(_listed(names), space, console))
            console.print()
        if tree:
            console.print(_tree_table(_listed(names), space, console))
            console.print()
    for fact in mirror.inference.facts:
        console.print(Text(f"inferred: {fact}", "dim"))
    for difference in mirror.differences[:MAX_DIFFERENCES]:
        console.print(Text(f"differs: {difference}", "bold red"))
    if len(mirror.differences) > MAX_DIFFERENCES:
        console.print(Text(f"differs: {len(mirror.differences) - MAX_DIFFERENCES} more", "red"))
    console.print(Text(exactness(mirror), "bold" if mirror.exact else "bold red"))


def shared_views(spaces: Sequence[AddressSpace]) -> list[tuple[list[str], AddressSpace]]:
    """(names, one of them) of the spaces that have a root in common, empty ones together."""
    groups: dict[object, list[AddressSpace]] = {}
    for space in spaces:
        root = space.view.root
        groups.setdefault("empty" if root is None else root, []).append(space)
    return [([space.name for space in group], group[0]) for group in groups.values()]


def _listed(names: Sequence[str]) -> str:
    """Each name once, with how often it comes."""
    return ", ".join(name + (f" ({count} of them)" if count > 1 else "")
                     for name, count in Counter(names).items())


def _legend(tree: bool, width: int) -> Text:
    """Each type in its colour; no entry is broken over two lines."""
    words = [(kind, meaning) for kind, meaning in MEANINGS.items() if kind != "container"]
    if tree:
        words += [("alias", "shows another region"), ("container", "holds others")]
    legend = Text()
    used = 0
    for kind, meaning in words:
        entry = Text.assemble((kind, _STYLES[kind]), (f" {meaning}", "dim"))
        if used and used + 3 + len(entry) > width:
            legend.append("\n")
            used = 0
        legend.append("   " if used else "").append_text(entry)
        used += len(entry) + (3 if used else 0)
    return legend


def _digits(space: AddressSpace, console: Console) -> int:
    """Of an address: 16, or as many as the last one mapped has where there is little room."""
    if not console.is_terminal or console.width >= _ROOMY or not space.view.sections:
        return 16
    return max(8, len(f"{space.view.sections[-1].last:x}"))


def _flat_table(names: str, space: AddressSpace, console: Console) -> Table:
    roomy = not console.is_terminal or console.width >= _ROOMY
    digits = _digits(space, console)
    table = Table(title=Text(names, "bold"), title_justify="left", box=None, pad_edge=False)
    table.add_column("addresses", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column("region", no_wrap=True, overflow="ellipsis")
    table.add_column("offset", justify="right", no_wrap=True)
    table.add_column("over")
    if roomy:
        table.add_column("owner", style="dim", overflow="ellipsis", no_wrap=True)
    for section in space.view.sections:
        region = section.region
        kind = "rom" if section.readonly else type_of(region)
        row = [
            Text(f"{section.start:0{digits}x}-{section.last:0{digits}x}"),
            Text(_size(section.size)),
            Text(kind, _STYLES.get(kind, "")), Text(region.name, _STYLES.get(kind, "")),
            Text(f"{section.offset:#x}" if section.offset else ""),
            Text(", ".join(_beneath(space, section.start, region)), "dim"),
        ]
        table.add_row(*row, *([Text(owner_of(region))] if roomy else []))
    return table


def _beneath(space: AddressSpace, addr: int, winner: MemoryRegion) -> list[str]:
    """Names of what would answer at ``addr`` if ``winner`` did not, topmost first."""
    if space.view.root is None:
        return []
    return list(dict.fromkeys(
        layer.region.name for layer in layers(space.view.root, addr)
        if layer.region.terminates and layer.region is not winner
    ))


def _tree_table(names: str, space: AddressSpace, console: Console) -> Table:
    digits = _digits(space, console)
    title = Text.assemble((names, "bold"), " (tree)")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("addresses", no_wrap=True)
    table.add_column("prio", justify="right", no_wrap=True)
    table.add_column("type", no_wrap=True)
    # Whoever hides what is the point of the table: names give way to it.
    room = None
    if console.is_terminal:
        room = max(console.width - (2 * digits + 1) - 5 - 9 - _SEEN - 4 * 2, 16)
    table.add_column("region", no_wrap=True, overflow="ellipsis", max_width=room)
    table.add_column("seen")
    for one in occurrences(space):
        region = one.region
        kind = _kind(region)
        style = "dim strike" if one.state == "disabled" else _STYLES.get(kind, "")
        table.add_row(
            Text(f"{one.start:0{digits}x}-{_last(one, digits)}"), str(region.priority),
            Text(kind, style), Text("  " * one.depth + _name(region), style), _seen(one),
        )
    return table


def _last(one: Occurrence, digits: int) -> str:
    last = one.last & MASK64
    return "2^64-1" if digits < 16 and last == MASK64 else f"{last:0{digits}x}"


def _kind(region: MemoryRegion) -> str:
    if region.kind in (RegionKind.ALIAS, RegionKind.CONTAINER):
        return "alias" if region.alias is not None else "container"
    return type_of(region)


def _name(region: MemoryRegion) -> str:
    if region.alias is None:
        return region.name
    return f"{region.name} -> {region.alias.name}+{region.alias_offset:#x}"


def _seen(one: Occurrence) -> Text:
    if one.state == "shown":
        return Text("")
    style = {"hidden": "red", "partly": "yellow"}.get(one.state, "dim")
    by = f" by {', '.join(one.hidden_by)}" if one.hidden_by else ""
    return Text(("partly hidden" if one.state == "partly" else one.state) + by, style)


def _size(size: int) -> str:
    """Exact, in the largest unit that divides it."""
    unit = 0
    while size % 1024 == 0 and unit < len(_UNITS) - 1:
        size //= 1024
        unit += 1
    return f"{size} {_UNITS[unit]}"


# Section: JSON. Addresses, sizes and offsets are hexadecimal texts: many readers of JSON have
# no integers of 64 bits.


def map_document(
    mirror: Mirror, spaces: Sequence[AddressSpace], *, tree: bool, flat: bool,
    contracts: Contracts | None = None,
) -> dict[str, Any]:
    """The map as plain data, without what only the caller knows (build, machine). With
    ``contracts`` that were probed every range tells its region's."""
    inference = mirror.inference
    pictures = {space.view: lay_out([], space) for space in spaces} if flat else {}
    return {
        "exact": mirror.exact,
        "views": {
            "exact": mirror.score.exact, "total": mirror.score.total,
            "exact_without_inference": mirror.plain.exact,
        },
        "inferred": {
            "pairs": inference.pairs, "bits": inference.bits, "aliases": inference.aliases,
            "facts": list(inference.facts),
        },
        "known_by_name": list(mirror.known.facts),
        "differences": [str(difference) for difference in mirror.differences],
        "spaces": [
            _space_document(space, pictures.get(space.view), tree, contracts or Contracts())
            for space in spaces
        ],
    }


def _space_document(
    space: AddressSpace, picture: Picture | None, tree: bool, contracts: Contracts
) -> dict[str, Any]:
    document: dict[str, Any] = {"name": space.name, "root": space.root.name}
    if picture is not None:
        document["ranges"] = _ranges(space, picture, contracts)
        document["hidden"] = [
            {
                "start": f"{box.start:#x}", "last": f"{box.last:#x}", "layer": box.layer,
                "type": box.type, "region": box.region.name, "owner": owner_of(box.region),
                "offset": f"{box.offset:#x}", "aliases": list(box.via),
            }
            for box in picture.boxes if box.layer
        ]
    if tree:
        document["tree"] = [
            {
                "depth": one.depth, "start": f"{one.start:#x}", "size": f"{one.region.size:#x}",
                "priority": one.region.priority, "type": _kind(one.region),
                "region": one.region.name, "owner": owner_of(one.region),
                "alias": None if one.region.alias is None else {
                    "region": one.region.alias.name, "offset": f"{one.region.alias_offset:#x}",
                },
                "state": one.state, "hidden_by": list(one.hidden_by),
            }
            for one in occurrences(space)
        ]
    return document


def _ranges(
    space: AddressSpace, picture: Picture, contracts: Contracts
) -> list[dict[str, Any]]:
    boxes = {box.start: box for box in picture.boxes if not box.layer}
    found = []
    for s in space.view.sections:
        each = {
            "start": f"{s.start:#x}", "last": f"{s.last:#x}", "size": f"{s.size:#x}",
            "type": "rom" if s.readonly else type_of(s.region),
            "region": s.region.name, "owner": owner_of(s.region), "offset": f"{s.offset:#x}",
            "priority": s.region.priority, "nonvolatile": s.nonvolatile,
            "over": _beneath(space, s.start, s.region), "aliases": list(boxes[s.start].via),
        }
        if contracts.probed:
            each["contract"] = contract_document(contracts, s.region)
        found.append(each)
    return found
