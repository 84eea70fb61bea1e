"""``ci/mutants``: draw a sample of mutants, try each, tell which no test noticed."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from mutation.explained import LIST, Entry, explanation, read, stale
from mutation.listing import Mutant, change, drawn, modules, mutants_of, source_of
from mutation.report import Result, document, lines
from mutation.running import Outcome, Runner, Unusable, Verdict, limit_memory
from mutation.tree import snapshot

NOTHING_FOUND, FOUND, ERROR, INTERRUPTED = 0, 1, 2, 130


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/mutants", allow_abbrev=False,
        description="Small defects, one at a time, in a copy of qemuglue/memory: does a test "
        f"notice? Mutants that cannot matter are explained in {LIST}. Exit 0: every mutant of "
        "the sample was noticed or is explained; 1: not; 2: the tests fail as they are.")
    parser.add_argument("--seed", type=lambda text: int(text, 0), metavar="N",
                        help="draw the sample of an earlier run")
    parser.add_argument("--sample", type=int, default=320, metavar="N",
                        help="how many mutants (default 320; 0: all)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N")
    parser.add_argument("--only", action="append", default=[], metavar="MODULE",
                        help="only this module or sub-package, flatview, guest_memory.region or "
                        "volatile for example; may be repeated")
    parser.add_argument("--commit", metavar="REV",
                        help="the tree of a commit instead of the work tree")
    parser.add_argument("--users", action="store_true",
                        help="try survivors on the tests of the model's users too (minutes each)")
    parser.add_argument("--list", action="store_true", help="print the sample and stop")
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="where the JSON goes (default findings/mutants-SEED.json)")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    limit_memory()
    seed = random.SystemRandom().getrandbits(32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="qemuglue-mutants-") as name:
        folder = Path(name).resolve()
        kept = snapshot(folder, args.commit)
        sources = sources_of(kept, args.only)
        every = [each for name, text in sources.items() for each in mutants_of(name, text)]
        result = draw(every, sources, seed, args.sample)
        print(f"{len(result.sample)} of {result.listed} mutants, by {result.tool}:", flush=True)
        for mutant in result.sample:
            print(f"  {mutant}")
        if args.list:
            return NOTHING_FOUND
        entries = [entry for entry in read(kept / LIST)
                   if not args.only or entry.module in sources]
        try_all(result, Runner(kept, folder, users=args.users), args.jobs)
        explain(result, entries, sources)
        result.stale = stale(entries, every, sources)
    for line in lines(result):
        print(line)
    out = args.out or Path(f"findings/mutants-{seed}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document(result), indent=1) + "\n", encoding="utf-8")
    print(f"JSON: {out}")
    return NOTHING_FOUND if result.clean else FOUND


def sources_of(kept: Path, only: list[str]) -> dict[str, str]:
    """The source of each module to mutate. Raises Unusable for a name that is neither a module
    nor a sub-package."""
    names = modules(kept)
    chosen = set() if only else set(names)
    for each in only:
        found = {name for name in names if name == each or name.startswith(f"{each}.")}
        if not found:
            raise Unusable(f"there is no module {each!r}: it is one of {', '.join(names)}")
        chosen |= found
    return {name: source_of(kept, name) for name in names if name in chosen}


def draw(every: list[Mutant], sources: dict[str, str], seed: int, size: int) -> Result:
    """A sample of ``size``, 0 for all, each mutant made."""
    sample = list(islice(drawn(every, sources, seed), size or None))
    changes = {each: change(each, sources[each.module]) for each in sample}
    return Result(seed, len(every), sample, changes, f"Cosmic Ray {version('cosmic-ray')}")


def explain(result: Result, entries: list[Entry], sources: dict[str, str]) -> None:
    """Part the survivors by the list, and note what contradicts it."""
    for verdict in result.verdicts:
        mutant = verdict.mutant
        entry = explanation(entries, mutant, sources[mutant.module])
        if entry is None:
            continue
        if verdict.outcome is Outcome.SURVIVED:
            result.explained[mutant] = entry
        else:
            result.contradicted.append(mutant)


def try_all(result: Result, runner: Runner, jobs: int) -> None:
    """Fill in the verdicts, in the order of the sample. Raises Unusable."""
    started = time.monotonic()
    took = runner.check(sorted({mutant.module for mutant in result.sample}))
    print(f"{sum(map(len, runner.wide))} files of tests, {took:.1f} s over the tree as it is",
          flush=True)
    verdicts: dict[Mutant, Verdict] = {}
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        running = {pool.submit(runner.run, mutant): mutant for mutant in result.sample}
        try:
            for future in as_completed(running):
                verdict = future.result()
                verdicts[verdict.mutant] = verdict
                print(f"{len(verdicts):4}/{len(running)} {verdict.seconds:5.1f} s "
                      f"{verdict.outcome.value:12} {verdict.mutant}", file=sys.stderr, flush=True)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    runner.recheck()
    result.verdicts = [verdicts[mutant] for mutant in result.sample]
    result.seconds = time.monotonic() - started


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (Unusable, ValueError, OSError, subprocess.SubprocessError) as error:
        print(f"mutants: {error}", file=sys.stderr)
        sys.exit(ERROR)
