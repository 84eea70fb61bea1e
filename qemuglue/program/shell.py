"""The shell around a qtest script: its here-document, and the QEMU command line it feeds.

Nothing is run or expanded. Options that belong to the reporter's terminal or to qtest itself
(``-qtest``, ``-display``, ``-accel`` ...) are dropped: the harness sets its own.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from qemuglue.errors import ProgramError
from qemuglue.program.text import MAX_LINE, lines_of

#: ``cat << EOF``, ``<<'EOF'``, ``<<-"END"``; not ``<<<``.
_HERE = re.compile(r"(?<!<)<<-?\s*(['\"]?)(\w{1,64})\1(?!<)")
_QEMU = re.compile(r"(?:.*/)?qemu-system-([A-Za-z0-9_]{1,32})(?:\.exe)?")
#: A variable in the place of the binary: ``$QEMU``, ``${QEMU_PATH}``.
_VARIABLE = re.compile(r"\$\{?\w+\}?")
_MACHINE_NAME = re.compile(r"[A-Za-z0-9_.+-]{1,128}")
#: Options left out, and whether a value follows.
_DROPPED = {
    "qtest": True, "qtest-log": True, "display": True, "monitor": True, "serial": True,
    "accel": True, "nographic": False, "S": False, "enable-kvm": False, "no-shutdown": False,
}
#: The machine QEMU starts where the command line names none; other targets have none.
_DEFAULT_MACHINES = {"x86_64": "pc", "i386": "pc"}


@dataclass(frozen=True, slots=True)
class Shell:
    """What was found around a script; empty fields where there was nothing.

    ``machine`` is ``TARGET/NAME``, or ``NAME`` alone if the command is a variable. Commands
    start after ``line`` and end at ``terminator``.
    """

    machine: str = ""
    args: tuple[str, ...] = ()
    line: int = 0
    terminator: str = ""
    notes: tuple[str, ...] = ()


def find_here_document(text: str) -> Shell:
    """The first here-document in ``text`` and the command it goes to; raises ProgramError."""
    command, first = "", 0
    for number, line in lines_of(text):
        if command or _HERE.search(line):
            command += line.removesuffix("\\") + " "
            first = first or number
            if len(command) > MAX_LINE:
                raise ProgramError(f"command longer than {MAX_LINE} characters; shorten it",
                                   line=first)
            if not line.endswith("\\"):
                return _read_command(command, first, number)
    return Shell()


def _read_command(command: str, first: int, line: int) -> Shell:
    here = _HERE.search(command)
    assert here is not None, f"no here-document in {command!r}"
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|<>&;")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError as error:
        raise ProgramError(f"shell command cannot be split ({error}); close its quotes",
                           line=first) from error
    for part in _parts(words):
        for at, word in enumerate(part):
            match = _QEMU.fullmatch(word)
            if match or (_VARIABLE.fullmatch(word) and "-qtest" in part[at + 1:]):
                target = match[1] if match else ""
                return _read_options(target, part[at + 1:], line, here[2])
    return Shell(line=line, terminator=here[2])


def _parts(words: list[str]) -> list[list[str]]:
    """The commands of a pipeline, without their redirections."""
    parts: list[list[str]] = [[]]
    skip = False
    for word in words:
        if skip:
            skip = False
        elif set(word) <= set("<>") or word in (">&", "<&", "&>"):
            if parts[-1] and parts[-1][-1].isdigit():  # the 2 of 2>&1
                parts[-1].pop()
            skip = True
        elif set(word) <= set("|&;"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _read_options(target: str, words: list[str], line: int, terminator: str) -> Shell:
    args: list[str] = []
    notes: list[str] = []
    name = ""
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        option = re.sub("^--?", "", word) if word.startswith("-") else ""
        if option in ("machine", "M") and at < len(words):
            found, kept = _machine_option(words[at])
            name = found or name
            args += ["-machine", kept] if kept else []
            at += 1
        elif option in _DROPPED:
            at += _DROPPED[option]
        elif word.startswith("$"):
            notes.append(f"left out: shell variable {word[:40]}")
        else:
            args.append(f"-{option}" if option else word)
    name = name or _DEFAULT_MACHINES.get(target, "")
    if name and not _MACHINE_NAME.fullmatch(name):
        raise ProgramError(f"{name[:40]!r} is no machine name; see 'qemuglue machines'", line=line)
    machine = f"{target}/{name}" if target and name else name
    return Shell(machine, tuple(args), line, terminator, tuple(notes))


def _machine_option(value: str) -> tuple[str, str]:
    """Machine name (or "") and the properties to keep of ``-machine [type=]NAME,prop=value``."""
    name, kept = "", []
    for number, part in enumerate(value.split(",")):
        key, equals, rest = part.partition("=")
        if key == "type" and equals:
            name = rest
        elif number == 0 and part and not equals:
            name = part
        elif part and key != "accel":
            kept.append(part)
    return name, ",".join(kept)
