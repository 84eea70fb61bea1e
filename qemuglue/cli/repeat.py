"""``qemuglue replay --repeat N``: is what QEMU does the same every time?"""

from __future__ import annotations

import sys
import time
from typing import Any

from qemuglue.campaign.clean import refuse_unclean
from qemuglue.campaign.loading import Loaded
from qemuglue.campaign.repeating import Difference, Repeated, repeat
from qemuglue.campaign.restoring import Method
from qemuglue.cli.common import Exit, progress
from qemuglue.errors import UsageError
from qemuglue.memory.region import MemoryRegion
from qemuglue.program.verbs import IO, VERBS
from qemuglue.program.words import format_operation
from qemuglue.witness.judge import Scene, resolve
from qemuglue.witness.session import Session, Step

#: More than this is a typing error: it would take days.
MAX_REPEATS = 1_000_000

#: Seconds between two lines of progress.
PROGRESS_S = 5.0

#: Differing operations shown, and accounts of each.
SHOWN, SHOWN_ACCOUNTS = 12, 3

#: In words, how the first state is brought back.
_HOW = {
    Method.FRESH: "each in a fresh process",
    Method.SNAPSHOT: "each from a snapshot",
    Method.RESET: "each after a system reset",
}


def run_repeats(
    stage: Scene, loaded: Loaded, times: int, method: Method, *, as_json: bool
) -> tuple[dict[str, Any], int]:
    """(the document, the exit code); printed unless ``as_json``.

    :raise UsageError: the count cannot be, or the machine is not clean that way.
    """
    if not 2 <= times <= MAX_REPEATS:
        raise UsageError(f"--repeat {times}: give 2 to {MAX_REPEATS}")
    with stage.session() as session:
        steps = resolve(session.layout(), loaded.program.operations)
        setup = list(session.setup_steps)
        regions = [_region(session, step) for step in steps]
    if method is not Method.FRESH:
        progress(f"looking whether {stage.config.full_name} is clean from a {method.value}")
        refuse_unclean(stage, method)
    told = time.monotonic()

    def on_time(so_far: Repeated) -> None:
        nonlocal told
        if time.monotonic() - told >= PROGRESS_S:
            told = time.monotonic()
            progress(f"{so_far.same:,} of {so_far.total:,} the same")

    found = repeat(stage.config, setup, steps, times, method=method, on_time=on_time)
    config = stage.config
    if not as_json:
        print(f"{loaded.name}: {len(steps)} operations on {config.full_name}, "
              f"{config.build.name} (QEMU {config.build.version}), {config.mode.value}, "
              f"{times:,} times, {_HOW[method]}")
        _show(found, regions)
        sys.stdout.flush()
    document = {
        "schema": 1, "file": loaded.name, "build": config.build.name,
        "version": config.build.version, "machine": config.full_name,
        "mode": config.mode.value, "state": method.value, "operations": len(steps),
        "times": found.total, "same": found.same, "processes": found.fresh,
        "restored": found.restored,
        "differences": [
            _difference(each, regions[each.index]) for each in _ordered(found)
        ],
    }
    return document, Exit.NOTHING_FOUND if found.same == found.total else Exit.FOUND


def _region(session: Session, step: Step) -> str:
    """The name of what the operation's first byte lies in; "" for none."""
    op, addr = step
    if op.place is None:
        return ""
    space = session.mirror.io if VERBS[op.verb].space == IO else session.mirror.memory
    region: MemoryRegion | None = None if space is None else space.view.lookup(addr).region
    return "" if region is None else region.name


def _ordered(found: Repeated) -> list[Difference]:
    return [found.differences[index] for index in sorted(found.differences)]


def _show(found: Repeated, regions: list[str]) -> None:
    if found.same == found.total:
        print(f"{found.same:,} of {found.total:,} the same")
        _show_end(found)
        return
    many = len(found.differences)
    print(f"{found.same:,} of {found.total:,} as the first time; {many} "
          f"operation{'s' * (many != 1)} differ{'s' * (many == 1)}:")
    for each in _ordered(found)[:SHOWN]:
        op, addr = each.step
        where = f" at {addr:#x}" if op.place is not None else ""
        name = f" of {regions[each.index]}" if regions[each.index] else ""
        kinds = len(each.accounts)
        print(f"{each.index:6}  {format_operation(op)[:120]}{name}{where}: "
              f"at most {each.same:,} of {each.total:,} alike")
        for account, count in each.accounts.most_common(SHOWN_ACCOUNTS):
            print(f"          {count:,} times: {'; '.join(account.words())[:300]}")
        if kinds > SHOWN_ACCOUNTS:
            print(f"          and {kinds - SHOWN_ACCOUNTS} other answers or more")
    if many > SHOWN:
        print(f"        … and {many - SHOWN} more operations")
    _show_end(found)


def _show_end(found: Repeated) -> None:
    if found.first and found.first[-1].end:
        print(f"QEMU's end, the first time at operation {len(found.first) - 1}: "
              f"{found.first[-1].end}")


def _difference(each: Difference, region: str) -> dict[str, Any]:
    op, addr = each.step
    return {
        "index": each.index, "operation": format_operation(op),
        "address": f"{addr:#x}" if op.place is not None else None, "region": region,
        "times": each.total, "same": each.same,
        "accounts": [
            {"count": count, "account": account.words()}
            for account, count in each.accounts.most_common()
        ],
    }
