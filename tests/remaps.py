"""Random changes of a real machine's memory map, made as a guest or a user makes them.

A ``Board`` knows the ways one machine can be remapped: ``kinds`` maps the name of each to a
function that does one such change; those of ``rarely`` mostly change nothing. Everything
random comes from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from qemuglue.mirror import Mirror
from qemuglue.qemu.monitor import MonitorRefused
from qemuglue.qemu.process import QemuProcess
from qemuglue.qemu.qtest import Qtest

PCI_DEVICES = (
    "-device", "edu", "-device", "pci-testdev", "-device", "virtio-rng-pci",
    "-device", "VGA", "-device", "e1000e",
    "-device", "pci-bridge,id=one,chassis_nr=1", "-device", "edu,bus=one,addr=1",
    "-device", "pci-bridge,id=two,bus=one,addr=2,chassis_nr=2", "-device", "edu,bus=two,addr=1",
)
HOTPLUG = ("-device", "pcie-root-port,id=rp,chassis=9,slot=9", "-m", "128,slots=8,maxmem=2G")
PAM_VALUES = (0x00, 0x11, 0x22, 0x33, 0x31, 0x02, 0x10)


class Ports:
    """PCI configuration by the two ports of a PC."""

    def __init__(self, qtest: Qtest) -> None:
        self.qtest = qtest

    def _select(self, slot: tuple[int, int], register: int) -> int:
        bus, device = slot
        # The function of a device stands above its register.
        self.qtest.outl(0xCF8, 0x8000_0000 | bus << 16 | device << 11 | register & 0x7FC)
        return 0xCFC + (register & 3)

    def read(self, slot: tuple[int, int], register: int) -> int:
        return self.qtest.inl(self._select(slot, register))

    def write(self, slot: tuple[int, int], register: int, value: int, size: int = 4) -> None:
        port = self._select(slot, register)
        put = {1: self.qtest.outb, 2: self.qtest.outw, 4: self.qtest.outl}[size]
        put(port, value & (1 << 8 * size) - 1)


class Memory:
    """PCI configuration in memory, as ECAM has it."""

    def __init__(self, qtest: Qtest, base: int) -> None:
        self.qtest = qtest
        self.base = base

    def _at(self, slot: tuple[int, int], register: int) -> int:
        return self.base + (slot[0] << 20 | slot[1] << 15) + register

    def read(self, slot: tuple[int, int], register: int) -> int:
        return self.qtest.readl(self._at(slot, register))

    def write(self, slot: tuple[int, int], register: int, value: int, size: int = 4) -> None:
        put = {1: self.qtest.writeb, 2: self.qtest.writew, 4: self.qtest.writel}[size]
        put(self._at(slot, register), value & (1 << 8 * size) - 1)


class Uninorth:
    """PCI configuration of ppc's mac99: an address and a data register, little-endian."""

    ADDRESS, DATA = 0xF280_0000, 0xF2C0_0000

    def __init__(self, qtest: Qtest) -> None:
        self.qtest = qtest

    def _select(self, slot: tuple[int, int], register: int) -> None:
        bus, device = slot
        self.qtest.writel(self.ADDRESS, _turned(
            0x8000_0000 | bus << 16 | device << 11 | register & 0xFC
        ))

    def read(self, slot: tuple[int, int], register: int) -> int:
        self._select(slot, register)
        return _turned(self.qtest.readl(self.DATA))

    def write(self, slot: tuple[int, int], register: int, value: int, size: int = 4) -> None:
        shift, mask = 8 * (register & 3), (1 << 8 * size) - 1
        word = self.read(slot, register) & ~(mask << shift) | (value & mask) << shift
        self.qtest.writel(self.DATA, _turned(word))


def _turned(word: int) -> int:
    return int.from_bytes(word.to_bytes(4, "little"), "big")


Config = Ports | Memory | Uninorth


@dataclass(frozen=True, slots=True)
class Device:
    """A PCI device: its place, its base addresses as (register, sort, size), the register of
    its ROM's (0: it has none)."""

    slot: tuple[int, int]
    bridge: bool
    bars: tuple[tuple[int, str, int], ...]
    rom: int


def scan(config: Config, bus: int = 0, unused: Iterator[int] | None = None) -> list[Device]:
    """Every device, buses behind bridges included; they are numbered on the way."""
    unused = iter(range(1, 64)) if unused is None else unused
    found: list[Device] = []
    for number in range(32 if bus == 0 else 4):
        slot = bus, number
        if config.read(slot, 0) & 0xFFFF in (0, 0xFFFF):
            continue
        bridge = config.read(slot, 0x0C) >> 16 & 0x7F == 1
        found.append(Device(slot, bridge, tuple(_bars(config, slot, 2 if bridge else 6)),
                            0 if bridge else _rom(config, slot)))
        if bridge:
            secondary = next(unused)
            config.write(slot, 0x18, bus | secondary << 8 | 0xFF << 16)
            found += scan(config, secondary, unused)
    return found


