"""The qtest channel against real QEMU: long batches, byte order, bulk, validation."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from qemuglue.errors import UsageError
from qemuglue.qemu import qtest
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu

RAM = 64 << 20


@pytest.fixture(scope="module")
def q35(build: Build) -> Iterator[QemuProcess]:
    config = QemuConfig(build=build, target="x86_64", machine="q35", ram="64M")
    with QemuProcess(config) as process:
        yield process


def test_a_batch_of_200_000_commands(q35: QemuProcess) -> None:
    count = 200_000
    stores = b"".join(qtest.writel(0x100000 + 4 * i, i) for i in range(count))
    assert q35.channel.exchange(stores, count, timeout_s=60) == b"OK\n" * count
    loads = b"".join(qtest.readl(0x100000 + 4 * i) for i in range(count))
    reply = q35.channel.exchange(loads, count, timeout_s=60)
    assert [qtest.parse_value(line) for line in reply.split(b"\n")[:-1]] == list(range(count))


def test_every_command_and_its_reply(q35: QemuProcess) -> None:
    data = bytes(range(256))
    request = (
        qtest.writeb(0x2000, 0x11), qtest.writew(0x2002, 0x2233), qtest.writel(0x2004, 0x44556677),
        qtest.writeq(0x2008, 0x8899AABBCCDDEEFF), qtest.readb(0x2000), qtest.readw(0x2002),
        qtest.readl(0x2004), qtest.readq(0x2008), qtest.read(0x2002, 2), qtest.write(0x3000, data),
        qtest.b64read(0x3000, 256), qtest.b64write(0x4000, data), qtest.read(0x4000, 256),
        qtest.memset(0x5000, 3, 0xAB), qtest.memset(0x5000, 0, 0), qtest.read(0x5000, 4),
        qtest.outl(0xCF8, 0x80000000), qtest.inl(0xCF8), qtest.inw(0xCFC), qtest.inb(0xFFFF),
        qtest.inl(0xFFFF), qtest.outb(0xED, 1), qtest.outw(0xFFFF, 1),
    )
    lines = q35.channel.exchange(b"".join(request), len(request)).split(b"\n")
    for index in (0, 1, 2, 3, 9, 11, 13, 14, 16, 21, 22):
        qtest.parse_ok(lines[index])
    values = [qtest.parse_value(lines[index]) for index in (4, 5, 6, 7, 17, 18)]
    assert values == [0x11, 0x2233, 0x44556677, 0x8899AABBCCDDEEFF, 0x80000000, 0x8086]
    assert qtest.parse_hex(lines[8], 2) == b"\x33\x22"
    assert qtest.parse_base64(lines[10], 256) == qtest.parse_hex(lines[12], 256) == data
    assert qtest.parse_hex(lines[15], 4) == b"\xab\xab\xab\0"
    assert q35.poll()


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, (4 << 20) + 3])
def test_bulk(q35: QemuProcess, size: int) -> None:
    data = random.Random(size).randbytes(size)
    q35.qtest.write_bytes(0x200001, data)
    assert q35.qtest.read_bytes(0x200001, size) == data


def test_bulk_over_the_top_goes_on_at_0(q35: QemuProcess) -> None:
    q35.qtest.write_bytes(0, b"bottom")
    size = (128 << 10) + 6
    assert q35.qtest.read_bytes(2**64 - (128 << 10), size)[-6:] == b"bottom"


def test_memset_of_any_size(q35: QemuProcess) -> None:
    q35.qtest.memset(0x1000000, (20 << 20) + 1, 0x5A)
    assert q35.qtest.read_bytes(0x1000000 + (20 << 20) - 1, 3) == b"\x5a\x5a\0"


def test_clock_step_needs_the_accelerator(q35: QemuProcess) -> None:
    with pytest.raises(UsageError, match="accel"):
        q35.qtest.clock_step(1)
    assert q35.qtest.readb(0x2000) >= 0


def test_the_largest_commands_do_not_end_qemu(q35: QemuProcess) -> None:
    data = os.urandom(qtest.WRITE_MAX_BYTES)
    channel = q35.channel
    channel.exchange(qtest.write(0x100000, data), 1, timeout_s=60)
    channel.exchange(qtest.b64write(0x300000, data), 1, timeout_s=60)
    reply = channel.exchange(qtest.read(0x100000, qtest.READ_MAX_BYTES), 1, timeout_s=60)
    got = qtest.parse_hex(reply, qtest.READ_MAX_BYTES)
    assert got[:len(data)] == data
    assert got[0x200000:0x200000 + len(data)] == data
    assert RAM > 0x100000 + qtest.READ_MAX_BYTES
