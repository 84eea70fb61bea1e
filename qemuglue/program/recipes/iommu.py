"""IOMMUs: tables or mappings over the RAM that a program's devices use, then DMA through them.

Most of memory stays what it is for every device, so that what other recipes do still works; a
few pages are read-only, write-only, elsewhere or nowhere, and change between requests, with the
invalidation that belongs to it or without. Sources: the VT-d specification, legacy mode; the
virtio 1.x specification, IOMMU device.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

from qemuglue.errors import ProgramError
from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.e1000e import E1000eRecipe
from qemuglue.program.recipes.edu import EduRecipe
from qemuglue.program.recipes.recipe import (
    Recipe,
    Scratch,
    ram_write,
    register_read,
    register_write,
)
from qemuglue.program.recipes.virtio import COMMON, NOTIFY, VirtioRecipe
from qemuglue.program.recipes.virtio_rings import Buffer, Rings
from qemuglue.program.recipes.virtio_transport import VERSION_1, Modern

_PAGE, _LARGE = 0x1000, 0x20_0000

#: Devices whose DMA goes through the IOMMU.
_SOURCES: tuple[Recipe, ...] = (VirtioRecipe(), EduRecipe(), E1000eRecipe())

#: Slots that get a context entry: those of a few devices plugged in.
SLOTS = range(1, 7)


def device_request(rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
    """What some device does; nothing where none fits, or no room is left."""
    fits = [each for each in _SOURCES if each.fits(layout)]
    if not fits:
        return ()
    try:
        return rng.choice(fits).operations(rng, layout, scratch)
    except ProgramError:
        return ()


def quad(addr: int, value: int) -> Operation:
    """8 bytes of a table, by a little-endian target."""
    return Operation("writeq", Place(None, 0, addr), 8, value & (1 << 64) - 1)


class IntelIommuRecipe:
    """Root, contexts, tables; on; requests, changes, invalidations; sometimes off again."""

    name = "intel-iommu: DMA through tables that change"

    def fits(self, layout: Layout) -> bool:
        return any(each.region == _Intel.REGION for each in layout.ranges())

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        use = _Intel(rng, scratch)
        ops = use.start()
        for _ in range(rng.randint(1, 3)):
            ops += device_request(rng, layout, scratch)
            ops += use.look()
            ops += use.change()
        if rng.random() < 0.3:
            ops.append(use.write(use.GCMD, 4, 0))
        return ops


class _Intel:
    """One set of tables: level 3 has pages of 1 GiB, or a table of level 2 for the first."""

    REGION = "intel_iommu"
    GCMD, RTADDR, CCMD, FSTS, IQT, IQA, IVA, IOTLB, FRCD = (
        0x18, 0x20, 0x28, 0x34, 0x88, 0x90, 0xF0, 0xF8, 0x220)
    TE, SRTP, QIE = 1 << 31, 1 << 30, 1 << 26

    def __init__(self, rng: Random, scratch: Scratch) -> None:
        self._rng = rng
        self._root, self._contexts, self._level3, self._level2, self._level1, self._queue = (
            scratch.take(_PAGE, _PAGE) for _ in range(6))
        self._window = scratch.start & -_LARGE
        self._near = scratch.start + scratch.used
        self._tail = 0
        self._queued = False
        self._fine = rng.random() < 0.7

    def write(self, offset: int, size: int, value: int) -> Operation:
        return register_write(self.REGION, offset, size, value)

    def start(self) -> list[Operation]:
        rng = self._rng
        ops = [quad(self._root, self._contexts | 1), quad(self._root + 8, 0)]
        for slot in SLOTS:
            ops += self._context(slot)
        for gib in range(3):  # the fourth has the interrupts in it
            ops.append(quad(self._level3 + 8 * gib, gib << 30 | 0x83))
        if self._fine:
            first = self._window & -(1 << 30)
            for at in range(2):
                part = self._window + at * _LARGE
                ops.append(quad(self._level2 + 8 * (part >> 21 & 0x1FF), part | 0x83))
            ops.append(quad(
                self._level2 + 8 * (self._window >> 21 & 0x1FF), self._level1 | 3))
            for page in self._pages():
                ops.append(self._leaf(page, page | 3))
            ops.append(quad(self._level3 + 8 * (first >> 30), self._level2 | 3))
        ops += [self.write(self.RTADDR, 8, self._root), self.write(self.GCMD, 4, self.SRTP)]
        ops.append(self.write(self.GCMD, 4, self.TE))
        if rng.random() < 0.5:
            self._queued = True
            ops += [self.write(self.IQT, 8, 0), self.write(self.IQA, 8, self._queue)]
            ops.append(self.write(self.GCMD, 4, self.TE | self.QIE))
        return ops

    def _context(self, slot: int) -> list[Operation]:
        rng, at = self._rng, self._contexts + 16 * (slot << 3)
        low = self._level3 | rng.choice((1, 1, 1, 1, 1, 3, 9, 5, 0, 0x11))
        return [quad(at, low), quad(at + 8, rng.choice((1, 1, 1, 2)) | rng.choice((1, 2)) << 8)]

    def _pages(self) -> range:
        """The pages that the program's buffers are in, a few of them."""
        start = self._near & -_PAGE
        last = min(start + 24 * _PAGE, self._window + _LARGE)
        return range(start, last, _PAGE)

    def _leaf(self, page: int, entry: int) -> Operation:
        return quad(self._level1 + 8 * (page >> 12 & 0x1FF), entry)

    def _odd(self, page: int) -> int:
        """An entry that does not leave a page what it is."""
        rng = self._rng
        return rng.choice((
            0, page | 1, page | 2, page + _PAGE | 3, 0xFED0_0003, 0xFEE0_0003, 0xA_0003,
            page | 3 | 1 << rng.choice((11, 40, 52, 62, 63)), (1 << 38) | 3))

    def change(self) -> list[Operation]:
        """Pages, large pages or a context entry change; most often QEMU is told."""
        rng, ops = self._rng, []
        pages = self._pages()
        page = rng.choice(pages) if pages else self._window
        for _ in range(rng.randint(1, 3)):
            what = rng.random()
            if what < 0.6 and self._fine and pages:
                page = rng.choice(pages)
                ops.append(self._leaf(page, rng.choice((page | 3, self._odd(page)))))
            elif what < 0.8:
                ops.append(quad(self._level3 + 8 * rng.randrange(4), rng.choice((
                    0x83, 0, 0x81, 0x82, 0x1083, 0xC000_0083, self._level2 | 3))))
            else:
                ops += self._context(rng.choice(SLOTS))
        if rng.random() < 0.7:
            ops += self._invalidate(page)
        return ops

    def _invalidate(self, page: int) -> list[Operation]:
        rng, domain = self._rng, self._rng.choice((1, 1, 2))
        if not self._queued:
            return rng.choice((
                [self.write(self.CCMD, 8, 1 << 63 | 1 << 61),
                 self.write(self.IOTLB, 8, 1 << 63 | 1 << 60)],
                [self.write(self.IOTLB, 8, 1 << 63 | 2 << 60 | domain << 32)],
                [self.write(self.IVA, 8, page | rng.choice((0, 0, 3, 9))),
                 self.write(self.IOTLB, 8, 1 << 63 | 3 << 60 | domain << 32)],
            ))
        ops: list[Operation] = []
        for low, high in (
            rng.choice(((1 | 1 << 4, 0), (1 | 3 << 4 | rng.choice(SLOTS) << 35, 0), (4, 0))),
            rng.choice(((2 | 1 << 4, 0), (2 | 2 << 4 | domain << 16, 0),
                        (2 | 3 << 4 | domain << 16, page), (2 | 3 << 4 | domain << 16, page | 19))),
            (5 | 0x20 | rng.getrandbits(32) << 32, self._queue + 0xF00),
        ):
            at = self._queue + 16 * (self._tail % 128)
            ops += [quad(at, low), quad(at + 8, high)]
            self._tail += 1
        return [*ops, self.write(self.IQT, 8, self._tail % 256 << 4)]

    def look(self) -> list[Operation]:
        """Has there been a fault? If so it is acknowledged."""
        rng = self._rng
        ops = [register_read(self.REGION, self.FSTS, 4), register_read(self.REGION, self.FRCD, 8),
               register_read(self.REGION, self.FRCD + 8, 8)]
        if rng.random() < 0.6:
            ops += [self.write(self.FRCD + 12, 4, 1 << 31), self.write(self.FSTS, 4, 0x11)]
        return ops


