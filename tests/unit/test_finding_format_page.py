"""The page that documents the finding folder shows a finding that can be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import qemuglue.campaign
from qemuglue.campaign.findings import SCHEMA, read_finding

PAGE = Path(next(iter(qemuglue.campaign.__path__))) / "FINDING.md"

PROGRAM = """\
# qemuglue program 1
machine x86_64/q35
args -device edu
setup pci
readl hpet+0x2
"""


def test_the_example_of_the_page_is_a_finding(tmp_path: Path) -> None:
    example = re.search(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    folder = tmp_path / "divergence-0"
    folder.mkdir()
    (folder / "finding.json").write_text(example[1], encoding="utf-8")
    (folder / "program.qg").write_text(PROGRAM, encoding="utf-8")
    finding = read_finding(folder)
    assert json.loads(example[1])["schema"] == SCHEMA
    assert finding.signature == "divergence:access:device:readl"
    assert finding.confirmed == (3, 3) and not finding.flaky
    assert finding.program.setup == "pci"
    assert finding.details["model_says"] != finding.details["qemu_says"]
