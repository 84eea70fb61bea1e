"""What ``replay`` takes: a finding folder, a program text, a qtest script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qemuglue.campaign.findings import Finding, read_finding
from qemuglue.errors import ProgramError, UsageError
from qemuglue.program.operation import HEADER, Program
from qemuglue.program.qtest_script import parse_script
from qemuglue.program.text import parse

#: A program text beyond this is not one: 100,000 operations take about 10 MB.
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Loaded:
    """A program, the finding it belongs to if any, and what was left out of a script."""

    name: str
    program: Program
    finding: Finding | None = None
    notes: tuple[str, ...] = ()


def load(path: Path, *, machine: str = "", args: tuple[str, ...] = ()) -> Loaded:
    """Read ``path``; ``machine`` and ``args`` count where the file names none.

    :raise FindingError: a finding folder is incomplete.
    :raise ProgramError: the text cannot be read; the message says where.
    :raise UsageError: there is no such file, or it is none of the three.
    """
    if path.is_dir():
        finding = read_finding(path)
        return Loaded(path.name, finding.program, finding)
    text = _text(path)
    try:
        if text.lstrip().startswith(HEADER):
            program = parse(text)
            if machine:
                program = program.replace(machine=machine).validate()
            return Loaded(path.name, program)
        script = parse_script(text, machine, args)
    except ProgramError as error:
        raise ProgramError(f"{path}: {error}", line=0) from None
    if not script.program.operations:
        raise UsageError(
            f"{path}: no operation in it; give a finding, a .qg text or a qtest script"
        )
    return Loaded(path.name, script.program, notes=tuple(str(note) for note in script.notes))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{path} is larger than 64 MiB; it is no program")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is not text; give a finding folder, a .qg text or a qtest script"
        ) from None
