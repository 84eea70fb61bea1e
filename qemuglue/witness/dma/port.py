"""How a decoded device reaches guest memory: through the model's own address space for it.

An access through a port is an access of the model. Where it meets RAM it moves the model's bytes,
which the comparison of RAM judges afterwards; where it meets a device or nothing at all, QEMU must
have logged the same, because the space's devices answer from the transcript.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.region import MASK64, MemoryRegion

#: Bytes one access of a device may move. A device that asks for more has to say ``floods``
#: before: QEMU moves it 4 bytes and a line of transcript at a time where no RAM is.
LONGEST = 1 << 24


@dataclass(frozen=True, slots=True)
class Unknown:
    """Bytes of RAM to be adopted: ``size`` from ``offset`` of ``region``, and who is told."""

    region: MemoryRegion
    offset: int
    size: int
    learnt: Callable[[bytes], None] | None = None


@dataclass(slots=True)
class Wild:
    """Whether a write that a device of the model receives may have any value in QEMU."""

    any_value: bool = False


class ModelPort:
    """The port of one device (``device.Port``); ``unknowns`` are those of the present action.

    ``trouble`` says why the action cannot be followed, if it cannot.
    """

    def __init__(self, space: AddressSpace, wild: Wild | None = None) -> None:
        self.space = space
        self.wild = wild or Wild()
        self.unknowns: list[Unknown] = []
        self.trouble = ""

    def read(self, addr: int, size: int, attrs: MemTxAttrs = UNSPECIFIED) -> bytes | None:
        """``dma_memory_read``; None if any of it failed."""
        if not self._fits(size):
            return None
        result, data = self.space.read(addr & MASK64, size, attrs)
        return data if result == OK else None

    def write(self, addr: int, data: bytes, attrs: MemTxAttrs = UNSPECIFIED) -> bool:
        """``dma_memory_write``; what could be written is, also where it failed."""
        if not self._fits(len(data)):
            return False
        return self.space.write(addr & MASK64, data, attrs) == OK

    def unknown(
        self, addr: int, size: int, attrs: MemTxAttrs = UNSPECIFIED,
        learnt: Callable[[bytes], None] | None = None,
    ) -> bool:
        """See ``device.Port``. The model's RAM holds zeros there until QEMU's are adopted."""
        if not self._fits(size):
            return False
        parts = list(self.ram(addr, size, attrs))
        if learnt is not None and len(parts) == 1 and parts[0].size == size:
            parts = [Unknown(parts[0].region, parts[0].offset, size, learnt)]
        self.unknowns.extend(parts)
        self.wild.any_value = True
        try:
            return self.space.write(addr & MASK64, bytes(size), attrs) == OK
        finally:
            self.wild.any_value = False

    def ram(self, addr: int, size: int, attrs: MemTxAttrs = UNSPECIFIED) -> Iterator[Unknown]:
        """The parts of a range of addresses that a write would store in memory."""
        done = 0
        while done < size:
            section, offset, n = self.space.translate(
                (addr + done) & MASK64, size - done, True, attrs)
            if self.space.is_direct(section.region, True, attrs):
                yield Unknown(section.region, offset, n)
            done += n

    def _fits(self, size: int) -> bool:
        if size <= LONGEST:
            return True
        self.trouble = f"it moves {size:#x} bytes at once"
        return False
