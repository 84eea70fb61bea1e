"""A board with an SMMUv3, a virtio disk behind it, and a guest that is careless with both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from random import Random

from iommu_rig import Rig, request
from real_stage import Stage, StrictEvidence
from virtio_disk import TRACE
from virtio_driver import DEVICE, DRIVE, VirtioBlk

from qemuglue.campaign.settings import Settings, scene
from qemuglue.qemu.builds import Build
from qemuglue.qemu.qtest import Qtest
from qemuglue.witness.iommu import smmu

RAM, ECAM, WINDOW = 0x4000_0000, 0x40_1000_0000, 0x1000_0000
#: What lies in RAM, from its start: tables, queues, and what I/O addresses from 0 on show.
STREAMS, LEVEL_2, CONTEXT, COMMANDS, EVENTS = 0x10_0000, 0x10_8000, 0x10_A000, 0x11_0000, 0x12_0000
TABLES, SECOND = 0x14_0000, 0x18_0000
HEADER, ANSWER = 0x1000, 0x2000
LOOK = (smmu.CMDQ_CONS, smmu.CMDQ_PROD, smmu.EVENTQ_PROD, smmu.GERROR, smmu.GERRORN, smmu.CR0)


class ArmStage(Stage):
    """``virt``; what mappings write past the model's account is anywhere in the first MiB."""

    def judged(
        self, act: Callable[[], object], model: Callable[[], object],
        windows: tuple[tuple[int, int], ...] = (),
    ) -> list[str]:
        return super().judged(act, model, ((RAM, 0x10_0000), (RAM + 0x20_0000, 0x1_0000)))


class ArmBlk(VirtioBlk):
    """The disk behind ``virt``'s PCI bridge: slot 1 of bus 0."""

    def config_read(self, slot: int, register: int) -> int:
        return self.qtest.readl(ECAM + (slot << 15) + register)

    def master(self) -> None:
        self.qtest.writew(ECAM + (self.slot << 15) + 4, 6)
        at = self.config_read(self.slot, 0x34) & 0xFF
        while (found := self.config_read(self.slot, at)) & 0xFF != 0x11:
            at = found >> 8 & 0xFF
        self.qtest.writew(ECAM + (self.slot << 15) + at + 2, 0x8000)


def set_up(qtest: Qtest) -> None:
    """Base addresses for the disk in slot 1."""
    at = ECAM + (1 << 15)
    for register, value in ((0x14, WINDOW), (0x20, WINDOW + 0x4000), (0x24, 0)):
        qtest.writel(at + register, value)
    qtest.writew(at + 4, 2)


class SmmuRig(Rig):
    def put(self, addr: int, data: bytes) -> None:
        if any(start <= addr < start + size for start, size in self.identity):
            self.on.prepare(RAM + addr, data)

    def fill(self, addr: int, data: bytes) -> None:
        self.on.prepare(RAM + addr, data)


@contextmanager
def smmu_rig(build: Build, machine: str = "") -> Iterator[SmmuRig]:
    made = scene(Settings(
        machine="aarch64/virt", devices=(f"{DEVICE},iommu_platform=on",), build=build.name,
        qemu_args=(*DRIVE, "-machine", f"iommu=smmuv3{machine}")))
    session = replace(made, config=replace(made.config, extra_trace=TRACE)).session()
    session.evidence = StrictEvidence()
    with session:
        on = ArmStage(session)
        set_up(on.qtest)
        on.remapped()
        blk = ArmBlk(on.qtest, session.mirror)
        blk.master()
        yield SmmuRig(on, blk, smmu.make, smmu.REGION)


