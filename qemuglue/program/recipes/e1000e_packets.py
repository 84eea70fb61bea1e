"""Network packets for recipes: mostly well-formed, some cut short or wrong.

Ethernet with VLAN tags, IPv4 and IPv6 with and without options and extension headers, TCP, UDP
and others. Checksums are right in half of the packets.
"""

from __future__ import annotations

from random import Random

_TCP, _UDP = 6, 17
BROADCAST = b"\xff" * 6
MULTICAST = b"\x01\x00\x5e\x00\x00\x01"
#: QEMU's first network card has this address unless it is told another.
STATION = b"\x52\x54\x00\x12\x34\x56"


def checksum(data: bytes | bytearray) -> int:
    """The Internet checksum."""
    total = sum(data[0::2]) * 256 + sum(data[1::2])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(rng: Random) -> bytes:
    """One frame, without its check sequence; 1 to about 4,000 bytes."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randint(1, 80))
    target = rng.choice((STATION, STATION, BROADCAST, MULTICAST, rng.randbytes(6)))
    frame = target + rng.randbytes(6)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        kind = rng.choice((0x8100, 0x8100, 0x88A8))
        frame += kind.to_bytes(2, "big") + rng.randrange(0x10000).to_bytes(2, "big")
    body = rng.choice((_ip4, _ip4, _ip6, _ip6, _other))
    frame += body(rng)
    if rng.random() < 0.1:
        frame = frame[: rng.randint(1, len(frame))]
    return frame


def _payload(rng: Random) -> bytes:
    size = rng.choice((0, 1, 7, rng.randint(0, 64), rng.randint(0, 600), rng.randint(0, 3000)))
    return rng.randbytes(size)


def _other(rng: Random) -> bytes:
    return rng.choice((b"\x08\x06", b"\x88\xcc", rng.randbytes(2))) + _payload(rng)


def _ip4(rng: Random) -> bytes:
    protocol = rng.choice((_TCP, _TCP, _UDP, _UDP, 1, 132))
    source, target = rng.randbytes(4), rng.randbytes(4)
    body = _transport(rng, protocol, source + target)
    options = rng.randbytes(4 * rng.choice((0, 0, 0, 1, 10)))
    version = 0x40 if rng.random() < 0.95 else rng.randrange(16) << 4
    fragment = rng.choice((0, 0, 0, 0, 0x4000, 0x2000, rng.randrange(0x10000)))
    size = 20 + len(options)
    header = bytearray(
        bytes([version | size // 4, rng.choice((0, 3))])
        + (size + len(body)).to_bytes(2, "big") + rng.randbytes(2) + fragment.to_bytes(2, "big")
        + bytes([64, protocol, 0, 0]) + source + target + options
    )
    header[10:12] = checksum(header).to_bytes(2, "big") if rng.random() < 0.7 else rng.randbytes(2)
    return b"\x08\x00" + bytes(header) + body


def _ip6(rng: Random) -> bytes:
    protocol = rng.choice((_TCP, _TCP, _UDP, _UDP, 58))
    source, target = rng.randbytes(16), rng.randbytes(16)
    body = _transport(rng, protocol, source + target)
    chain = [_extension(rng) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    kinds = [*(kind for kind, _ in chain), protocol]
    extensions = b"".join(
        bytes([following, len(data) // 8]) + data
        for (_, data), following in zip(chain, kinds[1:], strict=True)
    )
    size = len(extensions) + len(body) if rng.random() < 0.8 else 0
    return (
        b"\x86\xdd" + bytes([0x60, rng.choice((0, 0xC0)), 0, 0]) + size.to_bytes(2, "big")
        + bytes([kinds[0], 64]) + source + target + extensions + body
    )


def _extension(rng: Random) -> tuple[int, bytes]:
    """(type, all but the first two bytes) of an extension header."""
    kind = rng.choice((0, 43, 44, 51, 60, 60, 135))
    if kind == 43:
        return kind, bytes([2, 1]) + rng.randbytes(20)
    if kind == 60:
        home = bytes([0xC9, 16]) + rng.randbytes(16)
        return kind, rng.choice((home + rng.randbytes(4), rng.randbytes(6)))
    return kind, rng.randbytes(6)


def _transport(rng: Random, protocol: int, addresses: bytes) -> bytes:
    data = _payload(rng)
    if protocol == _TCP:
        options = rng.choice((0, 0, 0, 3, 10))
        flags = rng.choice((0x10, 0x18, 0x02, rng.randrange(256)))
        offset = 5 + options if rng.random() < 0.95 else rng.randrange(16)
        body = (rng.randbytes(12) + bytes([offset << 4, flags]) + rng.randbytes(2) + b"\0\0"
                + rng.randbytes(2 + 4 * options) + data)
        at = 16
    elif protocol == _UDP:
        body = rng.randbytes(4) + (8 + len(data)).to_bytes(2, "big") + b"\0\0" + data
        at = 6
    else:
        return rng.randbytes(rng.randint(0, 40))
    if rng.random() < 0.2:
        return body
    pseudo = addresses + bytes([0, protocol]) + len(body).to_bytes(2, "big")
    right = checksum(pseudo + body) or 0xFFFF
    value = right if rng.random() < 0.6 else rng.randrange(0x10000)
    return body[:at] + value.to_bytes(2, "big") + body[at + 2 :]
