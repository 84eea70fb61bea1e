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

#: (space, region or start of a hole, index among namesakes, is it the edge behind it?)
_Key = tuple[str, str, int, bool]


class FatalPlaces:
    """Places an access to which ended QEMU: a region, or the edge behind one."""

    def __init__(self) -> None:
        self._known: dict[_Key, str] = {}

    def add(self, layout: Layout, finding: Finding) -> str:
        """Leave the place of the finding's last operation out, if a fresh QEMU has shown that it
        is fatal; the place in words. Unassigned memory is never left out."""
        op = finding.program.operations[-1]
        touched = _touched(layout, op)
        if not touched:
            return op.verb
        first = touched[0]
        crossing = len(touched) > 1
        where = f"{'the end of ' * crossing}{first.region or 'unassigned memory'}"
        if finding.confirmed[0] and (first.region or crossing):
            self._known.setdefault(
                _key(first, crossing),
                f"left out: an access to {where} ended QEMU ({finding.signature})",
            )
        return f"{op.verb} {layout.address_of(op, strict=False):#x} ({where})"

    def why(self, layout: Layout, op: Operation) -> tuple[str, Kind]:
        """("" or why ``op`` is left out, its row in the verdict table)."""
        touched = _touched(layout, op) if self._known else []
        if not touched:
            return "", Kind.EVENT
        crossing = len(touched) > 1
        keys = [_key(each, False) for each in touched]
        if crossing:
            keys.append(_key(touched[0], True))
        why = next((self._known[key] for key in keys if key in self._known), "")
        row = _ROWS.get(touched[0].kind, Kind.DEVICE)
        if row is Kind.DEVICE and touched[0].space == IO:
            row = Kind.PORT
        return why, Kind.CROSSING if crossing else row


def _key(place: Range, edge: bool) -> _Key:
    return place.space, place.region or hex(place.start), place.index, edge


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
