"""``qemuglue watch`` beside real firmware."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qemuglue.cli.main import main
from qemuglue.mirror import Mirror
from qemuglue.mirror import model as model_room
from qemuglue.qemu.builds import Build

pytestmark = pytest.mark.qemu

DEVICES = "-vga std -device edu -device pci-bridge,id=b,chassis_nr=3 -device edu,bus=b,addr=1"


def documents(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("machine", ["q35", "pc"])
def test_every_change_that_firmware_makes_is_predicted(
    build: Build, machine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["watch", f"x86_64/{machine}", "--run", "--seconds", "1.5", "--json",
                 "--build", build.name, "--qemu-args", DEVICES])
    first, *seen, last = documents(capsys.readouterr().out)
    assert code == 0 and first["exact"] is True and last["event"] == "end"
    assert seen and all(each["predicted"] and each["exact"] for each in seen), seen
    assert last["changes"] == last["predicted"] == len(seen)
    assert isinstance(last["drawn"], int) and last["drawn"] >= len(seen)
    text = json.dumps(seen)
    assert "pc.ram+0xc0000" in text, "the shadow RAM"
    assert "edu-mmio" in text, "a base address register"


def test_what_is_not_known_is_said(
    build: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that does not know read-only windows learns them; one that cannot learn is
    wrong, and that is exit code 1."""
    monkeypatch.setattr(model_room, "KNOWN_READONLY", {})
    words = ["watch", "x86_64/q35", "--run", "--seconds", "1.5", "--build", build.name]
    assert main(words) == 0
    assert "learnt 1 bit" in capsys.readouterr().out
    monkeypatch.setattr(Mirror, "_learn", lambda *_: None)
    assert main(words) == 1
    text = capsys.readouterr().out
    assert "NOT EXACT" in text and "differs: " in text and ", 0 not exact" not in text


def test_a_machine_that_stands_still_does_not_change(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", "aarch64/virt", "--seconds", "0.3", "--build", build.name]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("aarch64/virt: ") and ", 0 changes of the map" in last


def test_interrupted(build: Build) -> None:
    command = [sys.executable, "-m", "qemuglue.cli.main", "watch", "x86_64/q35", "--run",
               "--build", build.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as watch:
        assert watch.stdout is not None
        watch.stdout.readline()
        children = Path(f"/proc/{watch.pid}/task/{watch.pid}/children").read_text().split()
        time.sleep(0.3)
        os.kill(watch.pid, signal.SIGINT)
        out, _ = watch.communicate(timeout=20)
    assert watch.returncode == 130
    assert out.splitlines()[-1].startswith("interrupted; ")
    assert children and not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.parametrize(("words", "said"), [
    (["x86_64/nothing"], "unsupported machine type"), (["q35"], "write TARGET/NAME"),
    (["x86_64/q35", "--seconds", "0"], "not a number of seconds"),
])
def test_wrong_usage(
    build: Build, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", *words, "--build", build.name]) == 2
    out, error = capsys.readouterr()
    assert not out and said in error and error.count("\n") == 1
