"""The registers of an e1000e that its DMA depends on, as writes leave them.

A register is named by its index (byte offset / 4). Reads need no model: what they answer is in
the transcript, and those that change something change counters and interrupt causes only.
Sources: ``e1000e_core_write`` and ``e1000e_macreg_writeops`` in QEMU's
``hw/net/e1000e_core.c`` (7.2.0 and 10.0.2), ``e1000x_regs.h``, ``e1000_regs.h``.
"""

from __future__ import annotations

from typing import Final

MASK32: Final = 0xFFFFFFFF
MASK64: Final = (1 << 64) - 1

CTRL, CTRL_DUP, STATUS, MDIC, VET = 0x0, 0x1, 0x2, 0x8, 0xE
IMS, IVAR, RCTL, TCTL, PSRCTL = 0x34, 0x39, 0x40, 0x100, 0x85C
RXCSUM, RFCTL, MRQC = 0x1400, 0x1402, 0x1606
MTA, RA, VFTA, RETA, RSSRK = 0x1480, 0x1500, 0x1580, 0x1700, 0x1720
TARC: Final = (0xE10, 0xE50)
_PBM: Final = 0x4000

CTRL_RST, CTRL_VME = 1 << 26, 1 << 30
STATUS_LU = 1 << 1
RCTL_EN, RCTL_SBP, RCTL_UPE, RCTL_MPE, RCTL_LPE = 0x02, 0x04, 0x08, 0x10, 0x20
RCTL_LBM_MAC, RCTL_DTYP_PS, RCTL_DTYP, RCTL_BAM = 0x40, 0x400, 0xC00, 0x8000
RCTL_VFE, RCTL_SECRC, RCTL_FLXBUF = 0x40000, 1 << 26, 0x78000000
TCTL_EN = 1 << 1
TARC_ENABLE = 1 << 10
IVAR_EVERY_WRITE_BACK = 1 << 31
RFCTL_EXTEN = 1 << 15
RAH_VALID = 1 << 31

_MDIC_READ, _MDIC_WRITE = 1 << 27, 1 << 26
_BMCR, _PHY_PAGE, _OEM_BITS = 0, 22, 25
_BMCR_LOOPBACK, _BMCR_AUTO, _BMCR_RESTART = 0x4000, 0x1000, 0x0200
_BMCR_KEPT: Final = 0xFFFF & ~(0x3F | 0x8000 | _BMCR_RESTART)


class Ring:
    """Where the registers of one ring are: base (low, high), length, head, tail."""

    __slots__ = ("head", "high", "length", "low", "tail")

    def __init__(self, low: int) -> None:
        self.low, self.high, self.length = low, low + 1, low + 2
        self.head, self.tail = low + 4, low + 6


TRANSMIT: Final = (Ring(0xE00), Ring(0xE40))
RECEIVE: Final = (Ring(0xA00), Ring(0xA40))

_MAC_SIZE: Final = 0x8000


def _aliases() -> dict[int, int]:
    """Index to index of the registers that have a second place (``mac_reg_access``)."""
    found = {0x48: 0x48 + 0x9BC, 0x4A: 0x4A + 0x9BC}  # RDH, RDT
    found |= {at: at + 0x9BC for at in range(0x44, 0x47)}  # RDBAL, RDBAH, RDLEN
    found |= {0x10C: 0x10C + 0xCF8, 0x10E: 0x10E + 0xCF8}  # TDH, TDT
    found |= {at: at + 0xCF8 for at in range(0x108, 0x10B)}  # TDBAL, TDBAH, TDLEN
    found |= {0x10 + at: RA + at for at in range(32)}
    found |= {0x180 + at: VFTA + at for at in range(128)}
    return found


_ALIASES: Final = _aliases()

_LOW_16: Final = frozenset(
    [VET, *(ring.head for ring in TRANSMIT + RECEIVE), *(ring.tail for ring in TRANSMIT + RECEIVE)])
