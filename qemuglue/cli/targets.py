"""``qemuglue targets``: what can be fuzzed."""

from __future__ import annotations

import argparse

from qemuglue.campaign.planted import DEFAULT_DEFECT, PLANTED
from qemuglue.campaign.targets import DEFAULT_TARGET, TARGETS
from qemuglue.cli.common import Exit, add_build, add_json, print_json
from qemuglue.qemu.builds import find_build
from qemuglue.qemu.builds_devices import Device, device_list

NAME = "targets"
HELP = ("List the fuzz targets; with --defects what can be planted to see it found, with "
        "--devices what the target device can be given.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--defects", action="store_true",
                        help="also list the defects that --defect NAME plants in the model")
    parser.add_argument("--devices", nargs="?", const="x86_64", metavar="TARGET",
                        help="also list the devices of a build that `fuzz device --device NAME` "
                             "takes (for x86_64 unless another is named)")
    add_build(parser)
    add_json(parser)


def _print_devices(devices: list[Device]) -> None:
    sort = ""
    width = max(len(device.name) for device in devices)
    for device in devices:
        if device.sort != sort:
            sort = device.sort
            print(f"\n{sort}")
        bus = f"on {device.bus}" if device.bus else ""
        print(f"  {device.name:<{width}}  {bus:<20}  {device.description}".rstrip())


def run(args: argparse.Namespace) -> int:
    devices = device_list(find_build(args.build), args.devices) if args.devices else []
    if args.json:
        print_json({
            "schema": 1, "default": DEFAULT_TARGET,
            "targets": [
                {"name": t.name, "help": t.help, "machine": t.machine,
                 "devices": list(t.devices), "setup": t.setup, "defect": t.defect or None,
                 "qemu_args": list(t.qemu_args), "operations": t.operations, "mode": t.mode}
                for t in TARGETS.values()
            ],
            "defects": [
                {"name": name, "rule": d.rule, "summary": d.summary,
                 "default": name == DEFAULT_DEFECT}
                for name, d in PLANTED.items()
            ],
            "build_devices": [
                {"name": d.name, "bus": d.bus, "description": d.description, "sort": d.sort}
                for d in devices
            ],
        })
        return Exit.NOTHING_FOUND
    width = max(map(len, TARGETS))
    for target in TARGETS.values():
        machine = " + ".join([target.machine, *target.devices])
        where = f"default: {machine}" if target.machine else "no QEMU needed"
        print(f"{target.name:<{width}}  {target.help}\n{'':<{width}}    {where}")
    if devices:
        _print_devices(devices)
    if args.defects:
        print()
        width = max(map(len, PLANTED))
        for name, defect in PLANTED.items():
            mark = " (default)" if name == DEFAULT_DEFECT else ""
            print(f"{name:<{width}}  {defect.rule:<4} {defect.summary}{mark}")
    return Exit.NOTHING_FOUND
