"""Ways back into a machine's first state, and programs that are the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qemuglue.campaign import clean, restoring
from qemuglue.campaign.clean import Cleanness, cleanness
from qemuglue.campaign.repeating import repeat
from qemuglue.campaign.restoring import Method
from qemuglue.campaign.settings import Settings, scene
from qemuglue.cli.main import main
from qemuglue.program.text import parse
from qemuglue.qemu.builds import Build
from qemuglue.witness.judge import Scene, resolve

pytestmark = pytest.mark.qemu

PROGRAM = """\
# qemuglue program 1
machine x86_64/q35
setup pci
writel @0x100000 0x11223344
readl hpet+0xf0
read pc.ram+0x1ff0 0x60
outl 0xcf8 0x80000800
inl 0xcfc
reset
inb 0x61
"""

#: The seconds of the clock on the wall.
CLOCK = PROGRAM + "outb 0x70 0x0\ninb 0x71\n"

TIMES = 6


def stage(build: Build, *args: str) -> Scene:
    return scene(Settings(
        build=build.name, machine="x86_64/q35", qemu_args=args, setup="pci"))


def look(build: Build, method: Method, *args: str) -> Cleanness:
    return cleanness(stage(build, *args), methods=(method,), rounds=1, sleep=lambda s: None)


def test_a_snapshot_of_a_pc_is_clean(newest_build: Build) -> None:
    found = look(newest_build, Method.SNAPSHOT)
    verdict = found.verdicts[Method.SNAPSHOT]
    assert verdict.clean, verdict.why
    assert found.registers > 500 and found.ranges > 50 and found.pages > 10


def test_edu_is_lost_in_a_snapshot(newest_build: Build) -> None:
    """It saves nothing, not even where it is mapped."""
    verdict = look(newest_build, Method.SNAPSHOT, "-device", "edu").verdicts[Method.SNAPSHOT]
    assert not verdict.clean and any("edu-mmio" in why for why in verdict.why)


def test_a_reset_is_not_clean(newest_build: Build) -> None:
    verdict = look(newest_build, Method.RESET).verdicts[Method.RESET]
    assert not verdict.clean and verdict.rounds == 1
    assert any(why.startswith("RAM: pc.ram") for why in verdict.why)


def test_a_restore_that_does_nothing_is_seen(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted defect."""
    whole = restoring._snapshot

    def saves_only(monitor: Any, command: str) -> None:
        if command == "savevm":
            whole(monitor, command)

    monkeypatch.setattr(restoring, "_snapshot", saves_only)
    verdict = look(newest_build, Method.SNAPSHOT).verdicts[Method.SNAPSHOT]
    assert not verdict.clean and verdict.why


def test_what_cannot_be_saved_is_told(newest_build: Build) -> None:
    """An NVMe disk says of itself that it cannot be migrated."""
    found = look(newest_build, Method.SNAPSHOT, "-device", "nvme,serial=a,drive=d",
                 "-blockdev", "null-co,node-name=d,read-zeroes=on")
    assert "QEMU refuses savevm" in found.verdicts[Method.SNAPSHOT].why[0]


def run(build: Build, text: str, method: Method) -> Any:
    program = parse(text)
    made = stage(build)
    with made.session() as session:
        steps = resolve(session.layout(), program.operations)
        setup = list(session.setup_steps)
    return repeat(made.config, setup, steps, TIMES, method=method)


def test_the_same_every_time(build: Build) -> None:
    found = run(build, PROGRAM, Method.FRESH)
    assert (found.same, found.total) == (TIMES, TIMES), found.differences
    assert (found.fresh, found.restored) == (TIMES, 0)
    assert len(found.first) == 7 and any("hpet" in line for line in found.first[1].words())
    again = run(build, PROGRAM, Method.SNAPSHOT)
    assert (again.same, again.fresh, again.restored) == (TIMES, 1, TIMES - 1), again.differences
    assert again.first == found.first


def test_a_reset_in_a_reset_machine_differs(newest_build: Build) -> None:
    """RAM survives it: the first time reads zeros, the others what the first one wrote."""
    text = PROGRAM.replace("writel @0x100000 0x11223344",
                           "read @0x100000 0x4\nwritel @0x100000 0x11223344")
    found = run(newest_build, text, Method.RESET)
    assert found.same == 1 and 0 in found.differences


def test_a_clock_is_named(
    newest_build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "clock.qg"
    file.write_text(CLOCK, encoding="utf-8")
    words = ["replay", str(file), "--build", newest_build.name, "--repeat"]
    assert main([*words, "4", "--qemu-args", "-rtc base=2026-01-01,clock=vm"]) == 0
    assert "4 of 4 the same" in capsys.readouterr().out
    for _ in range(20):  # a second goes by, sooner or later
        if main([*words, "10"]) == 1:
            break
    told = capsys.readouterr().out
    assert "1 operation differs:" in told and "inb 0x71 of rtc at 0x71" in told


def test_an_unclean_state_is_refused(
    newest_build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clean, "APART_S", 0.0)
    file = tmp_path / "program.qg"
    file.write_text(PROGRAM, encoding="utf-8")
    words = ["replay", str(file), "--build", newest_build.name, "--repeat", "2"]
    assert main([*words, "--state", "reset"]) == 2
    assert "is not as new after a reset (RAM: pc.ram" in capsys.readouterr().err


def test_the_verb(
    newest_build: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clean, "APART_S", 0.0)
    words = ["clean", "x86_64/q35", "--build", newest_build.name, "--rounds", "1", "--state"]
    assert main([*words, "fresh", "--seed", "1"]) == 0
    told = capsys.readouterr()
    assert "seed 1" in told.err and "clean, 1 of 1 times" in told.out
