"""``qemuglue-fuzz``: a target as a libFuzzer executable, by way of Atheris.

``qemuglue-fuzz --target=access [our options] [libFuzzer flags] [corpus folders and files]``.
Options with two dashes are ours; libFuzzer skips them and hands them on to the processes it
starts for ``-merge``, ``-fork``, ``-jobs`` and ``-minimize_crash``, so each of them is set up
alike. Each process has a QEMU of its own.

A new finding is recorded in ``OUT/findings`` and raised, so that libFuzzer writes ``crash-…``
and exits with 77; with ``--keep-going`` it is recorded and fuzzing goes on. Nothing is imported
here but what cannot be avoided: the model must be imported under Atheris' instrumentation.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qemuglue.errors import EnvironmentFailure, UsageError

if TYPE_CHECKING:
    from qemuglue.campaign.settings import Settings
    from qemuglue.campaign.steering import Steering
    from qemuglue.campaign.worker import Work

#: libFuzzer flags that make this process start others and run no input of its own.
_PARENT_FLAGS = ("-merge", "-fork", "-jobs", "-minimize_crash")
#: Flags of the processes so started, where the flag above is handed on to them.
_CHILD_FLAGS = ("-merge_inner", "-merge_control_file", "-minimize_crash_internal_step")

#: The targets that need no QEMU (``inputs``). Their names are known here, since ``targets`` must
#: not be imported before the instrumentation.
ALONE = ("text", "model")
#: What is instrumented: the model; for text, what reads QEMU's words and draws from them.
_MODEL = ("qemuglue.memory",)
_PARSED = ("qemuglue.qemu", "qemuglue.mirror", "qemuglue.memory.flatview",
           "qemuglue.memory.region", "qemuglue.witness.xp", "qemuglue.witness.death")

#: What a campaign keeps of its worker's first corpus: enough to breed from.
FIRST_INPUTS = 16

ENVIRONMENT = 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`qemuglue-fuzz --help` tells more)")


#: libFuzzer's default for ``-rss_limit_mb``.
RSS_LIMIT_MB = 2048


def parser() -> argparse.ArgumentParser:
    """Our own options; all take their value behind ``=``."""
    made = _Parser(
        prog="qemuglue-fuzz", allow_abbrev=False,
        usage="qemuglue-fuzz --target=NAME [--option=value …] [-libFuzzer_flag=value …] "
              "[CORPUS …]",
        description="A fuzz target as a libFuzzer executable. Options with one dash are "
                    "libFuzzer's (-help=1 lists them); exit codes are libFuzzer's: 77 finding, "
                    "70 timeout; 2 where QEMU or a build is missing.",
    )
    add = made.add_argument
    add("--target", metavar="NAME",
        help="for example access; `qemuglue targets` lists them")
    add("--machine", metavar="TARGET/NAME", help="for example x86_64/q35")
    add("--device", action="append", metavar="DEVICE", help="as QEMU's -device; may be repeated")
    add("--qemu-args", metavar='"…"', help="appended to QEMU's command line")
    add("--build", metavar="NAME|PATH", help="managed build, binary or build tree")
    add("--seed", type=lambda text: int(text, 0), metavar="N", help="recorded in findings")
    add("--out", metavar="DIR", help="findings go to DIR/findings (default: .)")
    add("--defect", metavar="NAME", help="plant this defect in the model")
    add("--operations", type=int, metavar="N", help="operations of one input (default 64)")
    add("--settings", type=Path, metavar="FILE", help="settings of a campaign, as JSON")
    add("--feedback", metavar="NAME",
        help="what of QEMU steers: all (accesses and trace events; the default), transcript "
             "(accesses), none")
    add("--keep-going", action="store_true", help="record findings and go on")
    add("--status-fd", type=int, default=-1, help=argparse.SUPPRESS)
    add("--seconds", type=float, help=argparse.SUPPRESS)
    add("--programs", type=int, help=argparse.SUPPRESS)
    add("--index", type=int, default=0, help=argparse.SUPPRESS)
    add("--life", type=int, default=0, help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run libFuzzer with this command line. Returns only before fuzzing starts (2 for an
    error of the environment, 0 after ``--help``); libFuzzer ends the process itself."""
    words = list(sys.argv if argv is None else argv)
    try:
        options = parser().parse_args([word for word in words[1:] if word.startswith("--")])
        _check_alone(options)
    except SystemExit as stop:
        return int(stop.code or 0)
    except UsageError as error:
        return _sentence(error)
    try:
        # By name: its type stubs lack half of what it has.
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        return _sentence(UsageError(
            "Atheris is not installed: `pip install 'qemuglue[fuzz]'` brings it, and "
            "`qemuglue fuzz --engine random` does without"
        ))
    alone = options.target in ALONE
    with atheris.instrument_imports(include=list(
            _PARSED if options.target == "text" else _MODEL)):
        import qemuglue.memory  # first of all importers, so it is instrumented

        if options.target == "text":
            import qemuglue.campaign.text.parsers  # noqa: F401
    from qemuglue.campaign.status import StatusWriter

    writer = StatusWriter(options.status_fd)
    try:
        breeding: dict[str, Any] = {}
        if alone:
            one_input, breeding = _prepare_alone(options, words, atheris)
        else:
            one_input = _prepare(options, words, writer)
            if isinstance(one_input, Harness):
                breeding = one_input.breeding(atheris)
    except (UsageError, EnvironmentFailure) as error:
        writer.error(str(error), environment=True)
        return _sentence(error)
    atheris.Setup(_command_line(_with_memory_limit(words)), one_input, **breeding)
    atheris.Fuzz()
    return 0


