"""`qemuglue map` on real machines: its files, and its explanations against what QEMU did."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from qemuglue.campaign.contracting import probe_machine
from qemuglue.cli.main import main
from qemuglue.errors import QemuFailure
from qemuglue.memory import RegionKind
from qemuglue.memory.rules import rules_for
from qemuglue.program.operation import Operation
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.events import Kind
from qemuglue.report.dispatch_text import Contracts, walk
from qemuglue.witness.face import encode
from qemuglue.witness.oddities import avoided
from qemuglue.witness.session import Session

pytestmark = pytest.mark.qemu

ACCESSES = 250
_VERBS = {1: "readb", 2: "readw", 4: "readl", 8: "readq"}


def test_the_files_have_every_range(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg, page = tmp_path / "map.svg", tmp_path / "map.html"
    assert main(["map", "x86_64/q35", "--build", build.name, "--json", "--svg", str(svg),
                 "--html", str(page), "--address", "0xfed00004", "--address", "I/O:0x70"]) == 0
    out = capsys.readouterr()
    assert [line.split(" (")[0] for line in out.err.splitlines()] == [
        "asking the devices of a second QEMU what accesses they take", f"wrote {svg}",
        f"wrote {page}"]
    document = json.loads(out.out)
    hpet, rtc = document["addresses"]
    assert hpet["text"] == "0xfed00004 -> hpet + 4, 4-byte pieces"
    eight = next(a for a in hpet["accesses"] if a["size"] == 8 and not a["write"])
    assert eight["text"] == "4+4"
    assert rtc["spaces"] == ["I/O"] and {a["size"] for a in rtc["accesses"]} == {1, 2, 4}
    # Spaces that share a view are drawn once.
    views = {json.dumps(space["ranges"]): space["ranges"] for space in document["spaces"]}
    wanted = {(each["start"], each["last"]) for ranges in views.values() for each in ranges}
    drawn = ET.parse(svg).getroot()
    boxes = {(e.get("data-a"), e.get("data-l")) for e in drawn.iter() if e.get("data-d") == "0"}
    assert boxes == wanted and len(wanted) > 50
    html = page.read_text(encoding="utf-8")
    assert set(re.findall(r'data-a="(\w+)" data-l="(\w+)" data-d="0"', html)) == wanted
    assert html.count("<script") == 2 and "takes 4" in html
    ranges = next(s["ranges"] for s in document["spaces"] if s["name"] == "memory")
    contract = next(each["contract"] for each in ranges if each["region"] == "hpet")
    newer = build.version_tuple >= (10,)
    assert (contract["reads"]["valid_min"], contract["reads"]["valid_max"]) == (
        (4, 8) if newer else (4, 4))


def test_a_file_that_cannot_be_written_is_one_sentence(
    newest_build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["map", "x86_64/q35", "--build", newest_build.name, "--no-contracts",
                 "--svg", str(tmp_path / "no" / "map.svg")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("qemuglue map: cannot write ") and said.count("\n") == 1


def test_a_machine_that_cannot_be_asked_is_drawn(
    newest_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dies(*args: object) -> None:
        raise QemuFailure("QEMU ended by itself")

    monkeypatch.setattr("qemuglue.campaign.contracting.probe_machine", dies)
    page = tmp_path / "map.html"
    assert main(["map", "x86_64/q35", "--build", newest_build.name, "--html", str(page)]) == 0
    assert "could not be asked for their contracts: QEMU ended by itself" in capsys.readouterr().err
    assert "hpet" in page.read_text(encoding="utf-8")


def test_a_space_of_its_own(newest_build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["map", "x86_64/q35", "--build", newest_build.name, "--address"]
    assert main([*words, "rtc-index"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("0x70 -> rtc-index + 0, a device, its pieces not probed\n")
    assert "not probed (--contracts asks the device)" in out and "beneath   io + 0x70" in out
    assert main([*words, "0x70,1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("0x70 -> pc.ram + 0x70, memory\n")
    assert "elsewhere I/O: 0x70 -> rtc-index + 0" in out
    assert main([*words, "nix:0x70"]) == 2 and "there are" in capsys.readouterr().err


def _asked(session: Session, rng: Random, machine: str) -> Iterator[tuple[int, int]]:
    """Addresses at and around what is mapped, with sizes; nothing that changes the machine."""
    skipped = avoided(session.config.build.version_tuple, machine)
    sections = [s for s in session.mirror.memory.view.sections
                if skipped.why(s.region.name) is None]
    for _ in range(ACCESSES):
        section = rng.choice(sections)
        near = rng.choice((0, section.size // 2, section.size))
        address = (section.start + near + rng.randrange(-9, 9)) % (1 << 64)
        yield address, rng.choice((1, 2, 4, 8))


def test_qemu_does_what_is_explained(build: Build) -> None:
    check_explanations(build, "x86_64/q35")


def test_another_qemu_does_what_is_explained(newest_build: Build) -> None:
    check_explanations(newest_build, "arm/versatilepb")


def check_explanations(build: Build, machine: str) -> None:
    """The transcript has the very calls and refusals, in order; it is no text of ours."""
    contracts = Contracts(probe_machine(build, machine))
    target, name = machine.split("/")
    rng, compared = Random(machine), 0
    with Session(QemuConfig(build=build, target=target, machine=name)) as session:
        space = session.mirror.memory
        space.rules = rules_for(build.version_tuple)
        for address, size in _asked(session, rng, machine):
            steps = walk(space, address, size, False, contracts)
            session.exchange(encode(Operation(_VERBS[size], None, size), address), 1)
            seen = [
                (event.kind is Kind.INVALID_READ, event.name or "", event.size)
                for event in session.events()
                if event.kind in (Kind.READ, Kind.INVALID_READ)
            ]
            if any(step.what == "unknown" for step in steps):
                continue
            said = []
            for step in steps:
                region = "" if step.region is None else step.region.name
                if step.what == "refused":
                    said.append((True, region, step.size))
                said += [(False, region, size) for size in step.pieces]
            assert seen == said, f"{address:#x}, {size} bytes: {steps}"
            compared += any(step.region is not None and step.region.kind is RegionKind.IO
                            for step in steps)
    assert compared > ACCESSES / 5
