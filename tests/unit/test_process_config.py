"""What to start: names, sizes, and the command line made of them."""

from __future__ import annotations

import pytest

from qemuglue.errors import LaunchError, UsageError
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig, VmMode, machine_name, parse_size
from qemuglue.qemu.process import ExitKind, ExitStatus, _own_message, machine_arguments

BUILD = Build(name="test", version="10.0.2", root=None, binaries=())
OLD = Build(name="old", version="7.2.22", root=None, binaries=())


def config(**fields: object) -> QemuConfig:
    return QemuConfig(**{"build": BUILD, "target": "x86_64", "machine": "q35", **fields})  # type: ignore[arg-type]


def test_machine_name() -> None:
    assert machine_name("x86_64/q35") == ("x86_64", "q35")
    assert machine_name("sparc/SS-5") == ("sparc", "SS-5")
    assert config().full_name == "x86_64/q35"


@pytest.mark.parametrize("name", [
    "", "q35", "/q35", "x86_64/", "x86_64/q35,accel=kvm", "x86_64/q35 -S", "a/b/c", "x86-64/q35\n",
])
def test_machine_name_refuses(name: str) -> None:
    with pytest.raises(UsageError, match="TARGET/NAME"):
        machine_name(name)


@pytest.mark.parametrize(("text", "size"), [
    ("64M", 64 << 20), ("64", 64 << 20), ("1g", 1 << 30), ("512k", 512 << 10), ("4096B", 4096),
    ("1T", 1 << 40),
])
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "64MB", "1.5G", "M", "64 M", "0x10"])
def test_parse_size_refuses(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize("fields", [
    {"machine": "q35,accel=kvm"}, {"target": ""}, {"ram": "many"}, {"ram_id": "a,b"},
    {"ram_id": ""}, {"extra_trace": ("a,file=/etc/passwd",)}, {"extra_trace": ("",)},
])
def test_config_refuses(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        config(**fields)


def test_machine_arguments() -> None:
    words = machine_arguments(config(ram="64M", ram_id="pc.ram", args=("-device", "edu")))
    assert words == [
        "-no-user-config", "-display", "none", "-accel", "tcg", "-nodefaults", "-audio", "none",
        "-S", "-machine", "q35,memory-backend=pc.ram", "-m", f"{64 << 20}B", "-device", "edu"]
    assert "-S" not in machine_arguments(config(mode=VmMode.PARKED))
    assert "-nodefaults" not in machine_arguments(config(nodefaults=False))
    assert "-audio" not in machine_arguments(config(build=OLD))
    assert machine_arguments(config(args=("-audiodev", "x"))).count("-audio") == 0
    own = machine_arguments(config(ram="64M", ram_id="pc.ram", shared_ram=False))
    assert own[own.index("-machine") + 1] == "q35"
    assert "-no-reboot" not in words  # a reset is an outcome, not an end


def test_exit_status_in_words() -> None:
    off = ExitStatus(ExitKind.EXITED, code=0, shutdown_reason="guest-shutdown",
                     shutdown_guest=True)
    assert off.polite and "guest-shutdown" in str(off)
    asked = ExitStatus(ExitKind.EXITED, code=0, shutdown_reason="host-qmp-quit", expected=True)
    assert not asked.polite and str(asked) == "QEMU exited with code 0 as asked"
    crash = ExitStatus(ExitKind.SIGNALED, signal=6)
    assert not crash.polite and str(crash) == "QEMU was ended by SIGABRT"
    assert not ExitStatus(ExitKind.EXITED, code=1, shutdown_guest=True).polite


@pytest.mark.parametrize(("output", "message"), [
    ("qemu-system-x86_64: unsupported machine type\nUse -machine help to list\n",
     "qemu-system-x86_64: unsupported machine type"),
    ("qemu-system-arm: warning: missing X\nqemu: module y not found\nKernel must be given\n",
     "Kernel must be given"),
    ("\n", ""),
    ("a\nb\n", "b"),
])
def test_own_message(output: str, message: str) -> None:
    assert _own_message(output) == message


@pytest.mark.parametrize(("said", "step"), [
    ("-device virtio-blk-pci: drive property not set", "node-name=disk"),
    ("-device x: Property 'virtio-blk-device.drive' can't find value 'd\x1b1'", "drive=d\\x1b1 "),
    ("-device edu: MSI is not supported by interrupt controller", "has no MSI"),
    ("-device edu: something else", ""),
])
def test_a_start_that_failed_says_what_to_do_where_that_is_known(said: str, step: str) -> None:
    message = str(LaunchError("QEMU did not start x86_64/q35: …", stderr=said))
    assert step in message and message.endswith("…") is not bool(step)
