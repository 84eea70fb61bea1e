"""What an e1000e writes back into a receive descriptor.

Source: ``e1000e_build_rx_metadata``, ``e1000e_verify_csum_in_sw``, ``e1000e_rss_parse_packet``
and ``e1000e_do_ps`` in QEMU's ``hw/net/e1000e_core.c``; ``net_rx_pkt_validate_l4_csum``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qemuglue.witness.dma import e1000e_registers as regs
from qemuglue.witness.dma.e1000e_headers import TCP, UDP, Parsed, word
from qemuglue.witness.dma.e1000e_registers import Registers
from qemuglue.witness.dma.e1000e_vector import (
    Vector,
    checksum_finish,
    checksum_sum,
    pseudo_sum,
    toeplitz,
)

_DONE, _EOP, _VLAN, _UDP_SUM, _TCP_SUM, _IP_SUM = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
_IP_ID, _ACK = 0x200, 0x8000
_TCP_ERROR, _IP_ERROR = 1 << 29, 1 << 30
_KIND_IP4, _KIND_IP4_TRANSPORT, _KIND_IP6, _KIND_IP6_TRANSPORT = 1, 2, 5, 6

_RXCSUM_IP, _RXCSUM_TRANSPORT, _RXCSUM_NO_PACKET_SUM = 0x100, 0x200, 0x2000
_RFCTL_IP6_DIS, _RFCTL_IP6_SUM_DIS, _RFCTL_ACK_DATA_DIS = 0x400, 0x800, 0x2000
_RFCTL_FRAGMENT_SPLIT_DIS = 0x4000
_RFCTL_IP6_EX_DIS, _RFCTL_NEW_IP6_EX_DIS = 0x10000, 0x20000
_HASH_TCP4, _HASH_IP4, _HASH_TCP6, _HASH_IP6_EX, _HASH_IP6 = (1 << bit for bit in range(16, 21))
_TCP_ACK: Final = 0x10


@dataclass(frozen=True, slots=True)
class Hashed:
    """The outcome of receive side scaling."""

    enabled: bool = False
    kind: int = 0
    value: int = 0
    queue: int = 0


@dataclass(slots=True)
class Received:
    """A packet that has passed the filters. ``vouched``: its sender says its checksums hold."""

    packet: Vector
    parsed: Parsed
    hashed: Hashed
    tag: int | None
    vouched: bool
    #: Whether the header of a split packet has been stored.
    placed: bool = False

    def header_size(self, registers: Registers) -> int:
        """Bytes of header that packet split puts into a buffer of their own; 0: all together."""
        parsed = self.parsed
        if not registers.extended or not registers[regs.RCTL] & regs.RCTL_DTYP_PS:
            return 0
        if parsed.ip4 is None and parsed.ip6 is None:
            return 0
        if parsed.fragment and registers[regs.RFCTL] & _RFCTL_FRAGMENT_SPLIT_DIS:
            return 0
        transport = parsed.protocol in (TCP, UDP) and not parsed.fragment
        size = parsed.layer5 if transport else parsed.layer4
        return 0 if size > registers.buffers[0] or size > self.packet.size else size


    def fix_checksum(self) -> None:
        """Fill in what the sender left to the device, in the packet's own memory
        (``net_rx_pkt_fix_l4_csum``)."""
        parsed = self.parsed
        at = {TCP: 16, UDP: 6}.get(parsed.protocol)
        if at is None or (parsed.protocol == UDP and not any(parsed.header[6:8])):
            return
        if parsed.ip4 is not None and parsed.fragment:
            return
        self.packet.write(parsed.layer4 + at, b"\0\0")
        value = _transport_sum(self) or 0xFFFF
        self.packet.write(parsed.layer4 + at, value.to_bytes(2, "big"))


def is_spread(registers: Registers) -> bool:
    """Whether packets are spread over both rings (``e1000e_rss_enabled``)."""
    on = registers[regs.MRQC] & 3 == 1 and registers[regs.RXCSUM] & _RXCSUM_NO_PACKET_SUM
    return bool(on) and registers.extended


def spread(registers: Registers, parsed: Parsed) -> Hashed:
    """``e1000e_rss_parse_packet``."""
    if not is_spread(registers):
        return Hashed()
    found = _hash_input(registers, parsed)
    if found is None:
        return Hashed(enabled=True)
    kind, data = found
    key = b"".join(registers[regs.RSSRK + at].to_bytes(4, "little") for at in range(11))
    value = toeplitz(key, data)
    entry = value & 0x7F
    queue = registers[regs.RETA + entry // 4] >> entry % 4 * 8 + 7 & 1
    return Hashed(True, kind, value, queue)


def _hash_input(registers: Registers, parsed: Parsed) -> tuple[int, bytes] | None:
    """(type, bytes to hash): addresses, and ports where they are wanted."""
    wanted = registers[regs.MRQC]
    tcp = parsed.protocol == TCP and not parsed.fragment
    ports = parsed.header[:4]
    if parsed.ip4 is not None:
        addresses = parsed.ip4[12:20]
        if tcp and wanted & _HASH_TCP4:
            return 1, addresses + ports
        return (2, addresses) if wanted & _HASH_IP4 else None
    ip6 = parsed.ip6
    if ip6 is None:
        return None
    plain = ip6.header[8:40]
    replaced = ip6.source is not None or ip6.destination is not None
    rfctl = registers[regs.RFCTL]
    if not (rfctl & _RFCTL_IP6_EX_DIS and ip6.extended) and not (
        rfctl & _RFCTL_NEW_IP6_EX_DIS and replaced
    ):
        other = (ip6.source or plain[:16]) + (ip6.destination or plain[16:])
        if tcp and wanted & _HASH_TCP6:
            return 3, other + ports
        if wanted & _HASH_IP6_EX:
            return 4, other
    return (5, plain) if wanted & _HASH_IP6 else None


# -- descriptors ---------------------------------------------------------------------------------


def legacy(registers: Registers, raw: bytes, length: int, received: Received | None) -> bytes:
    """The descriptor as written back, as long as it was read; ``received`` with the last one."""
    flags, tag = _flags(registers, received), raw[14:16]
    if received is not None and received.tag is not None:
        tag = received.tag.to_bytes(2, "little")
    return (
        raw[:8] + length.to_bytes(2, "little") + b"\0\0"
        + bytes([flags & 0xFF, flags >> 24]) + tag + raw[16:]
    )


def extended(registers: Registers, raw: bytes, length: int, received: Received | None) -> bytes:
    return (
        _lower(registers, received) + _flags(registers, received).to_bytes(4, "little")
        + length.to_bytes(2, "little") + _tag(received) + raw[16:]
    )


def split(
    registers: Registers, written: list[int], received: Received | None, header: int
) -> bytes:
    status = header | 0x8000 if header else 0
    sizes = b"".join(size.to_bytes(2, "little") for size in written[1:])
    return (
        _lower(registers, received) + _flags(registers, received).to_bytes(4, "little")
        + written[0].to_bytes(2, "little") + _tag(received)
        + (status & 0xFFFF).to_bytes(2, "little") + sizes + bytes(8)
    )


def _tag(received: Received | None) -> bytes:
    tag = received.tag if received is not None else None
    return (tag or 0).to_bytes(2, "little")


def _lower(registers: Registers, received: Received | None) -> bytes:
    """The first 8 bytes: hash type and queue, then the hash or the IP identification."""
    if received is None:
        return bytes(8)
    if registers[regs.RXCSUM] & _RXCSUM_NO_PACKET_SUM:
        hashed = received.hashed
        if not hashed.enabled:
            return bytes(8)
        kind = hashed.kind | hashed.queue << 8
        return kind.to_bytes(4, "little") + hashed.value.to_bytes(4, "little")
    ip4 = received.parsed.ip4
    if ip4 is None:
        return bytes(8)
    return bytes(4) + word(ip4, 4).to_bytes(2, "little") + bytes(2)


def _flags(registers: Registers, received: Received | None) -> int:
    """``e1000e_build_rx_metadata``: status in the low bits, errors in the top 8."""
    if received is None:
        return _DONE
    parsed, rfctl = received.parsed, registers[regs.RFCTL]
    flags = _DONE | _EOP
    if received.tag is not None:
        flags |= _VLAN
    if not registers[regs.RXCSUM] & _RXCSUM_NO_PACKET_SUM and parsed.ip4 is not None:
        flags |= _IP_ID
    acknowledges = parsed.protocol == TCP and parsed.header[13] & _TCP_ACK
    if acknowledges and not (rfctl & _RFCTL_ACK_DATA_DIS and parsed.tcp_data):
        flags |= _ACK
    flags |= _kind(parsed, rfctl) << 16
    if parsed.ip6 is not None and rfctl & _RFCTL_IP6_SUM_DIS:
        return flags
    rxcsum = registers[regs.RXCSUM]
    if not received.vouched:
        return flags | _verified(received, rxcsum)
    if rxcsum & _RXCSUM_IP and parsed.ip4 is not None:
        flags |= _IP_SUM
    if rxcsum & _RXCSUM_TRANSPORT:
        flags |= {TCP: _TCP_SUM, UDP: _TCP_SUM | _UDP_SUM}.get(parsed.protocol, 0)
    return flags


def _kind(parsed: Parsed, rfctl: int) -> int:
    transport = parsed.protocol in (TCP, UDP)
    if parsed.ip6 is not None:
        if rfctl & _RFCTL_IP6_DIS:
            return 0
        return _KIND_IP6_TRANSPORT if transport else _KIND_IP6
    if parsed.ip4 is not None:
        return _KIND_IP4_TRANSPORT if transport else _KIND_IP4
    return 0


def _verified(received: Received, rxcsum: int) -> int:
    """Checksums that QEMU calculates itself (``e1000e_verify_csum_in_sw``)."""
    parsed, packet = received.parsed, received.packet
    flags = 0
    if rxcsum & _RXCSUM_IP and parsed.ip4 is not None:
        header = packet.read(parsed.layer3, parsed.layer4 - parsed.layer3)
        flags |= _IP_SUM | (_IP_ERROR if checksum_finish(checksum_sum(header)) else 0)
    if not rxcsum & _RXCSUM_TRANSPORT or parsed.protocol not in (TCP, UDP):
        return flags
    if parsed.protocol == UDP and not any(parsed.header[6:8]):
        return flags
    if parsed.ip4 is not None and parsed.fragment:
        return flags
    flags |= _TCP_SUM if _transport_sum(received) in (0, 0xFFFF) else _TCP_SUM | _TCP_ERROR
    return flags | (_UDP_SUM if parsed.protocol == UDP else 0)


def _transport_sum(received: Received) -> int:
    """``_net_rx_pkt_calc_l4_csum``."""
    parsed = received.parsed
    ip6 = parsed.ip6
    if parsed.protocol == UDP:
        length = word(parsed.header, 4)
    elif parsed.ip4 is not None:
        length = word(parsed.ip4, 2) - (parsed.ip4[0] & 15) * 4
    else:
        assert ip6 is not None, "TCP is over one of them"
        length = word(ip6.header, 4) - (ip6.size - 40)
    length &= 0xFFFF
    if parsed.ip4 is not None:
        total = pseudo_sum(parsed.ip4, length, None)
    else:
        assert ip6 is not None, "UDP is over one of them"
        total = pseudo_sum(ip6.header, length, ip6.protocol)
    total += checksum_sum(received.packet.read(parsed.layer4, length))
    return checksum_finish(total & 0xFFFFFFFF)
