"""An e1000e's transmitter: descriptors in, status and checksums out.

Source: ``e1000e_start_xmit`` and ``e1000e_process_tx_desc`` in QEMU's ``hw/net/e1000e_core.c``
(7.2.0 and 10.0.2), ``net_tx_pkt_add_raw_fragment`` in ``net_tx_pkt.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from qemuglue.errors import ModelError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.mapping import Mapping
from qemuglue.witness.dma import e1000e_registers as regs
from qemuglue.witness.dma.device import Port
from qemuglue.witness.dma.e1000e_packet import MAX_PIECES, Packet, Style
from qemuglue.witness.dma.e1000e_registers import TRANSMIT, Registers
from qemuglue.witness.dma.e1000e_vector import Mapped, Piece, Vector, private

DESCRIPTOR = 16
_EOP, _RS, _DEXT, _DATA = 1 << 24, 1 << 27, 1 << 29, 1 << 20
_TSE, _VLE = 1 << 26, 1 << 30
_DONE = 1
_IP_SUM, _TRANSPORT_SUM = 1, 2

#: What a loopback does with a packet: the packet and its virtio flags.
Loop = Callable[[Port, Vector, int], None]


@dataclass(slots=True)
class _Queue:
    """What one queue remembers between descriptors, and from one kick to the next."""

    #: Of the last context descriptor.
    segment: bool = False
    mss: int = 0
    #: The rest of the packet is dropped: a buffer could not be mapped.
    skip: bool = False
    sums: int = 0
    large: bool = False
    pieces: list[tuple[AddressSpace, Mapping, Piece]] = field(default_factory=list)


class Transmitter:
    """``loop`` takes what a looped-back device sends."""

    def __init__(self, registers: Registers, loop: Loop, style: Style) -> None:
        self._regs = registers
        self._loop = loop
        self._style = style
        self._old = style.old
        self._queues = (_Queue(), _Queue())

    def reset(self, *, by_software: bool) -> None:
        """The device was reset; only a reset of the machine lets go what was mapped."""
        for queue in self._queues:
            queue.segment, queue.mss, queue.skip = False, 0, False
            if not by_software:
                self._drop(queue)

    def start(self, port: Port, number: int) -> None:
        """Send what the ring holds."""
        registers, ring, queue = self._regs, TRANSMIT[number], self._queues[number]
        if not registers[regs.TCTL] & regs.TCTL_EN:
            return
        while not registers.empty(ring):
            at = (registers.base(ring) + DESCRIPTOR * registers[ring.head]) & regs.MASK64
            descriptor = fetch(port, at, DESCRIPTOR)
            self._process(port, queue, descriptor)
            self._write_back(port, at, descriptor)
            registers.advance(ring, 1)
        if not self._old:
            self._drop(queue)

    def _process(self, port: Port, queue: _Queue, descriptor: bytes) -> None:
        lower = int.from_bytes(descriptor[8:12], "little")
        if lower & _DEXT and not lower & _DATA:
            queue.segment = bool(lower & _TSE)
            queue.mss = int.from_bytes(descriptor[14:16], "little")
            return
        queue.large = False
        if lower & _DEXT:
            queue.sums = descriptor[13]
            queue.large = bool(lower & _TSE)
        if not queue.skip:
            address = int.from_bytes(descriptor[:8], "little")
            queue.skip = not self._map(port, queue, address, lower & 0xFFFF)
        if lower & _EOP:
            if not queue.skip:
                self._send(port, queue, lower, int.from_bytes(descriptor[14:16], "little"))
            queue.skip = False
            self._drop(queue)
            queue.sums, queue.large = 0, False

    def _map(self, port: Port, queue: _Queue, address: int, size: int) -> bool:
        """Whether the buffer belongs to the packet now. 7.2 ignores an empty one. Where no memory
        is, QEMU needs a bounce buffer; 7.2 has one for all devices, so any of them may hold it
        (this one does for ever, once it was given less than it asked for)."""
        if self._old and (len(queue.pieces) >= MAX_PIECES or not size):
            return len(queue.pieces) < MAX_PIECES
        if self._old:
            section, _, _ = port.space.translate(address, size)
            if not port.space.is_direct(section.region, False, UNSPECIFIED):
                raise ModelError("it needs the bounce buffer that another device may hold")
        mapping = port.space.map(address, size, False) if size else None
        if mapping is None:
            return False
        if len(mapping) != size or len(queue.pieces) >= MAX_PIECES:
            port.space.unmap(mapping, len(mapping))
            return False
        if mapping.bounced:
            piece = private(bytes(mapping.buffer))
        else:
            piece = Piece(Mapped(mapping.region), mapping.offset, size)
        queue.pieces.append((port.space, mapping, piece))
        return True

    def _send(self, port: Port, queue: _Queue, lower: int, tag: int) -> None:
        registers = self._regs
        packet = Packet(Vector(piece for *_, piece in queue.pieces), self._style)
        if not packet.parsed:
            return
        if registers[regs.CTRL] & regs.CTRL_VME and lower & _VLE:
            packet.tag(tag, registers[regs.VET])
        wanted = packet.offload(
            segment=queue.segment and queue.large, mss=queue.mss,
            transport=bool(queue.sums & _TRANSPORT_SUM), ip=bool(queue.sums & _IP_SUM),
        )
        if wanted:
            looped = registers.looped
            packet.send(lambda sent, flags: self._loop(port, sent, flags) if looped else None)

    def _write_back(self, port: Port, at: int, descriptor: bytes) -> None:
        """The status word, if the descriptor or the interrupt vector register asks for it."""
        lower = int.from_bytes(descriptor[8:12], "little")
        if lower & _RS or self._regs[regs.IVAR] & regs.IVAR_EVERY_WRITE_BACK:
            status = bytes([descriptor[12] | _DONE]) + descriptor[13:16]
            port.write((at + 12) & regs.MASK64, status)

    def _drop(self, queue: _Queue) -> None:
        for space, mapping, _ in queue.pieces:
            space.unmap(mapping, len(mapping))
        queue.pieces.clear()


def fetch(port: Port, at: int, size: int) -> bytes:
    """What the device has in its hands after reading ``size`` bytes: 0 where it was refused."""
    return port.space.read(at, size)[1]
