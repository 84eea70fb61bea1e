"""``qemuglue targets``: what can be fuzzed."""

from __future__ import annotations

import argparse

from qemuglue.campaign.planted import DEFAULT_DEFECT, PLANTED
from qemuglue.campaign.targets import DEFAULT_TARGET, TARGETS
from qemuglue.cli.common import Exit, add_json, print_json

NAME = "targets"
HELP = "List the fuzz targets, and with --defects what canary can plant."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--defects", action="store_true",
                        help="also list the defects that --defect NAME plants in the model")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.json:
        print_json({
            "schema": 1, "default": DEFAULT_TARGET,
            "targets": [
                {"name": t.name, "help": t.help, "machine": t.machine,
                 "devices": list(t.devices), "setup": t.setup, "defect": t.defect or None}
                for t in TARGETS.values()
            ],
            "defects": [
                {"name": name, "rule": d.rule, "summary": d.summary,
                 "default": name == DEFAULT_DEFECT}
                for name, d in PLANTED.items()
            ],
        })
        return Exit.NOTHING_FOUND
    width = max(map(len, TARGETS))
    for target in TARGETS.values():
        machine = " + ".join([target.machine, *target.devices])
        where = f"default: {machine}" if target.machine else "no QEMU needed"
        print(f"{target.name:<{width}}  {target.help} ({where})")
    if args.defects:
        print()
        width = max(map(len, PLANTED))
        for name, defect in PLANTED.items():
            mark = " (default)" if name == DEFAULT_DEFECT else ""
            print(f"{name:<{width}}  {defect.rule:<4} {defect.summary}{mark}")
    return Exit.NOTHING_FOUND
