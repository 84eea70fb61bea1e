"""``ci/detect``: does a check or a campaign on real QEMU find what is planted?

Two kinds of things are planted, one at a time: mutants of the model (small defects of
``qemuglue/memory``, drawn by a seed from the lines that a check runs through) and faults on the
wire between QEMU and the judge (``campaign/faults.py``, all of them). Each has the time of a few
checks and one campaign; what is found, by which and after how long is printed.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mutation.explained import Entry, explanation, read
from mutation.listing import Mutant, change, drawn, modules, mutants_of, source_of
from mutation.running import TOOL, Unusable, limit_memory
from mutation.tree import copy_with, snapshot

NOTHING_FOUND, FOUND, ERROR, INTERRUPTED = 0, 1, 2, 130

#: Mutants that neither a check nor a campaign can find, each with the reason.
LIST = Path("tests/quality/mutants_undetected.toml")

#: Machines that are checked first: one little-endian, one big-endian.
MACHINES = ("x86_64/q35", "ppc/mac99")
OPS = 600
#: Seconds of the campaign that comes then, and what starting and confirming may take.
CAMPAIGN_S, EXTRA_S = 60, 240

_MAIN = "import sys; from qemuglue.cli.main import main; sys.exit(main())"

#: Runs a check in this process and prints the lines of the model that it went through.
_TRACE = """
import json, sys, tempfile
from pathlib import Path
from qemuglue.campaign.checking import check_machine
from qemuglue.qemu.builds import find_build
import qemuglue.cli.main, qemuglue.memory
folder = str(Path(qemuglue.memory.__file__).parent)
seen = set()
def line(frame, event, arg):
    if event == "line":
        seen.add((frame.f_code.co_filename, frame.f_lineno))
    return line
def call(frame, event, arg):
    return line if frame.f_code.co_filename.startswith(folder) else None
sys.settrace(call)
with tempfile.TemporaryDirectory() as name:
    for machine in sys.argv[2:]:
        check_machine(find_build(sys.argv[1] or None), machine, ops=200, folder=Path(name))
sys.settrace(None)
def module(name):
    return ".".join(Path(name).relative_to(folder).with_suffix("").parts)
