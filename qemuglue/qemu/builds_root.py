"""What an unpacked root of packages holds: its programs, loader, libraries, firmware.

Found by looking and by really running each program from the root, so that a root is described
only if it works. Nothing here downloads, unpacks or names a build.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from qemuglue.errors import BuildError
from qemuglue.qemu.builds import SCHEMA, Build, ask_version, binaries_in

#: Where packages keep firmware that QEMU looks up by name (its configured firmware path, which
#: is absolute and so would name the host's), in that order; missing ones are left out.
DATA_DIRS = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu", "usr/share/openbios",
             "usr/share/vgabios", "usr/share/slof")

#: The loader lists a program's libraries in milliseconds; a loaded machine may take seconds.
LIST_TIMEOUT_S = 120


def describe(root: Path) -> dict[str, Any]:
    """What ``root`` holds, found by looking and by running each binary from it.

    :raise BuildError: no binary, or one that needs something from outside the root.
    """
    binaries = _programs(root)
    if not binaries:
        raise BuildError("its packages hold no qemu-system binary")
    loader = _loader(root, interpreter(next(iter(binaries.values()))))
    # Before /lib became a link into /usr, packages put libraries in both; a link counts once.
    triplet = next((p.parent.name for p in sorted(root.glob("usr/lib/*/libglib-2.0.so.0"))), "")
    folders = list({f.resolve(): f for f in (root / "lib" / triplet, root / "usr/lib" / triplet)
                    if triplet and f.is_dir()})
    if not folders:
        raise BuildError("its packages hold no libraries of QEMU's")
    for path in binaries.values():
        folders = _library_folders(root, loader, folders, path)
    data = [root / d for d in DATA_DIRS if (root / d).is_dir()]
    modules = root / "usr/lib" / triplet / "qemu"
    entries: dict[str, dict[str, Any]] = {}
    build = Build(
        name=root.name, version="", root=root, binaries=tuple(binaries.items()), loader=loader,
        library_dirs=tuple(folders), data_dirs=tuple(data),
        module_dir=modules if modules.is_dir() else None)
    version = package = ""
    for target, path in binaries.items():
        version, package = ask_version(tuple(build.command(target)))
        entries[target] = {
            "path": str(path.relative_to(root)), "size": path.stat().st_size,
            "sha256": _sha256(path),
        }
    return {
        "schema": SCHEMA, "version": version, "package": package, "binaries": entries,
        "loader": str(loader.relative_to(root)),
        "library_dirs": [str(f.relative_to(root)) for f in folders],
        "data_dirs": [str(d.relative_to(root)) for d in data],
        "module_dir": str(modules.relative_to(root)) if modules.is_dir() else None,
    }


def _programs(root: Path) -> dict[str, Path]:
    """Target -> program. A shell wrapper (7.2's i386 is one, for xen) would start the host's
    program of that name, so the program it stands for is taken, or none."""
    found: dict[str, Path] = {}
    for target, path in binaries_in(root / "usr/bin").items():
        for program in (path, root / "usr/libexec" / path.name):
            if program.is_file() and _first_bytes(program, 4) == b"\x7fELF":
                found[target] = program
                break
    return found


def interpreter(binary: Path) -> str:
    """The loader an ELF program asks for (PT_INTERP), such as ``/lib64/ld-linux-x86-64.so.2``.

    :raise BuildError: not an ELF program, or a static one.
    """
    try:
        with binary.open("rb") as stream:
            for segment in ELFFile(stream).iter_segments():
                if isinstance(segment, InterpSegment):
                    return str(segment.get_interp_name())
    except (OSError, ELFError) as error:
        raise BuildError(f"{binary.name} is no ELF program: {error}") from None
    raise BuildError(f"{binary.name} names no loader")


def resolve_inside(root: Path, path: str) -> Path:
    """The file that ``path`` means where ``root`` is ``/``: links, absolute ones too, stay inside.

    :raise BuildError: it is not there, or its links never end.
    """
    parts = [p for p in Path(path).parts if p != "/"][::-1]
    where = root
    for _ in range(64):  # the kernel follows 40 links; a path here has 3
        if not parts:
            if not where.exists():
                break
            return where
        part = parts.pop()
        if part == "..":
            where = where.parent if where != root else root
            continue
        step = where / part
        if step.is_symlink():
            target = str(step.readlink())
            if target.startswith("/"):
                where = root
            parts += [p for p in Path(target).parts if p != "/"][::-1]
        else:
            where = step
    raise BuildError(f"{path} is not in the unpacked packages")


def _loader(root: Path, wanted: str) -> Path:
    """The loader ``wanted`` inside the root; without its links into /usr, also beneath that."""
    try:
        return resolve_inside(root, wanted)
    except BuildError:
        return resolve_inside(root, f"/usr{wanted}")


def _library_folders(root: Path, loader: Path, folders: list[Path], binary: Path) -> list[Path]:
    """``folders`` plus those that ``binary``'s libraries need (private ones have their own)."""
    for _ in range(8):  # each round adds a folder; two is the most seen
        done = subprocess.run(
            [str(loader), "--inhibit-cache", "--library-path", ":".join(map(str, folders)),
             "--list", str(binary)],
            capture_output=True, text=True, errors="replace", timeout=LIST_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if not k.startswith("LD_")})
        foreign = [
            (name, place) for name, place in
            re.findall(r"^\s*(\S+) => (not found|/\S+)", done.stdout, re.MULTILINE)
            if place == "not found" or not Path(place).is_relative_to(root)
        ]
        if done.returncode == 0 and not foreign:
            return folders
        # A library that --list cannot even start on is named on stderr only.
        foreign += [(n, "not found") for n in re.findall(r"libraries: (\S+):", done.stderr)]
        found = [p.parent for name, _ in foreign for p in sorted(root.rglob(Path(name).name))]
        added = [f for f in dict.fromkeys(found) if f not in folders]
        if not added:
            what = foreign[0][0] if foreign else f"something: {done.stderr.strip()}"
            raise BuildError(f"{binary.name} needs {what}, which its packages lack")
        folders = [*folders, *added]
    raise BuildError(f"{binary.name}: its libraries cannot be told")


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(count)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
