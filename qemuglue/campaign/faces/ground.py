"""The ground that a face stands on, told by QEMU: what an operation of a face must have come to.

The face itself worked on a live machine. Here the same bytes are looked at by paths that it did not
use: sections are those of QEMU's own flat view (the mirror was compared with it), RAM is the
session's copy, which is compared with what qtest reads, and each access to a device must be the
next one in QEMU's transcript, which also has its value (``witness.evidence``). A refusal must stand
there as well, wherever qtest can make the access at all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.contract import Contract
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MAX_SIZE, MemoryRegion, RegionKind
from qemuglue.witness.contracts import Veto
from qemuglue.witness.ram import Coverage
from qemuglue.witness.session import Session

#: What one access can be, in bytes.
SIZES = frozenset((1, 2, 4, 8))


class Refused(Exception):
    """QEMU does not take an access. ``cut``: it was to be one, and ``address_space_rw`` would
    have cut it into some that are taken."""

    def __init__(self, *, cut: bool = False) -> None:
        self.cut = cut


class Cut(Exception):
    """qtest cannot make the access as one."""


class Ground:
    """One machine as QEMU tells of it. ``designs`` collects the documented differences that the
    operation at hand met (``faces.designs``)."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.space = session.mirror.memory
        self.rules = session.rules
        self.designs: set[str] = set()
        #: Whether the operation at hand reached a device, or was refused by one.
        self.asked_device = False

    # -- sections ------------------------------------------------------------------------------

    def find(self, addr: int, *, reserved: bool = False) -> MemoryRegionSection | None:
        """The section at ``addr``; None in a hole. What only claims addresses counts as a hole
        unless ``reserved``."""
        section = self.space.view.find(addr)
        if section is None or (section.region.kind is RegionKind.RESERVATION and not reserved):
            return None
        return section

    def mapped(self, addr: int, size: int, *, reserved: bool = False) -> bool:
        """Whether sections cover ``size`` bytes from ``addr`` on; 0 comes behind the last."""
        while size > 0:
            section = self.find(addr, reserved=reserved)
            if section is None:
                return False
            size -= section.start + section.size - addr
            addr = (section.start + section.size) % MAX_SIZE
        return True

    def is_memory(self, section: MemoryRegionSection, *, is_write: bool) -> bool:
        """Whether an access to it moves bytes of memory, and no device is asked."""
        return self.space.is_direct(section.region, is_write, UNSPECIFIED)

    def is_here(self, section: MemoryRegionSection) -> bool:
        """Whether its bytes lie in memory that QEMU shares with this process."""
        source = self.session.ram.sources.get(section.region)
        return (
            source is not None and source.coverage is Coverage.SHARED
            and self.is_memory(section, is_write=True)
        )

    # -- what a section's backing does -----------------------------------------------------------

    def read(self, section: MemoryRegionSection, offset: int, size: int) -> bytes:
        """One read of ``size`` bytes of a section: one access for 1, 2, 4 and 8 bytes of a device,
        else a byte range up to the first error."""
        region, at = section.region, section.offset + offset
        if self.is_memory(section, is_write=False):
            assert region.backing is not None, "is_direct says so"
            return region.backing.read(at, size)
        if size in SIZES:
            return self.one_read(region, at, size)
        buffer = bytearray(size)
        done = 0
        self.asked_device = True
        while done < size:
            n, result = self.space.read_step(
                region, at + done, buffer, done, size - done, UNSPECIFIED)
            if result:
                raise Refused
            done += n
        return bytes(buffer)

    def write(self, section: MemoryRegionSection, offset: int, data: bytes) -> None:
        """One write, likewise."""
        region, at = section.region, section.offset + offset
        if self.is_memory(section, is_write=True):
            assert region.backing is not None, "is_direct says so"
            region.backing.write(at, data)
            return
        if len(data) in SIZES:
            self.one_write(region, at, data)
            return
        done = 0
        self.asked_device = True
        while done < len(data):
            n, result = self.space.write_step(
                region, at + done, data, done, len(data) - done, UNSPECIFIED)
            if result:
                raise Refused
            done += n

    def one_read(self, region: MemoryRegion, offset: int, size: int) -> bytes:
        """One access to what is no memory."""
        self._one(region, offset, size, is_write=False)
        result, value = self.space.dispatch_read(region, offset, size)
        if result:
            raise Refused
        return value.to_bytes(size, self.order(region))

    def one_write(self, region: MemoryRegion, offset: int, data: bytes) -> None:
        """One access to what is no memory."""
        self._one(region, offset, len(data), is_write=True)
        value = int.from_bytes(data, self.order(region))
        if self.space.dispatch_write(region, offset, value, len(data)):
            raise Refused

    def calls(self, region: MemoryRegion, offset: int, size: int, *, is_write: bool) -> int:
        """How many calls into the device one access is; 0 where it is refused."""
        contract = self._declared(region)
        if self.rules.refusal(contract, offset, size, is_write):
            return 0
        return len(self.rules.pieces(contract, size, False))

    def order(self, region: MemoryRegion) -> Literal["little", "big"]:
        """How the bytes of the region's values lie in memory (R5)."""
        return "big" if self.rules.big(region.contract, self.space.target_big) else "little"

    # -- inside --------------------------------------------------------------------------------

    def _one(self, region: MemoryRegion, offset: int, size: int, *, is_write: bool) -> None:
        """Raises where the access is not made at all: qtest would cut it."""
        self.asked_device = True
        contract = self._declared(region)
        if self.rules.chunk(contract, size, offset) == size:
            return
        if self.rules.refusal(contract, offset, size, is_write):
            raise Refused(cut=True)
        raise Cut

    @staticmethod
    def _declared(region: MemoryRegion) -> Contract:
        """The contract without what the device decides access by access."""
        contract = region.contract
        return replace(contract, accepts=None) if isinstance(contract.accepts, Veto) else contract
