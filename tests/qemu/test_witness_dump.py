"""QEMU's core dump agrees with the model's RAM and map, and notices when the model is wrong."""

from __future__ import annotations

from random import Random

import pytest

from qemuglue.campaign.settings import Settings, scene
from qemuglue.program.operation import Operation, Place
from qemuglue.qemu.builds import Build
from qemuglue.qemu.dump import dump_guest_memory
from qemuglue.witness import elf_dump
from qemuglue.witness.elf_dump import check_dump
from qemuglue.witness.judge import resolve
from qemuglue.witness.lockstep import LockStep, Stop
from qemuglue.witness.ram import TrackedBacking
from qemuglue.witness.session import Session

pytestmark = pytest.mark.qemu

RAM = {"x86_64/q35": (0, "pc.ram"), "aarch64/virt": (0x40000000, "mach-virt.ram")}


def session_on(build: Build, machine: str, setup: str = "") -> Session:
    return scene(Settings(machine=machine, build=build.name, setup=setup, ram="16M")).session()


@pytest.mark.parametrize("machine", RAM)
def test_the_dump_agrees_after_writes(build: Build, machine: str) -> None:
    base, _ = RAM[machine]
    data = Random(1).randbytes(0x300)
    with session_on(build, machine) as session:
        operations = [Operation("write", Place(offset=base + 0x123456), len(data), data=data)]
        assert LockStep(session).run(resolve(session.layout(), operations)).stop is Stop.DONE
        account = check_dump(session)
        assert (account.differences, account.unsupported) == ([], "")
        assert account.compared >= 16 << 20
        ram = next(s.region for s in session.mirror.memory.view.sections
                   if s.region.name == RAM[machine][1])
        assert isinstance(ram.backing, TrackedBacking)
        assert ram.backing.data[0x123456:0x123456 + len(data)] == data


def test_a_wrong_byte_and_a_wrong_range_are_noticed(newest_build: Build) -> None:
    with session_on(newest_build, "x86_64/q35") as session:
        ram = next(s.region for s in session.mirror.memory.view.sections
                   if s.region.name == "pc.ram")
        assert isinstance(ram.backing, TrackedBacking)
        ram.backing.data[0x200003] ^= 0xFF
        [found] = check_dump(session).differences
        assert found.place == "0x200003 (pc.ram+0x200003), 1 bytes"
        assert (found.model, found.qemu) == ("ff", "00")
        ram.backing.data[0x200003] ^= 0xFF
        ram.nonvolatile = True
        found = check_dump(session).differences[0]
        assert (found.model, found.qemu) == ("no memory", "in the dump")


def test_a_large_memory_is_dumped_at_its_ends(
    newest_build: Build, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elf_dump, "MAX_WHOLE", 4 << 20)
    with session_on(newest_build, "x86_64/q35") as session:
        account = check_dump(session)
        assert account.differences == [] and 2 << 20 <= account.compared < 8 << 20
        assert sum(account.unjudged.values()) + account.compared > 16 << 20
        ram = next(s.region for s in session.mirror.memory.view.sections
                   if s.region.name == "pc.ram")
        assert isinstance(ram.backing, TrackedBacking)
        ram.backing.data[-1] ^= 0xFF
        assert len(check_dump(session).differences) == 1


def test_a_machine_without_memory_has_no_dump(newest_build: Build) -> None:
    with session_on(newest_build, "x86_64/q35") as session:
        for section in session.mirror.memory.view.sections:
            section.region.nonvolatile = True
        assert check_dump(session).unsupported == "no RAM is mapped"


def test_notes_that_qemu_did_not_count(newest_build: Build) -> None:
    """The second core of mps2-an521 has a floating-point unit, whose registers make its notes
    longer: every offset in the headers is too small, and the bytes are read where they are."""
    with session_on(newest_build, "arm/mps2-an521") as session:
        [segment] = dump_guest_memory(session.process)
        assert segment.misplaced == 280
        operation = Operation("writel", Place(offset=0x80000000), 4, 0x12345678)
        assert LockStep(session).run(resolve(session.layout(), [operation])).stop is Stop.DONE
        account = check_dump(session)
        assert account.differences == [] and account.compared >= 16 << 20
        [why] = account.unjudged
        assert why.startswith("headers of the dump that are 280 bytes off")


def test_memory_beyond_what_a_file_of_32_bits_can_name(newest_build: Build) -> None:
    """The 440's level 2 cache lies at 0x400000000, and its dump says 0."""
    if "ppc" not in newest_build.targets():
        pytest.skip("this build has no ppc")
    with session_on(newest_build, "ppc/sam460ex") as session:
        segments = dump_guest_memory(session.process)
        assert [(each.start, each.bits) for each in segments] == [(0, 32), (0, 32)]
        assert "32 bits" in check_dump(session).unsupported
