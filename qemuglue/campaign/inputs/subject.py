"""What a target without a machine is: parts that inputs are for, and what runs one."""

from __future__ import annotations

import contextlib
import importlib
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from types import FrameType

from qemuglue.campaign.inputs.faults import KINDS, Fault, InputFault, InputFinding
from qemuglue.errors import UsageError

#: What an input came to, for the coverage: (part, one word, how).
Fact = tuple[str, str, str]

#: CPU seconds one input may take. The slowest of 64 KiB, a mirror whose views contradict its
#: tree, takes two; a loaded host makes it wait, which is not counted.
SLOW_S = 20.0
#: Bytes the peak of memory may rise by. 64 KiB of text make at most a few MB of values.
GREEDY_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Subject:
    """``chosen`` gives the part an input is for and what runs the rest of it (behind the first
    byte): a fact, or a Fault or any other exception. ``seeds`` is one input for each part;
    ``damaged`` makes another of one, of at most ``max_size`` bytes behind the first."""

    name: str
    chosen: Callable[[bytes], tuple[str, Callable[[bytes], Fact]]]
    seeds: tuple[bytes, ...]
    damaged: Callable[[bytes, Random], bytes]
    max_size: int
    defect: str = ""

    def run(self, data: bytes) -> Fact:
        """What comes of one input.

        :raise InputFault: it shows a fault.
        """
        part, body = self.chosen(data)
        peak = _peak()
        try:
            with _limited(SLOW_S):
                reached = body(data[1:])
        except _Slow:
            # Where it was at that moment says little, but it is somewhere to look.
            raise self._fault(part, "slow", f"more than {SLOW_S:g} s of CPU time") from None
        except Fault as fault:
            raise self._fault(part, fault.what, str(fault)) from None
        except Exception as error:
            raise self._fault(part, type(error).__name__, str(error)[:500]) from None
        if _peak() - peak > GREEDY_BYTES:
            raise self._fault(part, "greedy", f"more than {GREEDY_BYTES >> 20} MB of memory")
        return reached

    def replay(self, data: bytes) -> InputFault | None:
        """The fault an input shows now, if any."""
        try:
            self.run(data)
        except InputFault as fault:
            return fault
        return None

    def _fault(self, part: str, what: str, message: str) -> InputFault:
        return InputFault(f"{self.name}:{part}:{what}", message, traceback.format_exc())


def find_subject(name: str, defect: str = "") -> Subject:
    """The subject of a target, its module imported; with a planted defect, for ``model``.

    :raise UsageError: it has a machine, there is none of that name, or no such defect.
    """
    if name not in KINDS:
        raise UsageError(f"the target {name!r} is none of {', '.join(KINDS)}")
    if defect and name != "model":
        raise UsageError(f"the target {name} takes no --defect; nothing of the model is in it")
    module = importlib.import_module(f"qemuglue.campaign.{name}.target")
    found: Subject = module.subject(defect) if defect else module.SUBJECT
    return found


def replay_finding(finding: InputFinding) -> InputFault | None:
    """The fault its input shows now, if any; with the defect it was found with."""
    return find_subject(finding.kind, finding.defect).replay(finding.data)


class _Slow(BaseException):
    """The CPU time of an input is used up. Not an Exception: nobody may swallow it."""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _Slow inside after so much CPU time; elsewhere than on the main thread, behind."""
    if threading.current_thread() is not threading.main_thread():
        start = time.thread_time()
        yield
        if time.thread_time() - start > seconds:
            raise _Slow
        return
    before = signal.signal(signal.SIGVTALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    raise _Slow
