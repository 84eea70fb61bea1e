"""Ways to damage a text that QEMU wrote: what a hostile or broken QEMU might say instead.

Each takes the bytes behind the first one (which chooses the parser) and gives other bytes. One
table serves the plain engine, libFuzzer's mutator, and the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

Damage = Callable[[bytes, Random], bytes]

#: A text grows to this at most; what is larger is a matter of limits, and of unit tests.
MAX_SIZE = 1 << 16

_WORD = re.compile(rb"[A-Za-z0-9_.\-\[\]/]+")
_NUMBER = re.compile(rb"(?<![0-9a-z])(?:0x)?[0-9a-f]{1,16}(?![0-9a-z])")
_NUMBERS = (
    b"0", b"-1", b"1", b"0000000000000000", b"ffffffffffffffff", b"7fffffffffffffff",
    b"8000000000000000", b"10000000000000000", b"0x0", b"0xffffffffffffffff",
    b"99999999999999999999", b"-2147483648", b"2147483648", b"00000000ffffffff", b"1e999",
    b"9" * 5000,
)
_TERMINAL = (
    b"\x1b[2J", b"\x1b]0;owned\x07", b"\xc2\x9b31m", b"\x00", b"\x08", b"\x7f", b"\r",
    b"\xe2\x80\xae", b"\xed\xa0\x80", b"\xff", b"\xc3", b"\t", b"\xef\xbf\xbd", b"\xe2\x80\xa8",
)
_WORDS = (
    b" [disabled]", b" orphan", b" @", b"alias ", b" KVM", b" owner:{dev path=", b"}", b"(null)",
    b"  ", b"\n\n", b"address-space: ", b"memory-region: ", b"FlatView #0\n", b"  Dispatch\n",
    b"OK ", b"FAIL ", b"IRQ raise 0\n", b"Invalid read at addr 0x0, size 1, region '", b"'\n",
    b"memory_region_ops_read cpu -1 mr 0x1 addr 0x0 value 0x0 size 1 name '",
    b"flatview_new 0x1 (root 0x2)\n", b"[DETECTED OVERFLOW!] ", b"  No rendered FlatView\n",
    b"\x1e", b"container", b"nv-", b"{", b"[", b'"', b"\\ud800",
)


def _cut(text: bytes, rng: Random) -> bytes:
    return text[: rng.randrange(len(text) + 1)]


def _garbage(text: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.randbytes(rng.randint(1, 8)) + text[at + rng.randint(0, 8):]


def _number(text: bytes, rng: Random) -> bytes:
    return _replaced(text, _NUMBER, rng, rng.choice(_NUMBERS))


def _name(text: bytes, rng: Random) -> bytes:
    """One word in another's place: duplicate names, cycles of aliases."""
    words = _WORD.findall(text)
    return _replaced(text, _WORD, rng, rng.choice(words)) if words else text


def _replaced(text: bytes, pattern: re.Pattern[bytes], rng: Random, by: bytes) -> bytes:
    found = [match.span() for match in pattern.finditer(text)]
    if not found:
        return text
    start, stop = rng.choice(found)
    return text[:start] + by + text[stop:]


def _inserted(text: bytes, rng: Random, what: bytes) -> bytes:
    at = rng.randrange(len(text) + 1)
    return text[:at] + what + text[at:]


def _word(text: bytes, rng: Random) -> bytes:
    return _inserted(text, rng, rng.choice(_WORDS))


def _terminal(text: bytes, rng: Random) -> bytes:
    return _inserted(text, rng, rng.choice(_TERMINAL))


def _line_ends(text: bytes, rng: Random) -> bytes:
    """CR LF, LF, and both mixed."""
    plain = text.replace(b"\r\n", b"\n").split(b"\n")
    style = rng.choice(((b"\n",), (b"\r\n",), (b"\n", b"\r\n", b"\r", b"\n\r")))
    return b"".join(line + rng.choice(style) for line in plain[:-1]) + plain[-1]


def _lines(text: bytes, rng: Random) -> bytes:
    """A line (or a few) twice, gone, or elsewhere."""
    lines = text.split(b"\n")
    at = rng.randrange(len(lines))
    some = lines[at: at + rng.choice((1, 1, 1, 2, 5))]
    what = rng.randrange(3)
    if what:
        del lines[at: at + len(some)]
    if what != 1:
        lines[rng.randrange(len(lines) + 1):0] = some * (1 if what else rng.choice((1, 1, 30)))
    return b"\n".join(lines)


def _indent(text: bytes, rng: Random) -> bytes:
    """Deeper or less deep: a region inside itself, a hundred levels, half a level."""
    lines = text.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.1:
        line = lines[at].lstrip(b" ")
        lines[at:at] = [b"  " * level + line for level in range(1, rng.choice((8, 99, 120, 220)))]
    elif rng.random() < 0.5:
        lines[at] = b" " * rng.randint(1, 5) + lines[at]
    else:
        lines[at] = lines[at][rng.randint(1, 5):]
    return b"\n".join(lines)


def _repeat(text: bytes, rng: Random) -> bytes:
    """A piece many times over: what takes time with the square of its length shows."""
    start = rng.randrange(len(text) + 1)
    piece = text[start: start + rng.randint(1, 24)]
    return text[:start] + piece * rng.choice((2, 10, 200, 2000)) + text[start:]


#: By name: what a corpus has a seed of, and what an engine draws from.
DAMAGES: dict[str, Damage] = {
    "cut": _cut, "garbage": _garbage, "number": _number, "name": _name, "word": _word,
    "terminal": _terminal, "line-ends": _line_ends, "lines": _lines, "indent": _indent,
    "repeat": _repeat,
}


def damaged(data: bytes, rng: Random) -> bytes:
    """An input with one to four damages; it stays for the same parser."""
    head, text = data[:1], data[1:]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        text = rng.choice(list(DAMAGES.values()))(text, rng)[:MAX_SIZE]
    return head + text
