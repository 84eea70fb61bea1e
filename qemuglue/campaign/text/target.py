"""The fuzz target ``text``: QEMU's words are untrusted, whatever channel they come by.

The first byte of an input chooses the parser (``text/parsers.PARSERS``), the rest is the text.
It needs no QEMU. Whatever text: a value or a ProtocolError of one sentence, in a time and with
a memory in proportion; anything else is a finding with the signature
``text:PARSER:WHAT``, WHAT being the exception that escaped, the rule that was broken, or
``slow``.

A finding has no program; its folder ``findings/text-SHA1`` holds ``input.bin`` (authoritative),
``finding.json`` and ``traceback.txt``. ``qemuglue replay`` takes the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from qemuglue import __version__
from qemuglue.campaign.text.parsers import Fault, chosen, run_parser
from qemuglue.errors import FindingError

NAME = "text"
SCHEMA = 1

#: CPU seconds one input may take. The slowest of 64 KiB, a mirror whose views contradict its
#: tree, takes two; a loaded host makes it wait, which is not counted.
SLOW_S = 20.0
#: Bytes the peak of memory may rise by. 64 KiB of text make at most a few MB of values.
GREEDY_BYTES = 512 << 20
#: A finding.json beyond this is not one of ours.
MAX_JSON = 1 << 20


class TextFault(Exception):
    """An input that shows a fault of a parser; ``signature`` as in a finding."""

    def __init__(self, signature: str, message: str, trace: str) -> None:
        self.signature = signature
        self.trace = trace
        super().__init__(f"{signature}: {message}")


class _Slow(BaseException):
    """The CPU time of an input is used up. Not an Exception: no parser may swallow it."""


@dataclass(frozen=True, slots=True)
class TextFinding:
    """A finding as recorded."""

    signature: str
    message: str
    data: bytes
    path: Path


def run_input(data: bytes) -> tuple[str, str, str]:
    """What comes of one input: (parser, "parsed" or "refused", how), a fact for the coverage.

    :raise TextFault: it shows a fault.
    """
    name, parse = chosen(data)
    peak = _peak()
    try:
        with _limited(SLOW_S):
            reached = run_parser(name, parse, data[1:])
    except _Slow:
        # Where it was at that moment says little, but it is somewhere to look.
        raise _fault(name, "slow", f"more than {SLOW_S:g} s of CPU time") from None
    except Fault as fault:
        raise _fault(name, fault.what, str(fault)) from None
    except Exception as error:
        raise _fault(name, type(error).__name__, str(error)[:500]) from None
    if _peak() - peak > GREEDY_BYTES:
        raise _fault(name, "greedy", f"more than {GREEDY_BYTES >> 20} MB of memory")
    return reached


def _fault(parser: str, what: str, message: str) -> TextFault:
    return TextFault(f"{NAME}:{parser}:{what}", message, traceback.format_exc())


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


# Section: findings


def record(folder: Path, data: bytes, fault: TextFault) -> TextFinding:
    """Record it under ``folder``; twice the same input is once."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{NAME}-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
    finding = TextFinding(fault.signature, str(fault), data, target)
    if target.exists():
        return finding
    told = {"schema": SCHEMA, "qemuglue": __version__, "kind": NAME,
            "signature": fault.signature, "message": str(fault)}
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    try:
        (work / "input.bin").write_bytes(data)
        (work / "finding.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        (work / "traceback.txt").write_text(fault.trace, encoding="utf-8",
                                            errors="backslashreplace")
        work.chmod(0o755)
        work.rename(target)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        if not target.exists():
            raise
    return finding


def is_text_finding(path: Path) -> bool:
    """Whether ``path`` is the folder of a finding of this target."""
    return (path / "input.bin").is_file() and not (path / "program.qg").exists() and (
        path.name.startswith(f"{NAME}-"))


def read_finding(path: Path) -> TextFinding:
    """Read a finding back; raises FindingError naming what is missing or broken."""
    try:
        data = (path / "input.bin").read_bytes()
        with (path / "finding.json").open("rb") as file:
            told = json.loads(file.read(MAX_JSON))
        if told["schema"] != SCHEMA or told["kind"] != NAME:
            raise ValueError("another kind")
        return TextFinding(str(told["signature"]), str(told["message"]), data, path)
    except OSError as error:
        raise FindingError(f"cannot be read: {error.strerror}", path=str(path)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FindingError(
            "finding.json is not that of a text; `qemuglue-fuzz --target=text` takes its "
            "input.bin", path=str(path),
        ) from None


def replay_input(data: bytes) -> TextFault | None:
    """The fault an input shows now, if any."""
    try:
        run_input(data)
    except TextFault as fault:
        return fault
    return None
