"""``qemuglue diff``: what changed between two builds."""

from __future__ import annotations

import argparse
import io
import secrets
from contextlib import closing
from functools import partial
from pathlib import Path

from qemuglue.campaign.diff.diffing import (
    Census,
    DiffOptions,
    MachineDiff,
    Status,
    diff_machine,
    take_census,
)
from qemuglue.campaign.diff.outcomes import DEFAULT_OPS, MAX_OPS
from qemuglue.campaign.schedule import Done, run_jobs
from qemuglue.cli.common import (
    Exit,
    add_json,
    add_qemu_args,
    add_seed,
    print_json,
    progress,
)
from qemuglue.errors import UsageError
from qemuglue.qemu.builds import Build, find_build
from qemuglue.qemu.builds_machines import Machine
from qemuglue.qemu.config import machine_name

NAME = "diff"
HELP = ("What changed between two QEMU builds, machine by machine: memory maps, RAM blocks, PCI "
        "functions, access contracts, and what one and the same program does on both. A versioned "
        "machine type (pc-q35-7.2) must keep what a guest or a migration sees of its map: a change "
        "there is an error, exit code 1; everything else is a note.")

#: Compared when none is named, as far as both builds have them.
DEFAULT_MACHINES = (
    "x86_64/q35", "x86_64/pc", "x86_64/microvm", "aarch64/virt", "arm/versatilepb",
)

#: One machine on two builds takes seconds; a QEMU that dies at every other access takes more.
MACHINE_TIMEOUT_S = 900.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    build = "managed build, or path of a qemu-system binary or build tree"
    add("machine", nargs="*", metavar="MACHINE",
        help=f"TARGET/NAME (default: {', '.join(DEFAULT_MACHINES)}, where both builds have them)")
    add("--from", dest="before", required=True, metavar="NAME|PATH", help=f"{build}: before")
    add("--to", dest="after", required=True, metavar="NAME|PATH", help=f"{build}: after")
    add("--all", action="store_true", help="every unversioned machine of both builds")
    add("--versioned", action="store_true",
        help="every versioned machine type of both builds (with --all: these too)")
    add("--target", action="append", default=[], metavar="T",
        help="with --all or --versioned: only machines of this target; may be repeated")
    add("--ops", type=int, default=DEFAULT_OPS, metavar="N",
        help=f"operations of the program both perform (default: {DEFAULT_OPS}; 0: none)")
    add("--no-contracts", action="store_true", help="do not probe the devices' contracts")
    add("--jobs", type=int, metavar="N", help="machines at a time (default: one a core)")
    add_seed(parser)
    add_qemu_args(parser)
    add("--junit", type=Path, metavar="FILE", help="also write the result as JUnit XML")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.ops <= MAX_OPS:
        raise UsageError(f"--ops {args.ops}: give 0 to {MAX_OPS}")
    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs}: give 1 or more")
    before, after = find_build(args.before), find_build(args.after)
    census, machines = _chosen(args, before, after)
    # After the arguments were looked at: they bring rich and an XML writer.
    from rich.console import Console

    from qemuglue.report.diff_junit import write_diff_junit
    from qemuglue.report.diff_markdown import append_diff
    from qemuglue.report.diff_text import document, line, print_diff
    from qemuglue.report.junit import require_junit

    if args.junit is not None:
        require_junit()
    options = DiffOptions(
        ops=args.ops, seed=secrets.randbits(63) if args.seed is None else args.seed,
        contracts=not args.no_contracts, args=tuple(args.qemu_args),
    )
    progress(f"seed {options.seed}")
    errors = Console(stderr=True)
    results: list[MachineDiff] = []
    interrupted = False
    work = partial(_work, before, after, options)
    try:
        with closing(run_jobs(
            machines, work, workers=args.jobs, timeout_s=MACHINE_TIMEOUT_S
        )) as jobs:
            for done in jobs:
                results.append(_result(done))
                errors.print(line(results[-1]), soft_wrap=True)
    except KeyboardInterrupt:
        interrupted = True
    order = {machine.full_name: number for number, machine in enumerate(machines)}
    results.sort(key=lambda result: order[result.machine])

    def show(console: Console) -> None:
        print_diff(before, after, census, results, options, console,
                   everything=args.all or args.versioned, interrupted=interrupted)

    if args.junit is not None:
        write_diff_junit(args.junit, before, after, results)
    page = io.StringIO()
    show(Console(file=page, width=100))
    append_diff(page.getvalue(), before, after, results)
    if args.json:
        print_json(document(before, after, census, results, options, interrupted=interrupted))
    else:
        show(Console())
    if interrupted:
        return Exit.INTERRUPTED
    return _exit(results, named=not (args.all or args.versioned))


def _work(before: Build, after: Build, options: DiffOptions, machine: Machine) -> MachineDiff:
    return diff_machine(before, after, machine, options)


def _result(done: Done[Machine, MachineDiff]) -> MachineDiff:
    if done.result is not None:
        return done.result
    machine = done.job
    return MachineDiff(machine.full_name, machine.versioned, Status.ERROR, done.failure,
                       seconds=done.seconds)


def _exit(results: list[MachineDiff], *, named: bool) -> Exit:
    """A machine that was asked for by name and starts on neither build is an error; of all
    machines some need what no generated image gives."""
    statuses = {result.status for result in results}
    if Status.BROKEN in statuses:
        return Exit.FOUND
    if Status.ERROR in statuses or (named and Status.NOT_STARTED in statuses):
        return Exit.ERROR
    return Exit.NOTHING_FOUND


def _chosen(
    args: argparse.Namespace, before: Build, after: Build
) -> tuple[Census, list[Machine]]:
    """The lists of both builds compared, and the machines to compare.

    :raise UsageError: there is none, or a machine that was named is not in both builds.
    :raise BuildError: a build has no binary for a named target.
    """
    everything = args.all or args.versioned
    if everything and args.machine:
        raise UsageError("--all or --versioned and a MACHINE: give one of them")
    if args.target and not everything:
        raise UsageError("--target goes with --all or --versioned; a MACHINE has its target")
    named = list(dict.fromkeys(args.machine))
    wanted = named or ([] if everything else list(DEFAULT_MACHINES))
    targets = args.target or list(dict.fromkeys(machine_name(each)[0] for each in wanted))
    for target in targets if named or args.target else ():
        before.binary(target)
        after.binary(target)
    census = take_census(before, after, targets)
    common = {machine.full_name: machine for machine in census.common}
    if everything:
        kinds = {False: args.all, True: args.versioned}
        machines = [machine for machine in census.common if kinds[machine.versioned]]
    else:
        _all_there(named, common, census, before, after)
        machines = [common[name] for name in wanted if name in common]
    if not machines:
        raise UsageError(f"{before.name} and {after.name} have no such machine in common; "
                         "`qemuglue machines` lists those of a build")
    return census, machines


def _all_there(
    named: list[str], common: dict[str, Machine], census: Census, before: Build, after: Build
) -> None:
    gone = {machine.full_name for machine in census.gone}
    gone |= {machine.full_name for machine, _ in census.renamed}
    new = {machine.full_name for machine in census.new}
    new |= {machine.full_name for _, machine in census.renamed}
    for name in named:
        if name in common:
            continue
        where = (f"is only in {before.name}: it is gone from {after.name}" if name in gone
                 else f"is only in {after.name}: it is new there" if name in new
                 else f"is neither in {before.name} nor in {after.name}")
        raise UsageError(f"{name} {where}; `qemuglue machines --build …` lists a build's machines")
