"""The file of oddities: what is in it holds together, and what would not is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qemuglue.errors import UsageError
from qemuglue.witness.oddities import Avoided, avoided, load, reason, standard

ROOT = Path(__file__).resolve().parents[2]

GOOD = """
[[oddity]]
id = "one-thing"
what = "it does"
why = "some_function forgets"
kind = "crash"
builds = ">=7.2,<10.1"
machines = ["*/virt", "arm/versatile*"]
match = { signature = "crash:assert:some_function:*", region = "the end of *" }
program = '''
# qemuglue program 1
machine aarch64/virt
readb @0x1000
'''
upstream = "unknown"
"""

AVOID = """
[[oddity]]
id = "hands-off"
what = "it does"
why = "because"
kind = "avoid"
builds = ["7.2", "10"]
machines = ["*"]
regions = ["vm*"]
match = { signature = "crash:*" }
program = "# qemuglue program 1\\nmachine x86_64/pc\\ninb 0x1"
upstream = "unknown"
"""


def read(tmp_path: Path, text: str) -> str:
    """The sentence that refuses ``text``."""
    path = tmp_path / "oddities.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load(path)
    return str(error.value)


def entries(tmp_path: Path, text: str):
    path = tmp_path / "oddities.toml"
    path.write_text(text)
    return load(path)


def test_the_reviewed_file_is_whole() -> None:
    assert {"rom-device-end", "vmport-without-a-cpu"} <= {each.id for each in standard()}
    for each in standard():
        if each.test:
            path, name = each.test.split("::")
            assert f"def {name}(" in (ROOT / path).read_text(), each.id
    assert reason("rom-device-end").endswith("(rom-device-end)")


def test_scope_by_version_and_machine(tmp_path: Path) -> None:
    first, second = entries(tmp_path, GOOD + AVOID)
    for version, inside in [((7, 1, 9), False), ((7, 2), True), ((7, 2, 22), True),
                            ((10, 0, 2), True), ((10, 1), False), ((10, 1, 0), False)]:
        assert first.in_scope(version, "aarch64/virt") is inside, version
    assert first.in_scope((8, 0), "arm/versatilepb")
    assert not first.in_scope((8, 0), "arm/virt-9") and not first.in_scope((8, 0), "virt")
    assert [second.in_scope(v, "x/y") for v in ((7, 2, 1), (7, 20), (10, 2), (1, 0))] == [
        True, False, True, False]


def test_what_is_explained(tmp_path: Path) -> None:
    first, second = entries(tmp_path, GOOD + AVOID)
    assert first.explains("crash:assert:some_function:x == 1", "the end of rom")
    assert not first.explains("crash:assert:other_function:x", "the end of rom")
    assert not first.explains("crash:assert:some_function:x", "rom")
    assert second.explains("crash:signal:SIGSEGV", "")
    here = Avoided((second,))
    assert here.why("vmport") == here.why("vmport") == "it does (hands-off)"
    assert here.why("hpet") is None


def test_two_places_of_one_finding(tmp_path: Path) -> None:
    (only,) = entries(tmp_path, GOOD.replace('"the end of *"', '"*high|the end of ram"'))
    for region, is_it in [("dram-high", True), ("the end of ram", True), ("ram", False),
                          ("*high|the end of ram", False), ("", False)]:
        assert only.explains("crash:assert:some_function:x", region) is is_it, region


def test_what_is_avoided_where() -> None:
    assert avoided((10, 0, 2), "x86_64/q35").why("vmport")
    assert avoided((10, 0, 2), "arm/virt").why("vmport") is None


@pytest.mark.parametrize(("old", "new", "said"), [
    ('upstream = "unknown"', 'upstraem = "unknown"', "unknown key 'upstraem'"),
    ('why = "some_function forgets"\n', "", "no 'why'"),
    ('what = "it does"', 'what = "  "', "what is not a text"),
    ('what = "it does"', "what = 3", "what is not a text"),
    ('"crash"', '"mishap"', "kind 'mishap'; there are crash"),
    ('"one-thing"', '"One Thing"', "its id is not"),
    ('">=7.2,<10.1"', '">7.2"', "builds '>7.2': write"),
    ('">=7.2,<10.1"', '">=7.2,<7.2"', "there is no such version"),
    ('">=7.2,<10.1"', '"<8,<9"', "builds"), ('">=7.2,<10.1"', '""', "builds"),
    ('">=7.2,<10.1"', "[]", "builds"), ('">=7.2,<10.1"', '["7.x"]', "builds"),
    ('">=7.2,<10.1"', "7.2", "builds"),
    ('["*/virt", "arm/versatile*"]', '"*"', "machines is not a list"),
    ('["*/virt", "arm/versatile*"]', "[]", "machines is not a list"),
    ('["*/virt", "arm/versatile*"]', '["arm/*"]', "program is for aarch64/virt, which is not"),
    ("signature = ", "sign = ", "match is a table of"),
    ('match = { signature = "crash:assert:some_function:*", region = "the end of *" }\n', "",
     "a program needs match"),
    ('"crash:assert', '"hang:assert', "must begin with 'crash:'"),
    ("readb @0x1000", "reedb @0x1000", "its program: line 3: "),
    ("readb @0x1000\n", "", "its program has no operation"),
    ("# qemuglue program 1\nmachine aarch64/virt\n", "# qemuglue program 9\n", "its program: "),
    ("program = '''\n# qemuglue program 1\nmachine aarch64/virt\nreadb @0x1000\n'''\n", "",
     "give the program"),
    ('upstream = "unknown"', 'upstream = "unknown"\ntest = "tests/a.py::b"', "give the program"),
    ('upstream = "unknown"', 'upstream = "unknown"\nregions = ["x"]', "regions are for kind"),
])
def test_what_is_wrong_is_told_by_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    told = read(tmp_path, GOOD.replace(old, new, 1))
    assert "\n" not in told and said in told, told
    assert told.startswith("oddities.toml: oddity ") and ("one-thing" in told or "One" in told)


@pytest.mark.parametrize(("text", "said"), [
    (GOOD + GOOD, "oddity one-thing: this id is there twice"),
    (GOOD.replace('id = "one-thing"\n', ""), "oddity 1: no 'id'"),
    (GOOD.replace("[[oddity]]", "[oddity]"), "with two brackets"),
    ("oddity = [3]", "oddity 1: "),
    ("x = 3\n" + GOOD, "unknown key 'x'"), ("[[", "is not TOML"), ("\x00", "is not TOML"),
    (AVOID.replace('regions = ["vm*"]\n', ""), "regions are for kind 'avoid', and it needs them"),
    (re.sub("(?m)^(program|match) = .*\n", "", AVOID) + 'test = "see elsewhere"',
     "test 'see elsewhere' is not"),
])
def test_files_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    told = read(tmp_path, text)
    assert said in told and "\n" not in told, told


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not TOML"):
        load(tmp_path / "bad.toml")
