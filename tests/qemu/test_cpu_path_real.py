"""The guest CPU's path on real QEMU: a bare-metal guest, its transcript, and the model.

Each standard build runs a PC (x86_64 q35: no faults) and a board (aarch64 virt: faults), whose
guests do random loads and stores from a list; ``cpu_witness`` compares every piece, value,
fault and byte of RAM with ``CpuPath`` over the mirror.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import agent_aarch64
import agent_x86
import pytest
from agent import MAILBOX, MAILBOX_LAST, SIZES, Access, Agent
from cpu_witness import EXTERNAL_ABORT, CpuEvidence, Judge, learn_sizes

from qemuglue.errors import ModelError, QemuDied
from qemuglue.memory import RegionKind
from qemuglue.memory.cpu_path import CpuPath, CpuRules, cpu_rules_for
from qemuglue.mirror import Mirror
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.process import QemuProcess
from qemuglue.witness.probe import learn_missing
from qemuglue.witness.ram import Coverage
from qemuglue.witness.session import Knowledge, Session

pytestmark = pytest.mark.qemu

#: Accesses of one list, and lists a machine does.
LENGTH, LISTS = 1500, 3

#: What may be stored to. Other devices could change the map, start DMA or reset the machine.
STORES = frozenset({
    "vga-lowmem", "pcie-mmcfg-mmio", "virtio-mmio", "pl011", "pl031", "gic_dist",
    "pcie-ecam",
})


#: The same for parts of a device: e1000e's multicast table (plain registers of 4 bytes, whatever
#: size they are asked in); of hpet all but the timers, which can write to memory when they fire.
STORES_IN = {"e1000e-mmio": range(0x5200, 0x5400), "hpet": range(0x100)}
#: Offsets that are accessed more often: registers that keep what is stored.
HOT = {"e1000e-mmio": range(0x51F8, 0x5240), "pl011": range(0x1C, 0x48), "hpet": range(0x140)}


@dataclass(frozen=True)
class Machine:
    """A machine with an agent. ``prepare`` readies RAM for it, ``configure`` the map."""

    config: QemuConfig
    knowledge: Knowledge
    setup: str
    faults: bool
    prepare: Callable[[Agent], None]
    configure: Callable[[Session, Random], None]

    @contextmanager
    def session(self, seed: int = 0) -> Iterator[tuple[Session, Agent]]:
        session = Session(self.config, knowledge=self.knowledge, setup=self.setup)
        session.evidence = CpuEvidence()
        with session:
            agent = Agent(session.process)
            self.prepare(agent)
            self.configure(session, Random(seed))
            for region, source in session.ram.sources.items():
                if source.coverage is Coverage.SHARED:  # what the agent has put there
                    session.ram.adopt_range(region, MAILBOX, 3 * MAILBOX)
            yield session, agent

    def learn(self) -> None:
        """Contracts, from QEMUs that are thrown away."""
        with self.session() as (session, _):
            assert learn_missing(session) == []
        with self.session() as (session, agent):
            learn_sizes(session, agent)


def config_write(session: Session, function: int, register: int, value: int, size: int) -> None:
    """A PCI configuration register of bus 0 of a PC."""
    qtest = session.process.qtest
    qtest.outl(0xCF8, 0x8000_0000 | function << 8 | register & ~3)
    write = {1: qtest.outb, 4: qtest.outl}[size]
    write(0xCFC + (register & 3), value)


def configure_pc(session: Session, rng: Random) -> None:
    """ECAM at its usual place, and the shadow areas each in a mode of its own."""
    config_write(session, 0, 0x64, 0, 4)
    config_write(session, 0, 0x60, 0xB000_0001, 4)
    config_write(session, 0, 0x90, rng.randrange(4) << 4, 1)
    for register in range(0x91, 0x97):
        config_write(session, 0, register, rng.randrange(4) | rng.randrange(4) << 4, 1)
    session.refresh()


def make_pc(build: Build, image: Path) -> Machine:
    image.write_bytes(agent_x86.image())
    config = QemuConfig(
        build=build, target="x86_64", machine="q35", ram="32M", ram_id="pc.ram",
        args=("-bios", str(image), "-cpu", "max", "-device", "VGA,romfile=", "-device", "edu",
              "-device", "e1000e,romfile="),
    )
    return Machine(config, Knowledge(), "pci", False, lambda agent: None, configure_pc)


def make_board(build: Build, image: Path) -> Machine:
    image.write_bytes(agent_aarch64.image())
    config = QemuConfig(
        build=build, target="aarch64", machine="virt", ram="32M", ram_id="mach-virt.ram",
        args=("-bios", str(image), "-cpu", "max"),
    )
    return Machine(
        config, Knowledge(), "", True, agent_aarch64.prepare, lambda session, rng: None)


@pytest.fixture(scope="module", params=[make_pc, make_board], ids=["pc", "board"])
def machine(
    build: Build, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Machine:
    """Each machine of each build, its contracts known."""
    made: Machine = request.param(build, tmp_path_factory.mktemp("agent") / "image")
    made.learn()
    return made


pc_only = pytest.mark.parametrize(
    "machine", [make_pc], ids=["pc"], indirect=True, scope="module")
board_only = pytest.mark.parametrize(
    "machine", [make_board], ids=["board"], indirect=True, scope="module")


# -- random accesses ---------------------------------------------------------------------------

#: Beyond this the agents' one to one mapping ends.
REACH = 1 << 39


class Picker:
    """Random accesses around every border of a map, and inside every section."""

    def __init__(self, session: Session, rng: Random) -> None:
        self.rng = rng
        self.view = session.mirror.memory.view
        self.ram_start = agent_aarch64.RAM if session.config.target == "aarch64" else 0
        self.sections = [s for s in self.view.cover if s.start < REACH]
        by_kind: dict[str, list[Any]] = {}
        for section in self.sections:
            by_kind.setdefault(section.region.name, []).append(section)
        self.names = list(by_kind.values())

    def access(self) -> Access:
        while True:
            section = self.rng.choice(self.rng.choice(self.names))
            size = self.rng.choice(SIZES)
            last = min(section.last, REACH - 1)
            hot = HOT.get(section.region.name)
            addr = self.rng.choice((
                section.start + self.rng.randrange(-9, 17), last - self.rng.randrange(-9, 17),
                self.rng.randrange(section.start, last + 1),
                (self.rng.randrange(section.start, last + 1) | 0xFFF) - self.rng.randrange(-3, 9),
            ))
            if hot is not None and self.rng.random() < 0.5:
                addr = section.start - section.offset + self.rng.choice(hot)
            if self.rng.random() < 0.4:
                addr &= -size
            if not 0 <= addr < REACH - 16 or self._near_agent(addr):
                continue
            big = self.ram_start == 0 and self.rng.random() < 0.3
            if self.rng.random() < 0.5:
                return Access(addr, size, None, big)
            if all(self._storable(at) for at in (addr, addr + size - 1)):
                return Access(addr, size, self.rng.getrandbits(64), big)

    def _near_agent(self, addr: int) -> bool:
        start = self.ram_start + MAILBOX - 16
        return start <= addr <= self.ram_start + MAILBOX_LAST + 16 or (
            self.ram_start != 0 and 0x40_0000 - 16 <= addr - self.ram_start <= 0x40_1010)

    def _storable(self, addr: int) -> bool:
        section = self.view.lookup(addr)
        region = section.region
        if region.name in ("pcie-mmcfg-mmio", "pcie-ecam"):
            # Bus 1 and later: nothing is there.
            return addr - section.start + section.offset >= 0x10_0000
        if region.name in STORES_IN:
            return addr - section.start + section.offset in STORES_IN[region.name]
        return region.is_ram or not section.assigned or region.name in STORES


def pick(session: Session, rng: Random, count: int = LENGTH) -> list[Access]:
    picker = Picker(session, rng)
    return [picker.access() for _ in range(count)]


def test_random_accesses(machine: Machine) -> None:
    with machine.session(1) as (session, agent):
        judge = Judge(session, agent, faults=machine.faults)
        for number in range(LISTS):
            rng = Random(number)
            if number:
                machine.configure(session, rng)
            judge.run(pick(session, rng), all_memory=number == LISTS - 1)
            assert judge.differences == []
    tally = judge.tally
    print(session.config.build.version, session.config.machine, judge.events, tally)
    assert tally["load"] + tally["store"] == LENGTH * LISTS
    wanted = {"shared", "ram", "i/o", "nothing", "crossing", "unaligned"}
    wanted |= {"faulted", "romd"} if machine.faults else {
        "failed", "rom", "read-only ram", "big"}
    assert not [kind for kind in wanted if tally[kind] < 100], tally


# -- accesses one by one -----------------------------------------------------------------------


def values(agent: Agent, *accesses: Access) -> list[tuple[int, int, int]]:
    """(value, syndrome, fault address) of loads, done after each other."""
    return [(a.value, a.syndrome, a.fault_addr) for a in agent.perform(accesses)]


def start_of(session: Session, name: str) -> int:
    return next(s.start for s in session.mirror.memory.view.sections if s.region.name == name)


def wide_loads(session: Session) -> tuple[list[Access], list[Access]]:
    """(stores, loads) at registers that are 4 bytes wide whatever is asked for."""
    if session.config.target == "aarch64":
        at = start_of(session, "pl011") + 0x20
        return [Access(at + 4, 4, 0xABCD)], [
            Access(at + offset, size) for offset, size in ((4, 2), (4, 1), (3, 2), (2, 4), (1, 4))]
    at = start_of(session, "e1000e-mmio") + 0x5200
    return [Access(at, 4, 0x81C2E3F4), Access(at + 4, 4, 0x12345678)], [
        Access(at + offset, size)
        for offset, size in ((0, 2), (0, 1), (3, 2), (1, 2), (2, 4), (1, 4), (1, 8))]


#: What the loads give on 7.2 and since 8.1, by target. On 7.2 pl011 is not yet wide.
WIDE = {
    "aarch64": ((0xABCD, 0xCD, 0xCD00, 0xABCD0000, 0xCD000000),
                (0xABCD, 0xCD, 0xCDAB, 0xABCD0000, 0xCDAB0000)),
    "x86_64": ((0x81C2E3F4, 0x81C2E3F4, 0xFAE3, 0xF6E3, 0x567881C2, 0x7881C2E3, 0x1234567881C2E3),
               (0xE3F4, 0xF4, 0x78F6, 0xF4F7, 0x5678E3F4, 0x78F6F7F7, 0x787E7E7EF6F7F7)),
}


def test_bytes_beyond_the_size_of_an_access(machine: Machine) -> None:
    """C8, as numbers, from the guest's registers."""
    old = machine.config.build.version_tuple < (8,)
    with machine.session() as (session, agent):
        stores, loads = wide_loads(session)
        agent.perform(stores)
        expected = WIDE[session.config.target][not old]
        assert values(agent, *loads) == [(value, 0, 0) for value in expected]


