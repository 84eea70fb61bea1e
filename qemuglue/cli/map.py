"""``qemuglue map``: the memory map of a machine, as the model draws it and QEMU confirms it."""

from __future__ import annotations

import argparse
import sys

from qemuglue.cli.common import (
    Exit,
    add_build,
    add_json,
    add_qemu_args,
    builds_of,
    print_json,
)
from qemuglue.errors import UsageError
from qemuglue.memory import AddressSpace
from qemuglue.mirror import Mirror
from qemuglue.qemu.config import QemuConfig, machine_name
from qemuglue.qemu.process import QemuProcess

NAME = "map"
HELP = ("Draw the memory map of a machine from its tree of regions, and compare it with QEMU's "
        "own views. Exit code 1 if they differ.")

#: Columns where the output is no terminal: nothing is cut, and diff tools see whole lines.
_WIDTH = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="MACHINE", help="TARGET/NAME, such as x86_64/q35")
    parser.add_argument("--flat", action="store_true", help="who answers where (default)")
    parser.add_argument("--tree", action="store_true",
                        help="the tree of regions, with what hides what")
    parser.add_argument("--space", action="append", default=[], metavar="NAME",
                        help="only this address space; may be repeated (default: all)")
    add_json(parser)
    add_build(parser)
    add_qemu_args(parser)


def run(args: argparse.Namespace) -> int:
    [build] = builds_of(args)
    target, machine = machine_name(args.machine)
    config = QemuConfig(build=build, target=target, machine=machine,
                        args=tuple(args.qemu_args), transcript=False)
    with QemuProcess(config) as qemu:
        mirror = Mirror.take(qemu.monitor.hmp)
    spaces = _chosen(mirror, args.space)
    flat = args.flat or not args.tree
    from qemuglue.report.map_text import map_document, print_map  # brings rich; --help needs none

    if args.json:
        print_json({"schema": 1, "build": build.name, "version": build.version,
                    "machine": args.machine,
                    **map_document(mirror, spaces, tree=args.tree, flat=flat)})
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else _WIDTH)
        with console.capture() as drawn:
            print_map(console, mirror, spaces, tree=args.tree, flat=flat)
        for line in drawn.get().splitlines():
            print(line.rstrip())
    return Exit.NOTHING_FOUND if mirror.exact else Exit.FOUND


def _chosen(mirror: Mirror, names: list[str]) -> list[AddressSpace]:
    known = dict.fromkeys(space.name for space in mirror.spaces)
    for name in names:
        if name not in known:
            raise UsageError(f"no address space {name!r}; there are {', '.join(known)}")
    chosen = [space for space in mirror.spaces if not names or space.name in names]
    # QEMU prints spaces in an order that changes from run to run.
    first = (mirror.memory, mirror.io)
    return sorted(chosen, key=lambda space: (
        first.index(space) if space in first else len(first), space.name
    ))
