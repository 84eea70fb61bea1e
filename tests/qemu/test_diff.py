"""``qemuglue diff`` on real builds: what really changed, nothing of a build against itself, and
planted changes, each seen once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qemuglue.campaign.diff.diffing import DiffOptions, MachineDiff, Status, diff_machine
from qemuglue.campaign.diff.outcomes import _Comparison, _Plan, compare_outcomes
from qemuglue.cli.main import main
from qemuglue.mirror.snapshot import from_json, take_snapshot
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.qemu.builds import Build, installed_builds
from qemuglue.qemu.builds_machines import Machine
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu

INSTALLED = {build.name: build for build in installed_builds()}
MAP_ONLY = DiffOptions(ops=0, contracts=False)


def built(name: str) -> Build:
    if name not in INSTALLED:
        pytest.skip(f"build {name} is not installed: `qemuglue builds install {name}` brings it")
    return INSTALLED[name]


def machine(name: str) -> Machine:
    target, short = name.split("/")
    return Machine(target, short, "")


def told(result: MachineDiff) -> list[str]:
    return [f"{'!' if change in result.errors else ' '}{change}" for change in result.maps]


def config(build: Build, name: str, *args: str) -> QemuConfig:
    target, short = name.split("/")
    return QemuConfig(build=build, target=target, machine=short, args=args, nodefaults=False)


def has_target(build: Build, target: str) -> None:
    if target not in build.targets():
        pytest.skip(f"{build.name} has no qemu-system-{target}")


@pytest.mark.parametrize("name", ["x86_64/q35", "aarch64/virt", "ppc/g3beige"])
def test_a_build_against_itself_is_the_same(build: Build, name: str) -> None:
    has_target(build, name.partition("/")[0])
    result = diff_machine(build, build, machine(name),
                          DiffOptions(ops=120, seed=3, contracts=False))
    assert (result.status, result.maps) == (Status.SAME, ()), (result.reason, told(result))
    assert result.outcomes is not None and result.outcomes.performed > 60
    assert result.outcomes.changes == ()


def test_a_snapshot_of_a_real_machine_is_json(build: Build) -> None:
    with QemuProcess(config(build, "x86_64/q35")) as process:
        taken = take_snapshot(process.monitor, machine="x86_64/q35", build="b", version="v")
    assert from_json(json.loads(json.dumps(taken.to_json()))) == taken
    assert {"pc.ram", "pc.bios"} <= {block.name for block in taken.blocks}
    assert any(function.bars for function in taken.functions)
    owners = {each.name: each.owner for view in taken.views for each in view.ranges}
    assert (owners["hpet"], owners["vga-lowmem"]) == ("hpet", "VGA")


def test_a_versioned_type_kept_its_map_from_7_2_to_10_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    built("bookworm"), built("bookworm-backports")
    assert main(["diff", "--from", "bookworm", "--to", "bookworm-backports", "--ops", "0",
                 "--no-contracts", "--json", "x86_64/pc-i440fx-7.2"]) == 0
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert result["status"] == "changed" and result["versioned"]
    assert [(each["kind"], each["where"], each["before"], each["after"], each["error"])
            for each in result["map"]] == [
        ("renamed", "0xcf9", "piix3-reset-control", "piix-reset-control", False)]


def test_a_versioned_type_that_did_not_keep_its_ports() -> None:
    """From 11 on CPU hot-plug starts in its modern mode, whose registers are fewer."""
    result = diff_machine(built("bookworm-backports"), built("sid"), machine("x86_64/pc-q35-9.2"),
                          MAP_ONLY)
    assert result.status == Status.BROKEN
    assert [text for text in told(result) if text.startswith("!")] == [
        "!I/O 0xcd8-0xcf7: resized: acpi-cpu-hotplug, 0x20 bytes -> 0xc bytes"]


@pytest.mark.parametrize(
    ("args", "seen"),
    [
        (("-device", "isa-debug-exit,iobase=0x501,iosize=2"),
         ["!I/O 0x501-0x502: added: nothing -> isa-debug-exit (i/o, 2 bytes)"]),
        (("-device", "edu"), [
            " edu: address space added: none -> 'edu'",
            "!PCI 0/04.0: PCI function added: none -> 1234:11e8"]),
        (("-m", "256M"), [
            "!memory 0x8000000-0xfffffff: resized: pc.ram, 0x7f00000 bytes -> 0xff00000 bytes",
            "!pc.ram: RAM block resized: pc.ram, 0x8000000 bytes -> 0x10000000 bytes"]),
        (("-audio", "none"), []),
    ],
)
def test_a_planted_change_is_an_error_once(
    newest_build: Build, args: tuple[str, ...], seen: list[str],
) -> None:
    name = "x86_64/pc-i440fx-7.2"
    result = diff_machine(
        newest_build, newest_build, machine(name),
        DiffOptions(ops=0, contracts=False, args=("-m", "128M"), args_after=("-m", "128M", *args)),
    )
    assert told(result) == seen
    assert result.status == (Status.BROKEN if seen else Status.SAME)
    plain = diff_machine(
        newest_build, newest_build, machine("x86_64/pc"),
        DiffOptions(ops=0, contracts=False, args=("-m", "128M"), args_after=("-m", "128M", *args)),
    )
    assert plain.status == (Status.CHANGED if seen else Status.SAME)


def test_a_type_that_does_not_start_any_more_is_broken(newest_build: Build) -> None:
    for args, after, status in (
        ((), ("-device", "nonsense"), Status.BROKEN), (("-device", "nonsense"), (), Status.CHANGED),
        (("-device", "nonsense"), ("-device", "nonsense"), Status.NOT_STARTED),
    ):
        result = diff_machine(newest_build, newest_build, machine("x86_64/pc-q35-7.2"),
                              DiffOptions(ops=0, contracts=False, args=args, args_after=after))
        assert result.status == status and "nonsense" in result.reason


def test_hpet_takes_eight_bytes_from_10_0_on() -> None:
    result = diff_machine(built("bookworm"), built("bookworm-backports"), machine("x86_64/q35"),
                          DiffOptions(ops=0))
    assert ("hpet", "valid sizes", "4..4", "4..8") in {
        (each.name, each.kind, each.before, each.after) for each in result.contracts
    }, (result.contracts, result.notes)


def test_one_program_on_two_builds_shows_what_a_device_is_told() -> None:
    """pl011 declares calls of 4 bytes from 8.x on; the reply is the same."""
    before, after = built("bookworm"), built("bookworm-backports")
    name = "arm/versatilepb"
    found = compare_outcomes(config(before, name), config(after, name), ops=200, seed=1)
    assert found.performed > 150
    pieces = [change for change in found.changes if change.region == "pl011"]
    assert pieces and {change.what for change in pieces} == {"pieces"}
    assert any((each.before, each.after) == ("read 1", "read 4") for each in pieces), pieces
    again = compare_outcomes(config(before, name), config(after, name), ops=200, seed=1)
    # Its real-time clock may tick between two looks at it, which is counted.
    assert replace(again, unstable=0) == replace(found, unstable=0)


def test_an_end_on_one_side_is_a_difference_and_the_rest_goes_on(newest_build: Build) -> None:
    def steps(*ports: tuple[int, int]) -> tuple[tuple[Operation, int], ...]:
        return tuple((Operation("outb", Place(offset=port), 1, value), port)
                     for port, value in ports)

    plan = _Plan((), steps((0x80, 1), (0xCF9, 6), (0x80, 2), (0x80, 3)), Layout({}))
    a = config(newest_build, "x86_64/q35")
    b = config(newest_build, "x86_64/q35", "-no-reboot")
    found = _Comparison((a, b, a, b), plan).run()
    assert found.performed == 4 and not found.unstable
    [change] = found.changes
    assert (change.what, change.operation) == ("death", "outb 0xcf9 0x6")
    assert (change.before, change.after) == ("goes on", "shutdown:guest-reset")
    assert _Comparison((b, b, b, b), plan).run().notes == (
        "both builds end alike: shutdown:guest-reset",)


def test_a_value_is_told_and_one_that_a_build_does_not_repeat_is_not(newest_build: Build) -> None:
    address = 0x100000
    layout = Layout({"memory": [Range(0, 1 << 27, "pc.ram", 0, 0, "ram", "memory")]})
    plan = _Plan((), ((Operation("readb", Place(offset=address), 1), address),), layout)
    a = config(newest_build, "x86_64/q35")
    b = config(newest_build, "x86_64/q35", "-device",
               f"loader,addr={address:#x},data=0x5a,data-len=1")
    [change] = _Comparison((a, b, a, b), plan).run().changes
    assert (change.what, change.region, change.before[-2:], change.after[-2:]) == (
        "value", "pc.ram", "00", "5a")
    found = _Comparison((a, a, a, b), plan).run()
    assert (found.performed, found.unstable, found.changes) == (1, 1, ())
