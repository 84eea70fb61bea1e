"""A campaign's inside with something planted, until it is found."""

from __future__ import annotations

from pathlib import Path
from random import Random

from qemuglue.campaign.explorer import Explorer
from qemuglue.campaign.settings import Settings, scene
from qemuglue.program.generate import Generator
from qemuglue.qemu.builds import Build
from qemuglue.witness.session import Knowledge

DEVICES = ("edu", "pci-testdev", "virtio-rng-pci")


def run_until_found(
    build: Build, knowledge: Knowledge, folder: Path, *, defect: str, programs: int
) -> Explorer:
    """Programs of 64 operations, drawn by seed 1, until the first finding; the explorer, closed."""
    settings = Settings(devices=DEVICES, build=build.name, defect=defect)
    explorer = Explorer(scene(settings, knowledge), folder, seed=1, defect=defect)
    try:
        generator = Generator(explorer.start())
        rng = Random(1)
        for _ in range(programs):
            explorer.execute(settings.program(generator.operations(rng, settings.operations)))
            if explorer.progress.findings:
                break
    finally:
        explorer.close()
    return explorer
