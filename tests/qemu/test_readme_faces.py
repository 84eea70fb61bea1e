"""README.md's section on the memory APIs: its examples run on a real QEMU and print what is shown,
and its table of differences is what the faces do."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qemuglue.errors import ModelError
from qemuglue.memory import Le16, Le32
from qemuglue.memory.aligned import AlignedGuestAddress
from qemuglue.memory.faces import FACES
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.qemu.builds import Build
from qemuglue.witness.live import LiveMachine

pytestmark = pytest.mark.qemu

PAGE = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## The memory APIs of the field\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"^\*\*([\w-]+)\.\*\*.*?\n```py\n(.*?)^```\n\n```text\n(.*?)^```$", SECTION,
                      re.M | re.S)

HOLE, ODD, BORDER, DEVICE, ROM, RAM_END = (
    0x5000_0000, 0x1001, 0xBFFFE, 0xFED0_0000, 0xE0000, 0x400_0000)


def test_there_is_one_for_each_face() -> None:
    assert [name for name, _, _ in EXAMPLES] == list(FACES)


@pytest.mark.parametrize(("name", "source", "shown"), EXAMPLES, ids=list(FACES))
def test_an_example_prints_what_is_shown(
    build: Build, monkeypatch: pytest.MonkeyPatch, name: str, source: str, shown: str
) -> None:
    monkeypatch.setenv("QEMUGLUE_BUILD", build.name)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, f"README.md, {name}", "exec"), {"__name__": "readme"})
    assert printed.getvalue() == shown


# Section: the table


@pytest.fixture(scope="module")
def live(newest_build: Build) -> Iterator[LiveMachine]:
    with LiveMachine("x86_64/q35", build=newest_build) as machine:
        yield machine


def table() -> dict[str, dict[str, str]]:
    """Request -> face -> its cell."""
    lines = [line.strip("| ").split(" | ") for line in SECTION.splitlines()
             if line.startswith("| ")]
    start = next(n for n, cells in enumerate(lines) if cells[0] == "request")
    names = lines[start][1:]
    return {cells[0]: dict(zip(names, cells[1:], strict=True)) for cells in lines[start + 2:]}


At = GuestAddress


def _read_obj(face: str, memory: Any, addr: int, cls: Any) -> object:
    if face == "aligned":
        return memory.read_obj_unaligned(addr, cls)
    if face == "accessor":
        return memory.read_obj(addr, cls)
    with memory.memory() if face == "rust" else contextlib.nullcontext(memory) as view:
        return view.read_obj(At(addr), cls)


def _one(face: str, memory: Any, addr: int, cls: Any) -> object:
    if face == "aligned":
        return memory.read_atomic(AlignedGuestAddress.of(addr, cls))
    if face == "accessor":
        return memory.read_volatile(addr, cls)
    if face == "rust":
        return memory.load(addr, cls)
    return memory.load(At(addr), cls)


def _buffer(face: str, memory: Any, addr: int, size: int) -> object:
    if face == "accessor":
        return memory.read_buffer(addr, bytearray(size))
    with memory.memory() if face == "rust" else contextlib.nullcontext(memory) as view:
        return view.read_slice(bytearray(size), At(addr))


def _odd_object(face: str, memory: Any) -> object:
    if face == "aligned":
        return memory.read_obj(AlignedGuestAddress.of(ODD, Le32))
    return _read_obj(face, memory, ODD, Le32)


def _write_rom(face: str, memory: Any) -> object:
    if face == "aligned":
        return memory.write_obj(Le32(0), AlignedGuestAddress.of(ROM, Le32))
    if face == "accessor":
        return memory.write_obj(ROM, Le32(0))
    with memory.memory() if face == "rust" else contextlib.nullcontext(memory) as view:
        return view.write_obj(Le32(0), At(ROM))


#: Row of the table -> what it asks of a face.
REQUESTS: dict[str, Callable[[str, Any], object]] = {
    "object over the border of two regions": lambda f, m: _read_obj(f, m, BORDER, Le32),
    "one access over it": lambda f, m: _one(f, m, BORDER, Le32),
    "buffer over it": lambda f, m: _buffer(f, m, BORDER, 4),
    "buffer that runs into a hole": lambda f, m: _buffer(f, m, RAM_END - 2, 4),
    "no bytes, where nothing is": lambda f, m: _buffer(f, m, HOLE, 0),
    "object where nothing is": lambda f, m: _read_obj(f, m, HOLE, Le32),
    "object at an odd address": _odd_object,
    "one access at an odd address": lambda f, m: _one(f, m, ODD, Le32),
    "4 bytes of a device, as it takes them": lambda f, m: _one(f, m, DEVICE, Le32),
    "2 bytes of a device that takes 4": lambda f, m: _one(f, m, DEVICE, Le16),
    "write to ROM": _write_rom,
}


def test_the_table_has_every_request() -> None:
    found = table()
    assert list(found) == list(REQUESTS)
    assert all(set(row) == {*FACES, "address_space_rw"} for row in found.values())


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_row_is_what_the_faces_do(live: LiveMachine, request_: str) -> None:
    row = table()[request_]
    for face in FACES:
        said = row[face].partition(",")[0]
        if said.startswith("none"):
            continue
        try:
            REQUESTS[request_](face, live.face(face))
            done = "done"
        except ModelError as error:
            done = type(error).__name__
        assert done == said, (request_, face)
