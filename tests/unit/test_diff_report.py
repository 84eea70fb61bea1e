"""A diff as a page, JSON and JUnit; statuses, exit codes and usage errors."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qemuglue.campaign.diff import diffing
from qemuglue.campaign.diff.diffing import Census, DiffOptions, MachineDiff, Status, take_census
from qemuglue.campaign.diff.firmware import firmware_behind
from qemuglue.campaign.diff.maps import MapChange, Subject
from qemuglue.campaign.diff.outcomes import Call, Outcome, OutcomeChange, Outcomes
from qemuglue.campaign.diff.ranges import Kind
from qemuglue.campaign.schedule import Done
from qemuglue.cli import diff
from qemuglue.cli.main import main
from qemuglue.errors import UsageError
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import Machine
from qemuglue.report.diff_junit import write_diff_junit
from qemuglue.report.diff_markdown import append_diff
from qemuglue.report.diff_markdown import page as markdown
from qemuglue.report.diff_text import document, line, print_diff
from qemuglue.witness.contract_table import ContractChange

A = Build("old", "7.2.22", None, (("x86_64", Path("a")), ("cris", Path("a"))))
B = Build("new", "10.0.2", None, (("x86_64", Path("b")), ("hexagon", Path("b"))))
RENAMED = MapChange(Subject.RANGE, Kind.RENAMED, "0xcf9", "piix3-reset-control",
                    "piix-reset-control", False, ("I/O",))
RESIZED = MapChange(Subject.RANGE, Kind.RESIZED, "0xaf00-0xaf1f", "acpi-cpu-hotplug, 0x20 bytes",
                    "0xc bytes", True, ("I/O",))
HPET = ContractChange("valid sizes", "/q35:hpet", "hpet", "reads and writes", "4..4", "4..8")
PL011 = OutcomeChange("pieces", "pl011", "device", "readb @0x9000ffc", 0x9000FFC, "read 1",
                      "read 4")


@pytest.fixture(autouse=True)
def no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def result(machine: str, *maps: MapChange, versioned: bool = False, **more: Any) -> MachineDiff:
    status = Status.CHANGED if maps or more else Status.SAME
    found = MachineDiff(machine, versioned, status, maps=maps, seconds=1.0, **more)
    return replace(found, status=Status.BROKEN) if found.errors else found


def page(*results: MachineDiff, census: Census | None = None, **options: Any) -> str:
    out = io.StringIO()
    print_diff(A, B, census or Census(), results, DiffOptions(seed=7, **options),
               Console(file=out, width=80), everything=True)
    return out.getvalue()


def test_one_change_of_many_machines_is_told_once() -> None:
    text = page(*(result(f"x86_64/pc-{n}", RENAMED) for n in range(43)))
    assert text.count("piix-reset-control") == 1
    assert "on 43 machines (x86_64/pc-0, x86_64/pc-1, x86_64/pc-10 and 40 more):" in text
    assert "    I/O 0xcf9: renamed: piix3-reset-control -> piix-reset-control" in text
    assert "43 machines: 43 changed" in text and "ERRORS" not in text


def test_names_that_differ_by_a_number_are_one_line() -> None:
    added = [MapChange(Subject.RANGE, Kind.ADDED, f"0x{n}000", "nothing",
                       f"i2c.bus.{n}.pool (i/o, 0x20 bytes)", True, ("memory",)) for n in range(16)]
    text = page(result("arm/x", *added), result("arm/y", *added))
    assert text.count("i2c.bus") == 1 and "(16 alike)" in text


def test_a_visible_change_is_an_error_on_a_versioned_type_only() -> None:
    plain, versioned = result("x86_64/pc", RESIZED), result("x86_64/pc-7.2", RESIZED,
                                                            versioned=True)
    assert (plain.status, versioned.status) == (Status.CHANGED, Status.BROKEN)
    assert not plain.errors and versioned.errors == (RESIZED,)
    assert result("x86_64/pc-7.2", RENAMED, versioned=True).status == Status.CHANGED
    text = page(plain, versioned)
    errors, rest = text.split("Maps: what a guest can see")
    assert "ERRORS" in errors and "x86_64/pc-7.2" in errors and "x86_64/pc:" in rest
    assert "1 broken (a versioned machine type must keep its map)" in rest


def test_everything_is_on_the_page() -> None:
    outcomes = Outcomes(200, 3, (PL011, replace(PL011, what="death", before="goes on",
                                                after="crash:signal:SIGSEGV")), "", ("a note",))
    text = page(
        result("arm/virt", contracts=(HPET,), outcomes=outcomes, notes=("started [bold]",)),
        MachineDiff("arm/none", False, Status.NOT_STARTED, "old: arm/none: no"),
        MachineDiff("arm/gone", True, Status.BROKEN, "does not start any more: new: [x]"),
        MachineDiff("arm/new", False, Status.CHANGED, "starts now; before, old: no"),
        MachineDiff("arm/bad", False, Status.ERROR, "QEMU died"),
        census=Census(gone=(Machine("arm", "akita", "d"), Machine("aarch64", "akita", "d"),
                            Machine("arm", "virt-2.6", "d")),
                      renamed=((Machine("hppa", "hppa", "d"), Machine("hppa", "B160L", "d")),),
                      targets_gone=("cris",),
                      remarks=((("arm/virt",), "virt is another"), (("x/y",), "not told"))),
    )
    for told in (
        "old (QEMU 7.2.22) -> new (QEMU 10.0.2)", "targets gone: cris",
        "machines gone: 2 (arm|aarch64/akita)", "versioned machine types gone: 1",
        "machine renamed: hppa/hppa -> hppa/B160L", "virt is another",
        "  hpet: valid sizes of reads and writes: 4..4 -> 4..8: on arm/virt",
        "  pl011 (device): read, other calls into the device: on arm/virt",
        "    first: readb @0x9000ffc: read 1 -> read 4",
        "readb @0x9000ffc: pl011: read ends QEMU: goes on -> crash:signal:SIGSEGV",
        "does not start any more: new: [x]", "starts now; before, old: no", "QEMU died", "a note",
        "started [bold]", "3 differ between two runs of one build",
    ):
        assert told in text, (told, text)
    assert "not told" not in text


def test_json_has_all_and_marks_errors() -> None:
    results = [result("x86_64/pc-7.2", RESIZED, RENAMED, versioned=True, contracts=(HPET,),
                      outcomes=Outcomes(10, 1, (PL011,)))]
    told = json.loads(json.dumps(document(A, B, Census(), results, DiffOptions(seed=7))))
    assert told["schema"] == 1 and told["from"]["build"] == "old" and told["seed"] == 7
    first = told["results"][0]
    assert [change["error"] for change in first["map"]] == [True, False]
    assert first["contracts"][0]["after"] == "4..8"
    assert first["outcomes"]["changes"][0]["before"] == "read 1"
    assert told["summary"]["broken"] == told["summary"]["errors"] == 1


def test_junit(tmp_path: Path) -> None:
    pytest.importorskip("junitparser")
    write_diff_junit(tmp_path / "d.xml", A, B, [
        result("x86_64/pc-7.2", RESIZED, versioned=True), result("x86_64/q35", RENAMED),
        MachineDiff("arm/none", False, Status.NOT_STARTED, "no\x00"),
        MachineDiff("arm/bad", False, Status.ERROR, "died"),
    ])
    cases = ET.parse(tmp_path / "d.xml").getroot().findall(".//testcase")
    assert [[each.tag for each in case if each.tag != "system-out"] for case in cases] == [
        ["failure"], [], ["skipped"], ["error"]]
    with pytest.raises(UsageError, match="cannot be written"):
        write_diff_junit(tmp_path / "no" / "d.xml", A, B, [])


def test_markdown_is_appended_fenced_and_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert append_diff("x", A, B, []) is False
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    results = [result("x86_64/pc-7.2", RESIZED, versioned=True)]
    for _ in range(2):
        assert append_diff("a ``` b\x1b[31m <b>", A, B, results)
    text = (tmp_path / "summary.md").read_text()
    assert text.count("### qemuglue diff: 1 versioned machine type broken") == 2
    assert "````````text" not in text and "``````text\na ``` b?[31m <b>\n``````" in text
    short = markdown("ä" * 5000, A, B, [], max_bytes=1000)
    assert len(short.encode()) <= 1000 and "--json has all" in short and "no versioned" in short
    assert markdown("x", A, B, [], max_bytes=10) == ""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(UsageError, match="cannot be written"):
        append_diff("x", A, B, [])


def test_a_line_a_machine() -> None:
    assert line(result("x86_64/q35")).plain == "same        x86_64/q35: the same (1 s)"
    assert "1 change of the map, 1 of contracts" in line(
        result("x86_64/q35", RENAMED, contracts=(HPET,))).plain


# Section: which machines


def lists(monkeypatch: pytest.MonkeyPatch, old: Sequence[Machine], new: Sequence[Machine]) -> None:
    def told(build: Build, target: str) -> list[Machine]:
        return [m for m in (old if build is A else new) if m.target == target]

    monkeypatch.setattr(diffing, "machine_list", told)
    monkeypatch.setattr(diff, "find_build", {"old": A, "new": B}.__getitem__)


def test_census(monkeypatch: pytest.MonkeyPatch) -> None:
    lists(monkeypatch,
          [Machine("x86_64", "pc", "PC", alias_of="pc-7.2"), Machine("x86_64", "gone", "G"),
           Machine("x86_64", "was", "one board"), Machine("x86_64", "pc-7.2", "PC")],
          [Machine("x86_64", "pc", "PC", alias_of="pc-10.0"), Machine("x86_64", "is", "one board"),
           Machine("x86_64", "new", "N"), Machine("x86_64", "pc-10.0", "PC")])
    census = take_census(A, B)
    assert [m.name for m in census.common] == ["pc"]
    assert [m.name for m in census.gone] == ["gone", "pc-7.2"]
    assert [m.name for m in census.new] == ["new", "pc-10.0"]
    assert [(a.name, b.name) for a, b in census.renamed] == [("was", "is")]
    assert (census.targets_gone, census.targets_new) == (("cris",), ("hexagon",))
    assert census.remarks == (
        (("x86_64/pc",), "pc is pc-7.2 before and pc-10.0 after (x86_64/pc)"),)


BOTH = [Machine("x86_64", "q35", "Q"), Machine("x86_64", "pc-7.2", "P"),
        Machine("x86_64", "pc", "P", alias_of="pc-7.2")]


@pytest.mark.parametrize(
    ("words", "compared"),
    [
        ("--all", ["q35", "pc"]), ("--versioned", ["pc-7.2"]),
        ("--all --versioned", ["q35", "pc-7.2", "pc"]), ("--all --target x86_64", ["q35", "pc"]),
        ("x86_64/pc-7.2", ["pc-7.2"]), ("", ["q35", "pc"]),
    ],
)
def test_what_is_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str,
    compared: list[str],
) -> None:
    asked: list[str] = []

    def jobs(machines: Sequence[Machine], *_: Any, **__: Any) -> Iterator[Done[Any, Any]]:
        for machine in machines:
            asked.append(machine.name)
            yield Done(machine, result(machine.full_name), "", 1.0)

    lists(monkeypatch, BOTH, BOTH)
    monkeypatch.setattr(diff, "run_jobs", jobs)
    assert main(["diff", "--from", "old", "--to", "new", *words.split()]) == 0
    assert sorted(asked) == sorted(compared)
    assert f"{len(compared)} the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("failure", "status", "words", "code"),
    [
        ("", Status.BROKEN, "--all", 1), ("", Status.NOT_STARTED, "--all", 0),
        ("", Status.NOT_STARTED, "x86_64/q35", 2), ("killed", "", "--all", 2),
        ("", Status.CHANGED, "x86_64/q35", 0),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: str,
    status: str, words: str, code: int,
) -> None:
    def jobs(machines: Sequence[Machine], *_: Any, **__: Any) -> Iterator[Done[Any, Any]]:
        for machine in machines:
            found = MachineDiff(machine.full_name, False, status, "why")
            yield Done(machine, None if failure else found, failure, 1.0)

    lists(monkeypatch, BOTH, BOTH)
    monkeypatch.setattr(diff, "run_jobs", jobs)
    assert main(["diff", "--from", "old", "--to", "new", "--json", words]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["results"][0]["status"] == (status or "error")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "old"], "--to"), (["--from", "old", "--to", "new", "--ops", "-1"], "--ops -1"),
        (["--from", "old", "--to", "new", "--jobs", "0"], "--jobs 0"),
        (["--from", "old", "--to", "new", "--all", "x86_64/q35"], "give one of them"),
        (["--from", "old", "--to", "new", "--target", "x86_64"], "--target goes with"),
        (["--from", "old", "--to", "new", "x86_64/nope"], "neither in old nor in new"),
        (["--from", "old", "--to", "new", "x86_64/akita"], "is only in old: it is gone from new"),
        (["--from", "old", "--to", "new", "nonsense"], "TARGET/NAME"),
        (["--from", "old", "--to", "new", "sparc/SS-5"], "no qemu-system-sparc"),
    ],
)
def test_usage_errors_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str],
    said: str,
) -> None:
    lists(monkeypatch, [*BOTH, Machine("x86_64", "akita", "A")], BOTH)
    assert main(["diff", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told


# Section: small parts


def test_a_firmware_file_explains_a_size(tmp_path: Path) -> None:
    builds = []
    for name, size in (("a", 60_000), ("b", 70_000)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vga.bin").write_bytes(bytes(size))
        (folder / "same.bin").write_bytes(bytes(4096))
        builds.append(replace(A, name=name, data_dirs=(folder, tmp_path / "missing")))
    told = firmware_behind(builds[0], builds[1], (0x10000, 0x20000))
    assert told == "vga.bin of the build's package: 60000 -> 70000 bytes"
    assert firmware_behind(builds[0], builds[1], (60_000, 70_000)) == told
    assert firmware_behind(builds[0], builds[1], (0x10000, 0x40000)) == ""
    assert firmware_behind(builds[0], builds[1], (0x1000, 0x1000)) == ""


def test_calls_in_words_and_compared() -> None:
    assert str(Call("write", -4, 2, 0x10)) == "write 2 at -0x4 = 0x10"
    assert Call("read", 0, 4, region="a") == Call("read", 0, 4, region="b")
    refused = Call("refused (unaligned) read", 0, 2)
    assert Outcome(calls=(Call("read", 0, 1), refused)).refused == (refused,)


def test_deaths_are_alike_by_what_they_are() -> None:
    death = replace(PL011, what="death", before="goes on", after="crash:a")
    assert death.alike != replace(death, after="crash:b").alike
    assert PL011.alike == replace(PL011, operation="readl @0x9000000", before="x").alike
    assert PL011.alike != replace(PL011, operation="writel @0x9000000 0x1").alike
