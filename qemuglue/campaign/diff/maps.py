"""What changed between two maps of one machine, each change told once.

Two snapshots in, a list of :class:`MapChange` out; no QEMU, no model. Three things are compared:
flat views, blocks of RAM, PCI functions with their base address registers.

**Spaces** are paired by name; spaces of one name (hundreds of devices can have a ``bus master``
space each) first with the view that equals theirs. Every pair of views is compared once, however
many spaces show it, and a change that several views show is one change with all their names.

**Ranges** of a pair of views, in this order:

1. A range that is in one view only, and has a twin in the other (name, owner, type, offset, size)
   that is in that one only, has *moved*. A region with a single range in both views that keeps
   an edge was *resized*, if nothing else took or held the bytes between. (One that keeps no edge
   and has another size was moved and resized.)
2. All other bytes are compared address by address, and neighbouring bytes with the same answer
   are one change: *added* and *removed* where one side has nothing or where a whole range lies
   inside what the other side shows; *renamed* where the extent, type and offset are the same and
   the name is another; *owner*, *retyped*, *read-only*, *offset*, *nonvolatile* where only that
   differs; *replaced* for the rest.

A root that answers for itself where nothing is mapped (the I/O space's ``io``) counts as nothing.

**What a guest can see** (``MapChange.visible``), and so must not change on a versioned machine
type, which stands for the same virtual hardware in every release:

* where the CPUs' memory and the I/O ports have RAM, ROM or devices, where each begins and ends,
  and whether it can be written: a driver finds its device there, and saved state is loaded into
  it (``qemu_loadvm_state`` compares no addresses, so nothing else would notice);
* which part of a region is shown: the bytes differ;
* names and sizes of RAM blocks. They are in the migration stream: a block of an unknown name or of
  another length ends an incoming migration (``parse_ramblocks``: "Unknown ramblock", "Size
  mismatch"; only a resizeable block takes another length, up to its maximum);
* PCI identities and the shape of base address registers: the guest has read and assigned them,
  and an incoming migration compares these bytes of configuration space (``get_pci_config_device``).

Not visible, hence never an error: names and owners of regions (they are in no stream and on no
bus), ``nonvolatile`` (it tells the host's dump, not the guest), and views of devices that only
their DMA could tell apart, mostly empty until firmware enables bus mastering.

A ROM is as large as the firmware file that the build's package brings. Where the packages' files
explain another size (``diff/firmware``), the change is told with the file's name, and is
not the machine type's: it is a note.
"""

from __future__ import annotations

import enum
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qemuglue.campaign.diff.ranges import Kind, RangeChange, compare_ranges
from qemuglue.mirror.snapshot import MapRange, PciFunction, RamBlock, Snapshot, View


class Subject(enum.Enum):
    """What kind of thing changed."""

    RANGE = "range"
    SPACE = "address space"
    BLOCK = "RAM block"
    FUNCTION = "PCI function"
    BAR = "PCI base address register"


#: Changes of ranges that no guest can see.
_HIDDEN = frozenset({Kind.RENAMED, Kind.OWNER, Kind.NONVOLATILE})

#: Spaces that the guest's software itself reaches: a CPU's, the machine's, the ports.
_GUEST_SPACE = re.compile(r"cpu-.*|memory|I/O")


@dataclass(frozen=True, slots=True)
class MapChange:
    """One change. ``where`` is an address or address range of ``spaces``, the name of a block,
    a PCI place; ``before`` and ``after`` are words, free of addresses where the change is not
    about them, so that the same change on other machines has the same words. ``visible``: a guest
    or a migration notices (the module's text has the rules). ``sizes`` are bytes before and after,
    -1 where there are none, ``names`` those of the regions or blocks. ``firmware``: the size may be
    that of a firmware file; ``because`` names it where it is."""

    subject: Subject
    kind: Kind
    where: str
    before: str
    after: str
    visible: bool
    spaces: tuple[str, ...] = ()
    sizes: tuple[int, int] = (-1, -1)
    names: tuple[str, ...] = ()
    firmware: bool = False
    because: str = ""

    @property
    def alike(self) -> tuple[str, ...]:
        """Equal for one change met on several machines, or at several addresses."""
        return (self.subject.value, self.kind.value, self.before, self.after, self.because,
                str(self.visible))

    def __str__(self) -> str:
        return f"{self.place}: {self.told}"

    @property
    def told(self) -> str:
        """What happened, without where."""
        what = "" if self.subject is Subject.RANGE else f"{self.subject.value} "
        because = f" ({self.because})" if self.because else ""
        return f"{what}{self.kind.value}: {self.before} -> {self.after}{because}"

    @property
    def place(self) -> str:
        """The most telling of the spaces and the address in it, or ``where`` alone."""
        return f"{space_label(self.spaces)} {self.where}" if self.spaces else self.where

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.subject.value, "kind": self.kind.value, "where": self.where,
            "before": self.before, "after": self.after, "visible": self.visible,
            "spaces": list(self.spaces), "because": self.because or None,
        }


