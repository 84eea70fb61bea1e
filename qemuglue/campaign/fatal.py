"""Places where an access ended QEMU: known, they are left out, so that a check goes on.

Whatever is left out is counted as unjudged with the reason, so nothing is hidden.
"""

from __future__ import annotations

from qemuglue.campaign.findings import Finding
from qemuglue.program.layout import UNASSIGNED, Layout, Range
from qemuglue.program.operation import Operation
from qemuglue.program.verbs import ADDRESS_MASK, IO, PORT_MAX
from qemuglue.witness.verdict import Kind

#: Kinds of ranges in a layout -> rows of the verdict table.
_ROWS = {
    "ram": Kind.RAM, "rom": Kind.ROM, "romd": Kind.ROMD, UNASSIGNED: Kind.UNASSIGNED,
    "container-io": Kind.IO_ROOT,
}


#: Ranges looked at behind an operation's first; nobody needs to know of more.
_MOST_TOUCHED = 16

#: (space, region and index among namesakes, or start of the range whose edge it is)
_Key = tuple[str, str, int]


class FatalPlaces:
    """Places an access to which ended QEMU: a region, or the edge behind one."""

    def __init__(self) -> None:
        self._known: dict[_Key, str] = {}

    def add(self, layout: Layout, finding: Finding) -> str:
        """Leave the place of the finding's last operation out, if a fresh QEMU has shown that it
        is fatal; the place in words."""
        op = finding.program.operations[-1]
        if finding.confirmed[0]:
            return self.add_operation(layout, op, finding.signature)
        return f"{op.verb} {self._place(_culprits(_touched(layout, op)))}"

    def add_operation(self, layout: Layout, op: Operation, signature: str) -> str:
        """Leave its place out: the first region it touches or, where it goes on behind that,
        the edge. Unassigned memory is never left out, nor taken for the first region. The place
        in words."""
        touched = _culprits(_touched(layout, op))
        where = self._place(touched)
        if touched and (touched[0].region or len(touched) > 1):
            key = _edge(touched[0]) if len(touched) > 1 else _region(touched[0])
            self._known.setdefault(
                key, f"left out: an access to {where} ended QEMU ({signature})"
            )
        address = layout.address_of(op, strict=False)
        return f"{op.verb} {address:#x} ({where})" if address is not None else op.verb

    @staticmethod
    def _place(touched: list[Range]) -> str:
        if not touched:
            return "the machine"
        name = touched[0].region or "unassigned memory"
        return f"the end of {name}" if len(touched) > 1 else name

    def why(self, layout: Layout, op: Operation) -> tuple[str, Kind]:
        """("" or why ``op`` is left out, its row in the verdict table)."""
        touched = _touched(layout, op) if self._known else []
        if not touched:
            return "", Kind.EVENT
        crossing = len(touched) > 1
        keys = [_region(each) for each in touched]
        if crossing:
            keys += map(_edge, touched[:-1])
        why = next((self._known[key] for key in keys if key in self._known), "")
        row = _ROWS.get(touched[0].kind, Kind.DEVICE)
        if row is Kind.DEVICE and touched[0].space == IO:
            row = Kind.PORT
        return why, Kind.CROSSING if crossing else row


def _region(place: Range) -> _Key:
    return place.space, place.region or hex(place.start), place.index


def _edge(place: Range) -> _Key:
    return place.space, f"behind {place.last:#x}", 0


def _culprits(touched: list[Range]) -> list[Range]:
    """Without the unassigned memory an access began in, if it went on: that ends no QEMU."""
    for number, each in enumerate(touched):
        if each.region:
            return touched[number:]
    return touched


def _touched(layout: Layout, op: Operation) -> list[Range]:
    """The ranges that hold the operation's bytes; none for an event."""
    address = layout.address_of(op, strict=False)
    space = op.info.space
    if address is None or space is None:
        return []
    last = PORT_MAX if space == IO else ADDRESS_MASK
    found = [layout.range_at(address, space)]
    end = min(address + max(op.size, 1) - 1, last)
    while found[-1].last < end and len(found) < _MOST_TOUCHED:
        found.append(layout.range_at(found[-1].last + 1, space))
    return found
