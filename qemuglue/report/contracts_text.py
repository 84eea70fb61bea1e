"""Access contracts for people at a terminal: a line a region, evidence below where asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qemuglue.campaign.contracting import NOT_ASKED
from qemuglue.witness.contract_table import (
    AcceptedRange,
    Access,
    ContractChange,
    ContractRow,
    ContractSizes,
    ContractTable,
    range_words,
    veto_words,
)

#: Other declarations that are named below a row; there can be dozens.
_NAMED = 6
#: Accepted ranges that are named below a row.
_RANGES = 24

LEGEND = (
    "valid: sizes a caller may use; impl: sizes the device is called with; ~: others would look "
    "the same from outside (--evidence lists them)\n"
    "unaligned ?: every access is cut before it could be unaligned; "
    "order -: no value showed a byte order"
)


def print_table(
    console: Console, table: ContractTable, rows: Sequence[ContractRow], *, evidence: bool
) -> None:
    """The rows by address space, the unknown ones with their reason, then the figures."""
    for space in dict.fromkeys(row.space for row in rows):
        here = [row for row in rows if row.space == space]
        console.print(Text(space, "bold"))
        if evidence:
            for row in here:
                console.print(_drawn([row]))
                for line in _evidence(row):
                    console.print(Text(f"    {line}", "dim"), soft_wrap=True)
        else:
            console.print(_drawn(here))
        console.print()
    for note in table.notes:
        console.print(Text(note), soft_wrap=True)
    console.print(Text(LEGEND, "dim"), soft_wrap=True)
    console.print(Text(summary(table, rows), "bold"), soft_wrap=True)


def summary(table: ContractTable, rows: Sequence[ContractRow]) -> str:
    """One line: how much was learnt."""
    asked = sum(row.reads.probes + row.writes.probes for row in rows)
    reads = sum(row.reads.known for row in rows)
    writes = sum(row.writes.known for row in rows)
    vetoes = sum(bool(row.reads.accepts or row.writes.accepts) for row in rows)
    own = f", {vetoes} with a veto of {'its' if vetoes == 1 else 'their'} own" if vetoes else ""
    return (
        f"{table.machine}, {table.build} (QEMU {table.version}): {len(rows)} "
        f"region{'s' * (len(rows) != 1)}, reads of {reads} and writes of {writes} known{own}; "
        f"{asked:,} accesses"
    )


def _drawn(rows: Iterable[ContractRow]) -> Table:
    drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("address", "size", "region", "access", "valid", "unaligned", "impl", "order",
                 "own veto"):
        drawn.add_column(name, no_wrap=name != "own veto",
                         justify="right" if name in ("address", "size") else "left")
    for group in _alike(rows):
        row = group[0]
        name = row.name if len(group) == 1 else (
            f"{row.name} ({len(group)}, up to {group[-1].address:#x})"
        )
        for index, (direction, access) in enumerate(_directions(row)):
            first = [f"{row.address:#x}", f"{row.size:#x}", name] if not index else [""] * 3
            drawn.add_row(*map(Text, first), *_cells(direction, access))
    return drawn


def _alike(rows: Iterable[ContractRow]) -> Iterator[list[ContractRow]]:
    """Rows one after the other that differ in nothing but where they are."""
    group: list[ContractRow] = []
    for row in rows:
        if group and not (
            (row.name, row.size) == (group[0].name, group[0].size)
            and row.reads.same(group[0].reads) and row.writes.same(group[0].writes)
        ):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _directions(row: ContractRow) -> list[tuple[str, Access]]:
    """Reads and writes, once if they say the same."""
    if row.reads.same(row.writes):
        return [("both", row.reads)]
    if row.writes.unknown == NOT_ASKED:
        return [("reads", row.reads)]
    return [("reads", row.reads), ("writes", row.writes)]


def _cells(name: str, access: Access) -> list[Text]:
    if access.sizes is None:
        return [Text(name), Text("?"), Text(), Text(), Text(),
                Text(f"unknown: {access.unknown}", "yellow")]
    veto = "" if access.accepts is None else veto_words(access.accepts)
    return [
        Text(name), Text(_either(each.valid for each in _preferred(access))),
        Text(_unaligned(access)),
        Text(_either(each.impl for each in _preferred(access))),
        Text(access.order or "-"), Text(veto, "cyan"),
    ]


def _preferred(access: Access) -> Iterator[ContractSizes]:
    """What fits, the one that was chosen first."""
    assert access.sizes is not None
    yield access.sizes.effective
    yield from access.alternatives


def _either(values: Iterable[str]) -> str:
    """The first, marked if another one is as good. Unset is as good as 1 to 4 everywhere."""
    first, *others = dict.fromkeys(values)
    others = [value for value in others if (first, value) != ("any", "1..4")]
    return first + ("~" if others else "")


def _unaligned(access: Access) -> str:
    told = {each.unaligned for each in _preferred(access)}
    return "?" if len(told) > 1 else "yes" if told.pop() else "no"


def _evidence(row: ContractRow) -> Iterator[str]:
    yield f"identity: {row.region} ({row.kind})"
    for name, access in (("reads", row.reads), ("writes", row.writes)):
        for line in access.evidence:
            yield f"{name}: {line}"
        if access.accepts is not None:
            yield f"{name}: {_ranges(access.accepts.ranges)}"
            if not access.accepts.complete:
                yield (f"{name}: not every offset was asked: "
                       f"{len(access.accepts.asked)} spans of the region were")
            if access.accepts.dynamic:
                yield f"{name}: depends on state: {'; '.join(range_words(access.accepts.dynamic))}"
        if access.alternatives:
            named = "; ".join(str(each) for each in access.alternatives[:_NAMED])
            more = len(access.alternatives) - _NAMED
            yield f"{name}: would look the same: {named}" + (
                f"; and {more} more" if more > 0 else "")


def _ranges(ranges: Sequence[AcceptedRange]) -> str:
    named = range_words(ranges)
    more = len(named) - _RANGES
    return (f"accepts {'; '.join(named[:_RANGES]) or 'nothing'}"
            + (f"; and {more} more" if more > 0 else ""))


def print_changes(console: Console, before: str, after: str, changes: Sequence[ContractChange],
                  ) -> None:
    """What is different between two tables, a line each."""
    for change in changes:
        console.print(Text(str(change)), soft_wrap=True)
    count = f"{len(changes)} difference{'s' * (len(changes) != 1)}" if changes else "no difference"
    console.print(Text(f"{before} -> {after}: {count}", "bold"), soft_wrap=True)
