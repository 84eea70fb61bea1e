"""What a worker tells its campaign, and the totals the campaign makes of it.

A worker writes JSON, one object a line, to a descriptor it inherits. Counts are totals of that
worker process, so a line that is lost costs nothing; shapes and regions are sent once each.

======== ==========================================================================
type     fields
======== ==========================================================================
status   totals of this process (:class:`Totals`), ``final``; shapes and regions
         only those not told before
finding  ``finding``: kind, signature, path, confirmed, line
note     ``text``
error    ``text``; ``environment`` is true where no other worker would fare better
======== ==========================================================================
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemuglue.errors import UsageError
from qemuglue.witness.verdict import Tally

if TYPE_CHECKING:
    from qemuglue.campaign.explorer import Progress
    from qemuglue.campaign.findings import Finding

#: Status lines are at least this far apart.
INTERVAL_S = 0.5

#: Of the names of notes, reasons and regions no more than this is kept of one.
MAX_TEXT = 500

#: Different notes kept; a machine has as many regions without a contract as it has devices.
MAX_NOTES = 200

SCHEMA = 1

#: The plain counts of ``Totals``, by the names ``Progress`` has for them.
COUNTS = ("programs", "restarts", "deaths", "shutdowns", "flaky")


@dataclass(slots=True)
class Totals:
    """Sums over workers and runs. ``seconds`` are of the wall clock, not of the workers;
    ``findings`` are the folders of this kind: kind, signature, path, confirmed, line."""

    tally: Tally = field(default_factory=Tally)
    programs: int = 0
    restarts: int = 0
    deaths: int = 0
    shutdowns: int = 0
    flaky: int = 0
    signatures: Counter[str] = field(default_factory=Counter)
    shapes: set[int] = field(default_factory=set)
    regions: set[str] = field(default_factory=set)
    findings: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    seconds: float = 0.0
    runs: int = 0

    def add(self, other: Totals) -> None:
        """Add another worker's, or an earlier run's."""
        self.tally.add(other.tally)
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.signatures.update(other.signatures)
        self.shapes |= other.shapes
        self.regions |= other.regions
        known = {each["path"] for each in self.findings}
        self.findings += [each for each in other.findings if each["path"] not in known]
        for note in other.notes:
            self.note(note)
        self.seconds += other.seconds
        self.runs += other.runs

    def note(self, text: str) -> None:
        """Keep a sentence once."""
        if len(self.notes) < MAX_NOTES:
            self.notes.setdefault(text[:MAX_TEXT])

    @property
    def judged(self) -> int:
        """Operations with a verdict of any kind."""
        return self.tally.total

    @property
    def found(self) -> dict[str, int]:
        """Signatures seen, with how often."""
        return {name: n for name, n in sorted(self.signatures.items()) if n > 0}

    def to_json(self) -> dict[str, Any]:
        return {
            "tally": self.tally.to_json(), **{name: getattr(self, name) for name in COUNTS},
            "signatures": self.found, "shapes": sorted(self.shapes),
            "regions": sorted(self.regions), "findings": self.findings,
            "notes": list(self.notes), "seconds": round(self.seconds, 3), "runs": self.runs,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Totals:
        """Raises KeyError, TypeError or ValueError for what :meth:`to_json` did not make."""
        findings = [
            {str(key): value for key, value in each.items()} for each in data.get("findings", [])
        ]
        for each in findings:
            if not {"kind", "signature", "path", "line"} <= each.keys():
                raise ValueError("a finding without a path")
        try:
            tally = Tally.from_json(data["tally"])
        except (AttributeError, AssertionError):
            raise ValueError("no verdict table") from None
        return cls(
            tally=tally, **{name: int(data[name]) for name in COUNTS},
            signatures=Counter({str(k): int(n) for k, n in dict(data["signatures"]).items()}),
            shapes={int(each) for each in data.get("shapes", ())},
            regions={str(each)[:MAX_TEXT] for each in data.get("regions", ())},
            findings=findings,
            notes=dict.fromkeys(str(each)[:MAX_TEXT] for each in data.get("notes", ())),
            seconds=float(data.get("seconds", 0.0)), runs=int(data.get("runs", 0)),
        )


# Section: the worker's side


class StatusWriter:
    """Writes lines to ``fd``; -1 writes nothing. A campaign that is gone ends the process: the
    kernel does that anyway (``die_with_parent``), here it is only quicker."""

    def __init__(self, fd: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.fd = fd
        self._clock = clock
        self._start = clock()
        self._next = self._start
        self._shapes: set[int] = set()
        self._regions: set[str] = set()

    @property
    def due(self) -> bool:
        """Whether a status line would be written now."""
        return self.fd >= 0 and self._clock() >= self._next

    def status(
        self, progress: Progress, signatures: Counter[str], shapes: set[int], regions: set[str],
        *, final: bool = False,
    ) -> None:
        """The totals so far; ``shapes`` and ``regions`` are all, what is new of them is sent."""
        if self.fd < 0:
            return
        now = self._clock()
        self._next = now + INTERVAL_S
        totals = Totals(
            tally=progress.tally, **{name: getattr(progress, name) for name in COUNTS},
            signatures=signatures, shapes=shapes - self._shapes,
            regions=regions - self._regions, seconds=now - self._start,
        )
        for note in progress.notes:
            totals.note(note)
        self._shapes |= shapes
        self._regions |= regions
        self._write({"type": "status", "final": final, **totals.to_json()})

    def finding(self, finding: Finding) -> None:
        self._write({"type": "finding", "finding": described(finding)})

    def note(self, text: str) -> None:
        self._write({"type": "note", "text": text[:MAX_TEXT]})

    def error(self, text: str, *, environment: bool) -> None:
        self._write({"type": "error", "text": text[:4 * MAX_TEXT], "environment": environment})

    def _write(self, message: Mapping[str, Any]) -> None:
        if self.fd < 0:
            return
        left = json.dumps(message).encode("ascii") + b"\n"
        try:
            while left:
                left = left[os.write(self.fd, left):]
        except OSError:
            os._exit(1)


def described(finding: Finding) -> dict[str, Any]:
    """A finding as a status line and a report carry it. ``line`` is all of it in one sentence;
    ``what``, ``model``, ``qemu`` and ``shown`` are its parts ("" where there is none)."""
    k, n = finding.confirmed
    told = finding.details
    operations = len(finding.program.operations)
    parts = {
        "what": str(told.get("error") or finding.signature), "model": "", "qemu": "",
        "shown": f"{operations} operation{'s' * (operations != 1)}, "
                 + (f"shown again {k} of {n} times" if k else "not shown again in a fresh QEMU"),
    }
    if finding.kind == "divergence":
        region = told.get("region") or "unassigned"
        verb = told.get("verb")
        parts["what"] = (
            f"{verb} at {told.get('address', '?')} ({region})" if verb else f"RAM ({region})"
        )
        parts["model"], parts["qemu"] = (
            _last(told.get(side)) for side in ("model_says", "qemu_says")
        )
    line = parts["what"]
    if parts["model"]:
        line += f": the model says {parts['model']}; QEMU says {parts['qemu']}"
    return {
        "kind": finding.kind, "signature": finding.signature, "path": str(finding.path or ""),
        "confirmed": [k, n], "defect": finding.defect, "region": str(told.get("region") or ""),
        "line": f"{line}; {parts['shown']}",
        **parts,
    }


def _last(lines: object) -> str:
    """The piece on which model and QEMU part is the last of each account."""
    if isinstance(lines, list | tuple) and lines:
        return str(lines[-1])[:MAX_TEXT]
    return "nothing"


# Section: the campaign's side


@dataclass(slots=True)
class Lines:
    """Cuts what comes out of a pipe into messages. Lines that are none are dropped: a worker
    may be killed in the middle of one."""

    rest: bytes = b""

    def feed(self, data: bytes) -> Iterable[dict[str, Any]]:
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(message, dict) and isinstance(message.get("type"), str):
                yield message


def save_totals(path: Path, settings: Mapping[str, Any], totals: Totals) -> None:
    """Write ``status.json``, whole or not at all."""
    record = {"schema": SCHEMA, "settings": dict(settings), "totals": totals.to_json()}
    work = path.with_name(f".{path.name}.new")
    work.write_text(json.dumps(record) + "\n", encoding="utf-8")
    work.replace(path)


def load_totals(path: Path) -> tuple[dict[str, Any], Totals] | None:
    """(settings, totals) of the earlier runs in this folder, None if there were none.

    :raise UsageError: the file is there and is not one of ours.
    """
    try:
        record = json.loads(path.read_bytes())
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}")
        return dict(record["settings"]), Totals.from_json(record["totals"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is not the status of a campaign ({error}); give another --out "
                         "or move the file away") from None
