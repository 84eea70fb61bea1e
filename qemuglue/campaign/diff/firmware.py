"""Whether a ROM's new size is that of another firmware file in the build's package.

QEMU makes a ROM as large as the file it loads: a PCI option ROM is rounded up to a power of two
(``pci_add_option_rom``), a machine's firmware to pages. The files come with the distribution's
packages, not with the machine type.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from qemuglue.qemu.builds import Build

#: Larger files are no firmware that is mapped as a whole; flash images are 64 MiB.
MAX_FILE = 64 << 20
#: What sizes are rounded up to, besides a power of two: nothing, a page, 64 KiB.
_STEPS = (1, 4 << 10, 64 << 10)


def firmware_behind(before: Build, after: Build, sizes: tuple[int, int]) -> str:
    """The file whose sizes in the two builds give these sizes of a ROM, in words; "" if none."""
    old, new = (_files(build.data_dirs) for build in (before, after))
    for name in sorted(old.keys() & new.keys()):
        here, there = old[name], new[name]
        if here != there and sizes[0] in _rounded(here) and sizes[1] in _rounded(there):
            return f"{name} of the build's package: {here} -> {there} bytes"
    return ""


@lru_cache(maxsize=16)
def _files(folders: tuple[Path, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for folder in folders:
        try:
            files = [path for path in folder.iterdir() if path.is_file()]
            for path in files:
                size = path.stat().st_size
                if 0 < size <= MAX_FILE:
                    found.setdefault(path.name, size)
        except OSError:
            continue
    return found


def _rounded(size: int) -> set[int]:
    return {1 << (size - 1).bit_length(), *(-(-size // step) * step for step in _STEPS)}