@board_only
def test_where_a_fault_is_said_to_be(machine: Machine) -> None:
    """C7: 7.2 tells the aligned address of the load that failed, later versions the piece's."""
    old = machine.config.build.version_tuple < (8,)
    hole = 0x9000_0000
    with machine.session() as (session, agent):
        assert not session.mirror.memory.view.lookup(hole).assigned
        load, store = EXTERNAL_ABORT, EXTERNAL_ABORT | 0x40
        last = start_of(session, "pl011") + 0xFFE
        found = values(
            agent, Access(hole + 4, 4), Access(hole + 5, 4), Access(hole + 6, 8),
            Access(last, 8), Access(hole + 5, 4, 0), Access(last, 4, 0))
        assert found == [
            (0, load, hole + 4), (0, load, hole + (4 if old else 5)),
            (0, load, hole + (0 if old else 6)), (0, load, last + 2),
            (0, store, hole + 5), (0, store, last + 2),
        ]


@pc_only
def test_read_only_ram_by_both_ways(machine: Machine) -> None:
    """C3 and R9: a shadow area that shows RAM read-only takes the host's write only."""
    with machine.session() as (session, agent):
        config_write(session, 0, 0x92, 0x11, 1)  # 0xc8000 to 0xcffff
        session.refresh()
        section = session.mirror.memory.view.lookup(0xC8000)
        assert section.readonly and section.region.kind is RegionKind.RAM
        assert values(agent, Access(0xC8010, 4, 0x11223344), Access(0xC8010, 4))[1] == (0, 0, 0)
        session.process.qtest.writel(0xC8010, 0x55667788)
        assert values(agent, Access(0xC8010, 4)) == [(0x55667788, 0, 0)]


