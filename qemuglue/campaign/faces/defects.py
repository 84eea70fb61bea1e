"""Planted defects of the faces: one method of one class wrong, which ``check --face`` must find.

Beside them the defects of the model (``defects``) can be planted under the faces; those that no
face can show are named here with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from qemuglue.campaign.defects import DEFECTS
from qemuglue.campaign.planted import PLANTED
from qemuglue.errors import UsageError
from qemuglue.memory import aligned
from qemuglue.memory.accessor import GuestMemoryAccessor
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.bytes import Bytes, size_of
from qemuglue.memory.guest_memory.memory import GuestMemory
from qemuglue.memory.guest_memory.region import GuestRegion
from qemuglue.memory.memory_map.mapping import MemoryMapping
from qemuglue.memory.region_accessor import RegionAccessor
from qemuglue.memory.rules import Rules
from qemuglue.memory.rust_steps import Stepped
from qemuglue.memory.section_backing import ACCESS_SIZES, SectionBacking, SectionMemory
from qemuglue.memory.volatile import VolatileSlice


@dataclass(frozen=True, slots=True)
class FaceDefect:
    """``name`` of ``owner`` is replaced by what ``wrong`` makes of it. ``faces`` can show it."""

    summary: str
    faces: tuple[str, ...]
    owner: Any
    name: str
    wrong: Callable[[Any], Any]

    def plant(self) -> AbstractContextManager[None]:
        """The defect is there inside a ``with``, in this process."""
        return _replaced(self.owner, self.name, self.wrong)


@contextmanager
def _replaced(owner: Any, name: str, wrong: Callable[[Any], Any]) -> Iterator[None]:
    right = vars(owner)[name]
    setattr(owner, name, wrong(right))
    try:
        yield
    finally:
        setattr(owner, name, right)


# Section: the wrong methods; each is given the right one


def _backwards(right: Any) -> Any:
    def read_obj(self: Any, addr: Any, cls: Any) -> Any:
        return cls.from_raw(right(self, addr, cls).raw[::-1])

    return read_obj


def _limit_short(right: Any) -> Any:
    def translate_and_get_limit(self: Any, addr: Any) -> Any:
        found = right(self, addr)
        return found if found is None or found[1] == 1 else (found[0], found[1] - 1)

    return translate_and_get_limit


def _in_bytes(right: Any) -> Any:
    def write(self: Any, offset: int, data: bytes) -> None:
        direct = self.space.is_direct(self.section.region, True, UNSPECIFIED)
        if direct or len(data) not in ACCESS_SIZES:
            right(self, offset, data)
            return
        for at in range(len(data)):
            right(self, offset + at, data[at : at + 1])

    return write


def _crossing(right: Any) -> Any:
    def read_obj(self: Any, addr: Any, cls: Any) -> Any:
        buffer = bytearray(size_of(cls))
        self.read_buffer(addr, buffer)
        return cls.from_raw(buffer)

    return read_obj


def _count_full(right: Any) -> Any:
    def read(self: Any, buf: Any, addr: Any) -> int:
        return len(buf) if right(self, buf, addr) else 0

    return read


def _part_lost(right: Any) -> Any:
    def write(self: Any, data: bytes, addr: Any) -> Any:
        if self.check_range(addr, len(data)):
            return right(self, data, addr)
        done = 0
        try:
            for piece in self.get_slices(addr, len(data)):
                done += piece.len()
        except Exception as error:
            return done, error
        return done, None

    return write


def _rom_written(right: Any) -> Any:
    def write(self: Any, offset: int, data: bytes) -> None:
        region = self.section.region
        if region.is_ram and region.backing is not None:
            region.backing.write(self._in_region(offset), data)
        else:
            right(self, offset, data)

    return write


def _end_unwritten(right: Any) -> Any:
    def write(self: Any, offset: int, data: bytes) -> None:
        direct = self.space.is_direct(self.section.region, True, UNSPECIFIED)
        right(self, offset, data[:-1] if direct else data)

    return write


def _written_elsewhere(right: Any) -> Any:
    def write(self: Any, offset: int, data: bytes) -> None:
        right(self, offset, data)
        other = offset ^ 0x3000
        if isinstance(self, SectionMemory) and other < len(self):
            self.data[other] ^= 0x5A

    return write


def _asked_twice(right: Any) -> Any:
    def read(self: Any, offset: int, size: int) -> bytes:
        data: bytes = right(self, offset, size)
        return data if self.section.region.is_ram else right(self, offset, size)

    return read


def _asked_elsewhere(right: Any) -> Any:
    def read(self: Any, offset: int, size: int) -> bytes:
        data: bytes = right(self, offset, size)
        for section in self.space.view.sections:
            if not section.region.is_ram and section.region is not self.section.region:
                self.space.dispatch_read(section.region, section.offset, 4)
                break
        return data

    return read


def _never_refused(right: Any) -> Any:
    def read(self: Any, buf: Any, addr: Any) -> int:
        self._read(memoryview(buf), addr)
        return len(buf)

    return read


def _any_alignment(right: Any) -> Any:
    def check_alignment(self: Any, align: int) -> None:
        pass

    return check_alignment


def _always_one(right: Any) -> Any:
    def why_not_one(*_: Any) -> None:
        return None

    return why_not_one


def _last_byte_lost(right: Any) -> Any:
    def room(self: Any, offset: int, size: int) -> tuple[int, int]:
        at, left = right(self, offset, size)
        return at, max(left - 1, 1)

    return room


def _one_further(right: Any) -> Any:
    def start_addr(self: Any) -> Any:
        at = right(self)
        return at if not at.raw_value() else at.unchecked_add(1)

    return start_addr


_SECTIONED = ("vm-memory", "aligned", "memory-map", "accessor")

#: By name, as ``--defect`` takes it.
FACE_DEFECTS: dict[str, FaceDefect] = {
    "object-backwards": FaceDefect(
        "an object is read in the other byte order", ("vm-memory", "aligned", "rust"),
        Bytes, "read_obj", _backwards),
    "limit-one-short": FaceDefect(
        "the limit of a translation is one byte short", ("accessor",),
        RegionAccessor, "translate_and_get_limit", _limit_short),
    "store-in-bytes": FaceDefect(
        "a store to a device is not one access", _SECTIONED,
        SectionBacking, "write", _in_bytes),
    "crossing-allowed": FaceDefect(
        "an object may lie in two regions", ("accessor",),
        GuestMemoryAccessor, "read_obj", _crossing),
    "short-read-full": FaceDefect(
        "a short read counts as a full one", ("vm-memory",), GuestMemory, "read", _count_full),
    "part-lost": FaceDefect(
        "what could be written before an error is not", ("vm-memory",),
        GuestMemory, "_write", _part_lost),
    "rom-written": FaceDefect(
        "ROM is written through a section", _SECTIONED, SectionBacking, "write", _rom_written),
    "end-unwritten": FaceDefect(
        "the last byte of a write to RAM is not written", ("vm-memory", "memory-map", "accessor"),
        SectionBacking, "write", _end_unwritten),
    "written-elsewhere": FaceDefect(
        "a write to RAM changes a byte elsewhere too", ("vm-memory", "memory-map", "accessor"),
        SectionBacking, "write", _written_elsewhere),
    "asked-twice": FaceDefect(
        "a device is read twice for one access", _SECTIONED, SectionBacking, "read", _asked_twice),
    "asked-elsewhere": FaceDefect(
        "a read asks another device, too", _SECTIONED, SectionBacking, "read", _asked_elsewhere),
    "never-refused": FaceDefect(
        "a read of what is not there succeeds", ("rust",), Stepped, "read", _never_refused),
    "any-alignment": FaceDefect(
        "a misaligned access is not refused", ("vm-memory", "memory-map"),
        VolatileSlice, "check_alignment", _any_alignment),
    "always-one": FaceDefect(
        "what cannot be one access is called one", ("aligned",),
        aligned, "why_not_one", _always_one),
    "last-byte-lost": FaceDefect(
        "an access ends a byte before its region", ("memory-map",),
        MemoryMapping, "_room", _last_byte_lost),
    "region-one-further": FaceDefect(
        "a region begins a byte further on", ("vm-memory",),
        GuestRegion, "start_addr", _one_further),
}

#: Defects of the model that no face can show, and why.
NOT_SHOWN: dict[str, str] = {
    "clamp-off-by-one": "a face that reads RAM in one step more reads the same bytes",
    "stops-at-error": "every face stops at the first error anyway",
    "ports-read-zero": "the faces are put on the memory, which has no ports",
}


@dataclass(frozen=True, slots=True)
class Planted:
    """What ``--defect NAME`` means under faces: wrong ``rules`` of the model, or a ``face``."""

    name: str = ""
    summary: str = ""
    face: FaceDefect | None = None
    rules: Callable[[Rules], Rules] | None = None


def planted(name: str, faces: Sequence[str]) -> Planted:
    """The defect of that name, to be shown through ``faces``; nothing is planted for "".

    :raise UsageError: there is none, or none of the faces, or no face at all, can show it; the
        sentence says why.
    """
    if not name:
        return Planted()
    if name in FACE_DEFECTS:
        found = FACE_DEFECTS[name]
        if not set(faces) & set(found.faces):
            raise UsageError(f"the defect {name} is not in {' or '.join(faces)}; it shows with "
                             + " or ".join(f"--face {each}" for each in found.faces))
        return Planted(name, found.summary, found)
    if name in NOT_SHOWN:
        raise UsageError(f"no face shows the defect {name}: {NOT_SHOWN[name]}")
    if name not in PLANTED:
        known = ", ".join((*FACE_DEFECTS, *shown_model_defects()))
        raise UsageError(f"no defect {name!r}; with --face there are {known}")
    defect = DEFECTS.get(name)
    if defect is None or defect.rules is None:
        raise UsageError(f"{name} is no defect of the memory model, which is what faces stand on")
    return Planted(name, defect.summary, None, partial(_wrong_rules, defect.rules))


def shown_model_defects() -> list[str]:
    """The defects of the model that a face can show."""
    return [name for name, each in DEFECTS.items()
            if each.rules is not None and name not in NOT_SHOWN]


def _wrong_rules(cls: type[Rules], rules: Rules) -> Rules:
    return cls(**{each.name: getattr(rules, each.name) for each in fields(rules)})
