"""The registers of QEMU's intel-iommu: which bits can be written, and what they say.

Source: ``vtd_init``, ``vtd_set_long``/``vtd_set_quad`` and ``vtd_mem_read`` in
``hw/i386/intel_iommu.c``, 7.2 to 10.0. Registers are little-endian, 4 or 8 bytes.
"""

from __future__ import annotations

#: Bytes of the register page that QEMU keeps.
SIZE = 0x230

GCMD, GSTS, RTADDR, CCMD = 0x18, 0x1C, 0x20, 0x28
FSTS, FECTL, FEDATA, FEADDR = 0x34, 0x38, 0x3C, 0x40
IQH, IQT, IQA, ICS, IECTL, IEDATA, IEADDR = 0x80, 0x88, 0x90, 0x9C, 0xA0, 0xA4, 0xA8
IRTA, IVA, IOTLB, FRCD = 0xB8, 0xF0, 0xF8, 0x220

#: Bits of GCMD, and of GSTS where there is the same.
TE, SRTP, QIE, IRE, SIRTP = 1 << 31, 1 << 30, 1 << 26, 1 << 25, 1 << 24

#: Bits of FSTS: overflow, a fault is pending, the queue has an error.
PFO, PPF, IQE = 1, 2, 0x10
#: Masked and pending, of FECTL and IECTL.
MASKED, PENDING = 1 << 31, 1 << 30
#: A fault is recorded (bit 127 of the recording register).
FRCD_F = 1 << 63

#: offset -> (initial value, bits that can be written, bits that a 1 clears), 4 bytes.
_LONGS = {
    GCMD: (0, 0xFF80_0000, 0), FSTS: (0, 0, 0x11), FECTL: (MASKED, MASKED, 0),
    FEDATA: (0, 0xFFFF, 0), FEADDR: (0, 0xFFFF_FFFC, 0), ICS: (0, 0, 1),
    IECTL: (MASKED, MASKED, 0), IEDATA: (0, 0xFFFF_FFFF, 0), IEADDR: (0, 0xFFFF_FFFC, 0),
}
#: The same for 8 bytes.
_QUADS = {
    RTADDR: (0, 0xFFFF_FFFF_FFFF_FC00, 0), CCMD: (0, 0xE000_0003_FFFF_FFFF, 0),
    IQT: (0, 0x7_FFF0, 0), IQA: (0, 0xFFFF_FFFF_FFFF_F807, 0),
    IOTLB: (0, 0xB003_FFFF_0000_0000, 0), IVA: (0, 0xFFFF_FFFF_FFFF_F07F, 0),
    FRCD + 8: (0, 0, FRCD_F), IRTA: (0, 0xFFFF_FFFF_FFFF_F80F, 0),
}
#: Bits that read as zero: (offset, bytes, bits).
_WRITE_ONLY = (
    (GCMD, 4, 0xFF80_0000), (CCMD, 8, 0x3_FFFF_0000), (IVA, 8, 0xFFFF_FFFF_FFFF_F07F),
)
#: Registers of 4 bytes at an address that 8 bytes can be written to. QEMU 7.2 and 10.0 end there
#: (``assert(size == 4)``); 11.1 writes 4.
NARROW = frozenset({FECTL, IECTL, IEADDR})


class Registers:
    """The bytes, as QEMU's ``csr`` with its masks."""

    __slots__ = ("_clear", "_data", "_hidden", "_mask")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Initial values. The capability registers are not kept: nothing here reads them."""
        self._data, self._mask = bytearray(SIZE), bytearray(SIZE)
        self._clear, self._hidden = bytearray(SIZE), bytearray(SIZE)
        for table, size in ((_LONGS, 4), (_QUADS, 8)):
            for at, (value, mask, clear) in table.items():
                for kept, number in (
                    (self._data, value), (self._mask, mask), (self._clear, clear)
                ):
                    kept[at : at + size] = number.to_bytes(size, "little")
        for at, size, hidden in _WRITE_ONLY:
            self._hidden[at : at + size] = hidden.to_bytes(size, "little")

    def write(self, at: int, size: int, value: int) -> None:
        """A write by the guest: 4 or 8 bytes, inside the registers."""
        old, mask = self.get(at, size), int.from_bytes(self._mask[at : at + size], "little")
        clear = int.from_bytes(self._clear[at : at + size], "little")
        self.put(at, size, (old & ~mask | value & mask) & ~(clear & value))

    def shown(self, at: int, size: int) -> int:
        """What a read by the guest gives."""
        return self.get(at, size) & ~int.from_bytes(self._hidden[at : at + size], "little")

    def get(self, at: int, size: int = 8) -> int:
        return int.from_bytes(self._data[at : at + size], "little")

    def put(self, at: int, size: int, value: int) -> None:
        self._data[at : at + size] = value.to_bytes(size, "little")

    def change(self, at: int, size: int, clear: int, bits: int) -> None:
        """Clear some bits, then set others (``vtd_set_clear_mask_long``)."""
        self.put(at, size, self.get(at, size) & ~clear | bits)
