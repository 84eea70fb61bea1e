"""An e1000e's receiver: packets that come back to it, into buffers and descriptors.

Source: ``e1000e_receive_internal`` (``e1000e_receive_iov`` up to 7.2) and what it calls in
QEMU's ``hw/net/e1000e_core.c``, ``e1000x_common.c``, ``net_rx_pkt.c`` (7.2.0 and 10.0.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from qemuglue.errors import ModelError
from qemuglue.witness.dma import e1000e_registers as regs
from qemuglue.witness.dma.device import Port
from qemuglue.witness.dma.e1000e_headers import Parsed, is_broadcast, parse, word
from qemuglue.witness.dma.e1000e_packet import NEEDS_CHECKSUM
from qemuglue.witness.dma.e1000e_registers import RECEIVE, Registers, Ring
from qemuglue.witness.dma.e1000e_status import Received, extended, legacy, split, spread
from qemuglue.witness.dma.e1000e_transmit import fetch
from qemuglue.witness.dma.e1000e_vector import Piece, Vector, private

#: A shorter frame is padded with zeros.
SHORTEST = 60
_BUFFERS = 4


@dataclass(slots=True)
class _Fill:
    """How far the buffers of one descriptor are filled (``E1000EBAState``)."""

    addresses: list[int | None]
    written: list[int]
    at: int = 0


class Receiver:
    """``old``: as up to QEMU 7.2. ``reworked``: with the bounds of November 2025 (10.2, and the
    stable releases 7.2.22, 10.0.7, 10.1.3). ``parked``: the guest's clock moves.
    ``told_of_command``: writes to its configuration space are seen."""

    def __init__(
        self, registers: Registers, *, old: bool, reworked: bool, parked: bool,
        told_of_command: bool,
    ) -> None:
        self._regs = registers
        self._told_of_command = told_of_command
        self._old = old
        self._reworked = reworked
        self._parked = parked
        self._parsed = Parsed()
        #: A packet found no buffers: QEMU's network layer keeps others away until the guest
        #: gives some (up to 7.2).
        self.disabled = False
        #: Whether that is not known.
        self._unsure = False

    def revived(self) -> None:
        """Packets came that were not followed, and a reset of the machine forgets neither what
        is kept of the last nor who keeps others away."""
        self._parsed.stale = True
        self._unsure = True

    def wake(self) -> None:
        """The guest gave buffers (``e1000e_start_recv``)."""
        self.disabled = self._unsure = False

    def loop(self, port: Port, packet: Vector, flags: int) -> None:
        """What the device sent comes back."""
        if self._regs.negotiating and self._parked:
            raise ModelError("whether its link is up again depends on a timer")
        if not self._old:
            self._receive(port, packet, flags)
            return
        if self._unsure:
            raise ModelError("it was not followed, and may have run out of receive buffers")
        if self.disabled and not self._told_of_command:
            raise ModelError(
                "it ran out of receive buffers, and a write to its configuration space may have "
                "let packets in again")
        if not self.disabled and self._can_receive(port):
            self.disabled = not self._receive(port, packet, flags)

    def _can_receive(self, port: Port) -> bool:
        """``e1000e_can_receive``; without bus mastering its space is empty."""
        if not self._enabled() or not any(s.assigned for s in port.space.view.sections):
            return False
        registers = self._regs
        return any(registers[r.length] and registers.fits(r, 1) for r in RECEIVE)

    def _enabled(self) -> bool:
        registers = self._regs
        return bool(
            registers[regs.STATUS] & regs.STATUS_LU and registers[regs.RCTL] & regs.RCTL_EN)

    def _receive(self, port: Port, packet: Vector, flags: int) -> bool:
        """False if there are no buffers for it."""
        registers = self._regs
        if not self._enabled():
            return True
        if packet.size < SHORTEST:
            packet = Vector([private(packet.read(0, SHORTEST).ljust(SHORTEST, b"\0"))])
        start = packet.read(0, 18)
        if self._oversized(packet.size) or not self._wanted(start):
            return True
        packet, tag = self._strip(packet, start)
        self._parsed = parse(packet, self._parsed, old=self._old)
        hashed = spread(registers, self._parsed)
        ring = RECEIVE[hashed.queue]
        if not registers.fits(ring, packet.size + registers.fcs):
            return False
        received = Received(packet, self._parsed, hashed, tag, bool(flags))
        if flags & NEEDS_CHECKSUM:
            received.fix_checksum()
        self._store(port, ring, received)
        return True

    # -- which packets are taken -----------------------------------------------------------------

    def _oversized(self, size: int) -> bool:
        """``e1000x_is_oversized``."""
        rctl = self._regs[regs.RCTL]
        short, large = (1522, 16384) if self._old else (1518, 16380)
        return not rctl & regs.RCTL_SBP and (
            size > large or (size > short and not rctl & regs.RCTL_LPE))

    def _wanted(self, start: bytes) -> bool:
        """``e1000e_receive_filter``, on the first 18 bytes."""
        registers = self._regs
        rctl = registers[regs.RCTL]
        if word(start, 12) == registers[regs.VET] and rctl & regs.RCTL_VFE:
            vlan = word(start, 14)
            if not registers[regs.VFTA + (vlan >> 5 & 0x7F)] & 1 << (vlan & 31):
                return False
        if is_broadcast(start):
            promiscuous = regs.RCTL_BAM
        else:
            promiscuous = regs.RCTL_MPE if start[0] & 1 else regs.RCTL_UPE
        if rctl & promiscuous:
            return True
        for at in range(regs.RA, regs.RA + 32, 2):
            high = registers[at + 1]
            if high & regs.RAH_VALID:
                address = (high << 32 | registers[at]) & (1 << 48) - 1
                if address == int.from_bytes(start[:6], "little"):
                    return True
        shift = (4, 3, 2, 0)[rctl >> 12 & 3]
        bit = (start[5] << 8 | start[4]) >> shift & 0xFFF
        return bool(registers[regs.MTA + (bit >> 5)] & 1 << (bit & 31))

    def _strip(self, packet: Vector, start: bytes) -> tuple[Vector, int | None]:
        """The packet without its VLAN tag, and the tag, where the device is to take it off."""
        registers = self._regs
        if not registers[regs.CTRL] & regs.CTRL_VME or word(start, 12) != registers[regs.VET]:
            return packet, None
        rest = packet.cut(18, packet.size)
        return Vector([private(start[:12] + start[16:18]), *rest.pieces]), word(start, 14)

    # -- into memory -----------------------------------------------------------------------------

    def _store(self, port: Port, ring: Ring, received: Received) -> None:
        """``e1000e_write_packet_to_guest``."""
        registers = self._regs
        header = received.header_size(registers)
        total = received.packet.size + registers.fcs
        source = _Source(received.packet.pieces)
        done = idle = 0
        while done < total:
            if registers.empty(ring):
                return
            at = (registers.base(ring) + 16 * registers[ring.head]) & regs.MASK64
            raw = fetch(port, at, registers.descriptor)
            fill = _Fill(self._addresses(raw), [0] * _BUFFERS)
            step = self._fill_reworked if self._reworked else self._fill
            size = step(port, fill, source, received, header, done)
            done += size
            self._write_back(port, at, raw, fill, received if done >= total else None, header)
            registers.advance(ring, registers.descriptor // 16)
            idle = 0 if size else idle + 1
            if idle > registers.descriptors(ring):
                raise ModelError("QEMU goes round a ring of descriptors without buffers for ever")

    def _fill(
        self, port: Port, fill: _Fill, source: _Source, received: Received, header: int, done: int
    ) -> int:
        """One descriptor's share of the packet; bytes that count as done. One without buffers
        counts as if it had been filled."""
        size, room = received.packet.size, sum(self._regs.buffers)
        total = size + self._regs.fcs
        if fill.addresses[0] and done < size:
            left = min(size - done, room)
            left -= self._split(port, fill, source, received, header, left)
            self._copy(port, fill, source, left)
            if done + room >= total:
                self._payload(port, fill, bytes(self._regs.fcs))
        return min(total - done, room)

    def _fill_reworked(
        self, port: Port, fill: _Fill, source: _Source, received: Received, header: int, done: int
    ) -> int:
        """The same, counting what was really written. The check sequence always gets a
        descriptor of its own, because ``done`` does not yet count the data before it."""
        if not fill.addresses[0]:
            return 0
        size, room = received.packet.size, sum(self._regs.buffers)
        total, put = size + self._regs.fcs, 0
        if done < size:
            put = self._split(port, fill, source, received, header, size - done)
            left = size - done - put
            if header:
                room -= self._regs.buffers[0]
            left = min(left, room)
            self._copy(port, fill, source, left)
            put += left
            room -= left
        elif room:
            put = min(room, total - done)
            self._payload(port, fill, bytes(put))
        return put

    def _split(
        self, port: Port, fill: _Fill, source: _Source, received: Received, header: int, left: int
    ) -> int:
        """Of a split packet, the header goes into buffer 0, which is left empty in later
        descriptors; bytes written."""
        if not header:
            return 0
        fill.at = 1
        if received.placed:
            return 0
        received.placed = True
        if left < header:
            raise ModelError("QEMU copies what lies behind the packet in its own memory")
        done = 0
        while done < header:
            data = source.take(header - done)
            self._put(port, fill, 0, data)
            done += len(data)
        return header

    def _copy(self, port: Port, fill: _Fill, source: _Source, size: int) -> None:
        while size:
            data = source.take(size)
            self._payload(port, fill, data)
            size -= len(data)

    def _addresses(self, raw: bytes) -> list[int | None]:
        """Of the buffers; None: from memory of QEMU's that it never set."""
        if not self._splits:
            return [int.from_bytes(raw[:8], "little"), 0, 0, 0]
        found: list[int | None] = [
            int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
        return found + [None] * (_BUFFERS - len(found))

    @property
    def _splits(self) -> bool:
        registers = self._regs
        return registers.extended and bool(registers[regs.RCTL] & regs.RCTL_DTYP_PS)

    def _payload(self, port: Port, fill: _Fill, data: bytes) -> None:
        """``e1000e_write_payload_frag_to_rx_buffers``."""
        while data:
            if fill.at == _BUFFERS:
                raise ModelError("QEMU asserts that a packet fits into its buffers")
            left = self._regs.buffers[fill.at] - fill.written[fill.at]
            part = data[:left]
            number = fill.at
            self._put(port, fill, number, part)
            data = data[len(part) :]
            if fill.written[number] == self._regs.buffers[number]:
                fill.at += 1
            if fill.at == _BUFFERS and not self._reworked:
                raise ModelError("QEMU asserts that a packet does not fill all four buffers")

    def _put(self, port: Port, fill: _Fill, number: int, data: bytes) -> None:
        address = fill.addresses[number]
        if not data:
            return
        if address is None:
            raise ModelError("it uses buffer addresses that it never read")
        port.write((address + fill.written[number]) & regs.MASK64, data)
        fill.written[number] += len(data)

    def _write_back(
        self, port: Port, at: int, raw: bytes, fill: _Fill, received: Received | None, header: int
    ) -> None:
        """The descriptor with its DONE bit clear, then that bit's word or byte."""
        registers = self._regs
        if not registers.extended:
            data, where, width = legacy(registers, raw, fill.written[0], received), 12, 1
        elif self._splits:
            data, where, width = split(registers, fill.written, received, header), 8, 4
        else:
            data, where, width = extended(registers, raw, fill.written[0], received), 8, 4
        data = data[: registers.descriptor]
        status = data[where : where + width]
        port.write(at, data[:where] + bytes([data[where] & ~1]) + data[where + 1 :])
        port.write((at + where) & regs.MASK64, status)


class _Source:
    """The packet's pieces, read when they are copied and no sooner."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = [piece for piece in pieces if piece.size]
        self._index = 0
        self._offset = 0

    def take(self, size: int) -> bytes:
        """What is left of the piece at hand, at most ``size`` bytes."""
        piece = self._pieces[self._index]
        data = piece.read(self._offset, min(size, piece.size - self._offset))
        self._offset += len(data)
        if self._offset == piece.size:
            self._index, self._offset = self._index + 1, 0
        return data
