"""Copies of the tree. The work tree itself is only read, and only once."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from mutation.listing import Mutant, change, path_of, source_of

#: What the tests need of the tree.
PARTS = ("qemuglue", "tests", "pyproject.toml", "README.md", "CHANGELOG.md")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.pyc")


def snapshot(folder: Path, commit: str | None) -> Path:
    """The tree as it stands, or as it was at ``commit``, below ``folder``."""
    kept = folder / "snapshot"
    if commit is not None:
        packed = subprocess.run(["git", "archive", commit], stdout=subprocess.PIPE, check=True,
                                timeout=120)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(kept, filter="data")
        return kept
    for part in PARTS:
        source, target = Path(part), kept / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=_LEFT_OUT)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return kept


def copy_with(mutant: Mutant, kept: Path, target: Path) -> None:
    """A copy of ``kept``, with its compiled files, in which ``mutant`` is made."""
    shutil.copytree(kept, target)
    module = target / path_of(mutant.module)
    for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc"):
        compiled.unlink()
    module.write_text(change(mutant, source_of(kept, mutant.module)).source, encoding="utf-8")
