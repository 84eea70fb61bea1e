"""Plain qtest scripts: what people pipe into ``qemu-system-* -qtest stdio`` and paste in reports.

Import takes the commands alone, or the shell here-document around them (``cat << EOF |
qemu-system-x86_64 ... -qtest stdio``), from which machine and arguments come. Export writes the
other way and needs somebody who knows addresses (``Layout.address_of``).

qtest trusts its input: a bad number, a port over 0xffff or a ``read`` of nothing ends QEMU with
an assertion (rule R20, ``qtest_process_command`` in ``system/qtest.c``). So everything is
checked here; what qtest would quietly cut or fill is done the same way and noted.
"""

from __future__ import annotations

import base64
import binascii
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from qemuglue.errors import ProgramError
from qemuglue.program.operation import Operation, Place, Program, validate
from qemuglue.program.shell import Shell, find_here_document
from qemuglue.program.text import MAX_LINE, Repair, lines_of
from qemuglue.program.verbs import (
    ADDRESS_MASK,
    MAX_LENGTH,
    MAX_OPERATIONS,
    PORT_MAX,
    VERBS,
    Kind,
    VerbInfo,
)
from qemuglue.program.words import format_args

#: Gives the address of an operation, None where it has none now.
Resolver = Callable[[Operation], int | None]

#: Commands of qtest that are no operations: left out, with a note.
_OTHER_COMMANDS = frozenset({
    "clock_step", "clock_set", "endianness", "irq_intercept_in", "irq_intercept_out",
    "set_irq_in", "rtas", "module_load",
})
#: Longest byte string of one command: cut into operations of MAX_LENGTH. Longer ones are memory
#: fills of a whole guest, which no batch should carry.
MAX_SCRIPT_LENGTH = 1 << 20
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,32}|0[0-7]{0,32}|[1-9][0-9]{0,19}")
#: qtest's own log (``-qtest-log``) in front of a command, and lines that are its replies.
_LOGGED = re.compile(r"\[R \+?[0-9.]+\]\s*")
_REPLY = re.compile(r"\[[SI] \+?[0-9.]+\]|(OK|ERR|FAIL|IRQ)\b")
_MARK = "# qemuglue "


@dataclass(frozen=True, slots=True)
class Script:
    """An imported script: its program, and what was left out, cut or filled."""

    program: Program
    notes: tuple[Repair, ...]


def parse_script(
    text: str, machine: str = "", args: tuple[str, ...] = (), strict: bool = True,
) -> Script:
    """Read a qtest script. ``machine`` and ``args`` count where the text names no machine.

    Strict raises ProgramError at the first command qtest would not take; lenient leaves it out
    and notes it. Both raise it if no machine is known and over the size limits of program text.
    """
    reader = _ScriptReader(strict)
    shell = find_here_document(text)
    reader.notes.extend(Repair(shell.line, note, "") for note in shell.notes)
    reader.read(text, shell)
    found = reader.machine or shell.machine or machine
    if not found or ("/" not in found and not machine):
        raise ProgramError("the script does not say which machine it is for; "
                           "give --machine TARGET/NAME")
    named = found if "/" in found else f"{machine.partition('/')[0]}/{found}"
    words = reader.args if reader.args is not None else shell.args if shell.machine else args
    program = Program(named, words, tuple(reader.operations), reader.mode,
                      reader.setup).validate()
    return Script(program, tuple(reader.notes))


def format_script(program: Program, resolve: Resolver, header: bool = True) -> str:
    """The commands of a program, one a line, places resolved.

    With ``header``, comments keep machine, args and mode for :func:`parse_script` (qtest answers
    FAIL to a comment and goes on). Events have no qtest command and stay comments. Raises
    ProgramError where ``resolve`` knows no address.
    """
    lines: list[str] = []
    if header:
        lines.append(f"{_MARK}machine {program.machine}")
        if program.args:
            lines.append(f"{_MARK}args {format_args(program.args)}")
        lines.append(f"{_MARK}mode {program.mode}")
        if program.setup:
            lines.append(f"{_MARK}setup {program.setup}")
    lines.extend(format_command(op, resolve) for op in program.validate().operations)
    return "".join(f"{line}\n" for line in lines)


def format_command(op: Operation, resolve: Resolver) -> str:
    """The qtest command of one operation, without a newline; a comment for an event."""
    if op.place is None:
        return f"{_MARK}{op.verb}"
    address = resolve(op)
    if address is None:
        raise ProgramError(f"no address for {op.place.region!r}; resolve the program on a "
                           "machine that has this region")
    info = op.info
    words = [op.verb, hex(address)]
    if info.size is None:
        words.append(hex(op.size))
    if op.verb == "write":
        words.append(f"0x{op.data.hex()}")
    elif info.is_write:
        words.append(hex(op.value))
    return " ".join(words)