def _bars(config: Config, slot: tuple[int, int], count: int) -> Iterator[tuple[int, str, int]]:
    skip = False
    for register in range(0x10, 0x10 + 4 * count, 4):
        if skip:
            skip = False
            continue
        old = config.read(slot, register)
        config.write(slot, register, 0xFFFF_FFFF)
        mask = config.read(slot, register)
        config.write(slot, register, old)
        if mask & 1:
            yield register, "io", (~(mask & 0xFFFC) & 0xFFFF) + 1
        elif mask:
            skip = mask & 6 == 4
            yield register, "mem64" if skip else "mem", (~(mask & ~15) & 0xFFFF_FFFF) + 1


def _rom(config: Config, slot: tuple[int, int]) -> int:
    config.write(slot, 0x30, 0xFFFF_F800)
    there = config.read(slot, 0x30)
    config.write(slot, 0x30, 0)
    return 0x30 if there else 0


class Board:
    """One running machine. ``base`` is an address its PCI devices can be mapped at."""

    def __init__(self, process: QemuProcess, mirror: Mirror, rng: Random) -> None:
        self.process = process
        self.rng = rng
        self.qtest = process.qtest
        name = process.config.machine
        self.config: Config = Uninorth(self.qtest)
        self.base = 0x8000_0000
        if name in ("q35", "pc"):
            self.config, self.base = Ports(self.qtest), 0xFE00_0000
        elif name == "virt":
            ecam = next(s for s in mirror.memory.view if s.region.name == "pcie-mmcfg-mmio")
            self.config, self.base = Memory(self.qtest, ecam.start), 0x1000_0000
        self.devices = scan(self.config)
        self.kinds: dict[str, Callable[[], object]] = {
            "bar": self.bar, "command": self.command, "reset": self.reset,
        }
        self.rarely: dict[str, Callable[[], object]] = {}
        if any(device.rom for device in self.devices):
            self.kinds["rom"] = self.rom
        if any(bar[1] == "mem64" for device in self.devices for bar in device.bars):
            self.kinds["bar64"] = self.bar64
        if any(device.bridge for device in self.devices):
            self.kinds |= {
                "bridge io": self.bridge_io, "bridge memory": self.bridge_memory,
                "bridge prefetchable": self.bridge_prefetchable, "bridge vga": self.bridge_vga,
            }
            self.rarely["same again"] = self.same_again
        if name == "q35":
            self.kinds |= {
                "pam": lambda: self.pam(0x90), "smram": self.q35_smram, "ecam": self.ecam,
                "chipset": self.ich9, "dimm": self.dimm, "hotplug": self.hotplug_pcie,
            }
        elif name == "pc":
            self.kinds |= {
                "pam": lambda: self.pam(0x59), "smram": self.pc_smram, "chipset": self.piix4,
                "dimm": self.dimm, "hotplug": self.hotplug_acpi,
            }
        self._made = 0

    # -- PCI ---------------------------------------------------------------------------------

    def decode_all(self) -> Iterator[Device]:
        """Switch every device's decoding on, one at a time."""
        for device in self.devices:
            self.config.write(device.slot, 4, 7, 2)
            yield device

    def address(self, size: int) -> int:
        """Mostly near the base, so that things overlap; now and then anywhere."""
        if self.rng.random() < 0.2:
            return self.rng.choice((0, 0xFFFF_F000, self.base - size // 2,
                                    self.rng.getrandbits(32)))
        return self.base + self.rng.randrange(0, 0x40_0000, 0x1000)

    def bar(self) -> None:
        self._bar("mem", "io")

    def bar64(self) -> None:
        self._bar("mem64")

    def _bar(self, *sorts: str) -> None:
        slot, (register, sort, size) = self.rng.choice([
            (device.slot, bar) for device in self.devices for bar in device.bars
            if bar[1] in sorts
        ])
        if sort == "io":
            self.config.write(slot, register, self.rng.choice((0, 0xC000, 0xC020, 0x3C0, 0xFFE0)))
            return
        self.config.write(slot, register, self.address(size))
        if sort == "mem64":
            self.config.write(slot, register + 4, self.rng.choice((0, 0, 0, 1, 0x80)))

    def command(self) -> None:
        self.config.write(self.rng.choice(self.devices).slot, 4,
                          self.rng.choice((0, 1, 2, 3, 7, 7, 7)), 2)

    def rom(self) -> None:
        device = self.rng.choice([device for device in self.devices if device.rom])
        self.config.write(device.slot, device.rom,
                          self.address(0x10000) & ~0x7FF | self.rng.choice((0, 1, 1)))

    def _bridge(self) -> tuple[int, int]:
        return self.rng.choice([device.slot for device in self.devices if device.bridge])

    def _window(self) -> int:
        first = (self.base >> 16) + 0x10 * self.rng.randrange(4)
        return first | first + 0x10 * self.rng.randrange(-1, 4) << 16

    def bridge_io(self) -> None:
        first = self.rng.choice((0xC0, 0x10, 0x00))
        self.config.write(self._bridge(), 0x1C, first | self.rng.choice((first, 0xF0)) << 8, 2)

    def bridge_memory(self) -> None:
        self.config.write(self._bridge(), 0x20, self._window())

    def bridge_prefetchable(self) -> None:
        slot = self._bridge()
        self.config.write(slot, 0x24, self._window())
        if self.rng.random() < 0.2:
            self.config.write(slot, 0x28, 1)
            self.config.write(slot, 0x2C, 1)

    def bridge_vga(self) -> None:
        self.config.write(self._bridge(), 0x3E, self.rng.choice((0, 8, 0x18)), 2)

    def same_again(self) -> None:
        """A bridge's own values: QEMU takes its windows away and puts them back."""
        slot = self._bridge()
        register = self.rng.choice((0x1C, 0x20, 0x24))
        self.config.write(slot, register, self.config.read(slot, register))

    # -- PCs ---------------------------------------------------------------------------------

    def pam(self, first: int) -> None:
        self.config.write((0, 0), first + self.rng.randrange(7), self.rng.choice(PAM_VALUES), 1)

    def q35_smram(self) -> None:
        register, values = self.rng.choice((
            (0x9D, (0x0A, 0x4A, 0x2A, 0x02, 0x42)), (0x9E, (0x00, 0x01, 0x03, 0x05, 0x81)),
        ))
        self.config.write((0, 0), register, self.rng.choice(values), 1)

    def pc_smram(self) -> None:
        self.config.write((0, 0), 0x72, self.rng.getrandbits(8) & 0xEF, 1)

    def ecam(self) -> None:
        self.config.write((0, 0), 0x60, self.rng.choice(
            (0, 0xB000_0001, 0xE000_0001, 0xB000_0003, 0xE000_0005, 0xC000_0001)
        ))

    def ich9(self) -> None:
        function, register, values = self.rng.choice((
            (0, 0x40, (0x600, 0xB00)), (0, 0x44, (0, 0x80)), (3, 0x40, (0, 1)),
            (0, 0xF0, (0xFED1_C001, 0xFED1_C000, 0xE000_0001)), (3, 0x20, (0xB100, 0xC000)),
        ))
        self.config.write((0, 0x1F), function << 8 | register, self.rng.choice(values))

    def piix4(self) -> None:
        register, values = self.rng.choice((
            (0x40, (0x600, 0xB00, 0)), (0x80, (0, 1)), (0x90, (0xB100, 0xC000)), (0xD2, (0, 9)),
        ))
        self.config.write((0, 1), 3 << 8 | register, self.rng.choice(values))

    # -- devices and memory come and go ------------------------------------------------------

    def reset(self) -> None:
        self.process.monitor.execute("system_reset")
        self.process.monitor.round_trip()
        scan(self.config)  # the buses lost their numbers

    def dimm(self) -> None:
        execute = self.process.monitor.execute
        plugged = [each["data"]["id"] for each in execute("query-memory-devices")]
        if len(plugged) < 2:
            self._made += 1
            name = f"dimm{self._made}"
            execute("object-add", {"qom-type": "memory-backend-ram", "id": f"of-{name}",
                                   "size": 128 << 20})
            execute("device_add", {"driver": "pc-dimm", "id": name, "memdev": f"of-{name}"})
            return
        self._remove(self.rng.choice(plugged))
        for slot in range(8):  # the guest lets go, as ACPI's memory hot-plug has it
            self.qtest.outl(0xA00, slot)
            if self.qtest.inb(0xA14) & 4:
                self.qtest.outb(0xA14, 8)

    def _remove(self, name: str) -> None:
        with suppress(MonitorRefused):  # it was asked for already, and not let go
            self.process.monitor.execute("device_del", {"id": name})

    def _is_plugged(self) -> bool:
        peripheral = self.process.monitor.execute("qom-list", {"path": "/machine/peripheral"})
        return any(each["name"] == "plugged" for each in peripheral)

    def _plug(self, bus: str, addr: str) -> None:
        driver = self.rng.choice(("edu", "virtio-net-pci", "pci-testdev"))
        self.process.monitor.execute(
            "device_add", {"driver": driver, "id": "plugged", "bus": bus, "addr": addr}
        )

    def hotplug_acpi(self) -> None:
        if not self._is_plugged():
            self._plug("pci.0", "0x1d")
        else:
            self._remove("plugged")
            self.qtest.outl(0xAE10, 0)
            self.qtest.outl(0xAE08, 1 << 0x1D)

    def hotplug_pcie(self) -> None:
        """Removal waits for the guest; a reset carries it out."""
        if not self._is_plugged():
            self._plug("rp", "0")
        else:
            self._remove("plugged")
            self.reset()
