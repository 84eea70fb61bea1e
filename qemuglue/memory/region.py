"""MemoryRegion: the tree that a guest's memory map is made of.

A region lies at ``addr`` inside its ``container``; where siblings overlap the higher
``priority`` wins, and among equals the one added last. A region that *terminates* answers for
every byte its children leave free; a container does not. An alias shows part of another
region. Source: QEMU ``docs/devel/memory.rst`` and ``memory_region_add_subregion_common``.

Changing a region does not redraw any view by itself: an AddressSpace renders when asked
(``AddressSpace.update``), so a group of changes becomes visible at once.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from qemuglue.errors import ModelError
from qemuglue.memory.contract import UNASSIGNED_CONTRACT, Contract, Endian
from qemuglue.memory.ops import BackingOps, MemoryRegionOps

if TYPE_CHECKING:
    from qemuglue.memory.backing import Backing

#: Sizes and addresses are below or at 2^64: QEMU keeps sizes as Int128 for that one value.
MAX_SIZE = 1 << 64


class RegionKind(enum.Enum):
    """What a region is; the values are words for people."""

    CONTAINER = "container"
    RAM = "ram"
    ROM = "rom"
    ROM_DEVICE = "romd"
    RAM_DEVICE = "ramd"
    IO = "i/o"
    ALIAS = "alias"
    RESERVATION = "reservation"
    IOMMU = "iommu"


_TERMINATES = frozenset(set(RegionKind) - {RegionKind.CONTAINER, RegionKind.ALIAS})
#: ``memory_region_is_ram``: RAM, ROM and RAM devices; a ROM device is not.
RAM_KINDS = frozenset({RegionKind.RAM, RegionKind.ROM, RegionKind.RAM_DEVICE})


class MemoryRegion:
    """One region. Attributes may be read freely; change them through the methods.

    ``size`` is bytes, 0 to 2^64. ``addr`` is the offset inside ``container``. ``owner`` is
    whatever names the device (re-entrancy is guarded per owner).
    """

    __slots__ = (
        "_children", "addr", "alias", "alias_offset", "backing", "container", "contract",
        "enabled", "guarded", "ioeventfds", "is_ram", "key", "kind", "name", "nonvolatile",
        "ops", "owner", "priority", "readonly", "romd", "size", "terminates", "unmergeable",
    )

    def __init__(
        self,
        name: str,
        size: int,
        kind: RegionKind,
        *,
        owner: Any = None,
        contract: Contract = UNASSIGNED_CONTRACT,
        ops: MemoryRegionOps | None = None,
        backing: Backing | None = None,
        alias: MemoryRegion | None = None,
        alias_offset: int = 0,
        terminates: bool | None = None,
    ) -> None:
        if not 0 <= size <= MAX_SIZE:
            raise ModelError(f"region {name!r}: size must be 0 to 2^64, got {size:#x}")
        if (kind is RegionKind.ALIAS) != (alias is not None):
            raise ModelError(f"region {name!r}: an alias, and only an alias, has a target")
        self.name = name
        self.size = size
        self.kind = kind
        self.owner = owner
        self.contract = contract
        self.ops = ops
        self.backing = backing
        self.alias = alias
        self.alias_offset = alias_offset
        self.addr = 0
        self.container: MemoryRegion | None = None
        self.priority = 0
        self.enabled = True
        self.terminates = kind in _TERMINATES if terminates is None else terminates
        self.readonly = kind is RegionKind.ROM
        self.romd = kind is RegionKind.ROM_DEVICE
        self.nonvolatile = False
        self.unmergeable = False
        #: False where the device opted out of the re-entrancy guard.
        self.guarded = True
        self.is_ram = kind in RAM_KINDS
        self.ioeventfds: tuple[IoEventFd, ...] = ()
        #: Free for the room that made the region: its identity across runs, say.
        self.key: Any = None
        self._children: list[MemoryRegion] = []

    # -- constructors, named as QEMU's memory_region_init_* -------------------------------

    @classmethod
    def container_of(cls, name: str, size: int, **kw: Any) -> MemoryRegion:
        """A pure container: it answers nothing itself."""
        return cls(name, size, RegionKind.CONTAINER, **kw)

    @classmethod
    def ram(cls, name: str, size: int, backing: Backing | None = None, **kw: Any) -> MemoryRegion:
        return cls(name, size, RegionKind.RAM, backing=backing, **kw)

    @classmethod
    def rom(cls, name: str, size: int, backing: Backing | None = None, **kw: Any) -> MemoryRegion:
        return cls(name, size, RegionKind.ROM, backing=backing, **kw)

    @classmethod
    def rom_device(
        cls, name: str, size: int, contract: Contract, ops: MemoryRegionOps | None = None,
        backing: Backing | None = None, **kw: Any,
    ) -> MemoryRegion:
        """Reads come from memory while ``romd`` is on; writes always go to the device."""
        return cls(
            name, size, RegionKind.ROM_DEVICE, contract=contract, ops=ops, backing=backing, **kw
        )

    @classmethod
    def ram_device(
        cls, name: str, size: int, backing: Backing | None = None, **kw: Any
    ) -> MemoryRegion:
        """Host memory of a real device: mapped like RAM, accessed only by sized pieces."""
        contract = Contract(
            valid_min=1, valid_max=8, valid_unaligned=True,
            impl_min=1, impl_max=8, impl_unaligned=True, endian=Endian.LITTLE,
        )
        kw = {"contract": contract, "ops": None if backing is None else BackingOps(), **kw}
        return cls(name, size, RegionKind.RAM_DEVICE, backing=backing, **kw)

    @classmethod
    def io(
        cls, name: str, size: int, contract: Contract | None = None,
        ops: MemoryRegionOps | None = None, **kw: Any,
    ) -> MemoryRegion:
        return cls(name, size, RegionKind.IO, contract=contract or Contract(), ops=ops, **kw)

    @classmethod
    def alias_of(
        cls, name: str, target: MemoryRegion, offset: int, size: int, **kw: Any
    ) -> MemoryRegion:
        """Shows ``size`` bytes of ``target`` from ``offset`` on."""
        return cls(name, size, RegionKind.ALIAS, alias=target, alias_offset=offset, **kw)

    @classmethod
    def reservation(cls, name: str, size: int, **kw: Any) -> MemoryRegion:
        """Claims addresses and answers as unassigned."""
        return cls(name, size, RegionKind.RESERVATION, **kw)

    @classmethod
    def iommu(cls, name: str, size: int, **kw: Any) -> MemoryRegion:
        return cls(name, size, RegionKind.IOMMU, **kw)

    # -- the tree ------------------------------------------------------------------------

    @property
    def subregions(self) -> tuple[MemoryRegion, ...]:
        """Children in resolution order: priority descending, newest first among equals."""
        return tuple(self._children)

    def add_subregion(self, addr: int, child: MemoryRegion) -> None:
        """Put ``child`` at ``addr`` (offset in this region) with priority 0."""
        self.add_subregion_overlap(addr, child, 0)

    def add_subregion_overlap(self, addr: int, child: MemoryRegion, priority: int) -> None:
        """Put ``child`` at ``addr``; it goes before the first sibling of equal or lower
        priority (``memory_region_update_container_subregions``)."""
        if child.container is not None:
            raise ModelError(
                f"region {child.name!r} is already in {child.container.name!r}; "
                "take it out with del_subregion first"
            )
        if not 0 <= addr < MAX_SIZE:
            raise ModelError(f"region {child.name!r}: offset {addr:#x} is not below 2^64")
        above: MemoryRegion | None = self
        while above is not None:
            if above is child:
                raise ModelError(f"region {child.name!r} cannot contain itself")
            above = above.container
        child.container = self
        child.addr = addr
        child.priority = priority
        for at, sibling in enumerate(self._children):
            if priority >= sibling.priority:
                self._children.insert(at, child)
                return
        self._children.append(child)

    def del_subregion(self, child: MemoryRegion) -> None:
        if child.container is not self:
            raise ModelError(f"region {child.name!r} is not in {self.name!r}")
        self._children.remove(child)
        child.container = None

    def set_enabled(self, enabled: bool) -> None:
        """A disabled region, with all in it, is as if it were not there."""
        self.enabled = enabled

    def set_address(self, addr: int) -> None:
        """Move inside the container. QEMU takes it out and adds it again, so it becomes the
        newest of its priority (``memory_region_readd_subregion``)."""
        container = self.container
        if container is None:
            self.addr = addr
        elif addr != self.addr:
            container.del_subregion(self)
            container.add_subregion_overlap(addr, self, self.priority)

    def set_size(self, size: int) -> None:
        if not 0 <= size <= MAX_SIZE:
            raise ModelError(f"region {self.name!r}: size must be 0 to 2^64, got {size:#x}")
        self.size = size

    def set_alias_offset(self, offset: int) -> None:
        if self.alias is None:
            raise ModelError(f"region {self.name!r} is not an alias")
        self.alias_offset = offset

    def set_readonly(self, readonly: bool) -> None:
        self.readonly = readonly

    def set_nonvolatile(self, nonvolatile: bool) -> None:
        self.nonvolatile = nonvolatile

    def set_romd(self, romd: bool) -> None:
        if self.kind is not RegionKind.ROM_DEVICE:
            raise ModelError(f"region {self.name!r} is not a ROM device")
        self.romd = romd

    def absolute(self, offset: int = 0) -> int:
        """``offset`` plus the addresses up the container chain, modulo 2^64: the address
        QEMU's trace prints (``memory_region_to_absolute_addr``). Behind an alias this is not
        a bus address."""
        region = self
        while region.container is not None:
            offset += region.addr
            region = region.container
        return (offset + region.addr) & (MAX_SIZE - 1)

    def __repr__(self) -> str:
        return f"<{self.kind.value} {self.name!r} size {self.size:#x}>"


class IoEventFd:
    """A write QEMU swallows: it signals an event instead of calling the device.

    ``addr`` is an offset in the region; ``size`` is bytes, 0 for any. ``data``, in the
    device's byte order, is compared only when given (``memory_region_add_eventfd`` with
    match_data, which is passed the target's order and turns it round).
    """

    __slots__ = ("addr", "data", "size")

    def __init__(self, addr: int, size: int, data: int | None = None) -> None:
        self.addr = addr
        self.size = size
        self.data = data
