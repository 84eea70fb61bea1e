"""Program text v1 (``.qg``): strict for what people write, lenient for old corpora.

The format is described in FORMAT.md beside this file. One reader serves both modes: strict
raises ProgramError at the first thing wrong (line number, and what to do about it); lenient
repairs what has an obvious meaning, leaves out the rest, and lists what it did. So whatever
strict accepts, lenient reads the same way.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from qemuglue.errors import ProgramError
from qemuglue.program.operation import HEADER, Operation, Place, Program, printable, validate
from qemuglue.program.verbs import (
    ADDRESS_MASK,
    IO,
    MAX_LENGTH,
    MAX_OPERATIONS,
    MEMORY,
    MODES,
    PORT_MAX,
    VERBS,
    Kind,
    VerbInfo,
)
from qemuglue.program.words import parse_bytes, parse_number, split_place, split_words

#: Characters in one text: 100,000 ordinary lines are 4 MB. More is not a program.
MAX_TEXT = 64 << 20
#: Characters in one line: a command line with 837 devices has 40 KB, a full write 8 KB.
MAX_LINE = 256 << 10
#: Lines, comments included, so that a text of bare newlines is refused at once.
MAX_LINES = 4 * MAX_OPERATIONS


@dataclass(frozen=True, slots=True)
class Repair:
    """What the lenient reader did to one line: ``line`` from 1, its text cut to 80 characters."""

    line: int
    message: str
    text: str


def parse(text: str, strict: bool = True) -> Program:
    """Read program text; raises ProgramError. Not strict: as parse_lenient, repairs dropped."""
    return _Reader(strict).read(text, "") if strict else parse_lenient(text)[0]


def parse_lenient(text: str, machine: str = "") -> tuple[Program, tuple[Repair, ...]]:
    """Read what can be read. ``machine`` stands in where the text names none that is valid.

    Raises ProgramError only when there is no machine at all or the text is over a size limit.
    """
    reader = _Reader(strict=False)
    program = reader.read(text, machine)
    return program, tuple(reader.repairs)


def format(program: Program) -> str:
    """The canonical text of a valid program."""
    return program.validate().canonical_text()


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without line ends; raises ProgramError over a limit.

    Longer lines than ``MAX_LINE`` come cut to ``MAX_LINE + 1`` characters, for the caller to
    refuse.
    """
    if len(text) > MAX_TEXT:
        raise ProgramError(f"{len(text)} characters; a program has at most {MAX_TEXT}, split it")
    at, number = 0, 0
    while at < len(text):
        number += 1
        if number > MAX_LINES:
            raise ProgramError(f"more than {MAX_LINES} lines; split the program", line=number)
        stop = text.find("\n", at)
        stop = len(text) if stop < 0 else stop
        yield number, text[at:min(stop, at + MAX_LINE + 1)].strip(" \t\r")
        at = stop + 1


class _Skip(Exception):
    """This line is left out (lenient mode only)."""