@pc_only
def test_a_store_that_takes_away_its_own_region(machine: Machine) -> None:
    """7.2 looks the page of each byte up in its turn; later versions go on with the region
    that the store began with. The fourth byte switches the window off that it came through."""
    version = machine.config.build.version_tuple
    store = Access(0xB000_005D, 8, 0)
    rules = cpu_rules_for(version)
    wrong = replace(rules, stores_bytewise=True, lazy_lookup=not rules.lazy_lookup)
    for tried in (rules, wrong):
        with machine.session() as (session, agent):
            assert start_of(session, "pcie-mmcfg-mmio") == 0xB000_0000
            judge = Judge(session, agent, faults=False, rules=tried)
            judge.evidence.remap = session.refresh
            judge.run([store, Access(0xB000_0000, 4)], all_memory=False)
            assert not session.mirror.memory.view.lookup(0xB000_0000).assigned
            assert bool(judge.differences) == (tried is wrong), judge.differences


@board_only
def test_flash(machine: Machine) -> None:
    """C2, C3: flash is memory to loads while it is in ROMD mode; a store always calls it."""
    with machine.session() as (session, agent):
        judge = Judge(session, agent, faults=True)
        flash = start_of(session, "virt.flash1")
        loads = [Access(flash + at, size) for at in (0, 3, 0x20, 0xFFE) for size in SIZES]
        kinds = []
        # Query mode and back: the map changes with each.
        for command in (None, 0x0098_0098, 0x00FF_00FF):
            if command is not None:
                judge.run([Access(flash, 4, command)], remaps=True, all_memory=False)
            judge.run(loads, all_memory=False)
            kinds.append(session.mirror.memory.view.lookup(flash).romd)
        assert judge.differences == []
        assert kinds == [True, False, True]
        assert judge.events > len(loads), "in query mode the device was called"


