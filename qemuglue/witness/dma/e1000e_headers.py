"""What QEMU's network devices read from a packet's headers (``net/eth.c``).

Both generations of the code: up to 7.2 a packet of type IPv4 counts as such whatever its
version field says, and fragments keep their protocol; later neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qemuglue.errors import ModelError
from qemuglue.witness.dma.e1000e_vector import Vector

IP4: Final = 0x0800
IP6: Final = 0x86DD
VLAN: Final = 0x8100
DOUBLE_VLAN: Final = 0x88A8
TCP, UDP = 6, 17

#: Header types that an IPv6 header may be followed by before the payload.
_EXTENSIONS: Final = frozenset([0, 43, 44, 51, 60, 135])
_ROUTING, _FRAGMENT, _DESTINATION = 43, 44, 60
_HOME_ADDRESS, _PAD_1 = 0xC9, 0


def word(data: bytes | bytearray, offset: int) -> int:
    """A big-endian 16-bit number."""
    return data[offset] << 8 | data[offset + 1]


def link_header(data: bytes | bytearray) -> int:
    """Bytes of the Ethernet header with its VLAN tags; ``data`` are the packet's first 18 or
    more (``eth_get_l2_hdr_length``)."""
    kind = word(data, 12)
    if kind == VLAN:
        return 18
    if kind == DOUBLE_VLAN:
        return 22 if word(data, 16) == VLAN else 18
    return 14


def is_broadcast(address: bytes) -> bool:
    return address[:6] == b"\xff" * 6


@dataclass(frozen=True, slots=True)
class Ip6:
    """An IPv6 header and what follows it (``eth_parse_ipv6_hdr``)."""

    header: bytes
    size: int
    protocol: int
    fragment: bool
    extended: bool
    #: Addresses that a routing or home address header puts in place of the header's.
    source: bytes | None
    destination: bytes | None


def parse_ip6(packet: Vector, at: int) -> Ip6 | None:
    """None where the packet ends too early."""
    header = packet.read(at, 40)
    if len(header) < 40:
        return None
    size, kind = 40, header[6]
    fragment = False
    source: bytes | None = None
    destination: bytes | None = None
    extended = kind in _EXTENSIONS
    while kind in _EXTENSIONS:
        extension = packet.read(at + size, 2)
        if len(extension) < 2:
            return None
        if kind == _ROUTING:
            if extension[1] == 2:
                destination = _routed(packet, at + size)
        elif kind == _DESTINATION:
            source = _home(packet, at + size, extension[1])
        elif kind == _FRAGMENT:
            fragment = True
        size += (extension[1] + 1) * 8
        kind = extension[0]
    return Ip6(header, size, kind, fragment, extended, source, destination)


def _routed(packet: Vector, at: int) -> bytes | None:
    data = packet.read(at, 24)
    return data[8:] if len(data) == 24 and data[2] == 2 and data[3] == 1 else None


def _home(packet: Vector, at: int, length: int) -> bytes | None:
    left = (length + 1) * 8 - 2
    at += 2
    while left > 2:
        option = packet.read(at, 2)
        if len(option) < 2:
            return None
        size = 1 if option[0] == _PAD_1 else option[1] + 2
        if size > left:
            return None
        if option[0] == _HOME_ADDRESS:
            address = packet.read(at + 2, 16)
            return address if len(address) == 16 else None
        at += size
        left -= size
    return None


@dataclass(slots=True)
class Parsed:
    """What ``eth_get_protocols`` finds. ``ip4`` is the header of 20 bytes; ``protocol`` is TCP,
    UDP or 0. Offsets count from the packet's start. ``layer4``, ``layer5`` and ``header`` (the
    last TCP or UDP header seen, in 20 bytes) keep what the packet before left where this one
    has none, as in QEMU."""

    ip4: bytes | None = None
    ip6: Ip6 | None = None
    fragment: bool = False
    protocol: int = 0
    layer3: int = 0
    layer4: int = 0
    layer5: int = 0
    header: bytes = bytes(20)
    tcp_data: bool = False
    #: Whether what is kept of packets before is not known: some were not followed.
    stale: bool = False


def parse(packet: Vector, before: Parsed, *, old: bool) -> Parsed:
    """``packet`` has 60 bytes or more. ``old``: as up to 7.2.

    Raises ModelError where 7.2 goes on with half of an IPv6 header, or judges a fragment by a
    header that nobody saw.
    """
    found = Parsed(
        layer3=link_header(packet.read(0, 18)), layer4=before.layer4, layer5=before.layer5,
        header=before.header, tcp_data=before.tcp_data, stale=before.stale,
    )
    kind = packet.read(found.layer3 - 2, 2)
    protocol = 0
    if kind == b"\x08\x00":
        header = packet.read(found.layer3, 20)
        version4 = header[0] >> 4 == 4
        if not version4 and not old:
            return found
        found.ip4 = header
        found.fragment = bool(word(header, 6) & 0x3FFF)
        found.layer4 = found.layer3 + (header[0] & 15) * 4
        protocol = header[9] if version4 else 0
    elif kind == b"\x86\xdd":
        found.ip6 = parse_ip6(packet, found.layer3)
        if found.ip6 is None:
            if old:
                raise ModelError("it received an IPv6 packet that ends inside its headers")
            return found
        found.fragment = found.ip6.fragment
        found.layer4 = found.layer3 + found.ip6.size
        protocol = found.ip6.protocol
    if not found.fragment:
        _layer4(packet, found, protocol, old=old)
    elif old:
        found.protocol = protocol if protocol in (TCP, UDP) else 0
        if found.protocol and found.stale:
            raise ModelError("it judges a fragment by the header of a packet that nobody followed")
    return found


def _layer4(packet: Vector, found: Parsed, protocol: int, *, old: bool) -> None:
    size = {TCP: 20, UDP: 8}.get(protocol)
    if size is None:
        return
    header = packet.read(found.layer4, size)
    found.header = header + found.header[len(header) :]
    whole = len(header) == size
    if protocol == UDP and (whole or old):
        found.layer5 = found.layer4 + 8
    if not whole:
        return
    found.protocol = protocol
    if protocol == UDP:
        return
    found.stale = False
    offset = (header[12] >> 4) * 4
    found.layer5 = found.layer4 + offset
    if found.ip4 is not None:
        length = word(found.ip4, 2) - (found.ip4[0] & 15) * 4
    else:
        assert found.ip6 is not None, "TCP is over one of them"
        length = word(found.ip6.header, 4) - (found.ip6.size - 40)
    found.tcp_data = length & 0xFFFFFFFF > offset
