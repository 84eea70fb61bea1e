"""PCI functions as a program sees them: where they are configured and what they map.

Configuration space is reached by the two ports of a PC (address, then data), by two registers in
memory that do the same, or through a window in memory that shows every register (ECAM, which QEMU
names ``pcie-mmcfg-mmio``). Only widths and places are known here, no device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Place
from qemuglue.program.verbs import ADDRESS_MASK, IO, MEMORY

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
#: The region of the ports, and of the window in memory.
PORT_REGION, WINDOW_REGION = "pci-conf-idx", "pcie-mmcfg-mmio"
#: Registers in memory that take an address, and those behind it that show what is there. Of
#: namesakes the first in the view belongs to the bus that devices are plugged into.
PAIRS = (
    ("pci-conf-idx", "pci-conf-data"), ("pci-conf-idx", "pci-data-idx"),
    ("unin-pci-conf-idx", "unin-pci-conf-data"),
)

COMMAND, BAR0, ROM, BRIDGE_ROM = 0x04, 0x10, 0x30, 0x38
BUSES, IO_RANGE, MEMORY_RANGE, PREFETCH_RANGE = 0x18, 0x1C, 0x20, 0x24
BRIDGE_CONTROL = 0x3E
CLASS_BRIDGE = 0x0604
#: The number QMP gives the base address register of an option ROM.
ROM_BAR = 6

_OUT = {1: "outb", 2: "outw", 4: "outl"}
_IN = {1: "inb", 2: "inw", 4: "inl"}
_WRITE = {1: "writeb", 2: "writew", 4: "writel"}
_READ = {1: "readb", 2: "readw", 4: "readl"}


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register. ``number`` 0 to 5, or ``ROM_BAR``; ``address`` is what it holds
    where it is mapped, else -1; ``space`` is ``memory`` or ``io``."""

    number: int
    size: int
    address: int
    space: str
    wide: bool = False

    def register(self, is_bridge: bool) -> int:
        """Its offset in configuration space."""
        if self.number == ROM_BAR:
            return BRIDGE_ROM if is_bridge else ROM
        return BAR0 + 4 * self.number


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function. ``kind`` is its class (base and sub class, 0x0604 for a bridge);
    ``qdev`` the id its user gave it, or its path, or ""."""

    bus: int
    slot: int
    number: int
    kind: int
    bars: tuple[Bar, ...] = ()
    qdev: str = ""

    @property
    def is_bridge(self) -> bool:
        return self.kind == CLASS_BRIDGE


#: The host bridge is the first function of every PC, whether QMP lists it or not.
HOST = Function(0, 0, 0, 0x0600)


def functions_of(answer: object) -> tuple[Function, ...]:
    """The functions in QMP's answer to ``query-pci``, buses in order; what is no such answer
    has none."""
    buses = answer if isinstance(answer, list) else []
    found: list[Function] = []
    for bus in buses:
        found += _devices(bus.get("devices", []) if isinstance(bus, dict) else [])
    return tuple(found)


def _devices(devices: object) -> Iterator[Function]:
    for each in devices if isinstance(devices, list) else []:
        try:
            yield Function(
                int(each["bus"]), int(each["slot"]), int(each["function"]),
                int(each["class_info"]["class"]), tuple(_bars(each.get("regions", []))),
                str(each.get("qdev_id", "")),
            )
            below = each.get("pci_bridge", {}).get("devices", [])
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        yield from _devices(below)


def _bars(regions: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    for each in regions:
        size, number = int(each["size"]), int(each["bar"])
        if 0 <= number <= ROM_BAR and size > 0 and not size & (size - 1):
            yield Bar(number, size, int(each["address"]),
                      IO if each["type"] == "io" else MEMORY,
                      bool(each.get("mem_type_64")) and number < 5)


class Config:
    """Configuration space of one machine, by the way it offers: ports where it has them."""

    def __init__(self, layout: Layout) -> None:
        shown = {each.region for each in layout.ranges(MEMORY)}
        self.ports = any(each.region == PORT_REGION for each in layout.ranges(IO))
        self.window = WINDOW_REGION in shown
        #: The two registers, where that is the way.
        self.pair = next((pair for pair in PAIRS if shown.issuperset(pair)), None)
        if self.ports or self.window:
            self.pair = None
        self._layout = layout

    def __bool__(self) -> bool:
        return self.ports or self.window or self.pair is not None

    def select(self, function: Function, register: int) -> list[Operation]:
        """What comes before accesses to the four bytes that ``register`` is among: an operation
        where there are ports or a pair of registers."""
        bdf = function.bus << 16 | function.slot << 11 | function.number << 8
        value = 0x8000_0000 | bdf | register & 0xFC
        if self.ports:
            return [Operation("outl", Place(None, 0, CONFIG_ADDRESS), 4, value)]
        if self.pair is not None:
            return [self._sent(self.pair[0], 0, 4, value)]
        return []

    def write(self, function: Function, register: int, size: int, value: int) -> Operation:
        """A write to a register that is selected."""
        value &= (1 << 8 * size) - 1
        if self.ports:
            return Operation(_OUT[size], Place(None, 0, CONFIG_DATA + (register & 3)), size, value)
        if self.pair is not None:
            return self._sent(self.pair[1], register & 3, size, value)
        return Operation(_WRITE[size], self._place(function, register), size, value)

    def read(self, function: Function, register: int, size: int) -> Operation:
        """A read of a register that is selected."""
        if self.ports:
            return Operation(_IN[size], Place(None, 0, CONFIG_DATA + (register & 3)), size)
        if self.pair is not None:
            return Operation(_READ[size], Place(self.pair[1], 0, register & 3), size)
        return Operation(_READ[size], self._place(function, register), size)

    def _sent(self, region: str, offset: int, size: int, value: int) -> Operation:
        return Operation(_WRITE[size], Place(region, 0, offset), size,
                         self._layout.number(region, value, size))

    @staticmethod
    def _place(function: Function, register: int) -> Place:
        offset = function.bus << 20 | function.slot << 15 | function.number << 12 | register
        return Place(WINDOW_REGION, 0, offset & ADDRESS_MASK)


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a machine's board says of its PCI bus. Windows are (memory start, last, ports start,
    last) as devices are told of them; ``swapped`` the registers of configuration space that have
    not the target's byte order; ``opens`` are (region, offset, value of 4 bytes) that connect the
    bus and memory, in order."""

    windows: tuple[int, int, int, int]
    swapped: frozenset[str] = frozenset()
    opens: tuple[tuple[str, int, int], ...] = ()


