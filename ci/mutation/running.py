"""The tests over one mutant: first those named for its module, then every test of the model,
then, where asked for, those of everything that uses it.

Nothing waits forever: each run has a limit, made from how long the same tests take over the
tree as it is, and a limit on memory. Tests of real QEMU are left out.
"""

from __future__ import annotations

import enum
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mutation.listing import Mutant, modules
from mutation.tree import copy_with

#: A mutant may take so many times as long as the tree as it is, plus a start-up; then it is
#: called hung, which counts as noticed.
SLOWER, START_S = 6.0, 8.0
#: For the first run, which sets the others' limits.
BASELINE_S = 600.0
#: Address space of each process: a mutant that allocates without end must not take the host
#: down.
MEMORY_BYTES = 4 << 30

#: Accesses of the stress test, which would do as many as it can for seconds.
STRESS = "20000"

#: How files of tests about the model alone begin; the others see it through the mirror, the
#: witnesses and so on.
MODEL_TESTS = ("test_memory", "test_rust", "test_rules_are", "test_rcu")

#: Where this package lies: the tree of a commit may not have it.
TOOL = Path(__file__).resolve().parents[1]

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
#: pytest's exit codes for "a test failed", "stopped" (a module cannot be imported), "internal
#: error" and "usage" (conftest cannot be imported); 5 is "no tests". Below 0: it died.
_NOTICED = (1, 2, 3, 4)


