"""``qemuglue machines``: what a build can emulate, and what of it starts as it is."""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor

from qemuglue.cli.common import Exit, add_build, add_json, builds_of, print_json, progress
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import Machine, Start, machine_list, try_start

NAME = "machines"
HELP = "List the machines of a build; with --start, say which of them start."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_build(parser)
    parser.add_argument("--target", action="append", default=[], metavar="TARGET",
                        help="only this target (x86_64, aarch64, …); may be repeated")
    parser.add_argument("--versioned", action="store_true",
                        help="also names that pin one QEMU version, such as pc-q35-9.1")
    parser.add_argument("--start", action="store_true",
                        help="start each with nothing but -display none -S, and with a generated "
                             "image where it asks for one")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    [build] = builds_of(args)
    machines = [machine for target in args.target or build.targets()
                for machine in machine_list(build, target)
                if args.versioned or not machine.versioned]
    starts = _start_all(build, machines) if args.start else {}
    if args.json:
        print_json({
            "schema": 1, "build": build.name, "version": build.version,
            "machines": [_document(machine, starts.get(machine)) for machine in machines]})
        return Exit.NOTHING_FOUND
    width = max((len(machine.full_name) for machine in machines), default=0)
    for machine in machines:
        print(f"{machine.full_name:<{width}}  {_told(machine, starts.get(machine))}")
    progress(f"{build.name}, QEMU {build.version}: {len(machines)} machines" + _summary(starts))
    return Exit.NOTHING_FOUND


def _summary(starts: dict[Machine, Start]) -> str:
    if not starts:
        return ""
    refused = sum(not start.ok for start in starts.values())
    images = sum(bool(start.started_with) for start in starts.values())
    return (f": {len(starts) - refused - images} start with -display none -S, {images} more "
            f"with a generated image, {refused} {'does' if refused == 1 else 'do'} not start")


def _start_all(build: Build, machines: list[Machine]) -> dict[Machine, Start]:
    def one(machine: Machine) -> Start:
        return try_start(build, machine.target, machine.name)

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return dict(zip(machines, pool.map(one, machines), strict=True))


def _told(machine: Machine, start: Start | None) -> str:
    if start is not None and not start.ok:
        return f"does not start: {start.reason}"
    notes = [f"alias of {machine.alias_of}"] if machine.alias_of else []
    notes += ["default"] * machine.default + ["deprecated"] * machine.deprecated
    text = machine.description + (f" ({', '.join(notes)})" if notes else "")
    if start is None:
        return text
    return f"starts{start.started_with and f' with {start.started_with}'}: {text}"


def _document(machine: Machine, start: Start | None) -> dict[str, object]:
    known: dict[str, object] = {
        "machine": machine.full_name, "description": machine.description,
        "alias_of": machine.alias_of or None, "default": machine.default,
        "deprecated": machine.deprecated,
    }
    if start is not None:
        known |= {"starts": start.ok, "reason": start.reason or None,
                  "started_with": start.started_with or None}
    return known
