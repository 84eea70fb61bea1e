"""What QEMU's devices do wrong with memory, shown without the model: by a few writes of a driver.

Each test is the evidence of something that the model follows, or does not start, and that
therefore no finding can show (``witness/ODDITIES.md``, ``witness/oddities.toml``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from qemuglue.errors import QemuDied
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.qtest import QtestHang

pytestmark = pytest.mark.qemu

NET, DISK = 0xE000_0000, 0xE010_0000
RX, TX, PACKET = 0x21_0000, 0x20_0000, 0x30_0000
DESCRIPTORS, AVAILABLE, USED, HEADER = 0x40_0000, 0x40_1000, 0x40_2000, 0x40_3000
NEXT, WRITABLE = 1, 2
STATUS = 0x40_4000


@contextmanager
def machine(build: Build, *devices: str) -> Iterator[QemuProcess]:
    words = [word for device in devices for word in ("-device", device)]
    disk = ("-blockdev", "driver=null-co,node-name=d,size=1048576,read-zeroes=on")
    with QemuProcess(QemuConfig(
        build=build, target="x86_64", machine="q35", args=(*disk, *words), ram="32M",
    )) as process:
        yield process


def plug(process: QemuProcess, slot: int, bar: int, base: int) -> None:
    """Map a device's BAR as firmware would, and let it do DMA."""
    for register, value in ((0x10 + 4 * bar, base), (0x04, 6)):
        process.qtest.outl(0xCF8, 0x8000_0000 | slot << 11 | register)
        process.qtest.outl(0xCFC, value)


# -- e1000e ----------------------------------------------------------------------------------------


def receive_nothing(process: QemuProcess, tail: int) -> None:
    """A frame of 64 bytes goes round in the device to a ring of 8 descriptors without buffers."""
    plug(process, 4, 0, NET)
    qtest = process.qtest
    qtest.write_bytes(PACKET, b"\xff" * 6)
    qtest.write_bytes(TX, struct.pack("<QII", PACKET, 64 | 1 << 24, 0))
    for register, value in (
        (0x5008, 0x8000), (0x2800, RX), (0x2808, 128), (0x2818, tail), (0x100, 0x8442),
        (0x3800, TX), (0x3808, 4096), (0x400, 2), (0x3818, 1),
    ):
        qtest.writel(NET + register, value)


def test_a_split_ring_with_an_odd_tail_is_gone_round_for_ever(build: Build) -> None:
    """7.2.22 and 11.1.3 do not come back: no descriptor has a buffer, and with packet split each
    takes two places of the ring, so that the odd tail is never met. 10.0.2 does, and all do with
    an even tail."""
    for tail in (4, 3):
        with machine(build, "e1000e,romfile=,addr=4") as process:
            process.qtest.timeout_s = 2.0
            if tail == 4 or build.version_tuple[:3] == (10, 0, 2):
                receive_nothing(process, tail)
                assert process.qtest.readl(NET + 0x2810) in (2, 4)
                continue
            with pytest.raises(QtestHang):
                receive_nothing(process, tail)
            process.kill()


def test_a_reset_of_the_device_forgets_the_type_of_a_vlan(build: Build) -> None:
    """By CTRL.RST; a reset of the machine brings it back."""
    with machine(build, "e1000e,romfile=,addr=4") as process:
        plug(process, 4, 0, NET)
        qtest, vet = process.qtest, NET + 0x38
        assert qtest.readl(vet) == 0x8100
        qtest.writel(NET, 1 << 26)
        assert qtest.readl(vet) == (0x8100 if build.version_tuple < (8,) else 0)
        process.monitor.execute("system_reset")
        plug(process, 4, 0, NET)
        assert qtest.readl(vet) == 0x8100


# -- virtio ----------------------------------------------------------------------------------------


