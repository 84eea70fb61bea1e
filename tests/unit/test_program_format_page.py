"""FORMAT.md says what the code does: its examples parse, its tables are the code's."""

import re
from pathlib import Path

import pytest

import qemuglue.program
from qemuglue.program import Layout, Range, decode, parse_lenient, parse_text
from qemuglue.program.codec import AIM_SLOTS, RECORD_SIZE, VERB_SLOTS
from qemuglue.program.verbs import SETUPS, VERBS
from qemuglue.program.words import quote_name, unquote_name

PAGE = (Path(qemuglue.program.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")


def block(name: str) -> str:
    found = re.findall(rf"^```{name}\n(.*?)^```$", PAGE, re.M | re.S)
    assert len(found) == 1, f"{len(found)} blocks called {name}"
    return found[0]


def rows(pattern: str) -> list[tuple[str, ...]]:
    return re.findall(rf"^\| {pattern} \|", PAGE, re.M)


def test_text_example():
    program = parse_text(block("qg"))
    assert parse_lenient(block("qg")) == (program, ())
    assert [op.verb for op in program.operations] == [
        "readl", "writeq", "read", "write", "memset", "outl", "inb", "readb", "reset"]
    assert program.args == ("-device", "edu", "-m", "128M") and program.mode == "parked"
    assert program.setup == "pci"


def test_every_set_up_is_on_the_page():
    for setup in SETUPS:
        assert not setup or f"`setup {setup}`" in PAGE


def test_every_verb_is_on_the_page():
    assert all(f"`{verb}" in PAGE for verb in VERBS)


@pytest.mark.parametrize("line", block("names").splitlines())
def test_names(line):
    spelled, name = re.split(r" {3,}", line)
    assert quote_name(name) == spelled
    assert unquote_name(spelled) == name


def test_byte_example():
    size = 0x100000
    layout = Layout({"memory": [Range(0xFEA00000, size, "edu-mmio", 0, 0, "device", "memory")]})
    program = decode(bytes.fromhex(block("bytes")), layout, "x86_64/q35")
    assert program.canonical_text() == block("decoded")
    assert f"records of {RECORD_SIZE} bytes" in PAGE


def test_verb_table():
    at, expected = 0, []
    for verb, count in VERB_SLOTS:
        expected.append((str(at), str(at + count - 1), verb))
        at += count
    found = rows(r"(\d+) \| (\d+) \| (\w+)[^|]*")
    assert [row for row in found if row[2] in VERBS] == expected


def test_aim_table():
    names = []
    for slots, name in rows(r"(\d+(?:-\d+)?) \| ([A-Z_]+)"):
        low, _, high = slots.partition("-")
        names += [name] * (int(high or low) - int(low) + 1)
    assert names == [aim.name for aim in AIM_SLOTS]
