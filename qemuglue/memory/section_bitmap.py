"""SectionBitmap: the model's dirty memory as a bitmap of vm-memory's kind."""

from __future__ import annotations

from typing import Self

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.bitmap import BitmapSlice
from qemuglue.memory.dirty import MIGRATION
from qemuglue.memory.flatview import MemoryRegionSection


class SectionBitmap(BitmapSlice):
    """What was written in a section, from ``offset`` on. Writes are marked as QEMU marks them, for
    every client that the region is logged for; ``dirty_at`` answers as migration's client, whom
    these bitmaps are for. Differs from vm-memory's in that memory nobody has asked about yet
    is dirty, as in QEMU. Marks that go beyond the section are for the bytes in it."""

    __slots__ = ("_offset", "_section", "_space")

    def __init__(
        self, space: AddressSpace, section: MemoryRegionSection, offset: int = 0
    ) -> None:
        self._space = space
        self._section = section
        self._offset = offset

    def mark_dirty(self, offset: int, length: int) -> None:
        """``length`` bytes from ``offset`` on were written."""
        at = self._offset + offset
        length = min(length, self._section.size - at)
        if length > 0:
            self._space.mark_dirty(self._section.region, self._in_region(at), length)

    def dirty_at(self, offset: int) -> bool:
        """Whether the byte at ``offset`` counts as written; False outside the section."""
        at = self._offset + offset
        if at >= self._section.size:
            return False
        dirty = self._space.topology.dirty
        return dirty.get(self._section.region, self._in_region(at), 1, MIGRATION)

    def slice_at(self, offset: int) -> Self:
        """The same from ``offset`` on."""
        return type(self)(self._space, self._section, self._offset + offset)

    def _in_region(self, at: int) -> int:
        """Where in the region an offset of the section lies (R7)."""
        return self._space.rules.region_offset(self._section, self._section.start + at)

    def __repr__(self) -> str:
        return f"<SectionBitmap of {self._section.region.name!r} at {self._offset:#x}>"
