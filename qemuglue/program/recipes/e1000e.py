"""The network controller e1000e: rings, descriptors and packets, a kick, and looks at the result.

About one set-up in five is wrong on purpose: lengths of 0, tails beyond the ring, descriptors
and buffers where no RAM is. Half of them loop what is sent back into receive buffers. Sources:
Intel's 82574 manual; ``hw/net/e1000_regs.h`` and ``e1000x_regs.h`` in QEMU.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from qemuglue.program.layout import Layout, Range
from qemuglue.program.operation import Operation, Place
from qemuglue.program.recipes.e1000e_packets import packet
from qemuglue.program.recipes.recipe import Scratch, ram_write, register_read, register_write
from qemuglue.program.verbs import ADDRESS_MASK, IO, MAX_LENGTH, MEMORY

MMIO, PORTS = "e1000e-mmio", "e1000e-io"

_CTRL, _RCTL, _TCTL, _VET, _MDIC, _IVAR = 0x0, 0x100, 0x400, 0x38, 0x20, 0xE4
_PSRCTL, _RXCSUM, _RFCTL, _MRQC = 0x2170, 0x5000, 0x5008, 0x5818
_RA, _VFTA, _RETA, _RSSRK, _MTA = 0x5400, 0x5600, 0x5C00, 0x5C80, 0x5200
_TX, _RX = (0x3800, 0x3900), (0x2800, 0x2900)
_TARC = (0x3840, 0x3940)
#: The same registers of the first queue at their older places.
_OLD_PLACES = {0x3800: 0x420, 0x2800: 0x110}
_LOW, _HIGH, _LENGTH, _HEAD, _TAIL = 0x0, 0x4, 0x8, 0x10, 0x18

_EOP, _RS, _DEXT, _DATA, _VLE = 1 << 24, 1 << 27, 1 << 29, 1 << 20, 1 << 30
_TSE, _IDE = 1 << 26, 1 << 31
_LOOP_PHY = 0x04000000 | 1 << 21 | 0x4000
_NORMAL_PHY = 0x04000000 | 1 << 21 | 0x1140

#: A ring is a multiple of 8 descriptors.
_RING_SIZES = (128, 128, 256, 256, 512)


class E1000eRecipe:
    """Sends packets, with or without a loopback, and receives what comes back."""

    name = "e1000e: packets sent and looped back"

    def fits(self, layout: Layout) -> bool:
        return _shown(layout, MMIO, MEMORY) is not None

    def operations(self, rng: Random, layout: Layout, scratch: Scratch) -> Sequence[Operation]:
        found = _shown(layout, MMIO, MEMORY)
        assert found is not None, "asked of a machine that shows no e1000e"
        return _Driver(rng, layout, scratch, found).operations()


def _shown(layout: Layout, region: str, space: str) -> Range | None:
    return next((each for each in layout.ranges(space) if each.region == region), None)


class _Driver:
    """One use of the device. ``wrong`` set-ups may do anything."""

    def __init__(self, rng: Random, layout: Layout, scratch: Scratch, found: Range) -> None:
        self._rng = rng
        self._layout = layout
        self._scratch = scratch
        self._index = found.index
        self._wrong = rng.random() < 0.2
        ports = _shown(layout, PORTS, IO)
        self._ports = ports if rng.random() < 0.15 else None
        self._ops: list[Operation] = []

    def operations(self) -> list[Operation]:
        rng = self._rng
        looped = rng.random() < 0.6
        if rng.random() < 0.3:
            self._write(_CTRL, 1 << 26 | 0x40241)
        self._write(_CTRL, 0x40241 | (1 << 30 if rng.random() < 0.4 else 0))
        if looped:
            self._receiver()
        queue = rng.choice((0, 0, 0, 1))
        self._transmitter(queue)
        for _ in range(rng.choice((1, 1, 2, 3))):
            self._send(queue)
        self._look(queue, looped=looped)
        return self._ops

    # -- registers ---------------------------------------------------------------------------------

    def _write(self, offset: int, value: int) -> None:
        """Through the window, or through the address and data ports."""
        if self._ports is None:
            self._ops.append(register_write(MMIO, offset, 4, value & 0xFFFFFFFF, self._index))
            return
        for at, number in ((0, offset), (4, value & 0xFFFFFFFF)):
            self._ops.append(Operation("outl", Place(PORTS, self._ports.index, at), 4, number))

    def _read(self, offset: int) -> None:
        self._ops.append(register_read(MMIO, offset, 4, self._index))

    def _ring(self, place: int, base: int, size: int, head: int, tail: int | None) -> None:
        if place in _OLD_PLACES and self._rng.random() < 0.1:
            place = _OLD_PLACES[place]
        self._write(place + _LOW, base & 0xFFFFFFFF)
        self._write(place + _HIGH, base >> 32)
        self._write(place + _LENGTH, size)
        self._write(place + _HEAD, head)
        if tail is not None:
            self._write(place + _TAIL, tail)

    # -- the receiver ------------------------------------------------------------------------------

    def _receiver(self) -> None:
        rng = self._rng
        extended = rng.random() < 0.6
        split = extended and rng.random() < 0.5
        self._write(_RFCTL, (1 << 15 if extended else 0) | self._bits(0x37C00, 0.2))
        self._write(_RXCSUM, rng.choice((0x300, 0x2300, 0x2000, 0, 0x100, 0x200)))
        if rng.random() < 0.4:
            self._write(_MRQC, 1 | self._bits(0x1F0000, 0.9))
            for at in range(10):
                self._write(_RSSRK + 4 * at, rng.getrandbits(32))
            for at in rng.sample(range(32), 6):
                self._write(_RETA + 4 * at, rng.getrandbits(32))
        if split:
            self._write(_PSRCTL, rng.choice((1, 2, 4)) | rng.choice((1, 2, 4)) << 8
                        | rng.choice((1, 2)) << 16 | rng.choice((0, 1)) << 24)
        if rng.random() < 0.1:
            self._write(_VET, rng.choice((0x8100, 0x88A8, 0)))
        self._filters()
        control = self._receive_control(split=split)
        buffer = 2048 if not split else 1024
        for number in range(1 + (rng.random() < 0.5)):
            self._receive_ring(number, buffer, split=split)
        phy = rng.random() < 0.3
        self._write(_MDIC, _LOOP_PHY if phy else _NORMAL_PHY)
        self._write(_RCTL, control if phy and rng.random() < 0.8 else control | 0x40)

    def _receive_control(self, *, split: bool) -> int:
        rng = self._rng
        control = 0x2 | (0x8018 if rng.random() < 0.8 else self._bits(0x8018, 0.5))
        control |= self._bits(0x3020 | 1 << 26, 0.5) | self._bits(1 << 18 | 1 << 2, 0.1)
        control |= 0x400 if split else 0
        control |= rng.choice((0, 0, 1, 2, 3)) << 16
        if rng.random() < 0.2:
            control |= 1 << 25
        if rng.random() < 0.1:
            control |= rng.randrange(3) << 27
        return control

    def _filters(self) -> None:
        rng = self._rng
        if rng.random() < 0.2:
            self._write(_VFTA + 4 * rng.randrange(128), 0xFFFFFFFF)
        if rng.random() < 0.2:
            self._write(_MTA + 4 * rng.randrange(128), rng.getrandbits(32))
        if rng.random() < 0.1:
            self._write(_RA + 8, 0x12005452)
            self._write(_RA + 12, rng.choice((0x80005634, 0x5634)))

    def _receive_ring(self, number: int, buffer: int, *, split: bool) -> None:
        rng = self._rng
        size = self._size()
        count = size // 16
        base = self._place(size, 16)
        for at in range(0, min(size, 512), 8):
            if split or at % 16 == 0:
                self._fill(base + at, self._buffer(buffer).to_bytes(8, "little"))
            elif rng.random() < 0.1:
                self._fill(base + at, rng.randbytes(8))
        head = rng.randrange(count) & -2 if count and rng.random() < 0.3 else 0
        tail = (head - (2 if split else 1)) % count if count else 0
        if rng.random() < 0.2:
            tail = rng.randrange(max(count, 1)) & (-2 if split else -1)
        if self._wrong and rng.random() < 0.3:
            head, tail = rng.randrange(0x200), rng.randrange(0x200)
        self._ring(_RX[number], base, size, head, tail)

    # -- the transmitter ---------------------------------------------------------------------------

    def _transmitter(self, queue: int) -> None:
        rng = self._rng
        self._tx_size = self._size()
        self._tx_base = self._place(max(self._tx_size, 128), 16)
        count = max(self._tx_size // 16, 1)
        self._at = rng.randrange(count) if rng.random() < 0.5 else 0
        if self._wrong and rng.random() < 0.3:
            self._at = rng.randrange(0x200)
        self._ring(_TX[queue], self._tx_base, self._tx_size, self._at, self._at)
        if rng.random() < 0.2:
            self._write(_IVAR, rng.choice((0, 1 << 31)))
        self._write(_TARC[queue], 0x403 if rng.random() < 0.96 else 0x3)
        self._write(_TCTL, 0x3003F0FA if rng.random() < 0.97 else 0x3003F0F8)

    def _send(self, queue: int) -> None:
        """Packets into descriptors, then the tail."""
        rng = self._rng
        descriptors: list[bytes] = []
        for _ in range(rng.randint(1, 3)):
            descriptors += self._packet()
        count = max(self._tx_size // 16, 1)
        descriptors = descriptors[: max(count - 1, 1)]
        for descriptor in descriptors:
            at = self._at % count
            place = (self._tx_base + 16 * at) & ADDRESS_MASK
            self._ops.append(ram_write(place, descriptor))
            self._at = (at + 1) % count
        tail = self._at
        if self._wrong and rng.random() < 0.2:
            tail = rng.choice((count, count - 1, rng.randrange(0x10000)))
        self._write(_TX[queue] + _TAIL, tail)

    def _packet(self) -> list[bytes]:
        rng = self._rng
        data = packet(rng)
        found: list[bytes] = []
        command = _RS if rng.random() < 0.7 else 0
        command |= self._bits(_VLE, 0.2) | self._bits(_IDE | 1 << 25, 0.1)
        status = rng.getrandbits(16) << 16
        if rng.random() < 0.6:
            command |= _DEXT | _DATA | self._bits(_TSE, 0.4)
            status |= rng.choice((0, 0x100, 0x200, 0x300, 0x300))
            if rng.random() < 0.6:
                found.append(self._context())
        parts = self._cut(data)
        for number, part in enumerate(parts):
            address = self._buffer(len(part))
            if part:
                self._fill(address, part)
            last = number == len(parts) - 1 and rng.random() < 0.97
            word = len(part) | command | (_EOP if last else 0)
            found.append(
                address.to_bytes(8, "little") + word.to_bytes(4, "little")
                + status.to_bytes(4, "little"))
        return found

    def _context(self) -> bytes:
        rng = self._rng
        command = _DEXT | self._bits(_TSE | _RS | 3 << 24, 0.6)
        mss = rng.choice((0, 8, 100, 536, 1460, rng.randrange(0x600)))
        return (rng.randbytes(8) + command.to_bytes(4, "little")
                + bytes([0, 54]) + mss.to_bytes(2, "little"))

    def _cut(self, data: bytes) -> list[bytes]:
        rng = self._rng
        cuts = rng.choice((0, 0, 1, 2, 5))
        places = sorted(rng.randrange(len(data) + 1) for _ in range(cuts))
        parts = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
        return [part for part in parts if part or rng.random() < 0.1] or [data]

    # -- memory ------------------------------------------------------------------------------------

    def _size(self) -> int:
        rng = self._rng
        if self._wrong and rng.random() < 0.2:
            return rng.choice((0, 16, 0x88, 0x1000))
        return rng.choice(_RING_SIZES)

    def _place(self, size: int, align: int) -> int:
        if self._wrong and self._rng.random() < 0.15:
            return self._elsewhere()
        return self._scratch.take(max(size, 16), align)

    def _buffer(self, size: int) -> int:
        """RAM for a buffer; buffers of later packets may lie over earlier ones."""
        rng = self._rng
        if rng.random() < (0.1 if self._wrong else 0.01):
            return rng.choice((0, self._elsewhere(), rng.getrandbits(64)))
        if self._scratch.used + size + 64 > self._scratch.size // 2:
            return self._scratch.start + rng.randrange(self._scratch.size // 2)
        return self._scratch.take(max(size, 1), rng.choice((1, 1, 16))) if rng.random() < 0.9 else (
            self._scratch.start + rng.randrange(self._scratch.used + 1))

    def _elsewhere(self) -> int:
        place = self._rng.choice(self._layout.ranges())
        return place.start + self._rng.choice((0, place.size - 1, self._rng.randrange(place.size)))

    def _fill(self, address: int, data: bytes) -> None:
        """Only into the scratch: what lies elsewhere stays."""
        inside = self._scratch.start <= address < self._scratch.start + self._scratch.size
        room = self._scratch.start + self._scratch.size - address
        for at in range(0, min(len(data), room) if inside else 0, MAX_LENGTH):
            self._ops.append(ram_write(address + at, data[at : min(at + MAX_LENGTH, room)]))

    def _bits(self, mask: int, chance: float) -> int:
        """Each bit of ``mask`` with the chance."""
        return sum(
            1 << bit for bit in range(mask.bit_length())
            if mask >> bit & 1 and self._rng.random() < chance
        )

    def _look(self, queue: int, *, looped: bool) -> None:
        rng = self._rng
        self._read(_TX[queue] + _HEAD)
        if looped:
            self._read(_RX[0] + _HEAD)
            self._read(_RX[1] + _HEAD)
        if rng.random() < 0.3:
            self._read(rng.choice((0xC0, 0x8, 0x40D4, 0x40D0, 0x4074)))
        if rng.random() < 0.3:
            self._ops.append(Operation("read", Place(None, 0, self._tx_base), 16))
