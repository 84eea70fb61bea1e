"""Generated images: what a board wants to be given before it starts, made when it does.

A word of QEMU's command line may hold ``qemuglue-image:NAME``. When the process is started that
part becomes the path of a file made for it, so that command lines, programs and findings name an
image by what it is and mean the same on every host. Nothing is kept: a file is a memfd that only
the process has open, a folder is gone once QEMU has started.

=================  =========================================================================
``blank-SIZE``     zeros; SIZE as ``-m`` takes it (``16K``, ``32M``), up to MAX_BLANK
``elf-ppc``        a loadable ELF, 32 bits, big-endian, PowerPC, that halts an embedded CPU
``folder-niagara`` the six images that ``-M niagara`` looks for by name (``niagara_init``)
``halt-x86-SIZE``  firmware of a PC that halts with every interrupt off (``qemu/parked.py``)
=================  =========================================================================

A guest finds nothing to run in them, or a halt loop. They are for machines that stand still
(``-S``) or are parked.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qemuglue.errors import EnvironmentFailure, UsageError
from qemuglue.qemu.config import parse_size

#: Before the name of an image, in a word of a command line.
PREFIX: Final = "qemuglue-image:"

#: The largest flash chip of a board that wants an image is 32 MiB; blanks take no memory.
MAX_BLANK: Final = 256 << 20

_WORD = re.compile(re.escape(PREFIX) + r"([A-Za-z0-9-]*)")

#: File names and sizes. niagara maps each at a place of its own (``NIAGARA_*_BASE``), wide apart.
_FOLDERS: Final[dict[str, tuple[tuple[str, int], ...]]] = {
    "folder-niagara": tuple((name, 8 << 10) for name in (
        "nvram1", "1up-md.bin", "1up-hv.bin", "reset.bin", "q.bin", "openboot.bin",
    )),
}

#: What embedded PowerPC CPUs halt by: MSR[WE], which those of Freescale heed only where HID0 says
#: how to sleep. External interrupts are off; should anything wake it, it halts again.
_HALT_PPC: Final = struct.pack(
    ">8I",
    0x3C80_0004,  # lis r4, WE >> 16
    0x7C80_0124,  # mtmsr r4
    0x3C60_0080,  # lis r3, DOZE >> 16
    0x7C70_FBA6,  # mtspr HID0, r3
    0x7C80_0124,  # mtmsr r4
    0x4BFF_FFFC,  # b, one back
    0, 0,
)

#: (``e_machine``, whether big-endian, code) of the ELF files there are.
_ELFS: Final = {"elf-ppc": (20, True, _HALT_PPC)}

#: A PC takes firmware in steps of 64 KiB.
_HALT = re.compile("halt-x86-(64|128|256)K")

_ELF_HEADER_SIZE = 52
_PROGRAM_HEADER_SIZE = 32
#: Where the one segment goes: main memory of every board asked, clear of its first pages.
_ELF_ADDRESS = 0x10000


def tiny_elf(machine: int, big_endian: bool, code: bytes = bytes(16)) -> bytes:
    """A 32-bit executable ELF with one loadable segment, ``code``, at its entry.

    ``machine`` is ``e_machine`` of the ELF header, which QEMU compares with the board's
    (``load_elf``).
    """
    order = ">" if big_endian else "<"
    data_at = _ELF_HEADER_SIZE + _PROGRAM_HEADER_SIZE
    ident = b"\x7fELF" + bytes((1, 2 if big_endian else 1, 1)) + bytes(9)
    header = struct.pack(
        order + "HHIIIIIHHHHHH", 2, machine, 1, _ELF_ADDRESS, _ELF_HEADER_SIZE, 0, 0,
        _ELF_HEADER_SIZE, _PROGRAM_HEADER_SIZE, 1, 40, 0, 0,
    )
    segment = struct.pack(
        order + "IIIIIIII", 1, data_at, _ELF_ADDRESS, _ELF_ADDRESS, len(code), len(code), 7, 4
    )
    return ident + header + segment + code


def halt_x86(size: int) -> bytes:
    """Firmware of ``size`` bytes, which ends at 4 GiB, for a CPU in real mode at its reset
    vector (the last 16 bytes): every interrupt off, then HLT."""
    code = bytes.fromhex(
        "fa"            # cli
        "66b9800000c0"  # mov ecx, EFER
        "0f32"          # rdmsr
        "80cc10"        # or ah, SVME >> 8
        "0f30"          # wrmsr
        "0f20c0 0c01 0f22c0"  # cr0 |= PE, which CLGI wants; no segment is loaded
        "0f01dd"        # clgi
        "f4 ebfd"       # hlt; again, should anything wake it
    )
    room = 0x100
    assert len(code) <= room - 16 and size >= room
    jump = b"\xe9" + (-(room - 16) - 3).to_bytes(2, "little", signed=True)
    return bytes(size - room) + code.ljust(room - 16, b"\0") + jump.ljust(16, b"\0")


def bring(words: Sequence[str], keep: contextlib.ExitStack) -> tuple[list[str], list[int]]:
    """``words`` with every image made, and the descriptors that QEMU has to inherit.

    ``keep`` holds what must exist until QEMU has started, no longer: a board reads its images
    while it is made.

    :raise UsageError: there is no image of such a name.
    :raise EnvironmentFailure: this host cannot make it.
    """
    inherited: list[int] = []

    def made(match: re.Match[str]) -> str:
        try:
            return _make(match[1], keep, inherited)
        except OSError as error:
            raise EnvironmentFailure(
                f"image {match[1]!r} cannot be made: {error.strerror}; free some memory or space"
            ) from error

    return [_WORD.sub(made, word) for word in words], inherited


def _make(name: str, keep: contextlib.ExitStack, inherited: list[int]) -> str:
    if name in _FOLDERS:
        folder = Path(keep.enter_context(tempfile.TemporaryDirectory(prefix="qemuglue-")))
        for file, size in _FOLDERS[name]:
            (folder / file).touch()
            os.truncate(folder / file, size)
        return str(folder)
    content = _content(name)
    size = len(content) or _blank_size(name)
    fd = os.memfd_create(f"qemuglue-{name}", os.MFD_CLOEXEC)
    keep.callback(os.close, fd)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    inherited.append(fd)
    # QEMU's own name for its descriptor: it opens the file anew, to read or to write.
    return f"/proc/self/fd/{fd}"


def _content(name: str) -> bytes:
    """What is in the image; nothing is in a blank one."""
    if name in _ELFS:
        return tiny_elf(*_ELFS[name])
    found = _HALT.fullmatch(name)
    return halt_x86(int(found[1]) << 10) if found else b""


def _blank_size(name: str) -> int:
    kind, _, text = name.partition("-")
    size = parse_size(text) if kind == "blank" and text else 0
    if not 0 < size <= MAX_BLANK:
        there = ", ".join((*_ELFS, *_FOLDERS, "halt-x86-256K"))
        raise UsageError(f"no image {PREFIX}{name}: there are {there} and blank-SIZE, "
                         f"up to blank-{MAX_BLANK >> 20}M")
    return size