def test_a_page_that_the_tlb_cannot_hold(build: Build, tmp_path: Path) -> None:
    """``CpuRules.odd``: npcm845-evb's boot ROM starts 256 bytes into a page. Whoever loads from
    its second page ends QEMU."""
    if build.version_tuple < (9, 2):
        pytest.skip("no such machine")
    addr, code_at = 0xFFFF_1000, 0x100_0000
    code, rom = tmp_path / "code", tmp_path / "rom"
    code.write_bytes(agent_aarch64.one_load(addr))
    rom.write_bytes(bytes(0x100))
    config = QemuConfig(
        build=build, target="aarch64", machine="npcm845-evb", args=(
            "-bios", str(rom),
            "-device", f"loader,file={code},addr={code_at:#x},cpu-num=0"),
    )
    with QemuProcess(config) as process:
        space = Mirror.take(process.monitor.hmp).memory
        path = CpuPath(space, rules=cpu_rules_for(build.version_tuple), faults=True)
        with pytest.raises(ModelError, match="cannot hold the page 0xffff1000 of 'irom'"):
            path.load(addr, 4, "little")
        with pytest.raises(QemuDied, match="SIGABRT"):
            process.monitor.execute("cont")
            for _ in range(1000):
                process.monitor.round_trip()


# -- with each rule broken ----------------------------------------------------------------------

#: Random accesses judged by every broken model, before those of ``wide_loads``.
RECORDED = 2000

