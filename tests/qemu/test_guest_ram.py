"""Guest RAM from outside agrees with what QEMU says, in both directions."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from qemuglue.errors import ProtocolError, UsageError
from qemuglue.qemu import qtest
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.guest_ram import (
    Hva,
    NotRam,
    ProcMem,
    Unmapped,
    hva_of,
    parse_gpa2hva,
)
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu

# target, machine, id of main memory, its address, a device's address
MACHINES = (
    ("x86_64", "q35", "pc.ram", 0, 0xFED00000),
    ("x86_64", "microvm", "microvm.ram", 0, 0xFEC00000),
    ("aarch64", "virt", "mach-virt.ram", 0x40000000, 0x09000000),
)
SIZE = 64 << 20


@pytest.fixture(scope="module", params=MACHINES, ids=lambda m: str(m[1]))
def machine(build: Build, request: pytest.FixtureRequest) -> Iterator[tuple[QemuProcess, int, int]]:
    target, name, ram_id, base, device = request.param
    config = QemuConfig(build=build, target=target, machine=name, ram="64M", ram_id=ram_id)
    with QemuProcess(config) as process:
        yield process, base, device


def test_the_region_keeps_its_name(machine: tuple[QemuProcess, int, int]) -> None:
    process, base, _ = machine
    flat = process.monitor.hmp("info mtree -f")
    assert f"ram): {process.config.ram_id}" in flat
    found = hva_of(process.monitor, base + 0x1000)
    assert isinstance(found, Hva) and found.region == process.config.ram_id


def test_20_000_writes_seen_at_once(machine: tuple[QemuProcess, int, int]) -> None:
    process, base, _ = machine
    assert process.ram is not None
    rng = random.Random(2)
    start = 0x200000  # clear of firmware and device tree
    expected = bytearray(process.ram.view[start:start + 0x10000])
    for _ in range(20):
        batch = []
        for _ in range(1000):
            offset, value = rng.randrange(0x10000 - 8), rng.getrandbits(64)
            batch.append(qtest.writeq(base + start + offset, value))
            expected[offset:offset + 8] = value.to_bytes(8, "little")
        process.channel.exchange(b"".join(batch), 1000)
        assert process.ram.compare(start, expected) is None
        offset = rng.randrange(0x10000)
        process.ram.view[start + offset] = expected[offset] = expected[offset] ^ 0x55
        assert process.qtest.readb(base + start + offset) == expected[offset]


def test_differences_are_found(machine: tuple[QemuProcess, int, int]) -> None:
    process, base, _ = machine
    assert process.ram is not None
    whole = bytes(process.ram.view)
    assert process.ram.compare(0, whole) is None
    place = SIZE - 5
    process.qtest.writeb(base + place, whole[place] ^ 1)
    process.qtest.writew(base + 0x300000, int.from_bytes(whole[0x300000:0x300002], "little")
                         ^ 0x0101)
    assert process.ram.compare(0, whole) == 0x300000
    assert process.ram.differences(0, whole) == [(0x300000, 2), (place, 1)]
    assert process.ram.compare(0x300002, whole[0x300002:place]) is None
    assert process.ram.compare(place - 1, whole[place - 1:]) == place
    with pytest.raises(UsageError):
        process.ram.compare(place, whole[:10])


def test_hva_and_proc_mem(machine: tuple[QemuProcess, int, int]) -> None:
    process, base, device = machine
    assert hva_of(process.monitor, device) == NotRam()
    assert hva_of(process.monitor, 1 << 50) == Unmapped()
    found = hva_of(process.monitor, base + 0x400000)
    assert isinstance(found, Hva)
    data = random.Random(3).randbytes(100_000)
    process.qtest.write_bytes(base + 0x400000, data)
    with ProcMem(process.pid) as memory:
        assert memory.read(found.address, len(data)) == data
        memory.write(found.address + 5, b"from outside")
        assert process.qtest.read_bytes(base + 0x400005, 12) == b"from outside"
        for address in (0, 0x1000, 2**64 - 1):
            with pytest.raises(ProtocolError):
                memory.read(address, 8)
        with pytest.raises(ProtocolError):
            memory.write(0x1000, b"x")
    memory.close()


def test_rom_can_be_read(build: Build) -> None:
    config = QemuConfig(build=build, target="x86_64", machine="q35")
    with QemuProcess(config) as process:
        found = hva_of(process.monitor, 0xFFFFFFF0)
        assert isinstance(found, Hva) and found.region == "pc.bios"
        with ProcMem(process.pid) as memory:
            assert memory.read(found.address, 16) == process.qtest.read_bytes(0xFFFFFFF0, 16)
        process.kill()
        with pytest.raises(ProtocolError):
            ProcMem(process.pid)


@pytest.mark.parametrize("text", ["", "Host virtual address for 0x1 (a) is b", "garbage\xff"])
def test_parse_gpa2hva_refuses(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_gpa2hva(text)
