"""The model's faces on a mirrored QEMU's own memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qemuglue.errors import EnvironmentFailure, ModelError, UsageError
from qemuglue.memory import AddressSpace, Backing, Be32, HostMemory, Le32, Le64, MemoryRegion
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import InvalidBackendAddress
from qemuglue.memory.machine_spaces import ADDRESS_SPACE_IO, ADDRESS_SPACE_MEMORY
from qemuglue.memory.section_backing import section_backing
from qemuglue.mirror import Mirror
from qemuglue.qemu.backings import MappedBacking, ProcBacking, SharedBacking
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.guest_ram import ProcMem
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.ramsource import live_backing

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def live(build: Build) -> Iterator[tuple[QemuProcess, Mirror]]:
    config = QemuConfig(build=build, target="x86_64", machine="q35", ram="64M", ram_id="pc.ram")
    with QemuProcess(config) as process, ProcMem(process.pid) as procmem:
        mirror = Mirror.take(process.monitor.hmp)
        backings = []
        for region in {section.region for section in mirror.memory.view}:
            if region.is_ram:
                region.backing = live_backing(process, procmem, mirror.memory, region)
                backings.append(region.backing)
        yield process, mirror
        for backing in backings:
            if isinstance(backing, SharedBacking):
                backing.close()


def readl(process: QemuProcess, addr: int) -> int:
    return int(process.channel.exchange(b"readl 0x%x\n" % addr, 1).split()[1], 0)


def test_stores_are_seen_by_qemu_and_loads_see_qemus(live: tuple[QemuProcess, Mirror]) -> None:
    process, mirror = live
    with mirror.bind():
        ADDRESS_SPACE_MEMORY.store(GuestAddress(0x100000), Le32(0x12345678))
        assert readl(process, 0x100000) == 0x12345678
        process.channel.exchange(b"writeq 0x100008 0x1122334455667788\n", 1)
        assert ADDRESS_SPACE_MEMORY.load(GuestAddress(0x100008), Le64) == 0x1122334455667788
        assert ADDRESS_SPACE_MEMORY.load(GuestAddress(0x100000), Be32) == 0x78563412
        data = bytes(range(256)) * 64
        assert ADDRESS_SPACE_MEMORY.write(data, GuestAddress(0x200001)) == len(data)
        assert process.ram is not None and process.ram.view[0x200001:0x200101] == data[:256]


def test_firmware_is_read_through_the_process_and_not_written(
    live: tuple[QemuProcess, Mirror]
) -> None:
    process, mirror = live
    bios = next(s for s in mirror.memory.view if s.last == 0xFFFFFFFF)
    assert isinstance(bios.region.backing, ProcBacking)
    last = bios.last - 3
    with mirror.bind():
        assert ADDRESS_SPACE_MEMORY.load(GuestAddress(last), Le32) == readl(process, last)
        with pytest.raises(InvalidBackendAddress):
            ADDRESS_SPACE_MEMORY.store(GuestAddress(last), Le32(0))
        assert ADDRESS_SPACE_MEMORY.load(GuestAddress(last), Le32) == readl(process, last)


def test_the_names_stand_for_the_bound_machine_only(live: tuple[QemuProcess, Mirror]) -> None:
    _, mirror = live
    with mirror.bind():
        assert ADDRESS_SPACE_IO.space is mirror.io
        assert ADDRESS_SPACE_MEMORY.space.name == "memory"
    with pytest.raises(ModelError, match="stands for nothing yet"):
        ADDRESS_SPACE_MEMORY.load(GuestAddress(0), Le32)


def test_a_backing_in_another_process_has_an_end(live: tuple[QemuProcess, Mirror]) -> None:
    _, mirror = live
    bios = next(s.region for s in mirror.memory.view if s.region.name == "pc.bios")
    backing = bios.backing
    assert isinstance(backing, Backing) and not isinstance(backing, HostMemory)
    assert len(backing) == bios.size
    assert isinstance(backing, ProcBacking) and backing.host_address % 0x1000 == 0
    [section] = [s for s in mirror.memory.view if s.region is bios and s.last == 0xFFFFFFFF]
    window = section_backing(mirror.memory, section)
    assert window.host_address == backing.host_address + section.offset
    ram = next(s for s in mirror.memory.view if s.region.name == "pc.ram")
    assert not hasattr(section_backing(mirror.memory, ram), "host_address"), "it is ours"
    assert len(backing.read(bios.size - 2, 4)) == 2 and backing.read(bios.size, 1) == b""
    for offset in (-1, bios.size - 1):
        with pytest.raises(UsageError, match="do not fit"):
            backing.write(offset, b"ab")
    with pytest.raises(ModelError, match="no memory that can be mapped"):
        mirror.memory.map(0xFFFFF000, 4, False)


def test_a_mapped_file_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(bytes(0x3000))
    with MappedBacking(path, 0x1000, 0x1000) as backing:
        assert isinstance(backing, HostMemory)
        root = MemoryRegion.container_of("system", 1 << 64)
        root.add_subregion(0, MemoryRegion.ram("ram", 0x1000, backing))
        root.add_subregion(0x1000, MemoryRegion.ram("other", 0x1000))
        space = AddressSpace("memory", root)
        assert space.store(0x10, Le32(0x01020304)) == 0
        assert path.read_bytes()[0x1010:0x1014] == bytes([4, 3, 2, 1])
        with path.open("r+b") as file:
            file.seek(0x1FFC)
            file.write(b"file")
        assert space.read(0xFFC, 4) == (0, b"file")
        mapped = space.map(0x20, 4, True)
        assert mapped is not None
        mapped.buffer[:] = b"mmap"
        space.unmap(mapped, 4)
        assert path.read_bytes()[0x1020:0x1024] == b"mmap"
        space.destroy()
        del space
    for offset, size in ((1, 0x1000), (0, 0), (-0x1000, 1)):
        with pytest.raises(UsageError, match="multiple of"):
            MappedBacking(path, size, offset)
    for where in (tmp_path / "none", tmp_path):
        with pytest.raises(EnvironmentFailure, match="cannot map"):
            MappedBacking(where, 0x1000)
    with pytest.raises(EnvironmentFailure, match="cannot map"):
        MappedBacking(path, 0x10000)
