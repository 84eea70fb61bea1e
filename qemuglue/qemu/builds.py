"""QEMU builds on this machine: managed ones in the user's cache, and any by path.

A *managed* build is one folder ("root") with the qemu-system binaries of a Debian suite and all
they need, their own libc and loader included, so builds newer or older than the host run beside
each other. :mod:`qemuglue.qemu.builds_install` makes the roots; this module finds and uses them.
A build given by path is a qemu-system binary or a developer's build tree, used as it is.

Layout of the cache folder::

    builds/NAME -> ../roots/NAME-XXXX      replaced atomically; a build is there whole or not at all
    roots/NAME-XXXX/qemuglue-build.json    what the root holds (schema 1, paths relative to it)
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemuglue.errors import BuildError, UsageError

#: What ``ci/setup`` brings and the tests run on, oldest QEMU first.
STANDARD_SUITES = ("bookworm", "bookworm-backports", "sid")

DESCRIPTION = "qemuglue-build.json"
SCHEMA = 1

#: ``--version`` answers in 30 ms; a sanitizer build on a loaded machine takes seconds.
VERSION_TIMEOUT_S = 60

# Variables of the caller's that would change what a managed QEMU loads or opens.
_FOREIGN = re.compile(r"^(LD_|QEMU_|GIO_|GTK_|PULSE_|SDL_|DISPLAY$|WAYLAND_DISPLAY$|LANG$|LC_)")

#: A version is not longer; it is what the binary says of itself.
MAX_VERSION = 100
_BINARY = re.compile(r"^qemu-system-([a-z0-9_]+)$")


@dataclass(frozen=True, slots=True)
class Build:
    """One set of qemu-system binaries.

    ``name`` is the managed name or the path it was found by; ``version`` QEMU's own ("10.0.2");
    ``package`` the text QEMU prints in brackets behind it (a package version or ``git describe``)
    or ""; ``root`` the managed root, None for a build given by path. ``binaries`` are (target,
    path) pairs in target order. The rest is None or empty where the build runs as it is.
    """

    name: str
    version: str
    root: Path | None
    binaries: tuple[tuple[str, Path], ...]
    package: str = ""
    data_dirs: tuple[Path, ...] = ()
    loader: Path | None = None
    library_dirs: tuple[Path, ...] = ()
    module_dir: Path | None = None
    digests: tuple[tuple[str, str], ...] = ()

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """``version`` as numbers, to compare: (10, 0, 2)."""
        return parse_version(self.version)

    def targets(self) -> tuple[str, ...]:
        """The targets this build has a binary for, as in ``qemu-system-TARGET``, sorted."""
        return tuple(target for target, _ in self.binaries)

    def binary(self, target: str) -> Path:
        """The qemu-system binary of ``target``.

        :raise BuildError: this build has none; the message names those it has.
        """
        for name, path in self.binaries:
            if name == target:
                return path
        have = ", ".join(self.targets())
        hint = (f"`qemuglue builds install {self.name} --targets all` brings every target"
                if self.root else "give another with --build")
        raise BuildError(f"build {self.name} has no qemu-system-{target}, only {have}; {hint}")

    def command(self, target: str) -> list[str]:
        """The start of a command line: loader and libraries, the binary, its data folders.

        :raise BuildError: this build has no such target.
        """
        binary = str(self.binary(target))
        data = [word for folder in self.data_dirs for word in ("-L", str(folder))]
        if self.loader is None:
            return [binary, *data]
        # --inhibit-cache: the host's ld.so.cache would offer the host's libraries for a
        # name that the root lacks, and a build must not depend on what the host has.
        libraries = ":".join(map(str, self.library_dirs))
        return [str(self.loader), "--inhibit-cache", "--library-path", libraries, binary, *data]

    def environment(self) -> dict[str, str]:
        """The complete environment to start it with.

        A build by path gets the caller's as it is (sanitizer options, library paths); a managed
        one gets the caller's without what would make it load or open something foreign.
        """
        if self.root is None:
            return dict(os.environ)
        kept = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}
        kept["LC_ALL"] = "C"
        kept["QEMU_AUDIO_DRV"] = "none"  # old builds open the host's sound card unless told
        if self.module_dir is not None:
            kept["QEMU_MODULE_DIR"] = str(self.module_dir)
        return kept

    def identity(self) -> dict[str, Any]:
        """What a finding records of the build: JSON types only, and no path of this machine
        for a managed build."""
        sizes = {target: path.stat().st_size for target, path in self.binaries if path.exists()}
        return {
            "name": self.name, "version": self.version, "package": self.package,
            "managed": self.root is not None, "sizes": sizes, "sha256": dict(self.digests),
        }


# Section: finding a build


def cache_folder() -> Path:
    """``$QEMUGLUE_CACHE``, else ``qemuglue`` in the XDG cache folder. Absolute; may not exist."""
    own = os.environ.get("QEMUGLUE_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rule: a relative path in the variable is to be ignored.
    base = Path(xdg) if xdg.startswith("/") else Path.home() / ".cache"
    return base.absolute() / "qemuglue"


def installed_builds() -> list[Build]:
    """The managed builds, oldest QEMU first. A root that cannot be read is left out."""
    folder = cache_folder() / "builds"
    found: list[Build] = []
    if folder.is_dir():
        for link in folder.iterdir():
            try:
                found.append(load_root(link.name, link.resolve(strict=True)))
            except (OSError, BuildError):
                continue
    return sorted(found, key=lambda build: (build.version_tuple, build.name))


def find_build(wanted: str | os.PathLike[str] | None = None) -> Build:
    """The build of a managed name, of a path to a binary or build tree, or the default one.

    The default is ``$QEMUGLUE_BUILD``, else the newest managed build, else the qemu-system
    binaries on PATH.

    :raise BuildError: there is no such build; the message says how to get one.
    """
    if wanted is None:
        wanted = os.environ.get("QEMUGLUE_BUILD") or None
    if wanted is None:
        managed = installed_builds()
        return managed[-1] if managed else _build_on_path()
    text = os.fspath(wanted)
    link = cache_folder() / "builds" / text
    if "/" not in text and link.is_symlink():
        try:
            return load_root(text, link.resolve(strict=True))
        except OSError as error:
            raise BuildError(f"build {text} is damaged ({error.strerror}); "
                             f"`qemuglue builds install {text} --refresh` repairs it") from None
    path = Path(text).expanduser()
    if path.is_dir():
        return _build_tree(text, path.resolve())
    if path.is_file():
        return _build_binary(text, path.resolve())
    have = ", ".join(build.name for build in installed_builds()) or "none"
    raise BuildError(
        f"no build {text!r} (installed: {have}): `qemuglue builds install {text}` brings a "
        "Debian suite of that name, `--build PATH` takes a qemu-system binary or a build tree"
        if "/" not in text else
        f"no qemu-system binary and no build tree at {text}: check the path, or "
        f"name an installed build ({have})")


def load_root(name: str, root: Path) -> Build:
    """The managed build that ``root`` describes.

    :raise BuildError: it has no readable description of schema 1.
    """
    try:
        known = json.loads((root / DESCRIPTION).read_text())
        if known["schema"] != SCHEMA:
            raise BuildError(f"build {name} is of schema {known['schema']}, not {SCHEMA}; "
                             f"`qemuglue builds install {name} --refresh` brings it anew")
        module_dir = known["module_dir"]
        return Build(
            name=name, version=known["version"], root=root, package=known["package"],
            binaries=tuple((t, root / b["path"]) for t, b in sorted(known["binaries"].items())),
            digests=tuple((t, b["sha256"]) for t, b in sorted(known["binaries"].items())),
            data_dirs=tuple(root / d for d in known["data_dirs"]),
            loader=root / known["loader"],
            library_dirs=tuple(root / d for d in known["library_dirs"]),
            module_dir=root / module_dir if module_dir else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"build {name} is damaged ({error}); "
                         f"`qemuglue builds install {name} --refresh` repairs it") from None


def _build_on_path() -> Build:
    folders = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    found: dict[str, Path] = {}
    for folder in folders:
        for target, path in binaries_in(folder).items():
            found.setdefault(target, path)
    if not found:
        raise BuildError("no QEMU here: `qemuglue builds install bookworm` brings one without "
                         "root, `--build PATH` takes a qemu-system binary or a build tree")
    # One build is one version: take those beside the first one found.
    folder = next(iter(found.values())).parent
    return _from_binaries("PATH", {t: p for t, p in found.items() if p.parent == folder})


def _build_tree(text: str, folder: Path) -> Build:
    if (folder / DESCRIPTION).is_file():
        return load_root(text, folder)
    for place in (folder, folder / "build", folder / "bin", folder / "usr" / "bin"):
        found = binaries_in(place)
        if found:
            return _from_binaries(text, found)
    raise BuildError(f"no qemu-system binary in {text}: give a build tree (its folder `build`), "
                     "an install prefix or the binary itself")


def _build_binary(text: str, path: Path) -> Build:
    if not os.access(path, os.X_OK):
        raise BuildError(f"{text} is not executable: give a qemu-system binary or a build tree")
    # Ask under the name it was given by: the resolved name may be another (alias links).
    match = _BINARY.match(Path(text).name) or _BINARY.match(path.name)
    target = match[1] if match else _ask_target(path)
    return _from_binaries(text, {target: path})


def _from_binaries(name: str, binaries: dict[str, Path]) -> Build:
    ordered = tuple(sorted(binaries.items()))
    first = ordered[0][1]
    # A developer's tree keeps its firmware beside the binaries; older ones do not look there.
    bios = first.parent / "pc-bios"
    version, package = ask_version((str(first),), first.stat().st_mtime_ns)
    return Build(name=name, version=version, package=package, root=None, binaries=ordered,
                 data_dirs=(bios,) if bios.is_dir() else ())


def binaries_in(folder: Path) -> dict[str, Path]:
    """Target -> binary for the qemu-system binaries in ``folder``, sorted by target.

    Links to another target of the same folder are aliases (Debian's ``amd64``, ``armhf``) and
    left out, as is ``x86_64-microvm``, a cut-down second copy of x86_64.
    """
    found: dict[str, Path] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return found
    for path in entries:
        match = _BINARY.match(path.name)
        if not match or not path.is_file() or not os.access(path, os.X_OK):
            continue
        real = path.resolve()
        if real.name != path.name and real.parent == folder.resolve() and _BINARY.match(real.name):
            continue
        found[match[1]] = path
    return found


# Section: asking a binary


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers of "10.0.2"; (0,) if there are none."""
    return tuple(int(n) for n in re.findall(r"[0-9]{1,9}", text[:MAX_VERSION])) or (0,)


@functools.lru_cache(maxsize=64)
def ask_version(command: tuple[str, ...], changed: int = 0) -> tuple[str, str]:
    """(version, package text) that ``command --version`` prints; ``changed`` only keys the cache.

    :raise BuildError: it does not start, is no QEMU, or does not answer in time.
    """
    shown = command[-1] if len(command) == 1 else next(
        (c for c in command if "qemu-system" in c), command[0])
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, errors="replace",
            timeout=VERSION_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise BuildError(f"{shown} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(
            f"{shown} --version did not answer within {VERSION_TIMEOUT_S} s") from None
    match = re.search(r"^QEMU emulator version (\d[\d.]*)(?: \((.*)\))?", done.stdout, re.MULTILINE)
    if not match:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BuildError(f"{shown} is no qemu-system binary that runs here: "
                         f"--version said {said[0] if said else 'nothing'!r}")
    return match[1].rstrip("."), match[2] or ""


def _ask_target(binary: Path) -> str:
    """The target of a binary whose name does not tell (QMP ``query-target``)."""
    ask_version((str(binary),), binary.stat().st_mtime_ns)
    lines = ('{"execute":"qmp_capabilities"}', '{"execute":"query-target"}', '{"execute":"quit"}')
    try:
        done = subprocess.run(
            [str(binary), "-M", "none", "-display", "none", "-S", "-nodefaults", "-qmp", "stdio"],
            input="\n".join(lines), capture_output=True, text=True, errors="replace",
            timeout=VERSION_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{binary} does not say its target: {error}") from None
    match = re.search(r'"arch": *"(\w+)"', done.stdout)
    if not match:
        raise BuildError(f"{binary} does not say its target; name it qemu-system-TARGET")
    return match[1]


def parse_build_names(names: Iterable[str]) -> list[str]:
    """Names for managed builds (Debian suites), checked, without repeats, in order.

    :raise UsageError: one could not be a suite's name.
    """
    checked = list(dict.fromkeys(names))
    for name in checked:
        if not re.fullmatch(r"[a-z][a-z0-9.-]{1,40}", name):
            raise UsageError(f"{name!r} is no name of a Debian suite; "
                             f"try {', '.join(STANDARD_SUITES)}")
    return checked


def has_apt() -> bool:
    """Whether this host could install managed builds."""
    return all(shutil.which(tool) for tool in ("apt-get", "apt-config", "dpkg-deb"))
