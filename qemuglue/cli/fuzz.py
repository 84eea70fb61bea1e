"""``qemuglue fuzz``: a campaign on one target."""

from __future__ import annotations

import argparse
import secrets
import time
from pathlib import Path

from rich.console import Console

from qemuglue.campaign.defects import DEFAULT_DEFECT
from qemuglue.campaign.feedback import DEFAULT_FEEDBACK, FEEDBACKS, has_atheris
from qemuglue.campaign.inputs.campaign import InputSettings, run_campaign
from qemuglue.campaign.inputs.subject import find_subject
from qemuglue.campaign.runner import Campaign
from qemuglue.campaign.settings import DEFAULT_OPERATIONS, ENGINES, MAX_JOBS, Settings
from qemuglue.campaign.targets import DEFAULT_TARGET, TARGETS, find_target
from qemuglue.cli.common import add_build, add_json, add_qemu_args, add_seed, print_json, progress
from qemuglue.errors import UsageError
from qemuglue.program.verbs import MODES
from qemuglue.report import input_summary
from qemuglue.report.summary import document, exit_code, print_summary
from qemuglue.report.terminal import Terminal

NAME = "fuzz"
HELP = ("Run a campaign: many programs on a machine, every operation judged against the model. "
        "Exit 1 when something was found.")

#: Seconds of a campaign that says nothing about its length.
DEFAULT_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", nargs="?", default=DEFAULT_TARGET, metavar="TARGET",
        help=f"{' or '.join(TARGETS)} (default: {DEFAULT_TARGET}); `qemuglue targets` says more")
    add("--machine", metavar="TARGET/NAME", help="for example x86_64/q35 (the default)")
    add("--device", action="append", metavar="DEVICE",
        help="plug it in, as QEMU's -device; may be repeated (default: the target's own, and "
             "none with --machine)")
    add_qemu_args(parser)
    add_build(parser)
    add("--seconds", type=float, metavar="N",
        help=f"how long (default: {DEFAULT_SECONDS:.0f}; 0: until Ctrl-C)")
    add("--programs", type=int, default=0, metavar="N", help="end after so many programs")
    add("--jobs", type=int, default=1, metavar="N", help="workers, each with a QEMU of its own")
    add("--engine", choices=ENGINES,
        help="atheris breeds programs by coverage, random draws them (default: atheris where it "
             "is installed)")
    add("--operations", type=int, metavar="N",
        help=f"operations of a program (default: {DEFAULT_OPERATIONS}, more where recipes are "
             "drawn)")
    add("--feedback", choices=FEEDBACKS, default=DEFAULT_FEEDBACK,
        help="what of QEMU steers the engine atheris: all (accesses in the transcript, and the "
             "devices' own trace events), transcript, none (default: %(default)s)")
    add("--mode", choices=MODES,
        help="stopped: the guest's clock stands still; parked: it runs, so that devices' timers "
             "come due (default: the target's own)")
    add("--out", metavar="DIR",
        help="the campaign's folder; an earlier campaign there is resumed (default: a new one "
             "in ./findings)")
    add("--corpus", type=Path, action="append", default=[], metavar="DIR",
        help="begin with these inputs too; may be repeated")
    add("--until-found", action="store_true", help="end at the first finding")
    add_seed(parser)
    add("--defect", metavar="NAME",
        help=f"plant this defect in the model (canary's default: {DEFAULT_DEFECT}; "
             "`qemuglue targets --defects` lists them)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if not find_target(args.target).machine:
        return _run_inputs(args)
    settings = settings_of(args)
    if find_target(args.target).draws == "device" and args.device is None:
        progress(f"the seed chose {settings.devices[0].split(',')[0]}; --device NAME takes another "
                 "(`qemuglue targets --devices` lists them)")
    if args.engine is None and settings.engine == "random":
        progress("Atheris is not installed: programs are drawn, not bred (--engine random); "
                 "`pip install 'qemuglue[fuzz]'` brings it")
    result = Campaign(
        settings, Terminal(), seeds=args.corpus, until_found=args.until_found,
    ).run()
    if args.json:
        print_json(document(result))
    else:
        print_summary(result, Console())
    return exit_code(result)


def _run_inputs(args: argparse.Namespace) -> int:
    """A target that needs no QEMU."""
    settings = input_settings_of(args)
    progress(f"seed {settings.seed}, engine {settings.engine}, {settings.jobs} "
             f"worker{'s' * (settings.jobs != 1)}, folder {settings.out}")
    result = run_campaign(settings, progress, args.corpus)
    if args.json:
        print_json(input_summary.document(settings, result))
    else:
        print("\n".join(input_summary.lines(settings, result)))
    return input_summary.exit_code(result)


def input_settings_of(args: argparse.Namespace) -> InputSettings:
    """The settings of a campaign without a QEMU.

    :raise UsageError: they cannot be, or speak of one.
    """
    if args.machine or args.device or args.qemu_args or args.build or args.mode:
        raise UsageError(f"the target {args.target} needs no QEMU: leave out --machine, "
                         "--device, --qemu-args, --build and --mode")
    find_subject(args.target, args.defect or "")
    if not 1 <= args.jobs <= MAX_JOBS:
        raise UsageError(f"{args.jobs} jobs; give 1 to {MAX_JOBS}")
    seconds = _seconds(args)
    if not (0 <= seconds < 1e9 and args.programs >= 0):
        raise UsageError("a campaign lasts from 0 to 1e9 seconds, and 0 or more programs")
    return InputSettings(
        target=args.target, out=Path(args.out or default_out(args.target, "alone")),
        engine=_engine(args),
        seed=secrets.randbits(63) if args.seed is None else args.seed, seconds=seconds,
        inputs=args.programs, jobs=args.jobs, until_found=args.until_found,
        defect=args.defect or "",
    )


def _engine(args: argparse.Namespace) -> str:
    engine: str = args.engine or ("atheris" if has_atheris() else "random")
    if engine == "atheris" and not has_atheris():
        raise UsageError("Atheris is not installed: `pip install 'qemuglue[fuzz]'` brings it, "
                         "--engine random does without")
    return engine


def _seconds(args: argparse.Namespace) -> float:
    if args.seconds is None:
        return 0.0 if args.programs else DEFAULT_SECONDS
    return float(args.seconds)


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the command line asks for.

    :raise UsageError: they cannot be.
    """
    engine = _engine(args)
    seconds = _seconds(args)
    seed = secrets.randbits(63) if args.seed is None else args.seed
    base = Settings.of_target(
        args.target, machine=args.machine or "", devices=args.device, build=args.build or "",
        seed=seed, qemu_args=args.qemu_args,
    )
    return base.replace(
        seconds=seconds, programs=args.programs,
        jobs=args.jobs, engine=engine, out=args.out or default_out(base.target, base.machine),
        defect=args.defect or base.defect, operations=args.operations or base.operations,
        mode=args.mode or base.mode, feedback=args.feedback,
    )


def default_out(target: str, machine: str) -> str:
    """A folder of its own for each campaign that names none."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return str(Path("findings") / f"{target}-{machine.replace('/', '-')}-{stamp}")
