"""``qemuglue builds``: the managed builds, and bringing more of them."""

from __future__ import annotations

import argparse

from qemuglue.cli.common import Exit, add_json, print_json, progress
from qemuglue.qemu.builds import (
    STANDARD_SUITES,
    Build,
    cache_folder,
    installed_builds,
)

NAME = "builds"
HELP = "List the managed QEMU builds, or install more: Debian suites, without root."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    actions = parser.add_subparsers(dest="action", metavar="install")
    bring = actions.add_parser(
        "install", help="bring builds into the cache",
        description="Bring QEMU builds from Debian suites into the cache, without root. A suite "
                    "that cannot be had is reported and left out; exit 2 only if none could.")
    bring.add_argument("suites", nargs="*", metavar="NAME",
                       help=f"Debian suites (default: {' '.join(STANDARD_SUITES)})")
    bring.add_argument("--targets", default="x86,arm", metavar="GROUPS",
                       help="Debian's target groups, or `all` (default: x86,arm)")
    bring.add_argument("--refresh", action="store_true",
                       help="bring a suite's newest QEMU even if the suite is installed")
    bring.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                       help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    return _install(args) if args.action == "install" else _list(args)


def _list(args: argparse.Namespace) -> int:
    builds = installed_builds()
    if args.json:
        print_json({"schema": 1, "cache": str(cache_folder()),
                    "builds": [_document(build) for build in builds]})
    elif not builds:
        print(f"no managed builds in {cache_folder()}; `qemuglue builds install` brings "
              f"{', '.join(STANDARD_SUITES)}")
    for build in [] if args.json else builds:
        print(_line(build))
    return Exit.NOTHING_FOUND


def _install(args: argparse.Namespace) -> int:
    from qemuglue.qemu.builds_install import install  # brings an ELF reader; listing needs none

    groups = [group for group in args.targets.split(",") if group]
    results = install(args.suites or STANDARD_SUITES, groups, progress=progress,
                      refresh=args.refresh)
    if args.json:
        print_json({"schema": 1, "cache": str(cache_folder()), "results": [
            {"name": r.suite, "status": _status(r.build, r.fresh),
             "build": _document(r.build) if r.build else None, "reason": r.reason or None}
            for r in results]})
    else:
        for r in results:
            print(_line(r.build) if r.build else f"{r.suite:<20} left out: {r.reason}")
    return Exit.NOTHING_FOUND if any(r.build for r in results) else Exit.ERROR


def _status(build: Build | None, fresh: bool) -> str:
    return "failed" if build is None else "installed" if fresh else "present"


def _line(build: Build) -> str:
    return f"{build.name:<20} QEMU {build.version:<9} {', '.join(build.targets())}"


def _document(build: Build) -> dict[str, object]:
    return {"name": build.name, "version": build.version, "package": build.package,
            "targets": list(build.targets()), "root": str(build.root)}