def _with_memory_limit(words: Sequence[str]) -> list[str]:
    """libFuzzer's own limit, measured from here.

    It watches the peak that the kernel reports, and that is inherited from whoever started
    this process: under a large parent the default limit is exceeded before the first input.
    """
    if any(word.startswith("-rss_limit_mb=") for word in words):
        return list(words)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return [*words[:1], f"-rss_limit_mb={peak_mb + RSS_LIMIT_MB}", *words[1:]]


def _prepare(
    options: argparse.Namespace, words: Sequence[str], writer: Any
) -> Callable[[bytes], None]:
    """The function that runs one input, its QEMU running already."""
    from qemuglue.campaign.settings import scene
    from qemuglue.campaign.steering import Steering
    from qemuglue.campaign.worker import Role, Work

    settings = settings_of(options)
    if starts_others(words):
        # It runs no input; but a QEMU that refuses to start is told once, not by each child.
        with scene(settings).session():
            return lambda data: None
    work = Work(settings, writer, role=Role(options.index, options.life))
    in_campaign = options.status_fd >= 0
    if in_campaign:
        work.stop_at_signals()
    steering = Steering(work)
    work.start()
    if in_campaign:
        first_inputs(work)
    return Harness(work, steering, keep_going=options.keep_going, in_campaign=in_campaign)


def _check_alone(options: argparse.Namespace) -> None:
    """Raises UsageError where a target that needs no QEMU is told of one."""
    told = (options.machine, options.device, options.qemu_args, options.build)
    if options.target in ALONE and any(told):
        raise UsageError(f"the target {options.target} needs no QEMU: leave out --machine, "
                         "--device, --qemu-args and --build")


def _prepare_alone(
    options: argparse.Namespace, words: Sequence[str], atheris: Any
) -> tuple[Callable[[bytes], None], dict[str, Any]]:
    """The same for a target that needs no QEMU, with how new inputs are made."""
    from qemuglue.campaign.inputs import engine

    if starts_others(words):
        return lambda data: None, {}
    return engine.setup(options, atheris)


