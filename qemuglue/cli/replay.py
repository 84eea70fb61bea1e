"""``qemuglue replay``: a finding, a program or a qtest script again in a fresh QEMU."""

from __future__ import annotations

import argparse
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemuglue.campaign.findings import details
from qemuglue.campaign.inputs.faults import is_input_finding, read_finding
from qemuglue.campaign.inputs.subject import replay_finding
from qemuglue.campaign.loading import Loaded, load
from qemuglue.campaign.restoring import Method
from qemuglue.campaign.settings import Settings, scene
from qemuglue.cli.common import (
    Exit,
    add_build,
    add_json,
    add_qemu_args,
    builds_of,
    print_json,
    progress,
)
from qemuglue.cli.repeat import run_repeats
from qemuglue.errors import BuildError, UsageError
from qemuglue.program.words import format_operation
from qemuglue.qemu.builds import Build, find_build
from qemuglue.qemu.config import VmMode
from qemuglue.report import input_summary
from qemuglue.witness.judge import Judgement, Kind, Scene, prepare, replay
from qemuglue.witness.session import Step
from qemuglue.witness.verdict import Tally, Verdict

NAME = "replay"
HELP = ("Perform a finding, a program text or a qtest script in a fresh QEMU, one operation at a "
        "time, and tell what the model says and what QEMU says. Exit code 1 if they part, or if "
        "QEMU dies or hangs.")

#: Without --all-steps a long program shows only this many operations before its end.
SHOWN = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="+", type=Path, metavar="FILE",
                        help="finding folder, program text (.qg) or qtest script")
    parser.add_argument("--machine", default="", metavar="TARGET/NAME",
                        help="machine of a qtest script, or another one than the file's")
    parser.add_argument("--defect", metavar="NAME",
                        help="judge with this planted defect (default: the finding's own)")
    parser.add_argument("--all-steps", action="store_true",
                        help=f"show every operation (default: the last {SHOWN})")
    parser.add_argument("--repeat", type=int, default=0, metavar="N",
                        help="perform each file N times instead, each time in the machine's first "
                             "state, and tell whether QEMU did the same every time")
    parser.add_argument("--state", choices=[each.value for each in Method], default="fresh",
                        help="how --repeat brings the first state back (default: fresh; another "
                             "is refused where it is not clean, see `qemuglue clean`)")
    add_json(parser)
    add_build(parser)
    add_qemu_args(parser)


def run(args: argparse.Namespace) -> int:
    documents = []
    worst = Exit.NOTHING_FOUND
    for path in args.file:
        if is_input_finding(path):
            document = _replay_input(args, path)
            documents.append(document)
            if document["kind"] != "none":
                worst = Exit.FOUND
            continue
        loaded = load(path, machine=args.machine, args=tuple(args.qemu_args))
        build = _build(args, loaded)
        if args.repeat:
            document, code = run_repeats(
                _scene(args, loaded, build), loaded, args.repeat, Method(args.state),
                as_json=args.json)
            documents.append(document)
            worst = Exit.FOUND if code else worst
            continue
        document, found = _replay(args, loaded, build)
        documents.append(document)
        if found.kind not in (Kind.NONE, Kind.SHUTDOWN):
            worst = Exit.FOUND
    if args.json:
        print_json(documents[0] if len(documents) == 1 else documents)
    return worst


