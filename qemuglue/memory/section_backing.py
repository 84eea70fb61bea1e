"""A section of a view as a Backing: what vm-memory's kind of faces stand on over QEMU's memory.

``section_backing(space, section)`` gives the backing of that part of a region. Offsets count from
the section's start, its end is the backing's end, and the map may change meanwhile: a section is a
snapshot, as a ``GuestRegionCollection`` is one. What an access does follows the section's region:

- RAM is a window on the region's own bytes. Where those can be pointed at (``HostMemory``) so can
  the window. A read-only alias of RAM is writable here, as it is for QEMU's devices: the region's
  own ``readonly`` counts, never the section's (R9).
- ROM, and a ROM device in ROMD mode, is read from its bytes. A write goes where QEMU sends it: ROM
  refuses it, a ROM device gets it.
- A device is asked. A Backing has no word for "one access", so the size says it: 1, 2, 4 or 8
  bytes are one access that is never cut (``address_space_ldl`` and its kin, R10), because that is
  what ``store``, ``load``, ``read_atomic`` and axaddrspace's ``read_obj`` promise. Any other number
  of bytes is a byte range, cut as the device likes it (``address_space_read``, R6).

A MemTxResult other than OK is InvalidBackendAddress, at the first access that has one; which it was
is lost, and so is how much of a byte range was moved before.
"""

from __future__ import annotations

from qemuglue.errors import ModelError
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.backing import HostMemory
from qemuglue.memory.endian import ByteOrder
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.guest_error import InvalidBackendAddress

#: What one access can be, in bytes.
ACCESS_SIZES = frozenset((1, 2, 4, 8))

#: ``len()`` must fit the machine's word; the two largest sizes of a section do not.
_MAX_LEN = (1 << 63) - 1


class SectionBacking:
    """The bytes of a section; how they are reached is told by the module.

    Raises InvalidBackendAddress where QEMU refuses an access, and ModelError for one that lies
    outside the section.
    """

    __slots__ = ("section", "space")

    def __init__(self, space: AddressSpace, section: MemoryRegionSection) -> None:
        self.space = space
        self.section = section

    def __len__(self) -> int:
        return min(self.section.size, _MAX_LEN)

    @property
    def host_address(self) -> int:
        """Where the host has the first byte. Raises AttributeError where the region's backing
        does not tell, as if this had no such attribute either."""
        backing = self.section.region.backing
        first: int = getattr(backing, "host_address")  # noqa: B009 - a protocol without it
        return first + self._in_region(0)

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; shorter only at the end of the section."""
        if offset < 0 or size < 0:
            raise ModelError(f"{size} bytes at {offset:#x} are no part of a section")
        size = min(size, self.section.size - offset)
        if size <= 0:
            return b""
        region, at = self.section.region, self._in_region(offset)
        if self.space.is_direct(region, False, UNSPECIFIED):
            assert region.backing is not None, "is_direct says so"
            return region.backing.read(at, size)
        if size in ACCESS_SIZES:
            result, value = self.space.dispatch_read(region, at, size, UNSPECIFIED)
            if result:
                raise InvalidBackendAddress
            return value.to_bytes(size, self._order)
        buffer = bytearray(size)
        done = 0
        while done < size:
            n, result = self.space.read_step(
                region, at + done, buffer, done, size - done, UNSPECIFIED)
            if result:
                raise InvalidBackendAddress
            done += n
        return bytes(buffer)

    def write(self, offset: int, data: bytes) -> None:
        """Put ``data`` at ``offset``; it must fit."""
        size = len(data)
        if offset < 0 or offset + size > self.section.size:
            raise ModelError(
                f"{size} bytes at {offset:#x} do not fit a section of {self.section.size:#x}")
        if not size:
            return
        region, at = self.section.region, self._in_region(offset)
        space = self.space
        if space.is_direct(region, True, UNSPECIFIED):
            assert region.backing is not None, "is_direct says so"
            region.backing.write(at, data)
            space.mark_dirty(region, at, size)
            return
        if size in ACCESS_SIZES:
            value = int.from_bytes(data, self._order)
            if space.dispatch_write(region, at, value, size, UNSPECIFIED):
                raise InvalidBackendAddress
            return
        done = 0
        while done < size:
            n, result = space.write_step(region, at + done, data, done, size - done, UNSPECIFIED)
            if result:
                raise InvalidBackendAddress
            done += n

    def _in_region(self, offset: int) -> int:
        """Where in the region an offset of the section lies (R7)."""
        return self.space.rules.region_offset(self.section, self.section.start + offset)

    @property
    def _order(self) -> ByteOrder:
        """How the bytes of a device's value lie in memory (R5)."""
        big = self.space.rules.big(self.section.region.contract, self.space.target_big)
        return "big" if big else "little"

    def __repr__(self) -> str:
        section = self.section
        return f"<{type(self).__name__} {section.region.name!r} {section.start:#x}>"


class SectionMemory(SectionBacking):
    """A section of RAM whose bytes can be pointed at: a ``HostMemory``.

    ``write`` notes what it changed in the topology's dirty memory; whoever writes through ``data``
    notes it himself (``AddressSpace.mark_dirty``), as who writes through a host pointer in QEMU.
    """

    __slots__ = ()

    @property
    def data(self) -> memoryview:
        """A view of the section's bytes. It is made at each use, so that none is left when the
        memory is unmapped."""
        backing = self.section.region.backing
        assert isinstance(backing, HostMemory), "section_backing looks"
        first = self._in_region(0)
        return memoryview(backing.data)[first : first + self.section.size]


def section_backing(space: AddressSpace, section: MemoryRegionSection) -> SectionBacking:
    """The backing of ``section``, a part of ``space``'s view: a ``SectionMemory`` for RAM whose
    bytes can be pointed at. Raises ModelError for a hole."""
    if not section.assigned:
        raise ModelError(f"nothing is mapped at {section.start:#x}: a hole has no bytes")
    region = section.region
    if isinstance(region.backing, HostMemory) and all(
        space.is_direct(region, is_write, UNSPECIFIED) for is_write in (False, True)
    ):
        first = space.rules.region_offset(section, section.start)
        if first >= 0 and first + section.size <= len(region.backing):
            return SectionMemory(space, section)
    return SectionBacking(space, section)
