"""Compile the plugin on first use, and write the value of QEMU's ``-plugin`` option.

The object lands in the cache folder under a name made of everything it depends on (source,
compiler, flags), by an atomic rename: runs side by side may compile twice, but none ever loads
half a file. One object serves every QEMU from 7.2 on, but for 11.0: see :data:`API_6_FLAG`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from qemuglue.errors import EnvironmentFailure, UsageError
from qemuglue.qemu.builds import cache_folder, parse_version

__all__ = [
    "API_6_FLAG", "DEFAULT_LIMIT", "FLAGS", "LOG_ITEM", "library", "plugin_argument", "source",
]

#: What ``-d`` must name for the plugin's lines to be written at all.
LOG_ITEM = "plugin"

#: Lines printed before the plugin goes quiet (it then says so with a ``qg_limit`` line): about
#: 120 MB of log. A firmware's accesses to RAM make a million lines a second (measured on two
#: cores, 115 bytes each), so without ``io`` this is one second of it.
DEFAULT_LIMIT = 1_000_000

#: Freestanding and without libc: the object must load into QEMUs that bring an older libc.
FLAGS = (
    "-shared", "-fPIC", "-O2", "-std=c11", "-Wall", "-Wextra", "-ffreestanding", "-nostdlib",
    "-fvisibility=hidden", "-fno-stack-protector",
)

#: QEMU 11.0 (plugin API 6) and 11.1 (API 7) offer the same functions, so the object cannot tell
#: them apart when it must declare a version; one for 11.0 is compiled with this.
API_6_FLAG = "-DQG_API_WITH_SET_PC=6"

#: A compile takes 0.1 s; a compiler that needs this long is stuck.
COMPILE_TIMEOUT_S = 60.0

#: In the order they are looked for.
COMPILERS = ("cc", "gcc", "clang")

#: Plugin options take the form ``name=value`` from here on; nothing older was tried.
OLDEST = (6, 2)

_U64_LAST = (1 << 64) - 1


def source() -> Path:
    """The plugin's C file, as installed beside this module."""
    return Path(__file__).with_name("access_log.c")


def library(build_version: str | None = None) -> Path:
    """The compiled plugin for a QEMU of ``build_version`` (``None``: any but 11.0).

    :raise EnvironmentFailure: there is no C compiler, it failed, or the cache cannot be written.
    :raise UsageError: the version cannot be read.
    """
    flags: tuple[str, ...] = FLAGS
    if build_version is not None and _release(build_version) == (11, 0):
        flags = (*FLAGS, API_6_FLAG)
    compiler = _compiler()
    key = _key(source().read_bytes(), compiler, flags)
    target = cache_folder() / "plugin" / f"access_log-{key}.so"
    if not target.is_file():
        _compile(compiler, flags, target)
    return target


def plugin_argument(
    build_version: str, *, io: bool = False, addresses: tuple[int, int] | None = None,
    limit: int | None = DEFAULT_LIMIT,
) -> str:
    """The value for ``-plugin`` of a QEMU of ``build_version`` (``7.2.22``, ``11.1.3``, …).

    ``io`` keeps only accesses to devices (and those whose kind QEMU cannot tell). ``addresses``
    keeps accesses that touch the range from the first to the last *virtual* address, both
    inclusive (physical ones are wrong on 7.2). ``limit`` is the number of lines printed before
    the plugin goes quiet; ``None`` for no limit.

    Give QEMU ``-d plugin -D FILE`` too (:data:`LOG_ITEM`), or the lines go nowhere.

    :raise UsageError: an option out of range, or a version that cannot be read.
    :raise EnvironmentFailure: as :func:`library`; or the QEMU is older than 6.2.
    """
    if _release(build_version) < OLDEST:
        raise EnvironmentFailure(
            f"the plugin works with QEMU 6.2 and later, not with {build_version}: use a newer build"
        )
    options = []
    if io:
        options.append("io=on")
    if addresses is not None:
        first, last = addresses
        if not 0 <= first <= last <= _U64_LAST:
            raise UsageError(f"not a range of 64-bit addresses: {first:#x} to {last:#x}")
        options.append(f"range={first:#x}-{last:#x}")
    if limit is not None:
        if not 0 < limit <= _U64_LAST:
            raise UsageError(f"the limit of plugin lines must be at least 1, not {limit}")
        options.append(f"limit={limit}")
    # In QEMU's option syntax a comma in a value is written twice.
    path = str(library(build_version)).replace(",", ",,")
    return ",".join([path, *options])


def _release(version: str) -> tuple[int, int]:
    numbers = parse_version(version)
    if len(numbers) < 2:
        raise UsageError(f"not a QEMU version: {version!r} (expected something like 10.0.2)")
    return numbers[0], numbers[1]


def _compiler() -> Path:
    for name in COMPILERS:
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise EnvironmentFailure(
        "the TCG plugin needs a C compiler and none of cc, gcc, clang is on PATH: install one "
        "(on Debian: gcc)"
    )


def _key(code: bytes, compiler: Path, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    parts = (code, str(compiler).encode(), _version_text(compiler), " ".join(flags).encode(),
             platform.machine().encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:32]


def _version_text(compiler: Path) -> bytes:
    return _run([str(compiler), "--version"]).stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentFailure(
            f"{command[0]} did not finish within {COMPILE_TIMEOUT_S:g} s"
        ) from None
    except OSError as error:
        raise EnvironmentFailure(f"{command[0]} cannot be run: {error.strerror}") from error


def _compile(compiler: Path, flags: tuple[str, ...], target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".access_log-", suffix=".so")
    except OSError as error:
        raise EnvironmentFailure(
            f"the cache folder {target.parent} cannot be written ({error.strerror}): "
            "set QEMUGLUE_CACHE to a folder that can"
        ) from error
    os.close(handle)
    unfinished = Path(name)
    try:
        done = _run([str(compiler), *flags, "-o", name, str(source())])
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            reason = next((line for line in lines if "error" in line), lines[0] if lines else "")
            raise EnvironmentFailure(
                f"{compiler} could not compile the TCG plugin (exit {done.returncode}): {reason}"
            )
        # mkstemp makes it private; a cache shared by a group stays readable like its other files.
        unfinished.chmod(0o644)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
