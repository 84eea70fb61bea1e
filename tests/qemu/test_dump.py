"""The ELF dump holds what was written, at the guest's own addresses."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from qemuglue.errors import ProtocolError, UsageError
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.dump import _File, dump_guest_memory, parse_dump
from qemuglue.qemu.monitor import MonitorRefused
from qemuglue.qemu.process import QemuProcess

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize(("target", "machine", "base"), [
    ("x86_64", "q35", 0), ("aarch64", "virt", 0x40000000)])
def test_dump_equals_what_was_written(
    build: Build, target: str, machine: str, base: int,
) -> None:
    config = QemuConfig(build=build, target=target, machine=machine, ram="64M")
    data = random.Random(4).randbytes(1 << 20)
    with QemuProcess(config) as process:
        process.qtest.write_bytes(base + 0x200003, data)
        segments = dump_guest_memory(process)
        assert [s.start for s in segments] == sorted(s.start for s in segments)
        assert all(a.last < b.start for a, b in pairwise(segments))
        home = next(s for s in segments if s.start <= base + 0x200003 <= s.last)
        assert home.last >= base + (64 << 20) - 1
        assert home.read(base + 0x200003, len(data)) == data
        assert home.read(base + 0x3FFF000, 4096) == process.qtest.read_bytes(
            base + 0x3FFF000, 4096)
        if machine == "q35":
            bios = next(s for s in segments if s.last == 0xFFFFFFFF)
            assert bios.data == process.qtest.read_bytes(bios.start, bios.size)
        with pytest.raises(UsageError):
            home.read(home.last, 2)
        part, = dump_guest_memory(process, start=base + 0x200000, size=0x2000)
        assert (part.start, part.size) == (base + 0x200000, 0x2000)
        assert part.data[3:] == data[:0x2000 - 3]
        process.qtest.writeb(base + 0x200003, data[0] ^ 0xFF)
        assert home.read(base + 0x200003, 1) == data[:1]  # a copy, not a view
    assert home.read(base + 0x200003, 16) == data[:16]  # outlives its QEMU


def test_a_range_in_a_hole_is_refused(newest_build: Build) -> None:
    config = QemuConfig(build=newest_build, target="x86_64", machine="q35", ram="64M")
    with QemuProcess(config) as process:
        with pytest.raises(MonitorRefused) as caught:
            dump_guest_memory(process, start=1 << 40, size=0x1000)
        assert caught.value.error_class == "GenericError"
        with pytest.raises(UsageError):
            dump_guest_memory(process, start=0)
        assert dump_guest_memory(process)  # and it goes on


def test_a_dump_over_the_file_limit(newest_build: Build) -> None:
    """The limit on what QEMU may write is lifted for the dump, and back after it."""
    config = QemuConfig(build=newest_build, target="x86_64", machine="q35", ram="64M",
                        shared_ram=False)
    process = QemuProcess(config, file_limit_bytes=8 << 20)
    process._file_limit = 8 << 20  # by itself it is twice the RAM
    with process:
        assert sum(s.size for s in dump_guest_memory(process)) > 64 << 20
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max file size")]
        assert line.split()[3] == str(8 << 20)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF\x02\x01\x01" + b"\xff" * 200])
def test_garbage_is_no_core(content: bytes) -> None:
    fd = os.memfd_create("garbage")
    os.write(fd, content)
    with pytest.raises(ProtocolError):
        parse_dump(_File(fd))
