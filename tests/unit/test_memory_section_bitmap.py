"""The model's dirty memory as a bitmap of vm-memory's kind."""

from __future__ import annotations

from rule_checks import ram, space_of

from qemuglue.memory import MemoryRegion
from qemuglue.memory.dirty import MIGRATION
from qemuglue.memory.rules import RULES_10_0
from qemuglue.memory.rust_binding import AddressSpace as RustSpace
from qemuglue.memory.section_bitmap import SectionBitmap


def test_writes_through_slices_and_views_are_dirty_memory() -> None:
    memory = ram(0x4000)
    window = MemoryRegion.alias_of("window", memory, 0x1000, 0x2000)
    space, _ = space_of(RULES_10_0, (0x10000, window))
    rust = RustSpace(space)
    space.topology.dirty_log_start()
    dirty = space.topology.dirty
    with rust.memory() as view:
        (section,) = view
        bitmap = section.bitmap()
        assert isinstance(bitmap, SectionBitmap) and bitmap.dirty_at(0), "nobody has asked yet"
        dirty.test_and_clear(memory, 0, 0x4000, MIGRATION)

        def pages() -> tuple[list[int], list[int]]:
            found = ([n for n in range(3) if bitmap.dirty_at(n << 12)],
                     [n for n in range(4) if dirty.get(memory, n << 12, 1, MIGRATION)])
            dirty.test_and_clear(memory, 0, 0x4000, MIGRATION)
            return found

        view.read(bytearray(0x2000), 0x10000)
        piece = view.get_slice(0x10FFE, 4)
        piece.read(bytearray(4), 0)
        assert pages() == ([], [])
        piece.write(b"xy", 2)
        assert pages() == ([1], [2])
        piece.write(b"x", 0)
        assert pages() == ([0], [1])
        view.write(b"x", 0x11000)
        assert pages() == ([1], [2])
        piece.bitmap().mark_dirty(1, 2)
        assert pages() == ([0, 1], [1, 2])
        bitmap.slice_at(0x1800).mark_dirty(0, 0x4000)
        assert pages() == ([1], [2]), "what is behind the section is not its"
        bitmap.slice_at(0x2000).mark_dirty(0, 1)
        bitmap.mark_dirty(0, 0)
        assert pages() == ([], [])
        space.mark_dirty(memory, 0x3000, 1)
        assert not bitmap.dirty_at(0x2000), "the region has that page, the section has not"
        assert repr(bitmap) == "<SectionBitmap of 'ram' at 0x0>"