class Outcome(enum.Enum):
    KILLED = "killed"
    HUNG = "killed: hung"
    SURVIVED = "survived"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``by`` is the first test that failed, empty where none can be named. ``stage`` is 1 for
    the tests of the module, 2 for those of the model, 3 for those of its users."""

    mutant: Mutant
    outcome: Outcome
    stage: int
    by: str
    seconds: float


class Unusable(Exception):
    """The tests fail as they are, or there are none: nothing can be said of mutants."""


def tests_named_for(root: Path, module: str) -> list[str]:
    """The files of tests that carry a module's name; else those that carry its sub-package's;
    else every unit test of the model. A file belongs to the longest name that it begins with:
    ``test_memory_guest_address`` is about ``guest_address`` and not about ``guest_memory``."""
    known = modules(root)
    package = module.partition(".")[0]
    mine, shared = _names(module, known), _names(package, known)
    every = sorted({name for each in known for name in (*_names(each, known),
                    *_names(each.partition(".")[0], known))}, key=len, reverse=True)
    own, common = [], []
    for file in _files(root, "test_memory_*.py"):
        words = Path(file).stem.removeprefix("test_memory_")
        named = next((each for each in every if f"{words}_".startswith(f"{each}_")), "")
        if named in mine:
            own.append(file)
        elif named in shared:
            common.append(file)
    return own or common or _files(root, "test_memory_*.py", "unit")


def _names(module: str, known: list[str]) -> set[str]:
    """What a file of tests may call ``module``: ``guest_memory.region`` is also
    ``guest_region``, and ``guest_memory.iotlb`` plain ``iotlb``, since no other module is."""
    package, _, leaf = module.partition(".")
    short = package.removeprefix("memory_").removesuffix("_memory")
    if not leaf:
        return {package} if package in known else {package, short}
    taken = known + [each.partition(".")[0] for each in known]
    alone = {leaf} if sum(each.endswith(f".{leaf}") for each in known) == 1 else set()
    return {f"{package}_{leaf}", f"{short}_{leaf}"} | (alone - set(taken))


def tests_of_the_model(root: Path) -> list[str]:
    """Every file of tests that is about the model alone, the quick ones first."""
    return [
        name for room in ("unit", "quality", "property") for start in MODEL_TESTS
        for name in _files(root, f"{start}*.py", room)
    ]


def tests_of_its_users(root: Path) -> list[str]:
    """The other files of tests that name the model; not those of real QEMU."""
    mine = set(tests_of_the_model(root))
    return [
        name for room in ("unit", "property") for name in _files(root, "test_*.py", room)
        if name not in mine and "qemuglue.memory" in (root / name).read_text(encoding="utf-8")
    ]


def _files(root: Path, pattern: str, room: str = "*") -> list[str]:
    return [str(path.relative_to(root)) for path in sorted(root.glob(f"tests/{room}/{pattern}"))]


def limit_memory() -> None:
    """For this process and all it starts."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or hard > MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Runner:
    """Runs tests over the snapshot ``kept`` and over copies of it below ``folder``."""

    def __init__(self, kept: Path, folder: Path, *, users: bool = False) -> None:
        self.kept = kept
        self.folder = folder
        self.wide = [tests_of_the_model(kept)]
        if users:
            self.wide.append(tests_of_its_users(kept))
        self._limits: dict[tuple[str, ...], float] = {}

    def check(self, modules: list[str]) -> float:
        """Run every set of tests over the tree as it is, which also compiles it and sets the
        limits. Seconds that the wide sets take. Raises Unusable."""
        where = self._python("import qemuglue; print(qemuglue.__file__)")
        if not where.startswith(str(self.kept)):
            raise Unusable(f"the tests would import the package from {where}")
        for files in (*self.wide, *(tests_named_for(self.kept, name) for name in modules)):
            if tuple(files) in self._limits:
                continue
            code, text, seconds = self._pytest(self.kept, files, BASELINE_S, compiled=True)
            if code != 0:
                last = text.strip().splitlines()[-12:]
                raise Unusable("the tests fail as they are:\n  " + "\n  ".join(last))
            self._limits[tuple(files)] = seconds * SLOWER + START_S
        return sum((self._limits[tuple(files)] - START_S) / SLOWER for files in self.wide)

    def recheck(self) -> None:
        """All tests again, to be sure that it was the mutants that failed. Raises Unusable."""
        for files in self.wide:
            code, text, _ = self._pytest(self.kept, files, self._limits[tuple(files)])
            if code != 0:
                raise Unusable(f"the tests no longer pass on the tree as it is:\n{text[-2000:]}")

    def run(self, mutant: Mutant) -> Verdict:
        """Try one mutant in a copy of its own, which is gone afterwards."""
        copy = self.folder / f"{mutant.module}-{mutant.operator}-{mutant.occurrence}"
        started = time.monotonic()
        copy_with(mutant, self.kept, copy)
        try:
            narrow = tests_named_for(self.kept, mutant.module)
            for stage, files in enumerate((narrow, *self.wide), 1):
                code, text, _ = self._pytest(copy, files, self._limits[tuple(files)])
                if code == 0:
                    continue
                if code is not None and code > max(_NOTICED):
                    raise Unusable(f"pytest ended with {code} on {mutant}:\n{text[-2000:]}")
                found = _FAILED.search(text)
                return Verdict(mutant, Outcome.HUNG if code is None else Outcome.KILLED, stage,
                               found[1] if found else "", time.monotonic() - started)
        finally:
            shutil.rmtree(copy)
        return Verdict(mutant, Outcome.SURVIVED, len(self.wide) + 1, "", time.monotonic() - started)

    def _pytest(
        self, root: Path, files: list[str], limit_s: float, *, compiled: bool = False
    ) -> tuple[int | None, str, float]:
        """(exit code or None for a hung run, output, seconds)."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-m", "not qemu",
                   "-p", "no:cacheprovider", "-p", "mutation.profile", *files]
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=root, env=self._environment(root, compiled), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )
        try:
            text, _ = process.communicate(timeout=limit_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return None, "", limit_s
            raise
        return process.returncode, text, time.monotonic() - started

    def _python(self, words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", words], cwd=self.kept, timeout=60, check=True,
            env=self._environment(self.kept, False), stdout=subprocess.PIPE, text=True,
        )
        return done.stdout.strip()

    def _environment(self, root: Path, compiled: bool) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        kept |= {
            "HOME": str(self.folder), "PYTHONPATH": f"{root}:{TOOL}",
            # No build is found there, so no test can start a QEMU.
            "QEMUGLUE_CACHE": str(self.folder / "no-builds"),
            "QEMUGLUE_STRESS": STRESS,
        }
        if not compiled:
            kept["PYTHONDONTWRITEBYTECODE"] = "1"
        return kept

