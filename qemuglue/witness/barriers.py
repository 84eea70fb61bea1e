"""Which operations end a batch: they may change the map, reset, power off or start DMA.

QEMU takes about 1 KB of qtest text at a time and runs its bottom halves in between, so what
follows such an operation in the same batch runs on a state nobody can know. Known kinds are
data here; what a run teaches is kept beside them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable

from qemuglue.memory.region import MemoryRegion

#: Writes that change the map before qtest answers: no wait is needed, only a fresh mirror.
TOPOLOGY_REGIONS = re.compile(
    r"pci-conf-data|pcie-mmcfg(-mmio)?|pcie-ecam|pci-vga\.ioports remapped|lsi-.*conf"
)

#: Writes whose effect comes from QEMU's main loop (reset, power-off) or that start a DMA which
#: is decoded: the harness makes a monitor round trip before it goes on. Other bus masters
#: cannot touch RAM before the program switches them on, and are then named as suspects.
ASYNC_REGIONS = re.compile(
    r".*reset-control|port92|i8042-.*|kbd|acpi-cnt|acpi-tmr|acpi-evt|ICH9-PM|ich9-pm|apm-.*|"
    r"fwcfg\.dma|generic_event_device|acpi-ged.*|gpio-.*|pl061|sifive_test|riscv\.sifive\.test"
)


class Barriers:
    """Known and learnt barriers; shared by all sessions of a campaign."""

    def __init__(self) -> None:
        #: (region key, offset >> 2, is_write) learnt from what a run did.
        self.learnt: set[tuple[Hashable, int, bool]] = set()
        self._keys: set[tuple[Hashable, bool]] = set()

    def learn(self, region: MemoryRegion, offset: int, is_write: bool) -> None:
        key = region.key if region.key is not None else region.name
        self.learnt.add((key, offset >> 2, is_write))
        self._keys.add((key, is_write))

    def always(self, region: MemoryRegion) -> bool:
        """Whether every write to the region is a barrier."""
        name = region.name
        return bool(TOPOLOGY_REGIONS.fullmatch(name) or ASYNC_REGIONS.fullmatch(name))

    def waits(self, region: MemoryRegion) -> bool:
        """Whether effects may come later, from the main loop."""
        return not TOPOLOGY_REGIONS.fullmatch(region.name)

    def may(self, region: MemoryRegion, is_write: bool) -> bool:
        """Whether some offset of the region was learnt to be a barrier."""
        key = region.key if region.key is not None else region.name
        return (key, is_write) in self._keys

    def has(self, region: MemoryRegion, offset: int, size: int, is_write: bool) -> bool:
        """Whether an access to these bytes was learnt to be a barrier."""
        key = region.key if region.key is not None else region.name
        last = (offset + size - 1) >> 2
        if last - (offset >> 2) > 64:
            return True
        return any(
            (key, word, is_write) in self.learnt for word in range(offset >> 2, last + 1)
        )
