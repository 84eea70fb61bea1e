"""``qemuglue doctor``: what is here, what is missing, and how to get it.

Each check looks for real (opens, maps, starts) rather than for a name. A ``missing`` check stops
every campaign; a ``limited`` one takes away only what its line says.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import mmap
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from qemuglue.cli.common import Exit, add_json, print_json
from qemuglue.errors import BuildError
from qemuglue.qemu.builds import (
    STANDARD_SUITES,
    ask_version,
    cache_folder,
    find_build,
    has_apt,
    installed_builds,
)

NAME = "doctor"
HELP = "Say what is here, what is missing and how to get it."

#: Shared guest RAM of a few QEMUs and their transcripts; less is worth a word.
SHM_WANTED = 512 << 20

#: Three builds with x86 and arm take this much.
CACHE_WANTED = 1 << 30

CORE_PACKAGES = ("qemu.qmp", "pyelftools", "rich")
EXTRA_PACKAGES = {
    "atheris": "coverage-guided fuzzing (without it: --engine random)",
    "jinja2": "HTML reports", "junitparser": "JUnit reports",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One line: ``status`` is ok, limited or missing; ``fix`` says how to get it."""

    name: str
    status: str
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    checks = [check for look in LOOKS for check in look()]
    missing = sum(check.status == "missing" for check in checks)
    if args.json:
        print_json({"schema": 1, "ok": not missing, "checks": [asdict(c) for c in checks]})
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.status:<8} {check.name:<{width}}  {check.detail}")
            if check.fix:
                print(f"{'':<8} {'':<{width}}  -> {check.fix}")
        limited = sum(check.status == "limited" for check in checks)
        print(f"{len(checks)} checks: {len(checks) - missing - limited} ok, "
              f"{limited} limited, {missing} missing")
    return Exit.ERROR if missing else Exit.NOTHING_FOUND


# Section: the looks, each one or more lines


def _host() -> Iterator[Check]:
    about = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs"
    linux = sys.platform == "linux"
    yield Check("host", "ok" if linux else "missing", about,
                "" if linux else "qemuglue needs Linux (memfd, /proc, FIFOs)")
    fine = sys.version_info >= (3, 11)
    yield Check("python", "ok" if fine else "missing",
                f"{platform.python_version()} ({sys.executable})",
                "" if fine else "install Python 3.11 or newer")


def _packages() -> Iterator[Check]:
    for name in CORE_PACKAGES:
        version = _version_of(name)
        yield Check(name, "ok" if version else "missing", version or "not installed",
                    "" if version else "run ci/setup, or install qemuglue with pip")
    for name, use in EXTRA_PACKAGES.items():
        version = _version_of(name)
        extra = "fuzz" if name == "atheris" else "report"
        yield Check(name, "ok" if version else "limited", version or f"not installed: no {use}",
                    "" if version else f"run ci/setup, or pip install 'qemuglue[{extra}]'")


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cache() -> Iterator[Check]:
    folder = cache_folder()
    place = folder
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield Check("cache", "limited", f"{folder} cannot be written: no build can be installed",
                    "set QEMUGLUE_CACHE to a folder of yours")
        return
    free = shutil.disk_usage(place).free
    enough = free >= CACHE_WANTED
    yield Check("cache", "ok" if enough else "limited", f"{folder}, {free >> 20} MiB free",
                "" if enough else f"make {CACHE_WANTED >> 20} MiB free or set QEMUGLUE_CACHE")


def _builds() -> Iterator[Check]:
    yield Check("apt", "ok" if has_apt() else "limited",
                "here: managed builds can be installed" if has_apt()
                else "not here: managed builds cannot be installed",
                "" if has_apt() else "give QEMU with --build PATH")
    managed = installed_builds()
    for build in managed:
        try:
            version, _ = ask_version(tuple(build.command(build.targets()[0])))
            yield Check(f"build {build.name}", "ok",
                        f"QEMU {version}: {', '.join(build.targets())}")
        except BuildError as error:
            yield Check(f"build {build.name}", "limited", str(error),
                        f"qemuglue builds install {build.name} --refresh")
    absent = [suite for suite in STANDARD_SUITES if suite not in {b.name for b in managed}]
    if absent and has_apt():
        yield Check("managed builds", "limited", f"not installed: {', '.join(absent)}",
                    f"qemuglue builds install {' '.join(absent)}")
    try:
        build = find_build()
        yield Check("default build", "ok", f"{build.name}, QEMU {build.version}")
    except BuildError as error:
        reason, _, fix = str(error).partition(": ")
        yield Check("default build", "missing", reason, fix)


def _compiler() -> Iterator[Check]:
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path:
            yield Check("C compiler", "ok", path)
            return
    yield Check("C compiler", "limited", "none: the TCG plugin (guest-CPU witness) cannot be built",
                "apt install gcc libc6-dev")


def _memory() -> Iterator[Check]:
    try:
        with os.fdopen(os.memfd_create("qemuglue"), "r+b") as stream:
            stream.truncate(4096)
            with mmap.mmap(stream.fileno(), 4096) as view:
                view[:4] = b"test"
        yield Check("memfd", "ok", "shared guest RAM can be made and mapped")
    except (OSError, AttributeError) as error:
        yield Check("memfd", "limited", f"{error}: guest RAM is read through /proc instead",
                    "use a kernel (or container profile) with memfd_create")
    yield _proc_mem()
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield Check("/dev/shm", "limited", "cannot be written: transcripts go to the disk (slower)",
                    "mount a tmpfs on /dev/shm")
        return
    free = shutil.disk_usage(shm).free
    yield Check("/dev/shm", "ok" if free >= SHM_WANTED else "limited", f"{free >> 20} MiB free",
                "" if free >= SHM_WANTED else "enlarge it (containers: --shm-size=1g)")


def _proc_mem() -> Check:
    """Whether the memory of a child can be read, as that of QEMU is."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        maps = Path(f"/proc/{child.pid}/maps").read_text().splitlines()
        start = int(maps[0].split("-", 1)[0], 16)
        with Path(f"/proc/{child.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(start)
            memory.read(16)
        return Check("/proc/PID/mem", "ok", "a child's memory can be read")
    except (OSError, ValueError, IndexError) as error:
        return Check("/proc/PID/mem", "limited",
                     f"{error}: RAM that is not shared cannot be compared",
                     "set kernel.yama.ptrace_scope to 0 or 1; in a container add SYS_PTRACE")
    finally:
        child.kill()
        child.communicate()


def _temporary() -> Iterator[Check]:
    try:
        with tempfile.TemporaryDirectory(prefix="qemuglue-") as folder:
            os.mkfifo(Path(folder) / "fifo")
        yield Check("FIFOs", "ok", f"can be made in {tempfile.gettempdir()}")
    except OSError as error:
        yield Check("FIFOs", "missing", f"{error}: the access transcript needs one",
                    "set TMPDIR to a folder of a file system with FIFOs")


LOOKS: tuple[Callable[[], Iterator[Check]], ...] = (
    _host, _packages, _cache, _builds, _compiler, _memory, _temporary,
)
