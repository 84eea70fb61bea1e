"""What ``replay`` takes: a finding folder, a program, a qtest script; and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemuglue.campaign import loading
from qemuglue.campaign.findings import Finding, write_finding
from qemuglue.campaign.loading import load
from qemuglue.errors import FindingError, ProgramError, QemuglueError, UsageError
from qemuglue.program.operation import Operation, Place, Program
from qemuglue.witness.judge import Judgement, Kind

PROGRAM = """# qemuglue program 1
machine x86_64/q35
args -device edu
# a comment
readl hpet+0x4
"""
SCRIPT = """outl 0xcf8 0x80000810
outl 0xcfc 0xfea00000
readl 0xfea00000
"""
DOCUMENT = """cat << EOF | qemu-system-x86_64 -M q35 -device edu -display none -qtest stdio
outl 0xcf8 0x80000810
clock_step
readl 0xfea00000
EOF
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "given"


def test_a_program(file: Path) -> None:
    file.write_text(PROGRAM)
    loaded = load(file)
    assert (loaded.name, loaded.finding, loaded.notes) == ("given", None, ())
    assert loaded.program.machine == "x86_64/q35" and loaded.program.args == ("-device", "edu")
    assert [op.verb for op in loaded.program.operations] == ["readl"]


def test_a_program_on_another_machine(file: Path) -> None:
    file.write_text(PROGRAM)
    assert load(file, machine="x86_64/pc").program.machine == "x86_64/pc"
    with pytest.raises(UsageError, match="TARGET/NAME"):
        load(file, machine="pc")


def test_a_program_keeps_its_own_arguments(file: Path) -> None:
    file.write_text(PROGRAM)
    assert load(file, args=("-m", "1G")).program.args == ("-device", "edu")


def test_blank_lines_in_front_of_the_header(file: Path) -> None:
    file.write_text("\n\n" + PROGRAM)
    assert load(file).program.machine == "x86_64/q35"


def test_a_script(file: Path) -> None:
    file.write_text(SCRIPT)
    loaded = load(file, machine="x86_64/pc", args=("-device", "edu"))
    assert loaded.program.machine == "x86_64/pc" and loaded.program.args == ("-device", "edu")
    assert [op.verb for op in loaded.program.operations] == ["outl", "outl", "readl"]


def test_a_script_needs_a_machine(file: Path) -> None:
    file.write_text(SCRIPT)
    with pytest.raises(ProgramError, match="--machine TARGET/NAME") as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_here_document_names_its_machine(file: Path) -> None:
    file.write_text(DOCUMENT)
    loaded = load(file, machine="x86_64/pc")
    assert loaded.program.machine == "x86_64/q35", "its own, not the one given"
    assert "-device" in loaded.program.args and "edu" in loaded.program.args
    assert [op.verb for op in loaded.program.operations] == ["outl", "readl"]
    assert any("clock_step" in note for note in loaded.notes), "what was left out is told"


def test_a_finding(tmp_path: Path) -> None:
    program = Program("x86_64/q35", (), (Operation("readb", Place(None, 0, 0), 1),))
    finding = Finding("crash", "crash:exit:1", program, {"name": "sid"}, 3, (3, 3))
    path = write_finding(tmp_path, finding, Judgement(Kind.CRASH))
    loaded = load(path)
    assert loaded.finding is not None and loaded.finding.signature == "crash:exit:1"
    assert (loaded.name, loaded.program) == (path.name, program)
    assert load(path / "program.qg").program == program, "and the program inside it"


# -- what it does not take -------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(QemuglueError) as caught:
        load(path, machine="x86_64/q35")
    text = str(caught.value)
    assert isinstance(caught.value, UsageError), "exit code 2"
    assert str(path) in text and "\n" not in text
    return text


def test_no_such_file(file: Path) -> None:
    assert refused(file) == f"{file}: No such file or directory"


def test_a_folder_that_is_no_finding(tmp_path: Path) -> None:
    with pytest.raises(FindingError, match=r"program\.qg is missing"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_no_operation_in_it(file: Path, text: str) -> None:
    file.write_text(text)
    assert "no operation in it" in refused(file)


@pytest.mark.parametrize("raw", [b"\x7fELF\x02\x01\x01\xff\xfe", b"\xff" * 100, b"\x01\x80\x00"])
def test_bytes_that_are_no_text(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    assert "is not text" in refused(file)


@pytest.mark.parametrize("raw", [b"\x00" * 100, b"\x01\x02\x03\x04", b"a\x00b\n"])
def test_bytes_that_might_be_text(file: Path, raw: bytes) -> None:
    file.write_bytes(raw)
    refused(file)


@pytest.mark.parametrize("text", [
    "# qemuglue program 1\nreadl @0\n",
    "# qemuglue program 1\nmachine x86_64/q35\nreadx @0\n",
    "# qemuglue program 1\nmachine x86_64/q35\noutb 0x10000 0\n",
])
def test_programs_with_mistakes(file: Path, text: str) -> None:
    file.write_text(text)
    refused(file)


def test_a_mistake_is_told_with_its_line(file: Path) -> None:
    file.write_text("# qemuglue program 1\nmachine x86_64/q35\n\nreadx @0\n")
    assert f"{file}: line 4: " in refused(file)


@pytest.mark.parametrize("line", [
    "readb", "readb 0xzz", "outb 0x10000 0x1", "read 0x0 0x0", "hello world",
])
def test_scripts_with_mistakes(file: Path, line: str) -> None:
    file.write_text(f"readb 0x0\n{line}\n")
    assert refused(file).startswith(f"{file}: line 2: ")


def test_a_program_of_a_later_format_is_no_script(file: Path) -> None:
    """Its header is a comment to qtest: half of it might be taken for a script."""
    file.write_text("# qemuglue program 2\nmachine x86_64/q35\nreadb 0x0\n")
    refused(file)
    file.write_text("# qemuglue program 12\nmachine x86_64/q35\nreadb 0x0\n")
    refused(file)


def test_a_file_too_large(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_BYTES", 10)
    file.write_text(PROGRAM)
    assert "larger than" in refused(file)


def test_what_never_ends_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_BYTES", 1 << 16)
    assert "larger than" in refused(Path("/dev/zero"))
