"""The finding folder: everything needed to see a finding again, in files people can read.

``findings/<kind>-<sha1 of the canonical program text>/`` with ``program.qg`` (authoritative),
``input.bin`` (what the fuzzer had, if anything), ``finding.json``, ``command.sh``,
``transcript.log`` and ``stderr.log``. A folder is made complete beside its place and renamed
into it, so a campaign that is killed leaves no half finding.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemuglue import __version__
from qemuglue.errors import FindingError, ProgramError
from qemuglue.program.operation import Program
from qemuglue.program.text import parse
from qemuglue.witness.judge import Judgement

SCHEMA = 1

#: A finding.json beyond this is not one of ours.
MAX_JSON = 4 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding as recorded. ``confirmed`` is (k, n): the slow judge saw it k times of n."""

    kind: str
    signature: str
    program: Program
    build: Mapping[str, Any]
    seed: int | None
    confirmed: tuple[int, int]
    details: Mapping[str, Any] = field(default_factory=dict)
    defect: str = ""
    path: Path | None = None

    @property
    def flaky(self) -> bool:
        k, n = self.confirmed
        return k < n


def details(judgement: Judgement) -> dict[str, Any]:
    """The verdict in plain words: the operation, what the model says, what QEMU says."""
    found: dict[str, Any] = {"index": judgement.index, "error": judgement.error}
    suspicion = judgement.suspicion
    if suspicion is not None:
        found.update(
            what=suspicion.what, region=suspicion.region, region_kind=suspicion.kind.value,
            model_says=list(suspicion.model), qemu_says=list(suspicion.qemu),
        )
        if suspicion.step is not None:
            op, addr = suspicion.step
            found.update(verb=op.verb, address=f"{addr:#x}", size=op.size)
    return found


def write_finding(
    folder: Path, finding: Finding, judgement: Judgement, data: bytes = b""
) -> Path:
    """Record it under ``folder``; the path of its own folder. Twice the same is once."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{finding.kind}-{finding.program.sha1()}"
    if target.exists():
        return target
    k, n = finding.confirmed
    record = {
        "schema": SCHEMA, "qemuglue": __version__, "kind": finding.kind,
        "signature": finding.signature, "build": dict(finding.build),
        "machine": finding.program.machine, "args": list(finding.program.args),
        "mode": finding.program.mode, "setup": finding.program.setup, "seed": finding.seed,
        "confirmed": {"k": k, "n": n}, "flaky": finding.flaky, "defect": finding.defect,
        "verdict": dict(finding.details),
    }
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=folder))
    try:
        (work / "program.qg").write_text(finding.program.canonical_text(), encoding="utf-8")
        if data:
            (work / "input.bin").write_bytes(data)
        (work / "finding.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        command = work / "command.sh"
        command.write_text(_command(judgement), encoding="utf-8")
        command.chmod(0o755)
        (work / "transcript.log").write_bytes(judgement.transcript)
        (work / "stderr.log").write_text(judgement.stderr, encoding="utf-8")
        work.chmod(0o755)
        work.rename(target)
    except FileExistsError:
        shutil.rmtree(work, ignore_errors=True)
    except OSError:
        shutil.rmtree(work, ignore_errors=True)
        if not target.exists():
            raise
    return target


def _command(judgement: Judgement) -> str:
    """QEMU's command line as it was; its file descriptors belong to the harness."""
    return (
        "#!/bin/sh\n"
        "# The QEMU that showed this finding. 'fd=' channels were opened by qemuglue: to see the\n"
        "# finding again use 'qemuglue replay' on this folder.\n"
        f"exec {shlex.join(judgement.command)}\n"
    )


def read_finding(path: Path) -> Finding:
    """Read a finding folder back; raises FindingError naming what is missing or broken."""
    text = ""
    try:
        text = (path / "program.qg").read_text(encoding="utf-8")
        with (path / "finding.json").open("rb") as file:
            raw = file.read(MAX_JSON + 1)
        if len(raw) > MAX_JSON:
            raise FindingError("finding.json is larger than 4 MiB; it is not one", path=str(path))
        record = json.loads(raw)
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise FindingError(
                f"finding.json is not of schema {SCHEMA}; replay its program.qg instead",
                path=str(path),
            )
        confirmed = record["confirmed"]
        return Finding(
            str(record["kind"]), str(record["signature"]), parse(text), dict(record["build"]),
            record.get("seed"), (int(confirmed["k"]), int(confirmed["n"])),
            dict(record.get("verdict", {})), str(record.get("defect", "")), path,
        )
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise FindingError(
            f"{name} is missing; the finding is incomplete", path=str(path)
        ) from None
    except OSError as error:
        raise FindingError(f"cannot be read: {error.strerror}", path=str(path)) from None
    except ProgramError as error:
        raise FindingError(f"program.qg: {error}", path=str(path)) from None
    except UnicodeDecodeError as error:
        name = "finding.json" if text else "program.qg"
        raise FindingError(f"{name} is not text: {error.reason}", path=str(path)) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FindingError(
            "finding.json is truncated or not JSON of a finding; replay its program.qg instead",
            path=str(path),
        ) from None
