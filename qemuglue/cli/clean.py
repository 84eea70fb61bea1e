"""``qemuglue clean``: which ways bring a machine back into its first state?"""

from __future__ import annotations

import argparse
import secrets
from typing import Any

from qemuglue.campaign.clean import OPERATIONS, ROUNDS, Cleanness, Verdict, cleanness
from qemuglue.campaign.restoring import Method
from qemuglue.campaign.settings import Settings, scene
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
from qemuglue.errors import QemuglueError, UsageError
from qemuglue.program.verbs import MODES

NAME = "clean"
HELP = ("Measure which ways bring a machine back into its first state: a fresh process, a "
        "snapshot (savevm, loadvm), a system reset. Between two looks a random program is "
        "performed; compared are the memory map, what every device region reads as, and RAM. "
        "Exit 1 if a way other than a reset leaves something behind.")

#: More rounds than this find nothing that fewer did not.
MAX_ROUNDS = 1000

#: Volatile names in a line of the table; --json has all.
SHOWN_VOLATILE = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", nargs="+", metavar="MACHINE", help="as TARGET/NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N",
                        help=f"programs of {OPERATIONS} operations for each way "
                             f"(default: {ROUNDS})")
    parser.add_argument("--state", action="append", choices=[each.value for each in Method],
                        help="only this way; may be repeated (default: all)")
    parser.add_argument("--mode", choices=MODES, default="stopped",
                        help="whether the virtual clock runs (parked) or not (default: stopped)")
    add_seed(parser)
    add_json(parser)
    add_build(parser, repeatable=True)
    add_qemu_args(parser)


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.rounds <= MAX_ROUNDS:
        raise UsageError(f"--rounds {args.rounds}: give 1 to {MAX_ROUNDS}")
    methods = [Method(word) for word in args.state or [each.value for each in Method]]
    seed = secrets.randbits(32) if args.seed is None else args.seed
    progress(f"seed {seed}")
    results: list[dict[str, Any]] = []
    unclean = errors = 0
    for build in builds_of(args):
        name = build.name if build.root else str((args.build or [""])[0])
        for machine in dict.fromkeys(args.machine):
            settings = Settings(
                machine=machine, build=name, qemu_args=tuple(args.qemu_args), mode=args.mode,
                setup="pci" if machine.startswith(("x86_64/", "i386/")) else "")
            try:
                found = cleanness(
                    scene(settings), methods=methods, rounds=args.rounds, seed=seed)
            except QemuglueError as error:
                errors += 1
                results.append({"build": build.name, "machine": machine, "status": "error",
                                "error": str(error)})
                if not args.json:
                    print(f"{machine}, {build.name}: not looked at: {error}")
                continue
            unclean += any(
                not each.clean for each in found.verdicts.values()
                if each.method is not Method.RESET)
            results.append(_document(found))
            if not args.json:
                _show(found, build.version)
    if args.json:
        print_json({"schema": 1, "seed": seed, "rounds": args.rounds, "results": results})
    if errors and errors == len(results):
        return Exit.ERROR
    return Exit.FOUND if unclean else Exit.NOTHING_FOUND


def _show(found: Cleanness, version: str) -> None:
    print(f"{found.machine}, {found.build} (QEMU {version}), {found.mode}: {found.ranges:,} "
          f"ranges, {found.registers:,} reads of devices, {found.pages:,} pages of RAM")
    for verdict in found.verdicts.values():
        words = _words(verdict)
        time = f"{1000 * verdict.seconds:7.1f} ms" if verdict.seconds else f"{'':10}"
        print(f"  {verdict.method.value:<9}{time}  {words[0]}")
        for line in words[1:]:
            print(f"  {'':21}{line}")
    if found.volatile:
        shown = ", ".join(found.volatile[:SHOWN_VOLATILE])
        more = len(found.volatile) - SHOWN_VOLATILE
        print(f"  no two processes agree on: {shown}{f' and {more} more' if more > 0 else ''}")
    if found.left_out:
        print(f"  left out, because reading them ends QEMU: {', '.join(found.left_out)}")


def _words(verdict: Verdict) -> list[str]:
    if verdict.clean:
        return [f"clean, {verdict.rounds} of {verdict.rounds} times"]
    if not verdict.rounds:
        return [f"not possible: {verdict.why[0]}"]
    return [f"not clean, the {_nth(verdict.rounds)} time: {verdict.why[0]}", *verdict.why[1:]]


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


def _document(found: Cleanness) -> dict[str, Any]:
    return {
        "build": found.build, "machine": found.machine, "mode": found.mode, "status": "looked at",
        "ranges": found.ranges, "registers": found.registers, "pages": found.pages,
        "volatile": found.volatile, "left_out": found.left_out,
        "states": {
            each.method.value: {
                "clean": each.clean, "rounds": each.rounds, "why": each.why,
                "seconds": round(each.seconds, 6),
            } for each in found.verdicts.values()
        },
    }