class _ScriptReader:
    """State of one reading."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.notes: list[Repair] = []
        self.operations: list[Operation] = []
        self.machine = ""
        self.args: tuple[str, ...] | None = None
        self.mode = "stopped"
        self.setup = ""
        self.line = 0
        self.text = ""

    def read(self, text: str, shell: Shell) -> None:
        """Read the lines of the here-document, or all of them where there is none."""
        for self.line, self.text in lines_of(text):
            if self.line <= shell.line:
                continue
            if shell.terminator and self.text == shell.terminator:
                break
            try:
                if len(self.text) > MAX_LINE:
                    raise ProgramError(f"line longer than {MAX_LINE} characters; "
                                       "split the write")
                self._line(self.text)
            except ProgramError as error:
                if self.strict:
                    raise ProgramError(str(error), line=self.line, text=self.text[:80]) from error
                self._note(f"left out: {error}")

    def _note(self, message: str) -> None:
        self.notes.append(Repair(self.line, message, self.text[:80]))

    def _line(self, line: str) -> None:
        if line.startswith(_MARK):
            self._mark(line[len(_MARK):])
            return
        line = _LOGGED.sub("", line, count=1)
        if not line or line.startswith("#") or _REPLY.match(line):
            return
        words = [word for word in line.replace("\t", " ").split(" ") if word]
        if words[0] in _OTHER_COMMANDS:
            self._note(f"left out: {words[0]} is no memory operation")
            return
        name = {"b64read": "read", "b64write": "write"}.get(words[0], words[0])
        info = VERBS.get(name)
        if info is None or info.kind is Kind.EVENT:
            raise ProgramError(f"unknown qtest command {words[0][:40]!r}; remove the line")
        made = [validate(op) for op in self._command(info, words)]
        if len(self.operations) + len(made) > MAX_OPERATIONS:
            raise ProgramError(f"more than {MAX_OPERATIONS} operations; split the script")
        self.operations.extend(made)

    def _mark(self, rest: str) -> None:
        """What :func:`format_script` keeps in comments; others are just comments."""
        name, _, value = rest.partition(" ")
        if name == "machine":
            self.machine = Program(value).validate().machine
        elif name == "mode":
            self.mode = Program("a/b", mode=value).validate().mode
        elif name == "setup":
            self.setup = Program("a/b", setup=value).validate().setup
        elif name == "args":
            try:
                self.args = tuple(shlex.split(value))
            except ValueError as error:
                raise ProgramError(f"arguments cannot be split ({error}); "
                                   "quote them as for a shell") from error
        elif not value and name in VERBS and VERBS[name].kind is Kind.EVENT:
            self.operations.append(Operation(name, None, 0))

    def _command(self, info: VerbInfo, words: list[str]) -> list[Operation]:
        wanted = 2 + (info.size is None) + info.is_write
        if len(words) < wanted:  # qtest asserts on a missing word and ignores extra ones
            raise ProgramError(f"{words[0]} takes {wanted - 1} words after it, "
                               f"not {len(words) - 1}; write them all")
        if len(words) > wanted:
            self._note(f"extra words after {words[0]} ignored")
        address = _number(words[1])
        if info.kind is Kind.PORT and address > PORT_MAX:
            raise ProgramError(f"port {address:#x}; ports go from 0 to {PORT_MAX:#x}")
        if info.size is None:
            return self._bytes(info, words, address)
        value = 0
        if info.is_write:
            value = _number(words[2])
            if value >> 8 * info.size:
                self._note(f"value cut to {info.size} bytes, as qtest does")
                value &= (1 << 8 * info.size) - 1
        return [Operation(info.name, Place(None, 0, address), info.size, value)]

    def _bytes(self, info: VerbInfo, words: list[str], address: int) -> list[Operation]:
        size = _number(words[2])
        if size == 0 and words[0] == "read":
            raise ProgramError("read of length 0 makes qtest assert; remove the line")
        if size == 0:
            self._note(f"left out: {words[0]} of no bytes does nothing")
            return []
        if size > MAX_SCRIPT_LENGTH:
            raise ProgramError(f"{words[0]} of {size:#x} bytes; "
                               f"give at most {MAX_SCRIPT_LENGTH:#x}")
        if size > MAX_LENGTH:
            self._note(f"split into operations of {MAX_LENGTH} bytes")
        value, data = 0, b""
        if info.kind is Kind.FILL:
            value = _number(words[3])
            if value > 0xFF:
                self._note("value cut to 1 byte, as qtest does")
                value &= 0xFF
        elif info.is_write:
            data = self._data(words, size)
        return [
            Operation(info.name, Place(None, 0, (address + at) & ADDRESS_MASK),
                      min(MAX_LENGTH, size - at), value, data[at:at + MAX_LENGTH])
            for at in range(0, size, MAX_LENGTH)
        ]

    def _data(self, words: list[str], size: int) -> bytes:
        word = words[3]
        if words[0] == "b64write":
            try:
                data = base64.b64decode(word, validate=True)
            except binascii.Error as error:
                raise ProgramError(f"data is not base64 ({error}); encode it again") from error
            if len(data) != size:  # qtest trusts the size over the data and reads beyond it
                raise ProgramError(f"{len(data)} bytes of data for a length of {size}; "
                                   "make them equal")
            return data
        try:
            if not re.fullmatch(r"0[xX](?:[0-9a-fA-F]{2})+", word):
                raise ValueError
            data = bytes.fromhex(word[2:])
        except ValueError:
            raise ProgramError("data is not 0x and an even number of hex digits; "
                               "write two for each byte") from None
        if len(data) != size:
            self._note("data cut or filled with zeros to the length, as qtest does")
        return data[:size].ljust(size, b"\0")


def _number(word: str) -> int:
    """A number as qtest's ``qemu_strtou64(.., 0, ..)`` reads it: 0x hex, leading 0 octal."""
    if not _NUMBER.fullmatch(word):
        raise ProgramError(f"{word[:40]!r} is not a number qtest takes; write it as hex")
    base = 16 if word[:2] in ("0x", "0X") else 8 if word[0] == "0" else 10
    value = int(word, base)
    if value > ADDRESS_MASK:
        raise ProgramError(f"{word[:40]} is wider than 64 bits; qtest asserts on it")
    return value
