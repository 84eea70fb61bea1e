"""Invalidation descriptors of QEMU's intel-iommu, decoded.

Source: ``vtd_process_inv_desc`` and the functions it calls in ``hw/i386/intel_iommu.c``. The
reserved bits and the type's width changed with scalable mode's queue (9.2); both are data here.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from qemuglue.witness.iommu.tables import bits

#: From here on the type has three more bits, and more descriptors are checked for reserved ones.
WIDE_TYPES = (9, 2)

#: Largest address mask of a page invalidation (``VTD_MAMV``).
MAX_PAGES_LOG = 18

_CONTEXT, _IOTLB, _DEVICE, _INTERRUPTS, WAIT, _PIOTLB, _PASID_CACHE = range(1, 8)


class Act(enum.Enum):
    """What a descriptor asks for."""

    NOTHING = "nothing that matters here"
    ALL_CONTEXTS = "forget every context entry"
    CONTEXT = "forget the context entries of a device"
    ALL_PAGES = "forget every translation"
    DOMAIN = "forget a domain's translations"
    PAGES = "forget some pages of a domain"
    STATUS = "write a word"
    INTERRUPT = "raise the completion interrupt"
    ERROR = "stop: the descriptor is none"


@dataclass(frozen=True, slots=True)
class Order:
    """A decoded descriptor. ``requester`` and ``mask`` (function bits that do not count) are of
    CONTEXT; ``domain`` of DOMAIN and PAGES, ``addr`` and ``pages_log`` of PAGES; ``addr`` and
    ``value`` of STATUS. ``type`` is what the queue remembers as its last descriptor."""

    act: Act
    type: int = 0
    requester: int = 0
    mask: int = 0
    domain: int = 0
    addr: int = 0
    pages_log: int = 0
    value: int = 0
    #: STATUS is followed by the completion interrupt. Up to 10.0 QEMU ends at such a descriptor
    #: (``assert`` in ``vtd_process_wait_desc``); 11.1 does both.
    interrupts: bool = False


#: Function bits that a function mask leaves out of a context invalidation.
FUNCTION_MASKS = (0, 4, 6, 7)


def decode(low: int, high: int, version: tuple[int, ...], scalable: bool = False) -> Order:
    """One descriptor of 128 bits."""
    wide = version >= WIDE_TYPES
    kind = low & 0xF | (bits(low, 9, 3) << 4 if wide else 0)
    return _decode(kind, low, high, wide, scalable) or Order(Act.ERROR, kind)


def _decode(kind: int, low: int, high: int, wide: bool, scalable: bool) -> Order | None:
    if kind == WAIT:
        return _wait(low, high)
    if kind == _CONTEXT:
        return _context(low, high)
    if kind == _IOTLB:
        return _iotlb(low, high)
    if kind == _INTERRUPTS:
        bad = wide and (low & 0xFFFF_0000_07FF_F1E0 or high)
        return None if bad else Order(Act.NOTHING, kind)
    if kind == _DEVICE:
        bad = low & (0xFFFF_0000_FFE0_F1F0 if wide else 0xFFFF_0000_FFE0_FFF8) or high & 0xFFE
        return None if bad else Order(Act.NOTHING, kind)
    passes = kind == _PASID_CACHE and (scalable or not wide)
    return Order(Act.NOTHING, kind) if passes or (kind == _PIOTLB and not wide) else None


def _wait(low: int, high: int) -> Order | None:
    if low & 0xFFFF_F180 or high & 3:
        return None
    if low & 0x20:
        return Order(
            Act.STATUS, WAIT, addr=high, value=low >> 32, interrupts=bool(low & 0x10))
    return Order(Act.INTERRUPT, WAIT) if low & 0x10 else None


def _context(low: int, high: int) -> Order | None:
    if low & 0xFFFC_0000_0000_F1C0 or high:
        return None
    grain = bits(low, 4, 2)
    if grain == 3:
        return Order(
            Act.CONTEXT, _CONTEXT, requester=bits(low, 32, 16),
            mask=FUNCTION_MASKS[bits(low, 48, 2)])
    return Order(Act.ALL_CONTEXTS, _CONTEXT) if grain else None


def _iotlb(low: int, high: int) -> Order | None:
    if low & 0xFFFF_FFFF_0000_F100 or high & 0xF80:
        return None
    grain, domain = bits(low, 4, 2), bits(low, 16, 16)
    if grain == 1:
        return Order(Act.ALL_PAGES, _IOTLB)
    if grain == 2:
        return Order(Act.DOMAIN, _IOTLB, domain=domain)
    if grain == 3 and high & 0x3F <= MAX_PAGES_LOG:
        return Order(
            Act.PAGES, _IOTLB, domain=domain, addr=high & ~0xFFF, pages_log=high & 0x3F)
    return None