def compare_maps(before: Snapshot, after: Snapshot) -> list[MapChange]:
    """Everything that changed, views first."""
    return [
        *_views(before.views, after.views),
        *_blocks(before.blocks, after.blocks),
        *_functions(before.functions, after.functions),
    ]


def guest_visible(spaces: Iterable[str]) -> bool:
    """Whether the guest's software itself reaches one of these spaces."""
    return any(_GUEST_SPACE.fullmatch(name) for name in spaces)


def space_label(spaces: Sequence[str]) -> str:
    """One name for many: ``memory`` for the CPUs' and the machine's, ``I/O``, else the first."""
    distinct = set(spaces)
    if "I/O" in distinct:
        return "I/O"
    if any(_GUEST_SPACE.fullmatch(name) for name in distinct):
        whole = distinct & {"memory", "cpu-memory-0"}
        return "memory" if whole else sorted(filter(_GUEST_SPACE.fullmatch, distinct))[0]
    return f"{sorted(distinct)[0]!r}" if distinct else ""


# Section: views


def _views(before: Sequence[View], after: Sequence[View]) -> Iterator[MapChange]:
    pairs, alone = _paired(before, after)
    for name, number in sorted(alone.items()):
        if not number:
            continue
        words = repr(name) if abs(number) == 1 else f"{abs(number)} of {name!r}"
        gone = number < 0
        yield MapChange(
            Subject.SPACE, Kind.REMOVED if gone else Kind.ADDED, name,
            words if gone else "none", "none" if gone else words, guest_visible((name,)),
        )
    found: dict[tuple[object, ...], tuple[MapChange, set[str]]] = {}
    for a, b, spaces in pairs:
        for change in compare_ranges(_answers(a), _answers(b)):
            told = _range_change(change)
            key = (told.kind, told.where, told.before, told.after)
            found.setdefault(key, (told, set()))[1].update(spaces)
    for told, names in found.values():
        visible = told.visible and guest_visible(names)
        yield replace(told, spaces=tuple(sorted(names)), visible=visible)


def _paired(
    before: Sequence[View], after: Sequence[View]
) -> tuple[list[tuple[View, View, set[str]]], Counter[str]]:
    """Pairs of views that differ, with the names of the spaces that show them; and how many
    spaces of each name there are more (or less) than before."""
    ours, theirs = _by_name(before), _by_name(after)
    alone: Counter[str] = Counter()
    shown: dict[tuple[int, int], tuple[View, View, set[str]]] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        old, new = ours.get(name, []), theirs.get(name, [])
        alone[name] = len(new) - len(old)
        left: list[View] = []
        rest = list(new)
        for view in old:
            twin = next((each for each in rest if each.ranges == view.ranges), None)
            if twin is None:
                left.append(view)
            else:
                rest.remove(twin)
        left.sort(key=_rank)
        rest.sort(key=_rank)
        for a, b in zip(left, rest, strict=False):
            shown.setdefault((id(a), id(b)), (a, b, set()))[2].add(name)
    return list(shown.values()), alone


def _rank(view: View) -> tuple[int, str]:
    return len(view.ranges), view.root


def _by_name(views: Sequence[View]) -> dict[str, list[View]]:
    found: defaultdict[str, list[View]] = defaultdict(list)
    for view in views:
        for name in view.spaces:
            found[name].append(view)
    return found


def _answers(view: View) -> list[MapRange]:
    """The ranges without those in which the root answers for itself: nothing is mapped there."""
    return [
        each for each in view.ranges
        if not (each.name == view.root and each.type == "i/o" and each.offset == each.start)
    ]


def _range_change(change: RangeChange) -> MapChange:
    a, b, kind = change.before, change.after, change.kind
    before, after = _words(change)
    where = f"{change.start:#x}"
    if change.last > change.start:
        where += f"-{change.last:#x}"
    sizes = (a.size if a else -1, b.size if b else -1)
    firmware = kind is Kind.RESIZED and a is not None and a.type == "rom"
    names = tuple(dict.fromkeys(each.name for each in (a, b) if each is not None))
    return MapChange(
        Subject.RANGE, kind, where, before, after, kind not in _HIDDEN, (), sizes, names, firmware
    )


