"""``qemuglue map``: the memory map of a machine, as the model draws it and QEMU confirms it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qemuglue.cli.common import (
    Exit,
    add_build,
    add_json,
    add_qemu_args,
    builds_of,
    print_json,
    progress,
    sentence,
)
from qemuglue.errors import EnvironmentFailure, QemuFailure, UsageError
from qemuglue.memory import AddressSpace
from qemuglue.memory.rules import rules_for
from qemuglue.mirror import Mirror
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, machine_name
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.quirks import prints_owners
from qemuglue.qemu.ways import start

if TYPE_CHECKING:
    from qemuglue.report.address_text import Explanation, Question
    from qemuglue.report.dispatch_text import Contracts

NAME = "map"
HELP = ("Draw the memory map of a machine from its tree of regions, and compare it with QEMU's "
        "own views. Exit code 1 if they differ.")

#: Columns where the output is no terminal: nothing is cut, and diff tools see whole lines.
_WIDTH = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("machine", metavar="MACHINE", help="TARGET/NAME, such as x86_64/q35")
    add("--flat", action="store_true", help="who answers where (default)")
    add("--tree", action="store_true", help="the tree of regions, with what hides what")
    add("--space", action="append", default=[], metavar="NAME",
        help="only this address space; may be repeated (default: all)")
    add("--address", action="append", default=[], metavar="A[,SIZE][,read|write]",
        help="explain who answers at an address (or at REGION+OFFSET, or in another space as "
             "SPACE:A) and how an access there is done; may be repeated")
    add("--svg", type=Path, metavar="FILE", help="write the map as a picture")
    add("--html", type=Path, metavar="FILE",
        help="write the map as a page: search, and every address explained")
    add("--contracts", action=argparse.BooleanOptionalAction, default=None,
        help="ask the devices of a second, throw-away QEMU what accesses they take, and tell it "
             "(default: for --svg and --html)")
    add_json(parser)
    add_build(parser)
    add_qemu_args(parser)


def run(args: argparse.Namespace) -> int:
    # They bring rich; --help needs none of them.
    from qemuglue.report.address_text import document, lines, question
    from qemuglue.report.map_text import map_document, print_map

    split = [_split(word) for word in args.address]
    asked = [(space, question(rest)) for space, rest in split]
    [build] = builds_of(args)
    target, machine = machine_name(args.machine)
    config = QemuConfig(build=build, target=target, machine=machine,
                        args=tuple(args.qemu_args), transcript=False)
    mirror = _taken(config)
    mirror.topology.rules = rules_for(build.version_tuple)
    for space in mirror.spaces:
        space.rules = mirror.topology.rules
    spaces = _chosen(mirror, args.space)
    contracts = _contracts(args, build)
    told = [_explained(mirror, spaces, space, each, contracts) for space, each in asked]
    files = _draw(args, build, mirror, spaces, contracts)
    plain = not (asked or files)
    flat = args.flat or (not args.tree and plain)

    if args.json:
        print_json({"schema": 1, "build": build.name, "version": build.version,
                    "machine": args.machine,
                    **map_document(mirror, spaces, tree=args.tree,
                                   flat=args.flat or not args.tree, contracts=contracts),
                    **({"addresses": [document(each) for each, _ in told]} if told else {})})
    else:
        for each, elsewhere in told:
            print("\n".join([*lines(each), *elsewhere]))
        if told and (flat or args.tree):
            print()
        if flat or args.tree or plain:
            from rich.console import Console

            console = Console(width=None if sys.stdout.isatty() else _WIDTH)
            with console.capture() as drawn:
                print_map(console, mirror, spaces, tree=args.tree, flat=flat)
            for line in drawn.get().splitlines():
                print(line.rstrip())
        elif not mirror.exact:
            progress(f"the map is not exact: {mirror.score} views equal QEMU's own")
    return Exit.NOTHING_FOUND if mirror.exact else Exit.FOUND


def _taken(config: QemuConfig) -> Mirror:
    """The map of the machine; one that wants an image is given one."""
    def attempt(tried: QemuConfig) -> Mirror:
        with QemuProcess(tried) as qemu:
            return Mirror.take(qemu.monitor.hmp)

    mirror, _, way = start(replace(config, owners=prints_owners(config)), attempt)
    if way:
        progress(f"started with {way}")
    return mirror


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


def _contracts(args: argparse.Namespace, build: Build) -> Contracts:
    """What the devices of a QEMU of their own say, where it is wanted. A machine that cannot be
    asked has a map all the same."""
    from qemuglue.report.dispatch_text import Contracts

    wanted = args.contracts
    if wanted is None:
        wanted = args.svg is not None or args.html is not None
    if not wanted:
        return Contracts()
    from qemuglue.campaign.contracting import probe_machine

    progress("asking the devices of a second QEMU what accesses they take "
             "(--no-contracts leaves it out)")
    try:
        return Contracts(probe_machine(build, args.machine, args.qemu_args))
    except (QemuFailure, EnvironmentFailure) as error:
        progress(f"the devices could not be asked for their contracts: {sentence(error)}")
        return Contracts()


# Section: addresses


def _split(word: str) -> tuple[str, str]:
    """(space, the rest) of ``SPACE:A…``; names of spaces have colons too, so the last counts."""
    place, comma, rest = word.partition(",")
    space, _, place = place.rpartition(":")
    return space, place + comma + rest


def _explained(
    mirror: Mirror, spaces: Sequence[AddressSpace], space: str, asked: Question,
    contracts: Contracts,
) -> tuple[Explanation, list[str]]:
    """The explanation, and what answers at that address in other spaces, a line each."""
    from qemuglue.report.address_text import MAX_ELSEWHERE, explain, headline, locate
    from qemuglue.report.map_text import shared_views

    among = _chosen(mirror, [space]) if space else list(spaces)
    if asked.address is None:
        found, address = locate(asked.place, among)
    else:
        found, address = among[0], asked.address
    views = shared_views(list(spaces) + [each for each in among if each not in spaces])
    names = next(names for names, each in views if each.view is found.view)
    elsewhere = [
        f"  elsewhere {names[0]}: {headline(each, address, contracts, ports=each is mirror.io)}"
        for names, each in views
        if each.view is not found.view and each.view.find(address) is not None
    ]
    told = explain(found, names, asked, address, contracts, ports=found is mirror.io)
    return told, elsewhere[:MAX_ELSEWHERE] if not space else []


# Section: files


def _draw(
    args: argparse.Namespace, build: Build, mirror: Mirror, spaces: Sequence[AddressSpace],
    contracts: Contracts,
) -> list[Path]:
    """Write what ``--svg`` and ``--html`` ask for; the files written."""
    if args.svg is None and args.html is None:
        return []
    from qemuglue.report.map_html import Page, draw_page
    from qemuglue.report.map_layout import lay_out
    from qemuglue.report.map_svg import draw_file
    from qemuglue.report.map_text import exactness, shared_views

    views = [(lay_out(names, space), space) for names, space in shared_views(spaces)]
    about = f"QEMU {build.version} ({build.name})"
    if args.qemu_args:
        about += f", {' '.join(args.qemu_args)}"
    about += f". {exactness(mirror)}"
    written: list[Path] = []
    if args.svg is not None:
        pictures = [picture for picture, _ in views]
        written.append(_write(args.svg, draw_file(args.machine, about, pictures, contracts)))
    if args.html is not None:
        ports = [mirror.io] if mirror.io is not None else []
        page = Page(args.machine, about, views, contracts, mirror.topology.rules, ports)
        written.append(_write(args.html, draw_page(page)))
    return written


def _write(path: Path, text: str) -> Path:
    """Write and tell it; an earlier file of that name is replaced.

    :raise UsageError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    progress(f"wrote {path} ({-(-path.stat().st_size // 1024)} KiB)")
    return path

