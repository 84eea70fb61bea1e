"""``qemuglue check``: a machine's map and accesses compared with every witness."""

from __future__ import annotations

import argparse
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qemuglue.campaign.check_result import CheckResult, Status
from qemuglue.campaign.checking import DEFAULT_OPS, MAX_OPS, check_machine
from qemuglue.campaign.defects import DEFECTS
from qemuglue.cli.common import (
    Exit,
    add_build,
    add_json,
    add_qemu_args,
    add_seed,
    builds_of,
    print_json,
    progress,
    sentence,
)
from qemuglue.errors import UsageError
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import machine_list
from qemuglue.qemu.config import machine_name

NAME = "check"
HELP = ("Compare machines with the model: the memory map with QEMU's own views, random accesses "
        "with the reply, the access transcript and guest RAM, and the state they leave with xp, "
        "gpa2hva and a core dump. Exit code 1 if anything diverges or QEMU dies.")

#: Checked when none is named, as far as the build has them.
DEFAULT_MACHINES = (
    "x86_64/q35", "x86_64/pc", "x86_64/microvm", "aarch64/virt", "arm/versatilepb",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("machine", nargs="*", metavar="MACHINE",
        help=f"TARGET/NAME (default: {', '.join(DEFAULT_MACHINES)}, where the build has them)")
    add("--all", action="store_true", help="every machine of the build")
    add("--ops", type=int, default=DEFAULT_OPS, metavar="N",
        help=f"random accesses to each machine (default: {DEFAULT_OPS}; 0: only the map)")
    add_seed(parser)
    add_build(parser, repeatable=True)
    add_qemu_args(parser)
    add("--junit", type=Path, metavar="FILE", help="also write the result as JUnit XML")
    add("--out", type=Path, metavar="DIR",
        help="keep findings there, to replay them (default: they are only printed)")
    add("--defect", metavar="NAME",
        help="plant this defect in the model, to see that it is found "
             "(`qemuglue targets --defects` lists them)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.ops <= MAX_OPS:
        raise UsageError(f"--ops {args.ops}: give 0 to {MAX_OPS}")
    if args.defect and args.defect not in DEFECTS:
        raise UsageError(f"no defect {args.defect!r}; there are {', '.join(DEFECTS)}")
    builds = builds_of(args)
    work = _chosen(args, builds)
    # After the arguments were looked at: they bring rich and an XML writer.
    from rich.console import Console

    from qemuglue.report.check_text import document, line, print_check
    from qemuglue.report.junit import require_junit, write_junit

    if args.junit is not None:
        require_junit()
    seed = secrets.randbits(63) if args.seed is None else args.seed
    progress(f"seed {seed}")
    errors = Console(stderr=True)
    results: list[CheckResult] = []
    interrupted = False
    try:
        with _folder(args.out) as folder:
            for build, machine in work:
                results.append(_check(args, build, machine, seed, folder, alone=len(work) == 1))
                errors.print(line(results[-1]), soft_wrap=True)
    except KeyboardInterrupt:
        interrupted = True
    if args.junit is not None:
        write_junit(args.junit, results)
    if args.json:
        print_json(document(results, seed=seed, ops=args.ops, interrupted=interrupted))
    else:
        print_check(results, Console(), interrupted=interrupted)
    return Exit.INTERRUPTED if interrupted else _exit(results, every=args.all)


def _check(
    args: argparse.Namespace, build: Build, machine: str, seed: int, folder: Path, *, alone: bool
) -> CheckResult:
    """One machine; an error of ours must not cost the results of hundreds of others."""
    try:
        result = check_machine(
            build, machine, args=args.qemu_args, ops=args.ops, seed=seed,
            defect=args.defect or "", folder=folder,
        )
    except Exception as error:
        if alone:
            raise
        return CheckResult(
            build=build.name, version=build.version, machine=machine, status=Status.ERROR,
            seed=seed, ops=args.ops, seconds=0.0, reason=sentence(error),
        )
    return result if args.out is not None else result.without_paths()


def _exit(results: list[CheckResult], *, every: bool) -> Exit:
    """A machine that was asked for by name and does not start is an error; of all machines
    many need a firmware or a kernel."""
    statuses = {result.status for result in results}
    if Status.DIVERGED in statuses or any(result.diverged for result in results):
        return Exit.FOUND
    if Status.ERROR in statuses or (Status.NOT_STARTED in statuses and not every):
        return Exit.ERROR
    return Exit.NOTHING_FOUND


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where findings are recorded; away afterwards unless the caller named it."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="qemuglue-check-") as name:
        yield Path(name)


# Section: which machines


def _chosen(args: argparse.Namespace, builds: list[Build]) -> list[tuple[Build, str]]:
    """Builds with the machines to check on each.

    :raise UsageError: there is none, or no build has a machine that was named.
    :raise BuildError: a build has no binary for a named target.
    """
    if args.all and args.machine:
        raise UsageError("--all and a MACHINE: give one of them")
    named = list(dict.fromkeys(args.machine))
    chosen: list[tuple[Build, str]] = []
    unknown = set(named)
    for build in builds:
        targets = {machine_name(machine)[0]: None for machine in named} or build.targets()
        has = {
            each.full_name: each.versioned
            for target in targets for each in machine_list(build, target)
        }
        unknown -= has.keys()
        if args.all:
            chosen += [(build, name) for name, versioned in has.items() if not versioned]
        else:
            default = [name for name in DEFAULT_MACHINES if name in has]
            chosen += [(build, name) for name in named or default]
    if unknown:
        raise UsageError(f"no machine {', '.join(sorted(unknown))} in "
                         f"{' or '.join(build.name for build in builds)}; "
                         "`qemuglue machines` lists them")
    if not chosen:
        raise UsageError("none of the machines checked by default is in this build; name one, "
                         "`qemuglue machines` lists them")
    return chosen