_LENGTHS: Final = frozenset(ring.length for ring in TRANSMIT + RECEIVE)
_BASES: Final = frozenset(ring.low for ring in TRANSMIT + RECEIVE)
_PLAIN: Final = frozenset([
    IVAR, *TARC, RXCSUM, RFCTL, MRQC, *(ring.high for ring in TRANSMIT + RECEIVE),
    *range(MTA, MTA + 128), *range(RA, RA + 32), *range(VFTA, VFTA + 128),
    *range(RETA, RETA + 32), *range(RSSRK, RSSRK + 32),
])

#: Writes that may start the transmitter: the tails, and the control register.
STARTERS: Final = frozenset([TCTL, *(ring.tail for ring in TRANSMIT)])

_AT_RESET: Final = {
    CTRL: 1 | 1 << 20 | 1 << 18 | 1 << 9 | 1 << 6,
    STATUS: 0x280 | STATUS_LU,
    PSRCTL: 2 | 4 << 8 | 4 << 16,
    TARC[0]: 3 | TARC_ENABLE,
    TARC[1]: 3 | TARC_ENABLE,
    RXCSUM: 0x300,
}


def index_of(offset: int) -> int:
    """The register that an access at ``offset`` of the window reaches; whatever its alignment."""
    index = (offset & 0x1FFFF) >> 2
    return _ALIASES.get(index, index)


