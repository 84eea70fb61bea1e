"""Generated images, and the ways to start that use them."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from qemuglue.errors import LaunchError, UsageError
from qemuglue.qemu.builds import Build
from qemuglue.qemu.config import QemuConfig
from qemuglue.qemu.images import MAX_BLANK, bring, tiny_elf
from qemuglue.qemu.quirks import prints_owners
from qemuglue.qemu.ways import WAYS, start, ways_for

BUILD = Build("fake", "7.2.22", None, (("arm", Path("/bin/true")),))


def config(**more: object) -> QemuConfig:
    return QemuConfig(build=BUILD, target="arm", machine="virt", **more)  # type: ignore[arg-type]


def test_a_blank_is_zeros_of_its_size_and_goes_away() -> None:
    with contextlib.ExitStack() as keep:
        words, [fd] = bring(["-drive", "file=qemuglue-image:blank-16K,format=raw", "-S"], keep)
        assert words == ["-drive", f"file=/proc/self/fd/{fd},format=raw", "-S"]
        assert Path(f"/proc/self/fd/{fd}").read_bytes() == bytes(16 << 10)
        assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_words_without_images_stay_as_they_are() -> None:
    with contextlib.ExitStack() as keep:
        assert bring(["-bios", "image:blank-1M"], keep) == (["-bios", "image:blank-1M"], [])


def test_a_folder_holds_what_the_board_looks_for() -> None:
    with contextlib.ExitStack() as keep:
        words, inherited = bring(["-L", "qemuglue-image:folder-niagara"], keep)
        folder = Path(words[1])
        assert len(list(folder.iterdir())) == 6 and not inherited
        assert (folder / "openboot.bin").read_bytes() == bytes(8 << 10)
    assert not folder.exists()


@pytest.mark.parametrize("name", [
    "", "blank", "blank-", "blank-0", "blank-9x", "blank-257M", "blank-1G", "elf-vax", "folder-x",
    "blank-99999999999999999999G",
])
def test_no_such_image(name: str) -> None:
    with contextlib.ExitStack() as keep, pytest.raises(UsageError) as told:
        bring([f"qemuglue-image:{name}"], keep)
    assert "\n" not in str(told.value)


def test_the_largest_blank() -> None:
    with contextlib.ExitStack() as keep:
        _, [fd] = bring(["qemuglue-image:blank-256M"], keep)
        assert os.fstat(fd).st_size == MAX_BLANK
        assert os.fstat(fd).st_blocks == 0


@pytest.mark.parametrize("big", [True, False])
def test_a_tiny_elf_is_one(big: bool) -> None:
    elf = ELFFile(io.BytesIO(tiny_elf(20, big)))
    assert elf["e_machine"] == "EM_PPC" and elf.little_endian is not big
    assert elf.elfclass == 32 and elf["e_type"] == "ET_EXEC"
    [segment] = elf.iter_segments()
    assert segment["p_type"] == "PT_LOAD" and segment["p_vaddr"] == elf["e_entry"]
    assert segment.data() == bytes(16)


def refusal(reason: str) -> LaunchError:
    return LaunchError(f"QEMU did not start arm/virt: qemu-system-arm: {reason}")


@pytest.mark.parametrize(("reason", "told"), [
    ("Kernel or Flash image must be specified", ["a blank 4 KiB -kernel"]),
    ("Kernel image must be specified", ["a blank 4 KiB -kernel"]),
    ("Please provide either a -kernel or -bios argument", ["a blank 16 KiB -bios"]),
    ("A flash image must be given with the 'pflash' parameter",
     ["a blank 16 MiB flash chip", "a blank 32 MiB flash chip"]),
    ("Parameter 'driver' is missing", []),
])
def test_a_way_answers_a_reason(reason: str, told: list[str]) -> None:
    assert [way.told for way in ways_for(refusal(reason))] == told


def test_ways_are_tried_in_turn_and_the_first_reason_counts() -> None:
    tried: list[tuple[str, ...]] = []
    flash = "A flash image must be given with the 'pflash' parameter"

    def attempt(now: QemuConfig) -> str:
        tried.append(now.args)
        if "blank-32M" in str(now.args):
            return "up"
        raise refusal("device requires 33554432 bytes" if now.args else flash)

    result, found, told = start(config(), attempt)
    assert (result, told) == ("up", "a blank 32 MiB flash chip") and found.args == tried[2]
    assert len(tried) == 3 and not tried[0]

    def never(now: QemuConfig) -> str:
        raise refusal("something else" if now.args else flash)

    with pytest.raises(LaunchError, match="flash image must be given"):
        start(config(), never)


def test_every_image_of_a_way_can_be_made() -> None:
    with contextlib.ExitStack() as keep:
        for way in WAYS:
            bring(way.words, keep)


def test_owners_are_asked_unless_they_have_no_end() -> None:
    assert prints_owners(config()) and not prints_owners(config(owners=False))
    for version, told in (("7.2.22", False), ("10.0.2", False), ("11.1.3", True)):
        build = Build("fake", version, None, (("mips64", Path("/bin/true")),))
        board = QemuConfig(build=build, target="mips64", machine="magnum")
        assert prints_owners(board) is told
