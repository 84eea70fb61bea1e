"""The reviewed list of mutants that no test can notice, or need not: each with the reason."""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

from mutation.listing import Mutant, change

LIST = Path("tests/quality/mutants_explained.toml")


@dataclass(frozen=True, slots=True)
class Entry:
    """``line`` and ``becomes`` are source lines without their indentation; line numbers would
    change with every edit. ``within`` names the innermost function or class around the line.
    Without ``becomes``, any mutant of that operator on that line; without ``within``, wherever
    the line stands."""

    module: str
    line: str
    operator: str
    reason: str
    becomes: str | None = None
    within: str | None = None

    def matches(self, mutant: Mutant, source: str) -> bool:
        if mutant.module != self.module or mutant.operator != self.operator:
            return False
        # Making a mutant takes a while, so its place is asked first.
        if source.splitlines()[mutant.line - 1].strip() not in self.line.split("\n"):
            return False
        if self.within is not None and self.within != _around(source, mutant.line):
            return False
        made = change(mutant, source)
        return made.before == self.line and self.becomes in (None, made.after)

    def __str__(self) -> str:
        return f"{self.module}: {self.operator}: {self.line}"


def _around(source: str, line: int) -> str:
    """The innermost function or class, with its decorators, that ``line`` is part of."""
    found = ""
    for node in ast.walk(ast.parse(source)):  # outer ones first
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first <= line <= (node.end_lineno or first):
                found = node.name
    return found


def read(path: Path) -> list[Entry]:
    """The entries of the list; none where there is no list. Raises ValueError."""
    if not path.exists():
        return []
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        entries = [Entry(**each) for each in document.get("mutant", [])]
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
    for entry in entries:
        if not entry.reason.strip():
            raise ValueError(f"{path}: no reason is given for {entry}")
    return entries


def stale(entries: list[Entry], mutants: list[Mutant], sources: dict[str, str]) -> list[Entry]:
    """Entries that no mutant of the tree matches any more."""
    return [
        entry for entry in entries
        if not any(entry.matches(mutant, sources[mutant.module])
                   for mutant in mutants if mutant.module == entry.module)
    ]


def explanation(entries: list[Entry], mutant: Mutant, source: str) -> Entry | None:
    return next((entry for entry in entries if entry.matches(mutant, source)), None)
