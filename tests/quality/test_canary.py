"""The canary target is heard, and is silent without its defect (``test_defects`` has every one)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from qemuglue.campaign.feedback import has_atheris
from qemuglue.campaign.findings import read_finding
from qemuglue.campaign.settings import Settings
from qemuglue.campaign.status import StatusWriter
from qemuglue.campaign.worker import Work
from qemuglue.program.generate import Generator
from qemuglue.qemu.builds import Build

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("engine", [
    "random",
    pytest.param("atheris", marks=pytest.mark.skipif(
        not has_atheris(), reason="Atheris is not installed")),
])
def test_the_canary_target_is_heard(build: Build, tmp_path: Path, engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qemuglue.cli.main", "fuzz", "canary", "--engine", engine,
         "--build", build.name, "--seconds", "50", "--until-found", "--out", str(tmp_path),
         "--json"],
        capture_output=True, text=True, timeout=110, check=False,
    )
    assert done.returncode == 1, done.stderr
    made = json.loads(done.stdout)
    assert made["seconds"] < 45, "it ended when it had found something"
    assert all(each["planted"] for each in made["findings"])
    assert read_finding(Path(made["findings"][0]["path"])).kind == "divergence"


def test_without_the_defect_the_same_programs_find_nothing(
    newest_build: Build, tmp_path: Path
) -> None:
    settings = Settings(
        devices=("edu", "pci-testdev"), build=newest_build.name, programs=30, seconds=60.0,
        out=str(tmp_path), seed=5,
    )
    work = Work(settings, StatusWriter(-1))
    try:
        generator, rng = Generator(work.start()), Random(settings.seed)
        while not work.over:
            work.perform(settings.program(generator.operations(rng, settings.operations)))
    finally:
        work.close()
    assert work.last is None and not work.signatures
