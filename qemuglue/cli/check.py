"""``qemuglue check``: a machine's map and accesses compared with every witness."""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qemuglue.campaign.check_jobs import Shown, jobs_of, machines_of
from qemuglue.campaign.check_result import CheckResult, Status
from qemuglue.campaign.check_run import CheckRun, run_check
from qemuglue.campaign.checking import DEFAULT_OPS, MAX_OPS
from qemuglue.campaign.planted import PLANTED
from qemuglue.cli.common import (
    Exit,
    add_build,
    add_json,
    add_qemu_args,
    add_seed,
    builds_of,
    print_json,
    progress,
)
from qemuglue.cli.contracts import load
from qemuglue.errors import UsageError
from qemuglue.memory.faces import FACES, find_face
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import machine_name
from qemuglue.witness.contract_table import ContractTable
from qemuglue.witness.oddities import Oddity, standard

NAME = "check"
HELP = ("Compare machines with the model: the memory map with QEMU's own views, random accesses "
        "with the reply, the access transcript and guest RAM, and the state they leave with xp, "
        "gpa2hva and a core dump. Exit code 1 if anything diverges or QEMU dies.")

#: Checked when none is named, as far as the build has them.
DEFAULT_MACHINES = (
    "x86_64/q35", "x86_64/pc", "x86_64/microvm", "aarch64/virt", "arm/versatilepb",
)


#: Far more than helps on any host; a slip of the finger must not start a million processes.
MAX_JOBS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("machine", nargs="*", metavar="MACHINE",
        help=f"TARGET/NAME (default: {', '.join(DEFAULT_MACHINES)}, where the build has them)")
    add("--all", action="store_true", help="every machine of the build")
    add("--target", action="append", default=[], metavar="T",
        help="with --all: only machines of this target; may be repeated")
    add("--ops", type=int, default=DEFAULT_OPS, metavar="N",
        help=f"random accesses to each machine (default: {DEFAULT_OPS}; 0: only the map)")
    add("--jobs", type=int, metavar="N",
        help="machines checked at a time (default: the number of cores)")
    add_seed(parser)
    add_build(parser, repeatable=True)
    add_qemu_args(parser)
    add("--junit", type=Path, metavar="FILE", help="also write the result as JUnit XML")
    add("--out", type=Path, metavar="DIR",
        help="keep findings there, to replay them (default: they are only printed)")
    add("--defect", metavar="NAME",
        help="plant this defect in the model, to see that it is found "
             "(`qemuglue targets --defects` lists them); with --face also of the faces: "
             "a name that there is not lists those")
    add("--qom", action="store_true",
        help="compare each region with QEMU's object model also where no access is made "
             "(with accesses it always is)")
    add("--contracts", type=Path, action="append", default=[], metavar="FILE",
        help="hold the devices to the contracts that `qemuglue contracts MACHINE --save FILE` "
             "wrote, perhaps of another build; what is not in them is probed; may be repeated")
    add("--face", action="append", default=[], metavar="NAME",
        help="instead of all that: random operations of a memory API of the field, on the memory "
             "of the live machine, against QEMU's own account; may be repeated; `all` is every "
             f"face: {', '.join(FACES)}")
    add("--oddities", action="store_true",
        help="only print what is known to be odd in QEMU and is not reported as a divergence")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.oddities:
        return _oddities(args)
    if not 0 <= args.ops <= MAX_OPS:
        raise UsageError(f"--ops {args.ops}: give 0 to {MAX_OPS}")
    if args.jobs is not None and not 1 <= args.jobs <= MAX_JOBS:
        raise UsageError(f"--jobs {args.jobs}: give 1 to {MAX_JOBS}")
    if args.face:
        return _faces(args)
    if args.defect and args.defect not in PLANTED:
        raise UsageError(f"no defect {args.defect!r}; there are {', '.join(PLANTED)}")
    standard()  # a file of oddities that cannot be read is told before any work
    chosen = _chosen(args, builds_of(args))
    contracts = _contracts(args, [machine for _, machine in chosen])
    # After the arguments were looked at: they bring rich and an XML writer.
    from qemuglue.report.check_json import document
    from qemuglue.report.check_text import PipeConsole, line, print_check
    from qemuglue.report.junit import require_junit, write_junit
    from qemuglue.report.markdown import append_summary

    if args.junit is not None:
        require_junit()
    seed = secrets.randbits(63) if args.seed is None else args.seed
    progress(f"seed {seed}")
    # Results are what stdout is for, each as it ends; --json wants it for the document.
    console = PipeConsole(stderr=args.json)

    def on_end(found: CheckResult | Shown) -> None:
        if isinstance(found, CheckResult):
            console.print(line(found), soft_wrap=True)

    with _folder(args.out) as folder:
        jobs = jobs_of(chosen, args=args.qemu_args, ops=args.ops, seed=seed,
                       defect=args.defect or "", folder=folder, qom=args.qom,
                       contracts=contracts)
        workers = min(args.jobs or os.cpu_count() or 1, len(jobs))
        if len(jobs) > 1:
            progress(f"{len(chosen)} machines, {workers} at a time")
        done = CheckRun(seed, args.ops, workers)
        run_check(done, jobs, on_end)
    if args.out is None:
        done.results = [result.without_paths() for result in done.results]
    if args.debug:
        for trace in done.traces:
            progress(trace)
    if args.junit is not None:
        write_junit(args.junit, done.results, done.shown)
    append_summary(done)
    if args.json:
        print_json(document(done))
    else:
        print_check(done, console)
    return Exit.INTERRUPTED if done.interrupted else _exit(done.results, every=args.all)


