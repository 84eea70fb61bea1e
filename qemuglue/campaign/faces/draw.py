"""Random operations of faces: which method, where, how large; and what is left alone.

Addresses lie near the starts and ends of sections, at their borders, in holes and at the top; sizes
around 1, 2, 4, 8 and a page. A device is read wherever ``check`` reads it, and written only where a
write does nothing beyond it: not where it may change the map, reset the machine or start a DMA.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

from qemuglue.campaign.faces.ops import METHODS, TYPES, FaceOp
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MASK64, MAX_SIZE, MemoryRegion, RegionKind
from qemuglue.witness.barriers import BY_VALUE
from qemuglue.witness.dma import forwards, owner_of
from qemuglue.witness.session import Session, reached, reaches_ram

#: Bytes of what is moved; the last ones only in memory.
_SIZES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 12, 16, 24, 32)
_LONG = (64, 255, 0xFFF, 0x1000, 0x1001, 0x2000)

#: Bytes of devices in one operation, at most: each four are an access.
MAX_DEVICE_BYTES = 48

#: Share of the accesses that qtest would cut which are not drawn: nothing is seen of them.
LEFT_OUT = 0.9

#: Draws for one operation before plain RAM is taken.
_TRIES = 40

#: Engines that need no space of their own, by the names of their registers; and what stands for
#: RAM that is not there, whose writes go to that which is (``ram-empty`` of the AST2700).
_DMA = re.compile(r"dma|pl08[01]|ram-empty", re.IGNORECASE)

#: Owners of what is no device's.
_NOBODY = ("", "/machine", "/machine/unattached")

#: Spaces that belong to no device that writes by itself (``witness.session``).
_PASSIVE = ("memory", "I/O", "cpu-")


class Untouched:
    """Which regions are left alone, and why; asked anew after the map has changed. ``fatal`` are
    those whose accesses ended QEMU."""

    def __init__(self, session: Session, fatal: dict[str, str]) -> None:
        self._session = session
        self._fatal = fatal
        self._masters: set[str] | None = None
        self._reads: dict[MemoryRegion, str] = {}
        self._writes: dict[MemoryRegion, str] = {}

    def why(self, region: MemoryRegion, *, is_write: bool) -> str:
        """Why no access of that direction is made, "" where it is."""
        known = self._writes if is_write else self._reads
        if region not in known:
            known[region] = self._why_not(region, is_write)
        return known[region]

    def left(self) -> tuple[tuple[str, str, str], ...]:
        """(region, "read" or "write", why) of all in view that is left alone, by name."""
        view = self._session.mirror.memory.view
        regions = {section.region for section in view.sections}
        return tuple(sorted(
            (region.name, "write" if is_write else "read", why)
            for region in regions for is_write in (False, True)
            if (why := self.why(region, is_write=is_write))))

    def _why_not(self, region: MemoryRegion, is_write: bool) -> str:
        session, barriers = self._session, self._session.knowledge.barriers
        if region.name in self._fatal:
            return self._fatal[region.name]
        why = session.unjudgeable(region)
        if why is not None:
            return why
        if region.is_ram and region.kind is not RegionKind.RAM_DEVICE:
            return ""
        if region.kind is RegionKind.RESERVATION:
            return ""
        if forwards(region) or barriers.may(region, False):
            return f"{region.name}: an access to it reaches others"
        if not is_write:
            return ""
        if region.kind is RegionKind.ROM_DEVICE:
            return f"{region.name}: a write may end its mode"
        if barriers.always(region) or barriers.may(region, True) or region.name in BY_VALUE:
            return f"{region.name}: a write may change the map or reset the machine"
        if session.following.of(region) is not None or self._is_master(region):
            return f"{region.name}: a write may start a DMA"
        return ""

    def _is_master(self, region: MemoryRegion) -> bool:
        if self._masters is None:
            session = self._session
            self._masters = set()
            for space in session.mirror.spaces:
                root = owner_of(space.root)
                if space.name.startswith(_PASSIVE) or session.does_no_dma(root):
                    continue
                if any(reaches_ram(section.region) for section in space.view.sections):
                    # A device whose own space is the machine's memory is known by its name.
                    self._masters.add(space.name if root in _NOBODY else root)
        owner = owner_of(region)
        return bool(_DMA.search(region.name)) or any(
            region.name.startswith(master) or (bool(owner) and reached(master, [owner]))
            for master in self._masters)


class Drawer:
    """Draws operations for a session's present map. The same random numbers, map and faces give
    the same operations."""

    def __init__(self, session: Session, untouched: Untouched, faces: Sequence[str]) -> None:
        self._untouched = untouched
        self._rules = session.rules
        self._faces = tuple(faces)
        view = session.mirror.memory.view
        self._cover = view.cover
        self._lookup = view.lookup
        sections = view.sections
        self._ram = [s for s in sections if s.region.is_ram]
        self._devices = [s for s in sections if not s.region.is_ram]
        self._holes = [s for s in view.cover if not s.assigned]

    def draw(self, rng: Random) -> FaceOp:
        """The next operation."""
        face = rng.choice(self._faces)
        name = rng.choice(tuple(METHODS[face]))
        method = METHODS[face][name]
        for _ in range(_TRIES):
            cls = rng.choice(tuple(TYPES)) if method.typed else ""
            size = TYPES[cls].size if cls else self._size(rng)
            addr = self._address(rng, size, aligned=bool(cls) and rng.random() < 0.6)
            if self._may(addr, size, is_write=method.is_write) and not (
                self._is_cut(addr, size) and rng.random() < LEFT_OUT
            ):
                break
        else:
            cls, size = "U8" if method.typed else "", 1
            addr = self._harmless(rng)
        if name == "get_host_address":
            size = max(size, 1)
        data = rng.randbytes(size) if method.is_write else b""
        return FaceOp(face, name, addr, size, cls, data)

    # -- where ---------------------------------------------------------------------------------

    def _harmless(self, rng: Random) -> int:
        """An address in RAM or, where no RAM can be seen from outside, in a hole."""
        may = [s for s in self._ram if not self._untouched.why(s.region, is_write=True)]
        section = max(may or self._holes or self._cover, key=lambda each: each.size)
        return section.start + rng.randrange(section.size)

    @staticmethod
    def _size(rng: Random) -> int:
        return rng.choice(_LONG if rng.random() < 0.15 else _SIZES)

    def _address(self, rng: Random, size: int, *, aligned: bool) -> int:
        section = self._section(rng)
        near = rng.random()
        if near < 0.30:
            addr = section.start + rng.choice((0, 0, 1, 2, 3, 4, 8, 0x10, 0x20))
        elif near < 0.55:
            addr = section.last + 1 - rng.choice((1, 2, 3, 4, 8, size, size, 16))
        elif near < 0.68:
            addr = section.last + 1 - size // 2
        elif near < 0.72:
            addr = section.start - rng.choice((1, 2, 4, 8))
        else:
            addr = section.start + rng.randrange(min(section.size, 1 << 32))
            if rng.random() < 0.7:
                addr &= ~7
        addr &= MASK64
        return addr - addr % size if aligned and size else addr

    def _section(self, rng: Random) -> MemoryRegionSection:
        kind = rng.random()
        if kind < 0.45 and self._devices:
            return rng.choice(self._devices)
        if kind < 0.55 and self._holes:
            return rng.choice(self._holes)
        if kind < 0.59:
            return self._cover[-1] if rng.random() < 0.7 else self._cover[0]
        return rng.choice(self._ram or self._cover)

    # -- whether -------------------------------------------------------------------------------

    def _may(self, addr: int, size: int, *, is_write: bool) -> bool:
        device = 0
        for section, n in self._touched(addr, max(size, 1)):
            if not section.assigned:
                continue
            if self._untouched.why(section.region, is_write=is_write):
                return False
            if not section.region.is_ram:
                device += n
        return device <= MAX_DEVICE_BYTES

    def _is_cut(self, addr: int, size: int) -> bool:
        """Whether this, as one access of a device, is none for qtest."""
        section = self._lookup(addr)
        if size not in (2, 4, 8) or not section.assigned or section.region.is_ram:
            return False
        offset = addr - section.start + section.offset
        return self._rules.chunk(section.region.contract, size, offset) != size

    def _touched(self, addr: int, size: int) -> Iterator[tuple[MemoryRegionSection, int]]:
        """The sections that the bytes lie in, with how many lie in each."""
        while size > 0:
            section = self._lookup(addr)
            n = min(size, section.start + section.size - addr)
            yield section, n
            size -= n
            addr = (addr + n) % MAX_SIZE
