"""A memory map for people at a terminal, and the same as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qemuglue.memory import AddressSpace, MemoryRegion, RegionKind
from qemuglue.mirror import Mirror, type_of
from qemuglue.mirror.layers import layers
from qemuglue.mirror.shadow import Occurrence, occurrences
from qemuglue.mirror.views import owner_of

#: Colour of each type; what is not here is plain.
_STYLES = {
    "ram": "green", "rom": "yellow", "romd": "magenta", "ramd": "cyan", "i/o": "blue",
    "alias": "italic", "container": "dim",
}
#: Differences that are printed; a wrong order can make hundreds.
MAX_DIFFERENCES = 20
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def exactness(mirror: Mirror) -> str:
    """One line: how far the model's views equal QEMU's, and what they took to do so."""
    return (
        f"{mirror.score} views exact; inferred {mirror.inference}; "
        f"{mirror.plain.exact} exact without inference"
    )


def print_map(
    console: Console, mirror: Mirror, spaces: Sequence[AddressSpace], *, tree: bool, flat: bool
) -> None:
    """The views of ``spaces``, their trees, or both; spaces that share one are one table."""
    for names, space in _shared(spaces):
        if flat:
            console.print(_flat_table(mirror, names, space))
            console.print()
        if tree:
            console.print(_tree_table(names, space))
            console.print()
    for fact in mirror.inference.facts:
        console.print(Text(f"inferred: {fact}", "dim"))
    for difference in mirror.differences[:MAX_DIFFERENCES]:
        console.print(Text(f"differs: {difference}", "bold red"))
    if len(mirror.differences) > MAX_DIFFERENCES:
        console.print(Text(f"differs: {len(mirror.differences) - MAX_DIFFERENCES} more", "red"))
    console.print(Text(exactness(mirror), "bold" if mirror.exact else "bold red"))


def _shared(spaces: Sequence[AddressSpace]) -> list[tuple[str, AddressSpace]]:
    """(names, one of them) of the spaces that have a root in common, empty ones together."""
    groups: dict[object, list[AddressSpace]] = {}
    for space in spaces:
        root = space.view.root
        groups.setdefault("empty" if root is None else root, []).append(space)
    return [(", ".join(space.name for space in group), group[0]) for group in groups.values()]


def _flat_table(mirror: Mirror, names: str, space: AddressSpace) -> Table:
    table = Table(title=Text(names, "bold"), title_justify="left", box=None, pad_edge=False)
    table.add_column("addresses", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column("region", no_wrap=True)
    table.add_column("offset", justify="right", no_wrap=True)
    table.add_column("over")
    table.add_column("owner", style="dim", overflow="ellipsis", no_wrap=True)
    for section in space.view.sections:
        region = section.region
        kind = "rom" if section.readonly else type_of(region)
        table.add_row(
            f"{section.start:016x}-{section.last:016x}", _size(section.size),
            Text(kind, _STYLES.get(kind, "")), Text(region.name, _STYLES.get(kind, "")),
            f"{section.offset:#x}" if section.offset else "",
            Text(", ".join(_beneath(space, section.start, region)), "dim"),
            Text(owner_of(region)),
        )
    if not space.view.sections:
        table.add_row(Text("nothing is mapped", "dim"))
    return table


def _beneath(space: AddressSpace, addr: int, winner: MemoryRegion) -> list[str]:
    """Names of what would answer at ``addr`` if ``winner`` did not, topmost first."""
    if space.view.root is None:
        return []
    return list(dict.fromkeys(
        layer.region.name for layer in layers(space.view.root, addr)
        if layer.region.terminates and layer.region is not winner
    ))


def _tree_table(names: str, space: AddressSpace) -> Table:
    title = Text.assemble((names, "bold"), " (tree)")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("addresses", no_wrap=True)
    table.add_column("prio", justify="right", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column("region", no_wrap=True)
    table.add_column("seen")
    for one in occurrences(space):
        region = one.region
        kind = _kind(region)
        style = "dim strike" if one.state == "disabled" else _STYLES.get(kind, "")
        table.add_row(
            f"{one.start:016x}-{one.last & (1 << 64) - 1:016x}", str(region.priority),
            Text(kind, style), Text("  " * one.depth + _name(region), style), _seen(one),
        )
    return table


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
    mirror: Mirror, spaces: Sequence[AddressSpace], *, tree: bool, flat: bool
) -> dict[str, Any]:
    """The map as plain data, without what only the caller knows (build, machine)."""
    inference = mirror.inference
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
        "differences": [str(difference) for difference in mirror.differences],
        "spaces": [_space_document(space, tree=tree, flat=flat) for space in spaces],
    }


def _space_document(space: AddressSpace, *, tree: bool, flat: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"name": space.name, "root": space.root.name}
    if flat:
        document["ranges"] = [
            {
                "start": f"{s.start:#x}", "last": f"{s.last:#x}", "size": f"{s.size:#x}",
                "type": "rom" if s.readonly else type_of(s.region),
                "region": s.region.name, "owner": owner_of(s.region), "offset": f"{s.offset:#x}",
                "priority": s.region.priority, "nonvolatile": s.nonvolatile,
                "over": _beneath(space, s.start, s.region),
            }
            for s in space.view.sections
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
