"""``qemuglue watch``: every change of a machine's memory map as it happens."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

from qemuglue.cli.common import Exit, add_build, add_qemu_args, builds_of, progress
from qemuglue.errors import QemuFailure
from qemuglue.mirror import Mirror, RefreshResult, Watch
from qemuglue.mirror.changes import Change, SpaceChange, changes, views_of
from qemuglue.qemu.config import QemuConfig, machine_name
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.quirks import prints_owners
from qemuglue.qemu.ways import WAYS, start

NAME = "watch"
HELP = ("Start a machine and print each change of its memory map as it happens: when, what, and "
        "whether the model knew before it saw QEMU's own views. Exit code 1 if a map of the "
        "model was not QEMU's.")

#: Between two looks at the transcript: a change is stamped at most this late, and what a guest
#: changes again within it is seen as one change.
POLL_S = 0.001
#: Changes of one space that a line tells; --json tells all.
MAX_TOLD = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("machine", metavar="MACHINE", help="TARGET/NAME, such as x86_64/q35")
    add("--run", action="store_true",
        help="let the guest run; it is held for the time of each comparison (default: it stands "
             "still, and the map changes by what you do through a monitor in --qemu-args)")
    add("--seconds", type=_seconds, metavar="N", help="end after N seconds (default: at Ctrl-C)")
    add("--json", action="store_true", help="print one JSON document a line")
    add_build(parser)
    add_qemu_args(parser)


def run(args: argparse.Namespace) -> int:
    [build] = builds_of(args)
    target, machine = machine_name(args.machine)
    config = QemuConfig(build=build, target=target, machine=machine, args=tuple(args.qemu_args))
    config = replace(config, owners=prints_owners(config))
    follower = Follower(args)

    def attempt(tried: QemuConfig) -> None:
        with QemuProcess(tried) as qemu:
            added = tried.args[len(config.args):]
            for way in WAYS:
                if added and way.words == added:
                    progress(f"started with {way.told}")
            follower.follow(qemu)

    try:
        start(config, attempt)
    except KeyboardInterrupt:
        follower.end("interrupted")
        return Exit.INTERRUPTED
    follower.end(follower.ended)
    return Exit.FOUND if follower.wrong else Exit.NOTHING_FOUND


class Follower:
    """Follows one machine and prints; the figures are all maps seen so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = time.monotonic()
        self.changes = self.predicted = self.wrong = self.drawn = 0
        self.ended = ""

    def follow(self, qemu: QemuProcess) -> None:
        """Until the time is over or the machine has ended itself.

        :raise QemuFailure: QEMU ended otherwise, or answered nonsense.
        """
        monitor = qemu.monitor
        # The transcript is read for new maps only, and a guest that runs makes much of it.
        monitor.execute("trace-event-set-state", {
            "name": "memory_region_*", "enable": False, "ignore-unavailable": True})
        mirror = Mirror.take(monitor.hmp)
        watch = Watch(mirror, monitor.hmp)
        qemu.transcript.read_new()
        self.began = time.monotonic()
        self._first(mirror)
        try:
            if self.args.run:
                monitor.execute("cont")
            while self._time_left():
                if not qemu.poll():
                    raise qemu.failure()
                watch.see_text(qemu.transcript.read_new())
                if monitor.pending():
                    watch.hear(event.name for event in monitor.events())
                if watch.stale:
                    self._look(qemu, mirror, watch)
                else:
                    time.sleep(POLL_S)
        except QemuFailure:
            if not qemu.exit_status().polite:
                raise
            self.ended = str(qemu.exit_status())

    def _time_left(self) -> bool:
        seconds = self.args.seconds
        return seconds is None or time.monotonic() - self.began < seconds

    def _look(self, qemu: QemuProcess, mirror: Mirror, watch: Watch) -> None:
        """Compare while the guest stands still: both texts are of one moment then."""
        at = time.monotonic() - self.began
        if self.args.run:
            qemu.monitor.execute("stop")
            watch.see_text(qemu.transcript.read_new())
        before, drawn = views_of(mirror), watch.drawn
        result = watch.refresh()
        self.drawn += drawn
        if result is not None and result.changed:
            self.changes += 1
            self.predicted += result.predicted
            self.wrong += not result.exact
            self._tell(at, drawn, mirror, result, changes(before, mirror))
        if self.args.run:
            qemu.monitor.execute("cont")

    # -- printing --------------------------------------------------------------------------

    def _first(self, mirror: Mirror) -> None:
        self.wrong += not mirror.exact
        ranges = sum(len(space.view.sections) for space in mirror.spaces)
        if self.args.json:
            _json(event="start", machine=self.args.machine, spaces=len(mirror.spaces),
                  ranges=ranges, exact=mirror.exact,
                  differences=[str(each) for each in mirror.differences])
            return
        _say(f"{self.args.machine}: {len(mirror.spaces)} address spaces, {ranges} ranges; "
             f"{mirror.score} views are QEMU's")
        self._differences(mirror)

    def _tell(
        self, at: float, drawn: int, mirror: Mirror, result: RefreshResult,
        found: list[SpaceChange],
    ) -> None:
        if self.args.json:
            _json(
                event="change", time_s=round(at, 3), generation=mirror.generation, drawn=drawn,
                predicted=result.predicted, exact=result.exact, learnt=list(result.learnt.facts),
                differences=[str(each) for each in mirror.differences],
                spaces=[_document(each) for each in found],
            )
            return
        word = "predicted" if result.predicted else (
            f"learnt {result.learnt}" if result.exact else "NOT EXACT")
        told = "; ".join(_words(each) for each in found) or "the same answers everywhere"
        _say(f"{at:9.3f} s  map {mirror.generation:<4} {word}  {told}")
        self._differences(mirror)

    @staticmethod
    def _differences(mirror: Mirror) -> None:
        for difference in mirror.differences[:MAX_TOLD]:
            _say(f"            differs: {difference}")

    def end(self, why: str) -> None:
        """The last line."""
        seconds = time.monotonic() - self.began
        if self.args.json:
            _json(event="end", seconds=round(seconds, 3), changes=self.changes,
                  predicted=self.predicted, wrong=self.wrong, drawn=self.drawn, ended=why)
            return
        _say(f"{f'{why}; ' if why else ''}{seconds:.1f} s, {self.changes} changes of the map "
             f"(drawn {self.drawn} times): {self.predicted} predicted, "
             f"{self.changes - self.predicted} not; {self.wrong} not exact")


def _words(each: SpaceChange) -> str:
    others = f" and {len(each.spaces) - 1} more" if len(each.spaces) > 1 else ""
    told = [str(change) for change in each.changes[:MAX_TOLD]]
    if len(each.changes) > MAX_TOLD:
        told.append(f"{len(each.changes) - MAX_TOLD} more")
    return f"{each.spaces[0]}{others}: {each.what or ', '.join(told)}"


def _document(each: SpaceChange) -> dict[str, Any]:
    return {"spaces": list(each.spaces), "what": each.what or "changed",
            "changes": [_one(change) for change in each.changes]}


def _one(change: Change) -> dict[str, Any]:
    return {
        "start": change.start, "last": change.last, "before": str(change.before),
        "after": str(change.after),
        "moved_to": change.moved_to if change.moved_to >= 0 else None,
    }


def _json(**document: Any) -> None:
    print(json.dumps({"schema": 1, **document}, ensure_ascii=False), flush=True)


def _say(line: str) -> None:
    print(line, flush=True)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
