"""``qemuglue bench``: judged operations a second, beside a client that only counts replies; or,
with ``model``, what the model does by itself."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from qemuglue.campaign import bench_model
from qemuglue.campaign.bench import Rate, measure
from qemuglue.campaign.settings import Settings, scene
from qemuglue.cli.common import Exit, add_build, add_json, add_seed, builds_of, print_json

NAME = "bench"
HELP = ("Measure judged operations a second on RAM and on devices, beside the same bytes sent "
        "pre-encoded by a client that only counts replies. `bench model` measures the model by "
        "itself: single accesses, drawing and lookup of maps, bulk copies beside slicing. Ratios "
        "hold; absolute rates drift.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("lockstep", "model"), default="lockstep",
                        help="judged operations on QEMU (the default), or the model alone")
    parser.add_argument("--machine", default="x86_64/q35", metavar="TARGET/NAME")
    parser.add_argument("--operations", type=int, default=200_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    add_seed(parser)
    add_json(parser)
    add_build(parser)


def run(args: argparse.Namespace) -> int:
    return _model(args) if args.what == "model" else _lockstep(args)


def _lockstep(args: argparse.Namespace) -> int:
    [build] = builds_of(args)
    stage = scene(Settings(machine=args.machine, devices=("edu", "pci-testdev"),
                           build=build.name if build.root else str(args.build or "")))
    rates = measure(stage, operations=max(1000, args.operations), rounds=max(1, args.rounds),
                    seed=args.seed or 0)
    if args.json:
        print_json({"schema": 1, "build": build.name, "version": build.version,
                    "machine": args.machine, "rates": [_document(rate) for rate in rates]})
        return Exit.NOTHING_FOUND
    print(f"{args.machine} on {build.name} (QEMU {build.version}), medians of {args.rounds} rounds "
          f"of {rates[0].operations:,} operations")
    print(f"{'':8} {'judged':>12} {'only counted':>14} {'share':>7}")
    for rate in rates:
        print(f"{rate.what:8} {rate.judged:>10,.0f}/s {rate.counted:>12,.0f}/s {rate.share:>6.0%}")
    return Exit.NOTHING_FOUND


def _document(rate: Rate) -> dict[str, Any]:
    return {"what": rate.what, "operations": rate.operations, "judged_per_s": round(rate.judged),
            "counted_per_s": round(rate.counted), "share": round(rate.share, 3)}


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
