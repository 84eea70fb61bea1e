"""A packet between the descriptors and the wire: headers copied out, checksums filled in,
large sends cut up (QEMU ``hw/net/net_tx_pkt.c``, 7.2.0 and 10.0.2).

The payload stays where the guest put it, and checksums of TCP and UDP are written into it:
that is what transmitting changes in guest memory. The headers before them are copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qemuglue.errors import ModelError
from qemuglue.witness.dma import e1000e_headers as eth
from qemuglue.witness.dma.e1000e_headers import IP4, IP6, TCP, UDP, word
from qemuglue.witness.dma.e1000e_vector import (
    Piece,
    Vector,
    checksum_finish,
    checksum_of,
    checksum_sum,
    private,
    pseudo_sum,
)

#: Pieces a cut-up packet may have, and of a packet's descriptors.
MAX_PIECES = 64
_LONGEST_DATAGRAM = 0xFFFF

_NONE, _TCP4, _UDP4, _TCP6, _ECN = 0, 1, 3, 4, 0x80

#: Flags of a virtio header: the checksum is still to be filled in; the sender vouches for it.
NEEDS_CHECKSUM: Final = 1
DATA_VALID: Final = 2

#: Takes a packet and the flags of its virtio header.
Send = Callable[[Vector, int], None]


@dataclass(frozen=True, slots=True)
class Style:
    """How a version of QEMU handles packets.

    ``old``: as up to 7.2. ``virtio``: packets carry a virtio header that says what is left to
    be done (up to 7.2, without a network backend or with one that understands it).
    ``keeps_length``: an IP header's length stays what the guest said (11.1).
    """

    old: bool = False
    virtio: bool = False
    keeps_length: bool = False


class Packet:
    """One packet whose descriptors are complete; ``parsed`` says whether it goes anywhere."""

    def __init__(self, raw: Vector, style: Style) -> None:
        self._raw = raw
        self._style = style
        self._old = style.old
        self.link = b""
        self.network = bytearray()
        self.protocol = 0
        self.payload = Vector()
        self._gso = _NONE
        self._gso_size = 0
        self._checksum_at: int | None = None
        self._l4_size = 0
        self.parsed = self._parse()

    def _parse(self) -> bool:
        """``net_tx_pkt_parse``."""
        start = self._raw.read(0, 22)
        if len(start) < 14:
            return False
        kind = word(start, 12)
        if len(start) < {eth.VLAN: 18, eth.DOUBLE_VLAN: 22}.get(kind, 14):
            return False
        self.link = start[: eth.link_header(start.ljust(22, b"\0"))]
        at = len(self.link)
        size = self._network_size(at)
        if size is None:
            return False
        self.network = bytearray(self._raw.read(at, size))
        self.payload = self._raw.cut(at + size, self._raw.size)
        return True

    def _network_size(self, at: int) -> int | None:
        """Bytes of the IP header, 0 where it is another protocol, None where it is cut off."""
        if self.kind == IP4:
            header = self._raw.read(at, 20)
            if len(header) < 20:
                return None
            size = (header[0] & 15) * 4
            if size < 20 or self._raw.size < at + size:
                return None
            self.protocol = header[9]
            return size
        if self.kind == IP6:
            found = eth.parse_ip6(self._raw, at)
            if found is None or found.size > _LONGEST_DATAGRAM:
                return None
            if self._raw.size < at + found.size:
                return None
            self.protocol = found.protocol
            return found.size
        return 0

    @property
    def kind(self) -> int:
        """The protocol that follows the Ethernet header."""
        return word(self.link, len(self.link) - 2)

    # -- what the descriptors ask for ------------------------------------------------------------

    def tag(self, tag: int, kind: int) -> None:
        """Insert a VLAN tag (``net_tx_pkt_setup_vlan_header_ex``); 7.2 overwrites one that is
        there already."""
        tci = tag.to_bytes(2, "big")
        if self._old and word(self.link, 12) in (eth.VLAN, eth.DOUBLE_VLAN):
            self.link = self.link[:14] + tci + self.link[16:]
            return
        tail = self.link[14:] if not self._old else b""
        self.link = self.link[:12] + kind.to_bytes(2, "big") + tci + self.link[12:14] + tail

    def offload(self, *, segment: bool, mss: int, transport: bool, ip: bool) -> bool:
        """Prepare what is asked for (``e1000e_setup_tx_offloads``); False drops the packet."""
        if segment:
            if not self._virtio_header(mss, segment=True):
                return False
            self._update_checksums()
            return True
        if transport and not self._virtio_header(0, segment=False):
            return False
        if ip:
            self._update_ip_header()
        return True

    def _virtio_header(self, size: int, *, segment: bool) -> bool:
        """``net_tx_pkt_build_vheader``; 7.2 checks no lengths."""
        self._gso = self._gso_type() if segment else _NONE
        kind = self._gso & ~_ECN
        if kind in (_TCP4, _TCP6):
            header = self.payload.read(0, 20)
            if not self._old and (len(header) < 20 or header[12] >> 4 < 5):
                return False
            self._l4_size = (header[12] >> 4) * 4 if len(header) == 20 else 0
        if kind != _NONE:
            self._gso_size = size
        needed, at = {TCP: (20, 16), UDP: (8, 6)}.get(self.protocol, (0, None))
        if not self._old and self.payload.size < needed:
            return False
        self._checksum_at = at
        return True

    def _gso_type(self) -> int:
        """``eth_get_gso_type``."""
        network = self.network
        if self.kind == IP4 and network[0] >> 4 == 4:
            ecn = _ECN if network[1] & 3 == 3 else 0
            return {TCP: _TCP4, UDP: _UDP4}.get(self.protocol, _NONE) | ecn
        if self.kind == IP6:
            ecn = _ECN if network[1] & 0xC0 == 0xC0 else 0
            return (_TCP6 if self.protocol == TCP else _NONE) | ecn
        return _NONE

    def _update_checksums(self) -> None:
        """The IP header, and the pseudo header's sum into the payload
        (``net_tx_pkt_update_ip_checksums``)."""
        if self.payload.size + len(self.network) > _LONGEST_DATAGRAM:
            return
        kind = self._gso & ~_ECN
        if kind in (_TCP4, _UDP4):
            self._update_ip_header()
            total = pseudo_sum(self.network, self.payload.size, None)
        elif kind == _TCP6:
            total = pseudo_sum(self.network, self.payload.size, TCP)
        else:
            return
        assert self._checksum_at is not None, "it is TCP or UDP"
        self.payload.write(self._checksum_at, (~checksum_finish(total) & 0xFFFF).to_bytes(2, "big"))

    def _update_ip_header(self) -> None:
        """Length and checksum, wherever they would be: nobody asks whether it is IPv4
        (``net_tx_pkt_update_ip_hdr_checksum``)."""
        size = len(self.network)
        if not size:
            return
        if not self._style.keeps_length:
            self.network[2:4] = ((self.payload.size + size) & 0xFFFF).to_bytes(2, "big")
        self.network[10:12] = b"\0\0"
        self.network[10:12] = checksum_of(self.network).to_bytes(2, "big")

    # -- sending ---------------------------------------------------------------------------------

    def send(self, receiver: Send) -> None:
        """``net_tx_pkt_send_custom``, ``net_tx_pkt_send`` up to 7.2."""
        kind = self._gso if self._old else self._gso & ~_ECN
        if self._old and not self._style.virtio:
            self._checksum()
        if kind != _NONE and self.payload.size > _LONGEST_DATAGRAM - len(self.network):
            return
        if self._style.virtio:
            self._fix_ip6_length()
            flags = NEEDS_CHECKSUM if self._checksum_at is not None else 0
            receiver(Vector([*self._headers(), *self.payload.pieces]), flags)
            return
        if kind == _NONE:
            if not self._old:
                self._checksum()
            self._fix_ip6_length()
            receiver(Vector([*self._headers(), *self.payload.pieces]), 0)
        elif self._old:
            self._fragment_old(receiver)
        elif kind == _UDP4:
            self._checksum()
            self._fragment_udp(receiver)
        else:
            self._fragment_tcp(receiver)

    def _headers(self) -> list[Piece]:
        return [private(self.link), private(self.network)]

    def _checksum(self) -> None:
        """Over the payload, into the payload (``net_tx_pkt_do_sw_csum``)."""
        if self._checksum_at is not None:
            _fill_checksum(self, self.payload, self._checksum_at, self.payload.size)

    def _fix_ip6_length(self) -> None:
        """``net_tx_pkt_fix_ip6_payload_len``: a length of 0 gets the real one."""
        short = self.payload.size <= _LONGEST_DATAGRAM
        if self.kind == IP6 and short and not any(self.network[4:6]):
            self.network[4:6] = self.payload.size.to_bytes(2, "big")

    def _fragment_old(self, receiver: Send) -> None:
        """Up to 7.2 every large send becomes IPv4 fragments
        (``net_tx_pkt_do_sw_fragmentation``)."""
        cutter = _Cutter(self.payload.pieces)
        offset, more = 0, True
        while more:
            pieces = cutter.take(self._gso_size & ~7, MAX_PIECES - 2)
            size = sum(piece.size for piece in pieces)
            more = offset + size < self.payload.size
            if self.kind == IP4:
                self._set_fragment(offset, size, more=more)
            self.network[10:12] = b"\0\0"
            if len(self.network) >= 12:
                self.network[10:12] = checksum_of(self.network).to_bytes(2, "big")
            receiver(Vector([*self._headers(), *pieces]), 0)
            offset += size
            more = more and size > 0

    def _set_fragment(self, offset: int, size: int, *, more: bool) -> None:
        if offset % 8:
            raise ModelError("QEMU asserts that a fragment's offset is a multiple of 8")
        flags = word(self.network, 6) & ~0x3FFF
        value = (offset // 8) | flags | (0x2000 if more else 0)
        self.network[6:8] = value.to_bytes(2, "big")
        self.network[2:4] = ((len(self.network) + size) & 0xFFFF).to_bytes(2, "big")

    def _fragment_udp(self, receiver: Send) -> None:
        cutter = _Cutter(self.payload.pieces)
        flags = DATA_VALID if self._checksum_at is not None else 0
        offset = 0
        while pieces := cutter.take(self._gso_size & ~7, MAX_PIECES - 3):
            size = sum(piece.size for piece in pieces)
            if not size:
                return
            self._set_fragment(offset, size, more=offset + size < self.payload.size)
            self.network[10:12] = b"\0\0"
            self.network[10:12] = checksum_of(self.network).to_bytes(2, "big")
            receiver(Vector([*self._headers(), *pieces]), flags)
            offset += size

    def _fragment_tcp(self, receiver: Send) -> None:
        flags = DATA_VALID if self._checksum_at is not None else 0
        if self.payload.size < self._l4_size:
            return
        header = bytearray(self.payload.read(0, self._l4_size))
        header[13] &= ~0x09  # FIN, PUSH
        cutter = _Cutter(self.payload.pieces)
        cutter.skip(self._l4_size)
        four = self._gso & ~_ECN == _TCP4
        while pieces := cutter.take(self._gso_size, MAX_PIECES - 4):
            size = sum(piece.size for piece in pieces)
            if not size:
                return
            self._fix_segment(len(header) + size, four=four)
            data = Vector([private(header), *pieces])
            _fill_checksum(self, data, 16, data.size)
            sent = data.pieces[0].read()
            receiver(Vector([*self._headers(), *data.pieces]), flags)
            header = bytearray(sent)
            if four:
                number = (word(self.network, 4) + 1) & 0xFFFF
                self.network[4:6] = number.to_bytes(2, "big")
            sequence = int.from_bytes(header[4:8], "big") + size
            header[4:8] = (sequence & 0xFFFFFFFF).to_bytes(4, "big")
            header[13] &= ~0x80  # CWR

    def _fix_segment(self, size: int, *, four: bool) -> None:
        if four:
            self.network[2:4] = ((len(self.network) + size) & 0xFFFF).to_bytes(2, "big")
            self.network[10:12] = b"\0\0"
            self.network[10:12] = checksum_of(self.network).to_bytes(2, "big")
        else:
            length = len(self.network) + size - 40
            self.network[4:6] = (length & 0xFFFF).to_bytes(2, "big")


def _fill_checksum(packet: Packet, data: Vector, at: int, length: int) -> None:
    """``data`` begins with the TCP or UDP header whose checksum is at ``at``."""
    data.write(at, b"\0\0")
    length &= 0xFFFF
    total = checksum_sum(data.read(0, length))
    if packet.kind == IP4:
        total += pseudo_sum(packet.network, length, None)
    elif packet.kind == IP6:
        total += pseudo_sum(packet.network, length, packet.protocol)
    data.write(at, (checksum_finish(total & 0xFFFFFFFF) or 0xFFFF).to_bytes(2, "big"))


class _Cutter:
    """Takes pieces from the front (``net_tx_pkt_fetch_fragment``); it may hand out empty ones,
    which count towards the limit."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self._index = 0
        self._offset = 0

    def skip(self, size: int) -> None:
        """Past a header; a piece that ends with it is not left yet."""
        while self._index < len(self._pieces) and self._pieces[self._index].size < size:
            size -= self._pieces[self._index].size
            self._index += 1
        self._offset = size

    def take(self, size: int, limit: int) -> list[Piece]:
        """Up to ``size`` bytes in at most ``limit`` pieces."""
        found: list[Piece] = []
        done = 0
        while done < size and len(found) < limit and self._index < len(self._pieces):
            source = self._pieces[self._index]
            piece = source.cut(self._offset, min(source.size - self._offset, size - done))
            found.append(piece)
            self._offset += piece.size
            done += piece.size
            if self._offset == source.size:
                self._offset = 0
                self._index += 1
        return found