def start_disk(process: QemuProcess) -> None:
    """One queue of 8, as a driver of virtio 1.0 sets it up."""
    plug(process, 5, 4, DISK)
    qtest = process.qtest
    qtest.writeb(DISK + 0x14, 0)
    qtest.writeb(DISK + 0x14, 3)
    for register, value in ((0x8, 1), (0xC, 1)):  # VERSION_1
        qtest.writel(DISK + register, value)
    qtest.writeb(DISK + 0x14, 0xB)
    qtest.writew(DISK + 0x18, 8)
    for register, value in ((0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)):
        qtest.writel(DISK + register, value)
    qtest.writew(DISK + 0x1C, 1)
    qtest.writeb(DISK + 0x14, 0xF)


def request(
    process: QemuProcess, number: int, kind: int, sector: int, *buffers: tuple[int, int, int],
) -> int:
    """Have the ``number``-th request done (from 1): its header, ``buffers`` of (address, size,
    flags), and a byte for the status, which is returned."""
    qtest = process.qtest
    qtest.write_bytes(HEADER, struct.pack("<IIQ", kind, 0, sector))
    qtest.writeb(STATUS, 0xEE)
    chain = [(HEADER, 16, 0), *buffers, (STATUS, 1, WRITABLE)]
    last = len(chain) - 1
    qtest.write_bytes(DESCRIPTORS, b"".join(
        struct.pack("<QIHH", addr, size, flags | (NEXT if at < last else 0), at + 1)
        for at, (addr, size, flags) in enumerate(chain)))
    qtest.write_bytes(AVAILABLE, struct.pack("<HH", 0, number) + bytes(16))
    qtest.writew(DISK + 0x3000, 0)
    for _ in range(1000):
        if qtest.readw(USED + 2) == number:
            break
    assert qtest.readw(USED + 2) == number, "the request was not done"
    return qtest.readb(STATUS)


VIRTIO_BLK = "virtio-blk-pci,drive=d,addr=5,ioeventfd=off"
IN, OUT, SCSI = 0, 1, 2
UNSUPPORTED, IO_ERROR = 2, 1


def test_the_answer_to_scsi_goes_beyond_its_buffer(build: Build) -> None:
    """Four bytes are written where the driver gave one; 11.0.2 and later look at the size first."""
    with machine(build, VIRTIO_BLK) as process:
        start_disk(process)
        process.qtest.write_bytes(0x50_0000, b"\xcc" * 8)
        status = request(process, 1, SCSI, 0, (0x50_1000, 8, 0), (0x50_2000, 8, WRITABLE),
                         (0x50_0000, 1, WRITABLE))
        found = process.qtest.read_bytes(0x50_0000, 8)
        if build.version_tuple < (11, 0, 2):
            assert (status, found) == (UNSUPPORTED, b"\xff\0\0\0" + b"\xcc" * 4)
        else:
            assert (status, found) == (IO_ERROR, b"\xcc" * 8)


def test_a_bounce_buffer_begins_with_what_was_in_memory(build: Build) -> None:
    """A request that fails without a byte of data gives its buffer back as if it had been
    written. Where that lies on a device, 7.2 passes what an earlier buffer left in QEMU's
    memory: here a secret that the device before was read for."""
    secret, size = 0x5EC7_E75E, 512
    source, target = NET + 0x5200, NET + 0x5600  # plain registers of an e1000e
    with machine(build, "e1000e,romfile=,addr=4", VIRTIO_BLK) as process:
        plug(process, 4, 0, NET)
        start_disk(process)
        qtest = process.qtest
        beyond = 1 << 40
        found: set[int] = set()
        for number in range(1, 17, 2):
            for at in range(0, size, 4):
                qtest.writel(source + at, secret)
                qtest.writel(target + at, 1)
            assert request(process, number, OUT, beyond, (source, size, 0)) == IO_ERROR
            assert request(process, number + 1, IN, beyond, (target, size, WRITABLE)) == IO_ERROR
            found |= {qtest.readl(target + at) for at in range(0, size, 4)}
        if build.version_tuple < (9, 2):
            # Mostly the secret; what else QEMU has put there meanwhile is as little the guest's.
            assert found - {0, 1}
        else:
            assert found == {0}