def settings_of(options: argparse.Namespace) -> Settings:
    """``--settings`` or the target's own, changed by what else is given.

    :raise UsageError: one of them does not exist.
    """
    from qemuglue.campaign.settings import Settings
    from qemuglue.campaign.targets import DEFAULT_TARGET

    if options.settings is not None:
        base = Settings.load(options.settings)
    else:
        base = Settings.of_target(
            options.target or DEFAULT_TARGET, machine=options.machine or "",
            devices=options.device, build=options.build or "", seed=options.seed or 0,
            qemu_args=shlex.split(options.qemu_args or ""),
        )
    given = {
        "machine": options.machine, "build": options.build, "seed": options.seed,
        "seconds": options.seconds, "programs": options.programs,
        "out": options.out, "defect": options.defect, "operations": options.operations,
        "feedback": options.feedback,
        "devices": None if options.device is None or options.settings is None
        else tuple(options.device),
        "qemu_args": None if options.qemu_args is None or options.settings is None
        else tuple(shlex.split(options.qemu_args)),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    return base.replace(engine="atheris", **changes)


class Harness:
    """Runs one input after another; called by libFuzzer."""

    def __init__(
        self, work: Work, steering: Steering, *, keep_going: bool, in_campaign: bool
    ) -> None:
        self.work = work
        self.steering = steering
        self.keep_going = keep_going
        self.in_campaign = in_campaign

    def __call__(self, data: bytes) -> None:
        work = self.work
        if self.in_campaign and work.over:
            self._end(0)
        try:
            program = work.decode(data)
            clean = self.steering.perform(program, data)
        except EnvironmentFailure as error:
            # Not a crash file: the input has nothing to do with it.
            self.work.writer.error(str(error), environment=True)
            _sentence(error)
            self._end(ENVIRONMENT)
        except Exception as error:
            if not self.in_campaign:
                raise
            self._internal(error, data)
        if not clean and not self.keep_going:
            found = work.last
            told = f"{found.signature}, recorded in {found.path}" if found else "a known finding"
            raise AssertionError(told)

    def breeding(self, atheris: Any) -> dict[str, Any]:
        """How libFuzzer is to make new inputs: the arguments of ``atheris.Setup`` for it."""
        from qemuglue.campaign.breeding import Breeder

        work = self.work
        breeder = Breeder(work.settings, work.explorer.layout, work.decode,
                          lambda data, size: bytes(atheris.Mutate(data, size)), work.drawing,
                          self.steering.hints)
        return {"custom_mutator": breeder.mutate, "custom_crossover": breeder.cross}

    def _internal(self, error: Exception, data: bytes) -> NoReturn:
        """An error of ours: keep the input, tell the campaign, which starts another worker."""
        import traceback

        traceback.print_exc()
        name = Path(self.work.settings.out) / f"internal-error-{os.getpid()}.bin"
        name.write_bytes(data)
        self.work.writer.error(
            f"{type(error).__name__}: {error}; the input is in {name}", environment=False
        )
        self._end(3)

    def _end(self, code: int) -> NoReturn:
        """End the process from inside libFuzzer, which would take an exit for a crash."""
        told = self.steering.describe()
        if told:
            self.work.explorer.progress.notes.append(told)
        try:
            self.work.close()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def first_inputs(work: Work) -> None:
    """Give an empty corpus something to breed from: programs drawn from the seed."""
    from qemuglue.campaign.corpus import Corpus
    from qemuglue.program.codec import encode

    corpus = Corpus(work.settings.corpus)
    corpus.folder.mkdir(parents=True, exist_ok=True)
    if corpus.size() or work.role.index:
        return
    layout, rng = work.explorer.layout, work.role.rng(work.settings.seed)
    for _ in range(FIRST_INPUTS):
        operations = work.drawing.operations(rng, work.settings.operations)
        corpus.add(encode(work.settings.program(operations), layout))


def starts_others(words: Sequence[str]) -> bool:
    """Whether libFuzzer will only start further processes with this command line."""
    flags = dict(
        word.split("=", 1) for word in words[1:] if word.startswith("-") and "=" in word
    )
    if any(flag in flags for flag in _CHILD_FLAGS):
        return False
    return any(flags.get(flag, "0") != "0" for flag in _PARENT_FLAGS)


def _command_line(words: Sequence[str]) -> list[str]:
    """The command line as libFuzzer may execute it again: through a shell, from anywhere, with
    our own values quoted (it takes none of them to heart itself)."""
    quoted: list[str] = []
    for word in words[1:]:
        name, equals, value = word.partition("=")
        quoted.append(name + equals + shlex.quote(value) if word.startswith("--") and equals
                      else word)
    return [_executable(words[0]), *quoted]


def _executable(word: str) -> str:
    """How to start this program again. A script is started with this very Python: the one that
    its first line finds may not have the package."""
    path = Path(os.path.abspath(shutil.which(word) or word))  # noqa: PTH100 - links stay
    if path == Path(__file__) or not path.exists():
        return f"{shlex.quote(sys.executable)} -m qemuglue.campaign.libfuzzer"
    if path.suffix == ".py" or not os.access(path, os.X_OK):
        return f"{shlex.quote(sys.executable)} {shlex.quote(str(path))}"
    return shlex.quote(str(path))


def _sentence(error: Exception) -> int:
    print(f"qemuglue-fuzz: {error}", file=sys.stderr)  # noqa: T201 - this is a command
    return ENVIRONMENT


if __name__ == "__main__":
    sys.exit(main())