print(json.dumps(sorted((module(name), at) for name, at in seen)))
"""


@dataclass(frozen=True, slots=True)
class Found:
    """``by`` is "" where nothing found it; ``how`` is the finding's signature, or how the
    command ended."""

    by: str
    how: str
    seconds: float


@dataclass(slots=True)
class Detector:
    """Runs commands over copies of the tree below ``folder``."""

    kept: Path
    folder: Path
    build: str
    seed: int
    names: dict[str, Found] = field(default_factory=dict)

    def lines(self) -> set[tuple[str, int]]:
        """(module, line) that checks of the machines run through. Raises Unusable."""
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRACE, self.build, *MACHINES], env=self._env(self.kept),
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            timeout=900)
        if done.returncode:
            raise Unusable("the checks fail on the tree as it is")
        return {(module, line) for module, line in json.loads(done.stdout.splitlines()[-1])}

    def look(self, name: str, root: Path, *, defect: str = "", expect: str = "") -> Found:
        """Check and fuzz with the tree at ``root``; the first command that finds something."""
        started = time.monotonic()
        out = self.folder / f"out-{name}"
        for by, words in self._commands(out, defect):
            code, text = self._run(root, words)
            if code != 0:
                how = _signature(text) or (f"exit {code}" if code is not None else "no end")
                shutil.rmtree(out, ignore_errors=True)
                return Found(by, how, time.monotonic() - started)
        shutil.rmtree(out, ignore_errors=True)
        return Found("", expect, time.monotonic() - started)

    def _commands(self, out: Path, defect: str) -> Iterator[tuple[str, list[str]]]:
        build = ["--build", self.build] if self.build else []
        planted = ["--defect", defect] if defect else []
        for machine in () if defect else MACHINES:
            yield f"check {machine}", ["check", machine, "--ops", str(OPS), "--seed",
                                       str(self.seed), "--out", str(out / "check"), *build]
        yield "fuzz", ["fuzz", "canary" if defect else "access", "--engine", "random",
                       "--until-found", "--seconds", str(CAMPAIGN_S), "--seed", str(self.seed),
                       "--out", str(out / "fuzz"), *build, *planted]

    def _run(self, root: Path, words: list[str]) -> tuple[int | None, str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, *words], env=self._env(root), cwd=self.folder,
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace")
        try:
            text, _ = process.communicate(timeout=CAMPAIGN_S + EXTRA_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None, ""
        return process.returncode, text

    def _env(self, root: Path) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{root}:{TOOL}", "PYTHONDONTWRITEBYTECODE": "1"}


_SIGNATURE = re.compile(r"\b((?:divergence|crash|hang|resource):[\w:.-]+)|^(\w*Error.*)$",
                        re.MULTILINE)


def _signature(text: str) -> str:
    found = _SIGNATURE.search(text)
    return "" if found is None else (found[1] or found[2])[:70]


def executed(mutant: Mutant, lines: set[tuple[str, int]], source: str) -> bool:
    """Whether the statement that ``mutant`` changes was run: the line, or, of one that spans
    several, any of them."""
    first = last = mutant.line
    best = 1 << 30
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            end = node.end_lineno or node.lineno
            if node.lineno <= mutant.line <= end and end - node.lineno < best:
                best, first, last = end - node.lineno, node.lineno, end
    return any((mutant.module, line) in lines for line in range(first, last + 1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/detect", allow_abbrev=False,
        description="Mutants of the model and faults on the wire, one at a time, on real QEMU: "
        f"after how long does a check or a campaign find each? Mutants that cannot be found are "
        f"explained in {LIST}. Exit 0: all found or explained; 1: not; 2: it cannot be tried.")
    parser.add_argument("--seed", type=lambda text: int(text, 0), metavar="N")
    parser.add_argument("--sample", type=int, default=40, metavar="N", help="mutants (default 40)")
    parser.add_argument("--build", default="", metavar="NAME")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    parser.add_argument("--commit", metavar="REV",
                        help="the tree of a commit instead of the work tree")
    parser.add_argument("--no-faults", action="store_true", help="mutants of the model only")
    parser.add_argument("--no-mutants", action="store_true", help="faults on the wire only")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="where the JSON goes (default findings/detect-SEED.json)")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    limit_memory()
    seed = random.SystemRandom().getrandbits(32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="qemuglue-detect-") as name:
        folder = Path(name).resolve()
        kept = snapshot(folder, args.commit)
        detector = Detector(kept, folder, args.build, seed & 0xFFFF)
        result: dict[str, Any] = {"schema": 1, "seed": seed}
        missed = 0
        if not args.no_mutants:
            missed += _mutants(detector, args, seed, result)
        if not args.no_faults:
            missed += _faults(detector, args, result)
    out = args.out or Path(f"findings/detect-{seed}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"JSON: {out}")
    return FOUND if missed else NOTHING_FOUND


def _mutants(
    detector: Detector, args: argparse.Namespace, seed: int, result: dict[str, Any]
) -> int:
    """Try the sample; how many were missed without an explanation."""
    kept = detector.kept
    plain = detector.look("plain", kept)
    if plain.by:
        raise Unusable(f"{plain.by} finds {plain.how} on the tree as it is")
    sources = {name: source_of(kept, name) for name in modules(kept)}
    lines = detector.lines()
    every = [each for name, text in sources.items() for each in mutants_of(name, text)]
    live = [each for each in every if executed(each, lines, sources[each.module])]
    sample = list(islice(drawn(live, sources, seed), args.sample))
    print(f"{len(sample)} of {len(live)} mutants in lines that a check runs through, of "
          f"{len(every)}", flush=True)

    def one(mutant: Mutant) -> Found:
        copy = detector.folder / f"{mutant.module}-{mutant.operator}-{mutant.occurrence}"
        copy_with(mutant, kept, copy)
        try:
            return detector.look(copy.name, copy)
        finally:
            shutil.rmtree(copy)

    entries: list[Entry] = read(LIST)
    rows, missed = [], 0
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for mutant, found in zip(sample, pool.map(one, sample), strict=True):
            made = change(mutant, sources[mutant.module])
            entry = None if found.by else explanation(entries, mutant, sources[mutant.module])
            by = found.by or ("explained" if entry is not None else "NOT FOUND")
            print(f"{by:18} {found.seconds:6.1f} s  {mutant}  {found.how}", flush=True)
            if not found.by:
                missed += entry is None
                print(f"    - {made.before}\n    + {made.after}"
                      + (f"\n    {entry.reason}" if entry is not None else ""), flush=True)
            rows.append({"mutant": str(mutant), "by": by, "how": found.how,
                         "seconds": round(found.seconds, 1), "before": made.before,
                         "after": made.after})
    caught = sum(row["by"] not in ("explained", "NOT FOUND") for row in rows)
    print(f"mutants: {caught} of {len(rows)} found, {len(rows) - caught - missed} explained, "
          f"{missed} missed")
    result |= {"mutants": rows, "population": len(live), "listed": len(every)}
    return missed


def _faults(detector: Detector, args: argparse.Namespace, result: dict[str, Any]) -> int:
    """Try every fault; how many were missed, or accused where nothing is wrong."""
    from qemuglue.campaign.faults import FAULTS

    def one(name: str) -> Found:
        return detector.look(name, detector.kept, defect=name)

    rows, missed = [], 0
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        for name, found in zip(FAULTS, pool.map(one, FAULTS), strict=True):
            wanted = bool(FAULTS[name].finds)
            right = bool(found.by) == wanted
            missed += not right
            by = found.by or "nothing found"
            if not right:
                by = "NOT FOUND" if wanted else "FALSE ALARM"
            print(f"{by:18} {found.seconds:6.1f} s  {name}: {FAULTS[name].summary}  {found.how}",
                  flush=True)
            rows.append({"fault": name, "wire": FAULTS[name].wire, "by": by, "how": found.how,
                         "seconds": round(found.seconds, 1)})
    print(f"faults: {len(rows) - missed} of {len(rows)} as they must be")
    result["faults"] = rows
    return missed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (Unusable, ValueError, OSError, subprocess.SubprocessError) as error:
        print(f"detect: {error}", file=sys.stderr)
        sys.exit(ERROR)
