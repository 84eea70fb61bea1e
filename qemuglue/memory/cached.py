"""MemoryRegionCache: a range translated once, then accessed many times (R15).

A cache holds on to one view and one section. Memory is accessed directly; a device's registers
are dispatched without asking the map again, and an IOMMU is asked at every access. Offsets are
in the cache. Each access is an RCU section of its own (in C it is the caller's). Source: QEMU
``system/physmem.c`` ``address_space_cache_init`` and the ``_cached`` functions.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from qemuglue.errors import ModelError
from qemuglue.memory.attrs import OK, UNSPECIFIED, MemTxAttrs
from qemuglue.memory.endian import EndianInt, typed_class, typed_value
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.iommu import translate
from qemuglue.memory.mapping import extend, host_memory
from qemuglue.memory.rcu import RcuGuard
from qemuglue.memory.region import MASK64, RegionKind

if TYPE_CHECKING:
    from qemuglue.memory.address_space import AddressSpace


class MemoryRegionCache:
    """``length`` may be smaller than asked for: it ends with the section, or where contiguous
    memory does. ``direct``: it is memory; accesses copy.

    Raises ModelError for a length that is not positive.
    """

    def __init__(self, space: AddressSpace, addr: int, length: int, is_write: bool) -> None:
        if length <= 0:
            raise ModelError(f"a cache needs at least one byte, got {length}")
        self.space = space
        self.is_write = is_write
        guard = space.memory()
        view = guard.view
        section, offset, n = space.section_in(view, addr, length)
        region = section.region
        n = min(n, space.rules.dispatch_end(section, addr, space.page_bits) - addr)
        self.section = section
        self.offset = offset
        self._ptr: memoryview | None = None
        if space.is_direct(region, is_write, UNSPECIFIED):
            n = extend(space, view, addr, length, region, offset, n, is_write, UNSPECIFIED)
            self._ptr = host_memory(region, offset, n)
            n = len(self._ptr)
        self.length = n
        self._guard = guard
        self._open = True

    @property
    def direct(self) -> bool:
        return self._ptr is not None

    def read(self, offset: int, length: int) -> tuple[int, bytes]:
        """(result, data) (``address_space_read_cached``)."""
        self._check(offset, length)
        if self._ptr is not None:
            return OK, bytes(self._ptr[offset : offset + length])
        buffer = bytearray(length)
        with RcuGuard(self.space.topology.rcu):
            result = self._slow(offset, buffer, b"", False)
        return result, bytes(buffer)

    def write(self, offset: int, data: bytes) -> int:
        """The result (``address_space_write_cached``). Memory is not marked dirty: that is
        ``invalidate``'s."""
        self._check(offset, len(data))
        if self._ptr is not None:
            self._ptr[offset : offset + len(data)] = data
            return OK
        with RcuGuard(self.space.topology.rcu):
            return self._slow(offset, bytearray(), data, True)

    def load(
        self, offset: int, kind: type[EndianInt], attrs: MemTxAttrs = UNSPECIFIED
    ) -> tuple[int, int]:
        """(result, value), one dispatch (``address_space_lduw_le_cached`` and its kin)."""
        kind = typed_class(kind)
        self._check(offset, kind.size)
        if self._ptr is not None:
            return OK, int(kind.struct.unpack_from(self._ptr, offset)[0])
        with RcuGuard(self.space.topology.rcu):
            found = self._translate(offset, kind.size, False, attrs)
            return self.space.load_found(found, kind.size, kind.order, attrs)

    def store(self, offset: int, value: EndianInt, attrs: MemTxAttrs = UNSPECIFIED) -> int:
        """The result, one dispatch (``address_space_stw_le_cached`` and its kin)."""
        value = typed_value(value)
        self._check(offset, value.size)
        if self._ptr is not None:
            value.struct.pack_into(self._ptr, offset, value)
            return OK
        with RcuGuard(self.space.topology.rcu):
            found = self._translate(offset, value.size, True, attrs)
            return self.space.store_found(found, value, value.size, value.order, attrs)

    def invalidate(self, offset: int, access_length: int) -> None:
        """The bytes were written: mark them dirty (``address_space_cache_invalidate``).
        Raises ModelError for a cache that is not for writing."""
        self._check(offset, access_length)
        if not self.is_write:
            raise ModelError("the cache is not for writing")
        if self._ptr is not None:
            self.space.mark_dirty(self.section.region, self.offset + offset, access_length)

    def destroy(self) -> None:
        """Give the view back; nothing happens the second time."""
        if self._open:
            self._open = False
            if self._ptr is not None:
                self._ptr.release()
            self._guard.release()

    def __enter__(self) -> MemoryRegionCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.destroy()

    def _check(self, offset: int, length: int) -> None:
        """QEMU only asserts these bounds."""
        if not self._open:
            raise ModelError("the cache was destroyed")
        if not (0 <= offset < self.length and 0 <= length <= self.length - offset):
            raise ModelError(
                f"{length} bytes at {offset:#x} are not inside a cache of {self.length:#x}"
            )

    def _translate(
        self, offset: int, length: int, is_write: bool, attrs: MemTxAttrs
    ) -> tuple[MemoryRegionSection, int, int]:
        """``address_space_translate_cached``: no map, only IOMMUs."""
        section, at = self.section, (self.offset + offset) & MASK64
        if section.region.kind is not RegionKind.IOMMU:
            return section, at, length
        found = translate(section.region, at, length, is_write, attrs)
        return found.section, found.offset, found.length

    def _slow(self, offset: int, buffer: bytearray, data: bytes, is_write: bool) -> int:
        """Pieces by R6 inside one region, whatever lies there in the map."""
        space, view = self.space, self._guard.view
        total = len(data) if is_write else len(buffer)
        section, at, n = self._translate(offset, total, is_write, UNSPECIFIED)
        region = section.region
        done, result = 0, OK
        while done < total:
            if is_write:
                n, piece = space.write_step(region, at, data, done, n, UNSPECIFIED)
            else:
                n, piece = space.read_step(region, at, buffer, done, n, UNSPECIFIED)
            result = space.rules.combine(result, piece)
            done += n
            if space.rules.cached_slow_relative and done < total:
                # Before 9.0: looked up again, by the offset in the cache taken as an address.
                section, at, n = space.translate_in(
                    view, (offset + done) & MASK64, total - done, is_write, UNSPECIFIED
                )
                region = section.region
            else:
                at, n = (at + n) & MASK64, total - done
        return result
