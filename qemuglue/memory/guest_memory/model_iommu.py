"""ModelIommu: an ``Iommu`` that translates as QEMU's IOMMU regions do.

``ModelIommu(space, target)`` makes addresses of ``space`` (a device's, say) addresses of ``target``
(the system's memory): those that ``address_space_translate_iommu`` finds (R18), through every IOMMU
region on the way and with the permissions of each. With an ``IommuMemory`` over a face of
``target``, code written against vm-memory sees what a device of QEMU would see there.

Nothing is kept between two accesses, as QEMU keeps nothing here either: what the IOMMU itself
caches is its model's. Asking has the effects that asking has in QEMU; a fault may be recorded.

Differs from ``AddressSpace.read`` and ``write`` of the same ``space``:

- All of an access is translated before any of it is done, and none of it is done if some cannot
  be. QEMU goes on page by page: refused bytes read as 0 or are dropped, the others are moved, and
  the result says that something failed. After a refusal nothing further is asked, so that fewer
  faults are recorded.
- Where the IOMMU leads to an address with nothing behind it the error is the backend's, at that
  address (InvalidGuestAddress); in QEMU both are MEMTX_DECODE_ERROR.
- ``ReadWrite`` needs both, at the same address behind; QEMU's accesses ask for one of the two.
  ``No`` needs one of them: QEMU has no mapping without permissions.
- The byte at 2^64-1 cannot be translated, for an IOTLB of vm-memory cannot hold it.
- What ``space`` shows without an IOMMU in between can be told only where ``target`` has the same
  byte at the same address: there is no other address to tell.
"""

from __future__ import annotations

from qemuglue.errors import ModelError
from qemuglue.memory import iommu as c_iommu
from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED, MemTxAttrs
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.guest_address import ADDRESS_END, GuestAddress
from qemuglue.memory.guest_memory.iommu import CannotResolve, Iommu, IommuMisconfigured
from qemuglue.memory.guest_memory.iotlb import IotlbIterator, IovaRange, MappedRange
from qemuglue.memory.guest_memory.permissions import Permissions
from qemuglue.memory.region import RegionKind

#: Translations of one access: 1 GiB of pages of 4 KiB. A range can be longer than anybody waits.
MAX_STEPS = 1 << 18

#: Directions to be asked for (is it a write?), and whether all of them must be allowed.
_ASKED: dict[Permissions, tuple[tuple[bool, ...], bool]] = {
    Permissions.No: ((False, True), False),
    Permissions.Read: ((False,), True),
    Permissions.Write: ((True,), True),
    Permissions.ReadWrite: ((False, True), True),
}


class _Refused(Exception):
    """An address leads nowhere; the reason."""


class ModelIommu(Iommu):
    """``space`` made of ``target``, for transactions with the attributes ``attrs``."""

    __slots__ = ("attrs", "space", "target")

    def __init__(
        self, space: AddressSpace, target: AddressSpace, attrs: MemTxAttrs = UNSPECIFIED
    ) -> None:
        self.space = space
        self.target = target
        self.attrs = attrs

    def translate(
        self, iova: GuestAddress, length: int, access: Permissions
    ) -> IotlbIterator:
        """The ranges of ``target`` that the range is now. Raises CannotResolve, whose range goes
        from the first byte that is refused to the end of the access; and IommuMisconfigured
        where an IOMMU region has no callbacks or IOMMUs lead to each other for ever."""
        start = iova.raw_value()
        if start + length >= ADDRESS_END:
            raise CannotResolve(IovaRange(iova, length), "a range does not reach 2^64")
        found: list[MappedRange] = []
        done = steps = 0
        while done < length:
            try:
                if steps == MAX_STEPS:
                    raise _Refused(f"an access is at most {MAX_STEPS} translations")
                addr, n = self._allowed(start + done, length - done, access)
            except _Refused as reason:
                rest = IovaRange(GuestAddress(start + done), length - done)
                raise CannotResolve(rest, str(reason)) from None
            if found and found[-1].base.raw_value() + found[-1].length == addr:
                last = found.pop()
                found.append(MappedRange(last.base, last.length + n))
            else:
                found.append(MappedRange(GuestAddress(addr), n))
            done += n
            steps += 1
        return IotlbIterator(found)

    def _allowed(self, iova: int, length: int, access: Permissions) -> tuple[int, int]:
        """(address in ``target``, bytes from there on) of what may be accessed like that."""
        ways, all_of_them = _ASKED[access]
        found: list[tuple[int, int]] = []
        refused = ""
        for is_write in ways:
            try:
                found.append(self._step(iova, length, is_write))
            except _Refused as reason:
                refused = str(reason)
                if all_of_them:
                    raise
            else:
                if not all_of_them:
                    break
        if not found:
            raise _Refused(refused)
        if len({addr for addr, _ in found}) > 1:
            raise _Refused("what is read there is not what is written there")
        return found[0][0], min(n for _, n in found)

    def _step(self, iova: int, length: int, is_write: bool) -> tuple[int, int]:
        section, offset, length = self.space.translate_section(iova, length)
        region = section.region
        if region.kind is not RegionKind.IOMMU:
            return self._past(section, iova, length)
        if region.iommu_ops is None:
            raise IommuMisconfigured(f"IOMMU region {region.name!r} has no callbacks")
        try:
            found = c_iommu.translate(region, offset, length, is_write, self.attrs)
        except ModelError as error:
            raise IommuMisconfigured(str(error)) from error
        if found.section is c_iommu.NOWHERE:
            raise _Refused(f"it may not be {'written' if is_write else 'read'}")
        if found.space is not self.target:
            raise _Refused(f"it leads to {found.space!r}, not to {self.target!r}")
        behind = found.section
        return found.offset - behind.offset + behind.start, found.length

    def _past(self, section: MemoryRegionSection, iova: int, length: int) -> tuple[int, int]:
        """No IOMMU is asked here."""
        if not section.assigned:
            raise _Refused("nothing is mapped there")
        same, _, _ = self.target.translate_section(iova, length)
        if same.region is not section.region or (
            same.start - same.offset != section.start - section.offset
        ):
            raise _Refused(f"it leads past the IOMMU, to {section.region.name!r}")
        return iova, min(length, section.last + 1 - iova, same.last + 1 - iova)

    def __repr__(self) -> str:
        return f"<ModelIommu from {self.space.name!r} to {self.target.name!r}>"
