"""Managed builds, for real: they run from their own root and from nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from qemuglue.cli.main import main
from qemuglue.qemu.builds import DESCRIPTION, Build, ask_version
from qemuglue.qemu.builds_install import DEFAULT_TARGETS, install
from qemuglue.qemu.builds_machines import machine_list, try_start
from qemuglue.qemu.builds_root import describe

pytestmark = pytest.mark.qemu

VERSIONS = {"bookworm": (7, 2), "bookworm-backports": (10, 0)}


def test_version_is_the_suites(build: Build) -> None:
    assert ask_version(tuple(build.command("x86_64"))) == (build.version, build.package)
    assert build.version_tuple[:2] == VERSIONS.get(build.name, build.version_tuple[:2])
    assert {"x86_64", "i386", "aarch64", "arm"} <= set(build.targets())


def test_description_is_what_the_root_holds(build: Build) -> None:
    assert build.root is not None
    known = json.loads((build.root / DESCRIPTION).read_text())
    found = describe(build.root)
    assert {key: known[key] for key in found} == found


@pytest.mark.parametrize(("target", "machine"), [("x86_64", "q35"), ("aarch64", "virt")])
def test_nothing_of_the_host_is_loaded(build: Build, target: str, machine: str) -> None:
    assert build.root is not None
    qemu = subprocess.Popen(
        [*build.command(target), "-machine", machine, "-display", "none", "-S", "-qmp", "stdio",
         "-nodefaults"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=build.environment())
    try:
        assert qemu.stdout is not None and qemu.stdin is not None
        assert '"QMP"' in qemu.stdout.readline()
        qemu.stdin.write('{"execute":"qmp_capabilities"}\n')
        qemu.stdin.flush()
        assert "return" in qemu.stdout.readline()  # the machine is made by now
        maps = Path(f"/proc/{qemu.pid}/maps").read_text()
        qemu.stdin.write('{"execute":"quit"}\n')
        qemu.stdin.flush()
        assert qemu.wait(timeout=30) == 0
    finally:
        qemu.kill()
        qemu.communicate()
    files = {line.split(None, 5)[5] for line in maps.splitlines() if len(line.split(None, 5)) > 5}
    libraries = {f for f in files if ".so" in f or "qemu-system" in f}
    assert len(libraries) > 10
    assert {f for f in libraries if not f.startswith(str(build.root))} == set()


def test_callers_library_path_does_not_leak_in(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    (tmp_path / "libc.so.6").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "libc.so.6"))
    assert try_start(build, "x86_64", "microvm").ok


@pytest.mark.parametrize("name", ["x86_64/q35", "x86_64/pc", "aarch64/virt", "aarch64/raspi3b",
                                  "arm/versatilepb"])
def test_machines_start_with_the_roots_firmware(build: Build, name: str) -> None:
    target, _, machine = name.partition("/")
    assert machine in {m.name for m in machine_list(build, target)}
    start = try_start(build, target, machine)
    assert start.ok, start.reason


def test_a_machine_that_wants_an_image_is_given_one(newest_build: Build) -> None:
    start = try_start(newest_build, "arm", "sx1")
    assert start.ok and start.started_with == "a blank 4 KiB -kernel"
    assert not try_start(newest_build, "arm", "virt").started_with


def test_a_machine_that_does_not_start_tells_qemus_reason(newest_build: Build) -> None:
    start = try_start(newest_build, "arm", "no-such-machine")
    assert not start.ok and start.reason.startswith("unsupported machine type")


def test_modules_are_the_roots(build: Build) -> None:
    done = subprocess.run([*build.command("x86_64"), "-device", "help"], capture_output=True,
                          text=True, timeout=60, env=build.environment())
    assert 'name "virtio-gpu-device"' in done.stdout  # a module in every Debian build


def test_second_install_needs_no_apt(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    [result] = install([build.name], DEFAULT_TARGETS)
    assert result.build == build and not result.fresh


def test_binary_of_a_root_by_its_folder(build: Build) -> None:
    from qemuglue.qemu.builds import find_build

    found = find_build(build.root)
    assert (found.version, found.targets()) == (build.version, build.targets())


def test_machines_verb(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["machines", "--build", build.name, "--target", "x86_64", "--start",
                 "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    machines = {m["machine"]: m for m in document["machines"]}
    assert machines["x86_64/q35"]["starts"] and machines["x86_64/none"]["starts"]
    assert machines["x86_64/q35"]["alias_of"].startswith("pc-q35-")
    assert document["version"] == build.version


def test_machines_verb_unknown_target(
    newest_build: Build, capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["machines", "--build", newest_build.name, "--target", "vax"]) == 2
    assert "no qemu-system-vax" in capsys.readouterr().err
