"""Every mutant of a module, and a sample of them drawn by a seed."""

from __future__ import annotations

import ast
import difflib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from operator import itemgetter
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

from mutation.operators import operators

PACKAGE = Path("qemuglue/memory")
OPERATORS = operators()


@dataclass(frozen=True, slots=True)
class Mutant:
    """``module`` is the name within the package, ``flatview`` or ``guest_memory.region``;
    ``occurrence`` counts the places of ``operator`` in it, as Cosmic Ray does."""

    module: str
    operator: str
    occurrence: int
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} {self.operator} #{self.occurrence}"


@dataclass(frozen=True, slots=True)
class Change:
    """A mutant made: the new source, the lines it changes (stripped) and the whole diff."""

    source: str
    before: str
    after: str
    diff: str


def modules(root: Path) -> list[str]:
    """Names of the package's modules, those of its sub-packages as ``guest_memory.region``;
    ``__init__`` only names others."""
    top = root / PACKAGE
    paths = (path.relative_to(top) for path in top.rglob("*.py") if path.stem != "__init__")
    return sorted(".".join(path.with_suffix("").parts) for path in paths)


def path_of(module: str) -> Path:
    """Where the module lies in the tree."""
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def source_of(root: Path, module: str) -> str:
    return (root / path_of(module)).read_text(encoding="utf-8")


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Every mutant, but for those inside annotations, which are never evaluated here."""
    unread = _annotations(source)
    nodes = list(ast_nodes(get_ast(source)))
    found = []
    for name, operator in OPERATORS.items():
        places = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, (line, column) in enumerate(places):
            if not any(first <= (line, column) < last for first, last in unread):
                found.append(Mutant(module, name, occurrence, line, column))
    return found


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    lines = source.splitlines()

    def place(line: int, column: int) -> tuple[int, int]:
        # ast counts bytes, Cosmic Ray characters
        return line, len(lines[line - 1].encode()[:column].decode())

    spans = []
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            each = getattr(node, name, None)
            if isinstance(each, ast.expr):
                assert each.end_lineno is not None and each.end_col_offset is not None
                spans.append((place(each.lineno, each.col_offset),
                              place(each.end_lineno, each.end_col_offset)))
    return spans


def drawn(mutants: list[Mutant], sources: dict[str, str], seed: int) -> Iterator[Mutant]:
    """All of them in the order of ``seed``: one of each place in the source, then a second of
    each, and so on. An arithmetic operator has eleven mutants and a condition one, and drawn
    evenly the arithmetic would be most of a sample. A longer sample contains a shorter one, and
    an edit elsewhere hardly changes it."""
    lines = {module: text.splitlines() for module, text in sources.items()}
    seen: Counter[str] = Counter()
    piles: dict[tuple[str, int, int], list[tuple[bytes, Mutant]]] = {}
    for mutant in mutants:
        text = lines[mutant.module][mutant.line - 1]
        name = f"{seed} {mutant.module} {mutant.column} {mutant.operator} {text}"
        seen[name] += 1
        rank = sha256(f"{name} {seen[name]}".encode()).digest()
        piles.setdefault((mutant.module, mutant.line, mutant.column), []).append((rank, mutant))
    turns = [sorted(pile, key=itemgetter(0)) for pile in piles.values()]
    # Turned round in itself, the least rank of a pile no longer tells how high the pile is.
    turns.sort(key=lambda pile: pile[0][0][::-1])
    for turn in range(max(map(len, turns), default=0)):
        yield from (pile[turn][1] for pile in turns if turn < len(pile))


@lru_cache(maxsize=4096)
def change(mutant: Mutant, source: str) -> Change:
    """Make ``mutant`` of its module's ``source``."""
    mutated = mutate_code(source, OPERATORS[mutant.operator], mutant.occurrence)
    assert mutated is not None, f"{mutant} is not there"
    path = str(path_of(mutant.module))
    old, new = source.splitlines(), mutated.splitlines()
    diff = list(difflib.unified_diff(old, new, path, path, lineterm="", n=2))
    return Change(
        mutated,
        _stripped(line[1:] for line in diff[2:] if line.startswith("-")),
        _stripped(line[1:] for line in diff[2:] if line.startswith("+")),
        "\n".join(diff),
    )


def _stripped(lines: Iterator[str]) -> str:
    return "\n".join(line.strip() for line in lines).strip()
