"""Starting, watching and ending real QEMU; and that none survives its harness."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qemuglue.errors import LaunchError, QemuDied, QemuHang, ResourceError
from qemuglue.qemu import process as module
from qemuglue.qemu import qtest
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import ExitKind, QemuProcess
from qemuglue.qemu.qtest import QtestDied, QtestHang

pytestmark = pytest.mark.qemu


def q35(build: Build, **fields: object) -> QemuConfig:
    return QemuConfig(**{"build": build, "target": "x86_64", "machine": "q35", "ram": "64M",  # type: ignore[arg-type]
                         "ram_id": "pc.ram", **fields})


def is_gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # dead, and only its new parent has not looked yet
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)


def test_up_and_gone(build: Build) -> None:
    with QemuProcess(q35(build)) as process:
        pid = process.pid
        assert process.endianness == "little"
        assert process.monitor.execute("query-status")["status"] in ("prelaunch", "paused")
        assert os.getsid(pid) == os.getpgid(pid) == pid != os.getsid(0)
        assert process.poll()
        assert process.exit_status().kind is ExitKind.RUNNING
        process.qtest.writel(0x1000, 0x11223344)
        assert process.qtest.readl(0x1000) == 0x11223344
        assert process.ram is not None
        assert process.ram.view[0x1000:0x1004].tobytes() == b"\x44\x33\x22\x11"
        # readable for people and findings: QEMU's own words, no wrapper of ours
        assert any("qemu-system-x86_64" in word for word in process.command)
        assert "setpriv" not in process.command[0]
    assert is_gone(pid, 0)
    status = process.exit_status()
    assert status.expected and not status.polite and status.code == 0
    process.close()
    process.kill()
    assert process.stderr_tail() is not None


@pytest.mark.parametrize(("target", "machine"), [
    ("x86_64", "pc"), ("x86_64", "microvm"), ("aarch64", "virt"), ("aarch64", "raspi3b"),
    ("aarch64", "xlnx-zcu102"), ("arm", "versatilepb"), ("x86_64", "none"),
])
def test_machines_start_with_and_without_default_devices(
    build: Build, target: str, machine: str,
) -> None:
    for nodefaults in (True, False):
        config = QemuConfig(build=build, target=target, machine=machine, nodefaults=nodefaults)
        with QemuProcess(config) as process:
            assert process.endianness == "little"


@pytest.mark.parametrize(("fields", "message"), [
    ({"machine": "nonesuch"}, "unsupported machine type"),
    ({"args": ("-device", "nonesuch")}, "nonesuch"),
    ({"args": ("-frobnicate",)}, "frobnicate"),
    ({"args": ("-bios", "/nonexistent.bin")}, "nonexistent.bin"),
])
def test_launch_failure_has_qemus_own_message(
    build: Build, fields: dict[str, object], message: str,
) -> None:
    process = QemuProcess(q35(build, **fields))
    with pytest.raises(LaunchError, match=message) as caught:
        process.launch()
    assert "x86_64/" in str(caught.value) and "\n" not in str(caught.value)
    assert message in caught.value.stderr
    assert caught.value.exit_code == 1
    assert "-machine" in caught.value.command
    process.close()


def test_a_binary_that_cannot_run(tmp_path: Path) -> None:
    binary = tmp_path / "qemu-system-x86_64"
    build = Build(name="broken", version="10.0.0", root=None, binaries=(("x86_64", binary),))
    config = QemuConfig(build=build, target="x86_64", machine="q35", transcript=False)
    with pytest.raises(LaunchError):
        QemuProcess(config).launch()
    binary.write_text("#!/bin/sh\nsleep 60\n")
    binary.chmod(0o755)
    start = time.monotonic()
    with pytest.raises(LaunchError, match="did not come up within"):
        QemuProcess(config, launch_timeout_s=0.3).launch()
    assert time.monotonic() - start < 5


def test_kill_9_in_the_middle_of_a_batch(build: Build) -> None:
    with QemuProcess(q35(build)) as process:
        count = 300_000
        request = qtest.readl(0x1000) * count
        killer = subprocess.Popen(
            ["sh", "-c", f"sleep 0.1; kill -9 {process.pid}"], stdin=subprocess.DEVNULL)
        with pytest.raises(QtestDied) as caught:
            for _ in range(100):
                process.channel.exchange(request, count, timeout_s=30)
        killer.wait()
        assert caught.value.signal == signal.SIGKILL
        assert 0 <= caught.value.replies < count
        status = process.exit_status()
        assert (status.kind, status.signal, status.expected) == (
            ExitKind.SIGNALED, signal.SIGKILL, False)
        with pytest.raises(QemuDied):
            process.monitor.round_trip()
        assert not process.poll()


def test_a_stopped_qemu_is_a_hang(build: Build) -> None:
    with QemuProcess(q35(build)) as process:
        os.kill(process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(QtestHang) as caught:
            process.channel.exchange(qtest.readl(0) * 10, 10, timeout_s=0.3)
        assert caught.value.partial == b""
        with pytest.raises(QemuHang):
            process.monitor.round_trip(timeout_s=0.3)
        assert time.monotonic() - start < 3
        pid = process.pid
    assert is_gone(pid, 0)
    assert process.exit_status().expected


def test_guest_power_off_is_not_a_crash(build: Build) -> None:
    with QemuProcess(q35(build)) as process:
        client = process.qtest
        # ICH9 LPC (00:1f.0): power management base 0x600, enabled; then S5 in PM1 control.
        client.outl(0xCF8, 0x8000F840)
        client.outl(0xCFC, 0x601)
        client.outl(0xCF8, 0x8000F844)
        client.outb(0xCFC, 0x80)
        client.outw(0x604, 0x2000)
        with pytest.raises(QtestDied):
            for _ in range(1000):
                client.readl(0)
                time.sleep(0.001)
        status = process.exit_status()
        assert status.polite and not status.expected, status
        assert status.shutdown_reason == "guest-shutdown"


def test_quit_and_crash_and_exit_are_told_apart(newest_build: Build) -> None:
    def ended(end: Callable[[QemuProcess], object]) -> object:
        with QemuProcess(q35(newest_build, args=("-device", "isa-debug-exit"))) as process:
            with pytest.raises(QemuDied):
                end(process)
                for _ in range(1000):
                    process.qtest.readl(0)
                    time.sleep(0.001)
            status = process.exit_status()
            assert not status.polite
            return (status.kind, status.code, status.signal, status.shutdown_reason)

    assert ended(lambda p: p.monitor.execute("quit")) == (
        ExitKind.EXITED, 0, None, "host-qmp-quit")
    assert ended(lambda p: os.kill(p.pid, signal.SIGABRT)) == (
        ExitKind.SIGNALED, None, signal.SIGABRT, None)
    assert ended(lambda p: os.kill(p.pid, signal.SIGSEGV))[2] == signal.SIGSEGV  # type: ignore[index]
    # isa-debug-exit leaves with an odd code of the guest's choice
    assert ended(lambda p: p.qtest.outb(0x501, 0x10))[1] == 0x21  # type: ignore[index]


def test_reset_is_an_event_and_no_end(build: Build) -> None:
    with QemuProcess(q35(build)) as process:
        process.qtest.outb(0xCF9, 0x06)
        process.monitor.round_trip()
        assert "RESET" in [event.name for event in process.monitor.events()]
        assert process.poll()


def test_output_of_qemu_is_kept(newest_build: Build) -> None:
    config = q35(newest_build, args=("-device", "isa-debugcon,chardev=out,iobase=0x402",
                                     "-chardev", "file,id=out,path=/dev/stderr"))
    with QemuProcess(config) as process:
        process.channel.exchange(b"".join(qtest.outb(0x402, c) for c in b"last words\n"), 11)
        assert process.stderr_tail().endswith("last words\n")
        process.kill()
    assert process.stderr_tail().endswith("last words\n")


def test_a_log_flood_ends_qemu_not_the_host(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT_BYTES", 0)
    process = QemuProcess(q35(newest_build, ram=None), file_limit_bytes=2 << 20)
    with process:
        request = qtest.readl(0xFED000F0) * 10_000
        with pytest.raises(ResourceError):
            for _ in range(100):
                process.channel.exchange(request, 10_000)
        assert process.exit_status().signal == signal.SIGXFSZ
        assert process.transcript.size() <= 2 << 20


def test_the_file_limit_moves_with_the_reader(newest_build: Build) -> None:
    process = QemuProcess(q35(newest_build, ram=None), file_limit_bytes=16 << 20)
    with process:
        request = qtest.readl(0xFED000F0) * 10_000
        for _ in range(25):
            process.channel.exchange(request, 10_000)
            assert process.transcript.read_new().count(b"name 'hpet'") >= 10_000
        assert process.transcript.size() > 20 << 20


# --- nothing survives -----------------------------------------------------------------

_HARNESS = """
import os, signal, sys, time
from qemuglue.qemu import process as module
from qemuglue.qemu.builds import find_build
from qemuglue.qemu.config import QemuConfig, VmMode
if sys.argv[2] == "without-setpriv":
    module._guard_command = lambda: None