class _Reader:
    """State of one reading."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.repairs: list[Repair] = []
        self.machine = ""
        self.args: tuple[str, ...] | None = None
        self.mode = ""
        self.setup = ""
        self.operations: list[Operation] = []
        self.headed = False
        self.line = 0
        self.text = ""

    def read(self, text: str, machine: str) -> Program:
        for self.line, self.text in lines_of(text):
            try:
                self._line()
            except _Skip:
                continue
            except ProgramError as error:
                if self.strict:
                    raise ProgramError(str(error), line=self.line, text=self.text[:80]) from error
                self._note(f"left out: {error}")
        if not self.headed:
            self._wrong(f"no header; start the text with '{HEADER}'")
        if not self.machine and machine:
            self._note(f"machine {machine} assumed")
            self.machine = machine
        if not self.machine:
            raise ProgramError("no machine; add a line such as 'machine x86_64/q35'")
        return Program(self.machine, self.args or (), tuple(self.operations),
                       self.mode or "stopped", self.setup).validate()

    def _note(self, message: str) -> None:
        self.repairs.append(Repair(self.line, message, self.text[:80]))

    def _wrong(self, message: str) -> None:
        """Strict: refuse. Lenient: note it; the caller goes on with its repair."""
        if self.strict:
            raise ProgramError(message)
        self._note(f"repaired: {message}")

    def _line(self) -> None:
        line = self.text
        if len(line) > MAX_LINE:
            raise ProgramError(f"line longer than {MAX_LINE} characters; split the operation")
        if not line:
            return
        if not self.headed:
            self.headed = True
            if line == HEADER:
                return
            self._wrong(f"the text starts with {line[:40]!r}; its first line must be '{HEADER}'")
        if line[0] == "#":
            return
        verb, _, rest = line.partition(" ") if " " in line else line.partition("\t")
        if verb == "args":
            self._args(rest)
            return
        words = split_words(line)
        if words[0] == "machine":
            self._machine(words)
        elif words[0] == "mode":
            self._mode(words)
        elif words[0] == "setup":
            self._setup(words)
        else:
            self._operation(words)

    def _setting(self, name: str, seen: bool) -> None:
        if seen:
            raise ProgramError(f"a second {name} line; keep one")
        if self.operations:
            self._wrong(f"{name} after the first operation; move it to the top")

    def _machine(self, words: list[str]) -> None:
        self._setting("machine", bool(self.machine))
        if len(words) != 2:
            self._wrong("machine takes one word; write 'machine TARGET/NAME'")
        if len(words) < 2:
            raise _Skip
        self.machine = Program(words[1]).validate().machine

    def _mode(self, words: list[str]) -> None:
        self._setting("mode", bool(self.mode))
        if len(words) != 2 or words[1] not in MODES:
            raise ProgramError(f"mode is one of {', '.join(MODES)}; write 'mode parked'")
        self.mode = words[1]

    def _setup(self, words: list[str]) -> None:
        self._setting("setup", bool(self.setup))
        if len(words) != 2 or not words[1]:
            raise ProgramError("setup takes one word; write 'setup pci' or 'setup dma'")
        self.setup = Program("a/b", setup=words[1]).validate().setup

    def _args(self, rest: str) -> None:
        self._setting("args", self.args is not None)
        if not printable(rest):
            raise ProgramError("control characters in the arguments; remove them")
        try:
            args = shlex.split(rest)
        except ValueError as error:
            self._wrong(f"arguments cannot be split ({error}); quote them as for a shell")
            args = rest.split()
        Program("a/b", tuple(args)).validate()
        self.args = tuple(args)

    def _operation(self, words: list[str]) -> None:
        if self.strict and not self.machine:
            raise ProgramError("an operation before the machine; add 'machine TARGET/NAME' above")
        if len(self.operations) == MAX_OPERATIONS:
            raise ProgramError(f"more than {MAX_OPERATIONS} operations; split the program")
        name = words[0]
        if name not in VERBS and name.lower() in VERBS:
            self._wrong(f"verbs are lowercase; write {name.lower()}")
            name = name.lower()
        info = VERBS.get(name)
        if info is None:
            raise ProgramError(f"unknown verb {name[:40]!r}; use one of {', '.join(VERBS)}")
        self.operations.append(validate(self._fields(info, words[1:])))

    def _fields(self, info: VerbInfo, words: list[str]) -> Operation:
        if info.kind is Kind.EVENT:
            self._count(info, words, 0, "nothing")
            return Operation(info.name, None, 0)
        if not words:
            raise ProgramError(f"{info.name} needs a place; write @ADDRESS or REGION+OFFSET")
        place = self._place(info, words[0])
        if info.kind is Kind.BYTES and info.is_write:
            return self._write(info, place, words)
        if info.kind is Kind.BYTES:
            self._count(info, words, 2, "PLACE SIZE")
            return Operation(info.name, place, self._size(words[1]))
        if info.kind is Kind.FILL:
            self._count(info, words, 3, "PLACE SIZE BYTE")
            return Operation(info.name, place, self._size(words[1]), self._value(words[2], 1))
        assert info.size is not None, f"{info.name}: a sized verb without a size"
        if not info.is_write:
            self._count(info, words, 1, "PLACE")
            return Operation(info.name, place, info.size)
        self._count(info, words, 2, "PLACE VALUE")
        return Operation(info.name, place, info.size, self._value(words[1], info.size))

    def _count(self, info: VerbInfo, words: list[str], wanted: int, usage: str) -> None:
        """Too many words can be repaired (left out), too few cannot."""
        message = f"{info.name} takes {usage}, not {len(words)} words; write it so"
        if len(words) < wanted:
            raise ProgramError(message)
        if len(words) > wanted:
            self._wrong(message)

    def _number(self, word: str) -> int:
        try:
            return parse_number(word)
        except ProgramError as error:
            if not word.isascii() or not word.isdigit() or len(word) > 20:
                raise
            self._wrong(str(error))
            return int(word)

    def _size(self, word: str) -> int:
        size = self._number(word)
        if not 1 <= size <= MAX_LENGTH:
            self._wrong(f"length {size}; give one from 1 to {MAX_LENGTH}")
        return min(max(size, 1), MAX_LENGTH)

    def _value(self, word: str, size: int) -> int:
        value, limit = self._number(word), (1 << 8 * size) - 1
        if value > limit:
            self._wrong(f"value {value:#x} does not fit {size} bytes; give at most {limit:#x}")
        return value & limit

    def _write(self, info: VerbInfo, place: Place, words: list[str]) -> Operation:
        """``write PLACE [SIZE] DATA``; lenient fits the data to the size, as qtest does."""
        if len(words) == 2:
            data = parse_bytes(words[1])
            size = len(data)
        else:
            self._count(info, words, 3, "PLACE SIZE 0xDATA")
            size, data = self._number(words[1]), parse_bytes(words[2])
        if not 1 <= size <= MAX_LENGTH:
            self._wrong(f"length {size}; give one from 1 to {MAX_LENGTH}")
            size = min(max(size, 1), MAX_LENGTH)
        if len(data) != size:
            self._wrong(f"{len(data)} bytes of data for a length of {size}; make them equal")
            data = data[:size].ljust(size, b"\0")
        return Operation(info.name, place, size, 0, data)

    def _place(self, info: VerbInfo, word: str) -> Place:
        written = split_place(word)
        number = 0 if written.number is None else self._number(written.number)
        if number > ADDRESS_MASK:
            self._wrong(f"{number:#x} is wider than 64 bits; use 64 bits")
            number &= ADDRESS_MASK
        space = None if written.space == info.space else written.space
        if info.space == IO:
            if space is not None:
                self._wrong("ports are looked up in the I/O space; drop the space")
                space = None
            if written.region is None and number > PORT_MAX:
                self._wrong(f"port {number:#x}; ports go from 0 to {PORT_MAX:#x}")
                number &= PORT_MAX
        elif space == IO:
            self._wrong(f"{info.name} acts on {MEMORY}; drop the space or use in/out")
            space = None
        index = 0 if written.index is None else int(written.index)
        return Place(written.region, index, number, space)
