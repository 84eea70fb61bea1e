"""``qemuglue VERB …``: find the verb, run it, turn errors into one sentence and an exit code.

Only the called verb's module is imported, so that ``--help`` and small verbs start at once.
A verb is there when its module is: the table gives order and help lines for all that are.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

import qemuglue
from qemuglue.cli.common import Exit, Parser, fail, sentence
from qemuglue.errors import UsageError

#: Every verb with its line in ``--help``, in the order a newcomer meets them.
VERBS = {
    "doctor": "what is here, what is missing, how to get it",
    "builds": "list or install managed QEMU builds",
    "machines": "machines of a build and whether they start",
    "map": "memory map of a machine",
    "check": "compare accesses in QEMU with the model, against every witness",
    "fuzz": "run a campaign on a target",
    "replay": "run a finding, a program or a qtest script again: model says, QEMU says",
    "minimize": "smallest program with the same signature",
    "export": "a program as text, qtest, bash, C or pytest",
    "diff": "what changed between builds",
    "bisect": "first build that shows a finding",
    "contracts": "access contract of every device region",
    "targets": "list the fuzz targets",
    "clean": "which ways bring a machine back into its first state",
    "corpus": "merge, prune or measure a corpus",
    "report": "findings folder as HTML, JUnit or JSON",
    "watch": "follow a machine's memory map",
    "run": "run a program on the guest's CPU",
    "bench": "measure accesses a second",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own); the exit code.

    Never raises: an error is one sentence on stderr, a traceback only with ``--debug``.
    """
    words = join_qemu_args(list(sys.argv[1:] if argv is None else argv))
    # Taken out here, so that it is known in every place, behind a verb's own sub-verbs too.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _main(words, debug=debug)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except Exception as error:
        if debug:
            traceback.print_exc()
        return fail(sentence(error), verb=words[0] if words and words[0] in VERBS else "")


def _main(words: list[str], *, debug: bool = False) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        if len(words) > 1 and words[0] == "help":
            words = [words[1], "--help"]
        else:
            print(overview())
            return Exit.NOTHING_FOUND if words else Exit.ERROR
    if words[0] == "--version":
        print(f"qemuglue {qemuglue.__version__}")
        return Exit.NOTHING_FOUND
    verb = words[0]
    module = load_verb(verb)
    parser = Parser(prog=f"qemuglue {verb}", description=module.HELP)
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    try:
        args = parser.parse_args(words[1:])
    except SystemExit as stop:  # --help has printed its text
        return int(stop.code or 0)
    args.debug = debug
    return int(module.run(args))


def verbs() -> dict[str, str]:
    """The verbs whose modules are there, with their help lines, in order."""
    return {verb: text for verb, text in VERBS.items()
            if importlib.util.find_spec(_module_name(verb)) is not None}


def load_verb(verb: str) -> ModuleType:
    """The module of ``verb``.

    :raise UsageError: there is no such verb.
    """
    if verb not in VERBS or importlib.util.find_spec(_module_name(verb)) is None:
        raise UsageError(f"no verb {verb!r}; there are {', '.join(verbs())}")
    return importlib.import_module(_module_name(verb))


def overview() -> str:
    """The text of ``qemuglue --help``."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in verbs().items()]
    return "\n".join([
        "usage: qemuglue VERB [options]", "",
        "Fuzz QEMU's memory API and check every access against an executable model of it.", "",
        *lines, "",
        "`qemuglue VERB --help` tells the options of a verb. Exit codes: 0 nothing found,",
        "1 findings or divergences, 2 usage or environment error, 130 interrupted.",
    ])


def join_qemu_args(words: list[str]) -> list[str]:
    """``--qemu-args X`` as ``--qemu-args=X``: X starts with a dash and argparse would take a
    single word such as ``-S`` for an option of ours."""
    joined: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*joined, word, *rest]
        if word == "--qemu-args":
            value = next(rest, None)
            joined.append(word if value is None else f"{word}={value}")
        else:
            joined.append(word)
    return joined


def _module_name(verb: str) -> str:
    return f"qemuglue.cli.{verb.replace('-', '_')}"


if __name__ == "__main__":
    sys.exit(main())
