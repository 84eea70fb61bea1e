"""A real QEMU and the model side by side, for the rules that no qtest verb reaches.

The test has the real device do something (``act``), and has the model do the same through its
own memory API (``model``). Each call that the model makes into a device must be the next event
of QEMU's transcript, none may be left over, and RAM must be equal afterwards. Nothing is
excused here. Contracts are the devices' own, from QEMU's sources: a probed one can be right for
``address_space_read`` and wrong for a single dispatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from qemuglue.campaign.settings import Settings, scene
from qemuglue.memory import AddressSpace, Contract
from qemuglue.memory.contract import Endian
from qemuglue.memory.rules import Rules
from qemuglue.qemu.builds import Build
from qemuglue.qemu.events import Event, Kind
from qemuglue.qemu.qtest import Qtest
from qemuglue.witness.evidence import Evidence
from qemuglue.witness.ram import PAGE_BITS, TrackedBacking
from qemuglue.witness.session import Session

LE = Endian.LITTLE

CONTRACTS = {
    "edu-mmio": Contract(valid_min=4, valid_max=8, impl_min=4, impl_max=8, endian=LE),
    "pci-testdev-mmio": Contract(impl_min=1, impl_max=1, endian=LE),
    "vga-lowmem": Contract(impl_min=1, impl_max=1, endian=LE),
    "msix-table": Contract(valid_min=4, valid_max=8, impl_max=4, endian=LE),
    "apic-msi": Contract(valid_min=1, valid_max=4, impl_min=1, impl_max=4),
    "hpet": Contract(valid_min=4, valid_max=8, impl_min=4, impl_max=8, endian=LE),
}
#: ``hpet_ram_ops`` took 4 bytes only.
HPET_7_2 = Contract(valid_min=4, valid_max=4, endian=LE)

#: A display with as little memory as can be: all of it is compared after every act.
VGA = "VGA,vgamem_mb=1"

#: Trace events of a device's registers that the act itself writes.
KICKS = ("virtio-pci-notify-virtio-blk", "fwcfg.dma")


class StrictEvidence(Evidence):
    """The transcript with no excuses: every event is somebody's."""

    def _is_side(self, event: Event) -> bool:
        return False


class Stage:
    """One running QEMU with its mirror."""

    def __init__(self, session: Session) -> None:
        self.session = session
        #: Lines of the transcript during the last act that are no events.
        self.texts: list[str] = []
        self.attach()

    @property
    def qtest(self) -> Qtest:
        return self.session.process.qtest

    @property
    def memory(self) -> AddressSpace:
        return self.session.mirror.memory

    def space(self, name: str) -> AddressSpace:
        """The only space of this name."""
        [found] = [space for space in self.session.mirror.spaces if space.name == name]
        return found

    def attach(self) -> None:
        """Give the regions their contracts."""
        old = self.session.config.build.version_tuple < (8,)
        for region in self.session.mirror.regions:
            if region.name in CONTRACTS:
                region.contract = CONTRACTS[region.name]
                if region.name == "hpet" and old:
                    region.contract = HPET_7_2

    def remapped(self) -> None:
        """The test changed the map."""
        self.session.refresh()
        assert self.session.mirror.exact
        self.attach()

    def judge_by(self, rules: Rules) -> None:
        """From now on the model has these rules."""
        self.session.rules = rules
        self.session.attach()
        self.attach()

    def prepare(self, addr: int, data: bytes) -> None:
        """Put bytes into RAM on both sides."""
        self.qtest.write_bytes(addr, data)
        self.session.events()
        assert self.memory.write(addr, data) == 0

    def seen(self, act: Callable[[], object]) -> list[Event]:
        """What QEMU does of its own during ``act``."""
        self.session.events()
        act()
        events = self.session.events()
        self.texts = [event.text for event in events if event.kind is Kind.OTHER]
        return [event for event in events if event.kind is not Kind.OTHER
                and event.name not in KICKS]

    def judged(
        self, act: Callable[[], object], model: Callable[[], object],
        windows: tuple[tuple[int, int], ...] = (),
    ) -> list[str]:
        """How the two differ, in sentences. ``windows``: (address, bytes) of RAM that may have
        been written past the model's account of its writes (by a mapping, say)."""
        evidence = self.session.evidence
        evidence.load(self.seen(act))
        model()
        evidence.finish()
        found = []
        if evidence.mismatch is not None:
            found.append("model: {}; QEMU: {}".format(*evidence.mismatch.describe()))
        for addr, size in windows:
            section = self.memory.view.lookup(addr)
            backing = section.region.backing
            assert isinstance(backing, TrackedBacking)
            first = addr - section.start + section.offset
            backing.dirty.update(range(first >> PAGE_BITS, (first + size - 1 >> PAGE_BITS) + 1))
        ram = self.session.ram
        found += [difference.describe() for difference in ram.check_all()]
        if found:
            ram.adopt_all()
        return found


@contextmanager
def stage(
    build: Build, *devices: str, args: tuple[str, ...] = (), trace: tuple[str, ...] = (),
    rules: Rules | None = None,
) -> Iterator[Stage]:
    """A q35 with these devices, their BARs assigned."""
    made = scene(Settings(devices=devices, qemu_args=args, build=build.name))
    config = replace(made.config, extra_trace=trace)
    with_rules = replace(made, config=config, rules=rules)
    session = with_rules.session()
    session.evidence = StrictEvidence()
    with session:
        yield Stage(session)


def variant(rules: Rules, wrong: type[Rules]) -> Rules:
    """``rules`` as the class ``wrong`` has them: a planted defect."""
    return wrong(**{name: getattr(rules, name) for name in Rules.__dataclass_fields__})