def test_a_question_about_virtio_ends_qemu(build: Build) -> None:
    """QMP's ``x-query-virtio-status``, of any virtio device, in 11.1.3."""
    with machine(build, "virtio-rng-pci") as process:
        monitor = process.monitor
        path = monitor.execute("x-query-virtio")[0]["path"]
        if build.version_tuple < (11,):
            assert monitor.execute("x-query-virtio-status", {"path": path})["name"] == "virtio-rng"
            return
        with pytest.raises(QemuDied, match="SIGABRT"):
            monitor.execute("x-query-virtio-status", {"path": path})
        assert "visit_start_struct: Assertion" in process.stderr_tail()


# -- SMMUv3 ----------------------------------------------------------------------------------------

ARM_RAM, ECAM = 0x4000_0000, 0x40_1000_0000
SMMU, ARM_NET = 0x905_0000, 0x1000_0000
STREAMS, TABLES = ARM_RAM + 0x10_0000, ARM_RAM + 0x18_0000
FIRST, SECOND, BESIDE = (ARM_RAM + n * 0x20_0000 for n in (2, 3, 4))
GIB, BLOCK = 1 << 30, 1 << 21
STAGE_2_SINCE = (8, 1)


def second_stage(process: QemuProcess) -> None:
    """The network device, in slot 4, behind four concatenated tables of 1 GiB each: blocks at 0
    and at 2 MiB in the first, at 1 GiB in the second."""
    qtest = process.qtest
    for at, block in ((0, FIRST), (8, BESIDE), (0x1000, SECOND)):
        qtest.writeq(TABLES + at, block | 3 << 6 | 1 << 10 | 1)
    entry = [0] * 16
    entry[0] = 6 << 1 | 1  # stage 2 alone
    entry[5] = 32 | 4 << 16 | 1 << 19  # 32 bits of 4 KiB pages from level 2 on, AArch64
    entry[6] = TABLES
    qtest.write_bytes(STREAMS + 64 * (4 << 3), struct.pack("<16I", *entry))
    qtest.writeq(SMMU + 0x80, STREAMS)
    qtest.writel(SMMU + 0x88, 8)
    qtest.writel(SMMU + 0x20, 1)


def send_from(process: QemuProcess, ring: int) -> set[int]:
    """Which of the blocks hold the ring of one descriptor that lies at the I/O address ``ring``:
    where its status was written to."""
    qtest = process.qtest
    blocks = {FIRST, SECOND, BESIDE}
    for block in blocks:  # a context descriptor, of which nothing but its status is seen
        qtest.write_bytes(block, struct.pack("<QII", 0, 0xA << 24 | 1 << 29, 0))
    for register, value in (
        (0x400, 0), (0x3810, 0), (0x3818, 0), (0x3800, ring), (0x3804, 0), (0x3808, 128),
        (0x400, 2), (0x3818, 1),
    ):
        qtest.writel(ARM_NET + register, value)
    return {block for block in blocks if qtest.readl(block + 12) & 1}


def test_the_first_of_concatenated_tables_serves_for_all(build: Build) -> None:
    """An address of the second GiB is looked up in the table of the first."""
    if "aarch64" not in dict(build.binaries):
        pytest.skip("this build has no aarch64")
    if build.version_tuple < STAGE_2_SINCE:
        pytest.skip("it has no second stage")
    with QemuProcess(QemuConfig(
        build=build, target="aarch64", machine="virt", ram="32M",
        args=("-machine", "iommu=smmuv3", "-device", "e1000e,romfile=,addr=4"),
    )) as process:
        process.qtest.writel(ECAM + (4 << 15) + 0x10, ARM_NET)
        process.qtest.writew(ECAM + (4 << 15) + 4, 6)
        second_stage(process)
        assert send_from(process, 0) == {FIRST}
        assert send_from(process, BLOCK) == {BESIDE}
        assert send_from(process, GIB) == {FIRST}, "SECOND is what the tables say"
