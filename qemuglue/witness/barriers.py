"""Which operations end a batch: they may change the map, reset, power off or start DMA.

QEMU takes about 1 KB of qtest text at a time and runs its main loop in between, so what
follows such an operation in the same batch runs on a state nobody can know. Known kinds are
data here, down to the written value where that decides; what a run teaches is kept beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import lru_cache

from qemuglue.memory.region import MemoryRegion, RegionKind

#: Writes that change the map before qtest answers: no wait is needed, only a fresh mirror.
TOPOLOGY_REGIONS = re.compile(
    r"pci-conf-data|pci-data-idx|unin-(pci|agp)-conf-data|pcie-mmcfg(-mmio)?|pcie-ecam|pci\.reg|"
    r"pci-vga\.ioports remapped|lsi-.*conf"
)

#: Writes whose effect comes from QEMU's main loop: the harness makes sure it has come round.
ASYNC_REGIONS = re.compile(
    r"i8042-data|kbd|generic_event_device|acpi-ged.*|pl061|sifive_test|"
    r"riscv\.sifive\.test"
)

#: (offset in the region, bytes written) -> may this reset or power off?
_Test = Callable[[int, bytes], bool]


def _any(test: Callable[[int], bool]) -> _Test:
    """A test of every byte written: a write that is wider than the region is cut into bytes
    that all reach the same callback (R7), and these callbacks do not look at the offset."""

    def written(offset: int, data: bytes) -> bool:
        return any(map(test, data))

    return written


#: The same where the value decides. Names of regions as QEMU gives them.
BY_VALUE: dict[str, _Test] = {
    # PC/AT reset register: bit 2 resets (hw/isa, hw/acpi: ``rcr_write``).
    **dict.fromkeys(
        ("lpc-reset-control", "piix-reset-control", "piix3-reset-control"),
        _any(lambda value: bool(value & 0x04)),
    ),
    # Fast reset: bit 0 (``port92_write``).
    "port92": _any(lambda value: bool(value & 0x01)),
    # Keyboard controller: 0xfx pulses output lines, reset among them (``kbd_write_command``).
    "i8042-cmd": _any(lambda value: value >= 0xF0),
    # PM1 control: SLP_EN, bit 13 (``acpi_pm1_cnt_write``).
    "acpi-cnt": _any(lambda value: bool(value & 0x20)),
}


@lru_cache(maxsize=4096)
def _named(name: str) -> bool:
    """Whether every write to a region of this name is a barrier."""
    return bool(TOPOLOGY_REGIONS.fullmatch(name) or ASYNC_REGIONS.fullmatch(name))


class Barriers:
    """Known and learnt barriers; shared by all sessions of a campaign."""

    def __init__(self) -> None:
        #: (region key, offset >> 2, is_write) learnt from what a run did.
        self.learnt: set[tuple[Hashable, int, bool]] = set()
        self._keys: set[tuple[Hashable, bool]] = set()

    def learn(self, region: MemoryRegion, offset: int, is_write: bool) -> None:
        """An access to ``offset`` was seen to reset or to change the map."""
        if is_write and (self.always(region) or region.name in BY_VALUE):
            return
        key = _key(region)
        self.learnt.add((key, offset >> 2, is_write))
        self._keys.add((key, is_write))

    def always(self, region: MemoryRegion) -> bool:
        """Whether every write to the region is a barrier. Flash changes between memory and
        device, and programs itself, before qtest answers."""
        return region.kind is RegionKind.ROM_DEVICE or _named(region.name)

    def waits(self, region: MemoryRegion) -> bool:
        """Whether effects may come later, from the main loop."""
        flash = region.kind is RegionKind.ROM_DEVICE
        return not flash and not TOPOLOGY_REGIONS.fullmatch(region.name)

    def may(self, region: MemoryRegion, is_write: bool) -> bool:
        """Whether some access to the region is a barrier: ask ``has`` then."""
        if is_write and region.name in BY_VALUE:
            return True
        return (_key(region), is_write) in self._keys

    def has(self, region: MemoryRegion, offset: int, size: int, data: bytes | None) -> bool:
        """Whether an access to these bytes is one; ``data`` is None for a read."""
        if data is not None and region.name in BY_VALUE:
            return BY_VALUE[region.name](offset, data)
        key, is_write = _key(region), data is not None
        if (key, is_write) not in self._keys:
            return False
        last = (offset + size - 1) >> 2
        if last - (offset >> 2) > 64:
            return True
        return any(
            (key, word, is_write) in self.learnt for word in range(offset >> 2, last + 1)
        )


def _key(region: MemoryRegion) -> Hashable:
    return region.key if region.key is not None else region.name
