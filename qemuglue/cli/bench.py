"""``qemuglue bench``: judged operations a second, beside a client that only counts replies;
with ``model``, what the model does by itself; with ``check``, what the maps of all machines cost
beside launching them."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from qemuglue.campaign import bench_check, bench_model
from qemuglue.campaign.bench import BulkRate, Rate, measure
from qemuglue.campaign.check_jobs import machines_of
from qemuglue.campaign.settings import Settings, scene
from qemuglue.cli.common import (
    Exit,
    add_build,
    add_json,
    add_seed,
    builds_of,
    print_json,
    progress,
)
from qemuglue.errors import UsageError

NAME = "bench"
HELP = ("Measure judged operations a second on RAM, on devices and in a campaign's mix, beside "
        "the same bytes sent pre-encoded with the transcript on by a client that only counts "
        "replies; and the comparison of all of guest RAM beside memcmp. `bench model` measures "
        "the model by itself: single accesses, drawing and lookup of maps, bulk copies beside "
        "slicing. `bench check` measures `check --all --ops 0` beside launching the same machines "
        "and reading `info mtree` alone, in turns. Ratios hold; absolute rates drift.")


#: As for `check`.
MAX_JOBS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("lockstep", "model", "check"),
                        default="lockstep",
                        help="judged operations on QEMU (the default), the model alone, or the "
                             "maps of all machines")
    parser.add_argument("--machine", default="x86_64/q35", metavar="TARGET/NAME")
    parser.add_argument("--operations", type=int, default=30_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--target", action="append", default=[], metavar="T",
                        help="check: only machines of this target; may be repeated")
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="check: machines at a time (default: the number of cores)")
    add_seed(parser)
    add_json(parser)
    add_build(parser)


def run(args: argparse.Namespace) -> int:
    return {"model": _model, "check": _check}.get(args.what, _lockstep)(args)


def _lockstep(args: argparse.Namespace) -> int:
    [build] = builds_of(args)
    stage = scene(Settings(machine=args.machine, devices=("edu", "pci-testdev"),
                           build=build.name if build.root else str(args.build or "")))
    rates, bulk = measure(stage, operations=max(1000, args.operations),
                          rounds=max(1, args.rounds), seed=args.seed or 0)
    if args.json:
        print_json({"schema": 1, "build": build.name, "version": build.version,
                    "machine": args.machine, "rates": [_document(rate) for rate in rates],
                    "bulk": _bulk_document(bulk)})
        return Exit.NOTHING_FOUND
    print(f"{args.machine} on {build.name} (QEMU {build.version}), medians of {args.rounds} rounds "
          f"of {rates[0].operations:,} operations")
    print(f"{'':14} {'judged':>12} {'only counted':>14} {'share':>7}")
    for rate in rates:
        print(f"{rate.what:14} {rate.judged:>10,.0f}/s {rate.counted:>12,.0f}/s {rate.share:>6.0%}")
    if bulk is not None:
        print(f"all RAM, {bulk.size >> 20:,} MiB: compared at {_gib_s(bulk, bulk.compare_s):.2f} "
              f"GiB/s, memcmp {_gib_s(bulk, bulk.memcmp_s):.2f} GiB/s: "
              f"{bulk.ratio:.2f} times as long")
    return Exit.NOTHING_FOUND


def _gib_s(bulk: BulkRate, seconds: float) -> float:
    return bulk.size / seconds / (1 << 30)


def _document(rate: Rate) -> dict[str, Any]:
    return {"what": rate.what, "operations": rate.operations, "judged_per_s": round(rate.judged),
            "counted_per_s": round(rate.counted), "share": round(rate.share, 3)}


def _bulk_document(bulk: BulkRate | None) -> dict[str, Any] | None:
    """None: this machine's RAM is not shared with the harness."""
    if bulk is None:
        return None
    return {"bytes": bulk.size, "compare_gib_per_s": round(_gib_s(bulk, bulk.compare_s), 2),
            "memcmp_gib_per_s": round(_gib_s(bulk, bulk.memcmp_s), 2),
            "ratio": round(bulk.ratio, 3)}