def _e500() -> Iterator[tuple[str, int, int]]:
    """Windows of Freescale's bridge: base on the other side, base here, then size and on
    (``e500_update_pow``, ``e500_update_piw``): memory, ports, and RAM for the devices."""
    for offset, to, at, log2 in (
        (0x20, 0xC000_0000, 0xC_0000_0000, 29), (0x40, 0, 0xF_E100_0000, 16), (0x1E0, 0, 0, 30),
    ):
        yield "pci.reg", offset, to >> 12
        yield "pci.reg", offset + 8, at >> 12
        yield "pci.reg", offset + 0x10, 1 << 31 | log2 - 1


_ARM = Wiring((0x1000_0000, 0x3EFE_FFFF, 0x1000, 0xFFFF))
_PC = Wiring((0xE000_0000, 0xFDFF_FFFF, 0xC000, 0xEFFF))
#: With ``pcie=on``; it has no ports for PCI.
_MICROVM = Wiring((0xC000_0000, 0xDFFF_FFFF, 0xC000, 0xEFFF))
_MALTA = Wiring((0x1200_0000, 0x13FF_FFFF, 0x2000, 0xFFFF), frozenset({"pci-conf-idx"}))
_MAC = Wiring(
    (0x8000_0000, 0x8FFF_FFFF, 0x1000, 0xFFFF),
    frozenset({"unin-pci-conf-idx", "unin-pci-conf-data"}))
#: By the beginning of ``TARGET/NAME``. Sources: ``hw/arm/virt.c``, ``hw/riscv/virt.c``,
#: ``hw/i386/microvm.c``, ``hw/loongarch/virt.c``,
#: ``hw/pci-host/{grackle,uninorth,ppce500,gt64120}.c``.
_WIRINGS = (
    ("aarch64/virt", _ARM), ("arm/virt", _ARM),
    ("x86_64/microvm", _MICROVM), ("i386/microvm", _MICROVM), ("x86_64/", _PC), ("i386/", _PC),
    ("riscv", Wiring((0x4000_0000, 0x7FFF_FFFF, 0x1000, 0xFFFF))),
    ("loongarch64/virt", Wiring((0x4000_0000, 0x7FFF_FFFF, 0x4000, 0xFFFF))),
    ("ppc/g3beige", Wiring((0x8000_0000, 0xFDFF_FFFF, 0x1000, 0xFFFF),
                           frozenset({"pci-conf-idx", "pci-data-idx"}))),
    # Before its registers had names of their own (7.2) nothing is set up here.
    ("mips/malta", _MALTA), ("mips64/malta", _MALTA),
    ("mipsel/malta", _MALTA), ("mips64el/malta", _MALTA),
    ("ppc/mac99", _MAC), ("ppc64/mac99", _MAC),
    ("ppc/ppce500", Wiring((0xC000_0000, 0xDFFF_FFFF, 0x1000, 0xFFFF),
                           frozenset({"pci-conf-data"}), tuple(_e500()))),
    ("ppc64/ppce500", Wiring((0xC000_0000, 0xDFFF_FFFF, 0x1000, 0xFFFF),
                             frozenset({"pci-conf-data"}), tuple(_e500()))),
)


def wiring(machine: str) -> Wiring | None:
    """How the machine ``TARGET/NAME`` has its PCI bus; None where nobody has said."""
    return next((found for name, found in _WIRINGS if machine.startswith(name)), None)


def windows(machine: str) -> tuple[int, int, int, int]:
    """(memory start, memory last, ports start, ports last) that devices can be given; a PC's
    where nothing is known."""
    return (wiring(machine) or _PC).windows
