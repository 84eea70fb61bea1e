"""The operators: Cosmic Ray's, and one of our own.

Cosmic Ray changes operators, comparisons, numbers, truth values, conditions, loops and
decorators, but never leaves a statement out, which is the likeliest defect of code that keeps
books (listeners, references, caches).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Keyword

Position = tuple[int, int]

#: What compares by identity here are enums, None, types, and objects without an equality of
#: their own: for all of them it is the same thing.
SAME = frozenset({"ReplaceComparisonOperator_Is_Eq", "ReplaceComparisonOperator_IsNot_NotEq"})


class RemoveStatement(Operator):  # type: ignore[misc]
    """Puts ``pass`` for a call, a ``raise``, a ``return`` with a value, a ``del``, an augmented
    assignment or one to an attribute or an item. Leaving out the assignment of a plain name
    nearly always ends in a NameError, which teaches nothing; leaving out an ``assert`` is what
    ``python -O`` does."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if node.type == "simple_stmt" and _matters(node.children[0]):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        statement = node.children[0]
        node.children[0] = Keyword("pass", statement.start_pos,
                                   statement.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (
            Example("f()\n", "pass\n"),
            Example("self.x = 1\n", "pass\n"),
            Example("x += 1\n", "pass\n"),
        )


def _matters(statement: Any) -> bool:
    if statement.type in ("atom_expr", "power", "await_expr", "raise_stmt", "del_stmt"):
        return True
    if statement.type == "return_stmt":
        return bool(statement.children[1:])
    if statement.type == "expr_stmt":
        target, how = statement.children[:2]
        if how.type == "annassign":
            return target.type != "name" and len(how.children) > 2
        return how.type == "operator" and bool(how.value != "=" or target.type != "name")
    return False


def operators() -> dict[str, Operator]:
    """Every operator that takes no argument and makes a difference, by name, in a fixed
    order."""
    found: dict[str, Operator] = {"RemoveStatement": RemoveStatement()}
    for name in cosmic_ray.plugins.operator_names():
        kind = cosmic_ray.plugins.get_operator(name)
        if not kind.arguments():
            found[name.removeprefix("core/")] = kind()
    return {name: found[name] for name in sorted(found) if name not in SAME}