def _replay_input(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """A finding of a target without a machine: no QEMU, only bytes."""
    finding = read_finding(path)
    fault = replay_finding(finding)
    if not args.json:
        print(f"{path.name}: {len(finding.data)} bytes for the target {finding.kind}")
        if fault is None:
            print(f"nothing found; the finding ({finding.signature}) was not seen again")
        else:
            same = fault.signature == finding.signature
            print(f"{fault} ({'the same as recorded' if same else 'recorded: '}"
                  f"{'' if same else finding.signature})")
    return input_summary.replayed(finding, fault)


def _build(args: argparse.Namespace, loaded: Loaded) -> Build:
    """The build asked for, else the finding's own, else the default."""
    if args.build or loaded.finding is None:
        return builds_of(args)[0]
    name = str(loaded.finding.build.get("name", ""))
    try:
        return find_build(name)
    except BuildError as error:
        raise UsageError(
            f"{loaded.name} was found on build {name!r}: {error}; "
            "give another with --build NAME|PATH"
        ) from None


def _scene(args: argparse.Namespace, loaded: Loaded, build: Build) -> Scene:
    program = loaded.program
    defect = args.defect
    if defect is None:
        defect = loaded.finding.defect if loaded.finding is not None else ""
    words = program.args
    if args.qemu_args and tuple(args.qemu_args) != words:
        words += tuple(args.qemu_args)
    settings = Settings(
        machine=program.machine, qemu_args=words, mode=program.mode, setup=program.setup,
        defect=defect, build=build.name if build.root else str(args.build or ""),
    )
    return scene(settings)


def _replay(args: argparse.Namespace, loaded: Loaded, build: Build) -> tuple[Any, Judgement]:
    stage = _scene(args, loaded, build)
    program = loaded.program
    for note in (*loaded.notes, *prepare(stage)):
        progress(f"note: {note}")
    total = len(program.operations)
    kept: deque[str] = deque(maxlen=None if args.all_steps else SHOWN)
    performed = 0

    def on_step(index: int, step: Step, model: Sequence[str], qemu: Sequence[str]) -> None:
        nonlocal performed
        performed += 1
        op, addr = step
        where = "" if op.place is None else f"    {addr:#x}"
        lines = [f"{index:6}  {format_operation(op)[:160]}{where}"]
        lines += [f"          model says: {text}" for text in model]
        lines += [f"          QEMU says:  {text}" for text in qemu]
        if not model and not qemu and op.place is not None:
            lines.append("          not performed, or nothing sound can be said: see below")
        kept.append("\n".join(lines))

    tally = Tally()
    # A finding is performed as the campaign did it; what a person wrote is performed whole.
    found = replay(stage, program, on_step=on_step, tally=tally,
                   avoid=loaded.finding is not None)
    config = stage.config
    document = {
        "schema": 1, "file": loaded.name, "kind": found.kind.value,
        "signature": found.signature, "build": config.build.name,
        "version": config.build.version, "machine": config.full_name, "mode": config.mode.value,
        "operations": total, "performed": performed, "verdicts": tally.to_json(),
        "verdict": details(found), "stderr": found.stderr[-2000:],
    }
    if not args.json:
        print(f"{loaded.name}: {total} operations on {config.full_name}, "
              f"{config.build.name} (QEMU {config.build.version})"
              f"{', parked' if config.mode is VmMode.PARKED else ''}")
        if len(kept) < performed:
            print(f"        … {performed - len(kept)} operations before (--all-steps shows them)")
        for text in kept:
            print(text)
        print(_sentence(found, tally, loaded))
        for why, count in tally.reasons.most_common():
            print(f"  not judged, {count} time{'s' * (count != 1)}: {why}")
    return document, found


def _sentence(found: Judgement, tally: Tally, loaded: Loaded) -> str:
    if found.kind is Kind.NONE:
        counts = ", ".join(f"{tally.of(v)} {v.value}" for v in Verdict if tally.of(v))
        text = f"nothing found: {counts}"
        if loaded.finding is not None:
            text += f"; the finding ({loaded.finding.signature}) was not seen again"
        return text
    if found.kind is Kind.SHUTDOWN:
        return f"the guest switched the machine off at operation {found.index}"
    again = ""
    if loaded.finding is not None:
        same = loaded.finding.signature == found.signature
        again = " (the same as recorded)" if same else f" (recorded: {loaded.finding.signature})"
    return f"{found.kind.value} at operation {found.index}: {found.signature}{again}"
