"""The words a line of program text is made of: numbers, quoted names, places.

Quoting. A region or space name stands bare when it starts with an ASCII letter or one of
``_ / [ ( <`` and goes on with letters, digits and ``_ . / @ , = ( ) [ ] < > * -``. Every other
name stands in double quotes, where ``\\"`` and ``\\\\`` are those two characters and
``\\u{HEX}`` is the character with that code point; control characters and everything outside
ASCII are always written so. Every Python string thus has one spelling, pure ASCII, on one line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qemuglue.errors import ProgramError
from qemuglue.program.verbs import VERBS, Kind

if TYPE_CHECKING:  # operation.py imports this module
    from qemuglue.program.operation import Operation, Place

_BARE_NAME = r"[A-Za-z_/\[(<][A-Za-z0-9_./@,=()\[\]<>*-]*"
_QUOTED_NAME = r'"(?:[^"\\]|\\.)*"'
_NAME = rf"{_QUOTED_NAME}|{_BARE_NAME}"
#: Up to 32 hex digits so that leading zeros pass; the value is range-checked later.
_NUMBER = r"0[xX][0-9a-fA-F]{1,32}|[0-9]{1,20}"

_BARE = re.compile(_BARE_NAME)
_IS_NUMBER = re.compile(_NUMBER)
_PLACE = re.compile(
    rf"(?:(?P<space>{_NAME}):)?"
    rf"(?:@?(?P<address>{_NUMBER})"
    rf"|(?P<region>{_NAME})(?:\#(?P<index>[0-9]{{1,6}}))?(?:\+(?P<offset>{_NUMBER}))?)"
)
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^ \t"])+')
_ESCAPE = re.compile(r'\\(?:u\{([0-9a-fA-F]{1,6})\}|(["\\]))|\\.')
_NEEDS_ESCAPE = re.compile(r'["\\]|[^\x20-\x7e]')


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    return f"\\{char}" if char in '"\\' else f"\\u{{{ord(char):x}}}"


def _unescape(match: re.Match[str]) -> str:
    code, char = match.groups()
    if char is not None:
        return str(char)
    if code is None or int(code, 16) > 0x10FFFF:
        raise ProgramError(f"bad escape {match.group()!r}; use \\\" \\\\ or \\u{{HEX}}")
    return chr(int(code, 16))


def quote_name(name: str) -> str:
    """The one spelling of a region or space name."""
    if _BARE.fullmatch(name):
        return name
    return f'"{_NEEDS_ESCAPE.sub(_escape, name)}"'


def unquote_name(word: str) -> str:
    """Inverse of :func:`quote_name`; a bare word stands for itself. Raises ProgramError."""
    return _ESCAPE.sub(_unescape, word[1:-1]) if word.startswith('"') else word


def format_args(args: Sequence[str]) -> str:
    """A command line as a POSIX shell would be given it."""
    return shlex.join(args)


def format_place(place: Place, space: str | None) -> str:
    """``place`` of a verb that acts on ``space`` (left out of the text where it is the same)."""
    prefix = ""
    if place.space is not None and place.space != space:
        prefix = f"{quote_name(place.space)}:"
    if place.region is None:
        return f"{prefix}@{place.offset:#x}" if space != "io" else f"{place.offset:#x}"
    name = quote_name(place.region)
    index = f"#{place.index}" if place.index else ""
    return f"{prefix}{name}{index}+{place.offset:#x}"


def format_operation(op: Operation) -> str:
    """One canonical line, without its newline. The operation must be valid."""
    info = VERBS[op.verb]
    if op.place is None:
        return op.verb
    place = format_place(op.place, info.space)
    if info.kind is Kind.BYTES:
        tail = f" 0x{op.data.hex()}" if info.is_write else ""
        return f"{op.verb} {place} {op.size:#x}{tail}"
    if info.kind is Kind.FILL:
        return f"{op.verb} {place} {op.size:#x} {op.value:#x}"
    return f"{op.verb} {place} {op.value:#x}" if info.is_write else f"{op.verb} {place}"


@dataclass(frozen=True, slots=True)
class PlaceWords:
    """A place as written: names unquoted, numbers still as text; None where left out."""

    space: str | None
    region: str | None
    index: str | None
    #: The address of an absolute place, else the offset in the region (None: 0).
    number: str | None


def split_words(line: str) -> list[str]:
    """Words of a line, quotes kept; a word that starts with ``#`` begins a comment.

    Raises ProgramError for a quote that is not closed.
    """
    words: list[str] = []
    at = 0
    while True:
        while at < len(line) and line[at] in " \t":
            at += 1
        if at == len(line) or line[at] == "#":
            return words
        match = _WORD.match(line, at)
        if match is None or (match.end() < len(line) and line[match.end()] not in " \t"):
            raise ProgramError("a quote is not closed; end the name with \"")
        words.append(match.group())
        at = match.end()


def split_place(word: str) -> PlaceWords:
    """Take a place apart. Raises ProgramError with a next step."""
    match = _PLACE.fullmatch(word)
    if match is None:
        raise ProgramError(f"{word[:60]!r} is not a place; write @ADDRESS or REGION+OFFSET, "
                           "with odd names in double quotes")
    space, region = match["space"], match["region"]
    return PlaceWords(
        None if space is None else unquote_name(space),
        None if region is None else unquote_name(region),
        match["index"], match["address"] if region is None else match["offset"],
    )


def parse_number(word: str) -> int:
    """A hex (``0x``) or decimal number of any sign-free size up to 128 bits.

    A decimal number with a leading zero is refused: qtest reads it as octal.
    """
    if not _IS_NUMBER.fullmatch(word):
        raise ProgramError(f"{word[:40]!r} is not a number; write 0x1f or 31")
    if word[:2] in ("0x", "0X"):
        return int(word, 16)
    if len(word) > 1 and word[0] == "0":
        raise ProgramError(f"{word} could be octal; write it as hex or drop the zeros")
    return int(word)


def parse_bytes(word: str) -> bytes:
    """``0x`` and an even number of hex digits; first digits, first address."""
    if word[:2] not in ("0x", "0X"):
        raise ProgramError("data bytes start with 0x; write for instance 0xdeadbeef")
    try:
        data = bytes.fromhex(word[2:])
    except ValueError:
        raise ProgramError("data is not an even number of hex digits; "
                           "write two for each byte") from None
    if len(data) * 2 != len(word) - 2:  # bytes.fromhex forgives white space
        raise ProgramError("data has something between its digits; write them together")
    return data
