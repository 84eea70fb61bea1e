"""The conformance suite of ``Bytes`` itself: what keeps the rules passes, and each rule can fail.

For every rule there is an implementation that is damaged in one way (``bytes_damages``), and the
suite must say of it that it breaks that rule.
"""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import bytes_conformance
import bytes_stream_damages
import pytest
from bytes_conformance import (
    RULES,
    BytesConformance,
    Contract,
    Streams,
    Subject,
    applicable,
    broken_rules,
)
from bytes_damages import DAMAGES, MEMORY, NEVER_SHORT, READ_ONLY, SLICE, UNALIGNED, WHOLE
from bytes_reference import Reference, StreamReference, contract, subject

from qemuglue.memory.backing import ByteBacking
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import GuestIOError
from qemuglue.memory.guest_memory import GuestRegion, GuestRegionCollection

PLAIN = contract(streams=Streams.PLAIN, io_error=GuestIOError)
NO_STREAMS = contract(streams=None)
# Importing it added to the list.
assert any(made.__module__ == bytes_stream_damages.__name__ for _, _, made in DAMAGES)

NO_TOP = contract(has_top=False, counted=False)

KINDS = {
    "memory": (MEMORY, StreamReference), "slice": (SLICE, StreamReference),
    "plain": (PLAIN, Reference), "unaligned": (UNALIGNED, StreamReference),
    "read-only": (READ_ONLY, StreamReference), "whole objects": (WHOLE, StreamReference),
    "never short": (NEVER_SHORT, StreamReference),
    "no streams": (NO_STREAMS, Reference), "no top": (NO_TOP, StreamReference),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_keeps_the_rules_passes(kind: str) -> None:
    about, made = KINDS[kind]
    assert broken_rules(about, lambda: subject(made, about)) == {}


def test_each_rule_is_about_some_kind() -> None:
    asked = {rule.name for about, _ in KINDS.values() for rule in applicable(about)}
    assert asked == {rule.name for rule in RULES} and len(RULES) == len(asked)
    for about, _ in KINDS.values():
        assert len(applicable(about)) >= 25


def test_every_rule_has_a_damage_that_only_it_sees() -> None:
    alone = {next(iter(rules)) for rules, _, _ in DAMAGES if len(rules) == 1}
    assert alone == {rule.name for rule in RULES}


@pytest.mark.parametrize("case", DAMAGES, ids=[made.__name__ for _, _, made in DAMAGES])
def test_a_damage_is_seen(case: tuple[frozenset[str], Contract, type[Reference]]) -> None:
    rules, about, made = case
    broken = broken_rules(about, lambda: subject(made, about))
    assert set(broken) == rules, broken
    assert all("attribute" not in seen for seen in broken.values()), "the damage itself is broken"


def test_the_example_in_the_suite_is_an_implementation_that_passes() -> None:
    text = bytes_conformance.__doc__ or ""
    code = text.partition("::\n\n")[2].partition("\n\nand run it")[0]
    names: dict[str, Any] = {
        cls.__name__: cls for cls in (
            BytesConformance, ByteBacking, Contract, GuestAddress, GuestRegion,
            GuestRegionCollection, Subject,
        )
    }
    exec(dedent(code), names)
    mine = names["TestMine"]
    assert len(applicable(mine.contract)) > 40
    assert broken_rules(mine.contract, mine().make) == {}