def _model(args: argparse.Namespace) -> int:
    figures = bench_model.measure(operations=max(1, args.operations), rounds=max(1, args.rounds),
                                  seed=args.seed or 0)
    if args.json:
        print_json({"schema": 1, "python": platform.python_version(), **asdict(figures)})
        return Exit.NOTHING_FOUND
    print(f"the model on Python {platform.python_version()}, medians of {figures.rounds} rounds")
    for line in _table(figures):
        print(line)
    return Exit.NOTHING_FOUND


def _table(figures: bench_model.Figures) -> Iterator[str]:
    """Three columns: what, how much, and beside what that is to be seen."""
    def row(what: str, figure: str, beside: str) -> str:
        return f"{what:34} {figure:>14}  {beside}"

    for access in figures.accesses:
        yield row(f"{access.face} face, {access.what} {access.kind}, {access.region}",
                  f"{access.per_s:,.0f}/s", f"{1e9 / access.per_s:,.0f} ns each")
    for view in figures.views:
        growth = next(each for each in figures.growth if each.shape == view.shape)
        share = view.render_s / bench_model.nlogn(growth, view.regions)
        what = f"{view.regions:,} regions, {view.shape}"
        yield row(f"draw {what}", f"{view.render_s * 1e3:,.3f} ms",
                  f"{share:.2f} of c·n·log2(n); {view.sections:,} sections")
        yield row(f"lookup in {what}", f"{view.lookup_s * 1e9:,.0f} ns", "")
    for growth in figures.growth:
        yield row(f"growth of drawing, {growth.shape}", f"n^{growth.exponent:.2f}",
                  f"c = {growth.nlogn_s * 1e9:,.0f} ns")
    for bulk in figures.bulk:
        yield row(f"{bulk.what} of {bulk.size >> 20:,} MiB",
                  f"{bulk.size / bulk.model_s / (1 << 30):,.2f} GiB/s",
                  f"{bulk.ratio:.2f} times as long as slicing")


def _check(args: argparse.Namespace) -> int:
    [build] = builds_of(args)
    targets = [target for target in build.targets() if target in args.target or not args.target]
    if set(args.target) - set(targets):
        raise UsageError(f"no target {min(set(args.target) - set(targets))!r} in {build.name}; "
                         f"there are {', '.join(build.targets())}")
    if args.jobs is not None and not 1 <= args.jobs <= MAX_JOBS:
        raise UsageError(f"--jobs {args.jobs}: give 1 to {MAX_JOBS}")
    machines = [each.full_name for each in machines_of(build, targets) if not each.versioned]
    workers = min(args.jobs or os.cpu_count() or 1, len(machines))
    words = ["check", "--all", "--ops", "0", "--json", "--jobs", str(workers), "--build",
             str(args.build or build.name)]
    words += [f"--target={target}" for target in targets]

    def on_round(each: bench_check.Round) -> None:
        progress(f"launch and read {each.read_s:.1f} s, check {each.check_s:.1f} s")

    cost = bench_check.measure(build, machines, words, workers=workers,
                               rounds=max(1, args.rounds), on_round=on_round)
    if args.json:
        print_json({"schema": 1, "ratio": round(cost.ratio, 3), **asdict(cost)})
        return Exit.NOTHING_FOUND
    print(f"{cost.machines} machines of {cost.build} (QEMU {cost.version}), {workers} at a time, "
          f"{len(cost.rounds)} rounds; {cost.started} start, {cost.exact} are exact")
    print(f"{'':22}" + "".join(f"{'round ' + str(n):>10}" for n in range(1, len(cost.rounds) + 1)))
    for what, figures in (
        ("launch and read", [f"{each.read_s:.1f} s" for each in cost.rounds]),
        ("check --all --ops 0", [f"{each.check_s:.1f} s" for each in cost.rounds]),
        ("ratio", [f"{each.check_s / each.read_s:.2f}" for each in cost.rounds]),
        ("memory, harness", [f"{each.memory >> 20} MiB" for each in cost.rounds]),
        ("memory, QEMUs", [f"{each.qemus >> 20} MiB" for each in cost.rounds]),
    ):
        print(f"{what:22}" + "".join(f"{figure:>10}" for figure in figures))
    print(f"ratio {cost.ratio:.2f} (median), at most {cost.memory >> 20} MiB")
    return Exit.NOTHING_FOUND