process = module.QemuProcess(QemuConfig(
    build=find_build(sys.argv[1]), target="x86_64", machine="q35", mode=VmMode.PARKED))
process.launch()
print(process.pid, flush=True)
if sys.argv[2] == "forget":
    import gc
    pid = process.pid
    del process
    gc.collect()
    assert not os.path.exists(f"/proc/{pid}"), "forgotten, but not ended"
elif sys.argv[2] == "raise":
    raise SystemExit(3)
elif sys.argv[2] == "fork":
    if os.fork() == 0:
        del process
        sys.exit(0)
    os.wait()
    assert process.poll(), "the child's end must not touch it"
    process.qtest.readl(0)
else:
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["kill-9", "without-setpriv", "forget", "raise", "fork"])
def test_no_qemu_outlives_its_harness(newest_build: Build, how: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _HARNESS, newest_build.name, how],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as harness:
        assert harness.stdout is not None and harness.stderr is not None
        pid = int(harness.stdout.readline())
        if how in ("kill-9", "without-setpriv"):
            assert not is_gone(pid, 0.05)
            harness.send_signal(signal.SIGKILL)
        said = harness.stderr.read().decode()
        code = harness.wait(30)
        assert is_gone(pid), f"QEMU {pid} is still there"
    assert code == {"raise": 3, "forget": 0, "fork": 0}.get(how, -signal.SIGKILL), said
    if how == "fork":  # the copy's own event loop may complain, the process may not
        assert "ChildProcessError" not in said
    else:
        assert said == "", "the end of the harness is silent"
