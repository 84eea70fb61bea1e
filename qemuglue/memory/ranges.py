"""Ranges: where an address leads, and accesses to byte strings (R6-R9, R12, R13).

``address_space_read`` and its kin: a range is cut into dispatches that go on after an error.
"""

from __future__ import annotations

from bisect import bisect_right

from qemuglue.errors import ModelError
from qemuglue.memory import iommu
from qemuglue.memory.attrs import ACCESS_ERROR, OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.flatview import FlatView, MemoryRegionSection
from qemuglue.memory.region import MASK64, MemoryRegion, RegionKind
from qemuglue.memory.space_view import SpaceView

#: ``address_space_set`` writes pieces of this size, each with a translation of its own.
FILL_SIZE = 512


class Ranges(SpaceView):
    """The part of an address space that moves byte strings."""

    # -- where an address leads --------------------------------------------------------------

    def translate(
        self, addr: int, length: int, is_write: bool = False, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[MemoryRegionSection, int, int]:
        """(section, offset in its region, bytes of ``length`` that can be done at once); behind
        an IOMMU the section is one of the target space (``address_space_translate``)."""
        reader = self._local.reader
        reader.lock()
        try:
            return self.translate_in(self.view, addr, length, is_write, attrs)
        finally:
            reader.unlock()

    def section_in(
        self, view: FlatView, addr: int, length: int
    ) -> tuple[MemoryRegionSection, int, int]:
        """R7 on one view, without asking an IOMMU (``address_space_translate_internal``)."""
        section = view.cover[bisect_right(view.starts, addr) - 1]
        rules = self._rules
        n = rules.clamp(section, addr, length, self.page_bits)
        return section, rules.region_offset(section, addr), n

    def translate_section(
        self, addr: int, length: int
    ) -> tuple[MemoryRegionSection, int, int]:
        """``section_in`` the current view."""
        reader = self._local.reader
        reader.lock()
        try:
            return self.section_in(self.view, addr, length)
        finally:
            reader.unlock()

    def translate_in(
        self, view: FlatView, addr: int, length: int, is_write: bool, attrs: MemTxAttrs
    ) -> tuple[MemoryRegionSection, int, int]:
        """``translate`` on one view (``flatview_translate``)."""
        section = view.cover[bisect_right(view.starts, addr) - 1]
        rules = self._rules
        offset = rules.region_offset(section, addr)
        length = rules.clamp(section, addr, length, self.page_bits)
        if section.region.kind is not RegionKind.IOMMU:
            return section, offset, length
        behind = iommu.translate(section.region, offset, length, is_write, attrs)
        return behind.section, behind.offset, behind.length

    def is_direct(self, region: MemoryRegion, is_write: bool, attrs: MemTxAttrs) -> bool:
        """R9: whether an access copies memory (``memory_access_is_direct``)."""
        if region.backing is None:
            return False
        if is_write:
            return self._rules.direct_write(region, attrs)
        return self._rules.direct_read(region)

    def access_valid(
        self, addr: int, length: int, is_write: bool, attrs: MemTxAttrs = UNSPECIFIED
    ) -> bool:
        """Whether the range would be accepted, without doing it (R13: QEMU 10.0.2
        ``system/physmem.c:3325``; only hypercalls of pseries and subpages ask, so nothing on a
        host's path shows it).

        As in QEMU (``flatview_access_valid``) pieces are cut by the *space's* address, while
        the region is asked by its own offset, so that the answer can differ from what an access
        meets; ``attrs.memory`` is not looked at.
        """
        check_address(addr)
        reader = self._local.reader
        reader.lock()
        try:
            return self.access_valid_in(self.view, addr, length, is_write, attrs)
        finally:
            reader.unlock()

    def access_valid_in(
        self, view: FlatView, addr: int, length: int, is_write: bool, attrs: MemTxAttrs
    ) -> bool:
        rules = self._rules
        done = 0
        while done < length:
            here = (addr + done) & MASK64
            section, offset, n = self.translate_in(view, here, length - done, is_write, attrs)
            region = section.region
            if not self.is_direct(region, is_write, attrs):
                n = rules.chunk(region.contract, n, here)
                reason = rules.refusal(region.contract, offset, n, is_write, attrs)
                if reason is not None:
                    if self.observer is not None:
                        self.observer.invalid(region, offset, n, is_write, reason)
                    return False
            done += n
        return True

    # -- byte ranges -----------------------------------------------------------------------

    def read(
        self, addr: int, length: int, attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, bytes]:
        """(result, ``length`` bytes). Refused bytes are 0. Length 0 is OK and does nothing."""
        check_address(addr)
        reader = self._local.reader
        reader.lock()
        try:
            view = (self._current or self._draw()).view
            found = self.translate_in(view, addr, length, False, attrs)
            section, offset, n = found
            region = section.region
            if (
                n == length and region.is_ram and self.is_direct(region, False, attrs)
                and self._rules.allowed(region, attrs)
            ):
                assert region.backing is not None, "is_direct says so"
                data = region.backing.read(offset, n)
                if len(data) == length:
                    return OK, data
            buffer = bytearray(length)
            return self.read_view(view, addr, buffer, attrs, found), bytes(buffer)
        finally:
            reader.unlock()

    def read_into(
        self, addr: int, buffer: bytearray | memoryview, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """``address_space_read`` into ``buffer``; bytes denied by ``attrs.memory`` stay."""
        check_address(addr)
        reader = self._local.reader
        reader.lock()
        try:
            return self.read_view((self._current or self._draw()).view, addr, buffer, attrs)
        finally:
            reader.unlock()

    def write(
        self, addr: int, data: bytes | bytearray | memoryview, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """``address_space_write``: the ORed result; what is refused is dropped."""
        check_address(addr)
        if type(data) is not bytes:
            data = bytes(data)
        reader = self._local.reader
        reader.lock()
        try:
            return self.write_view((self._current or self._draw()).view, addr, data, attrs)
        finally:
            reader.unlock()

    def set(
        self, addr: int, byte: int, length: int, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """Fill with ``byte``: writes of ``FILL_SIZE`` bytes one after the other, results ORed
        (``address_space_set``, R12). The map may change between two of them."""
        check_address(addr)
        fill = bytes([byte]) * min(length, FILL_SIZE)
        result = OK
        for done in range(0, length, FILL_SIZE):
            part = fill[: min(FILL_SIZE, length - done)]
            result |= self.write((addr + done) & MASK64, part, attrs)
        return result

    def write_rom(
        self, addr: int, data: bytes | bytearray | memoryview, attrs: MemTxAttrs = UNSPECIFIED
    ) -> int:
        """Write to RAM and ROM, and pass over everything else by the steps of R6; always OK
        (``address_space_write_rom``, R12: how firmware is loaded)."""
        check_address(addr)
        reader = self._local.reader
        reader.lock()
        try:
            self._write_rom(self.view, addr, bytes(data), attrs)
        finally:
            reader.unlock()
        return OK

    def _write_rom(self, view: FlatView, addr: int, data: bytes, attrs: MemTxAttrs) -> None:
        done = 0
        while done < len(data):
            section, offset, n = self.translate_in(
                view, (addr + done) & MASK64, len(data) - done, True, attrs
            )
            region = section.region
            if region.backing is None or not self._rules.rom_writable(region):
                n = self._rules.chunk(region.contract, n, offset)
            else:
                n = _inside(region, offset, n)
                region.backing.write(offset, data[done : done + n])
                self.mark_dirty(region, offset, n)
            done += n

    def read_view(
        self, view: FlatView, addr: int, buffer: bytearray | memoryview, attrs: MemTxAttrs,
        found: tuple[MemoryRegionSection, int, int] | None = None,
    ) -> int:
        """``flatview_read``: only the first region is asked up front whether it is allowed.
        ``found`` is where ``addr`` leads, if that is known."""
        rules = self._rules
        at, length, result = 0, len(buffer), OK
        while at < length:
            section, offset, n = found or self.translate_in(
                view, (addr + at) & MASK64, length - at, False, attrs
            )
            found = None
            n, piece = self.read_step(section.region, offset, buffer, at, n, attrs)
            result = rules.combine(result, piece)
            if not at and piece == ACCESS_ERROR and not rules.allowed(section.region, attrs):
                break
            if not rules.goes_on(result):
                break
            at += n
        return result

    def write_view(
        self, view: FlatView, addr: int, data: bytes, attrs: MemTxAttrs
    ) -> int:
        """``flatview_write``."""
        rules = self._rules
        at, length, result = 0, len(data), OK
        while at < length:
            section, offset, n = self.translate_in(
                view, (addr + at) & MASK64, length - at, True, attrs
            )
            n, piece = self.write_step(section.region, offset, data, at, n, attrs)
            result = rules.combine(result, piece)
            if not at and piece == ACCESS_ERROR and not rules.allowed(section.region, attrs):
                break
            if not rules.goes_on(result):
                break
            at += n
        return result

    def read_step(
        self, region: MemoryRegion, offset: int, buffer: bytearray | memoryview, at: int, n: int,
        attrs: MemTxAttrs,
    ) -> tuple[int, int]:
        """(bytes done, result) of at most ``n`` bytes of one region into ``buffer`` from ``at``
        on (``flatview_read_continue_step``). Denied bytes count as done."""
        rules = self._rules
        if not rules.allowed(region, attrs):
            return n, ACCESS_ERROR
        if rules.direct_read(region) and region.backing is not None:
            data = region.backing.read(offset, n)
            n = len(data)
            if not n:
                raise ModelError(f"region {region.name!r} has no byte {offset:#x}")
            buffer[at : at + n] = data
            return n, OK
        n = rules.chunk(region.contract, n, offset)
        result, value = self.dispatch_read(region, offset, n, attrs)
        big = rules.big(region.contract, self.target_big)
        buffer[at : at + n] = value.to_bytes(n, "big" if big else "little")
        return n, result

    def write_step(
        self, region: MemoryRegion, offset: int, data: bytes, at: int, n: int,
        attrs: MemTxAttrs,
    ) -> tuple[int, int]:
        """(bytes done, result) of at most ``n`` bytes of ``data`` from ``at`` on
        (``flatview_write_continue_step``)."""
        rules = self._rules
        if not rules.allowed(region, attrs):
            return n, ACCESS_ERROR
        if rules.direct_write(region, attrs) and region.backing is not None:
            n = _inside(region, offset, n)
            region.backing.write(offset, data if n == len(data) else data[at : at + n])
            if self._dirty.watched:
                self.mark_dirty(region, offset, n)
            return n, OK
        n = rules.chunk(region.contract, n, offset)
        big = rules.big(region.contract, self.target_big)
        value = int.from_bytes(data[at : at + n], "big" if big else "little")
        return n, self.dispatch_write(region, offset, value, n, attrs)

    def mark_dirty(self, region: MemoryRegion, offset: int, length: int) -> None:
        """R19: memory was written (``invalidate_and_set_dirty``)."""
        if self._dirty.watched:
            self._dirty.set(region, offset, length, region.dirty_log_mask)


def _inside(region: MemoryRegion, offset: int, n: int) -> int:
    """``n``, cut at the end of the region's memory (``qemu_ram_ptr_length``)."""
    assert region.backing is not None, "only memory has an end"
    n = min(n, len(region.backing) - offset)
    if n <= 0:
        raise ModelError(f"region {region.name!r} has no byte {offset:#x}")
    return n


def check_address(addr: int) -> None:
    if not 0 <= addr <= MASK64:
        raise ModelError(f"address {addr:#x} is not in 0..2^64-1")
