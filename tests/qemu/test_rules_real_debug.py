"""R12 ``write_rom`` and debug accesses on real QEMU.

``-device loader`` has a file written with ``address_space_write_rom`` at reset
(``hw/core/loader.c`` ``rom_reset``). The gdbstub reads and writes through
``cpu_memory_rw_debug``, page by page up to the first failure: before 10.0 its writes were
``address_space_write_rom``; since then they are ordinary writes with the debug attribute, which
reach ROM, and devices too. Its answer tells the MemTxResult.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from gdb_client import Gdb
from real_stage import VGA, Stage, stage, variant

from qemuglue.memory import AddressSpace, MemoryRegion, MemTxAttrs
from qemuglue.memory.rules import Rules
from qemuglue.qemu.builds import Build
from qemuglue.qemu.events import Kind
from qemuglue.witness.ram import TrackedBacking

pytestmark = pytest.mark.qemu

# -- the loader -----------------------------------------------------------------------------------

#: Where the file goes: what lies there.
BLOBS = {
    0x5003: "RAM", 0x9_FFE1: "RAM, then a device", 0xB_FFE0: "a device, then ROM",
    0xD_FFE1: "two ROMs", 0xF_FFE0: "ROM, then RAM", 0x3FF_FFE3: "RAM, then nothing",
    0xFED0_0005: "a device", 0xFED0_03F1: "a device, then nothing",
    0xFFFB_FFE1: "nothing, then ROM", 0xFFFF_FFE2: "ROM, then beyond 4 GiB",
}
BLOB = bytes(range(1, 65))
BIOS = 0xFFFC_0000


def contents(on: Stage) -> dict[str, bytes]:
    """What is in each region of memory."""
    return {
        region.name: bytes(region.backing.data) for region in on.session.ram.sources
        if isinstance(region.backing, TrackedBacking)
    }


def loaded(on: Stage, before: dict[str, bytes]) -> list[str]:
    """How QEMU's memory differs from the model's, in which ``before`` is what was there without
    the files: at the first reset they go there by their addresses, the BIOS in its own turn; at
    the second one again, but for what was ROM before the first (the shadow area was not)."""
    bios = None
    for region in on.session.ram.sources:
        backing = region.backing
        assert isinstance(backing, TrackedBacking)
        backing.data[:] = before[region.name]
        backing.dirty.update(range(len(backing) >> 12))
        bios = backing if region.name == "pc.bios" else bios
    assert bios is not None
    space = on.memory
    for addr in sorted(BLOBS):
        if addr > BIOS:
            bios.write(0, before["pc.bios"])
        assert space.write_rom(addr, BLOB) == 0
    for addr in sorted(BLOBS):
        if addr < BIOS:
            space.write_rom(addr, BLOB)
    return [each.describe() for each in on.session.ram.check_all()]


class _NotRom(Rules):
    def rom_writable(self, region: MemoryRegion) -> bool:
        return super().rom_writable(region) and not region.readonly


class _OnlyRom(Rules):
    def rom_writable(self, region: MemoryRegion) -> bool:
        return super().rom_writable(region) and region.readonly


def test_firmware_is_written_to_ram_and_rom_only(build: Build, tmp_path: Path) -> None:
    """R12: everything else is passed over, and nobody hears of it."""
    with stage(build, VGA) as on:
        before = contents(on)
    blob = tmp_path / "blob"
    blob.write_bytes(BLOB)
    files = [f"loader,file={blob},force-raw=on,addr={addr:#x}" for addr in BLOBS]
    with stage(build, VGA, *files) as on:
        on.qtest.memset(0x5000, 0x100, 0)
        monitor = on.session.process.monitor
        seen = on.seen(lambda: (monitor.execute("system_reset"), monitor.round_trip()))
        assert on.qtest.read_bytes(0x5003, len(BLOB)) == BLOB
        # No device was asked.
        assert {event.kind for event in seen} == {Kind.FLATVIEW_NEW}
        on.remapped()
        assert loaded(on, before) == []
        right = on.session.rules
        for wrong in (_NotRom, _OnlyRom):
            on.judge_by(variant(right, wrong))
            assert loaded(on, before) != []


# -- the gdbstub ----------------------------------------------------------------------------------

PAGE = 0x1000
#: Nothing is written twice, or it would not show.
_SALTS = count(1, 7)
#: address, bytes
ACCESSES = (
    (0x8000, 16), (0x8FFB, 9), (0xE_0000, 8), (0xD_FFFD, 7), (0xF_FFF9, 16), (0xB_FFF9, 16),
    (0x9_FFFC, 8), (0xA_0001, 5), (0x3FF_FFFC, 4), (0x3FF_FFFC, 8), (0xFED0_00F0, 8),
    (0xFED0_00F2, 8), (0xFED0_03FC, 8), (0xFED0_0FF8, 16), (0x1000_0FF0, 32), (0xE000_0080, 8),
    (0xE000_0082, 5), (0xE010_0001, 6), (0xE00F_FFFC, 8), (0xFFFB_FFF8, 16), (0xFFFF_FFF0, 16),
    (0x7FF0, 0x400),
)


def debug_access(space: AddressSpace, addr: int, data: bytes | int) -> bytes | None:
    """``cpu_memory_rw_debug``: the bytes of a read (``data`` is how many) or a write; None if a
    page failed, and then nothing is done to those after it."""
    modern = space.rules.debug_writes_rom
    attrs = MemTxAttrs(debug=modern)
    size = data if isinstance(data, int) else len(data)
    done = b""
    while len(done) < size:
        here = addr + len(done)
        n = min(size - len(done), PAGE - here % PAGE)
        if isinstance(data, int):
            result, part = space.read(here, n, attrs)
        else:
            part = data[len(done) : len(done) + n]
            write = space.write if modern else space.write_rom
            result = write(here, part, attrs)
        if result:
            return None
        done += part
    return done


@pytest.fixture(scope="module")
def debugged(
    build: Build, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stage, Gdb]]:
    path = str(tmp_path_factory.mktemp("gdb") / "s")
    args = ("-gdb", f"unix:{path},server=on,wait=off")
    with stage(build, "edu", "pci-testdev", VGA, args=args) as on, Gdb(path) as gdb:
        yield on, gdb


def one(on: Stage, gdb: Gdb, addr: int, data: bytes) -> list[str]:
    """A debug read, then a write, on both sides; how they differ."""
    told: list[object] = []
    size = len(data)
    found = on.judged(
        lambda: told.append(gdb.read(addr, size)),
        lambda: told.append(debug_access(on.memory, addr, size)),
    )
    found += on.judged(
        lambda: told.append(gdb.write(addr, data)),
        lambda: told.append(debug_access(on.memory, addr, data) is not None),
    )
    if told[0] != told[1] or told[2] != told[3]:
        found.append(f"answers of QEMU and model, read and written: {told}")
    return found


def differ(on: Stage, gdb: Gdb) -> dict[str, list[str]]:
    """Where the model's debug accesses differ from QEMU's."""
    salt = next(_SALTS)
    found = {
        f"{size} at {addr:#x}": one(
            on, gdb, addr, bytes((addr + i + salt) % 251 + 1 for i in range(size)))
        for addr, size in ACCESSES
    }
    return {access: complaints for access, complaints in found.items() if complaints}


def test_debug_accesses(debugged: tuple[Stage, Gdb]) -> None:
    """What is written, what devices see of it, and what the debugger is told."""
    assert differ(*debugged) == {}


def test_a_debugger_reaches_rom_and_from_10_on_devices(debugged: tuple[Stage, Gdb]) -> None:
    on, gdb = debugged
    modern = on.session.config.build.version_tuple >= (10,)
    assert gdb.write(0xE_0000, b"\x5a\xa5") and gdb.read(0xE_0000, 2) == b"\x5a\xa5"
    seen = on.seen(lambda: gdb.write(0xFED0_00F0, bytes(4)))
    assert [event.name for event in seen] == (["hpet"] if modern else [])
    assert gdb.write(0x1000_0000, b"1") is not modern
    on.session.ram.adopt_all()


def test_the_other_rule_of_debug_writes_is_seen(debugged: tuple[Stage, Gdb]) -> None:
    on, gdb = debugged
    right = on.session.rules
    on.judge_by(replace(right, debug_writes_rom=not right.debug_writes_rom))
    try:
        found = differ(on, gdb)
    finally:
        on.judge_by(right)
    assert {"8 at 0xfed000f0", "16 at 0xfffbfff8"} <= found.keys()
    assert "16 at 0x8000" not in found and "8 at 0xe0000" not in found


def test_a_debug_write_that_spares_rom_is_seen(debugged: tuple[Stage, Gdb]) -> None:
    on, gdb = debugged

    class Spares(Rules):
        def direct_write(self, region: MemoryRegion, attrs: MemTxAttrs) -> bool:
            return super().direct_write(region, MemTxAttrs())

        def rom_writable(self, region: MemoryRegion) -> bool:
            return super().rom_writable(region) and not region.readonly

    right = on.session.rules
    on.judge_by(variant(right, Spares))
    try:
        found = differ(on, gdb)
    finally:
        on.judge_by(right)
    assert {"8 at 0xe0000", "16 at 0xffff9", "16 at 0xfffffff0"} <= found.keys()
