"""A QEMU and the model of its tree, which change by their own means: the guest's register writes
there, the same changes to regions here. For the rules of transactions, views and listeners.

What QEMU does for each write is in ``hw/pci/pci.c`` ``pci_update_mappings`` (each BAR is taken
out and put back by itself) and ``pci_default_write_config`` (bus mastering), ``hw/pci-host``
(the PAM segments in one transaction), ``hw/pci/pci_bridge.c`` ``pci_bridge_update_mappings``
(all windows in one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qemuglue.memory import AddressSpace, MemoryRegion
from qemuglue.memory.rcu import Rcu
from qemuglue.memory.topology import Topology
from qemuglue.mirror import Mirror
from qemuglue.qemu.process import QemuProcess

EDU, TESTDEV, BRIDGE = 4, 5, 7
DEVICES = (
    "-device", "edu,addr=4", "-device", "pci-testdev,addr=5", "-device", "virtio-rng-pci,addr=6",
    "-device", "pci-bridge,id=bridge,chassis_nr=1,addr=7", "-device", "edu,bus=bridge,addr=1",
)
#: Registers of the PAM segments at 0xc0000 and 0xc4000, by machine.
PAM = {"q35": 0x91, "pc": 0x5A}


def model_of(mirror: Mirror) -> list[AddressSpace]:
    """The mirror's tree with spaces of one topology over it, the two that QEMU makes first in
    front."""
    topology = Topology(rcu=Rcu())
    order = sorted(mirror.spaces, key=lambda each: each.name not in ("memory", "I/O"))
    return [AddressSpace(each.name, each.root, topology=topology) for each in order]


Shown = Counter[tuple[object, ...]]


def shown(spaces: Sequence[AddressSpace]) -> Shown:
    """Every space with all it shows."""
    return Counter(
        (space.name, *((s.start, s.size, s.region.name, s.offset) for s in space.view.sections))
        for space in spaces
    )


@dataclass(frozen=True)
class Step:
    """One change: ``act`` has the guest make it, ``model`` makes it in the model's tree;
    ``commits`` are the outermost ones that QEMU's source says it takes."""

    what: str
    commits: int
    act: Callable[[], None]
    model: Callable[[], None]


