"""A running QEMU as a model that is really there: RAM, ROM, devices, ports, and its end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qemuglue.errors import ModelError, QemuDied, UsageError
from qemuglue.memory import Be32, Le16, Le32, Le64, MemoryRegionSection, RegionKind
from qemuglue.memory.endian import EndianInt, endian_class
from qemuglue.memory.faces import FACES
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidBackendAddress, InvalidGuestAddress
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.qtest_lines import parse_hex, parse_value, read, readl, writel
from qemuglue.witness.contracts import Contracts
from qemuglue.witness.live import LiveMachine
from qemuglue.witness.live_device import CutByQtest, LiveSpace

pytestmark = pytest.mark.qemu

MACHINES = ("x86_64/q35", "aarch64/virt", "ppc/mac99")


@pytest.fixture(scope="module", params=MACHINES)
def live(build: Build, request: pytest.FixtureRequest) -> Iterator[LiveMachine]:
    with LiveMachine(request.param, build=build) as machine:
        yield machine


@pytest.fixture(scope="module")
def q35(newest_build: Build) -> Iterator[LiveMachine]:
    with LiveMachine("x86_64/q35", build=newest_build) as machine:
        yield machine


def ram_of(live: LiveMachine) -> MemoryRegionSection:
    return max((s for s in live.memory.view.sections if s.region.kind is RegionKind.RAM),
               key=lambda section: section.size)


def native(live: LiveMachine) -> type[EndianInt]:
    return endian_class(4, "big" if live.memory.target_big else "little")


def by_qtest(live: LiveMachine, addr: int, size: int) -> bytes:
    return parse_hex(live.process.channel.exchange(read(addr, size), 1).rstrip(b"\n"), size)


def test_ram_is_qemus_own(live: LiveMachine) -> None:
    addr = ram_of(live).start + 0x10_0000
    assert live.memory.store(addr, Be32(0x01020304)) == 0
    assert by_qtest(live, addr, 4) == b"\1\2\3\4"
    live.process.channel.exchange(writel(addr, 0xA0B0C0D0), 1)
    assert live.memory.load(addr, native(live)) == (0, 0xA0B0C0D0)
    assert not live.unreached and live.mirror.exact


def test_every_face_sees_what_another_wrote(live: LiveMachine) -> None:
    addr = ram_of(live).start + 0x20_0000
    live.face("vm-memory").write_obj(Le64(0x1122334455667788), GuestAddress(addr))
    assert live.face("memory-map").read_obj(addr, Le64) == 0x1122334455667788
    assert live.face("accessor").read_obj(addr, Le32) == 0x55667788
    assert live.face("aligned").read_obj_unaligned(addr + 1, Le16) == 0x6677
    assert live.face("rust").load(addr + 4, Be32) == 0x44332211
    assert by_qtest(live, addr, 8) == bytes.fromhex("8877665544332211")


def test_rom_and_holes_refuse(live: LiveMachine) -> None:
    for section in live.memory.view.sections:
        if section.region.kind is RegionKind.ROM:
            before = by_qtest(live, section.start, 8)
            with pytest.raises(InvalidBackendAddress):
                live.face("vm-memory").write_slice(bytes(8), GuestAddress(section.start))
            assert by_qtest(live, section.start, 8) == before
    hole = next(s for s in reversed(live.memory.view.cover) if not s.assigned)
    with pytest.raises(InvalidGuestAddress):
        live.face("vm-memory").read_obj(GuestAddress(hole.start), Le32)
    with pytest.raises(InvalidBackendAddress):
        live.face("rust").load(hole.start, Le32)


def test_registers_are_read_by_qemu_itself(live: LiveMachine) -> None:
    """Two faces and qtest say the same, byte for byte, of whatever registers hold still."""
    order = "big" if live.memory.target_big else "little"
    compared = 0
    for section in live.memory.view.sections:
        if section.region.kind is not RegionKind.IO or section.region.ops is not None:
            continue
        addr = section.start
        try:
            first = live.face("rust").load(addr, Be32).raw
            second = live.face("vm-memory").load(GuestAddress(addr), Le32).raw
        except (InvalidBackendAddress, CutByQtest):
            continue
        reply = parse_value(live.process.channel.exchange(readl(addr), 1).rstrip(b"\n"))
        if any(first):
            compared += first == second == reply.to_bytes(4, order)
    assert compared


def test_a_device_refuses_by_qemus_own_word(q35: LiveMachine) -> None:
    hpet = next(s for s in q35.memory.view.sections if s.region.name == "hpet")
    for access in (lambda: q35.face("rust").load(hpet.start, Le16),
                   lambda: q35.face("vm-memory").load(GuestAddress(hpet.start + 2), Le16),
                   lambda: q35.face("accessor").read_obj(hpet.start, Le16)):
        with pytest.raises(InvalidBackendAddress):
            access()
    assert q35.face("rust").load(hpet.start, Le32) & 0xFFFF0000 == 0x80860000


def test_what_qtest_cuts_is_said_not_done(q35: LiveMachine) -> None:
    ioapic = next(s for s in q35.memory.view.sections if s.region.name == "ioapic")
    with pytest.raises(CutByQtest, match=r"qtest cuts a read of 8 bytes at ioapic\+0x0"):
        q35.face("rust").load(ioapic.start, Le64)
    with pytest.raises(CutByQtest, match="a write of 8 bytes"):
        q35.face("rust").store(ioapic.start, Le64(0))


def test_ports(q35: LiveMachine) -> None:
    ports = q35.face("rust", q35.io)
    ports.store(0xCF8, Le32(0x80000000))
    assert ports.load(0xCFC, Le32) == 0x29C08086, "the host bridge's identity"
    assert ports.load(0xE0, Le16) == 0xFFFF, "no port is there"


def test_a_region_that_ends_qemu_is_not_touched(q35: LiveMachine) -> None:
    vmport = next(s for s in q35.io.view.sections if s.region.name == "vmport")
    with pytest.raises(ModelError, match=r"vmport is not touched: .*vmport-without-a-cpu"):
        q35.face("rust", q35.io).load(vmport.start, Le32)
    with pytest.raises(ModelError, match="not touched"):
        q35.face("rust", q35.io).store(vmport.start, Le32(0))


def test_a_change_of_the_map_is_followed(newest_build: Build) -> None:
    """The firmware's window: PAM registers turn ROM at 0xc0000 into RAM."""
    with LiveMachine("x86_64/pc", build=newest_build) as live:
        rust = live.face("rust")
        with pytest.raises(InvalidBackendAddress):
            rust.store(0xC0000, Le32(1))
        assert not live.told.remapped
        ports = live.face("rust", live.io)
        ports.store(0xCF8, Le32(0x80000058))
        ports.store(0xCFC, Le32(0x33333333))
        assert live.told.remapped
        memory = live.face("vm-memory")  # takes the map again
        assert not live.told.remapped
        memory.store(Le32(0x1234), GuestAddress(0xC0000))
        assert by_qtest(live, 0xC0000, 4) == b"\x34\x12\0\0"
        rust.store(0xC0000, Le32(2))  # follows the map
        assert by_qtest(live, 0xC0000, 4) == b"\2\0\0\0"


