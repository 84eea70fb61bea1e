"""One machine's map as a plain value, to be compared with another build's.

A snapshot is what QEMU itself says, without any model in between: its flat views (``info mtree
-f``), the blocks of RAM that a migration stream names (``info ramblock``), the PCI functions with
their base address registers (QMP ``query-pci``; nothing has placed them under ``-S``, so they are
in no view), and the QOM types of the owners (``info qom-tree``).

What differs between two runs or two releases without meaning anything is left out or made alike
here, so that comparing is comparing values:

* numbers of flat views and the order of spaces and views (QEMU keeps both in hash tables);
* the type ``container`` of 11.1 and later, which says that a region lies in no other
  (``memory_region_type``): before it was printed ``i/o``, and ``i/o`` it is here;
* ``/machine/unattached/device[7]``: a number given in order of creation. An owner is told by its
  QOM type; its path, numbers blotted out, stands in where the tree does not list it;
* the priority of a range: it decides who is seen, and the view shows who is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from qemuglue.errors import ProtocolError, UsageError
from qemuglue.qemu.monitor import Monitor, MonitorRefused
from qemuglue.qemu.mtree import FLAT_COMMAND, FlatLine, FlatText, Owner, parse_flat

SCHEMA = 1

#: Asked for the blocks of RAM and for the types of owners.
BLOCKS_COMMAND = "info ramblock"
QOM_COMMAND = "info qom-tree"
#: The flat views without owners, for machines that cannot print them (``qemu/quirks.py``).
BARE_FLAT_COMMAND = "info mtree -f"

#: More than this of anything is garbage: q35 with 837 devices has 4,000 ranges, 1,700 blocks.
MAX_BLOCKS = 100_000
MAX_FUNCTIONS = 65_536
#: PCI bridges inside each other; there are 256 buses in all.
MAX_BUS_DEPTH = 256
#: Base address registers of a function, and its ROM's (number 6).
MAX_BARS = 7

_BLOCK = re.compile(
    r" *(?P<name>\S.*?|) +\d+ [KMGTPE]?i?B  0x[0-9a-f]{16} 0x(?P<used>[0-9a-f]{16})"
    r" 0x(?P<total>[0-9a-f]{16})(?: 0x[0-9a-f]{16}  r[ow])?"
)
_QOM_LINE = re.compile(r"( *)/(\S.*) \(([^()]*)\)")
_NUMBER = re.compile(r"\[\d+\]")


@dataclass(frozen=True, slots=True)
class MapRange:
    """One range of a view: ``size`` bytes from ``start`` show region ``name`` from ``offset`` on.

    ``type`` is ``ram rom romd ramd i/o``; QEMU prints ``rom`` for whatever is read-only.
    ``owner`` is the QOM type of the region's owner, or a path without numbers, or "".
    """

    start: int
    size: int
    type: str
    name: str
    offset: int = 0
    owner: str = ""
    nonvolatile: bool = False

    @property
    def last(self) -> int:
        """The last address, inclusive."""
        return self.start + self.size - 1


@dataclass(frozen=True, slots=True)
class View:
    """A flat view and the address spaces that show it: names, sorted, repeated as often as
    QEMU has spaces of that name. ``root`` is "" where nothing is rendered."""

    spaces: tuple[str, ...]
    root: str
    ranges: tuple[MapRange, ...]


@dataclass(frozen=True, slots=True)
class RamBlock:
    """A block of RAM under its name in the migration stream; bytes in use, and the most there
    can be (equal unless the block may be resized)."""

    name: str
    used: int
    total: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register: ``number`` 0-5, 6 the ROM's; ``kind`` io, mem, mem64, or one of
    the latter two with ``-pref``."""

    number: int
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class PciFunction:
    """``place`` is root bus, then slot.function for each bridge on the way and for itself
    (``0/1e.0/02.0``): bus numbers are firmware's to give. ``ident`` is vendor:device, hex."""

    place: str
    ident: str
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A machine's map on one build; everything sorted, so that equal machines are equal."""

    machine: str
    build: str
    version: str
    views: tuple[View, ...]
    blocks: tuple[RamBlock, ...] = ()
    functions: tuple[PciFunction, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON types only; :func:`from_json` gives the snapshot back."""
        return {"schema": SCHEMA, **asdict(self)}


def take_snapshot(
    monitor: Monitor, *, machine: str, build: str, version: str, owners: bool = True,
) -> Snapshot:
    """Ask a running QEMU for its map; without ``owners`` where it cannot print these.

    :raise ProtocolError: an answer is not what QEMU prints.
    :raise QemuFailure: QEMU ended or hung.
    """
    types = parse_qom_types(monitor.hmp(QOM_COMMAND)) if owners else {}
    flat = monitor.hmp(FLAT_COMMAND if owners else BARE_FLAT_COMMAND)
    return Snapshot(
        machine, build, version, views_of(parse_flat(flat), types),
        parse_blocks(monitor.hmp(BLOCKS_COMMAND)),
        _functions(monitor),
    )


# Section: reading


def views_of(views: tuple[FlatText, ...], types: Mapping[str, str]) -> tuple[View, ...]:
    """The views as plain values; ``types`` are the QOM types of owners by path."""
    found = [
        View(
            tuple(sorted(space.name for space in view.spaces)), view.root or "",
            tuple(_range(line, types) for line in view.ranges),
        )
        for view in views
    ]
    return tuple(sorted(found, key=lambda view: (view.spaces, view.root, _order(view.ranges))))


def _order(ranges: tuple[MapRange, ...]) -> tuple[tuple[int, int, str], ...]:
    return tuple((each.start, each.size, each.name) for each in ranges)


def _range(line: FlatLine, types: Mapping[str, str]) -> MapRange:
    kind = "i/o" if line.type == "container" else line.type
    return MapRange(
        line.start, line.last - line.start + 1, kind, line.name, line.offset,
        owner_type(line.owner, types), line.nonvolatile,
    )


def owner_type(owner: Owner, types: Mapping[str, str]) -> str:
    """The owner as it compares between builds: a type, or "" where the region has none.

    What lies in ``/machine/unattached`` itself belongs to nobody. An object without a path, such
    as the port lists that own their regions from 9.x on, stands for what it is part of.
    """
    path = owner.path
    inside, bracket, rest = path.rpartition("/<")
    if bracket and rest.endswith(">"):
        path = inside
    if path in ("", "/machine/unattached"):
        return ""
    if path == "/machine":
        return "machine"  # the type of this one has the machine's name in it
    if path.startswith("id="):
        return path
    return types.get(path) or _NUMBER.sub("[]", path)


def parse_qom_types(text: str) -> dict[str, str]:
    """Path to type, from ``info qom-tree``: children are indented by two under their parent, the
    root is printed with its whole path. A line that is none is passed over: types only make
    owners readable."""
    types: dict[str, str] = {}
    path: list[str] = []
    for line in text.splitlines():
        match = _QOM_LINE.fullmatch(line)
        if match is None or len(match[1]) // 2 > len(path):
            continue
        del path[len(match[1]) // 2:]
        path.append(f"/{match[2]}")
        types["".join(path)] = match[3]
    return types


def parse_blocks(text: str) -> tuple[RamBlock, ...]:
    """The blocks of ``info ramblock``, by name. Nameless ones are left out: a block gets its name
    from ``vmstate_register_ram``, and without one it is in no migration stream
    (``qemu_ram_is_migratable``).

    :raise ProtocolError: a line is no block; the message has its number.
    """
    blocks: list[RamBlock] = []
    lines = text.splitlines()
    if not lines or "Block Name" not in lines[0]:
        raise _bad(1, "no heading", text)
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        match = _BLOCK.fullmatch(line)
        if match is None or number > MAX_BLOCKS:
            raise _bad(number, "not a block of RAM", line)
        if match["name"]:
            blocks.append(RamBlock(match["name"], int(match["used"], 16), int(match["total"], 16)))
    return tuple(sorted(blocks, key=lambda block: (block.name, block.used)))


def _bad(line: int, what: str, text: str) -> ProtocolError:
    return ProtocolError(f"line {line}: {what}", channel=BLOCKS_COMMAND, text=text[:200])


def _functions(monitor: Monitor) -> tuple[PciFunction, ...]:
    try:
        buses = monitor.execute("query-pci")
    except MonitorRefused:
        return ()  # a target without PCI
    return pci_functions(buses)


def pci_functions(buses: Any) -> tuple[PciFunction, ...]:
    """The functions in an answer to ``query-pci``, by place.

    :raise ProtocolError: it is no such answer.
    """
    try:
        found = [
            function for number, bus in enumerate(buses)
            for function in _bus(f"{number}", bus["devices"], MAX_BUS_DEPTH)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"not an answer to query-pci: {type(error).__name__} {error}",
                            channel="query-pci", text=repr(buses)[:200]) from None
    if len(found) > MAX_FUNCTIONS:
        raise ProtocolError(f"more than {MAX_FUNCTIONS} PCI functions", channel="query-pci")
    return tuple(sorted(found, key=lambda function: function.place))


def _bus(path: str, devices: Any, depth: int) -> Iterator[PciFunction]:
    if not depth:
        raise ValueError(f"more than {MAX_BUS_DEPTH} bridges inside each other")
    for device in devices:
        place = f"{path}/{device['slot']:02x}.{device['function']:x}"
        ident = f"{device['id']['vendor']:04x}:{device['id']['device']:04x}"
        yield PciFunction(place, ident, tuple(_bar(region) for region in device["regions"]))
        behind = device.get("pci_bridge", {}).get("devices")
        if behind:
            yield from _bus(place, behind, depth - 1)


def _bar(region: Any) -> Bar:
    kind = "io" if region["type"] == "io" else "mem"
    kind += "64" * bool(region.get("mem_type_64")) + "-pref" * bool(region.get("prefetch"))
    number, size = int(region["bar"]), int(region["size"])
    if not 0 <= number < MAX_BARS or not 0 < size < 1 << 64:
        raise ValueError(f"register {number} of {size} bytes")
    return Bar(number, kind, size)


# Section: JSON

_T = TypeVar("_T")


def from_json(data: Any) -> Snapshot:
    """The snapshot that ``to_json`` made.

    :raise UsageError: it is none, or of another schema; one sentence says what is wrong.
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UsageError(f"not a snapshot of schema {SCHEMA}: take it again with this version")
    rest = {key: value for key, value in data.items() if key != "schema"}
    try:
        plain = _typed(Snapshot, rest)
        return Snapshot(
            plain.machine, plain.build, plain.version,
            tuple(_view(each) for each in plain.views),
            tuple(_typed(RamBlock, each) for each in plain.blocks),
            tuple(_function(each) for each in plain.functions),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"a damaged snapshot ({error}): take it again") from None


def _view(data: Any) -> View:
    plain = _typed(View, data)
    if not all(isinstance(name, str) for name in plain.spaces):
        raise TypeError("the name of a space is no text")
    return View(tuple(plain.spaces), plain.root,
                tuple(_typed(MapRange, each) for each in plain.ranges))


def _function(data: Any) -> PciFunction:
    plain = _typed(PciFunction, data)
    return PciFunction(plain.place, plain.ident, tuple(_typed(Bar, each) for each in plain.bars))


def _typed(kind: type[_T], data: Any) -> _T:
    """``kind(**data)``, each field of its declared type, none unknown and none missing."""
    if not isinstance(data, dict):
        raise TypeError(f"{kind.__name__} is no object")
    wanted = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    if data.keys() != wanted.keys():
        raise TypeError(f"{kind.__name__} has {', '.join(sorted(map(str, data)))}")
    for name, declared in wanted.items():
        needed = {"int": int, "str": str, "bool": bool}.get(declared, (list, tuple))
        value: Any = data[name]
        if not isinstance(value, needed) or (declared == "int" and isinstance(value, bool)):
            raise TypeError(f"{kind.__name__}.{name} is {type(value).__name__}, not {declared}")
        if isinstance(value, int) and not 0 <= value <= 1 << 64:
            raise ValueError(f"{kind.__name__}.{name} is {value}")
    return kind(**data)
