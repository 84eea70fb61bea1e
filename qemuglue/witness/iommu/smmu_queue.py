"""The queues of QEMU's SMMUv3, and what its commands do.

Source: the ``Q_*`` macros of ``hw/arm/smmuv3-internal.h`` and ``smmuv3_cmdq_consume`` in
``hw/arm/smmuv3.c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qemuglue.memory.region import MASK64
from qemuglue.witness.iommu.smmu_decode import BASE_MASK, Features, Stream
from qemuglue.witness.iommu.smmu_walk import Walker
from qemuglue.witness.iommu.tables import bits

#: Log2 of the entries that a queue can have (``SMMU_CMDQS``).
LARGEST = 19

#: What is wrong with a command.
ILLEGAL = 1

_SYNC = 0x46
_NOTHING = frozenset({1, 2, 0x18, 0x1A, 0x20, 0x21, 0x22, 0x23, 0x40, 0x41, 0x44, 0x45, _SYNC})
_STREAM, _STREAMS, _CONTEXT, _CONTEXTS = 3, 4, 5, 6
_ALL, _ASID, _ADDRESS, _ANY_ADDRESS = 0x10, 0x11, 0x12, 0x13
_MACHINE, _MACHINE_ADDRESS, _EVERYTHING = 0x28, 0x2A, 0x30


@dataclass(slots=True)
class Queue:
    """Entries of ``entry`` bytes. Indexes count one bit further than the entries, to tell a full
    queue from an empty one."""

    entry: int
    base: int = 0
    prod: int = 0
    cons: int = 0
    log2: int = 0

    def reset(self) -> None:
        """Its size in the base is what it can be; the one in use stays."""
        self.base = self.base & ~0x1F | LARGEST
        self.prod = self.cons = 0

    def set_base(self, value: int, *, resize: bool) -> None:
        self.base = value
        if resize:
            self.log2 = min(value & 0x1F, LARGEST)

    @property
    def _mask(self) -> int:
        return (2 << self.log2) - 1

    @property
    def empty(self) -> bool:
        return self.cons & self._mask == self.prod & self._mask

    @property
    def full(self) -> bool:
        return (self.cons ^ self.prod) & self._mask == 1 << self.log2

    def waiting(self, prod: int) -> int:
        """How many entries there are if the producer is at ``prod``."""
        return prod - self.cons & self._mask

    def address(self, index: int) -> int:
        return (self.base & BASE_MASK) + self.entry * (index & (1 << self.log2) - 1) & MASK64

    def produced(self) -> None:
        self.prod = self.prod + 1 & self._mask

    def consumed(self) -> None:
        self.cons = self.cons & ~self._mask | self.cons + 1 & self._mask

    def fail(self, error: int) -> None:
        """The consumer's register says why it stopped."""
        self.cons = self.cons & ~(0x7F << 24) | error << 24


class Caches(Protocol):
    """What commands act on."""

    features: Features
    walker: Walker
    streams: dict[int, Stream]


def perform(data: bytes, on: Caches) -> int:
    """One command of 16 bytes: 0, or what is wrong with it."""
    first, second = (int.from_bytes(data[at : at + 4], "little") for at in (0, 4))
    kind, features = first & 0xFF, on.features
    if kind in _NOTHING:
        return 0
    if kind in (_STREAM, _STREAMS, _CONTEXT, _CONTEXTS):
        if bits(first, 10, 1):
            return ILLEGAL
        _forget_streams(data, kind, on)
        return 0
    vmid = second & 0xFFFF if features.stage2 else None
    if kind == _EVERYTHING:
        on.walker.forget()
    elif kind in (_MACHINE, _MACHINE_ADDRESS):
        if features.old:
            return 0
        if not features.stage2:
            return ILLEGAL
        if kind == _MACHINE:
            on.walker.forget(vmid=vmid)
        else:
            _forget_addresses(data, kind, on)
    elif kind not in (_ALL, _ASID, _ADDRESS, _ANY_ADDRESS) or not features.stage1:
        return ILLEGAL
    elif kind == _ALL:
        if vmid is None:
            on.walker.forget()
        else:
            on.walker.forget_stage1(vmid)
    elif kind == _ASID:
        on.walker.forget(asid=second >> 16, vmid=-1 if vmid is None else vmid)
    else:
        _forget_addresses(data, kind, on)
    return 0


def _forget_streams(data: bytes, kind: int, on: Caches) -> None:
    stream = int.from_bytes(data[4:8], "little")
    last = stream
    if kind == _STREAMS:
        mask = (2 << (data[8] & 0x1F)) - 1
        stream &= ~mask
        last = stream + mask & 0xFFFF_FFFF
    # A stream is 16 bits of this number: its bus and its function.
    for known in [each for each in on.streams if stream <= each <= last]:
        del on.streams[known]
    if kind != _STREAMS:
        on.streams.pop(stream & 0xFFFF, None)


def _forget_addresses(data: bytes, kind: int, on: Caches) -> None:
    """``smmuv3_range_inval``."""
    first, second, third, fourth = (
        int.from_bytes(data[at : at + 4], "little") for at in range(0, 16, 4))
    addr = fourth << 32 | third & 0xFFFF_F000
    code, level = bits(third, 10, 2), bits(third, 8, 2)
    asid = second >> 16 if kind == _ADDRESS else -1
    vmid = second & 0xFFFF if on.features.stage2 else -1

    def forget(at: int, pages: int) -> None:
        on.walker.forget_pages(
            at, code, pages, level, asid=asid, vmid=vmid, second=kind == _MACHINE_ADDRESS)

    if not code:
        forget(addr, 1)
        return
    granule = code * 2 + 10
    stop = addr + ((bits(first, 12, 5) + 1) << bits(first, 20, 5) + granule) & MASK64
    while addr != stop:
        size = _largest(addr, stop - 1 & MASK64)
        forget(addr, size >> granule)
        addr = addr + size & MASK64


def _largest(start: int, last: int) -> int:
    """The largest power of two that ``start`` is a multiple of and that fits
    (``dma_aligned_pow2_mask``)."""
    fits = last - start & MASK64
    aligned = (start & -start) - 1 if start else MASK64
    return (aligned if aligned <= fits else (1 << (fits + 1).bit_length() - 1) - 1) + 1