def test_a_process_that_is_given_goes_on(newest_build: Build) -> None:
    config = QemuConfig(build=newest_build, target="x86_64", machine="q35", ram="64M",
                        ram_id="pc.ram")
    with QemuProcess(config) as process:
        with LiveMachine(process, contracts=Contracts(), record=True) as live:
            assert isinstance(live.memory, LiveSpace)
            # Nothing is known of its devices: QEMU cuts and refuses by itself.
            hpet = next(s for s in live.memory.view.sections if s.region.name == "hpet")
            assert live.memory.read(hpet.start, 4)[0] == 0
            assert live.memory.read(hpet.start, 2)[0] != 0
            events, pieces = live.told.take()
            assert len(events) == len(pieces) == 2 and live.told.take() == ([], [])
        assert process.poll()
        assert process.qtest.readb(0) == 0


def test_a_qemu_that_ends_says_so(newest_build: Build) -> None:
    with LiveMachine("x86_64/microvm", build=newest_build, contracts=Contracts()) as live:
        device = next(s for s in live.memory.view.sections if s.region.name == "ioapic")
        live.process.kill()
        with pytest.raises(QemuDied):
            live.face("rust").load(device.start, Le32)


def test_names(q35: LiveMachine, newest_build: Build) -> None:
    with pytest.raises(UsageError, match="no face 'c'; there are vm-memory, aligned"):
        q35.face("c")
    assert all(q35.face(name) is not None for name in FACES)
    with pytest.raises(UsageError), LiveMachine("q35", build=newest_build):
        pass
