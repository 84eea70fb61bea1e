"""The fuzz target ``model``: the memory model by itself, its laws driven by bytes.

The first byte of an input chooses the law (``LAWS``), the rest decides every choice the law makes
(``source.ByteRandom``). It needs no QEMU. A law that does not hold is a finding with the
signature ``model:LAW:WHAT``, WHAT being what parted, the exception that escaped, or ``slow``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from random import Random

from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.inputs.subject import Fact, Subject
from qemuglue.campaign.model.laws import (
    Law,
    RulesOf,
    accessing,
    changing,
    cutting,
    drawing,
    guarding,
    helping,
    repeating,
)
from qemuglue.campaign.model.rust_law import rusting
from qemuglue.campaign.model.source import MAX_SIZE, ByteRandom, damaged
from qemuglue.errors import UsageError
from qemuglue.memory.rules import Rules, rules_for

NAME = "model"

#: By the letter an input begins with; any other byte is taken modulo their number.
LAWS: dict[str, tuple[str, Law]] = {
    "d": ("drawing", drawing), "c": ("changing", changing), "g": ("guarding", guarding),
    "a": ("accessing", accessing), "s": ("repeating", repeating), "h": ("helping", helping),
    "p": ("cutting", cutting), "r": ("rusting", rusting),
}
_ORDER = tuple(LAWS.values())


def chosen(data: bytes, rules: RulesOf = rules_for) -> tuple[str, Callable[[bytes], Fact]]:
    """The law an input is for, and what runs it."""
    letter = chr(data[0]) if data else "d"
    name, law = LAWS.get(letter) or _ORDER[ord(letter) % len(_ORDER)]
    return name, partial(_run, name, law, rules)


def _run(name: str, law: Law, rules: RulesOf, data: bytes) -> Fact:
    return name, "holds", law(ByteRandom(data), rules)


def planted(defect: str) -> RulesOf:
    """The rules of each version, with that defect in them.

    :raise UsageError: there is none of that name, or it is not one of the model's rules.
    """
    found = DEFECTS.get(defect)
    wrong = None if found is None else found.rules
    if wrong is None:
        known = ", ".join(name for name, each in DEFECTS.items() if each.rules is not None)
        raise UsageError(f"no defect {defect!r} for the target model; there are {known}")

    def rules_of(version: tuple[int, ...]) -> Rules:
        rules = rules_for(version)
        return wrong(**{each.name: getattr(rules, each.name) for each in fields(rules)})

    return rules_of


def subject(defect: str = "") -> Subject:
    """The target, with a defect planted in the model's rules or none."""
    rules = planted(defect) if defect else rules_for
    return Subject(NAME, partial(chosen, rules=rules), SEEDS, damaged, MAX_SIZE, defect)


#: Four inputs for each law: enough to begin with where there is no corpus.
SEEDS = tuple(
    letter.encode() + Random(f"{letter}{size}").randbytes(size)
    for letter in LAWS for size in (16, 64, 256, 700)
)
SUBJECT = subject()
