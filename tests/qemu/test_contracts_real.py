"""What devices show from outside, compared with what a person read in QEMU's source."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import INSTALLED

from qemuglue.campaign.contracting import probe_machine
from qemuglue.errors import BuildError
from qemuglue.qemu.builds import Build
from qemuglue.witness.contract_table import (
    AcceptedRange,
    Access,
    ContractSizes,
    ContractTable,
    differences,
)

pytestmark = pytest.mark.qemu

HAND = tomllib.loads(
    (Path(__file__).parent.parent / "data" / "contracts_by_hand.toml").read_text()
)
_SIZES = re.compile(r"valid (?:any|(\d)\.\.(\d))( unaligned)?, impl (\d)\.\.(\d)( unaligned)?")

#: Tables are asked once: (build, machine) -> table.
_asked: dict[tuple[str, str], ContractTable] = {}


def asked(build: Build, machine: str) -> ContractTable:
    key = build.name, machine
    if key not in _asked:
        told = HAND["machine"][machine]
        try:
            _asked[key] = probe_machine(build, told["name"], told["args"].split())
        except BuildError as error:
            pytest.skip(str(error))
    return _asked[key]


def sizes_of(text: str) -> ContractSizes:
    found = _SIZES.fullmatch(text)
    assert found, text
    low, high, unaligned, least, most, impl_unaligned = found.groups()
    return ContractSizes(int(low or 0), int(high or 0), bool(unaligned), int(least), int(most),
                         bool(impl_unaligned))


def release(build: Build) -> str:
    """The version of the source that was read, or a skip."""
    found = next((known for known in ("7.2", "10.0") if build.version.startswith(known)), "")
    if not found:
        pytest.skip("the source of this version was not read")
    return found


def of_machine(machine: str) -> list[dict[str, Any]]:
    return [device for device in HAND["device"] if device["machine"] == machine]


def fits(access: Access, device: dict[str, Any], declared: ContractSizes, direction: str) -> str:
    """"" or what is wrong."""
    said = f"{device['region']}: {direction}: "
    if not access.known:
        return said + access.unknown
    if declared.effective not in access.possible:
        return said + f"{declared} is not among {sorted(map(str, access.possible))}"
    if access.order not in ("", device["order"]):
        return said + f"{access.order}-endian"
    wanted = device.get(direction)
    if (wanted is None) != (access.accepts is None):
        return said + f"accepts {access.accepts}, declared {wanted}"
    if access.accepts is not None:
        ranges = tuple(AcceptedRange(*each) for each in wanted)
        if access.accepts.ranges != ranges or not access.accepts.complete:
            return said + f"{access.accepts} is not {wanted}"
    return ""


@pytest.mark.parametrize("machine", list(HAND["machine"]))
def test_devices_are_as_their_source_says(build: Build, machine: str) -> None:
    version = release(build)
    table = asked(build, machine)
    wrong = []
    for device in of_machine(machine):
        rows = table.named(device["region"])
        if not rows:
            wrong.append(f"{device['region']}: not in view")
        declared = sizes_of(device[version]["sizes"])
        for row in rows:
            wrong += [fits(row.reads, device, declared, "reads"),
                      fits(row.writes, device, declared, "writes")]
    assert not [each for each in wrong if each]
    # What cannot be told is little: the order of what is called byte by byte.
    for device in of_machine(machine):
        sizes = sizes_of(device[version]["sizes"])
        orders = {each.order for row in table.named(device["region"])
                  for each in (row.reads, row.writes)}
        if sizes.impl_max > 1 and sizes.valid_max != 1:
            assert device["order"] in orders, device["region"]


def test_the_comparison_can_fail(build: Build) -> None:
    """A planted error in the table made by hand is found."""
    version = release(build)
    row = asked(build, "q35").named("edu-mmio")[0]
    [device] = [each for each in of_machine("q35") if each["region"] == "edu-mmio"]
    declared = sizes_of(device[version]["sizes"])
    assert fits(row.reads, device, declared, "reads") == ""
    for wrong in ("valid 4..4, impl 4..8", "valid 4..8, impl 4..4", "valid any, impl 4..8"):
        assert "is not among" in fits(row.reads, device, sizes_of(wrong), "reads")
    assert "endian" in fits(row.writes, {**device, "order": "big"}, declared, "writes")
    vetoed = {**device, "reads": [[4, 0, 0, 4]]}
    assert "declared" in fits(row.reads, vetoed, declared, "reads")


def test_hpet_changed_from_7_2_to_10_0() -> None:
    found = {version: build for build in INSTALLED.values() for version in ("7.2", "10.0")
             if build.version.startswith(version)}
    if len(found) < 2:
        pytest.skip("both builds are needed")
    before, after = asked(found["7.2"], "q35"), asked(found["10.0"], "q35")
    changes = differences(before, after)
    [hpet] = [change for change in changes if change.name == "hpet"]
    assert (hpet.direction, hpet.before, hpet.after) == ("reads and writes", "4..4", "4..8")
    # What else changed is declared to have changed; what did not is not said to.
    hand = {device["region"]: device for device in of_machine("q35")}
    for change in changes:
        device = hand.get(change.name)
        assert device is None or device["7.2"]["sizes"] != device["10.0"]["sizes"], change


def test_a_table_is_the_same_twice_and_in_json(newest_build: Build) -> None:
    first = probe_machine(newest_build, "x86_64/microvm")
    again = probe_machine(newest_build, "x86_64/microvm")
    assert differences(first, again) == []
    assert [row.reads.sizes for row in again.rows] == [row.reads.sizes for row in first.rows]
    for table in (first, asked(newest_build, "q35")):
        assert ContractTable.from_json(table.to_json()) == table


def test_a_single_dispatch_tells_more(build: Build) -> None:
    """From 11 on a port access is one dispatch: valid 1..1 and impl 1..1 are told apart."""
    if build.version_tuple < (11,):
        pytest.skip("ports are cut before 11")
    for name in ("pit", "dma-chan"):
        [row] = asked(build, "q35").named(name)[:1]
        assert row.reads.values("valid_max") == (0, 4, 8)
        assert row.reads.values("impl_max") == (1,)
        assert row.reads.values("unaligned") == (False,)


def test_a_region_that_ends_qemu_costs_the_others_nothing(build: Build) -> None:
    """Until 11 the random number generator of the raspi boards aborts at a byte's access."""
    try:
        table = probe_machine(build, "aarch64/raspi3b", regions=["bcm2835-rng", "pl011"])
    except BuildError as error:
        pytest.skip(str(error))
    [rng] = table.named("bcm2835-rng")
    [uart] = table.named("pl011")
    assert uart.reads.known and uart.writes.known
    assert not any("ended" in line for line in uart.reads.evidence)
    for access in (rng.reads, rng.writes):
        assert access.known and access.sizes is not None
        died = any("ended with: QEMU was ended by SIGABRT" in line for line in access.evidence)
        assert died == (build.version_tuple < (11,))
        assert access.sizes.valid == ("any" if died else "4..4")
