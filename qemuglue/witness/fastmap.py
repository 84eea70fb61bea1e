"""A view as parallel lists, for the loop that judges hundreds of thousands of accesses a second.

Only accesses that lie inside one section take this road; what it does for RAM is what
``AddressSpace`` does (the same ``Rules`` decide what is direct), only without calls.
"""

from __future__ import annotations

from collections.abc import Callable

from qemuglue.memory.address_space import AddressSpace
from qemuglue.memory.attrs import UNSPECIFIED
from qemuglue.memory.flatview import MemoryRegionSection
from qemuglue.memory.region import MemoryRegion, RegionKind
from qemuglue.witness.barriers import Barriers
from qemuglue.witness.dma import Following
from qemuglue.witness.dma.device import Stretches
from qemuglue.witness.plan import DevicePlan
from qemuglue.witness.ram import TrackedBacking
from qemuglue.witness.verdict import Kind


def kind_of(section: MemoryRegionSection, *, ports: bool) -> Kind:
    """The row of the verdict table an access inside ``section`` belongs to."""
    region = section.region
    if not section.assigned or region.kind is RegionKind.RESERVATION:
        return Kind.UNASSIGNED
    if region.kind is RegionKind.ROM_DEVICE:
        return Kind.ROMD
    if region.is_ram and region.kind is not RegionKind.RAM_DEVICE:
        if region.readonly:
            return Kind.ROM
        return Kind.RO_ALIAS if section.readonly else Kind.RAM
    if not ports:
        return Kind.DEVICE
    return Kind.IO_ROOT if is_io_root(region) else Kind.PORT


def is_io_root(region: MemoryRegion) -> bool:
    """The 64 KiB root of the I/O space, which answers all-ones where no port is."""
    return region.container is None and region.name == "io"


#: Plans kept for regions that may come into view again; a machine has some hundred regions.
MAX_KNOWN = 1 << 12


class FastMap:
    """Entry i covers [starts[i], limits[i]) of the space; index by bisect over ``starts``.

    ``rbarrier`` and ``wbarrier`` say whether a read or a write there ends its batch: None no,
    "after" it does, "solo" it is alone in its batch, "kick" also if its decoded device says that
    it may start a DMA, "avoid" it is not sent, "learnt" it depends on the access. ``before`` is the
    map that this one replaces.
    """

    __slots__ = (
        "delta", "dirty", "heeds", "kinds", "known", "limits", "plans", "rbarrier", "rdata",
        "read_barriers", "sections", "starts", "wbarrier", "wdata", "write_barriers",
    )

    def __init__(
        self, space: AddressSpace, barriers: Barriers,
        unjudgeable: Callable[[MemoryRegion], str | None], *,
        avoided: Callable[[str], str | None] = lambda name: None, ports: bool = False,
        following: Following | None = None, before: FastMap | None = None,
    ) -> None:
        view = space.view
        rules = space.rules
        self.sections = view.cover
        self.starts = view.starts
        self.limits = [section.start + section.size for section in view.cover]
        self.delta = [
            rules.region_offset(section, section.start) - section.start for section in view.cover
        ]
        self.kinds = [kind_of(section, ports=ports) for section in view.cover]
        self.rdata: list[memoryview | None] = []
        self.wdata: list[memoryview | None] = []
        self.dirty: list[set[int]] = []
        self.plans: list[DevicePlan] = []
        #: Plans of all regions that were ever in view.
        self.known: dict[tuple[MemoryRegion, Kind], DevicePlan] = {}
        if before is not None and len(before.known) < MAX_KNOWN:
            self.known.update(before.known)
        self.rbarrier: list[str | None] = []
        self.wbarrier: list[str | None] = []
        #: Where a write can be a "kick" at all, by offset in the region; None: anywhere.
        self.heeds: list[Stretches | None] = []
        for section in view.cover:
            backing = section.region.backing
            tracked = backing if isinstance(backing, TrackedBacking) else None
            readable = tracked is not None and rules.direct_read(section.region)
            writable = tracked is not None and rules.direct_write(section.region, UNSPECIFIED)
            self.rdata.append(tracked.data if tracked is not None and readable else None)
            self.wdata.append(tracked.data if tracked is not None and writable else None)
            self.dirty.append(tracked.dirty if tracked is not None else set())
            key = section.region, self.kinds[len(self.plans)]
            plan = self.known.get(key)
            if plan is None or not plan.serves(space):
                plan = DevicePlan(space, *key, unjudgeable, following, ports=ports)
                self.known[key] = plan
            else:
                plan.renew(unjudgeable)
            self.plans.append(plan)
            solo = "solo" if unjudgeable(section.region) else None
            if avoided(section.region.name) is not None:
                solo = "avoid"
            decoded = following is not None and following.of(section.region) is not None
            heeds = None
            if following is not None and not _depends(barriers, section.region):
                heeds = following.heeds(section.region)
            self.heeds.append(heeds)
            self.rbarrier.append(solo or _barrier(barriers, section.region, False))
            self.wbarrier.append(
                solo or ("kick" if decoded and heeds != () else
                         _barrier(barriers, section.region, True)))
        #: Whether there is any: most machines have none among their memory.
        self.read_barriers = any(self.rbarrier)
        self.write_barriers = any(self.wbarrier)


def _depends(barriers: Barriers, region: MemoryRegion) -> bool:
    """Whether a write may end its batch for another reason than its decoded device."""
    return barriers.always(region) or barriers.may(region, True)


def _barrier(barriers: Barriers, region: MemoryRegion, is_write: bool) -> str | None:
    if is_write and barriers.always(region):
        return "after"
    return "learnt" if barriers.may(region, is_write) else None
