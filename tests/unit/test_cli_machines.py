"""What ``qemuglue machines`` prints; starting them is tested on real QEMU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qemuglue.cli import machines as cli
from qemuglue.cli.main import main
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import Machine, Start

BUILD = Build("fake", "11.1.3", None, (("arm", Path("/bin/true")),))
MACHINES = [
    Machine("arm", "sx1", "Siemens SX1"), Machine("arm", "virt", "Virtual", alias_of="virt-11.1"),
    Machine("arm", "virt-11.1", "Virtual"), Machine("arm", "none", "empty machine"),
]
STARTS = {
    "sx1": Start(True, started_with="a blank 4 KiB -kernel"), "virt": Start(True),
    "none": Start(False, "no reason at all"),
}


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "builds_of", lambda args: [BUILD])
    monkeypatch.setattr(cli, "machine_list", lambda build, target: MACHINES)
    monkeypatch.setattr(cli, "try_start", lambda build, target, name: STARTS[name])


def test_how_each_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machines", "--start"]) == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "arm/sx1   starts with a blank 4 KiB -kernel: Siemens SX1",
        "arm/virt  starts: Virtual (alias of virt-11.1)",
        "arm/none  does not start: no reason at all",
    ]
    assert told.err == ("fake, QEMU 11.1.3: 3 machines: 1 start with -display none -S, 1 more "
                        "with a generated image, 1 does not start\n")


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machines", "--start", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(each["starts"], each["started_with"], each["reason"])
            for each in document["machines"]] == [
        (True, "a blank 4 KiB -kernel", None), (True, None, None),
        (False, None, "no reason at all"),
    ]


def test_without_starting_nothing_is_said_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machines", "--versioned"]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 4 and "start" not in told.out + told.err
