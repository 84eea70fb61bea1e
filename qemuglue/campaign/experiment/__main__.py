"""``ci/experiment``: every run there is no result of yet, then the table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qemuglue.campaign.experiment.arms import (
    ARMS,
    HELP_ARMS,
    MEASURES,
    PROGRAMS,
    RUN_TIMEOUT_S,
    SEEDS,
    SETUPS,
    result_path,
)
from qemuglue.campaign.experiment.run import run
from qemuglue.campaign.experiment.table import table
from qemuglue.errors import EnvironmentFailure, UsageError


def run_all(options: argparse.Namespace) -> None:
    """Every run that has no result yet, seed by seed, so that the arms stay comparable."""
    for seed in range(1, options.seeds + 1):
        for name in options.setup:
            for arm in options.arm:
                result = result_path(options.out, name, arm, seed)
                if result.exists():
                    continue
                _spawn(options, name, arm, seed, result)


def _spawn(options: argparse.Namespace, name: str, arm: str, seed: int, result: Path) -> None:
    command = [
        sys.executable, "-P", "-m", "qemuglue.campaign.experiment", "--one", name, arm,
        str(seed), "--programs", str(options.programs), "--out", str(options.out),
        "--build", options.build,
    ]
    log = result.with_suffix(".log")
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                              timeout=RUN_TIMEOUT_S, check=False)
    if not result.exists():
        raise EnvironmentFailure(
            f"the run {name} {arm} {seed} ended with {done.returncode}; its words are in {log}")
    found = json.loads(result.read_text(encoding="utf-8"))
    print(f"{name} {arm} seed {seed}: {found['programs']} programs, "  # noqa: T201
          + ", ".join(f"{found[each]} {each}" for each in MEASURES)
          + f", {found['seconds']} s", file=sys.stderr, flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="ci/experiment", description="Does coverage feedback pay? Runs that have a result "
        "already are not repeated.")
    add = made.add_argument
    add("--out", type=Path, default=Path("findings/experiment"),
        help="folder of the results (default: %(default)s)")
    add("--setup", nargs="+", choices=SETUPS, default=["access", "e1000e"])
    add("--arm", nargs="+", choices=ARMS, default=["random", "blind", "transcript", "all"],
        help=HELP_ARMS)
    add("--seeds", type=int, default=SEEDS)
    add("--programs", type=int, default=PROGRAMS, help="executions of one run")
    add("--build", default="", metavar="NAME|PATH")
    add("--table", action="store_true", help="only print the table of the results there are")
    add("--one", nargs=3, metavar=("SETUP", "ARM", "SEED"), help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    try:
        if options.one:
            name, arm, seed = options.one
            result = result_path(options.out, name, arm, int(seed))
            run(name, arm, int(seed), options.programs, options.build, options.out, result)
            return 0
        options.out.mkdir(parents=True, exist_ok=True)
        if not options.table:
            run_all(options)
        print("\n".join(table(options.out, options.setup, options.arm, options.seeds)))  # noqa: T201
    except (UsageError, EnvironmentFailure) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
