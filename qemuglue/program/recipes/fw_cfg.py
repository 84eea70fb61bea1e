"""fw_cfg's DMA: a control structure in guest RAM, then its address to the device.

The structure (``FWCfgDmaAccess``, big-endian whatever the target): 32 bits of control, 32 bits of
length, 64 bits of address. Control: bit 0 is QEMU's error answer, 1 read, 2 skip, 3 select the
item in the upper 16 bits, 4 write. Writing the lower half of the 64-bit address register starts
it (``fw_cfg_dma_mem_write``, ``fw_cfg_dma_transfer`` in ``hw/nvram/fw_cfg.c``).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.recipe import Scratch, ram_write
from qemuglue.program.verbs import IO, MEMORY

REGION = "fwcfg.dma"
_ERROR, _READ, _SKIP, _SELECT, _WRITE = 1, 2, 4, 8, 16
#: Items every machine has (signature, id, UUID, RAM size, …, the file directory and some files).
_ITEMS = (0x0000, 0x0001, 0x0002, 0x0003, 0x0004, 0x0005, 0x000F, 0x0019, 0x0020, 0x0021, 0x0025,
          0x8000, 0x8001, 0xFFFF)


class FwCfgRecipe:
    """Reads, skips and writes of items, one after another."""

    name = "fw_cfg: an item moved by DMA"

    def fits(self, layout: Layout) -> bool:
        """Whether the machine shows the DMA register."""
        return _register(layout) is not None

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        """A control structure, the two halves of its address, and looks at what came of it."""
        found = _register(layout)
        assert found is not None, "asked of a machine that shows no fw_cfg"
        ops: list[Operation] = []
        access = scratch.take(16, 8)
        buffer = scratch.take(0x200, 16)
        for _ in range(rng.randint(1, 3)):
            length = rng.choice((0, 1, 4, 16, rng.randint(1, 64), rng.randint(1, 0x200)))
            target = buffer if rng.random() < 0.85 else _elsewhere(rng, layout)
            control = rng.choice((_READ, _READ, _READ, _SKIP, _WRITE, 0, _READ | _SKIP))
            if rng.random() < 0.8:
                control |= _SELECT | rng.choice(_ITEMS) << 16
            if rng.random() < 0.05:
                control |= _ERROR
            block = (control.to_bytes(4, "big") + length.to_bytes(4, "big")
                     + (target & (1 << 64) - 1).to_bytes(8, "big"))
            ops += [ram_write(access, block[:8]), ram_write(access + 8, block[8:])]
            ops += _start(rng, layout, found, access)
            if rng.random() < 0.5:
                ops.append(Operation("read", Place(None, 0, access), 16))
            if rng.random() < 0.5:
                ops.append(Operation("read", Place(None, 0, buffer), rng.randint(1, 64)))
        return ops


def _register(layout: Layout) -> Range | None:
    return next((each for space in (IO, MEMORY) for each in layout.ranges(space)
                 if each.region == REGION), None)


def _elsewhere(rng: Random, layout: Layout) -> int:
    """Into ROM, a device, a hole, or over the end of something."""
    place = rng.choice(layout.ranges())
    return place.start + rng.choice((0, place.size - 1, rng.randrange(place.size)))


def _start(rng: Random, layout: Layout, register: Range, addr: int) -> list[Operation]:
    """The address register is big-endian. Ports take it in two halves of 32 bits, turned round
    by a target that is little-endian; so does the window of a board."""
    order: Literal["little", "big"] = "big" if layout.big else "little"
    high, low = addr >> 32, addr & 0xFFFF_FFFF
    verb = "outl" if register.space == IO else "writel"
    halves = [(0, high), (4, low)] if high or rng.random() < 0.3 else [(4, low)]
    return [
        Operation(verb, Place(REGION, register.index, offset), 4,
                  int.from_bytes(half.to_bytes(4, "big"), order))
        for offset, half in halves
    ]
