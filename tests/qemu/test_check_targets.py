"""``check`` on machines of every byte order and many a target: they match, or do what is known of
them, and a planted defect is found. Targets that are not installed are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemuglue.campaign.check_jobs import CheckJob, perform
from qemuglue.campaign.check_result import CheckResult
from qemuglue.qemu.builds import Build
from qemuglue.qemu.builds_machines import machine_list
from qemuglue.witness.verdict import Verdict

pytestmark = pytest.mark.qemu

OPS = 300

#: Machine -> the byte order of its CPU, and why it is among these few.
MACHINES = {
    "ppc/bamboo": "big: two devices whose byte orders one access settles together",
    "ppc/40p": "big: a device that passes accesses on to the PCI ports",
    "ppc64/pseries": "big: a device that no access by qtest may touch",
    "arm/netduino2": "little: a bit-band, whose writes change memory elsewhere",
    "avr/mega2560": "little: pages of 256 bytes, devices that go on behind their end",
    "hppa/B160L": "big: devices that accept by offset",
    "m68k/q800": "big", "microblaze/petalogix-s3adsp1800": "big", "mips/malta": "big",
    "mips64/malta": "big", "or1k/or1k-sim": "big", "s390x/s390-ccw-virtio": "big",
    "sparc/SS-5": "big", "sparc64/sun4u": "big", "sh4eb/r2d": "big", "xtensaeb/lx60": "big",
    "alpha/clipper": "little", "loongarch64/virt": "little", "riscv64/virt": "little",
}


def checked(build: Build, machine: str, folder: Path, defect: str = "") -> CheckResult:
    """The result of the check, as the command makes it; skips what this build has not got."""
    target = machine.partition("/")[0]
    if target not in build.targets():
        pytest.skip(f"no {target} among the targets of {build.name}")
    if machine not in {each.full_name for each in machine_list(build, target)}:
        pytest.skip(f"QEMU {build.version} has no {machine}")
    found = perform(CheckJob(
        build=build, machine=machine, ops=OPS, seed=1, defect=defect, folder=folder))
    assert isinstance(found, CheckResult)
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_a_machine_matches_or_does_what_is_known(
    build: Build, machine: str, tmp_path: Path,
) -> None:
    found = checked(build, machine, tmp_path)
    told = "\n".join(map(str, (found.status, found.reason, *found.divergences)))
    assert found.status == "match", told
    assert found.tally.total >= OPS and found.map.exact == found.map.views > 0
    assert sum(found.tally.reasons.values()) >= found.tally.of(Verdict.UNJUDGED), "each a reason"
    assert all(why.strip() for why in found.tally.reasons)
    accounts = {each.witness: each for each in found.accounts}
    assert {"gpa2hva", "dump", "xp", "map"} <= accounts.keys()
    assert accounts["gpa2hva"].compared and accounts["xp"].compared and accounts["map"].compared
    assert accounts["dump"].compared or accounts["dump"].unsupported, "bytes, or why not"
    assert found.ram and sum(size for _, size in found.ram_bytes) > 0


@pytest.mark.parametrize("machine", [
    "ppc/g3beige", "ppc64/mac99", "sparc/SS-5", "mips/malta", "m68k/q800", "hppa/B160L",
])
def test_a_wrong_byte_order_is_found_on_a_big_endian_machine(
    newest_build: Build, machine: str, tmp_path: Path,
) -> None:
    found = checked(newest_build, machine, tmp_path, "order-swapped")
    assert found.status == "diverged" and found.tally.of(Verdict.DIVERGED) > 0
    assert any(each.confirmed == (3, 3) and each.witness in ("qtest", "transcript")
               for each in found.divergences)
