"""Repeating a program: what is taken out, what counts as a difference, how it is told."""

from __future__ import annotations

import pytest

from qemuglue.campaign.clean import (
    Cleanness,
    Picture,
    Verdict,
    _listed,
    _name,
    _places,
    _widened,
)
from qemuglue.campaign.repeating import Account, Normal, Repeated, _count
from qemuglue.campaign.restoring import Method
from qemuglue.cli.clean import _document, _words
from qemuglue.program.operation import Operation, Place
from qemuglue.witness.session import Step

STEPS: list[Step] = [
    (Operation("readl", Place(None, 0, address), 4), address) for address in (0x10, 0x20, 0x30)
]
A, B, C = (Account(b"OK 0x%x" % number, ()) for number in (1, 2, 3))
DEAD = Account(b"", (), end="QEMU exited with code 1")


def test_pointers_are_numbered_as_they_are_met() -> None:
    text = (b"memory_region_ops_read cpu -1 mr 0x5567aa addr 0x10 value 0x1 size 4 name 'a'\n"
            b"flatview_new 0x7f1234567890 (root 0x55ab12345678)\n"
            b"flatview_destroy_rcu 0x7f1234567890 (root 0x55ab12345678)\n"
            b"memory_region_ops_read cpu -1 mr 0x5567bb addr 0x14 value 0x2 size 4 name 'b'\n")
    first = Normal().lines(text)
    other = text.replace(b"0x5567aa", b"0x9999").replace(b"0x7f1234567890", b"0x7f0000000001")
    assert Normal().lines(other) == first
    assert len(first) == 3 and b"mr 1 addr 0x10" in first[0] and b"mr 2 addr" in first[2]
    assert first[1] == b"flatview_new HOST (root HOST)"
    swapped = text.replace(b"0x5567bb", b"0x5567aa")
    assert Normal().lines(swapped) != first, "another region is a difference"
    assert Normal().lines(text.replace(b"value 0x2", b"value 0x3")) != first


def counted(*times: list[Account]) -> Repeated:
    found = Repeated()
    for accounts in times:
        _count(found, accounts, STEPS)
    return found


def test_the_same_every_time() -> None:
    found = counted([A, B, C], [A, B, C], [A, B, C])
    assert (found.same, found.total, found.differences) == (3, 3, {})


def test_which_operation_differs_and_how_often() -> None:
    found = counted([A, B, C], [A, B, C], [A, C, C], [A, C, C], [A, C, C])
    assert (found.same, found.total) == (2, 5)
    difference = found.differences[1]
    assert list(found.differences) == [1] and difference.step is STEPS[1]
    assert difference.accounts == {B: 2, C: 3}
    assert (difference.same, difference.total) == (3, 5)


def test_an_end_is_a_difference_and_what_it_cut_off_is_not() -> None:
    found = counted([A, B, C], [A, DEAD], [A, B, C])
    assert (found.same, list(found.differences)) == (2, [1, 2])
    assert found.differences[1].accounts == {B: 2, DEAD: 1}
    assert found.differences[2].accounts == {C: 2}
    later = counted([A, DEAD], [A, B, C], [A, DEAD])
    assert later.same == 2 and later.differences[1].accounts == {DEAD: 2, B: 1}


def test_a_clock_gives_no_endless_list() -> None:
    found = counted(*([Account(b"%d" % number, ())] for number in range(100)))
    assert found.same == 1 and found.differences[0].total == 100
    assert len(found.differences[0].accounts) <= 8


LINE = ("memory", 0, 16, "uart", 0, "io")


def picture(*lines: tuple[str, int, int, str, int, str], register: bytes = b"", ram: bytes = b"",
            ) -> Picture:
    return Picture(frozenset(lines), {("rtc", "io", 0x71): register}, {("ram", 3): ram})


def test_in_what_two_pictures_differ() -> None:
    new = picture(LINE, register=b"1", ram=b"a")
    assert new.differing(picture(LINE, register=b"1", ram=b"a")) == set()
    assert {_name(key) for key in new.differing(picture(register=b"2", ram=b"b"))} == {
        "map: uart", "register: rtc", "RAM: ram"}
    assert _listed(new.differing(picture(register=b"1", ram=b"b"))) == [
        "RAM: ram+0x3000", "map: uart at 0x0 of memory"]
    many: set[object] = {("fdc", "io", port) for port in range(9)}
    assert _listed(many) == ["register: fdc at 0x0", "9 differences in all"]


def test_both_halves_of_a_clock_are_volatile() -> None:
    assert _widened({("clock", "memory", 0x1000), ("rtc", "io", 0x71)}) == {
        ("clock", "memory", 0x1000), ("clock", "memory", 0x1004), ("rtc", "io", 0x71)}


def test_which_registers_are_read() -> None:
    assert _places("memory", 0x100, 3) == []
    assert _places("memory", 0x100, 16) == [0x100, 0x104, 0x108, 0x10C]
    assert _places("io", 0x60, 2) == [0x60, 0x61]
    large = _places("memory", 0, 1 << 20)
    assert len(large) <= 64 and large == sorted(set(large)) and large[31] == 124
    assert large[-1] < 1 << 20


@pytest.mark.parametrize(("verdict", "words"), [
    (Verdict(Method.FRESH, True, 3), ["clean, 3 of 3 times"]),
    (Verdict(Method.SNAPSHOT, False, 0, ["QEMU refuses savevm: x"]),
     ["not possible: QEMU refuses savevm: x"]),
    (Verdict(Method.RESET, False, 2, ["RAM: a", "map: b"]),
     ["not clean, the second time: RAM: a", "map: b"]),
])
def test_verdicts_in_words(verdict: Verdict, words: list[str]) -> None:
    assert _words(verdict) == words


def test_the_document() -> None:
    found = Cleanness("a/b", "sid", "stopped", {Method.RESET: Verdict(Method.RESET, True, 1)})
    assert _document(found)["states"] == {
        "reset": {"clean": True, "rounds": 1, "why": [], "seconds": 0.0}}