class Twins:
    """QEMU and the model of it, equal when made; ``machine`` is q35 or pc with ``DEVICES``."""

    def __init__(self, qemu: QemuProcess, machine: str) -> None:
        self.qemu = qemu
        self.machine = machine
        for slot, bars in ((EDU, (0xFE00_0000,)), (TESTDEV, (0xFD00_0000, 0xC000))):
            for bar, value in enumerate(bars):
                self.config(slot, 0x10 + 4 * bar, value)
            self.config(slot, 0x04, 0x3, 2)
        self.mirror = Mirror.take(qemu.monitor.hmp)
        assert self.mirror.exact
        self.spaces = model_of(self.mirror)
        self.topology = self.spaces[0].topology
        for region in self.mirror.regions:  # what no text says until it is in sight
            if region.name == "pam-rom":
                region.set_readonly(True)
            if region.name in ("pci_bridge_pci", "pci_bridge_io") and region.alias is None:
                region.terminates = False

    def config(self, slot: int, register: int, value: int, size: int = 4) -> None:
        """A write to a configuration register."""
        qtest = self.qemu.qtest
        qtest.outl(0xCF8, 0x8000_0000 | slot << 11 | register & ~3)
        self.qemu.transcript.read_new()
        write = {1: qtest.outb, 2: qtest.outw, 4: qtest.outl}[size]
        write(0xCFC + (register & 3), value)

    def wrong_views(self) -> str:
        """How what the model shows differs from what QEMU shows now; "" if it does not."""
        ours = shown(self.spaces)
        theirs = shown(Mirror.take(self.qemu.monitor.hmp).spaces)
        return "" if ours == theirs else f"model {ours - theirs}, QEMU {theirs - ours}"

    # -- the model's tree ----------------------------------------------------------------------

    def region(self, name: str) -> MemoryRegion:
        """The only region of this name."""
        [found] = [region for region in self.mirror.regions if region.name == name]
        return found

    def space(self, name: str) -> AddressSpace:
        """The only space of this name."""
        [found] = [space for space in self.spaces if space.name == name]
        return found

    def master(self, enabled: bool) -> None:
        """Whether the test device reaches memory."""
        [alias] = self.space("pci-testdev").root.subregions
        alias.set_enabled(enabled)

    def move(self, name: str, addr: int | None) -> None:
        """Take a BAR out, and put it elsewhere."""
        region = self.region(name)
        parent = region.container
        assert parent is not None
        parent.del_subregion(region)
        if addr is not None:
            parent.add_subregion_overlap(addr, region, 1)

    def pam(self, *modes: str) -> None:
        """The first segments from 0xc0000 on, in one transaction; the alias in use goes off
        before another, or itself, goes on."""
        with self.topology.transaction():
            for number, wanted in enumerate(modes):
                start = 0xC_0000 + 0x4000 * number
                aliases = [
                    region for region in self.region("system").subregions
                    if region.name.startswith("pam-") and region.addr == start
                ]
                for alias in aliases:
                    if alias.enabled:
                        alias.set_enabled(False)
                for alias in aliases:
                    assert alias.alias is not None
                    if alias.name == wanted and alias.alias.name == "pc.ram":
                        alias.set_enabled(True)

    def window(self, addr: int, size: int) -> None:
        """The bridge's memory window, in one transaction with its others."""
        with self.topology.transaction():
            for name in ("pci_bridge_io", "pci_bridge_mem", "pci_bridge_pref_mem"):
                for alias in [each for each in self.mirror.regions if each.name == name]:
                    parent = alias.container
                    if alias.alias is None or parent is None:
                        continue
                    where = addr if name == "pci_bridge_mem" else alias.addr
                    parent.del_subregion(alias)
                    if name == "pci_bridge_mem":
                        alias.set_size(size)
                        alias.set_alias_offset(addr)
                    parent.add_subregion_overlap(where, alias, 1)

    def _all_off(self) -> None:
        self.move("pci-testdev-mmio", None)
        self.move("pci-testdev-portio", None)
        self.master(False)

    def steps(self) -> Iterator[Step]:
        """One change after the other; each wants the ones before it done."""
        def write(slot: int, register: int, value: int, size: int = 4) -> Callable[[], None]:
            return lambda: self.config(slot, register, value, size)

        pam = PAM[self.machine]
        yield Step("a BAR moves", 2, write(EDU, 0x10, 0xFB00_0000),
                   lambda: self.move("edu-mmio", 0xFB00_0000))
        yield Step("a BAR is written as it is", 0, write(EDU, 0x10, 0xFB00_0000), lambda: None)
        yield Step("bus mastering begins", 1, write(TESTDEV, 4, 7, 2), lambda: self.master(True))
        yield Step("bus mastering goes on", 0, write(TESTDEV, 4, 7, 2), lambda: self.master(True))
        yield Step("two BARs and bus mastering end", 3, write(TESTDEV, 4, 0, 2), self._all_off)
        yield Step("two segments become RAM", 1, write(0, pam, 0x33, 1),
                   lambda: self.pam("pam-ram", "pam-ram"))
        yield Step("they stay RAM", 1, write(0, pam, 0x33, 1),
                   lambda: self.pam("pam-ram", "pam-ram"))
        yield Step("one becomes read-only", 1, write(0, pam, 0x13, 1),
                   lambda: self.pam("pam-ram", "pam-rom"))
        yield Step("a window is set, still off", 1, write(BRIDGE, 0x20, 0xFC00_FC00),
                   lambda: self.window(0, 0))
        yield Step("a bridge forwards", 1, write(BRIDGE, 4, 2, 2),
                   lambda: self.window(0xFC00_0000, 0x10_0000))
        yield Step("a window grows", 1, write(BRIDGE, 0x20, 0xFC30_FC00),
                   lambda: self.window(0xFC00_0000, 0x40_0000))
