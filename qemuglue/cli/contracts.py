"""``qemuglue contracts``: what sizes, alignments and byte order the devices of a machine take."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from qemuglue.campaign.contracting import matches, probe_machine
from qemuglue.cli.common import (
    Exit,
    add_build,
    add_json,
    add_qemu_args,
    builds_of,
    print_json,
    progress,
)
from qemuglue.errors import UsageError
from qemuglue.witness.contract_table import ContractRow, ContractTable, differences

NAME = "contracts"
HELP = ("Ask every device region of a machine, in QEMUs that are thrown away, which accesses it "
        "takes: sizes, unaligned ones, the sizes its callbacks are made with, byte order, and "
        "the offsets it refuses by its own rule; reads and writes apart. A table can be saved, "
        "and compared with another one: exit code 1 if they differ.")

#: Columns where the output is no terminal: nothing is cut, and diff tools see whole lines.
_WIDTH = 250

#: A saved table of the largest machine has 10 MB.
MAX_FILE = 256 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("machine", nargs="?", metavar="MACHINE", help="TARGET/NAME, such as x86_64/q35")
    add("--region", action="append", default=[], metavar="GLOB",
        help="ask only regions whose name or identity matches; may be repeated")
    add("--reads-only", action="store_true", help="write nothing: faster, and half as much known")
    add("--evidence", "-v", action="store_true", help="show below each region how it is known")
    add("--save", type=Path, metavar="FILE", help="also write the table as JSON")
    add("--load", type=Path, metavar="FILE", help="take a saved table instead of asking a machine")
    add("--against", type=Path, metavar="FILE",
        help="compare with this saved table, which is the older one")
    add_json(parser)
    add_build(parser)
    add_qemu_args(parser)


def run(args: argparse.Namespace) -> int:
    if (args.machine is None) == (args.load is None):
        raise UsageError("give a MACHINE to ask, or --load FILE to look at a saved table")
    earlier = load(args.against) if args.against is not None else None
    table = load(args.load) if args.load is not None else _asked(args)
    if args.save is not None:
        save(args.save, table)
        progress(f"saved {args.save}")
    if earlier is not None:
        return _compare(args, earlier, table)
    rows = _chosen(table, args.region)
    if args.json:
        whole = ContractTable(table.machine, table.build, table.version, table.args,
                              tuple(rows), table.notes)
        print_json(whole.to_json())
        return Exit.NOTHING_FOUND
    from rich.console import Console

    from qemuglue.report.contracts_text import print_table

    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    with console.capture() as drawn:
        print_table(console, table, rows, evidence=args.evidence)
    for line in drawn.get().splitlines():
        print(line.rstrip())
    return Exit.NOTHING_FOUND


def _asked(args: argparse.Namespace) -> ContractTable:
    [build] = builds_of(args)
    table = probe_machine(build, args.machine, args.qemu_args, writes=not args.reads_only,
                          regions=args.region)
    if args.region and not table.rows:
        raise UsageError(f"no device region in view of {args.machine} is called "
                         f"{' or '.join(args.region)}; "
                         f"`qemuglue map {args.machine} --flat` lists them")
    return table


def _compare(args: argparse.Namespace, before: ContractTable, after: ContractTable) -> int:
    changes = [
        change for change in differences(before, after)
        if not args.region or matches(change.name, change.region, args.region)
    ]
    if args.json:
        print_json({
            "schema": 1, "before": _label(before), "after": _label(after),
            "changes": [
                {"kind": c.kind, "region": c.region, "name": c.name, "direction": c.direction,
                 "before": c.before, "after": c.after} for c in changes
            ],
        })
    else:
        from rich.console import Console

        from qemuglue.report.contracts_text import print_changes

        print_changes(Console(), _label(before), _label(after), changes)
    return Exit.FOUND if changes else Exit.NOTHING_FOUND


def _label(table: ContractTable) -> str:
    return f"{table.machine} {table.build} (QEMU {table.version})"


def _chosen(table: ContractTable, globs: list[str]) -> list[ContractRow]:
    rows = [row for row in table.rows if not globs or matches(row.name, row.region, globs)]
    if globs and not rows:
        names = ", ".join(dict.fromkeys(row.name for row in table.rows))
        raise UsageError(f"no region is called {' or '.join(globs)}; there are {names}")
    return rows


def load(path: Path) -> ContractTable:
    """A table that ``--save`` wrote.

    :raise UsageError: the file is none; the message names it and what is wrong.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise UsageError(f"{path}: larger than {MAX_FILE >> 20} MiB: no contract table")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no JSON: {error}") from None
    try:
        return ContractTable.from_json(data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def save(path: Path, table: ContractTable) -> None:
    """Write the table, whole or not at all."""
    text = json.dumps(table.to_json(), indent=1, ensure_ascii=False) + "\n"
    draft = path.with_name(path.name + ".new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
