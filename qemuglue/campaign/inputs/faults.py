"""What an input shows, and how that is recorded.

A finding of a target without a machine has no program; its folder ``findings/TARGET-SHA1`` holds
``input.bin`` (authoritative), ``finding.json`` and ``traceback.txt``. ``qemuglue replay`` takes
the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qemuglue import __version__
from qemuglue.errors import FindingError

SCHEMA = 1
#: The targets whose findings these are; folders are named by them.
KINDS = ("text", "model")
#: A finding.json beyond this is not one of ours.
MAX_JSON = 1 << 20


class Fault(Exception):
    """A rule that an input broke; ``what`` names it."""

    def __init__(self, what: str, message: str) -> None:
        self.what = what
        super().__init__(message)


class InputFault(Exception):
    """An input that shows a fault; ``signature`` (``TARGET:PART:WHAT``) as in a finding."""

    def __init__(self, signature: str, message: str, trace: str) -> None:
        self.signature = signature
        self.trace = trace
        super().__init__(f"{signature}: {message}")

    @property
    def kind(self) -> str:
        """The target."""
        return self.signature.partition(":")[0]


@dataclass(frozen=True, slots=True)
class InputFinding:
    """A finding as recorded."""

    signature: str
    message: str
    data: bytes
    path: Path
    defect: str = ""

    @property
    def kind(self) -> str:
        """The target."""
        return self.signature.partition(":")[0]


def record(
    folder: Path, data: bytes, fault: InputFault, defect: str = "",
) -> InputFinding:
    """Record it under ``folder``; twice the same input is once. ``defect`` was planted."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{fault.kind}-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
    finding = InputFinding(fault.signature, str(fault), data, target, defect)
    if target.exists():
        return finding
    told = {"schema": SCHEMA, "qemuglue": __version__, "kind": fault.kind,
            "signature": fault.signature, "message": str(fault), "defect": defect}
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


def is_input_finding(path: Path) -> bool:
    """Whether ``path`` is the folder of a finding of such a target."""
    return (path / "input.bin").is_file() and not (path / "program.qg").exists() and (
        path.name.startswith(tuple(f"{kind}-" for kind in KINDS)))


def read_finding(path: Path) -> InputFinding:
    """Read a finding back; raises FindingError naming what is missing or broken."""
    try:
        data = (path / "input.bin").read_bytes()
        with (path / "finding.json").open("rb") as file:
            told = json.loads(file.read(MAX_JSON))
        signature = str(told["signature"])
        if told["schema"] != SCHEMA or told["kind"] not in KINDS or (
                told["kind"] != signature.partition(":")[0]):
            raise ValueError("another kind")
        return InputFinding(signature, str(told["message"]), data, path,
                            str(told.get("defect", "")))
    except OSError as error:
        raise FindingError(f"cannot be read: {error.strerror}", path=str(path)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        kind = path.name.partition("-")[0]
        raise FindingError(
            f"finding.json is not that of a {kind}; `qemuglue-fuzz --target={kind}` takes its "
            "input.bin", path=str(path),
        ) from None
