"""What the verbs share: options, output and the one place where errors become sentences.

A verb module has ``NAME``, ``HELP``, ``add_arguments(parser)`` and ``run(args) -> int``. It prints
its result to stdout and its progress to stderr, raises the errors of :mod:`qemuglue.errors` and
returns an exit code of :class:`Exit`.
"""

from __future__ import annotations

import argparse
import enum
import json
import shlex
import sys
from typing import Any, NoReturn

from qemuglue.errors import LaunchError, QemuglueError, UsageError
from qemuglue.qemu.builds import Build, find_build

#: Seeds are unsigned 64-bit, so that one fits every format that records it.
SEED_MAX = (1 << 64) - 1


class Exit(enum.IntEnum):
    """Exit codes of every verb (a contract: scripts depend on them)."""

    NOTHING_FOUND = 0
    FOUND = 1
    """Findings or divergences."""
    ERROR = 2
    """Wrong usage, or something this host lacks."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """Whoever read our output stopped reading (128 + SIGPIPE, as any program in a pipe)."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one sentence like all others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Abbreviated options would make every new option a possible break of a script.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` tells more)")


# Section: options


def add_build(parser: argparse.ArgumentParser, *, repeatable: bool = False) -> None:
    """``--build``: ``args.build`` is None or a text; a list, perhaps empty, if repeatable."""
    text = ("managed build, or path of a qemu-system binary or build tree (default: "
            "$QEMUGLUE_BUILD, else the newest managed build, else qemu-system-* on PATH)")
    if repeatable:
        parser.add_argument("--build", action="append", default=[], metavar="NAME|PATH",
                            help=text + "; may be repeated")
    else:
        parser.add_argument("--build", metavar="NAME|PATH", help=text)


def builds_of(args: argparse.Namespace) -> list[Build]:
    """The builds that ``--build`` names, repeated or not; the default one if none is named."""
    given = args.build if isinstance(args.build, list) else [args.build]
    return [find_build(name) for name in given or [None]]


def add_qemu_args(parser: argparse.ArgumentParser) -> None:
    """``--qemu-args``: ``args.qemu_args`` is a list of words, perhaps empty."""
    parser.add_argument("--qemu-args", type=split_words, action="extend", default=[],
                        metavar='"…"', help="appended to QEMU's command line; may be repeated")


def split_words(text: str) -> list[str]:
    """Words of ``text`` as a shell would split them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: the result as one JSON document on stdout."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_seed(parser: argparse.ArgumentParser) -> None:
    """``--seed``: ``args.seed`` is None or an int from 0 to :data:`SEED_MAX`."""
    parser.add_argument("--seed", type=_seed, metavar="N",
                        help="repeat an earlier run; every run prints its seed first")


def _seed(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= SEED_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 2**64-1")
    return value


# Section: output


def print_json(document: Any) -> None:
    """One JSON document on stdout, keys in the order given."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def progress(line: str) -> None:
    """One line of progress on stderr, at once."""
    print(line, file=sys.stderr, flush=True)


def fail(message: str, *, verb: str = "") -> int:
    """Print one sentence on stderr; the exit code to return."""
    line = " ".join(message.split())
    print(f"qemuglue {verb}: {line}" if verb else f"qemuglue: {line}", file=sys.stderr)
    return Exit.ERROR


def sentence(error: BaseException) -> str:
    """What to tell of ``error``: its message, and for a refused start QEMU's own too."""
    text = str(error)
    if isinstance(error, LaunchError):
        said = [line.strip() for line in error.stderr.splitlines() if line.strip()]
        if said and said[-1] not in text:
            text = f"{text}: {said[-1]}"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif not isinstance(error, QemuglueError):
        text = (f"internal error, please report it: {type(error).__name__}: {text} "
                "(--debug shows where)")
    return text