def _exit(results: list[CheckResult], *, every: bool) -> Exit:
    """A machine that was asked for by name and does not start is an error; of all machines
    many need a firmware or a kernel."""
    statuses = {result.status for result in results}
    if Status.DIVERGED in statuses or any(result.diverged for result in results):
        return Exit.FOUND
    if Status.ERROR in statuses or (Status.NOT_STARTED in statuses and not every):
        return Exit.ERROR
    return Exit.NOTHING_FOUND


def _contracts(args: argparse.Namespace, machines: list[str]) -> list[ContractTable]:
    """The saved tables.

    :raise UsageError: a file is none, is of a machine that is not checked, or is the second of
        one machine.
    """
    tables: dict[str, ContractTable] = {}
    for path in args.contracts:
        table = load(path)
        if table.machine not in machines:
            raise UsageError(f"{path}: contracts of {table.machine}, which is not checked here")
        if table.machine in tables:
            raise UsageError(f"{path}: contracts of {table.machine}, as another file has them")
        tables[table.machine] = table
    return list(tables.values())


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
    if args.target and not args.all:
        raise UsageError("--target goes with --all; else name machines as TARGET/NAME")
    for target in args.target:
        if not any(target in build.targets() for build in builds):
            raise UsageError(f"no target {target!r} in "
                             f"{' or '.join(build.name for build in builds)}; "
                             "`qemuglue machines` lists what there is")
    named = list(dict.fromkeys(args.machine))
    chosen: list[tuple[Build, str]] = []
    unknown = set(named)
    for build in builds:
        targets = {machine_name(machine)[0]: None for machine in named} or build.targets()
        if args.target:
            targets = tuple(target for target in build.targets() if target in args.target)
        has = {each.full_name: each.versioned for each in machines_of(build, list(targets))}
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


# Section: faces


def _faces(args: argparse.Namespace) -> int:
    """``--face``: another check of the same machines."""
    from qemuglue.campaign.faces.defects import planted
    from qemuglue.campaign.faces.jobs import FaceJob, run_faces
    from qemuglue.campaign.faces.result import FaceResult
    from qemuglue.report.check_text import PipeConsole
    from qemuglue.report.face_json import document
    from qemuglue.report.face_text import line, print_faces
    from qemuglue.report.junit import require_junit, write_junit

    faces = tuple(FACES) if "all" in args.face else tuple(dict.fromkeys(args.face))
    for name in faces:
        find_face(name)
    for option, given in (("--out", args.out), ("--contracts", args.contracts),
                          ("--qom", args.qom)):
        if given:
            raise UsageError(f"{option} does not go with --face")
    if args.ops < 1:
        raise UsageError(f"--ops {args.ops}: with --face give 1 to {MAX_OPS}")
    planted(args.defect or "", faces)
    chosen = _chosen(args, builds_of(args))
    if args.junit is not None:
        require_junit()
    seed = secrets.randbits(63) if args.seed is None else args.seed
    progress(f"seed {seed}")
    console = PipeConsole(stderr=args.json)

    def on_end(found: FaceResult) -> None:
        console.print(line(found), soft_wrap=True)

    jobs = [
        FaceJob(build=build, machine=machine, faces=faces, args=tuple(args.qemu_args),
                ops=args.ops, seed=seed, defect=args.defect or "")
        for build, machine in chosen
    ]
    runs = run_faces(jobs, workers=min(args.jobs or os.cpu_count() or 1, len(jobs)),
                     on_end=on_end)
    plain = [result.check_result() for result in runs.results]
    if args.debug:
        for trace in runs.traces:
            progress(trace)
    if args.junit is not None:
        write_junit(args.junit, plain)
    if args.json:
        print_json(document(runs.results, seed=seed, ops=args.ops, seconds=runs.seconds,
                            interrupted=runs.interrupted))
    else:
        print_faces(runs.results, console, seconds=runs.seconds, interrupted=runs.interrupted)
    return Exit.INTERRUPTED if runs.interrupted else _exit(plain, every=args.all)


# Section: what is known


def _oddities(args: argparse.Namespace) -> int:
    if args.json:
        print_json({"schema": 1, "oddities": [_oddity(each) for each in standard()]})
        return Exit.NOTHING_FOUND
    for each in standard():
        print(f"{each.id} ({each.kind})")
        print(f"  what:     {each.what}")
        print(f"  why:      {each.why}")
        print(f"  where:    QEMU {each.builds.text}, {', '.join(each.machines)}"
              + (f"; never touched: {', '.join(each.regions)}" if each.regions else ""))
        print(f"  upstream: {each.upstream}")
        if each.program is None:
            print(f"  test:     {each.test}")
        else:
            print(f"  shows:    {each.signature} at {each.region}")
            for text in each.program.canonical_text().splitlines()[1:]:
                print(f"            {text}")
        print()
    return Exit.NOTHING_FOUND


def _oddity(each: Oddity) -> dict[str, object]:
    return {
        "id": each.id, "kind": each.kind, "what": each.what, "why": each.why,
        "builds": each.builds.text, "machines": list(each.machines),
        "regions": list(each.regions), "upstream": each.upstream, "test": each.test or None,
        "match": {"signature": each.signature, "region": each.region}
        if each.program is not None else None,
        "program": each.program.canonical_text() if each.program is not None else None,
    }