Real = CpuRules
DEFECTS: dict[str, dict[str, Callable[..., Any]]] = {
    # C1
    "no page is shared": {"shared": lambda self, section, page, size: False},
    "only a page's start counts": {"shared": lambda self, section, page, size: (
        section.start > page)},
    "every page is shared": {"shared": lambda self, section, page, size: True},
    # C2, C3
    "flash is called for loads": {"direct_load": lambda self, section: section.region.is_ram},
    "ROM is called for loads": {"direct_load": lambda self, section: (
        Real.direct_load(self, section) and not section.readonly)},
    "ROM stores are dispatched": {"direct_store": lambda self, section: (
        section.region.is_ram and not section.region.readonly)},
    "the region's flag counts": {"discards": lambda self, section: section.region.readonly},
    "nothing vanishes": {"discards": lambda self, section: False},
    # C4, C5
    "loads in one": {"loads": lambda self, addr, size, page, direct: ((addr, size),)},
    "stores in one": {"stores": lambda self, addr, size, page, direct: ((addr, size),)},
    "never cut": {"pieces": lambda self, addr, size: ((addr, size),)},
    "bytes only": {"pieces": lambda self, addr, size: tuple(
        (addr + at, 1) for at in range(size))},
    "words at most": {"pieces": lambda self, addr, size: tuple(
        part for at, n in Real.pieces(self, addr, size)
        for part in ([(at, n)] if n < 8 else [(at, 4), (at + 4, 4)]))},
    # C6
    "the subpage takes all": {"subpage_valid": lambda self, *_: True},
    "the subpage asks as for loads": {
        "subpage_valid": lambda self, space, view, addr, size, is_write, attrs: (
            Real.subpage_valid(self, space, view, addr, size, False, attrs))},
    # C7
    "faults are ignored": {"stops": lambda self, faults: False},
    "all failures are faults": {"stops": lambda self, faults: True},
    # C8
    "values are cut": {"swapped": lambda self, value, size, swap: (
        Real.swapped(self, value, size, swap) & (1 << 8 * size) - 1)},
    "values are never swapped": {"swapped": lambda self, value, size, swap: value},
    "pieces are cut": {"appended": lambda self, before, value, size: (
        before << 8 * size | value & (1 << 8 * size) - 1)},
    "halves are cut": {"joined": lambda self, first, second, size, skip, order: Real.joined(
        self, first & (1 << 8 * size) - 1, second & (1 << 8 * size) - 1, size, skip, order)},
    "halves in the other order": {
        "joined": lambda self, first, second, size, skip, order: Real.joined(
            self, first, second, size, skip, "big")},
    "a store carries its own only": {"carried": lambda self, data, done, size: (
        data[done : done + size])},
}
#: What no machine here can show: x86 has no flash, the board no ROM and no device that widens
#: (on 7.2), and what is put together on one version is not on the other.
ONLY: dict[str, Callable[[Machine, bool], bool]] = {
    "flash is called for loads": lambda machine, old: machine.faults,
    "ROM is called for loads": lambda machine, old: not machine.faults,
    "ROM stores are dispatched": lambda machine, old: not machine.faults,
    "the region's flag counts": lambda machine, old: not machine.faults,
    "nothing vanishes": lambda machine, old: not machine.faults,
    "never cut": lambda machine, old: not old,
    "faults are ignored": lambda machine, old: machine.faults,
    "all failures are faults": lambda machine, old: not machine.faults,
    "values are cut": lambda machine, old: not (old and machine.faults),
    "values are never swapped": lambda machine, old: not (old and machine.faults),
    "pieces are cut": lambda machine, old: not old,
    "halves are cut": lambda machine, old: old and not machine.faults,
    "halves in the other order": lambda machine, old: old,
    "a store carries its own only": lambda machine, old: not old,
}


def test_every_broken_rule_is_noticed(machine: Machine) -> None:
    """One list, done once by the guest and judged by every broken model."""
    old = machine.config.build.version_tuple < (8,)
    sound = cpu_rules_for(machine.config.build.version_tuple)
    with machine.session(2) as (session, agent):
        judge = Judge(session, agent, faults=machine.faults)
        stores, loads = wide_loads(session)
        recording = judge.record([*pick(session, Random(7), RECORDED), *stores, *loads])
        assert recording.judge(sound) == []
        unnoticed = []
        for name, methods in DEFECTS.items():
            kind: type[CpuRules] = type("Wrong", (CpuRules,), methods)
            found = recording.judge(kind(**vars(sound)))
            if bool(found) != ONLY.get(name, lambda *_: True)(machine, old):
                unnoticed.append((name, found))
        other = recording.judge(cpu_rules_for((8, 1) if old else (7, 2)))
        assert other, "another version's rules fit"
        assert recording.judge(sound) == [], "the recording is as it was"
    assert unnoticed == []
    methods = {name for name, _ in inspect.getmembers(CpuRules, inspect.isfunction)
               if not name.startswith("_")}
    # The other three: a machine whose TLB fails, a device that fails a read, dirty bitmaps.
    assert methods - {name for broken in DEFECTS.values() for name in broken} == {
        "odd", "refused_bytes", "dirty_mask"}
