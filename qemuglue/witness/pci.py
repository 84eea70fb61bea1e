"""PCI devices made reachable as firmware would: base addresses assigned, decoding switched on.

Under ``-S`` no firmware runs, so a PCI device's registers answer nowhere. The set-up derives
one list of plain port accesses from QMP ``query-pci``: the same machine and command line give
the same list, and a finding's program names it by one word. ``setup pci`` leaves bus mastering
off, so that no device changes RAM by itself; ``setup dma`` switches it on for every function but
the disk controllers that chipsets bring along: nobody decodes their DMA, and while they may do any,
what a decoded device does wrong to RAM could be theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qemuglue.errors import QemuFailure
from qemuglue.program.operation import Operation, Place
from qemuglue.qemu.monitor import Monitor

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC

#: Where firmware puts base addresses on PC machines: below the APICs and flash, above RAM.
MEMORY_WINDOW = (0xE0000000, 0xFE000000)
IO_WINDOW = (0xC000, 0xF000)

_COMMAND = 0x04
_BAR0 = 0x10
#: Decode I/O and memory; master the bus.
_DECODE, _MASTER = 0x3, 0x4
_CLASS_BRIDGE = 0x0604
#: Classes of IDE and SATA controllers.
_CLASSES_DISK = (0x0101, 0x0106)


def _out(port: int, value: int, size: int = 4) -> Operation:
    verb = {1: "outb", 2: "outw", 4: "outl"}[size]
    return Operation(verb, Place(offset=port), size, value)


def _config_write(slot: int, function: int, register: int, value: int) -> Iterator[Operation]:
    """32 bits into a configuration register of bus 0."""
    address = 0x80000000 | slot << 11 | function << 8 | register
    yield _out(CONFIG_ADDRESS, address)
    yield _out(CONFIG_DATA, value)


def pci_setup(
    monitor: Monitor, target: str, *, masters: bool = False
) -> tuple[Operation, ...]:
    """The accesses that map every device of bus 0, and let it master the bus if ``masters``;
    empty on a machine without PCI ports.

    Base addresses are naturally aligned, in the order QMP lists devices and regions; one that
    does not fit its window stays unassigned.
    """
    if target not in ("x86_64", "i386"):
        return ()
    try:
        buses = monitor.execute("query-pci")
    except QemuFailure:
        return ()
    if not isinstance(buses, list) or not buses:
        return ()
    cursor = {"memory": MEMORY_WINDOW[0], "io": IO_WINDOW[0]}
    ops: list[Operation] = []
    for device in buses[0].get("devices", []):
        kind = device.get("class_info", {}).get("class")
        if kind == _CLASS_BRIDGE:
            continue
        master = masters and kind not in _CLASSES_DISK
        ops.extend(_map_device(device, cursor, _DECODE | _MASTER if master else _DECODE))
    return tuple(ops)


def _map_device(
    device: dict[str, Any], cursor: dict[str, int], command: int
) -> Iterator[Operation]:
    slot, function = int(device["slot"]), int(device["function"])
    for region in device.get("regions", []):
        kind, size, bar = region.get("type"), int(region.get("size", 0)), int(region["bar"])
        if kind not in cursor or not size or bar > 5:
            continue
        window = MEMORY_WINDOW if kind == "memory" else IO_WINDOW
        at = (cursor[kind] + size - 1) // size * size
        if at + size > window[1]:
            continue
        cursor[kind] = at + size
        yield from _config_write(slot, function, _BAR0 + 4 * bar, at)
        if region.get("mem_type_64"):
            yield from _config_write(slot, function, _BAR0 + 4 * (bar + 1), 0)
    yield from _config_write(slot, function, _COMMAND, command)