def _words(change: RangeChange) -> tuple[str, str]:
    kind, a, b = change.kind, change.before, change.after
    if kind is Kind.ADDED and b is not None:
        return a.name if a else "nothing", _described(b)
    if kind is Kind.REMOVED and a is not None:
        return _described(a), b.name if b else "nothing"
    if a is None or b is None:
        return (_described(a) if a else "nothing"), (_described(b) if b else "nothing")
    if kind is Kind.RENAMED:
        return a.name, b.name
    if kind is Kind.OWNER:
        name = a.name if a.name == b.name else b.name
        return f"{name} of {a.owner or 'nobody'}", f"of {b.owner or 'nobody'}"
    if kind is Kind.MOVED:
        return f"{a.name} at {a.start:#x}", f"at {b.start:#x}"
    if kind is Kind.RESIZED:
        return f"{a.name}, {_bytes(a.size)}", _bytes(b.size)
    if kind is Kind.READ_ONLY:
        said = {"ram": "writable", "rom": "read-only"}
        return f"{a.name}, {said[a.type]}", said[b.type]
    if kind is Kind.RETYPED:
        return f"{a.name}, {a.type}", b.type
    if kind is Kind.OFFSET:
        first, second = (each.offset + change.start - each.start for each in (a, b))
        return f"{a.name} from {first:#x}", f"from {second:#x}"
    if kind is Kind.NONVOLATILE:
        said_nv = {True: "nonvolatile", False: "volatile"}
        return f"{a.name}, {said_nv[a.nonvolatile]}", said_nv[b.nonvolatile]
    return _described(a), _described(b)


def _described(each: MapRange) -> str:
    return f"{each.name} ({each.type}, {_bytes(each.size)})"


def _bytes(size: int) -> str:
    return "1 byte" if size == 1 else f"{size:#x} bytes" if size > 9 else f"{size} bytes"


# Section: RAM blocks and PCI


def _blocks(before: Sequence[RamBlock], after: Sequence[RamBlock]) -> Iterator[MapChange]:
    old = {block.name: block for block in before}
    new = {block.name: block for block in after}
    gone = [block for name, block in old.items() if name not in new]
    came = [block for name, block in new.items() if name not in old]
    for block in gone:
        alike = [each for each in came if (each.used, each.total) == (block.used, block.total)]
        rivals = [each for each in gone if (each.used, each.total) == (block.used, block.total)]
        if len(alike) == len(rivals) == 1:
            came.remove(alike[0])
            yield _block(Kind.RENAMED, block.name, block.name, alike[0].name)
        else:
            yield _block(Kind.REMOVED, block.name, f"{block.name}, {_sized(block)}", "none")
    for block in came:
        yield _block(Kind.ADDED, block.name, "none", f"{block.name}, {_sized(block)}")
    for name in sorted(old.keys() & new.keys()):
        a, b = old[name], new[name]
        if a == b:
            continue
        # Resizeable on both sides, and each can take what the other has: no stream is refused.
        fits = a.used < a.total and b.used < b.total
        fits = fits and a.used <= b.total and b.used <= a.total
        yield replace(
            _block(Kind.RESIZED, name, f"{name}, {_sized(a)}", _sized(b)), visible=not fits,
            sizes=(a.used, b.used), firmware=True,
        )


def _block(kind: Kind, where: str, before: str, after: str) -> MapChange:
    # A block is named after its region, behind the path of its device if it has one.
    names = (where.rpartition("/")[2],)
    return MapChange(Subject.BLOCK, kind, where, before, after, visible=True, names=names)


def _sized(block: RamBlock) -> str:
    most = f" of at most {block.total:#x}" if block.total != block.used else ""
    return f"{block.used:#x}{most} bytes"


def _functions(
    before: Sequence[PciFunction], after: Sequence[PciFunction]
) -> Iterator[MapChange]:
    old = {function.place: function for function in before}
    new = {function.place: function for function in after}
    for place in sorted(old.keys() | new.keys()):
        a, b = old.get(place), new.get(place)
        if a is None or b is None or a.ident != b.ident:
            kind = Kind.ADDED if a is None else Kind.REMOVED if b is None else Kind.REPLACED
            yield MapChange(Subject.FUNCTION, kind, f"PCI {place}", a.ident if a else "none",
                            b.ident if b else "none", visible=True)
        else:
            yield from _bars(a, b)


def _bars(a: PciFunction, b: PciFunction) -> Iterator[MapChange]:
    old = {bar.number: bar for bar in a.bars}
    new = {bar.number: bar for bar in b.bars}
    for number in sorted(old.keys() | new.keys()):
        x, y = old.get(number), new.get(number)
        if x == y:
            continue
        kind = (Kind.ADDED if x is None else Kind.REMOVED if y is None
                else Kind.RESIZED if x.kind == y.kind else Kind.RETYPED)
        label = f"{a.ident} {'ROM' if number == 6 else f'BAR {number}'}"
        yield MapChange(
            Subject.BAR, kind, f"PCI {a.place}",
            f"{label}, {x.kind} {_bytes(x.size)}" if x else f"{label}, none",
            f"{y.kind} {_bytes(y.size)}" if y else "none", visible=True,
            sizes=(x.size if x else -1, y.size if y else -1), firmware=number == 6,
        )
