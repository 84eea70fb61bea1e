"""PCI devices made reachable as firmware would: base addresses assigned, decoding switched on.

Under ``-S`` no firmware runs, so a PCI device's registers answer nowhere. The set-up derives
one list of plain accesses from QMP ``query-pci``: the same machine and command line give the same
list, and a finding's program names it by one word. ``setup pci`` leaves bus mastering off, so that
no device changes RAM by itself; ``setup dma`` switches it on for every function but the disk
controllers that chipsets bring along: nobody decodes their DMA, and while they may do any, what a
decoded device does wrong to RAM could be theirs.

A PC is configured by its ports. Of other machines only those are set up whose board is known
(``program.recipes.pci.wiring``); where their registers are is asked of ``info mtree -f``. Neither
pseries, which configures PCI by calls of its firmware (RTAS), nor s390x, which does so by
instructions, has registers for it that an access from outside could reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qemuglue.errors import QemuFailure
from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.pci import (
    BAR0,
    COMMAND,
    CONFIG_ADDRESS,
    HOST,
    PAIRS,
    PORT_REGION,
    WINDOW_REGION,
    Config,
    Function,
    Wiring,
    wiring,
)
from qemuglue.program.verbs import IO, MEMORY
from qemuglue.qemu.monitor import Monitor
from qemuglue.qemu.mtree import FLAT_COMMAND, parse_flat

#: Decode I/O and memory; master the bus.
_DECODE, _MASTER = 0x3, 0x4
_CLASS_BRIDGE = 0x0604
#: Classes of IDE and SATA controllers, and of what is none of any class: a Mac's controller of
#: disks and more, whose DMA nobody can switch off.
_CLASSES_DISK = (0x0101, 0x0106)
_CLASS_OTHER = 0xFF00
#: PowerPC's host bridge, which has a base address for messages.
_CLASS_POWERPC = 0x0B20

#: What the address register of a pair holds behind the set-up.
SELECTED = 1 << 31

_PCS = ("x86_64", "i386")
#: Regions that the set-up writes to.
_REGIONS = frozenset({WINDOW_REGION, "pci.reg"}.union(*PAIRS))


def pci_setup(
    monitor: Monitor, machine: str, *, masters: bool = False, big: bool = False,
) -> tuple[Operation, ...]:
    """The accesses that map every device of bus 0 of ``machine`` (``TARGET/NAME``), and let it
    master the bus if ``masters``; empty on a machine without PCI, or whose board is not known.
    ``big`` is the target's byte order. Every place is an address.

    Base addresses are naturally aligned, in the order QMP lists devices and regions; one that
    does not fit its window stays unassigned.
    """
    board = wiring(machine)
    if board is None:
        return ()
    try:
        buses = monitor.execute("query-pci")
    except QemuFailure:
        return ()
    if not isinstance(buses, list) or not buses:
        return ()
    layout = _layout(monitor, machine, board, big=big)
    config = Config(layout)
    if not config:
        return ()
    ops = [Operation("writel", Place(region, 0, offset), 4, layout.number(region, value, 4))
           for region, offset, value in board.opens]
    cursor = {MEMORY: board.windows[0], IO: board.windows[2]}
    is_pc = config.ports
    for device in buses[0].get("devices", []):
        kind = device.get("class_info", {}).get("class")
        if kind == _CLASS_BRIDGE or (not is_pc and kind in (_CLASS_OTHER, _CLASS_POWERPC)):
            continue
        master = masters and kind not in _CLASSES_DISK
        ops.extend(_map_device(
            device, cursor, config, board, _DECODE | _MASTER if master else _DECODE))
    if config.pair is not None:
        ops += config.select(HOST, 0)  # so that it is known what is selected
    return tuple(_placed(layout, ops))


def _layout(monitor: Monitor, machine: str, board: Wiring, *, big: bool) -> Layout:
    """What is known of the map before anybody has looked at it: where the registers are."""
    target, _, name = machine.partition("/")
    if target in _PCS and name != "microvm":
        return Layout({IO: [Range(CONFIG_ADDRESS, 4, PORT_REGION, 0, 0, "device", IO)]})
    views = parse_flat(monitor.hmp(FLAT_COMMAND))
    [memory, *_] = [view for view in views if any(each.name == MEMORY for each in view.spaces)]
    found: dict[str, Range] = {}
    for line in memory.ranges:
        if line.name in _REGIONS and line.name not in found:
            found[line.name] = Range(
                line.start, line.last + 1 - line.start, line.name, 0, line.offset, "device", MEMORY)
    return Layout({MEMORY: list(found.values())}, big=big,
                  swapped=board.swapped if big else frozenset())


def _placed(layout: Layout, ops: list[Operation]) -> Iterator[Operation]:
    for op in ops:
        addr = layout.address_of(op)
        assert addr is not None, "every operation of a set-up has a place"
        yield Operation(op.verb, Place(None, 0, addr), op.size, op.value)


def _map_device(
    device: dict[str, Any], cursor: dict[str, int], config: Config, board: Wiring, command: int
) -> Iterator[Operation]:
    function = Function(0, int(device["slot"]), int(device["function"]), 0)

    def write(register: int, value: int) -> Iterator[Operation]:
        yield from config.select(function, register)
        yield config.write(function, register, 4, value)

    for region in device.get("regions", []):
        kind, size, bar = region.get("type"), int(region.get("size", 0)), int(region["bar"])
        if kind not in cursor or not size or bar > 5:
            continue
        last = board.windows[1 if kind == MEMORY else 3]
        at = (cursor[kind] + size - 1) // size * size
        if at + size - 1 > last:
            continue
        cursor[kind] = at + size
        yield from write(BAR0 + 4 * bar, at)
        if region.get("mem_type_64"):
            yield from write(BAR0 + 4 * (bar + 1), 0)
    yield from write(COMMAND, command)
