"""The lines of the qtest protocol: numbers into commands, replies into values.

Commands are validated before they are made, since QEMU's own parser asserts on what it does
not like (see ``qtest``). Replies are untrusted: a value, or ProtocolError.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Final

from qemuglue.errors import ProtocolError, UsageError

CHANNEL: Final = "qtest"

READ_MAX_BYTES: Final = 16 << 20
"""Longest single read or fill: QEMU allocates this much and aborts if it cannot."""
WRITE_MAX_BYTES: Final = 1 << 20
"""Longest single write: QEMU's parsing time grows with the square of the line's length."""

_U64_LIMIT: Final = 1 << 64
_PORT_LIMIT: Final = 1 << 16
_VALUE: Final = re.compile(rb"OK 0x([0-9a-fA-F]{1,16})")
_HEX: Final = re.compile(rb"OK 0x([0-9a-fA-F]*)")
_BASE64: Final = re.compile(rb"OK ([A-Za-z0-9+/]*={0,2})")


def show(line: bytes) -> str:
    """The beginning of a line as printable ASCII."""
    return repr(line[:200])[2:-1]


# --- encoders: numbers in, one validated line out -------------------------------------

def below(value: int, limit: int, what: str) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise UsageError(f"{what} must be a whole number from 0 to {limit - 1:#x}, not {value!r}")
    return value


def _length(size: int, limit: int, *, least: int = 1) -> int:
    if type(size) is not int or not least <= size <= limit:
        raise UsageError(f"a length must be from {least} to {limit}, not {size!r}")
    return size


def _load(word: bytes) -> Callable[[int], bytes]:
    form = word + b" 0x%x\n"

    def encode(address: int) -> bytes:
        if type(address) is int and 0 <= address < _U64_LIMIT:
            return form % address
        raise UsageError(f"{address!r} is not an address")

    return encode


def _store(word: bytes, size: int) -> Callable[[int, int], bytes]:
    form = word + b" 0x%x 0x%x\n"
    limit = 1 << 8 * size

    def encode(address: int, value: int) -> bytes:
        return form % (below(address, _U64_LIMIT, "an address"), below(value, limit, "a value"))

    return encode


def _port_in(word: bytes) -> Callable[[int], bytes]:
    form = word + b" 0x%x\n"

    def encode(port: int) -> bytes:
        return form % below(port, _PORT_LIMIT, "a port")

    return encode


def _port_out(word: bytes, size: int) -> Callable[[int, int], bytes]:
    form = word + b" 0x%x 0x%x\n"
    limit = 1 << 8 * size

    def encode(port: int, value: int) -> bytes:
        return form % (below(port, _PORT_LIMIT, "a port"), below(value, limit, "a value"))

    return encode


# Sized accesses: the letter gives the bytes (b 1, w 2, l 4, q 8). Addresses are 0 to
# 2**64-1, an access may run past the top and goes on at 0; values fit their size.
readb, readw, readl, readq = map(_load, (b"readb", b"readw", b"readl", b"readq"))
writeb, writew = _store(b"writeb", 1), _store(b"writew", 2)
writel, writeq = _store(b"writel", 4), _store(b"writeq", 8)
# Ports are 0 to 0xffff.
inb, inw, inl = map(_port_in, (b"inb", b"inw", b"inl"))
outb, outw, outl = _port_out(b"outb", 1), _port_out(b"outw", 2), _port_out(b"outl", 4)


def read(address: int, size: int) -> bytes:
    """``size`` bytes (1 to READ_MAX_BYTES) as hex; decode with :func:`parse_hex`."""
    return b"read 0x%x 0x%x\n" % (
        below(address, _U64_LIMIT, "an address"), _length(size, READ_MAX_BYTES))


def write(address: int, data: bytes) -> bytes:
    """A byte string of 1 to WRITE_MAX_BYTES bytes."""
    size = _length(len(data), WRITE_MAX_BYTES)
    return b"write 0x%x 0x%x 0x%b\n" % (
        below(address, _U64_LIMIT, "an address"), size, binascii.hexlify(data))


def b64read(address: int, size: int) -> bytes:
    """``size`` bytes (1 to READ_MAX_BYTES) as base64; decode with :func:`parse_base64`."""
    return b"b64" + read(address, size)


def b64write(address: int, data: bytes) -> bytes:
    """A byte string of 1 to WRITE_MAX_BYTES bytes, sent as base64."""
    size = _length(len(data), WRITE_MAX_BYTES)
    return b"b64write 0x%x 0x%x %b\n" % (
        below(address, _U64_LIMIT, "an address"), size, base64.b64encode(data))


def memset(address: int, size: int, value: int) -> bytes:
    """Fill ``size`` bytes (0 to READ_MAX_BYTES) with one byte value."""
    return b"memset 0x%x 0x%x 0x%x\n" % (
        below(address, _U64_LIMIT, "an address"), _length(size, READ_MAX_BYTES, least=0),
        below(value, 256, "a byte"))


# --- decoders: one reply line (without or with its newline) ---------------------------

def _match(pattern: re.Pattern[bytes], line: bytes) -> bytes:
    found = pattern.fullmatch(line.rstrip(b"\r\n"))
    if not found:
        raise ProtocolError(f"not an answer to this command: {show(line)}", channel=CHANNEL,
                            text=show(line))
    return found[1]


def parse_value(line: bytes) -> int:
    """The number of an ``OK 0x…`` reply (sized reads and ports)."""
    return int(_match(_VALUE, line), 16)


def parse_hex(line: bytes, size: int) -> bytes:
    """The ``size`` bytes of a ``read`` reply."""
    digits = _match(_HEX, line)
    if len(digits) != 2 * size:
        raise ProtocolError(f"{len(digits)} hex digits for {size} bytes", channel=CHANNEL)
    return binascii.unhexlify(digits)


def parse_base64(line: bytes, size: int) -> bytes:
    """The ``size`` bytes of a ``b64read`` reply."""
    text = _match(_BASE64, line)
    try:
        return _sized(base64.b64decode(text, validate=True), size)
    except binascii.Error as error:
        raise ProtocolError(f"bad base64: {error}", channel=CHANNEL) from None


def parse_ok(line: bytes) -> None:
    """A bare ``OK`` (all writes)."""
    if line.rstrip(b"\r\n") != b"OK":
        raise ProtocolError(f"not OK: {show(line)}", channel=CHANNEL, text=show(line))


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ProtocolError(f"{len(data)} bytes instead of {size}", channel=CHANNEL)
    return data
