"""Ways to start a machine that does not start with nothing but a command line.

Some boards refuse to be made without firmware, a kernel or a flash image. Each way adds words
with a generated image (``qemu/images.py``) and is tried only where QEMU's own reason asks for
it. What is in an image does not matter: the machine stands still.

Left out: shix (7.2) reads a second file from the folder it is started in, and nitro (11.1) needs
an accelerator of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from qemuglue.errors import LaunchError
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.images import PREFIX

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Way:
    """``words`` are added to the command line where QEMU's ``reason`` is found in what it said.
    ``told`` completes "started with …"."""

    told: str
    words: tuple[str, ...]
    reason: re.Pattern[str]


def _way(told: str, option: str, image: str, *reasons: str) -> Way:
    return Way(told, (option, image), re.compile("|".join(reasons)))


def _flash(size: int) -> Way:
    return _way(f"a blank {size} MiB flash chip", "-drive",
                f"if=pflash,format=raw,file={PREFIX}blank-{size}M",
                "A flash image must be given with the 'pflash' parameter")


#: In the order tried. Every reason was seen on the boards named, QEMU 7.2 to 11.1.
WAYS: tuple[Way, ...] = (
    _way(
        "a blank 16 KiB -bios", "-bios", f"{PREFIX}blank-16K",
        "Couldn't find rom image",                      # canon-a1100
        "could not load MacROM",                        # q800
        "Please provide either a -kernel or -bios",     # boston, boston-aia
        "Could not load MIPS bios",                     # loongson3-virt
        "Unable to (load|find) the RISC-V (firmware|BIOS)",  # riscv32, microchip-icicle-kit
        "No bios or kernel specified",                  # gdbsim-r5f562n7, gdbsim-r5f562n8
        "Can't read bios image",                        # leon3_generic
        "Could not find vbootrom image",                # ast2700
        "Could not find dtb file",                      # pegasos: with firmware it needs none
    ),
    _way("a blank 4 KiB -kernel", "-kernel", f"{PREFIX}blank-4K",
         # cheetah, sx1, axis-dev88, an5206, mcf5208evb
         "[Kk]ernel( or (ROM|Flash))? image must be specified"),
    _way("a tiny PowerPC ELF as -bios", "-bios", f"{PREFIX}elf-ppc",
         "could not find firmware/kernel file"),        # mpc8544ds, ppce500
    _flash(16),                                         # connex
    _flash(32),                                         # verdex
    _way("blank firmware", "-L", f"{PREFIX}folder-niagara",
         "Unable to load a firmware for -M niagara"),
    Way("-machine cap-htm=off", ("-machine", "cap-htm=off"),       # pseries-2.8 to 2.11
        re.compile("No Transactional Memory support in TCG")),
)


def ways_for(error: LaunchError) -> Iterator[Way]:
    """The ways that may help against this reason."""
    said = f"{error}\n{error.stderr}"
    return (way for way in WAYS if way.reason.search(said))


def start(config: QemuConfig, attempt: Callable[[QemuConfig], T]) -> tuple[T, QemuConfig, str]:
    """What ``attempt`` makes of the configuration, of the one that worked, and the way that it
    took ("" where it starts as it is).

    :raise LaunchError: of ``config`` as it is, where no way helps.
    """
    try:
        return attempt(config), config, ""
    except LaunchError as error:
        for way in ways_for(error):
            changed = replace(config, args=(*config.args, *way.words))
            try:
                return attempt(changed), changed, way.told
            except LaunchError:
                continue
        raise
