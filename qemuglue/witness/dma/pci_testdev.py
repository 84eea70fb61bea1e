"""pci-testdev: a device made to try ioeventfds. It does no DMA.

A write to offset 0 of a BAR chooses a test, which may let an ioeventfd take writes at an offset of
its own. Source: QEMU ``hw/misc/pci-testdev.c``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from qemuglue.memory.region import MemoryRegion
from qemuglue.witness.dma.device import DmaDevice, Place, Silent, Stretches
from qemuglue.witness.dma.virtio_device import RESIZES

MMIO, PORTS = "pci-testdev-mmio", "pci-testdev-portio"

#: Tests of each BAR: without an ioeventfd, with one for any value, and for one value.
_PLAIN, _ANY, _DATA = range(3)
_TESTS = 3
#: The value that the second of them takes (``IOTEST_DATAMATCH``).
_MATCH = 0xFA
#: Where the first test of each BAR writes: behind half of it.
_MEMORY_SIZE, _PORTS_SIZE = 2048, 128


class PciTestdev(Silent):
    """The device's chosen test."""

    name = "pci-testdev"

    def __init__(self, place: Place) -> None:
        self.lost = ""
        self._any_size = place.version >= RESIZES
        self._regions: Mapping[str, MemoryRegion] = place.regions
        self._test: tuple[str, int] | None = None
        self._gone: Callable[[], None] | None = None

    def wrote(self, region: MemoryRegion, offset: int, size: int, value: int) -> None:
        if offset == 0 and region.name in (MMIO, PORTS):
            self._choose((region.name, value) if value < _TESTS else None)

    def heeds(self, region: MemoryRegion) -> Stretches:
        """The register that chooses a test."""
        return ((0, 1),) if region.name in (MMIO, PORTS) else ()

    def mapped(self, regions: Mapping[str, MemoryRegion]) -> None:
        """The map changed: other regions may stand for the same BARs."""
        test = self._test
        self._choose(None)
        self._regions = dict(regions)
        for name in (MMIO, PORTS):
            if name in self._regions:
                _correct(self._regions[name])
        self._choose(test)

    def reset(self) -> None:
        self._choose(None)

    def _choose(self, test: tuple[str, int] | None) -> None:
        """``pci_testdev_start`` of a test, ``pci_testdev_stop`` of the one before."""
        if self._gone is not None:
            self._gone()
        self._test, self._gone = test, None
        if test is None or test[1] == _PLAIN:
            return
        name, number = test
        region = self._regions.get(name)
        if region is None:
            return
        data = None if number == _ANY else _MATCH
        size = 0 if data is None and name == MMIO and self._any_size else 1
        offset = _MEMORY_SIZE + number if name == MMIO else _PORTS_SIZE + _TESTS + number

        def taken() -> None:
            """The count of the test is not the guest's to see."""

        region.add_eventfd(offset, size, data, taken)
        self._gone = lambda: region.del_eventfd(offset, size, data, taken)


def _correct(region: MemoryRegion) -> None:
    """A wide access reaches the device byte by byte. Whether it is cut before it is dispatched or
    by the device's own wish cannot be seen from its pieces, only from what an ioeventfd takes: it
    is the device's wish (``pci_testdev_mmio_ops``)."""
    contract = region.contract
    if contract.valid_max == 1:
        region.contract = replace(
            contract, valid_min=0, valid_max=0, impl_min=1, impl_max=1)


def make(place: Place) -> DmaDevice | None:
    """The device at ``place``, if it is one."""
    return PciTestdev(place) if MMIO in place.regions or PORTS in place.regions else None