class VirtioIommuRecipe:
    """Its two queues; domains, endpoints and mappings; requests of devices in between."""

    name = "virtio-iommu: DMA through mappings that change"
    _KIND = "virtio-iommu"

    def fits(self, layout: Layout) -> bool:
        return any(each.region == COMMON + self._KIND for each in layout.ranges())

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        [common, *_] = [each for each in layout.ranges() if each.region == COMMON + self._KIND]
        transport = Modern(common, NOTIFY + self._KIND, 4)
        use = _VirtioIommu(rng, scratch, transport)
        ops = use.start()
        for _ in range(rng.randint(1, 3)):
            ops += use.change()
            ops += device_request(rng, layout, scratch)
        if rng.random() < 0.3:
            ops.append(register_read("virtio-pci-device-virtio-iommu", 36, 1))
            ops.append(register_write(
                "virtio-pci-device-virtio-iommu", 36, 1, rng.choice((0, 1, 1, 2))))
        return ops


class _VirtioIommu:
    """A driver: what it asks for is put on queue 0; queue 1 has room for faults."""

    def __init__(self, rng: Random, scratch: Scratch, transport: Modern) -> None:
        self._rng = rng
        self._scratch = scratch
        self._transport = transport
        self._near = scratch.start & -_PAGE
        self._asked, self._told = self._rings(16), self._rings(8)

    def _rings(self, num: int) -> Rings:
        take = self._scratch.take
        return Rings(take(16 * num, 16), take(6 + 2 * num, 2), take(6 + 8 * num, 4), num)

    def start(self) -> list[Operation]:
        rng, transport = self._rng, self._transport
        features = VERSION_1 | rng.choice((0x3F, 0x7F, 0x7F))
        ops = transport.start(features)
        for index, rings in enumerate((self._asked, self._told)):
            ops += transport.queue(index, rings)
            ops += [ram_write(rings.avail, bytes(4)), ram_write(rings.used, bytes(4))]
        ops += transport.status(0xF)
        for _ in range(rng.choice((0, 2, 6))):
            room = rng.choice((24, 24, 32, 16))
            ops += self._told.chain(
                self._scratch, [Buffer(self._scratch.take(room, 8), room, True)], indirect=False)
        ops.append(self._told.publish())
        requests = [self._attach(slot << 3) for slot in rng.sample(SLOTS, 3)]
        if rng.random() < 0.8:
            requests.append(self._map(1, 0, 0xFEDF_FFFF, 0, 3))
        return ops + self._ask(requests)

    def change(self) -> list[Operation]:
        """A few requests, and a notify for all of them or one each."""
        rng = self._rng
        requests = [self._random() for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.5:
            return self._ask(requests)
        return [op for each in requests for op in self._ask([each])]

    def _random(self) -> tuple[bytes, int]:
        rng = self._rng
        page = self._near + _PAGE * rng.randrange(256)
        domain = rng.choice((1, 1, 1, 2))
        what = rng.random()
        if what < 0.3:
            low = page + rng.choice((0, 0, 0, 0x800))
            high = low + rng.choice((0xFFF, 0xFFF, 0x1_FFFF, 0x7FF, 0))
            return self._map(domain, low, high, rng.choice((page, page, page + _PAGE, 0xFED0_0000)),
                             rng.choice((3, 3, 1, 2, 0, 7, 8)))
        if what < 0.6:
            low, high = rng.choice((
                (0, (1 << 64) - 1), (0, 0xFEDF_FFFF), (page, page + 0xFFF), (0, (1 << 64) - 1)))
            return struct.pack("<B3xIQQ4x", 4, domain, low, high), 4
        if what < 0.8:
            return self._map(1, 0, 0xFEDF_FFFF, 0, rng.choice((3, 3, 3, 1, 2)))
        if what < 0.9:
            return self._attach(rng.choice((*SLOTS, 0, 31)) << 3)
        if what < 0.95:
            return struct.pack("<B3xII8x", 2, domain, rng.choice(SLOTS) << 3), 4
        return struct.pack("<B3xI64x", 5, rng.choice(SLOTS) << 3), rng.choice((516, 516, 600))

    def _attach(self, endpoint: int) -> tuple[bytes, int]:
        flags = self._rng.choice((0, 0, 0, 0, 1, 2))
        domain = self._rng.choice((1, 1, 1, 2))
        return struct.pack("<B3xIII4x", 1, domain, endpoint, flags), 4

    def _map(self, domain: int, low: int, high: int, phys: int, flags: int) -> tuple[bytes, int]:
        return struct.pack("<B3xIQQQI", 3, domain, low, high, phys, flags), 4

    def _ask(self, requests: Sequence[tuple[bytes, int]]) -> list[Operation]:
        ops: list[Operation] = []
        for data, answer in requests:
            at, to = self._scratch.take(len(data), 8), self._scratch.take(answer, 8)
            ops.append(ram_write(at, data))
            ops += self._asked.chain(
                self._scratch, [Buffer(at, len(data)), Buffer(to, answer, True)], indirect=False)
        return [*ops, self._asked.publish(), *self._transport.notify(0)]