@dataclass
class SmmuGuest:
    """Granule 4, 16 or 64 KiB; ``stage`` 1, 2 or 3 (nested). I/O addresses from 0 on lead to RAM
    from its start on, as far as rings and headers go; the others anywhere."""

    rig: SmmuRig
    rng: Random
    granule: int = 12
    stage: int = 1
    two_levels: bool = False
    #: Whether the second stage's first tables are several side by side (4 KiB granule).
    concatenated: bool = False
    bad: list[str] = field(default_factory=list)
    prod: int = 0

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bad += [f"register {offset:#x}: {each}"
                     for each in self.rig.write(offset, value, size)]

    # -- tables --------------------------------------------------------------------------------

    @property
    def page(self) -> int:
        return 1 << self.granule

    @property
    def block(self) -> int:
        """Bytes of an entry of level 2."""
        return 1 << 2 * self.granule - 3

    @property
    def size(self) -> int:
        """T0SZ: as many address bits as make level 2 the first."""
        return 64 - (3 * self.granule - 6)

    @property
    def pages(self) -> list[int]:
        """I/O addresses of pages that the guest maps as it likes."""
        first = 0x4_0000 // self.page
        return [(first + n) * self.page for n in range(12)]

    @property
    def edges(self) -> list[int]:
        return [*self.pages, *self.pages, *self.blocks, RAM, RAM + 0x4_0000,
                1 << 64 - self.size, 1 << 47, 1 << 55, (1 << 64) - 0x1000,
                (1 << 64) - (1 << 64 - self.size)]

    @property
    def blocks(self) -> list[int]:
        return [n * self.block for n in (1, 2, 3)] if self.granule == 12 else []

    def entry(self, second: bool, large: bool = False) -> int:
        """A random entry: where to, and what is allowed."""
        rng = self.rng
        to = rng.choice((RAM, RAM + 0x1_0000, RAM + 0x2_0000, RAM + 0x3_0000, 0x901_0000,
                         RAM + 0x3FF_0000, RAM + 0x3FF_F000, 0x4800_0000)) & -self.page
        if large:
            to = rng.choice((RAM + 0x20_0000, 0x4800_0000, RAM + 0x380_0000)) & -self.block
        perm = rng.choice((0, 1, 2, 3, 3, 3)) if second else rng.choice((0, 0, 0, 1, 2, 3))
        entry = to | (1 if large else 3) | perm << 6 | 1 << 10
        if rng.random() < 0.15:
            entry ^= rng.choice((1, 2, 1 << 10, 1 << 44, 1 << 46, 1 << 50, 1 << 61))
        return entry

    def level2(self, table: int) -> int:
        """Where the table of level 2 is: behind one of level 1 where 4 KiB pages need one."""
        longer = table == SECOND and self.granule == 12 and not self.concatenated
        return table + 0x1000 * longer

    def leaf(self, table: int, addr: int, entry: int) -> None:
        """An entry of level 3."""
        index = addr >> self.granule & (1 << self.granule - 3) - 1
        self.rig.words(table + 0x1_0000 + 8 * index, [entry])

    def blocks_at(self, table: int, addr: int, entry: int) -> None:
        """An entry of level 2."""
        self.rig.words(self.level2(table) + 8 * (addr // self.block), [entry])

    def tables(self, table: int, second: bool) -> None:
        """Level 3 lies 64 KiB behind the others. The first 64 KiB and the rings stay what they
        are."""
        allow = (3 << 6 if second else 0) | 1 << 10
        self.blocks_at(table, 0, RAM + table + 0x1_0000 | 3)
        for at in (*range(0, 0x1_0000, self.page), *range(0x20_0000, 0x21_0000, self.page)):
            if at < self.block:
                self.leaf(table, at, RAM + at | 3 | allow)
        if self.granule == 12:
            self.blocks_at(table, 0x20_0000, RAM + 0x20_0000 | 1 | allow)
        if second:  # what the first stage's tables and descriptors lie in
            if self.level2(table) != table:
                self.rig.words(table, [RAM + table + 0x1000 | 3, RAM | 1 | allow])
            else:
                self.blocks_at(table, RAM, RAM & -self.block | 1 | allow)
        for addr in self.pages:
            self.leaf(table, addr, self.entry(second))
        for addr in self.blocks[1:]:
            self.blocks_at(table, addr, self.entry(second, True))

    def stream_entry(self, config: int | None = None, **changes: int) -> None:
        """The disk's stream table entry."""
        config = 4 | self.stage if config is None else config
        code = {12: 0, 16: 1, 14: 2}[self.granule]
        words = [0] * 16
        words[0] = changes.get("valid", 1) | config << 1 | (RAM + CONTEXT & 0xFFFF_FFC0)
        words[1] = changes.get("contexts", 0) << 27
        words[4] = changes.get("vmid", 5)
        words[5] = (self.second_size | self.second_start << 6 | code << 14 | 4 << 16 | 1 << 19
                    | changes.get("records", 1) << 26 | changes.get("s2s", 0) << 25)
        words[6] = RAM + SECOND
        self.rig.fill(self.entry_at, b"".join(each.to_bytes(4, "little") for each in words))

    @property
    def second_size(self) -> int:
        return 64 - {12: 32 if self.concatenated else 39, 14: 36, 16: 40}[self.granule]

    @property
    def second_start(self) -> int:
        return 0 if self.concatenated else 1

    @property
    def entry_at(self) -> int:
        stream = self.rig.blk.slot << 3
        return (LEVEL_2 if self.two_levels else STREAMS) + 64 * stream

    def context(self, **changes: int) -> None:
        """The disk's context descriptor."""
        code = {12: 0, 16: 1, 14: 2}[self.granule]
        upper = {12: 2, 16: 3, 14: 1}[self.granule]
        low = (self.size | code << 6 | changes.get("epd0", 0) << 14 | self.size << 16
               | upper << 22 | changes.get("epd1", 0) << 30 | changes.get("valid", 1) << 31)
        high = (changes.get("ips", 4) | changes.get("affd", 0) << 3 | changes.get("tbi", 0) << 6
                | 1 << 9 | changes.get("records", 1) << 13 | 1 << 14
                | changes.get("asid", 7) << 16)
        table = RAM + TABLES
        words = [low, high, table | changes.get("had", 0) << 1, 0, table, 0] + [0] * 10
        self.rig.fill(CONTEXT, b"".join(each.to_bytes(4, "little") for each in words))

    # -- from start to end ---------------------------------------------------------------------

    def start(self) -> None:
        """Tables, queues, all switched on."""
        self.tables(TABLES, False)
        if self.stage & 2:
            self.tables(SECOND, True)
        self.context()
        self.stream_entry()
        if self.two_levels:
            self.rig.words(STREAMS, [RAM + LEVEL_2 | 9])
        layout = 1 << 16 | 8 << 6 | 16 if self.two_levels else 8
        self.write(smmu.STRTAB, RAM + STREAMS, 8)
        self.write(smmu.STRTAB_CFG, layout)
        self.write(smmu.CMDQ, RAM + COMMANDS | 8, 8)
        self.write(smmu.EVENTQ, RAM + EVENTS | 3, 8)
        self.write(smmu.CR0, 0xD)

    def run(self, requests: int) -> None:
        """Requests, and before each some careless change; stops at the first difference."""
        for _ in range(requests):
            for _ in range(self.rng.randrange(3)):
                self._change()
            self._command()
            if self.bad or not self.demand():
                return
            self.context()
            self.stream_entry()
            self.write(smmu.CR0, 0xD)
            if not self.rig.model.popped or self.rng.random() < 0.1:  # nothing works any more
                self._tell((4, 0, 31, 0), (0x30, 0, 0, 0))

    def demand(self, *wanted: object) -> bool:
        """A request, and a look at registers; whether all is equal."""
        rig = self.rig
        self.bad += rig.judge(*(wanted or request(self.rng, self.edges, HEADER, ANSWER)))
        for offset in LOOK:
            rig.read(offset)
        if rig.device.lost:
            self.bad.append(rig.device.lost)
        if self.rng.random() < 0.5:  # the events were read
            self.write(smmu.EVENTQ_CONS, rig.read(smmu.EVENTQ_PROD))
            self.write(smmu.GERRORN, rig.read(smmu.GERROR))
        return not self.bad

    def _change(self) -> None:
        rng = self.rng
        what = rng.random()
        second = self.stage == 2 or (self.stage == 3 and rng.random() < 0.5)
        table = SECOND if second else TABLES
        if what < 0.6:
            self.leaf(table, rng.choice(self.pages), self.entry(second))
        elif what < 0.7 and self.blocks:
            self.blocks_at(table, rng.choice(self.blocks[1:]), self.entry(second, True))
        elif what < 0.85:
            name, value = rng.choice((
                ("affd", 1), ("records", 0), ("asid", 8), ("had", 1), ("epd0", 1), ("tbi", 1),
                ("tbi", 2), ("valid", 0), ("ips", 0), ("epd1", 1)))
            self.context(**{name: value})
        elif what < 0.95:
            config = rng.choice((None, None, 0, 4, 5, 6, 7, 4 | self.stage))
            if config not in (None, 5, 6, 7) or rng.random() < 0.7:
                name, value = rng.choice((
                    ("valid", 0), ("contexts", 1), ("vmid", 6), ("records", 0), ("s2s", 1)))
                self.stream_entry(config, **{name: value})
        else:
            self.write(smmu.CR0, rng.choice((0xD, 0xC, 9, 5)))
            self.write(smmu.GBPA, 1 << 31 | rng.randrange(2) << 20)

    def _command(self) -> None:
        rng = self.rng
        commands = []
        stream = self.rig.blk.slot << 3
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
            page = rng.choice([*self.pages, *self.blocks, *self.pages])
            asid, vmid = rng.choice((7, 7, 8)), rng.choice((5, 5, 6))
            code = rng.choice((0, 0, (self.granule - 10) // 2, 1))
            third = page & 0xFFFF_F000 | code << 10 | rng.choice((0, 0, 2, 3)) << 8
            span = rng.choice((0, 0, 1 << 12 | 1 << 20, 3 << 12 | 2 << 20))
            commands.append(rng.choice((
                (3, stream, 1, 0), (5, stream, 1, 0), (6, stream, 0, 0), (4, 0, 31, 0),
                (4, stream, 2, 0), (0x11, asid << 16 | vmid, 0, 0), (0x10, vmid, 0, 0),
                (0x12 | span, asid << 16 | vmid, third, page >> 32),
                (0x12 | span, asid << 16 | vmid, third, page >> 32),
                (0x13 | span, vmid, third, page >> 32), (0x30, 0, 0, 0), (0x46, 0, 0, 0),
                (0x28, vmid, 0, 0) if self.rig.device.features.stage2 else (1, 0, 0, 0),
                (0x2A | span, vmid, third, page >> 32)
                if self.rig.device.features.stage2 else (2, 0, 0, 0),
            )))
        if rng.random() < 0.05:
            commands.append(rng.choice(((0, 0, 0, 0), (7, 0, 0, 0), (3 | 1 << 10, stream, 0, 0))))
        self._tell(*commands)

    def _tell(self, *commands: tuple[int, ...]) -> None:
        for command in commands:
            at = COMMANDS + 16 * (self.prod & 0xFF)
            self.rig.fill(at, b"".join(each.to_bytes(4, "little") for each in command))
            self.prod = self.prod + 1 & 0x1FF
        if commands:
            self.write(smmu.CMDQ_PROD, self.prod)
            if self.rig.read(smmu.GERROR) & 1 != self.rig.read(smmu.GERRORN) & 1:
                at = self.rig.read(smmu.CMDQ_CONS) & 0xFF
                self.rig.fill(COMMANDS + 16 * at, bytes([1]) + bytes(15))
                self.write(smmu.GERRORN, self.rig.read(smmu.GERROR))
