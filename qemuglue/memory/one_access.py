"""Whether a memory does an access in one: what ``aligned``'s atomic methods ask first.

``store`` and ``load`` of ``Bytes`` promise one access, and each memory keeps that as well as it
can: QEMU's ``address_space_ldl`` hands an access to a device whole, and the device's contract may
still cut it into several calls. An atomic access is refused there, before anything is touched.

What is asked, in the order in which it is told:

- CROSSES: the bytes do not lie in one region. A device has no end for QEMU (R7), so in a FlatView
  an access that begins in one is not refused for going beyond it.
- HOST_ALIGNMENT: what holds the bytes has them at an address (the host's, where it tells a
  ``host_address``; else an offset) that is no multiple of the size. Only memory is asked this. A
  device says itself what it takes; but a slice that begins misaligned is InvalidBackendAddress in
  vm-memory also for one.
- SPLIT: a device's contract makes several calls of the access. One that the device refuses is not
  cut; it fails as ``load`` and ``store`` do.
- BACKING: the backing does not move so many bytes in one. Up to 8 it does where its bytes can be
  pointed at (``HostMemory``) or belong to this process alone (SparseBacking); as many as it says
  in an attribute ``atomic_size``; otherwise 1. A call of ``Backing.read`` promises nothing about
  how the bytes are moved, and another process's memory is copied by the kernel as it likes.

Of a memory that shows neither sections nor slices nor mappings nothing is known: its ``store`` and
``load`` are believed.
"""

from __future__ import annotations

import enum

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.backing import Backing, HostMemory, SparseBacking
from qemuglue.memory.bytes import Bytes, Ordering
from qemuglue.memory.guest_address import GuestAddress
from qemuglue.memory.guest_error import GuestMemoryError, InvalidBackendAddress
from qemuglue.memory.guest_memory import GuestMemory, Permissions
from qemuglue.memory.memory_map import GuestMemory as MapMemory
from qemuglue.memory.memory_map import MemoryMapping
from qemuglue.memory.region import MASK64, MemoryRegion
from qemuglue.memory.rust_binding import FlatView
from qemuglue.memory.section_backing import SectionBacking

#: Bytes that this host moves in one access at most.
HOST_ATOMIC_SIZE = 8


class WhyNot(enum.Enum):
    """Why an access cannot be one."""

    TYPE = "values of this type have no atomic access"
    CROSSES = "it does not lie in one region"
    SPLIT = "the device's contract cuts it into several calls"
    HOST_ALIGNMENT = "what holds these bytes has them where they are not aligned"
    BACKING = "what holds these bytes does not move so many of them in one"


class NotOneAccess(GuestMemoryError):
    """``size`` bytes at ``addr`` cannot be one access. Nothing was touched."""

    def __init__(self, addr: GuestAddress, size: int, why: WhyNot) -> None:
        self.addr = addr
        self.size = size
        self.why = why
        super().__init__(addr, size, why)

    def __str__(self) -> str:
        return (
            f"{self.size} bytes at {self.addr.raw_value():#x} cannot be one access: "
            f"{self.why.value}"
        )


def why_not_one(
    memory: Bytes[GuestAddress], addr: GuestAddress, size: int, raw: bytes | None = None
) -> WhyNot | None:
    """Why an access of ``size`` bytes at ``addr`` cannot be one; None where it can, or where it
    fails as a whole, which ``load`` and ``store`` then tell. ``raw`` are the bytes to write;
    without them it is a read."""
    if isinstance(memory, FlatView):
        return _in_view(memory, addr, size, raw)
    if isinstance(memory, MapMemory):
        return _in_map(memory, addr, size, raw)
    if isinstance(memory, GuestMemory):
        return _in_slices(memory, addr, size, raw)
    return None


def _in_view(view: FlatView, addr: GuestAddress, size: int, raw: bytes | None) -> WhyNot | None:
    try:
        region, offset = view._whole(
            addr.raw_value(), size, raw is not None, UNSPECIFIED, Ordering.SEQ_CST
        )
    except InvalidBackendAddress:
        return WhyNot.CROSSES
    return _in_region(view._space, region, offset, size, raw)


def _in_map(memory: MapMemory, addr: GuestAddress, size: int, raw: bytes | None) -> WhyNot | None:
    found: list[tuple[MemoryMapping, int]] = []

    def note(mapping: MemoryMapping, offset: int) -> int:
        found.append((mapping, offset))
        return 0

    try:
        memory.map.do_in_region_partial(addr, note)
    except GuestMemoryError:
        return None
    mapping, offset = found[0]
    if size > mapping.size() - offset:
        return WhyNot.CROSSES
    return _in_backing(mapping.backing, mapping.offset_in_backing + offset, size, raw)


def _in_slices(
    memory: GuestMemory, addr: GuestAddress, size: int, raw: bytes | None
) -> WhyNot | None:
    access = Permissions.Read if raw is None else Permissions.Write
    try:
        piece = next(iter(memory.get_slices(addr, size, access)), None)
    except GuestMemoryError:
        return None
    if piece is None:
        return None
    if piece.len() < size:
        return WhyNot.CROSSES
    return _in_backing(piece.backing, piece.offset_in_backing, size, raw)


def _in_backing(backing: Backing, offset: int, size: int, raw: bytes | None) -> WhyNot | None:
    if isinstance(backing, SectionBacking):
        section = backing.section
        at = backing.space.rules.region_offset(section, section.start + offset)
        return _in_region(backing.space, section.region, at, size, raw)
    if (_host_address(backing) + offset) % size:
        return WhyNot.HOST_ALIGNMENT
    return WhyNot.BACKING if size > atomic_size(backing) else None


def _in_region(
    space: AddressSpace, region: MemoryRegion, offset: int, size: int, raw: bytes | None
) -> WhyNot | None:
    if space.is_direct(region, raw is not None, UNSPECIFIED):
        assert region.backing is not None, "is_direct says so"
        return _in_backing(region.backing, offset, size, raw)
    calls = device_calls(space, region, offset, size, raw)
    return WhyNot.SPLIT if calls > 1 else None


def device_calls(
    space: AddressSpace, region: MemoryRegion, offset: int, size: int, raw: bytes | None = None
) -> int:
    """How many calls into the device one dispatch of ``size`` bytes at ``offset`` of ``region``
    is just now (R1 to R4): 0 where none is made, since the access is refused, blocked, or
    swallowed by an ioeventfd. The device's vetoes (``accepts``) are asked for that."""
    while region.alias is not None:
        region, offset = region.alias, (offset + region.alias_offset) & MASK64
    rules, contract = space.rules, region.contract
    if rules.refusal(contract, offset, size, raw is not None, UNSPECIFIED) is not None:
        return 0
    big = rules.big(contract, space.target_big)
    if raw is not None:
        number = int.from_bytes(raw, "big" if big else "little")
        if rules.swallowed(region, offset, size, number):
            return 0
    if region.ops is None and space.ops is None:
        return 0
    guarded = region.owner is not None and rules.guarded(region)
    if guarded and rules.blocked(region.owner in space.engaged):
        return 0
    return len(rules.pieces(contract, size, big))


def atomic_size(backing: Backing) -> int:
    """The most bytes that ``backing`` moves in one, where they are aligned."""
    told = getattr(backing, "atomic_size", None)
    if isinstance(told, int):
        return told
    return HOST_ATOMIC_SIZE if isinstance(backing, SparseBacking | HostMemory) else 1


def _host_address(backing: Backing) -> int:
    """Where the host has offset 0; a backing that does not tell is taken as page-aligned."""
    told = getattr(backing, "host_address", None)
    return told if isinstance(told, int) else 0
