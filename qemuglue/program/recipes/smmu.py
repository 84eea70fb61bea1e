"""SMMUv3: a stream table, contexts and tables over the RAM that a program's devices use, then DMA
through them.

I/O addresses are those of RAM, and from 0 on the same once more, or devices: a device whose
addresses are short (edu) reaches RAM only there. A few pages are read-only, elsewhere or nowhere,
and change between requests, with the command that belongs to it or without. Pages of 4 KiB, the
first stage, all little-endian. Source: the SMMUv3 specification, as far as QEMU's
``hw/arm/smmuv3.c`` goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from qemuglue.program.layout import Layout
from qemuglue.program.operation import Operation
from qemuglue.program.recipes.iommu import SLOTS, device_request, quad
from qemuglue.program.recipes.recipe import Scratch, register_read, register_write

REGION = "arm-smmuv3"

_CR0, _GERROR, _GERRORN, _STRTAB, _STRTAB_CFG = 0x20, 0x60, 0x64, 0x80, 0x88
_CMDQ, _CMDQ_PROD, _CMDQ_CONS, _EVENTQ, _EVENTQ_PROD, _EVENTQ_CONS = (
    0x90, 0x98, 0x9C, 0xA0, 0xA8, 0xAC)
#: Translate, record events, take commands.
_ON = 0xD

_PAGE, _LARGE, _HUGE = 0x1000, 1 << 21, 1 << 30
#: An entry that leads to a page or to a table, and one to a block; accessed.
_LEAF, _BLOCK, _ACCESSED, _READ_ONLY = 3, 1, 1 << 10, 2 << 6
#: Log2 of the streams, of the commands and of the events that there is room for.
_STREAMS, _COMMANDS, _EVENTS = 6, 5, 3
#: Address bits that make level 1 the first: 64 less these.
_SIZE = 64 - 39
_ASID = 7


class SmmuRecipe:
    """Stream table and tables; on; requests, changes, commands; sometimes off again."""

    name = "SMMUv3: DMA through tables that change"

    def fits(self, layout: Layout) -> bool:
        return any(each.region == REGION for each in layout.ranges())

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        use = _Use(rng, scratch)
        ops = use.start()
        for _ in range(rng.randint(1, 3)):
            ops += device_request(rng, layout, scratch)
            ops += use.look()
            ops += use.change()
        if rng.random() < 0.3:
            ops.append(_write(_CR0, 0))
        return ops


def _write(offset: int, value: int, size: int = 4) -> Operation:
    return register_write(REGION, offset, size, value)


class _Use:
    """One set of tables: level 1 has blocks of 1 GiB, and a table for the one with the buffers."""

    def __init__(self, rng: Random, scratch: Scratch) -> None:
        self._rng = rng
        self._streams, self._level1, self._level2, self._level3 = (
            scratch.take(_PAGE, _PAGE) for _ in range(4))
        self._context = scratch.take(64, 64)
        self._commands = scratch.take(16 << _COMMANDS, 16 << _COMMANDS)
        self._events = scratch.take(32 << _EVENTS, 32 << _EVENTS)
        self._window = scratch.start & -_LARGE
        self._near = scratch.start + scratch.used
        self._prod = 0

    def start(self) -> list[Operation]:
        rng, huge = self._rng, self._window & -_HUGE
        table = self._level2 | 3
        low = rng.choice((table, table, _BLOCK | _ACCESSED, huge | _BLOCK | _ACCESSED, 0))
        ops = [_write(_CR0, 0), quad(self._level1 + 8 * (huge // _HUGE), table)]
        if huge:
            ops.append(quad(self._level1, low))
        for part in (self._window, self._window + _LARGE):
            ops.append(quad(self._level2 + 8 * (part // _LARGE & 0x1FF),
                            part | _BLOCK | _ACCESSED))
        if rng.random() < 0.7:
            ops.append(quad(self._level2 + 8 * (self._window // _LARGE & 0x1FF),
                            self._level3 | 3))
            ops += [self._leaf(page, page | _LEAF | _ACCESSED) for page in self._pages()]
        ops += self._describe(1)
        for slot in SLOTS:
            ops += self._stream(slot, 0xB)
        ops += [
            _write(_STRTAB, self._streams, 8), _write(_STRTAB_CFG, _STREAMS),
            _write(_CMDQ, self._commands | _COMMANDS, 8), _write(_CMDQ_CONS, 0),
            _write(_CMDQ_PROD, 0), _write(_EVENTQ, self._events | _EVENTS, 8),
            _write(_EVENTQ_PROD, 0), _write(_EVENTQ_CONS, 0), _write(_CR0, _ON),
        ]
        # What an earlier use left in the caches.
        return ops + self._tell((4, 0, 31, 0), (0x30, 0, 0, 0))

    def _pages(self) -> range:
        """The pages that the program's buffers are in, a few of them."""
        start = self._near & -_PAGE
        return range(start, min(start + 24 * _PAGE, self._window + _LARGE), _PAGE)

    def _leaf(self, page: int, entry: int) -> Operation:
        return quad(self._level3 + 8 * (page // _PAGE & 0x1FF), entry)

    def _stream(self, slot: int, config: int) -> list[Operation]:
        at = self._streams + 64 * (slot << 3)
        return [quad(at, self._context | config), quad(at + 8, 0)]

    def _describe(self, valid: int) -> list[Operation]:
        """The context descriptor that all streams share."""
        rng = self._rng
        low = _SIZE | _SIZE << 16 | 2 << 22 | valid << 31
        high = 4 | 1 << 9 | rng.choice((1, 1, 0)) << 13 | 1 << 14 | _ASID << 16
        return [quad(self._context, high << 32 | low), quad(self._context + 8, self._level1),
                quad(self._context + 16, self._level1)]

    def _odd(self, page: int) -> int:
        """An entry that does not leave a page what it is."""
        return self._rng.choice((
            0, page | _LEAF | _ACCESSED | _READ_ONLY, page | _LEAF, page | _BLOCK | _ACCESSED,
            page + _PAGE | _LEAF | _ACCESSED, 0x901_0000 | _LEAF | _ACCESSED,
            0x4800_0000 | _LEAF | _ACCESSED, 1 << 45 | _LEAF | _ACCESSED))

    def change(self) -> list[Operation]:
        """Pages, blocks, a stream or the context change; most often QEMU is told."""
        rng, pages, ops = self._rng, self._pages(), list[Operation]()
        page = rng.choice(pages) if pages else self._window
        slot = rng.choice(SLOTS)
        for _ in range(rng.randint(1, 3)):
            what = rng.random()
            if what < 0.6 and pages:
                page = rng.choice(pages)
                same = page | _LEAF | _ACCESSED
                ops.append(self._leaf(page, rng.choice((same, self._odd(page)))))
            elif what < 0.8:
                low = rng.choice((self._level2 | 3, _BLOCK | _ACCESSED, 0,
                                  _BLOCK | _ACCESSED | _READ_ONLY))
                ops.append(quad(self._level1, low))
            elif what < 0.95:
                ops += self._stream(slot, rng.choice((0xB, 0xB, 0xB, 9, 1, 0)))
            else:
                ops += self._describe(rng.choice((1, 1, 0)))
        return ops + self._tell(*self._commands_for(page, slot)) if rng.random() < 0.7 else ops

    def _commands_for(self, page: int, slot: int) -> list[tuple[int, int, int, int]]:
        """What tells the device of a page, a stream, or all."""
        rng, stream = self._rng, slot << 3
        span = rng.choice((0, 0, 1 << 12 | 1 << 20))
        third = page & 0xFFFF_F000 | (1 << 10 if span else rng.choice((0, 1)) << 10) | rng.choice(
            (0, 0, 3)) << 8
        return [
            rng.choice(((3, stream, 1, 0), (4, 0, 31, 0), (5, stream, 1, 0), (6, stream, 0, 0))),
            rng.choice(((0x12 | span, _ASID << 16, third, page >> 32), (0x11, _ASID << 16, 0, 0),
                        (0x10, 0, 0, 0), (0x13 | span, 0, third, page >> 32), (0x30, 0, 0, 0))),
            rng.choice(((0x46, 0, 0, 0), (0x46, 0, 0, 0), (0x7F, 0, 0, 0))),
        ]

    def _tell(self, *commands: tuple[int, int, int, int]) -> list[Operation]:
        ops: list[Operation] = []
        for first, second, third, fourth in commands:
            at = self._commands + 16 * (self._prod & (1 << _COMMANDS) - 1)
            ops += [quad(at, second << 32 | first), quad(at + 8, fourth << 32 | third)]
            self._prod = self._prod + 1 & (2 << _COMMANDS) - 1
        return [*ops, _write(_CMDQ_PROD, self._prod)]

    def look(self) -> list[Operation]:
        """Has anything been refused? Sometimes it is acknowledged."""
        rng = self._rng
        ops = [register_read(REGION, each, 4) for each in (_EVENTQ_PROD, _CMDQ_CONS, _GERROR)]
        if rng.random() < 0.4:
            ops.append(_write(_EVENTQ_CONS, rng.randrange(2 << _EVENTS)))
        if rng.random() < 0.5:
            ops.append(_write(_GERRORN, rng.choice((0, 1, 4, 5))))
        return ops
