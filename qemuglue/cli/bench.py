"""``qemuglue bench``: judged operations a second, beside a client that only counts replies."""

from __future__ import annotations

import argparse
from typing import Any

from qemuglue.campaign.bench import Rate, measure
from qemuglue.campaign.settings import Settings, scene
from qemuglue.cli.common import Exit, add_build, add_json, add_seed, builds_of, print_json

NAME = "bench"
HELP = ("Measure judged operations a second on RAM and on devices, beside the same bytes sent "
        "pre-encoded by a client that only counts replies. Ratios hold; absolute rates drift.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--machine", default="x86_64/q35", metavar="TARGET/NAME")
    parser.add_argument("--operations", type=int, default=200_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    add_seed(parser)
    add_json(parser)
    add_build(parser)


def run(args: argparse.Namespace) -> int:
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
