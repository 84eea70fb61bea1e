"""The TCG plugin in real QEMUs: a small guest with known accesses, and a whole firmware."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qemuglue.qemu.builds import Build
from qemuglue.qemu.plugin import plugin_argument
from qemuglue.qemu.plugin.records import (
    DeviceEvent,
    GuestAccess,
    Match,
    agreement,
    end_of_log,
    parse,
    stream,
)

pytestmark = pytest.mark.qemu

#: The small guest ends by itself within 0.1 s; a loaded machine may need long.
GUEST_TIMEOUT_S = 30.0
#: SeaBIOS gives up booting after about 1 s.
FIRMWARE_TIMEOUT_S = 30.0
#: The firmware is done when its log grows less than this in so long: its clock's tick goes on
#: with 5 kB a second, its work writes megabytes.
QUIET_S = 0.5
QUIET_BYTES = 30_000

DIE_WITH_PARENT = 1  # prctl: PR_SET_PDEATHSIG

RAM, HPET, HOLE, VGA, ROM = 0x1000, 0xFED0_0000, 0xD000_0000, 0xB_8000, 0xFFFF_FFF0
EXIT_PORT = 0xF4


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def command(build: Build, log: Path, plugin: str, *more: str) -> list[str]:
    return [
        *build.command("x86_64"), "-machine", "q35", "-accel", "tcg", "-nodefaults",
        "-display", "none", "-m", "64M", "-plugin", plugin, "-d", "plugin", "-D", str(log),
        "-trace", "memory_region_*", *more,
    ]


@contextlib.contextmanager
def started(build: Build, line: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        line, env=build.environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True, preexec_fn=die_with_parent,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=GUEST_TIMEOUT_S)


# A guest whose accesses are known one by one. It runs from the reset vector in protected mode with
# 16-bit code and a flat data segment. (what, store, size, address), in this order:
ACCESSES = (
    ("hpet", False, 4, HPET),
    ("hpet", True, 4, HPET + 0x10),
    ("ram", False, 4, RAM),
    ("ram", True, 4, RAM),
    ("hole", False, 4, HOLE),
    ("hole", True, 2, HOLE),
    ("rom", False, 1, ROM),
    ("rom", True, 1, ROM + 1),
    ("vga", True, 4, VGA),
    ("vga unaligned", False, 4, VGA + 1),
    ("vga unaligned", True, 2, VGA + 3),
    ("hpet refused", False, 1, HPET),
    ("ram unaligned", False, 4, RAM - 2),
)
#: The CPU's own: two words of LGDT, the data segment's descriptor, its "accessed" bit set.
OWN_ACCESSES = 5


def image() -> bytes:
    """64 KiB of ROM with that guest; it ends QEMU through isa-debug-exit, code 67."""
    code = bytearray.fromhex(
        "fa"  # cli
        "2e660f0116 00fc"  # lgdt cs:[0xfc00]
        "0f20c0 0c01 0f22c0 eb00"  # cr0 |= 1
        "b80800 8ed8"  # ds = 8, flat
    )
    operation = {(False, 1): 0xA0, (False, 2): 0xA1, (True, 1): 0xA2, (True, 2): 0xA3}
    for _, store, size, address in ACCESSES:
        prefixes = b"\x67\x66" if size == 4 else b"\x67"
        code += prefixes + bytes((operation[store, min(size, 2)],)) + struct.pack("<I", address)
    code += bytes.fromhex("e470 e670")  # in al, 0x70; out 0x70, al
    code += bytes.fromhex("baf400 b021 ee f4 ebfd")  # out 0xf4, 0x21; hlt
    rom = bytearray(0x1_0000)
    rom[0xFC00:0xFC06] = struct.pack("<HI", 15, 0xFFFF_FC08)
    rom[0xFC10:0xFC18] = bytes.fromhex("ffff00000092cf00")
    rom[0xFD00:0xFD00 + len(code)] = code
    rom[0xFFF0:0xFFF3] = b"\xe9" + struct.pack("<h", 0xFD00 - 0xFFF3)
    return bytes(rom)


def run_guest(build: Build, folder: Path, **options: object) -> bytes:
    rom, log = folder / "guest.bin", folder / "guest.log"
    rom.write_bytes(image())
    plugin = plugin_argument(build.version, **options)  # type: ignore[arg-type]
    more = ("-bios", str(rom), "-device", "VGA,romfile=",
            "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4")
    with started(build, command(build, log, plugin, *more)) as process:
        _, errors = process.communicate(timeout=GUEST_TIMEOUT_S)
    assert process.returncode == 67, errors
    return log.read_bytes()


def test_every_access_of_a_small_guest_is_recorded(build: Build, tmp_path: Path) -> None:
    log = run_guest(build, tmp_path)
    records = parse(log)[OWN_ACCESSES:]
    assert [(r.store, r.size, r.virtual) for r in records] == [a[1:] for a in ACCESSES]
    assert all(r.cpu == 0 and not r.big_endian for r in records)
    assert all(0xFFFF_FD00 <= r.instruction < 0xFFFF_FE00 for r in records)
    end = end_of_log(log)
    count = len(ACCESSES) + OWN_ACCESSES
    assert (end.limit, end.seen, end.printed) == (None, count, count)
    for (what, _, _, address), record in zip(ACCESSES, records, strict=True):
        assert record.is_io == (not what.startswith(("ram", "rom"))), what
        if what.startswith(("ram", "rom")):
            assert record.name == "RAM"
        elif what.startswith("vga"):
            assert record.name == "vga-lowmem"
        else:  # unassigned memory, and hpet, which does not fill its page
            assert record.name is not None and record.name.startswith("anon")
        if build.version_tuple >= (8,) or what.startswith(("ram", "hpet", "vga", "hole")):
            assert record.physical == address, what
        has_value = build.version_tuple >= (9, 2)
        assert (record.value is not None) == has_value
        if has_value and what == "rom":
            assert record.value == 0xE9, "the reset vector's jump, loaded and stored"


def test_the_small_guest_agrees_with_its_trace(build: Build, tmp_path: Path) -> None:
    log = run_guest(build, tmp_path, io=True)
    records = parse(log)
    assert all(r.is_io for r in records) and len(records) == 8
    judged = agreement(stream(log), physical=build.version_tuple >= (8,))
    silent = [(d.access.virtual, d.access.size) for d in judged.differences]
    # Unassigned memory twice, a size hpet refuses; the rest has its events.
    assert silent == [(HOLE, 4), (HOLE, 2), (HPET, 1)]
    assert set(judged.matches) - {Match.WIDER} == {Match.EXACT, Match.SPLIT, Match.SILENT}
    assert judged.matches[Match.EXACT] == 2  # both of hpet's words
    # 7.2 loads two aligned words for the unaligned one; later versions load what was asked for.
    assert judged.matches.get(Match.WIDER, 0) == (build.version_tuple < (8,))
    assert judged.ports == 3 and judged.lone_count == 0 and judged.swapped == 0


def test_options_reach_the_plugin(build: Build, tmp_path: Path) -> None:
    log = run_guest(build, tmp_path, addresses=(RAM + 1, RAM + 1))
    assert [(r.virtual, r.size) for r in parse(log)] == [(RAM, 4), (RAM, 4), (RAM - 2, 4)]
    log = run_guest(build, tmp_path, limit=3)
    end = end_of_log(log)
    assert len(parse(log)) == 3
    assert (end.limit, end.printed, end.seen) == (3, 3, len(ACCESSES) + OWN_ACCESSES)


def run_firmware(build: Build, folder: Path) -> bytes:
    """The log of SeaBIOS with a VGA and nothing to boot from, until it gives up."""
    log = folder / "firmware.log"
    plugin = plugin_argument(build.version, io=True)
    line = command(build, log, plugin, "-device", "VGA", "-device", "edu")
    with started(build, line) as process:
        give_up = time.monotonic() + FIRMWARE_TIMEOUT_S
        size = 0
        while time.monotonic() < give_up and process.poll() is None:
            time.sleep(QUIET_S)
            before, size = size, log.stat().st_size if log.exists() else 0
            if size > 1_000_000 and size - before < QUIET_BYTES:
                break
        assert process.poll() is None, process.communicate(timeout=GUEST_TIMEOUT_S)[1]
    return log.read_bytes()


def test_seabios_agrees_with_its_trace(build: Build, tmp_path: Path) -> None:
    log = run_firmware(build, tmp_path)
    items = list(stream(log))
    modern = build.version_tuple >= (8,)
    judged = agreement(items, physical=modern)
    print(f"{build.version}: {judged}")
    # 20,000 VGA stores (three quarters of them two bytes wide), PCI configuration, AHCI.
    assert judged.judged > 10_000
    assert set(judged.matches) == {Match.EXACT, Match.SPLIT}, judged.differences
    assert judged.lone_count == 0, judged.lone
    assert judged.unknown == 0
    assert judged.swapped == 0
    assert judged.values == (judged.judged if modern else 0)
    # What is split is 2-byte accesses of VGA's one-byte window, nothing else.
    wide = [i for i in items if isinstance(i, GuestAccess) and i.size == 2 and i.is_io
            and 0xA_0000 <= i.virtual < 0xC_0000]
    assert judged.matches[Match.SPLIT] == len(wide) > 10_000
    # Names differ in the shared page of VGA's registers, and (10.0) where a store to a PCI
    # register changes the map before its own name is looked up.
    odd = {pair: count for pair, count in judged.names.items() if not pair[0].startswith("anon")}
    assert all(event == "pcie-mmcfg-mmio" for _, event in odd) and sum(odd.values()) < 10, odd
    for plant in (move_a_record, drop_an_event, change_a_value):
        assert_caught(items, plant, physical=modern, values=modern)


Item = GuestAccess | DeviceEvent


def move_a_record(item: Item) -> Item | None:
    if not isinstance(item, GuestAccess) or item.size != 4:
        return item
    physical = None if item.physical is None else item.physical + 4
    return replace(item, virtual=item.virtual + 4, physical=physical)


def drop_an_event(item: Item) -> Item | None:
    return None if isinstance(item, DeviceEvent) and item.name == "vga-lowmem" else item


def change_a_value(item: Item) -> Item | None:
    if not isinstance(item, GuestAccess) or item.value is None:
        return item
    return replace(item, value=item.value ^ 1)


def assert_caught(
    items: list[Item], plant: Callable[[Item], Item | None], *, physical: bool, values: bool,
) -> None:
    """The defect planted into one item of a real log, in the middle, makes one difference."""
    for index in range(len(items) // 2, len(items)):
        planted = plant(items[index])
        if planted != items[index]:
            break
    else:
        assert plant is change_a_value and not values
        return
    changed = [*items[:index], *([] if planted is None else [planted]), *items[index + 1:]]
    judged = agreement(changed, physical=physical)
    assert judged.disagreed == 1 == len(judged.differences), plant
