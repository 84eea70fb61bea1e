"""``qemuglue corpus``: merge, prune and measure corpora, with any engine's inputs."""

from __future__ import annotations

import argparse
from pathlib import Path

from qemuglue.campaign.corpus import Corpus, Reach, merge, prune, stats
from qemuglue.campaign.settings import Settings
from qemuglue.campaign.status import StatusWriter
from qemuglue.campaign.targets import TARGETS
from qemuglue.campaign.worker import Work
from qemuglue.cli.common import Exit, add_build, add_json, add_qemu_args, print_json, progress
from qemuglue.errors import UsageError

NAME = "corpus"
HELP = "Merge, prune or measure a corpus of inputs."

_ACCESS = TARGETS["access"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="merge|prune|stats")
    one = actions.add_parser("stats", help="how many inputs and operations there are")
    one.add_argument("folder", type=Path, metavar="DIR")
    add_json(one)
    two = actions.add_parser(
        "merge", help="add to a corpus what reaches something new",
        description="Add to INTO the inputs of the other folders that reach something (regions, "
                    "pieces, refusals) which INTO does not; each is run on a machine.")
    two.add_argument("into", type=Path, metavar="INTO")
    two.add_argument("sources", type=Path, nargs="+", metavar="FROM")
    three = actions.add_parser(
        "prune", help="drop what adds nothing",
        description="Keep the smallest inputs that together reach what the corpus reaches.")
    three.add_argument("folder", type=Path, metavar="DIR")
    for action in (two, three):
        action.add_argument("--machine", default=_ACCESS.machine, metavar="TARGET/NAME")
        action.add_argument("--device", action="append", metavar="DEVICE")
        action.add_argument("--out", default=".", metavar="DIR",
                            help="what is found on the way is recorded in DIR/findings")
        add_qemu_args(action)
        add_build(action)
        add_json(action)


def run(args: argparse.Namespace) -> int:
    if args.action == "stats":
        return _stats(args)
    folders = [args.folder] if args.action == "prune" else [args.into, *args.sources]
    for folder in folders[1:] if args.action == "merge" else folders:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder; give a corpus")
    for folder in folders:
        Corpus(folder).check()
    work = _work(args)
    work.start()
    try:
        reach = _reach(work)
        if args.action == "prune":
            kept, removed = prune(Corpus(args.folder), reach)
            return _tell(args, {"kept": kept, "removed": removed}, work)
        before = Corpus(args.into).size()
        added = merge(Corpus(args.into), [Corpus(each) for each in args.sources], reach)
        return _tell(args, {"before": before, "added": added}, work)
    finally:
        work.close()


def _stats(args: argparse.Namespace) -> int:
    if not args.folder.is_dir():
        raise UsageError(f"{args.folder} is no folder; give a corpus")
    found = stats(Corpus(args.folder))
    if args.json:
        print_json({"schema": 1, "folder": str(args.folder), "inputs": found.inputs,
                    "bytes": found.size_bytes, "operations": found.operations,
                    "shortest": found.shortest, "longest": found.longest})
    else:
        print(f"{found.inputs} inputs, {found.size_bytes} bytes, {found.operations} operations "
              f"({found.shortest} to {found.longest} an input)")
    return Exit.NOTHING_FOUND


def _work(args: argparse.Namespace) -> Work:
    devices = args.device
    if devices is None:
        devices = _ACCESS.devices if args.machine == _ACCESS.machine else ()
    return Work(Settings(
        machine=args.machine, devices=tuple(devices), qemu_args=tuple(args.qemu_args),
        build=args.build or "", out=args.out, setup=_ACCESS.setup,
    ), StatusWriter(-1))


def _reach(work: Work) -> Reach:
    def reach(data: bytes) -> set[object]:
        work.perform(work.decode(data), data)
        return set(work.explorer.features or ())

    return reach


def _tell(args: argparse.Namespace, counts: dict[str, int], work: Work) -> int:
    if args.json:
        print_json({"schema": 1, "action": args.action, **counts,
                    "findings": dict(work.signatures)})
    else:
        print(", ".join(f"{name} {n}" for name, n in counts.items()))
        for signature in work.signatures:
            progress(f"found on the way: {signature}, recorded in {work.settings.findings}")
    return Exit.FOUND if work.signatures else Exit.NOTHING_FOUND