class Registers:
    """What the guest wrote, and what follows from it for the receiver's buffers.

    ``mac`` is the station address, 6 bytes. ``sw_reset``: whether CTRL.RST resets the device;
    up to QEMU 7.2 it only restores the station address. ``vet``: the VLAN type after a reset of
    the machine; a reset by software leaves none.
    """

    def __init__(self, mac: bytes, *, sw_reset: bool, vet: int = 0x8100) -> None:
        self._mac = mac
        self._vet = vet
        self._sw_reset = sw_reset
        #: Sizes of a receive descriptor's buffers, set when RCTL enables the receiver.
        self.buffers = [0, 0, 0, 0]
        #: Bytes of a receive descriptor, set then as well.
        self.descriptor = 0
        self._values: dict[int, int] = {}
        self.reset()

    def __getitem__(self, index: int) -> int:
        return self._values.get(index, 0)

    def __setitem__(self, index: int, value: int) -> None:
        self._values[index] = value & MASK32

    def reset(self, *, by_software: bool = False) -> None:
        """The whole device is reset; ``by_software``: through CTRL, which clears VET too."""
        self._values = dict(_AT_RESET)
        if not by_software:
            self[VET] = self._vet
        self.loopback = False
        self.page = 0
        #: Whether auto-negotiation was started again: the link is down until a timer ends it.
        self.negotiating = False
        self._station_address()

    def detach(self) -> None:
        """A copy gets values of its own."""
        self._values = dict(self._values)
        self.buffers = list(self.buffers)

    def _station_address(self) -> None:
        self[RA] = int.from_bytes(self._mac[:4], "little")
        self[RA + 1] = RAH_VALID | int.from_bytes(self._mac[4:], "little")

    def write(self, index: int, value: int) -> bool:
        """The device was passed ``value`` (32 bits); whether that reset the device."""
        if index in _PLAIN or index == TCTL:
            self[index] = value
        elif index in _LOW_16:
            self[index] = value & 0xFFFF
        elif index in _LENGTHS:
            self[index] = value & 0xFFF80
        elif index in _BASES:
            self[index] = value & ~0xF
        elif index in (CTRL, CTRL_DUP):
            return self._write_ctrl(value)
        elif index == RCTL:
            self._write_rctl(value)
        elif index == PSRCTL:
            self._write_psrctl(value)
        elif index == MDIC:
            self._write_mdic(value)
        return False

    def _write_ctrl(self, value: int) -> bool:
        self[CTRL] = value & ~CTRL_RST
        if not value & CTRL_RST:
            return False
        if self._sw_reset:
            self.reset(by_software=True)
        else:
            self._station_address()
        return self._sw_reset

    def _write_rctl(self, value: int) -> None:
        self[RCTL] = value
        if not value & RCTL_EN:
            return
        self.buffers = _buffer_sizes(value, self[PSRCTL])
        split = self[RFCTL] & RFCTL_EXTEN and value & RCTL_DTYP_PS
        self.descriptor = 32 if split else 16

    def _write_psrctl(self, value: int) -> None:
        """Refused while packet split is on and one of the first two buffers would be empty
        (7.2 ends with ``hw_error`` then)."""
        if self[RCTL] & RCTL_DTYP and not (value & 0x7F and value & 0x3F00):
            return
        self[PSRCTL] = value

    def _write_mdic(self, value: int) -> None:
        """A write to the PHY, if it is one (``e1000e_set_mdic``)."""
        if (value & 0x3E00000) >> 21 != 1 or value & _MDIC_READ or not value & _MDIC_WRITE:
            return
        register, data = (value >> 16) & 0x1F, value & 0xFFFF
        restart = False
        if register == _BMCR:
            kept = data & _BMCR_KEPT
            self.loopback = bool(kept & _BMCR_LOOPBACK)
            restart = bool(data & _BMCR_RESTART and kept & _BMCR_AUTO)
        elif register == _PHY_PAGE:
            self.page = data & 0x7F
        elif register == _OEM_BITS and self.page == 0:
            restart = bool(data & 1 << 10)
        if restart:
            self[STATUS] &= ~STATUS_LU
            self.negotiating = True

    # -- what several parts ask ----------------------------------------------------------------

    @property
    def fcs(self) -> int:
        """Bytes that the receiver appends for the frame check sequence it never has."""
        return 0 if self[RCTL] & RCTL_SECRC else 4

    @property
    def extended(self) -> bool:
        """Whether receive descriptors are of the extended kinds."""
        return bool(self[RFCTL] & RFCTL_EXTEN)

    @property
    def looped(self) -> bool:
        """Whether what is sent comes back."""
        return self.loopback or bool(self[RCTL] & RCTL_LBM_MAC)

    def base(self, ring: Ring) -> int:
        return (self[ring.high] << 32) + self[ring.low]

    def descriptors(self, ring: Ring) -> int:
        """How many descriptors of 16 bytes the ring has."""
        return self[ring.length] // 16

    def empty(self, ring: Ring) -> bool:
        """Whether the device owns none of the ring (``e1000e_ring_empty``)."""
        return self[ring.head] == self[ring.tail] or self[ring.tail] >= self.descriptors(ring)

    def advance(self, ring: Ring, count: int) -> None:
        head = self[ring.head] + count
        self[ring.head] = 0 if head * 16 >= self[ring.length] else head

    def free(self, ring: Ring) -> int:
        """Descriptors from head to tail (``e1000e_ring_free_descr_num``), modulo 2^32."""
        head, tail = self[ring.head], self[ring.tail]
        if head <= tail:
            return tail - head
        return (self.descriptors(ring) + tail - head) & MASK32

    def fits(self, ring: Ring, size: int) -> bool:
        """Whether the ring has buffers for ``size`` bytes (``e1000e_has_rxbufs``)."""
        count = self.free(ring) // (self.descriptor // 16)
        return size <= (count * sum(self.buffers)) & MASK32


def _buffer_sizes(rctl: int, psrctl: int) -> list[int]:
    """``e1000e_parse_rxbufsize``."""
    if rctl & RCTL_DTYP:
        return [
            (psrctl & 0x7F) * 128, (psrctl >> 8 & 0x3F) * 1024,
            (psrctl >> 16 & 0x3F) * 1024, (psrctl >> 24 & 0x3F) * 1024,
        ]
    if rctl & RCTL_FLXBUF:
        return [(rctl & RCTL_FLXBUF) // (1 << 27) * 1024, 0, 0, 0]
    # With BSEX each of the four codes stands for 16 times as much, but code 0 for 2048.
    code = rctl >> 16 & 3
    size = (2048, 1024, 512, 256)[code]
    if rctl & 1 << 25 and code:
        size *= 16
    return [size, 0, 0, 0]
