"""One conformance suite for every implementation of ``Bytes``, anybody's.

To run your own implementation through it, write a test module beside the others::

    class TestMine(BytesConformance):
        contract = Contract(length=64)          # what may differ is a field of it

        def make(self) -> Subject:
            store = ByteBacking(64)             # what your object keeps its bytes in
            mine = GuestRegionCollection.from_regions([GuestRegion(0x1000, store)])
            return Subject(
                mine, address=lambda n: GuestAddress(0x1000 + n),
                snapshot=lambda: bytes(store.data), fill=lambda data: store.write(0, data),
            )

and run it with pytest: one test a rule (``BytesConformanceAtOnce``: one test of all). ``Contract``
and ``Subject`` (``bytes_subject``) say what their fields are. Let ``snapshot`` have a margin around
the bytes, so that one too many is seen; give the object a second contiguous region (``seam``) if it
can have one.

A rule (``bytes_rules``, ``bytes_stream_rules``) is run on a fresh subject, whose bytes are set to a
known pattern; the rules that are not about such an implementation are not run. Outside pytest,
``broken_rules`` tells which are broken. That each rule can be broken, and is seen, is shown by
``unit/test_bytes_conformance.py`` on implementations that are damaged in one way each.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import ClassVar

import pytest
from bytes_subject import RULES, Contract, Rule, Streams, Subject

__all__ = [
    "RULES", "BytesConformance", "BytesConformanceAtOnce", "Contract", "Rule", "Streams", "Subject",
    "applicable", "broken_rules",
]

# Importing them makes the list; rewritten, their assertions say what they saw.
for _module in ("bytes_rules", "bytes_stream_rules"):
    pytest.register_assert_rewrite(_module)
    import_module(_module)
assert RULES


def applicable(contract: Contract) -> list[Rule]:
    """The rules about such an implementation."""
    return [rule for rule in RULES if rule.applies(contract)]


def broken_rules(contract: Contract, make: Callable[[], Subject]) -> dict[str, str]:
    """The names of the rules that ``make()``'s subjects break, with what was seen."""
    broken = {}
    for rule in applicable(contract):
        try:
            rule.run(contract, make())
        except Exception as error:
            broken[rule.name] = f"{type(error).__name__}: {error}"
    return broken


class Implementation:
    """What both bases of a test class need."""

    contract: ClassVar[Contract]

    def make(self) -> Subject:
        """A new subject."""
        raise NotImplementedError


class BytesConformance(Implementation):
    """Base of a test class: one test a rule. See the module."""

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        assert metafunc.cls is not None
        if "rule" in metafunc.fixturenames:
            rules = applicable(metafunc.cls.contract)
            metafunc.parametrize("rule", rules, ids=[rule.name for rule in rules])

    def test_rule(self, rule: Rule) -> None:
        rule.run(self.contract, self.make())


class BytesConformanceAtOnce(Implementation):
    """The same as one test, where a test of its own for each rule costs more than the rule."""

    def test_every_rule(self) -> None:
        assert broken_rules(self.contract, self.make) == {}
