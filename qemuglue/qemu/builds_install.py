"""Bring QEMU builds into the user's cache, without root, beside each other.

The packages of a suite and all they depend on (libc too) are downloaded by a private apt and
unpacked into one new root, which is pruned, checked by really running each binary from it, and
only then given its name by replacing one symbolic link. So an interrupted install leaves nothing
half-done: what it left behind has no name, and the next install removes it. A root that lost its
name (its build was refreshed) also stays until the next install, because a QEMU may be running
from it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qemuglue.errors import BuildError, UsageError
from qemuglue.qemu.builds import (
    DESCRIPTION,
    Build,
    cache_folder,
    find_build,
    load_root,
    parse_build_names,
)
from qemuglue.qemu.builds_apt import PrivateApt, apt_paths, candidates, host_codename, host_sources
from qemuglue.qemu.builds_root import describe

DEFAULT_TARGETS = ("x86", "arm")

#: Another install may hold the lock this long before we give up; a slow one takes minutes.
LOCK_TIMEOUT_S = 1800

#: Unpacking one package; all of a suite take seconds.
STEP_TIMEOUT_S = 300

#: What a root does not need, to keep it small (a third of the unpacked size).
PRUNED = (
    "etc", "var", "usr/sbin", "usr/include", "usr/games", "usr/lib/systemd",
    "usr/lib/udev", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/icons",
    "usr/share/info", "usr/share/lintian", "usr/share/bug", "usr/share/applications",
    "usr/share/bash-completion", "usr/share/zsh", "usr/share/mime", "usr/share/systemd",
    "usr/share/perl5", "usr/share/polkit-1", "usr/share/dbus-1", "usr/share/gtk-doc",
)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Installed:
    """What became of one suite: ``build``, or ``reason`` why it could not be had.

    ``fresh`` is true where this install brought it, false where it was there already.
    """

    suite: str
    build: Build | None
    reason: str = ""
    fresh: bool = False


def install(
    suites: Sequence[str], targets: Sequence[str] = DEFAULT_TARGETS, *,
    progress: Progress = lambda line: None, refresh: bool = False,
) -> list[Installed]:
    """Bring each suite with the given target groups; one result a suite, in order.

    ``targets`` are Debian's groups (``x86``, ``arm``, ``mips``, …; package ``qemu-system-GROUP``)
    or ``all``. Groups already installed are kept. ``refresh`` brings a suite anew even where it
    is complete. ``progress`` gets one line a step.

    :raise UsageError: a name that could not be a suite or a group.
    :raise BuildError: this host cannot install at all, or another install never ended.
    """
    names = parse_build_names(suites)
    groups = list(dict.fromkeys(targets)) or list(DEFAULT_TARGETS)
    for group in groups:
        if not re.fullmatch(r"[a-z0-9]{2,20}", group):
            raise UsageError(f"{group!r} is no target group; try x86, arm or all")
    if not refresh:
        present = [_complete(name, groups) for name in names]
        if all(present):
            return [Installed(name, build) for name, build in zip(names, present, strict=True)]
    apt_paths()  # no apt: say so before a lock or a folder is made
    cache = cache_folder()
    try:
        (cache / "builds").mkdir(parents=True, exist_ok=True)
        (cache / "roots").mkdir(exist_ok=True)
    except OSError as error:
        raise BuildError(f"the cache folder {cache} cannot be made ({error.strerror}); "
                         "set QEMUGLUE_CACHE to one that can") from None
    with _lock(cache, progress):
        _sweep(cache)
        with tempfile.TemporaryDirectory(prefix=".tmp-apt-", dir=cache / "roots",
                                         ignore_cleanup_errors=True) as folder:
            apt = PrivateApt(Path(folder))
            return [_install_one(apt, name, groups, progress, refresh) for name in names]


def _install_one(
    apt: PrivateApt, suite: str, groups: list[str], progress: Progress, refresh: bool,
) -> Installed:
    present = None if refresh else _complete(suite, groups)
    if present:  # another install brought it while this one waited for the lock
        return Installed(suite, present)
    wanted = list(dict.fromkeys([*_groups_of(suite), *groups]))
    packages = ["qemu-system"] if "all" in wanted else [f"qemu-system-{g}" for g in wanted]
    started = time.monotonic()
    try:
        archives = _download(apt, suite, packages, progress)
        build = _make_root(suite, "all" if "all" in wanted else wanted, archives, progress)
    except (BuildError, OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split())
        progress(f"{suite}: cannot be had: {reason}")
        return Installed(suite, None, reason)
    progress(f"{suite}: QEMU {build.version} installed, {', '.join(build.targets())} "
             f"({time.monotonic() - started:.0f} s)")
    return Installed(suite, build, fresh=True)


def _complete(suite: str, groups: Sequence[str]) -> Build | None:
    """The installed build of ``suite`` if it has all ``groups``."""
    have = _groups_of(suite)
    if not have or ("all" not in have and not set(groups) <= set(have)):
        return None
    try:
        return find_build(suite)
    except BuildError:
        return None


def _groups_of(suite: str) -> list[str]:
    try:
        text = (cache_folder() / "builds" / suite / DESCRIPTION).read_text()
        return [str(group) for group in json.loads(text)["groups"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# Section: downloading


def _download(
    apt: PrivateApt, suite: str, packages: list[str], progress: Progress,
) -> list[Path]:
    sources = candidates(suite, host_sources(), host_codename())
    if not sources:
        raise BuildError("apt's configuration on this host names no archive of its own release "
                         "to take a suite from")
    first: BuildError | None = None
    for source in sources:
        progress(f"{suite}: reading the package index")
        try:
            apt.use(source, suite)
        except BuildError as error:
            first = first or error
            continue
        _check_names(apt, packages)
        progress(f"{suite}: downloading {' '.join(packages)}")
        return apt.fetch(suite, packages)
    assert first is not None
    raise first


def _check_names(apt: PrivateApt, packages: list[str]) -> None:
    known = apt.names("^qemu-system(-[a-z0-9]+)?$")
    missing = [package for package in packages if package not in known]
    if missing:
        groups = [n.removeprefix("qemu-system-") for n in known if n.startswith("qemu-system-")]
        groups = [g for g in groups if g not in ("common", "data", "gui", "xen")]
        raise BuildError(f"no package {missing[0]} in it; its target groups are "
                         f"{', '.join([*groups, 'all']) if known else 'none'}")


# Section: making a root


def _make_root(
    suite: str, groups: str | list[str], archives: list[Path], progress: Progress,
) -> Build:
    cache = cache_folder()
    root = Path(tempfile.mkdtemp(prefix=f".tmp-{suite}-", dir=cache / "roots"))
    try:
        root.chmod(0o755)
        progress(f"{suite}: unpacking {len(archives)} packages")
        _unpack(archives, root)
        _prune(root)
        progress(f"{suite}: checking")
        known = describe(root)
        known["groups"] = [groups] if isinstance(groups, str) else groups
        known["suite"] = suite
        known["packages"] = [archive.stem for archive in archives]
        (root / DESCRIPTION).write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        final = root.with_name(root.name.removeprefix(".tmp-"))
        root.rename(final)
        root = final
        link = cache / "roots" / f".tmp-link-{final.name}"
        link.symlink_to(Path("..") / "roots" / final.name)
        link.replace(cache / "builds" / suite)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
    return load_root(suite, final)


def _unpack(archives: list[Path], root: Path) -> None:
    for archive in archives:
        done = subprocess.run(
            ["dpkg-deb", "-x", str(archive), str(root)], capture_output=True, text=True,
            errors="replace", stdin=subprocess.DEVNULL, timeout=STEP_TIMEOUT_S)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise BuildError(f"{archive.name} cannot be unpacked: {said[-1] if said else '?'}")
        archive.unlink()


def _prune(root: Path) -> None:
    for name in PRUNED:
        shutil.rmtree(root / name, ignore_errors=True)
    programs = [*(root / "usr/bin").glob("*"), *(root / "usr/libexec").glob("*")]
    for path in programs:
        if not path.name.startswith("qemu-system-"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


# Section: one install at a time


@contextlib.contextmanager
def _lock(cache: Path, progress: Progress) -> Iterator[None]:
    """Hold the cache's install lock; the kernel frees it however the holder ends."""
    with (cache / "install.lock").open("a") as stream:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        told = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BuildError(f"another install has held {stream.name} for "
                                     f"{LOCK_TIMEOUT_S} s; end it and try again") from None
                if not told:
                    progress("waiting for another install to end")
                told = True
                time.sleep(0.2)
        yield


def _sweep(cache: Path) -> None:
    """Remove what interrupted installs left and roots that no build names any more."""
    named = {link.resolve() for link in (cache / "builds").iterdir() if link.is_symlink()}
    for path in (cache / "roots").iterdir():
        if path.is_symlink():
            path.unlink()
        elif path.resolve() not in named:
            shutil.rmtree(path, ignore_errors=True)
