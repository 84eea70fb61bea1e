"""``qemuglue corpus``: merge, prune and measure corpora, with any engine's inputs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from qemuglue.campaign.corpus import Corpus, Reach, merge, prune, stats
from qemuglue.campaign.inputs import engine
from qemuglue.campaign.inputs.subject import find_subject
from qemuglue.campaign.settings import Settings
from qemuglue.campaign.status import StatusWriter
from qemuglue.campaign.targets import DEFAULT_TARGET, find_target
from qemuglue.campaign.worker import Work
from qemuglue.cli.common import Exit, add_build, add_json, add_qemu_args, print_json, progress
from qemuglue.errors import UsageError

NAME = "corpus"
HELP = "Merge, prune or measure a corpus of inputs."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="merge|prune|stats")
    one = actions.add_parser("stats", help="how many inputs and operations there are")
    one.add_argument("folder", type=Path, metavar="DIR")
    one.add_argument("--target", default=DEFAULT_TARGET, metavar="NAME",
                     help="what the inputs are for; those of targets without a machine are no "
                          "operations")
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
        action.add_argument("--target", default=DEFAULT_TARGET, metavar="NAME",
                            help="what the inputs are for: a target of `qemuglue targets` "
                                 f"(default: {DEFAULT_TARGET})")
        action.add_argument("--machine", metavar="TARGET/NAME")
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
    if not find_target(args.target).machine:
        return _alone(args)
    work = Work(_settings(args), StatusWriter(-1))
    work.start()
    try:
        counts = _select(args, _reach(work))
        return _tell(args, counts, dict(work.signatures), work.settings.findings)
    finally:
        work.close()


def _select(args: argparse.Namespace, reach: Reach) -> dict[str, int]:
    """Do what was asked for; what became of the inputs."""
    if args.action == "prune":
        kept, removed = prune(Corpus(args.folder), reach)
        return {"kept": kept, "removed": removed}
    before = Corpus(args.into).size()
    added = merge(Corpus(args.into), [Corpus(each) for each in args.sources], reach)
    return {"before": before, "added": added}


def _alone(args: argparse.Namespace) -> int:
    """The same for a target that needs no QEMU: an input's answer is what it reaches."""
    if args.machine or args.device or args.qemu_args or args.build:
        raise UsageError(f"the target {args.target} needs no QEMU: leave out --machine, "
                         "--device, --qemu-args and --build")
    work = engine.Work(find_subject(args.target), Path(args.out))

    def reach(data: bytes) -> set[object]:
        fact, _ = work.run(data)
        return set() if fact is None else {fact}

    counts = _select(args, reach)
    return _tell(args, counts, work.signatures, work.folder)


def _stats(args: argparse.Namespace) -> int:
    if not args.folder.is_dir():
        raise UsageError(f"{args.folder} is no folder; give a corpus")
    found = stats(Corpus(args.folder))
    if not find_target(args.target).machine:
        told = {"schema": 1, "folder": str(args.folder), "inputs": found.inputs,
                "bytes": found.size_bytes}
        if args.json:
            print_json(told)
        else:
            print(f"{found.inputs} inputs, {found.size_bytes} bytes")
        return Exit.NOTHING_FOUND
    if args.json:
        print_json({"schema": 1, "folder": str(args.folder), "inputs": found.inputs,
                    "bytes": found.size_bytes, "operations": found.operations,
                    "shortest": found.shortest, "longest": found.longest})
    else:
        print(f"{found.inputs} inputs, {found.size_bytes} bytes, {found.operations} operations "
              f"({found.shortest} to {found.longest} an input)")
    return Exit.NOTHING_FOUND


def _settings(args: argparse.Namespace) -> Settings:
    base = Settings.of_target(
        args.target, machine=args.machine or "", devices=args.device, build=args.build or "")
    return base.replace(qemu_args=(*base.qemu_args, *args.qemu_args), out=args.out, defect="")


def _reach(work: Work) -> Reach:
    def reach(data: bytes) -> set[object]:
        work.perform(work.decode(data), data)
        return set(work.explorer.features or ())

    return reach


def _tell(
    args: argparse.Namespace, counts: Mapping[str, int], signatures: Mapping[str, int],
    findings: Path,
) -> int:
    if args.json:
        print_json({"schema": 1, "action": args.action, **counts, "findings": dict(signatures)})
    else:
        print(", ".join(f"{name} {n}" for name, n in counts.items()))
        for signature in signatures:
            progress(f"found on the way: {signature}, recorded in {findings}")
    return Exit.FOUND if signatures else Exit.NOTHING_FOUND
