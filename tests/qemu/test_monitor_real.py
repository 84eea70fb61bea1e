"""QMP and HMP of real QEMU."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.guest_ram import default_ram_id
from qemuglue.qemu.monitor import MonitorRefused
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def q35(build: Build) -> Iterator[QemuProcess]:
    config = QemuConfig(build=build, target="x86_64", machine="q35", ram="64M")
    with QemuProcess(config) as process:
        yield process


def test_commands(q35: QemuProcess) -> None:
    version = q35.monitor.execute("query-version")["qemu"]
    assert (version["major"], version["minor"]) == q35.config.build.version_tuple[:2]
    with pytest.raises(MonitorRefused, match="not been found") as caught:
        q35.monitor.execute("no-such-command")
    assert caught.value.error_class == "CommandNotFound"
    tree = q35.monitor.hmp("info mtree")
    assert "pc.ram" in tree and "\r" not in tree
    assert "unknown command" in q35.monitor.hmp("no_such_line")


def test_round_trips_are_quick(q35: QemuProcess) -> None:
    start = time.monotonic()
    for _ in range(100):
        q35.monitor.round_trip()
    assert time.monotonic() - start < 3  # 30 ms on an idle machine


def test_events_in_order(q35: QemuProcess) -> None:
    q35.monitor.events()
    q35.monitor.execute("cont")
    q35.monitor.execute("stop")
    q35.monitor.execute("system_reset")
    q35.monitor.round_trip()
    events = [event.name for event in q35.monitor.events()]
    assert events[:2] == ["RESUME", "STOP"] and "RESET" in events
    assert q35.monitor.events() == []


def test_default_ram_id(q35: QemuProcess) -> None:
    assert default_ram_id(q35.monitor, "q35") == "pc.ram"
    assert default_ram_id(q35.monitor, "microvm") == "microvm.ram"


def test_large_replies(newest_build: Build) -> None:
    devices = [word for i in range(8) for word in
               ("-device", f"pci-bridge,id=b{i},chassis_nr={i + 1}")]
    devices += [word for i in range(8) for j in range(1, 32) for word in
                ("-device", f"e1000,bus=b{i},addr={j:#x}")]
    config = QemuConfig(build=newest_build, target="x86_64", machine="q35", ram="64M",
                        args=tuple(devices))
    with QemuProcess(config) as process:
        text = process.monitor.hmp("info qtree")
        assert len(text) > 200_000  # over every default buffer on the way
        assert text.count("dev: e1000,") == 8 * 31
