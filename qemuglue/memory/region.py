"""MemoryRegion: the tree that a guest's memory map is made of.

A region lies at ``addr`` inside its ``container``; where siblings overlap the higher
``priority`` wins, and among equals the one added last. A region that *terminates* answers for
every byte its children leave free; a container does not. An alias shows part of another
region. Source: QEMU ``docs/devel/memory.rst`` and ``memory_region_add_subregion_common``.

A region that an AddressSpace can show belongs to that space's ``Topology``: from then on each
change is a transaction (``memory_region_transaction_begin``/``_commit``) that redraws the views
at its end; ``with topology.transaction():`` makes one of a group of changes. A region that no
space shows is changed without further ado.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from qemuglue.errors import ModelError
from qemuglue.memory.backing import default_backing
from qemuglue.memory.contract import UNASSIGNED_CONTRACT, Contract, Endian
from qemuglue.memory.ops import BackingOps, MemoryRegionOps

if TYPE_CHECKING:
    from qemuglue.memory.backing import Backing
    from qemuglue.memory.flatview import MemoryRegionSection
    from qemuglue.memory.iommu import IommuOps
    from qemuglue.memory.topology import Topology

#: Sizes and addresses are below or at 2^64: QEMU keeps sizes as Int128 for that one value.
MAX_SIZE = 1 << 64
#: The last address; addresses wrap behind it.
MASK64 = MAX_SIZE - 1


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

_AT_ONCE: AbstractContextManager[None] = nullcontext()


class MemoryRegion:
    """One region. Attributes may be read freely; change them through the methods.

    ``size`` is bytes, 0 to 2^64. ``addr`` is the offset inside ``container``. ``owner`` is
    whatever names the device (re-entrancy is guarded per owner).
    """

    __slots__ = (
        "__weakref__", "_children", "_counted", "addr", "alias", "alias_offset", "backing",
        "coalesced", "container", "contract", "enabled", "guarded", "ioeventfds",
        "iommu_ops", "is_ram", "key", "kind", "mapped_via_alias", "name", "nonvolatile", "ops",
        "owner", "priority", "readonly", "romd", "size", "terminates", "topology", "unmergeable",
        "vga_logging",
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
        #: (offset, size) of ranges whose writes may be collected (``memory_region_*_coalescing``).
        self.coalesced: tuple[tuple[int, int], ...] = ()
        self.iommu_ops: IommuOps | None = None
        #: How many aliases that lie in a container show this region, over any number of aliases.
        self.mapped_via_alias = 0
        #: How many users want writes logged for a display (``DIRTY_MEMORY_VGA``).
        self.vga_logging = 0
        #: What redraws when this region changes; set when a space first can show the region.
        self.topology: Topology | None = None
        #: Free for the room that made the region: its identity across runs, say.
        self.key: Any = None
        self._children: list[MemoryRegion] = []
        #: The targets whose ``mapped_via_alias`` counts this alias.
        self._counted: list[MemoryRegion] = []

    # -- constructors, named as QEMU's memory_region_init_* -------------------------------

    @classmethod
    def container_of(cls, name: str, size: int, **kw: Any) -> MemoryRegion:
        """A pure container: it answers nothing itself."""
        return cls(name, size, RegionKind.CONTAINER, **kw)

    @classmethod
    def ram(cls, name: str, size: int, backing: Backing | None = None, **kw: Any) -> MemoryRegion:
        """RAM; without a ``backing`` it gets zeroed memory of its own, as in QEMU."""
        return cls(name, size, RegionKind.RAM, backing=_memory(size, backing), **kw)

    @classmethod
    def rom(cls, name: str, size: int, backing: Backing | None = None, **kw: Any) -> MemoryRegion:
        return cls(name, size, RegionKind.ROM, backing=_memory(size, backing), **kw)

    @classmethod
    def rom_device(
        cls, name: str, size: int, contract: Contract, ops: MemoryRegionOps | None = None,
        backing: Backing | None = None, **kw: Any,
    ) -> MemoryRegion:
        """Reads come from memory while ``romd`` is on; writes always go to the device."""
        return cls(
            name, size, RegionKind.ROM_DEVICE, contract=contract, ops=ops,
            backing=_memory(size, backing), **kw,
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
        kw = {"contract": contract, "ops": BackingOps(), **kw}
        return cls(name, size, RegionKind.RAM_DEVICE, backing=_memory(size, backing), **kw)

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
    def iommu(
        cls, name: str, size: int, translate: IommuOps | None = None, **kw: Any
    ) -> MemoryRegion:
        """Accesses go where ``translate`` says; without it nowhere (R18)."""
        region = cls(name, size, RegionKind.IOMMU, **kw)
        region.iommu_ops = translate
        return region

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
        if self.topology is not None:
            self.topology.adopt(child)
        with self._change(self.enabled and child.enabled):
            child.addr = addr
            child.priority = priority
            child._placed(self)

    def _placed(self, container: MemoryRegion) -> None:
        """Become the newest child of its priority (``memory_region_add_subregion_common``)."""
        siblings = container._children
        at = bisect_left(siblings, -self.priority, key=_downwards)
        self.container = container
        siblings.insert(at, self)
        self._count_targets()

    def _count_targets(self) -> None:
        """Tell every region this alias leads to that a container shows it now."""
        target = self.alias
        while target is not None and target not in self._counted:
            self._counted.append(target)
            target.mapped_via_alias += 1
            target = target.alias

    def _uncount_targets(self) -> None:
        for target in self._counted:
            target.mapped_via_alias -= 1
        self._counted.clear()

    def del_subregion(self, child: MemoryRegion) -> None:
        if child.container is not self:
            raise ModelError(f"region {child.name!r} is not in {self.name!r}")
        with self._change(self.enabled and child.enabled):
            self._children.remove(child)
            child.container = None
            child._uncount_targets()

    # -- changes -------------------------------------------------------------------------

    def _change(self, redraw: bool) -> AbstractContextManager[object]:
        """A transaction around one change; ``redraw``: a view may look different after it."""
        return _AT_ONCE if self.topology is None else self.topology.change(redraw)

    def set_enabled(self, enabled: bool) -> None:
        """A disabled region, with all in it, is as if it were not there."""
        if enabled != self.enabled:
            with self._change(True):
                self.enabled = enabled

    def set_address(self, addr: int) -> None:
        """Move inside the container. QEMU takes it out and adds it again, so it becomes the
        newest of its priority (``memory_region_readd_subregion``)."""
        if not 0 <= addr < MAX_SIZE:
            raise ModelError(f"region {self.name!r}: offset {addr:#x} is not below 2^64")
        container = self.container
        if addr == self.addr:
            return
        if container is None:
            self.addr = addr
            return
        with self._change(container.enabled and self.enabled):
            container._children.remove(self)
            self._uncount_targets()
            self.addr = addr
            self._placed(container)

    def set_size(self, size: int) -> None:
        """Bytes, 0 to 2^64. In C 2^64 - 1 stands for 2^64 (``memory_region_set_size``); here
        each value means itself."""
        if not 0 <= size <= MAX_SIZE:
            raise ModelError(f"region {self.name!r}: size must be 0 to 2^64, got {size:#x}")
        if size != self.size:
            with self._change(True):
                self.size = size

    def set_alias_offset(self, offset: int) -> None:
        if self.alias is None:
            raise ModelError(f"region {self.name!r} is not an alias")
        if offset != self.alias_offset:
            with self._change(self.enabled):
                self.alias_offset = offset

    def set_readonly(self, readonly: bool) -> None:
        if readonly != self.readonly:
            with self._change(self.enabled):
                self.readonly = readonly

    def set_nonvolatile(self, nonvolatile: bool) -> None:
        if nonvolatile != self.nonvolatile:
            with self._change(self.enabled):
                self.nonvolatile = nonvolatile

    def set_unmergeable(self, unmergeable: bool) -> None:
        """Keep sections of this region apart even where one continues the other."""
        if unmergeable != self.unmergeable:
            with self._change(self.enabled):
                self.unmergeable = unmergeable

    def set_romd(self, romd: bool) -> None:
        """Whether reads of a ROM device come from its memory."""
        if self.kind is not RegionKind.ROM_DEVICE:
            raise ModelError(f"region {self.name!r} is not a ROM device")
        if romd != self.romd:
            with self._change(self.enabled):
                self.romd = romd

    def set_log(self, log: bool) -> None:
        """Log writes for a display, or no more; users are counted (``memory_region_set_log``,
        which takes ``DIRTY_MEMORY_VGA`` only)."""
        count = self.vga_logging + (1 if log else -1)
        if count < 0:
            raise ModelError(f"region {self.name!r} is not logged")
        with self._change(self.enabled and bool(count) != bool(self.vga_logging)):
            self.vga_logging = count

    # -- ioeventfds and coalescing -------------------------------------------------------

    def add_eventfd(
        self, addr: int, size: int, data: int | None = None, notifier: object = None
    ) -> IoEventFd:
        """Swallow writes of ``size`` bytes (0: any) at ``addr``, of ``data`` only if given.

        ``data`` is a value in the target's byte order (``memory_region_add_eventfd``).
        """
        if data is not None and size:
            data = self._target_value(data, size)
        added = IoEventFd(addr, size, data, notifier)
        with self._change_fds():
            self.ioeventfds = tuple(sorted((*self.ioeventfds, added), key=IoEventFd.order))
        return added

    def del_eventfd(
        self, addr: int, size: int, data: int | None = None, notifier: object = None
    ) -> None:
        """Take one out, given as it was added. Raises ModelError if there is none."""
        if data is not None and size:
            data = self._target_value(data, size)
        gone = IoEventFd(addr, size, data, notifier)
        for at, fd in enumerate(self.ioeventfds):
            if fd.equals(gone):
                with self._change_fds():
                    self.ioeventfds = self.ioeventfds[:at] + self.ioeventfds[at + 1 :]
                return
        raise ModelError(f"region {self.name!r} has no such ioeventfd at {addr:#x}")

    def _change_fds(self) -> AbstractContextManager[object]:
        if self.topology is None:
            return _AT_ONCE
        return self.topology.change(False, eventfds=self.enabled)

    def _target_value(self, data: int, size: int) -> int:
        big = self.topology is not None and self.topology.target_big
        if self.contract.big(big) == big:
            return data
        return int.from_bytes(data.to_bytes(size, "big"), "little")

    def set_coalescing(self) -> None:
        """Collect the writes of all of it."""
        self.clear_coalescing()
        self.add_coalescing(0, self.size)

    def add_coalescing(self, offset: int, size: int) -> None:
        self.coalesced = (*self.coalesced, (offset, size))
        if self.topology is not None:
            self.topology.coalescing(self, (offset, size), add=True)

    def clear_coalescing(self) -> None:
        """No more collecting; listeners hear of each range in the order it was added."""
        while self.coalesced:
            gone, self.coalesced = self.coalesced[0], self.coalesced[1:]
            if self.topology is not None:
                self.topology.coalescing(self, gone, add=False)

    # -- questions -----------------------------------------------------------------------

    @property
    def is_mapped(self) -> bool:
        """Whether it lies in a container, or an alias that does shows it
        (``memory_region_is_mapped``). Nothing is said of address spaces."""
        return self.container is not None or self.mapped_via_alias > 0

    def find(self, addr: int, size: int) -> MemoryRegionSection | None:
        """What lies within ``size`` bytes at ``addr``, an offset in this region: the first
        section that a space shows there, clipped to the range (``memory_region_find``).

        None where nothing lies there, and where no address space has the root of this
        region's containers as its own root.
        """
        root = self
        at = addr + self.addr
        while root.container is not None:
            root = root.container
            at += root.addr
        if self.topology is None:
            return None
        space = self.topology.space_over(root)
        return None if space is None else space.memory_find(at & MASK64, size)

    def present(self, addr: int) -> bool:
        """Whether something other than this region itself answers at ``addr`` in it
        (``memory_region_present``)."""
        found = self.find(addr, 1)
        return found is not None and found.region is not self

    @property
    def dirty_log_mask(self) -> int:
        """The clients whose dirty bits a write to it sets: bits 1 << ``dirty.VGA``, ``CODE``,
        ``MIGRATION`` (``memory_region_get_dirty_log_mask``)."""
        mask = 1 if self.vga_logging else 0
        if self.topology is not None:
            mask |= self.topology.log_mask(self)
        return mask

    def absolute(self, offset: int = 0) -> int:
        """``offset`` plus the addresses up the container chain, modulo 2^64: the address
        QEMU's trace prints (``memory_region_to_absolute_addr``). Behind an alias this is not
        a bus address."""
        region = self
        while region.container is not None:
            offset += region.addr
            region = region.container
        return (offset + region.addr) & MASK64

    def __repr__(self) -> str:
        return f"<{self.kind.value} {self.name!r} size {self.size:#x}>"


class IoEventFd:
    """A write QEMU swallows: it signals an event instead of calling the device.

    ``addr`` is an offset in the region; ``size`` is bytes, 0 for any. ``data``, in the
    device's byte order, is compared only when given (match_data). ``notifier`` is whatever
    stands for the event.
    """

    __slots__ = ("addr", "data", "notifier", "size")

    def __init__(
        self, addr: int, size: int, data: int | None = None, notifier: object = None
    ) -> None:
        self.addr = addr
        self.size = size
        self.data = data
        self.notifier = notifier

    def order(self) -> tuple[int, int, bool, int, int]:
        """Where it stands in a region's list (``memory_region_ioeventfd_before``)."""
        return self.addr, self.size, self.data is not None, self.data or 0, id(self.notifier)

    def takes(self, addr: int, size: int, value: int) -> bool:
        """Whether it is signalled by this write, given in the device's byte order."""
        if self.addr != addr:
            return False
        return not self.size or (self.size == size and self.data in (None, value))

    def signal(self) -> None:
        """The event happens: a notifier that can be called is (``event_notifier_set``)."""
        if callable(self.notifier):
            self.notifier()

    def equals(self, other: IoEventFd) -> bool:
        """``memory_region_ioeventfd_equal``: where either size is 0 the address decides."""
        if self.addr != other.addr:
            return False
        return not self.size or not other.size or self.order() == other.order()


def _downwards(region: MemoryRegion) -> int:
    return -region.priority


def _memory(size: int, backing: Backing | None) -> Backing:
    """``backing``, or memory of its own; a size that is refused anyway gets none."""
    return default_backing(max(0, min(size, MAX_SIZE))) if backing is None else backing
