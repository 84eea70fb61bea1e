"""A guest that is careless with an Intel IOMMU: it changes tables, and forgets to invalidate."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from iommu_rig import Rig, request

ROOT, CONTEXT, LEVEL3, LEVEL2, LEVEL1 = 0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000, 0x10_4000
LEVEL4, QUEUE, STATUS = 0x10_8000, 0x11_0000, 0x12_0000
HEADER, ANSWER = 0x1000, 0x2000

GCMD, RTADDR, CCMD, FSTS, IQT, IQA, IVA, IOTLB, FRCD = (
    0x18, 0x20, 0x28, 0x34, 0x88, 0x90, 0xF0, 0xF8, 0x220)
TE, SRTP, QIE = 1 << 31, 1 << 30, 1 << 26
#: (offset, bytes) of the registers that are looked at after every request.
LOOK = ((FSTS, 4), (FRCD, 8), (FRCD + 8, 8), (0x1C, 4), (0x38, 4), (0x80, 8), (IOTLB, 8),
        (CCMD, 8), (IQA, 8), (0x9C, 4))

PAGES = [*(frame << 12 for frame in range(3, 24)), *(frame << 12 for frame in range(0x103, 0x118))]
LARGE = [frame << 21 for frame in range(2, 8)]
EDGES = [*PAGES, *PAGES, *LARGE, 1 << 30, 1 << 39, 1 << 48, (1 << 64) - 0x1000, 0xFEE0_0000,
         0xFEF0_0000]
FRAMES = (0x4_0000, 0x4_1000, 0x5_0000, 0x6_0000, 0x7000, 0x8000, 0xE_0000, 0xFED0_0000,
          0x3FF_F000, 0x9_F000, 0xA_0000, 0x400_0000, 0xFEE0_0000)
LARGE_FRAMES = (0x20_0000, 0x80_0000, 0xFEE0_0000, 0x400_0000)


@dataclass
class IntelGuest:
    """``run`` makes random requests; ``bad`` are how model and QEMU differed."""

    rig: Rig
    rng: Random
    four_levels: bool = False
    bad: list[str] = field(default_factory=list)
    queued: bool = False
    tail: int = 0
    words_written: int = 0

    @property
    def top(self) -> int:
        return LEVEL4 if self.four_levels else LEVEL3

    @property
    def requester(self) -> int:
        return self.rig.blk.slot << 3

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.bad += [f"register {offset:#x}: {each}"
                     for each in self.rig.write(offset, value, size)]

    def context(self, domain: int = 1, low: int | None = None) -> None:
        self.rig.words(CONTEXT + 16 * self.requester, [
            self.top | 1 if low is None else low, 1 + self.four_levels | domain << 8])

    def page(self, addr: int, entry: int) -> None:
        self.rig.words(LEVEL1 + 8 * (addr >> 12), [entry])

    def entry(self, large: bool = False) -> int:
        rng = self.rng
        entry = rng.choice(LARGE_FRAMES) | 0x80 if large else rng.choice(FRAMES)
        entry |= rng.choice((0, 1, 2, 3, 3, 3, 3))
        return entry | (1 << rng.choice((7, 8, 11, 12, 13, 40, 52, 62, 63)) * (rng.random() < 0.1))

    def start(self) -> None:
        """Tables, root pointer, translation on."""
        words = self.rig.words
        words(ROOT, [CONTEXT | 1, 0])
        words(LEVEL4, [LEVEL3 | 3])
        words(LEVEL3, [LEVEL2 | 3])
        words(LEVEL2, [LEVEL1 | 3, 0x20_0083, *(self.entry(True) for _ in LARGE)])
        words(LEVEL1, [0, HEADER | 3, ANSWER | 3])
        for page in PAGES:
            self.page(page, self.entry())
        self.context()
        self.write(RTADDR, ROOT, 8)
        self.write(GCMD, SRTP)
        self.write(GCMD, TE)

    # -- what it does at random ----------------------------------------------------------------

    def run(self, requests: int) -> None:
        """Requests, and before each some careless change; stops at the first difference."""
        for _ in range(requests):
            for _ in range(self.rng.randrange(3)):
                self._change()
            self._invalidate()
            if self.bad or not self.demand():
                return
            self.context()

    def demand(self, *wanted: object) -> bool:
        """A request, random or ``wanted``, and a look at the registers; whether all is equal."""
        found = self.rig.judge(*(wanted or request(self.rng, EDGES, HEADER, ANSWER)))
        self.bad += found
        if self.rig.on.session.evidence.topology:
            self.rig.follow()
        for offset, size in LOOK:
            self.rig.read(offset, size)
        if self.rig.device.lost:
            self.bad.append(self.rig.device.lost)
        if self.rng.random() < 0.5:  # the fault was seen
            self.write(FRCD + 12, 1 << 31)
            self.write(FSTS, 1)
        return not self.bad

    def _change(self) -> None:
        rng, top = self.rng, self.top
        what = rng.random()
        if what < 0.7:
            self.page(rng.choice(PAGES), self.entry())
        elif what < 0.85:
            self.rig.words(LEVEL2 + 8 * rng.randrange(2, 8), [self.entry(True)])
        else:
            self.context(rng.choice((1, 1, 2)), rng.choice((
                None, None, None, 0, top | 3, top | 5, top | 0x11, top | 9)))

    def _invalidate(self) -> None:
        rng = self.rng
        command = TE | QIE * self.queued
        what = rng.random()
        if what < 0.08:
            self.write(GCMD, command ^ TE)
            self.write(GCMD, command)
        elif what < 0.12:
            self.write(GCMD, command | SRTP)
        elif what < 0.2:
            self._switch_queue()
        elif what < 0.7:
            (self._queue if self.queued else self._registers)()

    def _switch_queue(self) -> None:
        if not self.queued:
            self.write(IQA, QUEUE, 8)
            self.tail, self.queued = 0, True
            self.write(IQT, 0, 8)
            self.write(GCMD, TE | QIE)
        else:
            self._append((5 | 0x20, STATUS))
            self.write(IQT, self.tail << 4, 8)
            self.write(GCMD, TE)
            self.queued = False

    def _registers(self) -> None:
        rng, domain = self.rng, self.rng.choice((1, 1, 2))
        what = rng.randrange(3)
        if what == 0:
            self.write(CCMD, 1 << 63 | rng.randrange(4) << 61 | self.requester << 16, 8)
        elif what == 1:
            self.write(IOTLB, 1 << 63 | rng.randrange(3) << 60 | domain << 32, 8)
        else:
            self.write(IVA, rng.choice(PAGES) | rng.choice((0, 0, 1, 4, 9, 18, 19)), 8)
            self.write(IOTLB, 1 << 63 | 3 << 60 | domain << 32, 8)

    def _append(self, *descriptors: tuple[int, int]) -> None:
        for descriptor in descriptors:
            self.rig.words(QUEUE + 16 * self.tail, descriptor)
            self.tail = (self.tail + 1) % 256

    def _queue(self) -> None:
        rng, domain = self.rng, self.rng.choice((1, 1, 2))
        page = rng.choice(PAGES)
        self._append(*rng.choices((
            (1 | 1 << 4, 0), (1 | 2 << 4, 0), (1 | 3 << 4 | self.requester << 32, 0),
            (2 | 1 << 4, 0), (2 | 2 << 4 | domain << 16, 0), (2 | 3 << 4 | domain << 16, page),
            (2 | 3 << 4 | domain << 16, page | rng.choice((1, 4, 9, 18))), (4, 0), (3, 0),
            (5 | 0x10, 0),
        ), k=rng.randrange(1, 4)))
        self.words_written += 1
        self._append((5 | 0x20 | self.words_written << 32, STATUS + 4 * (self.words_written % 99)))
        wrong = rng.random() < 0.1
        if wrong:
            self._append(rng.choice(((2 | 3 << 4, page | 19), (1, 0), (0xB, 0), (5, 0), (2, 0x80))))
        self.write(IQT, self.tail << 4, 8)
        if wrong:  # IQE: the guest mends the descriptor and goes on
            self.rig.words(QUEUE + 16 * ((self.tail - 1) % 256), (4, 0))
            self.rig.read(FSTS)
            self.write(FSTS, 0x10)
            self.write(IQT, self.tail << 4, 8)
